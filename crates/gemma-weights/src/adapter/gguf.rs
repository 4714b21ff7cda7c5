//! Writing an adapter as a GGUF file that llama.cpp loads beside a model (`--lora`).

use std::io::BufWriter;
use std::ops::ControlFlow;
use std::path::Path;

use gemma_kernels::Format;
use serde_json::Value as Json;

use super::{Adapter, AdapterFault, canonical};
use crate::gguf::file_name;
use crate::gguf::write::{Outgoing, Pairs, architecture_of, write};
use crate::new_file::NewFile;
use crate::{Error, StoredTensor};

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
}
