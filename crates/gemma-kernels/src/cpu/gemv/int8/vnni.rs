//! With AVX-512 VNNI: bytes, four products in each lane.

use super::e8m0_scales;
use crate::cpu::gemv::row::{self, Call, f16_scales};
use crate::cpu::quantize::{Bytes, GROUP, Order, SUMS, Split};
use crate::format::low_bits::{FP4_LEVELS, IQ4_LEVELS};
use std::arch::x86_64::*;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
pub(in crate::cpu) fn split(x: &[f32], cols: usize, fine: bool, order: Order, offset: i32) -> Split {
    Split::new(x, cols, fine, (order, offset, 32), |x, limit| Bytes::with_avx512(x, limit))
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

/// What four blocks have, each in the four lanes of its block.
///
/// # Safety
/// AVX-512 must be enabled where this is expanded.
#[inline(always)]
unsafe fn spread(blocks: __m128) -> __m512 {
    // SAFETY: as required of the caller.
    unsafe { _mm512_permutexvar_ps(block_of_lane(), _mm512_castps128_ps512(blocks)) }
}

/// Which of four blocks each lane belongs to, where each 128-bit lane holds one.
///
/// # Safety
/// AVX-512 must be enabled where this is expanded.
#[inline(always)]
unsafe fn block_of_lane() -> __m512i {
    // SAFETY: as required of the caller.
    unsafe { _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3) }
}

/// The scales of four blocks of `SIZE` bytes, at most 96, each in the four lanes of its block.
///
/// # Safety
/// Four blocks must be readable, and AVX-512 with BW enabled where this is expanded.
#[inline(always)]
unsafe fn spread_scales<const SIZE: usize>(group: *const u8) -> __m512 {
    // SAFETY: as required of the caller; four blocks have at least 64 bytes.
    unsafe {
        if 3 * SIZE + 2 > 64 {
            return spread(scales::<SIZE>(group));
        }
        let word = |block: usize| (block * SIZE / 2) as i16;
        let (a, b, c, d) = (word(0), word(1), word(2), word(3));
        let places = _mm256_setr_epi16(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d);
        let words = _mm512_permutexvar_epi16(_mm512_castsi256_si512(places), _mm512_loadu_si512(group.cast()));
        _mm512_cvtph_ps(_mm512_castsi512_si256(words))
    }
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

/// `R` rows times `M` tokens.
///
/// # Safety
/// The call's rows have the blocks of its shape, and `x`, made with offset 128 and blocks in order, has `M` tokens from the call's on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
pub(in crate::cpu) unsafe fn q8<const R: usize, const M: usize, const FINE: bool>(x: &Split, call: &Call<'_>) {
    let (token, groups) = (call.token, call.shape.cols.div_ceil(GROUP));
    let mut last = [[0; 136]; R];
    // the sign bit flipped is 128 added
    let flip = _mm512_set1_epi8(-128);
    let spread = [
        _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1),
        _mm512_setr_epi32(2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3),
    ];
    let mut sums = [[[_mm512_setzero_ps(); 2]; R]; M];
    for (range, first) in row::groups(call, &mut last) {
        for g in range {
            call.request(R * g * 136, R * 136);
            // SAFETY: the group has four blocks of each row, and each token has a group.
            unsafe {
                let mut weights = [[_mm512_setzero_si512(); 2]; R];
                let mut scale = [_mm_setzero_ps(); R];
                for r in 0..R {
                    let from = first[r].wrapping_add(g * 136);
                    scale[r] = scales::<34>(from);
                    // without `map`, which does not have the instructions
                    let block = |b: usize| _mm256_loadu_si256(from.add(b * 34 + 2).cast());
                    let pair = |b: usize| {
                        let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(block(b)), block(b + 1));
                        _mm512_xor_si512(both, flip)
                    };
                    weights[r] = [pair(0), pair(2)];
                }
                for (t, sums) in sums.iter_mut().enumerate() {
                    let at = (token + t) * groups + g;
                    let x_scale = _mm_load_ps(x.scales.as_ptr().add(at * 4));
                    let starts = _mm512_castsi128_si512(_mm_load_si128(x.starts.as_ptr().add(at * 4).cast()));
                    let mut scales = [_mm512_setzero_ps(); R];
                    for r in 0..R {
                        scales[r] = _mm512_castps128_ps512(_mm_mul_ps(scale[r], x_scale));
                    }
                    for pair in 0..2 {
                        // into the first lane of each block
                        let start = _mm512_maskz_permutexvar_epi32(0x0101, spread[pair], starts);
                        let low = load(&x.low, at * GROUP + pair * 64);
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let mut sum = _mm512_dpbusd_epi32(start, weights[r][pair], low);
                            if FINE {
                                let high = load(&x.high, at * GROUP + pair * 64);
                                let high = _mm512_dpbusd_epi32(_mm512_setzero_si512(), weights[r][pair], high);
                                sum = _mm512_add_epi32(sum, _mm512_slli_epi32::<8>(high));
                            }
                            let scale = _mm512_permutexvar_ps(spread[pair], scales[r]);
                            sums[pair] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, sums[pair]);
                        }
                    }
                }
            }
        }
    }
    for (t, sums) in sums.into_iter().enumerate() {
        for (r, sums) in sums.into_iter().enumerate() {
            // SAFETY: `R` rows and `M` tokens exist.
            unsafe { call.write(r, t, _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]))) };
        }
    }
}

/// Blocks of 32 values, the first sixteen in the low nibbles of the last sixteen bytes, the others in the high ones. A value is
/// `scale (number - OFFSET)`, or where there are addends `scale number + addend`.
///
/// # Safety
/// Every method requires that the CPU has the instructions and that four blocks are readable at the pointer.
pub(in crate::cpu) trait Nibbles {
    /// What the numbers are moved up by, or [`SUMS`] where there are addends.
    const OFFSET: i32;

    /// Whether there are addends.
    const ADDENDS: bool = Self::OFFSET == SUMS;

    /// The scales of four blocks of `SIZE` bytes, each in the four lanes of its block.
    #[inline(always)]
    unsafe fn scales<const SIZE: usize>(group: *const u8) -> __m512 {
        // SAFETY: as required of the caller.
        unsafe { spread_scales::<SIZE>(group) }
    }

    /// The addends of four blocks of `SIZE` bytes: the halves behind the scales.
    #[inline(always)]
    unsafe fn addends<const SIZE: usize>(group: *const u8) -> __m128 {
        // SAFETY: as required of the caller.
        unsafe { scales::<SIZE>(group.add(2)) }
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
    const OFFSET: i32 = SUMS;

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
    const OFFSET: i32 = SUMS;

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
    unsafe fn scales<const SIZE: usize>(group: *const u8) -> __m512 {
        // SAFETY: as required of the caller.
        unsafe { spread(e8m0_scales::<SIZE>(group)) }
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

/// `R` rows of such blocks times `M` tokens; four blocks have `FOUR` bytes.
///
/// # Safety
/// As [`q8`], with `x` made with the blocks' offset and blocks in halves.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(in crate::cpu) unsafe fn nibbles<
    B: Nibbles,
    const R: usize,
    const M: usize,
    const FINE: bool,
    const SIZE: usize,
    const FOUR: usize,
>(
    x: &Split,
    call: &Call<'_>,
) {
    const { assert!(FOUR == 4 * SIZE) };
    let (token, groups) = (call.token, call.shape.cols.div_ceil(GROUP));
    let mut last = [[0; FOUR]; R];
    let nibble = _mm512_set1_epi8(15);
    let mut sums = [[_mm512_setzero_ps(); R]; M];
    let mut added = [[_mm_setzero_ps(); R]; M];
    for (range, first) in row::groups(call, &mut last) {
        for g in range {
            call.request(R * g * FOUR, R * FOUR);
            // SAFETY: the group has four blocks of each row, and each token has a group.
            unsafe {
                let mut numbers = [[_mm512_setzero_si512(); 2]; R];
                let mut scale = [_mm512_setzero_ps(); R];
                for r in 0..R {
                    let from = first[r].wrapping_add(g * FOUR);
                    let block = |b: usize| _mm_loadu_si128(from.add((b + 1) * SIZE - 16).cast());
                    let pair = |b: usize| _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(block(b)), block(b + 1));
                    let bytes = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(pair(0)), pair(2));
                    let low = _mm512_and_si512(bytes, nibble);
                    let high = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), nibble);
                    numbers[r] = B::numbers(from, low, high);
                    scale[r] = B::scales::<SIZE>(from);
                }
                for t in 0..M {
                    let at = (token + t) * groups + g;
                    let x_scale = _mm_load_ps(x.scales.as_ptr().add(at * 4));
                    let starts = _mm_load_si128(x.starts.as_ptr().add(at * 4).cast());
                    let mut start = _mm512_setzero_si512();
                    if B::ADDENDS {
                        let x_sums = _mm_cvtepi32_ps(starts);
                        for r in 0..R {
                            let addends = B::addends::<SIZE>(first[r].wrapping_add(g * FOUR));
                            added[t][r] = _mm_fmadd_ps(x_sums, _mm_mul_ps(addends, x_scale), added[t][r]);
                        }
                    } else {
                        // into the first lane of each block
                        let starts = _mm512_castsi128_si512(starts);
                        start = _mm512_maskz_permutexvar_epi32(0x1111, block_of_lane(), starts);
                    }
                    let x_scale = spread(x_scale);
                    for r in 0..R {
                        // both halves of the blocks, which share lanes
                        let dot = |start, bytes: &[i8]| {
                            let sum = _mm512_dpbusd_epi32(start, numbers[r][0], load(bytes, at * GROUP));
                            _mm512_dpbusd_epi32(sum, numbers[r][1], load(bytes, at * GROUP + 64))
                        };
                        let mut exact = dot(start, &x.low);
                        if FINE {
                            let high = dot(_mm512_setzero_si512(), &x.high);
                            exact = _mm512_add_epi32(exact, _mm512_slli_epi32::<8>(high));
                        }
                        let scale = _mm512_mul_ps(scale[r], x_scale);
                        sums[t][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), scale, sums[t][r]);
                    }
                }
            }
        }
    }
    for t in 0..M {
        for r in 0..R {
            let sum = _mm512_add_ps(sums[t][r], _mm512_zextps128_ps512(added[t][r]));
            // SAFETY: `R` rows and `M` tokens exist.
            unsafe { call.write(r, t, _mm512_reduce_add_ps(sum)) };
        }
    }
}
