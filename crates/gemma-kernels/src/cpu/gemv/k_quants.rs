//! Products of few tokens with weights in blocks of 256 (Q4_K, Q5_K, Q6_K), in integers.
//!
//! The parts of such a block, 16 or 32 values each, have a scale and an addend of their own, while 32 activations share
//! a scale: a part's sum over integers is exact, and is turned into f32 once.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod vnni;

use crate::Format;

#[cfg(target_arch = "x86_64")]
pub(in crate::cpu) use avx2::row as words;
#[cfg(target_arch = "aarch64")]
pub(in crate::cpu) use neon::{bytes, words};
#[cfg(target_arch = "x86_64")]
pub(in crate::cpu) use vnni::{part, row as bytes, split};

/// Values of a block.
const BLOCK: usize = 256;

/// Whether there are kernels here for this format.
pub(in crate::cpu) fn has(format: Format) -> bool {
    matches!(format, Format::Q4K | Format::Q5K | Format::Q6K)
}
