//! What lies between the products, in one pass over its operands: on the CPU, where each operation of Burn would read and
//! write them all once more. GPUs and training use the reference implementations.

use crate::packed::stores_words;
use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use burn::tensor::activation::gelu_approximate;

/// An operation that takes its operands in one pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Elementwise {
    /// [`geglu`] of a gate and its partner.
    GeGlu,
    /// [`rms_norm`] of rows with a weight.
    RmsNorm {
        /// Added to the mean square.
        eps: f32,
    },
    /// [`rotate`] of heads by cosines and sines.
    Rotate,
}

// The attribute names every backend of the list, ndarray included, which Burn 0.22 deprecates and this workspace promises.
#[allow(deprecated, reason = "ndarray is one of the backends this workspace promises")]
mod extension {
    use super::*;

    /// What a CPU backend must be able to do. The functions of this crate are the way to call it.
    #[backend_extension(NdArray: cfg(feature = "ndarray"), Flex: cfg(feature = "flex"), Cube: cfg(feature = "wgpu"))]
    pub trait ElementwiseOps: Backend {
        /// The operation on `x`, with one or two further operands (the second is ignored where there is none).
        fn elementwise(
            x: FloatTensor<Self>,
            first: FloatTensor<Self>,
            second: FloatTensor<Self>,
            operation: Elementwise,
        ) -> FloatTensor<Self>;
    }
}

pub use extension::ElementwiseOps;

/// `gelu(gate) · up` with the tanh form of GELU, `gelu(z) = ½ z (1 + tanh(√(2/π) (z + 0.044715 z³)))`; both operands
/// and the result are `[tokens, hidden]`.
///
/// # Panics
/// When the shapes differ.
pub fn geglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    assert_eq!(gate.dims(), up.dims(), "a gate for every value");
    if gate.is_autodiff() || up.is_autodiff() || stores_words(&gate.device()) {
        return reference_geglu(gate, up);
    }
    let up = up.into_dispatch();
    Tensor::from_dispatch(<Dispatch as ElementwiseOps>::elementwise(
        gate.into_dispatch(),
        up.clone(),
        up,
        Elementwise::GeGlu,
    ))
}

/// `x / sqrt(mean(x²) + eps) · (1 + weight)`, the mean over a row: `x` `[tokens, width]`, `weight` `[width]`.
///
/// # Panics
/// When the shapes do not match.
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, eps: f32) -> Tensor<2> {
    assert_eq!(x.dims()[1], weight.dims()[0], "a weight for every column");
    if x.is_autodiff() || weight.is_autodiff() || stores_words(&x.device()) {
        return reference_rms_norm(x, weight, eps);
    }
    let weight = weight.into_dispatch();
    let operation = Elementwise::RmsNorm { eps };
    Tensor::from_dispatch(<Dispatch as ElementwiseOps>::elementwise(
        x.into_dispatch(),
        weight.clone(),
        weight,
        operation,
    ))
}

/// Turns the leading dimensions of each head, in halves `(a, b)`: `(a cos − b sin, b cos + a sin)`. The rest passes.
/// `x` `[tokens, heads, head_dim]`; `cos`, `sin` `[tokens, 1, half]` with `2 half` at most `head_dim`.
///
/// # Panics
/// When the shapes do not match.
pub fn rotate(x: Tensor<3>, cos: Tensor<3>, sin: Tensor<3>) -> Tensor<3> {
    let ([tokens, _, head_dim], [_, _, half]) = (x.dims(), cos.dims());
    assert_eq!(cos.dims(), sin.dims(), "a sine for every cosine");
    assert_eq!(cos.dims(), [tokens, 1, half], "angles for {tokens} tokens");
    assert!(2 * half <= head_dim, "{half} angles for heads of {head_dim}");
    if x.is_autodiff() || stores_words(&x.device()) {
        return reference_rotate(x, cos, sin);
    }
    let (cos, sin) = (cos.into_dispatch(), sin.into_dispatch());
    Tensor::from_dispatch(<Dispatch as ElementwiseOps>::elementwise(x.into_dispatch(), cos, sin, Elementwise::Rotate))
}

/// The reference implementation of [`geglu`].
pub fn reference_geglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    gelu_approximate(gate) * up
}

/// The reference implementation of [`rms_norm`].
pub fn reference_rms_norm(x: Tensor<2>, weight: Tensor<1>, eps: f32) -> Tensor<2> {
    let mean_square = x.clone().square().mean_dim(1);
    let inverse = mean_square.add_scalar(eps).sqrt().recip();
    x.mul(inverse).mul(weight.add_scalar(1.0).unsqueeze::<2>())
}

/// The reference implementation of [`rotate`].
pub fn reference_rotate(x: Tensor<3>, cos: Tensor<3>, sin: Tensor<3>) -> Tensor<3> {
    let [tokens, heads, head_dim] = x.dims();
    let [_, _, half] = cos.dims();
    let part = |from: usize, to: usize| x.clone().slice([0..tokens, 0..heads, from..to]);
    let (a, b) = (part(0, half), part(half, 2 * half));
    let first = a.clone() * cos.clone() - b.clone() * sin.clone();
    let second = b * cos + a * sin;
    let mut parts = vec![first, second];
    if 2 * half < head_dim {
        parts.push(part(2 * half, head_dim));
    }
    Tensor::cat(parts, 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_close, devices, tensor, values};

    #[test]
    fn operations_in_one_pass_equal_their_references() {
        // elsewhere they are the reference implementations
        for (backend, device) in devices().into_iter().filter(|(_, device)| !stores_words(device)) {
            for (tokens, heads, head_dim) in [(1, 1, 2), (3, 4, 16), (70, 3, 33), (2, 8, 256), (40, 1, 2304)] {
                let context = format!("{backend} {tokens} x {heads} x {head_dim}");
                let width = heads * head_dim;
                let x = || tensor([tokens, width], 1, &device).mul_scalar(4.0);
                let other = || tensor([tokens, width], 2, &device);
                let found = values(geglu(x(), other()));
                assert_close(&found, &values(reference_geglu(x(), other())), 4e-6, &format!("{context} geglu"));
                let weight = || tensor([width], 3, &device);
                let found = values(rms_norm(x(), weight(), 1e-6));
                assert_close(
                    &found,
                    &values(reference_rms_norm(x(), weight(), 1e-6)),
                    1e-5,
                    &format!("{context} norm"),
                );
                for half in [1, head_dim / 4, head_dim / 2].into_iter().filter(|half| *half > 0) {
                    let x = || x().reshape([tokens, heads, head_dim]);
                    let angle = |seed| tensor([tokens, 1, half], seed, &device);
                    let found = values(rotate(x(), angle(4), angle(5)));
                    let expected = values(reference_rotate(x(), angle(4), angle(5)));
                    assert_close(&found, &expected, 2e-6, &format!("{context} rotate {half}"));
                }
            }
        }
    }
}
