//! The queries of one key head that are computed together: scores, softmax and weighted sums, some keys at a time.

use super::kv::{KEYS, PANEL, Tile};
use super::scratch::{DEPTH, PANEL_ROW, Scratch, WIDEST};
use super::{Heads, Sequence};
use crate::cpu::gemm::tile::{self, Ahead, Left, Right, Sums, block_width};
use crate::cpu::isa::{Lanes, prefetch};
use crate::cpu::output::Output;
use crate::{AttendParams, Phase, math};
use std::marker::PhantomData;
use std::ops::Range;

/// Queries of one key head that are computed together.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    /// The queries of the sequence.
    pub(super) q: &'a [f32],
    /// Where their outputs begin.
    pub(super) first_out: usize,
    pub(super) sequence: &'a Sequence<'a>,
    /// The values in bf16, where these are to be multiplied.
    #[cfg(target_arch = "x86_64")]
    pub(super) paired: Option<&'a super::paired::Paired>,
    pub(super) heads: Heads,
    pub(super) params: &'a AttendParams,
    pub(super) kv_head: usize,
    /// The first of them, and how many; see [`Heads::query`].
    pub(super) queries: (usize, usize),
}

impl Block<'_> {
    /// The queries, scaled, `[queries, head_dim]`.
    #[inline(always)]
    pub(super) fn scale_queries(&self, rows: &mut [f32]) {
        let (dim, (first, count)) = (self.heads.head_dim, self.queries);
        for (row, query) in rows.chunks_exact_mut(dim).zip(first..first + count) {
            let from = &self.q[self.heads.query(self.kv_head, query)..][..dim];
            row.iter_mut().zip(from).for_each(|(to, value)| *to = value * self.params.scale);
        }
    }
}

/// What the queries of a block see; what lies beside the last query in the vectors sees everything.
struct Seen {
    first: [i32; WIDEST],
    end: [i32; WIDEST],
    /// The positions that all queries see.
    common: Range<i32>,
}

impl Seen {
    fn new(block: &Block<'_>) -> Self {
        let Block { sequence, heads, params, queries: (first_query, count), .. } = *block;
        let mut seen = Self { first: [0; WIDEST], end: [i32::MAX; WIDEST], common: 0..0 };
        for i in 0..count {
            let token = sequence.start + (first_query + i) / heads.group();
            let visible = params.visibility.visible(token, sequence.start + sequence.len, sequence.blocks);
            (seen.first[i], seen.end[i]) = (visible.start as i32, visible.end as i32);
        }
        seen.common = *seen.first[..count].iter().max().unwrap_or(&0)..*seen.end[..count].iter().min().unwrap_or(&0);
        seen
    }

    /// The scores, rows of `width`, of the keys from `position` on that a query does not see become minus infinity.
    #[inline(always)]
    fn hide(&self, scores: &mut [f32], width: usize, active: usize, position: usize) {
        let count = scores.len() / width;
        if (position as i32) >= self.common.start && (position + count) as i32 <= self.common.end {
            return;
        }
        for (row, position) in scores.chunks_exact_mut(width).zip(position as i32..) {
            for ((score, first), end) in row[..active].iter_mut().zip(&self.first).zip(&self.end) {
                *score = if position < *first || position >= *end { f32::NEG_INFINITY } else { *score };
            }
        }
    }
}

/// How the queries of a block lie.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) dim: usize,
    pub(super) queries: usize,
    pub(super) width: usize,
    /// Vectors of queries, and how many queries they have room for.
    pub(super) vectors: usize,
    pub(super) active: usize,
    /// Whether the vectors run along a head, since queries would leave most of a vector empty.
    pub(super) along_heads: bool,
}

/// What multiplies the queries of a block with keys, and the weights with values.
///
/// # Safety
/// Every method requires the instructions of the implementing type.
pub(super) trait Products {
    /// The scores of `count` keys from `position` on, which must be there, `[count, width]`.
    unsafe fn score(&mut self, position: usize, count: usize, layout: Layout, scratch: &mut Scratch);

    /// Adds the values of the keys that were scored last, weighted, to the sums, which are corrected before.
    unsafe fn add(&mut self, layout: Layout, corrections: Option<&[f32; WIDEST]>, scratch: &mut Scratch);
}

/// The sums of a block over the keys at positions `keys`.
///
/// # Safety
/// The lanes' instruction set must be available.
#[inline(always)]
pub(super) unsafe fn attend_block<L: Lanes>(block: &Block<'_>, keys: Range<usize>, scratch: &mut Scratch) {
    // SAFETY: as required of the caller.
    unsafe { attend_lanes::<L, L>(block, keys, scratch) };
}

/// The same with scores from lanes `L` and weighted sums from lanes `V`, of which there are as many.
///
/// # Safety
/// As [`attend_block`], of both.
#[inline(always)]
unsafe fn attend_lanes<L: Lanes, V: Lanes>(block: &Block<'_>, keys: Range<usize>, scratch: &mut Scratch) {
    const { assert!(L::N == V::N && L::TILE.1 == V::TILE.1) };
    // SAFETY: as required of the caller.
    unsafe {
        let layout = load_queries::<L>(block, scratch);
        let mut products = Gathered { block, tile: Tile::new(), end: keys.end, lanes: PhantomData::<(L, V)> };
        attend_with(block, layout, keys, &mut products, scratch);
        if layout.along_heads {
            for (i, row) in scratch.queries[..layout.queries * layout.dim].chunks_exact(layout.dim).enumerate() {
                scratch.sums[i..].iter_mut().step_by(layout.width).zip(row).for_each(|(to, sum)| *to = *sum);
            }
        }
    }
}

/// The sums of a block over the keys at positions `keys`, some of them at a time.
///
/// # Safety
/// As the products'.
#[inline(always)]
pub(super) unsafe fn attend_with<P: Products>(
    block: &Block<'_>,
    layout: Layout,
    keys: Range<usize>,
    products: &mut P,
    scratch: &mut Scratch,
) {
    let Layout { width, queries, .. } = layout;
    let active = layout.active;
    let seen = Seen::new(block);
    let mut position = keys.start;
    while position < keys.end {
        // tiles begin at fixed positions, wherever the first visible key lies
        let count = (KEYS - position % KEYS).min(keys.end - position);
        // SAFETY: as required of the caller.
        unsafe { products.score(position, count, layout, scratch) };
        let scores = &mut scratch.scores[..count * width];
        if let Some(cap) = block.params.softcap {
            for row in scores.chunks_exact_mut(width) {
                row[..active].iter_mut().for_each(|score| *score = math::softcap(*score, cap));
            }
        }
        seen.hide(scores, width, active, position);
        let corrections = weigh(scores, layout, active, &mut scratch.highest, &mut scratch.totals);
        let corrected = corrections[..queries].iter().any(|correction| *correction != 1.0);
        // SAFETY: as required of the caller.
        unsafe { products.add(layout, corrected.then_some(&corrections), scratch) };
        position += count;
    }
}

/// Products of keys and values where they lie: scores from lanes `L`, sums from lanes `V`.
struct Gathered<'a, L, V> {
    block: &'a Block<'a>,
    tile: Tile,
    /// The end of all keys.
    end: usize,
    lanes: PhantomData<(L, V)>,
}

impl<L: Lanes, V: Lanes> Products for Gathered<'_, L, V> {
    #[inline(always)]
    unsafe fn score(&mut self, position: usize, count: usize, layout: Layout, scratch: &mut Scratch) {
        // SAFETY: as required of the caller; a tile has the keys and values that it says.
        unsafe {
            gather::<L>(self.block, (position, count, self.end), &mut self.tile, scratch);
            if layout.along_heads {
                score_along_heads::<L>(&self.tile, layout, scratch);
            } else {
                score::<L>(&self.tile, layout, scratch);
            }
        }
    }

    #[inline(always)]
    unsafe fn add(&mut self, layout: Layout, corrections: Option<&[f32; WIDEST]>, scratch: &mut Scratch) {
        // SAFETY: as for the scores.
        unsafe {
            if layout.along_heads {
                add_along_heads::<L>(&self.tile, layout, corrections, scratch);
            } else {
                add::<V>(&self.tile, layout, corrections, scratch);
            }
        }
    }
}

/// Scales the queries and packs them as the register tile reads them.
///
/// # Safety
/// The lanes' instruction set must be available.
#[inline(always)]
unsafe fn load_queries<L: Lanes>(block: &Block<'_>, scratch: &mut Scratch) -> Layout {
    let Block { sequence, heads, queries: (_, queries), .. } = *block;
    let (dim, width) = (heads.head_dim, block_width::<L>());
    block.scale_queries(&mut scratch.rows);
    // by what a token has, not by how many tokens there are
    let along_heads = sequence.phase == Phase::Decode && 4 * heads.group() <= L::N;
    let vectors = queries.div_ceil(L::N);
    if along_heads {
        scratch.queries[..queries * dim].fill(0.0);
    } else {
        // SAFETY: the queries were just written, and the lanes' instructions are available.
        unsafe { tile::pack::<L>(scratch.rows.as_ptr(), dim, queries, dim, scratch.queries.as_mut_ptr()) };
    }
    Layout { dim, queries, width, vectors, active: vectors * L::N, along_heads }
}

/// The keys and values from a position on; `(position, count, end)`.
///
/// # Safety
/// The lanes' instruction set must be available, and the keys must be there.
#[inline(always)]
unsafe fn gather<L: Lanes>(block: &Block<'_>, keys: (usize, usize, usize), tile: &mut Tile, scratch: &mut Scratch) {
    let Block { sequence, kv_head, heads, .. } = *block;
    #[cfg(target_arch = "x86_64")]
    if let Some(paired) = block.paired {
        let (position, count, _) = keys;
        let (readable, end) = paired.readable(position, count);
        let keys = (position, readable, end);
        // SAFETY: as required of the caller.
        unsafe { tile.gather::<L>(&sequence.keys, kv_head, heads, keys, &mut scratch.wide, false) };
        return paired.pair(kv_head, position, count, tile);
    }
    // SAFETY: as required of the caller.
    unsafe { tile.gather::<L>(&sequence.keys, kv_head, heads, keys, &mut scratch.wide, true) };
}

/// The scores of a tile's keys.
///
/// # Safety
/// The lanes' instruction set must be available, and the scratch has room.
#[inline(always)]
unsafe fn score<L: Lanes>(tile: &Tile, layout: Layout, scratch: &mut Scratch) {
    let Layout { dim, vectors, width, .. } = layout;
    let values = &mut Values::new(tile);
    for key in (0..tile.count).step_by(PANEL) {
        let rows = PANEL.min(tile.count - key);
        for begin in (0..dim).step_by(DEPTH) {
            let depth = DEPTH.min(dim - begin);
            for (row, to) in (key..key + rows).zip(scratch.panel.chunks_exact_mut(PANEL_ROW)) {
                if vectors < L::TILE.1 {
                    ahead(tile, values, row, begin..begin + depth);
                }
                // SAFETY: a key has as many values.
                let from = unsafe { std::slice::from_raw_parts(tile.keys[row].add(begin), depth) };
                to[..depth].copy_from_slice(from);
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

/// Where the values of a tile lie, one after the other.
struct Values<'a> {
    tile: &'a Tile,
    run: usize,
    /// The first value of the run.
    first: usize,
}

impl<'a> Values<'a> {
    #[inline(always)]
    fn new(tile: &'a Tile) -> Self {
        Self { tile, run: 0, first: 0 }
    }

    /// Where value `row` lies, which is not before the one that was asked for last, unless that was of the same panel.
    #[inline(always)]
    fn at(&mut self, row: usize) -> *const f32 {
        let runs = self.tile.values();
        if row < self.first {
            (self.run, self.first) = (0, 0);
        }
        while self.run + 1 < runs.len() && row - self.first >= runs[self.run].count {
            self.first += runs[self.run].count;
            self.run += 1;
        }
        runs[self.run].at.wrapping_add((row - self.first) * runs[self.run].step)
    }
}

/// Asks for a key some rows on, and for the value of this row: few queries do not hide the memory's latency.
#[inline(always)]
fn ahead(tile: &Tile, values: &mut Values<'_>, row: usize, columns: Range<usize>) {
    let value = values.at(row);
    for i in columns.step_by(16) {
        prefetch(tile.keys[row + PANEL].wrapping_add(i).cast());
        prefetch(value.wrapping_add(i).cast());
    }
}

/// [`score`], for so few queries that the vectors run along a head.
///
/// # Safety
/// As [`score`].
#[inline(always)]
unsafe fn score_along_heads<L: Lanes>(tile: &Tile, layout: Layout, scratch: &mut Scratch) {
    let Layout { dim, width, queries, .. } = layout;
    let whole = dim / L::N * L::N;
    let values = &mut Values::new(tile);
    for (row, scores) in scratch.scores.chunks_exact_mut(width).take(tile.count).enumerate() {
        ahead(tile, values, row, 0..dim);
        // SAFETY: a key has `dim` values.
        let key = unsafe { std::slice::from_raw_parts(tile.keys[row], dim) };
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

/// Turns scores into weights relative to the highest score so far, and adds them to the totals, which are corrected
/// for that; returns by what sums over earlier keys are to be corrected.
#[inline(always)]
fn weigh(
    scores: &mut [f32],
    layout: Layout,
    active: usize,
    highest: &mut [f32; WIDEST],
    totals: &mut [f32; WIDEST],
) -> [f32; WIDEST] {
    let width = layout.width;
    let old = *highest;
    let highest = &mut highest[..active];
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
        totals[i] *= corrections[i];
    }
    for row in scores.chunks_exact_mut(width) {
        for ((score, base), total) in row[..active].iter_mut().zip(&base).zip(totals.iter_mut()) {
            *score = math::exp(*score - base);
            *total += *score;
        }
    }
    corrections
}

/// Corrects the sums over earlier keys, `[rows, width]`.
#[inline(always)]
pub(super) fn correct(layout: Layout, corrections: Option<&[f32; WIDEST]>, sums: &mut [f32]) {
    let Some(corrections) = corrections else { return };
    for row in sums.chunks_exact_mut(layout.width) {
        row[..layout.active].iter_mut().zip(corrections).for_each(|(sum, correction)| *sum *= correction);
    }
}

/// The weights of `count` keys, an even number, as words of two neighbouring keys in bf16, in place: a pair of rows becomes one.
///
/// # Safety
/// The CPU must have AVX-512 BF16.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn lay_together(layout: Layout, count: usize, scores: &mut [f32]) {
    let Layout { width, active, .. } = layout;
    let rows = scores[..count * width].as_mut_ptr();
    for pair in 0..count / 2 {
        // SAFETY: as required of the caller; the rows are there.
        unsafe {
            let (first, second) = (rows.add(2 * pair * width), rows.add((2 * pair + 1) * width));
            crate::cpu::bf16::interleave(first, second, active, rows.add(pair * width));
        }
    }
}

/// Adds the tile's values, weighted, to the sums, which are corrected before.
///
/// # Safety
/// As [`score`]; the weights take the place of the register tile's `B`.
#[inline(always)]
unsafe fn add<L: Lanes>(tile: &Tile, layout: Layout, corrections: Option<&[f32; WIDEST]>, scratch: &mut Scratch) {
    let Layout { dim, width, vectors, .. } = layout;
    correct(layout, corrections, &mut scratch.sums);
    // SAFETY: as required of the caller.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if L::EACH == 2 {
            lay_together(layout, tile.count, &mut scratch.scores);
        }
        let mut first = 0;
        for run in tile.values() {
            let left = Left { at: run.at, row: 1, step: run.step };
            let to = Sums { at: scratch.sums.as_mut_ptr(), row: width, add: true };
            let weights = Right::block::<L>(&scratch.scores[first * width..]);
            tile::multiply::<L>(left, dim, weights, run.count, vectors, to, Ahead::NOTHING);
            first += run.count;
        }
    }
}

/// [`add`] with the vectors along a head: `sums[i] += Σ_key weight[key][i] v[key]`, `sums` `[queries, dim]` in the
/// place of the packed queries.
///
/// # Safety
/// As [`add`]; the weights take the place of `A`.
#[inline(always)]
unsafe fn add_along_heads<L: Lanes>(
    tile: &Tile,
    layout: Layout,
    corrections: Option<&[f32; WIDEST]>,
    scratch: &mut Scratch,
) {
    let Layout { dim, width, queries, .. } = layout;
    let sums = &mut scratch.queries[..queries * dim];
    if let Some(corrections) = corrections {
        for (row, correction) in sums.chunks_exact_mut(dim).zip(corrections) {
            row.iter_mut().for_each(|sum| *sum *= correction);
        }
    }
    let whole = dim / L::N * L::N;
    let mut first = 0;
    for run in tile.values() {
        let weights = &scratch.scores[first * width..];
        let left = Left { at: weights.as_ptr(), row: 1, step: width };
        for begin in (0..whole).step_by(width) {
            let vectors = (width.min(whole - begin)) / L::N;
            let right = Right { at: run.at.wrapping_add(begin), row: run.step };
            let to = Sums { at: sums[begin..].as_mut_ptr(), row: dim, add: true };
            // SAFETY: as required of the caller.
            unsafe { tile::multiply::<L>(left, queries, right, run.count, vectors, to, Ahead::NOTHING) };
        }
        for (i, sums) in sums.chunks_exact_mut(dim).enumerate() {
            for (d, sum) in sums.iter_mut().enumerate().skip(whole) {
                // SAFETY: a value has `dim` values.
                let value = |key: usize| unsafe { *run.at.add(key * run.step + d) };
                *sum = (0..run.count).fold(*sum, |sum, key| sum + weights[key * width + i] * value(key));
            }
        }
        first += run.count;
    }
}

/// Divides by the weights' sums and writes the block's outputs.
///
/// # Safety
/// The lanes' instruction set must be available, and the block's outputs must belong to the calling task.
#[inline(always)]
pub(super) unsafe fn finish<L: Lanes>(block: &Block<'_>, scratch: &mut Scratch, out: Output) {
    let Block { first_out, heads, kv_head, queries: (first_query, count), .. } = *block;
    let queries = first_query..first_query + count;
    let (dim, width) = (heads.head_dim, block_width::<L>());
    let mut inverse = [0f32; WIDEST];
    inverse[..queries.len()].iter_mut().zip(&scratch.totals).for_each(|(inverse, total)| *inverse = 1.0 / total);
    for row in scratch.sums.chunks_exact_mut(width) {
        row.iter_mut().zip(&inverse).for_each(|(sum, inverse)| *sum *= inverse);
    }
    // SAFETY: rows and sums have room for `width` queries; this task owns its queries' outputs.
    unsafe {
        tile::unpack::<L>(scratch.sums.as_ptr(), width, dim, queries.len(), scratch.rows.as_mut_ptr(), dim);
        for (row, query) in scratch.rows.chunks_exact(dim).zip(queries) {
            out.at(first_out + heads.query(kv_head, query)).copy_from_nonoverlapping(row.as_ptr(), dim);
        }
    }
}

/// [`attend_block`] with [paired](super::paired::Paired) values.
///
/// # Safety
/// The CPU must have the instructions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn attend_pairs(block: &Block<'_>, keys: Range<usize>, scratch: &mut Scratch) {
    // SAFETY: as required of the caller.
    unsafe {
        let keys = super::paired::Paired::pairs(keys);
        attend_lanes::<crate::cpu::isa::Avx512, crate::cpu::isa::Pairs>(block, keys, scratch);
    }
}
