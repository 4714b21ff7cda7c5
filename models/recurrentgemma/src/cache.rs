//! The cache of one sequence: recurrent states and the KV caches of the sliding windows. It is as large after a million
//! tokens as after a window.

use burn::tensor::Tensor;
use gemma_generate::{Cache, CacheTensors};
use gemma_nn::{KvCache, PageId};

/// The cache of one layer.
#[derive(Clone, Debug)]
pub enum LayerCache {
    /// A recurrent layer.
    Recurrent(RecurrentState),
    /// A layer with local attention: the keys and values of its window, in a ring.
    Attention(KvCache),
}

/// The state of a recurrent layer, f32; `None` before the first token.
#[derive(Clone, Debug, Default)]
pub struct RecurrentState {
    /// `h` of the last token, `[1, channels]`.
    pub hidden: Option<Tensor<2>>,
    /// The last inputs of the convolution, `[K - 1, channels]`, the oldest first.
    pub tail: Option<Tensor<2>>,
}

/// A cache per layer. Made by `new_cache`, owned by the caller; a clone is a fork, and costs nothing until one of the
/// two reads on.
#[derive(Clone, Debug)]
pub struct GriffinCache {
    pub(crate) position: usize,
    pub(crate) layers: Vec<LayerCache>,
}

impl GriffinCache {
    /// The layers' caches, first to last.
    pub fn layers(&self) -> &[LayerCache] {
        &self.layers
    }
}

impl Cache for GriffinCache {
    fn len(&self) -> usize {
        self.position
    }

    /// It grows until the window is full, and then no more.
    fn bytes_len(&self) -> usize {
        let size = |state: &Option<Tensor<2>>| state.as_ref().map_or(0, |x| 4 * x.dims().iter().product::<usize>());
        let of = |layer: &LayerCache| match layer {
            LayerCache::Recurrent(state) => size(&state.hidden) + size(&state.tail),
            LayerCache::Attention(cache) => cache.bytes_len(),
        };
        self.layers.iter().map(of).sum()
    }

    fn pages(&self) -> Vec<(PageId, usize)> {
        let of = |layer: &LayerCache| match layer {
            LayerCache::Recurrent(_) => Vec::new(),
            LayerCache::Attention(cache) => cache.pages().collect(),
        };
        self.layers.iter().flat_map(of).collect()
    }

    /// A recurrent state has no way back but to the beginning.
    fn truncate(&mut self, len: usize) -> bool {
        if len == 0 {
            self.position = 0;
            for layer in &mut self.layers {
                match layer {
                    LayerCache::Recurrent(state) => *state = RecurrentState::default(),
                    LayerCache::Attention(cache) => {
                        let emptied = cache.truncate(0);
                        assert!(emptied, "a cache can be emptied");
                    }
                }
            }
        }
        len == 0 || len >= self.position
    }

    fn truncatable(&self) -> usize {
        0
    }

    fn retractable(&self) -> usize {
        0
    }

    fn tensors(&self) -> CacheTensors {
        let mut tensors = CacheTensors::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let name = format!("layers.{index}");
            match layer {
                LayerCache::Attention(cache) => tensors.insert_kv(&name, cache),
                LayerCache::Recurrent(state) => {
                    for (part, tensor) in [("hidden", &state.hidden), ("tail", &state.tail)] {
                        if let Some(tensor) = tensor {
                            tensors.insert(format!("{name}.{part}"), tensor);
                        }
                    }
                }
            }
        }
        tensors
    }
}
