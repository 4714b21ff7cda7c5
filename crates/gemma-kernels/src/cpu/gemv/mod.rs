//! Products of few tokens with a matrix (GEMV): the time is that of reading the weights once, row after row.
//!
//! - [`float`]: activations in f32;
//! - [`int8`]: activations as integers, for quantized weights; `k_quants` for blocks of 256;
//! - [`row`]: what the kernels share;
//! - [`prefetch`]: how memory is requested ahead.

pub(in crate::cpu) mod float;
pub(in crate::cpu) mod int8;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(in crate::cpu) mod k_quants;
pub(in crate::cpu) mod prefetch;
pub(in crate::cpu) mod row;
