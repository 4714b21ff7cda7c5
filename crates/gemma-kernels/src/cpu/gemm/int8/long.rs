//! With the VNNI of AVX-512.

use super::{BLOCK, PANEL_ROW, SCALES, Tile, Unit, plane, record};
use crate::cpu::isa::Avx512;
use crate::cpu::quantize::Bytes;
use std::arch::x86_64::*;

/// AVX-512: sixteen tokens in a vector.
pub(super) struct Long;

impl Unit for Long {
    type Lanes = Avx512;
    const ROWS: usize = 6;

    #[inline(always)]
    unsafe fn quantize(x: &[f32; BLOCK], limit: f32) -> Bytes {
        // SAFETY: as required of the caller.
        unsafe { Bytes::with_avx512(x, limit) }
    }

    #[inline(always)]
    unsafe fn multiply<const V: usize, const FINE: bool, const PARTS: usize, const ADDENDS: bool>(tile: &Tile) {
        // SAFETY: as required of the caller.
        unsafe { tile.long::<V, FINE, PARTS, ADDENDS>() };
    }
}

impl Tile {
    /// # Safety
    /// All that the fields name must be there, and the CPU must have the instructions.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn long<const V: usize, const FINE: bool, const PARTS: usize, const ADDENDS: bool>(&self) {
        const ROWS: usize = Long::ROWS;
        // SAFETY: as required of the caller.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); V]; ROWS];
            for b in 0..self.blocks {
                let record = self.records.add(b * record::<Long>(FINE, PARTS));
                // loops, since closures that are handed on do not have the instructions
                let mut scales = [_mm512_setzero_ps(); V];
                for (v, scale) in scales.iter_mut().enumerate() {
                    *scale = _mm512_load_ps(record.add(PARTS * Long::WIDTH + 16 * v));
                }
                for part in 0..PARTS {
                    let of_tokens = record.add(part * Long::WIDTH);
                    let mut starts = [_mm512_setzero_si512(); V];
                    if !ADDENDS {
                        for (v, start) in starts.iter_mut().enumerate() {
                            *start = _mm512_load_si512(of_tokens.add(16 * v).cast());
                        }
                    }
                    let panel = self.panel.add(b * BLOCK + part * (BLOCK / PARTS));
                    let low = record.add(plane::<Long>(PARTS) + part * (Long::PLANE / PARTS));
                    let mut exact = [starts; ROWS];
                    if FINE {
                        exact = [[_mm512_setzero_si512(); V]; ROWS];
                        long_products::<V, PARTS>(&mut exact, panel, low.add(Long::PLANE));
                        for exact in &mut exact {
                            for (exact, start) in exact.iter_mut().zip(starts) {
                                *exact = _mm512_add_epi32(_mm512_slli_epi32::<8>(*exact), start);
                            }
                        }
                    }
                    long_products::<V, PARTS>(&mut exact, panel, low);
                    let at = b * PARTS + part;
                    for (r, (sums, exact)) in sums.iter_mut().zip(exact).enumerate() {
                        let scale = _mm512_set1_ps(*self.scales.add(r * SCALES + at));
                        for (v, sum) in sums.iter_mut().enumerate() {
                            *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact[v]), _mm512_mul_ps(scale, scales[v]), *sum);
                        }
                    }
                    if ADDENDS {
                        let mut of_x = [_mm512_setzero_ps(); V];
                        for (v, of_x) in of_x.iter_mut().enumerate() {
                            *of_x = _mm512_load_ps(of_tokens.add(16 * v));
                        }
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let addend = _mm512_set1_ps(*self.addends.add(r * SCALES + at));
                            for (sum, of_x) in sums.iter_mut().zip(of_x) {
                                *sum = _mm512_fmadd_ps(addend, of_x, *sum);
                            }
                        }
                    }
                }
            }
            for (r, sums) in sums.into_iter().enumerate() {
                for (v, sum) in sums.into_iter().enumerate() {
                    let to = self.sums.add(r * self.row + 16 * v);
                    let sum = if self.add { _mm512_add_ps(sum, _mm512_loadu_ps(to)) } else { sum };
                    _mm512_storeu_ps(to, sum);
                }
            }
        }
    }
}

/// Adds the products of one of `PARTS` parts of a block of columns: rows of bytes times a plane of activations.
///
/// # Safety
/// As [`Tile::long`].
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn long_products<const V: usize, const PARTS: usize>(
    exact: &mut [[__m512i; V]; Long::ROWS],
    panel: *const u8,
    plane: *const f32,
) {
    for four in 0..BLOCK / 4 / PARTS {
        // SAFETY: as required of the caller.
        unsafe {
            let plane = plane.add(four * Long::WIDTH);
            let mut x = [_mm512_setzero_si512(); V];
            for (v, x) in x.iter_mut().enumerate() {
                *x = _mm512_load_si512(plane.add(16 * v).cast());
            }
            for (r, exact) in exact.iter_mut().enumerate() {
                let weights = panel.add(r * PANEL_ROW + 4 * four).cast::<i32>().read_unaligned();
                let weights = _mm512_set1_epi32(weights);
                for (exact, x) in exact.iter_mut().zip(x) {
                    *exact = _mm512_dpbusd_epi32(*exact, weights, x);
                }
            }
        }
    }
}
