//! The model that comes with the library.

use crate::{CodeGemma, Error};
use gemma::{Gemma, LoadOptions};
use gemma_backend::Device;
use gemma_tokenizer::{Family, Tokenizer};
use gemma_weights::Checkpoint;

const TOKENIZER: &[u8] = include_bytes!("../demo/tokenizer.json");

/// The files of the demo model's folder; `cargo xtask demo codegemma` makes them.
const FILES: [(&str, &[u8]); 6] = [
    ("config.json", include_bytes!("../demo/config.json")),
    ("generation_config.json", include_bytes!("../demo/generation_config.json")),
    ("model.safetensors", include_bytes!("../demo/model.safetensors")),
    ("special_tokens_map.json", include_bytes!("../demo/special_tokens_map.json")),
    ("tokenizer.json", TOKENIZER),
    ("tokenizer_config.json", include_bytes!("../demo/tokenizer_config.json")),
];

/// Opens the demo model: a tiny network of CodeGemma's architecture that this repository trained on programs it made up.
/// It fills holes in Python, JavaScript and Rust files of functions about sums, searches and lists; it needs no file and no
/// network.
///
/// # Errors
/// Only when the device fails.
pub fn demo(device: &Device) -> Result<CodeGemma, Error> {
    demo_with(&LoadOptions::default(), device)
}

/// [`demo`] with options.
///
/// # Errors
/// As [`demo`].
pub fn demo_with(options: &LoadOptions, device: &Device) -> Result<CodeGemma, Error> {
    CodeGemma::new(Gemma::from_checkpoint(&demo_checkpoint()?, options, device)?)
}

/// The files of the demo model, opened like a folder.
///
/// # Errors
/// Never, for the files that are built in.
pub fn demo_checkpoint() -> Result<Checkpoint, gemma::Error> {
    Ok(Checkpoint::from_static(&FILES)?)
}

/// The tokenizer of the demo model.
///
/// # Errors
/// Never, for the file that is built in.
pub fn demo_tokenizer() -> Result<Tokenizer, gemma::Error> {
    Ok(Tokenizer::from_json(TOKENIZER, Family::CodeGemma)?)
}
