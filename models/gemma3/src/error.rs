//! Everything that can go wrong because of what a user gave, in one enum.

/// Why a model could not be opened, an image not be read, or a question not be answered.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model: its checkpoint, configuration, tokenizer or device, a prompt or an option.
    #[error(transparent)]
    Model(#[from] gemma_model::Error),
    /// A file that is no image, or too large a one.
    #[error(transparent)]
    Image(#[from] gemma_vision::Error),
    /// A prompt's image tokens do not match its images.
    #[error(
        "the prompt has {found} image tokens and its {images} image(s) take {expected}; give {each} in a row per image"
    )]
    ImageTokens {
        /// Image tokens in the prompt.
        found: usize,
        /// Image tokens that the images take.
        expected: usize,
        /// Images given.
        images: usize,
        /// Image tokens of one image.
        each: usize,
    },
    /// A text marks more or fewer places for images than there are images.
    #[error("the text has {found} marks <start_of_image> and there are {images} image(s); give one mark each, or none")]
    ImageMarks {
        /// Marks in the text.
        found: usize,
        /// Images given.
        images: usize,
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
through_the_front_door!(
    gemma_weights::Error,
    gemma_tokenizer::Error,
    gemma_generate::Error,
    gemma_backend::BackendError
);
