//! Softmax attention of fresh queries over a ring of past keys and over the fresh ones.
//!
//! One cube answers one head of one query. The keys that a query may see are an interval of positions: those of
//! its window up to itself, or, inside a prefix, the whole prefix. So the kernel walks an interval, first through
//! the ring, then through the fresh keys, without a mask and without reading a key it may not see. It walks once,
//! keeping the largest score so far, the sum of weights relative to it and the weighted sum of values, and
//! rescales the sums when the largest score grows (Milakov & Gimelshein, arXiv:1805.02867, algorithm 3; Dao et
//! al., arXiv:2205.14135, algorithm 1).

use super::decode::half_to_f32;
use super::{cube_count, floats, is_empty, output};
use crate::AttendParams;
use burn::tensor::{DType, Shape};
use burn_cubecl::{kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor};
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

/// Attention of `q` `[tokens, heads, head_dim]` over `past` and `fresh` keys and values, to the shape of `q`.
///
/// The past keys and values are `[capacity, kv_heads, head_dim]` rings: slot `s` holds the last position below
/// `start` that is `s` modulo the capacity; f32, or [`halves`], two to a word. The fresh ones are
/// `[tokens, kv_heads, head_dim]`, at positions `start..start + tokens` like the queries.
///
/// # Panics
/// When the shapes contradict each other or the window is zero.
pub(crate) fn attend(
    q: CubeTensor,
    past: [CubeTensor; 2],
    in_halves: bool,
    [fresh_k, fresh_v]: [CubeTensor; 2],
    params: AttendParams,
) -> CubeTensor {
    let [tokens, heads, head_dim] = q.meta.shape().dims::<3>();
    let [capacity, kv_heads, key_words] = past[0].meta.shape().dims::<3>();
    let (values, kind) = if in_halves { (2, DType::U32) } else { (1, DType::F32) };
    assert_eq!(key_words * values, head_dim, "keys have the dimension of queries");
    for past in &past {
        assert_eq!(past.meta.shape().dims::<3>(), [capacity, kv_heads, key_words], "past keys and values");
        assert_eq!(past.dtype, kind, "past keys and values");
    }
    let [past_k, past_v] = past.map(into_contiguous);
    assert_eq!(fresh_k.meta.shape().dims::<3>(), [tokens, kv_heads, head_dim], "fresh keys");
    assert_eq!(fresh_v.meta.shape().dims::<3>(), [tokens, kv_heads, head_dim], "fresh values");
    assert!(params.window != Some(0), "a query sees at least itself");
    let out = output(&q, [tokens, heads, head_dim]);
    if is_empty(&out) {
        return out;
    }
    assert!(heads.is_multiple_of(kv_heads), "the heads are whole groups of key/value heads");
    let width = head_dim.next_power_of_two().min(WIDTH);
    let client = q.client.clone();
    // Limits that reach past the last key limit nothing; cut off, they also fit into 32 bits.
    let known = params.start + tokens;
    let scene = SceneLaunch::new(
        capacity,
        tokens,
        heads,
        kv_heads,
        head_dim,
        params.start,
        params.prefix_len.min(known),
        params.window.filter(|window| *window < known).unwrap_or(0),
        params.scale,
        params.softcap.unwrap_or(0.0),
    );
    // SAFETY: positions become slots modulo the capacity or the number of fresh keys, dimensions are guarded, and
    // the surplus cubes repeat the last one; the shapes of all buffers are asserted above.
    unsafe {
        attend_kernel::launch_unchecked(
            &client,
            cube_count(tokens * heads),
            CubeDim::new_1d(UNITS as u32),
            floats(q).into_buffer_arg(),
            past_k.into_buffer_arg(),
            past_v.into_buffer_arg(),
            floats(fresh_k).into_buffer_arg(),
            floats(fresh_v).into_buffer_arg(),
            out.clone().into_buffer_arg(),
            scene,
            width,
            head_dim.div_ceil(width),
            params.softcap.is_some(),
            in_halves,
        );
    }
    out
}

/// Units of a cube of [`halves_kernel`]; each makes one word.
const HALVES_UNITS: usize = 64;

/// Values as f16, two in a word: `[a, b, 2 n]` to `[a, b, n]`.
pub(crate) fn halves(values: CubeTensor) -> CubeTensor {
    let [a, b, dim] = values.meta.shape().dims::<3>();
    let (client, device) = (values.client.clone(), values.device.clone());
    let out = empty_device_contiguous_dtype(client.clone(), device, Shape::new([a, b, dim / 2]), DType::U32);
    let words = a * b * dim / 2;
    if words == 0 {
        return out;
    }
    // SAFETY: units past the last word do nothing, and there are two values for each.
    unsafe {
        halves_kernel::launch_unchecked(
            &client,
            cube_count(words.div_ceil(HALVES_UNITS)),
            CubeDim::new_1d(HALVES_UNITS as u32),
            floats(values).into_buffer_arg(),
            out.clone().into_buffer_arg(),
            words,
        );
    }
    out
}

/// Each unit makes a word of two values.
#[cube(launch_unchecked)]
fn halves_kernel(values: &[f32], out: &mut [u32], words: usize) {
    if ABSOLUTE_POS >= words {
        terminate!();
    }
    let low = half_of(values[2 * ABSOLUTE_POS]);
    let high = half_of(values[2 * ABSOLUTE_POS + 1]);
    out[ABSOLUTE_POS] = low | (high << 16u32);
}

/// The bits of the nearest f16, ties to even; larger values become the largest.
#[cube]
fn half_of(value: f32) -> u32 {
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

/// A value of keys or values, which are f32 or f16, two to a word.
#[cube]
fn value_at(words: &[u32], index: usize, #[comptime] in_halves: bool) -> f32 {
    if comptime!(in_halves) {
        half_to_f32((words[index / 2] >> ((index % 2) as u32 * 16u32)) & 0xffffu32)
    } else {
        f32::reinterpret(words[index])
    }
}

/// The extents of the axes and the parameters of the call.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Scene {
    capacity: usize,
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    start: usize,
    prefix_len: usize,
    /// 0: no limit.
    window: usize,
    scale: f32,
    softcap: f32,
}

/// The positions `from..to` of keys that lie in one buffer: position `p` in slot `(p - origin) % slots`.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Stretch {
    from: usize,
    to: usize,
    origin: usize,
    slots: usize,
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

/// A cube answers one head of one query.
///
/// For the weighted sum of values the units stand `width` side by side, each with every `width`-th dimension
/// (`chunks` of them), and share the keys among the lines that this makes.
#[cube(launch_unchecked)]
fn attend_kernel(
    q: &[f32],
    past_k: &[u32],
    past_v: &[u32],
    fresh_k: &[u32],
    fresh_v: &[u32],
    out: &mut [f32],
    scene: Scene,
    #[comptime] width: usize,
    #[comptime] chunks: usize,
    #[comptime] capped: bool,
    #[comptime] in_halves: bool,
) {
    let unit = UNIT_POS as usize;
    let index = min(CUBE_POS, scene.tokens * scene.heads - 1);
    let position = scene.start + index / scene.heads;
    let kv_head = index % scene.heads / (scene.heads / scene.kv_heads);

    // The visible positions are first..end.
    let mut first = scene.start - min(scene.start, scene.capacity);
    let mut end = position + 1;
    if position < scene.prefix_len {
        end = scene.prefix_len;
    } else if scene.window > 0 && end > scene.window {
        first = max(first, end - scene.window);
    }

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
        board.query[dim] = q[index * scene.head_dim + dim];
        dim += UNITS;
    }
    sync_cube();

    let past = Stretch { from: first, to: min(end, scene.start), origin: 0usize, slots: scene.capacity };
    read(past_k, past_v, past, kv_head, &scene, &mut board, &mut walk, width, chunks, capped, in_halves);
    let fresh = Stretch { from: max(first, scene.start), to: end, origin: scene.start, slots: scene.tokens };
    read(fresh_k, fresh_v, fresh, kv_head, &scene, &mut board, &mut walk, width, chunks, capped, false);

    // Units with the same dimensions add up what their keys gave.
    let lines = comptime!(UNITS / width);
    board.partial[unit] = walk.state[1];
    sync_cube();
    let mut total = 0.0f32;
    #[unroll]
    for line in 0..lines {
        total += board.partial[unit % width + comptime!(line * width)];
    }
    #[unroll]
    for c in 0..chunks {
        sync_cube();
        board.partial[unit] = walk.sums[c];
        sync_cube();
        let dim = unit + comptime!(c * width);
        if unit < width && dim < scene.head_dim && CUBE_POS < scene.tokens * scene.heads {
            let mut sum = 0.0f32;
            #[unroll]
            for line in 0..lines {
                sum += board.partial[unit + comptime!(line * width)];
            }
            out[index * scene.head_dim + dim] = sum / total;
        }
    }
}

/// Walks over one stretch of keys, [`KEYS`] at a time.
///
/// Three barriers a step: dots of parts of keys | scores | weights | weighted sum. Each buffer is written again
/// one barrier after its last reader at the earliest.
#[cube]
fn read(
    keys: &[u32],
    values: &[u32],
    stretch: Stretch,
    kv_head: usize,
    scene: &Scene,
    board: &mut Board,
    walk: &mut Walk,
    #[comptime] width: usize,
    #[comptime] chunks: usize,
    #[comptime] capped: bool,
    #[comptime] in_halves: bool,
) {
    let unit = UNIT_POS as usize;
    let mut tile = stretch.from;
    while tile < stretch.to {
        let slot = (tile - stretch.origin) % stretch.slots;
        let count = min(KEYS, stretch.to - tile);

        let column = unit / PARTS;
        let mut bases = Array::<usize>::new(UNIT_KEYS);
        let mut dots = Array::<f32>::new(UNIT_KEYS);
        #[unroll]
        for i in 0..UNIT_KEYS {
            // keys past the last one repeat it; their score is not taken
            let key = min(column + comptime!(i * COLUMNS), count - 1);
            bases[i] = row_of(slot + key, stretch.slots, kv_head, scene);
            dots[i] = 0.0f32;
        }
        let mut dim = unit % PARTS;
        while dim < scene.head_dim {
            let factor = board.query[dim];
            #[unroll]
            for i in 0..UNIT_KEYS {
                if comptime!(i == 0) || comptime!(i * COLUMNS) < count {
                    dots[i] += factor * value_at(keys, bases[i] + dim, in_halves);
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
                // beyond 15, tanh is 1 in f32, and some drivers' tanh overflows
                let ratio = clamp(score / scene.softcap, -15.0f32, 15.0f32);
                score = scene.softcap * ratio.tanh();
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
            let base = row_of(slot + k, stretch.slots, kv_head, scene) + unit % width;
            #[unroll]
            for c in 0..chunks {
                if unit % width + comptime!(c * width) < scene.head_dim {
                    walk.sums[c] += weight * value_at(values, base + comptime!(c * width), in_halves);
                }
            }
            k += comptime!(UNITS / width);
        }
        walk.state[0] = largest;
        walk.state[1] = total;
        tile += KEYS;
    }
}

/// Where the key (or value) of a slot begins. A stretch has no more keys than slots, so that a slot counted on
/// from a valid one passes the end at most once.
#[cube]
fn row_of(slot: usize, slots: usize, kv_head: usize, scene: &Scene) -> usize {
    let mut wrapped = slot;
    if slot >= slots {
        wrapped = slot - slots;
    }
    (wrapped * scene.kv_heads + kv_head) * scene.head_dim
}
