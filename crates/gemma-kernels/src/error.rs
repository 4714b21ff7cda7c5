//! What can be wrong with a weight before it becomes one.

use crate::Format;

/// Why bytes cannot become a [`PackedWeight`](crate::PackedWeight).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The format stores whole blocks, and the rows do not consist of whole blocks.
    #[error(
        "rows of {cols} values cannot be stored as {format}, which packs {block} values at a time; use bf16 or f32 for this matrix",
        block = format.block_len()
    )]
    PartialBlock {
        /// The format asked for.
        format: Format,
        /// Values per row.
        cols: usize,
    },
    /// The byte count contradicts the shape.
    #[error(
        "a {rows} x {cols} matrix in {format} takes {expected} bytes, but {found} were given; the file is damaged or its shape is wrong"
    )]
    Size {
        /// The format asked for.
        format: Format,
        /// Number of rows.
        rows: usize,
        /// Values per row.
        cols: usize,
        /// Bytes that the shape asks for.
        expected: usize,
        /// Bytes that were given.
        found: usize,
    },
    /// The matrix is larger than the address space.
    #[error("a {rows} x {cols} matrix does not fit in memory; the shape is wrong")]
    TooLarge {
        /// Number of rows.
        rows: usize,
        /// Values per row.
        cols: usize,
    },
}
