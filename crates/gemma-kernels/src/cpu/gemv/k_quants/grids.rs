//! The formats whose values are magnitudes of a code book with signs of their own: IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S.

use crate::Format;
use crate::cpu::sub_blocks::{nibbles, word};
use crate::format::grids;
use std::arch::asm;

/// How the blocks of a format are taken apart. A value is `UNIT d (2 scale + 1)` times its magnitude, with `d` the half at the block's
/// beginning and a scale of four bits for each part.
///
/// # Safety
/// Every method requires that a block is readable at the pointer; parts are counted in 32 values.
pub(super) trait Grid {
    const FORMAT: Format;
    const UNIT: f32;

    /// The scales, a byte each. Of eight only the first word counts.
    unsafe fn scales(block: *const u8) -> [u64; 2];

    /// The magnitudes of a part's values, a byte each, less than 64.
    unsafe fn magnitudes(block: *const u8, part: usize) -> [u64; 4];

    /// A bit for each of a part's values, which is set where it is negative.
    unsafe fn signs(block: *const u8, part: usize) -> u32;
}

/// Two words that follow each other.
///
/// # Safety
/// Eight bytes must be readable at byte `at`.
#[inline(always)]
unsafe fn words(block: *const u8, at: usize) -> u64 {
    // SAFETY: as required of the caller.
    unsafe { u64::from(word(block, at)) | u64::from(word(block, at + 4)) << 32 }
}

/// The upper four bits of each of eight words that are `step` bytes apart.
///
/// # Safety
/// The words must be readable, the first one at byte `at`.
#[inline(always)]
unsafe fn upper_nibbles(block: *const u8, at: usize, step: usize) -> u64 {
    // SAFETY: as required of the caller.
    (0..8).fold(0, |all, i| all | u64::from(unsafe { *block.add(at + i * step + 3) } >> 4) << (8 * i))
}

/// Four bytes of signs from seven bits each: the eighth makes their number even.
#[inline(always)]
fn even_signs(sevens: u32) -> u32 {
    // the lowest bit of each byte becomes the sum of all its bits
    let mut odd = sevens ^ sevens >> 4;
    odd ^= odd >> 2;
    odd ^= odd >> 1;
    sevens | (odd & 0x0101_0101) << 7
}

/// The lower 28 bits as four bytes of seven bits.
#[inline(always)]
fn sevens(packed: u32) -> u32 {
    let two = (packed & 0x3fff) | (packed & 0x0fff_c000) << 2;
    (two & 0x007f_007f) | (two & 0x3f80_3f80) << 1
}

/// A group of a code book. The load is volatile and the compiler does not see where its index comes from: it would compute several
/// indices in a vector, take them out again, or gather, all of which takes longer.
#[inline(always)]
fn look_up<T: Copy, const N: usize>(book: &[T; N], group: usize) -> T {
    const { assert!(N.is_power_of_two()) };
    let mut group = group;
    // SAFETY: the template is a comment.
    unsafe { asm!("/* {0} */", inout(reg) group, options(pure, nomem, nostack, preserves_flags)) };
    // SAFETY: a reference is readable.
    unsafe { (&raw const book[group & (N - 1)]).read_volatile() }
}

/// Two groups of four values.
#[inline(always)]
fn pair(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

pub(super) struct Iq2Xxs;

impl Grid for Iq2Xxs {
    const FORMAT: Format = Format::Iq2Xxs;
    const UNIT: f32 = 0.125;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> [u64; 2] {
        // SAFETY: as required of the caller.
        [unsafe { upper_nibbles(block, 6, 8) }, 0]
    }

    #[inline(always)]
    unsafe fn magnitudes(block: *const u8, part: usize) -> [u64; 4] {
        // SAFETY: as required of the caller.
        unsafe { word(block, 2 + part * 8) }.to_le_bytes().map(|group| look_up(&grids::IQ2_XXS, usize::from(group)))
    }

    #[inline(always)]
    unsafe fn signs(block: *const u8, part: usize) -> u32 {
        // SAFETY: as required of the caller.
        even_signs(sevens(unsafe { word(block, 6 + part * 8) }))
    }
}

pub(super) struct Iq2Xs;

impl Grid for Iq2Xs {
    const FORMAT: Format = Format::Iq2Xs;
    const UNIT: f32 = 0.125;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> [u64; 2] {
        // SAFETY: as required of the caller.
        unsafe { [nibbles(word(block, 66)), nibbles(word(block, 70))] }
    }

    #[inline(always)]
    unsafe fn magnitudes(block: *const u8, part: usize) -> [u64; 4] {
        // SAFETY: as required of the caller; nine bits of each 16 name a group.
        let packed = unsafe { words(block, 2 + part * 8) };
        [0, 16, 32, 48].map(|shift| look_up(&grids::IQ2_XS, (packed >> shift & 511) as usize))
    }

    #[inline(always)]
    unsafe fn signs(block: *const u8, part: usize) -> u32 {
        // SAFETY: as required of the caller; the other seven bits are signs.
        let sevens = unsafe { words(block, 2 + part * 8) } >> 9 & 0x007f_007f_007f_007f;
        let two = (sevens | sevens >> 8) & 0x0000_ffff_0000_ffff;
        even_signs((two | two >> 16) as u32)
    }
}

pub(super) struct Iq2S;

impl Grid for Iq2S {
    const FORMAT: Format = Format::Iq2S;
    const UNIT: f32 = 0.125;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> [u64; 2] {
        // SAFETY: as required of the caller.
        unsafe { [nibbles(word(block, 74)), nibbles(word(block, 78))] }
    }

    #[inline(always)]
    unsafe fn magnitudes(block: *const u8, part: usize) -> [u64; 4] {
        // SAFETY: as required of the caller; two bits more of each group's number lie in a byte of the part.
        let (low, high) = unsafe { (word(block, 2 + part * 4), u32::from(*block.add(66 + part))) };
        let group = |i: u32| look_up(&grids::IQ2_S, (low >> (8 * i) & 255 | (high >> (2 * i) & 3) << 8) as usize);
        [group(0), group(1), group(2), group(3)]
    }

    #[inline(always)]
    unsafe fn signs(block: *const u8, part: usize) -> u32 {
        // SAFETY: as required of the caller.
        unsafe { word(block, 34 + part * 4) }
    }
}

pub(super) struct Iq3Xxs;

impl Grid for Iq3Xxs {
    const FORMAT: Format = Format::Iq3Xxs;
    const UNIT: f32 = 0.25;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> [u64; 2] {
        // SAFETY: as required of the caller.
        [unsafe { upper_nibbles(block, 66, 4) }, 0]
    }

    #[inline(always)]
    unsafe fn magnitudes(block: *const u8, part: usize) -> [u64; 4] {
        // SAFETY: as required of the caller.
        let packed = unsafe { words(block, 2 + part * 8) };
        let group = |i: u32| look_up(&grids::IQ3_XXS, (packed >> (8 * i) & 255) as usize);
        // not with `map`, which is not always inlined
        let pair = |i: u32| pair(group(i), group(i + 1));
        [pair(0), pair(2), pair(4), pair(6)]
    }

    #[inline(always)]
    unsafe fn signs(block: *const u8, part: usize) -> u32 {
        // SAFETY: as required of the caller.
        even_signs(sevens(unsafe { word(block, 66 + part * 4) }))
    }
}

pub(super) struct Iq3S;

impl Grid for Iq3S {
    const FORMAT: Format = Format::Iq3S;
    const UNIT: f32 = 1.0;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> [u64; 2] {
        // SAFETY: as required of the caller.
        [nibbles(unsafe { word(block, 106) }), 0]
    }

    #[inline(always)]
    unsafe fn magnitudes(block: *const u8, part: usize) -> [u64; 4] {
        // SAFETY: as required of the caller; a bit more of each group's number lies in a byte of the part.
        let (low, high) = unsafe { (words(block, 2 + part * 8), u64::from(*block.add(66 + part))) };
        let group = |i: u32| look_up(&grids::IQ3_S, (low >> (8 * i) & 255 | (high >> i & 1) << 8) as usize);
        // not with `map`, which is not always inlined
        let pair = |i: u32| pair(group(i), group(i + 1));
        [pair(0), pair(2), pair(4), pair(6)]
    }

    #[inline(always)]
    unsafe fn signs(block: *const u8, part: usize) -> u32 {
        // SAFETY: as required of the caller.
        unsafe { word(block, 74 + part * 4) }
    }
}
