//! Products with few tokens, in f32: the time is that of reading the weights, so every row is streamed from memory
//! once, its next lines requested ahead, and multiplied with the tokens while it is in registers.

use super::lanes::{Lanes, prefetch};
use super::level::{Level, with_level};
use super::linear::{Output, Shape};
use crate::Format;
use half::f16;
use std::ops::Range;

/// How far ahead of its use a line of weights is requested, in bytes.
const AHEAD: usize = 3072;

/// The rows `range` of `out[t, r] = Σ_c x[t, c] w[r, c]`; see [`linear`](super::linear()).
pub(super) fn multiply(level: Level, x: &[f32], weight: &[u8], shape: Shape, range: Range<usize>, out: Output) {
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(x: &[f32], weight: &[u8], shape: Shape, range: Range<usize>, out: Output) {
        for row in range {
            let bytes = &weight[row * shape.row_bytes..(row + 1) * shape.row_bytes];
            let mut token = 0;
            while token < shape.tokens {
                let x = &x[token * shape.cols..];
                // SAFETY: the lanes' instructions are available where this is expanded; this task owns the row, and
                // as many tokens as the match says are there.
                unsafe {
                    let to = out.at(token * shape.rows + row);
                    token += match shape.tokens - token {
                        1 if token == 0 => tokens::<L, 1, 4, true>(shape, x, bytes, to),
                        1 => tokens::<L, 1, 4, false>(shape, x, bytes, to),
                        2 | 3 if token == 0 => tokens::<L, 2, 2, true>(shape, x, bytes, to),
                        2 | 3 => tokens::<L, 2, 2, false>(shape, x, bytes, to),
                        _ if token == 0 => tokens::<L, 4, 2, true>(shape, x, bytes, to),
                        _ => tokens::<L, 4, 2, false>(shape, x, bytes, to),
                    };
                }
            }
        }
    }
    with_level!(level, kernel(x: &[f32], weight: &[u8], shape: Shape, range: Range<usize>, out: Output));
}

/// One row times `M` tokens, each with `STEPS` sums, so that an addition need not wait for the one before; returns
/// `M`. `FETCH` requests the lines `AHEAD` of the read position.
///
/// # Safety
/// The lanes' instruction set must be available. `bytes` is a row, `x` holds `M` tokens, and there is room for their
/// sums at `out`, a row of the output apart.
#[inline(always)]
unsafe fn tokens<L: Lanes, const M: usize, const STEPS: usize, const FETCH: bool>(
    shape: Shape,
    x: &[f32],
    bytes: &[u8],
    out: *mut f32,
) -> usize {
    let x: [&[f32]; M] = std::array::from_fn(|t| &x[t * shape.cols..(t + 1) * shape.cols]);
    // SAFETY: every load below stays inside the row and the tokens, which hold the same number of values.
    let sums = unsafe {
        match shape.format {
            Format::F32 => {
                plain::<L, M, STEPS, FETCH, 4>(x, bytes, |from| L::load(from.cast()), |b| f32::from_le_bytes(*b))
            }
            Format::Bf16 => plain::<L, M, STEPS, FETCH, 2>(
                x,
                bytes,
                |from| L::load_bf16(from),
                |b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16),
            ),
            Format::F16 => {
                plain::<L, M, STEPS, FETCH, 2>(x, bytes, |from| L::load_f16(from), |b| f16::from_le_bytes(*b).to_f32())
            }
            Format::Q8_0 => blocks::<L, M, FETCH, 34>(x, bytes, |quants, i| L::load_i8(quants.add(i))),
            Format::Q4_0 => blocks::<L, M, FETCH, 18>(x, bytes, |quants, i| {
                if i < 16 { L::load_low_nibbles(quants.add(i)) } else { L::load_high_nibbles(quants.add(i - 16)) }
            }),
        }
    };
    for (t, sum) in sums.into_iter().enumerate() {
        // SAFETY: as required of the caller.
        unsafe { *out.add(t * shape.rows) = sum };
    }
    M
}

/// # Safety
/// As [`tokens`]; `SIZE` bytes per value.
#[inline(always)]
unsafe fn plain<L: Lanes, const M: usize, const STEPS: usize, const FETCH: bool, const SIZE: usize>(
    x: [&[f32]; M],
    bytes: &[u8],
    load: impl Fn(*const u8) -> L,
    scalar: impl Fn(&[u8; SIZE]) -> f32,
) -> [f32; M] {
    let step = STEPS * L::N;
    let cols = x[0].len();
    // SAFETY: `i` counts values, of which all slices hold `cols`.
    unsafe {
        let mut sums = [[L::splat(0.0); M]; STEPS];
        let mut i = 0;
        while i + step <= cols {
            let from = bytes.as_ptr().add(i * SIZE);
            if FETCH {
                for line in 0..(step * SIZE).div_ceil(64) {
                    prefetch(from.wrapping_add(AHEAD + line * 64));
                }
            }
            for (s, sums) in sums.iter_mut().enumerate() {
                let weights = load(from.add(s * L::N * SIZE));
                *sums = std::array::from_fn(|t| weights.mul_add(L::load(x[t].as_ptr().add(i + s * L::N)), sums[t]));
            }
            i += step;
        }
        std::array::from_fn(|t| {
            let mut sum = sums[1..].iter().fold(sums[0][t], |sum, sums| sum.add(sums[t])).sum();
            for (x, value) in x[t][i..].iter().zip(bytes[i * SIZE..].as_chunks::<SIZE>().0) {
                sum += x * scalar(value);
            }
            sum
        })
    }
}

/// # Safety
/// As [`tokens`]; blocks of 32 values in `SIZE` bytes that begin with an f16 scale. `load` gives the values from `i`
/// on of the block whose quants it is handed.
#[inline(always)]
unsafe fn blocks<L: Lanes, const M: usize, const FETCH: bool, const SIZE: usize>(
    x: [&[f32]; M],
    bytes: &[u8],
    load: impl Fn(*const u8, usize) -> L,
) -> [f32; M] {
    // SAFETY: block `b` covers values 32 b to 32 b + 31 of `x` and `SIZE` bytes.
    unsafe {
        let mut sums = [L::splat(0.0); M];
        for b in 0..bytes.len() / SIZE {
            let from = bytes.as_ptr().add(b * SIZE);
            if FETCH {
                prefetch(from.wrapping_add(AHEAD));
            }
            let scale = L::splat(f16::from_le_bytes(from.cast::<[u8; 2]>().read()).to_f32());
            let mut products = [L::splat(0.0); M];
            for i in (0..32).step_by(L::N) {
                let weights = load(from.add(2), i);
                products =
                    std::array::from_fn(|t| weights.mul_add(L::load(x[t].as_ptr().add(b * 32 + i)), products[t]));
            }
            sums = std::array::from_fn(|t| products[t].mul_add(scale, sums[t]));
        }
        sums.map(|sum| sum.sum())
    }
}
