//! Gemma 1, 1.1, 2 and 3 and VaultGemma: text generation on Burn.
//!
//! ```
//! use gemma::{GenerateOptions, default_device};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // the demo model is part of the library; `Gemma::load("google/gemma-2-2b-it", &device)` opens a real one
//! let gemma = gemma::demo(&default_device()?)?;
//! let answer = gemma.chat("What is 2 plus 3?", &GenerateOptions::greedy(16))?;
//! println!("{answer}");
//! # Ok(())
//! # }
//! ```
//!
//! [`Gemma`] is the front door, a [`Model`]: a tokenizer, a network and what belongs to them; everything a user can get
//! wrong is checked there. Behind it, [`DecoderConfig`] says what a `config.json` means, [`Decoder`] is the network, and the
//! loop that turns logits into text is [`gemma_generate`].
//!
//! # Features
//!
//! `ndarray` (default, CPU), `flex` (CPU), `wgpu` (GPU; `vulkan` and `metal` add their shader compilers), `hub`
//! (default: download from the Hugging Face hub). Backends can be combined and are chosen at run time.

mod config;
mod decoder;
mod demo;
mod layer;
mod names;

pub use config::{DecoderConfig, LayerSpec, Norms};
pub use decoder::{Decoder, DecoderCache};
pub use demo::{demo, demo_checkpoint, demo_tokenizer, demo_with};
pub use layer::DecoderLayer;

/// A Gemma model, ready to write.
pub type Gemma = Model<Decoder>;

pub use gemma_backend::{Backend, Device, default_device};
pub use gemma_generate::{
    Cache, CausalModel, Engine, EngineHandle, EngineOptions, EngineThread, Event, FinishReason, GenerateOptions,
    Generated, Generation, Request, Sequence, TextDecoder, TextStream, Timings, generate_batch,
};
pub use gemma_model::{
    Answered, Conversation, Error, LoadOptions, Model, Network, OnLoad, Reply, StateFault, load_state, save_state,
};
pub use gemma_nn::{ActivationPrecision, CachePrecision, RandomWeights, Segment};
pub use gemma_tokenizer::{ChatTemplate, DecodeStream, EncodeOptions, Family, Role, TokenId, Tokenizer, Turn};
pub use gemma_weights::{Checkpoint, Dtype, Precision};
