//! Attention of one segment's queries over a cache and over the segment itself.
//!
//! One pass over the visible keys with a running maximum (the online softmax of flash attention), a block of keys
//! at a time, so that no score matrix is stored and the query heads of a group share each key and value while it is
//! in the cache. The keys stay where they are: in the slots of the caller's buffer, and in the segment.

use super::lanes::Lanes;
use super::level::{Level, with_level};
use crate::AttendParams;
use rayon::prelude::*;

/// Keys scored at a time.
const KEYS: usize = 64;
/// Fewer multiplications than this are not worth a second thread.
const SERIAL_WORK: usize = 1 << 16;

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

/// Keys and values, `[.., kv_heads, head_dim]` each: those read before, by slot, and those of the segment.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    pub(crate) past_k: &'a [f32],
    pub(crate) past_v: &'a [f32],
    pub(crate) fresh_k: &'a [f32],
    pub(crate) fresh_v: &'a [f32],
}

/// `out[t, h] = Σ_key softmax_key(score(q[t, h], k[key])) v[key]`, all `[tokens, heads, head_dim]`.
///
/// # Panics
/// When a slice does not have the size of its shape.
pub(crate) fn attend(
    level: Level,
    q: &[f32],
    keys: Keys<'_>,
    shape: AttendShape,
    params: AttendParams,
    out: &mut [f32],
) {
    let AttendShape { tokens, heads, kv_heads, head_dim, capacity } = shape;
    assert!(kv_heads > 0 && heads % kv_heads == 0, "query heads come in equal groups");
    assert_eq!(q.len(), tokens * heads * head_dim, "queries");
    assert_eq!(out.len(), q.len(), "outputs");
    for past in [keys.past_k, keys.past_v] {
        assert_eq!(past.len(), capacity * kv_heads * head_dim, "cache");
    }
    for fresh in [keys.fresh_k, keys.fresh_v] {
        assert_eq!(fresh.len(), tokens * kv_heads * head_dim, "segment");
    }
    if out.is_empty() {
        return;
    }
    let group = heads / kv_heads;
    let work = out.len() * (params.start + tokens).min(params.span.unwrap_or(usize::MAX));
    let threads = if work < SERIAL_WORK { 1 } else { rayon::current_num_threads() };
    // heads of a group stay together, unless that would leave a thread idle
    let parts = (1..=group).find(|parts| group % parts == 0 && tokens * kv_heads * parts >= threads).unwrap_or(group);
    let task_heads = group / parts;
    let one = |(task, out): (usize, &mut [f32])| {
        let first_head = task * task_heads % heads;
        let token = task * task_heads / heads;
        let query = Query {
            q: &q[task * task_heads * head_dim..][..out.len()],
            position: params.start + token,
            kv_head: first_head / group,
        };
        attend_group(level, query, keys, shape, params, out);
    };
    let chunks = task_heads * head_dim;
    if threads == 1 {
        out.chunks_exact_mut(chunks).enumerate().for_each(one);
    } else {
        out.par_chunks_exact_mut(chunks).enumerate().for_each(one);
    }
}

/// The query heads of one token that share a key head.
#[derive(Clone, Copy)]
struct Query<'a> {
    q: &'a [f32],
    position: usize,
    kv_head: usize,
}

fn attend_group(
    level: Level,
    query: Query<'_>,
    keys: Keys<'_>,
    shape: AttendShape,
    params: AttendParams,
    out: &mut [f32],
) {
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(
        query: Query<'_>,
        keys: Keys<'_>,
        shape: AttendShape,
        params: AttendParams,
        out: &mut [f32],
    ) {
        let dim = shape.head_dim;
        let heads = query.q.len() / dim;
        let mut maxima = vec![f32::NEG_INFINITY; heads];
        let mut sums = vec![0f32; heads];
        out.fill(0.0);
        // where a position's key or value lies
        let find = |position: usize| {
            let before = position < params.start;
            let row = if before { position % shape.capacity } else { position - params.start };
            (before, row * shape.kv_heads * dim + query.kv_head * dim)
        };
        let visible = params.visible(query.position, params.start + shape.tokens);
        let mut begin = visible.start;
        while begin < visible.end {
            let count = KEYS.min(visible.end - begin);
            for head in 0..heads {
                let q = &query.q[head * dim..(head + 1) * dim];
                let out = &mut out[head * dim..(head + 1) * dim];
                let mut scores = [0f32; KEYS];
                let mut highest = maxima[head];
                for (j, score) in scores[..count].iter_mut().enumerate() {
                    let (before, at) = find(begin + j);
                    let k = if before { keys.past_k } else { keys.fresh_k };
                    // SAFETY: the lanes' instructions are available where this is expanded.
                    *score = unsafe { dot::<L>(q, &k[at..at + dim]) } * params.scale;
                    if let Some(cap) = params.softcap {
                        *score = cap * (*score / cap).tanh();
                    }
                    highest = highest.max(*score);
                }
                let correction = (maxima[head] - highest).exp();
                maxima[head] = highest;
                sums[head] *= correction;
                if correction != 1.0 {
                    out.iter_mut().for_each(|value| *value *= correction);
                }
                for (j, score) in scores[..count].iter().enumerate() {
                    let weight = (score - highest).exp();
                    sums[head] += weight;
                    let (before, at) = find(begin + j);
                    let v = if before { keys.past_v } else { keys.fresh_v };
                    // SAFETY: as above.
                    unsafe { add_scaled::<L>(out, weight, &v[at..at + dim]) };
                }
            }
            begin += count;
        }
        for (head, sum) in sums.iter().enumerate() {
            let inverse = 1.0 / sum;
            out[head * dim..(head + 1) * dim].iter_mut().for_each(|value| *value *= inverse);
        }
    }
    with_level!(level, kernel(query: Query<'_>, keys: Keys<'_>, shape: AttendShape, params: AttendParams, out: &mut [f32]));
}

/// # Safety
/// The lanes' instruction set must be available.
#[inline(always)]
unsafe fn dot<L: Lanes>(a: &[f32], b: &[f32]) -> f32 {
    let whole = a.len() / L::N * L::N;
    // SAFETY: both slices have `a.len()` values, which the callers slice to one length.
    unsafe {
        let mut sums = [L::splat(0.0); 2];
        for (step, i) in (0..whole).step_by(L::N).enumerate() {
            sums[step & 1] = L::load(a.as_ptr().add(i)).mul_add(L::load(b.as_ptr().add(i)), sums[step & 1]);
        }
        let mut sum = sums[0].mul_add(L::splat(1.0), sums[1]).sum();
        for i in whole..a.len() {
            sum += a[i] * b[i];
        }
        sum
    }
}

/// `to += factor * from`.
///
/// # Safety
/// The lanes' instruction set must be available.
#[inline(always)]
unsafe fn add_scaled<L: Lanes>(to: &mut [f32], factor: f32, from: &[f32]) {
    let whole = to.len() / L::N * L::N;
    // SAFETY: both slices have `to.len()` values, which the callers slice to one length.
    unsafe {
        let factors = L::splat(factor);
        for i in (0..whole).step_by(L::N) {
            let at = to.as_mut_ptr().add(i);
            L::load(from.as_ptr().add(i)).mul_add(factors, L::load(at)).store(at);
        }
    }
    for i in whole..to.len() {
        to[i] += factor * from[i];
    }
}
