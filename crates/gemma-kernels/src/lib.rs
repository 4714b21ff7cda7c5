//! The operations Burn lacks, as Burn backend extensions: products with packed weights, and attention over a cache.
//!
//! This is the engine room. A weight matrix stays as it lies in its file ([`PackedWeight`]: bf16 rows or
//! GGML blocks, borrowed from a memory map where there is one), and operations compute with it or with a cache in
//! place, or take a recurrent layer's steps:
//!
//! - [`packed_linear`]: `y = x Wᵀ`, accumulated in f32;
//! - [`packed_rows`]: an embedding look-up;
//! - [`attend`]: softmax attention of a segment's queries over a cache and over the segment itself;
//! - [`linear_recurrence`]: `h[t] = a[t] h[t-1] + b[t]`, from token to token, and [`gated_decay`], which makes its
//!   coefficients.
//!
//! On the CPU, [`geglu`], [`rms_norm`] and [`rotate`] pass over their operands once, too.
//!
//! Each exists once for the CPU (`cpu/`: slices in, slices out, shared by the ndarray and flex backends; the
//! instruction set is chosen at run time) and once for CubeCL runtimes such as wgpu (`cube/`). Each has a plain
//! twin made of Burn's own operations ([`plain`]), which the tests compare with and which training
//! differentiates; the recurrence, which in such operations would be a loop over tokens, has a gradient of its own.
//!
//! This is also the only crate of the workspace that contains `unsafe`: for SIMD, for threads that write to one result,
//! for mapping files and for the allocator.

#![allow(unsafe_code, reason = "SIMD kernels, their threads, memory maps and the allocator live here, and only here")]

mod activations;
mod cpu;
#[cfg(feature = "wgpu")]
mod cube;
mod error;
mod format;
mod frozen;
mod fused;
mod large;
mod map;
pub mod math;
mod ops;
mod packed;
mod past;
mod phase;
pub mod plain;
mod recurrence;
mod visibility;

pub use activations::ActivationPrecision;
pub use cpu::{Level, LevelError, chosen_level, cpu_level};
pub use error::KernelError;
pub use format::{Format, ParseFormatError};
pub use frozen::{FrozenOps, FrozenRows, packed_linear_rows, packed_transposed};
pub use fused::{Fused, FusedOps, geglu, rms_norm, rotate};
pub use large::LargeBlocks;
pub use map::{map_file, report_lost_maps};
pub use ops::{KernelOps, attend, packed_linear, packed_rows};
pub use packed::PackedWeight;
pub use past::{CachePrecision, ParseCachePrecisionError, Past, from_halves, halves};
pub use phase::Phase;
pub use recurrence::{GateOps, RecurrenceOps, RecurrentGates, gated_decay, linear_recurrence};
pub use visibility::{AttendParams, Visibility};
