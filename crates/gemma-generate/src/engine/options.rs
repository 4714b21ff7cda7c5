//! Limits of an engine.

use crate::options::require;
use crate::{CausalModel, Error};

/// How much an engine does at once, and how much it keeps.
///
/// ```
/// use gemma_generate::EngineOptions;
///
/// let options = EngineOptions { max_requests: 16, prefix_cache_bytes: 1 << 30, ..EngineOptions::default() };
/// assert!(options.check().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    /// Most requests that are in progress at once; the others wait. Default 64.
    pub max_requests: usize,
    /// Token budget of a step for prefill, first come first served. The requests in the decode phase come before: each takes
    /// its one token (and its draft tokens) in every step, on top of this. Default 512.
    pub prefill_tokens: usize,
    /// Most bytes for the caches of all requests and the prefix cache together; `None`: no limit. A request is admitted
    /// when its prompt and its longest answer fit. Default `None`.
    pub max_cache_bytes: Option<usize>,
    /// Most bytes that the prefix cache keeps of requests that are over; 0 turns it off. Default 0.
    pub prefix_cache_bytes: usize,
    /// Where the cache of a model that cannot be truncated is kept during prefill: at multiples of so many tokens.
    /// Default 256.
    pub snapshot_tokens: usize,
    /// Whether prompts are always cut into the same chunks, whatever else is in the batch, and no tokens are
    /// drafted. With a model that was opened with `LoadOptions::batch_invariant`, each request then gets bit for bit the
    /// tokens and logprobs that it gets alone. Default `false`.
    pub batch_invariant: bool,
    /// How many adapters the model was opened with for requests to choose (`LoadOptions::request_adapters`). Default 0.
    pub adapters: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            max_requests: 64,
            prefill_tokens: 512,
            max_cache_bytes: None,
            prefix_cache_bytes: 0,
            snapshot_tokens: 256,
            batch_invariant: false,
            adapters: 0,
        }
    }
}

impl EngineOptions {
    /// The most bytes of caches that an engine of these options holds for a model, whose requests have no more than `context`
    /// tokens: as many of the longest sequences as run at a time, and the prefix cache, within
    /// [`max_cache_bytes`](Self::max_cache_bytes).
    pub fn most_cache_bytes(&self, model: &impl CausalModel, context: Option<usize>) -> usize {
        // a model without a limit has a cache that stops growing long before
        const ENDLESS: usize = 1 << 24;
        let longest = context.into_iter().chain(model.context_length()).min().unwrap_or(ENDLESS);
        let running = self.max_requests.saturating_mul(model.cache_bytes(longest));
        running.saturating_add(self.prefix_cache_bytes).min(self.max_cache_bytes.unwrap_or(usize::MAX))
    }

    /// Checks that each option lies in its range.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`] for the first that does not.
    pub fn check(&self) -> Result<(), Error> {
        let from_one = "an integer from 1 up";
        require(self.max_requests >= 1, "max_requests", self.max_requests, from_one)?;
        require(self.prefill_tokens >= 1, "prefill_tokens", self.prefill_tokens, from_one)?;
        require(self.snapshot_tokens >= 1, "snapshot_tokens", self.snapshot_tokens, from_one)
    }
}
