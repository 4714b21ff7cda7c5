//! One sequence on its way through a model: its tokens, and the cache of those that the model has run over.

use burn::tensor::{Tensor, TensorReadError};
use gemma_kernels::{Way, is_apart, note};
use gemma_nn::{Phase, Segment};
use gemma_tokenizer::TokenId;

use crate::{Cache, CausalModel, Error};

/// The tokens of one sequence and the cache of those that were prefilled or decoded.
///
/// A [`Generation`](crate::Generation) gives its sequence back when it is over, so that a conversation goes on where it
/// was: only what is new is prefilled. The token sampled last is not in the cache yet; it comes first among the
/// [`pending`](Self::pending) ones. A clone is a fork of the conversation.
#[derive(Clone, Debug)]
pub struct Sequence<C> {
    cache: C,
    /// How many tokens the cache held before the first of `tokens`.
    before: usize,
    tokens: Vec<TokenId>,
    /// How many of `tokens` the cache holds.
    cached: usize,
}

impl<C: Cache> Sequence<C> {
    /// A sequence that goes on after what a cache holds: nothing, in a new one; an image or the text of a state file.
    pub fn new(cache: C) -> Self {
        Self { before: cache.len(), cache, tokens: Vec::new(), cached: 0 }
    }

    /// Appends tokens.
    pub fn push(&mut self, tokens: &[TokenId]) {
        self.tokens.extend_from_slice(tokens);
    }

    /// All tokens pushed, in the cache or not.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// The tokens that are not in the cache yet.
    pub fn pending(&self) -> &[TokenId] {
        &self.tokens[self.cached..]
    }

    /// How many tokens the cache holds; also the position of the first pending token.
    pub fn position(&self) -> usize {
        self.before + self.cached
    }

    /// How many tokens the sequence has, in the cache or not.
    pub fn len(&self) -> usize {
        self.before + self.tokens.len()
    }

    /// Whether there are no tokens, in the cache or pending.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The model's cache.
    pub fn cache(&self) -> &C {
        &self.cache
    }

    /// Makes this the sequence of `prompt`, keeping what the cache holds of their common prefix; at least the last token
    /// stays pending, since the logits after it are wanted. Returns how many tokens are reused.
    ///
    /// A cache that cannot be [truncated](Cache::truncate) to the common prefix begins anew, and so does one whose first
    /// tokens are unknown ([`new`](Self::new) after other tokens, [`drop_tokens`](Self::drop_tokens)).
    pub fn reuse_prefix<M: CausalModel<Cache = C>>(&mut self, model: &M, prompt: &[TokenId]) -> usize {
        let held = self.tokens[..self.cached].iter().zip(prompt);
        let common = held.take_while(|(old, new)| old == new).count().min(prompt.len().saturating_sub(1));
        let kept = self.before == 0 && (common == self.cached || self.cache.truncate(common));
        if !kept || common == 0 {
            *self = Self::new(model.new_cache());
        }
        self.cached = if kept { common } else { 0 };
        self.tokens.clear();
        self.tokens.extend_from_slice(prompt);
        self.cached
    }

    /// Prefills all pending tokens but the last, in chunks of `chunk` tokens, as long as `go_on` says so before each. What
    /// several continuations share is prefilled once like this, and then cloned.
    pub fn prefill<M: CausalModel<Cache = C>>(&mut self, model: &M, chunk: usize, go_on: impl Fn() -> bool) {
        let phase = Phase::of_len(self.pending().len());
        while self.pending().len() > 1 && go_on() {
            let count = chunk.clamp(1, self.pending().len() - 1);
            let segment = Segment::causal(self.position(), count).in_phase(phase);
            let tokens = self.pending()[..count].to_vec();
            model.hidden_states(&tokens, &[segment], &mut [&mut self.cache]);
            self.cached += count;
        }
    }

    /// Drops the tokens that the cache holds: the cache stays, and a text of any length takes no more room than that. A
    /// repetition penalty no longer counts them, and [`reuse_prefix`](Self::reuse_prefix) begins anew.
    pub fn drop_tokens(&mut self) {
        self.before += self.cached;
        self.tokens.drain(..self.cached);
        self.cached = 0;
    }

    /// How many tokens came before the first of [`tokens`](Self::tokens).
    pub(crate) fn before(&self) -> usize {
        self.before
    }

    /// Replaces the cache by one that holds `cached` of the tokens.
    pub(crate) fn set_cache(&mut self, cache: C, cached: usize) {
        self.cache = cache;
        self.cached = cached;
    }

    /// Notes that the cache holds the next `count` pending tokens.
    pub(crate) fn mark_cached(&mut self, count: usize) {
        self.cached += count;
    }

    /// The cache, to be changed together with [`mark_cached`](Self::mark_cached).
    pub(crate) fn cache_mut(&mut self) -> &mut C {
        &mut self.cache
    }

    /// The cache; the tokens are dropped.
    pub fn into_cache(self) -> C {
        self.cache
    }
}

/// Brings logits to the host: `rows` times `vocab` numbers, row after row.
///
/// # Errors
///
/// [`Error::LogitsShape`] when there are more or fewer, [`Error::Device`] when the device failed.
pub(crate) fn to_host(logits: Tensor<2>, rows: usize, vocab: usize) -> Result<Vec<f32>, Error> {
    check_shape(&logits, [rows, vocab])?;
    if is_apart(&logits.device()) {
        note(Way::Down, 4 * rows * vocab);
    }
    logits.try_into_vec_as::<f32>().map_err(device_error)
}

/// Refuses logits of another shape.
///
/// # Errors
/// [`Error::LogitsShape`].
pub(crate) fn check_shape(logits: &Tensor<2>, expected: [usize; 2]) -> Result<(), Error> {
    let found = logits.dims();
    if found == expected { Ok(()) } else { Err(Error::LogitsShape { found, expected }) }
}

/// What a device reported, on one line.
pub(crate) fn device_error(error: TensorReadError) -> Error {
    let report = error.to_string();
    let reason = report.split_whitespace().collect::<Vec<_>>().join(" ");
    Error::Device { reason }
}

/// Refuses tokens that a model cannot read from the start: none, ids beyond its vocabulary other than `beside` (that of an
/// image, which has no row in the embedding table), or more than its context holds.
///
/// # Errors
///
/// [`Error::EmptyPrompt`], [`Error::TokenOutOfRange`] for the first such id, or [`Error::PromptTooLong`].
pub fn check_tokens<M: CausalModel>(model: &M, tokens: &[TokenId], beside: Option<TokenId>) -> Result<(), Error> {
    if tokens.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    check_ids(tokens, model.vocab(), beside)?;
    match model.context_length() {
        Some(limit) if tokens.len() > limit => Err(Error::PromptTooLong { tokens: tokens.len(), limit }),
        _ => Ok(()),
    }
}

/// Refuses token ids that the model does not know, other than `beside`.
///
/// # Errors
///
/// [`Error::TokenOutOfRange`] for the first.
pub(crate) fn check_ids(tokens: &[TokenId], vocab: usize, beside: Option<TokenId>) -> Result<(), Error> {
    match tokens.iter().position(|&token| token as usize >= vocab && Some(token) != beside) {
        Some(place) => Err(Error::TokenOutOfRange { token: tokens[place], place, vocab }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    #[test]
    fn tokens_that_cannot_be_read_are_named() {
        let model = Fake::new(10).with_context(3);
        let check = |tokens: &[TokenId]| check_tokens(&model, tokens, Some(12));
        assert_eq!(check(&[9, 12, 0]), Ok(()));
        assert_eq!(check(&[]), Err(Error::EmptyPrompt));
        assert_eq!(check(&[1, 10]), Err(Error::TokenOutOfRange { token: 10, place: 1, vocab: 10 }));
        assert_eq!(check_tokens(&model, &[12], None), Err(Error::TokenOutOfRange { token: 12, place: 0, vocab: 10 }));
        assert_eq!(check(&[1, 1, 1, 1]), Err(Error::PromptTooLong { tokens: 4, limit: 3 }));
    }
}
