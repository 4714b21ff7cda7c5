//! The innermost loop of a product with many tokens: what multiplies a panel of weights with a block of tokens, and a panel that is
//! filled a little at a time meanwhile.

use crate::Format;
use crate::cpu::gemm::tile::{Ahead, Left, Right, Sums};
use crate::cpu::isa::Lanes;
use crate::cpu::shape::Shape;
use std::marker::PhantomData;
use std::ops::Range;

/// Words of a panel's row: 12 rows of 256 and as many of the packed activations fill an L1 cache.
pub(in crate::cpu) const DEPTH: usize = 256;
/// Words from one row of a panel to the next: a cache line more, so that rows do not fall into the same sets.
pub(in crate::cpu) const PANEL_ROW: usize = DEPTH + 16;
/// What multiplies a panel with a block of tokens.
///
/// # Safety
/// Every method requires the instructions of the unit, its lanes' included.
pub(in crate::cpu) trait Unit {
    /// What activations are packed and sums transposed with.
    type Lanes: Lanes;
    /// Values of a word.
    const EACH: usize;
    /// Rows of a panel. All of them are there, for the unit to read and to sum, though what the last ones hold may mean
    /// nothing.
    const PANEL: usize;
    /// A row of a panel is filled up with zeros to a multiple of so many words; a packed block as well.
    const STEP: usize;
    /// Words from one row of a panel to the next: a cache line more than it has, so that rows do not fall into the same sets.
    const PANEL_ROW: usize = PANEL_ROW;
    /// Whether panels of quantized rows are filled while the one before is multiplied, and the next packed blocks are
    /// requested: what pays where products leave vector registers and the L2 cache time.
    const INTERLEAVES: bool = false;

    /// Words of a panel's row that so many words of a packed row become, with what is kept beside them.
    fn left(words: usize) -> usize {
        words
    }

    /// Rows of a packed block that so many words of activations become, with what is kept beside them.
    fn right(words: usize) -> usize {
        words
    }

    /// Called by a thread before the products of a task.
    unsafe fn begin() {}

    /// Called by it after them.
    unsafe fn end() {}

    /// A stretch of a packed row as words of a panel, [as many](Self::left) as it becomes.
    ///
    /// # Safety
    /// `bytes` holds the words' values.
    unsafe fn decode(format: Format, bytes: &[u8], words: &mut [f32]);

    /// `rows` rows of a panel times the first `vectors` vectors of a block, `depth` words of each.
    ///
    /// # Safety
    /// All that the arguments name must be there.
    unsafe fn multiply(panel: Left, rows: usize, block: Right, depth: usize, vectors: usize, sums: Sums, ahead: Ahead);

    /// The same, and meanwhile fills as much of another panel as is due; only where it [interleaves](Self::INTERLEAVES).
    ///
    /// # Safety
    /// As [`multiply`](Self::multiply) and [`Filling::step`].
    #[inline(always)]
    unsafe fn multiply_and_fill(
        panel: Left,
        block: Right,
        depth: usize,
        vectors: usize,
        sums: Sums,
        ahead: Ahead,
        filling: &mut Filling<'_, Self>,
    ) where
        Self: Sized,
    {
        let _ = filling;
        // SAFETY: as required of the caller.
        unsafe { Self::multiply(panel, Self::PANEL, block, depth, vectors, sums, ahead) };
    }
}

/// A unit whose panels can be filled across rows, for products with the transpose.
///
/// # Safety
/// As [`Unit`].
pub(in crate::cpu) trait Across: Unit {
    /// A stretch of a packed row and of the next one, where a word holds a value of each; zeros where there is no next row.
    ///
    /// # Safety
    /// Both hold a value for each word, of which there are at most [`DEPTH`].
    unsafe fn decode_across(format: Format, row: &[u8], next: Option<&[u8]>, words: &mut [f32]);
}

/// Values that are decoded at a time, where a block of the format is not longer.
const VALUES: usize = 64;

/// A panel of quantized rows that is filled while another one is multiplied: what is filled, and what is not yet.
///
/// Tile instructions leave the vector registers idle, so decoding costs little between them: measured with products on Intel's
/// AMX, 1.1 to 1.25 times as fast as filling the panel first.
pub(in crate::cpu) struct Filling<'a, U> {
    shape: Shape,
    /// The rows, whole.
    rows: &'a [u8],
    /// Bytes of each row.
    bytes: Range<usize>,
    /// Bytes of a unit and the words that they become.
    unit: (usize, usize),
    /// Words of a row of the panel, and with the zeros behind them.
    words: (usize, usize),
    panel: *mut f32,
    /// Where the next unit is: its row, the byte and the word.
    row: usize,
    byte: usize,
    word: usize,
    /// Units of the panel, steps that they are spread over, and what of a unit is due times the steps.
    units: usize,
    steps: usize,
    due: usize,
    of: PhantomData<U>,
}

impl<'a, U: Unit> Filling<'a, U> {
    /// The words `range` of `rows` into a panel, spread over so many steps.
    #[inline(always)]
    pub(in crate::cpu) fn new(
        shape: Shape,
        rows: &'a [u8],
        range: Range<usize>,
        panel: *mut f32,
        steps: usize,
    ) -> Self {
        let values = shape.format.block_len().max(VALUES);
        let bytes = shape.bytes(U::EACH * range.start)..shape.bytes(U::EACH * range.end);
        let unit = (shape.bytes(values), values / U::EACH);
        let words = U::left(range.len());
        let units = rows.len() / shape.row_bytes * bytes.len().div_ceil(unit.0);
        let words = (words, words.next_multiple_of(U::STEP));
        let byte = bytes.start;
        Self { shape, rows, bytes, unit, words, panel, row: 0, byte, word: 0, units, steps, due: 0, of: PhantomData }
    }

    /// Fills what is due after one more step.
    ///
    /// # Safety
    /// The panel must have the rows, and the unit's instructions be available.
    #[inline(always)]
    pub(in crate::cpu) unsafe fn step(&mut self) {
        self.due += self.units;
        while self.due >= self.steps {
            self.due -= self.steps;
            // SAFETY: as required of the caller.
            unsafe { self.fill() };
        }
    }

    /// Fills what is left.
    ///
    /// # Safety
    /// As [`step`](Self::step).
    #[inline(always)]
    pub(in crate::cpu) unsafe fn finish(&mut self) {
        while self.row * self.shape.row_bytes < self.rows.len() {
            // SAFETY: as required of the caller.
            unsafe { self.fill() };
        }
    }

    /// Fills a unit, if there is one left.
    ///
    /// # Safety
    /// As [`step`](Self::step).
    #[inline(always)]
    unsafe fn fill(&mut self) {
        let row = self.row * self.shape.row_bytes;
        if row >= self.rows.len() {
            return;
        }
        let bytes = &self.rows[row + self.byte..row + self.bytes.end.min(self.byte + self.unit.0)];
        let end = self.words.0.min(self.word + self.unit.1);
        // SAFETY: as required of the caller.
        unsafe {
            let at = self.panel.add(self.row * U::PANEL_ROW);
            U::decode(self.shape.format, bytes, std::slice::from_raw_parts_mut(at.add(self.word), end - self.word));
            if end == self.words.0 {
                std::slice::from_raw_parts_mut(at.add(end), self.words.1 - end).fill(0.0);
            }
        }
        (self.byte, self.word) = (self.byte + self.unit.0, end);
        if end == self.words.0 {
            (self.row, self.byte, self.word) = (self.row + 1, self.bytes.start, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::Plain;

    /// Two values to a word, of which it has the first.
    struct Firsts;

    impl Unit for Firsts {
        type Lanes = Plain;
        const EACH: usize = 2;
        const PANEL: usize = 32;
        const STEP: usize = 16;

        unsafe fn decode(format: Format, bytes: &[u8], words: &mut [f32]) {
            let mut values = vec![0.0; 2 * words.len()];
            format.decode_row(bytes, &mut values);
            words.iter_mut().zip(values.chunks_exact(2)).for_each(|(word, values)| *word = values[0]);
        }

        unsafe fn multiply(_: Left, _: usize, _: Right, _: usize, _: usize, _: Sums, _: Ahead) {}
    }

    /// However many steps there are, all is filled after the last one, in even parts, as it would be at once.
    #[test]
    fn a_panel_is_filled_in_even_parts() {
        for (format, cols, range) in
            [(Format::Q8_0, 96, 0..48), (Format::Q4_0, 1056, 256..512), (Format::Q6K, 768, 256..384)]
        {
            let row_bytes = format.row_bytes(cols).unwrap();
            let rows = 27;
            let mut weight = vec![0; rows * row_bytes];
            for (values, bytes) in crate::cpu::noise(rows * cols, 1).chunks(cols).zip(weight.chunks_mut(row_bytes)) {
                format.encode_row(values, bytes);
            }
            let shape = Shape { format, tokens: 1, rows, cols, row_bytes };
            let mut whole = vec![7f32; 32 * PANEL_ROW];
            // SAFETY: the panels have their rows.
            unsafe { Filling::<Firsts>::new(shape, &weight, range.clone(), whole.as_mut_ptr(), 1).finish() };
            for (row, bytes) in weight.chunks(row_bytes).enumerate() {
                let mut values = vec![0.0; cols];
                format.decode_row(bytes, &mut values);
                let expected = range.clone().map(|word| values[2 * word]);
                assert!(whole[row * PANEL_ROW..].iter().copied().zip(expected).all(|(a, b)| a == b), "{format} {row}");
            }
            for steps in [1, 5, 16, 256, 1000] {
                let mut panel = vec![7f32; 32 * PANEL_ROW];
                let mut filling = Filling::<Firsts>::new(shape, &weight, range.clone(), panel.as_mut_ptr(), steps);
                let mut before = 0;
                for step in 1..=steps {
                    // SAFETY: as above.
                    unsafe { filling.step() };
                    let place = filling.row * range.len() + filling.word;
                    // a unit more or less than the step's share
                    let (most, share) = (filling.unit.1, rows * range.len() * step / steps);
                    assert!(place <= share + most && place + most >= share, "{format} {steps} {step}: {place} {share}");
                    assert!(place >= before, "{format} {steps} {step}");
                    before = place;
                }
                assert_eq!(filling.row, rows, "{format} {steps}");
                assert_eq!(panel, whole, "{format} {steps}");
            }
        }
    }
}
