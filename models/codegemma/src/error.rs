//! What can go wrong around an infilling, in sentences.

/// Why a hole could not be filled.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model knows no infilling.
    #[error(
        "the model's vocabulary has no infilling tokens (<|fim_prefix|> and its like), so it cannot fill holes; take a \
         CodeGemma such as google/codegemma-2b"
    )]
    NoInfilling,
    /// Too few tokens for any prompt.
    #[error("a prompt of {budget} tokens has no room for code; allow at least {least}")]
    Budget {
        /// What was allowed.
        budget: usize,
        /// What is needed.
        least: usize,
    },
    /// The model, its files or its device.
    #[error(transparent)]
    Gemma(#[from] gemma::Error),
    /// The backend.
    #[error(transparent)]
    Backend(#[from] gemma_backend::BackendError),
    /// An option of the generation, or the device while it runs.
    #[error(transparent)]
    Generate(#[from] gemma_generate::Error),
}

/// The sentence, which is what a `main` prints that returns the error.
impl std::fmt::Debug for Error {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, formatter)
    }
}
