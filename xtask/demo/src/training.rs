//! What the trainings of all demo models share: the device, the tokenizer, a round with its report.

use std::time::Instant;

use anyhow::{Context, Result};
use burn::module::Module;
use burn::tensor::Tensor;
use gemma_backend::{Backend, Device};
use gemma_generate::CausalModel;
use gemma_tokenizer::{Family, Tokenizer};
use gemma_train::{Example, TrainOptions, text_loss, train_with};
use indicatif::{ProgressBar, ProgressStyle};

use crate::bpe::Vocabulary;
use crate::tokenizer_files::tokenizer_files;

/// The device to train on.
///
/// # Errors
/// When it cannot be opened.
pub fn device() -> Result<Device> {
    // flex multiplies fastest of the CPU backends where a weight is used transposed, as in training
    let backend = if Backend::Flex.is_compiled() { Backend::Flex } else { Backend::NdArray };
    Ok(backend.device()?)
}

/// The tokenizer of a vocabulary, by way of the file that is stored.
///
/// # Errors
/// When the file is not that of a tokenizer of the family.
pub fn tokenizer(vocabulary: &Vocabulary, family: Family) -> Result<Tokenizer> {
    Ok(Tokenizer::from_json(&stored_tokenizer(vocabulary)?, family)?)
}

/// The `tokenizer.json` of a vocabulary.
///
/// # Errors
/// Never: it is among the files that are made.
pub fn stored_tokenizer(vocabulary: &Vocabulary) -> Result<Vec<u8>> {
    let mut files = tokenizer_files(vocabulary).into_iter();
    let (_, json) = files.find(|(name, _)| *name == "tokenizer.json").context("the tokenizer's own file")?;
    Ok(json)
}

/// One round of a training, with an optimizer of its own.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// What it is called in the report.
    pub name: &'static str,
    /// Optimizer steps.
    pub steps: usize,
    /// The highest learning rate.
    pub learning_rate: f64,
}

impl Round {
    /// Trains `model` on what `batch` makes for each step, with a progress bar and a line every hundred steps.
    ///
    /// # Errors
    /// When a batch has nothing to learn.
    pub fn run<M: CausalModel + Module + Sync>(&self, model: M, batch: impl FnMut() -> Vec<Example>) -> Result<M> {
        self.run_with(model, batch, text_loss)
    }

    /// [`Round::run`] on examples that carry more than text, with the loss that they have.
    ///
    /// # Errors
    /// As [`Round::run`].
    pub fn run_with<M: Module + Sync, E: AsRef<Example> + Sync>(
        &self,
        model: M,
        mut batch: impl FnMut() -> Vec<E>,
        loss: impl Fn(&M, &[E]) -> Tensor<1> + Sync,
    ) -> Result<M> {
        let Self { name, steps, learning_rate } = *self;
        let options = TrainOptions { steps, parts: 2, learning_rate, ..TrainOptions::default() };
        let pattern = "{prefix} {bar:30} step {pos}/{len}  {msg}  {elapsed} (left: {eta})";
        let style = ProgressStyle::with_template(pattern).context("the bar's pattern")?;
        let bar = ProgressBar::new(steps as u64).with_style(style).with_prefix(name);
        let begin = Instant::now();
        let (mut average, mut tokens) = (f32::NAN, 0);
        let model = train_with(
            model,
            &options,
            |_| batch(),
            loss,
            |step| {
                average = if average.is_nan() { step.loss } else { 0.98 * average + 0.02 * step.loss };
                tokens += step.tokens;
                bar.set_message(format!("loss {average:.4}"));
                bar.inc(1);
                if step.step % 100 == 99 {
                    let rate = tokens as f64 / begin.elapsed().as_secs_f64();
                    println!("{name}: step {} loss {average:.4} ({rate:.0} tokens/s)", step.step + 1);
                }
            },
        )?;
        bar.finish_and_clear();
        Ok(model)
    }
}
