//! Targets that read a whole model, or what lies beside one: the input holds the files of a folder, one after the other.
//!
//! The files are separated by a line of [`BORDER`]; one that is empty is not there. A model that opens is also run for a
//! few tokens, since a number in a file can be wrong in a way that only the computation sees.

use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use embeddinggemma::{EmbedOptions, Task};
use gemma_auto::{AutoModel, Network, with_model};
use gemma_backend::{Backend, Device};
use gemma_generate::GenerateOptions;
use gemma_model::{LoadOptions, Model};
use gemma_tokenizer::Turn;
use gemma_vision::Image;
use gemma_weights::{Adapter, Checkpoint, save_gguf_adapter};
use serde_json::json;

use crate::inputs::{BORDER, as_file, seed};

/// The files of an input, the missing ones empty.
fn files<const N: usize>(bytes: &[u8]) -> [&[u8]; N] {
    let mut rest = Some(bytes);
    std::array::from_fn(|_| {
        let Some(text) = rest else { return &[] as &[u8] };
        let at = text.windows(BORDER.len()).position(|window| window == BORDER.as_bytes());
        rest = at.map(|at| &text[at + BORDER.len()..]);
        &text[..at.unwrap_or(text.len())]
    })
}

/// Makes a folder of these files and gives its path to `read`.
fn in_folder(files: &[(&str, &[u8])], read: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (name, content) in files.iter().filter(|(_, content)| !content.is_empty()) {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().context("a file in a folder")?)?;
        std::fs::write(&path, content)?;
    }
    read(folder.path())
}

fn device() -> Result<&'static Device> {
    static DEVICE: OnceLock<Option<Device>> = OnceLock::new();
    DEVICE.get_or_init(|| Backend::NdArray.device().ok()).as_ref().context("the CPU has a backend")
}

pub(crate) fn offline() -> LoadOptions {
    LoadOptions { offline: true, ..LoadOptions::default() }
}

/// Opens what a path names and runs it for a few tokens.
pub(crate) fn use_model(path: &Path, options: &LoadOptions) -> Result<()> {
    let device = device()?;
    let found = gemma_auto::find(path.to_str().context("a path in UTF-8")?, options)?;
    if found.is_embedding()? {
        let model = found.open_embedding_with(options, device, &mut |_| {})?;
        model.embed_tokens(&[[2, 3, 1].as_slice(), &[2]], EmbedOptions::default())?;
        model.embed(&["a b", ""], Task::Query)?;
        return Ok(());
    }
    let model = found.open(options, device)?;
    with_model!(&model, model => run(model))?;
    let image = Image::decode(&seed("image", "rgb.png"), "the seed")?;
    match &model {
        AutoModel::PaliGemma(model) => {
            model.encode_image(&image).caption("en")?;
        }
        AutoModel::Gemma3(model) => {
            model.ask(&[&model.encode_image(&image)], "what?", &greedy())?;
        }
        _ => {}
    }
    Ok(())
}

fn greedy() -> GenerateOptions {
    GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(2) }
}

/// Runs a text model on tokens, on a text and on a question.
fn run<N: Network>(model: &Model<N>) -> Result<()> {
    if let Ok(stream) = model.stream_tokens(&[2, 3, 1], &greedy()) {
        stream.finish()?;
    }
    model.generate("a b", &greedy())?;
    model.stream_chat(&[Turn::user("c")], &greedy())?.finish()?;
    Ok(())
}

/// A model's folder: `config.json`, weights, `tokenizer.json`, `generation_config.json`, `tokenizer_config.json`,
/// `preprocessor_config.json`.
pub(crate) fn model(bytes: &[u8]) -> Result<()> {
    let [config, weights, tokenizer, generation, chat, images] = files(bytes);
    let files = [
        ("config.json", config),
        ("model.safetensors", weights),
        ("tokenizer.json", tokenizer),
        ("generation_config.json", generation),
        ("tokenizer_config.json", chat),
        ("preprocessor_config.json", images),
    ];
    in_folder(&files, |folder| use_model(folder, &offline()))
}

/// The image encoder (`mmproj`) of the seed that is a Gemma 3.
pub(crate) fn mmproj(bytes: &[u8]) -> Result<()> {
    as_file(".gguf", &seed("gguf", "gemma3.gguf"), |text| {
        as_file(".gguf", bytes, |encoder| {
            use_model(text, &LoadOptions { image_encoder: Some(encoder.to_owned()), ..offline() })
        })
    })
}

/// A LoRA adapter as PEFT writes it, for the demo of Gemma: `adapter_config.json` and its factors. One that fits is run,
/// added to the weights, and written as a GGUF file.
pub(crate) fn adapter(bytes: &[u8]) -> Result<()> {
    static BASE: OnceLock<Option<Checkpoint>> = OnceLock::new();
    let base = BASE.get_or_init(|| gemma::demo_checkpoint().ok()).as_ref().context("the demo opens")?;
    let [config, factors] = files(bytes);
    in_folder(&[("adapter_config.json", config), ("adapter_model.safetensors", factors)], |folder| {
        let adapter = Adapter::open(folder)?;
        save_gguf_adapter(&adapter, &json!({ "model_type": "gemma2" }), &folder.join("adapter.gguf"), true)?;
        let options = LoadOptions { adapters: vec![adapter.clone()], ..offline() };
        run(&gemma::Gemma::from_checkpoint(base, &options, device()?)?)?;
        drop(base.merged(&[adapter], None));
        Ok(())
    })
}

/// A sentence-transformers folder around the small network of the seed: `modules.json`, the pooling's and the dense
/// layer's `config.json`, `sentence_bert_config.json`, `config_sentence_transformers.json`.
pub(crate) fn embedding(bytes: &[u8]) -> Result<()> {
    let network = seed("model", "embedding.bin");
    let [config, weights, tokenizer] = files(&network);
    let dense = seed("safetensors", "dense.safetensors");
    let [modules, pooling, dense_config, bert, prompts] = files(bytes);
    let files = [
        ("config.json", config),
        ("model.safetensors", weights),
        ("tokenizer.json", tokenizer),
        ("modules.json", modules),
        ("1_Pooling/config.json", pooling),
        ("2_Dense/config.json", dense_config),
        ("2_Dense/model.safetensors", &dense),
        ("sentence_bert_config.json", bert),
        ("config_sentence_transformers.json", prompts),
    ];
    in_folder(&files, |folder| use_model(folder, &offline()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeds;

    #[test]
    fn an_input_is_cut_at_its_borders() {
        let input = ["a", "", "c\n%%"].join(BORDER);
        assert_eq!(files::<4>(input.as_bytes()), [b"a".as_slice(), b"", b"c\n%%", b""]);
        assert_eq!(files::<1>(input.as_bytes()), [b"a"]);
    }

    /// Mutations of a seed that is refused at the first check test nothing behind it.
    #[test]
    fn the_seeds_are_sound_models() {
        for target in ["model", "mmproj", "adapter", "embedding"] {
            for (index, seed) in seeds(target).iter().enumerate() {
                // the network alone, which `embedding` puts its folder around
                let alone = seed == &super::seed("model", "embedding.bin");
                let result = match target {
                    "model" => model(seed),
                    "mmproj" => mmproj(seed),
                    "adapter" => adapter(seed),
                    _ => embedding(seed),
                };
                let cause = result.as_ref().map_err(|error| error.to_string());
                assert_eq!(result.is_ok(), !alone, "seed {index} of {target}: {cause:?}");
            }
        }
        for kind in ["gemma", "gemma2", "gemma3"] {
            let file = super::seed("gguf", &format!("{kind}.gguf"));
            as_file(".gguf", &file, |path| use_model(path, &offline())).expect(kind);
        }
    }
}
