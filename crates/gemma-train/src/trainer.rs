//! One optimizer step after the other.
//!
//! A step reads its examples packed on one token axis, forward without recording anything but the inputs of the blocks, and
//! then takes the blocks from the last to the first: each is computed again, this time recorded, and differentiated (Chen
//! et al. 2016, arXiv:1604.06174, with a checkpoint per block). The memory is that of one block and of the inputs of all.

use std::collections::BTreeMap;
use std::time::Instant;

use burn::module::{Module, ParamId};
use burn::tensor::{Int, Tensor, TensorData};
use gemma_generate::TokenId;
use gemma_model::Blocks;
use gemma_nn::{Segment, Weight};

use crate::adamw::norm;
use crate::gradients::{NamedValues, accumulate, parameters, replaced};
use crate::head::head_loss;
use crate::{AdamW, Error, Example, TrainingOptions};

/// What one optimizer step did.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Which step, counted from 0.
    pub step: usize,
    /// Mean loss of its examples before the step, in nats per token to be learned.
    pub loss: f64,
    /// The learning rate used.
    pub learning_rate: f64,
    /// The norm of all gradients together, before it was clipped.
    pub gradient_norm: f64,
    /// Tokens read.
    pub tokens: usize,
    /// Tokens learned.
    pub learned: usize,
    /// Time it took, in seconds.
    pub seconds: f64,
}

/// A network in training, with its optimizer.
#[derive(Debug)]
pub struct Trainer<M> {
    model: M,
    ids: BTreeMap<String, ParamId>,
    values: NamedValues,
    optimizer: AdamW,
    options: TrainingOptions,
    step: usize,
}

impl<M: Blocks + Module> Trainer<M> {
    /// A training of all parameters of `model` that require gradients.
    ///
    /// # Errors
    /// When an option is outside its range, or the model has nothing to train.
    pub fn new(model: M, options: TrainingOptions) -> Result<Self, Error> {
        options.check()?;
        let (mut ids, mut values) = (BTreeMap::new(), BTreeMap::new());
        for (name, (id, value)) in parameters(&model) {
            ids.insert(name.clone(), id);
            values.insert(name, value);
        }
        if ids.is_empty() {
            return Err(Error::NothingToTrain);
        }
        Ok(Self { model, ids, values, optimizer: AdamW::new(options.adamw), options, step: 0 })
    }

    /// The network, whose trainable parameters live on an autodiff device.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The network as it computes when it is not trained.
    pub fn trained(&self) -> M {
        self.model.valid()
    }

    /// The settings.
    pub fn options(&self) -> &TrainingOptions {
        &self.options
    }

    /// Steps taken so far.
    pub fn steps(&self) -> usize {
        self.step
    }

    /// The trainable parameters by name.
    pub fn values(&self) -> &NamedValues {
        &self.values
    }

    pub(crate) fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// Goes on from what a checkpoint kept.
    pub(crate) fn restore(&mut self, step: usize, values: NamedValues, optimizer: AdamW) {
        (self.step, self.values, self.optimizer) = (step, values, optimizer);
        self.update_model();
    }

    fn update_model(&mut self) {
        let values = self.ids.iter().filter_map(|(name, id)| Some((*id, self.values.get(name)?.values.as_slice())));
        self.model = replaced(self.model.clone(), values);
    }

    /// One step on `examples`.
    ///
    /// # Errors
    /// When no example has a token to learn, or the loss is not a finite number; nothing has changed then.
    pub fn step(&mut self, examples: &[Example]) -> Result<StepReport, Error> {
        self.step_with(examples, |trainer, examples| trainer.gradients(examples))
    }

    /// [`step`](Self::step) with gradients that are computed otherwise.
    pub(crate) fn step_with(
        &mut self,
        examples: &[Example],
        gradients: impl FnOnce(&Self, &[Example]) -> Result<(f64, NamedValues), Error>,
    ) -> Result<StepReport, Error> {
        let begin = Instant::now();
        let (loss, gradients) = gradients(self, examples)?;
        let gradient_norm = norm(&gradients);
        if !loss.is_finite() || !gradient_norm.is_finite() {
            return Err(Error::NotFinite { step: self.step });
        }
        let divisor = self.options.clip.map_or(1.0, |clip| (gradient_norm / clip).max(1.0));
        let learning_rate = self.options.learning_rate_at(self.step);
        self.optimizer.step(&mut self.values, &gradients, divisor as f32, learning_rate);
        self.update_model();
        let report = StepReport {
            step: self.step,
            loss,
            learning_rate,
            gradient_norm,
            tokens: examples.iter().map(|example| example.inputs().len()).sum(),
            learned: examples.iter().map(Example::learned).sum(),
            seconds: begin.elapsed().as_secs_f64(),
        };
        self.step += 1;
        Ok(report)
    }

    /// The mean loss of `examples`, in nats per token to be learned, and its gradient with respect to every trainable
    /// parameter.
    ///
    /// # Errors
    /// When no example has a token to learn.
    pub fn gradients(&self, examples: &[Example]) -> Result<(f64, NamedValues), Error> {
        let total: usize = examples.iter().map(Example::learned).sum();
        if total == 0 {
            return Err(Error::EmptyBatch { step: self.step });
        }
        let weight = 1.0 / total as f32;
        let weighted: Vec<(&Example, f32)> = examples.iter().map(|example| (example, weight)).collect();
        let mut sums = NamedValues::new();
        let log_probs = self.weighted_gradients(&weighted, &mut sums);
        Ok((-log_probs.iter().sum::<f64>() / total as f64, sums))
    }

    /// Adds the gradient of `-Σ weight · log_prob`, over the tokens to be learned of each example with its weight, to
    /// `sums`; returns the sum of the log-probabilities of each example.
    pub(crate) fn weighted_gradients(&self, examples: &[(&Example, f32)], sums: &mut NamedValues) -> Vec<f64> {
        let mut log_probs = Vec::with_capacity(examples.len());
        for part in parts(examples, self.options.pack_tokens, |(example, _)| example.inputs().len()) {
            log_probs.extend(self.part_gradients(part, sums));
        }
        log_probs
    }

    fn part_gradients(&self, examples: &[(&Example, f32)], sums: &mut NamedValues) -> Vec<f64> {
        let plain = self.model.valid();
        let packed = Packed::new(examples.iter().map(|(example, _)| *example));
        if packed.targets.is_empty() {
            return vec![0.0; examples.len()];
        }
        let mut x = plain.embed_inputs(&packed.tokens, &packed.images);
        let mut inputs = Vec::with_capacity(plain.blocks());
        for block in 0..plain.blocks() {
            inputs.push(x.clone());
            x = plain.forward_block(block, x, &packed.segments);
        }
        let (log_probs, mut upstream) = self.head_gradients(x, &packed, examples, sums);
        let trains_table = matches!(self.model.head(), Weight::Dense(_));
        for (block, input) in inputs.into_iter().enumerate().rev() {
            let wanted = block > 0 || trains_table;
            let input = if wanted { input.autodiff().require_grad() } else { input.autodiff() };
            let output = self.model.forward_block(block, input.clone(), &packed.segments);
            if !output.is_tracked() {
                continue;
            }
            let mut recorded = (output * upstream.clone().autodiff()).sum().backward();
            accumulate(&self.model, &mut recorded, sums);
            if wanted {
                upstream = input.grad_remove(&mut recorded).expect("a leaf that requires a gradient has one");
            }
        }
        if trains_table {
            let table = self.model.embed_inputs(&packed.tokens, &packed.images);
            let mut recorded = (table * upstream.autodiff()).sum().backward();
            accumulate(&self.model, &mut recorded, sums);
        }
        log_probs
    }

    /// From what the last block has made to the log-probability of each example, and the gradient with respect to it.
    fn head_gradients(
        &self,
        x: Tensor<2>,
        packed: &Packed,
        examples: &[(&Example, f32)],
        sums: &mut NamedValues,
    ) -> (Vec<f64>, Tensor<2>) {
        let weights: Vec<f32> = packed.owners.iter().map(|owner| examples[*owner].1).collect();
        let x = x.autodiff().require_grad();
        let hidden = self.model.forward_norm(x.clone()).select(0, packed.row_index(&x));
        let softcap = self.model.head_softcap();
        let (log_probs, surrogate) = match self.model.head() {
            Weight::Packed(head) => {
                let plain = hidden.clone().without_autodiff();
                let loss = head_loss(head, plain, &packed.targets, Some(&weights), softcap);
                let gradient = loss.gradient.expect("a gradient was asked for");
                (loss.log_probs, (hidden * gradient.autodiff()).sum())
            }
            Weight::Dense(_) => {
                let logits = gemma_nn::softcap(self.model.head().forward(hidden), softcap);
                let picked = burn::tensor::activation::log_softmax(logits, 1).gather(1, packed.target_index(&x));
                let values: Vec<f32> = picked.clone().into_data().try_into_vec().expect("f32");
                let weights = TensorData::new(weights, [packed.targets.len(), 1]);
                let weights = Tensor::<2>::from_data(weights, &x.device());
                (values.into_iter().map(f64::from).collect(), (picked * weights).sum().neg())
            }
        };
        let mut recorded = surrogate.backward();
        accumulate(&self.model, &mut recorded, sums);
        let upstream = x.grad_remove(&mut recorded).expect("a leaf that requires a gradient has one");
        (packed.per_example(&log_probs, examples.len()), upstream)
    }

    /// The sum of the log-probabilities of the tokens to be learned of each example; nothing is differentiated.
    pub fn log_probs(&self, examples: &[Example]) -> Vec<f64> {
        log_probs(&self.model.valid(), examples, self.options.pack_tokens)
    }

    /// The mean loss of `examples`, in nats per token to be learned.
    ///
    /// # Errors
    /// When no example has a token to learn.
    pub fn loss(&self, examples: &[Example]) -> Result<f64, Error> {
        let total: usize = examples.iter().map(Example::learned).sum();
        if total == 0 {
            return Err(Error::EmptyBatch { step: self.step });
        }
        Ok(-self.log_probs(examples).iter().sum::<f64>() / total as f64)
    }
}

/// The sum of the log-probabilities, in nats, that `model` gives to the tokens to be learned of each example; read in parts
/// of at most `pack_tokens` tokens.
pub fn log_probs<M: Blocks>(model: &M, examples: &[Example], pack_tokens: usize) -> Vec<f64> {
    let mut all = Vec::with_capacity(examples.len());
    let examples: Vec<&Example> = examples.iter().collect();
    for part in parts(&examples, pack_tokens, |example| example.inputs().len()) {
        let packed = Packed::new(part.iter().copied());
        if packed.targets.is_empty() {
            all.extend(part.iter().map(|_| 0.0));
            continue;
        }
        let mut x = model.embed_inputs(&packed.tokens, &packed.images);
        for block in 0..model.blocks() {
            x = model.forward_block(block, x, &packed.segments);
        }
        let hidden = model.forward_norm(x);
        let hidden = hidden.clone().select(0, packed.row_index(&hidden));
        let log_probs: Vec<f64> = match model.head() {
            Weight::Packed(head) => head_loss(head, hidden, &packed.targets, None, model.head_softcap()).log_probs,
            Weight::Dense(_) => {
                let index = packed.target_index(&hidden);
                let logits = gemma_nn::softcap(model.head().forward(hidden), model.head_softcap());
                let picked = burn::tensor::activation::log_softmax(logits, 1).gather(1, index);
                let values: Vec<f32> = picked.into_data().try_into_vec().expect("f32");
                values.into_iter().map(f64::from).collect()
            }
        };
        all.extend(packed.per_example(&log_probs, part.len()));
    }
    all
}

/// Stretches of examples of at most `most` tokens each; a longer example stands alone.
fn parts<E>(examples: &[E], most: usize, len: impl Fn(&E) -> usize) -> Vec<&[E]> {
    let (mut parts, mut first, mut tokens) = (Vec::new(), 0, 0);
    for (index, example) in examples.iter().enumerate() {
        if index > first && tokens + len(example) > most {
            parts.push(&examples[first..index]);
            (first, tokens) = (index, 0);
        }
        tokens += len(example);
    }
    if first < examples.len() {
        parts.push(&examples[first..]);
    }
    parts
}

/// Examples one after the other on the token axis.
struct Packed {
    tokens: Vec<TokenId>,
    images: Vec<Tensor<2>>,
    segments: Vec<Segment>,
    /// The rows after which something is to be learned, what that is, and of which example.
    rows: Vec<i32>,
    targets: Vec<TokenId>,
    owners: Vec<usize>,
}

impl Packed {
    fn new<'e>(examples: impl IntoIterator<Item = &'e Example>) -> Self {
        let mut packed = Self {
            tokens: Vec::new(),
            images: Vec::new(),
            segments: Vec::new(),
            rows: Vec::new(),
            targets: Vec::new(),
            owners: Vec::new(),
        };
        for (owner, example) in examples.into_iter().enumerate() {
            let first = packed.tokens.len();
            for (row, target) in example.targets().enumerate() {
                if let Some(target) = target {
                    packed.rows.push((first + row) as i32);
                    packed.targets.push(target);
                    packed.owners.push(owner);
                }
            }
            packed.tokens.extend_from_slice(example.inputs());
            packed.images.extend(example.images.iter().cloned());
            if !example.inputs().is_empty() {
                packed.segments.push(example.segment());
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
    fn parts_hold_as_many_whole_examples_as_fit() {
        let split = |lens: &[usize]| parts(lens, 10, |len| *len).iter().map(|part| part.to_vec()).collect::<Vec<_>>();
        assert_eq!(split(&[4, 6, 1, 12, 3]), [vec![4, 6], vec![1], vec![12], vec![3]]);
        assert_eq!(split(&[20]), [[20]]);
        assert!(split(&[]).is_empty());
    }

    #[test]
    fn targets_know_their_rows_and_owners() {
        let first = Example::new(vec![2, 5, 6], vec![false, true, true]);
        let second = Example::new(vec![2, 7, 8, 9], vec![false, false, true, true]);
        let packed = Packed::new([&first, &second]);
        assert_eq!(packed.tokens, [2, 5, 2, 7, 8]);
        assert_eq!(
            (packed.rows.as_slice(), packed.targets.as_slice()),
            ([0, 1, 3, 4].as_slice(), [5, 6, 8, 9].as_slice())
        );
        assert_eq!(packed.per_example(&[1.0, 2.0, 3.0, 4.0], 2), [3.0, 7.0]);
    }
}
