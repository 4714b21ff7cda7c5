//! With AVX-512 VNNI: bytes, four products in each lane.

use super::e8m0_scales;
use crate::cpu::gemv::distance::distance;
use crate::cpu::gemv::row::{Call, f16_scales, group};
use crate::cpu::isa::prefetch;
use crate::cpu::quantize::{Bytes, GROUP, Split};
use crate::format::low_bits::{FP4_LEVELS, IQ4_LEVELS};
use std::arch::x86_64::*;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
pub(in crate::cpu) fn split(x: &[f32], cols: usize, fine: bool, halves: bool, offset: i32) -> Split {
    Split::new(x, cols, fine, (halves, offset, 32), |x, limit| Bytes::with_avx512(x, limit))
}

/// The scales of four blocks of `SIZE` bytes.
///
/// # Safety
/// Four blocks must be readable.
#[inline]
#[target_feature(enable = "avx512f,f16c")]
unsafe fn scales<const SIZE: usize>(group: *const u8) -> __m128 {
    // SAFETY: as required of the caller.
    _mm_cvtph_ps(_mm_cvtsi64_si128(unsafe { f16_scales::<SIZE>(group) }.cast_signed()))
}

/// The first or second half of a token's group of low or high bytes.
///
/// # Safety
/// 64 bytes must be readable at the place.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(bytes: &[i8], at: usize) -> __m512i {
    // SAFETY: as required of the caller.
    unsafe { _mm512_load_si512(bytes.as_ptr().add(at).cast()) }
}

/// # Safety
/// The call's row has the blocks of its shape, and `x`, made with offset 128 and blocks in order, has `M` tokens
/// from the call's on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
pub(in crate::cpu) unsafe fn q8<const M: usize, const FINE: bool>(x: &Split, call: &Call<'_>) {
    let ahead = distance();
    let groups = call.shape.cols.div_ceil(GROUP);
    let mut last = [0u8; 4 * 34];
    // the sign bit flipped is 128 added
    let flip = _mm512_set1_epi8(-128);
    let spread = [
        _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1),
        _mm512_setr_epi32(2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3),
    ];
    let mut sums = [[_mm512_setzero_ps(); 2]; M];
    for g in 0..groups {
        let from = group::<136>(call.bytes, g, &mut last);
        if call.token == 0 {
            // 136 bytes touch up to four lines; every line is asked for, some twice
            for line in 0..3 {
                prefetch(from.wrapping_add(ahead + 64 * line));
            }
        }
        // SAFETY: the group has four blocks, and each token has a group.
        unsafe {
            let scale = scales::<34>(from);
            // without `map`, which does not have the instructions
            let block = |b: usize| _mm256_loadu_si256(from.add(b * 34 + 2).cast());
            let pair = |b: usize| {
                let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(block(b)), block(b + 1));
                _mm512_xor_si512(both, flip)
            };
            let weights = [pair(0), pair(2)];
            for (t, sums) in sums.iter_mut().enumerate() {
                let at = (call.token + t) * groups + g;
                let scale = _mm_mul_ps(scale, _mm_load_ps(x.scales.as_ptr().add(at * 4)));
                let scale = _mm512_castps128_ps512(scale);
                let starts = _mm512_castsi128_si512(_mm_load_si128(x.starts.as_ptr().add(at * 4).cast()));
                for pair in 0..2 {
                    // into the first lane of each block
                    let start = _mm512_maskz_permutexvar_epi32(0x0101, spread[pair], starts);
                    let mut sum = _mm512_dpbusd_epi32(start, weights[pair], load(&x.low, at * GROUP + pair * 64));
                    if FINE {
                        let high = load(&x.high, at * GROUP + pair * 64);
                        let high = _mm512_dpbusd_epi32(_mm512_setzero_si512(), weights[pair], high);
                        sum = _mm512_add_epi32(sum, _mm512_slli_epi32::<8>(high));
                    }
                    let scale = _mm512_permutexvar_ps(spread[pair], scale);
                    sums[pair] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, sums[pair]);
                }
            }
        }
    }
    for (t, sums) in sums.into_iter().enumerate() {
        // SAFETY: `M` tokens exist.
        unsafe { call.write(t, _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]))) };
    }
}

/// Blocks of 32 values, the first sixteen in the low nibbles of the last sixteen bytes, the others in the high ones. A value is
/// `scale (number - OFFSET)`, or where there are addends `scale number + addend`.
///
/// # Safety
/// Every method requires that the CPU has the instructions and that four blocks are readable at the pointer.
pub(in crate::cpu) trait Nibbles {
    /// With addends -1: what they are multiplied by are the sums of the activations, and starts are minus `OFFSET` times these.
    const OFFSET: i32;

    /// The scales of four blocks of `SIZE` bytes, and what starts are multiplied by.
    #[inline(always)]
    unsafe fn scales<const SIZE: usize>(group: *const u8) -> [__m128; 2] {
        // SAFETY: as required of the caller.
        unsafe { [scales::<SIZE>(group); 2] }
    }

    /// The numbers of four blocks: the first halves, then the second ones. `low` and `high` are their nibbles.
    unsafe fn numbers(group: *const u8, low: __m512i, high: __m512i) -> [__m512i; 2];
}

pub(in crate::cpu) struct Q40;

impl Nibbles for Q40 {
    const OFFSET: i32 = 8;

    #[inline(always)]
    unsafe fn numbers(_group: *const u8, low: __m512i, high: __m512i) -> [__m512i; 2] {
        [low, high]
    }
}

pub(in crate::cpu) struct Q41;

impl Nibbles for Q41 {
    const OFFSET: i32 = -1;

    #[inline(always)]
    unsafe fn scales<const SIZE: usize>(group: *const u8) -> [__m128; 2] {
        // SAFETY: as required of the caller.
        unsafe { [scales::<SIZE>(group), scales::<SIZE>(group.add(2))] }
    }

    #[inline(always)]
    unsafe fn numbers(_group: *const u8, low: __m512i, high: __m512i) -> [__m512i; 2] {
        [low, high]
    }
}

pub(in crate::cpu) struct Q50;

impl Nibbles for Q50 {
    const OFFSET: i32 = 16;

    #[inline(always)]
    unsafe fn numbers(group: *const u8, low: __m512i, high: __m512i) -> [__m512i; 2] {
        // SAFETY: as required of the caller.
        unsafe { five_bits::<22>(group.add(2), low, high) }
    }
}

pub(in crate::cpu) struct Q51;

impl Nibbles for Q51 {
    const OFFSET: i32 = -1;

    #[inline(always)]
    unsafe fn scales<const SIZE: usize>(group: *const u8) -> [__m128; 2] {
        // SAFETY: as required of the caller.
        unsafe { Q41::scales::<SIZE>(group) }
    }

    #[inline(always)]
    unsafe fn numbers(group: *const u8, low: __m512i, high: __m512i) -> [__m512i; 2] {
        // SAFETY: as required of the caller.
        unsafe { five_bits::<24>(group.add(4), low, high) }
    }
}

/// Nibbles of four blocks of `SIZE` bytes with the fifth bits, which lie in four bytes of the first block at `bits`, a bit a value.
///
/// # Safety
/// As [`Nibbles`].
#[inline(always)]
unsafe fn five_bits<const SIZE: usize>(bits: *const u8, low: __m512i, high: __m512i) -> [__m512i; 2] {
    // SAFETY: as required of the caller.
    unsafe {
        let fifth = |b: usize| u64::from(bits.add(b * SIZE).cast::<u32>().read_unaligned());
        let fifth = [fifth(0), fifth(1), fifth(2), fifth(3)];
        let first = fifth[0] & 0xffff | (fifth[1] & 0xffff) << 16 | (fifth[2] & 0xffff) << 32 | fifth[3] << 48;
        let second = fifth[0] >> 16 | fifth[1] & 0xffff_0000 | (fifth[2] >> 16) << 32 | (fifth[3] >> 16) << 48;
        let sixteen = _mm512_set1_epi8(16);
        [_mm512_mask_add_epi8(low, first, low, sixteen), _mm512_mask_add_epi8(high, second, high, sixteen)]
    }
}

pub(in crate::cpu) struct Iq4Nl;

impl Nibbles for Iq4Nl {
    const OFFSET: i32 = 128;

    #[inline(always)]
    unsafe fn numbers(_group: *const u8, low: __m512i, high: __m512i) -> [__m512i; 2] {
        // SAFETY: as required of the caller; an offset of 128 is a flipped sign bit.
        unsafe { levels(&IQ4_LEVELS, Self::OFFSET, low, high) }
    }
}

pub(in crate::cpu) struct Mxfp4;

impl Nibbles for Mxfp4 {
    const OFFSET: i32 = 12;

    #[inline(always)]
    unsafe fn scales<const SIZE: usize>(group: *const u8) -> [__m128; 2] {
        // SAFETY: as required of the caller.
        unsafe { [e8m0_scales::<SIZE>(group); 2] }
    }

    #[inline(always)]
    unsafe fn numbers(_group: *const u8, low: __m512i, high: __m512i) -> [__m512i; 2] {
        // SAFETY: as required of the caller.
        unsafe { levels(&FP4_LEVELS, Self::OFFSET, low, high) }
    }
}

/// The levels that nibbles name, moved up by `offset`.
///
/// # Safety
/// As [`Nibbles`].
#[inline(always)]
unsafe fn levels(levels: &[i8; 16], offset: i32, low: __m512i, high: __m512i) -> [__m512i; 2] {
    // SAFETY: as required of the caller; there are sixteen levels.
    unsafe {
        let levels = _mm512_broadcast_i32x4(_mm_loadu_si128(levels.as_ptr().cast()));
        let levels = _mm512_add_epi8(levels, _mm512_set1_epi8(offset as i8));
        [_mm512_shuffle_epi8(levels, low), _mm512_shuffle_epi8(levels, high)]
    }
}

/// A row of such blocks; four have `FOUR` bytes.
///
/// # Safety
/// As [`q8`], with `x` made with the blocks' offset and blocks in halves.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(in crate::cpu) unsafe fn nibbles<
    B: Nibbles,
    const M: usize,
    const FINE: bool,
    const SIZE: usize,
    const FOUR: usize,
>(
    x: &Split,
    call: &Call<'_>,
) {
    const { assert!(FOUR == 4 * SIZE) };
    let ahead = distance();
    let groups = call.shape.cols.div_ceil(GROUP);
    let mut last = [0u8; FOUR];
    let nibble = _mm512_set1_epi8(15);
    // each 128-bit lane holds one block
    let spread = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    let mut sums = [_mm512_setzero_ps(); M];
    let mut added = [_mm_setzero_ps(); M];
    for g in 0..groups {
        let from = group::<FOUR>(call.bytes, g, &mut last);
        if call.token == 0 {
            for line in 0..FOUR.div_ceil(64) {
                prefetch(from.wrapping_add(ahead + 64 * line));
            }
        }
        // SAFETY: the group has four blocks, and each token has a group.
        unsafe {
            let block = |b: usize| _mm_loadu_si128(from.add((b + 1) * SIZE - 16).cast());
            let pair = |b: usize| _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(block(b)), block(b + 1));
            let bytes = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(pair(0)), pair(2));
            let low = _mm512_and_si512(bytes, nibble);
            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), nibble);
            let [first, second] = B::numbers(from, low, high);
            // both halves of the blocks, which share lanes
            let dot = |bytes: &[i8], at| {
                let sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), first, load(bytes, at));
                _mm512_dpbusd_epi32(sum, second, load(bytes, at + 64))
            };
            let [scale, of_starts] = B::scales::<SIZE>(from);
            for (t, sum) in sums.iter_mut().enumerate() {
                let at = (call.token + t) * groups + g;
                let x_scale = _mm_load_ps(x.scales.as_ptr().add(at * 4));
                let starts = _mm_cvtepi32_ps(_mm_load_si128(x.starts.as_ptr().add(at * 4).cast()));
                added[t] = _mm_fmadd_ps(starts, _mm_mul_ps(of_starts, x_scale), added[t]);
                let scale = _mm512_castps128_ps512(_mm_mul_ps(scale, x_scale));
                let scale = _mm512_permutexvar_ps(spread, scale);
                let mut exact = dot(&x.low, at * GROUP);
                if FINE {
                    let high = dot(&x.high, at * GROUP);
                    exact = _mm512_add_epi32(exact, _mm512_slli_epi32::<8>(high));
                }
                *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), scale, *sum);
            }
        }
    }
    for (t, (sum, added)) in sums.into_iter().zip(added).enumerate() {
        let sum = _mm512_add_ps(sum, _mm512_zextps128_ps512(added));
        // SAFETY: `M` tokens exist.
        unsafe { call.write(t, _mm512_reduce_add_ps(sum)) };
    }
}
