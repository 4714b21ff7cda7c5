//! PaliGemma and PaliGemma 2: images in; text, boxes and masks out.
//!
//! ```
//! use paligemma::{Error, default_device, demo, demo_images};
//!
//! # fn main() -> Result<(), Error> {
//! // the demo model is part of the library; `PaliGemma::load("google/paligemma-3b-mix-224", &device)` opens a real one
//! let model = demo(&default_device()?)?;
//! let view = model.encode_image(&demo_images()?[0].1); // encoded once, for any number of questions
//! println!("{}", view.caption("en")?);
//! for found in view.detect(&["circle"])?.iter() {
//!     println!("{} at {:?}", found.label, found.bounds);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The way of an image: [`Image`] is what a file holds; [`Siglip`] makes a feature of each patch of it; a projection
//! turns these into what Gemma's decoder reads in the places of `<image>` tokens ([`VisionLanguageModel`]);
//! [`PaliGemma`] is the front door, and a [`ImageFeatures`] is an image that was looked at, with the tasks that can be asked of
//! it. What the model answers in location and segment tokens becomes boxes in [`loc`] and masks in [`seg`].
//!
//! # Features
//!
//! `ndarray` (default, CPU), `flex` (CPU), `wgpu` (GPU; `vulkan` and `metal` add their shader compilers), `hub`
//! (default: download from the Hugging Face hub). Backends can be combined and are chosen at run time.

pub mod coco;
mod config;
mod demo;
mod draw;
mod error;
mod features;
mod font;
mod front;
pub mod loc;
mod names;
mod network;
mod npz;
pub mod prompt;
pub mod seg;

pub use config::PaliGemmaConfig;
pub use demo::{demo, demo_checkpoint, demo_images, demo_tokenizer};
pub use draw::{Drawn, draw};
pub use error::Error;
pub use features::{Detection, Found, Segmentation};
pub use front::{ImageFeatures, PaliGemma, Question};
pub use loc::BoundingBox;
pub use network::{Prompt, VisionLanguageModel};
pub use seg::{Mask, MaskDecoder};

pub use gemma_backend::{Backend, Device, default_device};
pub use gemma_generate::{
    Cache, CausalModel, FinishReason, GenerateOptions, Generated, Generation, Sequence, TextStream, Timings,
};
pub use gemma_model::{LoadOptions, Model, Network, OnLoad, load_state, save_state};
pub use gemma_nn::{ActivationPrecision, CachePrecision, RandomWeights, Segment};
pub use gemma_tokenizer::{TokenId, Tokenizer};
pub use gemma_vision::{Filter, Image, LayerNorm, PIXEL_LIMIT, Pixels, Siglip, SiglipConfig, resize_map, resize_rgb};
pub use gemma_weights::{Checkpoint, Dtype, Precision};
