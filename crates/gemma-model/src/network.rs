//! What a family brings: its network, and the names by which a checkpoint knows it.

use std::path::Path;

use burn::tensor::Device;
use gemma_generate::{CausalModel, TokenId};
use gemma_nn::{
    Adapt, Adapted, ComputePrecision, ParameterList, RandomSource, RandomWeights, Saver, Source, WithLora,
    WithPrecision,
};
use gemma_tokenizer::Family;
use gemma_weights::{AdapterFactors, Checkpoint, Dtype, Loader, TensorSpec};

use crate::{Error, LoadOptions, OnLoad, WeightSummary};

/// A network that checkpoints of one architecture describe: its configuration, loading and saving. How it computes is
/// [`CausalModel`].
pub trait Network: CausalModel + Sized {
    /// What `config.json` says, resolved.
    type Config;

    /// Whose control tokens a tokenizer file of this network has, where the file leaves their names out.
    const FAMILY: Family;

    /// Files that may lie beside the weights and belong to the model, such as weights of another program's format: a
    /// converted model has them too.
    const COMPANIONS: &'static [&'static str] = &[];

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// When it is not JSON, lacks a field, names another architecture, or a value cannot be right or is not
    /// supported; the message names field and value.
    fn config_from_json(text: &[u8]) -> Result<Self::Config, Error>;

    /// The `config.json` from which HF transformers builds the same network with parameters of `dtype`.
    fn config_to_json(config: &Self::Config, dtype: Dtype) -> serde_json::Value;

    /// Tokens that end a text, from `config.json`.
    fn eos(config: &Self::Config) -> &[TokenId];

    /// Builds the network from a source of parameters; `dtype` is that of the checkpoint.
    fn load(source: &mut dyn Source, config: &Self::Config, dtype: Dtype) -> Self;

    /// Hands every parameter to a saver, under the names it was loaded by.
    fn save(&self, saver: &mut dyn Saver);

    /// The configuration it was built from.
    fn config(&self) -> &Self::Config;

    /// The device that holds the parameters.
    fn device(&self) -> Device;

    /// Applies load options to a configuration. A network without the choice that an option offers refuses it.
    ///
    /// # Errors
    /// [`Error::InclusiveWindow`]
    fn configure(config: Self::Config, options: &LoadOptions) -> Result<Self::Config, Error> {
        if options.inclusive_window { Err(Error::InclusiveWindow) } else { Ok(config) }
    }

    /// Whether a checkpoint may hold a tensor of this name that no layer reads: the tied head and the rotary
    /// frequencies, which some files repeat.
    fn is_ignored(name: &str) -> bool {
        name == "lm_head.weight" || name.ends_with(".rotary_emb.inv_freq")
    }

    /// Name and shape of every tensor that a checkpoint of this configuration holds.
    fn tensors(config: &Self::Config, device: &Device) -> Vec<TensorSpec> {
        let mut parameter_list = ParameterList::new(device);
        Self::load(&mut parameter_list, config, Dtype::F32);
        TensorSpec::list(parameter_list)
    }

    /// [`Network::tensors`] under the names that this checkpoint has for them.
    fn tensors_of(_checkpoint: &Checkpoint, config: &Self::Config, device: &Device) -> Vec<TensorSpec> {
        Self::tensors(config, device)
    }

    /// Compares the tensors of a checkpoint, [`prepared`](Self::prepared), with those that the configuration asks for.
    ///
    /// # Errors
    /// [`gemma_weights::Error::Tensors`] or [`gemma_weights::Error::NoTensors`] when they differ.
    fn check(checkpoint: &Checkpoint, config: &Self::Config, device: &Device) -> Result<(), Error> {
        Ok(checkpoint.check(&Self::tensors_of(checkpoint, config, device), &Self::is_ignored)?)
    }

    /// Builds the network of a checkpoint, without a tokenizer.
    ///
    /// # Errors
    /// When the checkpoint is not a sound one of this architecture.
    fn open(checkpoint: &Checkpoint, options: &LoadOptions, device: &Device) -> Result<Self, Error> {
        Self::open_with(checkpoint, options, device, &mut |_, _| {})
    }

    /// [`Network::open`], reporting progress.
    ///
    /// # Errors
    /// As [`Network::open`].
    fn open_with(
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        device: &Device,
        progress: OnLoad<'_>,
    ) -> Result<Self, Error> {
        struct Unchanged;
        impl Adapt for Unchanged {}
        Self::open_changed(checkpoint, options, device, progress, Unchanged)
    }

    /// [`Network::open_with`], from a source of parameters that is changed on the way: how a checkpoint is opened for
    /// training.
    ///
    /// # Errors
    /// As [`Network::open`].
    fn open_changed(
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        device: &Device,
        progress: OnLoad<'_>,
        change: impl Adapt,
    ) -> Result<Self, Error> {
        let config = Self::configure(Self::config_of(checkpoint)?, options)?;
        let checkpoint = &Self::prepared(checkpoint);
        Self::check(checkpoint, &config, device)?;
        let tensors = Self::tensors_of(checkpoint, &config, device);
        let mut factors = AdapterFactors::new(&options.adapters, &options.request_adapters, device);
        factors.check(&tensors)?;
        let mut loader = Loader::new(checkpoint, options.precision, device).on_progress(Box::new(progress));
        let mut with_lora = Adapted::with(&mut loader, WithLora::new(|name, _, _| factors.find(name)));
        let mut source = WithPrecision::new(&mut with_lora, options.compute_precision());
        let network = Self::load_from(&mut Adapted::with(&mut source, change), checkpoint, &config);
        drop(with_lora);
        factors.finish()?;
        Ok(network)
    }

    /// Builds the network from a source that is asked by the names of a checkpoint, which may be laid out otherwise than
    /// the releases.
    fn load_from(source: &mut dyn Source, checkpoint: &Checkpoint, config: &Self::Config) -> Self {
        Self::load(source, config, checkpoint.dtype())
    }

    /// The configuration of a checkpoint.
    ///
    /// # Errors
    /// When the checkpoint is a vocabulary without weights, when `config.json` is missing, or as
    /// [`Network::config_from_json`].
    fn config_of(checkpoint: &Checkpoint) -> Result<Self::Config, Error> {
        Self::config_from_json(&config_file(checkpoint)?)
    }

    /// The checkpoint with the tensor names that [`load`](Self::load) asks for, where files have several layouts.
    fn prepared(checkpoint: &Checkpoint) -> Checkpoint {
        checkpoint.clone()
    }

    /// A network of random parameters: trainable ones to begin a training with, or packed ones that have the size and
    /// speed of a real model. Constants are rounded as in a bf16 checkpoint.
    fn random(config: &Self::Config, weights: RandomWeights, seed: u64, device: &Device) -> Self {
        Self::random_with(config, weights, ComputePrecision::default(), seed, device)
    }

    /// [`Network::random`], computing with another compute_precision.
    fn random_with(
        config: &Self::Config,
        weights: RandomWeights,
        compute_precision: ComputePrecision,
        seed: u64,
        device: &Device,
    ) -> Self {
        let mut source = RandomSource::new(weights, seed, device);
        Self::load(&mut WithPrecision::new(&mut source, compute_precision), config, Dtype::Bf16)
    }

    /// How many weights there are, and what they take.
    fn weight_summary(&self) -> WeightSummary {
        let mut summary = WeightSummary::default();
        self.save(&mut summary);
        summary
    }

    /// Bytes that generating one token reads: all weights once.
    fn weight_bytes(&self) -> usize {
        self.weight_summary().bytes
    }
}

/// The content of a checkpoint's `config.json`.
///
/// # Errors
/// [`Error::MissingFile`], or when it cannot be read, or when the checkpoint is a vocabulary without weights.
pub fn config_file(checkpoint: &Checkpoint) -> Result<Vec<u8>, Error> {
    let missing = || Error::MissingFile {
        folder: checkpoint.path().unwrap_or(Path::new("(embedded)")).to_owned(),
        file: "config.json",
    };
    checkpoint.require_tensors()?;
    checkpoint.file("config.json")?.ok_or_else(missing)
}
