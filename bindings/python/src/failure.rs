//! What a verb can fail with, and the Python exception that it becomes.

use std::io;

use gemma_auto::Error;
use gemma_weights::AdapterFault;
use pyo3::PyErr;
use pyo3::exceptions::{PyFileNotFoundError, PyRuntimeError, PyValueError};

/// Why a verb failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What the library says.
    Library(Error),
    /// An argument has a value that is not possible.
    Argument(String),
    /// The computation itself: a panic, or a device that gives no numbers.
    Computation(String),
}

/// Errors of every crate come in as those of `gemma-auto`.
macro_rules! through_gemma_auto {
    ($($error:ty),+ $(,)?) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::Library(error.into())
            }
        }
    )+};
}
through_gemma_auto!(
    Error,
    codegemma::Error,
    embeddinggemma::Error,
    gemma3::Error,
    gemma_backend::BackendError,
    gemma_generate::Error,
    gemma_model::Error,
    gemma_tokenizer::Error,
    gemma_weights::Error,
    paligemma::Error,
);

impl From<gemma_vision::Error> for Failure {
    fn from(error: gemma_vision::Error) -> Self {
        paligemma::Error::from(error).into()
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Argument(text) => PyValueError::new_err(text),
            Failure::Computation(text) => PyRuntimeError::new_err(text),
            Failure::Library(error) => match kind(&error) {
                Kind::Missing => PyFileNotFoundError::new_err(error.to_string()),
                Kind::Wrong => PyValueError::new_err(error.to_string()),
                Kind::Failed => PyRuntimeError::new_err(error.to_string()),
            },
        }
    }
}

/// Whose fault it is.
enum Kind {
    /// A file, a folder or a model is not there.
    Missing,
    /// What was given is not possible: an option, a prompt, the content of a file.
    Wrong,
    /// The machine, the network or the computation failed.
    Failed,
}

fn kind(error: &Error) -> Kind {
    match error {
        Error::InGguf { cause, .. } => kind(cause),
        Error::Model(error)
        | Error::CodeGemma(codegemma::Error::Gemma(error))
        | Error::PaliGemma(paligemma::Error::Model(error))
        | Error::Gemma3(gemma3::Error::Model(error))
        | Error::EmbeddingGemma(embeddinggemma::Error::Model(error)) => of_model(error),
        Error::CodeGemma(codegemma::Error::Generate(error)) => of_generation(error),
        Error::CodeGemma(codegemma::Error::Backend(error)) => of_backend(error),
        Error::PaliGemma(paligemma::Error::Image(error)) | Error::Gemma3(gemma3::Error::Image(error)) => {
            of_image(error)
        }
        Error::Weights(error) => of_weights(error),
        Error::Generate(error) => of_generation(error),
        Error::Backend(error) => of_backend(error),
        Error::NoTokenizer { .. } => Kind::Missing,
        _ => Kind::Wrong,
    }
}

fn of_model(error: &gemma_model::Error) -> Kind {
    match error {
        gemma_model::Error::Weights(error) => of_weights(error),
        gemma_model::Error::Generate(error) => of_generation(error),
        gemma_model::Error::Backend(error) => of_backend(error),
        gemma_model::Error::MissingFile { .. } => Kind::Missing,
        _ => Kind::Wrong,
    }
}

fn of_weights(error: &gemma_weights::Error) -> Kind {
    use gemma_weights::Error as E;
    match error {
        E::NoSuchPath { .. }
        | E::NoWeights { .. }
        | E::GgufPart { .. }
        | E::ShardMissing { .. }
        | E::Offline { .. }
        | E::HubNotCompiled { .. }
        | E::NoSuchModel { .. }
        | E::NoSuchRevision { .. }
        | E::Adapter { fault: AdapterFault::MissingFile { .. }, .. } => Kind::Missing,
        E::Read { cause, .. } => of_io(cause),
        E::Gated { .. }
        | E::HubStatus { .. }
        | E::HubAnswer { .. }
        | E::HubConnection { .. }
        | E::HubCertificate { .. }
        | E::HubHash { .. }
        | E::Cache { .. } => Kind::Failed,
        _ => Kind::Wrong,
    }
}

fn of_generation(error: &gemma_generate::Error) -> Kind {
    use gemma_generate::Error as E;
    match error {
        E::NotFinite { .. }
        | E::NoToken { .. }
        | E::LogitsShape { .. }
        | E::Device { .. }
        | E::EngineStopped
        | E::ModelPanicked => Kind::Failed,
        _ => Kind::Wrong,
    }
}

fn of_backend(error: &gemma_backend::BackendError) -> Kind {
    use gemma_backend::BackendError as E;
    match error {
        E::NoAdapter { .. } | E::Setup { .. } => Kind::Failed,
        _ => Kind::Wrong,
    }
}

fn of_image(error: &gemma_vision::Error) -> Kind {
    match error {
        gemma_vision::Error::File { cause, .. } => of_io(cause),
        _ => Kind::Wrong,
    }
}

fn of_io(cause: &io::Error) -> Kind {
    if cause.kind() == io::ErrorKind::NotFound { Kind::Missing } else { Kind::Failed }
}
