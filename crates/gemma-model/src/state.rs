//! What a model remembers of a sequence, kept in a file and taken up again exactly.
//!
//! A state file is a safetensors file. Its tensors are what the network's memory consists of, in f32; its metadata say
//! what they are: the version of this format, the model they belong to (a digest of its configuration and of a sample
//! of every parameter), how many tokens were read and which wait to be read, and a digest of all that, so that damage
//! is found. A file of another model is refused: its numbers would mean something else.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use gemma_generate::{Sequence, TokenId};
use gemma_nn::{Attention, AttentionSpec, KvCache, Saver, Weight};
use gemma_weights::{Dtype, SavedTensor, StoredTensor, read_safetensors_with_metadata, save_safetensors};
use sha2::{Digest, Sha256};

use crate::{Error, Network, StateFault};

/// What the metadata of every state file say it is.
const FORMAT: &str = "gemma-burn-state";
/// The version of the format that is written, and the only one that is read.
const VERSION: &str = "1";
/// More tokens than any sequence has; the kernels count positions in 31 bits.
const MOST_TOKENS: usize = 1 << 30;
/// Values of a parameter that count for the digest of a model.
const SAMPLE: usize = 256;

/// Keeps a sequence in `file`: what was read, and which tokens wait to be read. A file that is there is replaced, at
/// once or not at all.
///
/// # Errors
/// When the file cannot be written, or memories of this network cannot be kept.
pub fn save_state<N: Network>(network: &N, sequence: &Sequence<N::Memory>, file: &Path) -> Result<(), Error> {
    let Some(tensors) = network.memory_tensors(sequence.memory()) else {
        return Err(fault(file, StateFault::Unsupported));
    };
    let position = sequence.position().to_string();
    let unread = serde_json::to_string(sequence.unread()).expect("numbers are written");
    let model = fingerprint(network);
    let described = tensors.iter().map(|(name, _, shape, bytes)| (name.as_str(), shape.as_slice(), &bytes[..]));
    let checksum = checksum(&model, &position, &unread, described);
    let metadata = [
        ("format", FORMAT.to_owned()),
        ("version", VERSION.to_owned()),
        ("model", model),
        ("position", position),
        ("unread", unread),
        ("checksum", checksum),
    ];
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Ok(save_safetensors(file, metadata, &mut tensors.into_iter())?)
}

/// Takes up a sequence that [`save_state`] kept, on the device of `network`.
///
/// # Errors
/// When the file cannot be read, is damaged, or belongs to another model.
pub fn load_state<N: Network>(network: &N, file: &Path) -> Result<Sequence<N::Memory>, Error> {
    let (tensors, metadata) = read_safetensors_with_metadata(file)?;
    let field = |name: &str| metadata.get(name).map_or("", String::as_str);
    if field("format") != FORMAT {
        return Err(fault(file, StateFault::NotAState));
    }
    if field("version") != VERSION {
        let version = field("version").chars().take(20).collect();
        return Err(fault(file, StateFault::Version { version }));
    }
    let described = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice(), &tensor.bytes[..]));
    if field("checksum") != checksum(field("model"), field("position"), field("unread"), described) {
        return Err(fault(file, StateFault::Damaged));
    }
    if field("model") != fingerprint(network) {
        return Err(fault(file, StateFault::OtherModel));
    }
    let damaged = || fault(file, StateFault::Damaged);
    let position = field("position").parse().ok().filter(|position| *position <= MOST_TOKENS).ok_or_else(damaged)?;
    let unread: Vec<TokenId> = serde_json::from_str(field("unread")).map_err(|_| damaged())?;
    if unread.iter().any(|token| *token as usize >= network.vocab()) {
        return Err(damaged());
    }
    let memory = network.memory_of_tensors(position, &StateTensors { tensors }).ok_or_else(damaged)?;
    let mut sequence = Sequence::after(memory, position);
    sequence.push(&unread);
    Ok(sequence)
}

fn fault(file: &Path, fault: StateFault) -> Error {
    Error::State { file: file.to_owned(), fault }
}

/// The tensors of a state file, from which a network makes a memory.
#[derive(Debug)]
pub struct StateTensors {
    tensors: BTreeMap<String, StoredTensor>,
}

impl StateTensors {
    /// The tensor of this name and shape, on `device`; `None` when the file has no such tensor.
    pub fn get<const D: usize>(&self, name: &str, shape: [usize; D], device: &Device) -> Option<Tensor<D>> {
        let tensor =
            self.tensors.get(name).filter(|tensor| tensor.shape == shape && tensor.format == Dtype::F32.format())?;
        Some(Tensor::from_data(TensorData::new(tensor.to_f32(), shape), device))
    }

    /// The first axis of a tensor.
    pub fn len_of(&self, name: &str) -> Option<usize> {
        self.tensors.get(name)?.shape.first().copied()
    }

    /// How many tensors there are.
    pub fn count(&self) -> usize {
        self.tensors.len()
    }

    /// The cache of a layer that [`cache_tensors`] kept under `name`, after `len` tokens.
    pub fn cache(&self, name: &str, layer: &Attention, len: usize, device: &Device) -> Option<KvCache> {
        let AttentionSpec { kv_heads, head_dim, .. } = *layer.spec();
        let keys = format!("{name}.keys");
        let buffers = match self.len_of(&keys) {
            None => None,
            Some(slots) => {
                let shape = [slots, kv_heads, head_dim];
                Some([self.get(&keys, shape, device)?, self.get(&format!("{name}.values"), shape, device)?])
            }
        };
        layer.restore_cache(len, buffers)
    }
}

/// A tensor of a state.
pub fn state_tensor<const D: usize>(name: String, tensor: &Tensor<D>) -> SavedTensor {
    let shape = tensor.dims().to_vec();
    let values: Vec<f32> = tensor.clone().into_data().try_into_vec().expect("states are f32");
    (name, Dtype::F32, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

/// The tensors of a cache, as f32 whatever its precision.
pub fn cache_tensors(name: &str, cache: &KvCache) -> Vec<SavedTensor> {
    let tensors = |[keys, values]: [Tensor<3>; 2]| {
        vec![state_tensor(format!("{name}.keys"), &keys), state_tensor(format!("{name}.values"), &values)]
    };
    cache.values().map(tensors).unwrap_or_default()
}

/// Digest of everything a state file says.
fn checksum<'a>(
    model: &str,
    position: &str,
    unread: &str,
    tensors: impl Iterator<Item = (&'a str, &'a [usize], &'a [u8])>,
) -> String {
    let mut digest = Sha256::new();
    let mut add = |part: &[u8]| {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    };
    for part in [FORMAT, VERSION, model, position, unread] {
        add(part.as_bytes());
    }
    // the order of a file is not that of the names
    let mut tensors: Vec<_> = tensors.collect();
    tensors.sort_unstable_by_key(|(name, ..)| *name);
    for (name, shape, bytes) in tensors {
        add(name.as_bytes());
        add(format!("{shape:?}").as_bytes());
        add(bytes);
    }
    hex(digest)
}

/// Digest of a model: its configuration, and a sample of each parameter as it is held.
fn fingerprint<N: Network>(network: &N) -> String {
    struct Samples(Sha256);
    impl Samples {
        fn add(&mut self, name: &str, values: Tensor<1>) {
            let count = values.dims()[0].min(SAMPLE);
            let values: Vec<f32> = values.narrow(0, 0, count).into_data().try_into_vec().expect("parameters are f32");
            self.0.update(name.as_bytes());
            values.iter().for_each(|value| self.0.update(value.to_le_bytes()));
        }
    }
    impl Saver for Samples {
        fn matrix(&mut self, name: &str, weight: &Weight) {
            let [rows, cols] = weight.shape();
            let row = weight.rows(&[rows as u32 / 2]).reshape([cols]);
            self.add(name, row);
        }
        fn vector(&mut self, name: &str, values: &Param<Tensor<1>>) {
            self.add(name, values.val());
        }
        fn tensor(&mut self, name: &str, _shape: &[usize], values: &Param<Tensor<1>>) {
            self.add(name, values.val());
        }
    }
    let mut samples = Samples(Sha256::new());
    let config = N::config_to_json(network.config(), Dtype::F32);
    // sorted, whatever order this build's JSON objects have
    let fields: BTreeMap<&String, String> =
        config.as_object().into_iter().flatten().map(|(name, value)| (name, value.to_string())).collect();
    samples.0.update(format!("{fields:?}").as_bytes());
    network.save(&mut samples);
    hex(samples.0)
}

fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
