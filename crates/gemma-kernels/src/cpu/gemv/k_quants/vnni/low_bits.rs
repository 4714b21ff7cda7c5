//! The blocks of two and three bits a value and those of levels, with AVX-512.

use super::{Block, bits, half};
use crate::Format;
use crate::cpu::gemv::k_quants::grids::Grid;
use crate::cpu::sub_blocks::{iq4_scales, q3_scales};
use crate::format::low_bits::IQ4_LEVELS;
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// Bytes as numbers.
///
/// # Safety
/// As [`Block`].
#[inline(always)]
unsafe fn sixteen([first, second]: [u64; 2]) -> __m512i {
    // SAFETY: as required of the caller.
    unsafe { _mm512_cvtepu8_epi32(_mm_set_epi64x(second.cast_signed(), first.cast_signed())) }
}

/// Factors, and the addends that move numbers down by `offset`.
///
/// # Safety
/// As [`Block`].
#[inline(always)]
unsafe fn moved_down(scales: __m512i, scale: __m512, offset: f32) -> [__m512; 2] {
    // SAFETY: as required of the caller.
    unsafe {
        let factors = _mm512_mul_ps(_mm512_cvtepi32_ps(scales), scale);
        [factors, _mm512_mul_ps(factors, _mm512_set1_ps(-offset))]
    }
}

/// Two bits of each of 64 bytes, in four turns: those of the first 32 bytes make the first 128 numbers.
///
/// # Safety
/// As [`Block`], with the bytes readable.
#[inline(always)]
unsafe fn two_bits(from: *const u8) -> [__m512i; 4] {
    // SAFETY: as required of the caller.
    unsafe {
        let a = _mm512_broadcast_i64x4(_mm256_loadu_si256(from.cast()));
        let b = _mm512_broadcast_i64x4(_mm256_loadu_si256(from.add(32).cast()));
        [bits::<3>(a, 0, 62), bits::<3>(a, 60, 58), bits::<3>(b, 0, 62), bits::<3>(b, 60, 58)]
    }
}

pub(super) struct Q2K;

impl Block for Q2K {
    const FORMAT: Format = Format::Q2K;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> [__m512; 2] {
        // SAFETY: as required of the caller; a byte is a scale below a least value.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(block.cast()));
            let scales = _mm512_cvtepi32_ps(_mm512_and_si512(bytes, _mm512_set1_epi32(15)));
            let least = _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(bytes));
            let minus = _mm512_sub_ps(_mm512_setzero_ps(), half(block, 82));
            [_mm512_mul_ps(scales, half(block, 80)), _mm512_mul_ps(least, minus)]
        }
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8) -> [__m512i; 4] {
        // SAFETY: as required of the caller.
        unsafe { two_bits(block.add(16)) }
    }
}

pub(super) struct Q3K;

impl Block for Q3K {
    const FORMAT: Format = Format::Q3K;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> [__m512; 2] {
        // SAFETY: as required of the caller.
        unsafe {
            let scales = _mm512_sub_epi32(sixteen(q3_scales(block)), _mm512_set1_epi32(32));
            moved_down(scales, half(block, 108), 4.0)
        }
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8) -> [__m512i; 4] {
        // SAFETY: as required of the caller; bit `p` of the first 32 bytes is the third of the 32 numbers from `32 p` on.
        unsafe {
            let third = _mm512_broadcast_i64x4(_mm256_loadu_si256(block.cast()));
            let [a, b, c, d] = two_bits(block.add(32));
            [
                _mm512_or_si512(a, bits::<4>(third, 2, 1)),
                _mm512_or_si512(b, bits::<4>(third, 0, 63)),
                _mm512_or_si512(c, bits::<4>(third, 62, 61)),
                _mm512_or_si512(d, bits::<4>(third, 60, 59)),
            ]
        }
    }
}

pub(super) struct Iq4Xs;

impl Block for Iq4Xs {
    const FORMAT: Format = Format::Iq4Xs;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> [__m512; 2] {
        // SAFETY: as required of the caller.
        unsafe {
            let scales = _mm512_sub_epi32(sixteen([iq4_scales(block), 0]), _mm512_set1_epi32(32));
            moved_down(scales, half(block, 0), 128.0)
        }
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8) -> [__m512i; 4] {
        // SAFETY: as required of the caller; there are sixteen levels.
        unsafe {
            let levels = _mm512_broadcast_i32x4(_mm_loadu_si128(IQ4_LEVELS.as_ptr().cast()));
            // the sign bit flipped is 128 added
            let levels = _mm512_xor_si512(levels, _mm512_set1_epi8(-128));
            let twice = _mm512_setr_epi64(0, 1, 0, 1, 2, 3, 2, 3);
            let by = _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4);
            let mut numbers = [_mm512_setzero_si512(); 4];
            for (v, numbers) in numbers.iter_mut().enumerate() {
                // the sixteen bytes of each of two parts: their low nibbles, then their high ones
                let bytes = _mm512_castsi256_si512(_mm256_loadu_si256(block.add(8 + 32 * v).cast()));
                let nibbles = _mm512_srlv_epi64(_mm512_permutexvar_epi64(twice, bytes), by);
                *numbers = _mm512_shuffle_epi8(levels, _mm512_and_si512(nibbles, _mm512_set1_epi8(15)));
            }
            numbers
        }
    }
}

/// A format with a code book, its values moved up by 64.
pub(super) struct Signed<G>(PhantomData<G>);

impl<G: Grid> Block for Signed<G> {
    const FORMAT: Format = G::FORMAT;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> [__m512; 2] {
        // SAFETY: as required of the caller.
        unsafe {
            let scales = sixteen(G::scales(block));
            let odd = _mm512_add_epi32(_mm512_add_epi32(scales, scales), _mm512_set1_epi32(1));
            moved_down(odd, _mm512_mul_ps(half(block, 0), _mm512_set1_ps(G::UNIT)), 64.0)
        }
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8) -> [__m512i; 4] {
        // SAFETY: as required of the caller.
        unsafe {
            let middle = _mm512_set1_epi8(64);
            let mut numbers = [_mm512_setzero_si512(); 4];
            for (v, numbers) in numbers.iter_mut().enumerate() {
                let [a, b, c, d] = G::magnitudes(block, 2 * v).map(u64::cast_signed);
                let [e, f, g, h] = G::magnitudes(block, 2 * v + 1).map(u64::cast_signed);
                let magnitudes = _mm512_setr_epi64(a, b, c, d, e, f, g, h);
                let signs = u64::from(G::signs(block, 2 * v)) | u64::from(G::signs(block, 2 * v + 1)) << 32;
                *numbers = _mm512_mask_sub_epi8(_mm512_add_epi8(middle, magnitudes), signs, middle, magnitudes);
            }
            numbers
        }
    }
}
