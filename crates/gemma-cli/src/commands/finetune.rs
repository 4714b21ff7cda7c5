//! `gemma finetune`: a model learns from a file, and what it has learned becomes an adapter or a model.

mod args;
mod data;
mod embedding;
mod processes;
mod training;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use gemma_auto::Architecture;
use gemma_generate::TokenId;
use gemma_model::{Blocks, Model, fingerprint, read_chat_template, read_tokenizer};
use gemma_tokenizer::{ChatTemplate, Tokenizer};
use gemma_train::run::{Batches, Data, Keeping};
use gemma_train::{
    AdamWOptions, Example, Preference, STEPS_SETTING, Schedule, TARGETS, Trainer, TrainingOptions, log_probs,
    open_whole, open_with_new_factors,
};
use gemma_weights::{AdapterConfig, Dtype, Targets};
use paligemma::{Image, PaliGemmaConfig, VisionLanguageModel, prompt};

pub(crate) use self::args::Finetune;
use self::args::{Method, ScheduleName};
use self::data::{ImageLine, Learned, Read};
use self::training::Job;
use crate::{
    interrupt::Ending,
    new_file::refuse_dash,
    output, progress,
    session::{self, Found},
};

pub(crate) fn run(args: &Finetune) -> Result<Ending> {
    if !args.model.adapters.adapter.is_empty() {
        bail!("a training adds an adapter of its own; merge the others first (`gemma merge`)");
    }
    refuse_dash(&args.out)?;
    let found = session::find(&args.model)?;
    if found.inner().is_embedding()? {
        return embedding::finetune(args, &found);
    }
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
    fn read(&self, paths: &[PathBuf]) -> Result<Read> {
        data::read(self.args, &self.tokenizer, &self.template, paths)
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
    let evaluated = args.eval.iter().map(|path| setting.read(std::slice::from_ref(path)));
    let evaluated: Vec<Read> = evaluated.collect::<Result<_>>()?;
    let batches = batches(args, read.learned.len(), TEXTS);
    let options = options(args, batches);
    let bar = progress::bytes("loading");
    let mut on_load = |done, total| progress::set(&bar, done, total);
    let (config, model): (Option<AdapterConfig>, N) = match args.method {
        Method::Lora => {
            let config = adapter(args, false)?;
            let options = found.options();
            let model = open_with_new_factors(checkpoint, options, &config, args.seed, &setting.device, &mut on_load)?;
            (Some(config), model)
        }
        Method::Full => (None, open_whole(checkpoint, found.options(), &setting.device, &mut on_load)?),
    };
    bar.finish_and_clear();
    check_tokens(&model, &read.learned)?;
    let keeping = keeping(args, config, batches.batch, &read.digest, &fingerprint(&model), &options);
    let trainer = Trainer::new(model, options)?;
    let encoder = trainer.trained();
    let make_line = |line: &ImageLine| make(&encoder, &setting.tokenizer, line);
    let sizes = read.learned.sizes();
    let data = learnable(&trainer, read.learned, args, &make_line)?;
    let evaluated = evaluated.into_iter().map(|read| learnable(&trainer, read.learned, args, &make_line));
    let evaluated: Vec<Data<'_>> = evaluated.collect::<Result<_>>()?;
    let evaluated = args.eval.iter().zip(&evaluated).map(|(path, data)| (path.as_path(), data as _)).collect();
    let left_out = read.left_out;
    let job = Job { args, begin, trainer, data: &data, sizes, batches, evaluated, keeping, left_out };
    let (trained, ending) = job.run()?;
    if let (Some(trainer), Method::Full) = (trained, args.method) {
        let tokenizer = read_tokenizer(checkpoint, family)?;
        save_whole(&trainer, tokenizer.context("the model has a tokenizer")?, &args.out)?;
    }
    Ok(ending)
}

/// Examples of a step where --batch does not say: of texts, and of pairs, which are compared with each other.
const TEXTS: usize = 4;
const PAIRS: usize = 32;

/// Which examples the steps read.
fn batches(args: &Finetune, examples: usize, default: usize) -> Batches {
    Batches { examples, batch: args.batch.map_or(default, NonZeroUsize::get), seed: args.seed }
}

/// The settings of a training.
fn options(args: &Finetune, batches: Batches) -> TrainingOptions {
    let epochs = args.epochs.map_or(1, NonZeroUsize::get);
    let steps = args.steps.map_or_else(|| batches.steps(epochs), NonZeroUsize::get);
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
fn adapter(args: &Finetune, of_encoder: bool) -> Result<AdapterConfig> {
    let rank = args.rank.get();
    let names = if args.target.is_empty() { TARGETS.map(str::to_owned).to_vec() } else { args.target.clone() };
    // an image encoder has projections of the same names, which stay as they are
    let names: Vec<String> = names.iter().map(|name| escaped(name)).collect();
    let targets = Targets::pattern(&format!(r"(?:.*language_model\.)?(?:model\.)?layers\..*\.(?:{})", names.join("|")))
        .map_err(|fault| anyhow::anyhow!("--target: {fault}"))?;
    Ok(AdapterConfig {
        rank,
        alpha: args.alpha.unwrap_or(2.0 * rank as f64),
        rslora: args.rslora,
        targets,
        rank_pattern: Default::default(),
        alpha_pattern: Default::default(),
        base_model: Some(args.model.model.clone().unwrap_or_else(|| "demo".to_owned())),
        of_encoder,
    })
}

/// Where the training is kept, and what tells it from others.
fn keeping(
    args: &Finetune,
    config: Option<AdapterConfig>,
    batch: usize,
    data: &str,
    model: &str,
    options: &TrainingOptions,
) -> Keeping {
    // what is not given follows from the number of steps, which may grow
    let warmup = args.warmup.map_or("a twentieth of the steps".to_owned(), |steps| steps.to_string());
    let targets = if args.target.is_empty() { "all".to_owned() } else { args.target.join(",") };
    let settings: [(&str, String); 17] = [
        (STEPS_SETTING, options.steps.to_string()),
        ("--method", format!("{:?}", args.method).to_lowercase()),
        ("--rank", config.as_ref().map_or(0, |config| config.rank).to_string()),
        ("--alpha", config.as_ref().map_or(0.0, |config| config.alpha).to_string()),
        ("--rslora", args.rslora.to_string()),
        ("--target", targets),
        ("--seed", args.seed.to_string()),
        ("--batch", batch.to_string()),
        ("--learning-rate", options.learning_rate.to_string()),
        ("--warmup", warmup),
        ("--schedule", format!("{:?}", options.schedule).to_lowercase()),
        ("--weight-decay", options.adamw.weight_decay.to_string()),
        ("--clip", args.clip.to_string()),
        ("--pack", options.pack_tokens.to_string()),
        ("--beta and --scale", format!("{} and {}", args.beta, args.scale)),
        ("the data", data.to_owned()),
        ("the model", model.to_owned()),
    ];
    let run = settings.map(|(name, value)| format!("{name}: {value}")).join("\n");
    Keeping { folder: args.out.clone(), every: args.save_every.get(), adapter: config, run }
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
                make(line).map_err(|error| gemma_train::Error::Item {
                    path: line.file.clone(),
                    item: line.item.clone(),
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

/// Writes a model whose every parameter was trained into a folder of its own.
fn save_whole<N: Blocks + Module>(trainer: &Trainer<N>, tokenizer: Tokenizer, out: &Path) -> Result<()> {
    let folder = out.join("model");
    Model::from_parts(trainer.trained(), tokenizer).save(&folder, Dtype::Bf16, true)?;
    output::remark(format_args!("the model is in {}", folder.display()));
    Ok(())
}
