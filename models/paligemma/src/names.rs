//! What the tensors are called: one name inside, and the prefixes that files put in its place.
//!
//! | part | inside | in files |
//! |---|---|---|
//! | encoder | `vision_tower.` | `vision_tower.vision_model.` (released), `vision_tower.`, `model.vision_tower.vision_model.`, `model.vision_tower.` |
//! | projector | `multi_modal_projector.` | `multi_modal_projector.` (released), `model.multi_modal_projector.` |
//! | decoder | `model.` | `language_model.model.` (released), `model.language_model.`, `language_model.` |
//! | output head, where it is not tied | `lm_head.` | `language_model.lm_head.` (released), `lm_head.` |
//!
//! Each part is recognised by itself, by one tensor that it always has.

use std::borrow::Cow;

use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use gemma::{Decoder, Network};
use gemma_nn::{Adapt, Adapted, LoraFactors, Saver, Source, Weight};
use gemma_weights::Checkpoint;

/// One part: its name inside, the tail of a tensor that it always has, and the prefixes in files, the released first.
struct Part {
    inside: &'static str,
    mark: &'static str,
    prefixes: &'static [&'static str],
}

const PARTS: [Part; 4] = [
    Part {
        inside: "vision_tower.",
        mark: "post_layernorm.weight",
        prefixes: &[
            "vision_tower.vision_model.",
            "vision_tower.",
            "model.vision_tower.vision_model.",
            "model.vision_tower.",
        ],
    },
    Part {
        inside: "multi_modal_projector.",
        mark: "linear.weight",
        prefixes: &["multi_modal_projector.", "model.multi_modal_projector."],
    },
    Part {
        inside: "model.",
        mark: "embed_tokens.weight",
        prefixes: &["language_model.model.", "model.language_model.", "language_model."],
    },
    Part { inside: "lm_head.", mark: "weight", prefixes: &["language_model.lm_head.", "lm_head."] },
];

/// Which prefix each part has in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout([&'static str; PARTS.len()]);

impl Layout {
    /// The layout of the released files.
    pub(crate) const RELEASED: Self =
        Self([PARTS[0].prefixes[0], PARTS[1].prefixes[0], PARTS[2].prefixes[0], PARTS[3].prefixes[0]]);

    /// The layout of a checkpoint; a part that is not recognised is looked for where the releases have it.
    pub(crate) fn of(checkpoint: &Checkpoint) -> Self {
        Self(PARTS.map(|part| {
            let has = |prefix: &&&str| checkpoint.get(&format!("{prefix}{}", part.mark)).is_some();
            part.prefixes.iter().find(has).copied().unwrap_or(part.prefixes[0])
        }))
    }

    /// The name in the file of what is called `name` inside.
    fn outside(&self, name: &str) -> String {
        let found = PARTS.iter().zip(self.0).find_map(|(part, prefix)| Some((prefix, name.strip_prefix(part.inside)?)));
        match found {
            Some((prefix, tail)) => format!("{prefix}{tail}"),
            None => name.to_owned(),
        }
    }

    /// Whether a checkpoint in this layout has an output head of its own.
    pub(crate) fn is_untied(self, checkpoint: &Checkpoint) -> bool {
        checkpoint.is_untied(&self.outside("lm_head.weight"), &self.outside("model.embed_tokens.weight"))
    }

    /// Whether a checkpoint may hold a tensor of this name that no layer reads.
    pub(crate) fn is_ignored(name: &str) -> bool {
        Decoder::is_ignored(name) || name.ends_with("lm_head.weight")
    }
}

/// A source that is asked by the names inside and asks by those of a layout.
pub(crate) type Renamed<'a> = Adapted<'a, Layout>;

impl Adapt for Layout {
    fn rename<'n>(&self, name: &'n str) -> Cow<'n, str> {
        self.outside(name).into()
    }
}

/// A saver that is given the names inside and hands on those of the released files.
pub(crate) struct Released<'a>(pub(crate) &'a mut dyn Saver);

impl Saver for Released<'_> {
    fn matrix(&mut self, name: &str, weight: &Weight) {
        self.0.matrix(&Layout::RELEASED.outside(name), weight);
    }

    fn vector(&mut self, name: &str, values: &Param<Tensor<1>>) {
        self.0.vector(&Layout::RELEASED.outside(name), values);
    }

    fn tensor(&mut self, name: &str, shape: &[usize], values: &Param<Tensor<1>>) {
        self.0.tensor(&Layout::RELEASED.outside(name), shape, values);
    }

    fn lora(&mut self, name: &str, factors: &LoraFactors) {
        self.0.lora(&Layout::RELEASED.outside(name), factors);
    }
}

/// Where a training begins, beside random matrices: layer norms of gain one (the decoder's norms are offsets from one,
/// these are not), and positions that are distinguished by sines and cosines of row and column.
pub(crate) struct Beginning;

impl Adapt for Beginning {
    fn vector(&mut self, source: &mut dyn Source, name: &str, len: usize) -> Param<Tensor<1>> {
        let gain = ["layer_norm1.weight", "layer_norm2.weight", "post_layernorm.weight"];
        if name.starts_with("vision_tower.") && gain.iter().any(|tail| name.ends_with(tail)) {
            return Param::from_tensor(Tensor::ones([len], &source.device()));
        }
        source.vector(name, len)
    }

    fn tensor(&mut self, source: &mut dyn Source, name: &str, shape: &[usize]) -> Param<Tensor<1>> {
        match *shape {
            [patches, hidden_size] if name.ends_with("position_embedding.weight") => {
                let table = TensorData::new(position_table(patches, hidden_size), [patches * hidden_size]);
                Param::from_tensor(Tensor::from_data(table, &source.device()))
            }
            _ => source.tensor(name, shape),
        }
    }
}

/// Sines and cosines of row and column, a quarter of the width each, `[patches, width]`: neighbours are alike (the
/// table of Vaswani et al. 2017, section 3.5, in two dimensions and with wavelengths for tens of places).
fn position_table(patches: usize, width: usize) -> Vec<f32> {
    let (across, quarter) = (patches.isqrt().max(1), (width / 4).max(1));
    let value = |place: usize, column: usize| {
        let along = if column / quarter < 2 { place / across } else { place % across };
        let angle = along as f32 * LONGEST.powf(-((column % quarter) as f32) / quarter as f32);
        let wave = if (column / quarter).is_multiple_of(2) { angle.sin() } else { angle.cos() };
        AMPLITUDE * wave
    };
    (0..patches).flat_map(|place| (0..width).map(move |column| value(place, column))).collect()
}

/// How many times longer the longest wave is than the shortest.
const LONGEST: f32 = 100.0;
/// About as large as what the patches begin with.
const AMPLITUDE: f32 = 0.4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_is_renamed_by_its_own_prefix() {
        let nested = Layout([
            "model.vision_tower.vision_model.",
            "model.multi_modal_projector.",
            "model.language_model.",
            "lm_head.",
        ]);
        for (inside, released, newer) in [
            (
                "vision_tower.encoder.layers.0.layer_norm1.bias",
                "vision_tower.vision_model.encoder.layers.0.layer_norm1.bias",
                "model.vision_tower.vision_model.encoder.layers.0.layer_norm1.bias",
            ),
            (
                "multi_modal_projector.linear.bias",
                "multi_modal_projector.linear.bias",
                "model.multi_modal_projector.linear.bias",
            ),
            ("model.norm.weight", "language_model.model.norm.weight", "model.language_model.norm.weight"),
            ("lm_head.weight", "language_model.lm_head.weight", "lm_head.weight"),
        ] {
            assert_eq!(Layout::RELEASED.outside(inside), released);
            assert_eq!(nested.outside(inside), newer);
        }
    }

    #[test]
    fn neighbours_begin_more_alike_than_strangers() {
        let (patches, width) = (49, 96);
        let table = position_table(patches, width);
        let row = |place: usize| &table[place * width..][..width];
        let distance = |a: usize, b: usize| row(a).iter().zip(row(b)).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        for (near, far) in [(1, 2), (7, 14), (8, 24)] {
            assert!(0.0 < distance(0, near) && distance(0, near) < distance(0, far), "{near} {far}");
        }
        assert_eq!(distance(0, 1), distance(0, 7), "rows and columns are alike");
    }

    #[test]
    fn a_tied_head_is_ignored_under_all_its_names() {
        for name in ["lm_head.weight", "language_model.lm_head.weight"] {
            assert!(Layout::is_ignored(name), "{name}");
        }
        assert!(!Layout::is_ignored("language_model.model.norm.weight"));
    }
}
