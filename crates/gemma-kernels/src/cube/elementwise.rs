//! What lies between the products, a launch each: GELU, alone and as a gate, the norm of rows, the rotation of heads and the soft cap.

use super::math::{gelu, tanh};
use super::{cube_count, floats, is_empty, output};
use crate::ops::elementwise::Elementwise;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Units of a cube.
pub(super) const UNITS: usize = 256;

/// The operation on `x`, with one or two further operands.
///
/// # Panics
/// When the shapes contradict each other.
pub(crate) fn elementwise(x: CubeTensor, first: CubeTensor, second: CubeTensor, operation: Elementwise) -> CubeTensor {
    let shape = x.meta.shape().clone();
    let out = output(&x, shape.clone());
    if is_empty(&out) {
        return out;
    }
    let client = x.client.clone();
    let work = shape.num_elements();
    let (x, first) = (floats(x), floats(first));
    let (cubes, dim) = (cube_count(work.div_ceil(UNITS)), CubeDim::new_1d(UNITS as u32));
    match operation {
        Elementwise::GeGlu => {
            assert_eq!(first.meta.shape(), &shape, "a gate for every value");
            // SAFETY: units past the last value do nothing, and all buffers have as many.
            unsafe {
                geglu_kernel::launch_unchecked(
                    &client,
                    cubes,
                    dim,
                    x.into_buffer_arg(),
                    first.into_buffer_arg(),
                    out.clone().into_buffer_arg(),
                    work,
                );
            }
        }
        Elementwise::RmsNorm { eps } => {
            let [rows, width] = shape.dims::<2>();
            assert_eq!(first.meta.shape().num_elements(), width, "a weight for every column");
            // SAFETY: the surplus cubes repeat the last row and write nothing; columns are guarded.
            unsafe {
                norm_kernel::launch_unchecked(
                    &client,
                    cube_count(rows),
                    dim,
                    x.into_buffer_arg(),
                    first.into_buffer_arg(),
                    out.clone().into_buffer_arg(),
                    rows,
                    width,
                    eps,
                );
            }
        }
        Elementwise::GeluOfBiased => {
            let [_, width] = shape.dims::<2>();
            assert_eq!(first.meta.shape().dims::<1>(), [width], "a bias for every column");
            // SAFETY: units past the last value do nothing, and there is a bias for every column.
            unsafe {
                gelu_kernel::launch_unchecked(
                    &client,
                    cubes,
                    dim,
                    x.into_buffer_arg(),
                    first.into_buffer_arg(),
                    out.clone().into_buffer_arg(),
                    work,
                    width,
                );
            }
        }
        Elementwise::AddBias | Elementwise::LayerNorm { .. } => {
            unreachable!("GPUs compute {operation:?} with Burn's operations")
        }
        // SAFETY: units past the last value do nothing.
        Elementwise::Softcap { cap } => unsafe {
            softcap_kernel::launch_unchecked(
                &client,
                cubes,
                dim,
                x.into_buffer_arg(),
                out.clone().into_buffer_arg(),
                work,
                cap,
            );
        },
        Elementwise::Rotate => {
            let [tokens, heads, head_dim] = shape.dims::<3>();
            let [_, _, half] = first.meta.shape().dims::<3>();
            let angles = [tokens, 1, half];
            assert!([&first, &second].iter().all(|x| x.meta.shape().dims::<3>() == angles), "angles");
            assert!(2 * half <= head_dim, "{half} angles for heads of {head_dim}");
            // SAFETY: units past the last value do nothing, a partner lies within the same head, and each token has angles.
            unsafe {
                rotate_kernel::launch_unchecked(
                    &client,
                    cubes,
                    dim,
                    x.into_buffer_arg(),
                    first.into_buffer_arg(),
                    floats(second).into_buffer_arg(),
                    out.clone().into_buffer_arg(),
                    work,
                    heads,
                    head_dim,
                    half,
                );
            }
        }
    }
    out
}

/// Each unit makes one value.
#[cube(launch_unchecked)]
fn geglu_kernel(gate: &[f32], up: &[f32], out: &mut [f32], work: usize) {
    if ABSOLUTE_POS >= work {
        terminate!();
    }
    out[ABSOLUTE_POS] = gelu(gate[ABSOLUTE_POS]) * up[ABSOLUTE_POS];
}

/// Each unit makes one value.
#[cube(launch_unchecked)]
fn gelu_kernel(x: &[f32], bias: &[f32], out: &mut [f32], work: usize, width: usize) {
    if ABSOLUTE_POS >= work {
        terminate!();
    }
    out[ABSOLUTE_POS] = gelu(x[ABSOLUTE_POS] + bias[ABSOLUTE_POS % width]);
}

/// Each unit makes one value.
#[cube(launch_unchecked)]
fn softcap_kernel(x: &[f32], out: &mut [f32], work: usize, cap: f32) {
    if ABSOLUTE_POS >= work {
        terminate!();
    }
    out[ABSOLUTE_POS] = cap * tanh(x[ABSOLUTE_POS] / cap);
}

/// `1 / sqrt(mean(x²) + eps)` over the row of `width` values that begins at value `row`, by all units of a cube.
#[cube]
pub(super) fn inverse_of_row(x: &[f32], row: usize, width: usize, eps: f32) -> f32 {
    let mut squares = 0.0f32;
    let mut col = UNIT_POS as usize;
    while col < width {
        let value = x[row + col];
        squares += value * value;
        col += UNITS;
    }
    inverse_of_squares(squares, width, eps)
}

/// The same where each unit has added up the squares of its columns: those that lie [`UNITS`] apart from its own number on.
#[cube]
pub(super) fn inverse_of_squares(squares: f32, width: usize, eps: f32) -> f32 {
    let unit = UNIT_POS as usize;
    let mut sums = Shared::<[f32]>::new_slice(UNITS);
    sums[unit] = squares;
    sync_cube();
    // the units that are left add those of the other half, halving
    #[unroll]
    for step in 0..8usize {
        let half = comptime!(UNITS >> (step + 1));
        if unit < half {
            sums[unit] += sums[unit + half];
        }
        sync_cube();
    }
    1.0f32 / (sums[0usize] / f32::cast_from(width as u32) + eps).sqrt()
}

/// A value of a row with this [inverse](inverse_of_row), normed.
#[cube]
pub(super) fn normed(x: f32, inverse: f32, weight: f32) -> f32 {
    x * inverse * (weight + 1.0f32)
}

/// A cube makes one row.
#[cube(launch_unchecked)]
fn norm_kernel(x: &[f32], weight: &[f32], out: &mut [f32], rows: usize, width: usize, eps: f32) {
    let row = min(CUBE_POS, rows - 1) * width;
    let inverse = inverse_of_row(x, row, width, eps);
    if CUBE_POS < rows {
        let mut col = UNIT_POS as usize;
        while col < width {
            out[row + col] = normed(x[row + col], inverse, weight[col]);
            col += UNITS;
        }
    }
}

/// Each unit makes one value.
#[cube(launch_unchecked)]
fn rotate_kernel(
    x: &[f32],
    cos: &[f32],
    sin: &[f32],
    out: &mut [f32],
    work: usize,
    heads: usize,
    head_dim: usize,
    half: usize,
) {
    if ABSOLUTE_POS >= work {
        terminate!();
    }
    let dim = ABSOLUTE_POS % head_dim;
    let angles = ABSOLUTE_POS / head_dim / heads * half;
    let value = x[ABSOLUTE_POS];
    if dim < half {
        out[ABSOLUTE_POS] = value * cos[angles + dim] - x[ABSOLUTE_POS + half] * sin[angles + dim];
    } else if dim < 2 * half {
        let angle = angles + dim - half;
        out[ABSOLUTE_POS] = value * cos[angle] + x[ABSOLUTE_POS - half] * sin[angle];
    } else {
        out[ABSOLUTE_POS] = value;
    }
}
