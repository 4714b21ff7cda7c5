//! The network: embed, layers, norm, head.

use crate::config::DecoderConfig;
use crate::layer::DecoderLayer;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use gemma_generate::CausalModel;
use gemma_model::{Error, Network, StateTensors, cache_tensors};
use gemma_nn::{Embedder, KvCache, Retention, RmsNorm, RopeTable, Saver, Segment, Source, last_rows, softcap};
use gemma_tokenizer::{Family, TokenId};
use gemma_weights::{Dtype, SavedTensor, catalogue::Shape};

/// The decoder of Gemma 1, 1.1 and 2; CodeGemma is one, and PaliGemma contains one.
#[derive(Module, Debug)]
pub struct Decoder {
    embed_tokens: Embedder,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    #[module(skip)]
    config: DecoderConfig,
}

/// What the decoder remembers of one sequence: a cache per layer. Made by [`Decoder::new_memory`], owned by the
/// caller; a clone is a fork.
#[derive(Clone, Debug)]
pub struct Memory {
    layers: Vec<KvCache>,
}

impl Memory {
    /// Number of tokens read; also the position of the next one.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, KvCache::len)
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size of all buffers in bytes.
    pub fn bytes_len(&self) -> usize {
        self.layers.iter().map(KvCache::bytes_len).sum()
    }

    /// Forgets all but the first `len` tokens. `false`, with nothing changed, when a window has already let go of
    /// tokens that are needed again.
    #[must_use]
    pub fn truncate(&mut self, len: usize) -> bool {
        let mut shortened = self.layers.clone();
        let possible = shortened.iter_mut().all(|layer| layer.truncate(len));
        if possible {
            self.layers = shortened;
        }
        possible
    }
}

impl Decoder {
    /// Scaled embeddings: `[tokens, hidden_size]`.
    ///
    /// # Panics
    /// When a token is not below the vocabulary size.
    pub fn embed(&self, tokens: &[TokenId]) -> Tensor<2> {
        self.embed_tokens.embed(tokens)
    }

    /// From embeddings to the last norm, `[tokens, hidden_size]` each. PaliGemma enters here, with an image's features
    /// among the embeddings.
    ///
    /// # Panics
    /// When segments, memories and `x` do not match.
    pub fn hidden_states(&self, mut x: Tensor<2>, segments: &[Segment], memories: &mut [&mut Memory]) -> Tensor<2> {
        let positions: Vec<usize> = segments.iter().flat_map(Segment::positions).collect();
        let rope = RopeTable::new(self.config.rope, &positions, &x.device());
        for (index, layer) in self.layers.iter().enumerate() {
            let mut caches: Vec<&mut KvCache> = memories.iter_mut().map(|memory| &mut memory.layers[index]).collect();
            x = layer.forward(x, &rope, segments, &mut caches);
        }
        self.norm.forward(x)
    }

    /// Memory for a sequence that is read once, in one piece: it keeps nothing.
    pub fn no_memory(&self) -> Memory {
        Memory { layers: self.layers.iter().map(|_| KvCache::new(Retention::Nothing)).collect() }
    }
}

impl Network for Decoder {
    type Config = DecoderConfig;

    const FAMILY: Family = Family::Gemma;

    fn config_from_json(text: &[u8]) -> Result<DecoderConfig, Error> {
        DecoderConfig::from_json(text)
    }

    fn config_from_shape(shape: &Shape) -> Option<DecoderConfig> {
        DecoderConfig::from_shape(shape)
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
            config: config.clone(),
        }
    }

    fn save(&self, saver: &mut dyn Saver) {
        self.embed_tokens.save(saver, "model.embed_tokens");
        for (index, layer) in self.layers.iter().enumerate() {
            layer.save(saver, &format!("model.layers.{index}"));
        }
        self.norm.save(saver, "model.norm");
    }

    fn config(&self) -> &DecoderConfig {
        &self.config
    }

    fn device(&self) -> Device {
        self.norm.weight.val().device()
    }

    fn read_hidden(&self, tokens: &[TokenId], segments: &[Segment], memories: &mut [&mut Memory]) -> Tensor<2> {
        self.hidden_states(self.embed(tokens), segments, memories)
    }

    fn logits(&self, hidden_states: Tensor<2>) -> Tensor<2> {
        softcap(self.embed_tokens.logits(hidden_states), self.config.final_softcap)
    }

    fn memory_bytes(memory: &Memory) -> usize {
        memory.bytes_len()
    }

    fn memory_tensors(&self, memory: &Memory) -> Option<Vec<SavedTensor>> {
        let layers = memory.layers.iter().enumerate();
        Some(layers.flat_map(|(index, cache)| cache_tensors(&format!("layers.{index}"), cache)).collect())
    }

    fn memory_of_tensors(&self, position: usize, tensors: &StateTensors) -> Option<Memory> {
        let device = self.device();
        let layers = self.layers.iter().enumerate();
        let cache = |(index, layer): (usize, &DecoderLayer)| {
            tensors.cache(&format!("layers.{index}"), layer.attention(), position, &device)
        };
        Some(Memory { layers: layers.map(cache).collect::<Option<_>>()? })
    }
}

impl CausalModel for Decoder {
    type Memory = Memory;

    fn new_memory(&self) -> Memory {
        Memory { layers: self.layers.iter().map(|layer| layer.attention().new_cache(|window| window)).collect() }
    }

    fn read(&self, tokens: &[TokenId], segments: &[Segment], memories: &mut [&mut Memory]) -> Tensor<2> {
        let x = self.hidden_states(self.embed(tokens), segments, memories);
        self.logits(last_rows(x, segments))
    }

    fn read_all(&self, tokens: &[TokenId], segments: &[Segment], memories: &mut [&mut Memory]) -> Tensor<2> {
        self.logits(self.hidden_states(self.embed(tokens), segments, memories))
    }

    fn score(&self, tokens: &[TokenId], segments: &[Segment]) -> Tensor<2> {
        let mut memories: Vec<Memory> = segments.iter().map(|_| self.no_memory()).collect();
        let mut memories: Vec<&mut Memory> = memories.iter_mut().collect();
        self.read_all(tokens, segments, &mut memories)
    }

    fn truncate(&self, memory: &mut Memory, len: usize) -> bool {
        memory.truncate(len)
    }

    fn truncatable(&self) -> usize {
        // a window's ring holds everything until it is full
        let windows = self.config.layers.iter().filter_map(|layer| layer.attention.window());
        windows.min().unwrap_or(usize::MAX)
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
        ] {
            let tensors = Decoder::tensors(&DecoderConfig::preset(name).unwrap(), &device);
            let sum: u64 = tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum();
            assert_eq!(sum, parameters, "{name}");
        }
    }
}
