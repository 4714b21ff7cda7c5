//! EmbeddingGemma: texts to vectors for search, clustering and comparison, on Burn.
//!
//! ```no_run
//! use embeddinggemma::{EmbeddingGemma, Task, default_device};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = EmbeddingGemma::load("google/embeddinggemma-300m", &default_device()?)?;
//! let query = model.embed(&["Which planet is red?"], Task::Query)?;
//! let texts = ["Venus is Earth's twin.", "Mars is known as the Red Planet."];
//! let documents = model.embed(&texts, Task::Document { title: None })?;
//! let best = documents.rows().map(|row| embeddinggemma::dot(row, query.row(0)));
//! println!("{:?}", best.collect::<Vec<f32>>());
//! # Ok(())
//! # }
//! ```
//!
//! [`EmbeddingGemma`] is the front door: a sentence-transformers folder or a GGUF file, with its tokenizer. A text gets
//! the prefix of its [`Task`], `<bos>` and `<eos>`; all texts of a call lie on one flat axis of tokens
//! ([`EmbeddingNetwork`]). The vectors have length 1, so that a dot product is a cosine. They may be cut to fewer
//! dimensions (512, 256 and 128 were trained for: Matryoshka representation learning) and are then normalised again.

mod embedding;
mod error;
mod folder;
mod front;
mod network;
mod task;

pub use embedding::{Embeddings, dot};
pub use error::Error;
pub use front::{EmbedOptions, EmbeddingGemma, OnEmbed};
pub use network::{EmbeddingConfig, EmbeddingNetwork};
pub use task::Task;

pub use gemma_backend::{Backend, Device, default_device};
pub use gemma_model::LoadOptions;
