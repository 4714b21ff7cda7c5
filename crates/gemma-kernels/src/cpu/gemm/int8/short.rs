//! With the VNNI of AVX.

use super::{BLOCK, DEPTH, PANEL_ROW, Tile, Unit, record};
use crate::cpu::isa::Avx2;
use crate::cpu::quantize::Bytes;
use std::arch::x86_64::*;

/// AVX with VNNI of its own: eight tokens in a vector.
pub(super) struct Short;

impl Unit for Short {
    type Lanes = Avx2;
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn quantize(x: &[f32; BLOCK], limit: f32) -> Bytes {
        // SAFETY: as required of the caller.
        unsafe { Bytes::with_avx2(x, limit) }
    }

    #[inline(always)]
    unsafe fn multiply<const V: usize, const FINE: bool>(tile: &Tile) {
        // SAFETY: as required of the caller.
        unsafe { tile.short::<V, FINE>() };
    }
}

impl Tile {
    /// As `long` in vectors of half the length. There are half as many of them, too, so the sums stay in memory.
    ///
    /// # Safety
    /// All that the fields name must be there, and the CPU must have the instructions.
    #[inline]
    #[target_feature(enable = "avxvnni,avx2,fma")]
    unsafe fn short<const V: usize, const FINE: bool>(&self) {
        const ROWS: usize = Short::ROWS;
        // SAFETY: as required of the caller.
        unsafe {
            for b in 0..self.blocks {
                let record = self.records.add(b * record::<Short>(FINE));
                let mut starts = [_mm256_setzero_si256(); V];
                for (v, start) in starts.iter_mut().enumerate() {
                    *start = _mm256_load_si256(record.add(8 * v).cast());
                }
                let panel = self.panel.add(b * BLOCK);
                let low = record.add(2 * Short::WIDTH);
                let mut exact = [starts; ROWS];
                if FINE {
                    exact = [[_mm256_setzero_si256(); V]; ROWS];
                    short_products::<V>(&mut exact, panel, low.add(Short::PLANE));
                    for exact in &mut exact {
                        for (exact, start) in exact.iter_mut().zip(starts) {
                            *exact = _mm256_add_epi32(_mm256_slli_epi32::<8>(*exact), start);
                        }
                    }
                }
                short_products::<V>(&mut exact, panel, low);
                self.add_scaled(b, record, exact);
            }
        }
    }

    /// Adds the exact sums of a block of columns, times the scales of both sides, to the sums.
    ///
    /// # Safety
    /// All that the fields name must be there, `record` must be that of the block, and the CPU must have the instructions.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn add_scaled<const V: usize>(
        &self,
        block: usize,
        record: *const f32,
        exact: [[__m256i; V]; Short::ROWS],
    ) {
        let replace = block == 0 && !self.add;
        // SAFETY: as required of the caller.
        unsafe {
            for (r, exact) in exact.into_iter().enumerate() {
                let scale = _mm256_set1_ps(*self.scales.add(r * DEPTH + block));
                for (v, exact) in exact.into_iter().enumerate() {
                    let to = self.sums.add(r * self.row + 8 * v);
                    let before = if replace { _mm256_setzero_ps() } else { _mm256_loadu_ps(to) };
                    let scale = _mm256_mul_ps(scale, _mm256_load_ps(record.add(Short::WIDTH + 8 * v)));
                    _mm256_storeu_ps(to, _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), scale, before));
                }
            }
        }
    }
}

/// Adds the products of a block of columns: rows of bytes times a plane of activations.
///
/// # Safety
/// As [`Tile::short`].
#[inline]
#[target_feature(enable = "avxvnni,avx2")]
unsafe fn short_products<const V: usize>(exact: &mut [[__m256i; V]; Short::ROWS], panel: *const u8, plane: *const f32) {
    for four in 0..BLOCK / 4 {
        // SAFETY: as required of the caller.
        unsafe {
            let plane = plane.add(four * Short::WIDTH);
            let mut x = [_mm256_setzero_si256(); V];
            for (v, x) in x.iter_mut().enumerate() {
                *x = _mm256_load_si256(plane.add(8 * v).cast());
            }
            for (r, exact) in exact.iter_mut().enumerate() {
                let weights = panel.add(r * PANEL_ROW + 4 * four).cast::<i32>().read_unaligned();
                let weights = _mm256_set1_epi32(weights);
                for (exact, x) in exact.iter_mut().zip(x) {
                    *exact = _mm256_dpbusd_avx_epi32(*exact, weights, x);
                }
            }
        }
    }
}
