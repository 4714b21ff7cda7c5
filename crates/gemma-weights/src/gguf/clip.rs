//! What an `mmproj` file says of the image encoder of Gemma 3, in the words of a Hugging Face folder.
//!
//! Such a file lies beside that of the text model and holds SigLIP and the projector. Two things differ in value: the norm
//! of the projector is stored as `1 + w`, and the two matrices of an MLP have their names exchanged, depending on the age
//! of the program that converted it, so their shapes tell them apart.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::gemma::offset_from_one;
use super::keys::{Keys, wrong};
use super::{Gguf, Pairs, Value};
use crate::{GgufFault as Fault, StoredTensor};

/// The encoder's part of a model.
pub(crate) struct Encoder {
    /// The value of `vision_config`.
    pub(crate) config: Json,
    /// Tokens that one image becomes.
    pub(crate) image_tokens: u64,
    /// The tensors, by the names that released folders give them.
    pub(crate) tensors: BTreeMap<String, StoredTensor>,
}

/// Why a file is no encoder of Gemma 3, if it is none.
pub(super) fn not_an_encoder(pairs: &Pairs<'_>) -> Option<Fault> {
    let text = |key: &str| match pairs.get(key) {
        Some(Value::Text(text)) => *text,
        _ => "",
    };
    if text("general.architecture") != "clip" {
        return Some(Fault::NotAnEncoder);
    }
    match [text("clip.vision.projector_type"), text("clip.projector_type")].into_iter().find(|kind| !kind.is_empty()) {
        Some("gemma3") => None,
        other => Some(wrong("clip.projector_type", other.unwrap_or("absent"), "`gemma3`")),
    }
}

/// Turns a parsed file into a folder's configuration and tensors.
///
/// # Errors
/// When it lacks what an encoder needs, or holds what none has.
pub(crate) fn translate_encoder(file: Gguf<'_>) -> Result<Encoder, Fault> {
    let keys = Keys(&file.pairs);
    let size = |name: &str| keys.size(&format!("clip.vision.{name}"));
    let (image_size, patch, hidden_size) = (size("image_size")?, size("patch_size")?, size("embedding_length")?);
    let intermediate_size = size("feed_forward_length")?;
    let pool = match keys.optional("clip.vision.projector.scale_factor") {
        Some(_) => size("projector.scale_factor")?,
        None => 4,
    };
    for key in ["clip.vision.image_mean", "clip.vision.image_std"] {
        let Some(Value::List(list)) = keys.optional(key) else { continue };
        if list.numbers().is_none_or(|numbers| numbers.iter().any(|number| (number - 0.5).abs() > 1e-6)) {
            return Err(wrong(key, "another list", "0.5 three times"));
        }
    }
    let config = json!({
        "model_type": "siglip_vision_model",
        "hidden_act": "gelu_pytorch_tanh",
        "image_size": image_size,
        "patch_size": patch,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": size("block_count")?,
        "num_attention_heads": size("attention.head_count")?,
        "num_channels": 3,
        "layer_norm_eps": keys.positive_float("clip.vision.attention.layer_norm_epsilon")?,
    });
    let side = (image_size / patch) / pool;
    let mut tensors = BTreeMap::new();
    let swapped = is_swapped(&file.tensors, intermediate_size);
    for (name, tensor) in file.tensors {
        let Some(known) = released_name(&name, swapped) else { return Err(Fault::UnknownTensor { tensor: name }) };
        let tensor = if known.ends_with("mm_soft_emb_norm.weight") { offset_from_one(&tensor) } else { tensor };
        tensors.insert(known, tensor);
    }
    Ok(Encoder { config, image_tokens: side * side, tensors })
}

/// Whether `ffn_down` is what comes first: the matrix with as many rows as the MLP is wide. Where both are square, older
/// files are meant, which have it so.
fn is_swapped(tensors: &BTreeMap<String, StoredTensor>, intermediate_size: u64) -> bool {
    let rows = tensors.get("v.blk.0.ffn_down.weight").and_then(|tensor| tensor.shape.first());
    rows.is_some_and(|rows| *rows as u64 == intermediate_size)
}

/// The name in a released folder of a tensor of the file; `None` for one that no encoder of Gemma 3 has.
fn released_name(name: &str, swapped: bool) -> Option<String> {
    let outside = match name {
        "mm.input_projection.weight" => Some("multi_modal_projector.mm_input_projection_weight"),
        "mm.soft_emb_norm.weight" => Some("multi_modal_projector.mm_soft_emb_norm.weight"),
        "v.patch_embd.weight" => Some("vision_tower.vision_model.embeddings.patch_embedding.weight"),
        "v.patch_embd.bias" => Some("vision_tower.vision_model.embeddings.patch_embedding.bias"),
        "v.position_embd.weight" => Some("vision_tower.vision_model.embeddings.position_embedding.weight"),
        "v.post_ln.weight" => Some("vision_tower.vision_model.post_layernorm.weight"),
        "v.post_ln.bias" => Some("vision_tower.vision_model.post_layernorm.bias"),
        _ => None,
    };
    if let Some(outside) = outside {
        return Some(outside.to_owned());
    }
    let (layer, part) = name.strip_prefix("v.blk.")?.split_once('.')?;
    layer.parse::<u32>().ok()?;
    let (part, kind) = part.rsplit_once('.').filter(|(_, kind)| ["weight", "bias"].contains(kind))?;
    let part = match (part, swapped) {
        ("ln1", _) => "layer_norm1",
        ("ln2", _) => "layer_norm2",
        ("attn_q", _) => "self_attn.q_proj",
        ("attn_k", _) => "self_attn.k_proj",
        ("attn_v", _) => "self_attn.v_proj",
        ("attn_out", _) => "self_attn.out_proj",
        ("ffn_up", false) | ("ffn_down", true) => "mlp.fc1",
        ("ffn_down", false) | ("ffn_up", true) => "mlp.fc2",
        _ => return None,
    };
    Some(format!("vision_tower.vision_model.encoder.layers.{layer}.{part}.{kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrices_of_an_mlp_are_told_apart_by_their_shapes() {
        let tensor = |rows: usize, cols: usize| StoredTensor {
            format: gemma_kernels::Format::F32,
            shape: vec![rows, cols],
            bytes: vec![0; 4 * rows * cols].into(),
        };
        let tensors = |down: StoredTensor| BTreeMap::from([("v.blk.0.ffn_down.weight".to_owned(), down)]);
        assert!(is_swapped(&tensors(tensor(64, 32)), 64));
        assert!(!is_swapped(&tensors(tensor(32, 64)), 64));
        let first = "vision_tower.vision_model.encoder.layers.3.mlp.fc1.bias";
        assert_eq!(released_name("v.blk.3.ffn_down.bias", true).as_deref(), Some(first));
        assert_eq!(released_name("v.blk.3.ffn_up.bias", false).as_deref(), Some(first));
    }

    #[test]
    fn other_names_are_unknown() {
        for name in ["v.blk.3.attn_q", "v.blk.x.attn_q.weight", "v.class_embd", "mm.0.weight", "v.blk.0.attn_q.scale"] {
            assert_eq!(released_name(name, false), None, "{name}");
        }
    }
}
