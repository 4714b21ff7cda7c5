//! The model and the images that come with the library.

use gemma_backend::Device;
use gemma_model::LoadOptions;
use gemma_tokenizer::{Family, Tokenizer};
use gemma_weights::Checkpoint;

use crate::{Error, Image, PaliGemma};

const TOKENIZER: &[u8] = include_bytes!("../demo/tokenizer.json");

/// The files of the demo model's folder; `cargo xtask demo paligemma` makes them.
const FILES: [(&str, &[u8]); 7] = [
    ("config.json", include_bytes!("../demo/config.json")),
    ("generation_config.json", include_bytes!("../demo/generation_config.json")),
    ("mask_decoder.safetensors", include_bytes!("../demo/mask_decoder.safetensors")),
    ("model.safetensors", include_bytes!("../demo/model.safetensors")),
    ("special_tokens_map.json", include_bytes!("../demo/special_tokens_map.json")),
    ("tokenizer.json", TOKENIZER),
    ("tokenizer_config.json", include_bytes!("../demo/tokenizer_config.json")),
];

/// Images that the demo model has not learned from.
const IMAGES: [(&str, &[u8]); 3] = [
    ("shapes1.png", include_bytes!("../demo/images/shapes1.png")),
    ("shapes2.png", include_bytes!("../demo/images/shapes2.png")),
    ("shapes3.png", include_bytes!("../demo/images/shapes3.png")),
];

/// Opens the demo model: a tiny network of the PaliGemma architecture that this repository trained on images it drew.
/// It describes circles, squares, triangles and crosses of six colours, counts them, says where they are and
/// which pixels belong to them; it needs no file and no network.
///
/// # Errors
/// Only when the device fails.
pub fn demo(device: &Device) -> Result<PaliGemma, Error> {
    PaliGemma::demo_with(&LoadOptions::default(), device)
}

/// The files of the demo model, opened like a folder.
///
/// # Errors
/// Never, for the files that are built in.
pub fn demo_checkpoint() -> Result<Checkpoint, gemma_model::Error> {
    Ok(Checkpoint::from_static(&FILES)?)
}

/// The tokenizer of the demo model.
///
/// # Errors
/// Never, for the file that is built in.
pub fn demo_tokenizer() -> Result<Tokenizer, gemma_model::Error> {
    Ok(Tokenizer::from_json(TOKENIZER, Family::PaliGemma)?)
}

/// A few images for the demo model, with their names.
///
/// # Errors
/// Never, for the files that are built in.
pub fn demo_images() -> Result<Vec<(&'static str, Image)>, Error> {
    IMAGES.iter().map(|(name, bytes)| Ok((*name, Image::decode(bytes, name)?))).collect()
}

impl PaliGemma {
    /// [`demo`] with options.
    ///
    /// # Errors
    /// As [`demo`].
    pub fn demo_with(options: &LoadOptions, device: &Device) -> Result<Self, Error> {
        Self::from_checkpoint(&demo_checkpoint()?, options, device)
    }
}
