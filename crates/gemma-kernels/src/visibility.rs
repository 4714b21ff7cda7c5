//! Who may look at whom: the one rule, for every family, layer and chunk.
//!
//! Causal, windowed and prefix attention are one rule about *positions*. A cache may therefore store its keys in
//! any order (a ring does), and a prompt may be read in chunks of any size.

use crate::ActivationPrecision;
use std::ops::Range;

/// What the queries of one segment see, and how their scores are formed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttendParams {
    /// Position of the segment's first token: the number of tokens of its sequence that were read before.
    pub start: usize,
    /// Tokens at the start of the sequence that see each other both ways (PaliGemma's image and prompt).
    pub prefix_len: usize,
    /// How many keys a query sees, itself included; `None`: all. At least 1.
    pub window: Option<usize>,
    /// Factor on the dot product of a query and a key.
    pub scale: f32,
    /// `cap`: scores become `cap tanh(score / cap)`, before the softmax.
    pub softcap: Option<f32>,
    /// How finely the CPU sees queries, keys, values and weights of many tokens: in bf16, where that is faster,
    /// unless [`F32`](ActivationPrecision::F32).
    pub activations: ActivationPrecision,
}

impl AttendParams {
    /// Whether the token at position `query` sees the one at position `key`.
    pub fn allows(&self, query: usize, key: usize) -> bool {
        let both_in_prefix = query < self.prefix_len && key < self.prefix_len;
        both_in_prefix || (key <= query && self.window.is_none_or(|window| query < key.saturating_add(window)))
    }

    /// The positions that `query` sees, of `known` tokens: what [`allows`](Self::allows) says, as a range. (A query
    /// inside the prefix sees the whole prefix, which contains its window.)
    pub fn visible(&self, query: usize, known: usize) -> Range<usize> {
        if query < self.prefix_len {
            0..self.prefix_len.min(known)
        } else {
            let first = self.window.map_or(0, |window| (query + 1).saturating_sub(window));
            first..(query + 1).min(known)
        }
    }

    /// The position held by a slot of a cache with `capacity` slots before this segment was read: the largest
    /// `p < start` with `p % capacity == slot`; `None` for a slot that holds nothing yet.
    pub fn position_of_slot(&self, slot: usize, capacity: usize) -> Option<usize> {
        if slot >= self.start {
            return None;
        }
        let last = self.start - 1;
        Some(last - (last + capacity - slot) % capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(start: usize, prefix_len: usize, window: Option<usize>) -> AttendParams {
        AttendParams { start, prefix_len, window, scale: 1.0, softcap: None, activations: ActivationPrecision::F32 }
    }

    #[test]
    fn range_and_rule_agree_everywhere() {
        for known in 0..12 {
            for prefix in 0..=known {
                for window in [None, Some(1), Some(2), Some(5), Some(usize::MAX)] {
                    let rule = params(0, prefix, window);
                    for query in 0..known {
                        let range = rule.visible(query, known);
                        for key in 0..known {
                            assert_eq!(range.contains(&key), rule.allows(query, key), "{rule:?} {query} {key}");
                        }
                    }
                }
            }
        }
    }

    /// For every window, first chunk and chunk size, a ring of `window` slots holds each key that a query sees.
    #[test]
    fn a_ring_shows_each_query_what_the_full_history_would() {
        for window in 1..6 {
            for first in 1..8 {
                for chunk in 1..6 {
                    let mut ring: Vec<Option<usize>> = vec![None; window];
                    let (mut start, mut len) = (0, first);
                    while start < 20 {
                        let rule = params(start, 0, Some(window));
                        for (slot, held) in ring.iter().enumerate() {
                            assert_eq!(rule.position_of_slot(slot, window), *held, "start {start} slot {slot}");
                        }
                        for query in start..start + len {
                            let shown: Vec<usize> = ring
                                .iter()
                                .flatten()
                                .copied()
                                .chain(start..start + len)
                                .filter(|key| rule.allows(query, *key))
                                .collect();
                            let expected = (0..=query).filter(|key| rule.allows(query, *key)).count();
                            assert_eq!(
                                shown.len(),
                                expected,
                                "window {window} first {first} chunk {chunk} query {query}"
                            );
                        }
                        for position in start..start + len {
                            ring[position % window] = Some(position);
                        }
                        (start, len) = (start + len, chunk);
                    }
                }
            }
        }
    }
}
