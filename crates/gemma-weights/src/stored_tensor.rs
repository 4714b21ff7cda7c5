//! A tensor as it lies in a file.

use bytes::Bytes;
use gemma_kernels::Format;

/// One tensor of a file: what it is, and its bytes, row-major and little-endian.
#[derive(Clone, Debug)]
pub struct StoredTensor {
    /// How its values are stored, row by row: the last axis is a row.
    pub format: Format,
    /// Its shape; empty for a single value.
    pub shape: Vec<usize>,
    /// Its bytes: a slice of the memory map they were found in. They need not be aligned.
    pub bytes: Bytes,
}
