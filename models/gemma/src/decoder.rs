//! The network: embed, layers, norm, head.

use crate::config::DecoderConfig;
use crate::layer::DecoderLayer;
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use gemma_generate::CausalModel;
use gemma_nn::{
    Embedder, Inventory, KvCache, Retention, RmsNorm, RopeTable, Segment, Sink, Source, softcap, total_tokens,
};
use gemma_tokenizer::TokenId;
use gemma_weights::{Dtype, TensorSpec};

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
    /// Builds the network from a source of parameters. `dtype` is that of the checkpoint: the embedding scale
    /// √width is rounded to it, as the reference does (√3072 = 55.4256 becomes 55.5 in bf16).
    pub fn load(source: &mut dyn Source, config: &DecoderConfig, dtype: Dtype) -> Self {
        let scale = round_to(dtype, (config.width as f32).sqrt());
        let layer = |(index, spec)| {
            DecoderLayer::load(source, &format!("model.layers.{index}"), config.width, config.norm_eps, spec)
        };
        let layers = config.layers.iter().enumerate().map(layer).collect();
        Self {
            embed_tokens: Embedder::load(source, "model.embed_tokens", config.vocab, config.width, scale),
            layers,
            norm: RmsNorm::load(source, "model.norm", config.width, config.norm_eps),
            config: config.clone(),
        }
    }

    /// Hands every parameter to a sink, under the checkpoint's names.
    pub fn save(&self, sink: &mut dyn Sink) {
        self.embed_tokens.save(sink, "model.embed_tokens");
        for (index, layer) in self.layers.iter().enumerate() {
            layer.save(sink, &format!("model.layers.{index}"));
        }
        self.norm.save(sink, "model.norm");
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The device that holds the parameters.
    pub fn device(&self) -> Device {
        self.norm.weight.val().device()
    }

    /// Scaled embeddings: `[tokens, width]`.
    ///
    /// # Panics
    /// When a token is not below the vocabulary size.
    pub fn embed(&self, tokens: &[TokenId]) -> Tensor<2> {
        self.embed_tokens.embed(tokens)
    }

    /// From embeddings to the last norm, `[tokens, width]` each. PaliGemma enters here, with a picture's features
    /// among the embeddings.
    ///
    /// # Panics
    /// When segments, memories and `x` do not match.
    pub fn hidden(&self, mut x: Tensor<2>, segments: &[Segment], memories: &mut [&mut Memory]) -> Tensor<2> {
        let positions: Vec<usize> = segments.iter().flat_map(Segment::positions).collect();
        let rope = RopeTable::new(self.config.rope, &positions, &x.device());
        for (index, layer) in self.layers.iter().enumerate() {
            let mut caches: Vec<&mut KvCache> = memories.iter_mut().map(|memory| &mut memory.layers[index]).collect();
            x = layer.forward(x, &rope, segments, &mut caches);
        }
        self.norm.forward(x)
    }

    /// Logits `[rows, vocab]` of rows `[rows, width]` that went through the last norm.
    pub fn logits(&self, x: Tensor<2>) -> Tensor<2> {
        softcap(self.embed_tokens.logits(x), self.config.final_softcap)
    }

    /// Memory for a sequence that is read once, in one piece: it keeps nothing.
    pub fn no_memory(&self) -> Memory {
        Memory { layers: self.layers.iter().map(|_| KvCache::new(Retention::Nothing)).collect() }
    }

    /// Bytes that generating one token reads: all weights once.
    pub fn weight_bytes(&self) -> usize {
        struct Sum(usize);
        impl Sink for Sum {
            fn matrix(&mut self, _name: &str, weight: &gemma_nn::Weight) {
                self.0 += weight.bytes_len();
            }
            fn vector(&mut self, _name: &str, values: &burn::module::Param<Tensor<1>>) {
                self.0 += 4 * values.val().dims()[0];
            }
            fn array(&mut self, _name: &str, values: TensorData) {
                self.0 += 4 * values.num_elements();
            }
        }
        let mut sum = Sum(0);
        self.save(&mut sum);
        sum.0
    }
}

impl DecoderConfig {
    /// Name and shape of every tensor that a checkpoint of this configuration holds.
    pub fn tensors(&self, device: &Device) -> Vec<TensorSpec> {
        let mut inventory = Inventory::new(device);
        Decoder::load(&mut inventory, self, Dtype::F32);
        inventory.into_list().into_iter().map(|(name, shape)| TensorSpec { name, shape }).collect()
    }

    /// Whether a checkpoint may hold a tensor of this name that no layer reads: the tied head and the rotary
    /// frequencies, which some files repeat.
    pub fn is_ignored(name: &str) -> bool {
        name == "lm_head.weight" || name.ends_with(".rotary_emb.inv_freq")
    }
}

impl CausalModel for Decoder {
    type Memory = Memory;

    fn new_memory(&self) -> Memory {
        Memory { layers: self.config.layers.iter().map(|layer| KvCache::new(layer.attention.retention())).collect() }
    }

    fn read(&self, tokens: &[TokenId], segments: &[Segment], memories: &mut [&mut Memory]) -> Tensor<2> {
        let x = self.hidden(self.embed(tokens), segments, memories);
        // the head is the largest matrix: only the last row of each segment needs it
        let mut end = 0;
        let last: Vec<i32> = segments
            .iter()
            .map(|segment| {
                end += segment.len;
                end as i32 - 1
            })
            .collect();
        let rows = if last.len() == total_tokens(segments) {
            x
        } else {
            let index = Tensor::<1, Int>::from_data(TensorData::new(last, [segments.len()]), &x.device());
            x.select(0, index)
        };
        self.logits(rows)
    }

    fn read_all(&self, tokens: &[TokenId], segments: &[Segment], memories: &mut [&mut Memory]) -> Tensor<2> {
        self.logits(self.hidden(self.embed(tokens), segments, memories))
    }

    fn score(&self, tokens: &[TokenId], segments: &[Segment]) -> Tensor<2> {
        let mut memories: Vec<Memory> = segments.iter().map(|_| self.no_memory()).collect();
        let mut memories: Vec<&mut Memory> = memories.iter_mut().collect();
        self.read_all(tokens, segments, &mut memories)
    }

    fn context_length(&self) -> Option<usize> {
        Some(self.config.context)
    }

    fn vocab(&self) -> usize {
        self.config.vocab
    }
}

/// A value as the arithmetic of a checkpoint's dtype would hold it.
fn round_to(dtype: Dtype, value: f32) -> f32 {
    let mut bytes = vec![0; dtype.format().block_bytes()];
    let mut rounded = [0.0];
    dtype.format().encode_row(&[value], &mut bytes);
    dtype.format().decode_row(&bytes, &mut rounded);
    rounded[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedding_scale_is_rounded_as_the_checkpoint_rounds() {
        for (width, scale) in [(2048, 45.25), (3072, 55.5), (2304, 48.0), (3584, 59.75), (4608, 68.0)] {
            assert_eq!(round_to(Dtype::Bf16, (width as f32).sqrt()), scale, "width {width}");
        }
        assert_eq!(round_to(Dtype::F32, 3072f32.sqrt()), 3072f32.sqrt());
    }

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
            let tensors = DecoderConfig::preset(name).unwrap().tensors(&device);
            let sum: u64 = tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum();
            assert_eq!(sum, parameters, "{name}");
        }
    }
}
