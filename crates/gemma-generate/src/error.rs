//! What can go wrong around a generation, as sentences a user can act on.

use gemma_tokenizer::TokenId;

/// Why a generation could not begin or go on.
///
/// Everything but [`Error::NotFinite`], [`Error::NoToken`], [`Error::LogitsShape`] and [`Error::Device`] is
/// found before the model reads a single token.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
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
    /// The model, or the caller of [`Generation::resume`](crate::Generation::resume), gave a wrong number of logits.
    #[error("the logits have shape {found:?} where {expected:?} were due; check the model's read")]
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
    /// One request of a batch is wrong.
    #[error("request {index} of the batch: {source}")]
    Request {
        /// Which, counted from 0.
        index: usize,
        /// What is wrong with it.
        source: Box<Error>,
    },
}
