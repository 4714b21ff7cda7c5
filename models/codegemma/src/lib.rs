//! CodeGemma: fill-in-the-middle for code, on Burn.
//!
//! ```
//! use codegemma::{Infill, InfillOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // the demo model is part of the library; `CodeGemma::load("google/codegemma-2b", &device)` opens a real one
//! let model = codegemma::demo(&codegemma::default_device()?)?;
//! let hole = Infill::new("def first_price(prices):\n    best = ", "\n    return best\n");
//! println!("{}", model.infill(&hole, &InfillOptions::default())?.text);
//! # Ok(())
//! # }
//! ```
//!
//! The network is Gemma's ([`CodeGemma::gemma`]); what is here is the way in and out of it. [`Infill`] describes a hole and
//! becomes a prompt, cut to a budget where it has to be ([`Truncation`]); the rules of [`InfillStop`] say where the text in the hole
//! ends; a [`Session`] fills one hole after the other and reads only what is new. Programs, servers and editors all go
//! through [`Session::stream`] or [`CodeGemma::stream_infill`].
//!
//! # Features
//!
//! Those of the crate `gemma`: `ndarray` (default), `flex`, `wgpu`, `vulkan`, `metal`, and `hub` (default).
//!
//! # What is not supported
//!
//! Infilling by instruction-tuned models, which have the tokens and were not trained to use them; and prompts that name a
//! repository, for which CodeGemma has no token.

pub mod benchmark;
mod demo;
mod error;
mod fim;
mod front;
mod infill_stop;
mod language;
mod lesson;
mod line_ending;
mod prompt;
mod session;
mod truncation;

pub use demo::{demo, demo_checkpoint, demo_tokenizer, demo_with};
pub use error::Error;
pub use fim::{File, Infill, Order, fim_tokens, stop_tokens};
pub use front::{CodeGemma, InfillOptions};
pub use infill_stop::InfillStop;
pub use language::Language;
pub use lesson::{Lesson, code_lesson, hole_lesson};
pub use line_ending::LineEnding;
pub use prompt::Prompt;
pub use session::{InfillStream, Infilled, Session, prompt_room};
pub use truncation::Truncation;

pub use gemma::{
    ActivationPrecision, Backend, CachePrecision, Checkpoint, Conversation, Device, Dtype, FinishReason, Gemma,
    GenerateOptions, Generated, LoadOptions, Precision, TextStream, Timings, TokenId, Tokenizer, Turn, default_device,
};
pub use gemma_tokenizer::FimTokens;
