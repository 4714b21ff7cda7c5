//! The table that turns tokens into vectors and, tied, vectors into logits.

use crate::{Phase, Saver, Source, Weight};
use burn::module::Module;
use burn::tensor::Tensor;

/// The tied embedding table, `[vocab, hidden_size]`: `x = E[id] · scale` on the way in, `logits = x Eᵀ` on the way out
/// (not scaled).
#[derive(Module, Debug)]
pub struct Embedder {
    /// The table.
    pub weight: Weight,
    scale: f32,
}

impl Embedder {
    /// The table called `{name}.weight`. `scale` is √hidden_size, rounded as the checkpoint's arithmetic rounds it.
    pub fn load(source: &mut dyn Source, name: &str, vocab: usize, hidden_size: usize, scale: f32) -> Self {
        Self { weight: source.matrix(&format!("{name}.weight"), vocab, hidden_size), scale }
    }

    /// Hands the table to a saver, under the name it was loaded by.
    pub fn save(&self, saver: &mut dyn Saver, name: &str) {
        saver.matrix(&format!("{name}.weight"), &self.weight);
    }

    /// The scaled rows of `tokens`: `[tokens, hidden_size]`.
    ///
    /// # Panics
    /// When a token is not below the vocabulary size.
    pub fn embed(&self, tokens: &[u32]) -> Tensor<2> {
        self.weight.rows(tokens).mul_scalar(self.scale)
    }

    /// `[rows, hidden_size]` to logits `[rows, vocab]`.
    pub fn logits(&self, x: Tensor<2>) -> Tensor<2> {
        // a last row is decoded from, whatever came before it, and whoever else is in the call
        let rows = x.dims()[0];
        self.weight.forward_in(x, &[(rows, Phase::Decode)])
    }
}
