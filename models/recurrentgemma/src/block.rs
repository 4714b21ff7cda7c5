//! One residual block: a temporal part, recurrent or attention, then an MLP.

use crate::cache::{LayerCache, RecurrentState};
use crate::config::{BlockSpec, Temporal};
use crate::recurrent::RecurrentBlock;
use burn::module::Module;
use gemma_nn::{Attention, GeGlu, KvCache, Residual, RmsNorm, RopeTable, Rows, Saver, Segment, Source};

/// What mixes tokens with those before them.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "a model has a few dozen of them")]
pub enum TemporalBlock {
    /// By a state that is carried along.
    Recurrent(RecurrentBlock),
    /// By looking at the last few of them.
    Attention(Attention),
}

/// `x += temporal(norm(x)); x += mlp(norm(x))` (De et al. 2024, arXiv:2402.19427, §2.1). Fields carry the
/// checkpoint's names.
#[derive(Module, Debug)]
pub struct ResidualBlock {
    temporal_pre_norm: RmsNorm,
    temporal_block: TemporalBlock,
    channel_pre_norm: RmsNorm,
    mlp_block: GeGlu,
}

impl ResidualBlock {
    /// The attention inside, where the temporal part is one.
    pub(crate) fn attention(&self) -> Option<&Attention> {
        match &self.temporal_block {
            TemporalBlock::Attention(attention) => Some(attention),
            TemporalBlock::Recurrent(_) => None,
        }
    }

    /// The block whose parameters begin with `{name}.`.
    pub fn load(source: &mut dyn Source, name: &str, hidden_size: usize, eps: f32, spec: &BlockSpec) -> Self {
        let temporal = format!("{name}.temporal_block");
        Self {
            temporal_pre_norm: RmsNorm::load(source, &format!("{name}.temporal_pre_norm"), hidden_size, eps),
            temporal_block: match spec.temporal {
                Temporal::Recurrent(spec) => {
                    TemporalBlock::Recurrent(RecurrentBlock::load(source, &temporal, hidden_size, spec))
                }
                Temporal::Attention(spec) => {
                    TemporalBlock::Attention(Attention::load(source, &temporal, hidden_size, spec))
                }
            },
            channel_pre_norm: RmsNorm::load(source, &format!("{name}.channel_pre_norm"), hidden_size, eps),
            mlp_block: GeGlu::load(source, &format!("{name}.mlp_block"), hidden_size, spec.intermediate_size, true),
        }
    }

    /// Hands the parameters to a saver, under the names they were loaded by.
    pub fn save(&self, saver: &mut dyn Saver, name: &str) {
        self.temporal_pre_norm.save(saver, &format!("{name}.temporal_pre_norm"));
        let temporal = format!("{name}.temporal_block");
        match &self.temporal_block {
            TemporalBlock::Recurrent(block) => block.save(saver, &temporal),
            TemporalBlock::Attention(block) => block.save(saver, &temporal),
        }
        self.channel_pre_norm.save(saver, &format!("{name}.channel_pre_norm"));
        self.mlp_block.save(saver, &format!("{name}.mlp_block"));
    }

    /// Adds to the residual stream what the temporal part and the MLP compute; the caches take up the segments.
    ///
    /// # Panics
    /// When segments, caches and `x` do not match.
    pub fn forward(&self, x: &mut Residual<'_>, rope: &RopeTable, segments: &[Segment], caches: Vec<&mut LayerCache>) {
        let normed = x.normed(&self.temporal_pre_norm);
        let mixed = match &self.temporal_block {
            TemporalBlock::Recurrent(block) => {
                let mut states: Vec<&mut RecurrentState> = caches
                    .into_iter()
                    .map(|cache| match cache {
                        LayerCache::Recurrent(state) => state,
                        LayerCache::Attention(_) => panic!("a recurrent layer got the cache of an attention layer"),
                    })
                    .collect();
                block.forward(normed, segments, &mut states)
            }
            TemporalBlock::Attention(block) => {
                let mut kv_caches: Vec<&mut KvCache> = caches
                    .into_iter()
                    .map(|cache| match cache {
                        LayerCache::Attention(cache) => cache,
                        LayerCache::Recurrent(_) => panic!("an attention layer got the cache of a recurrent layer"),
                    })
                    .collect();
                block.forward(normed, rope, segments, &mut kv_caches)
            }
        };
        x.add(mixed, None);
        let y = self.mlp_block.forward(x.normed(&self.channel_pre_norm), &Rows::of(segments));
        x.add(y, None);
    }
}
