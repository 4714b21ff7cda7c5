//! Attention of one segment's queries over a cache and over the segment itself.
//!
//! One pass over the visible keys with a running maximum (the online softmax of flash attention, Dao et al. 2022,
//! arXiv:2205.14135), some keys at a time, so that no score matrix is stored. All query heads that share a key head,
//! of several tokens, lie side by side in the vectors of a register tile: a key or value is read once for all of
//! them, and the softmax runs along the vectors without a sum across. The keys stay where they are: in the slots of
//! the caller's buffer, and in the segment.
//!
//! Where products of many tokens are taken in bf16 ([`pairs`](super::pairs)), so are these: keys and values are then
//! rounded and laid together once, for all queries.
//!
//! With one token there are few queries but many keys, so the keys are divided among the threads and the parts are
//! merged at the end.

use super::buffer::Buffer;
use super::lanes::{Lanes, prefetch};
use super::level::{Level, with_level};
use super::linear::STREAMED_TOKENS_OF_HALVES;
use super::output::Output;
#[cfg(target_arch = "x86_64")]
use super::pairs;
use super::pool;
use super::tile::{self, Ahead, Left, Right, Sums, block_width};
use crate::{ActivationPrecision, AttendParams, math};
use half::f16;
use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Keys scored at a time; a multiple of [`PANEL`].
const KEYS: usize = 96;
/// Keys copied together for the register tile.
const PANEL: usize = 12;
/// Values of a key in a panel.
const DEPTH: usize = 256;
/// Values from one key of a panel to the next: a cache line more, so that keys do not fall into the same sets.
const PANEL_ROW: usize = DEPTH + 16;
/// The most queries that lie side by side: the widest block of any level.
const WIDEST: usize = 32;
/// Fewer keys than this are not worth a thread of their own.
const PART_KEYS: usize = 128;

/// The sizes of one attention call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttendShape {
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Slots of the cache buffers.
    pub(crate) capacity: usize,
}

impl AttendShape {
    /// Query heads per key head.
    fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    /// Where query `index` of a key head lies, in values: token after token, and in each the heads of the group.
    fn query(self, kv_head: usize, index: usize) -> usize {
        let (token, head) = (index / self.group(), index % self.group());
        (token * self.heads + kv_head * self.group() + head) * self.head_dim
    }
}

/// Keys and values, `[.., kv_heads, head_dim]` each: those read before, by slot, and those of the segment.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    pub(crate) past: Stored<'a>,
    pub(crate) fresh_k: &'a [f32],
    pub(crate) fresh_v: &'a [f32],
}

/// Keys and values as they are kept.
#[derive(Clone, Copy)]
pub(crate) enum Stored<'a> {
    F32(&'a [f32], &'a [f32]),
    /// As f16 values.
    F16(&'a [[u8; 2]], &'a [[u8; 2]]),
}

impl<'a> Stored<'a> {
    /// Of words of two f16 values.
    pub(crate) fn words(keys: &'a [u32], values: &'a [u32]) -> Self {
        let [keys, values] = [keys, values].map(|words| bytemuck::cast_slice::<u32, u8>(words).as_chunks().0);
        Stored::F16(keys, values)
    }

    /// From the value at an index on.
    fn from(self, index: usize) -> Self {
        match self {
            Stored::F32(keys, values) => Stored::F32(&keys[index..], &values[index..]),
            Stored::F16(keys, values) => Stored::F16(&keys[index..], &values[index..]),
        }
    }

    /// The first key and value.
    #[cfg(target_arch = "x86_64")]
    fn read(self, [k, v]: [&mut [f32]; 2]) {
        match self {
            Stored::F32(keys, values) => {
                k.copy_from_slice(&keys[..k.len()]);
                v.copy_from_slice(&values[..v.len()]);
            }
            Stored::F16(keys, values) => {
                for (to, from) in [(k, keys), (v, values)] {
                    to.iter_mut().zip(from).for_each(|(to, half)| *to = f16::from_le_bytes(*half).to_f32());
                }
            }
        }
    }

    /// How many values there are of either.
    fn lens(self) -> [usize; 2] {
        match self {
            Stored::F32(keys, values) => [keys.len(), values.len()],
            Stored::F16(keys, values) => [keys.len(), values.len()],
        }
    }
}

impl<'a> Keys<'a> {
    /// The keys and values of a key head from `position` on, and how many (at most) follow each other there.
    fn run(&self, position: usize, head: usize, shape: AttendShape, start: usize) -> (Stored<'a>, usize) {
        let (stored, row, run) = if position < start {
            let slot = position % shape.capacity;
            (self.past, slot, (shape.capacity - slot).min(start - position))
        } else {
            (Stored::F32(self.fresh_k, self.fresh_v), position - start, usize::MAX)
        };
        (stored.from((row * shape.kv_heads + head) * shape.head_dim), run)
    }
}

/// `out[t, h] = Σ_key softmax_key(score(q[t, h], k[key])) v[key]`, all `[tokens, heads, head_dim]`. Every value of `out` is
/// written.
///
/// # Panics
/// When a slice does not have the size of its shape.
pub(crate) fn attend(
    level: Level,
    q: &[f32],
    keys: Keys<'_>,
    shape: AttendShape,
    params: AttendParams,
    out: &mut [MaybeUninit<f32>],
) {
    let AttendShape { tokens, heads, kv_heads, head_dim, capacity } = shape;
    assert!(kv_heads > 0 && heads % kv_heads == 0, "query heads come in equal groups");
    assert_eq!(q.len(), tokens * heads * head_dim, "queries");
    assert_eq!(out.len(), q.len(), "outputs");
    assert_eq!(keys.past.lens(), [capacity * kv_heads * head_dim; 2], "cache");
    for fresh in [keys.fresh_k, keys.fresh_v] {
        assert_eq!(fresh.len(), tokens * kv_heads * head_dim, "segment");
    }
    if out.is_empty() {
        return;
    }
    #[inline(always)]
    unsafe fn width<L: Lanes>() -> usize {
        block_width::<L>()
    }
    let width = with_level!(level, width() -> usize);
    let queries = tokens * shape.group();
    let blocks = queries.div_ceil(width);
    let tasks = kv_heads * blocks;
    let window = params.window.unwrap_or(usize::MAX).max(params.prefix_len);
    let most_keys = (params.start + tokens).min(window.saturating_add(tokens));
    let work = out.len() * most_keys;
    let threads = pool::threads_for(work);
    // keys are divided only where there are not enough queries to go round
    let parts = if tasks >= threads { 1 } else { (2 * threads).div_ceil(tasks).min(most_keys.div_ceil(PART_KEYS)) };

    let paired = Paired::new(level, keys, shape, params);
    let part_len = (head_dim + 2) * width;
    let mut partial = Buffer::<f32>::zeroed(if parts > 1 { tasks * parts * part_len } else { 0 });
    let (to, partial_to) = (Output(out.as_mut_ptr().cast()), Output(partial.as_mut_ptr()));
    let block = |task: usize| {
        let (kv_head, block) = (task / blocks, task % blocks);
        let queries = (block * width, width.min(queries - block * width));
        Block { q, keys, paired: paired.as_ref(), shape, params, kv_head, queries }
    };
    let one = |index: usize| {
        let (task, part) = (index / parts, index % parts);
        SCRATCH.with_borrow_mut(|scratch| {
            let (block, parts) = (block(task), (part, parts));
            scratch.resize(head_dim, width);
            match block.paired {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: there are pairs only where the CPU has the instructions.
                Some(_) => unsafe { attend_pairs(block, parts, scratch) },
                _ => with_level!(level, attend_block(block: Block<'_>, parts: (usize, usize), scratch: &mut Scratch)),
            }
            if parts.1 == 1 {
                with_level!(level, finish(block: Block<'_>, scratch: &mut Scratch, to: Output));
            } else {
                // SAFETY: every task has a place of its own.
                let place = unsafe { std::slice::from_raw_parts_mut(partial_to.at(index * part_len), part_len) };
                scratch.store(place);
            }
        });
    };
    let merge = |task: usize| {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(head_dim, width);
            scratch.merge(partial[task * parts * part_len..(task + 1) * parts * part_len].chunks_exact(part_len));
            let block = block(task);
            with_level!(level, finish(block: Block<'_>, scratch: &mut Scratch, to: Output));
        });
    };
    pool::for_work(work, tasks * parts, one);
    if parts > 1 {
        (0..tasks).for_each(merge);
    }
}

/// The keys and values that any query sees, as words of two bf16 values.
struct Paired {
    /// Two neighbours of a key, `[kv_heads, keys, head_dim / 2]`.
    k: Buffer<f32>,
    /// The values of two neighbouring keys, `[kv_heads, keys / 2, head_dim]`.
    v: Buffer<f32>,
    /// The position of the first key.
    base: usize,
    /// How many there are; if they are odd, a key of zeros is the last.
    keys: usize,
}

impl Paired {
    /// `None` where they are not to be rounded, or nothing is gained.
    #[cfg(not(target_arch = "x86_64"))]
    fn new(_level: Level, _keys: Keys<'_>, _shape: AttendShape, _params: AttendParams) -> Option<Self> {
        None
    }

    /// `None` where they are not to be rounded, or nothing is gained.
    #[cfg(target_arch = "x86_64")]
    fn new(level: Level, keys: Keys<'_>, shape: AttendShape, params: AttendParams) -> Option<Self> {
        let AttendShape { tokens, kv_heads, head_dim, .. } = shape;
        // no sooner than the products of any format
        let many = params.activations != ActivationPrecision::F32 && tokens > STREAMED_TOKENS_OF_HALVES;
        let possible = head_dim.is_multiple_of(2) && level >= Level::Avx512Bf16;
        if !(many && possible && super::lanes::pairs_are_faster()) {
            return None;
        }
        let end = params.start + tokens;
        let base = (params.start..end).map(|token| params.visible(token, end).start).min().unwrap_or(params.start);
        let count = (end - base).next_multiple_of(2);
        let mut paired = Self {
            k: Buffer::zeroed(kv_heads * count * head_dim / 2),
            v: Buffer::zeroed(kv_heads * count / 2 * head_dim),
            base,
            keys: count,
        };
        let to = [Output(paired.k.as_mut_ptr()), Output(paired.v.as_mut_ptr())];
        let stretches = count.div_ceil(PART_KEYS);
        pool::for_each(kv_heads * stretches, |task| {
            let (head, first) = (task / stretches, task % stretches * PART_KEYS);
            // two keys and their values, and what is beyond the last
            let mut rows = vec![0f32; 4 * head_dim];
            for pair in (first..count.min(first + PART_KEYS)).step_by(2) {
                for (i, rows) in rows.chunks_exact_mut(2 * head_dim).enumerate() {
                    let (k, v) = rows.split_at_mut(head_dim);
                    if base + pair + i < end {
                        keys.run(base + pair + i, head, shape, params.start).0.read([k, v]);
                    } else {
                        k.fill(0.0);
                        v.fill(0.0);
                    }
                }
                let at = (head * count + pair) * head_dim / 2;
                // SAFETY: the level says that the CPU has the instructions; both keys' places are this task's.
                unsafe {
                    let k = std::slice::from_raw_parts_mut(to[0].at(at), head_dim);
                    let (first, second) = rows.split_at(2 * head_dim);
                    let (words, more_words) = k.split_at_mut(head_dim / 2);
                    pairs::pair(&first[..head_dim], words);
                    pairs::pair(&second[..head_dim], more_words);
                    let values = [first, second].map(|row| row[head_dim..].as_ptr());
                    pairs::interleave(values[0], values[1], head_dim, to[1].at(at));
                }
            }
        });
        Some(paired)
    }
}

/// Queries of one key head that are computed together.
#[derive(Clone, Copy)]
struct Block<'a> {
    q: &'a [f32],
    keys: Keys<'a>,
    /// The same in pairs, where these are to be multiplied.
    paired: Option<&'a Paired>,
    shape: AttendShape,
    params: AttendParams,
    kv_head: usize,
    /// The first of them, and how many; see [`AttendShape::query`].
    queries: (usize, usize),
}

/// What a thread keeps from task to task. A row is as long as a block is wide.
struct Scratch {
    /// Queries `[width, head_dim]`, and outputs at the end.
    rows: Buffer<f32>,
    /// Queries packed, `[head_dim, width]`; or, where the vectors run along a head, sums, `[width, head_dim]`.
    queries: Buffer<f32>,
    /// Some keys, `[PANEL, PANEL_ROW]`.
    panel: Buffer<f32>,
    /// Scores, then weights, `[KEYS, width]`.
    scores: Buffer<f32>,
    /// Weighted sums of values, `[head_dim, width]`.
    sums: Buffer<f32>,
    /// Keys and values that were kept as f16, `[KEYS, head_dim]` each.
    wide: [Buffer<f32>; 2],
    /// The highest score of each query.
    highest: [f32; WIDEST],
    /// The sum of each query's weights.
    totals: [f32; WIDEST],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch {
            rows: Buffer::empty(),
            queries: Buffer::empty(),
            panel: Buffer::empty(),
            scores: Buffer::empty(),
            sums: Buffer::empty(),
            wide: [Buffer::empty(), Buffer::empty()],
            highest: [0.0; WIDEST],
            totals: [0.0; WIDEST],
        })
    };
}

impl Scratch {
    /// Makes room, and begins anew.
    fn resize(&mut self, head_dim: usize, width: usize) {
        for buffer in [&mut self.rows, &mut self.queries, &mut self.sums] {
            buffer.resize(head_dim * width);
        }
        self.panel.resize(PANEL * PANEL_ROW);
        self.scores.resize(KEYS * width);
        self.sums.fill(0.0);
        self.highest = [f32::NEG_INFINITY; WIDEST];
        self.totals = [0.0; WIDEST];
    }

    /// Writes sums, highest scores and totals to `to`, `[head_dim + 2, width]`.
    fn store(&self, to: &mut [f32]) {
        let width = to.len() - self.sums.len();
        let (sums, rest) = to.split_at_mut(self.sums.len());
        let (highest, totals) = rest.split_at_mut(width / 2);
        sums.copy_from_slice(&self.sums);
        highest.copy_from_slice(&self.highest[..width / 2]);
        totals.copy_from_slice(&self.totals[..width / 2]);
    }

    /// Takes up what others stored, each weighted by how far its highest score lies below the highest of all.
    fn merge<'a>(&mut self, parts: impl Iterator<Item = &'a [f32]> + Clone) {
        let len = self.sums.len();
        let split = |part: &'a [f32]| {
            let (sums, rest) = part.split_at(len);
            let (highest, totals) = rest.split_at(rest.len() / 2);
            (sums, highest, totals)
        };
        for part in parts.clone() {
            self.highest.iter_mut().zip(split(part).1).for_each(|(highest, other)| *highest = highest.max(*other));
        }
        for part in parts {
            let (sums, highest, totals) = split(part);
            let mut weights = [0f32; WIDEST];
            for (i, other) in highest.iter().enumerate() {
                // a part in which a query sees nothing has no weight
                weights[i] = if *other == f32::NEG_INFINITY { 0.0 } else { math::exp(other - self.highest[i]) };
                self.totals[i] += weights[i] * totals[i];
            }
            let width = highest.len();
            for (sums, others) in self.sums.chunks_exact_mut(width).zip(sums.chunks_exact(width)) {
                for ((sum, other), weight) in sums.iter_mut().zip(others).zip(&weights) {
                    *sum += weight * other;
                }
            }
        }
    }
}

/// [`attend_block`] with [`Paired`] keys.
///
/// # Safety
/// The CPU must have the instructions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
unsafe fn attend_pairs(block: Block<'_>, parts: (usize, usize), scratch: &mut Scratch) {
    // SAFETY: as required of the caller.
    unsafe { attend_block::<super::lanes::Pairs>(block, parts, scratch) };
}

/// One of `parts` equal parts of the keys that some query of the block sees.
///
/// # Safety
/// The lanes' instruction set must be available.
#[inline(always)]
unsafe fn attend_block<L: Lanes>(block: Block<'_>, parts: (usize, usize), scratch: &mut Scratch) {
    let Block { q, keys, paired, shape, params, kv_head, queries: (first_query, count) } = block;
    let queries = first_query..first_query + count;
    let (dim, width) = (shape.head_dim, block_width::<L>());
    let vectors = queries.len().div_ceil(L::N);
    let active = vectors * L::N;
    for (row, query) in scratch.rows.chunks_exact_mut(dim).zip(queries.clone()) {
        let from = &q[shape.query(kv_head, query)..][..dim];
        row.iter_mut().zip(from).for_each(|(to, value)| *to = value * params.scale);
        #[cfg(target_arch = "x86_64")]
        if L::EACH == 2 {
            let words = &mut scratch.wide[0];
            words.resize(dim / 2);
            // SAFETY: the instructions of the lanes are these.
            unsafe { pairs::pair(row, words) };
            row[..dim / 2].copy_from_slice(words);
        }
    }
    // the vectors run along the queries, unless these would leave most of a vector empty: then along a head
    let along_heads = L::EACH == 1 && 4 * queries.len() <= L::N;
    // words of a query
    let depth = dim / L::EACH;
    if along_heads {
        scratch.queries[..queries.len() * dim].fill(0.0);
    } else {
        // SAFETY: the queries were just written, and the lanes' instructions are available.
        unsafe { tile::pack::<L>(scratch.rows.as_ptr(), dim, queries.len(), depth, scratch.queries.as_mut_ptr()) };
    }

    // the positions that each query sees, and those that any does; what is beside the queries sees everything
    let mut first = [0i32; WIDEST];
    let mut end = [i32::MAX; WIDEST];
    let (mut begin, mut stop) = (usize::MAX, 0);
    for (i, query) in queries.clone().enumerate() {
        let token = params.start + query / shape.group();
        let visible = params.visible(token, params.start + shape.tokens);
        (first[i], end[i]) = (visible.start as i32, visible.end as i32);
        (begin, stop) = (begin.min(visible.start), stop.max(visible.end));
    }
    let common = *first[..queries.len()].iter().max().unwrap_or(&0)..*end[..queries.len()].iter().min().unwrap_or(&0);
    if let Some(Paired { base, .. }) = paired {
        // whole pairs
        begin = base + (begin - base) / 2 * 2;
        stop = base + (stop - base).next_multiple_of(2);
    }
    let bound = |part: usize| begin + (stop - begin) / L::EACH * part / parts.1 * L::EACH;
    let mut position = bound(parts.0);
    let stop = bound(parts.0 + 1);
    let mut wide = std::mem::replace(&mut scratch.wide, [Buffer::empty(), Buffer::empty()]);
    while position < stop {
        // how many keys, theirs and the values' words, and how many words lie between two keys and between two values
        let (count, k, v, steps) = if let Some(paired) = paired {
            let at = (kv_head * paired.keys + position - paired.base) * depth;
            (KEYS.min(stop - position), &paired.k[at..], &paired.v[at..], [depth, dim])
        } else {
            let (stored, run) = keys.run(position, kv_head, shape, params.start);
            let count = KEYS.min(run).min(stop - position);
            let step = shape.kv_heads * dim;
            match stored {
                Stored::F32(k, v) => (count, k, v, [step; 2]),
                Stored::F16(k, v) => {
                    for (to, from) in wide.iter_mut().zip([k, v]) {
                        to.resize(KEYS * dim);
                        // SAFETY: the lanes' instructions are available.
                        unsafe { widen::<L>(from, step, to, dim, count) };
                    }
                    (count, &wide[0][..], &wide[1][..], [dim; 2])
                }
            }
        };
        // SAFETY: `count` keys and values follow each other here, `step` apart; the buffers have the sizes that
        // their documentation says; the lanes' instructions are available.
        unsafe {
            if along_heads {
                score_along_heads::<L>((k, v), steps[0], count, dim, queries.len(), scratch);
            } else {
                score::<L>((k, v), steps[0], count, depth, vectors, scratch);
            }
        }
        let scores = &mut scratch.scores[..count * width];
        if let Some(cap) = params.softcap {
            for row in scores.chunks_exact_mut(width) {
                row[..active].iter_mut().for_each(|score| *score = cap * math::tanh(*score / cap));
            }
        }
        if (position as i32) < common.start || (position + count) as i32 > common.end {
            for (row, position) in scores.chunks_exact_mut(width).zip(position as i32..) {
                for ((score, first), end) in row[..active].iter_mut().zip(&first).zip(&end) {
                    *score = if position < *first || position >= *end { f32::NEG_INFINITY } else { *score };
                }
            }
        }
        let old = scratch.highest;
        let highest = &mut scratch.highest[..active];
        for row in scores.chunks_exact(width) {
            for (highest, score) in highest.iter_mut().zip(row) {
                *highest = if *score > *highest { *score } else { *highest };
            }
        }
        // where nothing was seen yet, any finite number does
        let mut base = [0f32; WIDEST];
        let mut corrections = [0f32; WIDEST];
        for i in 0..active {
            base[i] = if highest[i] == f32::NEG_INFINITY { 0.0 } else { highest[i] };
            corrections[i] = math::exp(old[i] - base[i]);
            scratch.totals[i] *= corrections[i];
        }
        for row in scores.chunks_exact_mut(width) {
            for ((score, base), total) in row[..active].iter_mut().zip(&base).zip(&mut scratch.totals) {
                *score = math::exp(*score - base);
                *total += *score;
            }
        }
        let corrected = corrections[..queries.len()].iter().any(|correction| *correction != 1.0);
        // SAFETY: as above; the weights take the place of `A` or of `B`.
        unsafe {
            if along_heads {
                let sums = &mut scratch.queries[..queries.len() * dim];
                if corrected {
                    for (row, correction) in sums.chunks_exact_mut(dim).zip(&corrections) {
                        row.iter_mut().for_each(|sum| *sum *= correction);
                    }
                }
                add_along_heads::<L>(&scratch.scores, v, steps[1], count, dim, sums);
            } else {
                if corrected {
                    for row in scratch.sums.chunks_exact_mut(width) {
                        row[..active].iter_mut().zip(&corrections).for_each(|(sum, correction)| *sum *= correction);
                    }
                }
                #[cfg(target_arch = "x86_64")]
                if L::EACH == 2 {
                    // a pair of rows becomes one, in place
                    let rows = scratch.scores.as_mut_ptr();
                    for pair in 0..count / 2 {
                        let (first, second) = (rows.add(2 * pair * width), rows.add((2 * pair + 1) * width));
                        pairs::interleave(first, second, active, rows.add(pair * width));
                    }
                }
                let left = Left { at: v.as_ptr(), row: 1, step: steps[1] };
                let to = Sums { at: scratch.sums.as_mut_ptr(), row: width, add: true };
                let weights = Right::block::<L>(&scratch.scores);
                tile::multiply::<L>(left, dim, weights, count / L::EACH, vectors, to, Ahead::NOTHING);
            }
        }
        position += count;
    }
    scratch.wide = wide;
    if along_heads {
        for (i, row) in scratch.queries[..queries.len() * dim].chunks_exact(dim).enumerate() {
            scratch.sums[i..].iter_mut().step_by(width).zip(row).for_each(|(to, sum)| *to = *sum);
        }
    }
}

/// `count` rows of `dim` f16 values, `step` apart, as f32, one behind the other.
///
/// # Safety
/// The lanes' instruction set must be available.
#[inline(always)]
unsafe fn widen<L: Lanes>(from: &[[u8; 2]], step: usize, to: &mut [f32], dim: usize, count: usize) {
    for (row, to) in to.chunks_exact_mut(dim).take(count).enumerate() {
        let from = &from[row * step..][..dim];
        let whole = dim / L::N * L::N;
        for i in (0..whole).step_by(L::N) {
            // SAFETY: as many values are left of both rows.
            unsafe { L::load_f16(from[i..].as_ptr().cast()).store(to[i..].as_mut_ptr()) };
        }
        for (to, from) in to[whole..].iter_mut().zip(&from[whole..]) {
            *to = f16::from_le_bytes(*from).to_f32();
        }
    }
}

/// The scores of `count` keys that lie `step` values apart, with their values behind them.
///
/// # Safety
/// The lanes' instruction set must be available, and the scratch has room.
#[inline(always)]
unsafe fn score<L: Lanes>(
    (k, v): (&[f32], &[f32]),
    step: usize,
    count: usize,
    dim: usize,
    vectors: usize,
    scratch: &mut Scratch,
) {
    let width = block_width::<L>();
    for key in (0..count).step_by(PANEL) {
        let rows = PANEL.min(count - key);
        for begin in (0..dim).step_by(DEPTH) {
            let depth = DEPTH.min(dim - begin);
            for (row, to) in (key..key + rows).zip(scratch.panel.chunks_exact_mut(PANEL_ROW)) {
                if vectors < L::TILE.1 {
                    ahead((k, v), row, step, begin..begin + depth);
                }
                to[..depth].copy_from_slice(&k[row * step + begin..][..depth]);
            }
            let left = Left { at: scratch.panel.as_ptr(), row: PANEL_ROW, step: 1 };
            let to = Sums { at: scratch.scores[key * width..].as_mut_ptr(), row: width, add: begin > 0 };
            let queries = Right::block::<L>(&scratch.queries[begin * width..]);
            // SAFETY: the panel has `rows` rows of `depth` values, the queries as many rows, and the scores a row
            // for each key.
            unsafe { tile::multiply::<L>(left, rows, queries, depth, vectors, to, Ahead::NOTHING) };
        }
    }
}

/// Asks for a key some rows on, and for the value of this row: few queries do not hide the memory's latency.
#[inline(always)]
fn ahead((k, v): (&[f32], &[f32]), row: usize, step: usize, columns: Range<usize>) {
    for i in columns.step_by(16) {
        prefetch(k.as_ptr().wrapping_add((row + PANEL) * step + i).cast());
        prefetch(v.as_ptr().wrapping_add(row * step + i).cast());
    }
}

/// [`score`], for so few queries that the vectors run along a head.
///
/// # Safety
/// As [`score`].
#[inline(always)]
unsafe fn score_along_heads<L: Lanes>(
    (k, v): (&[f32], &[f32]),
    step: usize,
    count: usize,
    dim: usize,
    queries: usize,
    scratch: &mut Scratch,
) {
    let width = block_width::<L>();
    let whole = dim / L::N * L::N;
    for (row, scores) in scratch.scores.chunks_exact_mut(width).take(count).enumerate() {
        ahead((k, v), row, step, 0..dim);
        let key = &k[row * step..][..dim];
        scores.fill(0.0);
        for (score, query) in scores.iter_mut().zip(scratch.rows.chunks_exact(dim)).take(queries) {
            // SAFETY: both have `dim` values, and the lanes' instructions are available.
            let dot = unsafe {
                let mut sums = [L::splat(0.0); 4];
                for (step, i) in (0..whole).step_by(L::N).enumerate() {
                    let factor = L::load(query.as_ptr().add(i));
                    sums[step % 4] = L::load(key.as_ptr().add(i)).mul_add(factor, sums[step % 4]);
                }
                sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum()
            };
            *score = key[whole..].iter().zip(&query[whole..]).fold(dot, |sum, (a, b)| sum + a * b);
        }
    }
}

/// `sums[i] += Σ_key weight[key][i] v[key]`, the vectors along a head; `sums` `[queries, dim]`.
///
/// # Safety
/// The lanes' instruction set must be available; `count` values lie `step` apart, and as many rows of weights.
#[inline(always)]
unsafe fn add_along_heads<L: Lanes>(
    weights: &[f32],
    v: &[f32],
    step: usize,
    count: usize,
    dim: usize,
    sums: &mut [f32],
) {
    let (width, queries) = (block_width::<L>(), sums.len() / dim);
    let whole = dim / L::N * L::N;
    let left = Left { at: weights.as_ptr(), row: 1, step: width };
    for begin in (0..whole).step_by(width) {
        let vectors = (width.min(whole - begin)) / L::N;
        let right = Right { at: v[begin..].as_ptr(), row: step };
        let to = Sums { at: sums[begin..].as_mut_ptr(), row: dim, add: true };
        // SAFETY: as required of the caller.
        unsafe { tile::multiply::<L>(left, queries, right, count, vectors, to, Ahead::NOTHING) };
    }
    for (i, sums) in sums.chunks_exact_mut(dim).enumerate() {
        for (d, sum) in sums.iter_mut().enumerate().skip(whole) {
            *sum = (0..count).fold(*sum, |sum, key| sum + weights[key * width + i] * v[key * step + d]);
        }
    }
}

/// Divides by the weights' sums and writes the block's outputs.
///
/// # Safety
/// The lanes' instruction set must be available, and the block's outputs must belong to the calling task.
#[inline(always)]
unsafe fn finish<L: Lanes>(block: Block<'_>, scratch: &mut Scratch, out: Output) {
    let Block { shape, kv_head, queries: (first_query, count), .. } = block;
    let queries = first_query..first_query + count;
    let (dim, width) = (shape.head_dim, block_width::<L>());
    let mut inverse = [0f32; WIDEST];
    inverse[..queries.len()].iter_mut().zip(&scratch.totals).for_each(|(inverse, total)| *inverse = 1.0 / total);
    for row in scratch.sums.chunks_exact_mut(width) {
        row.iter_mut().zip(&inverse).for_each(|(sum, inverse)| *sum *= inverse);
    }
    // SAFETY: rows and sums have room for `width` queries; this task owns its queries' outputs.
    unsafe {
        tile::unpack::<L>(scratch.sums.as_ptr(), width, dim, queries.len(), scratch.rows.as_mut_ptr(), dim);
        for (row, query) in scratch.rows.chunks_exact(dim).zip(queries) {
            out.at(shape.query(kv_head, query)).copy_from_nonoverlapping(row.as_ptr(), dim);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{noise, places};

    /// A whole history, of which the last tokens are the segment and the rest lies in a ring.
    struct Case {
        shape: AttendShape,
        params: AttendParams,
        q: Vec<f32>,
        k: Vec<f32>,
        v: Vec<f32>,
    }

    impl Case {
        fn new(shape: AttendShape, params: AttendParams, size: f32) -> Self {
            let row = shape.kv_heads * shape.head_dim;
            let all = params.start + shape.tokens;
            let q = noise(shape.tokens * shape.heads * shape.head_dim, 1).iter().map(|value| value * size).collect();
            Self { shape, params, q, k: noise(all * row, 2), v: noise(all * row, 3) }
        }

        /// The same with what was read before rounded to f16.
        fn rounded(&self) -> Self {
            let row = self.shape.kv_heads * self.shape.head_dim;
            let rounded = |values: &[f32]| -> Vec<f32> {
                let (past, fresh) = values.split_at(self.params.start * row);
                past.iter().map(|value| f16::from_f32(*value).to_f32()).chain(fresh.iter().copied()).collect()
            };
            Self { q: self.q.clone(), k: rounded(&self.k), v: rounded(&self.v), ..*self }
        }

        fn found(&self, level: Level) -> Vec<f32> {
            self.found_with(level, false)
        }

        /// With what was read before kept as f32, or as f16.
        fn found_with(&self, level: Level, halves: bool) -> Vec<f32> {
            let Self { shape, params, .. } = self;
            let row = shape.kv_heads * shape.head_dim;
            // slots that hold nothing must not be looked at
            let ring = |all: &[f32]| {
                let mut ring = vec![f32::NAN; shape.capacity * row];
                for position in params.start.saturating_sub(shape.capacity)..params.start {
                    let slot = position % shape.capacity * row;
                    ring[slot..slot + row].copy_from_slice(&all[position * row..][..row]);
                }
                ring
            };
            let (past_k, past_v) = (ring(&self.k), ring(&self.v));
            let fresh = params.start * row..;
            let bytes = |values: &[f32]| -> Vec<[u8; 2]> {
                values.iter().map(|value| f16::from_f32(*value).to_le_bytes()).collect()
            };
            let (half_k, half_v) = (bytes(&past_k), bytes(&past_v));
            let past = if halves { Stored::F16(&half_k, &half_v) } else { Stored::F32(&past_k, &past_v) };
            let keys = Keys { past, fresh_k: &self.k[fresh.clone()], fresh_v: &self.v[fresh] };
            let mut out = vec![f32::NAN; self.q.len()];
            attend(level, &self.q, keys, *shape, *params, places(&mut out));
            out
        }

        /// In f64, with every score kept.
        fn exact(&self) -> Vec<f64> {
            let AttendShape { tokens, heads, kv_heads, head_dim, .. } = self.shape;
            let params = self.params;
            let mut out = Vec::new();
            for (token, head) in (0..tokens).flat_map(|token| (0..heads).map(move |head| (token, head))) {
                let q = &self.q[(token * heads + head) * head_dim..][..head_dim];
                let seen: Vec<usize> =
                    (0..params.start + tokens).filter(|key| params.allows(params.start + token, *key)).collect();
                let at = |key: usize| (key * kv_heads + head / (heads / kv_heads)) * head_dim;
                let score = |key: &usize| {
                    let k = &self.k[at(*key)..][..head_dim];
                    let dot: f64 = q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    let score = dot * f64::from(params.scale);
                    params.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                };
                let scores: Vec<f64> = seen.iter().map(score).collect();
                let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
                let total: f64 = weights.iter().sum();
                out.extend((0..head_dim).map(|d| {
                    let sum: f64 = seen.iter().zip(&weights).map(|(key, w)| w * f64::from(self.v[at(*key) + d])).sum();
                    sum / total
                }));
            }
            out
        }

        fn check(&self, tolerance: f64) {
            let exact = self.exact();
            for level in Level::available() {
                for (i, (found, exact)) in self.found(level).iter().zip(&exact).enumerate() {
                    let error = (f64::from(*found) - exact).abs();
                    assert!(error < tolerance, "{level:?} {:?} {:?} at {i}: {error}", self.shape, self.params);
                }
            }
        }
    }

    /// Keys kept as f16 give what their values give in f32.
    #[test]
    fn halves_are_read_as_the_values_they_are() {
        for (heads, kv_heads, head_dim) in [(4, 1, 16), (3, 3, 33), (8, 2, 256)] {
            for (tokens, start, capacity, window) in
                [(1, 5, 8, None), (1, 300, 512, None), (7, 40, 16, Some(16)), (33, 70, 128, None)]
            {
                let shape = AttendShape { tokens, heads, kv_heads, head_dim, capacity };
                let params = AttendParams {
                    start,
                    prefix_len: 0,
                    window,
                    scale: 0.3,
                    softcap: None,
                    activations: ActivationPrecision::F32,
                };
                let case = Case::new(shape, params, 1.0);
                for level in Level::available() {
                    assert_eq!(
                        case.found_with(level, true),
                        case.rounded().found(level),
                        "{level:?} {shape:?} {params:?}"
                    );
                    assert_ne!(
                        case.found_with(level, true),
                        case.found(level),
                        "{level:?} {shape:?}: nothing was rounded"
                    );
                }
            }
        }
    }

    #[test]
    fn attention_equals_loops_in_f64() {
        for (heads, kv_heads, head_dim) in [(8, 1, 256), (4, 2, 24), (3, 3, 5), (1, 1, 300), (40, 1, 3), (2, 1, 1)] {
            for (start, tokens, capacity) in
                [(0, 1, 1), (0, 9, 1), (5, 1, 8), (50, 4, 64), (20, 3, 6), (700, 1, 1024), (6, 70, 6), (401, 1, 300)]
            {
                for (window, prefix_len, softcap) in [
                    (None, 0, None),
                    (Some(6), 0, Some(2.0)),
                    (Some(1), 0, None),
                    (Some(300), 0, None),
                    (None, 7, None),
                    (Some(6), 4, Some(1.0)),
                ] {
                    let holds = capacity >= start || window.is_some_and(|window| window <= capacity);
                    let whole = start == 0 && tokens >= prefix_len || start >= prefix_len;
                    if holds && whole {
                        let shape = AttendShape { tokens, heads, kv_heads, head_dim, capacity };
                        let params = AttendParams {
                            start,
                            prefix_len,
                            window,
                            scale: 0.1,
                            softcap,
                            activations: ActivationPrecision::F32,
                        };
                        Case::new(shape, params, 1.0).check(1e-5);
                    }
                }
            }
        }
    }

    /// Of many tokens, where the CPU multiplies bf16 faster: operands that are rounded once, and sums that are not.
    #[test]
    fn many_tokens_are_seen_in_bf16_unless_exact() {
        #[cfg(target_arch = "x86_64")]
        let bf16 = |values: &[f32]| -> Vec<f32> { values.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect() };
        for (heads, kv_heads, head_dim) in [(8, 1, 256), (4, 2, 24), (3, 3, 6), (1, 1, 600), (2, 1, 2), (4, 4, 72)] {
            for (start, tokens, capacity) in [(0, 9, 1), (51, 10, 64), (21, 33, 6), (700, 17, 1024), (6, 70, 6)] {
                for (window, prefix_len, softcap) in [
                    (None, 0, None),
                    (Some(6), 0, Some(2.0)),
                    (Some(1), 0, None),
                    (None, 9, None),
                    (Some(5), 4, Some(1.0)),
                ] {
                    let holds = capacity >= start || window.is_some_and(|window| window <= capacity);
                    if !holds || (start > 0 && start < prefix_len) {
                        continue;
                    }
                    let shape = AttendShape { tokens, heads, kv_heads, head_dim, capacity };
                    let activations = ActivationPrecision::Int16OrBf16;
                    let params = AttendParams { start, prefix_len, window, scale: 0.1, softcap, activations };
                    let case = Case::new(shape, params, 1.0);
                    let exact = case.exact();
                    for (level, halves) in Level::available().into_iter().flat_map(|l| [(l, false), (l, true)]) {
                        let found = case.found_with(level, halves);
                        let worst = |to: &[f64]| {
                            let errors = found.iter().zip(to).map(|(found, to)| (f64::from(*found) - to).abs());
                            errors
                                .fold(0f64, |worst, error| if error > worst || error.is_nan() { error } else { worst })
                        };
                        let context = format!("{level:?} {shape:?} {params:?} {halves}");
                        #[cfg(target_arch = "x86_64")]
                        if tokens > STREAMED_TOKENS_OF_HALVES
                            && level >= Level::Avx512Bf16
                            && crate::cpu::lanes::pairs_are_faster()
                        {
                            let scaled: Vec<f32> = case.q.iter().map(|x| x * params.scale).collect();
                            let params = AttendParams { scale: 1.0, ..params };
                            let rounded = Case { params, q: bf16(&scaled), k: bf16(&case.k), v: bf16(&case.v), ..case };
                            // a weight is rounded by a 512th at most
                            let worst = worst(&rounded.exact());
                            assert!(worst < 4e-3, "{context}: {worst}");
                            continue;
                        }
                        let worst = worst(&exact);
                        assert!(worst < if halves { 1e-3 } else { 1e-5 }, "{context}: {worst}");
                    }
                }
            }
        }
    }

    /// Scores of ±2000: most weights vanish, none overflows.
    #[test]
    fn large_scores_neither_overflow_nor_vanish() {
        for start in [0, 300] {
            let shape = AttendShape { tokens: 3, heads: 4, kv_heads: 1, head_dim: 16, capacity: 512 };
            let params = AttendParams {
                start,
                prefix_len: 0,
                window: None,
                scale: 1.0,
                softcap: None,
                activations: ActivationPrecision::F32,
            };
            Case::new(shape, params, 1000.0).check(1e-2);
            for level in Level::available() {
                for (tokens, activations) in [(3, ActivationPrecision::F32), (9, ActivationPrecision::Int16OrBf16)] {
                    let (shape, params) = (AttendShape { tokens, ..shape }, AttendParams { activations, ..params });
                    assert!(Case::new(shape, params, 1e30).found(level).iter().all(|value| value.is_finite()));
                }
            }
        }
    }
}
