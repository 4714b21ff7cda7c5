//! Keys and values as operands of Intel's matrix unit (AMX), laid out once for all queries of a prompt.
//!
//! A key is the sum of two bf16 values, and so is a query: three products of tiles, those of the larger with the larger and with
//! the smaller, give a score with a relative error of at most 2^-16 of each term (what is left out is the product of the smaller
//! ones). Values and their weights are bf16, as in [`paired`](super::paired).

use super::block::{Block, Layout, Products, attend_with, correct, lay_together};
use super::kv::KEYS;
use super::scratch::{Scratch, WIDEST};
use super::{Heads, Sequence};
use crate::AttendParams;
use crate::cpu::bf16::{interleave, pair, pair_rest};
use crate::cpu::buffer::Buffer;
use crate::cpu::gemm::amx::{SIDE, Tiled, Tiles};
use crate::cpu::gemm::tile::{self, Ahead, Left, Right, Sums, block_width};
use crate::cpu::gemm::unit::Unit;
use crate::cpu::isa::{Avx512, Lanes};
use crate::cpu::output::Output;
use crate::cpu::pool;
use std::marker::PhantomData;
use std::ops::Range;

/// Keys of a step of the tiles of values, and of two tiles of keys: positions are divided by it, so that what is added together
/// does not depend on what is visible.
const STEP: usize = 2 * SIDE;
/// Words of a row of values: all keys that are weighted together.
const ROW: usize = KEYS / 2;
const _: () = assert!(KEYS.is_multiple_of(STEP));

/// The keys and values that any query of a sequence sees.
pub(super) struct Operands {
    /// The larger and the smaller part of each key, `[kv_heads, keys, row]` words of two neighbouring values of a head, zeros beyond them.
    k: [Buffer<f32>; 2],
    /// `[kv_heads, keys / KEYS, rows, ROW]` words of two neighbouring keys: a row for each value of a head, and rows of zeros.
    v: Buffer<f32>,
    /// The position of the first key, a multiple of [`KEYS`].
    base: usize,
    /// How many there are, a multiple of [`KEYS`]; those that no query sees are zeros.
    keys: usize,
    /// Words of a key, a multiple of [`SIDE`]; and from one key to the next.
    words: usize,
    row: usize,
    /// Rows of values, a multiple of two tiles.
    rows: usize,
}

impl Operands {
    /// Lays out what the sequence sees. The CPU must have AVX-512 BF16.
    pub(super) fn new(sequence: &Sequence<'_>, heads: Heads, params: &AttendParams) -> Self {
        let Heads { kv_heads, head_dim, .. } = heads;
        let seen = sequence.visible(0..sequence.len, params);
        let base = seen.start / KEYS * KEYS;
        let keys = (seen.end - base).next_multiple_of(KEYS);
        let words = head_dim.div_ceil(2).next_multiple_of(SIDE);
        // an odd number of cache lines: keys do not fall into the same sets
        let row = words + SIDE * usize::from((words / SIDE).is_multiple_of(2));
        let rows = head_dim.next_multiple_of(2 * SIDE);
        let k = [(); 2].map(|()| Buffer::zeroed(kv_heads * keys * row));
        let v = Buffer::zeroed(kv_heads * keys / KEYS * rows * ROW);
        let mut operands = Self { k, v, base, keys, words, row, rows };
        let to_k = operands.k.each_mut().map(|k| Output(k.as_mut_ptr()));
        let to_v = Output(operands.v.as_mut_ptr());
        let tiles = keys / KEYS;
        pool::for_each(kv_heads * tiles, |task| {
            let (head, first) = (task / tiles, task % tiles * KEYS);
            // a head of an odd size has a zero behind it
            let even = head_dim.next_multiple_of(2);
            let mut wide = vec![0f32; head_dim];
            let mut key = vec![0f32; even];
            let mut values = vec![0f32; 2 * head_dim];
            // words of two keys, `[ROW, head_dim]`
            let mut pairs = vec![0f32; ROW * head_dim];
            for index in 0..KEYS {
                let value = &mut values[index % 2 * head_dim..][..head_dim];
                if seen.contains(&(base + first + index)) {
                    let stored = sequence.keys.run(base + first + index, head, heads).0;
                    key[..head_dim].copy_from_slice(stored.key(&mut wide));
                    value.copy_from_slice(stored.value(&mut wide));
                    for (to, part) in to_k.iter().zip([pair, pair_rest] as [unsafe fn(&[f32], &mut [f32]); 2]) {
                        // SAFETY: the CPU has the instructions, and the key's place is this task's.
                        unsafe {
                            let at = to.at((head * keys + first + index) * row);
                            part(&key, std::slice::from_raw_parts_mut(at, even / 2));
                        }
                    }
                } else {
                    value.fill(0.0);
                }
                if index % 2 == 1 {
                    let to = pairs[index / 2 * head_dim..].as_mut_ptr();
                    // SAFETY: the CPU has the instructions, and there are as many values and words.
                    unsafe { interleave(values.as_ptr(), values[head_dim..].as_ptr(), head_dim, to) };
                }
            }
            // SAFETY: the CPU has the instructions, and the rows of these keys are this task's.
            unsafe {
                let to = to_v.at(task * rows * ROW);
                transpose(pairs.as_ptr(), head_dim, to);
            }
        });
        operands
    }

    /// The positions in whole steps.
    fn steps(keys: Range<usize>) -> Range<usize> {
        keys.start / STEP * STEP..keys.end.next_multiple_of(STEP)
    }

    /// The parts of the keys from a position on.
    fn keys_at(&self, kv_head: usize, position: usize) -> [Left; 2] {
        let at = (kv_head * self.keys + position - self.base) * self.row;
        self.k.each_ref().map(|k| Left { at: k[at..].as_ptr(), row: self.row, step: 1 })
    }

    /// The values of the keys from a position on, as rows of words.
    fn values_at(&self, kv_head: usize, position: usize) -> Left {
        let key = kv_head * self.keys + position - self.base;
        let at = key / KEYS * self.rows * ROW + key % KEYS / 2;
        Left { at: self.v[at..].as_ptr(), row: ROW, step: 1 }
    }
}

/// `[ROW, columns]` to `[columns, ROW]`.
///
/// # Safety
/// The CPU must have the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
unsafe fn transpose(from: *const f32, columns: usize, to: *mut f32) {
    // SAFETY: as required of the caller.
    unsafe { tile::unpack::<Avx512>(from, columns, ROW, columns, to, ROW) };
}

/// Products of tiles with the [operands](Operands) of a block.
struct Multiplying<'a, T> {
    operands: &'a Operands,
    kv_head: usize,
    /// The position of the keys that are multiplied, and how many there are.
    keys: (usize, usize),
    tiles: PhantomData<T>,
}

impl<T: Tiles> Products for Multiplying<'_, T> {
    #[inline(always)]
    unsafe fn score(&mut self, position: usize, count: usize, layout: Layout, scratch: &mut Scratch) {
        let Layout { width, vectors, .. } = layout;
        self.keys = (position, count);
        let words = self.operands.words;
        let [larger, smaller] = [0, 1].map(|part| Right::block::<Avx512>(&scratch.queries[part * words * width..]));
        for key in (0..count).step_by(STEP) {
            let [key_larger, key_smaller] = self.operands.keys_at(self.kv_head, position + key);
            let at = scratch.scores[key * width..].as_mut_ptr();
            for (left, right, add) in
                [(key_larger, larger, false), (key_larger, smaller, true), (key_smaller, larger, true)]
            {
                // SAFETY: the operands have whole steps of keys, in whole steps of words, as the queries do, and the scores a
                // row for each key.
                unsafe {
                    let to = Sums { at, row: width, add };
                    Tiled::<T>::multiply(left, STEP, right, words, vectors, to, Ahead::NOTHING);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn add(&mut self, layout: Layout, corrections: Option<&[f32; WIDEST]>, scratch: &mut Scratch) {
        let Layout { width, vectors, .. } = layout;
        let (position, count) = self.keys;
        correct(layout, corrections, &mut scratch.sums);
        // SAFETY: the scores have a row for each key, of which there are whole steps, and the sums one for each row of values.
        unsafe {
            lay_together(layout, count, &mut scratch.scores);
            let weights = Right::block::<Avx512>(&scratch.scores);
            let values = self.operands.values_at(self.kv_head, position);
            for row in (0..self.operands.rows).step_by(2 * SIDE) {
                let left = Left { at: values.at.add(row * values.row), ..values };
                let to = Sums { at: scratch.sums[row * width..].as_mut_ptr(), row: width, add: true };
                Tiled::<T>::multiply(left, 2 * SIDE, weights, count / 2, vectors, to, Ahead::NOTHING);
            }
        }
    }
}

/// Scales the queries and packs their parts, `[2, words, width]`.
///
/// # Safety
/// The CPU must have the instructions.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
unsafe fn load_queries(block: &Block<'_>, words: usize, scratch: &mut Scratch) -> Layout {
    let (dim, queries, width) = (block.heads.head_dim, block.queries.1, block_width::<Avx512>());
    block.scale_queries(&mut scratch.rows);
    let half = dim.div_ceil(2);
    scratch.queries.resize(2 * words * width);
    scratch.queries.fill(0.0);
    let [row, parts] = &mut scratch.wide;
    row.resize(2 * half);
    parts.resize(queries * half);
    row.fill(0.0);
    for (part, to) in scratch.queries.chunks_exact_mut(words * width).enumerate() {
        for (query, words) in scratch.rows.chunks_exact(dim).zip(parts.chunks_exact_mut(half)) {
            row[..dim].copy_from_slice(query);
            if part == 0 { pair(row, words) } else { pair_rest(row, words) }
        }
        // SAFETY: the words of the queries were just written, and the block has as many rows.
        unsafe { tile::pack::<Avx512>(parts.as_ptr(), half, queries, half, to.as_mut_ptr()) };
    }
    let vectors = queries.div_ceil(Avx512::N);
    Layout { dim, queries, width, vectors, active: vectors * Avx512::N, along_heads: false }
}

/// [`attend_block`](super::block::attend_block) with products of tiles.
///
/// # Safety
/// The CPU must have the instructions, and the block's sequence these [operands](Operands).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn attend_tiles<T: Tiles>(
    block: &Block<'_>,
    operands: &Operands,
    keys: Range<usize>,
    scratch: &mut Scratch,
) {
    // SAFETY: as required of the caller; the operands have the keys that are visible, in whole steps.
    unsafe {
        let layout = load_queries(block, operands.words, scratch);
        scratch.sums.resize(operands.rows * layout.width);
        scratch.sums.fill(0.0);
        let mut products = Multiplying::<T> { operands, kv_head: block.kv_head, keys: (0, 0), tiles: PhantomData };
        T::configure();
        attend_with(block, layout, Operands::steps(keys), &mut products, scratch);
        T::release();
    }
}
