//! The product for few tokens: the cost is reading the weight.

use super::super::dequantize::{GROUP, QUAD_GROUP, column, decode, decode_wide, groups, quants, widen};
use super::super::math::gelu;
use super::super::{cube_count, output};
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

/// Buffers of the kernel for several matrices, that of its sizes among them.
pub(super) const SEVERAL_BUFFERS: u32 = 11;

/// What is known when a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    tokens: usize,
    /// Rows that one unit reads, so that an activation is loaded once for them.
    unit_rows: usize,
    /// Matrices whose rows they are, as many of each.
    matrices: usize,
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

impl Plan {
    /// For so many rows in all, `matrices` of which are multiplied by one unit.
    fn new(operands: &Operands, rows: usize, matrices: usize, plane: usize) -> Self {
        let Operands { tokens, cols, format, .. } = *operands;
        assert!(tokens <= FEW_TOKENS && (plane == 0 || fits(plane)));
        let wide = operands.is_wide();
        Self {
            tokens,
            unit_rows: if rows >= MANY_CUBES * 4 * LINES { 4 } else { 2 },
            matrices,
            format,
            whole: cols.is_multiple_of(GROUP),
            x_load: operands.x_load(),
            wide,
            ahead: if wide && matches!(format, Format::Bf16 | Format::F16) { 2 } else { 0 },
            scaled: matches!(format, Format::Q8_0 | Format::Q4_0),
            plane,
        }
    }

    /// Rows of a matrix that a cube reads.
    fn cube_rows(self) -> usize {
        LINES * self.unit_rows / self.matrices
    }
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

/// `y` with one matrix. With a `plane` other than 0 the lanes add up across planes of so many units.
pub(super) fn launch(operands: Operands, y: &CubeTensor, plane: usize) {
    let plan = Plan::new(&operands, operands.rows, 1, plane);
    let Operands { rows, row_words, cols, .. } = operands;
    let (x_load, word_load) = (operands.x_load(), operands.word_load());
    let client = operands.x.client.clone();
    let (bias, has_bias) = operands.bias();
    // SAFETY: the kernel clamps rows and groups to those that exist and guards columns unless they are whole groups;
    // the buffers hold rows x row_words, tokens x cols and tokens x rows elements, and a bias for every row.
    unsafe {
        vector_kernel::launch_unchecked(
            &client,
            cube_count(rows.div_ceil(plan.cube_rows())),
            CubeDim::new_1d((LANES * LINES) as u32),
            x_load,
            word_load,
            operands.x.into_buffer_arg(),
            operands.words.into_buffer_arg(),
            bias.into_buffer_arg(),
            y.clone().into_buffer_arg(),
            rows,
            row_words,
            cols,
            groups(cols),
            has_bias,
            plan,
        );
    }
}

/// The products with two or three matrices of one format, each into its own `y`, in one launch.
///
/// # Panics
/// When there are fewer or more.
pub(super) fn launch_several(x: &CubeTensor, several: Vec<(Operands, &CubeTensor)>, plane: usize) {
    assert!([2, 3].contains(&several.len()), "two or three matrices");
    let (count, all) = (several.len(), several.iter().map(|(operands, _)| operands.rows).sum());
    let first = &several[0].0;
    let plan = Plan::new(first, all, 1, plane);
    let (x_load, word_load, row_words, cols) = (first.x_load(), first.word_load(), first.row_words, first.cols);
    let cubes = several.iter().map(|(operands, _)| operands.rows.div_ceil(plan.cube_rows())).sum();
    // what a third would have is never touched
    let spare = (first.words.clone(), output(x, [1]), first.bias(), 0);
    let mut each = several.into_iter().map(|(operands, y)| {
        let bias = operands.bias();
        (operands.words, y.clone(), bias, operands.rows)
    });
    let [first, second, third] = std::array::from_fn(|_| each.next().unwrap_or_else(|| spare.clone()));
    // SAFETY: as in `launch`; a cube reads rows of one matrix, and there is no cube for a third that there is not.
    unsafe {
        several_kernel::launch_unchecked(
            &x.client,
            cube_count(cubes),
            CubeDim::new_1d((LANES * LINES) as u32),
            x_load,
            word_load,
            x.clone().into_buffer_arg(),
            first.0.into_buffer_arg(),
            second.0.into_buffer_arg(),
            third.0.into_buffer_arg(),
            first.1.into_buffer_arg(),
            second.1.into_buffer_arg(),
            third.1.into_buffer_arg(),
            first.2.0.into_buffer_arg(),
            second.2.0.into_buffer_arg(),
            third.2.0.into_buffer_arg(),
            first.3,
            second.3,
            third.3,
            row_words,
            cols,
            groups(cols),
            count,
            first.2.1,
            second.2.1,
            third.2.1,
            plan,
        );
    }
}

/// `gelu(x Gᵀ + b) · (x Uᵀ + c)` in one launch, the operands those of `G` and `b`, `up` the words of `U`, in the same format, and `c`.
pub(super) fn launch_gated(
    operands: Operands,
    (up, up_bias): (CubeTensor, Option<CubeTensor>),
    y: &CubeTensor,
    plane: usize,
) {
    let plan = Plan::new(&operands, 2 * operands.rows, 2, plane);
    let Operands { rows, row_words, cols, .. } = operands;
    let (x_load, word_load) = (operands.x_load(), operands.word_load());
    let client = operands.x.client.clone();
    let (gate_bias, has_gate_bias) = operands.bias();
    let has_up_bias = up_bias.is_some();
    // what is not added is not read
    let up_bias = up_bias.unwrap_or_else(|| operands.x.clone());
    // SAFETY: as in `launch`; there is a bias for every row.
    unsafe {
        gated_kernel::launch_unchecked(
            &client,
            cube_count(rows.div_ceil(plan.cube_rows())),
            CubeDim::new_1d((LANES * LINES) as u32),
            x_load,
            word_load,
            operands.x.into_buffer_arg(),
            operands.words.into_buffer_arg(),
            up.into_buffer_arg(),
            gate_bias.into_buffer_arg(),
            up_bias.into_buffer_arg(),
            y.clone().into_buffer_arg(),
            rows,
            row_words,
            cols,
            groups(cols),
            has_gate_bias,
            has_up_bias,
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
    bias: &[f32],
    y: &mut [f32],
    rows: usize,
    row_words: usize,
    cols: usize,
    groups: usize,
    #[comptime] has_bias: bool,
    #[comptime] plan: Plan,
) {
    let unit = unit_of_plane(plan.plane);
    let first_row = (CUBE_POS * LINES + unit / LANES) * plan.unit_rows;
    let mut sums = Array::<f32>::new(comptime!(plan.unit_rows * plan.tokens));
    multiply_rows(x, words, words, first_row, rows, row_words, cols, groups, unit, &mut sums, plan);
    add_lanes(&mut sums, unit, comptime!(plan.unit_rows * plan.tokens), plan.plane);
    store(&sums, bias, y, first_row, rows, unit, has_bias, plan);
}

/// The same for `count` matrices: the cubes of the first, then those of the second, then those of the third.
#[cube(launch_unchecked)]
fn several_kernel<N: Size, M: Size>(
    x: &[Vector<f32, N>],
    first: &[Vector<u32, M>],
    second: &[Vector<u32, M>],
    third: &[Vector<u32, M>],
    first_y: &mut [f32],
    second_y: &mut [f32],
    third_y: &mut [f32],
    first_bias: &[f32],
    second_bias: &[f32],
    third_bias: &[f32],
    first_rows: usize,
    second_rows: usize,
    third_rows: usize,
    row_words: usize,
    cols: usize,
    groups: usize,
    #[comptime] count: usize,
    #[comptime] has_first_bias: bool,
    #[comptime] has_second_bias: bool,
    #[comptime] has_third_bias: bool,
    #[comptime] plan: Plan,
) {
    let unit = unit_of_plane(plan.plane);
    let cube_rows = comptime!(plan.cube_rows());
    let line = unit / LANES * plan.unit_rows;
    let to_second = first_rows.div_ceil(cube_rows);
    let to_third = to_second + second_rows.div_ceil(cube_rows);
    let mut sums = Array::<f32>::new(comptime!(plan.unit_rows * plan.tokens));
    // whole cubes take the same branch
    let mut row = CUBE_POS * cube_rows + line;
    if CUBE_POS < to_second {
        multiply_rows(x, first, first, row, first_rows, row_words, cols, groups, unit, &mut sums, plan);
    } else if comptime!(count == 2) || CUBE_POS < to_third {
        row = (CUBE_POS - to_second) * cube_rows + line;
        multiply_rows(x, second, second, row, second_rows, row_words, cols, groups, unit, &mut sums, plan);
    } else {
        row = (CUBE_POS - to_third) * cube_rows + line;
        multiply_rows(x, third, third, row, third_rows, row_words, cols, groups, unit, &mut sums, plan);
    }
    add_lanes(&mut sums, unit, comptime!(plan.unit_rows * plan.tokens), plan.plane);
    if CUBE_POS < to_second {
        store(&sums, first_bias, first_y, row, first_rows, unit, has_first_bias, plan);
    } else if comptime!(count == 2) || CUBE_POS < to_third {
        store(&sums, second_bias, second_y, row, second_rows, unit, has_second_bias, plan);
    } else {
        store(&sums, third_bias, third_y, row, third_rows, unit, has_third_bias, plan);
    }
}

/// The same for two matrices, half of a unit's rows from either, and GELU of one product with the other as a gate.
#[cube(launch_unchecked)]
fn gated_kernel<N: Size, M: Size>(
    x: &[Vector<f32, N>],
    gate: &[Vector<u32, M>],
    up: &[Vector<u32, M>],
    gate_bias: &[f32],
    up_bias: &[f32],
    y: &mut [f32],
    rows: usize,
    row_words: usize,
    cols: usize,
    groups: usize,
    #[comptime] has_gate_bias: bool,
    #[comptime] has_up_bias: bool,
    #[comptime] plan: Plan,
) {
    let each = comptime!(plan.unit_rows / plan.matrices);
    let unit = unit_of_plane(plan.plane);
    let first_row = (CUBE_POS * LINES + unit / LANES) * each;
    let mut sums = Array::<f32>::new(comptime!(plan.unit_rows * plan.tokens));
    multiply_rows(x, gate, up, first_row, rows, row_words, cols, groups, unit, &mut sums, plan);
    add_lanes(&mut sums, unit, comptime!(plan.unit_rows * plan.tokens), plan.plane);
    let lane = unit % LANES;
    if lane == 0 {
        #[unroll]
        for t in 0..plan.tokens {
            #[unroll]
            for r in 0..each {
                let row = first_row + r;
                if row < rows {
                    let mut z = sums[comptime!(t * plan.unit_rows + r)];
                    let mut partner = sums[comptime!(t * plan.unit_rows + each + r)];
                    if comptime!(has_gate_bias) {
                        z += gate_bias[row];
                    }
                    if comptime!(has_up_bias) {
                        partner += up_bias[row];
                    }
                    y[t * rows + row] = gelu(z) * partner;
                }
            }
        }
    }
}

/// Writes the sums of the first lane's unit, plus the bias where there is one.
#[cube]
fn store(
    sums: &Array<f32>,
    bias: &[f32],
    y: &mut [f32],
    first_row: usize,
    rows: usize,
    unit: usize,
    #[comptime] has_bias: bool,
    #[comptime] plan: Plan,
) {
    let lane = unit % LANES;
    if lane == 0 {
        #[unroll]
        for t in 0..plan.tokens {
            #[unroll]
            for r in 0..plan.unit_rows {
                if first_row + r < rows {
                    let mut sum = sums[comptime!(t * plan.unit_rows + r)];
                    if comptime!(has_bias) {
                        sum += bias[first_row + r];
                    }
                    y[t * rows + first_row + r] = sum;
                }
            }
        }
    }
}

/// Sets `sums` to what a unit's columns give for its rows, of `first` and, where there are two matrices, of `second`: those from
/// `first_row` on of either.
#[cube]
fn multiply_rows<N: Size, M: Size>(
    x: &[Vector<f32, N>],
    first: &[Vector<u32, M>],
    second: &[Vector<u32, M>],
    first_row: usize,
    rows: usize,
    row_words: usize,
    cols: usize,
    groups: usize,
    unit: usize,
    sums: &mut Array<f32>,
    #[comptime] plan: Plan,
) {
    let (tokens, unit_rows, ahead) = comptime!((plan.tokens, plan.unit_rows, plan.ahead));
    let (steps, each) = comptime!((ahead.max(1), unit_rows / plan.matrices));

    let mut values = Array::<f32>::new(comptime!(unit_rows * GROUP));
    let mut scales = Array::<f32>::new(unit_rows);
    let mut pieces = Array::<Vector<u32, M>>::new(comptime!(unit_rows * steps));
    #[unroll]
    for i in 0..comptime!(unit_rows * tokens) {
        sums[i] = 0.0f32;
    }
    let mut group = unit % LANES;
    while group < groups {
        #[unroll]
        for p in 0..ahead {
            #[unroll]
            for r in 0..unit_rows {
                // Rows past the last one repeat it and are not stored; groups past the last one are not used.
                let start = min(first_row + comptime!(r % each), rows - 1) * row_words / QUAD;
                let at = start + min(group + comptime!(p * LANES), groups - 1);
                if comptime!(r < each) {
                    pieces[comptime!(p * unit_rows + r)] = first[at];
                } else {
                    pieces[comptime!(p * unit_rows + r)] = second[at];
                }
            }
        }
        #[unroll]
        for p in 0..steps {
            let group = group + comptime!(p * LANES);
            if comptime!(p == 0) || group < groups {
                #[unroll]
                for r in 0..unit_rows {
                    let start = min(first_row + comptime!(r % each), rows - 1) * row_words;
                    if comptime!(ahead > 0) {
                        let to = comptime!(r * GROUP);
                        widen(pieces[comptime!(p * unit_rows + r)], &mut values, to, plan.format);
                    } else if comptime!(r < each) {
                        load(first, start, group, cols, &mut values, &mut scales, r, plan);
                    } else {
                        load(second, start, group, cols, &mut values, &mut scales, r, plan);
                    }
                }
                multiply(x, group, cols, &values, &scales, sums, plan);
            }
        }
        group += comptime!(LANES * steps);
    }
}

/// Decodes a group of the row that starts at word `start`, as row `r` of the unit.
#[cube]
fn load<M: Size>(
    words: &[Vector<u32, M>],
    start: usize,
    group: usize,
    cols: usize,
    values: &mut Array<f32>,
    scales: &mut Array<f32>,
    #[comptime] r: usize,
    #[comptime] plan: Plan,
) {
    let to = comptime!(r * GROUP);
    if comptime!(plan.wide) {
        decode_wide(words, start, group, values, to, plan.format);
    } else if comptime!(plan.scaled) {
        scales[r] = quants(words.downcast::<u32>(), start, group, values, to, plan.format);
    } else {
        let words = words.downcast::<u32>();
        decode(words, start, group, cols, values, to, plan.format, plan.whole);
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
