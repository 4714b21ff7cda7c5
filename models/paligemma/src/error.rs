//! Everything that can go wrong because of what a user gave, in one enum.

use std::path::PathBuf;

/// Why a model could not be opened, an image not be read, or a question not be answered.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model: its checkpoint, configuration, tokenizer or device, a prompt or an option.
    #[error(transparent)]
    Model(#[from] gemma_model::Error),
    /// A file cannot be read or written.
    #[error("{}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A file that is no image, or too large a one.
    #[error(transparent)]
    Image(#[from] gemma_vision::Error),
    /// The vocabulary lacks a token that PaliGemma needs.
    #[error("the tokenizer has no {piece}; use the tokenizer that belongs to the model")]
    MissingToken {
        /// The token.
        piece: &'static str,
    },
    /// A prompt's `<image>` tokens do not match its images.
    #[error("the prompt has {found} image tokens and its {images} image(s) take {expected}; give {each} per image")]
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
    /// A file of mask decoder weights is not what it should be.
    #[error("{}: {reason}; give vae-oid.npz or a safetensors file of the same tensors", path.display())]
    MaskWeights {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Masks were asked for without a mask decoder.
    #[error(
        "masks need the weights of the mask decoder; get https://storage.googleapis.com/big_vision/paligemma/vae-oid.npz and \
         put it into the model folder, or name it with --mask-decoder"
    )]
    NoMaskDecoder,
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
