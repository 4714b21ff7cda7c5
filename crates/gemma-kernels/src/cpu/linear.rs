//! Products with a packed matrix, and look-ups of its rows.
//!
//! Two ways to multiply. With few tokens the time is that of reading the weights once, so each row is streamed
//! from memory, its next lines requested ahead, and multiplied with every token while it is in the cache. With
//! many tokens arithmetic dominates: blocks of rows are decoded to f32 and multiplied in register tiles.

use super::lanes::{Lanes, prefetch};
use super::level::{Level, with_level};
use crate::Format;
use half::f16;
use rayon::prelude::*;

/// Up to this many tokens, rows are streamed; above, blocks of rows are decoded first.
const STREAMED_TOKENS: usize = 6;
/// How far ahead of its use a line of weights is requested, in bytes.
const AHEAD: usize = 3072;
/// Rows of a decoded block.
const BLOCK_ROWS: usize = 32;
/// Columns of a decoded block: 32 x 2048 f32 values fill 256 KiB, within the second-level cache.
const BLOCK_COLS: usize = 2048;
/// Products smaller than this many multiplications are not worth a second thread.
const SERIAL_WORK: usize = 1 << 16;

/// The output, written by several threads at places that do not overlap.
#[derive(Clone, Copy)]
struct Output(*mut f32);

// SAFETY: every task writes columns of its own; see `linear`.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    /// # Safety
    /// `index` must lie inside the output, and no other thread may touch that element.
    unsafe fn write(self, index: usize, value: f32, add: bool) {
        // SAFETY: as required of the caller.
        unsafe {
            let at = self.0.add(index);
            *at = if add { *at + value } else { value };
        }
    }
}

/// `out[t, r] = Σ_c x[t, c] w[r, c]` with `x` `[tokens, cols]` and `w` `[rows, cols]` in `format`, summed in f32.
///
/// # Panics
/// When a slice does not have the size of its shape.
pub(crate) fn linear(level: Level, x: &[f32], weight: &[u8], format: Format, cols: usize, out: &mut [f32]) {
    let row_bytes = format.row_bytes(cols).expect("a packed weight has whole blocks");
    let tokens = x.len() / cols;
    let rows = weight.len() / row_bytes;
    assert_eq!(x.len(), tokens * cols, "activations");
    assert_eq!(weight.len(), rows * row_bytes, "weights");
    assert_eq!(out.len(), tokens * rows, "outputs");
    if out.is_empty() {
        return;
    }
    let output = Output(out.as_mut_ptr());
    let shape = Shape { format, tokens, rows, cols, row_bytes };
    let threads = if tokens * rows * cols < SERIAL_WORK { 1 } else { rayon::current_num_threads() };
    if tokens <= STREAMED_TOKENS {
        // one long stretch of rows per thread: short ones would restart the memory stream
        let stretch = rows.div_ceil(threads);
        in_parallel(threads, rows.div_ceil(stretch), |task| {
            let range = task * stretch..((task + 1) * stretch).min(rows);
            stream_rows(level, x, weight, shape, range, output);
        });
    } else {
        in_parallel(threads, rows.div_ceil(BLOCK_ROWS), |task| {
            let range = task * BLOCK_ROWS..((task + 1) * BLOCK_ROWS).min(rows);
            multiply_block(level, x, weight, shape, range, output);
        });
    }
}

fn in_parallel(threads: usize, tasks: usize, task: impl Fn(usize) + Sync + Send) {
    if threads == 1 || tasks == 1 {
        (0..tasks).for_each(task);
    } else {
        (0..tasks).into_par_iter().for_each(task);
    }
}

#[derive(Clone, Copy)]
struct Shape {
    format: Format,
    tokens: usize,
    rows: usize,
    cols: usize,
    row_bytes: usize,
}

fn stream_rows(level: Level, x: &[f32], weight: &[u8], shape: Shape, range: std::ops::Range<usize>, out: Output) {
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(x: &[f32], weight: &[u8], shape: Shape, range: std::ops::Range<usize>, out: Output) {
        for row in range {
            let bytes = &weight[row * shape.row_bytes..(row + 1) * shape.row_bytes];
            for token in 0..shape.tokens {
                let x = &x[token * shape.cols..(token + 1) * shape.cols];
                // SAFETY: the lanes' instructions are available where this is expanded; this task owns the row.
                unsafe {
                    let sum = if token == 0 {
                        dot::<L, true>(shape.format, x, bytes)
                    } else {
                        dot::<L, false>(shape.format, x, bytes)
                    };
                    out.write(token * shape.rows + row, sum, false);
                }
            }
        }
    }
    with_level!(level, kernel(x: &[f32], weight: &[u8], shape: Shape, range: std::ops::Range<usize>, out: Output));
}

/// The product of one row with one vector. `FETCH` requests the lines `AHEAD` of the read position.
///
/// # Safety
/// The lanes' instruction set must be available. `bytes` is a row of `x.len()` values.
#[inline(always)]
unsafe fn dot<L: Lanes, const FETCH: bool>(format: Format, x: &[f32], bytes: &[u8]) -> f32 {
    // SAFETY: every pointer below stays inside `x` and `bytes`, which hold the same number of values.
    unsafe {
        match format {
            Format::F32 => dot_plain::<L, FETCH, 4>(x, bytes, |from| L::load(from.cast()), |b| f32::from_le_bytes(*b)),
            Format::Bf16 => dot_plain::<L, FETCH, 2>(
                x,
                bytes,
                |from| L::load_bf16(from),
                |b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16),
            ),
            Format::F16 => {
                dot_plain::<L, FETCH, 2>(x, bytes, |from| L::load_f16(from), |b| f16::from_le_bytes(*b).to_f32())
            }
            Format::Q8_0 => dot_blocks::<L, FETCH, 34>(x, bytes, |x, quants| {
                let mut sum = L::splat(0.0);
                for i in (0..32).step_by(L::N) {
                    sum = L::load_i8(quants.add(i)).mul_add(L::load(x.add(i)), sum);
                }
                sum
            }),
            Format::Q4_0 => dot_blocks::<L, FETCH, 18>(x, bytes, |x, quants| {
                let mut sum = L::splat(0.0);
                for i in (0..16).step_by(L::N) {
                    sum = L::load_low_nibbles(quants.add(i)).mul_add(L::load(x.add(i)), sum);
                    sum = L::load_high_nibbles(quants.add(i)).mul_add(L::load(x.add(16 + i)), sum);
                }
                sum
            }),
        }
    }
}

/// # Safety
/// As [`dot`]; `SIZE` bytes per value.
#[inline(always)]
unsafe fn dot_plain<L: Lanes, const FETCH: bool, const SIZE: usize>(
    x: &[f32],
    bytes: &[u8],
    load: impl Fn(*const u8) -> L,
    scalar: impl Fn(&[u8; SIZE]) -> f32,
) -> f32 {
    const STEPS: usize = 4;
    let step = STEPS * L::N;
    // SAFETY: `i` counts values, and both slices hold `x.len()` of them.
    unsafe {
        let mut sums = [L::splat(0.0); STEPS];
        let mut i = 0;
        while i + step <= x.len() {
            let from = bytes.as_ptr().add(i * SIZE);
            if FETCH {
                for line in 0..(step * SIZE).div_ceil(64) {
                    prefetch(from.wrapping_add(AHEAD + line * 64));
                }
            }
            for (s, sum) in sums.iter_mut().enumerate() {
                *sum = load(from.add(s * L::N * SIZE)).mul_add(L::load(x.as_ptr().add(i + s * L::N)), *sum);
            }
            i += step;
        }
        let one = L::splat(1.0);
        let mut sum = sums[0].mul_add(one, sums[1]).mul_add(one, sums[2].mul_add(one, sums[3])).sum();
        for (x, value) in x[i..].iter().zip(bytes[i * SIZE..].as_chunks::<SIZE>().0) {
            sum += x * scalar(value);
        }
        sum
    }
}

/// # Safety
/// As [`dot`]; blocks of 32 values in `SIZE` bytes that begin with an f16 scale.
#[inline(always)]
unsafe fn dot_blocks<L: Lanes, const FETCH: bool, const SIZE: usize>(
    x: &[f32],
    bytes: &[u8],
    block: impl Fn(*const f32, *const u8) -> L,
) -> f32 {
    // SAFETY: block `b` covers values 32 b to 32 b + 31 of `x` and `SIZE` bytes.
    unsafe {
        let mut sums = [L::splat(0.0); 2];
        for b in 0..bytes.len() / SIZE {
            let from = bytes.as_ptr().add(b * SIZE);
            if FETCH {
                prefetch(from.wrapping_add(AHEAD));
            }
            let scale = L::splat(f16::from_le_bytes(from.cast::<[u8; 2]>().read()).to_f32());
            sums[b & 1] = block(x.as_ptr().add(b * 32), from.add(2)).mul_add(scale, sums[b & 1]);
        }
        sums[0].mul_add(L::splat(1.0), sums[1]).sum()
    }
}

fn multiply_block(level: Level, x: &[f32], weight: &[u8], shape: Shape, range: std::ops::Range<usize>, out: Output) {
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(x: &[f32], weight: &[u8], shape: Shape, range: std::ops::Range<usize>, out: Output) {
        let mut panel = vec![0f32; BLOCK_ROWS * BLOCK_COLS.min(shape.cols)];
        for begin in (0..shape.cols).step_by(BLOCK_COLS) {
            let width = BLOCK_COLS.min(shape.cols - begin);
            let columns = shape.format.row_bytes(begin).expect("whole blocks")
                ..shape.format.row_bytes(begin + width).expect("whole blocks");
            for (row, values) in range.clone().zip(panel.chunks_exact_mut(width)) {
                let bytes = &weight[row * shape.row_bytes..(row + 1) * shape.row_bytes][columns.clone()];
                // SAFETY: the lanes' instructions are available where this is expanded.
                unsafe { decode::<L>(shape.format, bytes, values) };
            }
            let tile = Tile { x, panel: &panel, shape, begin, width, range: range.clone() };
            let mut token = 0;
            while token < shape.tokens {
                // SAFETY: as above; the tile stays inside the matrices, and this task owns its rows.
                token += unsafe { tile.multiply::<L>(token, out) };
            }
        }
    }
    with_level!(level, kernel(x: &[f32], weight: &[u8], shape: Shape, range: std::ops::Range<usize>, out: Output));
}

/// A decoded block of rows and the activations it is multiplied with.
struct Tile<'a> {
    x: &'a [f32],
    panel: &'a [f32],
    shape: Shape,
    begin: usize,
    width: usize,
    range: std::ops::Range<usize>,
}

impl Tile<'_> {
    /// Multiplies all rows with the tokens from `token` on; returns how many tokens that were.
    ///
    /// # Safety
    /// The lanes' instruction set must be available, and the rows must belong to the calling task.
    #[inline(always)]
    unsafe fn multiply<L: Lanes>(&self, token: usize, out: Output) -> usize {
        let left = self.shape.tokens - token;
        // SAFETY: as required of the caller.
        unsafe {
            match L::TILE {
                (4, 4) if left >= 4 => self.rows::<L, 4, 4>(token, out),
                (4, _) if left >= 2 => self.rows::<L, 4, 2>(token, out),
                (2, _) if left >= 2 => self.rows::<L, 2, 2>(token, out),
                _ => self.rows::<L, 2, 1>(token, out),
            }
        }
    }

    /// # Safety
    /// As [`Tile::multiply`], with at least `T` tokens from `token` on.
    #[inline(always)]
    unsafe fn rows<L: Lanes, const R: usize, const T: usize>(&self, token: usize, out: Output) -> usize {
        let rows = self.range.len();
        let mut row = 0;
        // SAFETY: as required of the caller; `row + R` never exceeds the rows of the panel.
        unsafe {
            while row + R <= rows {
                self.registers::<L, R, T>(row, token, out);
                row += R;
            }
            while row < rows {
                self.registers::<L, 1, T>(row, token, out);
                row += 1;
            }
        }
        T
    }

    /// `R` rows times `T` tokens, their `R T` sums held in registers.
    ///
    /// # Safety
    /// As [`Tile::rows`].
    #[inline(always)]
    unsafe fn registers<L: Lanes, const R: usize, const T: usize>(&self, row: usize, token: usize, out: Output) {
        // SAFETY: rows `row..row + R` of the panel and tokens `token..token + T` of x exist, `width` values each.
        unsafe {
            let w: [*const f32; R] = std::array::from_fn(|r| self.panel.as_ptr().add((row + r) * self.width));
            let x: [*const f32; T] =
                std::array::from_fn(|t| self.x.as_ptr().add((token + t) * self.shape.cols + self.begin));
            let mut sums = [[L::splat(0.0); T]; R];
            let mut i = 0;
            while i + L::N <= self.width {
                let xs: [L; T] = std::array::from_fn(|t| L::load(x[t].add(i)));
                for r in 0..R {
                    let weights = L::load(w[r].add(i));
                    for t in 0..T {
                        sums[r][t] = weights.mul_add(xs[t], sums[r][t]);
                    }
                }
                i += L::N;
            }
            for r in 0..R {
                for t in 0..T {
                    let mut sum = sums[r][t].sum();
                    for j in i..self.width {
                        sum += *w[r].add(j) * *x[t].add(j);
                    }
                    let index = (token + t) * self.shape.rows + self.range.start + row + r;
                    out.write(index, sum, self.begin > 0);
                }
            }
        }
    }
}

/// A stretch of a row as f32.
///
/// # Safety
/// The lanes' instruction set must be available; `bytes` holds `values.len()` values.
#[inline(always)]
unsafe fn decode<L: Lanes>(format: Format, bytes: &[u8], values: &mut [f32]) {
    let whole = values.len() / L::N * L::N;
    // SAFETY: every load and store stays inside the two slices.
    unsafe {
        let (from, to) = (bytes.as_ptr(), values.as_mut_ptr());
        match format {
            Format::Bf16 => (0..whole).step_by(L::N).for_each(|i| L::load_bf16(from.add(i * 2)).store(to.add(i))),
            Format::F16 => (0..whole).step_by(L::N).for_each(|i| L::load_f16(from.add(i * 2)).store(to.add(i))),
            Format::Q8_0 => {
                for b in 0..values.len() / 32 {
                    let block = from.add(b * 34);
                    let scale = L::splat(f16::from_le_bytes(block.cast::<[u8; 2]>().read()).to_f32());
                    for i in (0..32).step_by(L::N) {
                        L::load_i8(block.add(2 + i)).mul(scale).store(to.add(b * 32 + i));
                    }
                }
                return;
            }
            Format::Q4_0 => {
                for b in 0..values.len() / 32 {
                    let block = from.add(b * 18);
                    let scale = L::splat(f16::from_le_bytes(block.cast::<[u8; 2]>().read()).to_f32());
                    for i in (0..16).step_by(L::N) {
                        L::load_low_nibbles(block.add(2 + i)).mul(scale).store(to.add(b * 32 + i));
                        L::load_high_nibbles(block.add(2 + i)).mul(scale).store(to.add(b * 32 + 16 + i));
                    }
                }
                return;
            }
            Format::F32 => (0..whole).step_by(L::N).for_each(|i| L::load(from.add(i * 4).cast()).store(to.add(i))),
        }
    }
    let size = format.block_bytes();
    format.decode_row(&bytes[whole * size..], &mut values[whole..]);
}

/// The rows `ids` of a packed matrix as f32, `[ids, cols]`.
///
/// # Panics
/// When an id is not a row of the matrix, or `out` does not have the size of the result.
pub(crate) fn rows(
    weight: &[u8],
    ids: impl ExactSizeIterator<Item = usize>,
    format: Format,
    cols: usize,
    out: &mut [f32],
) {
    let row_bytes = format.row_bytes(cols).expect("a packed weight has whole blocks");
    assert_eq!(out.len(), ids.len() * cols, "outputs");
    for (id, values) in ids.zip(out.chunks_exact_mut(cols)) {
        format.decode_row(&weight[id * row_bytes..(id + 1) * row_bytes], values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 40) as f32) / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// Every level, format and path against an f64 loop over the decoded weights.
    #[test]
    fn products_equal_a_plain_loop() {
        for format in Format::ALL {
            for (rows, cols) in [(1, 32), (7, 96), (33, 160), (70, 2080), (5, 1), (3, 17), (40, 67)] {
                if format.row_bytes(cols).is_none() {
                    continue;
                }
                let values = noise(rows * cols, 1);
                let row_bytes = format.row_bytes(cols).unwrap();
                let mut weight = vec![0; rows * row_bytes];
                let mut decoded = vec![0.0; rows * cols];
                for row in 0..rows {
                    let bytes = &mut weight[row * row_bytes..(row + 1) * row_bytes];
                    format.encode_row(&values[row * cols..(row + 1) * cols], bytes);
                    format.decode_row(bytes, &mut decoded[row * cols..(row + 1) * cols]);
                }
                for tokens in [1, 2, 6, 7, 8, 13] {
                    let x = noise(tokens * cols, 2);
                    for level in Level::available() {
                        let mut out = vec![f32::NAN; tokens * rows];
                        linear(level, &x, &weight, format, cols, &mut out);
                        for t in 0..tokens {
                            for r in 0..rows {
                                let exact: f64 = (0..cols)
                                    .map(|c| f64::from(x[t * cols + c]) * f64::from(decoded[r * cols + c]))
                                    .sum();
                                let error = (f64::from(out[t * rows + r]) - exact).abs();
                                assert!(
                                    error < 2e-6 * (cols as f64).sqrt() + 1e-5,
                                    "{level:?} {format} {tokens}x{cols}x{rows} at {t},{r}: {error}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn extreme_values_survive() {
        let x = [1.0f32, 1.0, 1.0, 1.0];
        let mut weight = [0; 16];
        Format::F32.encode_row(&[f32::MAX, -f32::MAX, f32::MIN_POSITIVE, -0.0], &mut weight);
        for level in Level::available() {
            let mut out = [0.0];
            linear(level, &x, &weight, Format::F32, 4, &mut out);
            assert!(out[0].is_finite(), "{level:?}: {}", out[0]);
        }
    }
}
