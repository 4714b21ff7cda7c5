//! The loss of texts: the log-probability of each token that is to be learned, and its gradient.

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};
use gemma_generate::TokenId;
use gemma_model::Blocks;
use gemma_nn::Weight;

use crate::gradients::{BatchGradients, NamedValues};
use crate::head::head_loss;
use crate::trainer::{Stretch, parts};
use crate::{Error, Example, StepReport, Trainer};

impl<M: Blocks + Module> Trainer<M> {
    /// One step on `examples`.
    ///
    /// # Errors
    /// When no example has a token to learn, or the loss is not a finite number; nothing has changed then.
    pub fn step(&mut self, examples: &[Example]) -> Result<StepReport, Error> {
        self.step_on(|trainer| Ok(trainer.text_gradients(examples)))
    }

    /// The mean loss of `examples`, in nats per token to be learned, and its gradient with respect to every trainable
    /// parameter.
    ///
    /// # Errors
    /// When no example has a token to learn.
    pub fn gradients(&self, examples: &[Example]) -> Result<(f64, NamedValues), Error> {
        self.text_gradients(examples).mean(self.steps())
    }

    /// The loss of `examples` and its gradient, summed over the tokens to be learned.
    pub fn text_gradients(&self, examples: &[Example]) -> BatchGradients {
        let weighted: Vec<(&Example, f32)> = examples.iter().map(|example| (example, 1.0)).collect();
        let mut gradients = NamedValues::new();
        let log_probs = self.weighted_gradients(&weighted, &mut gradients);
        BatchGradients {
            loss: -log_probs.iter().sum::<f64>(),
            count: examples.iter().map(Example::learned).sum(),
            tokens: examples.iter().map(|example| example.inputs().len()).sum(),
            gradients,
        }
    }

    /// Adds the gradient of `-Σ weight · log_prob`, over the tokens to be learned of each example with its weight, to
    /// `sums`; returns the sum of the log-probabilities of each example.
    pub(crate) fn weighted_gradients(&self, examples: &[(&Example, f32)], sums: &mut NamedValues) -> Vec<f64> {
        let mut log_probs = Vec::with_capacity(examples.len());
        for part in parts(examples, self.options().pack_tokens, |(example, _)| example.inputs().len()) {
            log_probs.extend(self.part_gradients(part, sums));
        }
        log_probs
    }

    fn part_gradients(&self, examples: &[(&Example, f32)], sums: &mut NamedValues) -> Vec<f64> {
        let packed = Packed::new(examples.iter().map(|(example, _)| *example));
        if packed.targets.is_empty() {
            return vec![0.0; examples.len()];
        }
        let weights: Vec<f32> = packed.owners.iter().map(|owner| examples[*owner].1).collect();
        let mut log_probs = Vec::new();
        self.forward_to_differentiate(&packed.stretch).differentiate(self, &packed.stretch, sums, |x| {
            let (found, surrogate) = self.head_surrogate(x, &packed, weights);
            log_probs = found;
            surrogate
        });
        packed.per_example(&log_probs, examples.len())
    }

    /// From what the last block has made to the log-probability of each target, and a scalar whose gradient is that of
    /// `-Σ weight · log_prob`.
    fn head_surrogate(&self, x: Tensor<2>, packed: &Packed, weights: Vec<f32>) -> (Vec<f64>, Tensor<1>) {
        let model = self.model();
        let hidden = model.forward_norm(x.clone()).select(0, packed.row_index(&x));
        let softcap = model.head_softcap();
        match model.head() {
            Weight::Packed(head) => {
                let plain = hidden.clone().without_autodiff();
                let loss = head_loss(head, plain, &packed.targets, Some(&weights), softcap);
                let gradient = loss.gradient.expect("a gradient was asked for");
                (loss.log_probs, (hidden * gradient.autodiff()).sum())
            }
            Weight::Dense(_) => {
                let logits = gemma_nn::softcap(model.head().forward(hidden), softcap);
                let picked = burn::tensor::activation::log_softmax(logits, 1).gather(1, packed.target_index(&x));
                let values: Vec<f32> = picked.clone().into_data().try_into_vec().expect("f32");
                let weights = TensorData::new(weights, [packed.targets.len(), 1]);
                let weights = Tensor::<2>::from_data(weights, &x.device());
                (values.into_iter().map(f64::from).collect(), (picked * weights).sum().neg())
            }
        }
    }

    /// The sum of the log-probabilities of the tokens to be learned of each example; nothing is differentiated.
    pub fn log_probs(&self, examples: &[Example]) -> Vec<f64> {
        log_probs(&self.trained(), examples, self.options().pack_tokens)
    }

    /// The mean loss of `examples`, in nats per token to be learned.
    ///
    /// # Errors
    /// When no example has a token to learn.
    pub fn loss(&self, examples: &[Example]) -> Result<f64, Error> {
        let total: usize = examples.iter().map(Example::learned).sum();
        if total == 0 {
            return Err(Error::EmptyBatch { step: self.steps() });
        }
        Ok(-self.log_probs(examples).iter().sum::<f64>() / total as f64)
    }
}

/// The sum of the log-probabilities, in nats, that `model` gives to the tokens to be learned of each example; read in parts
/// of at most `pack_tokens` tokens.
pub fn log_probs<M: Blocks>(model: &M, examples: &[Example], pack_tokens: usize) -> Vec<f64> {
    answers(model, examples, pack_tokens).into_iter().map(|answer| answer.log_prob).collect()
}

/// How a model takes to what it is to learn of an example.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// The sum of the log-probabilities of the tokens to be learned, in nats.
    pub log_prob: f64,
    /// Whether each of these tokens is the likeliest one after those before it: whether greedy decoding would say them.
    pub greedy: bool,
}

/// How `model` takes to each example; read in parts of at most `pack_tokens` tokens.
pub fn answers<M: Blocks>(model: &M, examples: &[Example], pack_tokens: usize) -> Vec<Answer> {
    let mut all = Vec::with_capacity(examples.len());
    let examples: Vec<&Example> = examples.iter().collect();
    for part in parts(&examples, pack_tokens, |example| example.inputs().len()) {
        let packed = Packed::new(part.iter().copied());
        if packed.targets.is_empty() {
            all.extend(part.iter().map(|_| Answer { log_prob: 0.0, greedy: true }));
            continue;
        }
        let mut x = model.embed_inputs(&packed.stretch.tokens, &packed.stretch.images);
        for block in 0..model.blocks() {
            x = model.forward_block(block, x, &packed.stretch.segments);
        }
        let hidden = model.forward_norm(x);
        let hidden = hidden.clone().select(0, packed.row_index(&hidden));
        let (log_probs, greedy): (Vec<f64>, Vec<bool>) = match model.head() {
            Weight::Packed(head) => {
                let loss = head_loss(head, hidden, &packed.targets, None, model.head_softcap());
                (loss.log_probs, loss.greedy)
            }
            Weight::Dense(_) => {
                let index = packed.target_index(&hidden);
                let logits = gemma_nn::softcap(model.head().forward(hidden), model.head_softcap());
                let all = burn::tensor::activation::log_softmax(logits, 1);
                let host = |values: Tensor<2>| -> Vec<f32> { values.into_data().try_into_vec().expect("f32") };
                let (picked, best) = (host(all.clone().gather(1, index)), host(all.max_dim(1)));
                let greedy = picked.iter().zip(&best).map(|(picked, best)| picked >= best).collect();
                (picked.into_iter().map(f64::from).collect(), greedy)
            }
        };
        let mut greedy_answers = vec![true; part.len()];
        packed.owners.iter().zip(greedy).for_each(|(owner, greedy)| greedy_answers[*owner] &= greedy);
        let sums = packed.per_example(&log_probs, part.len());
        all.extend(sums.into_iter().zip(greedy_answers).map(|(log_prob, greedy)| Answer { log_prob, greedy }));
    }
    all
}

/// Examples one after the other on the token axis.
#[derive(Default)]
struct Packed {
    stretch: Stretch,
    /// The rows after which something is to be learned, what that is, and of which example.
    rows: Vec<i32>,
    targets: Vec<TokenId>,
    owners: Vec<usize>,
}

impl Packed {
    fn new<'e>(examples: impl IntoIterator<Item = &'e Example>) -> Self {
        let mut packed = Self::default();
        for (owner, example) in examples.into_iter().enumerate() {
            let first = packed.stretch.tokens.len();
            for (row, target) in example.targets().enumerate() {
                if let Some(target) = target {
                    packed.rows.push((first + row) as i32);
                    packed.targets.push(target);
                    packed.owners.push(owner);
                }
            }
            packed.stretch.tokens.extend_from_slice(example.inputs());
            packed.stretch.images.extend(example.images.iter().cloned());
            if !example.inputs().is_empty() {
                packed.stretch.segments.push(example.segment());
            }
        }
        packed
    }

    fn row_index(&self, like: &Tensor<2>) -> Tensor<1, Int> {
        Tensor::from_data(TensorData::new(self.rows.clone(), [self.rows.len()]), &like.device())
    }

    fn target_index(&self, like: &Tensor<2>) -> Tensor<2, Int> {
        let targets: Vec<i32> = self.targets.iter().map(|target| *target as i32).collect();
        Tensor::from_data(TensorData::new(targets, [self.targets.len(), 1]), &like.device())
    }

    /// Sums over the targets of each of `count` examples.
    fn per_example(&self, values: &[f64], count: usize) -> Vec<f64> {
        let mut sums = vec![0.0; count];
        for (owner, value) in self.owners.iter().zip(values) {
            sums[*owner] += value;
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_know_their_rows_and_owners() {
        let first = Example::new(vec![2, 5, 6], vec![false, true, true]);
        let second = Example::new(vec![2, 7, 8, 9], vec![false, false, true, true]);
        let packed = Packed::new([&first, &second]);
        assert_eq!(packed.stretch.tokens, [2, 5, 2, 7, 8]);
        assert_eq!(
            (packed.rows.as_slice(), packed.targets.as_slice()),
            ([0, 1, 3, 4].as_slice(), [5, 6, 8, 9].as_slice())
        );
        assert_eq!(packed.per_example(&[1.0, 2.0, 3.0, 4.0], 2), [3.0, 7.0]);
    }
}
