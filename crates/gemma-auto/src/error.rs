//! Everything that can go wrong between a name and a model.

use std::path::PathBuf;

/// Why a model could not be opened, or cannot do what was asked.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model, its configuration or its tokenizer.
    #[error(transparent)]
    Model(#[from] gemma_model::Error),
    /// Fill-in-the-middle.
    #[error(transparent)]
    CodeGemma(#[from] codegemma::Error),
    /// Images, boxes or masks.
    #[error(transparent)]
    PaliGemma(#[from] paligemma::Error),
    /// Gemma 3's images.
    #[error(transparent)]
    Gemma3(#[from] gemma3::Error),
    /// A model that embeds texts.
    #[error(transparent)]
    EmbeddingGemma(#[from] embeddinggemma::Error),
    /// The file or folder of the weights, or the hub.
    #[error(transparent)]
    Weights(#[from] gemma_weights::Error),
    /// The prompt or an option of the generation.
    #[error(transparent)]
    Generate(#[from] gemma_generate::Error),
    /// The tokenizer's file.
    #[error(transparent)]
    Tokenizer(#[from] gemma_tokenizer::Error),
    /// The backend.
    #[error(transparent)]
    Backend(#[from] gemma_backend::BackendError),
    /// A fault in the metadata of a GGUF file.
    #[error("{fault}")]
    InGguf {
        /// The fault, with the name of the file, its keys and its names of tensors.
        fault: String,
        /// The fault.
        cause: Box<Error>,
    },
    /// `demo:NAME` with an unknown name.
    #[error("there is no built-in model {name}; use {}", known.join(", "))]
    NoDemo {
        /// The name as given.
        name: String,
        /// The names that exist.
        known: Vec<String>,
    },
    /// `shape:NAME` with an unknown name.
    #[error("there is no shape {name}; use one of {}", known.join(", "))]
    NoShape {
        /// The name as given.
        name: String,
        /// The names that exist.
        known: Vec<&'static str>,
    },
    /// The folder or file holds no tokenizer.
    #[error("{name} holds neither tokenizer.json nor tokenizer.model; take one of them from the model's repository")]
    NoTokenizer {
        /// The name as given.
        name: String,
    },
    /// A file that was named as a tokenizer is none.
    #[error(
        "{} is not a tokenizer; name a tokenizer.json, a tokenizer.model, their folder or a GGUF file",
        file.display()
    )]
    NotATokenizer {
        /// The file.
        file: PathBuf,
    },
    /// A tokenizer file cannot be used.
    #[error("cannot use {}: {cause}", file.display())]
    TokenizerFile {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        cause: gemma_tokenizer::Error,
    },
    /// A number of threads that is not possible.
    #[error("threads is {threads}; choose a number from 1 to {most}")]
    ThreadCount {
        /// What was asked for.
        threads: usize,
        /// The most there can be.
        most: usize,
    },
    /// The threads of the process have been started.
    #[error("this process computes with {running} threads already; ask for {wanted} before the first model is opened")]
    ThreadsChosen {
        /// How many there are.
        running: usize,
        /// How many were asked for.
        wanted: usize,
    },
    /// The model does not do what was asked.
    #[error("a {architecture} model does not {ability}; {instead}")]
    Incapable {
        /// Its architecture.
        architecture: String,
        /// What was asked.
        ability: &'static str,
        /// What to do.
        instead: &'static str,
    },
}

/// The sentence, which is what a `main` prints that returns the error.
impl std::fmt::Debug for Error {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, formatter)
    }
}
