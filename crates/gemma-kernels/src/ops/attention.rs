//! Softmax attention over KV caches, and appending to them.

use crate::kv::{CachePrecision, KvPages, KvPool, PAGE_LEN, Page};
use crate::ops::whole_attention::{WholeAttentionOps, WholeSequence};
use crate::packed::stores_words;
use crate::traffic::words;
use crate::{AttendParams, Phase};
use burn::backend::{
    Backend, Dispatch, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Tensor, TensorData};
use std::ops::Range;

/// The queries of one sequence in a call of [`attend`].
#[derive(Clone, Copy, Debug)]
pub struct AttendSegment<'a> {
    /// Position of the first query in its sequence.
    pub start: usize,
    /// Number of queries, in tokens.
    pub len: usize,
    /// Intervals of positions that see themselves both ways; see [`Visibility`](crate::Visibility).
    pub blocks: &'a [Range<usize>],
    /// What the request is doing.
    pub phase: Phase,
    /// The keys and values of the sequence, those of the queries' tokens included; `None`: those of the queries'
    /// tokens alone, which are the whole sequence.
    pub cache: Option<&'a KvPages>,
}

impl AttendSegment<'_> {
    /// The positions that the queries see, one interval each.
    fn visible(&self, params: &AttendParams) -> impl Iterator<Item = Range<usize>> {
        let known = self.start + self.len;
        (self.start..known).map(move |query| params.visibility.visible(query, known, self.blocks))
    }
}

/// Which rows of a call are appended to a cache.
#[derive(Debug)]
pub struct CacheRows<'a> {
    /// The cache.
    pub cache: &'a mut KvPages,
    /// The rows.
    pub rows: Range<usize>,
}

// The attribute names every backend of the list, ndarray included, which Burn 0.22 deprecates and this workspace promises.
#[allow(deprecated, reason = "ndarray is one of the backends this workspace promises")]
mod extension {
    use super::*;

    /// What a backend must be able to do for attention. The functions of this module are the way to call it.
    #[backend_extension(NdArray: cfg(feature = "ndarray"), Flex: cfg(feature = "flex"), Cube: cfg(feature = "wgpu"))]
    pub trait AttentionOps: Backend {
        /// See [`attend`]; on a CPU.
        fn attend(
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            segments: &[AttendSegment<'_>],
            params: AttendParams,
        ) -> FloatTensor<Self>;
        /// See [`append`](super::append); on a CPU. Returns how many positions were appended.
        fn append(k: FloatTensor<Self>, v: FloatTensor<Self>, caches: &mut [CacheRows<'_>]) -> usize;
        /// Attention over the rows of the call; on a GPU. `queries` and `tables` are those of `cube/attention.rs`.
        fn attend_rows(
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            queries: IntTensor<Self>,
            tables: IntTensor<Self>,
            call: PagedCall,
        ) -> FloatTensor<Self>;
        /// Attention over the pages of a pool; on a GPU.
        fn attend_pages(
            q: FloatTensor<Self>,
            k: IntTensor<Self>,
            v: IntTensor<Self>,
            queries: IntTensor<Self>,
            tables: IntTensor<Self>,
            call: PagedCall,
        ) -> FloatTensor<Self>;
        /// Writes rows of a call to the places `slots` of a pool's buffers, in place; on a GPU. Returns how many.
        fn write_pages(
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            keys: IntTensor<Self>,
            values: IntTensor<Self>,
            slots: IntTensor<Self>,
            call: PagedCall,
        ) -> usize;
    }
}

pub use extension::AttentionOps;

/// What a launch on a GPU needs to know beside its tensors.
#[derive(Clone, Copy, Debug)]
pub struct PagedCall {
    /// The first row of the call that it reads.
    pub first: usize,
    /// The queries that it answers.
    pub queries: usize,
    /// The pieces that their keys are cut into; as many as there are queries where none is cut.
    pub pieces: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// How pages keep values.
    pub precision: CachePrecision,
    /// Scale and cap of the scores.
    pub params: AttendParams,
}

/// Softmax attention of all segments of a call, each over its own sequence.
///
/// - `q` `[tokens, heads, head_dim]`, rotated, the segments one after the other;
/// - `k`, `v` `[tokens, kv_heads, head_dim]`: keys and values of the same tokens, for the segments without a cache.
///   Those of the others were [appended](append) to their caches before.
///
/// Query head `n` reads key head `n / (heads / kv_heads)`. Scores are `scale q·k`, capped, then softmax over the keys
/// that the [`Visibility`](crate::Visibility) allows. The result is `[tokens, heads, head_dim]`. What a query gets
/// depends on its own sequence and [`Phase`] only.
///
/// On an autodiff device it is differentiable and knows no cache; on a GPU's it is
/// [`reference::attend`](crate::reference::attend).
///
/// # Panics
/// When the shapes do not match, when a cache has let go of keys that a query sees, or on an autodiff device with a
/// cache.
pub fn attend(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    segments: &[AttendSegment<'_>],
    params: &AttendParams,
) -> Tensor<3> {
    let [tokens, heads, head_dim] = q.dims();
    let [_, kv_heads, _] = k.dims();
    assert_eq!(k.dims(), [tokens, kv_heads, head_dim], "keys");
    assert_eq!(v.dims(), k.dims(), "values");
    assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "query heads come in equal groups");
    assert_eq!(segments.iter().map(|segment| segment.len).sum::<usize>(), tokens, "the segments are all tokens");
    for segment in segments {
        let end = segment.start + segment.len;
        match segment.cache {
            None => assert_eq!(segment.start, 0, "a segment that starts at {} needs its cache", segment.start),
            Some(cache) => {
                let first = segment.visible(params).map(|seen| seen.start).min().unwrap_or(end);
                assert!(cache.len() == end, "a cache of {} positions, not {end}", cache.len());
                assert!(cache.first() <= first, "the cache has let go of keys from {first} on that are seen");
            }
        }
    }
    if q.is_autodiff() {
        assert!(segments.iter().all(|segment| segment.cache.is_none()), "training forwards sequences whole");
        if !stores_words(&q.device().without_autodiff()) {
            let [q, k, v] = [q, k, v].map(|tensor| tensor.autodiff().into_dispatch());
            let whole =
                |segment: &AttendSegment<'_>| WholeSequence { len: segment.len, blocks: segment.blocks.to_vec() };
            let sequences = segments.iter().map(whole).collect();
            return Tensor::from_dispatch(<Dispatch as WholeAttentionOps>::whole_attention(
                q, k, v, sequences, *params,
            ));
        }
        return each_segment(segments, |rows, segment| {
            let part = |x: &Tensor<3>| x.clone().narrow(0, rows.start, rows.len());
            let positions: Vec<usize> = (0..segment.len).collect();
            reference_attend(part(&q), part(&k), part(&v), 0, &positions, segment.blocks, params)
        });
    }
    if stores_words(&q.device()) {
        return attend_on_gpu(q, k, v, segments, params);
    }
    let [q, k, v] = [q, k, v].map(Tensor::into_dispatch);
    Tensor::from_dispatch(<Dispatch as AttentionOps>::attend(q, k, v, segments, *params))
}

/// Appends rows of `k` and `v` `[tokens, kv_heads, head_dim]` to caches, whose pages are written in place.
///
/// # Panics
/// When the shapes do not match those of the caches.
pub fn append(k: Tensor<3>, v: Tensor<3>, caches: &mut [CacheRows<'_>]) {
    let ([tokens, kv_heads, head_dim], device) = (k.dims(), k.device());
    assert_eq!(v.dims(), k.dims(), "values");
    for CacheRows { cache, rows } in &mut *caches {
        assert!(rows.start <= rows.end && rows.end <= tokens, "rows {rows:?} of {tokens}");
        cache.settle(&device, [kv_heads, head_dim]);
    }
    caches.sort_by_key(|cache| cache.rows.start);
    if !stores_words(&device) {
        <Dispatch as AttentionOps>::append(k.into_dispatch(), v.into_dispatch(), caches);
        return;
    }
    // a launch for each run of rows that go to one pool, which is usually all of them
    let mut caches = caches.iter_mut().filter(|cache| !cache.rows.is_empty()).peekable();
    while let Some(CacheRows { cache, rows }) = caches.next() {
        let (first, mut end, mut slots) = (rows.start, rows.end, cache.reserve(rows.len()));
        let pool = cache.pool().expect("reserving makes one").clone();
        while let Some(next) =
            caches.next_if(|next| next.rows.start == end && next.cache.pool().is_some_and(|other| other.is(&pool)))
        {
            end = next.rows.end;
            slots.extend(next.cache.reserve(next.rows.len()));
        }
        let [keys, values] = pool.buffers().map(Tensor::into_dispatch);
        let precision = cache.precision();
        let call = PagedCall { first, queries: 0, pieces: 0, kv_heads, precision, params: AttendParams::default() };
        let (k, v) = (k.clone().into_dispatch(), v.clone().into_dispatch());
        let slots = words(slots, &device).into_dispatch();
        <Dispatch as AttentionOps>::write_pages(k, v, keys, values, slots, call);
    }
}

/// A launch for each run of segments whose caches are in one pool, which is usually all of them.
fn attend_on_gpu(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    segments: &[AttendSegment<'_>],
    params: &AttendParams,
) -> Tensor<3> {
    let ([tokens, kv_heads, head_dim], device) = (k.dims(), k.device());
    let pool_of = |segment: &AttendSegment<'_>| segment.cache.and_then(KvPages::pool).cloned();
    let same = |a: &Option<KvPool>, b: &Option<KvPool>| match (a, b) {
        (Some(a), Some(b)) => a.is(b),
        (None, None) => true,
        _ => false,
    };
    let mut first = 0;
    let mut outputs = Vec::new();
    for run in segments.chunk_by(|a, b| same(&pool_of(a), &pool_of(b))) {
        let (mut queries, mut tables) = (Vec::new(), Vec::new());
        // where the pieces of each query begin
        let mut begins = vec![0u32];
        let mut row = first;
        for segment in run {
            let (offset, base) = match segment.cache {
                // rows count from the first position, which is 0
                None => (row, 0),
                Some(cache) => (tables.len(), cache.base()),
            };
            for seen in segment.visible(params) {
                let query = begins.len() - 1;
                for piece in pieces(seen, segment.phase) {
                    queries.extend([piece.start, piece.end, offset, base, query].map(|place| place as u32));
                }
                begins.push((queries.len() / QUERY_WORDS) as u32);
            }
            tables.extend(segment.cache.iter().flat_map(|cache| cache.list()).map(|page| match page {
                Page::Pool(page) => page.index() as u32,
                Page::Memory(_) => unreachable!("pages of a GPU"),
            }));
            row += segment.len;
        }
        // a buffer is never empty
        tables.push(0);
        let precision = run[0].cache.map(KvPages::precision).unwrap_or_default();
        let (count, pieces) = (begins.len() - 1, queries.len() / QUERY_WORDS);
        let call = PagedCall { first, queries: count, pieces, kv_heads, precision, params: *params };
        queries.extend(begins);
        let [queries, tables] = [queries, tables].map(|values| words(values, &device).into_dispatch());
        let q = q.clone().into_dispatch();
        outputs.push(Tensor::from_dispatch(match pool_of(&run[0]) {
            None => {
                let [k, v] = [&k, &v].map(|x| x.clone().reshape([tokens, kv_heads * head_dim]).into_dispatch());
                <Dispatch as AttentionOps>::attend_rows(q, k, v, queries, tables, call)
            }
            Some(pool) => {
                let [k, v] = pool.buffers().map(Tensor::into_dispatch);
                <Dispatch as AttentionOps>::attend_pages(q, k, v, queries, tables, call)
            }
        }));
        first = row;
    }
    if outputs.len() == 1 { outputs.remove(0) } else { Tensor::cat(outputs, 0) }
}

/// Words of a piece in the `queries` of a launch: the first position that it sees and the one after the last, then where
/// its sequence lies (see `cube/attention.rs`), and its query, counted from the first one of the launch.
pub(crate) const QUERY_WORDS: usize = 5;
/// Keys of a piece. One head of one query is little work for a GPU, so that a token that is decoded after many others would
/// leave most of it idle.
const PIECE: usize = 512;
/// The most pieces of a query: more would be longer in being added up than in being computed.
const MOST_PIECES: usize = 64;

/// The pieces of what a query sees, which depend on nothing but that and the phase of its request.
fn pieces(seen: Range<usize>, phase: Phase) -> impl Iterator<Item = Range<usize>> {
    let count = match phase {
        Phase::Decode => seen.len().div_ceil(PIECE).clamp(1, MOST_PIECES),
        // the other queries of a prompt are work enough
        Phase::Prefill => 1,
    };
    let each = seen.len().div_ceil(count).next_multiple_of(PAGE_LEN);
    (0..count).filter_map(move |piece| {
        let (from, to) = (seen.start + piece * each, seen.start + (piece + 1) * each);
        (piece == 0 || from < seen.end).then(|| from..to.min(seen.end))
    })
}

/// The results of all segments, given their rows, joined.
fn each_segment(
    segments: &[AttendSegment<'_>],
    mut one: impl FnMut(Range<usize>, &AttendSegment<'_>) -> Tensor<3>,
) -> Tensor<3> {
    let mut first = 0;
    let mut outputs: Vec<_> = segments
        .iter()
        .map(|segment| {
            let rows = first..first + segment.len;
            first = rows.end;
            one(rows, segment)
        })
        .collect();
    if outputs.len() == 1 { outputs.remove(0) } else { Tensor::cat(outputs, 0) }
}

/// The reference implementation of [`attend`] in Burn's operations: the queries `q` `[tokens, heads, head_dim]` of
/// positions `start` and up, over keys and values `[keys, kv_heads, head_dim]` that stand at any `positions`.
pub fn reference_attend(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    start: usize,
    positions: &[usize],
    blocks: &[Range<usize>],
    params: &AttendParams,
) -> Tensor<3> {
    let [tokens, heads, head_dim] = q.dims();
    let [keys, kv_heads, _] = k.dims();
    let group = heads / kv_heads;
    let device = q.device();
    // [tokens, heads, d] -> [kv_heads, group * tokens, d]: query head n reads key head n / group
    let q = q.swap_dims(0, 1).reshape([kv_heads, group * tokens, head_dim]);
    let k = k.swap_dims(0, 1); // [kv_heads, keys, d]
    let v = v.swap_dims(0, 1);
    let scores = q.matmul(k.swap_dims(1, 2)).mul_scalar(params.scale); // [kv_heads, group * tokens, keys]
    let scores = match params.softcap {
        Some(cap) => scores.div_scalar(cap).tanh().mul_scalar(cap),
        None => scores,
    };
    let hidden: Vec<bool> = (start..start + tokens)
        .flat_map(|query| positions.iter().map(move |key| !params.visibility.allows(query, *key, blocks)))
        .collect();
    let hidden = Tensor::<2, Bool>::from_data(TensorData::new(hidden, [tokens, keys]), &device);
    let scores = scores
        .reshape([heads, tokens, keys])
        .mask_fill(hidden.unsqueeze::<3>().expand([heads, tokens, keys]), f32::NEG_INFINITY);
    let weights = softmax(scores, 2).reshape([kv_heads, group * tokens, keys]);
    weights.matmul(v).reshape([heads, tokens, head_dim]).swap_dims(0, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_follow_each_other_and_are_all_that_is_seen() {
        for (from, len) in [(0, 1), (0, 512), (7, 513), (100, 1025), (0, 8192), (3, 100_000)] {
            let cut: Vec<Range<usize>> = pieces(from..from + len, Phase::Decode).collect();
            assert_eq!((cut[0].start, cut[cut.len() - 1].end), (from, from + len), "{len}");
            assert!(cut.windows(2).all(|two| two[0].end == two[1].start), "{cut:?}");
            assert!(cut.iter().all(|piece| !piece.is_empty()) && cut.len() <= MOST_PIECES, "{cut:?}");
            assert_eq!(cut.len() > 1, len > PIECE, "{len}");
            assert_eq!(pieces(from..from + len, Phase::Prefill).collect::<Vec<_>>(), [from..from + len]);
        }
    }
}
