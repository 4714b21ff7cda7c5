//! What a branch adds to the residual stream, and the norm of the sum, in one launch.

use super::elementwise::{UNITS, inverse_of_row, inverse_of_squares, normed};
use super::{cube_count, floats, is_empty, output};
use crate::ops::residual::ResidualEps;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// `[residual, branch]`, each `[tokens, width]`, to the sum and its norm; the branch is normed before, where it has a norm.
///
/// # Panics
/// When the shapes contradict each other.
pub(crate) fn add_then_norm(operands: [CubeTensor; 2], weights: [CubeTensor; 2], eps: ResidualEps) -> [CubeTensor; 2] {
    let ([residual, branch], [branch_weight, weight]) = (operands.map(floats), weights.map(floats));
    let [rows, width] = branch.meta.shape().dims::<2>();
    assert_eq!(residual.meta.shape(), branch.meta.shape(), "a residual for every value");
    let whole = [&branch_weight, &weight].iter().all(|weight| weight.meta.shape().num_elements() == width);
    assert!(whole, "a weight for every column");
    let out = [(); 2].map(|()| output(&branch, [rows, width]));
    if is_empty(&out[0]) {
        return out;
    }
    let client = branch.client.clone();
    // SAFETY: the surplus cubes repeat the last row and write nothing; columns are guarded.
    unsafe {
        add_then_norm_kernel::launch_unchecked(
            &client,
            cube_count(rows),
            CubeDim::new_1d(UNITS as u32),
            residual.into_buffer_arg(),
            branch.into_buffer_arg(),
            branch_weight.into_buffer_arg(),
            weight.into_buffer_arg(),
            out[0].clone().into_buffer_arg(),
            out[1].clone().into_buffer_arg(),
            rows,
            width,
            eps.branch.unwrap_or(0.0),
            eps.sum,
            eps.branch.is_some(),
        );
    }
    out
}

/// A cube makes one row.
#[cube(launch_unchecked)]
fn add_then_norm_kernel(
    residual: &[f32],
    branch: &[f32],
    branch_weight: &[f32],
    weight: &[f32],
    sums: &mut [f32],
    out: &mut [f32],
    rows: usize,
    width: usize,
    branch_eps: f32,
    eps: f32,
    #[comptime] is_normed: bool,
) {
    let row = min(CUBE_POS, rows - 1) * width;
    let mut inverse = 1.0f32;
    if comptime!(is_normed) {
        inverse = inverse_of_row(branch, row, width, branch_eps);
    }
    let mut squares = 0.0f32;
    let mut col = UNIT_POS as usize;
    while col < width {
        let mut value = branch[row + col];
        if comptime!(is_normed) {
            value = normed(value, inverse, branch_weight[col]);
        }
        let sum = residual[row + col] + value;
        squares += sum * sum;
        if CUBE_POS < rows {
            sums[row + col] = sum;
        }
        col += UNITS;
    }
    let inverse = inverse_of_squares(squares, width, eps);
    // each unit reads what it has written
    if CUBE_POS < rows {
        let mut col = UNIT_POS as usize;
        while col < width {
            out[row + col] = normed(sums[row + col], inverse, weight[col]);
            col += UNITS;
        }
    }
}
