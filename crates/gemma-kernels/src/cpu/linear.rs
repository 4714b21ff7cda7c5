//! Products with a packed matrix, and look-ups of its rows.
//!
//! Two ways to multiply. With few tokens the time is that of reading the weights once, so each row is streamed from
//! memory ([`stream`](super::stream), [`integer`](super::integer)). With many tokens arithmetic dominates: blocks of
//! rows are decoded and multiplied in register tiles ([`blocked`](super::blocked)).
//!
//! The two add in different orders, so a token's last bits can depend on how many others are computed with it. Weights in
//! f32, which somebody keeps for exactness and not for speed, are therefore always multiplied in tiles, where every
//! sum runs over the columns in order: a sequence in a batch is bit for bit what it is alone.

use super::level::Level;
use super::output::Output;
use super::{blocked, integer, pool, stream};
use crate::{ActivationPrecision, Format};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Up to this many tokens, rows are streamed; above, blocks of rows are decoded first.
const STREAMED_TOKENS: usize = 8;
/// The same for rows of bf16 and f16, of which several are multiplied at once.
pub(super) const STREAMED_TOKENS_OF_HALVES: usize = 16;
/// Bytes of weights that a thread streams before it looks for work again.
const STREAM_BYTES: usize = 1 << 18;

/// The sizes of one product.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) format: Format,
    pub(super) tokens: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_bytes: usize,
}

impl Shape {
    /// Where column `column`, the first of a block, begins in a row.
    pub(super) fn bytes(self, column: usize) -> usize {
        column / self.format.block_len() * self.format.block_bytes()
    }

    /// Multiplications.
    pub(super) fn work(self) -> usize {
        self.tokens * self.rows * self.cols
    }
}

/// `out[t, r] = Σ_c x[t, c] w[r, c]` with `x` `[tokens, cols]` and `w` `[rows, cols]` in `format`, summed in f32. Every value of `out` is written.
///
/// # Panics
/// When a slice does not have the size of its shape.
pub(crate) fn linear(
    level: Level,
    activations: ActivationPrecision,
    x: &[f32],
    weight: &[u8],
    format: Format,
    cols: usize,
    out: &mut [MaybeUninit<f32>],
) {
    let row_bytes = format.row_bytes(cols).expect("a packed weight has whole blocks");
    let tokens = x.len() / cols;
    let rows = weight.len() / row_bytes;
    assert_eq!(x.len(), tokens * cols, "activations");
    assert_eq!(weight.len(), rows * row_bytes, "weights");
    assert_eq!(out.len(), tokens * rows, "outputs");
    if out.is_empty() {
        return;
    }
    let output = Output(out.as_mut_ptr().cast());
    let shape = Shape { format, tokens, rows, cols, row_bytes };
    #[cfg(target_arch = "x86_64")]
    if activations != ActivationPrecision::F32 && tokens > STREAMED_TOKENS {
        let finely = activations == ActivationPrecision::Int16OrBf16;
        let bytes = super::bytes::has(level, format);
        // few tokens in bytes are as fast as in pairs, and finer
        let few = bytes && (tokens <= STREAMED_TOKENS_OF_HALVES || !finely);
        let paired = has_pairs(level, shape) && !few && activations.round_prompts(format);
        if paired {
            return super::pairs::multiply(level, x, weight, shape, output);
        }
        if bytes {
            return super::bytes::multiply(level, x, weight, shape, finely, output);
        }
    }
    let streamed = match format {
        Format::F32 => 0,
        Format::Bf16 | Format::F16 => STREAMED_TOKENS_OF_HALVES,
        _ => STREAMED_TOKENS,
    };
    if tokens > streamed {
        blocked::multiply(level, x, weight, shape, output);
    } else if activations == ActivationPrecision::F32 || !integer::has(level, format) {
        streams(shape, |range| stream::multiply(level, x, weight, shape, range, output));
    } else {
        let x = integer::prepare(level, x, shape, activations);
        streams(shape, |range| integer::multiply(level, &x, weight, shape, range, output));
    }
}

/// Calls `multiply` with all rows, in stretches that threads stream.
fn streams(shape: Shape, multiply: impl Fn(Range<usize>) + Sync) {
    let Shape { rows, row_bytes, .. } = shape;
    let stretch = STREAM_BYTES.div_ceil(row_bytes).next_multiple_of(stream::ROWS);
    pool::for_work(shape.work(), rows.div_ceil(stretch), |task| {
        multiply(task * stretch..((task + 1) * stretch).min(rows));
    });
}

/// Whether products of bf16 with bf16 can be had and are worth it.
#[cfg(target_arch = "x86_64")]
fn has_pairs(level: Level, shape: Shape) -> bool {
    let possible = shape.cols.is_multiple_of(2) && level >= Level::Avx512Bf16;
    possible && (level >= Level::Amx || super::lanes::pairs_are_faster())
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
    use crate::cpu::{noise, places, quantize};

    /// A random matrix in a format: its bytes, and the values that they stand for.
    fn encoded(format: Format, rows: usize, cols: usize) -> (Vec<u8>, Vec<f32>) {
        let values = noise(rows * cols, 1);
        let row_bytes = format.row_bytes(cols).unwrap();
        let mut weight = vec![0; rows * row_bytes];
        let mut decoded = vec![0.0; rows * cols];
        for row in 0..rows {
            let bytes = &mut weight[row * row_bytes..(row + 1) * row_bytes];
            format.encode_row(&values[row * cols..(row + 1) * cols], bytes);
            format.decode_row(bytes, &mut decoded[row * cols..(row + 1) * cols]);
        }
        (weight, decoded)
    }

    fn product(
        level: Level,
        activations: ActivationPrecision,
        x: &[f32],
        weight: &[u8],
        format: Format,
        cols: usize,
    ) -> Vec<f32> {
        let rows = weight.len() / format.row_bytes(cols).unwrap();
        let mut out = vec![f32::NAN; x.len() / cols * rows];
        linear(level, activations, x, weight, format, cols, places(&mut out));
        out
    }

    /// In f64, over the decoded weights.
    fn loops(x: &[f32], decoded: &[f32], cols: usize) -> Vec<f64> {
        let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
        x.chunks(cols).flat_map(|x| decoded.chunks(cols).map(move |w| dot(x, w))).collect()
    }

    const SHAPES: [(usize, usize); 10] =
        [(1, 32), (7, 96), (33, 160), (70, 2080), (5, 1), (3, 17), (40, 67), (131, 288), (12, 512), (7, 768)];

    /// Every level, format and path against an f64 loop over the decoded weights.
    #[test]
    fn products_equal_a_plain_loop() {
        for format in Format::ALL {
            for (rows, cols) in SHAPES.into_iter().filter(|(_, cols)| format.row_bytes(*cols).is_some()) {
                let (weight, decoded) = encoded(format, rows, cols);
                for tokens in [1, 2, 3, 6, 7, 8, 9, 13, 16, 17, 33, 40] {
                    let x = noise(tokens * cols, 2);
                    let exact = loops(&x, &decoded, cols);
                    for level in Level::available() {
                        let found = product(level, ActivationPrecision::F32, &x, &weight, format, cols);
                        for (i, (found, exact)) in found.iter().zip(&exact).enumerate() {
                            let error = (f64::from(*found) - exact).abs();
                            assert!(
                                error < 2e-6 * (cols as f64).sqrt() + 1e-5,
                                "{level:?} {format} {tokens}x{cols}x{rows} at {i}: {error}"
                            );
                        }
                    }
                }
            }
        }
    }

    /// Products in integers are exact but for the last f32 sums: each level against an f64 loop over the
    /// quantized activations.
    #[test]
    fn whole_numbers_are_multiplied_exactly() {
        for format in [Format::Q8_0, Format::Q4_0, Format::Q4K, Format::Q5K, Format::Q6K] {
            for (rows, cols) in SHAPES.into_iter().filter(|(_, cols)| format.row_bytes(*cols).is_some()) {
                let (weight, decoded) = encoded(format, rows, cols);
                let tokens = (1..=STREAMED_TOKENS).chain([9, 16, 17, 33, 40, 64]);
                for (tokens, activations) in tokens.flat_map(|tokens| {
                    [(tokens, ActivationPrecision::Int16OrBf16), (tokens, ActivationPrecision::Int8)]
                }) {
                    let x = noise(tokens * cols, 2);
                    for level in Level::available() {
                        let vnni = level >= Level::Avx512Vnni;
                        let bytes = vnni || level == Level::AvxVnni;
                        let pairs = activations == ActivationPrecision::Int16OrBf16 && level >= Level::Avx512Bf16;
                        let whole_numbers = match (format.block_len(), tokens) {
                            (32, ..=STREAMED_TOKENS) => true,
                            (32, ..=STREAMED_TOKENS_OF_HALVES) => bytes,
                            (32, _) => bytes && !pairs,
                            _ => vnni && tokens <= STREAMED_TOKENS,
                        };
                        if !whole_numbers {
                            continue;
                        }
                        let coarse = activations == ActivationPrecision::Int8 && level.multiplies_bytes();
                        let limit = if coarse { quantize::COARSE } else { quantize::FINE };
                        let seen = |block: &[f32; 32]| {
                            let (scale, values) = quantize::quantize(block, limit);
                            values.map(|value| value as f32 * scale)
                        };
                        let x_seen: Vec<f32> = x.as_chunks().0.iter().flat_map(seen).collect();
                        let exact = loops(&x_seen, &decoded, cols);
                        let found = product(level, activations, &x, &weight, format, cols);
                        for (i, (found, exact)) in found.iter().zip(&exact).enumerate() {
                            let error = (f64::from(*found) - exact).abs();
                            assert!(
                                error < 2e-6 * (cols as f64).sqrt() + 1e-5,
                                "{level:?} {format} {activations:?} {tokens}x{cols}x{rows} at {i}: {error}"
                            );
                        }
                    }
                }
            }
        }
    }

    /// The errors that [`ActivationPrecision`] and docs/numerics.md name.
    #[test]
    fn activations_are_as_exact_as_they_promise() {
        let (rows, cols) = (64, 2048);
        for format in Format::ALL {
            let (weight, decoded) = encoded(format, rows, cols);
            for tokens in [1, 8, 32] {
                let x = noise(tokens * cols, 2);
                let exact = loops(&x, &decoded, cols);
                for level in Level::available() {
                    let error = |activations| {
                        let found = product(level, activations, &x, &weight, format, cols);
                        let wrong = found.iter().zip(&exact).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>();
                        (wrong / exact.iter().map(|value| value * value).sum::<f64>()).sqrt()
                    };
                    let context = format!("{level:?} {format} {tokens}");
                    // many tokens are what bf16 makes of both sides, where there are pairs
                    let fine = if tokens > STREAMED_TOKENS { 4e-3 } else { 3e-5 };
                    let bounds = [
                        (ActivationPrecision::F32, 1e-6),
                        (ActivationPrecision::Int16OrBf16, fine),
                        (ActivationPrecision::Int8, 1e-2),
                    ];
                    for (activations, bound) in bounds {
                        let error = error(activations);
                        assert!(error < bound, "{context} {activations:?}: {error}");
                    }
                }
            }
        }
    }

    /// Where an activation is infinite or not a number, every sum with it says so; other tokens are untouched.
    #[test]
    fn what_is_not_finite_is_not_hidden() {
        for format in Format::ALL {
            let (weight, _) = encoded(format, 3, 256);
            for (bad, tokens) in [f32::NAN, f32::INFINITY].into_iter().flat_map(|bad| [(bad, 2), (bad, 20)]) {
                let mut x = noise(tokens * 256, 3);
                x[256 + 40] = bad;
                for level in Level::available() {
                    let found = product(level, ActivationPrecision::Int16OrBf16, &x, &weight, format, 256);
                    for (t, sums) in found.chunks(3).enumerate() {
                        assert_eq!(sums.iter().all(|sum| !sum.is_finite()), t == 1, "{level:?} {format} {sums:?}");
                        assert_eq!(sums.iter().all(|sum| sum.is_finite()), t != 1, "{level:?} {format} {sums:?}");
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
            linear(level, ActivationPrecision::Int16OrBf16, &x, &weight, Format::F32, 4, places(&mut out));
            assert!(out[0].is_finite(), "{level:?}: {}", out[0]);
        }
    }
}
