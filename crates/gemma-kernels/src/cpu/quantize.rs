//! Activations as integers, for products with quantized weights.
//!
//! 32 values share a scale, `d = max|x| / LIMIT`, and become `round(x / d)`, ties to even. A block that holds an
//! infinity or NaN has the scale NaN, so that the product says so.

use crate::cpu::buffer::Buffer;

/// Values per block.
const BLOCK: usize = 32;

/// The largest magnitude of a 16-bit activation: 127 · 256, so that its high byte stays within ±127.
pub(in crate::cpu) const FINE: f32 = 32512.0;
/// The largest magnitude of an 8-bit activation.
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code, reason = "no gain there"))]
pub(in crate::cpu) const COARSE: f32 = 127.0;

/// The scale of a block whose largest magnitude has these bits, and what its values are multiplied with; without that,
/// they all become zero. As bits, magnitudes are ordered like integers, with infinity and NaN at the end.
#[inline(always)]
fn scale(largest: u32, limit: f32) -> (f32, Option<f32>) {
    let scale = f32::from_bits(largest) / limit;
    if !scale.is_normal() {
        // all (nearly) zero, or not finite
        return (if largest < f32::INFINITY.to_bits() { 0.0 } else { f32::NAN }, None);
    }
    (scale, Some(limit / f32::from_bits(largest)))
}

/// The scale of a block and its integers.
#[inline(always)]
pub(in crate::cpu) fn quantize(x: &[f32; BLOCK], limit: f32) -> (f32, [i32; BLOCK]) {
    // Adding 1.5·2²³ leaves the integer nearest to a small number in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    let largest = x.iter().fold(0, |largest: u32, value| largest.max(value.to_bits() & 0x7fff_ffff));
    let (scale, inverse) = scale(largest, limit);
    let Some(inverse) = inverse else { return (scale, [0; BLOCK]) };
    (scale, x.map(|value| (value * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()).cast_signed()))
}

/// A block as bytes: `value = 256 high + low`, `low` a signed number.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[derive(Debug)]
pub(in crate::cpu) struct Bytes {
    pub(in crate::cpu) scale: f32,
    pub(in crate::cpu) low: [i8; BLOCK],
    /// All zeros for 8-bit activations.
    pub(in crate::cpu) high: [i8; BLOCK],
    /// The sums of the values of either half.
    pub(in crate::cpu) sums: [i32; 2],
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
impl Bytes {
    /// What [`quantize`] makes of `x`.
    #[cfg_attr(target_arch = "x86_64", allow(dead_code, reason = "the reference implementation"))]
    #[inline(always)]
    pub(in crate::cpu) fn new(x: &[f32; BLOCK], limit: f32) -> Self {
        let (scale, values) = quantize(x, limit);
        let low = values.map(|value| value as i8);
        let high = std::array::from_fn(|i| ((values[i] - i32::from(low[i])) >> 8) as i8);
        let (first, second) = values.split_at(BLOCK / 2);
        Self { scale, low, high, sums: [first, second].map(|half| half.iter().sum()) }
    }

    /// All values zero.
    #[cfg(target_arch = "x86_64")]
    fn zeros(scale: f32) -> Self {
        Self { scale, low: [0; BLOCK], high: [0; BLOCK], sums: [0; 2] }
    }

    /// The same in vectors, which the compiler does not find by itself.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(in crate::cpu) fn with_avx512(x: &[f32; BLOCK], limit: f32) -> Self {
        use std::arch::x86_64::*;
        // SAFETY: the block has two vectors.
        let values = unsafe { [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16))] };
        // as in `quantize`
        let magnitudes = values.map(|x| _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fff_ffff)));
        let largest = _mm512_reduce_max_epu32(_mm512_max_epu32(magnitudes[0], magnitudes[1]));
        let (scale, inverse) = scale(largest, limit);
        let Some(inverse) = inverse else { return Self::zeros(scale) };
        let inverse = _mm512_set1_ps(inverse);
        let values = values.map(|x| _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)));
        let low = values.map(|values| _mm512_cvtepi32_epi8(values));
        let (mut low_bytes, mut high_bytes) = ([0; BLOCK], [0; BLOCK]);
        for (half, (values, low)) in values.into_iter().zip(low).enumerate() {
            let high = _mm512_srai_epi32::<8>(_mm512_sub_epi32(values, _mm512_cvtepi8_epi32(low)));
            // SAFETY: each half has room for sixteen bytes.
            unsafe {
                _mm_storeu_si128(low_bytes[half * 16..].as_mut_ptr().cast(), low);
                _mm_storeu_si128(high_bytes[half * 16..].as_mut_ptr().cast(), _mm512_cvtepi32_epi8(high));
            }
        }
        let sums = values.map(|values| _mm512_reduce_add_epi32(values));
        Self { scale, low: low_bytes, high: high_bytes, sums }
    }

    /// The same in vectors of half the length.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::cpu) fn with_avx2(x: &[f32; BLOCK], limit: f32) -> Self {
        use std::arch::x86_64::*;
        // SAFETY: the block has four vectors.
        let values = [0, 8, 16, 24].map(|i| unsafe { _mm256_loadu_ps(x.as_ptr().add(i)) });
        // as in `quantize`
        let magnitudes = values.map(|x| _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fff_ffff)));
        let [a, b, c, d] = magnitudes;
        let largest = _mm256_max_epu32(_mm256_max_epu32(a, b), _mm256_max_epu32(c, d));
        let mut lanes = [0u32; 8];
        // SAFETY: there is room for a vector.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), largest) };
        let largest = lanes.into_iter().fold(0, u32::max);
        let (scale, inverse) = scale(largest, limit);
        let Some(inverse) = inverse else { return Self::zeros(scale) };
        let inverse = _mm256_set1_ps(inverse);
        let values = values.map(|x| _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse)));
        let low = values.map(|values| _mm256_srai_epi32::<24>(_mm256_slli_epi32::<24>(values)));
        let (mut low_bytes, mut high_bytes) = ([0i8; BLOCK], [0i8; BLOCK]);
        let high: [__m256i; 4] = std::array::from_fn(|i| _mm256_srai_epi32::<8>(_mm256_sub_epi32(values[i], low[i])));
        for ([a, b, c, d], to) in [(low, &mut low_bytes), (high, &mut high_bytes)] {
            // either half of the vectors is packed by itself
            let halves = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            let bytes = _mm256_permutevar8x32_epi32(halves, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            // SAFETY: there is room for a vector.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), bytes) };
        }
        let [a, b, c, d] = values;
        let sums = [_mm256_add_epi32(a, b), _mm256_add_epi32(c, d)].map(|sum| {
            let mut lanes = [0i32; 8];
            // SAFETY: there is room for a vector.
            unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum) };
            lanes.into_iter().sum()
        });
        Self { scale, low: low_bytes, high: high_bytes, sums }
    }
}

/// 16-bit activations as they are.
pub(in crate::cpu) struct Words {
    /// `[tokens, cols]`.
    pub(in crate::cpu) values: Buffer<i16>,
    /// A scale per block, `[tokens, blocks]`.
    pub(in crate::cpu) scales: Buffer<f32>,
    /// The sum of each part's values, `[tokens, cols / part]`.
    pub(in crate::cpu) sums: Buffer<i32>,
}

impl Words {
    /// Of `x` `[tokens, cols]` with `cols` an integer of blocks. `part`, a whole or a half block, is how many values are summed up.
    #[inline(always)]
    pub(in crate::cpu) fn new(x: &[f32], part: usize) -> Self {
        let (blocks, parts) = (x.len() / BLOCK, BLOCK / part);
        let sums = Buffer::zeroed(blocks * parts);
        let mut words = Self { values: Buffer::zeroed(x.len()), scales: Buffer::zeroed(blocks), sums };
        for (b, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
            let (scale, values) = quantize(x, FINE);
            words.scales[b] = scale;
            let sums = words.sums[b * parts..].iter_mut();
            sums.zip(values.chunks_exact(part)).for_each(|(sum, values)| *sum = values.iter().sum());
            let to = &mut words.values[b * BLOCK..(b + 1) * BLOCK];
            to.iter_mut().zip(values).for_each(|(to, value)| *to = value as i16);
        }
        words
    }
}

/// Activations as bytes, in the order of a group of four blocks of weights: `value = 256 high + low`, or `low` alone.
///
/// On x86 the instruction multiplies unsigned bytes with signed ones, so the weights' bytes are moved up by an offset,
/// and each product starts from what that offset contributes.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(in crate::cpu) struct Split {
    /// The high bytes, `[tokens, groups, 128]`; empty for 8-bit activations.
    pub(in crate::cpu) high: Buffer<i8>,
    /// The low bytes, `[tokens, groups, 128]`.
    pub(in crate::cpu) low: Buffer<i8>,
    /// A scale per block, `[tokens, groups, 4]`.
    pub(in crate::cpu) scales: Buffer<f32>,
    /// Where the sum of each part starts, `[tokens, groups, 128 / part]`.
    pub(in crate::cpu) starts: Buffer<i32>,
}

/// As an offset: starts are the sums of the activations, which are multiplied by the weights' addends.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(in crate::cpu) const SUMS: i32 = -1;

/// Values of a group of blocks.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(in crate::cpu) const GROUP: usize = 4 * BLOCK;

/// In which order the bytes of a group of four blocks lie.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[derive(Clone, Copy, PartialEq)]
pub(in crate::cpu) enum Order {
    /// One block after the other.
    Blocks,
    /// The first and the third block, then the other two.
    #[cfg(target_arch = "x86_64")]
    Alternate,
    /// The first halves of all blocks, then the second ones.
    #[cfg(target_arch = "x86_64")]
    Halves,
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
impl Order {
    /// Where the halves of block `b` of a group lie.
    fn places(self, b: usize) -> [usize; 2] {
        let half = BLOCK / 2;
        let at = match self {
            Self::Blocks => b * BLOCK,
            #[cfg(target_arch = "x86_64")]
            Self::Alternate => [0, 2, 1, 3][b] * BLOCK,
            #[cfg(target_arch = "x86_64")]
            Self::Halves => return [b * half, GROUP / 2 + b * half],
        };
        [at, at + half]
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
impl Split {
    /// Of `x` `[tokens, cols]` with whole blocks of columns. `offset` is what the weights'
    /// bytes are moved up by, or [`SUMS`], and `part`, a whole or a half block, how many values share a start. `bytes` is [`Bytes::new`]
    /// or one like it.
    #[inline(always)]
    pub(in crate::cpu) fn new(
        x: &[f32],
        cols: usize,
        fine: bool,
        (order, offset, part): (Order, i32, usize),
        bytes: impl Fn(&[f32; BLOCK], f32) -> Bytes,
    ) -> Self {
        let (tokens, groups) = (x.len() / cols, cols.div_ceil(GROUP));
        let all = tokens * groups;
        let mut split = Self {
            high: Buffer::zeroed(if fine { all * GROUP } else { 0 }),
            low: Buffer::zeroed(all * GROUP),
            scales: Buffer::zeroed(all * 4),
            starts: Buffer::zeroed(all * (GROUP / part)),
        };
        for (t, x) in x.chunks_exact(cols).enumerate() {
            for (b, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
                let (group, b) = (t * groups + b / 4, b % 4);
                let Bytes { scale, low, high, sums } = bytes(x, if fine { FINE } else { COARSE });
                split.scales[group * 4 + b] = scale;
                let parts = BLOCK / part;
                let starts = &mut split.starts[(group * 4 + b) * parts..][..parts];
                match starts {
                    [start] => *start = -offset * (sums[0] + sums[1]),
                    starts => starts.iter_mut().zip(sums).for_each(|(start, sum)| *start = -offset * sum),
                }
                let half = BLOCK / 2;
                for (place, i) in order.places(b).into_iter().zip([0, half]) {
                    let at = group * GROUP + place..group * GROUP + place + half;
                    split.low[at.clone()].copy_from_slice(&low[i..i + half]);
                    if fine {
                        split.high[at].copy_from_slice(&high[i..i + half]);
                    }
                }
            }
        }
        split
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(scale: f32) -> [f32; BLOCK] {
        std::array::from_fn(|i| ((i * 37 % 64) as f32 / 32.0 - 1.0) * scale)
    }

    #[test]
    fn values_come_back_within_half_a_step() {
        for limit in [FINE, COARSE] {
            for scale in [1.0, 1e-30, 1e30, f32::MAX] {
                let x = block(scale);
                let (d, values) = quantize(&x, limit);
                for (x, value) in x.iter().zip(values) {
                    assert!(value.unsigned_abs() as f32 <= limit);
                    let error = (f64::from(*x) - f64::from(value) * f64::from(d)).abs();
                    assert!(error <= f64::from(d) * 0.51, "{x} became {value} times {d}");
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn bytes_are_the_same_in_vectors() {
        use crate::cpu::Isa;
        type Quantize = unsafe fn(&[f32; BLOCK], f32) -> Bytes;
        let ways: [(Isa, Quantize); 2] = [(Isa::Avx2, Bytes::with_avx2), (Isa::Avx512, Bytes::with_avx512)];
        let mut bad = block(1.0);
        bad[20] = f32::NAN;
        let mut blocks = vec![bad, [0.0; BLOCK], [f32::INFINITY; BLOCK], [f32::from_bits(3); BLOCK]];
        blocks.extend((0..200).map(|i| {
            let mut block = block(10f32.powi(i % 70 - 35));
            block.rotate_left(i as usize % BLOCK);
            block[i as usize % 7] *= 0.37 + i as f32;
            block
        }));
        for x in blocks {
            for limit in [FINE, COARSE] {
                for (isa, quantize) in ways {
                    if !Isa::available().contains(&isa) {
                        println!("skipped: no {isa}");
                        continue;
                    }
                    // SAFETY: the ISA says that the CPU has the instructions.
                    let (found, expected) = (unsafe { quantize(&x, limit) }, Bytes::new(&x, limit));
                    assert_eq!(format!("{found:?}"), format!("{expected:?}"), "{isa}: {x:?}");
                }
            }
        }
    }

    #[test]
    fn zeros_have_no_scale_and_what_is_not_finite_has_none_that_hides_it() {
        assert_eq!(quantize(&[0.0; BLOCK], FINE), (0.0, [0; BLOCK]));
        assert_eq!(quantize(&[f32::from_bits(3); BLOCK], FINE).0, 0.0);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = block(1.0);
            x[7] = bad;
            assert!(quantize(&x, FINE).0.is_nan());
        }
    }

    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    #[test]
    fn bytes_add_up_to_the_value() {
        // blocks of different integers, so that none can be in another's place
        let rotated = |i: usize| {
            let mut block = block(1.0 + i as f32);
            block.rotate_left(i);
            block
        };
        let x: Vec<f32> = (0..5).flat_map(rotated).collect();
        let orders: &[Order] = &[
            Order::Blocks,
            #[cfg(target_arch = "x86_64")]
            Order::Alternate,
            #[cfg(target_arch = "x86_64")]
            Order::Halves,
        ];
        for order in orders {
            let split = Split::new(&x, x.len(), true, (*order, 8, BLOCK), Bytes::new);
            let words = Words::new(&x, BLOCK);
            for (i, word) in words.values.iter().enumerate() {
                let (b, j) = (i / BLOCK % 4, i % BLOCK);
                let place = match order {
                    Order::Blocks => b * BLOCK + j,
                    #[cfg(target_arch = "x86_64")]
                    Order::Alternate => (b % 2 * 2 + b / 2) * BLOCK + j,
                    #[cfg(target_arch = "x86_64")]
                    Order::Halves => j / 16 * 64 + b * 16 + j % 16,
                };
                let at = i / GROUP * GROUP + place;
                assert_eq!(256 * i32::from(split.high[at]) + i32::from(split.low[at]), i32::from(*word));
            }
            let all: i32 = words.values.iter().map(|word| i32::from(*word)).sum();
            assert_eq!(split.starts.iter().sum::<i32>(), -8 * all);
            for part in [BLOCK / 2, BLOCK] {
                assert_eq!(Words::new(&x, part).sums.iter().sum::<i32>(), all);
            }
        }
    }
}
