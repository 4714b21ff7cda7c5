//! The verbs for code: filling gaps, serving an editor, measuring both.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use codegemma::{Extent, InfillOptions, Language, Order};
use gemma_serve::lsp;
use gemma_tokenizer::Family;
use std::time::Duration;

use super::{Compute, family};

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

    /// Use only files that are on this machine already; the same as HF_HUB_OFFLINE=1.
    #[arg(long)]
    pub(crate) offline: bool,

    /// Whose control tokens the tokenizer has: gemma or codegemma.
    ///
    /// Without it, the name tells. It matters only for tokenizer files that leave the infilling tokens' names out.
    #[arg(long, value_name = "NAME", value_parser = family)]
    pub(crate) family: Option<Family>,
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
    fn order(self) -> Order {
        match self {
            Self::Psm => Order::Psm,
            Self::Spm => Order::Spm,
        }
    }
}

/// How far a middle may reach, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExtentName {
    /// Until the model ends it.
    Free,
    /// One line.
    Line,
    /// The block that the gap lies in.
    Block,
}

impl ExtentName {
    fn extent(self) -> Extent {
        match self {
            Self::Free => Extent::Free,
            Self::Line => Extent::Line,
            Self::Block => Extent::Block,
        }
    }
}

/// What fills a gap, and how much of it.
#[derive(Args, Debug)]
#[command(next_help_heading = "Filling")]
pub(crate) struct Filling {
    /// Stop after this many new tokens.
    #[arg(short = 'n', long, value_name = "N", default_value_t = InfillOptions::default().generate.max_tokens)]
    pub(crate) max_tokens: usize,

    /// 0 always takes the likeliest token, which suits code; 1 follows the model's odds.
    #[arg(long, value_name = "T", default_value_t = InfillOptions::default().generate.temperature, allow_negative_numbers = true)]
    pub(crate) temperature: f32,

    /// The same seed gives the same text at a temperature above 0.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// The order of the parts in the prompt.
    #[arg(long, value_name = "ORDER", default_value = "psm")]
    pub(crate) order: OrderName,

    /// How far the text may reach.
    #[arg(long, value_name = "EXTENT", default_value = "free")]
    pub(crate) extent: ExtentName,

    /// Most tokens of the prompt; what does not fit is cut by whole lines, the nearest kept. Without it, what the model's
    /// context leaves.
    #[arg(long, value_name = "N")]
    pub(crate) budget: Option<usize>,

    /// Stop after so many seconds, with what is there by then.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) time_limit: Option<Duration>,

    /// Do not guess tokens from the program; the text is the same, only slower where code repeats itself.
    #[arg(long)]
    pub(crate) no_lookup: bool,
}

impl Filling {
    /// The library's options for these flags.
    pub(crate) fn options(&self) -> InfillOptions {
        let mut options = InfillOptions {
            order: self.order.order(),
            extent: self.extent.extent(),
            budget: self.budget,
            time_limit: self.time_limit,
            lookup: !self.no_lookup,
            ..InfillOptions::default()
        };
        options.generate.max_tokens = self.max_tokens;
        options.generate.temperature = self.temperature;
        options.generate.seed = self.seed;
        options
    }
}

/// Fill a gap in a program.
///
/// The text before the gap and the text after it are the prompt; what belongs between them is printed, and nothing else.
#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("gap").required(true).multiple(true).args(["file", "prefix_file", "suffix_file"]),
    after_help = "\
Examples:
  gemma infill main.py --at 12:5
  gemma infill main.py --at 12:5 --extent line --write
  gemma infill src/app.js --at 40:1 --context src --model google/codegemma-2b --precision q8_0
  gemma infill --prefix-file before.txt --suffix-file after.txt > middle.txt
  gemma infill --prefix-file - < unfinished.py
  gemma infill main.py --at 12:5 --show-prompt --json

--json prints one object: text, tokens, mean_log_prob, finish_reason (stop, stop_text when a rule about the text ended
it, length, context_full, out_of_time or cancelled), cut (lines and files that did not fit), prompt_tokens,
reused_tokens and timings; with --alternatives, an array of these as `alternatives`.
--show-prompt prints the prompt instead, with --json as tokens and text; no model is run."
)]
pub(crate) struct Infill {
    /// The program with the gap; `-` reads standard input.
    #[arg(value_name = "FILE", requires = "at", conflicts_with_all = ["prefix_file", "suffix_file"])]
    pub(crate) file: Option<PathBuf>,

    /// Where the gap is: line and column, both counted from 1, columns in characters.
    #[arg(long, value_name = "LINE:COLUMN", value_parser = place, requires = "file")]
    pub(crate) at: Option<(usize, usize)>,

    /// Read the text before the gap from this file; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) prefix_file: Option<PathBuf>,

    /// Read the text after the gap from this file; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) suffix_file: Option<PathBuf>,

    /// Show the model other files of this folder too: those of the same language, as far as they fit.
    #[arg(long, value_name = "DIR")]
    pub(crate) context: Option<PathBuf>,

    /// The path that the prompt names; FILE's own without it. It also tells the language.
    #[arg(long, value_name = "PATH")]
    pub(crate) path: Option<String>,

    /// Put the text into FILE instead of printing it.
    #[arg(long, requires = "file", conflicts_with_all = ["json", "show_prompt", "alternatives"])]
    pub(crate) write: bool,

    /// Fill the gap in up to N different ways.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) alternatives: Option<u8>,

    /// Print the prompt and do not run the model.
    #[arg(long)]
    pub(crate) show_prompt: bool,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) filling: Filling,

    #[command(flatten)]
    pub(crate) model: CodeModel,
}

/// Complete code in an editor: a language server on standard input and output.
///
/// The editor starts it; docs/editors.md has the lines for Neovim, Helix, VS Code and Zed.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma lsp
  gemma lsp --model google/codegemma-2b --precision q8_0 --max-tokens 48
  gemma lsp --model ./my-codegemma --extent line --debounce 150

It offers textDocument/inlineCompletion (LSP 3.18) and, for editors without it, textDocument/completion.")]
pub(crate) struct Lsp {
    /// Most tokens of one completion.
    #[arg(short = 'n', long, value_name = "N", default_value_t = lsp::Options::default().infill.generate.max_tokens)]
    pub(crate) max_tokens: usize,

    /// Most tokens of the prompt.
    #[arg(long, value_name = "N", default_value_t = lsp::Options::default().infill.budget.unwrap_or_default())]
    pub(crate) budget: usize,

    /// The order of the parts in the prompt.
    #[arg(long, value_name = "ORDER", default_value = "spm")]
    pub(crate) order: OrderName,

    /// How far a completion may reach.
    #[arg(long, value_name = "EXTENT", default_value = "block")]
    pub(crate) extent: ExtentName,

    /// Most time for one completion, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "5")]
    pub(crate) time_limit: Duration,

    /// Milliseconds that a request waits for another keystroke.
    #[arg(long, value_name = "MS", default_value_t = lsp::Options::default().debounce.as_millis() as u64)]
    pub(crate) debounce: u64,

    /// Other open documents of the same language that the model is shown.
    #[arg(long, value_name = "N", default_value_t = lsp::Options::default().open_files)]
    pub(crate) open_files: usize,

    #[command(flatten)]
    pub(crate) model: CodeModel,
}

impl Lsp {
    /// The server's options for these flags.
    pub(crate) fn options(&self) -> lsp::Options {
        let mut options = lsp::Options::default();
        options.infill.generate.max_tokens = self.max_tokens;
        options.infill.budget = Some(self.budget);
        options.infill.order = self.order.order();
        options.infill.extent = self.extent.extent();
        options.infill.time_limit = Some(self.time_limit);
        options.debounce = Duration::from_millis(self.debounce);
        options.open_files = self.open_files;
        options
    }
}

/// Measure how good a model is at a task.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  gemma eval infilling HumanEval-SingleLineInfilling.jsonl --extent line --out results.jsonl")]
pub(crate) struct Eval {
    #[command(subcommand)]
    pub(crate) task: EvalTask,
}

/// What can be measured.
#[derive(Debug, Subcommand)]
pub(crate) enum EvalTask {
    Infilling(EvalInfilling),
}

/// Fill the gaps of a benchmark in the format of HumanEval-Infilling.
///
/// Each line of the file is an object with task_id, prompt, suffix and canonical_solution; test and entry_point are
/// needed only to run the tests.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma eval infilling tasks.jsonl
  gemma eval infilling tasks.jsonl --model google/codegemma-2b --precision q8_0 --out results.jsonl
  gemma eval infilling tasks.jsonl --out results.jsonl --run-tests

With --out, a result is appended as it comes, and a run that was cut short goes on where it stopped. Exact: the text is
the solution, white space at its ends aside. Prefix: it begins with the solution. --run-tests executes what the model
wrote with your rights; use it only where that can do no harm.")]
pub(crate) struct EvalInfilling {
    /// The benchmark, one JSON object per line.
    pub(crate) file: PathBuf,

    /// Append each result to this file, and skip what is in it already.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,

    /// Only the first N tasks.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,

    /// Run each task's test on the filled program, in a process of its own. This executes code that a model wrote.
    #[arg(long)]
    pub(crate) run_tests: bool,

    /// What runs the tests.
    #[arg(long, value_name = "PROGRAM", default_value = "python3", requires = "run_tests")]
    pub(crate) python: PathBuf,

    /// Most seconds for one test.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "10", requires = "run_tests")]
    pub(crate) test_time: Duration,

    /// Most memory for one test, in megabytes.
    #[arg(long, value_name = "MB", default_value_t = 1024, requires = "run_tests")]
    pub(crate) test_memory: u64,

    /// Print the summary as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) filling: Filling,

    #[command(flatten)]
    pub(crate) model: CodeModel,
}

/// `LINE:COLUMN`, both from 1.
fn place(text: &str) -> Result<(usize, usize), String> {
    let numbers = text.split_once(':').and_then(|(line, column)| Some((line.parse().ok()?, column.parse().ok()?)));
    numbers
        .filter(|(line, column)| *line >= 1 && *column >= 1)
        .ok_or_else(|| "must be LINE:COLUMN, both counted from 1, such as 12:5".to_owned())
}

/// A time in seconds, fractions allowed.
fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.parse::<f64>().ok().filter(|seconds| *seconds > 0.0);
    number
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|time| *time <= Duration::from_secs(86_400))
        .ok_or_else(|| "must be a number of seconds above 0 and at most 86400".to_owned())
}

impl Infill {
    /// The path that the prompt names.
    pub(crate) fn named(&self) -> Option<String> {
        let own = self.file.as_ref().filter(|file| file.as_os_str() != "-").map(|file| file.display().to_string());
        self.path.clone().or(own)
    }

    /// The language, when a path tells it.
    pub(crate) fn language(&self) -> Option<Language> {
        self.named().map(|path| Language::of_path(&path))
    }
}
