//! Bytes with AVX: with its VNNI, or with AVX2 alone.

use super::short::{Dot, Exact, ROWS, WIDTH};
use super::{BLOCK, PANEL_ROW};
use crate::cpu::isa::Avx2;
use crate::cpu::quantize::{Bytes, COARSE};
use std::arch::x86_64::*;

// SAFETY (for every block below): `Exact` demands the instruction set and readable pointers of its callers.
#[allow(clippy::undocumented_unsafe_blocks, reason = "said once, above")]
impl Exact for __m256i {
    type Lanes = Avx2;

    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self {
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn shifted_add(self, other: Self) -> Self {
        unsafe { _mm256_add_epi32(_mm256_slli_epi32::<8>(self), other) }
    }

    #[inline(always)]
    unsafe fn to_f32(self) -> Avx2 {
        unsafe { Avx2::from(_mm256_cvtepi32_ps(self)) }
    }

    #[inline(always)]
    unsafe fn quantize(x: &[f32; BLOCK], limit: f32) -> Bytes {
        unsafe { Bytes::with_avx2(x, limit) }
    }
}

/// A [`Dot`] of one instruction, `$dpbusd`.
macro_rules! vnni {
    ($(#[$about:meta])* $name:ident, $dpbusd:ident) => {
        $(#[$about])*
        pub(super) struct $name;

        impl Dot for $name {
            type Exact = __m256i;

            #[inline(always)]
            unsafe fn add<const V: usize, const PARTS: usize>(
                exact: &mut [[__m256i; V]; ROWS],
                panel: *const u8,
                plane: *const f32,
                _largest: u8,
            ) {
                for four in 0..BLOCK / 4 / PARTS {
                    // SAFETY: as required of the caller.
                    unsafe {
                        let x = tokens::<V>(plane, four);
                        for (r, exact) in exact.iter_mut().enumerate() {
                            let weights = weights(panel, r, four);
                            for (exact, x) in exact.iter_mut().zip(x) {
                                *exact = $dpbusd(*exact, weights, x);
                            }
                        }
                    }
                }
            }
        }
    };
}

vnni! {
    /// AVX with VNNI of its own.
    Vnni, _mm256_dpbusd_avx_epi32
}

#[cfg(test)]
vnni! {
    /// The same instruction as CPUs with AVX-512 have it, which are many more: for tests.
    Evex, _mm256_dpbusd_epi32
}

/// Four bytes of each token.
///
/// # Safety
/// As [`Dot::add`].
#[inline(always)]
unsafe fn tokens<const V: usize>(plane: *const f32, four: usize) -> [__m256i; V] {
    // SAFETY: as required of the caller.
    unsafe {
        let mut x = [_mm256_setzero_si256(); V];
        for (v, x) in x.iter_mut().enumerate() {
            *x = _mm256_load_si256(plane.add(four * WIDTH + 8 * v).cast());
        }
        x
    }
}

/// Four bytes of a row, in every lane.
///
/// # Safety
/// As [`Dot::add`].
#[inline(always)]
unsafe fn weights(panel: *const u8, row: usize, four: usize) -> __m256i {
    // SAFETY: as required of the caller.
    unsafe { _mm256_set1_epi32(panel.add(row * PANEL_ROW + 4 * four).cast::<i32>().read_unaligned()) }
}

/// In pairs, whose sums have 16 bits and are added as long as they fit before they are widened: weights below 128, and activations of
/// 8 bits.
pub(super) struct Pairs;

impl Pairs {
    /// Whether the products of two weights, neither larger than this, with activations fit.
    pub(super) const fn fit(largest: u8) -> bool {
        largest < 128
    }
}

impl Dot for Pairs {
    type Exact = __m256i;

    #[inline(always)]
    unsafe fn add<const V: usize, const PARTS: usize>(
        exact: &mut [[__m256i; V]; ROWS],
        panel: *const u8,
        plane: *const f32,
        largest: u8,
    ) {
        // SAFETY: as required of the caller.
        unsafe {
            match largest {
                0..16 => pairs::<V, PARTS, 8, 15>(exact, panel, plane),
                16..32 => pairs::<V, PARTS, 4, 31>(exact, panel, plane),
                32..64 => pairs::<V, PARTS, 2, 63>(exact, panel, plane),
                _ => pairs::<V, PARTS, 1, 127>(exact, panel, plane),
            }
        }
    }
}

/// `ADDED` products of pairs of numbers up to `LARGEST` are added before they are widened.
///
/// # Safety
/// As [`Dot::add`].
#[inline(always)]
unsafe fn pairs<const V: usize, const PARTS: usize, const ADDED: usize, const LARGEST: usize>(
    exact: &mut [[__m256i; V]; ROWS],
    panel: *const u8,
    plane: *const f32,
) {
    const {
        assert!(ADDED * 2 * LARGEST * COARSE as usize <= i16::MAX as usize, "16 bits");
        assert!(ROWS.is_multiple_of(2), "pairs of rows");
    };
    let fours = BLOCK / 4 / PARTS;
    let step = ADDED.min(fours);
    for four in (0..fours).step_by(step) {
        // SAFETY: as required of the caller.
        unsafe {
            let (panel, plane) = (panel.add(4 * four), plane.add(four * WIDTH));
            if step == fours {
                some_rows::<V, ROWS>(exact, panel, plane, step);
            } else {
                // where sums are widened more than once, there are no registers for those of all rows
                for (pair, exact) in exact.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    some_rows::<V, 2>(exact, panel.add(2 * pair * PANEL_ROW), plane, step);
                }
            }
        }
    }
}

/// The first `fours` products of pairs of each of `R` rows.
///
/// # Safety
/// As [`Dot::add`].
#[inline(always)]
unsafe fn some_rows<const V: usize, const R: usize>(
    exact: &mut [[__m256i; V]; R],
    panel: *const u8,
    plane: *const f32,
    fours: usize,
) {
    // SAFETY: as required of the caller.
    unsafe {
        let mut pairs = [[_mm256_setzero_si256(); V]; R];
        for four in 0..fours {
            let x = tokens::<V>(plane, four);
            for (r, pairs) in pairs.iter_mut().enumerate() {
                let weights = weights(panel, r, four);
                for (pairs, x) in pairs.iter_mut().zip(x) {
                    *pairs = _mm256_add_epi16(*pairs, _mm256_maddubs_epi16(weights, x));
                }
            }
        }
        for (exact, pairs) in exact.iter_mut().zip(pairs) {
            for (exact, pairs) in exact.iter_mut().zip(pairs) {
                *exact = _mm256_add_epi32(*exact, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
            }
        }
    }
}
