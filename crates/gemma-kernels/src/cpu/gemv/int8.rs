//! Products of few tokens with quantized weights, in integers.
//!
//! Within a block of 32 values the sums of each lane are exact; they are turned into f32, times the scales of both
//! sides, and added. Where bytes are multiplied four at a time (VNNI, NEON's dot products), 16-bit activations are two
//! products of bytes; elsewhere 16-bit numbers are multiplied as they are. AVX2 multiplies bytes in pairs whose sums have 16 bits, which
//! is exact for numbers below 32 and for 8-bit activations.
//!
//! What is added to the numbers of a block, its offset or an addend of its own, is multiplied by the sum of the block's activations.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avxvnni;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod vnni;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::k_quants;
use super::prefetch::current;
use super::row::Call;
use crate::cpu::isa::Isa;
use crate::cpu::output::Output;
#[cfg(target_arch = "aarch64")]
use crate::cpu::quantize::Bytes;
use crate::cpu::quantize::Words;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::cpu::quantize::{Order, SUMS, Split};
use crate::cpu::shape::Shape;
use crate::format::low_bits::{FP4_LEVELS, IQ4_LEVELS, half_of_e8m0};
use crate::math::f16_to_f32;
use crate::{ActivationPrecision, Format};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m128, _mm_setr_ps};
use std::ops::Range;
#[cfg(target_arch = "x86_64")]
use vnni::Nibbles;

/// The activations of a product, in the form that the instruction set's kernel reads.
pub(in crate::cpu) enum Prepared {
    Words(Words),
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    Split(Split),
}

/// The scales of four blocks of `SIZE` bytes that begin with an exponent of 8 bits.
///
/// # Safety
/// Four blocks must be readable.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn e8m0_scales<const SIZE: usize>(group: *const u8) -> __m128 {
    // SAFETY: as required of the caller.
    let scale = |b: usize| half_of_e8m0(unsafe { *group.add(b * SIZE) });
    // SAFETY: SSE is part of the target.
    unsafe { _mm_setr_ps(scale(0), scale(1), scale(2), scale(3)) }
}

/// Whether there are integer kernels for this format.
pub(in crate::cpu) fn has(isa: Isa, format: Format) -> bool {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 && k_quants::has(format) {
        return true;
    }
    #[cfg(target_arch = "aarch64")]
    if isa >= Isa::Neon && k_quants::has(format) {
        return true;
    }
    let _ = isa;
    use Format::*;
    matches!(format, Q8_0 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Iq4Nl | Mxfp4)
}

/// How activations lie for unsigned bytes of weights in blocks of 32, and the weights' [offset](Split::new()); `None` for other
/// blocks.
#[cfg(target_arch = "x86_64")]
fn unsigned_layout(format: Format) -> Option<(Order, i32)> {
    match format {
        Format::Q8_0 => Some((Order::Blocks, 128)),
        Format::Q4_0 => Some((Order::Halves, vnni::Q40::OFFSET)),
        Format::Q4_1 => Some((Order::Halves, vnni::Q41::OFFSET)),
        Format::Q5_0 => Some((Order::Halves, vnni::Q50::OFFSET)),
        Format::Q5_1 => Some((Order::Halves, vnni::Q51::OFFSET)),
        Format::Mxfp4 => Some((Order::Halves, vnni::Mxfp4::OFFSET)),
        Format::Iq4Nl => Some((Order::Halves, vnni::Iq4Nl::OFFSET)),
        _ => None,
    }
}

/// What the numbers of a format are, as bytes: unsigned on x86, signed on ARM.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Numbers {
    /// Values that share a scale: 16 or 32.
    pub(in crate::cpu) part: usize,
    /// What they are moved up by; without it, each part has an addend.
    pub(in crate::cpu) offset: Option<i32>,
    /// The largest that a byte can be; the products of pairs of bytes must fit into 16 bits.
    pub(in crate::cpu) largest: u8,
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
impl Numbers {
    /// Those of a format, where there are integer kernels for it.
    #[cfg(target_arch = "x86_64")]
    pub(in crate::cpu) fn of(format: Format) -> Option<Self> {
        let largest = match format {
            Format::Q4_0 | Format::Q4_1 => 15,
            Format::Q5_0 | Format::Q5_1 | Format::Mxfp4 => 31,
            _ => 255,
        };
        match unsigned_layout(format) {
            Some((_, offset)) => Some(Self { part: 32, offset: Some(offset).filter(|o| *o != SUMS), largest }),
            None if k_quants::has(format) => {
                Some(Self { part: k_quants::part(format), offset: None, largest: k_quants::avx2::largest(format) })
            }
            None => None,
        }
    }

    /// Those of a format, where there are integer kernels for it.
    #[cfg(target_arch = "aarch64")]
    pub(in crate::cpu) fn of(format: Format) -> Option<Self> {
        let has_addends = match format {
            Format::Q4_1 | Format::Q5_1 => true,
            format => k_quants::has(format) && k_quants::has_addends(format),
        };
        has(Isa::NeonDot, format).then(|| Self {
            part: k_quants::part(format),
            offset: if has_addends { None } else { Some(0) },
            largest: i8::MAX as u8,
        })
    }
}

/// Blocks of a row as their [`Numbers`], in the order of the columns, the factor of every part, and where there are addends
/// these.
///
/// # Safety
/// AVX2 and F16C, or NEON, must be enabled where this is expanded; there must be whole blocks, and room for what they would hold were
/// the number of columns a multiple of 128.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(in crate::cpu) unsafe fn take_apart(
    format: Format,
    blocks: &[u8],
    numbers: &mut [u8],
    factors: &mut [f32],
    addends: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    use {avxvnni as of_32, k_quants::avx2 as of_256};
    #[cfg(target_arch = "aarch64")]
    use {k_quants as of_256, neon as of_32};
    // SAFETY: as required of the caller.
    unsafe {
        match k_quants::has(format) {
            true => of_256::take_apart(format, blocks, numbers, factors, addends),
            false => of_32::take_apart(format, blocks, numbers, factors, addends),
        }
    }
}

/// Quantizes `x` `[tokens, cols]`.
pub(in crate::cpu) fn prepare(isa: Isa, x: &[f32], shape: Shape, activations: ActivationPrecision) -> Prepared {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    let (cols, fine) = (shape.cols, activations != ActivationPrecision::Int8);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = (activations, shape);
    match isa {
        #[cfg(target_arch = "x86_64")]
        isa if isa >= Isa::Avx512Vnni => {
            let format = shape.format;
            // SAFETY: the ISA says that the CPU has the instructions.
            Prepared::Split(unsafe {
                match unsigned_layout(format) {
                    Some((order, offset)) => vnni::split(x, cols, fine, order, offset),
                    None => k_quants::split(x, cols, fine, format),
                }
            })
        }
        #[cfg(target_arch = "x86_64")]
        isa if isa >= Isa::Avx2 => {
            let layout = match isa {
                Isa::AvxVnni => unsigned_layout(shape.format),
                _ => avx2::layout(shape.format, fine),
            };
            // SAFETY: as above.
            unsafe {
                match layout {
                    _ if shape.format == Format::Iq4Xs && isa != Isa::AvxVnni => Prepared::Words(avx2::words(x, 32)),
                    _ if k_quants::has(shape.format) => {
                        Prepared::Split(k_quants::avx2::split(x, cols, fine, shape.format))
                    }
                    Some((order, offset)) => Prepared::Split(avxvnni::split(x, cols, fine, order, offset)),
                    None => Prepared::Words(avx2::words(x, 32)),
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDot => {
            // addends are multiplied by the sums of the activations
            Prepared::Split(Split::new(x, cols, fine, (Order::Blocks, SUMS, k_quants::part(shape.format)), Bytes::new))
        }
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => Prepared::Words(Words::new(x, k_quants::part(shape.format))),
        _ => Prepared::Words(Words::new(x, 32)),
    }
}

/// Rows that are read side by side, so that what is loaded of the tokens serves both: those of a feed-forward layer do not fit into
/// the L1 cache. Instruction sets with fewer registers read one.
fn side_by_side(isa: Isa) -> usize {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512Vnni {
        return 2;
    }
    let _ = isa;
    1
}

/// The rows `range` of `out[t, r] = Σ_c x[t, c] w[r, c]`.
pub(in crate::cpu) fn multiply(isa: Isa, x: &Prepared, weight: &[u8], shape: Shape, range: Range<usize>, out: Output) {
    let (most, prefetch) = (side_by_side(isa), current());
    for row in range.clone().step_by(most) {
        let rows = most.min(range.end - row);
        let bytes = &weight[row * shape.row_bytes..(row + rows) * shape.row_bytes];
        let mut token = 0;
        while token < shape.tokens {
            let call = Call { bytes, shape, token, row, out, prefetch };
            token += match rows {
                2 => some_tokens::<2>(isa, x, &call),
                _ => some_tokens::<1>(isa, x, &call),
            };
        }
    }
}

/// `R` rows times as many of the tokens that are left as are best multiplied at once; returns how many.
#[inline(always)]
fn some_tokens<const R: usize>(isa: Isa, x: &Prepared, call: &Call<'_>) -> usize {
    match call.shape.tokens - call.token {
        1 => tokens::<R, 1>(isa, x, call),
        2 => tokens::<R, 2>(isa, x, call),
        // rows are unpacked for each call
        3 | 5 | 6 => tokens::<R, 3>(isa, x, call),
        _ => tokens::<R, 4>(isa, x, call),
    }
}

/// `R` rows times `M` tokens; returns `M`.
#[inline(always)]
fn tokens<const R: usize, const M: usize>(isa: Isa, x: &Prepared, call: &Call<'_>) -> usize {
    let _ = isa;
    match x {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the ISA says that the CPU has the instructions, `x` was prepared for this product, and it has
        // `M` tokens from the call's on.
        Prepared::Split(x) => unsafe {
            let k_quants = k_quants::has(call.shape.format);
            match (isa, x.high.is_empty()) {
                (Isa::AvxVnni, _) if k_quants => k_quants::avx2::row_with_vnni::<M>(x, call),
                (Isa::Avx2 | Isa::Avx512, _) if k_quants => k_quants::avx2::row::<M>(x, call),
                (Isa::AvxVnni, false) => avxvnni::bytes::<M, true>(x, call),
                (Isa::AvxVnni, true) => avxvnni::bytes::<M, false>(x, call),
                (Isa::Avx2 | Isa::Avx512, false) => avx2::bytes::<M, true>(x, call),
                (Isa::Avx2 | Isa::Avx512, true) => avx2::bytes::<M, false>(x, call),
                (_, false) => long::<R, M, true>(x, call),
                (_, true) => long::<R, M, false>(x, call),
            }
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Prepared::Words(x) if isa >= Isa::Avx2 => unsafe {
            match call.shape.format {
                Format::Iq4Xs => k_quants::avx2::row_of_words::<M>(x, call),
                _ => avx2::of_words::<M>(x, call),
            }
        },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Prepared::Split(x) => unsafe {
            match k_quants::has(call.shape.format) {
                true => k_quants::bytes::<M>(x, call),
                false => neon::bytes::<M>(x, call),
            }
        },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Prepared::Words(x) if isa >= Isa::Neon => unsafe {
            match k_quants::has(call.shape.format) {
                true => k_quants::words::<M>(x, call),
                false => neon::words::<M>(x, call),
            }
        },
        Prepared::Words(x) => portable::<M>(x, call),
    }
    M
}

/// With the VNNI of AVX-512.
///
/// # Safety
/// The CPU must have it, and the activations must have been prepared for it.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn long<const R: usize, const M: usize, const FINE: bool>(x: &Split, call: &Call<'_>) {
    // SAFETY: as required of the caller.
    unsafe {
        match call.shape.format {
            Format::Q8_0 => vnni::q8::<R, M, FINE>(x, call),
            Format::Q4_0 => vnni::nibbles::<vnni::Q40, R, M, FINE, 18, 72>(x, call),
            Format::Q4_1 => vnni::nibbles::<vnni::Q41, R, M, FINE, 20, 80>(x, call),
            Format::Q5_0 => vnni::nibbles::<vnni::Q50, R, M, FINE, 22, 88>(x, call),
            Format::Q5_1 => vnni::nibbles::<vnni::Q51, R, M, FINE, 24, 96>(x, call),
            Format::Mxfp4 => vnni::nibbles::<vnni::Mxfp4, R, M, FINE, 17, 68>(x, call),
            Format::Iq4Nl => vnni::nibbles::<vnni::Iq4Nl, R, M, FINE, 18, 72>(x, call),
            _ => k_quants::rows::<R, M>(x, call),
        }
    }
}

/// In plain Rust.
fn portable<const M: usize>(x: &Words, call: &Call<'_>) {
    let Shape { format, cols, .. } = call.shape;
    let block_bytes = format.block_bytes();
    let blocks = cols / 32;
    let mut sums = [0f32; M];
    for b in 0..blocks {
        let block = &call.bytes[b * block_bytes..(b + 1) * block_bytes];
        let mut weights = [0i16; 32];
        let nibbles = |quants: &[u8], weights: &mut [i16; 32], number: &dyn Fn(usize, u8) -> i16| {
            for (i, q) in quants.iter().enumerate() {
                (weights[i], weights[i + 16]) = (number(i, q & 15), number(i + 16, q >> 4));
            }
        };
        let scale = |at: usize| f16_to_f32([block[at], block[at + 1]]);
        let with_fifth = |block: &[u8], weights: &mut [i16; 32], offset: i16| {
            let (bits, quants) = block.split_at(4);
            let fifth = |i: usize| bits[i / 8] >> (i % 8) & 1;
            nibbles(quants, weights, &|i, nibble| i16::from(nibble | fifth(i) << 4) - offset);
        };
        let levels = |quants: &[u8], weights: &mut [i16; 32], levels: &[i8; 16]| {
            nibbles(quants, weights, &|_, nibble| i16::from(levels[usize::from(nibble)]));
        };
        let (factor, addend) = match format {
            Format::Mxfp4 => (half_of_e8m0(block[0]), 0.0),
            Format::Q4_1 | Format::Q5_1 => (scale(0), scale(2)),
            _ => (scale(0), 0.0),
        };
        match format {
            Format::Q8_0 => weights.iter_mut().zip(&block[2..]).for_each(|(to, q)| *to = i16::from(q.cast_signed())),
            Format::Q4_0 => nibbles(&block[2..], &mut weights, &|_, nibble| i16::from(nibble) - 8),
            Format::Q4_1 => nibbles(&block[4..], &mut weights, &|_, nibble| i16::from(nibble)),
            Format::Q5_0 => with_fifth(&block[2..], &mut weights, 16),
            Format::Q5_1 => with_fifth(&block[4..], &mut weights, 0),
            Format::Mxfp4 => levels(&block[1..], &mut weights, &FP4_LEVELS),
            _ => levels(&block[2..], &mut weights, &IQ4_LEVELS),
        }
        for (t, sum) in sums.iter_mut().enumerate() {
            let at = (call.token + t) * blocks + b;
            let x_block = &x.values[at * 32..(at + 1) * 32];
            let exact: i32 = x_block.iter().zip(&weights).map(|(x, w)| i32::from(*x) * i32::from(*w)).sum();
            *sum += exact as f32 * (factor * x.scales[at]) + addend * x.scales[at] * x.sums[at] as f32;
        }
    }
    for (t, sum) in sums.into_iter().enumerate() {
        // SAFETY: `M` tokens exist.
        unsafe { call.write(0, t, sum) };
    }
}
