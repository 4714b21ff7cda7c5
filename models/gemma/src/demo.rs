//! The model that comes with the library.

use crate::{Error, Gemma, LoadOptions};
use gemma_backend::Device;
use gemma_tokenizer::{Family, Tokenizer};
use gemma_weights::Checkpoint;

const TOKENIZER: &[u8] = include_bytes!("../demo/tokenizer.json");

/// The files of the demo model's folder; `cargo xtask demo gemma` makes them.
const FILES: [(&str, &[u8]); 6] = [
    ("config.json", include_bytes!("../demo/config.json")),
    ("generation_config.json", include_bytes!("../demo/generation_config.json")),
    ("model.safetensors", include_bytes!("../demo/model.safetensors")),
    ("special_tokens_map.json", include_bytes!("../demo/special_tokens_map.json")),
    ("tokenizer.json", TOKENIZER),
    ("tokenizer_config.json", include_bytes!("../demo/tokenizer_config.json")),
];

/// Opens the demo model: a tiny network of the Gemma 2 architecture that this repository trained on text it made up.
/// It tells short stories and answers questions about small sums, comparisons and word lists; it needs no file and no
/// network.
///
/// # Errors
/// Only when the device fails.
pub fn demo(device: &Device) -> Result<Gemma, Error> {
    Gemma::demo_with(&LoadOptions::default(), device)
}

/// The files of the demo model, opened like a folder.
///
/// # Errors
/// Never, for the files that are built in.
pub fn demo_checkpoint() -> Result<Checkpoint, Error> {
    Ok(Checkpoint::from_static(&FILES)?)
}

/// The tokenizer of the demo model.
///
/// # Errors
/// Never, for the file that is built in.
pub fn demo_tokenizer() -> Result<Tokenizer, Error> {
    Ok(Tokenizer::from_json(TOKENIZER, Family::Gemma)?)
}

impl Gemma {
    /// [`demo`] with options.
    ///
    /// # Errors
    /// As [`demo`].
    pub fn demo_with(options: &LoadOptions, device: &Device) -> Result<Self, Error> {
        Self::from_checkpoint(&demo_checkpoint()?, options, device)
    }
}
