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

use super::level::Level;
use super::linear::Shape;
use super::output::Output;
#[cfg(target_arch = "aarch64")]
use super::quantize::Bytes;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::quantize::Split;
use super::quantize::Words;
#[cfg(target_arch = "x86_64")]
use super::superblocks;
use crate::{ActivationPrecision, Format};
use half::f16;
use std::ops::Range;

/// The activations of a product, in the form that the level's kernel reads.
pub(super) enum Prepared {
    Words(Words),
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    Split(Split),
}

/// Whether there are integer kernels for this format.
pub(super) fn has(level: Level, format: Format) -> bool {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512Vnni && superblocks::has(format) {
        return true;
    }
    let _ = level;
    matches!(format, Format::Q8_0 | Format::Q4_0)
}

/// Quantizes `x` `[tokens, cols]`.
pub(super) fn prepare(level: Level, x: &[f32], shape: Shape, activations: ActivationPrecision) -> Prepared {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    let (cols, fine) = (shape.cols, activations != ActivationPrecision::Int8);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = (activations, shape);
    match level {
        #[cfg(target_arch = "x86_64")]
        level if level >= Level::Avx512Vnni => {
            let format = shape.format;
            // SAFETY: the level says that the CPU has the instructions.
            Prepared::Split(unsafe {
                match format {
                    Format::Q4_0 => vnni::split(x, cols, fine, true, 8),
                    Format::Q8_0 => vnni::split(x, cols, fine, false, 128),
                    _ => superblocks::split(x, cols, fine, superblocks::part(format)),
                }
            })
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::AvxVnni => Prepared::Split(unsafe {
            match shape.format {
                Format::Q4_0 => avxvnni::split(x, cols, fine, true, 8),
                _ => avxvnni::split(x, cols, fine, false, 128),
            }
        }),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 | Level::Avx512 => Prepared::Words(unsafe { avx2::words(x) }),
        #[cfg(target_arch = "aarch64")]
        Level::NeonDot => Prepared::Split(Split::new(x, cols, fine, (false, 0, 32), Bytes::new)),
        _ => Prepared::Words(Words::new(x)),
    }
}

/// The rows `range` of `out[t, r] = Σ_c x[t, c] w[r, c]`.
pub(super) fn multiply(level: Level, x: &Prepared, weight: &[u8], shape: Shape, range: Range<usize>, out: Output) {
    for row in range {
        let bytes = &weight[row * shape.row_bytes..(row + 1) * shape.row_bytes];
        let mut token = 0;
        while token < shape.tokens {
            let call = Call { bytes, shape, token, row, out };
            token += match shape.tokens - token {
                1 => tokens::<1>(level, x, &call),
                2 | 3 => tokens::<2>(level, x, &call),
                _ => tokens::<4>(level, x, &call),
            };
        }
    }
}

/// One row times some tokens, from `token` on. The calling task owns the row.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) shape: Shape,
    pub(super) token: usize,
    row: usize,
    out: Output,
}

impl Call<'_> {
    /// # Safety
    /// `t` must be one of the call's tokens.
    #[inline(always)]
    pub(super) unsafe fn write(&self, t: usize, sum: f32) {
        // SAFETY: the task owns the row, and the token exists.
        unsafe { *self.out.at((self.token + t) * self.shape.rows + self.row) = sum };
    }
}

#[inline(always)]
fn tokens<const M: usize>(level: Level, x: &Prepared, call: &Call<'_>) -> usize {
    #[cfg(target_arch = "x86_64")]
    let q4 = call.shape.format == Format::Q4_0;
    let _ = level;
    match x {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level says that the CPU has the instructions, `x` was prepared for this product, and it has
        // `M` tokens from the call's on.
        Prepared::Split(x) if superblocks::has(call.shape.format) => unsafe { superblocks::row::<M>(x, call) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Prepared::Split(x) if level == Level::AvxVnni => unsafe {
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
        Prepared::Words(x) if level >= Level::Avx2 => unsafe {
            if q4 { avx2::q4::<M>(x, call) } else { avx2::q8::<M>(x, call) }
        },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Prepared::Split(x) => unsafe { neon::bytes::<M>(x, call) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Prepared::Words(x) if level >= Level::Neon => unsafe { neon::words::<M>(x, call) },
        Prepared::Words(x) => portable::<M>(x, call),
    }
    M
}

/// The bytes of group `g` of a row, which are `FOUR`: in the row, or, where the row ends within the group, in `last`,
/// filled up with zeros.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
fn group<const FOUR: usize>(row: &[u8], g: usize, last: &mut [u8; FOUR]) -> *const u8 {
    let rest = &row[g * FOUR..];
    if rest.len() >= FOUR {
        return rest.as_ptr();
    }
    last[..rest.len()].copy_from_slice(rest);
    last[rest.len()..].fill(0);
    last.as_ptr()
}

/// The scales of a group's blocks of `SIZE` bytes, halves as they lie, the first one lowest. Scalar loads leave the vector
/// units to the products.
///
/// # Safety
/// Four blocks must be readable.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
unsafe fn halves<const SIZE: usize>(group: *const u8) -> u64 {
    // SAFETY: as required of the caller.
    let half = |b: usize| unsafe { u64::from(group.add(b * SIZE).cast::<u16>().read_unaligned()) };
    half(0) | half(1) << 16 | half(2) << 32 | half(3) << 48
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
