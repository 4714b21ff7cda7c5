//! Grouped-query attention with rotary positions, over caches that the caller lends.

use crate::{KvCache, Projection, Retention, RmsNorm, RopeTable, Saver, Segment, Source};
use burn::module::Module;
use burn::tensor::Tensor;
use gemma_kernels::{AttendParams, CachePrecision, Visibility, attend};
use std::ops::Range;

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
        self.window().map_or(Retention::Everything, Retention::Last)
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
            // two values share a word
            cache: if spec.head_dim.is_multiple_of(2) { source.cache_precision() } else { CachePrecision::F32 },
        }
    }

    /// An empty cache for the layer; `window` may change how much of the sequence it keeps.
    pub fn new_cache(&self, window: impl Fn(Retention) -> Retention) -> KvCache {
        KvCache::new(window(self.spec.retention())).with_precision(self.cache)
    }

    /// Bytes of the layer's cache after `tokens` tokens.
    pub fn cache_bytes(&self, tokens: usize) -> usize {
        let kept = match self.spec.retention() {
            Retention::Nothing => 0,
            Retention::Everything => tokens,
            Retention::Last(window) => tokens.min(window),
        };
        let value = if self.cache == CachePrecision::F16 { 2 } else { 4 };
        2 * kept * self.spec.kv_heads * self.spec.head_dim * value
    }

    /// The cache of buffers that were kept, as f32, after `len` tokens; `None` when it could not have come to them.
    pub fn restore_cache(&self, len: usize, buffers: Option<[Tensor<3>; 2]>) -> Option<KvCache> {
        Some(KvCache::restore(self.spec.retention(), len, buffers)?.with_precision(self.cache))
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

    /// Reads each segment after what its cache holds, and appends it there: `[tokens, hidden_size]` to the same shape.
    ///
    /// # Panics
    /// When segments and caches do not match, or a prefix is not read in one piece.
    pub fn forward(
        &self,
        x: Tensor<2>,
        rope: &RopeTable,
        segments: &[Segment],
        caches: &mut [&mut KvCache],
    ) -> Tensor<2> {
        let AttentionSpec { heads, kv_heads, head_dim, .. } = self.spec;
        let [tokens, _] = x.dims();
        let split = |x: Tensor<2>, heads: usize| x.reshape([tokens, heads, head_dim]);
        let rotated = |x: Tensor<2>, norm: &Option<RmsNorm>, heads: usize| {
            let x = match norm {
                Some(norm) => norm.forward(x.reshape([tokens * heads, head_dim])),
                None => x,
            };
            rope.rotate(x.reshape([tokens, heads, head_dim]))
        };
        let q = rotated(self.q_proj.forward(x.clone()), &self.q_norm, heads);
        let k = rotated(self.k_proj.forward(x.clone()), &self.k_norm, kv_heads);
        let v = split(self.v_proj.forward(x), kv_heads);

        assert_eq!(segments.len(), caches.len(), "one cache per segment");
        let mut outputs = Vec::with_capacity(segments.len());
        let mut first = 0;
        for (segment, cache) in segments.iter().zip(caches) {
            let part = |x: &Tensor<3>, heads: usize| {
                if segment.len == tokens {
                    x.clone()
                } else {
                    x.clone().slice([first..first + segment.len, 0..heads, 0..head_dim])
                }
            };
            outputs.push(self.attend(part(&q, heads), part(&k, kv_heads), part(&v, kv_heads), segment, cache));
            first += segment.len;
        }
        let joined = if outputs.len() == 1 { outputs.remove(0) } else { Tensor::cat(outputs, 0) };
        self.o_proj.forward(joined.reshape([tokens, heads * head_dim]))
    }

    /// One segment: `[tokens, heads, head_dim]` from q of that shape and k, v `[tokens, kv_heads, head_dim]`.
    fn attend(&self, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, segment: &Segment, cache: &mut KvCache) -> Tensor<3> {
        assert_eq!(segment.start, cache.len(), "a segment continues where its cache ends");
        assert!(
            segment.cut_block().is_none(),
            "{:?} of {segment:?} is not forwarded in one piece",
            segment.cut_block()
        );
        let prefix_len = match &segment.blocks[..] {
            [] => 0,
            [Range { start: 0, end }] => *end,
            blocks => panic!("the blocks {blocks:?} do not begin the sequence"),
        };
        assert!(matches!(self.spec.visibility, Visibility::Causal { .. }), "causal attention");
        let params = AttendParams {
            start: segment.start,
            prefix_len,
            window: self.spec.window(),
            scale: self.spec.scale,
            softcap: self.spec.softcap,
            activations: self.q_proj.weight.attention_activations(),
        };
        let output = attend(q, cache.past(), k.clone(), v.clone(), params);
        cache.extend(k, v);
        output
    }
}
