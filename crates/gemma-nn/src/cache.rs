//! What attention remembers of a sequence. It belongs to the caller, who may clone, shorten or drop it.

use burn::tensor::kind::Basic;
use burn::tensor::{Int, Tensor};
use gemma_kernels::{CachePrecision, Past, from_halves, halves};

/// Slots that a cache starts with, in tokens; it doubles from there.
const FIRST_SLOTS: usize = 64;

/// How much of a sequence a cache keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// No token: the sequence is read once, in one piece (scoring, training).
    Nothing,
    /// Every token.
    Everything,
    /// The last `n` tokens, in a ring: what a layer with a window of `n` keys needs.
    Last(usize),
}

/// Rotated keys and values of one layer and one sequence, `[slots, kv_heads, head_dim]` each, f32 or f16.
///
/// The token at position `p` lies in slot `p % slots`. Slots are allocated as needed, doubling, up to the whole
/// ring for [`Retention::Last`]; a ring only wraps once it has all its slots, so the rule holds throughout.
///
/// A clone is a fork: it shares the buffers until one of the two is extended.
#[derive(Clone, Debug)]
pub struct KvCache {
    retention: Retention,
    precision: CachePrecision,
    len: usize,
    buffers: Option<Buffers>,
}

/// Keys, then values.
#[derive(Clone, Debug)]
enum Buffers {
    F32([Tensor<3>; 2]),
    /// As [`halves`].
    F16([Tensor<3, Int>; 2]),
}

impl Buffers {
    fn slots(&self) -> usize {
        match self {
            Buffers::F32([keys, _]) => keys.dims()[0],
            Buffers::F16([keys, _]) => keys.dims()[0],
        }
    }
}

impl KvCache {
    /// An empty cache, of f32 values.
    pub fn new(retention: Retention) -> Self {
        Self { retention, precision: CachePrecision::F32, len: 0, buffers: None }
    }

    /// The same cache with values of this precision, those that it holds rounded to it.
    ///
    /// # Panics
    /// When it holds heads of an odd size, which are not kept as f16.
    #[must_use]
    pub fn with_precision(self, precision: CachePrecision) -> Self {
        let buffers = match (self.buffers, precision) {
            (Some(Buffers::F32(pair)), CachePrecision::F16) => Some(Buffers::F16(pair.map(halves))),
            (Some(Buffers::F16(pair)), CachePrecision::F32) => Some(Buffers::F32(pair.each_ref().map(from_halves))),
            (buffers, _) => buffers,
        };
        Self { precision, buffers, ..self }
    }

    /// A cache of buffers that were kept, as [`values`](Self::values) gave them, after `len` tokens. `None` when it
    /// could not have come to them: too few slots or too many, or keys and values of different shapes.
    pub fn restore(retention: Retention, len: usize, buffers: Option<[Tensor<3>; 2]>) -> Option<Self> {
        let slots = match &buffers {
            Some([keys, values]) if keys.dims() == values.dims() => keys.dims()[0],
            Some(_) => return None,
            None => 0,
        };
        let sound = match retention {
            Retention::Nothing => slots == 0,
            Retention::Everything => slots >= len,
            Retention::Last(most) => (len.min(most)..=most).contains(&slots),
        };
        let cache = Self { len, buffers: buffers.map(Buffers::F32), ..Self::new(retention) };
        (sound && cache.buffers.is_some() == (slots > 0)).then_some(cache)
    }

    /// How much of the sequence it keeps.
    pub fn retention(&self) -> Retention {
        self.retention
    }

    /// How many tokens of the sequence were read; also the position of the next one.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The key and value buffers, for [`gemma_kernels::attend`]; `None` before the first token.
    pub fn past(&self) -> Option<Past<'_>> {
        self.buffers.as_ref().map(|buffers| match buffers {
            Buffers::F32([keys, values]) => Past::F32(keys, values),
            Buffers::F16([keys, values]) => Past::F16(keys, values),
        })
    }

    /// The key and value buffers as f32; `None` before the first token.
    pub fn values(&self) -> Option<[Tensor<3>; 2]> {
        self.buffers.as_ref().map(|buffers| match buffers {
            Buffers::F32(pair) => pair.clone(),
            Buffers::F16(pair) => pair.each_ref().map(from_halves),
        })
    }

    /// Size of the buffers in bytes.
    pub fn bytes_len(&self) -> usize {
        self.buffers.as_ref().map_or(0, |buffers| match buffers {
            // values and words have four bytes each
            Buffers::F32([keys, _]) => 2 * 4 * keys.dims().iter().product::<usize>(),
            Buffers::F16([keys, _]) => 2 * 4 * keys.dims().iter().product::<usize>(),
        })
    }

    /// Appends the keys and values of the next tokens, `[tokens, kv_heads, head_dim]`.
    ///
    /// # Panics
    /// When heads of an odd size are to be kept as f16.
    pub fn extend(&mut self, keys: Tensor<3>, values: Tensor<3>) {
        let tokens = keys.dims()[0];
        let (start, end) = (self.len, self.len + tokens);
        self.len = end;
        let most = match self.retention {
            Retention::Nothing => return,
            Retention::Everything => usize::MAX,
            Retention::Last(slots) => slots.max(1),
        };
        let held = self.buffers.as_ref().map_or(0, Buffers::slots);
        let needed = end.min(most);
        let slots = if held >= needed { held } else { needed.next_power_of_two().max(FIRST_SLOTS).min(most) };
        // the buffers must have one owner to be written in place
        self.buffers = Some(match (self.buffers.take(), self.precision) {
            (Some(Buffers::F32([k, v])), _) => {
                Buffers::F32([write(grown(k, slots), keys, start), write(grown(v, slots), values, start)])
            }
            (Some(Buffers::F16([k, v])), _) => Buffers::F16([
                write(grown(k, slots), halves(keys), start),
                write(grown(v, slots), halves(values), start),
            ]),
            (None, CachePrecision::F32) => {
                let zeros = |like: &Tensor<3>| Tensor::zeros([slots, like.dims()[1], like.dims()[2]], &like.device());
                Buffers::F32([write(zeros(&keys), keys, start), write(zeros(&values), values, start)])
            }
            (None, CachePrecision::F16) => {
                let [_, kv_heads, head_dim] = keys.dims();
                let zeros = halves(Tensor::zeros([slots, kv_heads, head_dim], &keys.device()));
                Buffers::F16([write(zeros.clone(), halves(keys), start), write(zeros, halves(values), start)])
            }
        });
    }

    /// Forgets all but the first `len` tokens (undo, rejected drafts). Returns `false`, and changes nothing, when a
    /// ring has already overwritten tokens that the shortened sequence would need.
    #[must_use]
    pub fn truncate(&mut self, len: usize) -> bool {
        if len >= self.len {
            return true;
        }
        let slots = self.buffers.as_ref().map_or(0, Buffers::slots);
        let wrapped = matches!(self.retention, Retention::Last(_)) && self.len > slots;
        if len == 0 {
            *self = Self::new(self.retention).with_precision(self.precision);
        } else if wrapped || self.retention == Retention::Nothing {
            return false;
        } else {
            self.len = len;
        }
        true
    }
}

/// A ring with at least so many slots, of which the first are those of `old`.
fn grown<K: Basic>(old: Tensor<3, K>, slots: usize) -> Tensor<3, K> {
    let [held, kv_heads, width] = old.dims();
    if held >= slots {
        return old;
    }
    let new = Tensor::empty([slots, kv_heads, width], (&old.device(), old.dtype()));
    new.slice_assign([0..held, 0..kv_heads, 0..width], old)
}

/// Writes rows `new`, the first of them at position `start`, into a ring; older rows give way.
fn write<K: Basic>(ring: Tensor<3, K>, new: Tensor<3, K>, start: usize) -> Tensor<3, K> {
    let [slots, kv_heads, width] = ring.dims();
    let [tokens, ..] = new.dims();
    let rows = |from: usize, to: usize| new.clone().slice([from..to, 0..kv_heads, 0..width]);
    // of more rows than slots only the last matter
    let skipped = tokens.saturating_sub(slots);
    let slot = (start + skipped) % slots;
    let kept = tokens - skipped;
    let before_wrap = kept.min(slots - slot);
    let assign = |ring: Tensor<3, K>, slot: usize, rows: Tensor<3, K>| {
        let len = rows.dims()[0];
        ring.slice_assign([slot..slot + len, 0..kv_heads, 0..width], rows)
    };
    let first = if before_wrap == tokens { new.clone() } else { rows(skipped, skipped + before_wrap) };
    let ring = assign(ring, slot, first);
    if before_wrap < kept { assign(ring, 0, rows(skipped + before_wrap, tokens)) } else { ring }
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

    fn held(cache: &KvCache) -> Vec<f32> {
        let [keys, _] = cache.values().unwrap();
        let slots = keys.dims()[0];
        keys.slice([0..slots, 0..1, 0..1]).into_data().try_into_vec().unwrap()
    }

    #[test]
    fn position_p_lies_in_slot_p_modulo_the_ring() {
        for device in test_device::all() {
            for (window, precision) in [1, 2, 3, 7, 100].into_iter().flat_map(|window| PRECISIONS.map(|p| (window, p)))
            {
                for chunk in [1, 2, 5, 13] {
                    let mut cache = KvCache::new(Retention::Last(window)).with_precision(precision);
                    let mut start = 0;
                    while start < 150 {
                        cache.extend(rows(start..start + chunk, &device), rows(start..start + chunk, &device));
                        start += chunk;
                        let held = held(&cache);
                        for p in start.saturating_sub(window)..start {
                            assert_eq!(held[p % held.len()], p as f32, "window {window} chunk {chunk} end {start}");
                        }
                    }
                    assert!(held(&cache).len() <= window);
                }
            }
        }
    }

    #[test]
    fn a_fork_does_not_see_what_the_other_reads() {
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

    #[test]
    fn a_restored_cache_goes_on_like_the_one_that_was_kept() {
        for device in test_device::all() {
            let mut cache = KvCache::new(Retention::Last(4));
            cache.extend(rows(0..6, &device), rows(0..6, &device));
            let kept = cache.values();
            let mut restored = KvCache::restore(Retention::Last(4), 6, kept.clone()).expect("its own buffers");
            for cache in [&mut cache, &mut restored] {
                cache.extend(rows(6..7, &device), rows(6..7, &device));
            }
            assert_eq!(held(&cache), held(&restored));
            assert_eq!(restored.len(), 7);
            for (retention, len, buffers) in [
                (Retention::Last(3), 6, kept.clone()),
                (Retention::Last(5), 6, kept.clone()),
                (Retention::Everything, 6, kept.clone()),
                (Retention::Nothing, 6, kept),
                (Retention::Last(4), 6, None),
            ] {
                assert!(KvCache::restore(retention, len, buffers).is_none(), "{retention:?} after {len} tokens");
            }
        }
    }

    #[test]
    fn halves_take_half_the_memory_and_come_back_rounded() {
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
    fn truncation_is_refused_where_the_ring_has_forgotten() {
        let device = test_device::all().remove(0);
        let mut all = KvCache::new(Retention::Everything);
        let mut ring = KvCache::new(Retention::Last(4));
        for cache in [&mut all, &mut ring] {
            cache.extend(rows(0..4, &device), rows(0..4, &device));
            assert!(cache.truncate(3));
            assert_eq!(cache.len(), 3);
            cache.extend(rows(3..6, &device), rows(3..6, &device));
        }
        assert!(all.truncate(5));
        assert!(!ring.truncate(5));
        assert_eq!(ring.len(), 6, "a refusal changes nothing");
        assert!(ring.truncate(0) && ring.is_empty());
    }
}
