//! Gemma models behind protocols.
//!
//! | Module | What is in it |
//! |---|---|
//! | [`lsp`] | a language server: code completion in editors, by a CodeGemma |

mod error;
pub mod lsp;

pub use error::Error;
