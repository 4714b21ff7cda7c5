//! The soft cap of Gemma 2 and RecurrentGemma.

use burn::tensor::Tensor;

/// `cap · tanh(x / cap)`: bounds logits without clipping them (Gemma 2 report, section 2). `None` leaves `x` alone.
pub fn softcap<const D: usize>(x: Tensor<D>, cap: Option<f32>) -> Tensor<D> {
    match cap {
        Some(cap) => gemma_kernels::softcap(x, cap),
        None => x,
    }
}
