//! Low-rank adaptation: a small trainable difference beside a frozen matrix.

use crate::rows::AdaptedRows;
use burn::module::{Module, Param};
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};

/// The two factors of a low-rank difference: `s B (A x)`, added to what the matrix beside it makes of `x` (LoRA: Hu et
/// al. 2021, arXiv:2106.09685, section 4.1). The product `B A` is never made.
#[derive(Module, Debug)]
pub struct LoraFactors {
    /// `A`, `[rank, in]`.
    pub lora_a: Param<Tensor<2>>,
    /// `B`, `[out, rank]`.
    pub lora_b: Param<Tensor<2>>,
    scale: f32,
    /// The adapter that a request must choose for its rows to get the difference; `None`: all rows get it.
    #[module(skip)]
    adapter: Option<usize>,
}

/// An adapter that a request chose, and how much of it.
///
/// A model can hold the factors of several adapters beside its weights. They are numbered from 0 on, in the order in which
/// the model was given them, and count for the requests that choose them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdapterChoice {
    /// The number of the adapter.
    pub adapter: usize,
    /// How much of its effect: 1 is all of it.
    pub strength: f32,
}

impl LoraFactors {
    /// Factors with their scale `s`: alpha divided by the rank, or by its root (rsLoRA).
    ///
    /// # Panics
    /// When the ranks of the two differ.
    pub fn new(lora_a: Param<Tensor<2>>, lora_b: Param<Tensor<2>>, scale: f32) -> Self {
        assert_eq!(lora_a.val().dims()[0], lora_b.val().dims()[1], "one rank for both factors");
        Self { lora_a, lora_b, scale, adapter: None }
    }

    /// The same factors for the rows whose requests choose adapter number `adapter`, and no others.
    #[must_use]
    pub fn for_choice(self, adapter: usize) -> Self {
        Self { adapter: Some(adapter), ..self }
    }

    /// The adapter that a request must choose for the factors to count; `None`: they always count.
    pub fn adapter(&self) -> Option<usize> {
        self.adapter
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
        self.forward_with(x, 1.0)
    }

    /// So much of [`forward`](Self::forward).
    pub(crate) fn forward_with(&self, x: Tensor<2>, strength: f32) -> Tensor<2> {
        let inner = x.matmul(self.lora_a.val().transpose()).mul_scalar(self.scale * strength);
        inner.matmul(self.lora_b.val().transpose())
    }

    /// Adds the difference that `x` makes to those rows of `y` that get it: `[tokens, in]` and `[tokens, out]`.
    pub(crate) fn add_to(&self, y: Tensor<2>, x: &Tensor<2>, groups: &[AdaptedRows]) -> Tensor<2> {
        groups.iter().fold(y, |y, AdaptedRows { ranges, strength }| match ranges.as_slice() {
            [range] if range.len() == x.dims()[0] => y + self.forward_with(x.clone(), *strength),
            [range] => {
                let difference = self.forward_with(x.clone().narrow(0, range.start, range.len()), *strength);
                let sum = y.clone().narrow(0, range.start, range.len()) + difference;
                let columns = y.dims()[1];
                y.slice_assign([range.clone(), 0..columns], sum)
            }
            ranges => {
                let rows: Vec<i32> = ranges.iter().flat_map(|range| range.clone().map(|row| row as i32)).collect();
                let count = rows.len();
                let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [count]), &x.device());
                let difference = self.forward_with(x.clone().select(0, rows.clone()), *strength);
                y.select_assign(0, rows, difference, IndexingUpdateOp::Add)
            }
        })
    }
}
