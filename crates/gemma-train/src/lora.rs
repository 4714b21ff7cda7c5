//! Opening a checkpoint for training: with new LoRA factors, with those of an adapter, or whole.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use gemma_model::{BlockStack, Blocks, Error, LoadOptions, OnLoad};
use gemma_nn::{LoraFactors, Unpack, WithLora};
use gemma_weights::{Adapter, AdapterConfig, AdapterTensor, Checkpoint};

use crate::Trainer;
use crate::gradients::NamedValues;
use crate::random::Random;

/// The projections that LoRA changes where nothing else is said: all of a decoder's, those of RecurrentGemma's recurrent
/// blocks included.
pub const TARGETS: [&str; 10] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "linear_x", "linear_y", "linear_out"];

/// Opens a checkpoint with new factors beside the projections that `config` names, everything else frozen; see
/// [`with_new_factors`].
///
/// # Errors
/// As [`gemma_model::Network::open`], and when `config` names no projection.
pub fn open_with_new_factors<N: Blocks>(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    config: &AdapterConfig,
    seed: u64,
    device: &Device,
    progress: OnLoad<'_>,
) -> Result<N, Error> {
    with_new_factors(config, seed, device, |change| N::open_changed(checkpoint, options, device, progress, change))
}

/// What `open` makes of a source with new factors beside the projections that `config` names. `A` is drawn evenly between
/// `±1/√in` (Kaiming with a = √5, as PEFT does), `B` is zero, so that the network begins as it is.
///
/// # Errors
/// As `open`, and when `config` names no projection.
pub fn with_new_factors<T, E: From<Error>>(
    config: &AdapterConfig,
    seed: u64,
    device: &Device,
    open: impl FnOnce(WithLora<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let device_of_factors = device.clone().autodiff();
    let mut count = 0;
    let change = WithLora::new(|name, inputs, outputs| {
        if !config.targets.contains(name) || is_of_an_encoder(name) {
            return Vec::new();
        }
        count += 1;
        let rank = config.rank_of(name);
        let bound = (inputs as f32).powf(-0.5);
        let mut random = Random::of(seed, name);
        let a: Vec<f32> = (0..rank * inputs).map(|_| bound * (2.0 * random.unit() - 1.0)).collect();
        let a = Tensor::<2>::from_data(TensorData::new(a, [rank, inputs]), &device_of_factors);
        let b = Tensor::<2>::zeros([outputs, rank], &device_of_factors);
        vec![LoraFactors::new(Param::from_tensor(a), Param::from_tensor(b), config.scale_of(name))]
    });
    let opened = open(change)?;
    if count == 0 { Err(Error::NoTargets.into()) } else { Ok(opened) }
}

/// An image encoder is not trained: what it makes of an image is an input.
fn is_of_an_encoder(name: &str) -> bool {
    ["vision_tower.", "multi_modal_projector."].iter().any(|part| name.contains(part))
}

/// Opens a checkpoint with the factors of an adapter, which can be trained on.
///
/// # Errors
/// As [`gemma_model::Network::open`], and when the adapter does not fit.
pub fn open_with_factors<N: Blocks>(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    adapter: &Adapter,
    device: &Device,
    progress: OnLoad<'_>,
) -> Result<N, Error> {
    check_adapter(adapter)?;
    let prepared = N::prepared(checkpoint);
    adapter.check(&N::tensors_of(&prepared, &N::config_of(checkpoint)?, device))?;
    let autodiff = device.clone().autodiff();
    let change = WithLora::new(|name, _, _| adapter.factors(name, &autodiff).into_iter().collect());
    N::open_changed(checkpoint, options, device, progress, change)
}

/// Whether losses can be computed with an adapter: the loss is computed from the head's matrix alone.
///
/// # Errors
/// [`Error::HeadFactors`]
pub fn check_adapter(adapter: &Adapter) -> Result<(), Error> {
    if adapter.modules().any(|module| module.ends_with("lm_head")) { Err(Error::HeadFactors) } else { Ok(()) }
}

/// Opens a checkpoint with every parameter in f32 and trainable.
///
/// # Errors
/// As [`gemma_model::Network::open`].
pub fn open_whole<N: Blocks>(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    device: &Device,
    progress: OnLoad<'_>,
) -> Result<N, Error> {
    N::open_changed(checkpoint, options, device, progress, Unpack)
}

/// The factors of a training, as a PEFT folder takes them.
pub fn factors<M: BlockStack + burn::module::Module>(trainer: &Trainer<M>) -> Vec<AdapterTensor> {
    pairs(trainer.values())
}

fn pairs(values: &NamedValues) -> Vec<AdapterTensor> {
    let prefix = crate::gradients::PEFT_PREFIX;
    values
        .iter()
        .filter_map(|(name, a)| {
            let module = name.strip_prefix(prefix)?.strip_suffix(".lora_A.weight")?;
            let b = values.get(&format!("{prefix}{module}.lora_B.weight"))?;
            let shape = |shape: &[usize]| [shape[0], shape[1]];
            Some((module.to_owned(), shape(&a.shape), a.values.clone(), shape(&b.shape), b.values.clone()))
        })
        .collect()
}
