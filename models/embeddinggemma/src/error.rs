//! Everything that can go wrong because of what a user gave, in one enum.

use std::path::PathBuf;

/// Why a model could not be opened, or a text not be embedded.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint, its configuration, its tokenizer or the device.
    #[error(transparent)]
    Model(#[from] gemma_model::Error),
    /// A folder lacks a file that an embedding model needs.
    #[error(
        "{}: {file} is missing; an embedding model is a whole sentence-transformers folder, its dense layers included",
        folder.display()
    )]
    MissingFile {
        /// The folder.
        folder: PathBuf,
        /// The file.
        file: String,
    },
    /// A GGUF file was made without the dense layers.
    #[error(
        "{}: {tensor} is missing; the file was converted without the dense layers, take one that has them (llama.cpp: --sentence-transformers-dense-modules)",
        file.display()
    )]
    NoDenseLayers {
        /// The file.
        file: PathBuf,
        /// The first tensor that is missing.
        tensor: &'static str,
    },
    /// A file of the sentence-transformers folder says what this crate does not compute.
    #[error("{}: {field} is {value}; it must be {expected}", file.display())]
    Module {
        /// The file.
        file: PathBuf,
        /// The field.
        field: String,
        /// Its value.
        value: String,
        /// What is supported.
        expected: String,
    },
    /// A file of the sentence-transformers folder is not JSON of its shape.
    #[error("{}: {}; take the file from the model's repository", file.display(), gemma_model::one_line(cause))]
    Json {
        /// The file.
        file: PathBuf,
        /// What the parser said.
        cause: serde_json::Error,
    },
    /// A text's embedding holds NaN or an infinity.
    #[error("the embedding of text {row} is not finite; check the checkpoint, or load it with precision f32")]
    NotFinite {
        /// Which text, from 0.
        row: usize,
    },
    /// There is no task and no prompt of this name.
    #[error("there is no task {name}; use one of {names}")]
    NoTask {
        /// The name as given.
        name: String,
        /// The names that exist.
        names: String,
    },
    /// A size that the vectors cannot be cut to.
    #[error("{dimensions} dimensions were asked for and the model has {most}; give a number from 1 to {most}")]
    Dimensions {
        /// The size asked for.
        dimensions: usize,
        /// The model's.
        most: usize,
    },
    /// A row of tokens that is empty, or longer than the model reads.
    #[error("a text of {tokens} tokens; give 1 to {limit}, or let longer texts be cut")]
    Length {
        /// Tokens of the row.
        tokens: usize,
        /// The most that the model reads.
        limit: usize,
    },
    /// A token id that the model does not know.
    #[error("token {token} is not below the vocabulary size {vocab}; use the tokenizer that belongs to the model")]
    Token {
        /// The id.
        token: u32,
        /// Rows of the embedding table.
        vocab: usize,
    },
}

/// The sentence, which is what a `main` prints that returns the error.
impl std::fmt::Debug for Error {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, formatter)
    }
}

/// Errors of the layers below come in as the front door's.
macro_rules! through_the_front_door {
    ($($error:ty),+) => {$(
        impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::Model(error.into())
            }
        }
    )+};
}
through_the_front_door!(gemma_weights::Error, gemma_tokenizer::Error, gemma_backend::BackendError);
