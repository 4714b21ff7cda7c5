//! The optimizer loop.

use crate::{Error, Example, cross_entropy};
use burn::grad_clipping::GradientClippingConfig;
use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsAccumulator, GradientsParams};
use burn::tensor::Tensor;
use gemma_generate::CausalModel;
use gemma_nn::Segment;
use std::time::Instant;

/// How to train. AdamW (Loshchilov and Hutter, arXiv:1711.05101), a linear warm-up, then a cosine down to a tenth.
#[derive(Clone, Copy, Debug)]
pub struct TrainOptions {
    /// Number of optimizer steps.
    pub steps: usize,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// Steps over which the learning rate rises to it.
    pub warmup: usize,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Largest norm of one parameter's gradient.
    pub clip: f32,
    /// How many parts of a batch are computed at the same time, each on a thread of its own. The result depends on
    /// it only by rounding.
    pub parts: usize,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self { steps: 1000, learning_rate: 3e-3, warmup: 100, weight_decay: 0.01, clip: 1.0, parts: 1 }
    }
}

impl TrainOptions {
    /// The learning rate of a step, counted from 0.
    pub fn learning_rate_at(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.learning_rate * (step + 1) as f64 / self.warmup as f64;
        }
        let done = (step - self.warmup) as f64 / (self.steps.saturating_sub(self.warmup)).max(1) as f64;
        let floor = 0.1;
        self.learning_rate * (floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos()))
    }

    fn check(&self) -> Result<(), Error> {
        let wrong = |name, value: String, expected| Err(Error::Option { name, value, expected });
        if !(self.learning_rate.is_finite() && self.learning_rate > 0.0) {
            return wrong("learning_rate", self.learning_rate.to_string(), "a positive number");
        }
        if !(self.clip.is_finite() && self.clip > 0.0) {
            return wrong("clip", self.clip.to_string(), "a positive number");
        }
        if self.parts == 0 {
            return wrong("parts", "0".into(), "at least 1");
        }
        Ok(())
    }
}

/// What one optimizer step did.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Which step, counted from 0.
    pub step: usize,
    /// Mean loss of its batch before the step, in nats per token.
    pub loss: f32,
    /// The learning rate used.
    pub learning_rate: f64,
    /// Tokens read.
    pub tokens: usize,
    /// Time it took, in seconds.
    pub seconds: f64,
}

/// Trains `model`, whose parameters live on an autodiff device, on the batches that `batch` makes for each step, and
/// returns it.
///
/// # Errors
/// When an option is outside its range or a batch has nothing to learn; the model is lost then.
pub fn train<M: CausalModel + Module + Sync>(
    model: M,
    options: &TrainOptions,
    batch: impl FnMut(usize) -> Vec<Example>,
    report: impl FnMut(&Step),
) -> Result<M, Error> {
    train_with(model, options, batch, text_loss, report)
}

/// [`train`] on examples that carry more than text, such as an image in front of it: `loss` is the mean loss, in nats
/// per token to be learned, of a few examples, `[1]`. It is called on several threads at once.
///
/// # Errors
/// As [`train`].
pub fn train_with<M: Module + Sync, E: AsRef<Example> + Sync>(
    mut model: M,
    options: &TrainOptions,
    mut batch: impl FnMut(usize) -> Vec<E>,
    loss: impl Fn(&M, &[E]) -> Tensor<1> + Sync,
    mut report: impl FnMut(&Step),
) -> Result<M, Error> {
    options.check()?;
    let mut optimizer = AdamWConfig::new()
        .with_beta_2(0.99)
        .with_epsilon(1e-8)
        .with_weight_decay(options.weight_decay)
        .with_grad_clipping(Some(GradientClippingConfig::Norm(options.clip)))
        .init();
    for step in 0..options.steps {
        let begin = Instant::now();
        let examples = batch(step);
        let learned = |examples: &[E]| examples.iter().flat_map(|example| example.as_ref().targets()).flatten().count();
        let total = learned(&examples);
        if total == 0 {
            return Err(Error::EmptyBatch { step });
        }
        let parts: Vec<&[E]> =
            examples.chunks(examples.len().div_ceil(options.parts)).filter(|part| learned(part) > 0).collect();
        // each part gets leaves of its own: two backward passes cannot run at the same time in one graph
        let copies: Vec<M> = parts.iter().map(|_| model.valid().train()).collect();
        let results: Vec<(f32, GradientsParams)> = std::thread::scope(|scope| {
            let threads: Vec<_> = parts
                .iter()
                .zip(&copies)
                .map(|(part, copy)| {
                    let (loss, weight) = (&loss, learned(part) as f32 / total as f32);
                    scope.spawn(move || gradients(copy, loss(copy, part).mul_scalar(weight)))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("a part of the batch was computed")).collect()
        });
        let mut accumulator = GradientsAccumulator::new();
        let mut sum = 0.0;
        for (part_loss, gradients) in results {
            sum += part_loss;
            accumulator.accumulate(&model, gradients);
        }
        let learning_rate = options.learning_rate_at(step);
        model = optimizer.step(learning_rate, model, accumulator.grads());
        let tokens = examples.iter().map(|example| example.as_ref().inputs().len()).sum();
        report(&Step { step, loss: sum, learning_rate, tokens, seconds: begin.elapsed().as_secs_f64() });
    }
    Ok(model)
}

/// The value of a loss and its gradient.
fn gradients<M: Module>(model: &M, loss: Tensor<1>) -> (f32, GradientsParams) {
    let gradients = GradientsParams::from_grads(loss.backward(), model);
    (loss.into_scalar::<f32>(), gradients)
}

/// The mean loss of a few texts, in nats per token to be learned, `[1]`.
pub fn text_loss<M: CausalModel>(model: &M, examples: &[Example]) -> Tensor<1> {
    let tokens: Vec<_> = examples.iter().flat_map(|example| example.inputs().iter().copied()).collect();
    let segments: Vec<_> = examples
        .iter()
        .map(|example| Segment::causal(0, example.inputs().len()))
        .filter(|segment| segment.len > 0)
        .collect();
    let targets: Vec<_> = examples.iter().flat_map(Example::targets).collect();
    cross_entropy(model.uncached_logits(&tokens, &segments), &targets)
}
