//! What can be wrong with a GGUF file.

use gemma_kernels::Format;

use super::shown::Shown;

/// The ways in which a GGUF file can lie about itself, or hold what is not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufFault {
    /// It does not begin with `GGUF`.
    #[error("it does not begin with GGUF")]
    Magic,
    /// A version of the container that is not read.
    #[error("it has version {version} of the format; versions 2 and 3 are read")]
    Version {
        /// The version.
        version: u32,
    },
    /// The file ends before what it announces.
    #[error("it ends too early (what begins at byte {at} does not fit)")]
    Truncated {
        /// Where the last part that was begun lies, in bytes.
        at: u64,
    },
    /// A text that is not UTF-8.
    #[error("the text at byte {at} is not UTF-8")]
    NotText {
        /// Where it lies, in bytes.
        at: u64,
    },
    /// A type of value that the format does not have, or a list of lists.
    #[error("the value before byte {at} has the unknown type {kind}")]
    Kind {
        /// The number of the type.
        kind: u32,
        /// Where it lies, in bytes.
        at: u64,
    },
    /// A key or a tensor that is there twice.
    #[error("{} is there twice", Shown(name))]
    Duplicate {
        /// Its name.
        name: String,
    },
    /// A tensor with more axes than the format allows.
    #[error("tensor {} has {axes} axes", Shown(tensor))]
    Axes {
        /// The tensor.
        tensor: String,
        /// Number of axes.
        axes: usize,
    },
    /// A tensor in a format that is not read.
    #[error(
        "tensor {} is stored as {format}; F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K are read",
        Shown(tensor)
    )]
    Format {
        /// The tensor.
        tensor: String,
        /// What GGML calls the format.
        format: String,
    },
    /// A row that is not an integer of blocks.
    #[error("tensor {} has rows of {cols} values, which {format} cannot hold", Shown(tensor))]
    Block {
        /// The tensor.
        tensor: String,
        /// Its format.
        format: Format,
        /// Values per row.
        cols: usize,
    },
    /// A tensor beyond the end of the file.
    #[error("tensor {} lies beyond the file's {file} bytes", Shown(tensor))]
    OutOfRange {
        /// The tensor.
        tensor: String,
        /// Size of the file in bytes.
        file: u64,
    },
    /// A tensor in bytes of another.
    #[error("tensor {} begins within another one", Shown(tensor))]
    Overlap {
        /// The tensor.
        tensor: String,
    },
    /// A tensor that no Gemma model has.
    #[error("no layer knows the tensor {}", Shown(tensor))]
    UnknownTensor {
        /// The tensor.
        tensor: String,
    },
    /// Another kind of model.
    #[error("its architecture is {}; gemma and gemma2 are read", Shown(architecture))]
    Architecture {
        /// What the file says.
        architecture: String,
    },
    /// A key with a value that cannot be right, or without the value that is needed.
    #[error("{} must be {expected}", Shown(key))]
    Field {
        /// The key.
        key: String,
        /// What would be right.
        expected: &'static str,
    },
}
