//! The blocks of two and three bits a value and those of levels, with AVX2.

use super::{Block, bytes, half, moved, moved_down, negative};
use crate::Format;
use crate::cpu::gemv::k_quants::grids::Grid;
use crate::cpu::sub_blocks::{iq4_scales, q3_scales};
use crate::format::low_bits::IQ4_LEVELS;
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// Twice eight bytes as numbers.
///
/// # Safety
/// As [`Block`].
#[inline(always)]
unsafe fn sixteen([first, second]: [u64; 2]) -> [__m256i; 2] {
    // SAFETY: as required of the caller.
    unsafe {
        let eight = |bytes: u64| _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes.cast_signed()));
        [eight(first), eight(second)]
    }
}

pub(super) struct Q2K;

impl Block for Q2K {
    const FORMAT: Format = Format::Q2K;
    const LARGEST: u8 = 3;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> [[__m256; 2]; 2] {
        // SAFETY: as required of the caller; a byte is a scale below a least value.
        unsafe {
            let (scale, minus) = (half(block, 80), negative(half(block, 82)));
            let bytes = |i: usize| _mm256_cvtepu8_epi32(_mm_loadl_epi64(block.add(i).cast()));
            let four = _mm256_set1_epi32(15);
            let scales = |bytes| _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_and_si256(bytes, four)), scale);
            let least = |bytes| _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(bytes)), minus);
            let (first, second) = (bytes(0), bytes(8));
            [[scales(first), scales(second)], [least(first), least(second)]]
        }
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8, stretch: usize) -> __m256i {
        // SAFETY: as required of the caller; four stretches share their bytes.
        unsafe { moved(bytes(block.add(16 + stretch / 4 * 32)), stretch % 4 * 2, 3) }
    }
}

pub(super) struct Q3K;

impl Block for Q3K {
    const FORMAT: Format = Format::Q3K;
    const LARGEST: u8 = 7;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> [[__m256; 2]; 2] {
        // SAFETY: as required of the caller.
        unsafe {
            let ([first, second], middle) = (sixteen(q3_scales(block)), _mm256_set1_epi32(32));
            let scales = [_mm256_sub_epi32(first, middle), _mm256_sub_epi32(second, middle)];
            moved_down(scales, half(block, 108), 4.0)
        }
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8, stretch: usize) -> __m256i {
        // SAFETY: as required of the caller; bit `s` of the first 32 bytes is the third of stretch `s`'s numbers.
        unsafe {
            let low = moved(bytes(block.add(32 + stretch / 4 * 32)), stretch % 4 * 2, 3);
            let third = moved(bytes(block), stretch, 1);
            _mm256_or_si256(low, _mm256_slli_epi16::<2>(third))
        }
    }
}

/// Levels moved up by 128.
pub(super) struct Iq4Xs;

impl Block for Iq4Xs {
    const FORMAT: Format = Format::Iq4Xs;
    const LARGEST: u8 = 128 + IQ4_LEVELS[15] as u8;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> [[__m256; 2]; 2] {
        // SAFETY: as required of the caller.
        unsafe {
            let scales = _mm256_sub_epi32(sixteen([iq4_scales(block), 0])[0], _mm256_set1_epi32(32));
            moved_down([scales, _mm256_setzero_si256()], half(block, 0), 128.0)
        }
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8, stretch: usize) -> __m256i {
        // SAFETY: as required of the caller; there are sixteen levels.
        unsafe {
            let both = _mm_loadu_si128(block.add(8 + 16 * stretch).cast());
            let nibbles = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(both), _mm_srli_epi16::<4>(both));
            let levels = _mm256_broadcastsi128_si256(_mm_loadu_si128(IQ4_LEVELS.as_ptr().cast()));
            let levels = _mm256_shuffle_epi8(levels, _mm256_and_si256(nibbles, _mm256_set1_epi8(15)));
            _mm256_xor_si256(levels, _mm256_set1_epi8(-128))
        }
    }
}

/// A format with a code book, its values moved up by 64.
pub(super) struct Signed<G>(PhantomData<G>);

impl<G: Grid> Block for Signed<G> {
    const FORMAT: Format = G::FORMAT;
    const LARGEST: u8 = 127;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> [[__m256; 2]; 2] {
        // SAFETY: as required of the caller.
        unsafe {
            let [first, second] = sixteen(G::scales(block));
            let odd = |scales| _mm256_add_epi32(_mm256_add_epi32(scales, scales), _mm256_set1_epi32(1));
            moved_down([odd(first), odd(second)], _mm256_mul_ps(half(block, 0), _mm256_set1_ps(G::UNIT)), 64.0)
        }
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8, stretch: usize) -> __m256i {
        // SAFETY: as required of the caller.
        unsafe {
            let [a, b, c, d] = G::magnitudes(block, stretch).map(u64::cast_signed);
            let magnitudes = _mm256_setr_epi64x(a, b, c, d);
            // each byte gets the eight signs that its own is among
            let signs = _mm256_set1_epi32(G::signs(block, stretch).cast_signed());
            let eights = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
            let own = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
            let set = _mm256_and_si256(_mm256_shuffle_epi8(signs, eights), own);
            let negative = _mm256_cmpeq_epi8(set, own);
            let signed = _mm256_sub_epi8(_mm256_xor_si256(magnitudes, negative), negative);
            _mm256_add_epi8(signed, _mm256_set1_epi8(64))
        }
    }
}
