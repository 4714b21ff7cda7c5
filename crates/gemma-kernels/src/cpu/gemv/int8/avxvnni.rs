//! With the VNNI of AVX: bytes, four products in each of eight lanes. [`row`] serves AVX2 as well, which adds in two steps.

use crate::cpu::gemv::distance::distance;
use crate::cpu::gemv::row::{Call, f16_scales, group};
use crate::cpu::isa::{Avx2, Lanes, prefetch};
use crate::cpu::quantize::{Bytes, GROUP, Split};
use crate::format::low_bits::IQ4_LEVELS;
use std::arch::x86_64::*;

#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::cpu) fn split(x: &[f32], cols: usize, fine: bool, halves: bool, offset: i32) -> Split {
    Split::new(x, cols, fine, (halves, offset, 32), |x, limit| Bytes::with_avx2(x, limit))
}

/// The scales of four blocks of `SIZE` bytes.
///
/// # Safety
/// Four blocks must be readable, and F16C enabled where this is expanded.
#[inline(always)]
unsafe fn scales<const SIZE: usize>(group: *const u8) -> __m128 {
    // SAFETY: as required of the caller.
    unsafe { _mm_cvtph_ps(_mm_cvtsi64_si128(f16_scales::<SIZE>(group).cast_signed())) }
}

/// A quarter of a token's group of low or high bytes.
///
/// # Safety
/// 32 bytes must be readable at the place, and AVX2 enabled where this is expanded.
#[inline(always)]
unsafe fn load(bytes: &[i8], at: usize) -> __m256i {
    // SAFETY: as required of the caller.
    unsafe { _mm256_load_si256(bytes.as_ptr().add(at).cast()) }
}

/// How bytes are multiplied and added, four to a lane.
///
/// # Safety
/// The method requires that the CPU has the instructions, and is expanded where they are enabled.
pub(super) trait Dot {
    /// `start + Σ weights activations`, each lane over its four bytes.
    unsafe fn dot(start: __m256i, weights: __m256i, activations: __m256i) -> __m256i;
}

/// In one instruction: unsigned weights, signed activations.
struct Vnni;

impl Dot for Vnni {
    #[inline(always)]
    unsafe fn dot(start: __m256i, weights: __m256i, activations: __m256i) -> __m256i {
        // SAFETY: as required of the caller.
        unsafe { _mm256_dpbusd_avx_epi32(start, weights, activations) }
    }
}

/// # Safety
/// The call's row has the blocks of its shape, and `x`, made with offset 128 and blocks in order, has `M` tokens
/// from the call's on.
#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn q8<const M: usize, const FINE: bool>(x: &Split, call: &Call<'_>) {
    // SAFETY: as required of the caller; a block is a vector.
    unsafe {
        row::<Vnni, M, FINE, false, 34, 136>(x, call, |from, b| {
            // the sign bit flipped is 128 added
            [_mm256_xor_si256(q8_block(from, b), _mm256_set1_epi8(-128)); 2]
        });
    }
}

/// # Safety
/// As [`q8`], with `x` made with offset 8 and blocks in halves.
#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn q4<const M: usize, const FINE: bool>(x: &Split, call: &Call<'_>) {
    // SAFETY: as required of the caller.
    unsafe { row::<Vnni, M, FINE, true, 18, 72>(x, call, |from, pair| nibbles::<18>(from, pair)) };
}

/// # Safety
/// As [`q8`], with `x` made with offset 16 and blocks in halves.
#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn q5<const M: usize, const FINE: bool>(x: &Split, call: &Call<'_>) {
    // SAFETY: as required of the caller.
    unsafe { row::<Vnni, M, FINE, true, 22, 88>(x, call, |from, pair| five_bits(from, pair)) };
}

/// # Safety
/// As [`q8`], with `x` made with blocks in halves.
#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn iq4<const M: usize, const FINE: bool>(x: &Split, call: &Call<'_>) {
    // SAFETY: as required of the caller.
    unsafe {
        row::<Vnni, M, FINE, true, 18, 72>(x, call, |from, pair| {
            let [low, high] = levels(nibbles::<18>(from, pair));
            let flip = _mm256_set1_epi8(-128);
            [_mm256_xor_si256(low, flip), _mm256_xor_si256(high, flip)]
        });
    }
}

/// The numbers of block `b` of a group of Q8_0.
///
/// # Safety
/// The group must be readable, and AVX2 enabled where this is expanded.
#[inline(always)]
pub(super) unsafe fn q8_block(group: *const u8, b: usize) -> __m256i {
    // SAFETY: as required of the caller.
    unsafe { _mm256_loadu_si256(group.add(b * 34 + 2).cast()) }
}

/// The nibbles of a pair of blocks of `SIZE` bytes: the low ones, which are the first halves of both, then the high ones.
///
/// # Safety
/// As [`q8_block`].
#[inline(always)]
pub(super) unsafe fn nibbles<const SIZE: usize>(group: *const u8, pair: usize) -> [__m256i; 2] {
    // SAFETY: as required of the caller; they are the last sixteen bytes of each block.
    unsafe {
        let block = |b: usize| _mm_loadu_si128(group.add((2 * pair + b + 1) * SIZE - 16).cast());
        let bytes = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(block(0)), block(1));
        let nibble = _mm256_set1_epi8(15);
        [_mm256_and_si256(bytes, nibble), _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), nibble)]
    }
}

/// The same for blocks of Q5_0, with the fifth bits of their numbers.
///
/// # Safety
/// As [`q8_block`].
#[inline(always)]
pub(super) unsafe fn five_bits(group: *const u8, pair: usize) -> [__m256i; 2] {
    // SAFETY: as required of the caller; a block's fifth bits lie behind its scale, a bit a value.
    unsafe {
        let bits = |b: usize| _mm_set1_epi32(group.add((2 * pair + b) * 22 + 2).cast::<i32>().read_unaligned());
        let bits = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(bits(0)), bits(1));
        // each byte gets the eight bits that its own is among
        let bytes_of = |first: i8| {
            let eights = _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
            _mm256_broadcastsi128_si256(_mm_add_epi8(eights, _mm_set1_epi8(first)))
        };
        let own = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
        let sixteen = _mm256_set1_epi8(16);
        let fifth = |first: i8| {
            let eight = _mm256_and_si256(_mm256_shuffle_epi8(bits, bytes_of(first)), own);
            _mm256_and_si256(_mm256_cmpeq_epi8(eight, own), sixteen)
        };
        let [low, high] = nibbles::<22>(group, pair);
        [_mm256_or_si256(low, fifth(0)), _mm256_or_si256(high, fifth(2))]
    }
}

/// The levels of IQ4_NL that nibbles name, signed.
///
/// # Safety
/// AVX2 must be enabled where this is expanded.
#[inline(always)]
pub(super) unsafe fn levels(nibbles: [__m256i; 2]) -> [__m256i; 2] {
    // SAFETY: as required of the caller; there are sixteen levels.
    unsafe {
        let levels = _mm256_broadcastsi128_si256(_mm_loadu_si128(IQ4_LEVELS.as_ptr().cast()));
        [_mm256_shuffle_epi8(levels, nibbles[0]), _mm256_shuffle_epi8(levels, nibbles[1])]
    }
}

/// A row. `load_weights` gives what vector `i` of a group holds; with `HALVES` there are two of them, the second of which meets
/// activations half a group further on.
///
/// # Safety
/// As [`q8`], with the instructions at hand where this is expanded; four blocks of `SIZE` have `FOUR` bytes.
#[inline(always)]
pub(super) unsafe fn row<
    D: Dot,
    const M: usize,
    const FINE: bool,
    const HALVES: bool,
    const SIZE: usize,
    const FOUR: usize,
>(
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
                let dot = |start, bytes: &[i8], at: usize| {
                    let sum = D::dot(start, weights[0], load(bytes, at));
                    if HALVES { D::dot(sum, weights[1], load(bytes, at + GROUP / 2)) } else { sum }
                };
                for (t, sums) in sums.iter_mut().enumerate() {
                    let at = (call.token + t) * groups + g;
                    let place = at * GROUP + i * 32;
                    let starts = _mm256_castsi128_si256(_mm_load_si128(x.starts.as_ptr().add(at * 4).cast()));
                    let start = _mm256_and_si256(_mm256_permutevar8x32_epi32(starts, spread[i]), first_lane);
                    let mut exact = dot(start, &x.low, place);
                    if FINE {
                        let high = dot(_mm256_setzero_si256(), &x.high, place);
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
