//! The network: embed, blocks, norm, head.

mod blocks;

use crate::block::ResidualBlock;
use crate::cache::{GriffinCache, LayerCache, RecurrentState};
use crate::config::{BlockSpec, GriffinConfig, Temporal};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use gemma_generate::{CacheTensors, CausalModel, Inputs};
use gemma_model::{Error, LoadOptions, Network, config_file};
use gemma_nn::{Embedder, Projection, Residual, Retention, RmsNorm, RopeTable, Saver, Segment, Source, softcap};
use gemma_tokenizer::{Family, TokenId};
use gemma_weights::{Checkpoint, Dtype};

/// Griffin (De et al. 2024, arXiv:2402.19427), the network of RecurrentGemma: most blocks carry a state from token to
/// token, every third looks at the last few tokens. The cache of a sequence does not grow with it.
#[derive(Module, Debug)]
pub struct Griffin {
    embed_tokens: Embedder,
    layers: Vec<ResidualBlock>,
    final_norm: RmsNorm,
    lm_head: Option<Projection>,
    #[module(skip)]
    config: GriffinConfig,
}

impl Griffin {
    /// An empty cache that keeps this much of the windows.
    fn cache(&self, window: impl Fn(Retention) -> Retention) -> GriffinCache {
        let layer = |block: &ResidualBlock| match block.attention() {
            None => LayerCache::Recurrent(RecurrentState::default()),
            Some(attention) => LayerCache::Attention(attention.new_cache(&window)),
        };
        GriffinCache { position: 0, layers: self.layers.iter().map(layer).collect() }
    }
}

impl Network for Griffin {
    type Config = GriffinConfig;

    const FAMILY: Family = Family::RecurrentGemma;

    fn config_from_json(text: &[u8]) -> Result<GriffinConfig, Error> {
        GriffinConfig::from_json(text)
    }

    /// A head of its own is used where the checkpoint has one that differs from the embedding table, whatever
    /// `tie_word_embeddings` says.
    fn config_of(checkpoint: &Checkpoint) -> Result<GriffinConfig, Error> {
        let mut config = Self::config_from_json(&config_file(checkpoint)?)?;
        config.is_tied &= !checkpoint.is_untied("lm_head.weight", "model.embed_tokens.weight");
        Ok(config)
    }

    fn config_to_json(config: &GriffinConfig, dtype: Dtype) -> serde_json::Value {
        config.to_json(dtype)
    }

    fn eos(config: &GriffinConfig) -> &[TokenId] {
        &config.eos
    }

    /// The embedding scale √hidden_size is rounded to bf16 whatever the checkpoint's dtype, as the reference does
    /// (√2560 = 50.596 becomes 50.5).
    fn load(source: &mut dyn Source, config: &GriffinConfig, _dtype: Dtype) -> Self {
        let scale = Dtype::Bf16.round((config.hidden_size as f32).sqrt());
        let layer = |(index, spec)| {
            ResidualBlock::load(source, &format!("model.layers.{index}"), config.hidden_size, config.norm_eps, spec)
        };
        let layers = config.blocks.iter().enumerate().map(layer).collect();
        Self {
            embed_tokens: Embedder::load(source, "model.embed_tokens", config.vocab, config.hidden_size, scale),
            layers,
            final_norm: RmsNorm::load(source, "model.final_norm", config.hidden_size, config.norm_eps),
            lm_head: (!config.is_tied)
                .then(|| Projection::load(source, "lm_head", config.hidden_size, config.vocab, false)),
            config: config.clone(),
        }
    }

    fn save(&self, saver: &mut dyn Saver) {
        self.embed_tokens.save(saver, "model.embed_tokens");
        for (index, layer) in self.layers.iter().enumerate() {
            layer.save(saver, &format!("model.layers.{index}"));
        }
        self.final_norm.save(saver, "model.final_norm");
        if let Some(head) = &self.lm_head {
            head.save(saver, "lm_head");
        }
    }

    fn config(&self) -> &GriffinConfig {
        &self.config
    }

    fn device(&self) -> Device {
        self.final_norm.weight.val().device()
    }

    fn configure(config: GriffinConfig, options: &LoadOptions) -> Result<GriffinConfig, Error> {
        Ok(if options.inclusive_window { config.with_inclusive_window() } else { config })
    }
}

impl CausalModel for Griffin {
    type Cache = GriffinCache;

    fn embed(&self, tokens: &[TokenId]) -> Inputs {
        Inputs { token_ids: tokens.to_vec(), embeddings: self.embed_tokens.embed(tokens) }
    }

    fn forward(&self, inputs: Inputs, segments: &[Segment], caches: &mut [&mut GriffinCache]) -> Tensor<2> {
        let x = inputs.embeddings;
        assert_eq!(segments.len(), caches.len(), "one cache per segment");
        for (segment, cache) in segments.iter().zip(caches.iter_mut()) {
            assert_eq!(segment.start, cache.position, "a segment continues where its cache ends");
            cache.position += segment.len;
        }
        let positions: Vec<usize> = segments.iter().flat_map(Segment::positions).collect();
        let rope = RopeTable::new(self.config.rope, &positions, &x.device());
        let mut x = Residual::new(x);
        for (index, layer) in self.layers.iter().enumerate() {
            let caches = caches.iter_mut().map(|cache| &mut cache.layers[index]).collect();
            layer.forward(&mut x, &rope, segments, caches);
        }
        x.normed(&self.final_norm)
    }

    fn logits(&self, hidden_states: Tensor<2>) -> Tensor<2> {
        softcap(self.uncapped_logits(hidden_states), self.config.final_softcap)
    }

    fn final_softcap(&self) -> Option<f32> {
        self.config.final_softcap
    }

    fn uncapped_logits(&self, hidden_states: Tensor<2>) -> Tensor<2> {
        match &self.lm_head {
            Some(head) => head.forward(hidden_states),
            None => self.embed_tokens.logits(hidden_states),
        }
    }

    fn new_cache(&self) -> GriffinCache {
        self.cache(|retention| retention)
    }

    fn no_cache(&self) -> GriffinCache {
        self.cache(|_| Retention::Nothing)
    }

    fn restore_cache(&self, len: usize, tensors: &CacheTensors) -> Option<GriffinCache> {
        let device = self.device();
        let layer = |(index, (block, temporal)): (usize, (&ResidualBlock, &Temporal))| {
            let name = format!("layers.{index}");
            Some(match temporal {
                Temporal::Attention(_) => LayerCache::Attention(tensors.kv(&name, block.attention()?, len, &device)?),
                Temporal::Recurrent(_) if len == 0 => LayerCache::Recurrent(RecurrentState::default()),
                Temporal::Recurrent(spec) => {
                    let hidden = Some(tensors.get(&format!("{name}.hidden"), [1, spec.channels], &device)?);
                    let tail = match spec.taps - 1 {
                        0 => None,
                        past => Some(tensors.get(&format!("{name}.tail"), [past, spec.channels], &device)?),
                    };
                    LayerCache::Recurrent(RecurrentState { hidden, tail })
                }
            })
        };
        let blocks = self.layers.iter().zip(self.config.blocks.iter().map(|block| &block.temporal));
        Some(GriffinCache { position: len, layers: blocks.enumerate().map(layer).collect::<Option<_>>()? })
    }

    fn cache_bytes(&self, tokens: usize) -> usize {
        let of = |(block, spec): (&ResidualBlock, &BlockSpec)| match (&spec.temporal, block.attention()) {
            (Temporal::Recurrent(spec), _) => 4 * spec.channels * spec.taps,
            (Temporal::Attention(_), attention) => attention.map_or(0, |layer| layer.cache_bytes(tokens)),
        };
        self.layers.iter().zip(&self.config.blocks).map(of).sum()
    }

    /// No limit: the cache does not grow. (The releases were trained on texts of 8192 tokens.)
    fn context_length(&self) -> Option<usize> {
        None
    }

    fn vocab(&self) -> usize {
        self.config.vocab
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tensors_of_each_preset_add_up_to_the_released_parameters() {
        let device = gemma_backend::default_device().unwrap();
        for (name, parameters) in [("recurrentgemma-2b", 2_682_862_080), ("recurrentgemma-9b", 8_579_977_216u64)] {
            let tensors = Griffin::tensors(&GriffinConfig::preset(name).unwrap(), &device);
            let sum: u64 = tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum();
            assert_eq!(sum, parameters, "{name}");
        }
    }
}
