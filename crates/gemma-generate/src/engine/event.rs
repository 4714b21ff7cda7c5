//! What an engine tells about its requests.

use gemma_tokenizer::TokenId;

use crate::{Error, FinishReason, Timings};

/// The number of a request within its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub(crate) u64);

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A token with its logprob, and those of the likeliest in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token.
    pub token: TokenId,
    /// Natural logarithm of its probability under the model, before penalties, bias, mask and temperature; `None` for the
    /// first token of a prompt, which nothing precedes.
    pub logprob: Option<f64>,
    /// The likeliest tokens in this place and their logprobs, best first; as many as
    /// [`Request::top_logprobs`](crate::Request::top_logprobs) asks for.
    pub top: Vec<(TokenId, f64)>,
}

/// What happened to one request in a [step](crate::Engine::step).
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The request was admitted; its prefill begins.
    Started {
        /// The request.
        id: RequestId,
        /// Tokens of the prompt that the prefix cache held.
        cached: usize,
    },
    /// A chunk of the prompt was prefilled.
    Prefill {
        /// The request.
        id: RequestId,
        /// Tokens of the prompt in the cache, those included that the prefix cache held.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
        /// Tokens of the prompt that the prefix cache held.
        cached: usize,
    },
    /// Logprobs of the prompt's tokens, in their order, some at a time.
    PromptLogprobs {
        /// The request.
        id: RequestId,
        /// The next tokens of the prompt.
        tokens: Vec<TokenLogprobs>,
    },
    /// A token of the answer.
    Token {
        /// The request.
        id: RequestId,
        /// The token and its logprobs.
        token: TokenLogprobs,
        /// Text that is ready to be shown, often empty; always empty without a stop rule.
        text: String,
    },
    /// The request is over; no event of it follows.
    Finished {
        /// The request.
        id: RequestId,
        /// Why.
        reason: FinishReason,
        /// Text that was held back until now.
        text: String,
        /// The stop token that ended it, which is no part of the answer.
        stop_token: Option<TokenLogprobs>,
        /// What it took.
        timings: Timings,
        /// Tokens of the prompt that the prefix cache held.
        cached: usize,
        /// The seed of its sampler: with it, the same comes again.
        seed: u64,
    },
    /// The request failed, and it alone; no event of it follows.
    Failed {
        /// The request.
        id: RequestId,
        /// Why.
        error: Error,
    },
}

impl Event {
    /// The request.
    pub fn id(&self) -> RequestId {
        match self {
            Self::Started { id, .. }
            | Self::Prefill { id, .. }
            | Self::PromptLogprobs { id, .. }
            | Self::Token { id, .. }
            | Self::Finished { id, .. }
            | Self::Failed { id, .. } => *id,
        }
    }

    /// Whether no event of the request follows.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Finished { .. } | Self::Failed { .. })
    }
}
