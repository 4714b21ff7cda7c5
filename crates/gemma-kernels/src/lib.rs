//! The operations Burn lacks, as Burn backend extensions: products with packed weights, and attention over paged KV
//! caches.
//!
//! A weight matrix stays as it lies in its file ([`PackedWeight`]: bf16 rows or GGML blocks, borrowed from a memory map
//! where there is one), and operations compute with it or with a cache in place:
//!
//! - [`packed_linear`]: `y = x Wᵀ`, accumulated in f32; [`packed_linear_in`], with a bias as well;
//! - [`packed_linears`]: the same with several matrices at once, such as those of queries, keys and values;
//! - [`feed_forward`]: the products of a feed-forward layer, and GELU between them;
//! - [`packed_rows`]: an embedding look-up;
//! - [`packed_transposed`]: `x = y W`, which hands gradients on through a frozen matrix, and [`packed_linear_rows`], over
//!   some rows; [`adapted_linear`]: a product with low-rank factors beside the matrix;
//! - [`attend`]: softmax attention of the queries of all sequences of a call over the pages of their KV caches
//!   ([`KvPages`]), to which [`append`] adds keys and values;
//! - [`linear_recurrence`]: `h[t] = a[t] h[t-1] + b[t]`, from token to token, [`gated_decay`], which makes its
//!   coefficients, and [`causal_conv`] before it;
//! - [`geglu`], [`gelu_of_biased`], [`rms_norm`], [`add_then_norm`] and [`rotate`], which pass over their operands once;
//! - [`largest`]: the largest logits of a row, without the others.
//!
//! [`watch`] counts what a computation asks of a GPU: launches and transfers.
//!
//! The functions are in `ops/`, each with a [`reference`](mod@reference) implementation made of Burn's own operations, which the tests
//! compare with and which training differentiates. `backend/` has a file for each backend. The kernels exist once for the
//! CPU (`cpu/`: slices in, slices out, shared by the ndarray and flex backends; the instruction set is chosen at run time)
//! and once for CubeCL runtimes such as wgpu (`cube/`).
//!
//! This is also the only crate of the workspace that contains `unsafe`: for SIMD, for threads that write to one result,
//! for mapping files and for the allocator.

#![allow(unsafe_code, reason = "SIMD kernels, their threads, memory maps and the allocator live here, and only here")]

mod activations;
mod backend;
mod cpu;
#[cfg(feature = "wgpu")]
mod cube;
mod error;
mod format;
mod kv;
mod large;
mod map;
pub mod math;
mod ops;
mod packed;
mod phase;
mod traffic;
mod visibility;

pub use activations::ActivationPrecision;
pub use cpu::{
    Isa, IsaError, Prefetch, PrefetchError, chosen_isa, chosen_prefetch, cpu_isa, memory_bandwidth, prefetches,
    softmax_terms,
};
pub use error::KernelError;
pub use format::{Format, ParseFormatError};
pub use kv::{CachePrecision, KvPages, KvPool, PAGE_LEN, PageId, ParseCachePrecisionError};
pub use large::LargeBlocks;
pub use map::{map_file, report_lost_maps};
pub use ops::adapted::{AdaptedOps, LowRank, adapted_linear};
pub use ops::attention::{AttendSegment, AttentionOps, CacheRows, PagedCall, append, attend};
pub use ops::conv::{ConvOps, causal_conv};
pub use ops::elementwise::{
    Elementwise, ElementwiseOps, add_bias, geglu, gelu_of_biased, layer_norm, rms_norm, rotate, softcap,
};
pub use ops::feed_forward::{FeedForward, feed_forward};
pub use ops::frozen::{FrozenOps, FrozenRows, packed_linear_rows, packed_transposed};
pub use ops::heads::{HeadOps, norm_and_rotate};
pub use ops::largest::{Largest, LargestOps, MOST_LARGEST, is_apart, largest};
pub use ops::linear::{
    Arithmetic, LayerShape, LinearOps, LinearShape, LinearsShape, PackedLinear, packed_linear, packed_linear_in,
    packed_linears, packed_rows,
};
pub use ops::recurrence::{GateOps, RecurrenceOps, RecurrentGates, gated_decay, linear_recurrence};
pub use ops::residual::{NormWeight, ResidualEps, ResidualOps, add_then_norm};
pub use ops::whole_attention::{WholeAttentionOps, WholeSequence};
pub use packed::PackedWeight;
pub use phase::Phase;
pub use traffic::{Traffic, Way, indices, note, watch};
pub use visibility::{AttendParams, Visibility};

/// The reference implementation of each kernel, made of Burn's own tensor operations: it says in the shortest way what
/// the kernel computes, runs on every backend, and is differentiable.
pub mod reference {
    pub use crate::ops::adapted::reference_adapted_linear as adapted_linear;
    pub use crate::ops::attention::reference_attend as attend;
    pub use crate::ops::conv::reference_causal_conv as causal_conv;
    pub use crate::ops::elementwise::{
        reference_add_bias as add_bias, reference_geglu as geglu, reference_gelu_of_biased as gelu_of_biased,
        reference_layer_norm as layer_norm, reference_rms_norm as rms_norm, reference_rotate as rotate,
        reference_softcap as softcap,
    };
    pub use crate::ops::feed_forward::reference_feed_forward as feed_forward;
    pub use crate::ops::heads::reference_norm_and_rotate as norm_and_rotate;
    pub use crate::ops::largest::reference_largest as largest;
    pub use crate::ops::recurrence::{
        reference_gated_decay as gated_decay, reference_linear_recurrence as linear_recurrence,
    };
    pub use crate::ops::residual::reference_add_then_norm as add_then_norm;
}
