//! What ends a server.

/// Why a server could not go on.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The connection to the client broke.
    #[error("the connection to the editor broke: {0}")]
    Connection(#[from] std::io::Error),
    /// The client went away without saying goodbye.
    #[error("the editor closed the connection without `shutdown` and `exit`")]
    Abandoned,
}

/// The sentence, which is what a `main` prints that returns the error.
impl std::fmt::Debug for Error {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, formatter)
    }
}
