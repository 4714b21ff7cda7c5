//! What can be wrong with a safetensors file.

use super::shown::{OneLine, Shown};

/// The ways in which a safetensors file can lie about itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SafetensorsFault {
    /// Too short for the eight bytes that say how long the header is.
    #[error("it has only {bytes} bytes")]
    TooShort {
        /// Size of the file in bytes.
        bytes: u64,
    },
    /// The header claims to be longer than the file.
    #[error("the header claims {claimed} bytes, but only {available} follow")]
    HeaderLength {
        /// Header length that the file claims, in bytes.
        claimed: u64,
        /// Bytes that follow the length.
        available: u64,
    },
    /// The header is longer than the format allows.
    #[error("the header claims {claimed} bytes, more than the {limit} that the format allows")]
    HeaderLimit {
        /// Header length that the file claims, in bytes.
        claimed: u64,
        /// The format's limit, in bytes.
        limit: u64,
    },
    /// The header is not the JSON that the format asks for.
    #[error("the header is not valid ({})", OneLine(cause))]
    HeaderJson {
        /// What the parser said.
        cause: serde_json::Error,
    },
    /// A tensor is declared twice.
    #[error("tensor {} is declared twice", Shown(tensor))]
    Duplicate {
        /// The tensor.
        tensor: String,
    },
    /// A tensor has more axes than any tensor of a model.
    #[error("tensor {} has {axes} axes", Shown(tensor))]
    Axes {
        /// The tensor.
        tensor: String,
        /// Number of axes.
        axes: usize,
    },
    /// The number of bytes that shape and type ask for does not fit a machine word.
    #[error("the size of tensor {} of shape {shape:?} overflows", Shown(tensor))]
    Overflow {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// Offsets and shape disagree.
    #[error("tensor {} of shape {shape:?} needs {expected} bytes, but has {found}", Shown(tensor))]
    ByteLength {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
        /// Bytes that type and shape ask for.
        expected: u64,
        /// Bytes between the offsets.
        found: u64,
    },
    /// Offsets that run backwards or beyond the end of the file.
    #[error("tensor {} lies at {begin}..{end}, but the file holds {available} bytes of data", Shown(tensor))]
    OutOfRange {
        /// The tensor.
        tensor: String,
        /// First byte within the data.
        begin: u64,
        /// One past the last byte.
        end: u64,
        /// Bytes of data in the file.
        available: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors {} and {} overlap", Shown(first), Shown(second))]
    Overlap {
        /// The tensor that starts first.
        first: String,
        /// The tensor that starts inside it.
        second: String,
    },
    /// Bytes that belong to no tensor.
    #[error("the {} bytes {begin}..{end} of the data belong to no tensor", end - begin)]
    Hole {
        /// First unclaimed byte within the data.
        begin: u64,
        /// One past the last unclaimed byte.
        end: u64,
    },
}
