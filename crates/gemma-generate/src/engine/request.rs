//! What is asked of an engine.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use gemma_nn::AdapterChoice;
use gemma_tokenizer::TokenId;

use crate::{GenerateOptions, Inputs, Speculation};

/// One request to an [`Engine`](crate::Engine): a prompt, and how to continue it.
///
/// ```
/// use gemma_generate::{GenerateOptions, Request};
///
/// let request = Request { stop_tokens: vec![1], ..Request::new(vec![2, 10, 11], GenerateOptions::greedy(64)) };
/// assert!(!request.prompt_logprobs);
/// ```
#[derive(Default)]
pub struct Request<'a> {
    /// What to continue.
    pub prompt: Prompt,
    /// Limits, sampling and penalties: each request has its own sampler and seed.
    pub options: GenerateOptions,
    /// Tokens that end the answer.
    pub stop_tokens: Vec<TokenId>,
    /// Makes text of the answer and ends it where the text says so; without one, events carry no text and
    /// [`GenerateOptions::stop`] has no effect. [`TextDecoder`](crate::TextDecoder) is one.
    pub stop_rule: Option<Box<dyn StopRule + 'a>>,
    /// Restricts the tokens that may be sampled, for example to those that a grammar allows.
    pub mask: Option<Box<dyn TokenMask + 'a>>,
    /// Speculative decoding: drafts of the next tokens, which the model verifies. With a mask, nothing is drafted.
    pub speculation: Option<Speculation<'a>>,
    /// How many of the likeliest tokens come with each token, with their logprobs. 0: none.
    pub top_logprobs: usize,
    /// Whether to give the logprobs of the prompt's tokens, too. Its prefix is then not taken from the prefix cache.
    pub prompt_logprobs: bool,
    /// The adapters whose effects are added for this request, among those that the model was opened with for requests to
    /// choose ([`EngineOptions::adapters`](crate::EngineOptions::adapters) of them). Default: none.
    pub adapters: Vec<AdapterChoice>,
    /// Ends the request when it becomes true: looked at between steps.
    pub cancel: Option<Arc<AtomicBool>>,
    /// Ends the request at the first step after this moment.
    pub deadline: Option<Instant>,
    /// Whether the sequence is kept when the request is over, until [`Engine::take_sequence`](crate::Engine::take_sequence).
    pub keep_sequence: bool,
}

impl Request<'_> {
    /// Continues `prompt` with `options`; all else is off.
    pub fn new(prompt: impl Into<Prompt>, options: GenerateOptions) -> Self {
        Self { prompt: prompt.into(), options, ..Self::default() }
    }
}

impl std::fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("prompt", &self.prompt)
            .field("options", &self.options)
            .field("stop_tokens", &self.stop_tokens)
            .finish_non_exhaustive()
    }
}

/// What a request continues.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// Tokens, which the engine embeds.
    Tokens(Vec<TokenId>),
    /// Rows that are embedded already, such as those of an image and the text about it.
    Inputs {
        /// The rows, from the first token of the sequence on. After a sequence that has tokens, these come first among
        /// them; only what follows is prefilled.
        inputs: Inputs,
        /// Intervals of positions that see themselves both ways, in order: an image, or an image and the text about it. Each
        /// is prefilled in one piece. Empty for a causal prompt.
        blocks: Vec<Range<usize>>,
    },
}

impl Default for Prompt {
    fn default() -> Self {
        Self::Tokens(Vec::new())
    }
}

impl From<Vec<TokenId>> for Prompt {
    fn from(tokens: Vec<TokenId>) -> Self {
        Self::Tokens(tokens)
    }
}

impl From<&[TokenId]> for Prompt {
    fn from(tokens: &[TokenId]) -> Self {
        Self::Tokens(tokens.to_vec())
    }
}

/// Makes text of an answer's tokens, and says where the answer ends.
pub trait StopRule: Send {
    /// Takes the next token. Returns the text that can be shown now, often none: what may still be cut is held back.
    fn push(&mut self, token: TokenId) -> String;

    /// Whether the text is over; what follows is not part of the answer.
    fn stopped(&self) -> bool;

    /// No more tokens come: returns what was held back and belongs to the answer.
    fn finish(&mut self) -> String;
}

/// Restricts what may be sampled next: the hook for grammars and JSON schemas.
pub trait TokenMask: Send {
    /// Marks the tokens that may come next. `allowed` has one entry per token of the vocabulary, all `false`. When the
    /// answer may end here, the stop tokens are to be marked, too.
    ///
    /// # Errors
    /// Why the request fails, such as a grammar that took more than its limits.
    fn allow(&mut self, allowed: &mut [bool]) -> Result<(), String>;

    /// Takes the token that was sampled, a stop token as well.
    ///
    /// # Errors
    /// Why the request fails.
    fn accept(&mut self, token: TokenId) -> Result<(), String>;
}
