//! What can be typed after `gemma`: the verbs, their flags and the help that teaches them.
//!
//! Defaults of sampling flags are the library's own (`GenerateOptions::default()`), so they cannot drift apart.

pub(crate) mod images;

use std::{num::NonZeroUsize, path::PathBuf};

use clap::{ArgGroup, Args, Parser, Subcommand};
use gemma_backend::Backend;
use gemma_generate::GenerateOptions;
use gemma_model::{ActivationPrecision, CachePrecision, ComputePrecision};
use gemma_tokenizer::Family;
use gemma_weights::{Format, Precision};

mod code;

pub(crate) use code::{CodeModel, Eval, EvalTask, Infill, Lsp};

/// Gemma language models on your own machine.
#[derive(Debug, Parser)]
#[command(
    name = "gemma",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "\
Without --model, every verb uses a tiny model that is built into the program: no download, no files.

Start here:
  gemma generate \"Once upon a time\"             continue a text
  gemma chat                                    talk
  gemma caption models/paligemma/demo/images  describe images
  gemma infill main.py --at 12:5                fill a gap in a program
  gemma models                                  what there is to download, and what fits this machine
  gemma pull google/gemma-2-2b-it               download it (after accepting its licence on the hub)
  gemma chat --model google/gemma-2-2b-it       talk to it

`gemma VERB --help` explains a verb and gives examples."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Generate(Generate),
    Chat(Chat),
    Caption(images::Caption),
    Ask(images::Ask),
    Detect(images::Detect),
    Segment(images::Segment),
    Tokenize(Tokenize),
    Logits(Logits),
    Score(Score),
    Inspect(Inspect),
    Models(Models),
    Pull(Pull),
    Convert(Convert),
    Bench(Bench),
    Infill(Infill),
    Lsp(Lsp),
    Eval(Eval),
}

impl Verb {
    /// How this verb computes, if it does.
    pub(crate) fn compute(&self) -> Option<&Compute> {
        match self {
            Self::Generate(args) => Some(&args.model.compute),
            Self::Chat(args) => Some(&args.model.compute),
            Self::Caption(args) => Some(&args.images.model.compute),
            Self::Ask(args) => Some(&args.images.model.compute),
            Self::Detect(args) => Some(&args.images.model.compute),
            Self::Segment(args) => Some(&args.images.model.compute),
            Self::Logits(args) => Some(&args.model.compute),
            Self::Score(args) => Some(&args.model.compute),
            Self::Bench(args) => Some(&args.compute),
            Self::Infill(args) => Some(&args.model.compute),
            Self::Lsp(args) => Some(&args.model.compute),
            Self::Eval(Eval { task: EvalTask::Infilling(args) }) => Some(&args.model.compute),
            Self::Tokenize(_) | Self::Inspect(_) | Self::Models(_) | Self::Pull(_) | Self::Convert(_) => None,
        }
    }
}

/// Which model, and where and how it computes.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Model")]
pub(crate) struct Model {
    /// A folder with a checkpoint, a GGUF file, or a hub id such as google/gemma-2-2b-it (@REVISION may follow).
    ///
    /// Without it, the built-in demo model is used; demo:FAMILY names that of another family (demo:recurrentgemma).
    #[arg(short, long, value_name = "FOLDER|FILE|ID")]
    pub(crate) model: Option<String>,

    #[command(flatten)]
    pub(crate) compute: Compute,

    /// Use only files that are on this machine already; the same as HF_HUB_OFFLINE=1.
    #[arg(long)]
    pub(crate) offline: bool,

    /// RecurrentGemma: let attention see one key more, as DeepMind's own code reads the window's size.
    #[arg(long)]
    pub(crate) inclusive_window: bool,
}

/// Where and how it is computed.
#[derive(Args, Clone, Copy, Debug, Default)]
#[command(next_help_heading = "Model")]
pub(crate) struct Compute {
    /// How weights are kept in memory: f32, bf16, f16, q8_0 (about 8 bits per weight) or q4_0 (about 4 bits).
    ///
    /// Smaller is faster and a little less exact. Without it, weights stay as they are in the file.
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) precision: Option<Precision>,

    /// What computes: ndarray or flex (CPU), wgpu, vulkan or metal (graphics).
    ///
    /// Without it, the environment variable GEMMA_BACKEND decides, and without that the best one that is compiled
    /// in and has hardware.
    #[arg(short, long, value_name = "NAME")]
    pub(crate) backend: Option<Backend>,

    /// CPU threads to use; all cores without it.
    #[arg(short, long, value_name = "N", value_parser = threads, allow_negative_numbers = true)]
    pub(crate) threads: Option<NonZeroUsize>,

    /// Compute with f32 activations throughout, on the CPU too.
    ///
    /// Without it, products with quantized weights (q8_0, q4_0 and, where the CPU has AVX-512 VNNI, q4_k, q5_k and q6_k)
    /// represent them by 16-bit integers, wrong by about a fifty-thousandth, and prompts, their attention included,
    /// are multiplied in bf16 where the CPU is faster with it, wrong by about a four-hundredth.
    #[arg(long)]
    pub(crate) exact_activations: bool,

    /// Represent activations by 8 bits with quantized weights (those of --exact-activations), where that is faster.
    ///
    /// Each product is then wrong by up to a hundredth.
    #[arg(long, conflicts_with = "exact_activations")]
    pub(crate) fast_activations: bool,

    /// In how many bits keys and values are kept: f32, or f16 for half the memory.
    #[arg(long, value_name = "PRECISION", default_value = "f32")]
    pub(crate) cache_precision: CachePrecision,
}

impl Compute {
    /// How finely models compute.
    pub(crate) fn compute_precision(&self) -> ComputePrecision {
        ComputePrecision { activations: self.activations(), cache: self.cache_precision }
    }

    /// How finely products represent activations.
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

fn at_least_one(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "must be an integer from 1".to_owned())
}

/// How the next token is chosen, and when to stop.
#[derive(Args, Debug)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct Sampling {
    /// Stop after this many new tokens.
    #[arg(short = 'n', long, value_name = "N", default_value_t = GenerateOptions::default().max_tokens, allow_negative_numbers = true)]
    pub(crate) max_tokens: usize,

    /// 0 always takes the likeliest token; 1 follows the model's odds; more is wilder.
    #[arg(long, value_name = "T", default_value_t = GenerateOptions::default().temperature, allow_negative_numbers = true)]
    pub(crate) temperature: f32,

    /// Choose among the K likeliest tokens only; 0 switches this off.
    #[arg(long, value_name = "K", default_value_t = GenerateOptions::default().top_k.unwrap_or(0), allow_negative_numbers = true)]
    pub(crate) top_k: usize,

    /// Choose among the fewest tokens whose odds add up to P; 1 switches this off.
    #[arg(long, value_name = "P", default_value_t = GenerateOptions::default().top_p.unwrap_or(1.0), allow_negative_numbers = true)]
    pub(crate) top_p: f32,

    /// Leave out tokens less likely than P times the likeliest one; off without it.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) min_p: Option<f32>,

    /// Make tokens that occurred already less likely; 1 is off, which suits Gemma best.
    #[arg(long, value_name = "R", default_value_t = GenerateOptions::default().repetition_penalty, allow_negative_numbers = true)]
    pub(crate) repetition_penalty: f32,

    /// The same seed and the same prompt give the same text; without it every run differs.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// Stop before this text would appear; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,

    /// Go on past the tokens that end an answer.
    #[arg(long)]
    pub(crate) ignore_eos: bool,
}

impl Sampling {
    /// The library's options for these flags.
    pub(crate) fn options(&self) -> GenerateOptions {
        GenerateOptions {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_k: (self.top_k > 0).then_some(self.top_k),
            top_p: (self.top_p != 1.0).then_some(self.top_p),
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            ..GenerateOptions::default()
        }
    }
}

/// Where the text to read comes from: exactly one of the three.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("source").required(true).args(["prompt", "prompt_file", "tokens_file"]))]
pub(crate) struct Source {
    /// The text itself; `-` reads standard input.
    #[arg(value_name = "PROMPT")]
    pub(crate) prompt: Option<String>,

    /// Read the text from this file; `-` is standard input.
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) prompt_file: Option<PathBuf>,

    /// Read token ids from this file, a JSON array of numbers, exactly as given: nothing is put in front.
    #[arg(long, value_name = "FILE")]
    pub(crate) tokens_file: Option<PathBuf>,
}

/// Continue a text.
///
/// The text is continued as it stands, by instruction-tuned models too; --chat puts it as a question instead.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma generate \"Once upon a time\"
  gemma generate --max-tokens 40 --temperature 0 \"The capital of France is\"
  gemma generate --model google/gemma-2-2b-it --chat \"Why is the sky blue?\"
  git diff | gemma generate --model google/gemma-2-9b-it --precision q8_0 --chat -f -
  gemma generate --tokens-file ids.json --temperature 0 --ignore-eos --json
  gemma generate --image models/paligemma/demo/images/shapes1.png --temperature 0 \"caption en\"
  gemma generate --model DIR -f book.txt --max-tokens 1 --save-state book.state
  gemma generate --model DIR --load-state book.state \"In short,\"

--json prints one object when done: tokens (the new ids), text, finish_reason (stop, stop_text, length,
context_full or cancelled), prompt_tokens, seed (which gives the same text again) and timings, in seconds and
tokens per second.
Ctrl-C ends the text early with exit code 130.")]
pub(crate) struct Generate {
    #[command(flatten)]
    pub(crate) source: Source,

    /// An image that the text is about; may be given several times. For PaliGemma.
    ///
    /// Token ids from --tokens-file must hold the image tokens of each image.
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Vec<PathBuf>,

    /// Put the text as one question in the model's chat format and print its answer.
    #[arg(long, conflicts_with_all = ["tokens_file", "image"])]
    pub(crate) chat: bool,

    /// Print one JSON object at the end instead of the text as it appears.
    #[arg(long)]
    pub(crate) json: bool,

    /// Go on from a state that --save-state kept: nothing is read again, and the prompt (which may be empty) follows
    /// what was read.
    #[arg(long, value_name = "FILE")]
    pub(crate) load_state: Option<PathBuf>,

    /// Keep what the model remembers at the end of the text, for --load-state with the same model.
    #[arg(long, value_name = "FILE")]
    pub(crate) save_state: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) model: Model,

    #[command(flatten)]
    pub(crate) sampling: Sampling,
}

/// Talk with a model that remembers the conversation.
///
/// Every turn reads only what is new. Ctrl-C stops an answer, Ctrl-D leaves. When standard input is not a terminal,
/// each of its lines is a turn.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma chat
  gemma chat --model google/gemma-2-2b-it --temperature 0.7
  printf 'What is 2 plus 3?\\nAnd plus 1?\\n' | gemma chat --temperature 0

In the conversation, /help lists the commands: /reset, /undo, /save FILE, /stats, /exit.")]
pub(crate) struct Chat {
    #[command(flatten)]
    pub(crate) model: Model,

    #[command(flatten)]
    pub(crate) sampling: Sampling,
}

/// Show how a text is cut into tokens.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma tokenize \"Hello, world\"
  gemma tokenize --model google/gemma-2-2b --json --no-bos \"Hello, world\"
  gemma tokenize --specials \"<start_of_turn>user\"
  gemma tokenize --model DIR --json -f story.txt > ids.json

--json prints {\"tokens\": [ids], \"pieces\": [texts]}. --model may also name a tokenizer.json or tokenizer.model.")]
pub(crate) struct Tokenize {
    /// The text; `-` reads standard input.
    #[arg(required_unless_present = "prompt_file", conflicts_with = "prompt_file", allow_hyphen_values = true)]
    pub(crate) text: Option<String>,

    /// Read the text from this file; `-` is standard input.
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) prompt_file: Option<PathBuf>,

    /// Leave out the beginning-of-sequence token.
    #[arg(long)]
    pub(crate) no_bos: bool,

    /// Let texts such as <start_of_turn> become the control tokens they name.
    #[arg(long)]
    pub(crate) specials: bool,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    /// Whose control tokens these are: gemma, codegemma, paligemma or recurrentgemma.
    ///
    /// Without it, config.json or the name tells. It matters only for tokenizer files that leave the names out.
    #[arg(long, value_name = "NAME", value_parser = family)]
    pub(crate) family: Option<Family>,

    /// A folder with a tokenizer, a GGUF file, or a hub id; the demo's tokenizer without it.
    #[arg(short, long, value_name = "FOLDER|FILE|ID")]
    pub(crate) model: Option<String>,

    /// Use only files that are on this machine already; the same as HF_HUB_OFFLINE=1.
    #[arg(long)]
    pub(crate) offline: bool,
}

/// Write the logits after every token to a safetensors file.
#[derive(Args, Debug)]
#[command(after_help = "\
The tokens file holds a JSON array of token ids, read exactly as given, or an array of such arrays, read together
as one batch. The output holds `logits`, f32 [tokens, vocab], or `logits.0`, `logits.1`, ... for a batch.

Examples:
  echo '[2, 10, 20, 30]' > ids.json
  gemma logits --tokens-file ids.json --out logits.safetensors
  gemma logits --model DIR --tokens-file ids.json --out logits.safetensors --chunk 64 --backend wgpu")]
pub(crate) struct Logits {
    /// JSON array of token ids, or array of arrays.
    #[arg(long, value_name = "FILE")]
    pub(crate) tokens_file: PathBuf,

    /// Where to write; the file appears complete or not at all.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) out: PathBuf,

    /// An image, in the order of the image tokens in the rows; may be given several times. For PaliGemma.
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Vec<PathBuf>,

    /// The last N tokens of each row are an answer to the others. For PaliGemma, whose prompts see themselves both ways.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) suffix: usize,

    /// Read N tokens of each row at a time through the cache; 512 without it.
    #[arg(long, value_name = "N", value_parser = at_least_one, allow_negative_numbers = true)]
    pub(crate) chunk: Option<NonZeroUsize>,

    #[command(flatten)]
    pub(crate) model: Model,
}

/// How well does the model predict a text: log-probability of every token, and perplexity.
#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("text").required(true).args(["file", "tokens_file"]),
    after_help = "\
Examples:
  gemma score story.txt
  gemma score --model google/gemma-2-2b --precision q8_0 story.txt
  gemma score --model DIR --json - < story.txt

A text longer than the context is read in windows of that length, each begun anew with <bos> and the --overlap tokens
before it. The first token has nothing before it and so no log-probability (null in --json). Logarithms are natural.

--json prints tokens, pieces, log_probs, total_log_prob and perplexity."
)]
pub(crate) struct Score {
    /// The text; `-` reads standard input.
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// Score token ids from this file, a JSON array of numbers, exactly as given.
    #[arg(long, value_name = "FILE")]
    pub(crate) tokens_file: Option<PathBuf>,

    /// Longest window, in tokens; the model's context length without it.
    #[arg(long, value_name = "N", value_parser = at_least_one, allow_negative_numbers = true)]
    pub(crate) context: Option<NonZeroUsize>,

    /// Tokens of each window that the one before has scored already and that only serve as context.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) overlap: usize,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) model: Model,
}

/// What a checkpoint is: family, shapes, memory it needs, and what is missing.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma inspect
  gemma inspect google/gemma-2-2b-it
  gemma inspect ./my-model --json

Nothing is downloaded and no weight is read, only the headers. An incomplete folder is reported and ends with exit
code 2.")]
pub(crate) struct Inspect {
    /// A folder, a GGUF file or a hub id; the demo without it.
    #[arg(value_name = "FOLDER|FILE|ID", conflicts_with = "model")]
    pub(crate) path: Option<String>,

    /// The same, as the other verbs take it.
    #[arg(short, long, value_name = "FOLDER|FILE|ID")]
    pub(crate) model: Option<String>,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// List the released checkpoints, what is downloaded, and what fits this machine.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma models
  gemma models gemma-2             only ids that contain this
  gemma models --all               with checkpoints tuned for one task or benchmark
  gemma models --json | jq '.models[] | select(.fits.q4_0) | .id'")]
pub(crate) struct Models {
    /// Only checkpoints whose id contains this text.
    pub(crate) filter: Option<String>,

    /// Also list checkpoints that are tuned for one task.
    #[arg(short, long)]
    pub(crate) all: bool,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    /// Print the whole table for a document.
    #[arg(long, conflicts_with_all = ["filter", "all", "json"])]
    pub(crate) markdown: bool,
}

/// Download a checkpoint from the hub into the cache that other Hugging Face programs use too.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma pull google/gemma-2-2b-it
  gemma pull google/gemma-2b@main
  HF_TOKEN=hf_... gemma pull google/gemma-2-9b-it

Gemma is gated: accept the licence on the model's page once and give a token, by HF_TOKEN or `hf auth login`.
An interrupted download goes on where it stopped. HF_HOME and HF_HUB_CACHE say where the cache is.")]
pub(crate) struct Pull {
    /// Hub id, ORGANISATION/NAME or ORGANISATION/NAME@REVISION.
    pub(crate) id: String,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Write a model as a GGUF file, or as a folder in Hugging Face format.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma convert google/gemma-2-2b-it gemma.gguf --format q8_0     for llama.cpp, or for less disk
  gemma convert gemma.gguf gemma-2-2b                             a folder of safetensors
  gemma convert demo:gemma demo.gguf
  gemma convert shape:gemma-2b random.gguf                        random weights of a released shape, to measure with

The name of the target says what is written: FILE.gguf, or else a folder. Tensors go from file to file one at a time, so
the model need not fit into memory. A folder holds f32, bf16 or f16 (default: bf16); a GGUF file any of f32, bf16, f16,
q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k and q6_k (default: as stored), with f16 where rows are no whole blocks. GGUF has
Gemma, Gemma 2 and CodeGemma; RecurrentGemma and PaliGemma can be written as folders.")]
pub(crate) struct Convert {
    /// The model: a folder, a GGUF file, a hub id, demo:FAMILY, or shape:NAME for random weights.
    pub(crate) model: String,

    /// Where to write: FILE.gguf, or a folder.
    pub(crate) target: PathBuf,

    /// How values are stored.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,

    /// Whose control tokens the tokenizer has, where its file leaves their names out.
    #[arg(long, value_name = "FAMILY", value_parser = family)]
    pub(crate) family: Option<Family>,

    /// Replace the file, or the model folder, that is there.
    ///
    /// A folder that holds anything but files of a model is never replaced.
    #[arg(long)]
    pub(crate) force: bool,

    /// Do not go to the network.
    #[arg(long)]
    pub(crate) offline: bool,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Measure how fast a model loads, reads and writes on this machine.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma bench
  gemma bench --model google/gemma-2-2b-it --precision q8_0
  gemma bench --shape gemma-2b --precision q4_0 --prompt 512 --decode 32
  gemma bench --shape gemma-2b --precision bf16 --depth 2048 --threads 2 --json
  gemma bench --shape gemma-2b --precision bf16 --sequences 8
  gemma bench --bandwidth

--shape measures random weights of a released shape (gemma-2b, gemma-7b, gemma-2-2b, gemma-2-9b, gemma-2-27b,
recurrentgemma-2b, recurrentgemma-9b), so nothing need be downloaded; its load time is that of making them. Numbers are medians with the smallest
and largest beside them. --json: load_seconds, prefill_tokens_per_second, decode_tokens_per_second, each also with
_min and _max, peak_rss_bytes, weight_bytes; first_token_seconds since the program began, after a prompt of 8, for files;
memory_bytes_per_second and memory_part (how much of it writing used), for large weights on a CPU.")]
pub(crate) struct Bench {
    /// A folder, a GGUF file or a hub id; the demo without it.
    #[arg(short, long, value_name = "FOLDER|FILE|ID", conflicts_with = "shape")]
    pub(crate) model: Option<String>,

    /// Random weights of a released shape.
    #[arg(long, value_name = "NAME")]
    pub(crate) shape: Option<String>,

    /// Tokens to read at once; 512 without it, or what the context holds.
    #[arg(long, value_name = "N")]
    pub(crate) prompt: Option<usize>,

    /// Tokens to write one by one.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) decode: usize,

    /// Tokens that are in the cache already before either is measured.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) depth: usize,

    /// Sequences to write together, up to 256; the rate is that of all of them.
    #[arg(long, value_name = "N", default_value = "1", value_parser = sequences)]
    pub(crate) sequences: NonZeroUsize,

    /// How often to measure.
    #[arg(long, value_name = "N", default_value = "3", value_parser = at_least_one)]
    pub(crate) repeat: NonZeroUsize,

    /// Measure no model, only how many bytes of memory the threads read in a second.
    #[arg(long, conflicts_with_all = ["model", "shape"])]
    pub(crate) bandwidth: bool,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) compute: Compute,

    /// Use only files that are on this machine already; the same as HF_HUB_OFFLINE=1.
    #[arg(long)]
    pub(crate) offline: bool,
}

/// A number of sequences whose logits fit into memory at once.
fn sequences(text: &str) -> Result<NonZeroUsize, String> {
    let number = text.parse::<NonZeroUsize>().ok().filter(|number| number.get() <= 256);
    number.ok_or_else(|| "give a number from 1 to 256".to_owned())
}

/// A family by its name.
fn family(name: &str) -> Result<Family, String> {
    match name {
        "gemma" => Ok(Family::Gemma),
        "codegemma" => Ok(Family::CodeGemma),
        "paligemma" => Ok(Family::PaliGemma),
        "recurrentgemma" => Ok(Family::RecurrentGemma),
        _ => Err("use gemma, codegemma, paligemma or recurrentgemma".to_owned()),
    }
}

/// A mistake in the arguments in one line: what clap says first, then its tips.
pub(crate) fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n");
    let words = |paragraph: &str| paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut line = words(paragraphs.next().unwrap_or_default());
    for tip in paragraphs.map(words).filter(|paragraph| paragraph.starts_with("tip:")) {
        line = format!("{line} ({tip})");
    }
    format!("{line}; `gemma --help` and `gemma VERB --help` show what can be given")
}

#[cfg(test)]
mod tests;
