//! The product for few tokens: the cost is reading the weight.

use super::super::cube_count;
use super::super::dequantize::{GROUP, QUAD_GROUP, column, decode, decode_wide, groups, quants, widen};
use super::{Operands, QUAD, quad};
use crate::Format;
use burn_cubecl::tensor::CubeTensor;
use cubecl::features::Plane;
use cubecl::prelude::*;

/// Units that share one row of the weight.
const LANES: usize = 32;
/// Units across, each line of [`LANES`] with rows of its own.
const LINES: usize = 4;
/// log2 of [`LANES`]: steps of the sum over the lanes.
const STEPS: usize = 5;
/// The most tokens for which a value is decoded once.
pub(super) const FEW_TOKENS: usize = 4;
/// Cubes from which on a unit reads four rows of the weight instead of two: enough to occupy a large GPU, so that
/// loading activations half as often is worth more than twice as many cubes.
const MANY_CUBES: usize = 512;

/// What is known when a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    tokens: usize,
    /// Rows that one unit reads, so that an activation is loaded once for them.
    unit_rows: usize,
    format: Format,
    /// Whether rows are whole groups.
    whole: bool,
    /// Values that one load of activations takes.
    x_load: usize,
    /// Whether the weight is read 128 bits at a time.
    wide: bool,
    /// Groups that a unit loads of each of its rows before it decodes the first, where a group is one load; else 0.
    ahead: usize,
    /// Whether a group's values are multiplied with its scale all at once, after they are summed.
    scaled: bool,
    /// Units of a plane, 0 where the lanes add up in shared memory only.
    plane: usize,
}

/// Units of a plane (a subgroup) where the adapter computes across them and has planes of one size only, else 0.
pub(super) fn plane_size(x: &CubeTensor) -> usize {
    let properties = x.client.properties();
    let [least, most] =
        [properties.hardware.plane_size_min, properties.hardware.plane_size_max].map(|size| size as usize);
    let offered = properties.features.plane.contains(Plane::Ops);
    if offered && least == most && fits(least) { least } else { 0 }
}

/// Whether a cube is a number of whole planes of this size, and lanes are whole planes or the other way around.
fn fits(plane: usize) -> bool {
    plane > 1 && (LANES * LINES).is_multiple_of(plane)
}

/// Launches the kernel. With a `plane` other than 0 the lanes add up across planes of so many units.
pub(super) fn launch(operands: Operands, y: &CubeTensor, plane: usize) {
    assert!(operands.tokens <= FEW_TOKENS && (plane == 0 || fits(plane)));
    let Operands { tokens, rows, row_words, cols, format, .. } = operands;
    let unit_rows = if rows >= MANY_CUBES * 4 * LINES { 4 } else { 2 };
    let wide = operands.is_wide();
    let plan = Plan {
        tokens,
        unit_rows,
        format,
        whole: cols.is_multiple_of(GROUP),
        x_load: operands.x_load(),
        wide,
        ahead: if wide && matches!(format, Format::Bf16 | Format::F16) { 2 } else { 0 },
        scaled: matches!(format, Format::Q8_0 | Format::Q4_0),
        plane,
    };
    let (x_load, word_load) = (operands.x_load(), operands.word_load());
    let client = operands.x.client.clone();
    // SAFETY: the kernel clamps rows and groups to those that exist and guards columns unless they are whole groups;
    // the buffers hold rows x row_words, tokens x cols and tokens x rows elements.
    unsafe {
        vector_kernel::launch_unchecked(
            &client,
            cube_count(rows.div_ceil(LINES * unit_rows)),
            CubeDim::new_1d((LANES * LINES) as u32),
            x_load,
            word_load,
            operands.x.into_buffer_arg(),
            operands.words.into_buffer_arg(),
            y.clone().into_buffer_arg(),
            rows,
            row_words,
            cols,
            groups(cols),
            plan,
        );
    }
}

/// For `tokens` up to [`FEW_TOKENS`]. A cube is [`LANES`] times [`LINES`] units, in one dimension, without which WGSL does
/// not number the units of planes.
#[cube(launch_unchecked)]
fn vector_kernel<N: Size, M: Size>(
    x: &[Vector<f32, N>],
    words: &[Vector<u32, M>],
    y: &mut [f32],
    rows: usize,
    row_words: usize,
    cols: usize,
    groups: usize,
    #[comptime] plan: Plan,
) {
    let (tokens, unit_rows, ahead) = comptime!((plan.tokens, plan.unit_rows, plan.ahead));
    let steps = comptime!(ahead.max(1));
    let unit = unit_of_plane(plan.plane);
    let first_row = (CUBE_POS * LINES + unit / LANES) * unit_rows;

    let mut values = Array::<f32>::new(comptime!(unit_rows * GROUP));
    let mut scales = Array::<f32>::new(unit_rows);
    let mut pieces = Array::<Vector<u32, M>>::new(comptime!(unit_rows * steps));
    let mut sums = Array::<f32>::new(comptime!(unit_rows * tokens));
    #[unroll]
    for i in 0..comptime!(unit_rows * tokens) {
        sums[i] = 0.0f32;
    }
    let lane = unit % LANES;
    let mut group = lane;
    while group < groups {
        #[unroll]
        for p in 0..ahead {
            #[unroll]
            for r in 0..unit_rows {
                // Rows past the last one repeat it and are not stored; groups past the last one are not used.
                let start = min(first_row + r, rows - 1) * row_words / QUAD;
                pieces[comptime!(p * unit_rows + r)] = words[start + min(group + comptime!(p * LANES), groups - 1)];
            }
        }
        #[unroll]
        for p in 0..steps {
            let group = group + comptime!(p * LANES);
            if comptime!(p == 0) || group < groups {
                #[unroll]
                for r in 0..unit_rows {
                    let (start, to) = (min(first_row + r, rows - 1) * row_words, comptime!(r * GROUP));
                    if comptime!(ahead > 0) {
                        widen(pieces[comptime!(p * unit_rows + r)], &mut values, to, plan.format);
                    } else if comptime!(plan.wide) {
                        decode_wide(words, start, group, &mut values, to, plan.format);
                    } else if comptime!(plan.scaled) {
                        scales[r] = quants(words.downcast::<u32>(), start, group, &mut values, to, plan.format);
                    } else {
                        let words = words.downcast::<u32>();
                        decode(words, start, group, cols, &mut values, to, plan.format, plan.whole);
                    }
                }
                multiply(x, group, cols, &values, &scales, &mut sums, plan);
            }
        }
        group += comptime!(LANES * steps);
    }

    add_lanes(&mut sums, unit, comptime!(unit_rows * tokens), plan.plane);
    if lane == 0 {
        #[unroll]
        for t in 0..tokens {
            #[unroll]
            for r in 0..unit_rows {
                if first_row + r < rows {
                    y[t * rows + first_row + r] = sums[comptime!(t * unit_rows + r)];
                }
            }
        }
    }
}

/// Adds to `sums` what the activations of a group give with the values of each row.
#[cube]
fn multiply<N: Size>(
    x: &[Vector<f32, N>],
    group: usize,
    cols: usize,
    values: &Array<f32>,
    scales: &Array<f32>,
    sums: &mut Array<f32>,
    #[comptime] plan: Plan,
) {
    let unit_rows = comptime!(plan.unit_rows);
    #[unroll]
    for t in 0..comptime!(plan.tokens) {
        let mut partial = Array::<f32>::new(unit_rows);
        #[unroll]
        for r in 0..unit_rows {
            partial[r] = 0.0f32;
        }
        #[unroll]
        for q in 0..QUAD_GROUP {
            let at = column(group, comptime!(q * QUAD), plan.format);
            let input = quad(x, t * cols, at, cols, plan.x_load, plan.whole);
            #[unroll]
            for i in 0..QUAD {
                #[unroll]
                for r in 0..unit_rows {
                    let product = input.extract(i) * values[comptime!(r * GROUP + q * QUAD + i)];
                    if comptime!(plan.scaled) {
                        partial[r] += product;
                    } else {
                        sums[comptime!(t * unit_rows + r)] += product;
                    }
                }
            }
        }
        if comptime!(plan.scaled) {
            #[unroll]
            for r in 0..unit_rows {
                sums[comptime!(t * unit_rows + r)] += partial[r] * scales[r];
            }
        }
    }
}

/// The number of this unit in its cube, so that the units of a plane have neighbouring numbers. Where planes count,
/// theirs is taken, since WGSL does not say which units make up a plane.
#[cube]
fn unit_of_plane(#[comptime] plane: usize) -> usize {
    if comptime!(plane == 0) { UNIT_POS as usize } else { PLANE_POS as usize * plane + UNIT_POS_PLANE as usize }
}

/// Adds up `count` sums of each of [`LANES`] units pairwise, so that the first of them has the totals.
///
/// Lane `l` takes the sum of lane `l + 16`, then of `l + 8` and so on: across a plane where both are in one, through
/// shared memory where not. An addition has the same two operands either way, so a total has the same bits on every adapter.
#[cube]
fn add_lanes(sums: &mut Array<f32>, unit: usize, #[comptime] count: usize, #[comptime] plane: usize) {
    let lane = unit % LANES;
    let units = comptime!(LINES * LANES);
    if comptime!(plane < LANES) {
        let mut partial = Shared::<[f32]>::new_slice(comptime!(count * units));
        #[unroll]
        for i in 0..count {
            partial[comptime!(i * units) + unit] = sums[i];
        }
        #[unroll]
        for step in 0..STEPS {
            let stride = comptime!(LANES >> (step + 1));
            if comptime!(stride >= plane) {
                sync_cube();
                if lane < stride {
                    #[unroll]
                    for i in 0..count {
                        let at = comptime!(i * units) + unit;
                        sums[i] += partial[at + stride];
                        partial[at] = sums[i];
                    }
                }
            }
        }
    }
    #[unroll]
    for step in 0..STEPS {
        let stride = comptime!(LANES >> (step + 1));
        if comptime!(stride < plane) {
            #[unroll]
            for i in 0..count {
                sums[i] += plane_shuffle_xor(sums[i], comptime!(stride as u32));
            }
        }
    }
}
