//! The network: Gemma 3's layers with every token seeing both ways, a mean over the tokens, two dense layers.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use gemma::{CausalModel, Decoder, DecoderConfig, Network};
use gemma_model::{LoadOptions, OnLoad};
use gemma_nn::{ParameterList, Projection, Saver, Segment, Source, WithPrecision};
use gemma_tokenizer::TokenId;
use gemma_weights::{Checkpoint, Dtype, Loader, TensorSpec};

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

    /// Builds the network of a checkpoint whose dense layers are called by [`dense_name`].
    pub(crate) fn open(
        checkpoint: &Checkpoint,
        config: &EmbeddingConfig,
        options: &LoadOptions,
        device: &Device,
        progress: OnLoad<'_>,
    ) -> Result<Self, Error> {
        checkpoint.check(&Self::tensors(config, device), &Decoder::is_ignored)?;
        let mut loader = Loader::new(checkpoint, options.precision, device).on_progress(Box::new(progress));
        let mut source = WithPrecision::new(&mut loader, options.compute_precision());
        Ok(Self::load(&mut source, config, checkpoint.dtype()))
    }

    /// Name and shape of every tensor.
    pub fn tensors(config: &EmbeddingConfig, device: &Device) -> Vec<TensorSpec> {
        let mut list = ParameterList::new(device);
        Self::load(&mut list, config, Dtype::F32);
        TensorSpec::list(list)
    }

    /// Hands every parameter to a saver, under the names it was loaded by.
    pub fn save(&self, saver: &mut dyn Saver) {
        self.transformer.save(saver);
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
        let rows = self.transformer.uncached_hidden_states(self.transformer.embed(tokens), segments);
        let mut first = 0;
        let means = segments.iter().map(|segment| {
            let mean = rows.clone().narrow(0, first, segment.len).mean_dim(0);
            first += segment.len;
            mean
        });
        Tensor::cat(means.collect(), 0)
    }

    /// One vector for each segment, `[segments, dimensions]`, not normalised.
    ///
    /// # Panics
    /// As [`pool`](Self::pool).
    pub fn forward(&self, tokens: &[TokenId], segments: &[Segment]) -> Tensor<2> {
        self.dense.iter().fold(self.pool(tokens, segments), |x, layer| layer.forward(x))
    }
}

/// The name of a dense layer: sentence-transformers counts modules, of which transformer and pooling come first.
pub(crate) fn dense_name(index: usize) -> String {
    format!("{}_Dense.linear", index + 2)
}
