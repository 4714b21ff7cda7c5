//! The largest logits of a row: all that a greedy or a top-k choice reads of a vocabulary.

use crate::packed::stores_words;
use crate::traffic::{Way, note};
use burn::backend::{
    Backend, Dispatch, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{DType, Device, Int, Tensor, TensorReadError};

// The attribute names every backend of the list, ndarray included, which Burn 0.22 deprecates and this workspace promises.
#[allow(deprecated, reason = "ndarray is one of the backends this workspace promises")]
mod extension {
    use super::*;

    /// What a GPU must be able to do for [`largest`](super::largest), which is the way to call it.
    #[backend_extension(NdArray: cfg(feature = "ndarray"), Flex: cfg(feature = "flex"), Cube: cfg(feature = "wgpu"))]
    pub trait LargestOps: Backend {
        /// `[rows, 2 count + 1]` words: the bits of the logits from the largest down, their token ids, and the bits of the
        /// sum of exps relative to the largest.
        fn largest(logits: FloatTensor<Self>, count: usize) -> IntTensor<Self>;
    }
}

pub use extension::LargestOps;

/// The most logits that are worth [`largest`]: each costs a few barriers of every workgroup.
pub const MOST_LARGEST: usize = 128;

/// The largest logits of a row, and what the probabilities of all follow from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Largest {
    /// From the largest down. A NaN counts and comes as +∞.
    pub logits: Vec<f32>,
    /// Their token ids; of equal logits the lower id comes first. Of -∞ any id may come.
    pub tokens: Vec<u32>,
    /// `log Σ exp(logit)` over the whole row, where the largest is finite; summed in f32.
    pub log_sum_exp: f64,
}

impl Largest {
    /// The first `count` of them.
    #[must_use]
    pub fn first(mut self, count: usize) -> Self {
        self.logits.truncate(count);
        self.tokens.truncate(count);
        self
    }
}

/// Whether tensors of this device lie in memory of its own, so that reading one on the host is a transfer.
pub fn is_apart(device: &Device) -> bool {
    stores_words(device)
}

/// The `count` largest of each row of `logits` `[rows, vocab]`. On a GPU they are found there, in two launches, and nothing
/// else of the row comes back; elsewhere this is [`reference::largest`](crate::reference::largest).
///
/// # Errors
/// When the device failed.
///
/// # Panics
/// When a row has fewer logits.
pub fn largest(logits: Tensor<2>, count: usize) -> Result<Vec<Largest>, TensorReadError> {
    let [_, vocab] = logits.dims();
    assert!((1..=vocab).contains(&count), "{count} of {vocab} logits");
    if !stores_words(&logits.device()) {
        let (found, tokens, sums) = reference_largest(logits, count);
        let (found, tokens) = (found.try_into_vec_as::<f32>()?, tokens.try_into_vec_as::<u32>()?);
        let sums = sums.try_into_vec_as::<f32>()?;
        let rows = found.chunks_exact(count).zip(tokens.chunks_exact(count)).zip(sums);
        return Ok(rows.map(|((logits, tokens), sum)| of_row(logits.to_vec(), tokens.to_vec(), sum)).collect());
    }
    let logits = logits.cast(DType::F32).into_dispatch();
    let words = Tensor::<2, Int>::from_dispatch(<Dispatch as LargestOps>::largest(logits, count));
    let words = words.try_into_vec_as::<u32>()?;
    note(Way::Down, words.len() * 4);
    let row = |words: &[u32]| {
        let (logits, rest) = words.split_at(count);
        let logits = logits.iter().map(|bits| f32::from_bits(*bits)).collect();
        of_row(logits, rest[..count].to_vec(), f32::from_bits(rest[count]))
    };
    Ok(words.chunks_exact(2 * count + 1).map(row).collect())
}

fn of_row(logits: Vec<f32>, tokens: Vec<u32>, sum: f32) -> Largest {
    let log_sum_exp = f64::from(logits[0]) + f64::from(sum).ln();
    Largest { logits, tokens, log_sum_exp }
}

/// The reference implementation of [`largest`]: logits and token ids `[rows, count]`, and `Σ exp(logit - largest)`
/// `[rows, 1]`. The largest is found, and taken out, as often as that.
pub fn reference_largest(logits: Tensor<2>, count: usize) -> (Tensor<2>, Tensor<2, Int>, Tensor<2>) {
    let [_, vocab] = logits.dims();
    let none = vocab as i64;
    let nan = logits.clone().is_nan();
    // adding 0 makes -0 an ordinary 0
    let logits = logits.add_scalar(0.0).mask_fill(nan, f32::INFINITY);
    let ids = Tensor::<1, Int>::arange(0..none, &logits.device()).unsqueeze::<2>().expand(logits.dims());
    let (mut left, mut found, mut tokens) = (logits.clone(), Vec::new(), Vec::new());
    for _ in 0..count {
        let best = left.clone().max_dim(1);
        let others = left.clone().not_equal(best.clone().expand(logits.dims()));
        let token = ids.clone().mask_fill(others, none).min_dim(1);
        left = left.mask_fill(ids.clone().equal(token.clone().expand(logits.dims())), f32::NEG_INFINITY);
        found.push(best);
        tokens.push(token);
    }
    let sums = (logits - found[0].clone()).exp().sum_dim(1);
    (Tensor::cat(found, 1), Tensor::cat(tokens, 1), sums)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::noise;
    use crate::ops::tests::devices;
    use burn::tensor::TensorData;

    /// By sorting, on the host.
    fn sorted(logits: &[f32], count: usize) -> Largest {
        let value = |token: u32| {
            let logit = logits[token as usize];
            if logit.is_nan() { f32::INFINITY } else { logit + 0.0 }
        };
        let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
        tokens.sort_by(|a, b| value(*b).total_cmp(&value(*a)).then(a.cmp(b)));
        let best = f64::from(value(tokens[0]));
        let sum: f64 = tokens.iter().map(|token| (f64::from(value(*token)) - best).exp()).sum();
        tokens.truncate(count);
        Largest { logits: tokens.iter().map(|token| value(*token)).collect(), tokens, log_sum_exp: best + sum.ln() }
    }

    fn check(rows: &[Vec<f32>], count: usize, context: &str) {
        let vocab = rows[0].len();
        for (backend, device) in devices() {
            let data = TensorData::new(rows.concat(), [rows.len(), vocab]);
            let found = largest(Tensor::from_data(data, &device), count).unwrap();
            assert_eq!(found.len(), rows.len());
            for (row, (found, logits)) in found.iter().zip(rows).enumerate() {
                let context = format!("{backend}, {context}, {count} of {vocab}, row {row}");
                let expected = sorted(logits, count);
                assert_eq!(
                    found.logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>(),
                    expected.logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>(),
                    "{context}"
                );
                for (place, logit) in expected.logits.iter().enumerate() {
                    // what is excluded has no order
                    if *logit > f32::NEG_INFINITY {
                        assert_eq!(found.tokens[place], expected.tokens[place], "{context}, place {place}");
                    }
                }
                if expected.logits[0].is_finite() {
                    let (found, expected) = (found.log_sum_exp, expected.log_sum_exp);
                    assert!((found - expected).abs() < 4e-6 * expected.abs().max(1.0), "{context}: {found} {expected}");
                }
            }
        }
    }

    fn logits(vocab: usize, seed: u64) -> Vec<f32> {
        noise(vocab, seed).into_iter().map(|value| 12.0 * value).collect()
    }

    #[test]
    fn the_largest_are_those_of_a_sorted_row() {
        for (rows, vocab, counts) in [
            (1, 1, &[1][..]),
            (3, 7, &[1, 2, 7]),
            (2, 256, &[1, 40]),
            (1, 2047, &[64]),
            (4, 2049, &[1, 5]),
            (2, 10_007, &[3, 128]),
        ] {
            for &count in counts {
                let rows: Vec<_> = (0..rows).map(|row| logits(vocab, 40 + row)).collect();
                check(&rows, count, "noise");
            }
        }
    }

    #[test]
    fn the_largest_of_a_whole_vocabulary_are_found() {
        for count in [1, 9] {
            check(&[logits(256_000, 3), logits(256_000, 4)], count, "a vocabulary");
        }
    }

    #[test]
    fn of_equal_logits_the_lower_ids_come_first() {
        // few values, so that ties lie within a unit, across units and across lists
        let few: Vec<f32> = logits(5000, 6).into_iter().map(|logit| (logit / 4.0).round()).collect();
        let zeros: Vec<f32> = (0..5000).map(|token| if token % 3 == 0 { -0.0 } else { 0.0 }).collect();
        check(&[few, vec![-3.5; 5000], zeros], 20, "ties");
    }

    #[test]
    fn excluded_and_broken_logits_keep_their_place() {
        let mut excluded = vec![f32::NEG_INFINITY; 3000];
        (excluded[2999], excluded[5], excluded[2500]) = (-1.0, -2.0, 3e38);
        let mut broken = logits(3000, 7);
        (broken[2600], broken[17]) = (f32::NAN, -f32::NAN);
        let mut infinite = logits(3000, 8);
        (infinite[2047], infinite[1]) = (f32::INFINITY, f32::MIN);
        let tiny: Vec<f32> = (0..3000).map(|token| f32::from_bits(token * 7 % 3001)).collect();
        check(&[excluded, broken, infinite, vec![f32::NEG_INFINITY; 3000], tiny], 6, "excluded or broken");
    }
}
