//! RecurrentGemma: text generation on Burn whose memory does not grow with the text.
//!
//! ```
//! use recurrentgemma::{GenerateOptions, default_device};
//!
//! # fn main() -> Result<(), recurrentgemma::Error> {
//! // the demo model is part of the library; `RecurrentGemma::load("google/recurrentgemma-2b", &device)` opens a real one
//! let model = recurrentgemma::demo(&default_device()?)?;
//! for piece in model.stream("Once upon a time", &GenerateOptions::greedy(16))? {
//!     print!("{}", piece?);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`RecurrentGemma`] is the front door, a [`Model`]: a tokenizer, a network and what belongs to them. Behind it,
//! [`GriffinConfig`] says what a `config.json` means, and [`Griffin`] is the network: [`RecurrentBlock`]s, which carry
//! a state from token to token ([`CausalConv`], then [`RgLru`]), and blocks of local attention. Its [`GriffinCache`] of a
//! sequence has the same size after a thousand tokens as after a million; it can be cloned to fork a text, and kept in
//! a file.
//!
//! # Features
//!
//! `ndarray` (default, CPU), `flex` (CPU), `wgpu` (GPU; `vulkan` and `metal` add their shader compilers), `hub`
//! (default: download from the Hugging Face hub). Backends can be combined and are chosen at run time.

mod block;
mod cache;
mod config;
mod conv;
mod demo;
mod griffin;
mod initial;
mod recurrent;
mod rg_lru;

pub use block::{ResidualBlock, TemporalBlock};
pub use cache::{GriffinCache, LayerCache, RecurrentState};
pub use config::{BlockSpec, GriffinConfig, Temporal};
pub use conv::CausalConv;
pub use demo::{demo, demo_checkpoint, demo_with};
pub use griffin::Griffin;
pub use initial::Initial;
pub use recurrent::{RecurrentBlock, RecurrentSpec};
pub use rg_lru::{Gate, RgLru};

/// A RecurrentGemma model, ready to write.
pub type RecurrentGemma = Model<Griffin>;

pub use gemma_backend::{Backend, Device, default_device};
pub use gemma_generate::{
    Cache, CausalModel, FinishReason, GenerateOptions, Generated, Generation, Request, Sequence, TextStream, Timings,
    generate_batch,
};
pub use gemma_model::{
    Answered, Conversation, Error, LoadOptions, Model, Network, OnLoad, Reply, StateFault, load_state, save_state,
};
pub use gemma_nn::{ActivationPrecision, CachePrecision, RandomWeights, Segment};
pub use gemma_tokenizer::{ChatTemplate, EncodeOptions, Family, Role, TokenId, Tokenizer, Turn};
pub use gemma_weights::{Checkpoint, Dtype, Precision};
