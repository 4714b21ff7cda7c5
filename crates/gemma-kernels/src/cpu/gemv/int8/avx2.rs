//! With AVX2: 16-bit numbers, sixteen at a time.

use crate::cpu::gemv::distance::distance;
use crate::cpu::gemv::row::{Call, f16_scales};
use crate::cpu::isa::{Avx2, Lanes, prefetch};
use crate::cpu::quantize::Words;
use std::arch::x86_64::*;

/// Blocks whose scales are computed at once.
const SCALES: usize = 8;

#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::cpu) fn words(x: &[f32]) -> Words {
    Words::new(x)
}

/// # Safety
/// The call's row has the blocks of its shape, and `x` has `M` tokens from the call's on.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn q8<const M: usize>(x: &Words, call: &Call<'_>) {
    // SAFETY: as required of the caller.
    unsafe {
        // without `map`, which does not have the instructions
        let half = |quants: *const u8| _mm256_cvtepi8_epi16(_mm_loadu_si128(quants.cast()));
        rows::<M, 34>(x, call, |quants| [half(quants), half(quants.add(16))]);
    }
}

/// # Safety
/// As [`q8`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn q4<const M: usize>(x: &Words, call: &Call<'_>) {
    // SAFETY: as required of the caller.
    unsafe {
        rows::<M, 18>(x, call, |quants| {
            let bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128(quants.cast()));
            let eight = _mm256_set1_epi16(8);
            [
                _mm256_sub_epi16(_mm256_and_si256(bytes, _mm256_set1_epi16(15)), eight),
                _mm256_sub_epi16(_mm256_srli_epi16::<4>(bytes), eight),
            ]
        });
    }
}

/// # Safety
/// As [`q8`], with the instructions at hand where this is expanded; `load` gives a block's values.
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
        let mut b = 0;
        while b < blocks {
            let from = call.bytes.as_ptr().add(b * SIZE);
            if call.token == 0 {
                for line in 0..(SCALES * SIZE).div_ceil(64) {
                    prefetch(from.wrapping_add(ahead + 64 * line));
                }
            }
            let count = SCALES.min(blocks - b);
            let whole = count == SCALES;
            let halves = if whole {
                let [low, high] = [from, from.add(4 * SIZE)].map(|four| f16_scales::<SIZE>(four).cast_signed());
                _mm_set_epi64x(high, low)
            } else {
                let mut halves = [0u16; SCALES];
                for (i, half) in halves.iter_mut().enumerate().take(count) {
                    *half = from.add(i * SIZE).cast::<u16>().read_unaligned();
                }
                _mm_loadu_si128(halves.as_ptr().cast())
            };
            let halves = _mm256_cvtph_ps(halves);
            let mut scales = [[0f32; SCALES]; M];
            for (t, scales) in scales.iter_mut().enumerate() {
                let of_x = &x.scales[(call.token + t) * blocks + b..][..count];
                if whole {
                    _mm256_storeu_ps(scales.as_mut_ptr(), _mm256_loadu_ps(of_x.as_ptr()));
                } else {
                    scales[..count].copy_from_slice(of_x);
                }
                let product = _mm256_mul_ps(halves, _mm256_loadu_ps(scales.as_ptr()));
                _mm256_storeu_ps(scales.as_mut_ptr(), product);
            }
            let place = |i: usize| (call.token * blocks + b + i) * 32;
            if whole {
                // a count that the compiler knows
                for i in 0..SCALES {
                    block(x, place(i), blocks, load(from.add(i * SIZE + 2)), &scales, i, &mut sums);
                }
            } else {
                for i in 0..count {
                    block(x, place(i), blocks, load(from.add(i * SIZE + 2)), &scales, i, &mut sums);
                }
            }
            b += count;
        }
        for (t, sum) in sums.into_iter().enumerate() {
            call.write(t, Avx2::from(sum).sum());
        }
    }
}

/// Adds block `i` of a group, whose values are `quants`, to the sum of each token; the first token's activations are at
/// `place`, and each token has `blocks` of them.
///
/// # Safety
/// As [`rows`]; the activations are readable.
#[inline(always)]
unsafe fn block<const M: usize>(
    x: &Words,
    place: usize,
    blocks: usize,
    [low, high]: [__m256i; 2],
    scales: &[[f32; SCALES]; M],
    i: usize,
    sums: &mut [__m256; M],
) {
    // SAFETY: as required of the caller.
    unsafe {
        for (t, (sum, scales)) in sums.iter_mut().zip(scales).enumerate() {
            let values = x.values.as_ptr().add(place + t * blocks * 32);
            let exact = _mm256_add_epi32(
                _mm256_madd_epi16(low, _mm256_loadu_si256(values.cast())),
                _mm256_madd_epi16(high, _mm256_loadu_si256(values.add(16).cast())),
            );
            *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), _mm256_set1_ps(scales[i]), *sum);
        }
    }
}
