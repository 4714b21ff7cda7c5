//! `y = x Wᵀ` with packed `W`: `x` `[tokens, cols]`, `W` `[rows, cols]`, `y` `[tokens, rows]`.
//!
//! Reading the weight is the cost while there are few tokens, multiplying is the cost when there are many, so
//! there are two kernels. In [`vector_kernel`] several units share one row of the weight, reading it side by
//! side, and use each decoded value for up to four tokens. In [`tile_kernel`] a cube decodes a tile of the
//! weight once and multiplies it with a tile of tokens, both in shared memory.

use super::dequantize::{GROUP, column, decode, groups};
use super::{cube_count, floats, is_empty, output, packed};
use crate::ops::linear::Arithmetic;
use crate::{Format, Phase};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Units that share one row of the weight in [`vector_kernel`].
const LANES: usize = 32;
/// Units across, each line of [`LANES`] with rows of its own.
const LINES: usize = 4;
/// Rows that one unit of [`vector_kernel`] reads, so that an activation is loaded once for them.
const UNIT_ROWS: usize = 2;
/// Rows of the weight that one cube of [`vector_kernel`] handles.
const CUBE_ROWS: usize = LINES * UNIT_ROWS;
/// log2 of [`LANES`]: steps of the sum over the lanes.
const STEPS: usize = 5;
/// The most tokens for which [`vector_kernel`] decodes a value once.
const FEW_TOKENS: usize = 4;

/// Units along each side of a cube of [`tile_kernel`].
const SIDE: usize = 16;
/// Rows of the weight in a tile: four for each unit along its side.
const TILE_ROWS: usize = 4 * SIDE;
/// Columns that are in shared memory at once: one block of the quantized formats, four groups.
const TILE_COLS: usize = 32;
/// Distance of columns in the weight's tile: odd, so that stores of neighbouring units fall into different banks.
const ROWS_PITCH: usize = TILE_ROWS + 1;
/// Distance of tokens in the activations' tile.
const COLS_PITCH: usize = TILE_COLS + 1;

/// `x` times the transpose of the packed matrix in `words`, `[tokens, cols]` to `[tokens, rows]`.
///
/// `words` is `[rows, row_words]` with each row of the format padded to a whole word.
///
/// # Panics
/// When shapes or types contradict each other.
pub(crate) fn packed_linear(
    x: CubeTensor,
    words: CubeTensor,
    format: Format,
    cols: usize,
    arithmetic: Arithmetic,
) -> CubeTensor {
    let (x, (words, [rows, row_words])) = (floats(x), packed(words, format, cols));
    let [tokens, width] = x.meta.shape().dims::<2>();
    assert_eq!(width, cols, "the activations have the width of the weight's rows");
    let y = output(&x, [tokens, rows]);
    if is_empty(&y) {
        return y;
    }
    let client = x.client.clone();
    // in either kernel, a sum does not depend on the other tokens; f32, kept for exactness, is always multiplied in tiles
    let few = arithmetic.phase == Phase::Decode || !arithmetic.batch_invariant;
    if few && tokens <= FEW_TOKENS && format != Format::F32 {
        // SAFETY: the kernel clamps rows and tokens to those that exist and guards columns unless they are whole
        // groups; the buffers hold rows x row_words, tokens x cols and tokens x rows elements, asserted above.
        unsafe {
            vector_kernel::launch_unchecked(
                &client,
                cube_count(rows.div_ceil(CUBE_ROWS)),
                CubeDim::new_2d(LANES as u32, LINES as u32),
                x.into_buffer_arg(),
                words.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                rows,
                row_words,
                cols,
                groups(cols),
                tokens,
                format,
                cols.is_multiple_of(GROUP),
            );
        }
    } else {
        // Tokens per unit along its side: as many as fill the tile, at most four.
        let depth = tokens.div_ceil(SIDE).min(4).next_power_of_two();
        let tiles = rows.div_ceil(TILE_ROWS) * tokens.div_ceil(SIDE * depth);
        // SAFETY: as above; whole groups here means whole blocks of TILE_COLS columns.
        unsafe {
            tile_kernel::launch_unchecked(
                &client,
                cube_count(tiles),
                CubeDim::new_2d(SIDE as u32, SIDE as u32),
                x.into_buffer_arg(),
                words.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                tokens,
                rows,
                row_words,
                cols,
                depth,
                format,
                cols.is_multiple_of(TILE_COLS),
            );
        }
    }
    y
}

/// For `tokens` up to [`FEW_TOKENS`]. A cube is [`LANES`] x [`LINES`] units and handles [`CUBE_ROWS`] rows.
#[cube(launch_unchecked)]
fn vector_kernel(
    x: &[f32],
    words: &[u32],
    y: &mut [f32],
    rows: usize,
    row_words: usize,
    cols: usize,
    groups: usize,
    #[comptime] tokens: usize,
    #[comptime] format: Format,
    #[comptime] whole: bool,
) {
    let unit = UNIT_POS as usize;
    let lane = UNIT_POS_X as usize;
    let first_row = CUBE_POS * CUBE_ROWS + UNIT_POS_Y as usize * UNIT_ROWS;

    let mut values = Array::<f32>::new(comptime!(UNIT_ROWS * GROUP));
    let mut sums = Array::<f32>::new(comptime!(UNIT_ROWS * tokens));
    #[unroll]
    for i in 0..comptime!(UNIT_ROWS * tokens) {
        sums[i] = 0.0f32;
    }
    let mut group = lane;
    while group < groups {
        #[unroll]
        for r in 0..UNIT_ROWS {
            // Rows past the last one repeat it and are not stored, so that all units meet at the barriers.
            let start = min(first_row + r, rows - 1) * row_words;
            decode(words, start, group, cols, &mut values, comptime!(r * GROUP), format, whole);
        }
        #[unroll]
        for i in 0..GROUP {
            let at = column(group, i, format);
            if whole || at < cols {
                #[unroll]
                for t in 0..tokens {
                    let input = x[t * cols + at];
                    #[unroll]
                    for r in 0..UNIT_ROWS {
                        sums[comptime!(t * UNIT_ROWS + r)] += input * values[comptime!(r * GROUP + i)];
                    }
                }
            }
        }
        group += LANES;
    }

    // The lanes' sums, added up pairwise.
    let mut partial = Shared::<[f32]>::new_slice(comptime!(UNIT_ROWS * tokens * LINES * LANES));
    #[unroll]
    for i in 0..comptime!(UNIT_ROWS * tokens) {
        partial[comptime!(i * LINES * LANES) + unit] = sums[i];
    }
    #[unroll]
    for step in 0..STEPS {
        let stride = comptime!(LANES >> (step + 1));
        sync_cube();
        if lane < stride {
            #[unroll]
            for i in 0..comptime!(UNIT_ROWS * tokens) {
                let at = comptime!(i * LINES * LANES) + unit;
                partial[at] += partial[at + stride];
            }
        }
    }
    if lane == 0 {
        #[unroll]
        for t in 0..tokens {
            #[unroll]
            for r in 0..UNIT_ROWS {
                if first_row + r < rows {
                    y[t * rows + first_row + r] = partial[comptime!((t * UNIT_ROWS + r) * LINES * LANES) + unit];
                }
            }
        }
    }
}

/// For any number of tokens. A cube is [`SIDE`] x [`SIDE`] units; each sums four rows times `depth` tokens.
#[cube(launch_unchecked)]
fn tile_kernel(
    x: &[f32],
    words: &[u32],
    y: &mut [f32],
    tokens: usize,
    rows: usize,
    row_words: usize,
    cols: usize,
    #[comptime] depth: usize,
    #[comptime] format: Format,
    #[comptime] whole: bool,
) {
    let unit = UNIT_POS as usize;
    let along = UNIT_POS_X as usize;
    let across = UNIT_POS_Y as usize;
    let row_tiles = (rows + comptime!(TILE_ROWS - 1)) / TILE_ROWS;
    let first_row = CUBE_POS % row_tiles * TILE_ROWS;
    let first_token = CUBE_POS / row_tiles * comptime!(SIDE * depth);

    let mut weights = Shared::<[f32]>::new_slice(comptime!(TILE_COLS * ROWS_PITCH));
    let mut inputs = Shared::<[f32]>::new_slice(comptime!(SIDE * depth * COLS_PITCH));
    let mut values = Array::<f32>::new(GROUP);
    let mut sums = Array::<f32>::new(comptime!(depth * 4));
    #[unroll]
    for i in 0..comptime!(depth * 4) {
        sums[i] = 0.0f32;
    }

    // Each unit decodes one group of the weight's tile; rows past the end repeat the last one.
    let tile_row = unit / 4;
    let start = min(first_row + tile_row, rows - 1) * row_words;
    let blocks = (cols + comptime!(TILE_COLS - 1)) / TILE_COLS;
    for block in 0..blocks {
        decode(words, start, block * 4 + unit % 4, cols, &mut values, 0usize, format, whole);
        #[unroll]
        for i in 0..GROUP {
            let tile_col = column(unit % 4, i, format);
            weights[tile_col * ROWS_PITCH + tile_row] = values[i];
        }
        #[unroll]
        for i in 0..comptime!(depth * 2) {
            let place = unit + comptime!(i * SIDE * SIDE);
            let token = min(first_token + place / TILE_COLS, tokens - 1);
            let at = block * TILE_COLS + place % TILE_COLS;
            let mut value = 0.0f32;
            if whole || at < cols {
                value = x[token * cols + at];
            }
            inputs[place / TILE_COLS * COLS_PITCH + place % TILE_COLS] = value;
        }
        sync_cube();
        for k in 0..TILE_COLS {
            #[unroll]
            for r in 0..4usize {
                values[r] = weights[k * ROWS_PITCH + along + comptime!(r * SIDE)];
            }
            #[unroll]
            for t in 0..depth {
                let input = inputs[(across + comptime!(t * SIDE)) * COLS_PITCH + k];
                #[unroll]
                for r in 0..4usize {
                    sums[comptime!(t * 4 + r)] += input * values[r];
                }
            }
        }
        sync_cube();
    }

    #[unroll]
    for t in 0..depth {
        let token = first_token + across + comptime!(t * SIDE);
        #[unroll]
        for r in 0..4usize {
            let row = first_row + along + comptime!(r * SIDE);
            if token < tokens && row < rows {
                y[token * rows + row] = sums[comptime!(t * 4 + r)];
            }
        }
    }
}
