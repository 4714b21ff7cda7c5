//! What can go wrong, in sentences: every failure of this crate comes from a file or from a conversation.

use crate::TokenId;

/// Why a tokenizer or a chat prompt could not be made.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name of a family that there is none of.
    #[error("unknown family {name}; use one of {}", known.join(", "))]
    UnknownFamily {
        /// The name as given.
        name: String,
        /// The names of all families.
        known: Vec<&'static str>,
    },

    /// The file is not JSON of the expected shape.
    #[error("{file} cannot be read: {}; get the file again from where the model came from", short(reason))]
    Json {
        /// `tokenizer.json` or `tokenizer_config.json`.
        file: &'static str,
        /// What the parser found, and where.
        reason: String,
    },

    /// The file is not a SentencePiece model.
    #[error(
        "tokenizer.model cannot be read: {reason} at byte {offset}; get the file again from where the model came from"
    )]
    SentencePiece {
        /// Where in the file, in bytes.
        offset: usize,
        /// What was wrong there.
        reason: &'static str,
    },

    /// The file asks for something that no Gemma tokenizer does, so reading on would give wrong tokens.
    #[error("{file}: {field} is {value}, which no Gemma tokenizer uses; take the {file} that came with the model")]
    Unsupported {
        /// `tokenizer.json` or `tokenizer.model`.
        file: &'static str,
        /// Path of the field in the file.
        field: &'static str,
        /// The value found.
        value: String,
    },

    /// A piece that every Gemma vocabulary has is not there.
    #[error("the vocabulary has no {piece}; take the tokenizer of a Gemma model that has it")]
    MissingPiece {
        /// The piece.
        piece: String,
    },

    /// A piece appears under two numbers.
    #[error(
        "the vocabulary gives {:?} both the numbers {first} and {second}; get the tokenizer again from where the model came from",
        crate::jinja::cut(piece)
    )]
    PieceTwice {
        /// The piece.
        piece: String,
        /// Its first number.
        first: TokenId,
        /// Its other number.
        second: TokenId,
    },

    /// Two pieces share a number.
    #[error(
        "the vocabulary gives {:?} and {:?} the same number {id}; get the tokenizer again from where the model came from",
        crate::jinja::cut(first),
        crate::jinja::cut(second)
    )]
    IdTwice {
        /// The number.
        id: TokenId,
        /// The piece that had it first.
        first: String,
        /// The piece that claims it too.
        second: String,
    },

    /// A number beyond any vocabulary, which would only cost memory.
    #[error(
        "the vocabulary gives {:?} the number {id}, but numbers end at {limit}; get the tokenizer again from where the model came from",
        crate::jinja::cut(piece)
    )]
    IdTooLarge {
        /// The piece.
        piece: String,
        /// Its number.
        id: u64,
        /// The largest number accepted.
        limit: TokenId,
    },

    /// A merge rule that makes something that is not a piece.
    #[error(
        "tokenizer.json merges {:?} and {:?}, which gives no piece of the vocabulary; get the file again from where the model came from",
        crate::jinja::cut(left),
        crate::jinja::cut(right)
    )]
    Merge {
        /// Left part.
        left: String,
        /// Right part.
        right: String,
    },

    /// No such role; see [`Role`](crate::Role).
    #[error("{name:?} is not a role; use user, model (or assistant), system (or developer) or tool")]
    UnknownRole {
        /// What was given.
        name: String,
    },

    /// A message of another shape than OpenAI's interface has.
    #[error("a message's {field} is not {wanted}")]
    Message {
        /// Path of the field.
        field: &'static str,
        /// What belongs there.
        wanted: &'static str,
    },

    /// The chat template refuses this conversation, in its own words.
    #[error("the chat template refuses the conversation: {reason}")]
    ChatRefused {
        /// What the template says, for example `System role not supported`; at most a line or two.
        reason: String,
    },

    /// The model's chat template has an error.
    #[error("the model's chat template failed: {reason}; the built-in one can be used instead (--template builtin)")]
    Template {
        /// What is wrong, and in which line.
        reason: String,
    },

    /// The model's chat template is longer, or nested deeper, than any template needs.
    #[error(
        "the model's chat template failed: {reason}; leave it out of the model, or name another one (--template builtin)"
    )]
    TemplateLimit {
        /// Which limit is passed, and in which line.
        reason: String,
    },

    /// The model's chat template ran for too long or wrote too much.
    #[error(
        "the model's chat template takes too much work or memory to render; the built-in one can be used instead (--template builtin)"
    )]
    TemplateCost,
}

/// The sentence, which is what a `main` prints that returns the error.
impl std::fmt::Debug for Error {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, formatter)
    }
}

/// What a parser says, on one line: it quotes what it read, and then says what it expected and where.
fn short(reason: &str) -> String {
    const START: usize = 100;
    const END: usize = 100;
    let letters: Vec<char> = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if letters.len() <= START + END {
        return letters.into_iter().collect();
    }
    let [start, end] = [&letters[..START], &letters[letters.len() - END..]].map(|part| part.iter().collect::<String>());
    format!("{start}...{end}")
}
