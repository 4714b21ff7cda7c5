//! CodeGemma: fill-in-the-middle for code, on Burn.

pub mod benchmark;
mod cut;
mod demo;
mod error;
mod fim;
mod front;
mod language;
mod middle;
mod session;

pub use cut::Cut;
pub use demo::{demo, demo_checkpoint, demo_tokenizer, demo_with};
pub use error::Error;
pub use fim::{File, Infill, Order, Prompt, fim_tokens, stop_tokens};
pub use front::{CodeGemma, InfillOptions};
pub use language::Language;
pub use middle::Extent;
pub use session::{InfillStream, Infilled, Session};
