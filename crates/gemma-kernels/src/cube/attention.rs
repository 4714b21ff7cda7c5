//! Softmax attention of queries over the pages of their KV caches, or over the rows of the call.
//!
//! One cube answers one head of one query, or of a piece of what it sees; one launch answers all queries of all sequences, and a
//! second one adds up the pieces where there are any (Dao et al., "Flash-Decoding", 2023). The keys that a query may
//! see are an interval of positions, which the host works out. So the kernel walks an interval, without a mask and
//! without reading a key that it may not see. It walks once, keeping the largest score so far, the sum of weights
//! relative to it and the weighted sum of values, and rescales the sums when the largest score grows (Milakov &
//! Gimelshein, arXiv:1805.02867, algorithm 3; Dao et al., arXiv:2205.14135, algorithm 1). What it does for a query
//! depends on nothing else in the launch.

use super::dequantize::half_to_f32;
use super::math::tanh;
use super::{cube_count, floats, is_empty, output};
use crate::kv::{BLOCK, CachePrecision, PAGE_LEN};
use crate::ops::attention::{PagedCall, QUERY_WORDS};
use burn::tensor::DType;
use burn_cubecl::{kernel::into_contiguous, tensor::CubeTensor};
use cubecl::prelude::*;

/// Units of a cube.
const UNITS: usize = 256;
/// Units that share the dimensions of one key while scoring.
const PARTS: usize = 8;
/// Keys that one unit scores a part of, so that a value of the query is loaded once for them.
const UNIT_KEYS: usize = 4;
/// Keys side by side while scoring.
const COLUMNS: usize = UNITS / PARTS;
/// Keys that are scored between two barriers.
const KEYS: usize = COLUMNS * UNIT_KEYS;
/// The most units side by side, one for each dimension, while summing values.
const WIDTH: usize = 64;
/// Words of a block of q8_0: the scale and the integers.
const BLOCK_WORDS: usize = 1 + BLOCK / 4;
/// Where keys and values lie: `[rows, kv_heads * head_dim]` values each.
pub(crate) enum Source {
    /// In the rows of the call, f32.
    Rows([CubeTensor; 2]),
    /// In the pages of a pool, as 32-bit words: f32; two f16 to a word; or blocks of q8_0, the scale in f32 and then four
    /// integers to a word.
    Pages { buffers: [CubeTensor; 2], precision: CachePrecision },
}

/// Attention of the queries of `call` of `q` `[tokens, heads, head_dim]`, a piece for each [`QUERY_WORDS`]
/// words of `queries`: the first position that it sees and the one after the last, then `offset` and `base`, and its query. In
/// pages, position `p` lies in page `tables[offset + p / PAGE_LEN - base]`; in rows, in row `offset + p - base`. Behind the pieces,
/// `queries` says where those of each query begin.
///
/// # Panics
/// When the shapes contradict each other.
pub(crate) fn attend(q: CubeTensor, source: Source, [queries, tables]: [CubeTensor; 2], call: PagedCall) -> CubeTensor {
    let PagedCall { first, queries: count, pieces, kv_heads, params, .. } = call;
    let [tokens, heads, head_dim] = q.meta.shape().dims::<3>();
    let [words] = queries.meta.shape().dims::<1>();
    assert!(first + count <= tokens && count <= pieces, "queries");
    assert_eq!(words, pieces * QUERY_WORDS + count + 1, "pieces");
    assert!([&queries, &tables].iter().all(|ints| ints.dtype == DType::U32), "positions and tables");
    let (buffers, paged, precision) = match source {
        Source::Rows(rows) => (rows.map(floats), false, CachePrecision::F32),
        Source::Pages { buffers, precision } => {
            assert!(buffers.iter().all(|buffer| buffer.dtype == DType::U32), "pages");
            (buffers, true, precision)
        }
    };
    let row = buffers[0].meta.shape().dims::<2>()[1];
    assert_eq!(row, precision.words(kv_heads * head_dim), "keys have the heads and the dimension of the layer");
    let out = output(&q, [count, heads, head_dim]);
    if is_empty(&out) {
        return out;
    }
    assert!(heads.is_multiple_of(kv_heads), "the heads are whole groups of key/value heads");
    let width = head_dim.next_power_of_two().min(WIDTH);
    let client = q.client.clone();
    let [keys, values] = buffers;
    let scene = SceneLaunch::new(first, pieces, heads, kv_heads, head_dim, params.scale, params.softcap.unwrap_or(0.0));
    let is_cut = pieces > count;
    // what the pieces found, and of each head its largest score and the sum of its weights
    let found = if is_cut { output(&q, [pieces, heads, head_dim]) } else { out.clone() };
    let states = output(&q, [if is_cut { pieces * heads } else { 1 }, 2]);
    let queries = into_contiguous(queries);
    // SAFETY: the host says of each query which positions are there and where; dimensions are guarded, and the surplus
    // cubes repeat the last query.
    unsafe {
        attend_kernel::launch_unchecked(
            &client,
            cube_count(pieces * heads),
            CubeDim::new_1d(UNITS as u32),
            floats(q).into_buffer_arg(),
            keys.into_buffer_arg(),
            values.into_buffer_arg(),
            queries.clone().into_buffer_arg(),
            into_contiguous(tables).into_buffer_arg(),
            found.clone().into_buffer_arg(),
            states.clone().into_buffer_arg(),
            scene,
            width,
            head_dim.div_ceil(width),
            params.softcap.is_some(),
            paged,
            precision,
            is_cut,
        );
        if is_cut {
            let work = count * heads * head_dim;
            // SAFETY: units past the last value do nothing, and the host says which pieces there are.
            join_kernel::launch_unchecked(
                &client,
                cube_count(work.div_ceil(UNITS)),
                CubeDim::new_1d(UNITS as u32),
                found.into_buffer_arg(),
                states.into_buffer_arg(),
                queries.into_buffer_arg(),
                out.clone().into_buffer_arg(),
                work,
                heads,
                head_dim,
                pieces * QUERY_WORDS,
            );
        }
    }
    out
}

/// Adds up the pieces of each query: each unit one dimension of one head.
#[cube(launch_unchecked)]
fn join_kernel(
    found: &[f32],
    states: &[f32],
    queries: &[u32],
    out: &mut [f32],
    work: usize,
    heads: usize,
    head_dim: usize,
    begins: usize,
) {
    if ABSOLUTE_POS >= work {
        terminate!();
    }
    let dim = ABSOLUTE_POS % head_dim;
    let head = ABSOLUTE_POS / head_dim % heads;
    let query = ABSOLUTE_POS / head_dim / heads;
    let first = queries[begins + query] as usize;
    let end = queries[begins + query + 1] as usize;
    let mut largest = states[(first * heads + head) * 2];
    for piece in first + 1..end {
        largest = max(largest, states[(piece * heads + head) * 2]);
    }
    let mut sum = 0.0f32;
    let mut total = 0.0f32;
    for piece in first..end {
        let at = piece * heads + head;
        // the largest one's is 1, so that a query of one piece gets what it would get by itself
        let weight = select(states[at * 2] == largest, 1.0f32, (states[at * 2] - largest).exp());
        total += weight * states[at * 2 + 1];
        sum += weight * found[at * head_dim + dim];
    }
    out[ABSOLUTE_POS] = sum / total;
}

/// Units of a cube of [`write_kernel`].
const WRITE_UNITS: usize = 64;

/// Writes the rows of `k` and `v` `[tokens, kv_heads, head_dim]` from `first` on to the places `slots` of a pool's
/// buffers, in place; returns how many.
///
/// # Panics
/// When the shapes contradict each other.
pub(crate) fn write_pages(
    [k, v]: [CubeTensor; 2],
    first: usize,
    buffers: [CubeTensor; 2],
    slots: CubeTensor,
    precision: CachePrecision,
) -> usize {
    let [tokens, kv_heads, head_dim] = k.meta.shape().dims::<3>();
    let [count] = slots.meta.shape().dims::<1>();
    let words = precision.words(kv_heads * head_dim);
    let row = if precision == CachePrecision::Q8_0 { words / BLOCK_WORDS } else { words };
    assert!(first + count <= tokens && v.meta.shape() == k.meta.shape(), "keys and values");
    assert!(buffers.iter().all(|buffer| buffer.meta.shape().dims::<2>()[1] == words), "a row of a page");
    let client = k.client.clone();
    let units = count * row;
    if units == 0 {
        return count;
    }
    let [keys, values] = buffers;
    // SAFETY: units past the last word do nothing; the host gave places that are there.
    unsafe {
        write_kernel::launch_unchecked(
            &client,
            cube_count((2 * units).div_ceil(WRITE_UNITS)),
            CubeDim::new_1d(WRITE_UNITS as u32),
            floats(k).into_buffer_arg(),
            floats(v).into_buffer_arg(),
            slots.into_buffer_arg(),
            keys.into_buffer_arg(),
            values.into_buffer_arg(),
            units,
            row,
            first,
            precision,
        );
    }
    count
}

/// The first `units` units write keys, as many more values.
#[cube(launch_unchecked)]
fn write_kernel(
    k: &[f32],
    v: &[f32],
    slots: &[u32],
    keys: &mut [u32],
    values: &mut [u32],
    units: usize,
    row: usize,
    first: usize,
    #[comptime] precision: CachePrecision,
) {
    if ABSOLUTE_POS < units {
        write_unit(k, slots, keys, ABSOLUTE_POS, row, first, precision);
    } else if ABSOLUTE_POS < 2 * units {
        write_unit(v, slots, values, ABSOLUTE_POS - units, row, first, precision);
    }
}

/// Writes a word, which is a value or two as f16, or a block of q8_0; a row has `row` of them.
#[cube]
fn write_unit(
    rows: &[f32],
    slots: &[u32],
    out: &mut [u32],
    unit: usize,
    row: usize,
    first: usize,
    #[comptime] precision: CachePrecision,
) {
    let from = first * row + unit;
    let to = slots[unit / row] as usize * row + unit % row;
    if comptime!(precision == CachePrecision::F16) {
        out[to] = f16_bits(rows[2 * from]) | (f16_bits(rows[2 * from + 1]) << 16u32);
    } else if comptime!(precision == CachePrecision::Q8_0) {
        write_block(rows, from * BLOCK, out, to * BLOCK_WORDS);
    } else {
        out[to] = u32::reinterpret(rows[from]);
    }
}

/// Writes 32 values as a block of q8_0: as [`Format::Q8_0`](crate::Format) rounds them, with the scale widened to f32.
#[cube]
fn write_block(rows: &[f32], from: usize, out: &mut [u32], to: usize) {
    let mut largest = 0.0f32;
    for i in 0..BLOCK {
        largest = max(largest, rows[from + i].abs());
    }
    let scale = largest / 127.0f32;
    let inverse = select(scale == 0.0f32, 0.0f32, 1.0f32 / scale);
    out[to] = u32::reinterpret(half_to_f32(f16_bits(scale)));
    for word in 0..comptime!(BLOCK / 4) {
        let mut bytes = 0u32;
        #[unroll]
        for i in 0..4usize {
            let value = rows[from + word * 4 + i] * inverse;
            let magnitude = u32::cast_from((value.abs() + 0.5f32).floor()) & 127u32;
            let byte = select(value < 0.0f32, (256u32 - magnitude) & 255u32, magnitude);
            bytes |= byte << comptime!(8 * i as u32);
        }
        out[to + 1 + word] = bytes;
    }
}

/// The bits of the nearest f16, ties to even; larger values become the largest.
#[cube]
fn f16_bits(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    let magnitude = bits & 0x7fff_ffffu32;
    // the exponent moved by 112, and half a step more, less one where that would round a tie to odd
    let normal = (magnitude - 0x3800_0000u32 + 0xfffu32 + ((magnitude >> 13u32) & 1u32)) >> 13u32;
    // below 2^-14 steps of 2^-24 are counted: those of f32 just above a half
    let small = u32::reinterpret(f32::reinterpret(magnitude) + 0.5f32) - 0x3f00_0000u32;
    let finite = select(magnitude < 0x3880_0000u32, small, normal);
    // from 65520 on the nearest would be infinite
    let limited = select(magnitude >= 0x477f_f000u32, 0x7bffu32, finite);
    let half = select(magnitude > 0x7f80_0000u32, 0x7e00u32, limited);
    half | ((bits >> 16u32) & 0x8000u32)
}

/// A value of keys or values, as it is kept.
#[cube]
fn value_at(words: &[u32], index: usize, #[comptime] precision: CachePrecision) -> f32 {
    if comptime!(precision == CachePrecision::F16) {
        half_to_f32((words[index / 2] >> ((index % 2) as u32 * 16u32)) & 0xffffu32)
    } else if comptime!(precision == CachePrecision::Q8_0) {
        let (block, within) = (index / BLOCK * BLOCK_WORDS, index % BLOCK);
        // two's complement bytes, moved up by 128 to count from zero
        let word = words[block + 1 + within / 4] ^ 0x8080_8080u32;
        let byte = (word >> ((within % 4) as u32 * 8u32)) & 255u32;
        f32::reinterpret(words[block]) * (f32::cast_from(byte) - 128.0f32)
    } else {
        f32::reinterpret(words[index])
    }
}

/// The extents of the axes and the parameters of the call.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Scene {
    /// The first query's row.
    first: usize,
    pieces: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scale: f32,
    softcap: f32,
}

/// The keys that a query sees, and where they lie.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Stretch {
    from: usize,
    to: usize,
    offset: usize,
    base: usize,
    kv_head: usize,
}

/// Shared memory of a cube.
#[derive(CubeType)]
struct Board {
    /// `[head_dim]`
    query: Shared<[f32]>,
    /// What each unit found, `[UNIT_KEYS, UNITS]`.
    partial: Shared<[f32]>,
    /// `[KEYS]`
    scores: Shared<[f32]>,
    /// `exp(score - largest)`, `[KEYS]`.
    weights: Shared<[f32]>,
}

/// What a unit remembers on its walk over the keys.
#[derive(CubeType)]
struct Walk {
    /// The largest score so far in `[0]`, the same in all units; in `[1]` the sum of `exp(score - largest)` over
    /// the keys of this unit.
    state: Array<f32>,
    /// Weighted sums of the values in this unit's dimensions, over the keys of this unit.
    sums: Array<f32>,
}

/// A cube answers one head of one query, or of a piece of it, of which it writes the sums as they are and its state.
///
/// For the weighted sum of values the units stand `width` side by side, each with every `width`-th dimension
/// (`chunks` of them), and share the keys among the lines that this makes.
#[cube(launch_unchecked)]
fn attend_kernel(
    q: &[f32],
    keys: &[u32],
    values: &[u32],
    queries: &[u32],
    tables: &[u32],
    out: &mut [f32],
    states: &mut [f32],
    scene: Scene,
    #[comptime] width: usize,
    #[comptime] chunks: usize,
    #[comptime] capped: bool,
    #[comptime] paged: bool,
    #[comptime] precision: CachePrecision,
    #[comptime] is_cut: bool,
) {
    let unit = UNIT_POS as usize;
    let index = min(CUBE_POS, scene.pieces * scene.heads - 1);
    let query = index / scene.heads * QUERY_WORDS;
    let row = scene.first + queries[query + 4] as usize;
    let stretch = Stretch {
        from: queries[query] as usize,
        to: queries[query + 1] as usize,
        offset: queries[query + 2] as usize,
        base: queries[query + 3] as usize,
        kv_head: index % scene.heads / (scene.heads / scene.kv_heads),
    };

    let mut board = Board {
        query: Shared::<[f32]>::new_slice(comptime!(width * chunks)),
        partial: Shared::<[f32]>::new_slice(comptime!(UNIT_KEYS * UNITS)),
        scores: Shared::<[f32]>::new_slice(KEYS),
        weights: Shared::<[f32]>::new_slice(KEYS),
    };
    let mut walk = Walk { state: Array::<f32>::new(2usize), sums: Array::<f32>::new(chunks) };
    walk.state[0] = f32::min_value();
    walk.state[1] = 0.0f32;
    #[unroll]
    for c in 0..chunks {
        walk.sums[c] = 0.0f32;
    }
    let mut dim = unit;
    while dim < scene.head_dim {
        board.query[dim] = q[(row * scene.heads + index % scene.heads) * scene.head_dim + dim];
        dim += UNITS;
    }
    sync_cube();

    read(keys, values, tables, stretch, &scene, &mut board, &mut walk, width, chunks, capped, paged, precision);

    // Units with the same dimensions add up what their keys gave.
    let lines = comptime!(UNITS / width);
    board.partial[unit] = walk.state[1];
    sync_cube();
    let mut total = 0.0f32;
    #[unroll]
    for line in 0..lines {
        total += board.partial[unit % width + comptime!(line * width)];
    }
    if comptime!(is_cut) && unit == 0 && CUBE_POS < scene.pieces * scene.heads {
        states[index * 2] = walk.state[0];
        states[index * 2 + 1] = total;
    }
    #[unroll]
    for c in 0..chunks {
        sync_cube();
        board.partial[unit] = walk.sums[c];
        sync_cube();
        let dim = unit + comptime!(c * width);
        if unit < width && dim < scene.head_dim && CUBE_POS < scene.pieces * scene.heads {
            let mut sum = 0.0f32;
            #[unroll]
            for line in 0..lines {
                sum += board.partial[unit + comptime!(line * width)];
            }
            if comptime!(is_cut) {
                out[index * scene.head_dim + dim] = sum;
            } else {
                out[index * scene.head_dim + dim] = sum / total;
            }
        }
    }
}

/// Walks over the keys, [`KEYS`] at a time.
///
/// Three barriers a step: dots of parts of keys | scores | weights | weighted sum. Each buffer is written again
/// one barrier after its last reader at the earliest.
#[cube]
fn read(
    keys: &[u32],
    values: &[u32],
    tables: &[u32],
    stretch: Stretch,
    scene: &Scene,
    board: &mut Board,
    walk: &mut Walk,
    #[comptime] width: usize,
    #[comptime] chunks: usize,
    #[comptime] capped: bool,
    #[comptime] paged: bool,
    #[comptime] precision: CachePrecision,
) {
    let unit = UNIT_POS as usize;
    let mut tile = stretch.from;
    while tile < stretch.to {
        let count = min(KEYS, stretch.to - tile);

        let column = unit / PARTS;
        let mut bases = Array::<usize>::new(UNIT_KEYS);
        let mut dots = Array::<f32>::new(UNIT_KEYS);
        #[unroll]
        for i in 0..UNIT_KEYS {
            // keys past the last one repeat it; their score is not taken
            let key = min(column + comptime!(i * COLUMNS), count - 1);
            bases[i] = row_of(tile + key, tables, stretch, scene, paged);
            dots[i] = 0.0f32;
        }
        let mut dim = unit % PARTS;
        while dim < scene.head_dim {
            let factor = board.query[dim];
            #[unroll]
            for i in 0..UNIT_KEYS {
                if comptime!(i == 0) || comptime!(i * COLUMNS) < count {
                    dots[i] += factor * value_at(keys, bases[i] + dim, precision);
                }
            }
            dim += PARTS;
        }
        #[unroll]
        for i in 0..UNIT_KEYS {
            board.partial[unit + comptime!(i * UNITS)] = dots[i];
        }
        sync_cube();

        if unit < count {
            let mut sum = 0.0f32;
            #[unroll]
            for part in 0..PARTS {
                sum += board.partial[unit * PARTS + part];
            }
            let mut score = sum * scene.scale;
            if capped {
                score = scene.softcap * tanh(score / scene.softcap);
            }
            board.scores[unit] = score;
        }
        sync_cube();

        let before = walk.state[0];
        let mut largest = before;
        for k in 0..count {
            largest = max(largest, board.scores[k]);
        }
        if unit < count {
            board.weights[unit] = (board.scores[unit] - largest).exp();
        }
        sync_cube();

        let correction = (before - largest).exp();
        let mut total = walk.state[1] * correction;
        #[unroll]
        for c in 0..chunks {
            walk.sums[c] *= correction;
        }
        let mut k = unit / width;
        while k < count {
            let weight = board.weights[k];
            total += weight;
            let base = row_of(tile + k, tables, stretch, scene, paged) + unit % width;
            #[unroll]
            for c in 0..chunks {
                if unit % width + comptime!(c * width) < scene.head_dim {
                    walk.sums[c] += weight * value_at(values, base + comptime!(c * width), precision);
                }
            }
            k += comptime!(UNITS / width);
        }
        walk.state[0] = largest;
        walk.state[1] = total;
        tile += KEYS;
    }
}

/// Where the key (or value) of a position begins.
#[cube]
fn row_of(position: usize, tables: &[u32], stretch: Stretch, scene: &Scene, #[comptime] paged: bool) -> usize {
    let mut row = stretch.offset + position - stretch.base;
    if comptime!(paged) {
        let page = tables[stretch.offset + position / PAGE_LEN - stretch.base] as usize;
        row = page * PAGE_LEN + position % PAGE_LEN;
    }
    (row * scene.kv_heads + stretch.kv_head) * scene.head_dim
}
