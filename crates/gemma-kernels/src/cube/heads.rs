//! The norms of the heads of queries and keys and their rotation, in one launch.

use super::elementwise::{UNITS, elementwise, inverse_of_row, normed};
use super::{cube_count, floats, is_empty, output};
use crate::ops::elementwise::Elementwise;
use burn::tensor::Shape;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Buffers of the kernel, that of its sizes among them; WebGPU guarantees fewer.
const BUFFERS: u32 = 9;

/// `[q, k]`, each `[tokens, heads, head_dim]` with the weight of its norm, to the same shapes: normed with `eps`, if given, and rotated by
/// the angles whose `[cos, sin]` are `[tokens, 1, half]`.
///
/// # Panics
/// When the shapes contradict each other.
pub(crate) fn norm_and_rotate(
    [(q, q_weight), (k, k_weight)]: [(CubeTensor, CubeTensor); 2],
    [cos, sin]: [CubeTensor; 2],
    eps: Option<[f32; 2]>,
) -> [CubeTensor; 2] {
    if q.client.properties().hardware.max_bindings < BUFFERS {
        let angles = || [cos.clone(), sin.clone()];
        let [q_eps, k_eps] = eps.map_or([None; 2], |eps| eps.map(Some));
        return [alone(q, q_weight, angles(), q_eps), alone(k, k_weight, angles(), k_eps)];
    }
    let [tokens, q_heads, head_dim] = q.meta.shape().dims::<3>();
    let [_, k_heads, _] = k.meta.shape().dims::<3>();
    let [_, _, half] = cos.meta.shape().dims::<3>();
    let shapes = [[tokens, q_heads, head_dim], [tokens, k_heads, head_dim]];
    let out = shapes.map(|shape| output(&q, shape));
    if out.iter().any(is_empty) {
        return out;
    }
    let client = q.client.clone();
    let [q_eps, k_eps] = eps.unwrap_or_default();
    let [q, k, q_weight, k_weight, cos, sin] = [q, k, q_weight, k_weight, cos, sin].map(floats);
    // SAFETY: surplus cubes repeat the last head of the keys and write nothing; columns are guarded, partners lie within the same head, and
    // each token has angles.
    unsafe {
        heads_kernel::launch_unchecked(
            &client,
            cube_count(tokens * (q_heads + k_heads)),
            CubeDim::new_1d(UNITS as u32),
            q.into_buffer_arg(),
            k.into_buffer_arg(),
            q_weight.into_buffer_arg(),
            k_weight.into_buffer_arg(),
            cos.into_buffer_arg(),
            sin.into_buffer_arg(),
            out[0].clone().into_buffer_arg(),
            out[1].clone().into_buffer_arg(),
            tokens,
            q_heads,
            k_heads,
            head_dim,
            half,
            q_eps,
            k_eps,
            eps.is_some(),
        );
    }
    out
}

/// The same for one of the two, in a launch or two.
fn alone(x: CubeTensor, weight: CubeTensor, [cos, sin]: [CubeTensor; 2], eps: Option<f32>) -> CubeTensor {
    let shape = x.meta.shape().clone();
    let x = match eps {
        None => x,
        Some(eps) => {
            let [tokens, heads, head_dim] = shape.dims::<3>();
            let rows = shaped(floats(x), Shape::new([tokens * heads, head_dim]));
            shaped(elementwise(rows.clone(), weight, rows, Elementwise::RmsNorm { eps }), shape)
        }
    };
    elementwise(x, cos, sin, Elementwise::Rotate)
}

/// A row-major tensor in another shape.
fn shaped(x: CubeTensor, shape: Shape) -> CubeTensor {
    burn_cubecl::ops::reshape(x, shape)
}

/// A cube makes one head: those of all queries, then those of all keys.
#[cube(launch_unchecked)]
fn heads_kernel(
    q: &[f32],
    k: &[f32],
    q_weight: &[f32],
    k_weight: &[f32],
    cos: &[f32],
    sin: &[f32],
    q_out: &mut [f32],
    k_out: &mut [f32],
    tokens: usize,
    q_heads: usize,
    k_heads: usize,
    head_dim: usize,
    half: usize,
    q_eps: f32,
    k_eps: f32,
    #[comptime] is_normed: bool,
) {
    let queries = tokens * q_heads;
    // whole cubes take the same branch
    if CUBE_POS < queries {
        head(q, q_weight, cos, sin, q_out, CUBE_POS, queries, q_heads, head_dim, half, q_eps, is_normed);
    } else {
        let keys = tokens * k_heads;
        head(k, k_weight, cos, sin, k_out, CUBE_POS - queries, keys, k_heads, head_dim, half, k_eps, is_normed);
    }
}

/// Head number `index` of `count`, or nothing where there is none.
#[cube]
fn head(
    x: &[f32],
    weight: &[f32],
    cos: &[f32],
    sin: &[f32],
    out: &mut [f32],
    index: usize,
    count: usize,
    heads: usize,
    head_dim: usize,
    half: usize,
    eps: f32,
    #[comptime] is_normed: bool,
) {
    let row = min(index, count - 1) * head_dim;
    let angles = min(index, count - 1) / heads * half;
    let mut inverse = 1.0f32;
    if comptime!(is_normed) {
        inverse = inverse_of_row(x, row, head_dim, eps);
    }
    if index < count {
        let mut dim = UNIT_POS as usize;
        while dim < head_dim {
            let value = column(x, weight, row, dim, inverse, is_normed);
            if dim < half {
                let partner = column(x, weight, row, dim + half, inverse, is_normed);
                out[row + dim] = value * cos[angles + dim] - partner * sin[angles + dim];
            } else if dim < 2 * half {
                let angle = angles + dim - half;
                let partner = column(x, weight, row, dim - half, inverse, is_normed);
                out[row + dim] = value * cos[angle] + partner * sin[angle];
            } else {
                out[row + dim] = value;
            }
            dim += UNITS;
        }
    }
}

/// Column `dim` of the head that begins at value `row`.
#[cube]
fn column(x: &[f32], weight: &[f32], row: usize, dim: usize, inverse: f32, #[comptime] is_normed: bool) -> f32 {
    let mut value = x[row + dim];
    if comptime!(is_normed) {
        value = normed(value, inverse, weight[dim]);
    }
    value
}
