//! What the tensors of a text decoder are called: one name inside, and what files put around it.
//!
//! | inside | in files |
//! |---|---|
//! | `model.` | `model.`, nothing (a bare transformer), `language_model.model.`, `model.language_model.` (models with images) |
//! | `lm_head.` | `lm_head.`, `language_model.lm_head.` |
//!
//! Programs that wrap a model leave `module.`, `_orig_mod.` or `base_model.model.` in front. Tensors of an image encoder
//! and its projector are left out: a decoder reads text.

use gemma_weights::{Checkpoint, StoredTensor};

/// What wrappers put in front of every name.
const WRAPPERS: [&str; 3] = ["module.", "_orig_mod.", "base_model.model."];
/// Parts of a model with images that no text decoder reads.
const OTHER_PARTS: [&str; 2] = ["vision_tower.", "multi_modal_projector."];
/// Where the parts of a bare transformer begin.
const BARE: [&str; 3] = ["layers.", "embed_tokens.", "norm."];

/// The name inside of a tensor; `None` for one that belongs to another part of the model. A name that is not known stays
/// as it is, to be refused by it.
fn inside(name: &str) -> Option<String> {
    let mut rest = name;
    while let Some(unwrapped) = WRAPPERS.iter().find_map(|wrapper| rest.strip_prefix(wrapper)) {
        rest = unwrapped;
    }
    let part = rest.strip_prefix("model.").unwrap_or(rest);
    if OTHER_PARTS.iter().any(|other| part.starts_with(other)) {
        return None;
    }
    let text = part.strip_prefix("language_model.").map(|text| text.strip_prefix("model.").unwrap_or(text));
    let text = text.unwrap_or(part);
    Some(if BARE.iter().any(|bare| text.starts_with(bare)) {
        format!("model.{text}")
    } else if text.starts_with("lm_head.") {
        text.to_owned()
    } else {
        name.to_owned()
    })
}

const TABLE: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// A checkpoint with the names inside, without the tensors of other parts and without a head that only repeats the
/// embedding table.
pub(crate) fn canonical(checkpoint: &Checkpoint) -> Checkpoint {
    let tied = is_tied(checkpoint, true);
    checkpoint.renamed(|name| inside(name).filter(|name| !(tied && name == HEAD)))
}

/// Whether the output head is the embedding table: the checkpoint has no other. `stated`: what `config.json` says, which
/// counts where there is no head at all.
pub(crate) fn is_tied(checkpoint: &Checkpoint, stated: bool) -> bool {
    let find = |wanted: &str| -> Option<&StoredTensor> {
        let mut tensors = checkpoint.tensors();
        tensors.find(|(name, _)| inside(name).as_deref() == Some(wanted)).map(|(_, tensor)| tensor)
    };
    match (find(HEAD), find(TABLE)) {
        (Some(head), Some(table)) => {
            head.format == table.format && head.shape == table.shape && head.bytes == table.bytes
        }
        _ => stated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_has_the_same_names_inside() {
        let layer = "layers.0.mlp.up_proj.weight";
        for prefix in [
            "model.",
            "",
            "language_model.model.",
            "model.language_model.",
            "model.language_model.model.",
            "base_model.model.model.",
            "_orig_mod.model.",
            "module._orig_mod.model.",
        ] {
            assert_eq!(inside(&format!("{prefix}{layer}")), Some(format!("model.{layer}")), "{prefix}");
        }
        for name in ["lm_head.weight", "language_model.lm_head.weight", "base_model.model.lm_head.weight"] {
            assert_eq!(inside(name).as_deref(), Some(HEAD), "{name}");
        }
        assert_eq!(inside("embed_tokens.weight").as_deref(), Some(TABLE));
    }

    #[test]
    fn other_parts_are_left_out_and_unknown_names_stay() {
        for name in [
            "vision_tower.vision_model.post_layernorm.weight",
            "model.vision_tower.post_layernorm.weight",
            "multi_modal_projector.mm_input_projection_weight",
        ] {
            assert_eq!(inside(name), None, "{name}");
        }
        assert_eq!(inside("transformer.h.0.weight").as_deref(), Some("transformer.h.0.weight"));
    }
}
