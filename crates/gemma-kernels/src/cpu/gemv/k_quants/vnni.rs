//! The same with AVX-512 VNNI: the parts of a block have a scale and an addend of their own, while 32 activations share a scale. So a
//! part's sum over integers is exact, is turned into f32 once and weighted by both scales; what the addends contribute is one
//! product per block, with the sums of the activations of each part.

mod low_bits;

use super::grids::{Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs};
use super::{BLOCK, part};
use crate::Format;
use crate::cpu::gemv::distance::distance;
use crate::cpu::gemv::row::Call;
use crate::cpu::isa::prefetch;
use crate::cpu::quantize::{Bytes, Split};
use crate::cpu::sub_blocks::six_bits;
use low_bits::{Iq4Xs, Q2K, Q3K, Signed};
use std::arch::x86_64::*;

/// The activations `x` `[tokens, cols]` as these kernels read them.
///
/// # Safety
/// The CPU must have the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(in crate::cpu) unsafe fn split(x: &[f32], cols: usize, fine: bool, part: usize) -> Split {
    Split::new(x, cols, fine, (false, -1, part), |x, limit| Bytes::with_avx512(x, limit))
}

/// One row times `M` tokens.
///
/// # Safety
/// The CPU must have the instructions; the call's row has the blocks of its shape, and `x`, of [`split`] with the
/// format's part, has `M` tokens from the call's on.
pub(in crate::cpu) unsafe fn row<const M: usize>(x: &Split, call: &Call<'_>) {
    // SAFETY: as required of the caller.
    unsafe {
        match call.shape.format {
            Format::Q2K => of_blocks::<Q2K, M>(x, call),
            Format::Q3K => of_blocks::<Q3K, M>(x, call),
            Format::Q4K => of_blocks::<Q4K, M>(x, call),
            Format::Q5K => of_blocks::<Q5K, M>(x, call),
            Format::Q6K => of_blocks::<Q6K, M>(x, call),
            Format::Iq4Xs => of_blocks::<Iq4Xs, M>(x, call),
            Format::Iq3Xxs => of_blocks::<Signed<Iq3Xxs>, M>(x, call),
            Format::Iq3S => of_blocks::<Signed<Iq3S>, M>(x, call),
            Format::Iq2Xxs => of_blocks::<Signed<Iq2Xxs>, M>(x, call),
            Format::Iq2Xs => of_blocks::<Signed<Iq2Xs>, M>(x, call),
            Format::Iq2S => of_blocks::<Signed<Iq2S>, M>(x, call),
            other => unreachable!("{other} has no such blocks"),
        }
    }
}

/// # Safety
/// As [`row`].
#[inline(always)]
unsafe fn of_blocks<B: Block, const M: usize>(x: &Split, call: &Call<'_>) {
    // SAFETY: as required of the caller.
    unsafe {
        match x.high.is_empty() {
            true => products::<B, M, false>(x, call),
            false => products::<B, M, true>(x, call),
        }
    }
}

/// # Safety
/// As [`row`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
unsafe fn products<B: Block, const M: usize, const FINE: bool>(x: &Split, call: &Call<'_>) {
    let ahead = distance();
    let (size, parts) = (B::FORMAT.block_bytes(), BLOCK / B::PART);
    let blocks = call.bytes.len() / size;
    let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    // the part that each lane of four values belongs to, and the 32 activations that each part does
    let shift = |by: u32| _mm_cvtsi32_si128(by.cast_signed());
    let part_of_lane = |vector: i32| {
        let lane = _mm512_add_epi32(lanes, _mm512_set1_epi32(16 * vector));
        _mm512_srl_epi32(lane, shift((B::PART / 4).ilog2()))
    };
    let spread = [part_of_lane(0), part_of_lane(1), part_of_lane(2), part_of_lane(3)];
    let scale_of_part = _mm512_srl_epi32(lanes, shift((32 / B::PART).ilog2()));
    let there = (1u32 << parts).wrapping_sub(1) as __mmask16;
    let mut sums = [[_mm512_setzero_ps(); 2]; M];
    let mut added = [_mm512_setzero_ps(); M];
    // SAFETY: block `b` has `size` bytes of the row; each token has for it 256 values, 8 scales and a start per part,
    // which follow each other.
    unsafe {
        for b in 0..blocks {
            let block = call.bytes.as_ptr().add(b * size);
            if call.token == 0 {
                for line in 0..size.div_ceil(64) {
                    prefetch(block.wrapping_add(ahead + 64 * line));
                }
            }
            let [factors, addends] = B::scales(block);
            let numbers = B::numbers(block);
            for t in 0..M {
                let at = (call.token + t) * blocks + b;
                let scales = _mm512_castps256_ps512(_mm256_load_ps(x.scales.as_ptr().add(at * 8)));
                let scales = _mm512_maskz_permutexvar_ps(there, scale_of_part, scales);
                let x_sums = _mm512_maskz_loadu_epi32(there, x.starts.as_ptr().add(at * parts));
                added[t] = _mm512_fmadd_ps(_mm512_mul_ps(addends, scales), _mm512_cvtepi32_ps(x_sums), added[t]);
                let factors = _mm512_mul_ps(factors, scales);
                for v in 0..4 {
                    let load = |bytes: &[i8]| _mm512_load_si512(bytes.as_ptr().add(at * BLOCK + 64 * v).cast());
                    let mut sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), numbers[v], load(&x.low));
                    if FINE {
                        let high = _mm512_dpbusd_epi32(_mm512_setzero_si512(), numbers[v], load(&x.high));
                        sum = _mm512_add_epi32(sum, _mm512_slli_epi32::<8>(high));
                    }
                    let factor = _mm512_permutexvar_ps(spread[v], factors);
                    sums[t][v % 2] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, sums[t][v % 2]);
                }
            }
        }
        for t in 0..M {
            let sum = _mm512_add_ps(_mm512_add_ps(sums[t][0], sums[t][1]), added[t]);
            call.write(t, _mm512_reduce_add_ps(sum));
        }
    }
}

/// How the blocks of a format are taken apart: a value is `factor number + addend` with its part's.
///
/// # Safety
/// Every method requires that the CPU has the instructions and that a block is readable at the pointer.
trait Block {
    const FORMAT: Format;
    /// Values that share a scale: 16 or 32.
    const PART: usize = part(Self::FORMAT);

    /// The factors and the addends of the parts, in order; zero in lanes beyond them. As Q4_K and Q5_K have them: scales and
    /// least values of six bits.
    #[inline(always)]
    unsafe fn scales(block: *const u8) -> [__m512; 2] {
        // SAFETY: as required of the caller.
        unsafe { six_bit_scales(block) }
    }

    /// All numbers of the block, in order.
    unsafe fn numbers(block: *const u8) -> [__m512i; 4];
}

/// The half at byte `at`, in all lanes.
///
/// # Safety
/// As [`Block`].
#[inline(always)]
unsafe fn half(block: *const u8, at: usize) -> __m512 {
    // SAFETY: as required of the caller.
    unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(block.add(at).cast::<i16>().read_unaligned())) }
}

/// Eight bytes as numbers, and eight zeros.
///
/// # Safety
/// As [`Block`].
#[inline(always)]
unsafe fn eight(bytes: u64) -> __m512 {
    // SAFETY: as required of the caller.
    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_cvtsi64_si128(bytes.cast_signed()))) }
}

/// Scales and least values of eight parts.
///
/// # Safety
/// As [`Block`].
#[inline(always)]
unsafe fn six_bit_scales(block: *const u8) -> [__m512; 2] {
    // SAFETY: as required of the caller.
    unsafe {
        let [scales, least] = six_bits(block).map(|bytes| eight(bytes));
        let minus = _mm512_sub_ps(_mm512_setzero_ps(), half(block, 2));
        [_mm512_mul_ps(scales, half(block, 0)), _mm512_mul_ps(least, minus)]
    }
}

/// The low nibbles of 32 bytes, then the high ones.
///
/// # Safety
/// As [`Block`], with 32 bytes readable.
#[inline(always)]
unsafe fn nibbles(from: *const u8) -> __m512i {
    // SAFETY: as required of the caller.
    unsafe {
        let both = _mm512_broadcast_i64x4(_mm256_loadu_si256(from.cast()));
        let moved = _mm512_srlv_epi64(both, _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4));
        _mm512_and_si512(moved, _mm512_set1_epi8(15))
    }
}

/// Bits of each of 32 bytes: rotated left by `first`, then by `second` instead, and masked.
///
/// # Safety
/// As [`Block`], with the bytes in both halves of the vector.
#[inline(always)]
unsafe fn bits<const MASK: i8>(bytes: __m512i, first: i64, second: i64) -> __m512i {
    // SAFETY: as required of the caller.
    unsafe {
        let by = _mm512_setr_epi64(first, first, first, first, second, second, second, second);
        _mm512_and_si512(_mm512_rolv_epi64(bytes, by), _mm512_set1_epi8(MASK))
    }
}

struct Q4K;

impl Block for Q4K {
    const FORMAT: Format = Format::Q4K;

    #[inline(always)]
    unsafe fn numbers(block: *const u8) -> [__m512i; 4] {
        // SAFETY: as required of the caller; two parts share their bytes.
        unsafe {
            let from = block.add(16);
            [nibbles(from), nibbles(from.add(32)), nibbles(from.add(64)), nibbles(from.add(96))]
        }
    }
}

struct Q5K;

impl Block for Q5K {
    const FORMAT: Format = Format::Q5K;

    #[inline(always)]
    unsafe fn numbers(block: *const u8) -> [__m512i; 4] {
        // SAFETY: as required of the caller; bit `p` of the bytes at 16 is the fifth of part `p`'s numbers.
        unsafe {
            let (fifth, from) = (_mm512_broadcast_i64x4(_mm256_loadu_si256(block.add(16).cast())), block.add(48));
            [
                _mm512_or_si512(nibbles(from), bits::<16>(fifth, 4, 3)),
                _mm512_or_si512(nibbles(from.add(32)), bits::<16>(fifth, 2, 1)),
                _mm512_or_si512(nibbles(from.add(64)), bits::<16>(fifth, 0, 63)),
                _mm512_or_si512(nibbles(from.add(96)), bits::<16>(fifth, 62, 61)),
            ]
        }
    }
}

struct Q6K;

impl Block for Q6K {
    const FORMAT: Format = Format::Q6K;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> [__m512; 2] {
        // SAFETY: as required of the caller.
        unsafe {
            let scales = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(block.add(192).cast())));
            let factors = _mm512_mul_ps(scales, half(block, 208));
            [factors, _mm512_mul_ps(factors, _mm512_set1_ps(-32.0))]
        }
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8) -> [__m512i; 4] {
        // SAFETY: as required of the caller. In each half of the block the low nibbles of 64 bytes are the first 64
        // numbers', the high ones the others'; 32 bytes hold the upper two bits of each 32 numbers in turn.
        unsafe {
            let four = _mm512_set1_epi8(15);
            let (a, b) = (_mm512_loadu_si512(block.cast()), _mm512_loadu_si512(block.add(64).cast()));
            let (c, d) = (block.add(128), block.add(160));
            let c = _mm512_broadcast_i64x4(_mm256_loadu_si256(c.cast()));
            let d = _mm512_broadcast_i64x4(_mm256_loadu_si256(d.cast()));
            [
                _mm512_or_si512(_mm512_and_si512(a, four), bits::<0x30>(c, 4, 2)),
                _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16::<4>(a), four), bits::<0x30>(c, 0, 62)),
                _mm512_or_si512(_mm512_and_si512(b, four), bits::<0x30>(d, 4, 2)),
                _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16::<4>(b), four), bits::<0x30>(d, 0, 62)),
            ]
        }
    }
}
