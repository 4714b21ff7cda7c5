//! With AVX2: 16-bit numbers, sixteen at a time.

use crate::cpu::gemv::distance::distance;
use crate::cpu::gemv::row::Call;
use crate::cpu::isa::{Avx2, Lanes, prefetch};
use crate::cpu::quantize::Words;
use std::arch::x86_64::*;

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
        for b in 0..blocks {
            let from = call.bytes.as_ptr().add(b * SIZE);
            if call.token == 0 {
                prefetch(from.wrapping_add(ahead));
            }
            let [low, high] = load(from.add(2));
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
