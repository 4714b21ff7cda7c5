//! Text to tokens and back for the Gemma family: control tokens, chat template, incremental decoding.
//!
//! It knows no model and no tensor: a token is a number ([`TokenId`]).
//!
//! ```no_run
//! use gemma_tokenizer::{ChatTemplate, Family, Tokenizer, Turn};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let tokenizer = Tokenizer::from_json(&std::fs::read("gemma-2-2b-it/tokenizer.json")?, Family::Gemma)?;
//! let ids = tokenizer.encode("Why is the sky blue?");                  // <bos> once in front
//! let text = tokenizer.decode(&ids);                                   // the same text
//! let prompt = tokenizer.chat(&ChatTemplate::builtin(), &[Turn::user("Why is the sky blue?")], true)?;
//! # Ok(()) }
//! ```
//!
//! # The three kinds of pieces
//!
//! - **Ordinary pieces** are found by byte-pair merging; a character without a piece becomes its UTF-8 bytes.
//! - **Literal pieces** (runs of newlines, tabs and spaces, and HTML tags) are matched first, longest at the leftmost
//!   place; merging happens only between them.
//! - **Control tokens** (`<bos>`, `<end_of_turn>`, `<|fim_prefix|>`, `<unused7>`, `<loc0012>`, ...) are what a model
//!   is steered by. Text that spells one stays text, whoever wrote it, unless [`EncodeOptions::specials`] is set; the
//!   chat template's own control tokens are the exception, and a message can never add to them.
//!
//! # Where things are
//!
//! | Module | What is in it |
//! |---|---|
//! | `tokenizer` | [`Tokenizer`]: encoding and decoding; the page to read first |
//! | `control` | the family's table of control tokens, [`ControlTokens`], [`Family`] |
//! | `vocabulary` | the pieces, their numbers and their kinds |
//! | `literals` | leftmost-longest matching of literal pieces and control tokens |
//! | `engine` | byte-pair merging, by a merge list (the `tokenizers` crate) or by scores (SentencePiece's rule) |
//! | `tokenizer_json`, `sentencepiece` | the two file formats |
//! | `stream` | [`DecodeStream`]: tokens in, whole characters out |
//! | `tools` | [`ModelOutput`]: thoughts, calls of tools and text in what a model says |
//! | `turn` | [`Turn`]: who says what, images, tool calls |
//! | `chat`, `jinja` | [`ChatTemplate`]: the built-in one, and the interpreter for the model's own |
//!
//! # What is not supported
//!
//! Vocabularies of other families: a `tokenizer.json` with another normalizer, pre-tokenizer or decoder, or a
//! SentencePiece model that is not a byte-pair model without dummy prefix, is refused with an error that names the
//! field.

mod chat;
mod control;
mod engine;
mod error;
mod jinja;
mod literals;
mod names;
mod sentencepiece;
mod stream;
mod tokenizer;
mod tokenizer_json;
mod tools;
mod turn;
mod vocabulary;

pub use chat::{ChatOptions, ChatPiece, ChatTemplate, RenderedChat};
pub use control::{ControlTokens, Family, FimTokens};
pub use error::Error;
pub use stream::DecodeStream;
pub use tokenizer::{DecodeOptions, EncodeOptions, SentencePiece, Tokenizer};
pub use tools::ModelOutput;
pub use turn::{Part, Role, ToolCall, Turn};

/// The number of a token in its vocabulary.
pub type TokenId = u32;

/// What this crate's fallible functions return.
pub type Result<T> = std::result::Result<T, Error>;
