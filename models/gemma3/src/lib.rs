//! Gemma 3 with images (4B, 12B, 27B; MedGemma and ShieldGemma 2): images anywhere in the text, text out.
//!
//! ```no_run
//! use gemma3::{Gemma3, GenerateOptions, Image, default_device};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Gemma3::load("google/gemma-3-4b-it", &default_device()?)?;
//! let photo = model.encode_image(&Image::open("cat.jpg")?); // once, for any number of questions
//! let answer = model.ask(&[&photo], "What is the cat doing?", &GenerateOptions::default())?;
//! println!("{}", answer.text);
//! # Ok(())
//! # }
//! ```
//!
//! The way of an image: [`Image`] is what a file holds; the [`Processor`] resizes it as the reference does (bilinear) and
//! may cut crops of it; SigLIP makes a feature of each patch; the [`Projector`] takes means over squares of patches and
//! maps them to what the decoder reads in the places of `<image_soft_token>`. The decoder is that of [`gemma`], which
//! reads text of these models without images.
//!
//! # Features
//!
//! `ndarray` (default, CPU), `flex` (CPU), `wgpu` (GPU; `vulkan` and `metal` add their shader compilers), `hub`
//! (default: download from the Hugging Face hub). Backends can be combined and are chosen at run time.

mod config;
mod error;
mod front;
mod names;
mod network;
pub mod prompt;

pub use config::{Crop, Gemma3Config, PanAndScan, Processor};
pub use error::Error;
pub use front::{EncodedImage, Gemma3, IMAGE_MARK, ShownImages};
pub use network::{Gemma3Network, Projector};

pub use gemma_backend::{Backend, Device, default_device};
pub use gemma_generate::{GenerateOptions, Generated};
pub use gemma_model::{LoadOptions, Network};
pub use gemma_vision::Image;
