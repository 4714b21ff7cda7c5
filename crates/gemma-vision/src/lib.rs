//! Images for the models that read them: from a file to the features that a decoder takes in place of tokens.
//!
//! [`Image`] is what a file holds; [`Image::pixels`] resizes it as Pillow does and scales its values; [`Siglip`] makes
//! a feature of each patch. What comes after (a projection, PaliGemma's prompt, Gemma 3's pooling) belongs to the model
//! families.
//!
//! | Module | What is in it |
//! |---|---|
//! | `image` | [`Image`], [`Pixels`]: decoding with bounded memory |
//! | `jpeg` | where the image of a JPEG file ends |
//! | `preprocessor` | `preprocessor_config.json`: what it says of images |
//! | `resample` | Pillow's resizing, to the last bit |
//! | `siglip` | [`Siglip`], the image encoder |
//! | `splice` | images among the tokens of a text: [`embed_with_images`] |
//! | `config` | the encoder's half of a `config.json` |
//! | `error` | [`Error`] |

mod config;
mod error;
mod image;
mod jpeg;
mod preprocessor;
mod resample;
mod siglip;
mod splice;

pub use config::SiglipConfig;
pub use error::Error;
pub use image::{Image, PIXEL_LIMIT, Pixels, SIDE_LIMIT};
pub use preprocessor::{preprocessor_files, resize_filter};
pub use resample::{Filter, resize_map, resize_rgb};
pub use siglip::{LayerNorm, Siglip};
pub use splice::embed_with_images;
