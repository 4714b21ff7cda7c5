//! The paged KV cache: the keys and values of one attention layer and one sequence, in pages of [`PAGE_LEN`] positions.
//!
//! Pages are shared by reference count. A clone of a cache shares all of them; whoever appends to a page that others
//! share copies that page first, and only that one. A sliding window lets go of the pages that no later query sees. On
//! a CPU a page is a block of memory of its own; on a GPU it is a place in a [`KvPool`].

mod page;
mod pool;

pub use page::{CachePrecision, PAGE_LEN, ParseCachePrecisionError};
pub use pool::KvPool;

#[cfg(test)]
pub(crate) use page::nearest_f16;
pub(crate) use page::{BLOCK, Block, MemoryPage};
pub(crate) use pool::PoolPage;

use crate::math::f16_to_f32;
use burn::tensor::{Device, Tensor, TensorData};
use std::sync::Arc;

/// Which page it is: equal for a page that two caches share, and for no two pages that live at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(usize);

/// A page of keys and values.
#[derive(Clone, Debug)]
pub(crate) enum Page {
    /// On a CPU.
    Memory(Arc<MemoryPage>),
    /// On a GPU.
    Pool(Arc<PoolPage>),
}

/// Where the pages of a cache live, and the heads that they hold; known from the first token on.
#[derive(Clone, Debug)]
struct Place {
    device: Device,
    kv_heads: usize,
    head_dim: usize,
}

/// Rotated keys and values of one attention layer and one sequence.
#[derive(Clone, Debug)]
pub struct KvPages {
    precision: CachePrecision,
    /// The first position that is held.
    first: usize,
    /// The next position.
    len: usize,
    /// The pages of positions `first` to `len`.
    pages: Vec<Page>,
    place: Option<Place>,
    pool: Option<KvPool>,
}

impl KvPages {
    /// An empty cache. Caches of one layer on a GPU share a `pool`, so that one launch reads them all; a cache without
    /// one makes a pool of its own.
    pub fn new(precision: CachePrecision, pool: Option<KvPool>) -> Self {
        Self { precision, first: 0, len: 0, pages: Vec::new(), place: None, pool }
    }

    /// An empty cache whose first token will be that of position `start`, as if those before had been let go.
    pub fn starting_at(self, start: usize) -> Self {
        Self { first: start, len: start, pages: Vec::new(), ..self }
    }

    /// In how many bits it keeps values.
    pub fn precision(&self) -> CachePrecision {
        self.precision
    }

    /// The next position.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.first == self.len
    }

    /// The first position that it holds.
    pub fn first(&self) -> usize {
        self.first
    }

    /// The pages that it holds, shared ones included, and the size of each in bytes.
    pub fn pages(&self) -> impl Iterator<Item = (PageId, usize)> {
        let bytes = self.page_bytes();
        self.pages.iter().map(move |page| {
            let id = match page {
                Page::Memory(page) => Arc::as_ptr(page).addr(),
                Page::Pool(page) => Arc::as_ptr(page).addr(),
            };
            (PageId(id), bytes)
        })
    }

    /// Size of its pages in bytes, shared ones included.
    pub fn bytes_len(&self) -> usize {
        self.pages.len() * self.page_bytes()
    }

    fn page_bytes(&self) -> usize {
        let Some(Place { kv_heads, head_dim, .. }) = self.place else { return 0 };
        let position = match self.pages.first() {
            Some(Page::Pool(_)) => 4 * self.precision.words(kv_heads * head_dim),
            _ => kv_heads * self.precision.head_bytes(head_dim).unwrap_or(0),
        };
        2 * PAGE_LEN * position
    }

    /// Drops everything; the next position is 0.
    pub fn clear(&mut self) {
        self.pages.clear();
        (self.first, self.len) = (0, 0);
    }

    /// Drops the positions from `len` on.
    ///
    /// # Panics
    /// When it does not hold the position before `len`, unless `len` is its first.
    pub fn truncate(&mut self, len: usize) {
        assert!((self.first..=self.len).contains(&len), "{len} positions of {}..{}", self.first, self.len);
        self.len = len;
        let kept = if self.is_empty() { 0 } else { (len - 1) / PAGE_LEN + 1 - self.base() };
        self.pages.truncate(kept);
    }

    /// Drops the pages all of whose positions lie before `position`.
    pub fn drop_before(&mut self, position: usize) {
        let passed = (position.min(self.len) / PAGE_LEN).saturating_sub(self.base()).min(self.pages.len());
        if passed > 0 {
            self.first = (self.base() + passed) * PAGE_LEN;
            self.pages.drain(..passed);
        }
    }

    /// Holds the pages of `earlier` before its own first one, too, if they are all there: those of a cache whose first
    /// `agreed` positions are the same.
    pub fn prepend(&mut self, earlier: &Self, agreed: usize) {
        let base = self.base();
        let whole_pages = self.first == base * PAGE_LEN && self.first <= agreed;
        if whole_pages && earlier.first == 0 && earlier.len >= self.first && self.precision == earlier.precision {
            self.pages.splice(..0, earlier.pages[..base].iter().cloned());
            self.first = 0;
        }
    }

    /// The number of the first page.
    pub(crate) fn base(&self) -> usize {
        self.first / PAGE_LEN
    }

    pub(crate) fn list(&self) -> &[Page] {
        &self.pages
    }

    pub(crate) fn pool(&self) -> Option<&KvPool> {
        self.pool.as_ref()
    }

    /// Notes where the pages live.
    ///
    /// # Panics
    /// When they live elsewhere, or hold other heads.
    pub(crate) fn settle(&mut self, device: &Device, [kv_heads, head_dim]: [usize; 2]) {
        let place = self.place.get_or_insert_with(|| Place { device: device.clone(), kv_heads, head_dim });
        assert_eq!([place.kv_heads, place.head_dim], [kv_heads, head_dim], "the heads of a cache");
        let precision = self.precision;
        assert!(precision.head_bytes(head_dim).is_some(), "heads of {head_dim} values are not kept as {precision:?}");
    }

    /// Appends rows `[positions, kv_heads, head_dim]` of keys and values in memory.
    pub(crate) fn append(&mut self, rows: [&[f32]; 2], [kv_heads, head_dim]: [usize; 2]) {
        let row = kv_heads * head_dim;
        let mut done = 0;
        while done < rows[0].len() / row {
            let slot = self.len % PAGE_LEN;
            let count = (PAGE_LEN - slot).min(rows[0].len() / row - done);
            if self.len / PAGE_LEN - self.base() == self.pages.len() {
                self.pages.push(Page::Memory(Arc::new(MemoryPage::zeros(self.precision, PAGE_LEN * row))));
            }
            let Some(Page::Memory(page)) = self.pages.last_mut() else { unreachable!("pages of a CPU") };
            // a page that others share is copied first
            let rows = rows.map(|rows| &rows[done * row..(done + count) * row]);
            Arc::make_mut(page).write(slot, rows, head_dim);
            (self.len, done) = (self.len + count, done + count);
        }
    }

    /// Makes room for `count` more positions in the pool; the places of their rows.
    pub(crate) fn reserve(&mut self, count: usize) -> Vec<u32> {
        let place = self.place.as_ref().expect("settled before");
        let words = self.precision.words(place.kv_heads * place.head_dim);
        let pool = self.pool.get_or_insert_with(KvPool::new).clone();
        pool.prepare(&place.device, words);
        let mut slots = Vec::with_capacity(count);
        for position in self.len..self.len + count {
            let index = position / PAGE_LEN - self.base();
            if index == self.pages.len() {
                self.pages.push(Page::Pool(pool.allocate()));
            }
            let Some(Page::Pool(page)) = self.pages.get_mut(index) else { unreachable!("pages of a GPU") };
            if Arc::get_mut(page).is_none() {
                let copy = pool.copy(page);
                *page = copy;
            }
            slots.push((page.index() * PAGE_LEN + position % PAGE_LEN) as u32);
        }
        self.len += count;
        slots
    }

    /// The keys and values that it holds as f32, `[positions, kv_heads, head_dim]`, in order; `None` where it holds
    /// nothing.
    pub fn values(&self) -> Option<[Tensor<3>; 2]> {
        let Place { device, kv_heads, head_dim } = self.place.as_ref().filter(|_| !self.is_empty())?;
        let shape = [self.len - self.first, *kv_heads, *head_dim];
        let page_of = |position: usize| &self.pages[position / PAGE_LEN - self.base()];
        if let Page::Memory(_) = self.pages[0] {
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for position in self.first..self.len {
                if let Page::Memory(page) = page_of(position) {
                    page.read(position % PAGE_LEN, *head_dim, [&mut keys, &mut values]);
                }
            }
            return Some([keys, values].map(|values| Tensor::from_data(TensorData::new(values, shape), device)));
        }
        let slot = |position: usize| match page_of(position) {
            Page::Pool(page) => page.index() * PAGE_LEN + position % PAGE_LEN,
            Page::Memory(_) => unreachable!("a cache has pages of one kind"),
        };
        let slots = (self.first..self.len).map(|position| slot(position) as i32).collect();
        let words = self.pool.as_ref()?.rows(slots, device);
        Some(words.map(|words| {
            let words: Vec<u32> = words.into_data().try_into_vec().expect("pages are u32 words");
            let values = match self.precision {
                CachePrecision::F32 => words.into_iter().map(f32::from_bits).collect(),
                CachePrecision::F16 => words.into_iter().flat_map(values_of).collect(),
                CachePrecision::Q8_0 => words.as_chunks::<9>().0.iter().flat_map(block_values).collect(),
            };
            Tensor::from_data(TensorData::new::<f32, _>(values, shape), device)
        }))
    }
}

/// The two f16 values of a word, the earlier one in the lower half.
fn values_of(word: u32) -> [f32; 2] {
    [word as u16, (word >> 16) as u16].map(|half| f16_to_f32(half.to_le_bytes()))
}

/// The values of a block of q8_0 on a GPU: the scale in f32, then four integers to a word, the first one in the lowest
/// byte.
fn block_values([scale, words @ ..]: &[u32; 9]) -> [f32; BLOCK] {
    let scale = f32::from_bits(*scale);
    std::array::from_fn(|i| scale * f32::from(words[i / 4].to_le_bytes()[i % 4].cast_signed()))
}
