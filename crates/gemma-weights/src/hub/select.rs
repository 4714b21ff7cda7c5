//! Which files of a repository make one model: safetensors with what lies beside them, or one GGUF file.

use std::path::Path;

use crate::checkpoint::{INDEX_FILE, Index, SINGLE_FILE};
use crate::files::{Files, is_plain_name};
use crate::gguf::without_ending;

use super::id::is_gguf_name;

/// The files beside the weights that the models read, or that a saved copy passes on.
#[cfg(feature = "hub")]
const SMALL_FILES: [&str; 14] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    // the modules after the network of an embedding model
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
];
/// The file that says what an adapter changes.
pub(super) const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The weights of an adapter.
pub(super) const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// The quantizations that are taken of a repository with several files when none is named, the first best.
const PREFERRED: [&str; 4] = ["Q4_K_M", "Q4_0", "Q8_0", "BF16"];

/// The weights of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Weights {
    /// `model.safetensors`.
    Single,
    /// `model.safetensors.index.json`, which names the shards.
    Sharded,
    /// A GGUF file, or the parts of a split one in their order.
    Gguf(Vec<String>),
    /// GGUF files, and no way to choose one: the names.
    Undecided(Vec<String>),
    /// A LoRA adapter and no model.
    Adapter,
    /// Nothing that is read; the weight files there are.
    None(Vec<String>),
}

/// Finds the weights among a repository's files. `choice` is the quantization or the file that was asked for.
pub(super) fn weights(names: &[String], choice: Option<&str>) -> Weights {
    let has = |name: &str| names.iter().any(|found| found == name);
    if choice.is_none() && has(SINGLE_FILE) {
        return Weights::Single;
    }
    if choice.is_none() && has(INDEX_FILE) {
        return Weights::Sharded;
    }
    // an image encoder or an adapter, called by its name
    if let Some(name) =
        choice.and_then(|choice| names.iter().find(|name| is_gguf_name(name) && is_called(name, choice)))
        && !may_be_model(name)
    {
        return Weights::Gguf(vec![name.clone()]);
    }
    let models = gguf_models(names);
    if !models.is_empty() {
        return match chosen(&models, choice) {
            Some(parts) => Weights::Gguf(parts.clone()),
            None => Weights::Undecided(models.into_iter().map(|mut parts| parts.remove(0)).collect()),
        };
    }
    if has(ADAPTER_WEIGHTS) || has(ADAPTER_CONFIG) {
        return Weights::Adapter;
    }
    let endings = [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".npz", ".onnx", ".gguf"];
    let found = names.iter().filter(|name| endings.iter().any(|ending| name.ends_with(ending)));
    Weights::None(found.cloned().collect())
}

/// The files beside the safetensors weights that are fetched.
#[cfg(feature = "hub")]
pub(super) fn beside(names: &[String]) -> Vec<String> {
    names.iter().filter(|name| SMALL_FILES.contains(&name.as_str()) || is_module(name)).cloned().collect()
}

/// The shards that the index `name` in a folder names, each once; `None` without a readable index.
pub(super) fn shards(folder: &Path, name: &str) -> Option<Vec<String>> {
    let content = Files::Folder(folder.to_owned()).read(name).ok()??;
    let index: Index = serde_json::from_slice(&content).ok()?;
    let mut shards: Vec<String> = index.weight_map.0.into_iter().map(|(_, shard)| shard).collect();
    shards.sort_unstable();
    shards.dedup();
    (!shards.is_empty() && shards.iter().all(|shard| is_plain_name(shard))).then_some(shards)
}

/// Whether a file belongs to a module after the network: `2_Dense/model.safetensors`.
#[cfg(feature = "hub")]
fn is_module(name: &str) -> bool {
    let Some((folder, file)) = name.split_once('/') else { return false };
    let number = folder.split_once('_').map(|(number, _)| number).unwrap_or_default();
    !number.is_empty()
        && number.bytes().all(|digit| digit.is_ascii_digit())
        && ["config.json", SINGLE_FILE].contains(&file)
}

/// The GGUF files that can be models, the parts of a split one together, by name.
fn gguf_models(names: &[String]) -> Vec<Vec<String>> {
    let mut models: Vec<&String> = names.iter().filter(|name| is_gguf_name(name) && may_be_model(name)).collect();
    models.sort_unstable();
    let mut grouped: Vec<Vec<String>> = Vec::new();
    for name in models {
        match (part(name), grouped.last_mut()) {
            (Some((stem, number, _)), Some(last))
                if number > 1 && part(&last[0]).is_some_and(|(first, ..)| first == stem) =>
            {
                last.push(name.clone());
            }
            _ => grouped.push(vec![name.clone()]),
        }
    }
    grouped
}

/// Image encoders, importance matrices and adapters lie beside models and have names by which they are known.
fn may_be_model(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    !["mmproj", "imatrix", "lora", "adapter"].iter().any(|word| file.contains(word))
}

/// Stem, number and count of `STEM-00001-of-00003.gguf`.
pub(super) fn part(name: &str) -> Option<(&str, u32, u32)> {
    let (rest, count) = without_ending(name)?.0.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    Some((stem, number.parse().ok()?, count.parse().ok()?))
}

fn chosen<'m>(models: &'m [Vec<String>], choice: Option<&str>) -> Option<&'m Vec<String>> {
    let Some(choice) = choice else {
        let by_preference = || PREFERRED.iter().find_map(|quantization| by_quantization(models, quantization));
        return match models {
            [one] => Some(one),
            _ => by_preference(),
        };
    };
    let by_name = || models.iter().find(|parts| parts.iter().any(|name| is_called(name, choice)));
    by_name().or_else(|| by_quantization(models, choice))
}

/// Whether a file of a repository has this name, with or without its folder.
fn is_called(name: &str, choice: &str) -> bool {
    name == choice || name.rsplit('/').next() == Some(choice)
}

/// The file with a quantization in its name: the shortest of several, which has the fewest other words.
fn by_quantization<'m>(models: &'m [Vec<String>], quantization: &str) -> Option<&'m Vec<String>> {
    models.iter().filter(|parts| has_word(&parts[0], quantization)).min_by_key(|parts| parts[0].len())
}

/// Whether `word` stands in a file's name by itself: `Q4_K_M` in `gemma-2-2b-it-Q4_K_M.gguf`, and not `Q4_K`.
fn has_word(name: &str, word: &str) -> bool {
    let (name, word) = (name.to_ascii_lowercase(), word.to_ascii_lowercase());
    let is_inside = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    !word.is_empty()
        && name.match_indices(&word).any(|(at, _)| {
            let (before, after) = (&name.as_bytes()[..at], &name.as_bytes()[at + word.len()..]);
            !is_inside(before.last()) && !is_inside(after.first()) && after.first() != Some(&b'_')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn weights_that_are_there_twice_are_fetched_once() {
        let all =
            ["config.json", "consolidated.safetensors", "model.safetensors", "model.fp16.safetensors", INDEX_FILE];
        assert_eq!(weights(&names(&all), None), Weights::Single);
        assert_eq!(weights(&names(&all[..2]), None), Weights::None(names(&["consolidated.safetensors"])));
        let sharded = ["model-00001-of-00002.safetensors", "consolidated.safetensors", INDEX_FILE];
        assert_eq!(weights(&names(&sharded), None), Weights::Sharded);
        assert_eq!(weights(&names(&["adapter_model.safetensors", "README.md"]), None), Weights::Adapter);
        assert_eq!(weights(&names(&["pytorch_model.bin"]), None), Weights::None(names(&["pytorch_model.bin"])));
    }

    #[test]
    fn a_gguf_file_is_chosen_by_its_quantization_or_its_name() {
        let all = names(&[
            "gemma-2-2b-it-Q4_K_M.gguf",
            "gemma-2-2b-it-Q4_K_S.gguf",
            "gemma-2-2b-it-IQ4_XS.gguf",
            "gemma-2-2b-it-bf16.gguf",
            "gemma-2-2b-it-f16.gguf",
            "mmproj-gemma-f16.gguf",
            "gemma-2-2b-it.imatrix.gguf",
        ]);
        let choice = |choice: Option<&str>| match weights(&all, choice) {
            Weights::Gguf(parts) => parts.join(" "),
            other => format!("{other:?}"),
        };
        assert_eq!(choice(Some("q4_k_m")), "gemma-2-2b-it-Q4_K_M.gguf");
        assert_eq!(choice(Some("F16")), "gemma-2-2b-it-f16.gguf");
        assert_eq!(choice(Some("IQ4_XS")), "gemma-2-2b-it-IQ4_XS.gguf");
        assert_eq!(choice(Some("gemma-2-2b-it-f16.gguf")), "gemma-2-2b-it-f16.gguf");
        assert_eq!(choice(None), "gemma-2-2b-it-Q4_K_M.gguf");
        assert_eq!(choice(Some("mmproj-gemma-f16.gguf")), "mmproj-gemma-f16.gguf");
        assert_eq!(weights(&names(&["A-Q8_0.GGUF"]), Some("q8_0")), Weights::Gguf(names(&["A-Q8_0.GGUF"])));
        for absent in ["Q4_K", "Q4_XS", "Q4", "Q2_K", "other.gguf", ""] {
            assert!(choice(Some(absent)).starts_with("Undecided"), "{absent}");
        }
        assert!(
            matches!(weights(&names(&["a-Q3_K_L.gguf", "a-Q3_K_M.gguf"]), None), Weights::Undecided(list) if list.len() == 2)
        );
    }

    #[test]
    fn the_parts_of_a_split_file_come_together() {
        let all = names(&["Q8_0/big-Q8_0-00002-of-00002.gguf", "Q8_0/big-Q8_0-00001-of-00002.gguf", "big-Q2_K.gguf"]);
        let parts = names(&["Q8_0/big-Q8_0-00001-of-00002.gguf", "Q8_0/big-Q8_0-00002-of-00002.gguf"]);
        assert_eq!(weights(&all, Some("Q8_0")), Weights::Gguf(parts.clone()));
        assert_eq!(weights(&all, Some("big-Q8_0-00002-of-00002.gguf")), Weights::Gguf(parts));
    }

    #[cfg(feature = "hub")]
    #[test]
    fn of_the_small_files_only_those_that_are_read_are_fetched() {
        let all =
            names(&["README.md", "config.json", "2_Dense/model.safetensors", "original/config.json", "tokenizer.json"]);
        assert_eq!(beside(&all), ["config.json", "2_Dense/model.safetensors", "tokenizer.json"]);
    }
}
