//! The blocks of two and three bits a value and those of levels, with NEON.

use super::{Block, moved};
use crate::Format;
use crate::cpu::gemv::k_quants::grids::Grid;
use crate::cpu::gemv::row::levels;
use crate::cpu::sub_blocks::{half, iq4_scales, q3_scales};
use crate::format::low_bits::IQ4_LEVELS;
use std::arch::aarch64::*;
use std::marker::PhantomData;

/// The sixteen bytes of two words, each made a factor.
#[inline(always)]
fn factors(bytes: [u64; 2], factor: impl Fn(u8) -> f32) -> [f32; 16] {
    std::array::from_fn(|i| factor((bytes[i / 8] >> (i % 8 * 8)) as u8))
}

pub(super) struct Q2K;

impl Block for Q2K {
    const FORMAT: Format = Format::Q2K;
    const ADDENDS: bool = true;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> ([f32; 16], [f32; 16]) {
        // SAFETY: as required of the caller; a byte is a scale below a least value.
        let (bytes, scale, least) = unsafe { (block.cast::<[u8; 16]>().read(), half(block, 80), half(block, 82)) };
        (bytes.map(|byte| scale * f32::from(byte & 15)), bytes.map(|byte| -least * f32::from(byte >> 4)))
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8, part: usize) -> [int8x16_t; 2] {
        // SAFETY: as required of the caller; four parts of 32 share their bytes.
        unsafe {
            let (from, by) = (block.add(16 + part / 4 * 32), (part % 4 * 2) as i8);
            [moved(from, by, 3), moved(from.add(16), by, 3)].map(|numbers| vreinterpretq_s8_u8(numbers))
        }
    }
}

pub(super) struct Q3K;

impl Block for Q3K {
    const FORMAT: Format = Format::Q3K;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> ([f32; 16], [f32; 16]) {
        // SAFETY: as required of the caller.
        let (scales, scale) = unsafe { (q3_scales(block), half(block, 108)) };
        (factors(scales, |s| scale * (f32::from(s) - 32.0)), [0.0; 16])
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8, part: usize) -> [int8x16_t; 2] {
        // SAFETY: as required of the caller; bit `p` of the first 32 bytes is the third of part `p`'s numbers.
        unsafe {
            let (from, by) = (block.add(32 + part / 4 * 32), (part % 4 * 2) as i8);
            let number = |low: *const u8, third: *const u8| {
                let number = vorrq_u8(moved(low, by, 3), moved(third, part as i8 - 2, 4));
                vsubq_s8(vreinterpretq_s8_u8(number), vdupq_n_s8(4))
            };
            [number(from, block), number(from.add(16), block.add(16))]
        }
    }
}

pub(super) struct Iq4Xs;

impl Block for Iq4Xs {
    const FORMAT: Format = Format::Iq4Xs;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> ([f32; 16], [f32; 16]) {
        // SAFETY: as required of the caller.
        let (scales, scale) = unsafe { (iq4_scales(block), half(block, 0)) };
        (factors([scales, 0], |s| scale * (f32::from(s) - 32.0)), [0.0; 16])
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8, part: usize) -> [int8x16_t; 2] {
        // SAFETY: as required of the caller.
        unsafe { levels(block.add(8 + 16 * part), &IQ4_LEVELS) }
    }
}

/// A format with a code book.
pub(super) struct Signed<G>(PhantomData<G>);

impl<G: Grid> Block for Signed<G> {
    const FORMAT: Format = G::FORMAT;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> ([f32; 16], [f32; 16]) {
        // SAFETY: as required of the caller.
        let (scales, scale) = unsafe { (G::scales(block), half(block, 0) * G::UNIT) };
        (factors(scales, |s| scale * f32::from(2 * s + 1)), [0.0; 16])
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8, part: usize) -> [int8x16_t; 2] {
        const OWN: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
        // SAFETY: as required of the caller.
        unsafe {
            let own = vld1q_u8(OWN.as_ptr());
            let ([a, b, c, d], signs) = (G::magnitudes(block, part), G::signs(block, part).to_le_bytes());
            let number = |magnitudes: [u64; 2], signs: [u8; 2]| {
                let magnitudes = vcombine_u64(vcreate_u64(magnitudes[0]), vcreate_u64(magnitudes[1]));
                let magnitudes = vreinterpretq_s8_u64(magnitudes);
                // each byte gets the eight signs that its own is among
                let eights = vcombine_u8(vdup_n_u8(signs[0]), vdup_n_u8(signs[1]));
                vbslq_s8(vtstq_u8(eights, own), vnegq_s8(magnitudes), magnitudes)
            };
            [number([a, b], [signs[0], signs[1]]), number([c, d], [signs[2], signs[3]])]
        }
    }
}
