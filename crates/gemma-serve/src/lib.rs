//! Gemma models behind protocols.
//!
//! | Module | What is in it |
//! |---|---|
//! | `http` (feature `http`) | an HTTP server: OpenAI's, llama.cpp's, vLLM's, Mistral's and Ollama's protocols |
//! | `lsp` (feature `lsp`) | a language server: code completion in editors, by a CodeGemma |

#[cfg(feature = "lsp")]
mod error;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "lsp")]
pub mod lsp;

#[cfg(feature = "lsp")]
pub use error::Error;
