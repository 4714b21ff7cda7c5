//! The blocks whose values are small integers, times a scale, plus an addend, both shared by a part of the block:
//! Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K, lane by lane.
//!
//! The layouts are those of [`Format`], whose `decode_row` is the reference implementation. Products stream from here and tiles are
//! filled from here.

use crate::Format;
use crate::cpu::isa::Lanes;
use crate::math::f16_to_f32;

/// The most parts of a block.
const PARTS: usize = 16;

/// What the parts of one block multiply their numbers by, and what they add then.
pub(in crate::cpu) struct Scales {
    factors: [f32; PARTS],
    addends: [f32; PARTS],
}

impl Scales {
    pub(in crate::cpu) fn new() -> Self {
        Self { factors: [0.0; PARTS], addends: [0.0; PARTS] }
    }
}

/// How the blocks of a format are taken apart.
///
/// # Safety
/// Every method requires that the CPU has the lanes' instruction set and that a whole block is readable at
/// `block`.
pub(in crate::cpu) trait Blocks {
    const FORMAT: Format;
    /// Values that share a scale: a multiple of all lanes.
    const PART: usize;
    /// The middle of the numbers.
    const MIDDLE: f32;
    /// Whether the middle number stands for zero in every block.
    const CENTERED: bool = false;

    /// The scales of all parts of a block.
    unsafe fn scales<L: Lanes>(block: *const u8, to: &mut Scales);

    /// The numbers of the values from `i` on, a multiple of the lanes.
    unsafe fn numbers<L: Lanes>(block: *const u8, i: usize) -> L;

    /// What a part's numbers, counted from their middle, are multiplied by, and what is added then.
    fn centered(scales: &Scales, part: usize) -> (f32, f32) {
        let (factor, addend) = (scales.factors[part], scales.addends[part]);
        (factor, if Self::CENTERED { 0.0 } else { factor.mul_add(Self::MIDDLE, addend) })
    }

    /// The values from `i` on.
    #[inline(always)]
    unsafe fn values<L: Lanes>(block: *const u8, scales: &Scales, i: usize) -> L {
        let part = i / Self::PART;
        // SAFETY: as required of the caller.
        unsafe {
            let (factor, addend) = (L::splat(scales.factors[part]), L::splat(scales.addends[part]));
            Self::numbers::<L>(block, i).mul_add(factor, addend)
        }
    }
}

/// The half at byte `at`.
///
/// # Safety
/// Two bytes must be readable there.
#[inline(always)]
pub(in crate::cpu) unsafe fn half(block: *const u8, at: usize) -> f32 {
    // SAFETY: as required of the caller.
    f16_to_f32(unsafe { block.add(at).cast::<[u8; 2]>().read() })
}

/// The word at byte `at`.
///
/// # Safety
/// Four bytes must be readable there.
#[inline(always)]
pub(in crate::cpu) unsafe fn word(block: *const u8, at: usize) -> u32 {
    // SAFETY: as required of the caller.
    u32::from_le_bytes(unsafe { block.add(at).cast::<[u8; 4]>().read() })
}

/// `to[i] = bytes[i] * factor`.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn scaled<L: Lanes, const K: usize>(bytes: &[u8; K], factor: f32, to: &mut [f32; PARTS]) {
    const { assert!(K.is_multiple_of(8) && K <= PARTS) };
    if K < L::N {
        // half as many as there are lanes
        to.iter_mut().zip(bytes).for_each(|(to, byte)| *to = factor * f32::from(byte.cast_signed()));
        return;
    }
    for i in (0..K).step_by(L::N) {
        // SAFETY: `K` is a multiple of the lanes, and there is room for as many values.
        unsafe { L::load_i8(bytes.as_ptr().add(i)).mul(L::splat(factor)).store(to.as_mut_ptr().add(i)) };
    }
}

pub(in crate::cpu) struct Q41;

impl Blocks for Q41 {
    const FORMAT: Format = Format::Q4_1;
    const PART: usize = 32;
    const MIDDLE: f32 = 8.0;

    #[inline(always)]
    unsafe fn scales<L: Lanes>(block: *const u8, to: &mut Scales) {
        // SAFETY: as required of the caller.
        unsafe { (to.factors[0], to.addends[0]) = (half(block, 0), half(block, 2)) };
    }

    #[inline(always)]
    unsafe fn numbers<L: Lanes>(block: *const u8, i: usize) -> L {
        // SAFETY: as required of the caller; the high nibbles follow the low ones.
        unsafe { L::load_nibbles(block.add(4 + i % 16), i as u32 / 16 * 4) }
    }
}

pub(in crate::cpu) struct Q50;

impl Blocks for Q50 {
    const FORMAT: Format = Format::Q5_0;
    const PART: usize = 32;
    const MIDDLE: f32 = 16.0;
    const CENTERED: bool = true;

    #[inline(always)]
    unsafe fn scales<L: Lanes>(block: *const u8, to: &mut Scales) {
        // SAFETY: as required of the caller.
        let scale = unsafe { half(block, 0) };
        (to.factors[0], to.addends[0]) = (scale, -16.0 * scale);
    }

    #[inline(always)]
    unsafe fn numbers<L: Lanes>(block: *const u8, i: usize) -> L {
        // SAFETY: as required of the caller.
        unsafe { L::load_five_bits(block.add(6 + i % 16), i as u32 / 16 * 4, word(block, 2) >> i) }
    }
}

pub(in crate::cpu) struct Q51;

impl Blocks for Q51 {
    const FORMAT: Format = Format::Q5_1;
    const PART: usize = 32;
    const MIDDLE: f32 = 16.0;

    #[inline(always)]
    unsafe fn scales<L: Lanes>(block: *const u8, to: &mut Scales) {
        // SAFETY: as required of the caller.
        unsafe { (to.factors[0], to.addends[0]) = (half(block, 0), half(block, 2)) };
    }

    #[inline(always)]
    unsafe fn numbers<L: Lanes>(block: *const u8, i: usize) -> L {
        // SAFETY: as required of the caller.
        unsafe { L::load_five_bits(block.add(8 + i % 16), i as u32 / 16 * 4, word(block, 4) >> i) }
    }
}

/// The scales and the least values of the eight parts of a block of Q4_K or Q5_K, a byte each: 6 bits, of which the last
/// four parts' upper two lie above the first four's.
///
/// # Safety
/// A block must be readable.
#[inline(always)]
pub(in crate::cpu) unsafe fn six_bits(block: *const u8) -> [u64; 2] {
    // SAFETY: as required of the caller.
    let [a, b, c] = unsafe { [word(block, 4), word(block, 8), word(block, 12)] };
    let (four, upper, six) = (0x0f0f_0f0f, 0x3030_3030, 0x3f3f_3f3f);
    let eight = |first: u32, last: u32| u64::from(first) | u64::from(last) << 32;
    [eight(a & six, (c & four) | (a >> 2 & upper)), eight(b & six, (c >> 4 & four) | (b >> 2 & upper))]
}

/// The same sixteen bytes in a vector.
///
/// # Safety
/// As [`six_bits`], with AVX2 enabled where this is expanded.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(in crate::cpu) unsafe fn six_bits_in_vector(block: *const u8) -> std::arch::x86_64::__m128i {
    use std::arch::x86_64::*;
    // SAFETY: as required of the caller.
    unsafe {
        let words = _mm_loadu_si128(block.cast());
        let lower = _mm_srlv_epi32(_mm_shuffle_epi32::<0b11_10_11_01>(words), _mm_setr_epi32(0, 0, 0, 4));
        let lower = _mm_and_si128(lower, _mm_setr_epi32(0x3f3f_3f3f, 0x0f0f_0f0f, 0x3f3f_3f3f, 0x0f0f_0f0f));
        let upper = _mm_srli_epi32::<2>(_mm_shuffle_epi32::<0b10_10_01_01>(words));
        _mm_or_si128(lower, _mm_and_si128(upper, _mm_setr_epi32(0, 0x3030_3030, 0, 0x3030_3030)))
    }
}

/// Eight nibbles as bytes.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(in crate::cpu) fn nibbles(packed: u32) -> u64 {
    let two = (u64::from(packed) | u64::from(packed) << 16) & 0x0000_ffff_0000_ffff;
    let four = (two | two << 8) & 0x00ff_00ff_00ff_00ff;
    (four | four << 4) & 0x0f0f_0f0f_0f0f_0f0f
}

/// The scales of the sixteen parts of a block of Q3_K, moved up by 32, a byte each: the nibbles of eight bytes, and above them two
/// bits each of four bytes, in turn.
///
/// # Safety
/// A block must be readable.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(in crate::cpu) unsafe fn q3_scales(block: *const u8) -> [u64; 2] {
    // SAFETY: as required of the caller.
    let [a, b, upper] = unsafe { [word(block, 96), word(block, 100), word(block, 104)] };
    let low = u64::from(a) | u64::from(b) << 32;
    // the bits of parts four to seven lie two bits above those of the first four
    let upper = u64::from(upper) | u64::from(upper) << 30;
    let (four, two) = (0x0f0f_0f0f_0f0f_0f0f, 0x0303_0303_0303_0303);
    [(low & four) | (upper & two) << 4, (low >> 4 & four) | (upper >> 4 & two) << 4]
}

/// The scales of the eight parts of a block of IQ4_XS, moved up by 32, a byte each: nibbles, and two bits more.
///
/// # Safety
/// A block must be readable.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(in crate::cpu) unsafe fn iq4_scales(block: *const u8) -> u64 {
    // SAFETY: as required of the caller.
    let (low, upper) = unsafe { (word(block, 4), u64::from(word(block, 0) >> 16)) };
    let two = (upper | upper << 24) & 0x0000_00ff_0000_00ff;
    let four = (two | two << 12) & 0x000f_000f_000f_000f;
    nibbles(low) | ((four | four << 6) & 0x0303_0303_0303_0303) << 4
}

/// # Safety
/// As [`Blocks`].
#[inline(always)]
unsafe fn six_bit_scales<L: Lanes>(block: *const u8, to: &mut Scales) {
    // SAFETY: as required of the caller.
    unsafe {
        let [scales, least] = six_bits(block);
        scaled::<L, 8>(&scales.to_le_bytes(), half(block, 0), &mut to.factors);
        scaled::<L, 8>(&least.to_le_bytes(), -half(block, 2), &mut to.addends);
    }
}

pub(in crate::cpu) struct Q4K;

impl Blocks for Q4K {
    const FORMAT: Format = Format::Q4K;
    const PART: usize = 32;
    const MIDDLE: f32 = 8.0;

    #[inline(always)]
    unsafe fn scales<L: Lanes>(block: *const u8, to: &mut Scales) {
        // SAFETY: as required of the caller.
        unsafe { six_bit_scales::<L>(block, to) };
    }

    #[inline(always)]
    unsafe fn numbers<L: Lanes>(block: *const u8, i: usize) -> L {
        let part = i / 32;
        // SAFETY: as required of the caller; two parts share their bytes.
        unsafe { L::load_nibbles(block.add(16 + part / 2 * 32 + i % 32), part as u32 % 2 * 4) }
    }
}

pub(in crate::cpu) struct Q5K;

impl Blocks for Q5K {
    const FORMAT: Format = Format::Q5K;
    const PART: usize = 32;
    const MIDDLE: f32 = 16.0;

    #[inline(always)]
    unsafe fn scales<L: Lanes>(block: *const u8, to: &mut Scales) {
        // SAFETY: as required of the caller.
        unsafe { six_bit_scales::<L>(block, to) };
    }

    #[inline(always)]
    unsafe fn numbers<L: Lanes>(block: *const u8, i: usize) -> L {
        let part = i / 32;
        // SAFETY: as required of the caller; all parts share the bytes of the fifth bits.
        unsafe {
            let (low, high) = (block.add(48 + part / 2 * 32 + i % 32), block.add(16 + i % 32));
            L::load_split::<1>(low, part as u32 % 2 * 4, high, part as u32)
        }
    }
}

pub(in crate::cpu) struct Q6K;

impl Blocks for Q6K {
    const FORMAT: Format = Format::Q6K;
    const PART: usize = 16;
    const MIDDLE: f32 = 32.0;
    const CENTERED: bool = true;

    #[inline(always)]
    unsafe fn scales<L: Lanes>(block: *const u8, to: &mut Scales) {
        // SAFETY: as required of the caller.
        unsafe {
            let (scale, bytes) = (half(block, 208), block.add(192).cast::<[u8; 16]>().read());
            scaled::<L, 16>(&bytes, scale, &mut to.factors);
            scaled::<L, 16>(&bytes, -32.0 * scale, &mut to.addends);
        }
    }

    #[inline(always)]
    unsafe fn numbers<L: Lanes>(block: *const u8, i: usize) -> L {
        let (half, quarter, at) = (i / 128, i / 32 % 4, i % 32);
        // SAFETY: as required of the caller; the nibbles of two quarters, and the upper bits of all four, share bytes.
        unsafe {
            let (low, high) = (block.add(half * 64 + quarter % 2 * 32 + at), block.add(128 + half * 32 + at));
            L::load_split::<3>(low, quarter as u32 / 2 * 4, high, quarter as u32 * 2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::{Isa, with_isa};

    #[inline(always)]
    unsafe fn read<L: Lanes>(format: Format, block: &[u8], values: &mut [f32]) {
        #[inline(always)]
        unsafe fn each<L: Lanes, B: Blocks>(block: &[u8], values: &mut [f32]) {
            assert_eq!((block.len(), values.len()), (B::FORMAT.block_bytes(), B::FORMAT.block_len()));
            let mut scales = Scales::new();
            // SAFETY: one block is there, and the lanes' instructions are where this is expanded.
            unsafe {
                B::scales::<L>(block.as_ptr(), &mut scales);
                for i in (0..values.len()).step_by(L::N) {
                    B::values::<L>(block.as_ptr(), &scales, i).store(values.as_mut_ptr().add(i));
                }
            }
        }
        // SAFETY: as above.
        unsafe {
            match format {
                Format::Q4_1 => each::<L, Q41>(block, values),
                Format::Q5_0 => each::<L, Q50>(block, values),
                Format::Q5_1 => each::<L, Q51>(block, values),
                Format::Q4K => each::<L, Q4K>(block, values),
                Format::Q5K => each::<L, Q5K>(block, values),
                Format::Q6K => each::<L, Q6K>(block, values),
                other => panic!("{other} has no parts"),
            }
        }
    }

    /// Any bytes as blocks, at every instruction set: what the reference implementation reads, but for the rounding of a product before its sum.
    #[test]
    fn values_are_those_of_the_reference() {
        let mut state = 7u64;
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        for format in [Format::Q4_1, Format::Q5_0, Format::Q5_1, Format::Q4K, Format::Q5K, Format::Q6K] {
            let mut expected = vec![0f32; format.block_len()];
            for _ in 0..300 {
                let bytes: Vec<u8> = (0..format.block_bytes()).map(|_| byte()).collect();
                let block = bytes.as_slice();
                format.decode_row(block, &mut expected);
                for isa in Isa::available() {
                    let mut found = vec![f32::NAN; expected.len()];
                    let values = found.as_mut_slice();
                    with_isa!(isa, read(format: Format, block: &[u8], values: &mut [f32]));
                    let finite = expected.iter().filter(|value| value.is_finite());
                    let largest = finite.fold(0f32, |most, value| most.max(value.abs()));
                    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                        // the parts of an addend may be many times as large as what is left of them
                        let close = (found - expected).abs() <= 1e-6 * largest;
                        assert!(close || !expected.is_finite() && !found.is_finite(), "{isa:?} {format} at {i}");
                    }
                }
            }
        }
    }
}
