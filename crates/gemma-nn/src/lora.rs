//! Low-rank adaptation: a small difference beside a frozen matrix, trainable or frozen itself.

use crate::Weight;
use crate::rows::AdaptedRows;
use burn::module::{Module, Param};
use burn::tensor::{IndexingUpdateOp, Tensor};
use gemma_kernels::{LowRank, Phase, indices};

/// The two factors of a low-rank difference: `s B (A x)`, added to what the matrix beside it makes of `x` (LoRA: Hu et
/// al. 2021, arXiv:2106.09685, section 4.1). The product `B A` is never made.
#[derive(Module, Debug)]
pub struct LoraFactors {
    /// `A`, `[rank, in]`.
    pub lora_a: Weight,
    /// `B`, `[out, rank]`.
    pub lora_b: Weight,
    scale: f32,
    /// The adapter that a request must choose for its rows to get the difference; `None`: all rows get it.
    #[module(skip)]
    adapter: Option<usize>,
}

impl LoraFactors {
    /// Trainable factors with their scale `s`: alpha divided by the rank, or by its root (rsLoRA).
    ///
    /// # Panics
    /// When the ranks of the two differ.
    pub fn new(lora_a: Param<Tensor<2>>, lora_b: Param<Tensor<2>>, scale: f32) -> Self {
        assert_eq!(lora_a.val().dims()[0], lora_b.val().dims()[1], "one rank for both factors");
        Self { lora_a: Weight::Dense(lora_a), lora_b: Weight::Dense(lora_b), scale, adapter: None }
    }

    /// The same factors as constants, which are computed as all frozen weights are.
    #[must_use]
    pub fn frozen(self) -> Self {
        Self { lora_a: self.lora_a.frozen(), lora_b: self.lora_b.frozen(), ..self }
    }

    /// The same factors; if they are frozen, with products that are [batch-invariant](Weight::with_batch_invariance) or not.
    #[must_use]
    pub(crate) fn with_batch_invariance(self, batch_invariant: bool) -> Self {
        let [lora_a, lora_b] = [self.lora_a, self.lora_b].map(|factor| factor.with_batch_invariance(batch_invariant));
        Self { lora_a, lora_b, ..self }
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
        self.lora_a.shape()[0]
    }

    /// `s B (A x)`: `[tokens, in]` to `[tokens, out]`, where all tokens are one request's.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let tokens = x.dims()[0];
        self.forward_in(x, &[(tokens, Phase::of_len(tokens))], 1.0)
    }

    /// So much of the difference as a matrix of its own, where the factors are trainable.
    pub(crate) fn low_rank(&self, strength: f32) -> Option<LowRank> {
        let (Weight::Dense(a), Weight::Dense(b)) = (&self.lora_a, &self.lora_b) else { return None };
        Some(LowRank { a: a.val(), b: b.val(), scale: self.scale * strength })
    }

    /// So much of [`forward`](Self::forward), for tokens in these phases.
    fn forward_in(&self, x: Tensor<2>, phases: &[(usize, Phase)], strength: f32) -> Tensor<2> {
        let inner = self.lora_a.forward_in(x, phases).mul_scalar(self.scale * strength);
        self.lora_b.forward_in(inner, phases)
    }

    /// Adds the difference that `x` makes to those rows of `y` that get it: `[tokens, in]` and `[tokens, out]`.
    pub(crate) fn add_to(&self, y: Tensor<2>, x: &Tensor<2>, groups: &[AdaptedRows]) -> Tensor<2> {
        groups.iter().fold(y, |y, AdaptedRows { ranges, phases, strength }| match ranges.as_slice() {
            [range] if range.len() == x.dims()[0] => y + self.forward_in(x.clone(), phases, *strength),
            [range] => {
                let difference = self.forward_in(x.clone().narrow(0, range.start, range.len()), phases, *strength);
                let sum = y.clone().narrow(0, range.start, range.len()) + difference;
                let columns = y.dims()[1];
                y.slice_assign([range.clone(), 0..columns], sum)
            }
            ranges => {
                let rows: Vec<i32> = ranges.iter().flat_map(|range| range.clone().map(|row| row as i32)).collect();
                let rows = indices(rows, &x.device());
                let difference = self.forward_in(x.clone().select(0, rows.clone()), phases, *strength);
                y.select_assign(0, rows, difference, IndexingUpdateOp::Add)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_device;
    use burn::tensor::TensorData;

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
            let trainable = LoraFactors::new(a, b, 2.0);
            let (x, y) = (matrix(6, 3, 3), matrix(6, 4, 4));
            let whole: Vec<f32> = trainable.forward(x.clone()).into_data().try_into_vec().unwrap();
            let before: Vec<f32> = y.clone().into_data().try_into_vec().unwrap();
            for factors in [&trainable, &trainable.clone().frozen()] {
                for (ranges, strength) in [(vec![0..6], 1.0), (vec![2..5], 0.5), (vec![0..2, 3..4, 5..6], -1.0)] {
                    let rows = ranges.iter().map(ExactSizeIterator::len).sum();
                    let group = AdaptedRows { ranges: ranges.clone(), phases: vec![(rows, Phase::Decode)], strength };
                    let after: Vec<f32> = factors.add_to(y.clone(), &x, &[group]).into_data().try_into_vec().unwrap();
                    for (place, value) in after.iter().enumerate() {
                        let gets = ranges.iter().any(|range| range.contains(&(place / 4)));
                        let expected = before[place] + if gets { strength * whole[place] } else { 0.0 };
                        assert_eq!(*value, expected, "{ranges:?} at {place}");
                    }
                }
            }
            assert!(whole.iter().filter(|value| **value != 0.0).count() > 12, "{whole:?}");
        }
    }

    /// Sums that were added up in another order would differ in their last bits: the values are no round numbers.
    #[test]
    fn frozen_factors_give_a_row_the_same_bits_in_any_company() {
        for device in test_device::all() {
            let matrix = |rows: usize, cols: usize, seed: usize| {
                let values = (0..rows * cols).map(|place| ((place * 37 + seed) % 101) as f32 / 7.0 - 6.0);
                Tensor::<2>::from_data(TensorData::new(values.collect::<Vec<_>>(), [rows, cols]), &device)
            };
            for rank in [1, 4, 7, 16] {
                let [a, b] = [(rank, 96, 1), (70, rank, 2)].map(|(rows, cols, seed)| matrix(rows, cols, seed));
                let factors = LoraFactors::new(Param::from_tensor(a), Param::from_tensor(b), 0.3).frozen();
                let factors = factors.with_batch_invariance(true);
                let x = matrix(37, 96, 3);
                let of = |first: usize, rows: usize, phase: Phase| -> Vec<f32> {
                    let part = factors.forward_in(x.clone().narrow(0, first, rows), &[(rows, phase)], 0.7);
                    part.into_data().try_into_vec().unwrap()
                };
                for phase in [Phase::Decode, Phase::Prefill] {
                    let together = of(0, 37, phase);
                    for (first, rows) in [(0, 1), (36, 1), (5, 2), (3, 9), (0, 20), (11, 26)] {
                        assert_eq!(
                            of(first, rows, phase),
                            together[first * 70..][..rows * 70],
                            "rank {rank}, {phase:?}"
                        );
                    }
                }
            }
        }
    }
}
