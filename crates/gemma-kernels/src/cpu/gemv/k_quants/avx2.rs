//! The same with AVX2: 16-bit numbers, sixteen at a time.
//!
//! What the addends of Q2_K, Q4_K and Q5_K contribute is a product with the sums of the parts' activations; the numbers of the others
//! are centred instead.

mod low_bits;

use super::grids::{Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs};
use super::{BLOCK, part};
use crate::Format;
use crate::cpu::gemv::distance::distance;
use crate::cpu::gemv::row::Call;
use crate::cpu::isa::{Avx2, Lanes, prefetch};
use crate::cpu::quantize::Words;
use crate::cpu::sub_blocks::{half, six_bits};
use low_bits::{Iq4Xs, Q2K, Q3K, Signed};
use std::arch::x86_64::*;

/// One row times `M` tokens.
///
/// # Safety
/// The CPU must have the instructions; the call's row has the blocks of its shape, and `x`, with the sums of the format's parts, has `M`
/// tokens from the call's on.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn row<const M: usize>(x: &Words, call: &Call<'_>) {
    // SAFETY: as required of the caller.
    unsafe {
        match call.shape.format {
            Format::Q2K => products::<Q2K, M>(x, call),
            Format::Q3K => products::<Q3K, M>(x, call),
            Format::Q4K => products::<Q4K, M>(x, call),
            Format::Q5K => products::<Q5K, M>(x, call),
            Format::Q6K => products::<Q6K, M>(x, call),
            Format::Iq4Xs => products::<Iq4Xs, M>(x, call),
            Format::Iq3Xxs => products::<Signed<Iq3Xxs>, M>(x, call),
            Format::Iq3S => products::<Signed<Iq3S>, M>(x, call),
            Format::Iq2Xxs => products::<Signed<Iq2Xxs>, M>(x, call),
            Format::Iq2Xs => products::<Signed<Iq2Xs>, M>(x, call),
            Format::Iq2S => products::<Signed<Iq2S>, M>(x, call),
            other => unreachable!("{other} has no such blocks"),
        }
    }
}

/// # Safety
/// As [`row`], with the instructions at hand where this is expanded.
#[inline(always)]
unsafe fn products<B: Block, const M: usize>(x: &Words, call: &Call<'_>) {
    let ahead = distance();
    let size = B::FORMAT.block_bytes();
    let (blocks, parts) = (call.bytes.len() / size, BLOCK / B::PART);
    // SAFETY: block `b` has `size` bytes of the row; each token has for it 256 values, 8 scales and a sum per part.
    unsafe {
        // two sums, so that an addition need not wait for the one before
        let mut sums = [[_mm256_setzero_ps(); 2]; M];
        let mut factors = [0f32; 16];
        for b in 0..blocks {
            let block = call.bytes.as_ptr().add(b * size);
            if call.token == 0 {
                for line in 0..size.div_ceil(64) {
                    prefetch(block.wrapping_add(ahead + 64 * line));
                }
            }
            let addends = B::scales(block, &mut factors);
            for (t, sums) in sums.iter_mut().enumerate().filter(|_| B::ADDENDS) {
                let at = (call.token + t) * blocks + b;
                let scales = _mm256_loadu_ps(x.scales.as_ptr().add(at * (BLOCK / 32)));
                for (i, addends) in addends.into_iter().take(parts / 8).enumerate() {
                    // two parts of 16 share a scale
                    let (i, of_pair) = (i as i32 * 4, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
                    let of_pair = _mm256_add_epi32(of_pair, _mm256_set1_epi32(i));
                    let scales = if B::PART == 32 { scales } else { _mm256_permutevar8x32_ps(scales, of_pair) };
                    let x_sums = x.sums.as_ptr().add(at * parts + 2 * i as usize);
                    let x_sums = _mm256_cvtepi32_ps(_mm256_loadu_si256(x_sums.cast()));
                    sums[0] = _mm256_fmadd_ps(_mm256_mul_ps(addends, scales), x_sums, sums[0]);
                }
            }
            for part in 0..BLOCK / 32 {
                let [first, second] = B::numbers(block, part);
                for (t, sums) in sums.iter_mut().enumerate() {
                    let at = ((call.token + t) * blocks + b) * (BLOCK / 32) + part;
                    let values = x.values.as_ptr().add(at * 32);
                    let first = _mm256_madd_epi16(first, _mm256_loadu_si256(values.cast()));
                    let second = _mm256_madd_epi16(second, _mm256_loadu_si256(values.add(16).cast()));
                    let scale = *x.scales.as_ptr().add(at);
                    let factor = |part: usize| _mm256_set1_ps(factors[part] * scale);
                    if B::PART == 32 {
                        let exact = _mm256_cvtepi32_ps(_mm256_add_epi32(first, second));
                        sums[part % 2] = _mm256_fmadd_ps(exact, factor(part), sums[part % 2]);
                    } else {
                        sums[0] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(first), factor(2 * part), sums[0]);
                        sums[1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(second), factor(2 * part + 1), sums[1]);
                    }
                }
            }
        }
        for (t, sums) in sums.into_iter().enumerate() {
            call.write(t, Avx2::from(_mm256_add_ps(sums[0], sums[1])).sum());
        }
    }
}

/// How the blocks of a format are taken apart: a value is `factor number + addend` with its part's.
///
/// # Safety
/// Every method requires that a block is readable at the pointer, and is expanded where AVX2 is enabled.
trait Block {
    const FORMAT: Format;
    /// Values that share a scale: 16 or 32.
    const PART: usize = part(Self::FORMAT);
    /// Whether there are addends.
    const ADDENDS: bool = false;

    /// Writes the factors of the parts; returns their addends, if there are any.
    unsafe fn scales(block: *const u8, factors: &mut [f32; 16]) -> [__m256; 2];

    /// The numbers of the 32 values from `32 part` on.
    unsafe fn numbers(block: *const u8, part: usize) -> [__m256i; 2];
}

/// The scales and least values of Q4_K and Q5_K, of six bits.
///
/// # Safety
/// As [`Block`].
#[inline(always)]
unsafe fn six_bit_scales(block: *const u8, factors: &mut [f32; 16]) -> [__m256; 2] {
    // SAFETY: as required of the caller; there is room for sixteen factors.
    unsafe {
        let [scales, least] = six_bits(block);
        let eight = |bytes: u64| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes.cast_signed())));
        let scaled = _mm256_mul_ps(eight(scales), _mm256_set1_ps(half(block, 0)));
        _mm256_storeu_ps(factors.as_mut_ptr(), scaled);
        [_mm256_mul_ps(eight(least), _mm256_set1_ps(-half(block, 2))), _mm256_setzero_ps()]
    }
}

/// 32 bytes.
///
/// # Safety
/// As [`Block`], with the bytes readable.
#[inline(always)]
unsafe fn bytes(from: *const u8) -> __m256i {
    // SAFETY: as required of the caller.
    unsafe { _mm256_loadu_si256(from.cast()) }
}

/// The bits of `mask` of each of 32 bytes, moved right by `by`: before they are widened, since the compiler would narrow the shift
/// again, for which there is no instruction.
///
/// # Safety
/// As [`Block`].
#[inline(always)]
unsafe fn moved(bytes: __m256i, by: usize, mask: i8) -> __m256i {
    // SAFETY: as required of the caller.
    unsafe { _mm256_and_si256(_mm256_srl_epi16(bytes, _mm_cvtsi64_si128(by as i64)), _mm256_set1_epi8(mask)) }
}

/// 32 signed bytes as 16-bit numbers.
///
/// # Safety
/// As [`Block`].
#[inline(always)]
unsafe fn widened(bytes: __m256i) -> [__m256i; 2] {
    // SAFETY: as required of the caller.
    unsafe {
        let (first, second) = (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
        [_mm256_cvtepi8_epi16(first), _mm256_cvtepi8_epi16(second)]
    }
}

struct Q4K;

impl Block for Q4K {
    const FORMAT: Format = Format::Q4K;
    const ADDENDS: bool = true;

    #[inline(always)]
    unsafe fn scales(block: *const u8, factors: &mut [f32; 16]) -> [__m256; 2] {
        // SAFETY: as required of the caller.
        unsafe { six_bit_scales(block, factors) }
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8, part: usize) -> [__m256i; 2] {
        // SAFETY: as required of the caller; two parts share their bytes.
        unsafe { widened(moved(bytes(block.add(16 + part / 2 * 32)), part % 2 * 4, 15)) }
    }
}

struct Q5K;

impl Block for Q5K {
    const FORMAT: Format = Format::Q5K;
    const ADDENDS: bool = true;

    #[inline(always)]
    unsafe fn scales(block: *const u8, factors: &mut [f32; 16]) -> [__m256; 2] {
        // SAFETY: as required of the caller.
        unsafe { six_bit_scales(block, factors) }
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8, part: usize) -> [__m256i; 2] {
        // SAFETY: as required of the caller; bit `p` of the bytes at 16 is the fifth of part `p`'s numbers.
        unsafe {
            let low = moved(bytes(block.add(48 + part / 2 * 32)), part % 2 * 4, 15);
            let fifth = moved(bytes(block.add(16)), part, 1);
            widened(_mm256_or_si256(low, _mm256_slli_epi16::<4>(fifth)))
        }
    }
}

struct Q6K;

impl Block for Q6K {
    const FORMAT: Format = Format::Q6K;

    #[inline(always)]
    unsafe fn scales(block: *const u8, factors: &mut [f32; 16]) -> [__m256; 2] {
        // SAFETY: as required of the caller; there is room for sixteen factors.
        unsafe {
            let scale = _mm256_set1_ps(half(block, 208));
            for i in [0, 8] {
                let scales = _mm256_cvtepi8_epi32(_mm_loadl_epi64(block.add(192 + i).cast()));
                _mm256_storeu_ps(factors.as_mut_ptr().add(i), _mm256_mul_ps(_mm256_cvtepi32_ps(scales), scale));
            }
            [_mm256_setzero_ps(); 2]
        }
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8, part: usize) -> [__m256i; 2] {
        // SAFETY: as required of the caller. In each half of the block the low nibbles of 64 bytes are the first 64
        // numbers', the high ones the others'; 32 bytes hold the upper two bits of each 32 numbers in turn.
        unsafe {
            let (side, quarter) = (part / 4, part % 4);
            let low = moved(bytes(block.add(side * 64 + quarter % 2 * 32)), quarter / 2 * 4, 15);
            let high = moved(bytes(block.add(128 + side * 32)), 2 * quarter, 3);
            let number = _mm256_or_si256(low, _mm256_slli_epi16::<4>(high));
            widened(_mm256_sub_epi8(number, _mm256_set1_epi8(32)))
        }
    }
}
