//! The mill: from a model that says what may come next to a text that someone reads.
//!
//! This crate knows no model and no file: it sees one trait, [`CausalModel`], and token numbers. Read
//! `generation.rs` if you read only one page of it.
//!
//! ```no_run
//! use gemma_generate::{CausalModel, Error, GenerateOptions, Generation, TextStream};
//! use gemma_tokenizer::Tokenizer;
//!
//! fn tell<M: CausalModel>(model: &M, tokenizer: &Tokenizer, prompt: &str) -> Result<(), Error> {
//!     let options = GenerateOptions { seed: Some(1), ..GenerateOptions::default() };
//!     let generation = Generation::new(model, &tokenizer.encode(prompt), &options, &[tokenizer.eos()])?;
//!     for piece in TextStream::new(generation, tokenizer.stream()) {
//!         print!("{}", piece?);
//!     }
//!     Ok(())
//! }
//! ```
//!
//! | Module | What is in it |
//! |---|---|
//! | `generation` | [`Generation`]: read what is unread, pick, stop or yield |
//! | `lookup` | [`Lookup`]: guesses from what was there before, for the model to check several at once |
//! | `model` | [`CausalModel`]: all that the loop asks of a model |
//! | `sequence` | [`Sequence`]: what a model has read, and what it has yet to read |
//! | `sampler`, `softmax`, `random` | [`Sampler`]: logits in, one token out |
//! | `text`, `stop_text` | [`TextStream`]: whole characters, cut before a stop text |
//! | `batch` | [`generate_batch`]: many prompts, one call of the model per step |
//! | `score` | [`score`](fn@score): how likely a model finds a given text |
//! | `options`, `error` | [`GenerateOptions`] and what is wrong with them |
//!
//! # What is not supported
//!
//! Beam search, constrained decoding (grammars), per-token biases and drafts by a second model.

mod batch;
mod error;
#[cfg(test)]
mod fake;
mod generation;
mod lookup;
mod model;
mod options;
mod random;
mod sampler;
mod score;
mod sequence;
mod softmax;
mod stop_text;
mod text;

pub use batch::{Request, finish_batch, generate_batch};
pub use error::Error;
pub use generation::{FinishReason, Generation, Timings};
pub use lookup::Lookup;
pub use model::CausalModel;
pub use options::GenerateOptions;
pub use sampler::{Pick, Sampler};
pub use score::{SCORE_CHUNK, Score, score, score_windows};
pub use sequence::Sequence;
pub use stop_text::StopText;
pub use text::{Generated, TextDecoder, TextStream};

pub use gemma_nn::Segment;
pub use gemma_tokenizer::TokenId;
