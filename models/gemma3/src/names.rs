//! What the tensors are called: one name inside, and the prefixes that files put in its place.
//!
//! | part | inside | in files |
//! |---|---|---|
//! | encoder | `vision_tower.` | `vision_tower.vision_model.` (released), `vision_tower.`, each also behind `model.` |
//! | projector | `multi_modal_projector.` | `multi_modal_projector.` (released), also behind `model.` |
//! | decoder | `model.` | `language_model.model.` (released), `model.language_model.`, `model.language_model.model.` |
//! | head | `lm_head.` | `language_model.lm_head.`, `lm_head.` |

use burn::module::Param;
use burn::tensor::Tensor;
use gemma_nn::{LoraFactors, Saver, Weight};
use gemma_weights::Checkpoint;

const TABLE: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// The name inside of a tensor in a file; one that is not known stays as it is, to be refused by it.
fn inside(name: &str) -> String {
    let part = name.strip_prefix("model.").unwrap_or(name);
    if let Some(tail) = part.strip_prefix("vision_tower.") {
        return format!("vision_tower.{}", tail.strip_prefix("vision_model.").unwrap_or(tail));
    }
    if part.starts_with("multi_modal_projector.") {
        return part.to_owned();
    }
    match part.strip_prefix("language_model.") {
        Some(tail) if tail.starts_with("lm_head.") => tail.to_owned(),
        Some(tail) => format!("model.{}", tail.strip_prefix("model.").unwrap_or(tail)),
        None => name.to_owned(),
    }
}

/// The name in the released files of what is called `name` inside.
fn released(name: &str) -> String {
    if let Some(tail) = name.strip_prefix("vision_tower.") {
        return format!("vision_tower.vision_model.{tail}");
    }
    let text = name.starts_with("model.") || name.starts_with("lm_head.");
    if text { format!("language_model.{name}") } else { name.to_owned() }
}

/// A checkpoint with the names inside, and without a head that only repeats the embedding table.
pub(crate) fn canonical(checkpoint: &Checkpoint) -> Checkpoint {
    let tied = is_tied(checkpoint, true);
    checkpoint.renamed(|name| Some(inside(name)).filter(|name| !(tied && name == HEAD)))
}

/// Whether the output head is the embedding table: the checkpoint has no other. `stated`: what `config.json` says, which
/// counts where there is no head at all.
pub(crate) fn is_tied(checkpoint: &Checkpoint, stated: bool) -> bool {
    let find = |wanted: &str| {
        let mut tensors = checkpoint.tensors();
        tensors.find(|(name, _)| inside(name) == wanted).map(|(_, tensor)| tensor)
    };
    match (find(HEAD), find(TABLE)) {
        (Some(head), Some(table)) => {
            head.format == table.format && head.shape == table.shape && head.bytes == table.bytes
        }
        _ => stated,
    }
}

/// A saver that is given the names inside and hands on those of the released files.
pub(crate) struct Released<'a>(pub(crate) &'a mut dyn Saver);

impl Saver for Released<'_> {
    fn matrix(&mut self, name: &str, weight: &Weight) {
        self.0.matrix(&released(name), weight);
    }

    fn vector(&mut self, name: &str, values: &Param<Tensor<1>>) {
        self.0.vector(&released(name), values);
    }

    fn tensor(&mut self, name: &str, shape: &[usize], values: &Param<Tensor<1>>) {
        self.0.tensor(&released(name), shape, values);
    }

    fn lora(&mut self, name: &str, factors: &LoraFactors) {
        self.0.lora(&released(name), factors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_has_the_same_names_inside() {
        for (name, files) in [
            (
                "vision_tower.post_layernorm.weight",
                &[
                    "vision_tower.vision_model.post_layernorm.weight",
                    "vision_tower.post_layernorm.weight",
                    "model.vision_tower.vision_model.post_layernorm.weight",
                    "model.vision_tower.post_layernorm.weight",
                ][..],
            ),
            (
                "multi_modal_projector.mm_soft_emb_norm.weight",
                &[
                    "multi_modal_projector.mm_soft_emb_norm.weight",
                    "model.multi_modal_projector.mm_soft_emb_norm.weight",
                ],
            ),
            (
                "model.norm.weight",
                &[
                    "language_model.model.norm.weight",
                    "model.language_model.norm.weight",
                    "model.language_model.model.norm.weight",
                ],
            ),
            (
                "lm_head.weight",
                &["language_model.lm_head.weight", "lm_head.weight", "model.language_model.lm_head.weight"],
            ),
        ] {
            assert_eq!(released(name), files[0]);
            for file in files {
                assert_eq!(inside(file), name, "{file}");
            }
        }
    }
}
