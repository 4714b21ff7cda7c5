//! The pages of KV caches on a GPU: places in two buffers that all caches of one layer share, so that one launch reads
//! the pages of all sequences.

use super::page::PAGE_LEN;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use std::sync::{Arc, Mutex, MutexGuard};

/// Pages that a pool has room for at first; it doubles from there.
const FIRST_PAGES: usize = 16;

/// The keys and values of all caches of one attention layer on a GPU. A clone is the same pool.
#[derive(Clone, Debug)]
pub struct KvPool(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Keys, then values, as 32-bit words: `[pages * PAGE_LEN, words of a position]` each.
    buffers: Option<[Tensor<2, Int>; 2]>,
    /// Pages that nobody holds.
    free: Vec<usize>,
}

/// A page that somebody holds; it is free again when the last holder drops it.
#[derive(Debug)]
pub(crate) struct PoolPage {
    pool: KvPool,
    index: usize,
}

impl PoolPage {
    /// Which page of the pool it is.
    pub(crate) fn index(&self) -> usize {
        self.index
    }
}

impl Drop for PoolPage {
    fn drop(&mut self) {
        self.pool.state().free.push(self.index);
    }
}

impl Default for KvPool {
    fn default() -> Self {
        Self::new()
    }
}

impl KvPool {
    /// A pool that has no buffers yet.
    pub fn new() -> Self {
        Self(Arc::default())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether both are the same pool.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Makes the buffers, unless they are there.
    ///
    /// # Panics
    /// When they are for positions of another size.
    pub(crate) fn prepare(&self, device: &Device, words: usize) {
        let buffers = &mut *self.state();
        let State { buffers, free } = buffers;
        let [keys, _] = buffers.get_or_insert_with(|| {
            free.extend((0..FIRST_PAGES).rev());
            [0; 2].map(|_| Tensor::zeros([FIRST_PAGES * PAGE_LEN, words], (device, DType::U32)))
        });
        assert_eq!(keys.dims()[1], words, "a pool holds the pages of one layer");
    }

    /// A page that nobody holds.
    pub(crate) fn allocate(&self) -> Arc<PoolPage> {
        let mut state = self.state();
        let index = match state.free.pop() {
            Some(index) => index,
            None => {
                let buffers = state.buffers.take().expect("prepared before");
                let pages = buffers[0].dims()[0] / PAGE_LEN;
                state.buffers = Some(buffers.map(grown));
                state.free.extend((pages + 1..2 * pages).rev());
                pages
            }
        };
        Arc::new(PoolPage { pool: self.clone(), index })
    }

    /// A page with the content of another.
    pub(crate) fn copy(&self, page: &PoolPage) -> Arc<PoolPage> {
        let copy = self.allocate();
        let mut state = self.state();
        state.buffers = state.buffers.take().map(|buffers| {
            buffers.map(|buffer| {
                let words = buffer.dims()[1];
                let rows = |index: usize| [index * PAGE_LEN..(index + 1) * PAGE_LEN, 0..words];
                let content = buffer.clone().slice(rows(page.index));
                buffer.slice_assign(rows(copy.index), content)
            })
        });
        drop(state);
        copy
    }

    /// Keys and values.
    pub(crate) fn buffers(&self) -> [Tensor<2, Int>; 2] {
        self.state().buffers.clone().expect("prepared before")
    }

    /// The rows of keys and values at these places.
    pub(crate) fn rows(&self, slots: Vec<i32>, device: &Device) -> [Tensor<2, Int>; 2] {
        let len = slots.len();
        let slots = Tensor::<1, Int>::from_data(TensorData::new(slots, [len]), (device, DType::I32));
        self.buffers().map(|buffer| buffer.select(0, slots.clone()))
    }
}

/// The same rows, and as many more.
fn grown(old: Tensor<2, Int>) -> Tensor<2, Int> {
    let [rows, words] = old.dims();
    let new = Tensor::zeros([2 * rows, words], (&old.device(), DType::U32));
    new.slice_assign([0..rows, 0..words], old)
}
