//! The largest logits of each row, so that a sampler on the host needs no more than these of a vocabulary.
//!
//! A row is cut into lists, a cube each, whose units hold their logits in registers: `count` times the best of all units
//! is found, written down and taken out. A second launch merges the lists of a row in the same way, a unit each. Logits
//! are compared as integers that rise with them, which no driver's idea of NaN disturbs.

use super::{cube_count, floats, is_empty};
use burn::tensor::DType;
use burn_cubecl::{ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor};
use cubecl::prelude::*;

/// Units of a cube.
const UNITS: usize = 256;
/// Units that compare what [`UNITS`] found, [`LINE`] each.
const LINES: usize = 16;
const LINE: usize = UNITS / LINES;
/// Logits of a unit, where a row has no more lists then than a cube has units.
const EACH: usize = 8;
/// Below this, a power of e is as good as none beside the largest, which is 1.
const SMALLEST_POWER: f32 = -87.0;

/// The `count` largest of each row of `logits` `[rows, vocab]`: `[rows, 2 count + 1]` words, which are the bits of the
/// logits from the largest down, then their token ids, then the bits of `Σ exp(logit - largest)` over the whole row. Of
/// equal logits the lower id comes first; NaN counts and comes as +∞, -0 as 0.
///
/// # Panics
/// When a row has fewer logits.
pub(crate) fn largest(logits: CubeTensor, count: usize) -> CubeTensor {
    let logits = floats(logits);
    let [rows, vocab] = logits.meta.shape().dims::<2>();
    assert!((1..=vocab).contains(&count), "{count} of {vocab} logits");
    let words = 2 * count + 1;
    let (client, device) = (logits.client.clone(), logits.device.clone());
    let ints =
        |shape: [usize; 2]| empty_device_contiguous_dtype(client.clone(), device.clone(), shape.into(), DType::U32);
    let out = ints([rows, words]);
    if is_empty(&out) {
        return out;
    }
    let each = EACH.max(vocab.div_ceil(UNITS * UNITS));
    let lists = vocab.div_ceil(UNITS * each);
    let found = ints([rows * lists, words]);
    // SAFETY: logits past the last one of a row are not read, surplus cubes repeat the last list and write nothing, and the
    // buffers hold rows x vocab, rows x lists x words and rows x words elements.
    unsafe {
        list_kernel::launch_unchecked(
            &client,
            cube_count(rows * lists),
            CubeDim::new_1d(UNITS as u32),
            logits.into_buffer_arg(),
            found.clone().into_buffer_arg(),
            rows * lists,
            vocab,
            lists,
            count,
            each,
        );
        join_kernel::launch_unchecked(
            &client,
            cube_count(rows),
            CubeDim::new_1d(UNITS as u32),
            found.into_buffer_arg(),
            out.clone().into_buffer_arg(),
            rows,
            lists,
            count,
        );
    }
    out
}

/// Shared memory of a cube.
#[derive(CubeType)]
struct Board {
    /// What each unit has to offer, `[UNITS]`.
    keys: Shared<[u32]>,
    tokens: Shared<[u32]>,
    /// The best of a line of units, `[LINES]`.
    line_keys: Shared<[u32]>,
    line_tokens: Shared<[u32]>,
    /// `[UNITS]`
    sums: Shared<[f32]>,
}

#[cube]
fn new_board() -> Board {
    Board {
        keys: Shared::<[u32]>::new_slice(UNITS),
        tokens: Shared::<[u32]>::new_slice(UNITS),
        line_keys: Shared::<[u32]>::new_slice(LINES),
        line_tokens: Shared::<[u32]>::new_slice(LINES),
        sums: Shared::<[f32]>::new_slice(UNITS),
    }
}

/// A list's best, in the form of the result but with keys in place of logits.
#[cube(launch_unchecked)]
fn list_kernel(
    logits: &[u32],
    found: &mut [u32],
    work: usize,
    vocab: usize,
    lists: usize,
    count: usize,
    #[comptime] each: usize,
) {
    let unit = UNIT_POS as usize;
    let index = min(CUBE_POS, work - 1);
    let row = index / lists * vocab;
    let first = index % lists * comptime!(UNITS * each) + unit;
    let writes = unit == 0 && CUBE_POS < work;
    let at = index * (2 * count + 1);
    let mut board = new_board();

    // 0 is below the key of every logit: nothing, or taken
    let mut keys = Array::<u32>::new(each);
    let mut best = 0u32;
    #[unroll]
    for i in 0..each {
        let token = first + comptime!(i * UNITS);
        keys[i] = 0u32;
        if token < vocab {
            keys[i] = key_of(logits[row + token]);
        }
        best = max(best, keys[i]);
    }
    let largest = largest_key(best, first as u32, &mut board);

    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..each {
        if keys[i] != 0u32 {
            sum += power(keys[i], largest);
        }
    }
    let sum = total(sum, &mut board);
    if writes {
        found[at + 2 * count] = u32::reinterpret(sum);
    }

    for place in 0..count {
        let mut key = 0u32;
        let mut token = first as u32;
        #[unroll]
        for i in 0..each {
            // the first of equals has the lowest id
            if keys[i] > key {
                key = keys[i];
                token = (first + comptime!(i * UNITS)) as u32;
            }
        }
        let key = largest_key(key, token, &mut board);
        let token = its_token(key, &board);
        #[unroll]
        for i in 0..each {
            if (first + comptime!(i * UNITS)) as u32 == token {
                keys[i] = 0u32;
            }
        }
        if writes {
            found[at + place] = key;
            found[at + count + place] = token;
        }
    }
}

/// The best of a row's lists. Each list is in order, so that a unit offers the first of its list that was not taken.
#[cube(launch_unchecked)]
fn join_kernel(found: &[u32], out: &mut [u32], rows: usize, lists: usize, count: usize) {
    let unit = UNIT_POS as usize;
    let row = min(CUBE_POS, rows - 1);
    let writes = unit == 0 && CUBE_POS < rows;
    let words = 2 * count + 1;
    let list = (row * lists + min(unit, lists - 1)) * words;
    let at = row * words;
    let mut board = new_board();

    let mut best = 0u32;
    if unit < lists {
        best = found[list];
    }
    let largest = largest_key(best, 0u32, &mut board);
    let mut sum = 0.0f32;
    if unit < lists {
        sum = f32::reinterpret(found[list + 2 * count]) * power(best, largest);
    }
    let sum = total(sum, &mut board);
    if writes {
        out[at + 2 * count] = u32::reinterpret(sum);
    }

    let mut taken = 0usize;
    for place in 0..count {
        let mut key = 0u32;
        let mut token = 0u32;
        if unit < lists && taken < count {
            key = found[list + taken];
            token = found[list + count + taken];
        }
        let chosen = largest_key(key, token, &mut board);
        let chosen_token = its_token(chosen, &board);
        if key == chosen && token == chosen_token {
            taken += 1;
        }
        if writes {
            out[at + place] = bits_of(chosen);
            out[at + count + place] = chosen_token;
        }
    }
}

/// The largest key of all units. Its token, of equals the lowest, is [`its_token`]. Two barriers; what is on the board is
/// read by none when the next call writes it.
#[cube]
fn largest_key(key: u32, token: u32, board: &mut Board) -> u32 {
    let unit = UNIT_POS as usize;
    board.keys[unit] = key;
    board.tokens[unit] = token;
    sync_cube();
    if unit < LINES {
        let mut best = board.keys[unit];
        let mut best_token = board.tokens[unit];
        for i in 1..LINE {
            let other = board.keys[unit + i * LINES];
            let other_token = board.tokens[unit + i * LINES];
            if other > best || (other == best && other_token < best_token) {
                best = other;
                best_token = other_token;
            }
        }
        board.line_keys[unit] = best;
        board.line_tokens[unit] = best_token;
    }
    sync_cube();
    let mut best = board.line_keys[0usize];
    for i in 1..LINES {
        best = max(best, board.line_keys[i]);
    }
    best
}

/// The token of the largest key that [`largest_key`] found just before.
#[cube]
fn its_token(largest: u32, board: &Board) -> u32 {
    // above every token's id
    let mut token = 0xffff_ffffu32;
    for i in 0..LINES {
        if board.line_keys[i] == largest {
            token = min(token, board.line_tokens[i]);
        }
    }
    token
}

/// The sum over all units, in an order that is always the same.
#[cube]
fn total(sum: f32, board: &mut Board) -> f32 {
    let unit = UNIT_POS as usize;
    board.sums[unit] = sum;
    sync_cube();
    if unit < LINES {
        let mut line = 0.0f32;
        for i in 0..LINE {
            line += board.sums[unit + i * LINES];
        }
        // no other unit reads this place before the next barrier
        board.sums[unit] = line;
    }
    sync_cube();
    let mut total = 0.0f32;
    for i in 0..LINES {
        total += board.sums[i];
    }
    total
}

/// `exp(logit - largest)` of two keys.
#[cube]
fn power(key: u32, largest: u32) -> f32 {
    let distance = f32::reinterpret(bits_of(key)) - f32::reinterpret(bits_of(largest));
    // key comparisons tell -∞ apart; differences of infinities would not
    select(key == MINUS_INFINITY, 0.0f32, max(distance, SMALLEST_POWER).exp())
}

/// [`key_of`] of the bits of -∞.
const MINUS_INFINITY: u32 = 0x007f_ffff;

/// A number that rises with the logit of these bits, from 1 on.
#[cube]
fn key_of(bits: u32) -> u32 {
    let magnitude = bits & 0x7fff_ffffu32;
    let number = select(magnitude > 0x7f80_0000u32, 0x7f80_0000u32, bits);
    let number = select(magnitude == 0u32, 0u32, number);
    select(number >> 31u32 == 0u32, number | 0x8000_0000u32, number ^ 0xffff_ffffu32)
}

/// The bits of the logit of a key.
#[cube]
fn bits_of(key: u32) -> u32 {
    select(key >> 31u32 == 1u32, key & 0x7fff_ffffu32, key ^ 0xffff_ffffu32)
}
