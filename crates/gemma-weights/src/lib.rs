//! Checkpoints on disk: safetensors folders and shards, GGUF files, the Hugging Face cache, quantizing, saving.
//!
//! A model's name becomes a folder ([`resolve`]); the folder is opened and every header
//! checked, without reading a weight ([`Checkpoint`]); its tensors are compared with what the configuration asks for
//! ([`Checkpoint::check`]); and layers are built from it ([`Loader`], a [`gemma_nn::Source`]), borrowing the file's bytes
//! where they are stored as wanted and quantizing them where not. [`save_folder`] goes the other way. Which models
//! exist is said by the [`catalogue`].
//!
//! The configuration itself (`config.json`) belongs to the model families; this crate hands out its bytes
//! ([`Checkpoint::file`]).
//!
//! ```no_run
//! use gemma_weights::{Checkpoint, HubOptions, resolve};
//!
//! let folder = resolve("google/gemma-2-2b-it", &HubOptions::from_env())?;
//! let checkpoint = Checkpoint::open(&folder)?;
//! for (name, tensor) in checkpoint.tensors() {
//!     println!("{name} {:?} {}", tensor.shape, tensor.format);
//! }
//! # Ok::<(), gemma_weights::Error>(())
//! ```

mod adapter;
pub mod catalogue;
mod check;
mod checkpoint;
mod convert;
mod dtype;
mod error;
mod files;
mod generation_config;
mod gguf;
mod hub;
mod json;
mod loader;
mod names;
mod new_file;
mod safetensors;
mod save;
mod shard;
mod stand_in;
mod stored_tensor;
mod tensor_spec;

pub use adapter::{
    Adapter, AdapterConfig, AdapterFactors, AdapterFault, AdapterTensor, Targets, save_adapter, save_gguf_adapter,
};
pub use checkpoint::Checkpoint;
pub use dtype::{Dtype, Precision};
pub use error::{Error, GgufFault, SafetensorsFault};
pub use files::read_small_file;
pub use gemma_kernels::Format;
pub use generation_config::GenerationConfig;
pub use gguf::{GgufVocabulary, MOST_LAYERS, OnConvert, is_gguf, save_gguf};
pub use hub::{
    Download, HubId, HubOptions, OnDownload, cached, cached_bytes, cached_repositories, pull, remove_cached, resolve,
    resolve_adapter, resolve_with,
};
pub use loader::{Loader, OnProgress};
pub use new_file::NewFile;
pub use safetensors::{Described, parse_safetensors, read_safetensors, read_safetensors_with_metadata};
pub use save::{SaveOptions, SavedTensor, save_folder, save_folder_with, save_safetensors, try_save_folder};
pub use stand_in::stand_in;
pub use stored_tensor::StoredTensor;
pub use tensor_spec::TensorSpec;
