//! The transposed product with a packed matrix: what hands gradients on through a frozen weight.
//!
//! A task is a stretch of columns. It decodes those columns of some rows at a time, into a panel that stays in the cache,
//! and multiplies them with all tokens in register tiles ([`tile`]). The activations are read as they lie, and every sum
//! runs over the rows in order: it depends neither on the other tokens nor on the number of threads.

use crate::Format;
use crate::cpu::buffer::Buffer;
use crate::cpu::dequantize::decode;
use crate::cpu::gemm::tile::{self, Ahead, Left, Right, Sums, block_width};
use crate::cpu::isa::{Isa, Lanes, with_isa};
use crate::cpu::output::Output;
use crate::cpu::pool;
use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Rows that are decoded at a time.
const DEPTH: usize = 64;
/// The most columns of a task: a superblock of the K formats.
const COLUMNS: usize = 256;
/// The fewest, where the format allows it: whole vectors of every instruction set.
const LEAST_COLUMNS: usize = 32;
/// Values from one row of the panel to the next: a cache line more, so that rows do not fall into the same sets.
const PANEL_ROW: usize = COLUMNS + 16;
/// The most tokens whose sums are collected at a time.
const TOKENS: usize = 256;

struct Scratch {
    panel: Buffer<f32>,
    sums: Buffer<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { panel: Buffer::empty(), sums: Buffer::empty() }) };
}

/// One product.
#[derive(Clone, Copy)]
struct Work<'a> {
    y: &'a [f32],
    weight: &'a [u8],
    format: Format,
    tokens: usize,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    out: Output,
}

/// `out[t, c] = Σ_r y[t, r] w[r, c]` with `y` `[tokens, rows]` and `w` `[rows, cols]` in `format`, in f32. Every value of
/// `out` is written.
///
/// # Panics
/// When a slice does not have the size of its shape.
pub(crate) fn transposed(
    isa: Isa,
    y: &[f32],
    weight: &[u8],
    format: Format,
    cols: usize,
    out: &mut [MaybeUninit<f32>],
) {
    let row_bytes = format.row_bytes(cols).expect("a packed weight has whole blocks");
    let rows = weight.len() / row_bytes;
    assert_eq!(weight.len(), rows * row_bytes, "weights");
    assert!(rows > 0, "a product with at least one row");
    let tokens = y.len() / rows;
    assert_eq!(y.len(), tokens * rows, "activations");
    assert_eq!(out.len(), tokens * cols, "outputs");
    if out.is_empty() {
        return;
    }
    let least = format.block_len().max(LEAST_COLUMNS);
    let stretch = cols.div_ceil(2 * pool::threads()).next_multiple_of(least).min(COLUMNS.max(least));
    let out = Output(out.as_mut_ptr().cast());
    let work = &Work { y, weight, format, tokens, rows, cols, row_bytes, out };
    pool::for_work(tokens * rows * cols, cols.div_ceil(stretch), |task| {
        let range = task * stretch..((task + 1) * stretch).min(cols);
        SCRATCH.with_borrow_mut(|scratch| {
            with_isa!(isa, columns(work: &Work<'_>, range: Range<usize>, scratch: &mut Scratch));
        });
    });
}

/// The columns `range` of a product.
///
/// # Safety
/// The lanes' instruction set must be available, and the columns the calling task's.
#[inline(always)]
unsafe fn columns<L: Lanes>(work: &Work<'_>, range: Range<usize>, scratch: &mut Scratch) {
    let Work { y, weight, format, tokens, rows, cols, row_bytes, out } = *work;
    let width = range.len();
    let padded = width.next_multiple_of(block_width::<L>());
    scratch.panel.resize(DEPTH * PANEL_ROW);
    scratch.sums.resize(TOKENS.min(tokens) * padded);
    let (panel, sums) = (scratch.panel.as_mut_ptr(), scratch.sums.as_mut_ptr());
    let bytes = range.start / format.block_len() * format.block_bytes();
    let len = width.div_ceil(format.block_len()) * format.block_bytes();
    for first in (0..tokens).step_by(TOKENS) {
        let count = TOKENS.min(tokens - first);
        for begin in (0..rows).step_by(DEPTH) {
            let depth = DEPTH.min(rows - begin);
            for row in 0..depth {
                let from = &weight[(begin + row) * row_bytes + bytes..][..len];
                // SAFETY: the row is one of the panel's, which has room for the columns of every stretch.
                unsafe {
                    let to = std::slice::from_raw_parts_mut(panel.add(row * PANEL_ROW), width);
                    decode::<L>(format, from, to);
                }
            }
            for column in (0..width).step_by(block_width::<L>()) {
                let vectors = block_width::<L>().min(width - column).div_ceil(L::N);
                // SAFETY: the tokens and rows are those of `y`. The panel's rows are longer than the padded stretch, and the
                // sums have a row of that length for each token; what lies behind the stretch is not read afterwards.
                unsafe {
                    let left = Left { at: y.as_ptr().add(first * rows + begin), row: rows, step: 1 };
                    let right = Right { at: panel.add(column), row: PANEL_ROW };
                    let to = Sums { at: sums.add(column), row: padded, add: begin > 0 };
                    tile::multiply::<L>(left, count, right, depth, vectors, to, Ahead::NOTHING);
                }
            }
        }
        for token in 0..count {
            // SAFETY: this task owns these columns of the output.
            unsafe {
                let to = out.at((first + token) * cols + range.start);
                std::ptr::copy_nonoverlapping(sums.add(token * padded), to, width);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{noise, places};

    #[test]
    fn every_instruction_set_sums_what_a_plain_loop_does() {
        for format in Format::ALL {
            for (rows, cols) in [(1, 32), (7, 96), (130, 160), (70, 2080), (5, 1), (3, 17), (40, 67), (65, 768)] {
                let Some(row_bytes) = format.row_bytes(cols) else { continue };
                let mut weight = vec![0; rows * row_bytes];
                let mut decoded = vec![0.0; rows * cols];
                for (row, values) in noise(rows * cols, 1).chunks(cols).enumerate() {
                    let bytes = &mut weight[row * row_bytes..][..row_bytes];
                    format.encode_row(values, bytes);
                    format.decode_row(bytes, &mut decoded[row * cols..][..cols]);
                }
                for tokens in [1, 2, 7, 13, 300] {
                    let y = noise(tokens * rows, 2);
                    for isa in Isa::available() {
                        let mut out = vec![f32::NAN; tokens * cols];
                        transposed(isa, &y, &weight, format, cols, places(&mut out));
                        for (place, found) in out.iter().enumerate() {
                            let (token, column) = (place / cols, place % cols);
                            let exact: f64 = (0..rows)
                                .map(|row| f64::from(y[token * rows + row]) * f64::from(decoded[row * cols + column]))
                                .sum();
                            let error = (f64::from(*found) - exact).abs();
                            assert!(
                                error < 1e-5 + 1e-6 * rows as f64,
                                "{isa:?} {format} {tokens} {rows} {cols}: {error}"
                            );
                        }
                    }
                }
            }
        }
    }
}
