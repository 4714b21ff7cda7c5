//! Adapters as GGUF files, which llama.cpp loads beside a model (`--lora`): reading and writing them.

use std::collections::BTreeMap;
use std::io::BufWriter;
use std::ops::ControlFlow;
use std::path::Path;

use gemma_kernels::Format;
use serde_json::Value as Json;

use super::{Adapter, AdapterConfig, AdapterFault, Targets, canonical, pair};
use crate::gguf::write::{Outgoing, Pairs, architecture_of, write};
use crate::gguf::{file_name, map_parts, parse_adapter};
use crate::new_file::NewFile;
use crate::{Error, StoredTensor};

/// Opens a GGUF file that llama.cpp's `convert_lora_to_gguf.py`, or [`save_gguf_adapter`], has written. Its scale is
/// `alpha / rank`, or 1 where it has no alpha.
///
/// # Errors
/// [`Error::Gguf`] for a file that is damaged, no adapter, or not for a model of this family; [`Error::Adapter`] for factors
/// that do not fit each other.
pub(super) fn open(path: &Path) -> Result<Adapter, Error> {
    let failed = |fault| Error::Adapter { path: path.to_owned(), fault };
    let parts = map_parts(path)?;
    let file = parse_adapter(&parts)?;
    let mut halves: BTreeMap<String, [Option<StoredTensor>; 2]> = BTreeMap::new();
    for (tensor, stored) in file.factors {
        let (module, place) = match (tensor.strip_suffix(".weight.lora_a"), tensor.strip_suffix(".weight.lora_b")) {
            (Some(module), _) => (module.to_owned(), 0),
            (_, Some(module)) => (module.to_owned(), 1),
            _ => return Err(failed(AdapterFault::UnknownTensor { tensor })),
        };
        halves.entry(module).or_default()[place] = Some(stored);
    }
    let ranks: BTreeMap<String, usize> =
        halves.iter().filter_map(|(name, [a, _])| Some((name.clone(), *a.as_ref()?.shape.first()?))).collect();
    let rank = ranks.values().copied().max().unwrap_or_default();
    // without an alpha every module's scale is 1
    let alpha = if file.alpha == 0.0 { rank as f64 } else { file.alpha };
    let alpha_pattern = match file.alpha {
        0.0 => ranks.iter().map(|(name, rank)| (name.clone(), *rank as f64)).collect(),
        _ => BTreeMap::new(),
    };
    let config = AdapterConfig {
        rank,
        alpha,
        rslora: false,
        targets: Targets::Names(halves.keys().cloned().collect()),
        rank_pattern: ranks.into_iter().filter(|(_, of_module)| *of_module != rank).collect(),
        alpha_pattern,
        base_model: None,
        of_encoder: false,
    };
    let modules = pair(&config, halves).map_err(|fault| failed(fault.in_gguf(&file.architecture)))?;
    Ok(Adapter { path: path.to_owned(), config, modules, strength: 1.0, architecture: Some(file.architecture) })
}

/// Writes an adapter for the model of `config`, a `config.json`, as one GGUF file. Such a file has one alpha; where a
/// module's scale is not alpha divided by its rank (rsLoRA, patterns, a strength), its `lora_b` makes up for it. A file that
/// is there is replaced only when `replace` is set.
///
/// # Errors
/// [`Error::NotForGguf`] for an architecture that GGUF does not have, [`Error::Adapter`] for a module that such files have
/// no place for, [`Error::WouldOverwrite`], [`Error::NotFinite`], [`Error::Write`].
pub fn save_gguf_adapter(adapter: &Adapter, config: &Json, path: &Path, replace: bool) -> Result<(), Error> {
    let architecture = architecture_of(config)?;
    // no alpha at all would mean a scale of 1
    let alpha = if adapter.config.alpha == 0.0 { 1.0 } else { adapter.config.alpha };
    let mut named = Vec::new();
    for module in adapter.modules.values() {
        let Some(name) = file_name(&format!("{}.weight", canonical(&module.name)), architecture) else {
            let fault = AdapterFault::NotAProjection { module: module.name.clone() };
            return Err(Error::Adapter { path: adapter.path.clone(), fault });
        };
        let rank = module.a.shape[0] as f64;
        let factor = (f64::from(module.scale * adapter.strength) * rank / alpha) as f32;
        named.push((format!("{name}.lora_a"), as_f32(&module.a, 1.0)));
        named.push((format!("{name}.lora_b"), as_f32(&module.b, factor)));
    }
    if !replace && path.exists() {
        return Err(Error::WouldOverwrite { folder: path.to_owned() });
    }
    let mut pairs = Pairs::default();
    pairs.text("general.architecture", architecture);
    pairs.text("general.type", "adapter");
    pairs.text("general.name", "LoRA adapter");
    pairs.text("adapter.type", "lora");
    pairs.float("adapter.lora.alpha", alpha);
    let tensors: Vec<Outgoing<'_>> = named.iter().map(|(name, tensor)| (name.clone(), tensor, Format::F32)).collect();
    let mut new = NewFile::open(path)?;
    let on_progress = &mut |_, _| ControlFlow::Continue(());
    write(&mut BufWriter::new(new.as_file_mut()), &pairs, &tensors, on_progress, path)?;
    new.finish()
}

/// A factor in f32, times a number.
fn as_f32(tensor: &StoredTensor, factor: f32) -> StoredTensor {
    let bytes: Vec<u8> = tensor.to_f32().into_iter().flat_map(|value| (value * factor).to_le_bytes()).collect();
    StoredTensor { format: Format::F32, shape: tensor.shape.clone(), bytes: bytes.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{Value, map_parts, parse, parse_any};
    use crate::{AdapterConfig, save_adapter};
    use serde_json::json;

    #[test]
    fn a_file_has_llama_cpps_names_and_one_alpha() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config =
            json!({ "peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": true, "target_modules": ["q_proj"] });
        let config = AdapterConfig::from_json(&config).expect("sound");
        let factors = ("model.layers.3.self_attn.q_proj".to_owned(), [4, 2], vec![0.5; 8], [3, 4], vec![1.0; 12]);
        save_adapter(folder.path(), &config, [factors], false).expect("written");
        let adapter = Adapter::open(folder.path()).expect("what was written");
        let path = folder.path().join("adapter.gguf");
        save_gguf_adapter(&adapter, &json!({ "model_type": "gemma2" }), &path, false).expect("written");
        assert!(save_gguf_adapter(&adapter, &json!({ "model_type": "gemma2" }), &path, false).is_err(), "it is there");
        assert!(save_gguf_adapter(&adapter, &json!({ "model_type": "recurrent_gemma" }), &path, true).is_err());
        let parts = map_parts(&path).expect("a file");
        assert!(parse(&parts).is_err(), "an adapter is no model");
        let file = parse_any(&parts).expect("a GGUF file");
        for (key, text) in [("general.architecture", "gemma2"), ("general.type", "adapter"), ("adapter.type", "lora")] {
            assert!(matches!(file.pairs.get(key), Some(Value::Text(found)) if *found == text), "{key}");
        }
        let of = |part: &str| &file.tensors[&format!("blk.3.attn_q.weight.lora_{part}")];
        assert_eq!((of("a").shape.as_slice(), of("b").shape.as_slice()), ([4, 2].as_slice(), [3, 4].as_slice()));
        // alpha / sqrt(rank) is 4, and a reader multiplies with alpha / rank, which is 2
        assert_eq!((of("a").to_f32()[0], of("b").to_f32()[0]), (0.5, 2.0));
    }

    /// One tensor of f32 values.
    fn tensor(shape: [usize; 2], value: f32) -> StoredTensor {
        let bytes: Vec<u8> = std::iter::repeat_n(value.to_le_bytes(), shape[0] * shape[1]).flatten().collect();
        StoredTensor { format: Format::F32, shape: shape.into(), bytes: bytes.into() }
    }

    fn written(path: &Path, pairs: &Pairs, tensors: &[(&str, StoredTensor)]) {
        let tensors: Vec<Outgoing<'_>> =
            tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor, Format::F32)).collect();
        let mut new = NewFile::open(path).expect("a file");
        let on_progress = &mut |_, _| ControlFlow::Continue(());
        write(new.as_file_mut(), pairs, &tensors, on_progress, path).expect("written");
        new.finish().expect("in place");
    }

    fn of_llama_cpp(alpha: Option<f64>) -> Pairs {
        let mut pairs = Pairs::default();
        pairs.text("general.architecture", "gemma3");
        pairs.text("general.type", "adapter");
        pairs.text("adapter.type", "lora");
        if let Some(alpha) = alpha {
            pairs.float("adapter.lora.alpha", alpha);
        }
        pairs
    }

    #[test]
    fn a_file_that_was_written_has_the_same_effect_when_read() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = json!({
            "peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": true, "target_modules": ["q_proj", "up_proj"],
            "rank_pattern": { "up_proj": 2 },
        });
        let config = AdapterConfig::from_json(&config).expect("sound");
        let q = ("model.layers.3.self_attn.q_proj".to_owned(), [4, 2], vec![0.5; 8], [3, 4], vec![1.0; 12]);
        let up = ("model.layers.0.mlp.up_proj".to_owned(), [2, 2], vec![0.25; 4], [5, 2], vec![2.0; 10]);
        save_adapter(folder.path(), &config, [q, up], false).expect("written");
        let adapter = Adapter::open(folder.path()).expect("what was written");
        let path = folder.path().join("adapter.gguf");
        save_gguf_adapter(&adapter, &json!({ "model_type": "gemma3_text" }), &path, false).expect("written");
        let again = Adapter::open(&path).expect("what was written");
        assert_eq!(again.modules.keys().collect::<Vec<_>>(), adapter.modules.keys().collect::<Vec<_>>());
        for (found, expected) in again.modules.values().zip(adapter.modules.values()) {
            // each value of `s B A` is a product of constants here
            let effect = |module: &super::super::Module| {
                module.scale * module.b.to_f32()[0] * module.a.to_f32()[0] * module.a.shape[0] as f32
            };
            assert!((effect(found) - effect(expected)).abs() < 1e-5, "{}", found.name);
            assert_eq!((&found.a.shape, &found.b.shape), (&expected.a.shape, &expected.b.shape));
        }
    }

    #[test]
    fn an_alpha_is_divided_by_the_rank_and_without_one_the_scale_is_one() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("adapter.gguf");
        let (a, b) = (tensor([4, 2], 1.0), tensor([3, 4], 1.0));
        for (alpha, scale) in [(Some(2.0), 0.5), (Some(0.0), 1.0), (None, 1.0)] {
            let factors = [("blk.0.attn_q.weight.lora_a", a.clone()), ("blk.0.attn_q.weight.lora_b", b.clone())];
            written(&path, &of_llama_cpp(alpha), &factors);
            let adapter = Adapter::open(&path).expect("sound");
            assert_eq!(adapter.modules["model.layers.0.self_attn.q_proj"].scale, scale, "{alpha:?}");
        }
    }

    #[test]
    fn a_file_that_is_no_adapter_says_what_is_wrong() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("adapter.gguf");
        let (a, b) = (tensor([4, 2], 1.0), tensor([3, 4], 1.0));
        let refused = |pairs: &Pairs, tensors: &[(&str, StoredTensor)], part: &str| {
            written(&path, pairs, tensors);
            let message = Adapter::open(&path).expect_err(part).to_string();
            assert!(message.contains(part), "{message}");
        };
        let whole = [("blk.0.attn_q.weight.lora_a", a.clone()), ("blk.0.attn_q.weight.lora_b", b.clone())];
        let mut model = Pairs::default();
        model.text("general.architecture", "gemma3");
        refused(&model, &whole, "no LoRA adapter");
        let mut other = Pairs::default();
        for (key, text) in [("general.architecture", "llama"), ("general.type", "adapter"), ("adapter.type", "lora")] {
            other.text(key, text);
        }
        refused(&other, &whole, "llama");
        let mut invoked = of_llama_cpp(None);
        invoked.text("adapter.alora.invocation_tokens", "1");
        refused(&invoked, &whole, "adapter.alora.invocation_tokens");
        refused(&of_llama_cpp(None), &whole[..1], "blk.0.attn_q.weight has no lora_B");
        refused(&of_llama_cpp(None), &[("blk.0.unknown.weight.lora_a", a.clone())], "blk.0.unknown");
        refused(&of_llama_cpp(None), &[], "no LoRA matrices");
        refused(&of_llama_cpp(None), &[whole[0].clone(), ("blk.0.attn_q.weight.lora_b", tensor([3, 5], 1.0))], "rank");
    }
}
