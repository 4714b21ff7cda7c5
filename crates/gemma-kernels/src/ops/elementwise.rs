//! What lies between the products, in one pass over its operands (a GPU: one launch), where each operation of Burn would
//! read and write them all once more. The gradient takes another pass on the CPU; GPUs differentiate the reference
//! implementations, and so does the training of a norm's weight.

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
    /// [`add_bias`] to rows.
    AddBias,
    /// [`gelu_of_biased`] rows.
    GeluOfBiased,
    /// [`layer_norm`] of rows with a weight and a bias.
    LayerNorm {
        /// Added to the variance.
        eps: f32,
    },
    /// [`softcap`] of logits.
    Softcap {
        /// The bound.
        cap: f32,
    },
}

// The attribute names every backend of the list, ndarray included, which Burn 0.22 deprecates and this workspace promises.
#[allow(deprecated, reason = "ndarray is one of the backends this workspace promises")]
mod extension {
    use super::*;

    /// What a backend must be able to do, gradients on a CPU only. The functions of this crate are the way to call it.
    #[backend_extension(NdArray: cfg(feature = "ndarray"), Flex: cfg(feature = "flex"), Cube: cfg(feature = "wgpu"), Autodiff)]
    pub trait ElementwiseOps: Backend {
        /// The operation on `x`, with one or two further operands (the second is ignored where there is none).
        fn elementwise(
            x: FloatTensor<Self>,
            first: FloatTensor<Self>,
            second: FloatTensor<Self>,
            operation: Elementwise,
        ) -> FloatTensor<Self>;
        /// The gradient of the operation with respect to `x`, given that of its result.
        fn elementwise_gradient(
            from_above: FloatTensor<Self>,
            x: FloatTensor<Self>,
            first: FloatTensor<Self>,
            second: FloatTensor<Self>,
            operation: Elementwise,
        ) -> FloatTensor<Self>;
        /// The gradients of [`Elementwise::GeGlu`] with respect to the gate and its partner.
        fn geglu_gradient(
            from_above: FloatTensor<Self>,
            gate: FloatTensor<Self>,
            up: FloatTensor<Self>,
        ) -> (FloatTensor<Self>, FloatTensor<Self>);
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
    if is_recorded_on_gpu(&[&gate, &up]) {
        return reference_geglu(gate, up);
    }
    in_one_pass(gate, up.clone(), up, Elementwise::GeGlu)
}

/// `x / sqrt(mean(x²) + eps) · (1 + weight)`, the mean over a row: `x` `[tokens, width]`, `weight` `[width]`.
///
/// # Panics
/// When the shapes do not match.
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, eps: f32) -> Tensor<2> {
    assert_eq!(x.dims()[1], weight.dims()[0], "a weight for every column");
    if is_recorded_on_gpu(&[&x]) || weight.is_tracked() {
        return reference_rms_norm(x, weight, eps);
    }
    in_one_pass(x, weight.clone(), weight, Elementwise::RmsNorm { eps })
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
    if is_recorded_on_gpu(&[&x]) {
        return reference_rotate(x, cos, sin);
    }
    in_one_pass(x, cos, sin, Elementwise::Rotate)
}

/// `x + bias` for every row: `x` `[tokens, width]`, `bias` `[width]`. On GPUs and autodiff devices this is
/// [`reference::add_bias`](crate::reference::add_bias).
///
/// # Panics
/// When the shapes do not match.
pub fn add_bias(x: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
    assert_eq!(x.dims()[1], bias.dims()[0], "a bias for every column");
    if x.is_autodiff() || bias.is_autodiff() || stores_words(&x.device()) {
        return reference_add_bias(x, bias);
    }
    in_one_pass(x, bias.clone(), bias, Elementwise::AddBias)
}

/// `gelu(x + bias)` for every row, in the tanh form of GELU (see [`geglu`]): `x` `[tokens, width]`, `bias` `[width]`. On autodiff devices
/// this is [`reference::gelu_of_biased`](crate::reference::gelu_of_biased).
///
/// # Panics
/// When the shapes do not match.
pub fn gelu_of_biased(x: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
    assert_eq!(x.dims()[1], bias.dims()[0], "a bias for every column");
    if x.is_autodiff() || bias.is_autodiff() {
        return reference_gelu_of_biased(x, bias);
    }
    in_one_pass(x, bias.clone(), bias, Elementwise::GeluOfBiased)
}

/// `(x - mean) / sqrt(variance + eps) · weight + bias`, mean and variance over a row (Ba et al. 2016, arXiv:1607.06450, eq. 4):
/// `x` `[tokens, width]`, `weight` and `bias` `[width]`. On GPUs and autodiff devices this is
/// [`reference::layer_norm`](crate::reference::layer_norm).
///
/// # Panics
/// When the shapes do not match.
pub fn layer_norm(x: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, eps: f32) -> Tensor<2> {
    assert_eq!([x.dims()[1]; 2], [weight.dims()[0], bias.dims()[0]], "a weight and a bias for every column");
    let is_recorded = [x.is_autodiff(), weight.is_autodiff(), bias.is_autodiff()].contains(&true);
    if is_recorded || stores_words(&x.device()) {
        return reference_layer_norm(x, weight, bias, eps);
    }
    in_one_pass(x, weight, bias, Elementwise::LayerNorm { eps })
}

/// `cap · tanh(x / cap)`: bounds logits without clipping them (Gemma 2 report, section 2). On autodiff devices this is
/// [`reference::softcap`](crate::reference::softcap).
pub fn softcap<const D: usize>(x: Tensor<D>, cap: f32) -> Tensor<D> {
    if x.is_autodiff() {
        return reference_softcap(x, cap);
    }
    // it has no further operands
    in_one_pass(x.clone(), x.clone(), x, Elementwise::Softcap { cap })
}

/// Whether a gradient may be asked of a GPU.
fn is_recorded_on_gpu<const D: usize>(operands: &[&Tensor<D>]) -> bool {
    operands.iter().any(|x| x.is_autodiff() && stores_words(&x.device().without_autodiff()))
}

/// The operation, recorded where one of the operands is.
fn in_one_pass<const D: usize, const E: usize>(
    x: Tensor<D>,
    first: Tensor<E>,
    second: Tensor<E>,
    operation: Elementwise,
) -> Tensor<D> {
    let (x, first, second) = if x.is_autodiff() || first.is_autodiff() {
        (x.autodiff(), first.autodiff(), second.autodiff())
    } else {
        (x, first, second)
    };
    let [first, second] = [first, second].map(Tensor::into_dispatch);
    Tensor::from_dispatch(<Dispatch as ElementwiseOps>::elementwise(x.into_dispatch(), first, second, operation))
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

/// The reference implementation of [`add_bias`].
pub fn reference_add_bias(x: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
    x + bias.unsqueeze::<2>()
}

/// The reference implementation of [`gelu_of_biased`].
pub fn reference_gelu_of_biased(x: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
    gelu_approximate(reference_add_bias(x, bias))
}

/// The reference implementation of [`layer_norm`].
pub fn reference_layer_norm(x: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, eps: f32) -> Tensor<2> {
    let centred = x.clone() - x.mean_dim(1);
    let variance = centred.clone().square().mean_dim(1);
    let inverse = variance.add_scalar(eps).sqrt().recip();
    centred.mul(inverse).mul(weight.unsqueeze::<2>()).add(bias.unsqueeze::<2>())
}

/// The reference implementation of [`softcap`].
pub fn reference_softcap<const D: usize>(x: Tensor<D>, cap: f32) -> Tensor<D> {
    x.div_scalar(cap).tanh().mul_scalar(cap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_close, devices, tensor, values};

    #[test]
    fn gradients_equal_those_of_the_references() {
        for (backend, device) in devices() {
            let recorded = device.clone().autodiff();
            for (tokens, heads, head_dim) in [(1, 1, 2), (3, 4, 16), (70, 3, 33), (2, 8, 256)] {
                let context = format!("{backend} {tokens} x {heads} x {head_dim}");
                let width = heads * head_dim;
                let above = || tensor([tokens, width], 9, &device).autodiff();
                // of the result with respect to both operands
                let run = |operation: &dyn Fn(Tensor<2>, Tensor<2>) -> Tensor<2>| {
                    let x = tensor([tokens, width], 1, &recorded).mul_scalar(4.0).detach().require_grad();
                    let other = tensor([tokens, width], 2, &recorded).require_grad();
                    let gradients = (operation(x.clone(), other.clone()) * above()).sum().backward();
                    [x, other].map(|operand| operand.grad(&gradients).map(values))
                };
                let check = |found: [Option<Vec<f32>>; 2], expected: [Option<Vec<f32>>; 2], what: &str| {
                    for (found, expected) in found.into_iter().zip(expected) {
                        assert_eq!(found.is_some(), expected.is_some(), "{context} {what}");
                        if let (Some(found), Some(expected)) = (found, expected) {
                            assert_close(&found, &expected, 5e-5, &format!("{context} {what}"));
                        }
                    }
                };
                check(run(&|x, other| geglu(x, other)), run(&|x, other| reference_geglu(x, other)), "geglu");
                let weight = || tensor([width], 3, &device);
                let norm = |x: Tensor<2>, other: Tensor<2>| rms_norm(x, weight(), 1e-6) * other;
                let reference =
                    |x: Tensor<2>, other: Tensor<2>| reference_rms_norm(x, weight().autodiff(), 1e-6) * other;
                check(run(&norm), run(&reference), "norm");
                for half in [1, head_dim / 4, head_dim / 2].into_iter().filter(|half| *half > 0) {
                    let angle = |seed| tensor([tokens, 1, half], seed, &device);
                    let turned = |x: Tensor<2>| x.reshape([tokens, heads, head_dim]);
                    let flat = |x: Tensor<3>| x.reshape([tokens, width]);
                    let found = run(&|x, other| flat(rotate(turned(x), angle(4), angle(5))) * other);
                    let [cos, sin] = [4, 5].map(|seed| angle(seed).autodiff());
                    let reference = |x, other| flat(reference_rotate(turned(x), cos.clone(), sin.clone())) * other;
                    check(found, run(&reference), &format!("rotate {half}"));
                }
                // a weight that is trained gets its gradient
                let weight = tensor([width], 3, &recorded).require_grad();
                let loss = (rms_norm(tensor([tokens, width], 1, &recorded), weight.clone(), 1e-6) * above()).sum();
                assert!(weight.grad(&loss.backward()).is_some(), "{context}");
            }
        }
    }

    #[test]
    fn operations_in_one_pass_equal_their_references() {
        for (backend, device) in devices() {
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
                let bias = || tensor([width], 4, &device);
                let found = values(add_bias(x(), bias()));
                assert_eq!(found, values(reference_add_bias(x(), bias())), "{context} bias");
                let found = values(gelu_of_biased(x(), bias()));
                let expected = values(reference_gelu_of_biased(x(), bias()));
                assert_close(&found, &expected, 4e-6, &format!("{context} gelu"));
                let found = values(layer_norm(x(), weight(), bias(), 1e-6));
                let expected = values(reference_layer_norm(x(), weight(), bias(), 1e-6));
                assert_close(&found, &expected, 2e-5, &format!("{context} layer norm"));
                for cap in [0.5, 30.0] {
                    let found = values(softcap(x(), cap));
                    let expected: Vec<f32> =
                        values(x()).iter().map(|x| (f64::from(cap) * f64::from(x / cap).tanh()) as f32).collect();
                    assert_close(&found, &expected, 4e-7 * cap.max(1.0), &format!("{context} soft cap {cap}"));
                }
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

    /// A logit far from zero has the cap as its limit, and one that is ruled out stays at it.
    #[test]
    fn soft_caps_are_bounds() {
        for (backend, device) in devices() {
            let x = Tensor::<1>::from_data([1e30f32, -1e30, 0.0, f32::NEG_INFINITY, 1e-3], &device);
            assert_close(&values(softcap(x, 30.0)), &[30.0, -30.0, 0.0, -30.0, 1e-3], 1e-6, &backend.to_string());
        }
    }
}
