//! Low-rank adaptation: a small trainable difference beside a frozen matrix.

use crate::rows::AdaptedRows;
use burn::module::{Module, Param};
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use gemma_kernels::LowRank;

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

    /// So much of the difference as a matrix of its own.
    pub(crate) fn low_rank(&self, strength: f32) -> LowRank {
        LowRank { a: self.lora_a.val(), b: self.lora_b.val(), scale: self.scale * strength }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_device;

    /// All three ways in which rows lie: all of them, one interval, several. The numbers are small integers, so that every
    /// order of adding gives the same.
    #[test]
    fn the_difference_is_added_to_the_rows_that_get_it_and_to_no_others() {
        for device in test_device::all() {
            let matrix = |rows: usize, cols: usize, seed: usize| {
                let values = (0..rows * cols).map(|place| ((place * 7 + seed) % 5) as f32 - 2.0).collect::<Vec<_>>();
                Tensor::<2>::from_data(TensorData::new(values, [rows, cols]), &device)
            };
            let [a, b] = [(2, 3, 1), (4, 2, 2)].map(|(rows, cols, seed)| Param::from_tensor(matrix(rows, cols, seed)));
            let factors = LoraFactors::new(a, b, 2.0);
            let (x, y) = (matrix(6, 3, 3), matrix(6, 4, 4));
            let whole: Vec<f32> = factors.forward(x.clone()).into_data().try_into_vec().unwrap();
            let before: Vec<f32> = y.clone().into_data().try_into_vec().unwrap();
            for (ranges, strength) in [(vec![0..6], 1.0), (vec![2..5], 0.5), (vec![0..2, 3..4, 5..6], -1.0)] {
                let group = AdaptedRows { ranges: ranges.clone(), strength };
                let after: Vec<f32> = factors.add_to(y.clone(), &x, &[group]).into_data().try_into_vec().unwrap();
                for (place, value) in after.iter().enumerate() {
                    let gets = ranges.iter().any(|range| range.contains(&(place / 4)));
                    let expected = before[place] + if gets { strength * whole[place] } else { 0.0 };
                    assert_eq!(*value, expected, "{ranges:?} at {place}");
                }
            }
            assert!(whole.iter().filter(|value| **value != 0.0).count() > 12, "{whole:?}");
        }
    }
}
