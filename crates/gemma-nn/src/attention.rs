//! Grouped-query attention with rotary positions, over caches that the caller lends.

use crate::{KvCache, Projection, Retention, RmsNorm, RopeTable, Rows, Saver, Segment, Source};
use burn::module::Module;
use burn::tensor::Tensor;
use gemma_kernels::{AttendParams, AttendSegment, CachePrecision, KvPool, PAGE_LEN, Visibility, append, attend};

/// What one attention layer needs to know; resolved once, per layer, when a configuration is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Size of a head. `heads * head_dim` need not be the hidden size.
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// Soft cap of the scores, applied after the scale and before the mask.
    pub softcap: Option<f32>,
    /// Which keys a query sees.
    pub visibility: Visibility,
    /// Gemma 3: `eps` of an RMS norm over each head of q and k, after the projection and before the rotation.
    pub qk_norm: Option<f32>,
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
}

impl AttentionSpec {
    /// The sliding window, in keys; `None` where there is none.
    pub fn window(&self) -> Option<usize> {
        self.visibility.window()
    }

    /// What the layer's cache must keep.
    pub fn retention(&self) -> Retention {
        self.window().map_or(Retention::Everything, Retention::Window)
    }
}

/// `o( softmax(scale · rope(q) rope(k)ᵀ + mask) v )` (Vaswani et al. 2017, eq. 1; grouped queries: Ainslie et al.
/// 2023, arXiv:2305.13245).
#[derive(Module, Debug)]
pub struct Attention {
    /// `[heads * head_dim, hidden_size]`.
    pub q_proj: Projection,
    /// `[kv_heads * head_dim, hidden_size]`.
    pub k_proj: Projection,
    /// `[kv_heads * head_dim, hidden_size]`.
    pub v_proj: Projection,
    /// `[hidden_size, heads * head_dim]`.
    pub o_proj: Projection,
    /// `[head_dim]`: one weight for all query heads.
    pub q_norm: Option<RmsNorm>,
    /// `[head_dim]`: one weight for all key heads.
    pub k_norm: Option<RmsNorm>,
    #[module(skip)]
    spec: AttentionSpec,
    #[module(skip)]
    cache: CachePrecision,
    /// Where the caches of the layer live on a GPU.
    #[module(skip)]
    pool: KvPool,
}

impl Attention {
    /// The layer whose parameters begin with `{name}.`.
    pub fn load(source: &mut dyn Source, name: &str, hidden_size: usize, spec: AttentionSpec) -> Self {
        let (queries, keys) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        Self {
            q_proj: Projection::load(source, &format!("{name}.q_proj"), hidden_size, queries, spec.qkv_bias),
            k_proj: Projection::load(source, &format!("{name}.k_proj"), hidden_size, keys, spec.qkv_bias),
            v_proj: Projection::load(source, &format!("{name}.v_proj"), hidden_size, keys, spec.qkv_bias),
            o_proj: Projection::load(source, &format!("{name}.o_proj"), queries, hidden_size, spec.output_bias),
            q_norm: spec.qk_norm.map(|eps| RmsNorm::load(source, &format!("{name}.q_norm"), spec.head_dim, eps)),
            k_norm: spec.qk_norm.map(|eps| RmsNorm::load(source, &format!("{name}.k_norm"), spec.head_dim, eps)),
            spec,
            cache: source.cache_precision().for_heads(spec.head_dim),
            pool: KvPool::new(),
        }
    }

    /// An empty cache for the layer; `window` may change how much of the sequence it keeps.
    pub fn new_cache(&self, window: impl Fn(Retention) -> Retention) -> KvCache {
        KvCache::in_pool(window(self.spec.retention()), self.cache, self.pool.clone())
    }

    /// The most bytes that the layer's cache takes after `tokens` tokens.
    pub fn cache_bytes(&self, tokens: usize) -> usize {
        let kept = match self.spec.retention() {
            Retention::Nothing => 0,
            Retention::Everything => tokens,
            // in whole pages, which begin anywhere in the window, and some for drafts that are taken back
            Retention::Window(window) => tokens.min(window + 2 * PAGE_LEN),
        };
        let kept = kept.next_multiple_of(PAGE_LEN);
        let head = self.cache.most_head_bytes(self.spec.head_dim).unwrap_or(0);
        2 * kept * self.spec.kv_heads * head
    }

    /// The cache of buffers that were kept, as f32, after `len` tokens; `None` when it could not have come to them.
    pub fn restore_cache(&self, len: usize, buffers: Option<[Tensor<3>; 2]>) -> Option<KvCache> {
        self.new_cache(|retention| retention).restored(len, buffers)
    }

    /// Its sizes.
    pub fn spec(&self) -> &AttentionSpec {
        &self.spec
    }

    /// Hands the parameters to a saver, under the names they were loaded by.
    pub fn save(&self, saver: &mut dyn Saver, name: &str) {
        self.q_proj.save(saver, &format!("{name}.q_proj"));
        self.k_proj.save(saver, &format!("{name}.k_proj"));
        self.v_proj.save(saver, &format!("{name}.v_proj"));
        self.o_proj.save(saver, &format!("{name}.o_proj"));
        for (norm, field) in [(&self.q_norm, "q_norm"), (&self.k_norm, "k_norm")] {
            if let Some(norm) = norm {
                norm.save(saver, &format!("{name}.{field}"));
            }
        }
    }

    /// Appends the keys and values of each segment to its cache, and attends to all that the cache holds: `[tokens,
    /// hidden_size]` to the same shape.
    ///
    /// # Panics
    /// When segments and caches do not match, or a block that sees itself both ways is not forwarded in one piece.
    pub fn forward(
        &self,
        x: Tensor<2>,
        rope: &RopeTable,
        segments: &[Segment],
        caches: &mut [&mut KvCache],
    ) -> Tensor<2> {
        let AttentionSpec { heads, kv_heads, head_dim, .. } = self.spec;
        let [tokens, _] = x.dims();
        let rows = Rows::of(segments);
        let [q, k, v] = Projection::forward_all([&self.q_proj, &self.k_proj, &self.v_proj], x, &rows);
        let [k, v] = [k, v].map(|x| x.reshape([tokens, kv_heads, head_dim]));
        let norms = self.q_norm.as_ref().zip(self.k_norm.as_ref());
        let [q, k] = rope.rotate_heads(q.reshape([tokens, heads, head_dim]), k, norms);
        let attended = self.attend(q, k, v, segments, caches);
        self.o_proj.forward_in(attended.reshape([tokens, heads * head_dim]), &rows)
    }

    /// All segments in one call: `[tokens, heads, head_dim]` from q of that shape and k, v `[tokens, kv_heads, head_dim]`.
    fn attend(
        &self,
        q: Tensor<3>,
        k: Tensor<3>,
        v: Tensor<3>,
        segments: &[Segment],
        caches: &mut [&mut KvCache],
    ) -> Tensor<3> {
        assert_eq!(segments.len(), caches.len(), "one cache per segment");
        let mut first = 0;
        let mut rows = Vec::with_capacity(segments.len());
        for (segment, cache) in segments.iter().zip(caches.iter_mut()) {
            assert_eq!(segment.start, cache.len(), "a segment continues where its cache ends");
            let cut = segment.cut_block();
            assert!(cut.is_none(), "the block {cut:?} is not forwarded in one piece with {:?}", segment.positions());
            rows.extend(cache.rows(first..first + segment.len));
            first += segment.len;
        }
        if !rows.is_empty() {
            append(k.clone(), v.clone(), &mut rows);
        }
        let attend_segments: Vec<AttendSegment<'_>> = segments
            .iter()
            .zip(caches.iter())
            .map(|(segment, cache)| AttendSegment {
                start: segment.start,
                len: segment.len,
                blocks: &segment.blocks,
                phase: segment.phase,
                cache: cache.kept(),
            })
            .collect();
        let params = AttendParams {
            visibility: self.spec.visibility,
            scale: self.spec.scale,
            softcap: self.spec.softcap,
            activations: self.q_proj.weight.attention_activations(),
        };
        let output = attend(q, k, v, &attend_segments, &params);
        caches.iter_mut().for_each(|cache| cache.give_back());
        output
    }
}
