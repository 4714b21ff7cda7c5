//! With NEON: 16-bit numbers, eight at a time, or with dot products bytes, four in each lane.

use crate::Format;
use crate::cpu::gemv::row::{self, Call, f16_scales, levels};
use crate::cpu::isa::{Lanes, Neon, dot};
use crate::cpu::quantize::{GROUP, Split, Words};
use crate::cpu::sub_blocks::half;
use crate::format::low_bits::{FP4_LEVELS, IQ4_LEVELS, half_of_e8m0};
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
    unsafe { q4_1(quants).map(|numbers| vsubq_s8(numbers, vdupq_n_s8(8))) }
}

/// The 32 numbers of a block of Q4_1.
///
/// # Safety
/// 16 bytes must be readable.
#[inline(always)]
unsafe fn q4_1(quants: *const u8) -> [int8x16_t; 2] {
    // SAFETY: as required of the caller.
    unsafe {
        let bytes = vld1q_u8(quants);
        [vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes)].map(|nibbles| vreinterpretq_s8_u8(nibbles))
    }
}

/// The 32 numbers of a block of Q5_0, from its fifth bits on.
///
/// # Safety
/// 20 bytes must be readable.
#[inline(always)]
unsafe fn q5(bits: *const u8) -> [int8x16_t; 2] {
    // SAFETY: as required of the caller.
    unsafe { q5_1(bits).map(|numbers| vsubq_s8(numbers, vdupq_n_s8(16))) }
}

/// The same of Q5_1.
///
/// # Safety
/// As [`q5`].
#[inline(always)]
unsafe fn q5_1(bits: *const u8) -> [int8x16_t; 2] {
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
        numbers.map(|numbers| vreinterpretq_s8_u8(numbers))
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
            Format::Q8_0 => words_of::<M, 34>(x, call, |b| (half(b, 0), 0.0), |b| q8(b.add(2))),
            Format::Q4_0 => words_of::<M, 18>(x, call, |b| (half(b, 0), 0.0), |b| q4(b.add(2))),
            Format::Q4_1 => words_of::<M, 20>(x, call, |b| (half(b, 0), half(b, 2)), |b| q4_1(b.add(4))),
            Format::Q5_0 => words_of::<M, 22>(x, call, |b| (half(b, 0), 0.0), |b| q5(b.add(2))),
            Format::Q5_1 => words_of::<M, 24>(x, call, |b| (half(b, 0), half(b, 2)), |b| q5_1(b.add(4))),
            Format::Iq4Nl => words_of::<M, 18>(x, call, |b| (half(b, 0), 0.0), |b| levels(b.add(2), &IQ4_LEVELS)),
            Format::Mxfp4 => words_of::<M, 17>(x, call, |b| (half_of_e8m0(*b), 0.0), |b| levels(b.add(1), &FP4_LEVELS)),
            other => unreachable!("{other} has no such blocks"),
        }
    }
}

/// # Safety
/// As [`words`]; `scales` gives a block's factor and addend, `load` its numbers.
#[inline(always)]
unsafe fn words_of<const M: usize, const SIZE: usize>(
    x: &Words,
    call: &Call<'_>,
    scales: impl Fn(*const u8) -> (f32, f32),
    load: impl Fn(*const u8) -> [int8x16_t; 2],
) {
    let blocks = call.bytes.len() / SIZE;
    // SAFETY: block `b` has `SIZE` bytes of the row, and 32 values and a scale of each token.
    unsafe {
        let mut sums = [vdupq_n_f32(0.0); M];
        let mut added = [0f32; M];
        for b in 0..blocks {
            let from = call.bytes.as_ptr().add(b * SIZE);
            call.request(b * SIZE, SIZE);
            let [first, second] = load(from);
            let weights = [
                vmovl_s8(vget_low_s8(first)),
                vmovl_high_s8(first),
                vmovl_s8(vget_low_s8(second)),
                vmovl_high_s8(second),
            ];
            let (factor, addend) = scales(from);
            for (t, sum) in sums.iter_mut().enumerate() {
                let at = (call.token + t) * blocks + b;
                let mut exact = [vdupq_n_s32(0); 2];
                for (i, weights) in weights.into_iter().enumerate() {
                    let values = vld1q_s16(x.values.as_ptr().add(at * 32 + i * 8));
                    exact[0] = vmlal_s16(exact[0], vget_low_s16(weights), vget_low_s16(values));
                    exact[1] = vmlal_high_s16(exact[1], weights, values);
                }
                let exact = vcvtq_f32_s32(vaddq_s32(exact[0], exact[1]));
                let scale = *x.scales.as_ptr().add(at);
                *sum = vfmaq_n_f32(*sum, exact, factor * scale);
                added[t] = (addend * scale).mul_add(*x.sums.as_ptr().add(at) as f32, added[t]);
            }
        }
        for (t, sum) in sums.into_iter().enumerate() {
            call.write(0, t, vaddvq_f32(sum) + added[t]);
        }
    }
}

/// A row times `M` tokens as bytes.
///
/// # Safety
/// The CPU must have dot products, the call's row has the blocks of its shape, and `x`, made with offset -1 and
/// blocks in order, has `M` tokens from the call's on.
#[target_feature(enable = "neon,dotprod")]
pub(in crate::cpu) unsafe fn bytes<const M: usize>(x: &Split, call: &Call<'_>) {
    // SAFETY: as required of the caller.
    unsafe {
        match x.high.is_empty() {
            true => of_format::<M, false>(x, call),
            false => of_format::<M, true>(x, call),
        }
    }
}

/// `$call` with the bytes of a block of a format and of four, with what gives the scales and the addends of four blocks, and with what gives
/// the numbers of one.
macro_rules! with_blocks {
    ($format:expr, ($size:ident, $four:ident, $scales:ident, $numbers:ident) => $call:expr) => {{
        let none = [0.0; 4];
        with_blocks!($format, ($size, $four, $scales, $numbers) => $call;
            Q8_0 34 |g| [f16s::<34>(g), none], |b| q8(b.add(2));
            Q4_0 18 |g| [f16s::<18>(g), none], |b| q4(b.add(2));
            Q4_1 20 |g| [f16s::<20>(g), f16s::<20>(g.add(2))], |b| q4_1(b.add(4));
            Q5_0 22 |g| [f16s::<22>(g), none], |b| q5(b.add(2));
            Q5_1 24 |g| [f16s::<24>(g), f16s::<24>(g.add(2))], |b| q5_1(b.add(4));
            Iq4Nl 18 |g| [f16s::<18>(g), none], |b| levels(b.add(2), &IQ4_LEVELS);
            Mxfp4 17 |g| [[0, 17, 34, 51].map(|at| half_of_e8m0(*g.add(at))), none], |b| levels(b.add(1), &FP4_LEVELS);
        )
    }};
    ($format:expr, ($size:ident, $four:ident, $scales:ident, $numbers:ident) => $call:expr;
     $($name:ident $bytes:literal |$group:ident| $of_four:expr, |$block:ident| $of_one:expr;)*) => {
        match $format {
            $(Format::$name => {
                const $size: usize = $bytes;
                const $four: usize = 4 * $bytes;
                let $scales = |$group: *const u8| $of_four;
                let $numbers = |$block: *const u8| $of_one;
                $call
            })*
            other => unreachable!("{other} has no such blocks"),
        }
    };
}

/// # Safety
/// As [`bytes`], with dot products enabled where this is expanded.
#[inline(always)]
unsafe fn of_format<const M: usize, const FINE: bool>(x: &Split, call: &Call<'_>) {
    // SAFETY: as required of the caller.
    unsafe {
        with_blocks!(call.shape.format, (SIZE, FOUR, scales, load) => {
            bytes_of::<M, FINE, SIZE, FOUR>(x, call, scales, load);
        });
    }
}

/// Blocks of a row as their numbers, in the order of the columns, their scales, and where there are addends these.
///
/// # Safety
/// NEON must be enabled where this is expanded; there must be whole blocks, and room for what they would hold were their number a multiple of
/// four.
#[inline(always)]
pub(super) unsafe fn take_apart(
    format: Format,
    blocks: &[u8],
    numbers: &mut [u8],
    scales: &mut [f32],
    addends: &mut [f32],
) {
    // SAFETY: as required of the caller.
    unsafe {
        with_blocks!(format, (SIZE, FOUR, of_four, load) => {
            apart::<SIZE, FOUR>(blocks, numbers, [scales, addends], of_four, load);
        });
    }
}

/// # Safety
/// As [`take_apart`]; the last two as in [`bytes_of`].
#[inline(always)]
unsafe fn apart<const SIZE: usize, const FOUR: usize>(
    blocks: &[u8],
    numbers: &mut [u8],
    [scales, addends]: [&mut [f32]; 2],
    of_four: impl Fn(*const u8) -> [[f32; 4]; 2],
    load: impl Fn(*const u8) -> [int8x16_t; 2],
) {
    let mut last = [0; FOUR];
    let scales = scales.as_chunks_mut::<4>().0.iter_mut().zip(addends.as_chunks_mut::<4>().0);
    let numbers = numbers.as_chunks_mut::<GROUP>().0;
    for ((group, numbers), (scales, addends)) in blocks.chunks(FOUR).zip(numbers).zip(scales) {
        let mut from = group.as_ptr();
        if group.len() < FOUR {
            last[..group.len()].copy_from_slice(group);
            from = last.as_ptr();
        }
        [*scales, *addends] = of_four(from);
        for (b, to) in numbers.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            // SAFETY: as required of the caller; four blocks are there.
            unsafe {
                let [first, second] = load(from.add(b * SIZE));
                vst1q_s8(to.as_mut_ptr().cast(), first);
                vst1q_s8(to.as_mut_ptr().add(16).cast(), second);
            }
        }
    }
}

/// The halves of a group's blocks of `SIZE` bytes.
///
/// # Safety
/// Four blocks must be readable.
#[inline(always)]
unsafe fn f16s<const SIZE: usize>(group: *const u8) -> [f32; 4] {
    // the lanes convert eight at a time
    let (mut all, mut halves) = ([0f32; 8], [0, 0]);
    // SAFETY: as required of the caller.
    unsafe {
        halves[0] = f16_scales::<SIZE>(group);
        Neon::load_f16(halves.as_ptr().cast()).store(all.as_mut_ptr());
    }
    [all[0], all[1], all[2], all[3]]
}

/// # Safety
/// As [`bytes`]; `scales` gives the factors and the addends of four blocks, which have `FOUR` bytes, `load` a block's numbers.
#[inline(always)]
unsafe fn bytes_of<const M: usize, const FINE: bool, const SIZE: usize, const FOUR: usize>(
    x: &Split,
    call: &Call<'_>,
    scales: impl Fn(*const u8) -> [[f32; 4]; 2],
    load: impl Fn(*const u8) -> [int8x16_t; 2],
) {
    let groups = call.shape.cols.div_ceil(GROUP);
    let mut last = [[0; FOUR]];
    // SAFETY: a group has four blocks, each token has a group, and `M` tokens exist.
    unsafe {
        // two sums, so that an addition need not wait for the one before
        let mut sums = [[vdupq_n_f32(0.0); 2]; M];
        let mut added = [0f32; M];
        for (range, [first]) in row::groups(call, &mut last) {
            for g in range {
                let from = first.wrapping_add(g * FOUR);
                call.request(g * FOUR, FOUR);
                let [factors, addends] = scales(from);
                for b in 0..4 {
                    let [first, second] = load(from.add(b * SIZE));
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
                        let scale = *x.scales.as_ptr().add(at * 4 + b);
                        sums[b % 2] = vfmaq_n_f32(sums[b % 2], vcvtq_f32_s32(exact), factors[b] * scale);
                        let x_sum = *x.starts.as_ptr().add(at * 4 + b) as f32;
                        added[t] = (addends[b] * scale).mul_add(x_sum, added[t]);
                    }
                }
            }
        }
        for (t, [a, b]) in sums.into_iter().enumerate() {
            call.write(0, t, vaddvq_f32(vaddq_f32(a, b)) + added[t]);
        }
    }
}
