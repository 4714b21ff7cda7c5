//! One optimizer step after the other.
//!
//! A step reads its examples packed on one token axis, forward without recording anything but the inputs of the blocks, and
//! then takes the blocks from the last to the first: each is computed again, this time recorded, and differentiated (Chen
//! et al. 2016, arXiv:1604.06174, with a checkpoint per block). The last one is recorded at once. The memory is that of one
//! block and of the inputs of all.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use burn::module::{Module, ParamId};
use burn::tensor::Tensor;
use gemma_generate::TokenId;
use gemma_model::BlockStack;
use gemma_nn::Segment;

use crate::adamw::norm;
use crate::gradients::{BatchGradients, NamedValues, accumulate, parameters, replaced};
use crate::parallel::{Alone, Communicator, reduce, share_of};
use crate::{AdamW, Error, TrainingOptions};

/// What one optimizer step did.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Which step, counted from 0.
    pub step: usize,
    /// Mean loss of its examples before the step, in nats per token to be learned, or per pair.
    pub loss: f64,
    /// The learning rate used.
    pub learning_rate: f64,
    /// The norm of all gradients together, before it was clipped.
    pub gradient_norm: f64,
    /// Tokens read.
    pub tokens: usize,
    /// What the loss is the mean of: tokens learned, or pairs.
    pub learned: usize,
    /// Time it took, in seconds.
    pub seconds: f64,
}

/// Sequences one after the other on the token axis.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stretch {
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) images: Vec<Tensor<2>>,
    pub(crate) segments: Vec<Segment>,
}

/// A forward pass: the input of each block, and what the last one made.
pub(crate) struct Forward {
    inputs: Vec<Tensor<2>>,
    pub(crate) last: Tensor<2>,
    /// Of the last block, where the pass is to be differentiated at once.
    recorded: Option<RecordedBlock>,
}

/// A block that can be differentiated.
struct RecordedBlock {
    input: Tensor<2>,
    output: Tensor<2>,
}

/// A network in training, with its optimizer.
#[derive(Debug)]
pub struct Trainer<M> {
    model: M,
    ids: BTreeMap<String, ParamId>,
    values: NamedValues,
    trains_table: bool,
    optimizer: AdamW,
    options: TrainingOptions,
    communicator: Arc<dyn Communicator>,
    step: usize,
}

impl<M: BlockStack + Module> Trainer<M> {
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
        let trains_table = model.embed_inputs(&[0], &[]).is_tracked();
        let optimizer = AdamW::new(options.adamw);
        Ok(Self { model, ids, values, trains_table, optimizer, options, communicator: Arc::new(Alone), step: 0 })
    }

    /// The same training, as one of several processes that share each batch ([`Communicator`]).
    #[must_use]
    pub fn with_communicator(self, communicator: Arc<dyn Communicator>) -> Self {
        Self { communicator, ..self }
    }

    /// What connects this process with the others of the training.
    pub fn communicator(&self) -> &dyn Communicator {
        &*self.communicator
    }

    /// Which items of a batch of `len` this process computes.
    pub(crate) fn share(&self, len: usize) -> Range<usize> {
        share_of(len, self.communicator.rank(), self.communicator.size())
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

    /// Puts other values in the place of some of the trainable parameters. The optimizer stays as it is.
    ///
    /// # Panics
    /// When a value is of no trainable parameter, or of another size.
    pub fn set_values(&mut self, values: NamedValues) {
        for (name, values) in values {
            let place = self.values.get_mut(&name).expect("a trainable parameter");
            assert_eq!(place.values.len(), values.values.len(), "{name} has its size");
            place.values = values.values;
        }
        self.update_model();
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

    /// One step against the gradients that `compute` makes of this process's share of a batch.
    ///
    /// # Errors
    /// As `compute`, when the batch has nothing to learn, when the loss is not a finite number, or when another process of
    /// the training is gone; nothing has changed then.
    pub fn step_on(
        &mut self,
        compute: impl FnOnce(&Self) -> Result<BatchGradients, Error>,
    ) -> Result<StepReport, Error> {
        let begin = Instant::now();
        let batch = reduce(&*self.communicator, compute(self)?, &self.values)?;
        let (tokens, learned) = (batch.tokens, batch.count);
        let (loss, gradients) = batch.mean(self.step)?;
        let gradient_norm = norm(&gradients);
        if !loss.is_finite() || !gradient_norm.is_finite() {
            return Err(Error::NotFinite { step: self.step });
        }
        let divisor = self.options.clip.map_or(1.0, |clip| (gradient_norm / clip).max(1.0));
        let learning_rate = self.options.learning_rate_at(self.step);
        self.optimizer.step(&mut self.values, &gradients, divisor as f32, learning_rate);
        drop(gradients);
        self.update_model();
        let seconds = begin.elapsed().as_secs_f64();
        let report = StepReport { step: self.step, loss, learning_rate, gradient_norm, tokens, learned, seconds };
        self.step += 1;
        Ok(report)
    }

    /// Reads a stretch without recording anything.
    pub(crate) fn forward(&self, stretch: &Stretch) -> Forward {
        self.forward_recording(stretch, false)
    }

    /// Reads a stretch whose gradient is asked for next: the last block is recorded.
    pub(crate) fn forward_to_differentiate(&self, stretch: &Stretch) -> Forward {
        self.forward_recording(stretch, true)
    }

    fn forward_recording(&self, stretch: &Stretch, records: bool) -> Forward {
        let plain = self.model.valid();
        let mut x = plain.embed_inputs(&stretch.tokens, &stretch.images);
        let mut inputs = Vec::with_capacity(plain.blocks());
        let unrecorded = plain.blocks() - usize::from(records);
        for block in 0..unrecorded {
            inputs.push(x.clone());
            x = plain.forward_block(block, x, &stretch.segments);
        }
        if !records {
            return Forward { inputs, last: x, recorded: None };
        }
        let recorded = self.record(unrecorded, x, stretch);
        Forward { inputs, last: recorded.output.clone().without_autodiff(), recorded: Some(recorded) }
    }

    /// Computes a block so that it can be differentiated.
    fn record(&self, block: usize, input: Tensor<2>, stretch: &Stretch) -> RecordedBlock {
        let input = if self.hands_on(block) { input.autodiff().require_grad() } else { input.autodiff() };
        let output = self.model.forward_block(block, input.clone(), &stretch.segments);
        RecordedBlock { input, output }
    }

    /// Whether there is something to train below a block.
    fn hands_on(&self, block: usize) -> bool {
        block > 0 || self.trains_table
    }

    /// From the gradient with respect to what the last block made to those of all parameters below, which are added to
    /// `sums`.
    fn backward(&self, forward: Forward, mut upstream: Tensor<2>, stretch: &Stretch, sums: &mut NamedValues) {
        let Forward { inputs, mut recorded, .. } = forward;
        let mut inputs: Vec<Option<Tensor<2>>> = inputs.into_iter().map(Some).collect();
        inputs.extend(recorded.iter().map(|_| None));
        for (block, input) in inputs.into_iter().enumerate().rev() {
            let made = match input {
                Some(input) => self.record(block, input, stretch),
                None => recorded.take().expect("the last block is recorded where its input is not kept"),
            };
            let RecordedBlock { input, output } = made;
            if !output.is_tracked() {
                continue;
            }
            let mut recorded = (output * upstream.clone().autodiff()).sum().backward();
            accumulate(&self.model, &mut recorded, sums);
            if self.hands_on(block) {
                upstream = input.grad_remove(&mut recorded).expect("a leaf that requires a gradient has one");
            }
        }
        if self.trains_table {
            let table = self.model.embed_inputs(&stretch.tokens, &stretch.images);
            let mut recorded = (table * upstream.autodiff()).sum().backward();
            accumulate(&self.model, &mut recorded, sums);
        }
    }
}

impl Forward {
    /// Differentiates what `surrogate` makes of the output of the last block, and then everything below it. The gradients
    /// are added to `sums`.
    pub(crate) fn differentiate<M: BlockStack + Module>(
        self,
        trainer: &Trainer<M>,
        stretch: &Stretch,
        sums: &mut NamedValues,
        surrogate: impl FnOnce(Tensor<2>) -> Tensor<1>,
    ) {
        let x = self.last.clone().autodiff().require_grad();
        let mut recorded = surrogate(x.clone()).backward();
        accumulate(&trainer.model, &mut recorded, sums);
        let upstream = x.grad_remove(&mut recorded).expect("a leaf that requires a gradient has one");
        trainer.backward(self, upstream, stretch, sums);
    }
}

/// Stretches of items of at most `most` tokens each; a longer item stands alone.
pub(crate) fn parts<E>(items: &[E], most: usize, len: impl Fn(&E) -> usize) -> Vec<&[E]> {
    let (mut parts, mut first, mut tokens) = (Vec::new(), 0, 0);
    for (index, item) in items.iter().enumerate() {
        if index > first && tokens + len(item) > most {
            parts.push(&items[first..index]);
            (first, tokens) = (index, 0);
        }
        tokens += len(item);
    }
    if first < items.len() {
        parts.push(&items[first..]);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_hold_as_many_whole_items_as_fit() {
        let split = |lens: &[usize]| parts(lens, 10, |len| *len).iter().map(|part| part.to_vec()).collect::<Vec<_>>();
        assert_eq!(split(&[4, 6, 1, 12, 3]), [vec![4, 6], vec![1], vec![12], vec![3]]);
        assert_eq!(split(&[20]), [[20]]);
        assert!(split(&[]).is_empty());
    }
}
