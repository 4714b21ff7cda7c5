//! Products with the narrow factors of a low-rank difference, in f32: a matrix `m` of few rows, `[rank, cols]`, beside
//! activations of many.
//!
//! All three directions are the register tile of [`gemm`](super::gemm) on operands as they lie. Every sum runs over its terms
//! in order: it depends neither on the other rows nor on the number of threads.

use crate::cpu::buffer::Buffer;
use crate::cpu::gemm::tile::{self, Ahead, Left, Right, Sums, block_width};
use crate::cpu::isa::{Isa, Lanes, with_isa};
use crate::cpu::output::Output;
use crate::cpu::pool;
use std::ops::Range;

/// Columns that are multiplied with all rows of a task before the next ones, in [`narrow`].
const DEPTH: usize = 512;
/// Rows of a task.
const ROWS: usize = 48;
/// Columns of a task: whole blocks of every instruction set.
const COLUMNS: usize = 512;

/// `scale · x mᵀ`: `[tokens, cols]` and `[rank, cols]` to `[tokens, rank]`.
pub(crate) fn narrow(isa: Isa, x: &[f32], m: &[f32], cols: usize, scale: f32) -> Vec<f32> {
    #[inline(always)]
    unsafe fn width<L: Lanes>() -> usize {
        block_width::<L>()
    }
    #[inline(always)]
    unsafe fn pack<L: Lanes>(m: &[f32], cols: usize, block: *mut f32) {
        // SAFETY: as required of the caller.
        unsafe { tile::pack::<L>(m.as_ptr(), cols, m.len() / cols, cols, block) };
    }
    #[inline(always)]
    unsafe fn multiply<L: Lanes>(x: &[f32], block: &[f32], cols: usize, vectors: usize, sums: &mut [f32]) {
        let width = block_width::<L>();
        for begin in (0..cols).step_by(DEPTH) {
            let depth = DEPTH.min(cols - begin);
            // SAFETY: the operands have these columns, the sums a row of the block's width for each row.
            unsafe {
                let left = Left { at: x.as_ptr().add(begin), row: cols, step: 1 };
                let right = Right { at: block.as_ptr().add(begin * width), row: width };
                let to = Sums { at: sums.as_mut_ptr(), row: width, add: begin > 0 };
                tile::multiply::<L>(left, x.len() / cols, right, depth, vectors, to, Ahead::NOTHING);
            }
        }
    }
    let (tokens, rank) = (x.len() / cols, m.len() / cols);
    let width = with_isa!(isa, width() -> usize);
    let mut out = vec![0.0; tokens * rank];
    let output = Output(out.as_mut_ptr());
    let mut block = Buffer::<f32>::zeroed(cols * width);
    for first in (0..rank).step_by(width) {
        let count = width.min(rank - first);
        let (m, to) = (&m[first * cols..(first + count) * cols], block.as_mut_ptr());
        with_isa!(isa, pack(m: &[f32], cols: usize, to: *mut f32));
        let block = &*block;
        pool::for_work(tokens * cols * count, tokens.div_ceil(ROWS), |task| {
            let rows = task * ROWS..((task + 1) * ROWS).min(tokens);
            let x = &x[rows.start * cols..rows.end * cols];
            let sums = &mut [0f32; ROWS * 32][..rows.len() * width];
            let vectors = if 2 * count <= width { 1 } else { 2 };
            with_isa!(isa, multiply(x: &[f32], block: &[f32], cols: usize, vectors: usize, sums: &mut [f32]));
            for (row, sums) in rows.zip(sums.chunks(width)) {
                for (place, sum) in sums[..count].iter().enumerate() {
                    // SAFETY: this task owns the row.
                    unsafe { *output.at(row * rank + first + place) = scale * sum };
                }
            }
        });
    }
    out
}

/// Adds `v m` to `out`: `[tokens, rank]` times `[rank, cols]`, `[tokens, cols]`.
pub(crate) fn widen(isa: Isa, v: &[f32], m: &[f32], cols: usize, out: &mut [f32]) {
    #[inline(always)]
    unsafe fn rows<L: Lanes>(v: &[f32], m: &[f32], rank: usize, cols: usize, out: &mut [f32]) {
        let left = Left { at: v.as_ptr(), row: rank, step: 1 };
        let to = Sums { at: out.as_mut_ptr(), row: cols, add: true };
        // SAFETY: the sizes are those of the slices, and the lanes' instructions are available.
        unsafe {
            let right = Right { at: m.as_ptr(), row: cols };
            tile::multiply_columns::<L>(left, v.len() / rank, right, rank, cols, to);
        }
    }
    let (tokens, rank) = (out.len() / cols, m.len() / cols);
    let output = Output(out.as_mut_ptr());
    pool::for_work(tokens * cols * rank, tokens.div_ceil(ROWS), |task| {
        let range = task * ROWS..((task + 1) * ROWS).min(tokens);
        let v = &v[range.start * rank..range.end * rank];
        // SAFETY: these rows are this task's.
        let out = unsafe { std::slice::from_raw_parts_mut(output.at(range.start * cols), range.len() * cols) };
        with_isa!(isa, rows(v: &[f32], m: &[f32], rank: usize, cols: usize, out: &mut [f32]));
    });
}

/// `vᵀ x`: `[tokens, rank]` and `[tokens, cols]` to `[rank, cols]`.
pub(crate) fn outer(isa: Isa, v: &[f32], x: &[f32], cols: usize) -> Vec<f32> {
    #[inline(always)]
    unsafe fn columns<L: Lanes>(v: &[f32], rank: usize, x: &[f32], cols: usize, range: Range<usize>, out: Output) {
        let left = Left { at: v.as_ptr(), row: 1, step: rank };
        // SAFETY: the sizes are those of the slices, and the lanes' instructions are available.
        unsafe {
            let right = Right { at: x.as_ptr().add(range.start), row: cols };
            let to = Sums { at: out.at(range.start), row: cols, add: false };
            tile::multiply_columns::<L>(left, rank, right, x.len() / cols, range.len(), to);
        }
    }
    let tokens = x.len() / cols;
    let rank = v.len() / tokens;
    let mut out = vec![0.0; rank * cols];
    let output = Output(out.as_mut_ptr());
    pool::for_work(tokens * cols * rank, cols.div_ceil(COLUMNS), |task| {
        let range = task * COLUMNS..((task + 1) * COLUMNS).min(cols);
        let out = output;
        with_isa!(isa, columns(v: &[f32], rank: usize, x: &[f32], cols: usize, range: Range<usize>, out: Output));
    });
    out
}

/// The transpose of `m`, `[rows, cols]`.
pub(crate) fn transpose(isa: Isa, m: &[f32], cols: usize) -> Vec<f32> {
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(m: &[f32], rows: usize, cols: usize, out: &mut [f32]) {
        // SAFETY: both have as many values, and the lanes' instructions are available.
        unsafe { tile::unpack::<L>(m.as_ptr(), cols, rows, cols, out.as_mut_ptr(), rows) };
    }
    let rows = m.len() / cols.max(1);
    let mut transposed = vec![0.0; m.len()];
    let out = &mut transposed[..];
    with_isa!(isa, kernel(m: &[f32], rows: usize, cols: usize, out: &mut [f32]));
    transposed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::noise;

    fn assert_sums(found: &[f32], exact: impl Fn(usize, usize) -> f64, cols: usize, context: &str) {
        for (place, found) in found.iter().enumerate() {
            let exact = exact(place / cols, place % cols);
            assert!(
                (f64::from(*found) - exact).abs() < 1e-4 * (1.0 + exact.abs()),
                "{context} at {place}: {found} {exact}"
            );
        }
    }

    #[test]
    fn every_direction_sums_what_a_plain_loop_does() {
        for (tokens, rank, cols) in
            [(1, 1, 1), (3, 2, 16), (5, 8, 33), (50, 8, 1100), (97, 3, 520), (2, 40, 70), (13, 17, 64)]
        {
            let (x, m, v) = (noise(tokens * cols, 1), noise(rank * cols, 2), noise(tokens * rank, 3));
            let product = |a: f32, b: f32| f64::from(a) * f64::from(b);
            for isa in Isa::available() {
                let context = format!("{isa:?} {tokens} {rank} {cols}");
                let dot =
                    |t: usize, r: usize| (0..cols).map(|c| product(x[t * cols + c], m[r * cols + c])).sum::<f64>();
                assert_sums(&narrow(isa, &x, &m, cols, 0.5), |t, r| 0.5 * dot(t, r), rank, &context);
                let mut out = x.clone();
                widen(isa, &v, &m, cols, &mut out);
                let sum =
                    |t: usize, c: usize| (0..rank).map(|r| product(v[t * rank + r], m[r * cols + c])).sum::<f64>();
                assert_sums(&out, |t, c| f64::from(x[t * cols + c]) + sum(t, c), cols, &context);
                let sum =
                    |r: usize, c: usize| (0..tokens).map(|t| product(v[t * rank + r], x[t * cols + c])).sum::<f64>();
                assert_sums(&outer(isa, &v, &x, cols), sum, cols, &context);
                let turned = transpose(isa, &m, cols);
                assert!((0..m.len()).all(|i| turned[i % cols * rank + i / cols] == m[i]), "{context}");
            }
        }
    }
}
