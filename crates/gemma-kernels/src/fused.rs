//! What lies between the products, in one pass over its operands: on the CPU, where each operation of Burn would
//! read and write them all once more. GPUs and training use the [`plain`] twins.

use crate::packed::stores_words;
use crate::plain;
use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fused {
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
    pub trait FusedOps: Backend {
        /// The operation on `x`, with one or two further operands (the second is ignored where there is none).
        fn fused(
            x: FloatTensor<Self>,
            first: FloatTensor<Self>,
            second: FloatTensor<Self>,
            operation: Fused,
        ) -> FloatTensor<Self>;
    }
}

pub use extension::FusedOps;

/// `gelu(gate) · up` with the tanh form of GELU, `gelu(z) = ½ z (1 + tanh(√(2/π) (z + 0.044715 z³)))`; both operands
/// and the result are `[tokens, hidden]`.
///
/// # Panics
/// When the shapes differ.
pub fn geglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    assert_eq!(gate.dims(), up.dims(), "a gate for every value");
    if gate.is_autodiff() || up.is_autodiff() || stores_words(&gate.device()) {
        return plain::geglu(gate, up);
    }
    let up = up.into_dispatch();
    Tensor::from_dispatch(<Dispatch as FusedOps>::fused(gate.into_dispatch(), up.clone(), up, Fused::GeGlu))
}

/// `x / sqrt(mean(x²) + eps) · (1 + weight)`, the mean over a row: `x` `[tokens, width]`, `weight` `[width]`.
///
/// # Panics
/// When the shapes do not match.
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, eps: f32) -> Tensor<2> {
    assert_eq!(x.dims()[1], weight.dims()[0], "a weight for every column");
    if x.is_autodiff() || weight.is_autodiff() || stores_words(&x.device()) {
        return plain::rms_norm(x, weight, eps);
    }
    let weight = weight.into_dispatch();
    let operation = Fused::RmsNorm { eps };
    Tensor::from_dispatch(<Dispatch as FusedOps>::fused(x.into_dispatch(), weight.clone(), weight, operation))
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
        return plain::rotate(x, cos, sin);
    }
    let (cos, sin) = (cos.into_dispatch(), sin.into_dispatch());
    Tensor::from_dispatch(<Dispatch as FusedOps>::fused(x.into_dispatch(), cos, sin, Fused::Rotate))
}

/// The shared kernels on the slices of a CPU backend's tensors; `dims` are those of `x`.
#[cfg(any(feature = "ndarray", feature = "flex"))]
fn on_cpu(x: &[f32], [first, second]: [&[f32]; 2], dims: &[usize], operation: Fused) -> burn::tensor::TensorData {
    use crate::cpu::{self, cpu_level};
    use std::mem::MaybeUninit;
    let write = |out: &mut [MaybeUninit<f32>]| match operation {
        Fused::GeGlu => cpu::geglu(cpu_level(), x, first, out),
        Fused::RmsNorm { eps } => cpu::rms_norm(cpu_level(), x, first, eps, out),
        Fused::Rotate => {
            let &[tokens, heads, head_dim] = dims else { unreachable!("heads have three axes") };
            let half = first.len() / tokens.max(1);
            cpu::rotate(cpu_level(), x, [first, second], [heads, head_dim, half], out);
        }
    };
    // SAFETY: each writes every value.
    let out = unsafe { cpu::written(x.len(), write) };
    burn::tensor::TensorData::new(out, dims.to_vec())
}

#[cfg(feature = "ndarray")]
#[allow(deprecated, reason = "ndarray is one of the two backends this workspace promises")]
mod ndarray {
    use super::{Fused, FusedOps, on_cpu};
    use crate::ops::ndarray::{slice, values};
    use burn::backend::{NdArray, ndarray::NdArrayTensor, tensor::FloatTensor};
    use std::borrow::Cow;

    impl FusedOps for NdArray {
        fn fused(
            x: FloatTensor<Self>,
            first: FloatTensor<Self>,
            second: FloatTensor<Self>,
            operation: Fused,
        ) -> FloatTensor<Self> {
            let (x, first, second) = (values!(&x, F32), values!(&first, F32), values!(&second, F32));
            let dims = x.shape().to_vec();
            let (x, first, second) = (x.view(), first.view(), second.view());
            let operands = [&*slice!(first), &*slice!(second)];
            NdArrayTensor::from_data(on_cpu(&slice!(x), operands, &dims, operation))
        }
    }
}

#[cfg(feature = "flex")]
mod flex {
    use super::{Fused, FusedOps, on_cpu};
    use crate::ops::flex::{contiguous, slice};
    use burn::backend::{Flex, flex::FlexTensor, tensor::FloatTensor};

    impl FusedOps for Flex {
        fn fused(
            x: FloatTensor<Self>,
            first: FloatTensor<Self>,
            second: FloatTensor<Self>,
            operation: Fused,
        ) -> FloatTensor<Self> {
            let [x, first, second] = [x, first, second].map(contiguous);
            let dims = x.layout().shape().to_vec();
            let operands = [slice!(first, f32), slice!(second, f32)];
            FlexTensor::from_data(on_cpu(slice!(x, f32), operands, &dims, operation))
        }
    }
}

#[cfg(feature = "wgpu")]
mod cube {
    use super::{Fused, FusedOps};
    use burn::backend::tensor::FloatTensor;
    use burn_cubecl::CubeBackend;

    impl FusedOps for CubeBackend {
        fn fused(
            _x: FloatTensor<Self>,
            _first: FloatTensor<Self>,
            _second: FloatTensor<Self>,
            operation: Fused,
        ) -> FloatTensor<Self> {
            unreachable!("GPUs compute {operation:?} with Burn's operations")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_close, devices, tensor, values};

    #[test]
    fn fused_operations_equal_their_plain_twins() {
        // elsewhere they are the twins
        for (backend, device) in devices().into_iter().filter(|(_, device)| !stores_words(device)) {
            for (tokens, heads, head_dim) in [(1, 1, 2), (3, 4, 16), (70, 3, 33), (2, 8, 256), (40, 1, 2304)] {
                let context = format!("{backend} {tokens} x {heads} x {head_dim}");
                let width = heads * head_dim;
                let x = || tensor([tokens, width], 1, &device).mul_scalar(4.0);
                let other = || tensor([tokens, width], 2, &device);
                let found = values(geglu(x(), other()));
                assert_close(&found, &values(plain::geglu(x(), other())), 4e-6, &format!("{context} geglu"));
                let weight = || tensor([width], 3, &device);
                let found = values(rms_norm(x(), weight(), 1e-6));
                assert_close(&found, &values(plain::rms_norm(x(), weight(), 1e-6)), 1e-5, &format!("{context} norm"));
                for half in [1, head_dim / 4, head_dim / 2].into_iter().filter(|half| *half > 0) {
                    let x = || x().reshape([tokens, heads, head_dim]);
                    let angle = |seed| tensor([tokens, 1, half], seed, &device);
                    let found = values(rotate(x(), angle(4), angle(5)));
                    let expected = values(plain::rotate(x(), angle(4), angle(5)));
                    assert_close(&found, &expected, 2e-6, &format!("{context} rotate {half}"));
                }
            }
        }
    }
}
