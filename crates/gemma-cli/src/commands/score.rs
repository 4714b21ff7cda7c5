//! `gemma score`: how well a model predicts a text.

use std::{num::NonZeroUsize, path::PathBuf};

use anyhow::Result;
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
    group = ArgGroup::new("text").required(true).args(["file", "tokens_file"]),
    after_help = "\
Examples:
  gemma score story.txt
  gemma score --model google/gemma-2-2b --precision q8_0 story.txt
  gemma score --model DIR --json - < story.txt

A text longer than the context is read in windows of that length, each begun anew with <bos> and the --overlap tokens
before it. The first token has nothing before it and so no logprob (null in --json). Logarithms are natural.

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
    perplexity: f64,
}

pub(crate) fn run(args: &Score) -> Result<Ending> {
    let given = match (&args.tokens_file, &args.file) {
        (Some(path), _) => Err(TokenRows::read(path)?.into_one()?),
        (None, path) => Ok(text::given(None, path.as_deref())?),
    };
    let opened = session::find(&args.model)?.open()?;
    with_model!(&opened.model, model => score(args, given, model))
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
        perplexity: score.perplexity(),
        tokens: &tokens,
    };
    if args.json {
        output::json(&report)?
    } else {
        output::line(told(&report))?
    }
    Ok(Ending::Done)
}

/// A line per token, then the sum.
fn told(report: &Report<'_>) -> String {
    let mut text = String::from("log prob     prob  token\n");
    for ((id, piece), log_prob) in report.tokens.iter().zip(&report.pieces).zip(&report.log_probs) {
        let numbers = match log_prob {
            Some(log_prob) => format!("{log_prob:8.3}  {:6.2}%", 100.0 * log_prob.exp()),
            None => " ".repeat(17),
        };
        let token = if piece.is_empty() { id.to_string() } else { output::visible(piece) };
        text += &format!("{numbers}  {token}\n");
    }
    let scored = report.tokens.len() - 1;
    text + &format!(
        "\n{scored} tokens, {:.3} each in the mean, perplexity {:.3}",
        report.total_log_prob / scored as f64,
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
