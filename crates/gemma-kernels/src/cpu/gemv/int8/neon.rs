//! With NEON: 16-bit numbers, eight at a time, or with dot products bytes, four in each lane.

use crate::Format;
use crate::cpu::gemv::distance::distance;
use crate::cpu::gemv::row::{Call, f16_scales, group};
use crate::cpu::isa::{Lanes, Neon, dot, prefetch};
use crate::cpu::quantize::{GROUP, Split, Words};
use crate::format::low_bits::IQ4_LEVELS;
use half::f16;
use std::arch::aarch64::*;

/// The 32 numbers of a block of Q8_0.
///
/// # Safety
/// 32 bytes must be readable.
#[inline(always)]
unsafe fn q8(quants: *const u8) -> [int8x16_t; 2] {
    // SAFETY: as required of the caller.
    unsafe { [vld1q_s8(quants.cast()), vld1q_s8(quants.add(16).cast())] }
}

/// The 32 numbers of a block of Q4_0.
///
/// # Safety
/// 16 bytes must be readable.
#[inline(always)]
unsafe fn q4(quants: *const u8) -> [int8x16_t; 2] {
    // SAFETY: as required of the caller.
    unsafe {
        let bytes = vld1q_u8(quants);
        let nibbles = [vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes)];
        nibbles.map(|nibbles| vsubq_s8(vreinterpretq_s8_u8(nibbles), vdupq_n_s8(8)))
    }
}

/// The 32 numbers of a block of Q5_0, from its fifth bits on.
///
/// # Safety
/// 20 bytes must be readable.
#[inline(always)]
unsafe fn q5(bits: *const u8) -> [int8x16_t; 2] {
    const OWN: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
    // SAFETY: as required of the caller.
    unsafe {
        let own = vld1q_u8(OWN.as_ptr());
        let fifth = |first: usize| {
            let eights = vcombine_u8(vdup_n_u8(*bits.add(first)), vdup_n_u8(*bits.add(first + 1)));
            vandq_u8(vtstq_u8(eights, own), vdupq_n_u8(16))
        };
        let bytes = vld1q_u8(bits.add(4));
        let numbers = [vorrq_u8(vandq_u8(bytes, vdupq_n_u8(15)), fifth(0)), vorrq_u8(vshrq_n_u8::<4>(bytes), fifth(2))];
        numbers.map(|numbers| vsubq_s8(vreinterpretq_s8_u8(numbers), vdupq_n_s8(16)))
    }
}

/// The 32 levels of a block of IQ4_NL.
///
/// # Safety
/// 16 bytes must be readable.
#[inline(always)]
unsafe fn iq4(quants: *const u8) -> [int8x16_t; 2] {
    // SAFETY: as required of the caller; there are sixteen levels.
    unsafe {
        let (bytes, levels) = (vld1q_u8(quants), vld1q_s8(IQ4_LEVELS.as_ptr()));
        [vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes)].map(|nibbles| vqtbl1q_s8(levels, nibbles))
    }
}

/// A row times `M` tokens as 16-bit numbers.
///
/// # Safety
/// The CPU must have NEON, the call's row has the blocks of its shape, and `x` has `M` tokens from the call's on.
#[target_feature(enable = "neon")]
pub(in crate::cpu) unsafe fn words<const M: usize>(x: &Words, call: &Call<'_>) {
    // SAFETY: as required of the caller.
    unsafe {
        match call.shape.format {
            Format::Q4_0 => words_of::<M, 18>(x, call, |quants| q4(quants)),
            Format::Q5_0 => words_of::<M, 22>(x, call, |quants| q5(quants)),
            Format::Iq4Nl => words_of::<M, 18>(x, call, |quants| iq4(quants)),
            _ => words_of::<M, 34>(x, call, |quants| q8(quants)),
        }
    }
}

/// # Safety
/// As [`words`]; `load` gives a block's numbers.
#[inline(always)]
unsafe fn words_of<const M: usize, const SIZE: usize>(
    x: &Words,
    call: &Call<'_>,
    load: impl Fn(*const u8) -> [int8x16_t; 2],
) {
    let ahead = distance();
    let blocks = call.bytes.len() / SIZE;
    // SAFETY: block `b` has `SIZE` bytes of the row, and 32 values and a scale of each token.
    unsafe {
        let mut sums = [vdupq_n_f32(0.0); M];
        for b in 0..blocks {
            let from = call.bytes.as_ptr().add(b * SIZE);
            if call.token == 0 {
                prefetch(from.wrapping_add(ahead));
            }
            let [first, second] = load(from.add(2));
            let weights = [
                vmovl_s8(vget_low_s8(first)),
                vmovl_high_s8(first),
                vmovl_s8(vget_low_s8(second)),
                vmovl_high_s8(second),
            ];
            let scale = f16::from_le_bytes(from.cast::<[u8; 2]>().read()).to_f32();
            for (t, sum) in sums.iter_mut().enumerate() {
                let at = (call.token + t) * blocks + b;
                let mut exact = [vdupq_n_s32(0); 2];
                for (i, weights) in weights.into_iter().enumerate() {
                    let values = vld1q_s16(x.values.as_ptr().add(at * 32 + i * 8));
                    exact[0] = vmlal_s16(exact[0], vget_low_s16(weights), vget_low_s16(values));
                    exact[1] = vmlal_high_s16(exact[1], weights, values);
                }
                let exact = vcvtq_f32_s32(vaddq_s32(exact[0], exact[1]));
                *sum = vfmaq_n_f32(*sum, exact, scale * *x.scales.as_ptr().add(at));
            }
        }
        for (t, sum) in sums.into_iter().enumerate() {
            call.write(t, vaddvq_f32(sum));
        }
    }
}

/// A row times `M` tokens as bytes.
///
/// # Safety
/// The CPU must have dot products, the call's row has the blocks of its shape, and `x`, made with offset 0 and
/// blocks in order, has `M` tokens from the call's on.
#[target_feature(enable = "neon,dotprod")]
pub(in crate::cpu) unsafe fn bytes<const M: usize>(x: &Split, call: &Call<'_>) {
    // SAFETY: as required of the caller.
    unsafe {
        match (call.shape.format, x.high.is_empty()) {
            (Format::Q4_0, false) => bytes_of::<M, true, 18, 72>(x, call, |quants| q4(quants)),
            (Format::Q4_0, true) => bytes_of::<M, false, 18, 72>(x, call, |quants| q4(quants)),
            (Format::Q5_0, false) => bytes_of::<M, true, 22, 88>(x, call, |quants| q5(quants)),
            (Format::Q5_0, true) => bytes_of::<M, false, 22, 88>(x, call, |quants| q5(quants)),
            (Format::Iq4Nl, false) => bytes_of::<M, true, 18, 72>(x, call, |quants| iq4(quants)),
            (Format::Iq4Nl, true) => bytes_of::<M, false, 18, 72>(x, call, |quants| iq4(quants)),
            (_, false) => bytes_of::<M, true, 34, 136>(x, call, |quants| q8(quants)),
            (_, true) => bytes_of::<M, false, 34, 136>(x, call, |quants| q8(quants)),
        }
    }
}

/// # Safety
/// As [`bytes`]; `load` gives a block's numbers, and four blocks have `FOUR` bytes.
#[inline(always)]
unsafe fn bytes_of<const M: usize, const FINE: bool, const SIZE: usize, const FOUR: usize>(
    x: &Split,
    call: &Call<'_>,
    load: impl Fn(*const u8) -> [int8x16_t; 2],
) {
    let ahead = distance();
    let groups = call.shape.cols.div_ceil(GROUP);
    let mut last = [0u8; FOUR];
    // SAFETY: a group has four blocks, each token has a group, and `M` tokens exist.
    unsafe {
        // two sums, so that an addition need not wait for the one before
        let mut sums = [[vdupq_n_f32(0.0); 2]; M];
        for g in 0..groups {
            let from = group::<FOUR>(call.bytes, g, &mut last);
            if call.token == 0 {
                for line in 0..FOUR.div_ceil(64) {
                    prefetch(from.wrapping_add(ahead + 64 * line));
                }
            }
            // the lanes convert eight at a time
            let halves = [f16_scales::<SIZE>(from), 0];
            let mut scales = [0f32; 8];
            Neon::load_f16(halves.as_ptr().cast()).store(scales.as_mut_ptr());
            for b in 0..4 {
                let [first, second] = load(from.add(b * SIZE + 2));
                for (t, sums) in sums.iter_mut().enumerate() {
                    let at = (call.token + t) * groups + g;
                    let low = x.low.as_ptr().add(at * GROUP + b * 32);
                    let mut exact = dot(vdupq_n_s32(0), first, vld1q_s8(low));
                    exact = dot(exact, second, vld1q_s8(low.add(16)));
                    if FINE {
                        let high = x.high.as_ptr().add(at * GROUP + b * 32);
                        let upper = dot(vdupq_n_s32(0), first, vld1q_s8(high));
                        let upper = dot(upper, second, vld1q_s8(high.add(16)));
                        exact = vaddq_s32(exact, vshlq_n_s32::<8>(upper));
                    }
                    let scale = scales[b] * *x.scales.as_ptr().add(at * 4 + b);
                    sums[b % 2] = vfmaq_n_f32(sums[b % 2], vcvtq_f32_s32(exact), scale);
                }
            }
        }
        for (t, [a, b]) in sums.into_iter().enumerate() {
            call.write(t, vaddvq_f32(vaddq_f32(a, b)));
        }
    }
}
