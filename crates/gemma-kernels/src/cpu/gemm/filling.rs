//! A panel of quantized rows that is filled a little at a time, while another one is multiplied.
//!
//! Tile instructions leave the vector registers idle, so decoding costs nothing between them: measured with products on Intel's
//! AMX, 1.1 to 1.25 times as fast as filling the panel first.

use crate::cpu::gemm::panel::Unit;
use crate::cpu::shape::Shape;
use std::marker::PhantomData;
use std::ops::Range;

/// Values that are decoded at a time, where a block of the format is not longer.
const VALUES: usize = 64;

/// What of a panel is filled, and what is not yet.
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

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::Format;
    use crate::cpu::gemm::amx::{Tiled, tests::Modelled};
    use crate::cpu::isa::{Isa, cpu_isa};

    /// However many steps there are, all is filled after the last one, in even parts, as it would be at once.
    #[test]
    fn a_panel_is_filled_in_even_parts() {
        if cpu_isa() < Isa::Avx512Bf16 {
            return println!("skipped: this CPU cannot pack pairs");
        }
        type Unit32 = Tiled<Modelled>;
        for (format, cols, range) in
            [(Format::Q8_0, 96, 0..48), (Format::Q4_0, 1056, 256..512), (Format::Q6K, 768, 256..384)]
        {
            let row_bytes = format.row_bytes(cols).unwrap();
            let (rows, row) = (27, <Unit32 as Unit>::PANEL_ROW);
            let mut weight = vec![0; rows * row_bytes];
            for (values, bytes) in crate::cpu::noise(rows * cols, 1).chunks(cols).zip(weight.chunks_mut(row_bytes)) {
                format.encode_row(values, bytes);
            }
            let shape = Shape { format, tokens: 1, rows, cols, row_bytes };
            let mut whole = vec![7f32; 32 * row];
            // SAFETY: the CPU has the instructions, and the panels their rows.
            unsafe { Filling::<Unit32>::new(shape, &weight, range.clone(), whole.as_mut_ptr(), 1).finish() };
            for steps in [1, 5, 16, 256, 1000] {
                let mut panel = vec![7f32; 32 * row];
                let mut filling = Filling::<Unit32>::new(shape, &weight, range.clone(), panel.as_mut_ptr(), steps);
                for step in 1..=steps {
                    // SAFETY: as above.
                    unsafe { filling.step() };
                    let (units, due) = (filling.units, filling.units * step / steps);
                    let place = filling.row * range.len() + filling.word;
                    assert!(place * units <= (due + 1) * rows * range.len(), "{format} {steps} {step}");
                }
                assert_eq!(filling.row, rows, "{format} {steps}");
                let bits = |panel: &[f32]| panel.iter().map(|word| word.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&panel), bits(&whole), "{format} {steps}");
            }
        }
    }
}
