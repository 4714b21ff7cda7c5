//! Products with many tokens, in f32: arithmetic is the limit, so everything serves the register tile.
//!
//! The activations are packed once, for all threads. A task is a stretch of weight rows; it decodes a few rows of
//! some hundred columns at a time to f32, into a panel that stays in the first-level cache, and multiplies them with
//! all tokens, whose columns of that block stay in the second-level cache. The sums of a task are collected
//! transposed, `[rows, tokens]`, and written out at the end.

use super::buffer::Buffer;
use super::decode::decode;
use super::lanes::Lanes;
#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx512, Pairs};
use super::level::{Level, with_level};
use super::linear::{Output, Shape};
use super::pool;
use super::tile::{self, AHEAD_STEP, Ahead, Left, Right, Sums, block_width};
use crate::Format;
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
    multiply_words(level, false, x, weight, shape, out);
}

/// The same with both sides rounded to bf16, which bf16 weights are: at [`Level::Avx512Bf16`], for an even number of
/// columns.
///
/// Two values side by side are a word of 32 bits, and what multiplies words pair by pair is otherwise just like f32.
#[cfg(target_arch = "x86_64")]
pub(super) fn multiply_pairs(level: Level, x: &[f32], weight: &[u8], shape: Shape, out: Output) {
    assert!(level >= Level::Avx512Bf16, "pairs");
    multiply_words(level, true, &paired(x, shape), weight, shape, out);
}

/// Activations `[tokens, cols]`, of an even number of columns, rounded to bf16, in words of two: `[tokens, cols / 2]`.
/// At [`Level::Avx512Bf16`].
#[cfg(target_arch = "x86_64")]
pub(super) fn paired(x: &[f32], shape: Shape) -> Buffer<f32> {
    let cols = shape.cols;
    assert!(cols.is_multiple_of(2), "pairs");
    let mut words = Buffer::<f32>::zeroed(x.len() / 2);
    let to = Output(words.as_mut_ptr());
    pool::for_each(shape.tokens, |token| {
        // SAFETY: a token's words belong to its task, and the processor has the instructions.
        unsafe {
            let row = std::slice::from_raw_parts_mut(to.at(token * cols / 2), cols / 2);
            pair(&x[token * cols..(token + 1) * cols], row);
        }
    });
    words
}

/// Words of two values each.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn pair(values: &[f32], words: &mut [f32]) {
    use std::arch::x86_64::{__m512, __m512bh, _mm512_cvtne2ps_pbh, _mm512_loadu_ps, _mm512_storeu_ps};
    let (vectors, rest) = values.as_chunks::<32>();
    let (wide, narrow) = words.as_chunks_mut::<16>();
    for (values, words) in vectors.iter().zip(wide) {
        // SAFETY: 32 values and 16 words are there.
        unsafe {
            let (first, second) = (_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(16)));
            let pairs = _mm512_cvtne2ps_pbh(second, first);
            _mm512_storeu_ps(words.as_mut_ptr(), std::mem::transmute::<__m512bh, __m512>(pairs));
        }
    }
    for (pair, word) in rest.as_chunks::<2>().0.iter().zip(narrow) {
        *word = f32::from_bits(u32::from(round(pair[0])) | u32::from(round(pair[1])) << 16);
    }
}

/// To the nearest bf16, ties to even.
#[inline(always)]
fn round(value: f32) -> u16 {
    let bits = value.to_bits();
    // half a unit more, less one where that would round a tie to odd; NaN must not overflow into zero
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    (if value.is_nan() { bits >> 16 | 0x40 } else { rounded }) as u16
}

/// `x` are words: values, or pairs of them.
fn multiply_words(level: Level, pairs: bool, x: &[f32], weight: &[u8], shape: Shape, out: Output) {
    let words = x.len() / shape.tokens;
    let packed = pack(level, x, shape.tokens, words);
    let panels = shape.rows.div_ceil(PANEL);
    let stretch = PANEL * panels.div_ceil(4 * pool::threads()).clamp(1, TASK_PANELS);
    pool::for_each(shape.rows.div_ceil(stretch), |task| {
        let range = task * stretch..((task + 1) * stretch).min(shape.rows);
        multiply_stretch(level, pairs, &packed, weight, shape, range, out);
    });
}

/// The activations, `[tokens, cols]` words, in blocks of [`block_width`] tokens, `[blocks, cols, block_width]`.
fn pack(level: Level, x: &[f32], tokens: usize, cols: usize) -> Buffer<f32> {
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
    let blocks = tokens.div_ceil(width);
    let mut packed = Buffer::<f32>::zeroed(blocks * width * cols);
    let to = Output(packed.as_mut_ptr());
    let parts = cols.div_ceil(DEPTH);
    pool::for_each(blocks * parts, |task| {
        let (block, column) = (task / parts, task % parts * DEPTH);
        let tokens = block * width..((block + 1) * width).min(tokens);
        let columns = column..(column + DEPTH).min(cols);
        with_level!(level, part(x: &[f32], tokens: Range<usize>, columns: Range<usize>, cols: usize, to: Output));
    });
    packed
}

/// A stretch of a packed row as words of two bf16 values.
///
/// # Safety
/// As [`decode`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
unsafe fn decode_pairs(format: Format, bytes: &[u8], words: &mut [f32]) {
    if format == Format::Bf16 {
        // SAFETY: as required of the caller; these are words as they lie.
        return unsafe { decode::<Avx512>(Format::F32, bytes, words) };
    }
    let mut values = [0f32; 2 * DEPTH];
    let values = &mut values[..2 * words.len()];
    // SAFETY: as required of the caller.
    unsafe { decode::<Avx512>(format, bytes, values) };
    pair(values, words);
}

/// [`kernel`] for words of two bf16 values.
///
/// # Safety
/// As there.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
unsafe fn multiply_stretch_of_pairs(
    packed: &[f32],
    weight: &[u8],
    shape: Shape,
    range: Range<usize>,
    tokens: Range<usize>,
    scratch: &mut [Buffer<f32>; 2],
    out: Output,
) {
    // SAFETY: as required of the caller; the function has the features of these lanes.
    unsafe {
        kernel::<Pairs, 2>(packed, weight, shape, range, tokens, scratch, out, |format, bytes, words| {
            decode_pairs(format, bytes, words);
        });
    }
}

/// [`kernel`] for words that are values.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn multiply_values<L: Lanes>(
    packed: &[f32],
    weight: &[u8],
    shape: Shape,
    range: Range<usize>,
    tokens: Range<usize>,
    scratch: &mut [Buffer<f32>; 2],
    out: Output,
) {
    // SAFETY: as required of the caller.
    unsafe {
        kernel::<L, 1>(packed, weight, shape, range, tokens, scratch, out, |format, bytes, values| {
            decode::<L>(format, bytes, values);
        });
    }
}

thread_local! {
    /// A panel, and the sums of a task; kept from task to task.
    static SCRATCH: RefCell<[Buffer<f32>; 2]> = const { RefCell::new([Buffer::empty(), Buffer::empty()]) };
}

/// The rows `range` times `tokens`, for words of `EACH` values, of which `decode` makes a stretch of a row.
///
/// # Safety
/// The lanes' instruction set must be available, and the rows must belong to the calling task.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "one call for each kind of words")]
unsafe fn kernel<L: Lanes, const EACH: usize>(
    packed: &[f32],
    weight: &[u8],
    shape: Shape,
    range: Range<usize>,
    tokens: Range<usize>,
    scratch: &mut [Buffer<f32>; 2],
    out: Output,
    decode: impl Fn(Format, &[u8], &mut [f32]),
) {
    let width = block_width::<L>();
    let words = shape.cols / EACH;
    let padded = tokens.len().next_multiple_of(width);
    let [panel, sums] = scratch;
    panel.resize(PANEL * PANEL_ROW);
    sums.resize(range.len() * padded);
    for begin in (0..words).step_by(DEPTH) {
        let depth = DEPTH.min(words - begin);
        let bytes = shape.bytes(EACH * begin)..shape.bytes(EACH * (begin + depth));
        for first in range.clone().step_by(PANEL) {
            let rows = PANEL.min(range.end - first);
            for (row, values) in (first..first + rows).zip(panel.chunks_mut(PANEL_ROW)) {
                let bytes = &weight[row * shape.row_bytes..(row + 1) * shape.row_bytes][bytes.clone()];
                decode(shape.format, bytes, &mut values[..depth]);
            }
            for token in (0..tokens.len()).step_by(width) {
                let vectors = width.min(tokens.len() - token).div_ceil(L::N);
                let left = Left { at: panel.as_ptr(), row: PANEL_ROW, step: 1 };
                let sums_at = &mut sums[(first - range.start) * padded + token..];
                let to = Sums { at: sums_at.as_mut_ptr(), row: padded, add: begin > 0 };
                let right = Right::block::<L>(&packed[(tokens.start + token) * words + begin * width..]);
                // SAFETY: as above. The panel has these rows of `depth` values, the block `depth` rows, and the
                // sums a row for each row of the task.
                unsafe {
                    if token == 0 {
                        // the rows of the next panel, which the memory does not send by itself
                        let at = weight.as_ptr().wrapping_add((first + PANEL) * shape.row_bytes + bytes.start);
                        let step = bytes.len().div_ceil(depth.div_ceil(AHEAD_STEP));
                        let ahead = Ahead { at, row: shape.row_bytes, step };
                        tile::multiply_and_request::<L>(left, rows, right, depth, vectors, to, ahead);
                    } else {
                        tile::multiply::<L>(left, rows, right, depth, vectors, to);
                    }
                }
            }
        }
    }
    // SAFETY: as above; this task owns its columns of the output.
    unsafe {
        let to = out.at(tokens.start * shape.rows + range.start);
        tile::unpack::<L>(sums.as_ptr(), padded, range.len(), tokens.len(), to, shape.rows);
    }
}

fn multiply_stretch(
    level: Level,
    pairs: bool,
    packed: &[f32],
    weight: &[u8],
    shape: Shape,
    range: Range<usize>,
    out: Output,
) {
    #[cfg(not(target_arch = "x86_64"))]
    let _ = pairs;
    SCRATCH.with_borrow_mut(|scratch| {
        for first in (0..shape.tokens).step_by(TOKENS) {
            let tokens = first..(first + TOKENS).min(shape.tokens);
            let range = range.clone();
            #[cfg(target_arch = "x86_64")]
            if pairs {
                // SAFETY: pairs are asked for only where the level says that there are instructions for them.
                unsafe { multiply_stretch_of_pairs(packed, weight, shape, range, tokens, scratch, out) };
                continue;
            }
            with_level!(level, multiply_values(packed: &[f32], weight: &[u8], shape: Shape, range: Range<usize>, tokens: Range<usize>, scratch: &mut [Buffer<f32>; 2], out: Output));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn rounding_is_to_nearest_even() {
        for bits in (0..u32::MAX).step_by(997).chain([0x7f7f_8000, 0x3f80_8000, 0x3f81_8000, 0x7fff_ffff, 0xffff_ffff])
        {
            let value = f32::from_bits(bits);
            assert_eq!(round(value), bf16::from_f32(value).to_bits(), "{bits:x}");
        }
    }

    /// Whether the processor multiplies pairs faster or not: the products are those of both sides' nearest bf16.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn pairs_are_multiplied_as_bf16_values() {
        for level in Level::available().into_iter().filter(|level| *level >= Level::Avx512Bf16) {
            let shapes = [(1, 1, 2), (9, 13, 66), (33, 40, 514), (70, 25, 1030), (5, 7, 96), (17, 30, 1280)];
            for (format, (tokens, rows, cols)) in Format::ALL.into_iter().flat_map(|format| shapes.map(|s| (format, s)))
            {
                let Some(row_bytes) = format.row_bytes(cols) else { continue };
                let wave = |len: usize, step: usize| -> Vec<f32> {
                    (0..len).map(|i| (i * step % 1009) as f32 / 504.0 - 1.0).collect()
                };
                let (x, mut values) = (wave(tokens * cols, 37), wave(rows * cols, 61));
                let mut weight = vec![0; rows * row_bytes];
                for (values, bytes) in values.chunks_mut(cols).zip(weight.chunks_mut(row_bytes)) {
                    format.encode_row(values, bytes);
                    format.decode_row(bytes, values);
                }
                let mut out = vec![f32::NAN; tokens * rows];
                let shape = Shape { format, tokens, rows, cols, row_bytes };
                multiply_pairs(level, &x, &weight, shape, Output(out.as_mut_ptr()));
                for (i, found) in out.iter().enumerate() {
                    let value = |value: f32| bf16::from_f32(value).to_f64();
                    let (x, w) = (&x[i / rows * cols..][..cols], &values[i % rows * cols..][..cols]);
                    let exact: f64 = x.iter().zip(w).map(|(x, w)| value(*x) * value(*w)).sum();
                    // a decoded value next to the middle of two bf16 may be rounded to either
                    let near = if format.block_len() == 1 { 1e-4 } else { 1e-2 };
                    let context = format!("{format} {tokens} {rows} {cols} at {i}");
                    assert!((f64::from(*found) - exact).abs() < near, "{context}: {found} {exact}");
                }
            }
        }
    }
}
