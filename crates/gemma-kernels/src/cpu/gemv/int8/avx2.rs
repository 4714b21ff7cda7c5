//! With AVX2: 16-bit numbers, sixteen at a time, or bytes, 32 at a time.

use super::avxvnni::{self, Dot};
use crate::Format;
use crate::cpu::gemv::distance::distance;
use crate::cpu::gemv::row::Call;
use crate::cpu::isa::{Avx2, Lanes, prefetch};
use crate::cpu::quantize::{Split, Words};
use crate::format::low_bits::IQ4_LEVELS;
use std::arch::x86_64::*;

#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::cpu) fn words(x: &[f32]) -> Words {
    Words::new(x)
}

/// # Safety
/// The call's row has the blocks of its shape, and `x` has `M` tokens from the call's on.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn row<const M: usize>(x: &Words, call: &Call<'_>) {
    // SAFETY: as required of the caller; a block's nibbles are its last sixteen bytes.
    unsafe {
        // without `map`, which does not have the instructions
        match call.shape.format {
            Format::Q8_0 => rows::<M, 34>(x, call, |block| {
                let half = |quants: *const u8| _mm256_cvtepi8_epi16(_mm_loadu_si128(quants.cast()));
                [half(block.add(2)), half(block.add(18))]
            }),
            Format::Q4_0 => rows::<M, 18>(x, call, |block| {
                let [low, high] = nibbles(block.add(2));
                let eight = _mm256_set1_epi16(8);
                [_mm256_sub_epi16(low, eight), _mm256_sub_epi16(high, eight)]
            }),
            Format::Q5_0 => rows::<M, 22>(x, call, |block| {
                let [low, high] = nibbles(block.add(6));
                let own =
                    _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768);
                let sixteen = _mm256_set1_epi16(16);
                // sixteen less where the fifth bit is not set
                let number = |low: __m256i, bits: *const u8| {
                    let bits = _mm256_set1_epi16(bits.cast::<i16>().read_unaligned());
                    let set = _mm256_cmpeq_epi16(_mm256_and_si256(bits, own), own);
                    _mm256_sub_epi16(low, _mm256_andnot_si256(set, sixteen))
                };
                [number(low, block.add(2)), number(high, block.add(4))]
            }),
            _ => rows::<M, 18>(x, call, |block| {
                let bytes = _mm_loadu_si128(block.add(2).cast());
                let (nibble, levels) = (_mm_set1_epi8(15), _mm_loadu_si128(IQ4_LEVELS.as_ptr().cast()));
                let level = |nibbles| _mm256_cvtepi8_epi16(_mm_shuffle_epi8(levels, _mm_and_si128(nibbles, nibble)));
                [level(bytes), level(_mm_srli_epi16::<4>(bytes))]
            }),
        }
    }
}

/// The nibbles of sixteen bytes: the low ones, then the high ones.
///
/// # Safety
/// As [`row`], with the instructions at hand where this is expanded.
#[inline(always)]
unsafe fn nibbles(quants: *const u8) -> [__m256i; 2] {
    // SAFETY: as required of the caller.
    unsafe {
        let bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128(quants.cast()));
        [_mm256_and_si256(bytes, _mm256_set1_epi16(15)), _mm256_srli_epi16::<4>(bytes)]
    }
}

/// In two steps, pairs first, whose sums of 16 bits hold 128 · 127 twice and no more: for activations of 8 bits.
struct Pairs;

impl Dot for Pairs {
    #[inline(always)]
    unsafe fn dot(start: __m256i, weights: __m256i, activations: __m256i) -> __m256i {
        // SAFETY: as required of the caller.
        unsafe {
            let pairs = _mm256_maddubs_epi16(weights, activations);
            _mm256_add_epi32(start, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }
}

/// The same with signed weights.
struct SignedPairs;

impl Dot for SignedPairs {
    #[inline(always)]
    unsafe fn dot(start: __m256i, weights: __m256i, activations: __m256i) -> __m256i {
        // SAFETY: as required of the caller.
        unsafe { Pairs::dot(start, _mm256_abs_epi8(weights), _mm256_sign_epi8(activations, weights)) }
    }
}

/// What [`bytes`] needs activations of this format's products to be made with: whether in halves, and the offset.
pub(in crate::cpu) fn layout(format: Format) -> (bool, i32) {
    match format {
        Format::Q8_0 => (false, 0),
        Format::Q4_0 => (true, 8),
        Format::Q5_0 => (true, 16),
        _ => (true, 0),
    }
}

/// A row times `M` tokens of 8 bits.
///
/// # Safety
/// The call's row has the blocks of its shape, and `x`, made with the format's [`layout`], has `M` tokens from the call's on.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn bytes<const M: usize>(x: &Split, call: &Call<'_>) {
    // SAFETY: as required of the caller.
    unsafe {
        match call.shape.format {
            Format::Q8_0 => avxvnni::row::<SignedPairs, M, false, false, 34, 136>(x, call, |from, b| {
                [avxvnni::q8_block(from, b); 2]
            }),
            Format::Q4_0 => {
                avxvnni::row::<Pairs, M, false, true, 18, 72>(x, call, |from, pair| avxvnni::nibbles::<18>(from, pair))
            }
            Format::Q5_0 => {
                avxvnni::row::<Pairs, M, false, true, 22, 88>(x, call, |from, pair| avxvnni::five_bits(from, pair))
            }
            _ => avxvnni::row::<SignedPairs, M, false, true, 18, 72>(x, call, |from, pair| {
                avxvnni::levels(avxvnni::nibbles::<18>(from, pair))
            }),
        }
    }
}

/// # Safety
/// As [`row`], with the instructions at hand where this is expanded; `load` gives a block's values.
#[inline(always)]
unsafe fn rows<const M: usize, const SIZE: usize>(
    x: &Words,
    call: &Call<'_>,
    load: impl Fn(*const u8) -> [__m256i; 2],
) {
    let ahead = distance();
    let blocks = call.bytes.len() / SIZE;
    // SAFETY: block `b` has `SIZE` bytes of the row, and 32 values and a scale of each token.
    unsafe {
        let mut sums = [_mm256_setzero_ps(); M];
        for b in 0..blocks {
            let from = call.bytes.as_ptr().add(b * SIZE);
            if call.token == 0 {
                prefetch(from.wrapping_add(ahead));
            }
            let [low, high] = load(from);
            let scale = _mm256_cvtph_ps(_mm_set1_epi16(from.cast::<i16>().read_unaligned()));
            for (t, sum) in sums.iter_mut().enumerate() {
                let at = (call.token + t) * blocks + b;
                let values = x.values.as_ptr().add(at * 32);
                let exact = _mm256_add_epi32(
                    _mm256_madd_epi16(low, _mm256_loadu_si256(values.cast())),
                    _mm256_madd_epi16(high, _mm256_loadu_si256(values.add(16).cast())),
                );
                let scale = _mm256_mul_ps(scale, _mm256_broadcast_ss(&*x.scales.as_ptr().add(at)));
                *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), scale, *sum);
            }
        }
        for (t, sum) in sums.into_iter().enumerate() {
            call.write(t, Avx2::from(sum).sum());
        }
    }
}
