//! The network: Gemma 3's layers with every token seeing both ways, a mean over the tokens, two dense layers.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use gemma::{CausalModel, Decoder, DecoderConfig, Network};
use gemma_model::{BlockStack, Encoder, LoadOptions, OnLoad, Weight};
use gemma_nn::{
    Adapt, Adapted, LoraFactors, ParameterList, Projection, Saver, Segment, Source, WithLora, WithPrecision,
};
use gemma_tokenizer::TokenId;
use gemma_weights::{AdapterFactors, Checkpoint, Dtype, Loader, TensorSpec};

use crate::Error;

/// The sizes of an embedding model.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingConfig {
    /// The layers.
    pub text: DecoderConfig,
    /// The dense layers behind the mean, `[out, in]` each.
    pub dense: Vec<[usize; 2]>,
    /// The longest text, in tokens.
    pub max_tokens: usize,
}

impl EmbeddingConfig {
    /// Values of an embedding before it is cut.
    pub fn dimensions(&self) -> usize {
        self.dense.last().map_or(self.text.hidden_size, |[outputs, _]| *outputs)
    }
}

/// Gemma 3's layers, a mean over the tokens, dense layers (Vera et al. 2025, arXiv:2509.20354, section 2.1).
#[derive(Module, Debug)]
pub struct EmbeddingNetwork {
    transformer: Decoder,
    dense: Vec<Projection>,
    #[module(skip)]
    config: EmbeddingConfig,
}

impl EmbeddingNetwork {
    fn load(source: &mut dyn Source, config: &EmbeddingConfig, dtype: Dtype) -> Self {
        let transformer = Decoder::load(source, &config.text, dtype);
        let layer = |(index, [outputs, inputs]): (usize, &[usize; 2])| {
            Projection::load(source, &dense_name(index), *inputs, *outputs, false)
        };
        Self { transformer, dense: config.dense.iter().enumerate().map(layer).collect(), config: config.clone() }
    }

    /// Builds the network of a checkpoint whose dense layers are called by [`dense_name`], from a source of parameters that
    /// is changed on the way.
    pub(crate) fn open(
        checkpoint: &Checkpoint,
        config: &EmbeddingConfig,
        options: &LoadOptions,
        device: &Device,
        progress: OnLoad<'_>,
        change: impl Adapt,
    ) -> Result<Self, Error> {
        let tensors = Self::tensors(config, device);
        checkpoint.check(&tensors, &Decoder::is_ignored)?;
        options.adapters.iter().try_for_each(|adapter| adapter.check(&tensors))?;
        let mut loader = Loader::new(checkpoint, options.precision, device).on_progress(Box::new(progress));
        let mut factors = AdapterFactors::new(&options.adapters, &[], device);
        let mut with_lora = Adapted::with(&mut loader, WithLora::new(|name, _, _| factors.find(name)));
        let mut source = WithPrecision::new(&mut with_lora, options.compute_precision());
        let network = Self::load(&mut Adapted::with(&mut source, change), config, checkpoint.dtype());
        drop(with_lora);
        factors.finish()?;
        Ok(network)
    }

    /// Name and shape of every tensor.
    pub fn tensors(config: &EmbeddingConfig, device: &Device) -> Vec<TensorSpec> {
        let mut list = ParameterList::new(device);
        Self::load(&mut list, config, Dtype::F32);
        TensorSpec::list(list)
    }

    /// Hands every parameter to a saver, under the names that a sentence-transformers folder has for them.
    pub fn save(&self, saver: &mut dyn Saver) {
        self.transformer.save(&mut Bare(saver));
        for (index, layer) in self.dense.iter().enumerate() {
            layer.save(saver, &dense_name(index));
        }
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &EmbeddingConfig {
        &self.config
    }

    /// The mean of the last norm's rows over the tokens of each segment, `[segments, hidden_size]`. `<bos>`, prefix and
    /// `<eos>` count like all others.
    ///
    /// # Panics
    /// When a segment is empty, or tokens and segments do not match.
    pub fn pool(&self, tokens: &[TokenId], segments: &[Segment]) -> Tensor<2> {
        means(self.hidden_states(tokens, segments), segments)
    }

    /// One vector for each segment, `[segments, dimensions]`, not normalised.
    ///
    /// # Panics
    /// As [`pool`](Self::pool).
    pub fn forward(&self, tokens: &[TokenId], segments: &[Segment]) -> Tensor<2> {
        self.vectors(self.hidden_states(tokens, segments), segments)
    }

    /// The rows after the last norm, `[tokens, hidden_size]`.
    fn hidden_states(&self, tokens: &[TokenId], segments: &[Segment]) -> Tensor<2> {
        self.transformer.uncached_hidden_states(self.transformer.embed(tokens), segments)
    }
}

/// The mean of the rows of each segment.
fn means(rows: Tensor<2>, segments: &[Segment]) -> Tensor<2> {
    let mut first = 0;
    let means = segments.iter().map(|segment| {
        let mean = rows.clone().narrow(0, first, segment.len).mean_dim(0);
        first += segment.len;
        mean
    });
    Tensor::cat(means.collect(), 0)
}

impl BlockStack for EmbeddingNetwork {
    fn blocks(&self) -> usize {
        self.transformer.blocks()
    }

    fn embed_inputs(&self, tokens: &[TokenId], images: &[Tensor<2>]) -> Tensor<2> {
        self.transformer.embed_inputs(tokens, images)
    }

    fn forward_block(&self, index: usize, x: Tensor<2>, segments: &[Segment]) -> Tensor<2> {
        self.transformer.forward_block(index, x, segments)
    }

    fn forward_norm(&self, x: Tensor<2>) -> Tensor<2> {
        self.transformer.forward_norm(x)
    }

    fn save_parameters(&self, saver: &mut dyn Saver) {
        self.save(saver);
    }
}

impl Encoder for EmbeddingNetwork {
    fn vectors(&self, hidden_states: Tensor<2>, segments: &[Segment]) -> Tensor<2> {
        self.dense.iter().fold(means(hidden_states, segments), |x, layer| layer.forward(x))
    }
}

/// A saver that is given a decoder's names and hands on those of a bare transformer: `layers.0`, not `model.layers.0`.
struct Bare<'a>(&'a mut dyn Saver);

/// What a bare transformer leaves out.
fn bare(name: &str) -> &str {
    name.strip_prefix("model.").unwrap_or(name)
}

impl Saver for Bare<'_> {
    fn matrix(&mut self, name: &str, weight: &Weight) {
        self.0.matrix(bare(name), weight);
    }

    fn vector(&mut self, name: &str, values: &Param<Tensor<1>>) {
        self.0.vector(bare(name), values);
    }

    fn tensor(&mut self, name: &str, shape: &[usize], values: &Param<Tensor<1>>) {
        self.0.tensor(bare(name), shape, values);
    }

    fn lora(&mut self, name: &str, factors: &LoraFactors) {
        self.0.lora(bare(name), factors);
    }
}

/// The name of a dense layer: sentence-transformers counts modules, of which transformer and pooling come first.
pub(crate) fn dense_name(index: usize) -> String {
    format!("{}_Dense.linear", index + 2)
}
