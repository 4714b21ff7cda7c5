//! The operations on the CPU: slices in, slices out, for the ndarray and the flex backend alike.
//!
//! - [`linear`]: products with a matrix, [`gemv`] for few tokens and [`gemm`] for many;
//! - [`transposed`]: the product that hands gradients on through a frozen matrix; [`low_rank`]: those with the factors beside
//!   it;
//! - [`attention`], [`elementwise`], [`conv`], [`recurrence`], [`gated_decay`]: what lies between the products;
//! - [`isa`]: the instruction sets of the CPU, and a vector type for each; [`pool`]: the threads;
//! - [`dequantize`], [`sub_blocks`], [`quantize`], `bf16`: weights and activations in other formats.

use std::mem::MaybeUninit;

mod attention;
mod bandwidth;
#[cfg(target_arch = "x86_64")]
mod bf16;
#[cfg(all(test, unix))]
mod bounds;
mod buffer;
mod conv;
mod dequantize;
mod elementwise;
mod gated_decay;
mod gemm;
mod gemv;
mod isa;
mod linear;
mod low_rank;
mod output;
mod pool;
mod product;
mod quantize;
mod recurrence;
mod shape;
mod sub_blocks;
mod transposed;

pub(crate) use attention::{Heads, Keys, Sequence, Stored, attend, attend_gradient};
pub use bandwidth::memory_bandwidth;
pub(crate) use conv::causal_conv;
pub use elementwise::softmax_terms;
pub(crate) use elementwise::{
    add_bias, add_then_norm, biased, geglu, geglu_gradient, gelu_of_biased, layer_norm, rms_norm, rms_norm_gradient,
    rotate, softcap,
};
pub(crate) use gated_decay::{Gates, gated_decay};
pub use gemv::prefetch::{Prefetch, PrefetchError, chosen_prefetch, prefetches};
pub use isa::{Isa, IsaError, chosen_isa, cpu_isa};
pub(crate) use linear::{FeedForward, Matrix, feed_forward, linear, linears, rows};
pub(crate) use low_rank::{narrow, outer, transpose, widen};
pub(crate) use recurrence::{Recurrence, linear_recurrence};
pub(crate) use transposed::transposed;

/// `len` values, all of which `write` writes: they are not set to zero before.
///
/// # Safety
/// `write` must write every value, or panic.
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

/// A random matrix in a format: its bytes, and the values that they stand for.
#[cfg(test)]
fn encoded(format: crate::Format, rows: usize, cols: usize) -> (Vec<u8>, Vec<f32>) {
    let row_bytes = format.row_bytes(cols).unwrap();
    let weight = if crate::Format::READ_ONLY.contains(&format) {
        crate::format::low_bits::tests::blocks(format, rows, cols)
    } else {
        let mut weight = vec![0; rows * row_bytes];
        let values = noise(rows * cols, 1);
        let rows = weight.chunks_exact_mut(row_bytes).zip(values.chunks_exact(cols));
        rows.for_each(|(bytes, values)| format.encode_row(values, bytes));
        weight
    };
    let mut decoded = vec![0.0; rows * cols];
    let rows = weight.chunks_exact(row_bytes).zip(decoded.chunks_exact_mut(cols));
    rows.for_each(|(bytes, values)| format.decode_row(bytes, values));
    (weight, decoded)
}

/// All formats, those that are only read among them.
#[cfg(test)]
fn all_formats() -> impl Iterator<Item = crate::Format> {
    crate::Format::ALL.into_iter().chain(crate::Format::READ_ONLY)
}
