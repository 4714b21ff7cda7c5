//! Checkpoints on disk: safetensors folders and shards, the Hugging Face cache, quantizing, saving.
