//! The decoding loop: from a model that gives logits to a text that someone reads.
//!
//! This crate knows no model and no file: it sees one trait, [`CausalModel`], and token ids. [`Engine`] is its heart;
//! everything else is a face of it or a part.
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
//! | `model`, `cache` | [`CausalModel`], [`Cache`]: all that the engine asks of a model |
//! | `engine` | [`Engine`]: continuous batching, prefix cache, per-request errors; [`EngineThread`]: the same on a thread |
//! | `generation` | [`Generation`]: one request as an iterator of tokens |
//! | `batch` | [`generate_batch`]: many requests, run to their ends |
//! | `sequence` | [`Sequence`]: tokens, and the cache of those that the model has run over |
//! | `speculative` | [`Speculation`]: tokens drafted by a [`PromptLookup`] or a [`DraftModel`], verified several at once |
//! | `sampler`, `softmax`, `random` | [`Sampler`]: logits in, one token out |
//! | `rows`, `saturation` | the logits of a pass: whole rows on the host, or the largest of each from a GPU |
//! | `text`, `stop_text` | [`TextStream`]: whole characters, ended before a stop text |
//! | `score` | [`score`](fn@score): logprobs and perplexity of a given text |
//! | `options`, `finish`, `error` | [`GenerateOptions`], why a generation is over, what is wrong with a request |
//!
//! # What is not supported
//!
//! Beam search, and drafts by a second model. Grammars come in through [`TokenMask`].

mod batch;
mod cache;
mod engine;
mod error;
#[cfg(test)]
mod fake;
mod finish;
mod generation;
mod model;
mod options;
mod random;
mod rows;
mod sampler;
mod saturation;
mod score;
mod sequence;
mod softmax;
mod speculative;
mod stop_text;
mod text;

pub use batch::generate_batch;
pub use cache::{Cache, CacheTensors};
pub use engine::{
    Engine, EngineHandle, EngineOptions, EngineStats, EngineThread, Event, Prompt, Request, RequestEvents, RequestId,
    StopRule, TokenLogprobs, TokenMask,
};
pub use error::Error;
pub use finish::{FinishReason, Timings};
pub use generation::Generation;
pub use model::{CausalModel, Inputs, logits_in_chunks};
pub use options::GenerateOptions;
pub use sampler::{Dry, Mirostat, SampledToken, Sampler, top_logprobs};
pub use score::{SCORE_CHUNK, Score, score, score_windows};
pub use sequence::{Sequence, check_tokens};
pub use softmax::check_logits;
pub use speculative::{DraftCost, DraftModel, Drafter, ModelDrafter, PromptLookup, Speculation};
pub use stop_text::StopText;
pub use text::{Generated, TextDecoder, TextStream};

pub use gemma_nn::{AdapterChoice, Phase, Segment};
pub use gemma_tokenizer::TokenId;
