//! The same with NEON: 16-bit numbers, eight at a time, or with dot products bytes, four in each lane.
//!
//! What the addends of Q2_K, Q4_K and Q5_K contribute is a product with the sums of the parts' activations; the numbers of the others
//! are centred instead.

mod low_bits;

use super::grids::{Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs};
use super::{BLOCK, part};
use crate::Format;
use crate::cpu::gemv::row::Call;
use crate::cpu::isa::dot;
use crate::cpu::quantize::{Split, Words};
use crate::cpu::sub_blocks::{half, six_bits};
use low_bits::{Iq4Xs, Q2K, Q3K, Signed};
use std::arch::aarch64::*;

/// Stretches of a block whose activations share a scale.
const PARTS: usize = BLOCK / 32;

/// One row times `M` tokens as 16-bit numbers.
///
/// # Safety
/// The CPU must have NEON; the call's row has the blocks of its shape, and `x`, with the sums of the format's parts, has `M` tokens from
/// the call's on.
#[target_feature(enable = "neon")]
pub(in crate::cpu) unsafe fn words<const M: usize>(x: &Words, call: &Call<'_>) {
    let exact = |at: usize, [first, second]: [int8x16_t; 2]| {
        // SAFETY: part `at` has 32 activations.
        unsafe {
            let values = x.values.as_ptr().add(at * 32);
            let half = |weights: int8x16_t, values: *const i16| {
                let (low, high) = (vld1q_s16(values), vld1q_s16(values.add(8)));
                let weights = [vmovl_s8(vget_low_s8(weights)), vmovl_high_s8(weights)];
                let mut sums = vmull_s16(vget_low_s16(weights[0]), vget_low_s16(low));
                sums = vmlal_high_s16(sums, weights[0], low);
                sums = vmlal_s16(sums, vget_low_s16(weights[1]), vget_low_s16(high));
                vmlal_high_s16(sums, weights[1], high)
            };
            [half(first, values), half(second, values.add(16))]
        }
    };
    // SAFETY: as required of the caller.
    unsafe { of_format::<M>(call, &x.scales, &x.sums, exact) }
}

/// One row times `M` tokens as bytes.
///
/// # Safety
/// The CPU must have dot products; the call's row has the blocks of its shape, and `x`, made with offset -1, blocks in order
/// and a start for each of the format's parts, has `M` tokens from the call's on.
#[target_feature(enable = "neon,dotprod")]
pub(in crate::cpu) unsafe fn bytes<const M: usize>(x: &Split, call: &Call<'_>) {
    let low = |at: usize, [first, second]: [int8x16_t; 2]| {
        // SAFETY: part `at` has 32 activations.
        unsafe {
            let values = x.low.as_ptr().add(at * 32);
            let zero = vdupq_n_s32(0);
            [dot(zero, first, vld1q_s8(values)), dot(zero, second, vld1q_s8(values.add(16)))]
        }
    };
    let both = |at: usize, [first, second]: [int8x16_t; 2]| {
        // SAFETY: as above.
        unsafe {
            let values = x.high.as_ptr().add(at * 32);
            let zero = vdupq_n_s32(0);
            let upper = [dot(zero, first, vld1q_s8(values)), dot(zero, second, vld1q_s8(values.add(16)))];
            let lower = low(at, [first, second]);
            [vaddq_s32(lower[0], vshlq_n_s32::<8>(upper[0])), vaddq_s32(lower[1], vshlq_n_s32::<8>(upper[1]))]
        }
    };
    // SAFETY: as required of the caller.
    unsafe {
        match x.high.is_empty() {
            true => of_format::<M>(call, &x.scales, &x.starts, low),
            false => of_format::<M>(call, &x.scales, &x.starts, both),
        }
    }
}

/// # Safety
/// As [`words`], with the instructions at hand where this is expanded. `exact` multiplies the 32 numbers of a part with the
/// activations of the part that it names, and sums up each half of them by itself.
#[inline(always)]
unsafe fn of_format<const M: usize>(
    call: &Call<'_>,
    x_scales: &[f32],
    x_sums: &[i32],
    exact: impl Fn(usize, [int8x16_t; 2]) -> [int32x4_t; 2],
) {
    // SAFETY: as required of the caller.
    unsafe { with_block!(call.shape.format, B => products::<B, M>(call, x_scales, x_sums, exact)) }
}

/// Whether the parts of a format have addends.
pub(in crate::cpu) fn has_addends(format: Format) -> bool {
    with_block!(format, B => B::ADDENDS)
}

/// Blocks of a row as their numbers, in the order of the columns, the factor of every part, and where there are addends these.
///
/// # Safety
/// As [`Block`]; there must be whole blocks, and room for what they hold.
#[inline(always)]
pub(in crate::cpu) unsafe fn take_apart(
    format: Format,
    blocks: &[u8],
    numbers: &mut [u8],
    factors: &mut [f32],
    addends: &mut [f32],
) {
    // SAFETY: as required of the caller.
    unsafe { with_block!(format, B => apart::<B>(blocks, numbers, factors, addends)) }
}

/// # Safety
/// As [`take_apart`].
#[inline(always)]
unsafe fn apart<B: Block>(blocks: &[u8], numbers: &mut [u8], factors: &mut [f32], addends: &mut [f32]) {
    let parts = BLOCK / B::PART;
    let scales = factors.chunks_exact_mut(parts).zip(addends.chunks_exact_mut(parts));
    let blocks = blocks.chunks_exact(B::FORMAT.block_bytes());
    for ((block, numbers), (factors, addends)) in blocks.zip(numbers.chunks_exact_mut(BLOCK)).zip(scales) {
        // SAFETY: as required of the caller.
        unsafe {
            let scales = B::scales(block.as_ptr());
            factors.copy_from_slice(&scales.0[..parts]);
            addends.copy_from_slice(&scales.1[..parts]);
            for (part, to) in numbers.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                let [first, second] = B::numbers(block.as_ptr(), part);
                vst1q_s8(to.as_mut_ptr().cast(), first);
                vst1q_s8(to.as_mut_ptr().add(16).cast(), second);
            }
        }
    }
}

/// # Safety
/// As [`of_format`].
#[inline(always)]
unsafe fn products<B: Block, const M: usize>(
    call: &Call<'_>,
    x_scales: &[f32],
    x_sums: &[i32],
    exact: impl Fn(usize, [int8x16_t; 2]) -> [int32x4_t; 2],
) {
    let size = B::FORMAT.block_bytes();
    let blocks = call.bytes.len() / size;
    // SAFETY: block `b` has `size` bytes of the row; each token has for it 256 values, 8 scales and a sum per part.
    unsafe {
        // two sums, so that an addition need not wait for the one before
        let mut sums = [[vdupq_n_f32(0.0); 2]; M];
        let mut added = [0f32; M];
        for b in 0..blocks {
            let block = call.bytes.as_ptr().add(b * size);
            call.request(b * size, size);
            let (factors, addends) = B::scales(block);
            for part in 0..PARTS {
                let numbers = B::numbers(block, part);
                for t in 0..M {
                    let at = ((call.token + t) * blocks + b) * PARTS + part;
                    let scale = *x_scales.as_ptr().add(at);
                    let halves = 32 / B::PART;
                    for half in (0..halves).filter(|_| B::ADDENDS) {
                        let x_sum = *x_sums.as_ptr().add(at * halves + half) as f32;
                        added[t] = (addends[part * halves + half] * scale).mul_add(x_sum, added[t]);
                    }
                    let [first, second] = exact(at, numbers);
                    if B::PART == 32 {
                        let sum = vcvtq_f32_s32(vaddq_s32(first, second));
                        sums[t][part % 2] = vfmaq_n_f32(sums[t][part % 2], sum, factors[part] * scale);
                    } else {
                        let [low, high] = [factors[2 * part] * scale, factors[2 * part + 1] * scale];
                        sums[t][0] = vfmaq_n_f32(sums[t][0], vcvtq_f32_s32(first), low);
                        sums[t][1] = vfmaq_n_f32(sums[t][1], vcvtq_f32_s32(second), high);
                    }
                }
            }
        }
        for (t, [a, b]) in sums.into_iter().enumerate() {
            call.write(0, t, vaddvq_f32(vaddq_f32(a, b)) + added[t]);
        }
    }
}

/// How the blocks of a format are taken apart: a value is `factor number + addend` with its part's.
///
/// # Safety
/// Every method requires that a block is readable at the pointer, and is expanded where NEON is enabled.
trait Block {
    const FORMAT: Format;
    /// Values that share a factor: 16 or 32.
    const PART: usize = part(Self::FORMAT);
    /// Whether there are addends.
    const ADDENDS: bool = false;

    /// The factors of the parts, and their addends, if there are any.
    unsafe fn scales(block: *const u8) -> ([f32; 16], [f32; 16]);

    /// The numbers of the 32 values from `32 part` on.
    unsafe fn numbers(block: *const u8, part: usize) -> [int8x16_t; 2];
}

/// The scales and least values of Q4_K and Q5_K, of six bits.
///
/// # Safety
/// As [`Block`].
#[inline(always)]
unsafe fn six_bit_scales(block: *const u8) -> ([f32; 16], [f32; 16]) {
    // SAFETY: as required of the caller.
    let (six, scale, least_scale) = unsafe { (six_bits(block), half(block, 0), half(block, 2)) };
    let [scales, least] = six.map(u64::to_le_bytes);
    let all = |bytes: [u8; 8], scale: f32| std::array::from_fn(|i| bytes.get(i).map_or(0.0, |s| f32::from(*s) * scale));
    (all(scales, scale), all(least, -least_scale))
}

/// The bits of `mask` of each of sixteen bytes, moved right by `by`, or left where that is negative.
///
/// # Safety
/// As [`Block`], with sixteen bytes readable.
#[inline(always)]
unsafe fn moved(from: *const u8, by: i8, mask: u8) -> uint8x16_t {
    // SAFETY: as required of the caller.
    unsafe { vandq_u8(vshlq_u8(vld1q_u8(from), vdupq_n_s8(-by)), vdupq_n_u8(mask)) }
}

struct Q4K;

impl Block for Q4K {
    const FORMAT: Format = Format::Q4K;
    const ADDENDS: bool = true;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> ([f32; 16], [f32; 16]) {
        // SAFETY: as required of the caller.
        unsafe { six_bit_scales(block) }
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8, part: usize) -> [int8x16_t; 2] {
        // SAFETY: as required of the caller; two parts share their bytes.
        unsafe {
            let (from, by) = (block.add(16 + part / 2 * 32), (part % 2 * 4) as i8);
            [moved(from, by, 15), moved(from.add(16), by, 15)].map(|numbers| vreinterpretq_s8_u8(numbers))
        }
    }
}

struct Q5K;

impl Block for Q5K {
    const FORMAT: Format = Format::Q5K;
    const ADDENDS: bool = true;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> ([f32; 16], [f32; 16]) {
        // SAFETY: as required of the caller.
        unsafe { six_bit_scales(block) }
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8, part: usize) -> [int8x16_t; 2] {
        // SAFETY: as required of the caller; bit `p` of the bytes at 16 is the fifth of part `p`'s numbers.
        unsafe {
            let (from, by) = (block.add(48 + part / 2 * 32), (part % 2 * 4) as i8);
            let number = |low: *const u8, fifth: *const u8| {
                vreinterpretq_s8_u8(vorrq_u8(moved(low, by, 15), moved(fifth, part as i8 - 4, 16)))
            };
            [number(from, block.add(16)), number(from.add(16), block.add(32))]
        }
    }
}

struct Q6K;

impl Block for Q6K {
    const FORMAT: Format = Format::Q6K;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> ([f32; 16], [f32; 16]) {
        // SAFETY: as required of the caller.
        let (scales, scale) = unsafe { (block.add(192).cast::<[i8; 16]>().read(), half(block, 208)) };
        (scales.map(|s| f32::from(s) * scale), [0.0; 16])
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8, part: usize) -> [int8x16_t; 2] {
        // SAFETY: as required of the caller. In each half of the block the low nibbles of 64 bytes are the first 64
        // numbers', the high ones the others'; 32 bytes hold the upper two bits of each 32 numbers in turn.
        unsafe {
            let (side, quarter) = (part / 4, part % 4);
            let (low, high) = (block.add(side * 64 + quarter % 2 * 32), block.add(128 + side * 32));
            let number = |low: *const u8, high: *const u8| {
                let upper = moved(high, 2 * quarter as i8 - 4, 0x30);
                let number = vorrq_u8(moved(low, (quarter / 2 * 4) as i8, 15), upper);
                vsubq_s8(vreinterpretq_s8_u8(number), vdupq_n_s8(32))
            };
            [number(low, high), number(low.add(16), high.add(16))]
        }
    }
}
