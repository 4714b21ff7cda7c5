//! The cache boundary: what the decoding loop asks of a model's KV cache or recurrent state.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use gemma_nn::{Attention, AttentionSpec, KvCache, PageId};

/// The cache of one sequence: keys and values, recurrent states, or both. A clone is a fork of the sequence.
///
/// The model makes it, the caller owns it, and each forward pass extends it.
pub trait Cache: Clone + Send {
    /// Tokens it holds; also the position of the next one.
    fn len(&self) -> usize;

    /// Whether it holds no token.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size of its buffers in bytes, those included that it shares with clones.
    fn bytes_len(&self) -> usize;

    /// Its pages of keys and values, all layers', each with its size in bytes. A page that clones share has one identity, so
    /// that it can be counted once.
    fn pages(&self) -> Vec<(PageId, usize)>;

    /// Drops all but the first `len` tokens. `false`, with nothing changed, when that is impossible: a sliding window has
    /// already overwritten tokens that are needed again, a recurrent state has moved on, or `len` lies inside a block
    /// that sees itself both ways.
    #[must_use]
    fn truncate(&mut self, len: usize) -> bool;

    /// A cache that holds no more tokens than this can be [truncated](Self::truncate) to any length outside the blocks that
    /// see themselves both ways; 0: to none but its own.
    fn truncatable(&self) -> usize;

    /// Whether it can be [truncated](Self::truncate) to any length now, however many tokens it holds.
    fn is_whole(&self) -> bool {
        false
    }

    /// Takes up what a sliding window has given back, as far as `earlier` holds it: the cache of a sequence whose first
    /// `agreed` tokens are the same. Nothing changes where there is no such window.
    fn complete_with(&mut self, earlier: &Self, agreed: usize) {
        let _ = (earlier, agreed);
    }

    /// How many of the tokens that were appended last can be taken back whatever the length, outside the blocks that see
    /// themselves both ways: as many draft tokens can be verified at once. 0: none.
    fn retractable(&self) -> usize;

    /// Everything it consists of, for a state file;
    /// [`CausalModel::restore_cache`](crate::CausalModel::restore_cache) is the way back.
    fn tensors(&self) -> CacheTensors;
}

/// The tensors of a cache on the host, in f32, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CacheTensors {
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl CacheTensors {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds values of a shape.
    ///
    /// # Panics
    /// When the shape has another number of values.
    pub fn insert_values(&mut self, name: impl Into<String>, shape: Vec<usize>, values: Vec<f32>) {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "a value per element of the shape");
        self.tensors.insert(name.into(), (shape, values));
    }

    /// Adds a tensor.
    pub fn insert<const D: usize>(&mut self, name: impl Into<String>, tensor: &Tensor<D>) {
        let values = tensor.clone().into_data().convert::<f32>().try_into_vec().expect("converted to f32");
        self.insert_values(name, tensor.dims().to_vec(), values);
    }

    /// Adds the keys and values of one layer as `{name}.keys` and `{name}.values`, `[slots, kv_heads, head_dim]`; nothing
    /// for an empty cache.
    pub fn insert_kv(&mut self, name: &str, cache: &KvCache) {
        if let Some([keys, values]) = cache.values() {
            self.insert(format!("{name}.keys"), &keys);
            self.insert(format!("{name}.values"), &values);
        }
    }

    /// The tensor of this name and shape, on `device`; `None` when there is none.
    pub fn get<const D: usize>(&self, name: &str, shape: [usize; D], device: &Device) -> Option<Tensor<D>> {
        let (_, values) = self.tensors.get(name).filter(|(found, _)| *found == shape)?;
        Some(Tensor::from_data(TensorData::new(values.clone(), shape), device))
    }

    /// The KV cache of a layer that [`insert_kv`](Self::insert_kv) added under `name`, after `len` tokens; `None` when the
    /// layer cannot have come to it.
    pub fn kv(&self, name: &str, layer: &Attention, len: usize, device: &Device) -> Option<KvCache> {
        let AttentionSpec { kv_heads, head_dim, .. } = *layer.spec();
        let keys = format!("{name}.keys");
        let buffers = match self.tensors.get(&keys) {
            None => None,
            Some((found, _)) => {
                let shape = [*found.first()?, kv_heads, head_dim];
                Some([self.get(&keys, shape, device)?, self.get(&format!("{name}.values"), shape, device)?])
            }
        };
        layer.restore_cache(len, buffers)
    }

    /// The values of a tensor, row-major.
    pub fn values(&self, name: &str) -> Option<&[f32]> {
        self.tensors.get(name).map(|(_, values)| values.as_slice())
    }

    /// Name, shape and values of each, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[usize], &[f32])> {
        self.tensors.iter().map(|(name, (shape, values))| (name.as_str(), shape.as_slice(), values.as_slice()))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.tensors.len()
    }
}
