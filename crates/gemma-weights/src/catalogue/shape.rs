//! The `config.json` of each released network, as data.
//!
//! Sources: the `config.json` of each release and its technical report (Gemma, arXiv 2403.08295; Gemma 2,
//! arXiv 2408.00118; Gemma 3, arXiv 2503.19786; PaliGemma, arXiv 2407.07726; PaliGemma 2, arXiv 2412.03555;
//! RecurrentGemma, arXiv 2404.07839).

use serde_json::Value;

/// A released network: several checkpoints may share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Short name, as in `gemma bench --shape gemma-2b`: the hub id of the plain checkpoint without its organisation.
    pub name: &'static str,
    /// The text of its `config.json`, with the fields that make the network.
    pub config: &'static str,
}

/// A table of the files in `configs`, by name.
macro_rules! shapes {
    ($($name:literal,)+) => {
        &[$(Shape { name: $name, config: include_str!(concat!("../../configs/", $name, ".json")) },)+]
    };
}

/// Every released network, the text models first, each family from small to large.
pub const SHAPES: &[Shape] = shapes![
    "gemma-2b",
    "gemma-7b",
    "gemma-2-2b",
    "gemma-2-9b",
    "gemma-2-27b",
    "gemma-3-270m",
    "gemma-3-1b",
    "gemma-3-4b",
    "gemma-3-12b",
    "gemma-3-27b",
    "gemma-3-27b-text",
    "embeddinggemma-300m",
    "vaultgemma-1b",
    "recurrentgemma-2b",
    "recurrentgemma-9b",
    "paligemma-3b-224",
    "paligemma-3b-448",
    "paligemma-3b-896",
    "paligemma2-3b-224",
    "paligemma2-3b-448",
    "paligemma2-3b-896",
    "paligemma2-10b-224",
    "paligemma2-10b-448",
    "paligemma2-10b-896",
    "paligemma2-28b-224",
    "paligemma2-28b-448",
    "paligemma2-28b-896",
];

/// The network of this name, as in [`Shape::name`].
///
/// ```
/// let shape = gemma_weights::catalogue::shape("gemma-2b").expect("the 2B shape is in the table");
/// assert_eq!(shape.context_length(), 8_192);
/// ```
pub fn shape(name: &str) -> Option<&'static Shape> {
    SHAPES.iter().find(|shape| shape.name == name)
}

impl Shape {
    /// Whether it makes a vector of a text, and no text (EmbeddingGemma).
    pub fn makes_vectors(&self) -> bool {
        let config: Value = serde_json::from_str(self.config).expect("every file is JSON (tested)");
        // its file says so by the class; that its attention looks both ways is left out, since nothing else would read it
        config["architectures"][0] == "Gemma3TextModel"
    }

    /// Longest sequence that its checkpoints were trained on, in tokens (`max_position_embeddings`).
    pub fn context_length(&self) -> u64 {
        let config: Value = serde_json::from_str(self.config).expect("every file is JSON (tested)");
        let text = config.get("text_config").unwrap_or(&config);
        text["max_position_embeddings"].as_u64().expect("every file has it (tested)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found_and_every_file_is_complete() {
        for (index, entry) in SHAPES.iter().enumerate() {
            let first = SHAPES.iter().position(|other| other.name == entry.name);
            assert_eq!(first, Some(index), "{} stands twice", entry.name);
            assert_eq!(shape(entry.name), Some(entry));
            assert!(entry.context_length() >= 1_024, "{}", entry.name);
        }
        assert_eq!(shape("gemma-3b"), None);
    }

    #[test]
    fn every_file_is_in_the_table() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
        let mut files = 0;
        for file in std::fs::read_dir(folder).expect("the folder of this crate") {
            let path = file.expect("an entry").path();
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            assert!(shape(&name).is_some(), "{name}");
            files += 1;
        }
        assert_eq!(files, SHAPES.len());
    }
}
