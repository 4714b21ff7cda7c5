//! The table that turns tokens into vectors and, tied, vectors into logits.

use crate::{Sink, Source, Weight};
use burn::module::Module;
use burn::tensor::Tensor;

/// The tied embedding table, `[vocab, width]`: `x = E[id] · scale` on the way in, `logits = x Eᵀ` on the way out
/// (not scaled).
#[derive(Module, Debug)]
pub struct Embedder {
    /// The table.
    pub weight: Weight,
    scale: f32,
}

impl Embedder {
    /// The table called `{name}.weight`. `scale` is √width, rounded as the checkpoint's arithmetic rounds it.
    pub fn load(source: &mut dyn Source, name: &str, vocab: usize, width: usize, scale: f32) -> Self {
        Self { weight: source.matrix(&format!("{name}.weight"), vocab, width), scale }
    }

    /// Hands the table to a sink, under the name it was loaded by.
    pub fn save(&self, sink: &mut dyn Sink, name: &str) {
        sink.matrix(&format!("{name}.weight"), &self.weight);
    }

    /// The scaled rows of `tokens`: `[tokens, width]`.
    ///
    /// # Panics
    /// When a token is not below the vocabulary size.
    pub fn embed(&self, tokens: &[u32]) -> Tensor<2> {
        self.weight.rows(tokens).mul_scalar(self.scale)
    }

    /// `[rows, width]` to logits `[rows, vocab]`.
    pub fn logits(&self, x: Tensor<2>) -> Tensor<2> {
        self.weight.forward(x)
    }
}
