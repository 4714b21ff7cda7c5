//! Products with frozen packed matrices in training: forward over a stretch of rows, and the transposed product that hands
//! gradients on to the activations.
//!
//! The matrix is a constant: it has no gradient. Neither direction makes the dense matrix: blocks of rows are decoded as
//! they are needed.

use std::ops::Range;

use burn::backend::{
    Backend, Dispatch, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::Tensor;

use crate::{ActivationPrecision, Format, PackedWeight};

/// A stretch of rows of a packed matrix, and how products with it are computed.
#[derive(Clone, Copy, Debug)]
pub struct FrozenRows {
    /// How values are stored.
    pub format: Format,
    /// Values of a row.
    pub cols: usize,
    /// The first row.
    pub first: usize,
    /// Number of rows.
    pub count: usize,
    /// How the other side is represented.
    pub activations: ActivationPrecision,
}

// The attribute names every backend of the list, ndarray included, which Burn 0.22 deprecates and this workspace promises.
#[allow(deprecated, reason = "ndarray is one of the backends this workspace promises")]
mod extension {
    use super::*;

    /// What a backend must be able to do to train beside frozen matrices. [`packed_linear`](crate::packed_linear),
    /// [`packed_linear_rows`](super::packed_linear_rows) and [`packed_transposed`](super::packed_transposed) call it.
    #[backend_extension(
        NdArray: cfg(feature = "ndarray"), Flex: cfg(feature = "flex"), Cube: cfg(feature = "wgpu"), Autodiff
    )]
    pub trait FrozenOps: Backend {
        /// `y = x Wᵀ` over some rows of `W`: `[tokens, cols]` to `[tokens, count]`.
        fn frozen_linear(x: FloatTensor<Self>, weight: IntTensor<Self>, rows: FrozenRows) -> FloatTensor<Self>;
        /// `x = y W` over some rows of `W`: `[tokens, count]` to `[tokens, cols]`.
        fn frozen_transposed(y: FloatTensor<Self>, weight: IntTensor<Self>, rows: FrozenRows) -> FloatTensor<Self>;
    }
}

pub use extension::FrozenOps;

/// `y = x Wᵀ` over the rows `rows` of `W`: `[tokens, cols]` to `[tokens, rows.len()]`; otherwise
/// [`packed_linear`](crate::packed_linear). Differentiable with respect to `x`.
///
/// # Panics
/// When the shapes do not match, or a row is not one of the matrix.
pub fn packed_linear_rows(x: Tensor<2>, weight: &PackedWeight, rows: Range<usize>) -> Tensor<2> {
    assert_eq!(x.dims()[1], weight.cols(), "as many inputs as columns");
    let mut parts: Vec<Tensor<2>> = stretches(weight, rows)
        .map(|(shard, rows)| {
            let (x, bytes) = (x.clone().into_dispatch(), weight.shards()[shard].clone().into_dispatch());
            Tensor::from_dispatch(<Dispatch as FrozenOps>::frozen_linear(x, bytes, rows))
        })
        .collect();
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 1) }
}

/// `x = y W` over the rows `rows` of `W`: `[tokens, rows.len()]` to `[tokens, cols]`, f32, accumulated in f32. The gradient
/// of [`packed_linear_rows`] with respect to its input.
///
/// # Panics
/// When the shapes do not match, or a row is not one of the matrix.
pub fn packed_transposed(y: Tensor<2>, weight: &PackedWeight, rows: Range<usize>) -> Tensor<2> {
    assert_eq!(y.dims()[1], rows.len(), "as many inputs as rows");
    let first = rows.start;
    stretches(weight, rows)
        .map(|(shard, rows)| {
            let begin = shard * weight.rows_per_shard() + rows.first - first;
            let part = y.clone().narrow(1, begin, rows.count);
            let (part, bytes) = (part.into_dispatch(), weight.shards()[shard].clone().into_dispatch());
            Tensor::from_dispatch(<Dispatch as FrozenOps>::frozen_transposed(part, bytes, rows))
        })
        .reduce(|sum, part| sum + part)
        .expect("a product with at least one row")
}

impl FrozenRows {
    /// All rows of a matrix that is in one shard, as on a CPU.
    pub(super) fn all_of(weight: &PackedWeight) -> Self {
        let [(_, rows)] = stretches(weight, 0..weight.rows()).collect::<Vec<_>>()[..] else {
            unreachable!("shards are a GPU's")
        };
        rows
    }
}

/// The shards of a matrix that hold some of its rows, and which rows of each.
fn stretches(weight: &PackedWeight, rows: Range<usize>) -> impl Iterator<Item = (usize, FrozenRows)> {
    assert!(rows.start < rows.end && rows.end <= weight.rows(), "rows {rows:?} of a matrix of {} rows", weight.rows());
    let per_shard = weight.rows_per_shard();
    let (format, cols, activations) = (weight.format(), weight.cols(), weight.activations());
    (rows.start / per_shard..rows.end.div_ceil(per_shard)).map(move |shard| {
        let base = shard * per_shard;
        let (first, end) = (rows.start.max(base), rows.end.min(base + per_shard));
        (shard, FrozenRows { format, cols, first: first - base, count: end - first, activations })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::noise;
    use crate::ops::tests::{assert_close, devices, tensor, values};

    #[test]
    fn transposed_products_equal_dense_ones_over_any_rows() {
        for (backend, device) in devices() {
            for format in Format::ALL {
                for (rows, cols) in
                    [(1, 32), (7, 96), (300, 64), (65, 160), (9, 5), (3, 1), (40, 33), (130, 512), (70, 768)]
                {
                    let Ok(weight) = PackedWeight::encode(&noise(rows * cols, 3), format, rows, cols, &device) else {
                        continue;
                    };
                    let weight = weight.with_activations(ActivationPrecision::F32);
                    let dense = weight.dequantize();
                    for tokens in [1, 2, 5, 17, 70] {
                        for range in [0..rows, rows / 3..rows.div_ceil(2).max(rows / 3 + 1)] {
                            let context = format!("{backend} {format} {tokens} x {range:?} of {rows} x {cols}");
                            let part = dense.clone().slice([range.clone(), 0..cols]);
                            let y = tensor([tokens, range.len()], 4, &device);
                            let found = packed_transposed(y.clone(), &weight, range.clone());
                            assert_close(&values(found), &values(y.matmul(part.clone())), 2e-4, &context);
                            let x = tensor([tokens, cols], 5, &device);
                            let found = packed_linear_rows(x.clone(), &weight, range);
                            assert_close(&values(found), &values(x.matmul(part.transpose())), 2e-4, &context);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_gradient_of_a_product_is_the_transposed_one() {
        for (backend, device) in devices() {
            let weight = PackedWeight::encode(&noise(40 * 64, 1), Format::Q8_0, 40, 64, &device).expect("sound");
            let weight = weight.with_activations(ActivationPrecision::F32);
            let x = tensor([3, 64], 2, &device.clone().autodiff()).require_grad();
            let factor = tensor([3, 40], 3, &device);
            let loss = (crate::packed_linear(x.clone(), &weight) * factor.clone().autodiff()).sum();
            let found = values(x.grad(&loss.backward()).expect("a gradient"));
            assert_close(&found, &values(packed_transposed(factor, &weight, 0..40)), 1e-5, &backend.to_string());
        }
    }

    /// A bias is added to every token, so its gradient is the sum of theirs; alone, beside others and in a feed-forward layer.
    #[test]
    fn the_gradient_of_a_bias_is_the_sum_over_the_tokens() {
        use crate::{FeedForward, PackedLinear, Phase, feed_forward, packed_linear_in, packed_linears};
        for (backend, device) in devices() {
            let matrix = |rows, cols, seed| {
                let weight = PackedWeight::encode(&noise(rows * cols, seed), Format::Q8_0, rows, cols, &device);
                weight.expect("sound").with_activations(ActivationPrecision::F32)
            };
            let recorded = device.clone().autodiff();
            let (first, second, down) = (matrix(40, 64, 1), matrix(64, 64, 2), matrix(40, 64, 3));
            let (x, factor) = (tensor([3, 64], 4, &recorded), tensor([3, 40], 5, &device));
            let expected = values(factor.clone().sum_dim(0));
            let factor = factor.autodiff();
            let phases = [(3, Phase::Decode)];
            let biased = |weight, bias: &Tensor<1>| PackedLinear { weight, bias: Some(bias.clone()) };
            let plain = |weight| PackedLinear { weight, bias: None };
            for way in ["alone", "beside another", "last of a layer"] {
                let bias = tensor([40], 6, &recorded).require_grad();
                let product = match way {
                    "alone" => packed_linear_in(x.clone(), biased(&first, &bias), &phases),
                    "beside another" => {
                        let [product, _] = packed_linears(x.clone(), [biased(&first, &bias), plain(&second)], &phases);
                        product
                    }
                    _ => {
                        let layer = FeedForward { gate: plain(&second), up: None, down: biased(&down, &bias) };
                        feed_forward(x.clone(), layer, Phase::Decode)
                    }
                };
                let loss = (product * factor.clone()).sum();
                let found = values(bias.grad(&loss.backward()).expect("a gradient"));
                assert_close(&found, &expected, 1e-5, &format!("{backend}, {way}"));
            }
        }
    }
}
