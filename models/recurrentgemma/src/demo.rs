//! The model that comes with the library.

use crate::{Error, LoadOptions, RecurrentGemma};
use gemma_backend::Device;
use gemma_weights::Checkpoint;

/// The files of the demo model's folder; `cargo xtask demo recurrentgemma` makes them.
const FILES: [(&str, &[u8]); 6] = [
    ("config.json", include_bytes!("../demo/config.json")),
    ("generation_config.json", include_bytes!("../demo/generation_config.json")),
    ("model.safetensors", include_bytes!("../demo/model.safetensors")),
    ("special_tokens_map.json", include_bytes!("../demo/special_tokens_map.json")),
    ("tokenizer.json", include_bytes!("../demo/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../demo/tokenizer_config.json")),
];

/// Opens the demo model: a tiny Griffin that this repository trained on text it made up. Its attention sees 32 tokens;
/// a word that it is asked to remember it remembers over hundreds. It also tells short stories. It needs no file and no
/// network.
///
/// # Errors
/// Only when the device fails.
pub fn demo(device: &Device) -> Result<RecurrentGemma, Error> {
    demo_with(&LoadOptions::default(), device)
}

/// [`demo`] with options.
///
/// # Errors
/// As [`demo`].
pub fn demo_with(options: &LoadOptions, device: &Device) -> Result<RecurrentGemma, Error> {
    RecurrentGemma::from_checkpoint(&demo_checkpoint()?, options, device)
}

/// The files of the demo model, opened like a folder.
///
/// # Errors
/// Never, for the files that are built in.
pub fn demo_checkpoint() -> Result<Checkpoint, Error> {
    Ok(Checkpoint::from_static(&FILES)?)
}
