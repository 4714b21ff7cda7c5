//! Everything that can go wrong because of what a user gave, in one enum.

/// Why something could not be judged.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model: its checkpoint, configuration, tokenizer or device, a prompt or an option.
    #[error(transparent)]
    Model(#[from] gemma_model::Error),
    /// There is no built-in guideline of this name.
    #[error("there is no guideline {name}; use one of {names}, or give a file")]
    NoGuideline {
        /// What was asked for.
        name: String,
        /// The names there are.
        names: String,
    },
    /// A file of guidelines cannot be used.
    #[error(
        "{name}: not a guideline ({reason}); give a JSON object with `name`, `title` and any of `prompt`, `response`, `image`, a list of such objects, or one rule as plain text"
    )]
    GuidelineFile {
        /// The file.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A guideline has no rule for what is to be judged.
    #[error("the guideline {name} says nothing about {what}; use another one")]
    NotAbout {
        /// The guideline.
        name: String,
        /// Prompts, responses or images.
        what: &'static str,
    },
    /// The vocabulary lacks a word that the answer is read from.
    #[error("the tokenizer has no piece `{piece}`; use the tokenizer that belongs to the model")]
    MissingPiece {
        /// The word.
        piece: &'static str,
    },
}

/// The sentence, which is what a `main` prints that returns the error.
impl std::fmt::Debug for Error {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, formatter)
    }
}
