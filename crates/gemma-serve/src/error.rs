//! What ends a server.

/// Why a server could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The connection to the client broke.
    #[error("the connection to the editor broke: {0}")]
    Connection(#[from] std::io::Error),
    /// The client went away without saying goodbye.
    #[error("the editor closed the connection without `shutdown` and `exit`")]
    Abandoned,
}
