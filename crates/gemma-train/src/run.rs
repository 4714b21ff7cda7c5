//! A whole training: which examples each step reads, when it is evaluated, when it is kept.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::module::Module;
use gemma_model::{BlockStack, Blocks, Encoder};
use gemma_weights::{AdapterConfig, NewFile};

use crate::lora::factors;
use crate::metric::{Evaluation, Metric};
use crate::parallel::check_agreement;
use crate::random::{Random, order};
use crate::text::answers;
use crate::{BatchGradients, Error, Example, Pair, Preference, StepReport, Trainer, curve, events};

/// The file in which a training is kept, to be resumed from.
pub const STATE_FILE: &str = "training_state.safetensors";
/// The file with a line of numbers for each step.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// The same numbers for TensorBoard.
pub const EVENTS_FILE: &str = "events.out.tfevents.0.gemma";
/// The loss over the steps, as an image.
pub const CURVE_FILE: &str = "loss.svg";

/// What a training learns from: so many items, of which each step takes some.
pub trait Learn<M> {
    /// Number of items.
    fn len(&self) -> usize;

    /// Whether there is nothing to learn from.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The loss of this process's share of some items, and its gradient.
    ///
    /// # Errors
    /// When an item cannot be made, or another process is gone.
    fn gradients(&self, trainer: &Trainer<M>, chosen: &[usize]) -> Result<BatchGradients, Error>;

    /// How the model fares on all items, which it does not learn here.
    ///
    /// # Errors
    /// When an item cannot be made, or there is nothing to learn.
    fn evaluate(&self, trainer: &Trainer<M>) -> Result<Evaluation, Error>;
}

/// Data for models of text.
pub enum Data<'a> {
    /// So many examples, each made when it is needed.
    Examples(usize, Box<dyn Fn(usize) -> Result<Example, Error> + 'a>),
    /// Preferences, and how strongly they bind ([`Trainer::preference_step`]).
    Preferences(Vec<Preference>, f64),
}

impl Data<'_> {
    /// Examples that are there.
    pub fn of(examples: Vec<Example>) -> Self {
        Self::Examples(examples.len(), Box::new(move |index| Ok(examples[index].clone())))
    }
}

/// Examples that are evaluated at once, since those with images take memory.
const AT_ONCE: usize = 16;

impl<M: Blocks + Module> Learn<M> for Data<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Examples(len, _) => *len,
            Self::Preferences(pairs, _) => pairs.len(),
        }
    }

    fn gradients(&self, trainer: &Trainer<M>, chosen: &[usize]) -> Result<BatchGradients, Error> {
        let share = &chosen[trainer.share(chosen.len())];
        match self {
            Self::Examples(_, example) => {
                let examples = share.iter().map(|index| example(*index)).collect::<Result<Vec<_>, _>>()?;
                Ok(trainer.text_gradients(&examples))
            }
            Self::Preferences(pairs, beta) => {
                let pairs: Vec<Preference> = share.iter().map(|index| pairs[*index].clone()).collect();
                Ok(trainer.preference_gradients(&pairs, *beta))
            }
        }
    }

    fn evaluate(&self, trainer: &Trainer<M>) -> Result<Evaluation, Error> {
        match self {
            Self::Examples(len, example) => {
                let model = trainer.trained();
                let (mut sum, mut count, mut asked, mut right) = (0.0, 0, 0, 0);
                for first in (0..*len).step_by(AT_ONCE) {
                    let some = (first..(first + AT_ONCE).min(*len)).map(example).collect::<Result<Vec<_>, _>>()?;
                    let answers = answers(&model, &some, trainer.options().pack_tokens);
                    for (example, answer) in some.iter().zip(answers) {
                        sum -= answer.log_prob;
                        count += example.learned();
                        asked += usize::from(example.has_prompt());
                        right += usize::from(example.has_prompt() && answer.greedy);
                    }
                }
                let accuracy = (asked > 0).then(|| right as f64 / asked as f64);
                Ok(Evaluation::of_texts(sum / count.max(1) as f64, accuracy))
            }
            Self::Preferences(pairs, beta) => Ok(Evaluation::of_pairs(trainer.preference_loss(pairs, *beta), None)),
        }
    }
}

/// Pairs for models that embed texts.
#[derive(Clone, Debug)]
pub struct Pairs {
    /// The pairs.
    pub pairs: Vec<Pair>,
    /// What cosines are multiplied by before the softmax ([`Trainer::pair_step`]).
    pub scale: f64,
    /// Pairs of a batch in which they are evaluated.
    pub batch: usize,
}

impl<M: Encoder + Module> Learn<M> for Pairs {
    fn len(&self) -> usize {
        self.pairs.len()
    }

    fn gradients(&self, trainer: &Trainer<M>, chosen: &[usize]) -> Result<BatchGradients, Error> {
        let pairs: Vec<Pair> = chosen.iter().map(|index| self.pairs[*index].clone()).collect();
        trainer.pair_gradients(&pairs, self.scale)
    }

    fn evaluate(&self, trainer: &Trainer<M>) -> Result<Evaluation, Error> {
        let found = trainer.ranking(&self.pairs, self.batch, self.scale)?;
        Ok(Evaluation::of_pairs(found.loss, Some(found.accuracy)))
    }
}

/// Which examples a step reads: all of them once in every epoch, in an order of that epoch. The order follows from the seed
/// and the number of the step alone, so that a resumed training reads on where it stopped.
#[derive(Clone, Copy, Debug)]
pub struct Batches {
    /// Number of examples.
    pub examples: usize,
    /// Examples of a step.
    pub batch: usize,
    /// What the orders follow from.
    pub seed: u64,
}

impl Batches {
    /// The examples of a step.
    pub fn of_step(&self, step: usize) -> Vec<usize> {
        let mut known: Option<(usize, Vec<u32>)> = None;
        (step * self.batch..(step + 1) * self.batch)
            .map(|place| {
                let (epoch, place) = (place / self.examples, place % self.examples);
                if known.as_ref().is_none_or(|(of, _)| *of != epoch) {
                    known = Some((epoch, order(self.examples, &mut Random::of(self.seed, &format!("epoch {epoch}")))));
                }
                known.as_ref().map_or(0, |(_, order)| order[place] as usize)
            })
            .collect()
    }

    /// Steps that `epochs` epochs take, the last one filled up from the next epoch.
    pub fn steps(&self, epochs: usize) -> usize {
        self.examples.saturating_mul(epochs).div_ceil(self.batch)
    }
}

/// Where and when a training is kept.
#[derive(Clone, Debug)]
pub struct Keeping {
    /// The folder that gets everything.
    pub folder: PathBuf,
    /// Steps between two savings.
    pub every: usize,
    /// The configuration of the adapter that is trained; `None`: the whole model is.
    pub adapter: Option<AdapterConfig>,
    /// Describes data and settings; only a training with the same description is resumed.
    pub run: String,
}

impl Keeping {
    fn state(&self) -> PathBuf {
        self.folder.join(STATE_FILE)
    }

    /// Whether there is a training to resume.
    pub fn has_state(&self) -> bool {
        self.state().is_file()
    }

    /// Keeps the training as it stands: what others read first, then the state. A training that is cut short in between
    /// resumes from the state before, and comes to the same again.
    ///
    /// # Errors
    /// When a file cannot be written; each is then as it was.
    pub fn save<M: BlockStack + Module>(&self, trainer: &Trainer<M>, metrics: &[Metric]) -> Result<(), Error> {
        std::fs::create_dir_all(&self.folder)
            .map_err(|cause| gemma_weights::Error::Write { path: self.folder.clone(), cause })?;
        if let Some(config) = &self.adapter {
            gemma_weights::save_adapter(&self.folder, config, factors(trainer), true)?;
        }
        let lines: String =
            metrics.iter().filter_map(|metric| serde_json::to_string(metric).ok()).map(|line| line + "\n").collect();
        replace(&self.folder.join(METRICS_FILE), lines.as_bytes())?;
        events::keep(&self.folder.join(EVENTS_FILE), &events::content(metrics))?;
        replace(&self.folder.join(CURVE_FILE), curve::svg(metrics).as_bytes())?;
        trainer.save_state(&self.state(), &self.run)
    }

    /// Goes on from what was kept; the metrics so far.
    ///
    /// # Errors
    /// As [`Trainer::load_state`].
    pub fn resume<M: BlockStack + Module>(&self, trainer: &mut Trainer<M>) -> Result<Vec<Metric>, Error> {
        trainer.load_state(&self.state(), &self.run)?;
        let text = std::fs::read_to_string(self.folder.join(METRICS_FILE)).unwrap_or_default();
        let before = |metric: &Metric| match metric {
            Metric::Step { step, .. } => *step < trainer.steps(),
            Metric::Evaluation { after, .. } => *after <= trainer.steps(),
        };
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(before).collect())
    }
}

/// Writes a file by way of another one beside it, so that it is there in full or as it was.
fn replace(path: &Path, content: &[u8]) -> Result<(), Error> {
    let mut file = NewFile::open(path)?;
    let failed = |cause| gemma_weights::Error::Write { path: path.to_owned(), cause };
    file.as_file_mut().write_all(content).map_err(failed)?;
    Ok(file.finish()?)
}

/// What hears of every step, may note metrics, and may end the training.
pub type OnStep<'a, M> = dyn FnMut(&Trainer<M>, &StepReport, &mut Vec<Metric>) -> Result<ControlFlow<()>, Error> + 'a;

/// Trains until the last step of the trainer's options. `on_step` hears of every step and may end the training; it is kept
/// every so many steps, at its end, and when it is ended early. Of several processes, the first writes the files.
///
/// # Errors
/// As [`Trainer::step_on`] and [`Keeping::save`]. What was kept last can be resumed from.
pub fn run<M: BlockStack + Module>(
    trainer: &mut Trainer<M>,
    data: &dyn Learn<M>,
    batches: Batches,
    keeping: &Keeping,
    metrics: &mut Vec<Metric>,
    on_step: &mut OnStep<'_, M>,
) -> Result<ControlFlow<()>, Error> {
    let steps = trainer.options().steps;
    let writes = trainer.communicator().rank() == 0;
    check_agreement(trainer.communicator(), &keeping.run, trainer.steps())?;
    while trainer.steps() < steps {
        let chosen = batches.of_step(trainer.steps());
        let report = match trainer.step_on(|trainer| data.gradients(trainer, &chosen)) {
            Ok(report) => report,
            Err(error) => {
                // the other processes end, but the steps before this one were taken by all
                if writes && matches!(error, Error::RankLost { .. } | Error::Interrupted) && trainer.steps() > 0 {
                    keeping.save(trainer, metrics)?;
                }
                return match error {
                    Error::Interrupted => Ok(ControlFlow::Break(())),
                    error => Err(error),
                };
            }
        };
        metrics.push(report.into());
        let flow = on_step(trainer, &report, metrics)?;
        let done = trainer.steps();
        let due = flow.is_break() || done == steps || done.is_multiple_of(keeping.every.max(1));
        if due && writes {
            keeping.save(trainer, metrics)?;
        }
        if flow.is_break() {
            return Ok(flow);
        }
    }
    Ok(ControlFlow::Continue(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_is_read_once_in_an_epoch() {
        let batches = Batches { examples: 10, batch: 4, seed: 7 };
        let read: Vec<usize> = (0..5).flat_map(|step| batches.of_step(step)).collect();
        for epoch in read.chunks(10) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(read[..10], read[10..], "each epoch has its own order");
        assert_eq!((batches.steps(1), batches.steps(2)), (3, 5));
    }
}
