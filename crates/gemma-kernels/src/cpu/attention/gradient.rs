//! The gradient of attention over whole sequences, in f32.
//!
//! With `s` the scores, `p` their softmax and `g` the gradient of the result (Dao et al. 2022, arXiv:2205.14135, appendix
//! B.2): `∂v = pᵀ g`, `∂p = g vᵀ`, `∂s = p (∂p − Σ p ∂p)`, `∂q = ∂s k`, `∂k = ∂sᵀ q`, with the slope of the cap and the scale
//! between. A task is a head of a sequence; it takes some queries at a time, whose scores it computes again, and all products
//! are register tiles ([`tile`]). Heads that share keys have sums of their own, which are added up in order at the end.

use super::Heads;
use crate::cpu::buffer::Buffer;
use crate::cpu::gemm::tile::{self, Ahead, Left, Right, Sums, block_width};
use crate::cpu::isa::{Isa, Lanes, with_isa};
use crate::cpu::output::Output;
use crate::cpu::pool;
use crate::math;
use crate::{AttendParams, WholeSequence};
use std::cell::RefCell;
use std::ops::Range;

/// Queries that are taken at a time.
const QUERIES: usize = 48;

/// What is differentiated: `[tokens, heads, head_dim]`, or of the key heads.
#[derive(Clone, Copy)]
struct Call<'a> {
    from_above: &'a [f32],
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    heads: Heads,
    params: &'a AttendParams,
}

/// A head of a sequence that begins with row `first`, and where its gradients go; those of keys and values are added.
struct Task<'a> {
    first: usize,
    len: usize,
    blocks: &'a [Range<usize>],
    head: usize,
    of_q: Output,
    of_k: Output,
    of_v: Output,
}

struct Scratch {
    keys: Buffer<f32>,
    values: Buffer<f32>,
    /// Scores, then their softmax.
    weights: Buffer<f32>,
    /// The gradients of these.
    slopes: Buffer<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch {
            keys: Buffer::empty(),
            values: Buffer::empty(),
            weights: Buffer::empty(),
            slopes: Buffer::empty(),
        })
    };
}

/// The gradients with respect to `q`, `k` and `v` of attention over whole sequences, one after the other.
pub(crate) fn attend_gradient(
    isa: Isa,
    from_above: &[f32],
    [q, k, v]: [&[f32]; 3],
    sequences: &[WholeSequence],
    heads: Heads,
    params: &AttendParams,
) -> [Vec<f32>; 3] {
    let group = heads.heads / heads.kv_heads;
    let call = &Call { from_above, q, k, v, heads, params };
    let mut of_q = vec![0.0; q.len()];
    let mut shares = vec![0.0; 2 * group * k.len()];
    let (of_queries, of_keys) = (Output(of_q.as_mut_ptr()), Output(shares.as_mut_ptr()));
    let starts = sequences.iter().scan(0, |first, sequence| Some(std::mem::replace(first, *first + sequence.len)));
    let starts: Vec<usize> = starts.collect();
    let work =
        sequences.iter().map(|sequence| sequence.len * sequence.len).sum::<usize>() * heads.heads * heads.head_dim;
    pool::for_work(work, sequences.len() * heads.heads, |index| {
        let (sequence, head) = (index / heads.heads, index % heads.heads);
        let WholeSequence { len, blocks } = &sequences[sequence];
        // SAFETY: there are as many shares.
        let share = |of: usize| Output(unsafe { of_keys.at((2 * (head % group) + of) * k.len()) });
        let (of_k, of_v) = (share(0), share(1));
        let task = &Task { first: starts[sequence], len: *len, blocks, head, of_q: of_queries, of_k, of_v };
        SCRATCH.with_borrow_mut(|scratch| {
            with_isa!(isa, one_head(call: &Call<'_>, task: &Task<'_>, scratch: &mut Scratch));
        });
    });
    let mut rest = shares.chunks(2 * k.len());
    let (mut of_k, mut of_v) = match rest.next() {
        Some(first) => (first[..k.len()].to_vec(), first[k.len()..].to_vec()),
        None => (Vec::new(), Vec::new()),
    };
    for share in rest {
        of_k.iter_mut().zip(&share[..k.len()]).for_each(|(sum, value)| *sum += value);
        of_v.iter_mut().zip(&share[k.len()..]).for_each(|(sum, value)| *sum += value);
    }
    [of_q, of_k, of_v]
}

/// # Safety
/// The lanes' instructions must be available, and no other thread may touch the task's rows.
#[inline(always)]
unsafe fn one_head<L: Lanes>(call: &Call<'_>, task: &Task<'_>, scratch: &mut Scratch) {
    let Heads { heads, kv_heads, head_dim } = call.heads;
    let Task { first, len, blocks, head, of_q, of_k, of_v } = *task;
    let (width, row, key_row) = (block_width::<L>(), heads * head_dim, kv_heads * head_dim);
    let padded = len.next_multiple_of(width);
    scratch.keys.resize(padded * head_dim);
    scratch.values.resize(padded * head_dim);
    scratch.weights.resize(QUERIES * padded);
    scratch.slopes.resize(QUERIES * padded);
    let (weights, slopes) = (scratch.weights.as_mut_ptr(), scratch.slopes.as_mut_ptr());
    let queries_at = first * row + head * head_dim;
    let keys_at = first * key_row + head / (heads / kv_heads) * head_dim;
    for block in (0..len).step_by(width) {
        let (count, at) = (width.min(len - block), keys_at + block * key_row);
        for (from, to) in [(call.k, &mut scratch.keys), (call.v, &mut scratch.values)] {
            // SAFETY: the rows are those of the block, which has as many columns.
            unsafe {
                tile::pack::<L>(from.as_ptr().add(at), key_row, count, head_dim, to.as_mut_ptr().add(block * head_dim));
            }
        }
    }
    for begin in (0..len).step_by(QUERIES) {
        let count = QUERIES.min(len - begin);
        let seen: [Range<usize>; QUERIES] = std::array::from_fn(|query| {
            if query < count { call.params.visibility.visible(begin + query, len, blocks) } else { 0..0 }
        });
        let low = seen[..count].iter().map(|seen| seen.start).min().unwrap_or(0);
        let high = seen[..count].iter().map(|seen| seen.end).max().unwrap_or(0);
        let at = queries_at + begin * row;
        // SAFETY: queries and keys are those of the sequence, packed ones are there in whole blocks, and scores have a row
        // of as many for each query.
        unsafe {
            for block in (low / width * width..high).step_by(width) {
                let vectors = width.min(len - block).div_ceil(L::N);
                for (left, right, to) in [(call.q, &scratch.keys, weights), (call.from_above, &scratch.values, slopes)]
                {
                    let left = Left { at: left.as_ptr().add(at), row, step: 1 };
                    let right = Right { at: right.as_ptr().add(block * head_dim), row: width };
                    let to = Sums { at: to.add(block), row: padded, add: false };
                    tile::multiply::<L>(left, count, right, head_dim, vectors, to, Ahead::NOTHING);
                }
            }
            for (query, seen) in seen[..count].iter().enumerate() {
                let row = |of: *mut f32| std::slice::from_raw_parts_mut(of.add(query * padded + low), high - low);
                score_gradient(row(weights), row(slopes), seen.start - low..seen.end - low, call.params);
            }
            let (keys, rows) = (keys_at + low * key_row, high - low);
            let right = Right { at: call.k.as_ptr().add(keys), row: key_row };
            let to = Sums { at: of_q.at(at), row, add: false };
            let left = Left { at: slopes.add(low), row: padded, step: 1 };
            tile::multiply_columns::<L>(left, count, right, rows, head_dim, to);
            for (left, right, to) in [(slopes, call.q, of_k), (weights, call.from_above, of_v)] {
                let left = Left { at: left.add(low), row: 1, step: padded };
                let right = Right { at: right.as_ptr().add(at), row };
                let to = Sums { at: to.at(keys), row: key_row, add: true };
                tile::multiply_columns::<L>(left, rows, right, count, head_dim, to);
            }
        }
    }
}

/// Turns a query's dot products into the softmax of its scores, and the products of its gradient with the values into the
/// gradients of the dot products. Keys that it does not see get zeros.
#[inline(always)]
fn score_gradient(weights: &mut [f32], slopes: &mut [f32], seen: Range<usize>, params: &AttendParams) {
    for row in [&mut *weights, &mut *slopes] {
        row[..seen.start].fill(0.0);
        row[seen.end..].fill(0.0);
    }
    let (weights, slopes) = (&mut weights[seen.clone()], &mut slopes[seen]);
    let mut largest = f32::NEG_INFINITY;
    for weight in &mut *weights {
        *weight *= params.scale;
        if let Some(cap) = params.softcap {
            *weight = math::softcap(*weight, cap);
        }
        largest = if *weight > largest { *weight } else { largest };
    }
    let (mut sum, mut mean) = (0.0, 0.0);
    for (score, slope) in weights.iter().zip(&*slopes) {
        let exponential = math::exp(score - largest);
        sum += exponential;
        mean += exponential * slope;
    }
    let inverse = 1.0 / sum;
    mean *= inverse;
    for (score, slope) in weights.iter_mut().zip(slopes) {
        let bend = params.softcap.map_or(1.0, |cap| 1.0 - (*score / cap) * (*score / cap));
        *score = math::exp(*score - largest) * inverse;
        *slope = *score * (*slope - mean) * bend * params.scale;
    }
}
