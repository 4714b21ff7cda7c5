//! Products with many tokens, in f32: arithmetic is the limit, so everything serves the register tile.
//!
//! The activations are packed once, for all threads. A task is a stretch of weight rows; it decodes a few rows of
//! some hundred columns at a time to f32, into a panel that stays in the first-level cache, and multiplies them with
//! all tokens, whose columns of that block stay in the second-level cache. The sums of a task are collected
//! transposed, `[rows, tokens]`, and written out at the end.

use super::buffer::Buffer;
use super::decode::decode;
use super::lanes::Lanes;
use super::level::{Level, with_level};
use super::linear::{Output, Shape};
use super::pool;
use super::tile::{self, Left, Right, Sums, block_width};
use std::cell::RefCell;
use std::ops::Range;

/// Columns of a panel: 12 rows of 256 values and as many of the packed activations fill a first-level cache.
const DEPTH: usize = 256;
/// Values from one row of a panel to the next: a cache line more, so that rows do not fall into the same sets.
const PANEL_ROW: usize = DEPTH + 16;
/// Rows of a panel; a multiple of every register tile's.
const PANEL: usize = 12;
/// The most panels of a task.
const TASK_PANELS: usize = 8;
/// The most tokens whose sums are collected at a time.
const TOKENS: usize = 512;

/// `out[t, r] = Σ_c x[t, c] w[r, c]`; see [`linear`](super::linear()).
pub(super) fn multiply(level: Level, x: &[f32], weight: &[u8], shape: Shape, out: Output) {
    let packed = pack(level, x, shape);
    let panels = shape.rows.div_ceil(PANEL);
    let stretch = PANEL * panels.div_ceil(4 * pool::threads()).clamp(1, TASK_PANELS);
    pool::for_each(shape.rows.div_ceil(stretch), |task| {
        let range = task * stretch..((task + 1) * stretch).min(shape.rows);
        multiply_stretch(level, &packed, weight, shape, range, out);
    });
}

/// The activations in blocks of [`block_width`] tokens, `[blocks, cols, block_width]`.
fn pack(level: Level, x: &[f32], shape: Shape) -> Buffer<f32> {
    #[inline(always)]
    unsafe fn width<L: Lanes>() -> usize {
        block_width::<L>()
    }
    #[inline(always)]
    unsafe fn part<L: Lanes>(x: &[f32], tokens: Range<usize>, columns: Range<usize>, cols: usize, to: Output) {
        // SAFETY: the tokens and columns exist, and the packed block of these tokens has a row for each column. The
        // lanes' instructions are available where this is expanded.
        unsafe {
            let from = x.as_ptr().add(tokens.start * cols + columns.start);
            let block = to.at(tokens.start * cols + columns.start * block_width::<L>());
            tile::pack::<L>(from, cols, tokens.len(), columns.len(), block);
        }
    }
    let width = with_level!(level, width() -> usize);
    let blocks = shape.tokens.div_ceil(width);
    let mut packed = Buffer::<f32>::zeroed(blocks * width * shape.cols);
    let to = Output(packed.as_mut_ptr());
    let parts = shape.cols.div_ceil(DEPTH);
    pool::for_each(blocks * parts, |task| {
        let (block, column) = (task / parts, task % parts * DEPTH);
        let tokens = block * width..((block + 1) * width).min(shape.tokens);
        let columns = column..(column + DEPTH).min(shape.cols);
        let cols = shape.cols;
        with_level!(level, part(x: &[f32], tokens: Range<usize>, columns: Range<usize>, cols: usize, to: Output));
    });
    packed
}

thread_local! {
    /// A panel, and the sums of a task; kept from task to task.
    static SCRATCH: RefCell<[Buffer<f32>; 2]> = const { RefCell::new([Buffer::empty(), Buffer::empty()]) };
}

fn multiply_stretch(level: Level, packed: &[f32], weight: &[u8], shape: Shape, range: Range<usize>, out: Output) {
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(
        packed: &[f32],
        weight: &[u8],
        shape: Shape,
        range: Range<usize>,
        tokens: Range<usize>,
        scratch: &mut [Buffer<f32>; 2],
        out: Output,
    ) {
        let width = block_width::<L>();
        let padded = tokens.len().next_multiple_of(width);
        let [panel, sums] = scratch;
        panel.resize(PANEL * PANEL_ROW);
        sums.resize(range.len() * padded);
        for begin in (0..shape.cols).step_by(DEPTH) {
            let depth = DEPTH.min(shape.cols - begin);
            let bytes = shape.bytes(begin)..shape.bytes(begin + depth);
            for first in range.clone().step_by(PANEL) {
                let rows = PANEL.min(range.end - first);
                for (row, values) in (first..first + rows).zip(panel.chunks_mut(PANEL_ROW)) {
                    let bytes = &weight[row * shape.row_bytes..(row + 1) * shape.row_bytes][bytes.clone()];
                    // SAFETY: the lanes' instructions are available where this is expanded.
                    unsafe { decode::<L>(shape.format, bytes, &mut values[..depth]) };
                }
                for token in (0..tokens.len()).step_by(width) {
                    let vectors = width.min(tokens.len() - token).div_ceil(L::N);
                    let left = Left { at: panel.as_ptr(), row: PANEL_ROW, step: 1 };
                    let sums_at = &mut sums[(first - range.start) * padded + token..];
                    let to = Sums { at: sums_at.as_mut_ptr(), row: padded, add: begin > 0 };
                    let right = Right::block::<L>(&packed[(tokens.start + token) * shape.cols + begin * width..]);
                    // SAFETY: as above. The panel has these rows of `depth` values, the block `depth` rows, and the
                    // sums a row for each row of the task.
                    unsafe { tile::multiply::<L>(left, rows, right, depth, vectors, to) };
                }
            }
        }
        // SAFETY: as above; this task owns its columns of the output.
        unsafe {
            let to = out.at(tokens.start * shape.rows + range.start);
            tile::unpack::<L>(sums.as_ptr(), padded, range.len(), tokens.len(), to, shape.rows);
        }
    }
    SCRATCH.with_borrow_mut(|scratch| {
        for first in (0..shape.tokens).step_by(TOKENS) {
            let tokens = first..(first + TOKENS).min(shape.tokens);
            let range = range.clone();
            with_level!(level, kernel(packed: &[f32], weight: &[u8], shape: Shape, range: Range<usize>, tokens: Range<usize>, scratch: &mut [Buffer<f32>; 2], out: Output));
        }
    });
}
