//! A weight matrix, frozen or trainable.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use gemma_kernels::{ActivationPrecision, Format, PackedWeight, Phase, indices, packed_linear_in, packed_rows};

/// A weight matrix `[out, in]`: frozen as it lies in a file, or dense and trainable. No layer asks which.
#[derive(Module, Debug)]
pub enum Weight {
    /// Rows or blocks of a checkpoint, computed with in place.
    Packed(PackedWeight),
    /// f32 values that an optimizer may change.
    Dense(Param<Tensor<2>>),
}

impl Weight {
    /// See [`PackedWeight::attention_activations`]; exact beside weights in f32 that are trained.
    pub fn attention_activations(&self) -> ActivationPrecision {
        match self {
            Weight::Packed(weight) => weight.attention_activations(),
            Weight::Dense(_) => ActivationPrecision::F32,
        }
    }

    /// Whether a row's product is the same bits whatever other rows are in the call; see
    /// [`PackedWeight::with_batch_invariance`].
    pub fn is_batch_invariant(&self) -> bool {
        match self {
            Weight::Packed(weight) => weight.is_batch_invariant(),
            Weight::Dense(_) => false,
        }
    }

    /// The same matrix, if it is packed with products that are batch-invariant or not.
    #[must_use]
    pub fn with_batch_invariance(self, batch_invariant: bool) -> Self {
        match self {
            Weight::Packed(weight) => Weight::Packed(weight.with_batch_invariance(batch_invariant)),
            dense @ Weight::Dense(_) => dense,
        }
    }

    /// The same matrix as a constant: dense values packed as f32.
    #[must_use]
    pub fn frozen(self) -> Self {
        let Weight::Dense(dense) = self else { return self };
        let values = dense.val().without_autodiff();
        let ([rows, cols], device) = (values.dims(), values.device());
        let values: Vec<f32> = values.into_data().convert::<f32>().try_into_vec().expect("converted to f32");
        let packed = PackedWeight::encode(&values, Format::F32, rows, cols, &device);
        Weight::Packed(packed.expect("f32 holds rows of any length"))
    }

    /// The values as f32, on the device that holds them, `[out, in]`; trainable ones without their graph.
    pub fn values(&self) -> Tensor<2> {
        match self {
            Weight::Packed(weight) => weight.dequantize(),
            Weight::Dense(weight) => weight.val().without_autodiff(),
        }
    }

    /// `x Wᵀ`: `[tokens, in]` to `[tokens, out]`, where all tokens are one request's; see [`Phase::of_len`].
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let tokens = x.dims()[0];
        self.forward_in(x, &[(tokens, Phase::of_len(tokens))])
    }

    /// `x Wᵀ`: `[tokens, in]` to `[tokens, out]`; `phases` says of the tokens, so many at a time, what their requests
    /// are doing, which chooses the arithmetic.
    pub fn forward_in(&self, x: Tensor<2>, phases: &[(usize, Phase)]) -> Tensor<2> {
        match self {
            Weight::Packed(weight) => packed_linear_in(x, weight, phases),
            Weight::Dense(weight) => x.matmul(weight.val().transpose()),
        }
    }

    /// The rows `ids` as f32: `[ids, in]`.
    ///
    /// # Panics
    /// When an id is not a row.
    pub fn rows(&self, ids: &[u32]) -> Tensor<2> {
        match self {
            Weight::Packed(weight) => packed_rows(weight, ids),
            Weight::Dense(weight) => {
                let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
                let weight = weight.val();
                let ids = indices(ids, &weight.device());
                weight.select(0, ids)
            }
        }
    }

    /// How the values are held.
    pub fn format(&self) -> Format {
        match self {
            Weight::Packed(weight) => weight.format(),
            Weight::Dense(_) => Format::F32,
        }
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Weight::Packed(weight) => [weight.rows(), weight.cols()],
            Weight::Dense(weight) => weight.val().dims(),
        }
    }

    /// Bytes that one pass over the matrix reads.
    pub fn bytes_len(&self) -> usize {
        match self {
            Weight::Packed(weight) => weight.bytes_len(),
            Weight::Dense(_) => self.shape().iter().product::<usize>() * 4,
        }
    }
}
