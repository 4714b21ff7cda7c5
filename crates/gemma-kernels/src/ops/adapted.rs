//! Products with a frozen matrix and low-rank factors beside it (LoRA): on the CPU in one operation, whose gradient is one as
//! well.

use crate::ops::frozen::FrozenRows;
use crate::packed::stores_words;
use crate::{PackedWeight, packed_linear};
use burn::backend::{
    Backend, Dispatch, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::Tensor;

/// A low-rank difference: `s B A`.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// `A`, `[rank, in]`.
    pub a: Tensor<2>,
    /// `B`, `[out, rank]`.
    pub b: Tensor<2>,
    /// `s`.
    pub scale: f32,
}

// The attribute names every backend of the list, ndarray included, which Burn 0.22 deprecates and this workspace promises.
#[allow(deprecated, reason = "ndarray is one of the backends this workspace promises")]
mod extension {
    use super::*;

    /// What a CPU backend must be able to do to train factors beside frozen matrices. [`adapted_linear`](super::adapted_linear)
    /// is the way to call it.
    #[backend_extension(NdArray: cfg(feature = "ndarray"), Flex: cfg(feature = "flex"), Autodiff)]
    pub trait AdaptedOps: Backend {
        /// `x Wᵀ + u Bᵀ` and `u = s x Aᵀ`.
        fn adapted_linear(
            x: FloatTensor<Self>,
            weight: IntTensor<Self>,
            a: FloatTensor<Self>,
            b: FloatTensor<Self>,
            rows: FrozenRows,
            scale: f32,
        ) -> (FloatTensor<Self>, FloatTensor<Self>);
        /// With `g` the gradient of the product: `v = s g B`, and the gradients of the factors, `vᵀ x` and `gᵀ u`.
        fn factor_gradients(
            g: FloatTensor<Self>,
            x: FloatTensor<Self>,
            u: FloatTensor<Self>,
            b: FloatTensor<Self>,
            scale: f32,
        ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
        /// The gradient of `x`: `g W + v A`.
        fn adapted_transposed(
            g: FloatTensor<Self>,
            v: FloatTensor<Self>,
            weight: IntTensor<Self>,
            a: FloatTensor<Self>,
            rows: FrozenRows,
        ) -> FloatTensor<Self>;
    }
}

pub use extension::AdaptedOps;

/// `y = x Wᵀ + s (x Aᵀ) Bᵀ`: `[tokens, cols]` to `[tokens, rows]`, where all tokens belong to prompts; otherwise
/// [`packed_linear`]. The product with the factors is f32.
///
/// On an autodiff device it is differentiable with respect to `x`, `A` and `B`; the matrix is a constant.
///
/// # Panics
/// When the shapes do not match.
pub fn adapted_linear(x: Tensor<2>, weight: &PackedWeight, factors: LowRank) -> Tensor<2> {
    let [rank, inputs] = factors.a.dims();
    assert_eq!(x.dims()[1], weight.cols(), "as many inputs as columns");
    assert_eq!(inputs, weight.cols(), "factors of as many inputs");
    assert_eq!(factors.b.dims(), [weight.rows(), rank], "factors of one rank and as many outputs");
    if stores_words(&weight.device()) {
        return reference_adapted_linear(x, weight, factors);
    }
    let LowRank { a, b, scale } = factors;
    let recorded = x.is_autodiff() || a.is_autodiff() || b.is_autodiff();
    let [x, a, b] = [x, a, b].map(|tensor| if recorded { tensor.autodiff() } else { tensor }.into_dispatch());
    let bytes = weight.shards()[0].clone().into_dispatch();
    let (y, _) = <Dispatch as AdaptedOps>::adapted_linear(x, bytes, a, b, FrozenRows::all_of(weight), scale);
    Tensor::from_dispatch(y)
}

/// The reference implementation of [`adapted_linear`].
pub fn reference_adapted_linear(x: Tensor<2>, weight: &PackedWeight, factors: LowRank) -> Tensor<2> {
    let LowRank { a, b, scale } = factors;
    packed_linear(x.clone(), weight) + x.matmul(a.transpose()).mul_scalar(scale).matmul(b.transpose())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_close, devices, tensor, values};
    use crate::{ActivationPrecision, Format, cpu::noise};

    #[test]
    fn products_and_gradients_equal_the_reference() {
        for (backend, device) in devices() {
            let recorded = device.clone().autodiff();
            for (tokens, inputs, outputs, rank) in [(1, 32, 64, 1), (5, 64, 33, 3), (70, 96, 300, 8), (50, 160, 40, 20)]
            {
                for format in [Format::F32, Format::Bf16, Format::Q8_0] {
                    let weight = PackedWeight::encode(&noise(outputs * inputs, 3), format, outputs, inputs, &device);
                    let weight = weight.expect("sound").with_activations(ActivationPrecision::F32);
                    let above = tensor([tokens, outputs], 4, &device);
                    let run = |product: fn(Tensor<2>, &PackedWeight, LowRank) -> Tensor<2>| {
                        let x = tensor([tokens, inputs], 5, &recorded).require_grad();
                        let a = tensor([rank, inputs], 6, &recorded).require_grad();
                        let b = tensor([outputs, rank], 7, &recorded).require_grad();
                        let y = product(x.clone(), &weight, LowRank { a: a.clone(), b: b.clone(), scale: 0.5 });
                        let gradients = (y.clone() * above.clone().autodiff()).sum().backward();
                        let of = |tensor: Tensor<2>| values(tensor.grad(&gradients).expect("a gradient"));
                        [values(y), of(x), of(a), of(b)]
                    };
                    let context = format!("{backend} {format} {tokens} {inputs} {outputs} {rank}");
                    let (found, expected) = (run(adapted_linear), run(reference_adapted_linear));
                    for (found, expected) in found.iter().zip(&expected) {
                        assert_close(found, expected, 5e-4, &context);
                    }
                    // without a record, and with a constant input
                    let plain = |seed, shape| tensor::<2>(shape, seed, &device);
                    let factors = || LowRank { a: plain(6, [rank, inputs]), b: plain(7, [outputs, rank]), scale: 0.5 };
                    let found = values(adapted_linear(plain(5, [tokens, inputs]), &weight, factors()));
                    assert_close(&found, &expected[0], 5e-4, &context);
                    let b = plain(7, [outputs, rank]).autodiff().require_grad();
                    let y = adapted_linear(plain(5, [tokens, inputs]), &weight, LowRank { b: b.clone(), ..factors() });
                    let gradients = (y * above.clone().autodiff()).sum().backward();
                    assert_close(&values(b.grad(&gradients).expect("a gradient")), &expected[3], 5e-4, &context);
                }
            }
        }
    }
}
