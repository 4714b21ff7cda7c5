//! The network: embed, blocks, norm, head.

use crate::block::ResidualBlock;
use crate::config::{GriffinConfig, Temporal};
use crate::memory::{LayerMemory, Memory, Recurrent};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use gemma_generate::CausalModel;
use gemma_model::{Error, LoadOptions, Network, StateTensors, cache_tensors, state_tensor};
use gemma_nn::{Embedder, Retention, RmsNorm, RopeTable, Saver, Segment, Source, last_rows, softcap};
use gemma_tokenizer::{Family, TokenId};
use gemma_weights::{Dtype, SavedTensor, catalogue::Shape};

/// Griffin (De et al. 2024, arXiv:2402.19427), the network of RecurrentGemma: most blocks carry a state from token to
/// token, every third looks at the last few tokens. What it remembers of a sequence does not grow with it.
#[derive(Module, Debug)]
pub struct Griffin {
    embed_tokens: Embedder,
    layers: Vec<ResidualBlock>,
    final_norm: RmsNorm,
    #[module(skip)]
    config: GriffinConfig,
}

impl Griffin {
    /// From embeddings to the last norm, `[tokens, hidden_size]` each.
    ///
    /// # Panics
    /// When segments, memories and `x` do not match.
    pub fn hidden_states(&self, mut x: Tensor<2>, segments: &[Segment], memories: &mut [&mut Memory]) -> Tensor<2> {
        assert_eq!(segments.len(), memories.len(), "one memory per segment");
        for (segment, memory) in segments.iter().zip(memories.iter_mut()) {
            assert_eq!(segment.start, memory.position, "a segment continues where its memory ends");
            memory.position += segment.len;
        }
        let positions: Vec<usize> = segments.iter().flat_map(Segment::positions).collect();
        let rope = RopeTable::new(self.config.rope, &positions, &x.device());
        for (index, layer) in self.layers.iter().enumerate() {
            let memories = memories.iter_mut().map(|memory| &mut memory.layers[index]).collect();
            x = layer.forward(x, &rope, segments, memories);
        }
        self.final_norm.forward(x)
    }

    /// Memory with this much of the windows.
    fn memory(&self, window: impl Fn(Retention) -> Retention) -> Memory {
        let layer = |block: &ResidualBlock| match block.attention() {
            None => LayerMemory::Recurrent(Recurrent::default()),
            Some(attention) => LayerMemory::Attention(attention.new_cache(&window)),
        };
        Memory { position: 0, layers: self.layers.iter().map(layer).collect() }
    }
}

impl Network for Griffin {
    type Config = GriffinConfig;

    const FAMILY: Family = Family::RecurrentGemma;

    fn config_from_json(text: &[u8]) -> Result<GriffinConfig, Error> {
        GriffinConfig::from_json(text)
    }

    fn config_from_shape(shape: &Shape) -> Option<GriffinConfig> {
        GriffinConfig::from_shape(shape)
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
            config: config.clone(),
        }
    }

    fn save(&self, saver: &mut dyn Saver) {
        self.embed_tokens.save(saver, "model.embed_tokens");
        for (index, layer) in self.layers.iter().enumerate() {
            layer.save(saver, &format!("model.layers.{index}"));
        }
        self.final_norm.save(saver, "model.final_norm");
    }

    fn config(&self) -> &GriffinConfig {
        &self.config
    }

    fn device(&self) -> Device {
        self.final_norm.weight.val().device()
    }

    fn read_hidden(&self, tokens: &[TokenId], segments: &[Segment], memories: &mut [&mut Memory]) -> Tensor<2> {
        self.hidden_states(self.embed_tokens.embed(tokens), segments, memories)
    }

    fn logits(&self, hidden_states: Tensor<2>) -> Tensor<2> {
        softcap(self.embed_tokens.logits(hidden_states), self.config.final_softcap)
    }

    fn memory_bytes(memory: &Memory) -> usize {
        memory.bytes_len()
    }

    fn configure(config: GriffinConfig, options: &LoadOptions) -> Result<GriffinConfig, Error> {
        Ok(if options.inclusive_window { config.with_inclusive_window() } else { config })
    }

    fn memory_tensors(&self, memory: &Memory) -> Option<Vec<SavedTensor>> {
        let of = |(index, layer): (usize, &LayerMemory)| {
            let name = format!("layers.{index}");
            match layer {
                LayerMemory::Attention(cache) => cache_tensors(&name, cache),
                LayerMemory::Recurrent(state) => [("hidden", &state.hidden), ("tail", &state.tail)]
                    .into_iter()
                    .filter_map(|(part, tensor)| Some(state_tensor(format!("{name}.{part}"), tensor.as_ref()?)))
                    .collect(),
            }
        };
        Some(memory.layers.iter().enumerate().flat_map(of).collect())
    }

    fn memory_of_tensors(&self, position: usize, tensors: &StateTensors) -> Option<Memory> {
        let device = self.device();
        let layer = |(index, (block, temporal)): (usize, (&ResidualBlock, &Temporal))| {
            let name = format!("layers.{index}");
            Some(match temporal {
                Temporal::Attention(_) => {
                    LayerMemory::Attention(tensors.cache(&name, block.attention()?, position, &device)?)
                }
                Temporal::Recurrent(_) if position == 0 => LayerMemory::Recurrent(Recurrent::default()),
                Temporal::Recurrent(spec) => {
                    let hidden = Some(tensors.get(&format!("{name}.hidden"), [1, spec.channels], &device)?);
                    let tail = match spec.taps - 1 {
                        0 => None,
                        past => Some(tensors.get(&format!("{name}.tail"), [past, spec.channels], &device)?),
                    };
                    LayerMemory::Recurrent(Recurrent { hidden, tail })
                }
            })
        };
        let blocks = self.layers.iter().zip(self.config.blocks.iter().map(|block| &block.temporal));
        Some(Memory { position, layers: blocks.enumerate().map(layer).collect::<Option<_>>()? })
    }
}

impl CausalModel for Griffin {
    type Memory = Memory;

    fn new_memory(&self) -> Memory {
        self.memory(|retention| retention)
    }

    fn read(&self, tokens: &[TokenId], segments: &[Segment], memories: &mut [&mut Memory]) -> Tensor<2> {
        let x = self.read_hidden(tokens, segments, memories);
        self.logits(last_rows(x, segments))
    }

    fn read_all(&self, tokens: &[TokenId], segments: &[Segment], memories: &mut [&mut Memory]) -> Tensor<2> {
        self.logits(self.read_hidden(tokens, segments, memories))
    }

    fn score(&self, tokens: &[TokenId], segments: &[Segment]) -> Tensor<2> {
        let mut memories: Vec<Memory> = segments.iter().map(|_| self.memory(|_| Retention::Nothing)).collect();
        let mut memories: Vec<&mut Memory> = memories.iter_mut().collect();
        self.read_all(tokens, segments, &mut memories)
    }

    /// No limit: the memory does not grow. (The releases were trained on texts of 8192 tokens.)
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
