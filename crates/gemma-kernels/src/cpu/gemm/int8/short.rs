//! Tiles of eight tokens in a vector, the longest one of AVX and a pair of NEON's.

use super::{BLOCK, SCALES, Tile, Unit, plane, record};
use crate::cpu::isa::Lanes;
use crate::cpu::quantize::Bytes;
use std::marker::PhantomData;

/// Rows of a register tile.
pub(super) const ROWS: usize = 4;
/// Tokens of a packed block.
pub(super) const WIDTH: usize = 2 * 8;

/// Eight tokens in a vector.
pub(super) struct Short<D>(PhantomData<D>);

/// Eight integers.
///
/// # Safety
/// Every method requires the CPU's instructions, and is expanded in a function that has them.
pub(super) trait Exact: Copy {
    /// As many f32.
    type Lanes: Lanes;

    unsafe fn zero() -> Self;

    unsafe fn load(from: *const i32) -> Self;

    /// `256 self + other`.
    unsafe fn shifted_add(self, other: Self) -> Self;

    unsafe fn to_f32(self) -> Self::Lanes;

    /// What [`Bytes::new`] makes of a block.
    unsafe fn quantize(x: &[f32; BLOCK], limit: f32) -> Bytes;
}

/// How products of bytes are added, four to a lane.
pub(super) trait Dot {
    type Exact: Exact;

    /// Adds the products of one of `PARTS` parts of a block of columns: rows of bytes, none larger than `largest`, times a plane of
    /// activations.
    ///
    /// # Safety
    /// All of that must be there, and the CPU must have the instructions, with which this is expanded.
    unsafe fn add<const V: usize, const PARTS: usize>(
        exact: &mut [[Self::Exact; V]; ROWS],
        panel: *const u8,
        plane: *const f32,
        largest: u8,
    );
}

impl<D: Dot> Unit for Short<D> {
    type Lanes = <D::Exact as Exact>::Lanes;
    const ROWS: usize = ROWS;

    #[inline(always)]
    unsafe fn quantize(x: &[f32; BLOCK], limit: f32) -> Bytes {
        // SAFETY: as required of the caller.
        unsafe { D::Exact::quantize(x, limit) }
    }

    /// There are half as many registers as for `long`, so the sums stay in memory.
    #[inline(always)]
    unsafe fn multiply<const V: usize, const FINE: bool, const PARTS: usize, const ADDENDS: bool>(tile: &Tile) {
        const { assert!(Self::WIDTH == WIDTH) };
        // SAFETY: as required of the caller.
        unsafe {
            for b in 0..tile.blocks {
                let record = tile.records.add(b * record::<Self>(FINE, PARTS));
                for part in 0..PARTS {
                    let of_tokens = record.add(part * WIDTH);
                    // loops, since closures that are handed on do not have the instructions
                    let mut starts = [D::Exact::zero(); V];
                    if !ADDENDS {
                        for (v, start) in starts.iter_mut().enumerate() {
                            *start = D::Exact::load(of_tokens.add(8 * v).cast());
                        }
                    }
                    let panel = tile.panel.add(b * BLOCK + part * (BLOCK / PARTS));
                    let low = record.add(plane::<Self>(PARTS) + part * (Self::PLANE / PARTS));
                    let mut exact = [starts; ROWS];
                    if FINE {
                        exact = [[D::Exact::zero(); V]; ROWS];
                        D::add::<V, PARTS>(&mut exact, panel, low.add(Self::PLANE), tile.largest);
                        for exact in &mut exact {
                            for (exact, start) in exact.iter_mut().zip(starts) {
                                *exact = exact.shifted_add(start);
                            }
                        }
                    }
                    D::add::<V, PARTS>(&mut exact, panel, low, tile.largest);
                    let (at, scales) = (b * PARTS + part, record.add(PARTS * WIDTH));
                    let replace = at == 0 && !tile.add;
                    for (r, exact) in exact.into_iter().enumerate() {
                        let scale = Self::Lanes::splat(*tile.scales.add(r * SCALES + at));
                        for (v, exact) in exact.into_iter().enumerate() {
                            let to = tile.sums.add(r * tile.row + 8 * v);
                            let mut sum = if replace { Self::Lanes::splat(0.0) } else { Self::Lanes::load(to) };
                            if ADDENDS {
                                let addend = Self::Lanes::splat(*tile.addends.add(r * SCALES + at));
                                sum = Self::Lanes::load(of_tokens.add(8 * v)).mul_add(addend, sum);
                            }
                            let scale = Self::Lanes::load(scales.add(8 * v)).mul(scale);
                            exact.to_f32().mul_add(scale, sum).store(to);
                        }
                    }
                }
            }
        }
    }
}
