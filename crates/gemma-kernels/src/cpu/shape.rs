//! The sizes of a product.

use crate::Format;

/// The sizes of one product.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Shape {
    pub(in crate::cpu) format: Format,
    pub(in crate::cpu) tokens: usize,
    pub(in crate::cpu) rows: usize,
    pub(in crate::cpu) cols: usize,
    pub(in crate::cpu) row_bytes: usize,
}

impl Shape {
    /// Where column `column`, the first of a block, begins in a row.
    pub(in crate::cpu) fn bytes(self, column: usize) -> usize {
        column / self.format.block_len() * self.format.block_bytes()
    }

    /// Multiplications.
    pub(in crate::cpu) fn work(self) -> usize {
        self.tokens * self.rows * self.cols
    }
}
