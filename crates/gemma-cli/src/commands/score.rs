//! `gemma score`: how well a model predicts a text.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};
use burn::tensor::Tensor;
use clap::{ArgGroup, Args};
use gemma_auto::with_model;
use gemma_generate::{CacheTensors, CausalModel, Inputs, SCORE_CHUNK, Segment, TokenId, score_windows};
use gemma_model::{Model, Network};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::{
    args::{Model as ModelArgs, at_least_one},
    interrupt::Ending,
    output, progress, session, text,
    tokens_file::TokenRows,
};

/// Score a text: the logprob of every token, and perplexity.
#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("source").required(true).args(["file", "prompt_file", "text", "tokens_file"]),
    mut_arg("mmproj", |arg| arg.hide(true)),
    after_help = "\
Examples:
  gemma score story.txt
  gemma score --tokens --text \"Once upon a time\"
  gemma score --model google/gemma-2-2b --precision q8_0 story.txt
  gemma score --model DIR --json -f - < story.txt

A text longer than the context is read in windows of that length, each begun anew with <bos> and the --overlap tokens
before it. The first token has nothing before it and so no logprob (null in --json). Logarithms are natural.

--json prints tokens, pieces, log_probs, total_log_prob, mean_log_prob and perplexity."
)]
pub(crate) struct Score {
    /// A file with the text; `-` is standard input.
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// The same as FILE, as `gemma generate` and `gemma tokenize` have it.
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) prompt_file: Option<PathBuf>,

    /// The text itself.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) text: Option<String>,

    /// Score token ids from this file, a JSON array of numbers, exactly as given.
    #[arg(long, value_name = "FILE")]
    pub(crate) tokens_file: Option<PathBuf>,

    /// Longest window, in tokens; the model's context length without it.
    #[arg(long, value_name = "N", value_parser = at_least_one, allow_negative_numbers = true)]
    pub(crate) context: Option<NonZeroUsize>,

    /// Tokens of each window that the one before has scored already and that only serve as context.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) overlap: usize,

    /// Print the logprob of every token in front of the summary.
    #[arg(long, conflicts_with = "json")]
    pub(crate) tokens: bool,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// The JSON object.
#[derive(Serialize)]
struct Report<'a> {
    tokens: &'a [TokenId],
    pieces: Vec<&'a str>,
    /// One per token; null for the first, which nothing precedes.
    log_probs: Vec<Option<f64>>,
    total_log_prob: f64,
    /// Per scored token.
    mean_log_prob: f64,
    perplexity: f64,
}

pub(crate) fn run(args: &Score) -> Result<Ending> {
    let given = match (&args.tokens_file, &args.file) {
        (Some(path), _) => Err(TokenRows::read(path)?.into_one()?),
        (None, file) => Ok(given(args, file.as_deref())?),
    };
    let opened = session::find(&args.model)?.open()?;
    with_model!(&opened.model, model => score(args, given, model))
}

/// The text: what FILE or -f names, or the one of --text.
fn given(args: &Score, file: Option<&Path>) -> Result<String> {
    let text = match file {
        // who types a text here means that of `gemma tokenize TEXT`
        Some(file) if file != Path::new("-") && !file.exists() => {
            bail!("there is no file {}; a text itself is given with --text", file.display())
        }
        file => text::given(args.text.as_deref(), file.or(args.prompt_file.as_deref()))?,
    };
    if text.is_empty() {
        bail!("there is no text to score; give one of at least one character");
    }
    Ok(text)
}

/// Scores what was given: a text, or (an error of a kind) tokens.
fn score<N: Network>(args: &Score, given: Result<String, Vec<TokenId>>, model: &Model<N>) -> Result<Ending> {
    let (tokenizer, decoder) = (model.tokenizer(), model.network());
    let (tokens, tokenizer) = match given {
        // a checkpoint without a tokenizer can be asked about numbers
        Err(tokens) => (tokens, tokenizer.ok()),
        Ok(text) => {
            let tokenizer = tokenizer?;
            (tokenizer.encode(&text), Some(tokenizer))
        }
    };
    let piece = |id: &TokenId| tokenizer.and_then(|tokenizer| tokenizer.piece(*id)).unwrap_or_default();
    let window = args.context.map(|window| window.get()).or(decoder.context_length()).unwrap_or(tokens.len().max(2));
    let counted = Counted { model: decoder, bar: progress::tokens("scoring", tokens.len().saturating_sub(1)) };
    let score = score_windows(&counted, &tokens, window, args.overlap, SCORE_CHUNK);
    counted.bar.finish_and_clear();
    let score = score?;
    let report = Report {
        pieces: tokens.iter().map(piece).collect(),
        log_probs: std::iter::once(None).chain(score.logprobs.iter().copied().map(Some)).collect(),
        total_log_prob: score.total(),
        mean_log_prob: score.total() / score.logprobs.len() as f64,
        perplexity: score.perplexity(),
        tokens: &tokens,
    };
    if args.json {
        output::json(&report)?
    } else {
        if args.tokens {
            output::line(by_token(&report))?;
        }
        output::line(summary(&report))?
    }
    Ok(Ending::Done)
}

/// A line per token.
fn by_token(report: &Report<'_>) -> String {
    let mut text = String::from(" logprob     prob  token\n");
    for ((id, piece), log_prob) in report.tokens.iter().zip(&report.pieces).zip(&report.log_probs) {
        let numbers = match log_prob {
            Some(log_prob) => format!("{log_prob:8.3}  {:6.2}%", 100.0 * log_prob.exp()),
            None => " ".repeat(17),
        };
        let token = if piece.is_empty() { id.to_string() } else { output::visible(piece) };
        text += &format!("{numbers}  {token}\n");
    }
    text
}

/// What a person asks first: how many tokens, and how well they are predicted.
fn summary(report: &Report<'_>) -> String {
    format!(
        "scored tokens  {}\ntotal logprob  {:.3}\nmean logprob   {:.4}\nperplexity     {:.4}",
        report.tokens.len() - 1,
        report.total_log_prob,
        report.mean_log_prob,
        report.perplexity
    )
}

/// A model that shows on a bar how many tokens it has run.
struct Counted<'a, M> {
    model: &'a M,
    bar: ProgressBar,
}

impl<M: CausalModel> CausalModel for Counted<'_, M> {
    type Cache = M::Cache;

    fn embed(&self, tokens: &[TokenId]) -> Inputs {
        self.model.embed(tokens)
    }

    fn forward(&self, inputs: Inputs, segments: &[Segment], caches: &mut [&mut M::Cache]) -> Tensor<2> {
        self.bar.inc(inputs.len() as u64);
        self.model.forward(inputs, segments, caches)
    }

    fn logits(&self, hidden_states: Tensor<2>) -> Tensor<2> {
        self.model.logits(hidden_states)
    }

    fn final_softcap(&self) -> Option<f32> {
        self.model.final_softcap()
    }

    fn uncapped_logits(&self, hidden_states: Tensor<2>) -> Tensor<2> {
        self.model.uncapped_logits(hidden_states)
    }

    fn new_cache(&self) -> M::Cache {
        self.model.new_cache()
    }

    fn no_cache(&self) -> M::Cache {
        self.model.no_cache()
    }

    fn restore_cache(&self, len: usize, tensors: &CacheTensors) -> Option<M::Cache> {
        self.model.restore_cache(len, tensors)
    }

    fn cache_bytes(&self, tokens: usize) -> usize {
        self.model.cache_bytes(tokens)
    }

    fn context_length(&self) -> Option<usize> {
        self.model.context_length()
    }

    fn vocab(&self) -> usize {
        self.model.vocab()
    }
}
