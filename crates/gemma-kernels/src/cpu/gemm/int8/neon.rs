//! Bytes with NEON's dot products.

use super::short::{Dot, Exact, ROWS, WIDTH};
use super::{BLOCK, PANEL_ROW};
use crate::cpu::isa::{Neon, dot_lane};
use crate::cpu::quantize::Bytes;
use std::arch::aarch64::*;

/// Two registers of four numbers.
#[derive(Clone, Copy)]
pub(super) struct Eight(int32x4_t, int32x4_t);

// SAFETY (for every block below): `Exact` demands the instruction set and readable pointers of its callers.
#[allow(clippy::undocumented_unsafe_blocks, reason = "said once, above")]
impl Exact for Eight {
    type Lanes = Neon;

    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { Self(vdupq_n_s32(0), vdupq_n_s32(0)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self {
        unsafe { Self(vld1q_s32(from), vld1q_s32(from.add(4))) }
    }

    #[inline(always)]
    unsafe fn shifted_add(self, other: Self) -> Self {
        unsafe { Self(vaddq_s32(vshlq_n_s32::<8>(self.0), other.0), vaddq_s32(vshlq_n_s32::<8>(self.1), other.1)) }
    }

    #[inline(always)]
    unsafe fn to_f32(self) -> Neon {
        unsafe { Neon::from([vcvtq_f32_s32(self.0), vcvtq_f32_s32(self.1)]) }
    }

    #[inline(always)]
    unsafe fn quantize(x: &[f32; BLOCK], limit: f32) -> Bytes {
        Bytes::new(x, limit)
    }
}

/// Signed bytes, four of a row and four of each token at a time.
pub(super) struct Signed;

impl Dot for Signed {
    type Exact = Eight;

    #[inline(always)]
    unsafe fn add<const V: usize, const PARTS: usize>(
        exact: &mut [[Eight; V]; ROWS],
        panel: *const u8,
        plane: *const f32,
        _largest: u8,
    ) {
        for sixteen in 0..BLOCK / 16 / PARTS {
            // SAFETY: as required of the caller.
            unsafe {
                let mut weights = [vdupq_n_s8(0); ROWS];
                for (r, weights) in weights.iter_mut().enumerate() {
                    *weights = vld1q_s8(panel.add(r * PANEL_ROW + 16 * sixteen).cast());
                }
                let plane = plane.add(4 * sixteen * WIDTH);
                quarter::<V, 0>(exact, weights, plane);
                quarter::<V, 1>(exact, weights, plane);
                quarter::<V, 2>(exact, weights, plane);
                quarter::<V, 3>(exact, weights, plane);
            }
        }
    }
}

/// The products of bytes `4 Q` to `4 Q + 4` of sixteen.
///
/// # Safety
/// As [`Dot::add`].
#[inline(always)]
unsafe fn quarter<const V: usize, const Q: i32>(
    exact: &mut [[Eight; V]; ROWS],
    weights: [int8x16_t; ROWS],
    plane: *const f32,
) {
    for v in 0..V {
        // SAFETY: as required of the caller.
        unsafe {
            let at = plane.add(Q as usize * WIDTH + 8 * v).cast::<i8>();
            let x = [vld1q_s8(at), vld1q_s8(at.add(16))];
            for (exact, weights) in exact.iter_mut().zip(weights) {
                let Eight(first, second) = &mut exact[v];
                *first = dot_lane::<Q>(*first, x[0], weights);
                *second = dot_lane::<Q>(*second, x[1], weights);
            }
        }
    }
}
