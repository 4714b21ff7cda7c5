//! The KV cache of one attention layer and one sequence. It belongs to the caller, who may clone, shorten or drop it.

use burn::tensor::Tensor;
use gemma_kernels::{CachePrecision, CacheRows, KvPages, KvPool, PAGE_LEN, PageId, append};

/// How much of a sequence a cache keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// No token: the sequence is forwarded once, in one piece (scoring, training).
    Nothing,
    /// Every token.
    Everything,
    /// What a layer with a sliding window of so many keys needs.
    Window(usize),
}

/// Rotated keys and values of one layer and one sequence, in pages of [`PAGE_LEN`] positions, f32, f16 or
/// q8_0.
///
/// A clone is a fork: it shares the pages, and only the last one is copied, when one of the two is extended within it.
/// With a sliding window, the pages that no later query sees are given back, but for the last [`PAGE_LEN`] positions
/// before the window: draft tokens that were rejected can be taken back.
#[derive(Clone, Debug)]
pub struct KvCache {
    retention: Retention,
    pages: KvPages,
    /// The length of a sequence of which nothing is kept.
    len: usize,
}

impl KvCache {
    /// An empty cache, of f32 values.
    pub fn new(retention: Retention) -> Self {
        Self { retention, pages: KvPages::new(CachePrecision::F32, None), len: 0 }
    }

    /// An empty cache whose pages, on a GPU, live in a pool that caches of the same layer share.
    pub fn in_pool(retention: Retention, precision: CachePrecision, pool: KvPool) -> Self {
        Self { retention, pages: KvPages::new(precision, Some(pool)), len: 0 }
    }

    /// The same cache with values of this precision, those that it holds rounded to it.
    ///
    /// # Panics
    /// When it holds heads of a size that is not kept so ([`CachePrecision::for_heads`]).
    #[must_use]
    pub fn with_precision(self, precision: CachePrecision) -> Self {
        if self.pages.precision() == precision {
            return self;
        }
        let mut pages = KvPages::new(precision, None).starting_at(self.pages.first());
        if let Some([keys, values]) = self.pages.values() {
            let rows = 0..keys.dims()[0];
            append(keys, values, &mut [CacheRows { cache: &mut pages, rows }]);
        }
        Self { pages, ..self }
    }

    /// This empty cache with keys and values `[slots, kv_heads, head_dim]` that were kept, as [`values`](Self::values)
    /// gave them, after `len` tokens. `None` when it could not have come to them: too few slots or too many, or keys and
    /// values of different shapes.
    pub fn restored(mut self, len: usize, buffers: Option<[Tensor<3>; 2]>) -> Option<Self> {
        let slots = match &buffers {
            Some([keys, values]) if keys.dims() == values.dims() => keys.dims()[0],
            Some(_) => return None,
            None => 0,
        };
        let sound = match self.retention {
            Retention::Nothing => slots == 0,
            Retention::Everything => slots >= len,
            Retention::Window(most) => (len.min(most)..=most).contains(&slots),
        };
        if !sound || buffers.is_some() != (slots > 0) {
            return None;
        }
        match buffers {
            None => self.len = len,
            Some(buffers) => {
                let held = len.min(slots);
                let first = len - held;
                self.pages = self.pages.starting_at(first);
                let [keys, values] = buffers.map(|ring| in_order(ring, first, held));
                append(keys, values, &mut [CacheRows { cache: &mut self.pages, rows: 0..held }]);
            }
        }
        Some(self)
    }

    /// How much of the sequence it keeps.
    pub fn retention(&self) -> Retention {
        self.retention
    }

    /// How many tokens of the sequence were forwarded; also the position of the next one.
    pub fn len(&self) -> usize {
        if self.retention == Retention::Nothing { self.len } else { self.pages.len() }
    }

    /// Whether nothing was forwarded yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The keys and values that later queries need, as f32, `[slots, kv_heads, head_dim]`: that of position `p` in slot
    /// `p % slots`. `None` before the first token.
    pub fn values(&self) -> Option<[Tensor<3>; 2]> {
        let needed = match self.retention {
            Retention::Nothing => 0,
            Retention::Everything => self.len(),
            Retention::Window(window) => window.min(self.len()),
        };
        let pair = self.pages.values().filter(|_| needed > 0)?;
        Some(pair.map(|rows| {
            let held = rows.dims()[0];
            let first = self.len() - needed;
            let split = first.next_multiple_of(needed) - first;
            let rows = rows.narrow(0, held - needed, needed);
            if split == 0 || split == needed {
                return rows;
            }
            let [before, behind] = [rows.clone().narrow(0, 0, split), rows.narrow(0, split, needed - split)];
            Tensor::cat(vec![behind, before], 0)
        }))
    }

    /// Size of its pages in bytes, those that it shares with others included.
    pub fn bytes_len(&self) -> usize {
        self.pages.bytes_len()
    }

    /// Its pages and the size of each in bytes. A page that several caches share has the same identity in each of
    /// them, so that it can be counted once.
    pub fn pages(&self) -> impl Iterator<Item = (PageId, usize)> {
        self.pages.pages()
    }

    /// What attention looks at; `None` when nothing is kept.
    pub(crate) fn kept(&self) -> Option<&KvPages> {
        (self.retention != Retention::Nothing).then_some(&self.pages)
    }

    /// Where the keys and values of `rows` of a call are appended; `None` when nothing is kept, and they are counted.
    pub(crate) fn rows(&mut self, rows: std::ops::Range<usize>) -> Option<CacheRows<'_>> {
        if self.retention == Retention::Nothing {
            self.len += rows.len();
            return None;
        }
        Some(CacheRows { cache: &mut self.pages, rows })
    }

    /// Appends the keys and values of the next tokens, `[tokens, kv_heads, head_dim]`, and gives back what a window
    /// has passed.
    ///
    /// # Panics
    /// When heads have a size that is not kept so ([`CachePrecision::for_heads`]).
    pub fn extend(&mut self, keys: Tensor<3>, values: Tensor<3>) {
        let rows = 0..keys.dims()[0];
        if let Some(rows) = self.rows(rows) {
            append(keys, values, &mut [rows]);
            self.give_back();
        }
    }

    /// Gives back the pages that no later query sees; to be called when attention has looked at them.
    pub(crate) fn give_back(&mut self) {
        if let Retention::Window(window) = self.retention {
            self.pages.drop_before((self.len() + 1).saturating_sub(window + PAGE_LEN));
        }
    }

    /// Whether it holds every position: it can then be [truncated](Self::truncate) to any length.
    pub fn is_whole(&self) -> bool {
        self.retention != Retention::Nothing && self.pages.first() == 0
    }

    /// Takes up what a window has given back, as far as `earlier` holds it: the cache of a sequence whose first `agreed`
    /// tokens are the same. The pages are shared.
    pub fn complete_with(&mut self, earlier: &Self, agreed: usize) {
        if matches!(self.retention, Retention::Window(_)) && self.retention == earlier.retention {
            self.pages.prepend(&earlier.pages, agreed);
        }
    }

    /// How many of the tokens that were appended last [`truncate`](Self::truncate) can take back, however many there are.
    pub fn retractable(&self) -> usize {
        match self.retention {
            Retention::Nothing => 0,
            Retention::Everything => usize::MAX,
            Retention::Window(_) => PAGE_LEN,
        }
    }

    /// Drops all but the first `len` tokens (undo, rejected drafts). Returns `false`, and changes nothing, when a
    /// window has already given back tokens that the shortened sequence would need.
    #[must_use]
    pub fn truncate(&mut self, len: usize) -> bool {
        if len >= self.len() {
            return true;
        }
        if len == 0 {
            self.pages.clear();
            self.len = 0;
            return true;
        }
        let needed = match self.retention {
            Retention::Nothing => return false,
            Retention::Everything => 0,
            Retention::Window(window) => (len + 1).saturating_sub(window),
        };
        let possible = needed >= self.pages.first() && len >= self.pages.first();
        if possible {
            self.pages.truncate(len);
        }
        possible
    }
}

/// The rows of positions `first..first + held`, in order, of a ring that holds position `p` in slot `p % slots`.
fn in_order(ring: Tensor<3>, first: usize, held: usize) -> Tensor<3> {
    let slots = ring.dims()[0];
    let begin = first % slots;
    let before_wrap = held.min(slots - begin);
    let rows = ring.clone().narrow(0, begin, before_wrap);
    if before_wrap == held { rows } else { Tensor::cat(vec![rows, ring.narrow(0, 0, held - before_wrap)], 0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_device;
    use burn::tensor::Device;

    const PRECISIONS: [CachePrecision; 2] = [CachePrecision::F32, CachePrecision::F16];

    fn rows(positions: std::ops::Range<usize>, device: &Device) -> Tensor<3> {
        let values: Vec<f32> = positions.clone().flat_map(|p| [p as f32, -(p as f32)]).collect();
        Tensor::from_data(burn::tensor::TensorData::new(values, [positions.len(), 1, 2]), device)
    }

    /// The first value of each slot.
    fn held(cache: &KvCache) -> Vec<f32> {
        let [keys, _] = cache.values().unwrap();
        keys.narrow(2, 0, 1).into_data().try_into_vec().unwrap()
    }

    /// For every window and chunk size: what is held has each key that a later query sees, in the slot that a state
    /// file expects, and memory does not grow.
    #[test]
    fn a_window_keeps_what_later_queries_see_and_no_more() {
        for device in test_device::all() {
            for (window, precision) in
                [1, 2, 3, 7, 32, 33, 100].into_iter().flat_map(|window| PRECISIONS.map(|p| (window, p)))
            {
                for chunk in [1, 2, 5, 13, 64] {
                    let mut cache = KvCache::new(Retention::Window(window)).with_precision(precision);
                    let mut start = 0;
                    while start < 250 {
                        cache.extend(rows(start..start + chunk, &device), rows(start..start + chunk, &device));
                        start += chunk;
                        let context = format!("window {window} chunk {chunk} end {start}");
                        let held = held(&cache);
                        assert_eq!(held.len(), window.min(start), "{context}");
                        for p in start.saturating_sub(window)..start {
                            assert_eq!(held[p % held.len()], p as f32, "{context}");
                        }
                        let pages = cache.pages().count();
                        assert!(pages <= (window + PAGE_LEN).div_ceil(PAGE_LEN) + 1, "{context}: {pages} pages");
                    }
                }
            }
        }
    }

    #[test]
    fn a_fork_does_not_see_what_the_other_appends() {
        for device in test_device::all() {
            for precision in PRECISIONS {
                let mut cache = KvCache::new(Retention::Everything).with_precision(precision);
                cache.extend(rows(0..3, &device), rows(0..3, &device));
                let mut fork = cache.clone();
                fork.extend(rows(90..91, &device), rows(90..91, &device));
                cache.extend(rows(3..4, &device), rows(3..4, &device));
                assert_eq!((held(&cache)[3], held(&fork)[3]), (3.0, 90.0));
            }
        }
    }

    /// What a long prompt leaves behind piece by piece serves prompts that leave it at any place, and takes each page once.
    #[test]
    fn a_window_that_moved_on_is_completed_by_the_caches_that_were_kept_on_its_way() {
        for device in test_device::all() {
            let mut cache = KvCache::new(Retention::Window(40));
            let mut kept: Vec<KvCache> = Vec::new();
            for start in (0..320).step_by(64) {
                cache.extend(rows(start..start + 64, &device), rows(start..start + 64, &device));
                let mut snapshot = cache.clone();
                if let Some(earlier) = kept.last() {
                    snapshot.complete_with(earlier, start);
                }
                kept.push(snapshot);
            }
            assert!(!cache.is_whole() && kept.iter().all(KvCache::is_whole));
            let distinct: std::collections::HashMap<PageId, usize> = kept.iter().flat_map(KvCache::pages).collect();
            assert_eq!(distinct.len(), 320 / PAGE_LEN, "each page once");
            for len in [1, 31, 64, 100, 200, 319] {
                let mut fork = kept[4].clone();
                assert!(fork.truncate(len));
                fork.extend(rows(1000..1003, &device), rows(1000..1003, &device));
                let mut expected = KvCache::new(Retention::Window(40));
                for positions in [0..len, 1000..1003] {
                    expected.extend(rows(positions.clone(), &device), rows(positions, &device));
                }
                assert_eq!(held(&fork), held(&expected), "after {len}");
            }
            // pages of positions that are not the same, or that the earlier cache lacks, are not taken over
            let mut other = cache.clone();
            other.complete_with(&kept[3], 100);
            assert!(!other.is_whole());
            other.complete_with(&cache, 256);
            other.complete_with(&kept[1], 256);
            assert!(!other.is_whole());
        }
    }

    /// 64 forks of a long prefix hold it once.
    #[test]
    fn forks_share_the_pages_of_their_prefix() {
        for device in test_device::all() {
            let mut prefix = KvCache::new(Retention::Everything);
            prefix.extend(rows(0..1000, &device), rows(0..1000, &device));
            let forks: Vec<KvCache> = (0..64)
                .map(|i| {
                    let mut fork = prefix.clone();
                    fork.extend(rows(i..i + 1, &device), rows(i..i + 1, &device));
                    fork
                })
                .collect();
            let distinct: std::collections::HashMap<PageId, usize> = forks.iter().flat_map(KvCache::pages).collect();
            let bytes: usize = distinct.values().sum();
            let page = prefix.bytes_len() / prefix.pages().count();
            assert_eq!(bytes, prefix.bytes_len() + 63 * page, "one page of each fork is its own");
        }
    }

    #[test]
    fn a_restored_cache_goes_on_like_the_one_that_was_kept() {
        for device in test_device::all() {
            let mut cache = KvCache::new(Retention::Window(4));
            cache.extend(rows(0..6, &device), rows(0..6, &device));
            let kept = cache.values();
            let mut restored = KvCache::new(Retention::Window(4)).restored(6, kept.clone()).expect("its own buffers");
            for cache in [&mut cache, &mut restored] {
                cache.extend(rows(6..7, &device), rows(6..7, &device));
            }
            assert_eq!(held(&cache), held(&restored));
            assert_eq!(restored.len(), 7);
            for (retention, len, buffers) in [
                (Retention::Window(3), 6, kept.clone()),
                (Retention::Window(5), 6, kept.clone()),
                (Retention::Everything, 6, kept.clone()),
                (Retention::Nothing, 6, kept),
                (Retention::Window(4), 6, None),
            ] {
                let restored = KvCache::new(retention).restored(len, buffers);
                assert!(restored.is_none(), "{retention:?} after {len} tokens");
            }
            // slots beyond the last token, as files of older versions have them
            let spare = KvCache::new(Retention::Everything).restored(3, Some([0, 1].map(|_| rows(0..8, &device))));
            assert_eq!(held(&spare.expect("enough slots")), [0.0, 1.0, 2.0]);
        }
    }

    #[test]
    fn f16_takes_half_the_memory_and_comes_back_rounded() {
        for device in test_device::all() {
            let thirds = |n: usize| {
                let values: Vec<f32> = (0..2 * n).map(|i| i as f32 / 3.0).collect();
                Tensor::<3>::from_data(burn::tensor::TensorData::new(values, [n, 1, 2]), &device)
            };
            let mut wide = KvCache::new(Retention::Everything);
            wide.extend(thirds(100), thirds(100));
            let mut narrow = KvCache::new(Retention::Everything).with_precision(CachePrecision::F16);
            narrow.extend(thirds(100), thirds(100));
            assert_eq!(wide.bytes_len(), 2 * narrow.bytes_len());
            let (exact, rounded) = (held(&wide), held(&narrow));
            assert!(exact.iter().zip(&rounded).all(|(a, b)| (a - b).abs() <= a.abs() / 2048.0));
            assert_ne!(exact, rounded);
            // to one precision and back
            assert_eq!(held(&wide.with_precision(CachePrecision::F16)), rounded);
            let mut widened = narrow.with_precision(CachePrecision::F32);
            assert_eq!(held(&widened), rounded);
            widened.extend(thirds(1), thirds(1));
            assert!(widened.truncate(0) && widened.is_empty());
        }
    }

    #[test]
    fn q8_0_takes_half_the_memory_of_f16_and_comes_back_rounded() {
        for device in test_device::all() {
            let waves = |n: usize| {
                let values: Vec<f32> = (0..64 * n).map(|i| (i as f32 * 0.37).sin()).collect();
                Tensor::<3>::from_data(burn::tensor::TensorData::new(values, [n, 1, 64]), &device)
            };
            let filled = |precision| {
                let mut cache = KvCache::new(Retention::Everything).with_precision(precision);
                cache.extend(waves(100), waves(100));
                cache
            };
            let [wide, half, narrow] = CachePrecision::ALL.map(filled);
            // 34 or, on a GPU, 36 bytes for 32 values
            let part = narrow.bytes_len() as f64 / half.bytes_len() as f64;
            assert!((0.53..0.5626).contains(&part), "{part}");
            let (exact, rounded) = (held(&wide), held(&narrow));
            assert!(exact.iter().zip(&rounded).all(|(a, b)| (a - b).abs() <= 0.51 / 127.0 + 1e-3));
            assert_ne!(exact, rounded);
            // to f32 and back changes nothing: blocks that were read are written as they were
            let again = narrow.clone().with_precision(CachePrecision::F32).with_precision(CachePrecision::Q8_0);
            assert_eq!(held(&again), rounded);
        }
    }

    #[test]
    fn truncation_is_refused_where_a_window_has_passed() {
        let device = test_device::all().remove(0);
        let mut all = KvCache::new(Retention::Everything);
        let mut window = KvCache::new(Retention::Window(4));
        for cache in [&mut all, &mut window] {
            cache.extend(rows(0..4, &device), rows(0..4, &device));
            assert!(cache.truncate(3));
            assert_eq!(cache.len(), 3);
            cache.extend(rows(3..200, &device), rows(3..200, &device));
            // draft tokens can be taken back
            assert!(cache.truncate(200 - PAGE_LEN), "{:?}", cache.retention());
            cache.extend(rows(168..200, &device), rows(168..200, &device));
        }
        assert_eq!((all.retractable(), window.retractable()), (usize::MAX, PAGE_LEN));
        assert!(all.truncate(50));
        assert!(!window.truncate(50));
        assert_eq!(window.len(), 200, "a refusal changes nothing");
        assert_eq!(held(&window), [196.0, 197.0, 198.0, 199.0]);
        assert!(window.truncate(0) && window.is_empty());
    }
}
