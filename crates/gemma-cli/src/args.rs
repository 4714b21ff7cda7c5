//! Groups of flags that several verbs share; the flags of one verb stand beside it, under `commands/`.
//!
//! Defaults of sampling flags ([`sampling`]) are the library's own, so they cannot drift apart.

mod adapters;
mod form;
mod one_of;
mod sampling;
mod speculative;

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use clap::{ArgGroup, Args, ValueEnum};
use codegemma::{InfillOptions, InfillStop, Order};
use gemma_backend::Backend;
use gemma_model::{ActivationPrecision, CachePrecision, LoadOptions};
use gemma_tokenizer::{ChatTemplate, Family};
use gemma_weights::Precision;

use crate::text;

pub(crate) use adapters::{Adapters, NamedAdapter};
pub(crate) use form::{Constraint, Form};
pub(crate) use one_of::{OneOf, written_format};
pub(crate) use sampling::{Penalties, Sampling, with_breakers};
pub(crate) use speculative::Speculative;

/// Which model, and where and how it computes.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Model")]
pub(crate) struct Model {
    /// A folder with a checkpoint, a GGUF file, or a hub id such as google/gemma-2-2b-it (@REVISION may follow).
    ///
    /// Without it, the built-in demo model is used; demo:FAMILY names that of another family (demo:recurrentgemma).
    #[arg(short, long, value_name = "FOLDER|FILE|ID")]
    pub(crate) model: Option<String>,

    /// The image encoder that lies beside a GGUF file of Gemma 3, for --image, /image, ask and caption.
    #[arg(long, value_name = "FILE", requires = "model")]
    pub(crate) mmproj: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) compute: Compute,

    #[command(flatten)]
    pub(crate) adapters: Adapters,

    /// Use only files that are on this machine already; the same as HF_HUB_OFFLINE=1.
    #[arg(long)]
    pub(crate) offline: bool,

    /// RecurrentGemma: let attention see one key more, as DeepMind's own code counts the sliding window.
    #[arg(long)]
    pub(crate) inclusive_window: bool,
}

impl Model {
    /// How the model is opened with these flags.
    ///
    /// # Errors
    /// When an adapter cannot be opened.
    pub(crate) fn load_options(&self) -> anyhow::Result<LoadOptions> {
        Ok(LoadOptions {
            offline: self.offline,
            inclusive_window: self.inclusive_window,
            image_encoder: self.mmproj.clone(),
            adapters: self.adapters.open()?,
            ..self.compute.load_options()
        })
    }
}

/// Where and how it is computed.
#[derive(Args, Clone, Copy, Debug, Default)]
#[command(next_help_heading = "Model")]
pub(crate) struct Compute {
    /// How weights are kept in memory: f32, bf16, f16, q8_0 (about 8 bits per weight) or q4_0 (about 4 bits).
    ///
    /// Fewer bits are faster and less exact. Without it, weights stay as they are in the file.
    #[arg(short, long, value_name = "FORMAT", value_parser = OneOf::<Precision>::of(Precision::ALL.map(Precision::name)), hide_possible_values = true)]
    pub(crate) precision: Option<Precision>,

    /// What computes: ndarray or flex (CPU), wgpu, vulkan or metal (GPU).
    ///
    /// Without it, the environment variable GEMMA_BACKEND decides, and without that the best one that is compiled
    /// in and has hardware.
    #[arg(short, long, value_name = "NAME", value_parser = OneOf::<Backend>::of(Backend::ALL.map(|backend| backend.name())), hide_possible_values = true)]
    pub(crate) backend: Option<Backend>,

    /// CPU threads to use; all cores without it.
    #[arg(short, long, value_name = "N", value_parser = threads, allow_negative_numbers = true)]
    pub(crate) threads: Option<NonZeroUsize>,

    /// Compute with f32 activations throughout, on the CPU too.
    ///
    /// Without it, decode with quantized weights (all but those of iq1, tq1, tq2 and nvfp4) uses 16-bit integer activations
    /// (relative error about 2e-5), and prefill multiplies in bf16 where the CPU is faster with it (relative error about
    /// 2.5e-3).
    #[arg(long)]
    pub(crate) exact_activations: bool,

    /// Use 8-bit integer activations with quantized weights (those of --exact-activations), where that is faster.
    ///
    /// The relative error of a product is up to 1e-2.
    #[arg(long, conflicts_with = "exact_activations")]
    pub(crate) fast_activations: bool,

    /// Precision of the KV cache: f32, f16 for half the memory, or q8_0 for a quarter.
    #[arg(long, value_name = "PRECISION", default_value = "f32", alias = "cache-type", value_parser = OneOf::<CachePrecision>::of(CachePrecision::ALL.map(CachePrecision::name)), hide_possible_values = true)]
    pub(crate) cache_precision: CachePrecision,

    /// Results that do not depend, to the last bit, on how many requests or rows are computed together.
    ///
    /// Slower where many requests share a call.
    #[arg(long)]
    pub(crate) batch_invariant: bool,
}

impl Compute {
    /// How a model is opened with these flags.
    pub(crate) fn load_options(&self) -> LoadOptions {
        LoadOptions {
            precision: self.precision,
            activations: self.activations(),
            cache: self.cache_precision,
            batch_invariant: self.batch_invariant,
            ..LoadOptions::default()
        }
    }

    /// The precision of activations in products.
    pub(crate) fn activations(&self) -> ActivationPrecision {
        match (self.exact_activations, self.fast_activations) {
            (true, _) => ActivationPrecision::F32,
            (_, true) => ActivationPrecision::Int8,
            _ => ActivationPrecision::default(),
        }
    }
}

/// The most threads that can be asked for: more than any machine has, few enough to start.
const MOST_THREADS: usize = 1_024;

fn threads(text: &str) -> Result<NonZeroUsize, String> {
    at_least_one(text)
        .ok()
        .filter(|count| count.get() <= MOST_THREADS)
        .ok_or_else(|| format!("must be an integer from 1 to {MOST_THREADS}"))
}

pub(crate) fn at_least_one(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "must be an integer from 1".to_owned())
}

/// More tokens than any context holds: an answer ends with the text, or with the context.
const UNLIMITED: usize = 1 << 31;

/// A number of new tokens; -1 is no limit, as llama.cpp and Ollama have it.
pub(crate) fn new_tokens(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) => Ok(count),
        Err(_) if text == "-1" => Ok(UNLIMITED),
        Err(_) => Err("it must be an integer from 0, or -1 for no limit".to_owned()),
    }
}

/// Where the text to read comes from: exactly one of the three.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("source").required(true).args(["prompt", "prompt_file", "tokens_file"]))]
pub(crate) struct Source {
    /// The text itself; `-` reads standard input.
    #[arg(value_name = "PROMPT", allow_hyphen_values = true, value_parser = prompt)]
    pub(crate) prompt: Option<String>,

    /// Read the text from this file; `-` is standard input.
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) prompt_file: Option<PathBuf>,

    /// Read token ids from this file, a JSON array of numbers, exactly as given: nothing is put in front.
    #[arg(long, value_name = "FILE")]
    pub(crate) tokens_file: Option<PathBuf>,

    /// Let texts such as <start_of_turn> in the prompt become the control tokens they name.
    #[arg(long, conflicts_with = "tokens_file")]
    pub(crate) specials: bool,
}

/// A text may begin with a minus sign ("-5 + 3 ="); a mistyped flag is none. Behind `--`, everything is text.
pub(crate) fn prompt(text: &str) -> Result<String, String> {
    let word = text.strip_prefix("--").unwrap_or_default();
    let looks_like_a_flag = word.starts_with(|c: char| c.is_ascii_lowercase()) && !word.contains(char::is_whitespace);
    if looks_like_a_flag && !std::env::args_os().any(|word| word == "--") {
        return Err("there is no such flag; put -- in front of a text that begins so".to_owned());
    }
    Ok(text.to_owned())
}

/// How a conversation becomes a prompt.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Chat format")]
pub(crate) struct ChatFormat {
    /// The system prompt; @FILE reads it from a file.
    ///
    /// Where the model's format has no system turn, it stands in front of the first question.
    #[arg(long, value_name = "TEXT|@FILE")]
    pub(crate) system: Option<String>,

    /// The chat template: `builtin` for Gemma's own format, or a file with a Jinja template; the model's without it.
    #[arg(long, value_name = "builtin|FILE")]
    pub(crate) template: Option<String>,
}

impl ChatFormat {
    /// The system prompt, if there is one.
    ///
    /// # Errors
    /// When their file cannot be read.
    pub(crate) fn system(&self) -> anyhow::Result<Option<String>> {
        self.system
            .as_deref()
            .map(|system| match system.strip_prefix('@') {
                Some(file) => text::read(Path::new(file)),
                None => Ok(system.to_owned()),
            })
            .transpose()
    }

    /// The chat template, if one is named.
    ///
    /// # Errors
    /// When its file cannot be read, or holds a mistake.
    pub(crate) fn template(&self) -> anyhow::Result<Option<ChatTemplate>> {
        Ok(match self.template.as_deref() {
            None => None,
            Some("builtin") => Some(ChatTemplate::builtin()),
            Some(file) => {
                let template = ChatTemplate::from_jinja(&text::read(Path::new(file))?);
                template.check().with_context(|| format!("cannot use {file}"))?;
                Some(template)
            }
        })
    }
}

/// Which CodeGemma, and where and how it computes.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Model")]
pub(crate) struct CodeModel {
    /// A folder with a checkpoint, a GGUF file, or a hub id such as google/codegemma-2b (@REVISION may follow).
    ///
    /// Without it, the built-in demo model for code is used.
    #[arg(short, long, value_name = "FOLDER|FILE|ID")]
    pub(crate) model: Option<String>,

    #[command(flatten)]
    pub(crate) compute: Compute,

    #[command(flatten)]
    pub(crate) adapters: Adapters,

    /// A smaller model with the same vocabulary that drafts tokens, such as google/codegemma-2b for a 7B: a folder, a GGUF file
    /// or a hub id. The text is the same.
    #[arg(long, value_name = "FOLDER|FILE|ID")]
    pub(crate) draft_model: Option<String>,

    /// Use only files that are on this machine already; the same as HF_HUB_OFFLINE=1.
    #[arg(long)]
    pub(crate) offline: bool,

    /// The family whose control tokens the tokenizer has: gemma or codegemma.
    ///
    /// Without it, the name tells. It matters only for tokenizer files that leave the infilling tokens' names out.
    #[arg(long, value_name = "FAMILY")]
    pub(crate) family: Option<Family>,
}

impl CodeModel {
    /// How the model is opened with these flags.
    ///
    /// # Errors
    /// When an adapter cannot be opened.
    pub(crate) fn load_options(&self) -> anyhow::Result<LoadOptions> {
        let speculative = Speculative { draft_model: self.draft_model.clone(), ..Speculative::default() };
        let speculate = speculative.open(&self.compute, self.offline)?;
        let (offline, family, adapters) = (self.offline, self.family, self.adapters.open()?);
        Ok(LoadOptions { offline, family, adapters, speculate, ..self.compute.load_options() })
    }
}

/// The order of the parts in a prompt, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OrderName {
    /// Prefix, suffix, middle: as CodeGemma is documented.
    Psm,
    /// Suffix, prefix, middle: typing on costs only what was typed.
    Spm,
}

impl OrderName {
    pub(crate) fn order(self) -> Order {
        match self {
            Self::Psm => Order::Psm,
            Self::Spm => Order::Spm,
        }
    }
}

/// How far a completion may reach, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StopRuleName {
    /// Until the model stops.
    Free,
    /// One line.
    Line,
    /// The block that the hole lies in.
    Block,
}

impl StopRuleName {
    pub(crate) fn stop_rule(self) -> InfillStop {
        match self {
            Self::Free => InfillStop::Free,
            Self::Line => InfillStop::Line,
            Self::Block => InfillStop::Block,
        }
    }
}

/// How a hole is filled.
#[derive(Args, Debug)]
#[command(next_help_heading = "Filling")]
pub(crate) struct Filling {
    /// Stop after this many new tokens; -1 goes on until the text ends or the context is full.
    #[arg(short = 'n', long, value_name = "N", default_value_t = InfillOptions::default().generate.max_tokens, value_parser = new_tokens, allow_negative_numbers = true)]
    pub(crate) max_tokens: usize,

    /// Sampling temperature: 0 is greedy, which suits code; 1 samples the model's distribution.
    #[arg(long, value_name = "T", default_value_t = InfillOptions::default().generate.temperature, allow_negative_numbers = true)]
    pub(crate) temperature: f32,

    /// The same seed gives the same text at a temperature above 0.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// The order of the parts in the prompt.
    #[arg(long, value_name = "ORDER", default_value = "psm")]
    pub(crate) order: OrderName,

    /// How far the completion may reach: free, one line, or the enclosing block.
    #[arg(long, alias = "extent", value_name = "RULE", default_value = "free")]
    pub(crate) stop_rule: StopRuleName,

    /// Most tokens of the prompt; what does not fit is truncated by lines, the nearest kept. Without it, what the model's
    /// context length leaves.
    #[arg(long, value_name = "N")]
    pub(crate) budget: Option<usize>,

    /// Stop after this many seconds, with the text generated so far.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) time_limit: Option<Duration>,

    /// Switch speculative decoding by prompt lookup off; the text is the same, only slower where code repeats itself.
    #[arg(long)]
    pub(crate) no_lookup: bool,

    #[command(flatten)]
    pub(crate) penalties: Penalties,
}

impl Filling {
    /// The library's options for these flags.
    pub(crate) fn options(&self) -> InfillOptions {
        let mut options = InfillOptions {
            order: self.order.order(),
            stop_rule: self.stop_rule.stop_rule(),
            budget: self.budget,
            time_limit: self.time_limit,
            lookup: !self.no_lookup,
            ..InfillOptions::default()
        };
        options.generate.max_tokens = self.max_tokens;
        options.generate.temperature = self.temperature;
        options.generate.seed = self.seed;
        self.penalties.apply(&mut options.generate);
        options
    }
}

/// A time in seconds, fractions allowed.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.parse::<f64>().ok().filter(|seconds| *seconds > 0.0);
    number
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|time| *time <= Duration::from_secs(86_400))
        .ok_or_else(|| "must be a number of seconds above 0 and at most 86400".to_owned())
}
