//! What the network remembers of one sequence: as much after a million tokens as after a window.

use burn::tensor::Tensor;
use gemma_nn::KvCache;

/// What one layer remembers.
#[derive(Clone, Debug)]
pub enum LayerMemory {
    /// A recurrent layer.
    Recurrent(Recurrent),
    /// A layer with local attention: the keys and values of its window, in a ring.
    Attention(KvCache),
}

/// The state of a recurrent layer, f32; `None` before the first token.
#[derive(Clone, Debug, Default)]
pub struct Recurrent {
    /// `h` of the last token, `[1, channels]`.
    pub hidden: Option<Tensor<2>>,
    /// The last inputs of the convolution, `[K - 1, channels]`, the oldest first.
    pub tail: Option<Tensor<2>>,
}

/// A state per layer. Made by `new_memory`, owned by the caller; a clone is a fork, and costs nothing until one of the
/// two reads on.
#[derive(Clone, Debug)]
pub struct Memory {
    pub(crate) position: usize,
    pub(crate) layers: Vec<LayerMemory>,
}

impl Memory {
    /// Number of tokens read; also the position of the next one.
    pub fn len(&self) -> usize {
        self.position
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.position == 0
    }

    /// The layers' states, first to last.
    pub fn layers(&self) -> &[LayerMemory] {
        &self.layers
    }

    /// Size of all buffers in bytes. It grows until the window is full, and then no more.
    pub fn bytes_len(&self) -> usize {
        let size = |state: &Option<Tensor<2>>| state.as_ref().map_or(0, |x| 4 * x.dims().iter().product::<usize>());
        let of = |layer: &LayerMemory| match layer {
            LayerMemory::Recurrent(state) => size(&state.hidden) + size(&state.tail),
            LayerMemory::Attention(cache) => cache.bytes_len(),
        };
        self.layers.iter().map(of).sum()
    }
}
