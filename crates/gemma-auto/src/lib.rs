//! Opens a model of any Gemma family by its name and hands out one interface, as the Auto classes of HF transformers do.
//!
//! ```
//! use gemma_auto::{AutoModel, GenerateOptions, default_device};
//!
//! # fn main() -> Result<(), gemma_auto::Error> {
//! let model = AutoModel::load("demo:recurrentgemma", &default_device()?)?;
//! assert!(model.capabilities().generate && !model.capabilities().images);
//! let text = model.generate("Once upon a time", &GenerateOptions::greedy(8))?.text;
//! println!("{text}");
//! # Ok(())
//! # }
//! ```
//!
//! # Names
//!
//! | Name | What is opened |
//! |---|---|
//! | `./gemma-2-2b-it` | a checkpoint folder in Hugging Face format |
//! | `model-q8_0.gguf` | a GGUF file |
//! | `google/gemma-2-2b-it`, `ORG/NAME@REVISION` | a repository of the Hugging Face hub, downloaded on first use |
//! | `demo`, `demo:FAMILY` | a tiny model that is built into the library |
//! | `shape:NAME` | random weights of a released size, to measure with |
//!
//! # Two steps
//!
//! [`find`] turns a name into a [`Found`]: it downloads what is missing and reads headers, no weights.
//! [`Found::open`] loads the weights into an [`AutoModel`], an enum over the architectures. A function that is generic over
//! [`Network`] is called through [`with_model!`], which unpacks the enum:
//!
//! ```
//! use gemma_auto::{AutoModel, Error, Model, Network, default_device, with_model};
//!
//! fn vocabulary<N: Network>(model: &Model<N>) -> Result<usize, Error> {
//!     Ok(model.network().vocab())
//! }
//!
//! # fn main() -> Result<(), Error> {
//! let model = AutoModel::load("demo:gemma", &default_device()?)?;
//! assert_eq!(with_model!(&model, model => vocabulary(model))?, 896);
//! # Ok(())
//! # }
//! ```
//!
//! # A new family
//!
//! A family is a file in `families/`, which implements [`FamilyModel`] for its model, and a line in `architecture.rs`.
//!
//! # Features
//!
//! `ndarray` (default, CPU), `flex` (CPU), `wgpu` (GPU; `vulkan` and `metal` add their shader compilers), `hub`
//! (default: download from the Hugging Face hub). Backends can be combined and are chosen at run time.

#[macro_use]
mod architecture;
mod convert;
mod error;
mod families;
mod family_model;
mod find;
mod footprint;
mod model;
mod threads;
mod tokenizer;

#[doc(hidden)]
pub use architecture::models;
pub use architecture::{Architecture, AutoModel};
pub use error::Error;
pub use families::{demo_called, demo_checkpoint, demo_families};
pub use family_model::{Capabilities, FamilyModel, Pieces};
pub use find::{Found, OnProgress, Progress, find, find_with};
pub use footprint::{Footprint, ServingMemory, models_table};
pub use threads::set_threads;
pub use tokenizer::{tokenizer, tokenizer_and_config};

pub use codegemma::CodeGemma;
pub use embeddinggemma::EmbeddingGemma;
pub use gemma::Gemma;
pub use gemma_backend::{Backend, Device, default_device};
pub use gemma_generate::{CausalModel, FinishReason, GenerateOptions, Generated, TextStream};
pub use gemma_model::{LoadOptions, Model, Network, OnLoad, Speculate};
pub use gemma_tokenizer::{Family, TokenId, Tokenizer, Turn};
pub use gemma_weights::{Checkpoint, Dtype, Format, Precision};
pub use paligemma::PaliGemma;
pub use recurrentgemma::RecurrentGemma;
