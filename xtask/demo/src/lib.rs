//! Makes the embedded demo models: generated text, a small tokenizer, training from scratch.
