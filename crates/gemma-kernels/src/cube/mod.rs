//! The operations for CubeCL runtimes: wgpu above all.
//!
//! The kernels keep to what WGSL has everywhere: 32-bit words, no 8- or 16-bit types, no bf16, 256 units to a cube,
//! less than 32 KiB of shared memory; subgroup operations only where the adapter says that it has them. Packed bytes
//! arrive as `u32` words, each row padded to a whole word, and are taken apart with shifts ([`dequantize`]); every sum
//! is in f32.
//!
//! - [`linear`]: `y = x Wᵀ`, one kernel for a few tokens and one for many;
//! - [`rows`]: an embedding look-up;
//! - [`attention`]: softmax attention over pages of keys or over rows, where they lie, and writing them;
//! - [`recurrence`]: `h[t] = a[t] h[t-1] + b[t]`, a unit per channel;
//! - [`gated_decay`]: its coefficients; [`conv`]: the convolution before it;
//! - [`heads`]: norms and rotation of queries and keys;
//! - [`residual`]: additions to the residual stream, with the norm of the sum;
//! - [`elementwise`]: what else lies between the products;
//! - [`sampling`]: the largest logits of a row;
//! - [`math`]: functions that drivers compute badly.
//!
//! # Index arithmetic
//!
//! Indices in kernels are 32 bits wide and count elements (words or floats), never bytes, so a buffer may hold
//! up to 16 GiB. What a device binds at once is less; [`PackedWeight`](crate::PackedWeight) cuts its rows into
//! shards accordingly.

mod attention;
mod conv;
mod dequantize;
mod elementwise;
mod gated_decay;
mod heads;
mod linear;
mod math;
mod recurrence;
mod residual;
mod rows;
mod sampling;

pub(crate) use attention::{Source, attend, write_pages};
pub(crate) use conv::causal_conv;
pub(crate) use elementwise::elementwise;
pub(crate) use gated_decay::gated_decay;
pub(crate) use heads::norm_and_rotate;
pub(crate) use linear::{feed_forward, packed_linear, packed_linears};
pub(crate) use recurrence::linear_recurrence;
pub(crate) use residual::add_then_norm;
pub(crate) use rows::packed_rows;
pub(crate) use sampling::largest;

use crate::Format;
use burn::tensor::{DType, Shape};
use burn_cubecl::{kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor};
use cubecl::prelude::*;

/// What WebGPU guarantees for each dimension of a dispatch.
const MOST_CUBES: usize = 65_535;

/// At least `cubes` cubes, spread over two dimensions where one does not hold them. Kernels compute their place
/// from `CUBE_POS` and let the few surplus cubes store nothing.
fn cube_count(cubes: usize) -> CubeCount {
    let lines = cubes.div_ceil(MOST_CUBES).max(1);
    CubeCount::Static(cubes.div_ceil(lines) as u32, lines as u32, 1)
}

/// An f32 tensor with undefined content, beside `like`.
fn output(like: &CubeTensor, shape: impl Into<Shape>) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape.into(), DType::F32)
}

/// Whether a tensor of this shape has no element, so that there is nothing to launch.
fn is_empty(tensor: &CubeTensor) -> bool {
    tensor.meta.shape().num_elements() == 0
}

/// A tensor as a kernel reads it: f32, row-major.
fn floats(tensor: CubeTensor) -> CubeTensor {
    assert_eq!(tensor.dtype, DType::F32, "the kernels compute in f32");
    into_contiguous(tensor)
}

/// The words of a packed matrix whose rows hold `cols` values, and `[rows, words per row]`.
fn packed(words: CubeTensor, format: Format, cols: usize) -> (CubeTensor, [usize; 2]) {
    assert_eq!(words.dtype, DType::U32, "packed weights are 32-bit words");
    let shape = words.meta.shape().dims::<2>();
    let row_words = format.row_bytes(cols).map(|bytes| bytes.div_ceil(4));
    assert_eq!(row_words, Some(shape[1]), "a row of the weight fills its words");
    (into_contiguous(words), shape)
}

#[cfg(test)]
mod tests;
