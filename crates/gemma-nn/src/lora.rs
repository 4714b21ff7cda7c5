//! Low-rank adaptation: a small trainable difference beside a frozen matrix.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

/// The two factors of a low-rank difference: `s B (A x)`, added to what the matrix beside it makes of `x` (LoRA: Hu et
/// al. 2021, arXiv:2106.09685, section 4.1). The product `B A` is never made.
#[derive(Module, Debug)]
pub struct LoraFactors {
    /// `A`, `[rank, in]`.
    pub lora_a: Param<Tensor<2>>,
    /// `B`, `[out, rank]`.
    pub lora_b: Param<Tensor<2>>,
    scale: f32,
}

impl LoraFactors {
    /// Factors with their scale `s`: alpha divided by the rank, or by its root (rsLoRA).
    ///
    /// # Panics
    /// When the ranks of the two differ.
    pub fn new(lora_a: Param<Tensor<2>>, lora_b: Param<Tensor<2>>, scale: f32) -> Self {
        assert_eq!(lora_a.val().dims()[0], lora_b.val().dims()[1], "one rank for both factors");
        Self { lora_a, lora_b, scale }
    }

    /// The factor of the whole.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Rows of `A` and columns of `B`.
    pub fn rank(&self) -> usize {
        self.lora_a.val().dims()[0]
    }

    /// `s B (A x)`: `[tokens, in]` to `[tokens, out]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let inner = x.matmul(self.lora_a.val().transpose()).mul_scalar(self.scale);
        inner.matmul(self.lora_b.val().transpose())
    }
}
