//! What attention remembers of a sequence. It belongs to the caller, who may clone, shorten or drop it.

use burn::tensor::{Device, Tensor};

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

/// Rotated keys and values of one layer and one sequence, `[slots, kv_heads, head_dim]` each, f32.
///
/// The token at position `p` lies in slot `p % slots`. Slots are allocated as needed, doubling, up to the whole
/// ring for [`Retention::Last`]; a ring only wraps once it has all its slots, so the rule holds throughout.
///
/// A clone is a fork: it shares the buffers until one of the two is extended.
#[derive(Clone, Debug)]
pub struct KvCache {
    retention: Retention,
    len: usize,
    buffers: Option<(Tensor<3>, Tensor<3>)>,
}

impl KvCache {
    /// An empty cache.
    pub fn new(retention: Retention) -> Self {
        Self { retention, len: 0, buffers: None }
    }

    /// A cache of buffers that were kept, as [`past`](Self::past) gave them, after `len` tokens. `None` when it could
    /// not have come to them: too few slots or too many, or keys and values of different shapes.
    pub fn restore(retention: Retention, len: usize, buffers: Option<(Tensor<3>, Tensor<3>)>) -> Option<Self> {
        let slots = match &buffers {
            Some((keys, values)) if keys.dims() == values.dims() => keys.dims()[0],
            Some(_) => return None,
            None => 0,
        };
        let sound = match retention {
            Retention::Nothing => slots == 0,
            Retention::Everything => slots >= len,
            Retention::Last(most) => (len.min(most)..=most).contains(&slots),
        };
        (sound && buffers.is_some() == (slots > 0)).then_some(Self { retention, len, buffers })
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
    pub fn past(&self) -> Option<(&Tensor<3>, &Tensor<3>)> {
        self.buffers.as_ref().map(|(keys, values)| (keys, values))
    }

    /// Size of the buffers in bytes.
    pub fn bytes_len(&self) -> usize {
        self.buffers.as_ref().map_or(0, |(keys, _)| 2 * 4 * keys.dims().iter().product::<usize>())
    }

    /// Appends the keys and values of the next tokens, `[tokens, kv_heads, head_dim]`.
    pub fn extend(&mut self, keys: Tensor<3>, values: Tensor<3>) {
        let [tokens, kv_heads, head_dim] = keys.dims();
        let end = self.len + tokens;
        let most = match self.retention {
            Retention::Nothing => {
                self.len = end;
                return;
            }
            Retention::Everything => usize::MAX,
            Retention::Last(slots) => slots.max(1),
        };
        let shape = [kv_heads, head_dim];
        let (old_keys, old_values) = self.grow(end.min(most), most, shape, &keys.device());
        self.buffers = Some((write(old_keys, keys, self.len), write(old_values, values, self.len)));
        self.len = end;
    }

    /// Takes the buffers out, with at least `needed` slots.
    fn grow(
        &mut self,
        needed: usize,
        most: usize,
        [kv_heads, head_dim]: [usize; 2],
        device: &Device,
    ) -> (Tensor<3>, Tensor<3>) {
        let held = self.buffers.take();
        let slots = held.as_ref().map_or(0, |(keys, _)| keys.dims()[0]);
        if let Some(buffers) = held.clone().filter(|_| slots >= needed) {
            drop(held); // the buffers must have one owner to be written in place
            return buffers;
        }
        let slots = needed.next_power_of_two().max(FIRST_SLOTS).min(most);
        let enlarge = |old: Option<Tensor<3>>| {
            let new = Tensor::zeros([slots, kv_heads, head_dim], device);
            match old {
                Some(old) => {
                    let [held, ..] = old.dims();
                    new.slice_assign([0..held, 0..kv_heads, 0..head_dim], old)
                }
                None => new,
            }
        };
        let (keys, values) = held.unzip();
        (enlarge(keys), enlarge(values))
    }

    /// Forgets all but the first `len` tokens (undo, rejected drafts). Returns `false`, and changes nothing, when a
    /// ring has already overwritten tokens that the shortened sequence would need.
    #[must_use]
    pub fn truncate(&mut self, len: usize) -> bool {
        if len >= self.len {
            return true;
        }
        let slots = self.buffers.as_ref().map_or(0, |(keys, _)| keys.dims()[0]);
        let wrapped = matches!(self.retention, Retention::Last(_)) && self.len > slots;
        if len == 0 {
            *self = Self::new(self.retention);
        } else if wrapped || self.retention == Retention::Nothing {
            return false;
        } else {
            self.len = len;
        }
        true
    }
}

/// Writes rows `new`, the first of them at position `start`, into a ring; older rows give way.
fn write(ring: Tensor<3>, new: Tensor<3>, start: usize) -> Tensor<3> {
    let [slots, kv_heads, head_dim] = ring.dims();
    let [tokens, ..] = new.dims();
    let rows = |from: usize, to: usize| new.clone().slice([from..to, 0..kv_heads, 0..head_dim]);
    // of more rows than slots only the last matter
    let skipped = tokens.saturating_sub(slots);
    let slot = (start + skipped) % slots;
    let kept = tokens - skipped;
    let before_wrap = kept.min(slots - slot);
    let assign = |ring: Tensor<3>, slot: usize, rows: Tensor<3>| {
        let len = rows.dims()[0];
        ring.slice_assign([slot..slot + len, 0..kv_heads, 0..head_dim], rows)
    };
    let first = if before_wrap == tokens { new.clone() } else { rows(skipped, skipped + before_wrap) };
    let ring = assign(ring, slot, first);
    if before_wrap < kept { assign(ring, 0, rows(skipped + before_wrap, tokens)) } else { ring }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_device;

    fn rows(positions: std::ops::Range<usize>, device: &Device) -> Tensor<3> {
        let values: Vec<f32> = positions.clone().flat_map(|p| [p as f32, -(p as f32)]).collect();
        Tensor::from_data(burn::tensor::TensorData::new(values, [positions.len(), 1, 2]), device)
    }

    fn held(cache: &KvCache) -> Vec<f32> {
        let (keys, _) = cache.past().unwrap();
        keys.clone().slice([0..keys.dims()[0], 0..1, 0..1]).into_data().try_into_vec().unwrap()
    }

    #[test]
    fn position_p_lies_in_slot_p_modulo_the_ring() {
        for device in test_device::all() {
            for span in [1, 2, 3, 7, 100] {
                for chunk in [1, 2, 5, 13] {
                    let mut cache = KvCache::new(Retention::Last(span));
                    let mut start = 0;
                    while start < 150 {
                        cache.extend(rows(start..start + chunk, &device), rows(start..start + chunk, &device));
                        start += chunk;
                        let held = held(&cache);
                        for p in start.saturating_sub(span)..start {
                            assert_eq!(held[p % held.len()], p as f32, "span {span} chunk {chunk} end {start}");
                        }
                    }
                    assert!(held(&cache).len() <= span);
                }
            }
        }
    }

    #[test]
    fn a_fork_does_not_see_what_the_other_reads() {
        for device in test_device::all() {
            let mut cache = KvCache::new(Retention::Everything);
            cache.extend(rows(0..3, &device), rows(0..3, &device));
            let mut fork = cache.clone();
            fork.extend(rows(90..91, &device), rows(90..91, &device));
            cache.extend(rows(3..4, &device), rows(3..4, &device));
            assert_eq!((held(&cache)[3], held(&fork)[3]), (3.0, 90.0));
        }
    }

    #[test]
    fn a_restored_cache_goes_on_like_the_one_that_was_kept() {
        for device in test_device::all() {
            let mut cache = KvCache::new(Retention::Last(4));
            cache.extend(rows(0..6, &device), rows(0..6, &device));
            let kept = cache.past().map(|(keys, values)| (keys.clone(), values.clone()));
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
