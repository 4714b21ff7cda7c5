//! Gemma models behind protocols.
//!
//! | Module | What is in it |
//! |---|---|
//! | `http` (feature `http`) | an HTTP server: OpenAI's, llama.cpp's, vLLM's, Mistral's and Ollama's protocols |
//! | [`grammar`] (feature `grammar`) | constrained decoding: grammars and JSON schemas as token masks |
//! | [`tokens`] (feature `grammar`) | tokens and logprobs as OpenAI's API spells them |
//! | `lsp` (feature `lsp`) | a language server: code completion in editors, by a CodeGemma |

#[cfg(feature = "lsp")]
mod error;
#[cfg(feature = "grammar")]
pub mod grammar;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "lsp")]
pub mod lsp;
#[cfg(feature = "grammar")]
pub mod tokens;

#[cfg(feature = "lsp")]
pub use error::Error;
