//! The network: embed, layers, norm, head.

mod blocks;

use crate::config::DecoderConfig;
use crate::layer::DecoderLayer;
use crate::names;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use gemma_generate::{Cache, CacheTensors, CausalModel, Inputs};
use gemma_model::{Error, Network, config_file, fields};
use gemma_nn::{
    Embedder, KvCache, PageId, Phase, Projection, Residual, Retention, RmsNorm, RopeTables, Rows, Saver, Segment,
    Source, softcap,
};
use gemma_tokenizer::{Family, TokenId};
use gemma_weights::{Checkpoint, Dtype};
use std::ops::Range;

/// The decoder of Gemma 1, 1.1, 2 and 3 and VaultGemma; CodeGemma is one, PaliGemma and EmbeddingGemma contain one.
#[derive(Module, Debug)]
pub struct Decoder {
    embed_tokens: Embedder,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    lm_head: Option<Projection>,
    #[module(skip)]
    config: DecoderConfig,
}

/// The KV caches of one sequence, one per layer. Made by `new_cache`, owned by the caller; a clone is a fork.
#[derive(Clone, Debug)]
pub struct DecoderCache {
    layers: Vec<KvCache>,
    /// Intervals of positions that saw themselves both ways.
    blocks: Vec<Range<usize>>,
}

/// The name of the blocks among the tensors of a cache: `[blocks, 2]`, the ends of each.
const BLOCKS: &str = "blocks";

impl Cache for DecoderCache {
    fn len(&self) -> usize {
        self.layers.first().map_or(0, KvCache::len)
    }

    fn bytes_len(&self) -> usize {
        self.layers.iter().map(KvCache::bytes_len).sum()
    }

    fn pages(&self) -> Vec<(PageId, usize)> {
        self.layers.iter().flat_map(KvCache::pages).collect()
    }

    fn truncate(&mut self, len: usize) -> bool {
        // what lies in a block has seen all of it
        if self.blocks.iter().any(|block| block.start < len && len < block.end) {
            return false;
        }
        let mut shortened = self.layers.clone();
        let possible = shortened.iter_mut().all(|layer| layer.truncate(len));
        if possible {
            self.layers = shortened;
            self.blocks.retain(|block| block.end <= len);
        }
        possible
    }

    fn truncatable(&self) -> usize {
        // a window's ring holds everything until it is full
        let windows = self.layers.iter().map(|layer| match layer.retention() {
            Retention::Nothing => 0,
            Retention::Everything => usize::MAX,
            Retention::Window(window) => window,
        });
        windows.min().unwrap_or(usize::MAX)
    }

    fn is_whole(&self) -> bool {
        self.blocks.is_empty() && self.layers.iter().all(KvCache::is_whole)
    }

    fn complete_with(&mut self, earlier: &Self, agreed: usize) {
        self.layers.iter_mut().zip(&earlier.layers).for_each(|(layer, earlier)| layer.complete_with(earlier, agreed));
    }

    fn retractable(&self) -> usize {
        self.layers.iter().map(KvCache::retractable).min().unwrap_or(usize::MAX)
    }

    fn tensors(&self) -> CacheTensors {
        let mut tensors = CacheTensors::new();
        for (index, layer) in self.layers.iter().enumerate() {
            tensors.insert_kv(&format!("layers.{index}"), layer);
        }
        if !self.blocks.is_empty() {
            let ends = self.blocks.iter().flat_map(|block| [block.start as f32, block.end as f32]);
            tensors.insert_values(BLOCKS, vec![self.blocks.len(), 2], ends.collect());
        }
        tensors
    }
}

impl Decoder {
    fn cache(&self, retention: impl Fn(Retention) -> Retention) -> DecoderCache {
        let layers = self.layers.iter().map(|layer| layer.attention().new_cache(&retention)).collect();
        DecoderCache { layers, blocks: Vec::new() }
    }
}

impl Network for Decoder {
    type Config = DecoderConfig;

    const FAMILY: Family = Family::Gemma;

    fn config_from_json(text: &[u8]) -> Result<DecoderConfig, Error> {
        let config = DecoderConfig::from_json(text)?;
        if config.is_bidirectional() {
            let expected = "false in a model that makes text; `gemma embed` runs EmbeddingGemma";
            return Err(fields::invalid("use_bidirectional_attention", true, expected));
        }
        Ok(config)
    }

    /// A head of its own is used where the checkpoint has one that differs from the embedding table, whatever
    /// `tie_word_embeddings` says.
    fn config_of(checkpoint: &Checkpoint) -> Result<DecoderConfig, Error> {
        let config = Self::config_from_json(&config_file(checkpoint)?)?;
        Ok(DecoderConfig { is_tied: names::is_tied(checkpoint, config.is_tied), ..config })
    }

    fn prepared(checkpoint: &Checkpoint) -> Checkpoint {
        names::canonical(checkpoint)
    }

    fn config_to_json(config: &DecoderConfig, dtype: Dtype) -> serde_json::Value {
        config.to_json(dtype)
    }

    fn eos(config: &DecoderConfig) -> &[TokenId] {
        &config.eos
    }

    /// The embedding scale √hidden_size is rounded to the checkpoint's dtype, as the reference does (√3072 = 55.4256 becomes
    /// 55.5 in bf16).
    fn load(source: &mut dyn Source, config: &DecoderConfig, dtype: Dtype) -> Self {
        let scale = dtype.round((config.hidden_size as f32).sqrt());
        let layer = |(index, spec)| {
            DecoderLayer::load(source, &format!("model.layers.{index}"), config.hidden_size, config.norm_eps, spec)
        };
        let layers = config.layers.iter().enumerate().map(layer).collect();
        Self {
            embed_tokens: Embedder::load(source, "model.embed_tokens", config.vocab, config.hidden_size, scale),
            layers,
            norm: RmsNorm::load(source, "model.norm", config.hidden_size, config.norm_eps),
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
        self.norm.save(saver, "model.norm");
        if let Some(head) = &self.lm_head {
            head.save(saver, "lm_head");
        }
    }

    fn config(&self) -> &DecoderConfig {
        &self.config
    }

    fn device(&self) -> Device {
        self.norm.weight.val().device()
    }
}

impl CausalModel for Decoder {
    type Cache = DecoderCache;

    fn embed(&self, tokens: &[TokenId]) -> Inputs {
        Inputs { token_ids: tokens.to_vec(), embeddings: self.embed_tokens.embed(tokens) }
    }

    fn forward(&self, inputs: Inputs, segments: &[Segment], caches: &mut [&mut DecoderCache]) -> Tensor<2> {
        let x = inputs.embeddings;
        let positions: Vec<usize> = segments.iter().flat_map(Segment::positions).collect();
        let specs = &self.config.layers;
        let ropes = RopeTables::new(specs.iter().map(|spec| spec.rope), &positions, &x.device());
        for (segment, cache) in segments.iter().zip(caches.iter_mut()) {
            let positions = segment.positions();
            let within = |block: &&Range<usize>| positions.start <= block.start && block.end <= positions.end;
            cache.blocks.extend(segment.blocks.iter().filter(within).cloned());
        }
        let mut x = Residual::new(x);
        for (index, (layer, spec)) in self.layers.iter().zip(specs).enumerate() {
            let mut caches: Vec<&mut KvCache> = caches.iter_mut().map(|cache| &mut cache.layers[index]).collect();
            layer.forward(&mut x, ropes.of(spec.rope), segments, &mut caches);
        }
        x.normed(&self.norm)
    }

    fn logits(&self, hidden_states: Tensor<2>) -> Tensor<2> {
        softcap(self.uncapped_logits(hidden_states), self.config.final_softcap)
    }

    fn final_softcap(&self) -> Option<f32> {
        self.config.final_softcap
    }

    fn uncapped_logits(&self, hidden_states: Tensor<2>) -> Tensor<2> {
        match &self.lm_head {
            Some(head) => {
                let rows = hidden_states.dims()[0];
                head.forward_in(hidden_states, &Rows::in_phase(rows, Phase::Decode))
            }
            None => self.embed_tokens.logits(hidden_states),
        }
    }

    fn new_cache(&self) -> DecoderCache {
        self.cache(|retention| retention)
    }

    fn no_cache(&self) -> DecoderCache {
        self.cache(|_| Retention::Nothing)
    }

    fn restore_cache(&self, len: usize, tensors: &CacheTensors) -> Option<DecoderCache> {
        let device = self.device();
        let layers = self.layers.iter().enumerate();
        let cache = |(index, layer): (usize, &DecoderLayer)| {
            tensors.kv(&format!("layers.{index}"), layer.attention(), len, &device)
        };
        let ends = tensors.values(BLOCKS).unwrap_or_default().as_chunks::<2>().0;
        let blocks = ends.iter().map(|[start, end]| *start as usize..*end as usize).collect();
        Some(DecoderCache { layers: layers.map(cache).collect::<Option<_>>()?, blocks })
    }

    fn cache_bytes(&self, tokens: usize) -> usize {
        self.layers.iter().map(|layer| layer.attention().cache_bytes(tokens)).sum()
    }

    fn context_length(&self) -> Option<usize> {
        Some(self.config.context)
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
        for (name, parameters) in [
            ("gemma-2b", 2_506_172_416),
            ("gemma-7b", 8_537_680_896),
            ("gemma-2-2b", 2_614_341_888),
            ("gemma-2-9b", 9_241_705_984),
            ("gemma-2-27b", 27_227_128_320u64),
            ("gemma-3-270m", 268_098_176),
            ("gemma-3-1b", 999_885_952),
            ("gemma-3-4b", 3_880_263_168),
        ] {
            let tensors = Decoder::tensors(&DecoderConfig::preset(name).unwrap(), &device);
            let sum: u64 = tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum();
            assert_eq!(sum, parameters, "{name}");
        }
    }
}
