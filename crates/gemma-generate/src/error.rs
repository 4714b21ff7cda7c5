//! What can go wrong around a generation, as sentences a user can act on.

use gemma_tokenizer::TokenId;

/// Why a generation could not begin or go on.
///
/// Everything but [`Error::NotFinite`], [`Error::NoToken`], [`Error::LogitsShape`] and [`Error::Device`] is
/// found before the model reads a single token.
#[derive(Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option has a value outside its range.
    #[error("{option} is {value}; choose {permitted}")]
    InvalidOption {
        /// Name of the field of [`GenerateOptions`](crate::GenerateOptions), or of the argument.
        option: &'static str,
        /// What it was set to.
        value: String,
        /// What it may be set to.
        permitted: &'static str,
    },
    /// There is nothing to read, so nothing follows from it.
    #[error("the prompt is empty; give at least one token (usually <bos> and a text)")]
    EmptyPrompt,
    /// The sequence does not fit into the model's context.
    #[error("the prompt needs {tokens} tokens of context and the model has {limit}; shorten the prompt")]
    PromptTooLong {
        /// Tokens the sequence holds with the prompt at its end.
        tokens: usize,
        /// Tokens the model can hold.
        limit: usize,
    },
    /// A token number that the model's vocabulary does not have.
    #[error(
        "token {token} at place {place} of the prompt is not in the model's vocabulary of {vocab}; \
         use the tokenizer that belongs to the model"
    )]
    TokenOutOfRange {
        /// The number.
        token: TokenId,
        /// Where it stands, counted from 0.
        place: usize,
        /// How many tokens the model knows.
        vocab: usize,
    },
    /// A draft model whose cache cannot take back a rejected token.
    #[error("a recurrent model cannot draft tokens, since it cannot take them back; choose another draft model")]
    CannotDraft,
    /// Fewer than two tokens: the first has no predecessor that could predict it.
    #[error("{tokens} tokens cannot be scored; give at least two, since the first only serves as context")]
    NothingToScore {
        /// How many there are.
        tokens: usize,
    },
    /// The model computed a logit that no probability follows from.
    #[error("the model gave token {token} the logit {logit}; check the checkpoint, or load it with precision f32")]
    NotFinite {
        /// The first such token.
        token: usize,
        /// NaN or positive infinity.
        logit: f32,
    },
    /// All logits are minus infinity: no token is possible.
    #[error("the model excluded all {vocab} tokens (each logit is -inf); check the checkpoint")]
    NoToken {
        /// How many logits there were.
        vocab: usize,
    },
    /// The model gave a wrong number of logits.
    #[error("the logits have shape {found:?} where {expected:?} were due; check the model's logits")]
    LogitsShape {
        /// Rows and columns received.
        found: [usize; 2],
        /// Rows and columns needed.
        expected: [usize; 2],
    },
    /// The device failed to compute or to hand over the logits.
    #[error("the device could not compute the logits ({reason}); try a shorter context or another backend")]
    Device {
        /// What the backend reported, on one line.
        reason: String,
    },
    /// A logit bias for a token that the model's vocabulary does not have.
    #[error("logit_bias names token {token}, which is not in the model's vocabulary of {vocab}; leave it out")]
    BiasedTokenOutOfRange {
        /// The token.
        token: TokenId,
        /// How many tokens the model knows.
        vocab: usize,
    },
    /// Logit bias and mask exclude every token that the model could give.
    #[error("logit bias and mask exclude every token; let them allow at least one, or a stop token")]
    NothingAllowed,
    /// A request's mask gave up.
    #[error("the mask of the request failed: {reason}")]
    Mask {
        /// What the mask said.
        reason: String,
    },
    /// A prompt of embedded rows that does not fit together.
    #[error(
        "the prompt has {rows} rows of embeddings for {tokens} tokens and blocks up to token {last}; give one row per \
         token, blocks in order within them, and the tokens of the sequence first"
    )]
    InputRows {
        /// Rows of embeddings.
        rows: usize,
        /// Token ids.
        tokens: usize,
        /// Where the last block that sees itself both ways ends, in tokens.
        last: usize,
    },
    /// A request whose cache is larger than the engine's limit.
    #[error(
        "the request needs up to {needed} bytes of cache and the engine has {limit}; shorten the prompt or max_tokens, or \
         raise max_cache_bytes"
    )]
    CacheTooSmall {
        /// Bytes for the prompt and the longest answer.
        needed: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A request chose an adapter that the model was not opened with, one twice, or a strength that is no number.
    #[error(
        "the request chooses adapter {adapter} with strength {strength}; choose each of the model's {adapters} at most \
         once, by its number from 0 on, with a finite strength"
    )]
    Adapter {
        /// The number of the adapter.
        adapter: usize,
        /// How much of it.
        strength: f32,
        /// How many there are.
        adapters: usize,
    },
    /// The engine's thread has ended.
    #[error("the engine was stopped; submit the request to another")]
    EngineStopped,
    /// The model panicked in a forward pass.
    #[error("the model failed in a forward pass; try again, with a shorter prompt or another backend")]
    ModelPanicked,
    /// One request of a batch is wrong.
    #[error("request {index} of the batch: {source}")]
    Request {
        /// Which, counted from 0.
        index: usize,
        /// What is wrong with it.
        source: Box<Error>,
    },
}

/// The sentence, which is what a `main` prints that returns the error.
impl std::fmt::Debug for Error {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, formatter)
    }
}
