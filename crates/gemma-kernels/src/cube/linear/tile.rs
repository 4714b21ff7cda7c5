//! The product for any number of tokens: the cost is multiplying.

use super::super::cube_count;
use super::super::dequantize::{GROUP, QUAD_GROUP, column, decode, decode_wide};
use super::{Operands, QUAD, quad};
use crate::Format;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Units along each side of a cube.
const SIDE: usize = 16;
/// Rows of the weight that a unit multiplies.
const UNIT_ROWS: usize = 4;
/// Rows of the weight in a tile.
const TILE_ROWS: usize = UNIT_ROWS * SIDE;
/// Columns that are in shared memory at once: one block of the quantized formats, four groups.
const TILE_COLS: usize = 32;
/// Quads of columns in a tile.
const TILE_QUADS: usize = TILE_COLS / QUAD;
/// Distance of rows in shared memory, in quads: odd, so that neighbouring units reach different banks.
const PITCH: usize = TILE_QUADS + 1;
/// Tokens of a unit in the largest tile.
const DEEPEST: usize = 8;
/// Cubes from which on the largest tile is worth having fewer of them.
const MANY_CUBES: usize = 512;

/// Bytes of shared memory of a cube.
pub(super) const fn shared_bytes(depth: usize) -> usize {
    (TILE_ROWS + SIDE * depth) * PITCH * QUAD * size_of::<f32>()
}

/// Tokens per unit along its side: as many as fill the tile, at most four; eight where that leaves many cubes and the
/// adapter has the memory. No sum depends on it.
pub(super) fn depth(operands: &Operands) -> usize {
    let cubes = operands.rows.div_ceil(TILE_ROWS) * operands.tokens.div_ceil(SIDE * DEEPEST);
    let memory = operands.x.client.properties().hardware.max_shared_memory_size;
    if cubes >= MANY_CUBES && operands.tokens > SIDE * DEEPEST / 2 && shared_bytes(DEEPEST) <= memory {
        DEEPEST
    } else {
        operands.tokens.div_ceil(SIDE).min(4).next_power_of_two()
    }
}

/// Launches the kernel with `depth` tokens per unit: 1, 2, 4 or 8.
pub(super) fn launch(operands: Operands, y: &CubeTensor, depth: usize) {
    let Operands { tokens, rows, row_words, cols, format, .. } = operands;
    let tiles = rows.div_ceil(TILE_ROWS) * tokens.div_ceil(SIDE * depth);
    let (x_load, word_load, wide) = (operands.x_load(), operands.word_load(), operands.is_wide());
    let client = operands.x.client.clone();
    let (bias, has_bias) = operands.bias();
    // SAFETY: the kernel clamps rows and tokens to those that exist and guards columns unless they are whole blocks of
    // TILE_COLS; the buffers hold rows x row_words, tokens x cols and tokens x rows elements, and a bias for every row.
    unsafe {
        tile_kernel::launch_unchecked(
            &client,
            cube_count(tiles),
            CubeDim::new_2d(SIDE as u32, SIDE as u32),
            x_load,
            word_load,
            operands.x.into_buffer_arg(),
            operands.words.into_buffer_arg(),
            bias.into_buffer_arg(),
            y.clone().into_buffer_arg(),
            tokens,
            rows,
            row_words,
            cols,
            has_bias,
            x_load,
            depth,
            format,
            wide,
            cols.is_multiple_of(TILE_COLS),
        );
    }
}

/// A cube is [`SIDE`] x [`SIDE`] units; each sums four rows times `depth` tokens, over the columns in order.
///
/// Shared memory holds rows of the weight and of the activations as they lie in memory, in quads of columns: a load
/// of 128 bits serves four columns, and a unit's `4 + depth` loads make `16 depth` products.
#[cube(launch_unchecked)]
fn tile_kernel<N: Size, M: Size>(
    x: &[Vector<f32, N>],
    words: &[Vector<u32, M>],
    bias: &[f32],
    y: &mut [f32],
    tokens: usize,
    rows: usize,
    row_words: usize,
    cols: usize,
    #[comptime] has_bias: bool,
    #[comptime] x_load: usize,
    #[comptime] depth: usize,
    #[comptime] format: Format,
    #[comptime] wide: bool,
    #[comptime] whole: bool,
) {
    let unit = UNIT_POS as usize;
    let along = UNIT_POS_X as usize;
    let across = UNIT_POS_Y as usize;
    let row_tiles = (rows + comptime!(TILE_ROWS - 1)) / TILE_ROWS;
    let first_row = CUBE_POS % row_tiles * TILE_ROWS;
    let first_token = CUBE_POS / row_tiles * comptime!(SIDE * depth);

    let mut weights = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(TILE_ROWS * PITCH));
    let mut inputs = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(SIDE * depth * PITCH));
    let mut values = Array::<f32>::new(GROUP);
    let mut rows_quads = Array::<Vector<f32, Const<4>>>::new(UNIT_ROWS);
    let mut sums = Array::<f32>::new(comptime!(depth * UNIT_ROWS));
    #[unroll]
    for i in 0..comptime!(depth * UNIT_ROWS) {
        sums[i] = 0.0f32;
    }

    // Each unit decodes one group of the weight's tile; rows past the end repeat the last one.
    let (tile_row, part) = (unit / 4, unit % 4);
    let start = min(first_row + tile_row, rows - 1) * row_words;
    let blocks = (cols + comptime!(TILE_COLS - 1)) / TILE_COLS;
    for block in 0..blocks {
        fill(words, start, block * 4 + part, cols, &mut values, format, wide, whole);
        #[unroll]
        for q in 0..QUAD_GROUP {
            let mut values_quad = Vector::<f32, Const<4>>::new(0.0f32);
            #[unroll]
            for i in 0..QUAD {
                values_quad.insert(i, values[comptime!(q * QUAD + i)]);
            }
            weights[tile_row * PITCH + column(part, comptime!(q * QUAD), format) / QUAD] = values_quad;
        }
        #[unroll]
        for i in 0..comptime!(depth.div_ceil(2)) {
            let place = unit + comptime!(i * SIDE * SIDE);
            let (tile_token, tile_quad) = (place / TILE_QUADS, place % TILE_QUADS);
            if comptime!(depth > 1) || tile_token < SIDE {
                let token = min(first_token + tile_token, tokens - 1);
                let at = block * TILE_COLS + tile_quad * QUAD;
                inputs[tile_token * PITCH + tile_quad] = quad(x, token * cols, at, cols, x_load, whole);
            }
        }
        sync_cube();
        for k in 0..TILE_QUADS {
            #[unroll]
            for r in 0..UNIT_ROWS {
                rows_quads[r] = weights[(along + comptime!(r * SIDE)) * PITCH + k];
            }
            #[unroll]
            for t in 0..depth {
                let input = inputs[(across + comptime!(t * SIDE)) * PITCH + k];
                #[unroll]
                for i in 0..QUAD {
                    #[unroll]
                    for r in 0..UNIT_ROWS {
                        sums[comptime!(t * UNIT_ROWS + r)] += input.extract(i) * rows_quads[r].extract(i);
                    }
                }
            }
        }
        sync_cube();
    }

    #[unroll]
    for t in 0..depth {
        let token = first_token + across + comptime!(t * SIDE);
        #[unroll]
        for r in 0..UNIT_ROWS {
            let row = first_row + along + comptime!(r * SIDE);
            if token < tokens && row < rows {
                let mut sum = sums[comptime!(t * UNIT_ROWS + r)];
                if comptime!(has_bias) {
                    sum += bias[row];
                }
                y[token * rows + row] = sum;
            }
        }
    }
}

/// Decodes group `group` of the row that starts at word `start`, zeros if it lies past the end.
#[cube]
fn fill<M: Size>(
    words: &[Vector<u32, M>],
    start: usize,
    group: usize,
    cols: usize,
    values: &mut Array<f32>,
    #[comptime] format: Format,
    #[comptime] wide: bool,
    #[comptime] whole: bool,
) {
    if comptime!(wide) {
        if whole || group * GROUP < cols {
            decode_wide(words, start, group, values, 0usize, format);
        } else {
            #[unroll]
            for i in 0..GROUP {
                values[i] = 0.0f32;
            }
        }
    } else {
        decode(words.downcast::<u32>(), start, group, cols, values, 0usize, format, whole);
    }
}
