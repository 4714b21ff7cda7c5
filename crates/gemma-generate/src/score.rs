//! Scoring: the logprob of each token of a given text, and the perplexity.

use gemma_tokenizer::TokenId;

use crate::options::require;
use crate::sequence::{check_ids, to_host};
use crate::softmax::log_sum_exp;
use crate::{CausalModel, Error, Phase, Segment};

/// Tokens to read per call that serve most machines: the logits of 64 tokens take 66 MB with 256 000 columns.
pub const SCORE_CHUNK: usize = 64;

/// What a model thinks of the tokens of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Natural logarithm of the probability of each token, given all before it. Begins with the second token: the
    /// first (usually `<bos>`) is only context.
    pub logprobs: Vec<f64>,
}

impl Score {
    /// The logarithm of the probability of the whole text, given its first token.
    pub fn total(&self) -> f64 {
        self.logprobs.iter().sum()
    }

    /// e to the negated mean log-probability: as uncertain as among so many equally likely tokens. At least 1.
    pub fn perplexity(&self) -> f64 {
        (-self.total() / self.logprobs.len() as f64).exp()
    }
}

/// Scores a text that fits into the model's context, running `chunk` tokens per forward pass.
///
/// log p(tₙ | t₁ … tₙ₋₁) = logit(tₙ) − log Σ exp(logits), the sum in f64. The logits of one chunk are on the
/// host at a time: `chunk` × vocabulary × 4 bytes. `chunk` does not change the result but for rounding.
///
/// # Errors
///
/// Fewer than two tokens, one that the model does not know, more than the context holds, or a `chunk` of 0; and what
/// the model or the device gets wrong.
pub fn score<M: CausalModel>(model: &M, tokens: &[TokenId], chunk: usize) -> Result<Score, Error> {
    check(model, tokens, chunk)?;
    let limit = model.context_length().unwrap_or(usize::MAX);
    if tokens.len() > limit {
        return Err(Error::PromptTooLong { tokens: tokens.len(), limit });
    }
    let mut logprobs = Vec::with_capacity(tokens.len() - 1);
    score_window(model, tokens, 1, chunk, &mut logprobs)?;
    Ok(Score { logprobs })
}

/// Scores a text of any length in windows of at most `window` tokens, running `chunk` tokens per forward pass.
///
/// Each window but the first begins anew: with the first token of the text (`<bos>`), then the `overlap` tokens before
/// the first new one, as context. Each token is scored once, given what its window holds before it; so the result
/// depends on `window` and `overlap`, and is what [`score`] gives when the text fits into one window. Without overlap
/// it is the quickest, with much of it the closest to what the model could know.
///
/// # Errors
///
/// As for [`score`]; and a `window` larger than the context, or with no room for a new token after the overlap.
pub fn score_windows<M: CausalModel>(
    model: &M,
    tokens: &[TokenId],
    window: usize,
    overlap: usize,
    chunk: usize,
) -> Result<Score, Error> {
    check(model, tokens, chunk)?;
    let limit = model.context_length().unwrap_or(usize::MAX);
    require(window <= limit, "window", window, "at most the model's context length")?;
    require(window >= 2, "window", window, "an integer from 2 up")?;
    require(overlap <= window - 2, "overlap", overlap, "at most the window less 2 tokens")?;
    let mut logprobs = Vec::with_capacity(tokens.len() - 1);
    let first = &tokens[..window.min(tokens.len())];
    score_window(model, first, 1, chunk, &mut logprobs)?;
    let mut next = first.len();
    while next < tokens.len() {
        let end = tokens.len().min(next + window - 1 - overlap);
        let mut read = vec![tokens[0]];
        read.extend_from_slice(&tokens[next - overlap..end]);
        score_window(model, &read, 1 + overlap, chunk, &mut logprobs)?;
        next = end;
    }
    Ok(Score { logprobs })
}

/// The logprob of a token by the logits of its place.
///
/// # Errors
///
/// When a logit is NaN or +inf, or all are -inf.
pub(crate) fn logprob_of(logits: &[f32], token: TokenId) -> Result<f64, Error> {
    Ok(f64::from(logits[token as usize]) - log_sum_exp(logits)?)
}

/// What both refuse.
fn check<M: CausalModel>(model: &M, tokens: &[TokenId], chunk: usize) -> Result<(), Error> {
    require(chunk >= 1, "chunk", chunk, "an integer from 1 up")?;
    check_ids(tokens, model.vocab(), None)?;
    if tokens.len() < 2 { Err(Error::NothingToScore { tokens: tokens.len() }) } else { Ok(()) }
}

/// Appends the log-probabilities of `tokens[from..]` (`from` ≥ 1), run from the beginning with a new cache.
fn score_window<M: CausalModel>(
    model: &M,
    tokens: &[TokenId],
    from: usize,
    chunk: usize,
    logprobs: &mut Vec<f64>,
) -> Result<(), Error> {
    let mut cache = model.new_cache();
    // The last token is predicted and predicts nothing.
    let (context, targets) = (&tokens[..tokens.len() - 1], &tokens[1..]);
    // Context whose predictions nobody asks for is read without them.
    let quiet = from - 1;
    let phase = Phase::of_len(context.len());
    let mut start = 0;
    while start < context.len() {
        let end = if start < quiet { quiet } else { context.len() }.min(start.saturating_add(chunk));
        let segments = [Segment::causal(start, end - start).in_phase(phase)];
        let hidden_states = model.hidden_states(&context[start..end], &segments, &mut [&mut cache]);
        if start >= quiet {
            let logits = to_host(model.logits(hidden_states), end - start, model.vocab())?;
            for (row, &target) in logits.chunks_exact(model.vocab()).zip(&targets[start..end]) {
                logprobs.push(logprob_of(row, target)?);
            }
        }
        start = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
