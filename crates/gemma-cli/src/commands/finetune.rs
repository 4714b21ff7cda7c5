//! `gemma finetune`: a model learns from a file, and what it has learned becomes an adapter or a model.

mod args;
mod data;

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use gemma_auto::Architecture;
use gemma_generate::TokenId;
use gemma_model::{Blocks, Model, fingerprint, read_chat_template, read_tokenizer};
use gemma_tokenizer::{ChatTemplate, Tokenizer};
use gemma_train::run::{Batches, Data, Keeping, run as train};
use gemma_train::{
    AdamWOptions, Example, Metric, Preference, Schedule, StepReport, TARGETS, Trainer, TrainingOptions, log_probs,
    open_whole, open_with_new_factors,
};
use gemma_weights::{AdapterConfig, Dtype, Targets};
use paligemma::{Image, PaliGemmaConfig, VisionLanguageModel, prompt};
use serde::Serialize;

pub(crate) use self::args::Finetune;
use self::args::{Method, ScheduleName};
use self::data::{ImageLine, Learned, Read};
use crate::{
    interrupt::{self, Ending},
    machine, output, progress,
    session::{self, Found},
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

pub(crate) fn run(args: &Finetune) -> Result<Ending> {
    if !args.model.adapters.adapter.is_empty() {
        bail!("a training adds an adapter of its own; merge the others first (`gemma merge`)");
    }
    let found = session::find(&args.model)?;
    match found.architecture()? {
        Architecture::Gemma => finetune::<gemma::Decoder>(args, &found, &text_only),
        Architecture::Gemma3 => finetune::<gemma3::Gemma3Network>(args, &found, &text_only),
        Architecture::RecurrentGemma => finetune::<recurrentgemma::Griffin>(args, &found, &text_only),
        Architecture::PaliGemma => finetune::<VisionLanguageModel>(args, &found, &image_example),
    }
}

/// What makes an example of a line with an image, by the network that looks at it.
type MakeImageExample<'a, N> = &'a dyn Fn(&N, &Tokenizer, &ImageLine) -> Result<Example>;

fn text_only<N>(_: &N, _: &Tokenizer, line: &ImageLine) -> Result<Example> {
    bail!("{}: this model reads text only; give --model a PaliGemma model", line.image.display())
}

fn image_example(model: &VisionLanguageModel, tokenizer: &Tokenizer, line: &ImageLine) -> Result<Example> {
    let config: &PaliGemmaConfig = gemma_model::Network::config(model);
    let pixels = Image::open(&line.image)?.pixels(config.vision.image_size);
    let images: Vec<Tensor<2>> = model.encode(&[&pixels]).into_iter().map(Tensor::without_autodiff).collect();
    let (tokens, prefix_len): (Vec<TokenId>, usize) =
        prompt::answered(tokenizer, config.image_token, config.image_tokens(), &line.prefix, &line.suffix)?;
    let learn = (0..tokens.len()).map(|place| place >= prefix_len).collect();
    Ok(Example { prefix_len, images, ..Example::new(tokens, learn) })
}

/// What belongs to a training besides its network.
struct Setting<'a> {
    args: &'a Finetune,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    device: Device,
}

impl Setting<'_> {
    fn read(&self, paths: &[std::path::PathBuf]) -> Result<Read> {
        data::read(self.args, &self.tokenizer, &self.template, paths)
    }

    /// The settings of a training of so many steps.
    fn options(&self, steps: usize) -> TrainingOptions {
        let args = self.args;
        TrainingOptions {
            steps,
            learning_rate: args.learning_rate.unwrap_or(if args.method == Method::Full { 2e-5 } else { 2e-4 }),
            warmup: args.warmup.unwrap_or(steps.div_ceil(20)),
            schedule: match args.schedule {
                ScheduleName::Cosine => Schedule::Cosine,
                ScheduleName::Linear => Schedule::Linear,
                ScheduleName::Constant => Schedule::Constant,
            },
            adamw: AdamWOptions { weight_decay: args.weight_decay, ..AdamWOptions::default() },
            clip: (args.clip > 0.0).then_some(args.clip),
            pack_tokens: args.pack.get(),
            ..TrainingOptions::default()
        }
    }

    /// The adapter that is trained.
    fn adapter(&self) -> Result<AdapterConfig> {
        let args = self.args;
        let rank = args.rank.get();
        let names = if args.target.is_empty() { TARGETS.map(str::to_owned).to_vec() } else { args.target.clone() };
        // an image encoder has projections of the same names, which stay as they are
        let names: Vec<String> = names.iter().map(|name| escaped(name)).collect();
        let targets =
            Targets::pattern(&format!(r"(?:.*language_model\.)?(?:model\.)?layers\..*\.(?:{})", names.join("|")))
                .map_err(|fault| anyhow::anyhow!("--target: {fault}"))?;
        Ok(AdapterConfig {
            rank,
            alpha: args.alpha.unwrap_or(2.0 * rank as f64),
            rslora: args.rslora,
            targets,
            rank_pattern: Default::default(),
            alpha_pattern: Default::default(),
            base_model: Some(args.model.model.clone().unwrap_or_else(|| "demo".to_owned())),
        })
    }
}

/// A name as a regular expression for it.
fn escaped(name: &str) -> String {
    name.chars().flat_map(|c| (!c.is_alphanumeric() && c != '_').then_some('\\').into_iter().chain([c])).collect()
}

fn finetune<N: Blocks + Module>(args: &Finetune, found: &Found, make: MakeImageExample<'_, N>) -> Result<Ending> {
    let begin = Instant::now();
    let checkpoint = &*found.inner().checkpoint()?;
    let family = found.inner().family().unwrap_or(N::FAMILY);
    let setting = Setting {
        args,
        tokenizer: read_tokenizer(checkpoint, family)?.context("the model has no tokenizer, which a training needs")?,
        template: read_chat_template(checkpoint)?,
        device: found.device()?,
    };
    let read = setting.read(&args.data)?;
    let evaluated = args.eval.iter().map(|path| Ok((path, setting.read(std::slice::from_ref(path))?)));
    let evaluated: Vec<(&std::path::PathBuf, Read)> = evaluated.collect::<Result<_>>()?;
    let examples = read.learned.len();
    let batches = Batches { examples, batch: args.batch.get(), seed: args.seed };
    let epochs = args.epochs.map_or(1, |epochs| epochs.get());
    let steps = args.steps.map_or_else(|| batches.steps(epochs), |steps| steps.get());
    let options = setting.options(steps);
    let bar = progress::bytes("loading");
    let mut on_load = |done, total| progress::set(&bar, done, total);
    let (config, model): (Option<AdapterConfig>, N) = match args.method {
        Method::Lora => {
            let config = setting.adapter()?;
            let options = found.options();
            let model = open_with_new_factors(checkpoint, options, &config, args.seed, &setting.device, &mut on_load)?;
            (Some(config), model)
        }
        Method::Full => (None, open_whole(checkpoint, found.options(), &setting.device, &mut on_load)?),
    };
    bar.finish_and_clear();
    check_tokens(&model, &read.learned)?;
    let model_digest = fingerprint(&model);
    let mut trainer = Trainer::new(model, options)?;
    let trainable: usize = trainer.values().values().map(|values| values.values.len()).sum();
    let encoder = trainer.trained();
    let make_line = |line: &ImageLine| make(&encoder, &setting.tokenizer, line);
    let images = matches!(read.learned, Learned::Images(_));
    let data = learnable(&trainer, read.learned, args, &make_line)?;
    let run = format!(
        "{:?} {} {:?} seed {} batch {} rslora {} targets {:?} beta {} data {}",
        args.method,
        config.as_ref().map_or(0, |config| config.rank),
        config.as_ref().map(|config| config.alpha),
        args.seed,
        args.batch,
        args.rslora,
        args.target,
        args.beta,
        read.digest
    ) + &format!(" model {model_digest} {options:?}");
    let keeping = Keeping { folder: args.out.clone(), every: args.save_every.get(), adapter: config, run };

    let evaluated = evaluated
        .into_iter()
        .map(|(path, read)| Ok((path.as_path(), learnable(&trainer, read.learned, args, &make_line)?)))
        .collect::<Result<Vec<_>>>()?;
    if args.dry_run {
        return dry_run(args, &trainer, &data, batches, trainable, images);
    }
    if args.steps.is_none() && !args.json {
        output::remark(format_args!("{examples} examples, {steps} steps"));
    }
    let mut metrics = if args.resume && keeping.has_state() {
        keeping.resume(&mut trainer)?
    } else if keeping.has_state() && !args.resume {
        bail!("{} holds a training already; give --resume to go on with it, or another folder", args.out.display());
    } else {
        Vec::new()
    };
    let resumed = trainer.steps();
    if trainer.steps() == 0 {
        evaluate(&trainer, &evaluated, &mut metrics)?;
    }
    let bar = progress::steps(steps, trainer.steps());
    let watch = interrupt::watch();
    let (mut tokens, training) = (0, Instant::now());
    let flow = {
        let mut on_step = |trainer: &Trainer<N>, step: &StepReport, metrics: &mut Vec<Metric>| {
            tokens += step.tokens;
            let rate = tokens as f64 / training.elapsed().as_secs_f64();
            bar.set_message(format!("loss {:.4}, {rate:.0} tokens/s", step.loss));
            bar.inc(1);
            let done = trainer.steps();
            let due = args.eval_every.is_some_and(|every| done.is_multiple_of(every.get())) || done == steps;
            if due && !watch.pressed() {
                evaluate(trainer, &evaluated, metrics)?;
            }
            Ok(if watch.pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        train(&mut trainer, &data, batches, &keeping, &mut metrics, &mut on_step)
    };
    bar.finish_and_clear();
    let flow = match flow {
        Ok(flow) => flow,
        Err(error) if keeping.has_state() => {
            return Err(anyhow::Error::from(error).context(format!(
                "{} keeps the training as it was last saved; go on with --resume",
                args.out.display()
            )));
        }
        Err(error) => return Err(error.into()),
    };
    let interrupted = flow.is_break();
    if args.method == Method::Full && !interrupted {
        let tokenizer = read_tokenizer(checkpoint, family)?;
        save_whole(&trainer, tokenizer.context("the model has a tokenizer")?, &args.out)?;
    }
    let losses = || {
        metrics.iter().filter_map(|metric| match metric {
            Metric::Step { loss, .. } => Some(*loss),
            Metric::Evaluation { .. } => None,
        })
    };
    let seconds = training.elapsed().as_secs_f64();
    let report = Report {
        path: args.out.display().to_string(),
        steps: trainer.steps(),
        examples,
        skipped_lines: read.skipped.len(),
        truncated_examples: read.truncated.0,
        truncated_tokens: read.truncated.1,
        trainable_parameters: trainable,
        first_loss: losses().next(),
        last_loss: losses().next_back(),
        evaluations: metrics.iter().filter(|metric| matches!(metric, Metric::Evaluation { .. })).cloned().collect(),
        seconds: begin.elapsed().as_secs_f64(),
        tokens_per_second: tokens as f64 / seconds,
        peak_rss_bytes: machine::peak_memory(),
        interrupted,
    };
    if args.json {
        output::json(&report)?;
    } else {
        tell(&report, &read.skipped, resumed)?;
    }
    Ok(if interrupted { Ending::Interrupted } else { Ending::Done })
}

/// Refuses data that the model cannot read: tokens beyond its vocabulary, or more of them than its context holds.
fn check_tokens<N: Blocks>(model: &N, learned: &Learned) -> Result<()> {
    let check = |example: &Example| {
        let cause = gemma_generate::check_tokens(model, &example.tokens, None);
        cause.context("an example does not suit the model; --max-length cuts long ones")
    };
    match learned {
        Learned::Examples(examples) => examples.iter().try_for_each(check),
        Learned::Preferences(pairs) => pairs.iter().flat_map(|(a, b)| [a, b]).try_for_each(check),
        // made when they are needed, and checked there
        Learned::Images(_) => Ok(()),
    }
}

/// The data as the trainer takes it.
fn learnable<'a, N: Blocks + Module>(
    trainer: &Trainer<N>,
    learned: Learned,
    args: &Finetune,
    make: &'a dyn Fn(&ImageLine) -> Result<Example>,
) -> Result<Data<'a>> {
    Ok(match learned {
        Learned::Examples(examples) => Data::of(examples),
        Learned::Images(lines) => {
            // one of them is made at once, so that what is wrong with all is said before anything starts
            make(&lines[0])?;
            let count = lines.len();
            let one = move |index: usize| {
                let line: &ImageLine = &lines[index];
                make(line).map_err(|error| gemma_train::Error::Line {
                    path: line.file.clone(),
                    line: line.number,
                    reason: format!("{error:#}"),
                })
            };
            Data::Examples(count, Box::new(one))
        }
        Learned::Preferences(pairs) => {
            // before the first step the model is the reference
            let both: Vec<Example> =
                pairs.iter().flat_map(|(chosen, rejected)| [chosen.clone(), rejected.clone()]).collect();
            let reference = log_probs(&trainer.trained(), &both, args.pack.get());
            let pair = |((chosen, rejected), reference): ((Example, Example), &[f64])| Preference {
                chosen,
                rejected,
                reference: [reference[0], reference[1]],
            };
            Data::Preferences(pairs.into_iter().zip(reference.chunks(2)).map(pair).collect(), args.beta)
        }
    })
}

/// Adds the loss on each file that is not learned to the metrics.
fn evaluate<N: Blocks + Module>(
    trainer: &Trainer<N>,
    evaluated: &[(&Path, Data<'_>)],
    metrics: &mut Vec<Metric>,
) -> Result<(), gemma_train::Error> {
    for (path, data) in evaluated {
        let eval_loss = match data {
            Data::Examples(len, example) => {
                // a few at a time, since examples with images take memory
                let (mut sum, mut count) = (0.0, 0);
                for first in (0..*len).step_by(16) {
                    let some = (first..(first + 16).min(*len)).map(example).collect::<Result<Vec<_>, _>>()?;
                    sum -= trainer.log_probs(&some).iter().sum::<f64>();
                    count += some.iter().map(Example::learned).sum::<usize>();
                }
                sum / count.max(1) as f64
            }
            Data::Preferences(pairs, beta) => trainer.preference_loss(pairs, *beta),
        };
        let (after, file) = (trainer.steps(), path.display().to_string());
        let of_pairs = matches!(data, Data::Preferences(..));
        let perplexity = if of_pairs { String::new() } else { format!(", perplexity {:.3}", eval_loss.exp()) };
        output::remark(format_args!("after step {after}: {file}: loss {eval_loss:.4}{perplexity}"));
        metrics.push(Metric::evaluation(after, file, eval_loss, of_pairs));
    }
    Ok(())
}

/// Seconds of a step that is taken twice to be measured.
const SHORT: f64 = 10.0;

/// Computes the gradients of the longest examples, and says what the training will take.
fn dry_run<N: Blocks + Module>(
    args: &Finetune,
    trainer: &Trainer<N>,
    data: &Data<'_>,
    batches: Batches,
    trainable_parameters: usize,
    images: bool,
) -> Result<Ending> {
    let steps = trainer.options().steps;
    // a part of the data stands for all of it: examples with images are made here, and are about equally long
    let most = if images { batches.batch } else { usize::MAX };
    let mut examples = match data {
        Data::Examples(len, example) => (0..(*len).min(most)).map(example).collect::<Result<Vec<_>, _>>()?,
        Data::Preferences(pairs, _) => {
            pairs.iter().flat_map(|pair| [pair.chosen.clone(), pair.rejected.clone()]).collect()
        }
    };
    let each = if matches!(data, Data::Preferences(..)) { 2 } else { 1 };
    let mean = examples.iter().map(|example| example.inputs().len()).sum::<usize>() as f64 / examples.len() as f64;
    examples.sort_by_key(|example| std::cmp::Reverse(example.tokens.len()));
    examples.truncate(batches.batch * each);
    let longest = examples.iter().map(|example| example.inputs().len()).sum::<usize>() as f64;
    // the first pass reads the weights from the disk and starts threads; a second one is measured where that is soon done
    let measure = || -> Result<f64> {
        let begin = Instant::now();
        trainer.gradients(&examples)?;
        Ok(begin.elapsed().as_secs_f64())
    };
    let first = measure()?;
    let measured = if first < SHORT { measure()? } else { first };
    let seconds_per_step = measured * mean * (batches.batch * each) as f64 / longest.max(1.0);
    // the optimizer keeps two values for each that is trained, and a checkpoint is written from a third
    let optimizer = 12 * trainable_parameters as u64;
    let forecast = Forecast {
        steps,
        examples: data.len(),
        trainable_parameters,
        seconds_per_step,
        seconds: seconds_per_step * steps as f64,
        peak_rss_bytes: machine::peak_memory().map(|bytes| bytes + optimizer),
    };
    if args.json {
        output::json(&forecast)?;
    } else {
        let memory = forecast.peak_rss_bytes.map_or("unknown".to_owned(), output::bytes);
        output::line(format_args!(
            "{} examples, {steps} steps of about {seconds_per_step:.2} s: about {:.0} s; memory at most about {memory}, the \
             model's file included; {} parameters are trained",
            forecast.examples,
            forecast.seconds,
            output::grouped(trainable_parameters as u64)
        ))?;
    }
    Ok(Ending::Done)
}

/// Writes a model whose every parameter was trained into a folder of its own.
fn save_whole<N: Blocks + Module>(trainer: &Trainer<N>, tokenizer: Tokenizer, out: &Path) -> Result<()> {
    let folder = out.join("model");
    Model::from_parts(trainer.trained(), tokenizer).save(&folder, Dtype::Bf16, true)?;
    output::remark(format_args!("the model is in {}", folder.display()));
    Ok(())
}

fn tell(report: &Report, skipped: &[(std::path::PathBuf, usize, String)], resumed: usize) -> Result<()> {
    for (path, line, reason) in skipped.iter().take(5) {
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
