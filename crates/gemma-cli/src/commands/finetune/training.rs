//! A training from its first step to its report, whatever the model learns from.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use burn::module::Module;
use gemma_model::BlockStack;
use gemma_train::run::{Batches, Keeping, Learn, run as train};
use gemma_train::{Metric, StepReport, Trainer, plot};
use indicatif::ProgressBar;
use serde::Serialize;

use super::{Finetune, processes};
use crate::{
    interrupt::{self, Ending, Watch},
    machine, new_file, output, progress,
};

/// The JSON object.
#[derive(Serialize)]
struct Report {
    path: String,
    steps: usize,
    examples: usize,
    skipped_lines: usize,
    truncated_examples: usize,
    truncated_tokens: usize,
    trainable_parameters: usize,
    first_loss: Option<f64>,
    last_loss: Option<f64>,
    evaluations: Vec<Metric>,
    seconds: f64,
    tokens_per_second: f64,
    peak_rss_bytes: Option<u64>,
    interrupted: bool,
}

/// The JSON object of a dry run.
#[derive(Serialize)]
struct Forecast {
    steps: usize,
    examples: usize,
    trainable_parameters: usize,
    seconds_per_step: f64,
    seconds: f64,
    peak_rss_bytes: Option<u64>,
}

/// What was left out of the data.
#[derive(Default)]
pub(super) struct LeftOut {
    /// File, line and reason.
    pub(super) skipped: Vec<(PathBuf, usize, String)>,
    /// Examples that were cut, and tokens that were cut off.
    pub(super) truncated: (usize, usize),
    /// What else there is to say.
    pub(super) remarks: Vec<String>,
}

/// A training that is ready to begin.
pub(super) struct Job<'a, M> {
    pub(super) args: &'a Finetune,
    pub(super) begin: Instant,
    pub(super) trainer: Trainer<M>,
    pub(super) data: &'a dyn Learn<M>,
    /// Tokens of each item; `None` where they are about equally long.
    pub(super) sizes: Option<Vec<usize>>,
    pub(super) batches: Batches,
    /// Data that is not learned.
    pub(super) evaluated: Vec<(&'a Path, &'a dyn Learn<M>)>,
    pub(super) keeping: Keeping,
    pub(super) left_out: LeftOut,
}

impl<M: BlockStack + Module> Job<'_, M> {
    /// Trains to the end, and reports; what was trained, unless it was interrupted or a dry run.
    pub(super) fn run(mut self) -> Result<(Option<Trainer<M>>, Ending)> {
        if self.args.dry_run {
            self.dry_run()?;
            return Ok((None, Ending::Done));
        }
        let (args, steps) = (self.args, self.trainer.options().steps);
        let watch = interrupt::watch();
        if args.mpi {
            self.trainer = self.trainer.with_communicator(processes::join(watch.flag())?);
        } else {
            processes::refuse_unasked()?;
        }
        let first = self.trainer.communicator().rank() == 0;
        if !first {
            // the first process speaks for all
            self.evaluated.clear();
        }
        if first && args.steps.is_none() && !args.json {
            output::remark(format_args!("{} examples, {steps} steps", self.batches.examples));
        }
        // one training writes into the folder at a time
        let _alone = if first { new_file::folder_alone(&args.out)? } else { None };
        let mut metrics = if args.resume && self.keeping.has_state() {
            self.keeping.resume(&mut self.trainer)?
        } else if self.keeping.has_state() && !args.resume {
            bail!("{} holds a training already; give --resume to go on with it, or another folder", args.out.display());
        } else {
            Vec::new()
        };
        let resumed = self.trainer.steps();
        if first && resumed > 0 && resumed < steps {
            let rate = self.trainer.options().learning_rate_at(resumed);
            output::remark(format_args!("going on at step {resumed} of {steps}, with a learning rate of {rate:.2e}"));
        }
        if resumed == 0 {
            evaluate(&self.trainer, &self.evaluated, &mut metrics)?;
        }
        let begin = Instant::now();
        let (flow, tokens) = self.steps(&mut metrics, &watch);
        let interrupted = match flow {
            Ok(flow) => flow.is_break(),
            Err(error) if self.keeping.has_state() => {
                return Err(anyhow::Error::from(error).context(format!(
                    "{} keeps the training as it was last saved; go on with --resume",
                    args.out.display()
                )));
            }
            Err(error) => return Err(error.into()),
        };
        if interrupted && args.mpi {
            output::complain("interrupted, or another process is gone; start all processes again with --resume");
        } else {
            self.trainer.communicator().finish();
        }
        let tokens_per_second = tokens as f64 / begin.elapsed().as_secs_f64();
        if first {
            self.report(metrics, resumed, tokens_per_second, interrupted)?;
        }
        Ok(if interrupted { (None, Ending::Interrupted) } else { (Some(self.trainer), Ending::Done) })
    }

    /// Takes the steps; how that ended, and the tokens that were read.
    fn steps(
        &mut self,
        metrics: &mut Vec<Metric>,
        watch: &Watch,
    ) -> (Result<ControlFlow<()>, gemma_train::Error>, usize) {
        let (args, steps, evaluated) = (self.args, self.trainer.options().steps, &self.evaluated);
        let first = self.trainer.communicator().rank() == 0;
        let bar = if first { progress::steps(steps, self.trainer.steps()) } else { ProgressBar::hidden() };
        let (mut tokens, begin) = (0, Instant::now());
        let mut on_step = |trainer: &Trainer<M>, step: &StepReport, metrics: &mut Vec<Metric>| {
            tokens += step.tokens;
            let rate = tokens as f64 / begin.elapsed().as_secs_f64();
            bar.set_message(format!("loss {:.4}, {rate:.0} tokens/s", step.loss));
            bar.inc(1);
            let done = trainer.steps();
            let due = args.eval_every.is_some_and(|every| done.is_multiple_of(every.get())) || done == steps;
            if due && !watch.pressed() {
                evaluate(trainer, evaluated, metrics)?;
            }
            Ok(if watch.pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        let flow = train(&mut self.trainer, self.data, self.batches, &self.keeping, metrics, &mut on_step);
        bar.finish_and_clear();
        (flow, tokens)
    }

    fn report(&self, metrics: Vec<Metric>, resumed: usize, tokens_per_second: f64, interrupted: bool) -> Result<()> {
        let losses = || {
            metrics.iter().filter_map(|metric| match metric {
                Metric::Step { loss, .. } => Some(*loss),
                Metric::Evaluation { .. } => None,
            })
        };
        let report = Report {
            path: self.args.out.display().to_string(),
            steps: self.trainer.steps(),
            examples: self.batches.examples,
            skipped_lines: self.left_out.skipped.len(),
            truncated_examples: self.left_out.truncated.0,
            truncated_tokens: self.left_out.truncated.1,
            trainable_parameters: trainable(&self.trainer),
            first_loss: losses().next(),
            last_loss: losses().next_back(),
            evaluations: metrics.iter().filter(|metric| matches!(metric, Metric::Evaluation { .. })).cloned().collect(),
            seconds: self.begin.elapsed().as_secs_f64(),
            tokens_per_second,
            peak_rss_bytes: machine::peak_memory(),
            interrupted,
        };
        if self.args.json {
            return output::json(&report);
        }
        output::remark(plot(&metrics).trim_end());
        tell(&report, &self.left_out, resumed)
    }

    /// Computes the gradients of the longest examples, and says what the training will take.
    fn dry_run(&self) -> Result<()> {
        let batch = self.batches.batch;
        let mut longest: Vec<usize> = (0..self.batches.examples).collect();
        // how much shorter an average batch is
        let mut part = 1.0;
        if let Some(sizes) = &self.sizes {
            longest.sort_by_key(|index| std::cmp::Reverse(sizes[*index]));
            let mean = sizes.iter().sum::<usize>() as f64 / sizes.len() as f64;
            let tokens: usize = longest.iter().take(batch).map(|index| sizes[*index]).sum();
            part = mean * batch as f64 / (tokens as f64).max(1.0);
        }
        longest.truncate(batch);
        // the first pass reads the weights from the disk and starts threads; a second one is measured where that is soon
        // done
        let measure = || -> Result<f64> {
            let begin = Instant::now();
            self.data.gradients(&self.trainer, &longest)?;
            Ok(begin.elapsed().as_secs_f64())
        };
        let first = measure()?;
        let measured = if first < SHORT { measure()? } else { first };
        let seconds_per_step = measured * part;
        let (steps, trainable_parameters) = (self.trainer.options().steps, trainable(&self.trainer));
        // the optimizer keeps two values for each that is trained, and a checkpoint is written from a third
        let optimizer = 12 * trainable_parameters as u64;
        let forecast = Forecast {
            steps,
            examples: self.batches.examples,
            trainable_parameters,
            seconds_per_step,
            seconds: seconds_per_step * steps as f64,
            peak_rss_bytes: machine::peak_memory().map(|bytes| bytes + optimizer),
        };
        if self.args.json {
            return output::json(&forecast);
        }
        let memory = forecast.peak_rss_bytes.map_or("unknown".to_owned(), output::bytes);
        output::line(format_args!(
            "{} examples, {steps} steps of about {seconds_per_step:.2} s: about {:.0} s; memory at most about {memory}, the \
             model's file included; {} parameters are trained",
            forecast.examples,
            forecast.seconds,
            output::grouped(trainable_parameters as u64)
        ))
    }
}

/// Seconds of a step that is taken twice to be measured.
const SHORT: f64 = 10.0;

fn trainable<M: BlockStack + Module>(trainer: &Trainer<M>) -> usize {
    trainer.values().values().map(|values| values.values.len()).sum()
}

/// Adds how the model fares on each file that is not learned to the metrics.
fn evaluate<M: BlockStack + Module>(
    trainer: &Trainer<M>,
    evaluated: &[(&Path, &dyn Learn<M>)],
    metrics: &mut Vec<Metric>,
) -> Result<(), gemma_train::Error> {
    for (path, data) in evaluated {
        let found = data.evaluate(trainer)?;
        let (after, file) = (trainer.steps(), path.display().to_string());
        let perplexity = found.perplexity.map(|value| format!(", perplexity {value:.3}")).unwrap_or_default();
        let accuracy = found.accuracy.map(|part| format!(", {:.1} % right", 100.0 * part)).unwrap_or_default();
        output::remark(format_args!("after step {after}: {file}: loss {:.4}{perplexity}{accuracy}", found.loss));
        metrics.push(Metric::evaluation(after, file, found));
    }
    Ok(())
}

fn tell(report: &Report, left_out: &LeftOut, resumed: usize) -> Result<()> {
    left_out.remarks.iter().for_each(output::complain);
    for (path, line, reason) in left_out.skipped.iter().take(5) {
        output::complain(format_args!("skipped {}: line {line}: {reason}", path.display()));
    }
    if report.skipped_lines > 0 {
        output::complain(format_args!("lines skipped in all: {}", report.skipped_lines));
    }
    if report.truncated_examples > 0 {
        output::complain(format_args!(
            "examples truncated to --max-length: {}, by {} tokens in all",
            report.truncated_examples, report.truncated_tokens
        ));
    }
    let loss = |loss: Option<f64>| loss.map_or("none".to_owned(), |loss| format!("{loss:.4}"));
    output::line(format_args!(
        "{}: {} steps{}, loss {} to {}, {:.0} tokens/s",
        report.path,
        report.steps,
        if resumed > 0 { format!(" (resumed after {resumed})") } else { String::new() },
        loss(report.first_loss),
        loss(report.last_loss),
        report.tokens_per_second
    ))
}
