//! With the VNNI of AVX: bytes, four products in each of eight lanes.

use crate::cpu::gemv::distance::distance;
use crate::cpu::gemv::row::{Call, f16_scales, group};
use crate::cpu::isa::{Avx2, Lanes, prefetch};
use crate::cpu::quantize::{Bytes, GROUP, Split};
use std::arch::x86_64::*;

#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::cpu) fn split(x: &[f32], cols: usize, fine: bool, halves: bool, offset: i32) -> Split {
    Split::new(x, cols, fine, (halves, offset, 32), |x, limit| Bytes::with_avx2(x, limit))
}

/// The scales of four blocks of `SIZE` bytes.
///
/// # Safety
/// Four blocks must be readable.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn scales<const SIZE: usize>(group: *const u8) -> __m128 {
    // SAFETY: as required of the caller.
    _mm_cvtph_ps(_mm_cvtsi64_si128(unsafe { f16_scales::<SIZE>(group) }.cast_signed()))
}

/// A quarter of a token's group of low or high bytes.
///
/// # Safety
/// 32 bytes must be readable at the place.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load(bytes: &[i8], at: usize) -> __m256i {
    // SAFETY: as required of the caller.
    unsafe { _mm256_load_si256(bytes.as_ptr().add(at).cast()) }
}

/// `start` and the products of a vector of weights, with `HALVES` of two, the second of which meets activations half a
/// group further on.
///
/// # Safety
/// All those activations must be readable from `at` on.
#[inline]
#[target_feature(enable = "avxvnni,avx2")]
unsafe fn dot<const HALVES: bool>(start: __m256i, weights: [__m256i; 2], bytes: &[i8], at: usize) -> __m256i {
    // SAFETY: as required of the caller.
    unsafe {
        let sum = _mm256_dpbusd_avx_epi32(start, weights[0], load(bytes, at));
        if !HALVES {
            return sum;
        }
        _mm256_dpbusd_avx_epi32(sum, weights[1], load(bytes, at + GROUP / 2))
    }
}

/// # Safety
/// The call's row has the blocks of its shape, and `x`, made with offset 128 and blocks in order, has `M` tokens
/// from the call's on.
#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn q8<const M: usize, const FINE: bool>(x: &Split, call: &Call<'_>) {
    // SAFETY: as required of the caller; a block is a vector.
    unsafe {
        row::<M, FINE, false, 34, 136>(x, call, |from, b| {
            // the sign bit flipped is 128 added
            let block = _mm256_loadu_si256(from.add(b * 34 + 2).cast());
            [_mm256_xor_si256(block, _mm256_set1_epi8(-128)); 2]
        });
    }
}

/// # Safety
/// As [`q8`], with `x` made with offset 8 and blocks in halves.
#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn q4<const M: usize, const FINE: bool>(x: &Split, call: &Call<'_>) {
    // SAFETY: as required of the caller; two blocks are two vectors, their low halves and their high ones.
    unsafe {
        row::<M, FINE, true, 18, 72>(x, call, |from, pair| {
            let block = |b: usize| _mm_loadu_si128(from.add((2 * pair + b) * 18 + 2).cast());
            let bytes = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(block(0)), block(1));
            let nibble = _mm256_set1_epi8(15);
            [_mm256_and_si256(bytes, nibble), _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), nibble)]
        });
    }
}

/// A row. `load_weights` gives what vector `i` of a group holds, for [`dot`]; with `HALVES` there are two of them.
///
/// # Safety
/// As [`q8`], with the instructions at hand where this is expanded; four blocks of `SIZE` have `FOUR` bytes.
#[inline(always)]
unsafe fn row<const M: usize, const FINE: bool, const HALVES: bool, const SIZE: usize, const FOUR: usize>(
    x: &Split,
    call: &Call<'_>,
    load_weights: impl Fn(*const u8, usize) -> [__m256i; 2],
) {
    let ahead = distance();
    let groups = call.shape.cols.div_ceil(GROUP);
    let mut last = [0u8; FOUR];
    let vectors = if HALVES { 2 } else { 4 };
    // SAFETY: as required of the caller; each token has a group.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; M];
        // the blocks whose products a vector holds: one, or two in its halves
        let spread: [__m256i; 4] = std::array::from_fn(|i| {
            let i = i as i32;
            match HALVES {
                true => _mm256_setr_epi32(2 * i, 2 * i, 2 * i, 2 * i, 2 * i + 1, 2 * i + 1, 2 * i + 1, 2 * i + 1),
                false => _mm256_set1_epi32(i),
            }
        });
        let first_lane = _mm256_setr_epi32(-1, 0, 0, 0, if HALVES { -1 } else { 0 }, 0, 0, 0);
        for g in 0..groups {
            let from = group::<FOUR>(call.bytes, g, &mut last);
            if call.token == 0 {
                for line in 0..FOUR.div_ceil(64) {
                    prefetch(from.wrapping_add(ahead + 64 * line));
                }
            }
            let weight_scales = scales::<SIZE>(from);
            for i in 0..vectors {
                let weights = load_weights(from, i);
                for (t, sums) in sums.iter_mut().enumerate() {
                    let at = (call.token + t) * groups + g;
                    let place = at * GROUP + i * 32;
                    let starts = _mm256_castsi128_si256(_mm_load_si128(x.starts.as_ptr().add(at * 4).cast()));
                    let start = _mm256_and_si256(_mm256_permutevar8x32_epi32(starts, spread[i]), first_lane);
                    let mut exact = dot::<HALVES>(start, weights, &x.low, place);
                    if FINE {
                        let high = dot::<HALVES>(_mm256_setzero_si256(), weights, &x.high, place);
                        exact = _mm256_add_epi32(exact, _mm256_slli_epi32::<8>(high));
                    }
                    let scale = _mm_mul_ps(weight_scales, _mm_load_ps(x.scales.as_ptr().add(at * 4)));
                    let scale = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(scale), spread[i]);
                    sums[i % 2] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), scale, sums[i % 2]);
                }
            }
        }
        for (t, sums) in sums.into_iter().enumerate() {
            call.write(t, Avx2::from(_mm256_add_ps(sums[0], sums[1])).sum());
        }
    }
}
