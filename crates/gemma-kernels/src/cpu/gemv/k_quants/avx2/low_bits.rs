//! The blocks of two and three bits a value and those of levels, with AVX2.

use super::{Block, bytes, moved, widened};
use crate::Format;
use crate::cpu::gemv::k_quants::grids::Grid;
use crate::cpu::gemv::row::levels;
use crate::cpu::sub_blocks::{half, iq4_scales, q3_scales};
use crate::format::low_bits::IQ4_LEVELS;
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// Eight bytes as numbers.
///
/// # Safety
/// As [`Block`].
#[inline(always)]
unsafe fn eight(bytes: u64) -> __m256i {
    // SAFETY: as required of the caller.
    unsafe { _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes.cast_signed())) }
}

/// Writes factors and returns them.
///
/// # Safety
/// As [`Block`].
#[inline(always)]
unsafe fn scaled(scales: __m256i, scale: f32, factors: &mut [f32]) {
    // SAFETY: as required of the caller.
    unsafe {
        let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(scales), _mm256_set1_ps(scale));
        _mm256_storeu_ps(factors[..8].as_mut_ptr(), scaled);
    }
}

pub(super) struct Q2K;

impl Block for Q2K {
    const FORMAT: Format = Format::Q2K;
    const ADDENDS: bool = true;

    #[inline(always)]
    unsafe fn scales(block: *const u8, factors: &mut [f32; 16]) -> [__m256; 2] {
        // SAFETY: as required of the caller; a byte is a scale below a least value.
        unsafe {
            let (scale, least) = (half(block, 80), _mm256_set1_ps(-half(block, 82)));
            let mut addends = [_mm256_setzero_ps(); 2];
            for (i, addends) in addends.iter_mut().enumerate() {
                let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(block.add(8 * i).cast()));
                scaled(_mm256_and_si256(bytes, _mm256_set1_epi32(15)), scale, &mut factors[8 * i..]);
                *addends = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(bytes)), least);
            }
            addends
        }
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8, part: usize) -> [__m256i; 2] {
        // SAFETY: as required of the caller; four parts of 32 share their bytes.
        unsafe { widened(moved(bytes(block.add(16 + part / 4 * 32)), part % 4 * 2, 3)) }
    }
}

pub(super) struct Q3K;

impl Block for Q3K {
    const FORMAT: Format = Format::Q3K;

    #[inline(always)]
    unsafe fn scales(block: *const u8, factors: &mut [f32; 16]) -> [__m256; 2] {
        // SAFETY: as required of the caller.
        unsafe {
            let scale = half(block, 108);
            for (scales, factors) in q3_scales(block).into_iter().zip(factors.chunks_exact_mut(8)) {
                scaled(_mm256_sub_epi32(eight(scales), _mm256_set1_epi32(32)), scale, factors);
            }
            [_mm256_setzero_ps(); 2]
        }
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8, part: usize) -> [__m256i; 2] {
        // SAFETY: as required of the caller; bit `p` of the first 32 bytes is the third of part `p`'s numbers.
        unsafe {
            let low = moved(bytes(block.add(32 + part / 4 * 32)), part % 4 * 2, 3);
            let third = moved(bytes(block), part, 1);
            let number = _mm256_or_si256(low, _mm256_slli_epi16::<2>(third));
            widened(_mm256_sub_epi8(number, _mm256_set1_epi8(4)))
        }
    }
}

pub(super) struct Iq4Xs;

impl Block for Iq4Xs {
    const FORMAT: Format = Format::Iq4Xs;

    #[inline(always)]
    unsafe fn scales(block: *const u8, factors: &mut [f32; 16]) -> [__m256; 2] {
        // SAFETY: as required of the caller.
        unsafe {
            let scales = _mm256_sub_epi32(eight(iq4_scales(block)), _mm256_set1_epi32(32));
            scaled(scales, half(block, 0), factors);
            [_mm256_setzero_ps(); 2]
        }
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8, part: usize) -> [__m256i; 2] {
        // SAFETY: as required of the caller.
        unsafe { levels(block.add(8 + 16 * part), &IQ4_LEVELS) }
    }
}

/// A format with a code book.
pub(super) struct Signed<G>(PhantomData<G>);

impl<G: Grid> Block for Signed<G> {
    const FORMAT: Format = G::FORMAT;

    #[inline(always)]
    unsafe fn scales(block: *const u8, factors: &mut [f32; 16]) -> [__m256; 2] {
        // SAFETY: as required of the caller.
        unsafe {
            let scale = half(block, 0) * G::UNIT;
            for (scales, factors) in G::scales(block).into_iter().zip(factors.chunks_exact_mut(8)) {
                let scales = eight(scales);
                let odd = _mm256_add_epi32(_mm256_add_epi32(scales, scales), _mm256_set1_epi32(1));
                scaled(odd, scale, factors);
            }
            [_mm256_setzero_ps(); 2]
        }
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8, part: usize) -> [__m256i; 2] {
        // SAFETY: as required of the caller.
        unsafe {
            let [a, b, c, d] = G::magnitudes(block, part).map(u64::cast_signed);
            let magnitudes = _mm256_setr_epi64x(a, b, c, d);
            // each byte gets the eight signs that its own is among
            let signs = _mm256_set1_epi32(G::signs(block, part).cast_signed());
            let eights = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
            let own = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
            let set = _mm256_and_si256(_mm256_shuffle_epi8(signs, eights), own);
            let negative = _mm256_cmpeq_epi8(set, own);
            widened(_mm256_sub_epi8(_mm256_xor_si256(magnitudes, negative), negative))
        }
    }
}
