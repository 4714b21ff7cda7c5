//! The operations on the CPU: slices in, slices out, for the ndarray and the flex backend alike.
//!
//! `level` finds out what the CPU can do, `lanes` is the vector type of each instruction set, `pool` the
//! threads. `linear` decides how a product is computed: `stream` or `integer`, which hands blocks of 256 to
//! `superblocks`, for few tokens, `blocked`, `pairs` or `bytes` for many, with blocks of parts taken apart by `parts`.
//! `attention` is one algorithm for both; its innermost loop, and that of `blocked`, is in `tile`. `transposed` is the product that
//! hands gradients on. `recurrence` and
//! `gates` are RecurrentGemma's.

use std::mem::MaybeUninit;

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod blocked;
#[cfg(all(test, unix))]
mod bounds;
mod buffer;
#[cfg(target_arch = "x86_64")]
mod bytes;
mod decode;
mod fused;
mod gates;
mod integer;
mod lanes;
mod level;
mod linear;
mod output;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod parts;
mod pool;
mod quantize;
mod recurrence;
mod stream;
#[cfg(target_arch = "x86_64")]
mod superblocks;
mod tile;
mod transposed;

pub(crate) use attention::{AttendShape, Keys, Stored, attend};
pub(crate) use fused::{geglu, rms_norm, rotate};
pub(crate) use gates::{Gates, gated_decay};
pub use level::{Level, LevelError, chosen_level, cpu_level};
pub(crate) use linear::{linear, rows};
pub(crate) use recurrence::{Recurrence, linear_recurrence};
pub(crate) use transposed::transposed;

/// `len` values, all of which `write` writes: they are not set to zero before.
///
/// # Safety
/// `write` must write every value, or panic.
#[cfg(any(feature = "ndarray", feature = "flex"))]
pub(crate) unsafe fn written(len: usize, write: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    write(&mut values.spare_capacity_mut()[..len]);
    // SAFETY: there is room for as many, and the caller says that all were written.
    unsafe { values.set_len(len) };
    values
}

/// Values from -1 to 1, the same for the same seed.
#[cfg(test)]
pub(crate) fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut value = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| value()).collect()
}

/// Values as places to write to.
#[cfg(test)]
fn places(values: &mut [f32]) -> &mut [MaybeUninit<f32>] {
    // SAFETY: the layout is the same, and kernels only write values.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), values.len()) }
}
