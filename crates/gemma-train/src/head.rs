//! The loss over a large vocabulary, and its gradient, without ever holding the logits.
//!
//! The head of a Gemma model has 256 000 rows; the logits of a few hundred tokens would take more memory than the layers
//! that are trained. The vocabulary is therefore read in chunks, and what softmax needs is kept up as the chunks go by, as
//! in the online softmax of Milakov and Gimelshein (2018, arXiv:1805.02867): the largest logit so far, the sum of the
//! exponentials, and here also the sum of the head's rows weighted by them, which is the gradient's only sum over the
//! vocabulary. The target is left out of both sums and added at the end: where a model is nearly sure of it, its row's weight
//! in the gradient, `p - 1`, would be lost in rounding.

use burn::tensor::{Tensor, TensorData};
use gemma_generate::TokenId;
use gemma_kernels::{PackedWeight, math::tanh, packed_linear_rows, packed_rows, packed_transposed, softmax_terms};
use rayon::prelude::*;

/// The most logits of a chunk: 8 MiB of f32.
const CHUNK_LOGITS: usize = 1 << 21;
/// The fewest rows of the head in a chunk.
const LEAST_ROWS: usize = 256;

/// Log-probabilities of targets, and what the hidden states should change by.
#[derive(Debug)]
pub struct HeadLoss {
    /// The logarithm of the probability of each row's target, in nats.
    pub log_probs: Vec<f64>,
    /// Whether each row's target is the likeliest token.
    pub greedy: Vec<bool>,
    /// The gradient of `-Σ weight · log_prob` with respect to the hidden states, `[rows, hidden_size]`; asked for only.
    pub gradient: Option<Tensor<2>>,
}

/// The log-probabilities of `targets` after hidden states `[rows, hidden_size]` (those after the last norm), over a frozen
/// head `[vocab, hidden_size]` whose logits are soft-capped where `softcap` says so. With `weights`, one for each row, also
/// the gradient of `-Σ weight · log_prob`. Logits are f32, sums over the vocabulary too; the result is f64.
///
/// # Panics
/// When lengths do not match, or a target is not below the vocabulary size.
pub fn head_loss(
    head: &PackedWeight,
    hidden: Tensor<2>,
    targets: &[TokenId],
    weights: Option<&[f32]>,
    softcap: Option<f32>,
) -> HeadLoss {
    let chunk = (CHUNK_LOGITS / hidden.dims()[0].max(1)).max(LEAST_ROWS);
    in_chunks(head, hidden, targets, weights, softcap, chunk)
}

/// [`head_loss`] with so many rows of the head at a time.
fn in_chunks(
    head: &PackedWeight,
    hidden: Tensor<2>,
    targets: &[TokenId],
    weights: Option<&[f32]>,
    softcap: Option<f32>,
    chunk: usize,
) -> HeadLoss {
    let [rows, width] = hidden.dims();
    assert_eq!(targets.len(), rows, "a target for every row");
    assert!(weights.is_none_or(|weights| weights.len() == rows), "a weight for every row");
    let device = hidden.device();
    let vocab = head.rows();
    let mut states: Vec<RowState> = targets.iter().map(|target| RowState::new(*target as usize)).collect();
    let mut sums: Option<Vec<f32>> = None;
    for first in (0..vocab).step_by(chunk) {
        let range = first..(first + chunk).min(vocab);
        let logits = packed_linear_rows(hidden.clone(), head, range.clone());
        let mut logits: Vec<f32> = logits.into_data().try_into_vec().expect("logits are f32");
        // each row's logits become the weights of the head's rows
        let rescale: Vec<f32> = states
            .par_iter_mut()
            .zip(logits.par_chunks_mut(range.len()))
            .map(|(state, logits)| state.take(logits, first, softcap))
            .collect();
        if weights.is_some() {
            let part = Tensor::<2>::from_data(TensorData::new(logits, [rows, range.len()]), &device);
            let part = packed_transposed(part, head, range).into_data();
            let part: Vec<f32> = part.try_into_vec().expect("gradients are f32");
            sums = match sums {
                None => Some(part),
                Some(mut sums) => {
                    let rows = sums.par_chunks_mut(width).zip(part.par_chunks(width)).zip(&rescale);
                    rows.for_each(|((sums, part), rescale)| {
                        sums.iter_mut().zip(part).for_each(|(sum, part)| *sum = *sum * rescale + part);
                    });
                    Some(sums)
                }
            };
        }
    }
    let log_probs = states.iter().map(RowState::log_prob).collect();
    let gradient = weights.zip(sums).map(|(weights, sums)| {
        let column = |values: Vec<f32>| Tensor::<2>::from_data(TensorData::new(values, [rows, 1]), &device);
        let others = states.iter().zip(weights).map(|(state, weight)| weight / state.sum() as f32).collect();
        let target = states.iter().zip(weights).map(|(state, weight)| weight * state.missing(softcap)).collect();
        let sums = Tensor::<2>::from_data(TensorData::new(sums, [rows, width]), &device);
        sums * column(others) - packed_rows(head, targets) * column(target)
    });
    debug_assert!(gradient.as_ref().is_none_or(|gradient| gradient.dims() == [rows, width]));
    let greedy = states.iter().map(|state| state.target_logit >= state.largest).collect();
    HeadLoss { log_probs, greedy, gradient }
}

/// What is known of a row after some chunks.
struct RowState {
    target: usize,
    largest: f32,
    /// Of `exp(logit - largest)`, the target's left out.
    others: f64,
    /// Capped.
    target_logit: f32,
}

impl RowState {
    fn new(target: usize) -> Self {
        Self { target, largest: f32::NEG_INFINITY, others: 0.0, target_logit: f32::NAN }
    }

    /// Takes up the logits of the tokens from `first` on and turns them into `exp(logit - largest)` times the slope of the
    /// soft cap, that of the target into zero. Returns what earlier sums have to be multiplied by.
    fn take(&mut self, logits: &mut [f32], first: usize, softcap: Option<f32>) -> f32 {
        let mut largest = self.largest;
        if let Some(logit) = self.target.checked_sub(first).and_then(|place| logits.get_mut(place)) {
            self.target_logit = softcap.map_or(*logit, |cap| cap * tanh(*logit / cap));
            largest = largest.max(self.target_logit);
            *logit = f32::NEG_INFINITY;
        }
        let (largest, sum) = softmax_terms(logits, largest, softcap);
        let rescale = if self.largest == f32::NEG_INFINITY { 0.0 } else { (self.largest - largest).exp() };
        self.others = self.others * f64::from(rescale) + sum;
        self.largest = largest;
        rescale
    }

    /// The sum of all exponentials.
    fn sum(&self) -> f64 {
        self.others + f64::from(self.target_logit - self.largest).exp()
    }

    fn log_prob(&self) -> f64 {
        f64::from(self.target_logit) - f64::from(self.largest) - self.sum().ln()
    }

    /// What the target's probability lacks to one, times the slope of its soft cap.
    fn missing(&self, softcap: Option<f32>) -> f32 {
        let slope = softcap.map_or(1.0, |cap| 1.0 - (self.target_logit / cap).powi(2));
        (self.others / self.sum()) as f32 * slope
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gemma_backend::Backend;
    use gemma_kernels::Format;

    /// Values between -1 and 1.
    fn noise(len: usize, seed: u64) -> Vec<f32> {
        (0..len as u64).map(|i| ((i.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed) as f64 * 0.7).sin() as f32).collect()
    }

    #[test]
    fn loss_and_gradient_equal_those_of_all_logits() {
        let (rows, width, vocab) = (5, 32, 777);
        for backend in Backend::compiled() {
            let device = backend.device().expect("a compiled backend opens");
            for format in [Format::F32, Format::Bf16, Format::Q8_0] {
                for softcap in [None, Some(2.0)] {
                    let head =
                        PackedWeight::encode(&noise(vocab * width, 1), format, vocab, width, &device).expect("sound");
                    let values =
                        Tensor::<2>::from_data(TensorData::new(noise(rows * width, 2), [rows, width]), &device);
                    let mut targets = [3, 776, 0, 500, 500];
                    // one that is the likeliest
                    let row = packed_linear_rows(values.clone().narrow(0, 1, 1), &head, 0..vocab);
                    let likeliest: Vec<i64> =
                        row.argmax(1).into_data().convert::<i64>().try_into_vec().expect("an index");
                    targets[1] = likeliest[0] as TokenId;
                    let weights = [0.5, 1.0, 0.0, -0.25, 2.0];
                    let head = head.with_activations(gemma_kernels::ActivationPrecision::F32);
                    let found = in_chunks(&head, values.clone(), &targets, Some(&weights), softcap, 100);
                    // all logits at once, differentiated by the framework
                    let hidden = values.autodiff().require_grad();
                    let dense = head.dequantize().autodiff();
                    let logits = gemma_nn::softcap(hidden.clone().matmul(dense.transpose()), softcap);
                    let log_probs = burn::tensor::activation::log_softmax(logits, 1);
                    let best: Vec<i64> =
                        log_probs.clone().argmax(1).into_data().convert::<i64>().try_into_vec().expect("indices");
                    let best: Vec<bool> =
                        best.iter().zip(targets).map(|(best, target)| *best == i64::from(target)).collect();
                    assert_eq!(found.greedy, best, "{backend} {format}");
                    let index: Vec<i32> = targets.iter().map(|target| *target as i32).collect();
                    let index = Tensor::<2, burn::tensor::Int>::from_data(TensorData::new(index, [rows, 1]), &device);
                    let picked = log_probs.gather(1, index.autodiff());
                    let expected: Vec<f32> = picked.clone().into_data().try_into_vec().expect("f32");
                    for (found, expected) in found.log_probs.iter().zip(expected) {
                        assert!((found - f64::from(expected)).abs() < 1e-5, "{backend} {format}: {found} {expected}");
                    }
                    let weights = Tensor::<2>::from_data(TensorData::new(weights.to_vec(), [rows, 1]), &device);
                    let gradients = (picked * weights.autodiff()).sum().neg().backward();
                    let expected: Vec<f32> =
                        hidden.grad(&gradients).expect("a gradient").into_data().try_into_vec().expect("f32");
                    let found: Vec<f32> = found.gradient.expect("asked for").into_data().try_into_vec().expect("f32");
                    for (found, expected) in found.iter().zip(expected) {
                        assert!((found - expected).abs() < 1e-5, "{backend} {format} {softcap:?}: {found} {expected}");
                    }
                }
            }
        }
    }
}
