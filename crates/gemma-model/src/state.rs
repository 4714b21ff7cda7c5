//! State files: the cache of a sequence, kept in a file and restored exactly.
//!
//! A state file is a safetensors file. Its tensors are those of the cache, in f32; its metadata say
//! what they are: the version of this format, the model they belong to (a digest of its configuration and of a sample
//! of every parameter), how many tokens were read and which wait to be read, and a digest of all that, so that damage
//! is found. A file of another model is refused: its numbers would mean something else.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Param;
use burn::tensor::Tensor;
use gemma_generate::{Cache, CacheTensors, Sequence, TokenId};
use gemma_nn::{LoraFactors, Saver, Weight};
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

/// Keeps a sequence in `file`: its cache, and its pending tokens. A file that is there is replaced, at
/// once or not at all.
///
/// # Errors
/// When the file cannot be written, or the disk is full.
pub fn save_state<N: Network>(network: &N, sequence: &Sequence<N::Cache>, file: &Path) -> Result<(), Error> {
    let tensors = sequence.cache().tensors();
    let tensors: Vec<SavedTensor> = tensors.iter().map(saved_tensor).collect();
    let position = sequence.position().to_string();
    let unread = serde_json::to_string(sequence.pending()).expect("numbers are written");
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

/// Whether a file is one that [`save_state`] wrote, of whichever model.
pub fn is_state(file: &Path) -> bool {
    let read = read_safetensors_with_metadata(file);
    read.is_ok_and(|(_, metadata)| metadata.get("format").is_some_and(|format| format == FORMAT))
}

/// Takes up a sequence that [`save_state`] kept, on the device of `network`.
///
/// # Errors
/// When the file cannot be read, is damaged, or belongs to another model.
pub fn load_state<N: Network>(network: &N, file: &Path) -> Result<Sequence<N::Cache>, Error> {
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
    let cache = network.restore_cache(position, &cache_tensors(&tensors)).ok_or_else(damaged)?;
    let mut sequence = Sequence::new(cache);
    sequence.push(&unread);
    Ok(sequence)
}

fn fault(file: &Path, fault: StateFault) -> Error {
    Error::State { file: file.to_owned(), fault }
}

/// A tensor of a cache as a file holds it.
fn saved_tensor((name, shape, values): (&str, &[usize], &[f32])) -> SavedTensor {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    (name.to_owned(), Dtype::F32, shape.to_vec(), bytes)
}

/// The tensors of a file as a cache gives them; one of another dtype is left out, and then missed.
fn cache_tensors(tensors: &BTreeMap<String, StoredTensor>) -> CacheTensors {
    let mut found = CacheTensors::new();
    for (name, tensor) in tensors.iter().filter(|(_, tensor)| tensor.format == Dtype::F32.format()) {
        found.insert_values(name, tensor.shape.clone(), tensor.to_f32());
    }
    found
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
pub fn fingerprint<N: Network>(network: &N) -> String {
    fingerprint_of(&N::config_to_json(network.config(), Dtype::F32), |saver| network.save(saver))
}

/// [`fingerprint`] of a configuration and of the parameters that `save` hands over.
pub fn fingerprint_of(config: &serde_json::Value, save: impl FnOnce(&mut dyn Saver)) -> String {
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
        fn lora(&mut self, name: &str, factors: &LoraFactors) {
            self.0.update(factors.scale().to_le_bytes());
            for factor in [&factors.lora_a, &factors.lora_b] {
                let [rows, cols] = factor.shape();
                self.add(name, factor.values().reshape([rows * cols]));
            }
        }
    }
    let mut samples = Samples(Sha256::new());
    // sorted, whatever order this build's JSON objects have
    let fields: BTreeMap<&String, String> =
        config.as_object().into_iter().flatten().map(|(name, value)| (name, value.to_string())).collect();
    samples.0.update(format!("{fields:?}").as_bytes());
    save(&mut samples);
    hex(samples.0)
}

fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
