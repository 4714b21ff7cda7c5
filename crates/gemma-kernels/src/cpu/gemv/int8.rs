//! Products of few tokens with quantized weights, in integers.
//!
//! Within a block of 32 values the sums of each lane are exact; they are turned into f32, times the scales of both
//! sides, and added. Where bytes are multiplied four at a time (VNNI, NEON's dot products), 16-bit activations are two products of bytes;
//! elsewhere 16-bit numbers are multiplied as they are.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avxvnni;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod vnni;

#[cfg(target_arch = "x86_64")]
use super::k_quants;
use super::row::Call;
use crate::cpu::isa::Isa;
use crate::cpu::output::Output;
#[cfg(target_arch = "aarch64")]
use crate::cpu::quantize::Bytes;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::cpu::quantize::Split;
use crate::cpu::quantize::Words;
use crate::cpu::shape::Shape;
use crate::{ActivationPrecision, Format};
use half::f16;
use std::ops::Range;

/// The activations of a product, in the form that the instruction set's kernel reads.
pub(in crate::cpu) enum Prepared {
    Words(Words),
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    Split(Split),
}

/// Whether there are integer kernels for this format.
pub(in crate::cpu) fn has(isa: Isa, format: Format) -> bool {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512Vnni && k_quants::has(format) {
        return true;
    }
    let _ = isa;
    matches!(format, Format::Q8_0 | Format::Q4_0)
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
                match format {
                    Format::Q4_0 => vnni::split(x, cols, fine, true, 8),
                    Format::Q8_0 => vnni::split(x, cols, fine, false, 128),
                    _ => k_quants::split(x, cols, fine, k_quants::part(format)),
                }
            })
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::AvxVnni => Prepared::Split(unsafe {
            match shape.format {
                Format::Q4_0 => avxvnni::split(x, cols, fine, true, 8),
                _ => avxvnni::split(x, cols, fine, false, 128),
            }
        }),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 | Isa::Avx512 => Prepared::Words(unsafe { avx2::words(x) }),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDot => Prepared::Split(Split::new(x, cols, fine, (false, 0, 32), Bytes::new)),
        _ => Prepared::Words(Words::new(x)),
    }
}

/// The rows `range` of `out[t, r] = Σ_c x[t, c] w[r, c]`.
pub(in crate::cpu) fn multiply(isa: Isa, x: &Prepared, weight: &[u8], shape: Shape, range: Range<usize>, out: Output) {
    for row in range {
        let bytes = &weight[row * shape.row_bytes..(row + 1) * shape.row_bytes];
        let mut token = 0;
        while token < shape.tokens {
            let call = Call { bytes, shape, token, row, out };
            token += match shape.tokens - token {
                1 => tokens::<1>(isa, x, &call),
                2 | 3 => tokens::<2>(isa, x, &call),
                _ => tokens::<4>(isa, x, &call),
            };
        }
    }
}

#[inline(always)]
fn tokens<const M: usize>(isa: Isa, x: &Prepared, call: &Call<'_>) -> usize {
    #[cfg(target_arch = "x86_64")]
    let q4 = call.shape.format == Format::Q4_0;
    let _ = isa;
    match x {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the ISA says that the CPU has the instructions, `x` was prepared for this product, and it has
        // `M` tokens from the call's on.
        Prepared::Split(x) if k_quants::has(call.shape.format) => unsafe { k_quants::row::<M>(x, call) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Prepared::Split(x) if isa == Isa::AvxVnni => unsafe {
            match (q4, !x.high.is_empty()) {
                (false, true) => avxvnni::q8::<M, true>(x, call),
                (false, false) => avxvnni::q8::<M, false>(x, call),
                (true, true) => avxvnni::q4::<M, true>(x, call),
                (true, false) => avxvnni::q4::<M, false>(x, call),
            }
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Prepared::Split(x) => unsafe {
            match (q4, !x.high.is_empty()) {
                (false, true) => vnni::q8::<M, true>(x, call),
                (false, false) => vnni::q8::<M, false>(x, call),
                (true, true) => vnni::q4::<M, true>(x, call),
                (true, false) => vnni::q4::<M, false>(x, call),
            }
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Prepared::Words(x) if isa >= Isa::Avx2 => unsafe {
            if q4 { avx2::q4::<M>(x, call) } else { avx2::q8::<M>(x, call) }
        },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Prepared::Split(x) => unsafe { neon::bytes::<M>(x, call) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Prepared::Words(x) if isa >= Isa::Neon => unsafe { neon::words::<M>(x, call) },
        Prepared::Words(x) => portable::<M>(x, call),
    }
    M
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
        if format == Format::Q8_0 {
            weights.iter_mut().zip(&block[2..]).for_each(|(to, q)| *to = i16::from(q.cast_signed()));
        } else {
            for (i, q) in block[2..].iter().enumerate() {
                weights[i] = i16::from(q & 15) - 8;
                weights[i + 16] = i16::from(q >> 4) - 8;
            }
        }
        let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
        for (t, sum) in sums.iter_mut().enumerate() {
            let at = (call.token + t) * blocks + b;
            let x_block = &x.values[at * 32..(at + 1) * 32];
            let exact: i32 = x_block.iter().zip(&weights).map(|(x, w)| i32::from(*x) * i32::from(*w)).sum();
            *sum += exact as f32 * (scale * x.scales[at]);
        }
    }
    for (t, sum) in sums.into_iter().enumerate() {
        // SAFETY: `M` tokens exist.
        unsafe { call.write(t, sum) };
    }
}
