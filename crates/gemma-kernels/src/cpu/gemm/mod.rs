//! Products of many tokens with a matrix (GEMM): arithmetic is the limit, so everything serves the innermost loop.
//!
//! - [`panel`]: how rows are decoded into panels and multiplied with packed activations;
//! - [`unit`]: what multiplies a panel, and a panel that is filled meanwhile; [`f32`], `bf16` and `amx` are such units;
//! - [`tile`]: the register tile of the vector units;
//! - `feed_forward`: the products of a feed-forward layer, with what lies between them;
//! - `scaled`: quantized weights whose numbers are multiplied in bf16 and scaled afterwards;
//! - `int8`: quantized weights with activations as integers.

#[cfg(target_arch = "x86_64")]
pub(in crate::cpu) mod amx;
#[cfg(target_arch = "x86_64")]
pub(in crate::cpu) mod bf16;
pub(in crate::cpu) mod f32;
#[cfg(target_arch = "x86_64")]
pub(in crate::cpu) mod feed_forward;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(in crate::cpu) mod int8;
pub(in crate::cpu) mod panel;
#[cfg(target_arch = "x86_64")]
pub(in crate::cpu) mod scaled;
pub(in crate::cpu) mod tile;
pub(in crate::cpu) mod unit;
