//! With AVX2, which multiplies bytes in pairs whose sums have 16 bits: weights of four bits.
//!
//! The eight pairs of a block are at most 8 · 2 · 15 · 127, so they are added before they are widened.

use super::short::Short;
use super::{BLOCK, PANEL_ROW, Tile, Unit, record};
use crate::cpu::isa::Avx2;
use crate::cpu::quantize::{Bytes, COARSE};
use std::arch::x86_64::*;

const _: () = assert!(BLOCK as i32 / 4 * 2 * 15 * COARSE as i32 <= i16::MAX as i32, "a block's pairs fit");

/// Eight tokens in a vector, activations of 8 bits.
pub(super) struct Nibbles;

impl Unit for Nibbles {
    type Lanes = Avx2;
    const ROWS: usize = Short::ROWS;

    #[inline(always)]
    unsafe fn quantize(x: &[f32; BLOCK], limit: f32) -> Bytes {
        // SAFETY: as required of the caller.
        unsafe { Bytes::with_avx2(x, limit) }
    }

    #[inline(always)]
    unsafe fn multiply<const V: usize, const FINE: bool>(tile: &Tile) {
        // SAFETY: as required of the caller.
        unsafe { tile.nibbles::<V>() };
    }
}

impl Tile {
    /// The sums stay in memory: the registers are for those of pairs.
    ///
    /// # Safety
    /// All that the fields name must be there, and the CPU must have the instructions.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn nibbles<const V: usize>(&self) {
        // SAFETY: as required of the caller.
        unsafe {
            for b in 0..self.blocks {
                let record = self.records.add(b * record::<Nibbles>(false));
                let (panel, plane) = (self.panel.add(b * BLOCK), record.add(2 * Nibbles::WIDTH));
                let mut exact = products::<V>(panel, plane);
                for exact in &mut exact {
                    for (v, exact) in exact.iter_mut().enumerate() {
                        *exact = _mm256_add_epi32(*exact, _mm256_load_si256(record.add(8 * v).cast()));
                    }
                }
                self.add_scaled(b, record, exact);
            }
        }
    }
}

/// The products of a block of columns: rows of numbers below 16 times a plane of activations.
///
/// # Safety
/// As [`Tile::nibbles`].
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn products<const V: usize>(panel: *const u8, plane: *const f32) -> [[__m256i; V]; Nibbles::ROWS] {
    let mut pairs = [[_mm256_setzero_si256(); V]; Nibbles::ROWS];
    for four in 0..BLOCK / 4 {
        // SAFETY: as required of the caller.
        unsafe {
            let plane = plane.add(four * Nibbles::WIDTH);
            let mut x = [_mm256_setzero_si256(); V];
            for (v, x) in x.iter_mut().enumerate() {
                *x = _mm256_load_si256(plane.add(8 * v).cast());
            }
            for (r, pairs) in pairs.iter_mut().enumerate() {
                let weights = panel.add(r * PANEL_ROW + 4 * four).cast::<i32>().read_unaligned();
                let weights = _mm256_set1_epi32(weights);
                for (pairs, x) in pairs.iter_mut().zip(x) {
                    *pairs = _mm256_add_epi16(*pairs, _mm256_maddubs_epi16(weights, x));
                }
            }
        }
    }
    let one = _mm256_set1_epi16(1);
    for pairs in pairs.iter_mut().flatten() {
        *pairs = _mm256_madd_epi16(*pairs, one);
    }
    pairs
}
