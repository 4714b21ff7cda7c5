//! Products with few tokens, in f32: the time is that of reading the weights, so every row is streamed from memory
//! once, its next lines requested ahead, and multiplied with the tokens while it is in registers.

use crate::Format;
use crate::cpu::gemv::prefetch::{Prefetch, current};
use crate::cpu::gemv::row::Call;
use crate::cpu::isa::{Isa, Lanes, with_isa};
use crate::cpu::output::Output;
use crate::cpu::shape::Shape;
use crate::cpu::sub_blocks::{Blocks, Q4K, Q5K, Q6K, Q41, Q50, Q51, Scales};
use crate::math::f16_to_f32;
use std::ops::Range;

/// Rows that are multiplied with four tokens at once: as many sums as there are registers.
pub(in crate::cpu) const ROWS: usize = 6;
/// The same with the half as many registers of other instruction sets than AVX-512.
const FEW_ROWS: usize = 3;
/// Rows of 16-bit values that are read side by side for one token, so that what is loaded of it serves all of them: a token of a
/// feed-forward layer does not fit into the L1 cache.
const SIDE_BY_SIDE: usize = 8;
/// The same with the half as many registers of other instruction sets than AVX-512.
const FEW_SIDE_BY_SIDE: usize = 4;
/// Sums of a row and a token, so that an addition need not wait for the one before.
const STEPS: usize = 2;
/// From this many tokens on, rows are multiplied in such tiles.
const TILE_TOKENS: usize = 4;
/// Columns that are multiplied in such tiles at a time: those of 16 tokens stay in the L2 cache, for the rows of a group.
const CHUNK: usize = 2048;
/// The most calls of [`tile`] for a group of rows.
const GROUP_CALLS: usize = 16;

/// Of how many rows a multiple is best multiplied by one task.
pub(in crate::cpu) fn together(shape: Shape) -> usize {
    let tiled = matches!(shape.format, Format::Bf16 | Format::F16) && shape.tokens >= TILE_TOKENS;
    match tiled {
        true if shape.cols > CHUNK => ROWS * GROUP_CALLS / 4,
        true => ROWS,
        false => SIDE_BY_SIDE,
    }
}

/// The rows `range` of `out[t, r] = Σ_c x[t, c] w[r, c]`; see [`linear`](crate::cpu::linear()). With `alone`, each token
/// is multiplied as if there were no other.
pub(in crate::cpu) fn multiply(
    isa: Isa,
    x: &[f32],
    weight: &[u8],
    shape: Shape,
    alone: bool,
    range: Range<usize>,
    out: Output,
) {
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(x: &[f32], weight: &[u8], shape: Shape, alone: bool, range: Range<usize>, out: Output) {
        // SAFETY: the lanes' instructions are available where this is expanded; this task owns the rows, and as many
        // rows and tokens as the calls say are there.
        unsafe {
            let row = match shape.format {
                Format::Bf16 if shape.tokens >= TILE_TOKENS && !alone => match L::N {
                    16 => tiles::<L, ROWS, true>(x, weight, shape, range.clone(), out),
                    _ => tiles::<L, FEW_ROWS, true>(x, weight, shape, range.clone(), out),
                },
                Format::F16 if shape.tokens >= TILE_TOKENS && !alone => match L::N {
                    16 => tiles::<L, ROWS, false>(x, weight, shape, range.clone(), out),
                    _ => tiles::<L, FEW_ROWS, false>(x, weight, shape, range.clone(), out),
                },
                _ => range.start,
            };
            let most = match shape.format {
                Format::Bf16 | Format::F16 if alone || shape.tokens == 1 => match L::N {
                    16 => SIDE_BY_SIDE,
                    _ => FEW_SIDE_BY_SIDE,
                },
                _ => 1,
            };
            let prefetch = current();
            let mut row = row;
            while row < range.end {
                let rows = if range.end - row >= most { most } else { 1 };
                let bytes = &weight[row * shape.row_bytes..(row + rows) * shape.row_bytes];
                let mut token = 0;
                while token < shape.tokens {
                    let call = Call { bytes, shape, token, row, out, prefetch };
                    token += match (rows, if alone { 1 } else { shape.tokens - token }) {
                        (SIDE_BY_SIDE, _) => halves::<L, SIDE_BY_SIDE, 1>(x, &call),
                        (FEW_SIDE_BY_SIDE, _) => halves::<L, FEW_SIDE_BY_SIDE, 1>(x, &call),
                        (_, 1) => tokens::<L, 1>(x, &call),
                        (_, 2 | 3) => tokens::<L, 2>(x, &call),
                        _ => tokens::<L, 4>(x, &call),
                    };
                }
                row += rows;
            }
        }
    }
    with_isa!(isa, kernel(
        x: &[f32],
        weight: &[u8],
        shape: Shape,
        alone: bool,
        range: Range<usize>,
        out: Output,
    ));
}

/// The rows `range` of a product with bf16 weights and activations that were rounded to bf16, `x` `[tokens, cols / 2]` in words
/// of two values.
///
/// # Panics
/// When the columns are not a multiple of 32.
#[cfg(target_arch = "x86_64")]
pub(in crate::cpu) fn multiply_pairs(x: &[f32], weight: &[u8], shape: Shape, range: Range<usize>, out: Output) {
    use crate::cpu::isa::Pairs;
    /// # Safety
    /// As [`tiles`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
    unsafe fn kernel(x: &[f32], weight: &[u8], shape: Shape, range: Range<usize>, out: Output) {
        // SAFETY: as required of the caller.
        unsafe {
            let row = tiles::<Pairs, ROWS, true>(x, weight, shape, range.clone(), out);
            tiles::<Pairs, 1, true>(x, weight, shape, row..range.end, out);
        }
    }
    assert!(shape.format == Format::Bf16 && shape.cols.is_multiple_of(2 * Pairs::N), "whole vectors of bf16");
    // SAFETY: the CPU multiplies bf16 where products are rounded to it; this task owns the rows.
    unsafe { kernel(x, weight, shape, range, out) };
}

/// As many of the rows `range` as make whole tiles; returns the first that is left. Rows longer than [`CHUNK`] are
/// multiplied chunk by chunk, some tiles of rows at a time, and the sums of these wait in memory meanwhile.
///
/// # Safety
/// The lanes' instruction set must be available, and the rows must belong to the calling task.
#[inline(always)]
unsafe fn tiles<L: Lanes, const R: usize, const BF16: bool>(
    x: &[f32],
    weight: &[u8],
    shape: Shape,
    range: Range<usize>,
    out: Output,
) -> usize {
    let (tokens, words) = (shape.tokens, shape.cols / L::EACH);
    // calls of `tile` for a tile's tokens
    let calls = tokens / 4 + [0, 1, 1, 2][tokens % 4];
    let end = range.end - range.len() % R;
    assert!(calls <= GROUP_CALLS, "{tokens} tokens are too many to be streamed");
    let prefetch = current();
    let group = R * if words > CHUNK { (GROUP_CALLS / calls).max(1) } else { 1 };
    // SAFETY: as required of the caller.
    let mut waiting = unsafe { [[[L::splat(0.0); 4]; R]; GROUP_CALLS] };
    for first in (range.start..end).step_by(group) {
        let rows = first..end.min(first + group);
        for begin in (0..words).step_by(CHUNK) {
            let columns = begin..words.min(begin + CHUNK);
            for row in rows.clone().step_by(R) {
                // what is multiplied next
                let next = match row + R {
                    row if row < rows.end => (row, begin),
                    _ if columns.end < words => (rows.start, columns.end),
                    row => (row, 0),
                };
                let next = weight.as_ptr().wrapping_add(next.0 * shape.row_bytes + 2 * L::EACH * next.1);
                let (mut token, mut call) = (0, 0);
                while token < tokens {
                    let fetch = call * R / calls..(call + 1) * R / calls;
                    let part = Part { row, token, columns: columns.clone(), next, fetch, prefetch };
                    let sums = &mut waiting[(row - first) / R * calls + call];
                    // SAFETY: as required of the caller; as many tokens as the match says are there.
                    unsafe {
                        token += match tokens - token {
                            4.. => tile::<L, R, 4, BF16>(shape, x, weight, part, sums, out),
                            2 | 3 => tile::<L, R, 2, BF16>(shape, x, weight, part, sums, out),
                            _ => tile::<L, R, 1, BF16>(shape, x, weight, part, sums, out),
                        };
                    }
                    call += 1;
                }
            }
        }
    }
    end
}

/// What a call of [`tile`] multiplies: rows and tokens from the first one on, and some words of them.
struct Part {
    row: usize,
    token: usize,
    columns: Range<usize>,
    /// Where the words of the next tile lie, which the memory does not send by itself, which of its rows are to be
    /// requested, and into which cache.
    next: *const u8,
    fetch: Range<usize>,
    prefetch: Prefetch,
}

/// `R` rows of two bytes a value, in words of one or two values, times `M` tokens, so that what is loaded of one side serves all of the other;
/// returns `M`. The sums begin with those of the columns before, and are written to `out` after the last column.
///
/// # Safety
/// The lanes' instruction set must be available, the rows and tokens must be there, and the rows be the calling task's.
#[inline(always)]
unsafe fn tile<L: Lanes, const R: usize, const M: usize, const BF16: bool>(
    shape: Shape,
    x: &[f32],
    weight: &[u8],
    part: Part,
    waiting: &mut [[L; 4]; R],
    out: Output,
) -> usize {
    let (words, row_bytes) = (shape.cols / L::EACH, shape.row_bytes);
    let word = 2 * L::EACH;
    let Part { row, token, columns, next, fetch, prefetch } = part;
    let x = &x[token * words..(token + M) * words];
    let bytes = &weight[row * row_bytes..(row + R) * row_bytes];
    // SAFETY: `i` counts words, of which the rows and the tokens hold as many.
    unsafe {
        let mut sums = [[L::splat(0.0); M]; R];
        if columns.start > 0 {
            for (sums, waiting) in sums.iter_mut().zip(&*waiting) {
                sums.copy_from_slice(&waiting[..M]);
            }
        }
        let mut i = columns.start;
        while i + L::N <= columns.end {
            let mut weights = [L::splat(0.0); R];
            for (r, weights) in weights.iter_mut().enumerate() {
                *weights = load::<L, BF16>(bytes.as_ptr().add(r * row_bytes + word * i));
            }
            if (word * i).is_multiple_of(64) {
                for row in fetch.clone() {
                    prefetch.request_line(next.wrapping_add(row * row_bytes + word * (i - columns.start)));
                }
            }
            for t in 0..M {
                let x = L::load(x.as_ptr().add(t * words + i));
                for (sums, weights) in sums.iter_mut().zip(weights) {
                    sums[t] = weights.mul_add(x, sums[t]);
                }
            }
            i += L::N;
        }
        if columns.end < words {
            for (sums, waiting) in sums.iter().zip(waiting) {
                waiting[..M].copy_from_slice(sums);
            }
            return M;
        }
        let out = out.at(token * shape.rows + row);
        for (r, sums) in sums.into_iter().enumerate() {
            for (t, sum) in sums.into_iter().enumerate() {
                let (bytes, x) = (&bytes[r * row_bytes..(r + 1) * row_bytes], &x[t * words..(t + 1) * words]);
                *out.add(t * shape.rows + r) = sum.sum() + rest::<BF16>(&bytes[word * i..], &x[i..]);
            }
        }
    }
    M
}

/// One row times `M` tokens; returns `M`.
///
/// # Safety
/// The lanes' instruction set must be available. The call's row has the columns of its shape, `x` holds `M` tokens from the call's on, and
/// the task owns the row.
#[inline(always)]
unsafe fn tokens<L: Lanes, const M: usize>(x: &[f32], call: &Call<'_>) -> usize {
    // SAFETY: as required of the caller; every load below stays inside the row and the tokens, which hold the same number of values.
    unsafe {
        let format = call.shape.format;
        if matches!(format, Format::Bf16 | Format::F16) {
            return halves::<L, 1, M>(x, call);
        }
        let x = of_call::<M>(x, call);
        let sums = match format {
            Format::F32 | Format::Bf16 | Format::F16 => unreachable!("{format} weights are multiplied elsewhere"),
            Format::Q8_0 => blocks::<L, M, 34>(x, call, |quants, i| L::load_i8(quants.add(i))),
            Format::Q4_0 => blocks::<L, M, 18>(x, call, |quants, i| {
                if i < 16 { L::load_low_nibbles(quants.add(i)) } else { L::load_high_nibbles(quants.add(i - 16)) }
            }),
            Format::Q4_1 => parted::<L, Q41, M>(x, call),
            Format::Q5_0 => parted::<L, Q50, M>(x, call),
            Format::Q5_1 => parted::<L, Q51, M>(x, call),
            Format::Q4K => parted::<L, Q4K, M>(x, call),
            Format::Q5K => parted::<L, Q5K, M>(x, call),
            Format::Q6K => parted::<L, Q6K, M>(x, call),
            _ => decoded::<L, M>(x, call),
        };
        for (t, sum) in sums.into_iter().enumerate() {
            call.write(0, t, sum);
        }
    }
    M
}

/// The call's tokens.
#[inline(always)]
fn of_call<'a, const M: usize>(x: &'a [f32], call: &Call<'_>) -> [&'a [f32]; M] {
    let cols = call.shape.cols;
    std::array::from_fn(|t| &x[(call.token + t) * cols..(call.token + t + 1) * cols])
}

/// `R` rows of two bytes a value, bf16 or f16, times `M` tokens; returns `M`. The sums are the same for any of either.
///
/// # Safety
/// As [`tokens`], with `R` rows.
#[inline(always)]
unsafe fn halves<L: Lanes, const R: usize, const M: usize>(x: &[f32], call: &Call<'_>) -> usize {
    // SAFETY: as required of the caller.
    unsafe {
        match call.shape.format {
            Format::Bf16 => halves_of::<L, R, M, true>(of_call(x, call), call),
            _ => halves_of::<L, R, M, false>(of_call(x, call), call),
        }
    }
    M
}

/// # Safety
/// As [`halves`]; bf16 or f16.
#[inline(always)]
unsafe fn halves_of<L: Lanes, const R: usize, const M: usize, const BF16: bool>(x: [&[f32]; M], call: &Call<'_>) {
    let step = STEPS * L::N;
    let Shape { cols, row_bytes, .. } = call.shape;
    let row = |r: usize| call.bytes.as_ptr().wrapping_add(r * row_bytes);
    // SAFETY: `i` counts values, of which all rows and tokens hold `cols`.
    unsafe {
        let mut sums = [[[L::splat(0.0); M]; R]; STEPS];
        let mut i = 0;
        while i + step <= cols {
            call.request(2 * i * R, 2 * step * R);
            for (s, sums) in sums.iter_mut().enumerate() {
                let i = i + s * L::N;
                // a closure would not have the instructions
                let mut tokens = [L::splat(0.0); M];
                for (token, x) in tokens.iter_mut().zip(x) {
                    *token = L::load(x.as_ptr().add(i));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let weights = load::<L, BF16>(row(r).add(2 * i));
                    for (sum, token) in sums.iter_mut().zip(tokens) {
                        *sum = weights.mul_add(token, *sum);
                    }
                }
            }
            i += step;
        }
        for r in 0..R {
            let left = std::slice::from_raw_parts(row(r).add(2 * i), row_bytes - 2 * i);
            for (t, x) in x.iter().enumerate() {
                let mut sum = sums[0][r][t];
                for sums in &sums[1..] {
                    sum = sum.add(sums[r][t]);
                }
                call.write(r, t, sum.sum() + rest::<BF16>(left, &x[i..]));
            }
        }
    }
}

/// # Safety
/// `L::N` values, or words of two, must be readable.
#[inline(always)]
unsafe fn load<L: Lanes, const BF16: bool>(from: *const u8) -> L {
    // SAFETY: as required of the caller.
    unsafe {
        match L::EACH {
            2 => L::load(from.cast()),
            _ if BF16 => L::load_bf16(from),
            _ => L::load_f16(from),
        }
    }
}

/// What the lanes leave of a row, times as many activations.
#[inline(always)]
fn rest<const BF16: bool>(bytes: &[u8], x: &[f32]) -> f32 {
    let value = |bytes: [u8; 2]| match BF16 {
        true => f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16),
        false => f16_to_f32(bytes),
    };
    bytes.as_chunks().0.iter().zip(x).map(|(bytes, x)| x * value(*bytes)).sum()
}

/// # Safety
/// As [`tokens`]; blocks of 32 values in `SIZE` bytes that begin with an f16 scale. `load` gives the values from `i`
/// on of the block whose quants it is handed.
#[inline(always)]
unsafe fn blocks<L: Lanes, const M: usize, const SIZE: usize>(
    x: [&[f32]; M],
    call: &Call<'_>,
    load: impl Fn(*const u8, usize) -> L,
) -> [f32; M] {
    // SAFETY: block `b` covers values 32 b to 32 b + 31 of `x` and `SIZE` bytes.
    unsafe {
        let mut sums = [L::splat(0.0); M];
        for b in 0..call.bytes.len() / SIZE {
            let from = call.bytes.as_ptr().add(b * SIZE);
            call.request(b * SIZE, SIZE);
            let scale = L::splat(f16_to_f32(from.cast::<[u8; 2]>().read()));
            let mut products = [L::splat(0.0); M];
            for i in (0..32).step_by(L::N) {
                let weights = load(from.add(2), i);
                for (product, x) in products.iter_mut().zip(x) {
                    *product = weights.mul_add(L::load(x.as_ptr().add(b * 32 + i)), *product);
                }
            }
            for (sum, product) in sums.iter_mut().zip(products) {
                *sum = product.mul_add(scale, *sum);
            }
        }
        let mut totals = [0f32; M];
        for (total, sum) in totals.iter_mut().zip(sums) {
            *total = sum.sum();
        }
        totals
    }
}

/// # Safety
/// As [`tokens`]; blocks of a format that is only read, decoded value by value before they are multiplied.
#[inline(always)]
unsafe fn decoded<L: Lanes, const M: usize>(x: [&[f32]; M], call: &Call<'_>) -> [f32; M] {
    let format = call.shape.format;
    let (len, size) = (format.block_len(), format.block_bytes());
    let mut values = [0f32; 256];
    let values = &mut values[..len];
    // SAFETY: block `b` covers `len` values of `x` from `len b` on, and `len` is a multiple of all lanes.
    unsafe {
        let mut sums = [L::splat(0.0); M];
        for (b, block) in call.bytes.chunks_exact(size).enumerate() {
            call.request(b * size, size);
            format.decode_row(block, values);
            for i in (0..len).step_by(L::N) {
                let weights = L::load(values.as_ptr().add(i));
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = weights.mul_add(L::load(x.as_ptr().add(b * len + i)), *sum);
                }
            }
        }
        let mut totals = [0f32; M];
        for (total, sum) in totals.iter_mut().zip(sums) {
            *total = sum.sum();
        }
        totals
    }
}

/// # Safety
/// As [`tokens`]; the blocks of one of the formats with parts.
#[inline(always)]
unsafe fn parted<L: Lanes, B: Blocks, const M: usize>(x: [&[f32]; M], call: &Call<'_>) -> [f32; M] {
    let (len, size) = (B::FORMAT.block_len(), B::FORMAT.block_bytes());
    // SAFETY: block `b` covers `len` values of `x` from `len b` on, and `len` is a multiple of all lanes, twice.
    unsafe {
        let mut scales = Scales::new();
        // two sums, so that an addition need not wait for the one before
        let mut sums = [[L::splat(0.0); M]; 2];
        for (b, block) in call.bytes.chunks_exact(size).enumerate() {
            call.request(b * size, size);
            B::scales::<L>(block.as_ptr(), &mut scales);
            for pair in (0..len).step_by(2 * L::N) {
                for (s, sums) in sums.iter_mut().enumerate() {
                    let i = pair + s * L::N;
                    let weights = B::values::<L>(block.as_ptr(), &scales, i);
                    for (sum, x) in sums.iter_mut().zip(x) {
                        *sum = weights.mul_add(L::load(x.as_ptr().add(b * len + i)), *sum);
                    }
                }
            }
        }
        let mut totals = [0f32; M];
        for (t, total) in totals.iter_mut().enumerate() {
            *total = sums[0][t].add(sums[1][t]).sum();
        }
        totals
    }
}
