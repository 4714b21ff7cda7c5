//! Which keys a query sees: the one rule, for every family, layer and chunk.
//!
//! Causal attention, sliding windows, bidirectional attention and blocks that see themselves both ways (the image and the
//! prompt of PaliGemma, the images of Gemma 3) are one rule about *positions*. What a query sees is always an
//! interval of positions, so kernels walk an interval and need no mask, a cache may store its keys anywhere, and a
//! prompt may be prefilled in chunks of any size.

use crate::ActivationPrecision;
use std::ops::Range;

/// Which keys a query of a layer sees, blocks aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// Itself and the keys before it.
    Causal {
        /// The sliding window: how many keys a query sees, itself included; `None`: all. At least 1.
        window: Option<usize>,
    },
    /// Keys on both sides, as in encoders: the whole sequence belongs to one call.
    Bidirectional {
        /// A query at `i` sees the keys `j` with `|i - j| < radius`; `None`: all. At least 1.
        radius: Option<usize>,
    },
}

impl Visibility {
    /// Causal attention without a window.
    pub const CAUSAL: Self = Self::Causal { window: None };
    /// Attention of every token to every token.
    pub const ALL: Self = Self::Bidirectional { radius: None };

    /// The sliding window of causal attention, in keys; `None` where there is none.
    pub fn window(&self) -> Option<usize> {
        match self {
            Self::Causal { window } => *window,
            Self::Bidirectional { .. } => None,
        }
    }

    /// Whether the token at position `query` sees the one at position `key`. `blocks` are the intervals of positions
    /// that also see themselves both ways. The look forward in a block has no limit; a window limits the look back,
    /// but not in a block that begins the sequence: that is a prefix (PaliGemma), other blocks are images (Gemma 3).
    pub fn allows(&self, query: usize, key: usize, blocks: &[Range<usize>]) -> bool {
        let reaches = |block: &Range<usize>| match self {
            Self::Causal { window: Some(window) } if block.start > 0 => query < key.saturating_add(*window),
            _ => true,
        };
        let in_one_block = blocks.iter().any(|block| block.contains(&query) && block.contains(&key) && reaches(block));
        in_one_block
            || match self {
                Self::Causal { window } => {
                    key <= query && window.is_none_or(|window| query < key.saturating_add(window))
                }
                Self::Bidirectional { radius } => radius.is_none_or(|radius| query.abs_diff(key) < radius),
            }
    }

    /// The positions that `query` sees, of `known` tokens: what [`allows`](Self::allows) says, as a range. (Whatever
    /// the rule, a query sees itself, so a block that it lies in and its window overlap.)
    pub fn visible(&self, query: usize, known: usize, blocks: &[Range<usize>]) -> Range<usize> {
        let mut seen = match self {
            Self::Causal { window } => {
                let first = window.map_or(0, |window| (query + 1).saturating_sub(window));
                first..query + 1
            }
            Self::Bidirectional { radius: None } => 0..known,
            Self::Bidirectional { radius: Some(radius) } => {
                (query + 1).saturating_sub(*radius)..query.saturating_add(*radius)
            }
        };
        for block in blocks.iter().filter(|block| block.contains(&query)) {
            let start = match self {
                Self::Causal { window: Some(_) } if block.start > 0 => seen.start,
                _ => seen.start.min(block.start),
            };
            seen = start..seen.end.max(block.end);
        }
        let end = seen.end.min(known);
        seen.start.min(end)..end
    }

    /// The first position that a query at `next` or later sees: a cache may drop the keys before it.
    pub fn first_needed(&self, next: usize) -> usize {
        self.window().map_or(0, |window| (next + 1).saturating_sub(window))
    }
}

/// How the scores of a layer are formed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttendParams {
    /// Which keys a query sees.
    pub visibility: Visibility,
    /// Factor on the dot product of a query and a key.
    pub scale: f32,
    /// `cap`: scores become `cap tanh(score / cap)`, before the softmax.
    pub softcap: Option<f32>,
    /// How finely the CPU sees queries, keys, values and weights of a prompt: in bf16, where that is faster, unless
    /// [`F32`](ActivationPrecision::F32).
    pub activations: ActivationPrecision,
}

impl Default for AttendParams {
    /// Causal attention with scores as they are.
    fn default() -> Self {
        Self { visibility: Visibility::CAUSAL, scale: 1.0, softcap: None, activations: ActivationPrecision::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every rule, and every set of up to two blocks.
    fn rules(known: usize) -> Vec<(Visibility, Vec<Range<usize>>)> {
        let sizes = [None, Some(1), Some(2), Some(5), Some(usize::MAX)];
        let causal = sizes.map(|window| Visibility::Causal { window });
        let both = sizes.map(|radius| Visibility::Bidirectional { radius });
        let intervals: Vec<Range<usize>> = (0..known).flat_map(|a| (a..=known).map(move |b| a..b)).collect();
        let mut sets = vec![vec![]];
        for (i, first) in intervals.iter().enumerate() {
            sets.push(vec![first.clone()]);
            sets.extend(intervals[i..].iter().map(|second| vec![first.clone(), second.clone()]));
        }
        let rules = causal.into_iter().chain(both);
        rules.flat_map(|rule| sets.iter().map(move |set| (rule, set.clone()))).collect()
    }

    #[test]
    fn range_and_rule_agree_everywhere() {
        for known in [1, 2, 7] {
            for (rule, blocks) in rules(known) {
                for query in 0..known {
                    let range = rule.visible(query, known, &blocks);
                    assert!(range.contains(&query), "{rule:?} {blocks:?}: {query} sees itself");
                    for key in 0..known {
                        let allowed = rule.allows(query, key, &blocks);
                        assert_eq!(range.contains(&key), allowed, "{rule:?} {blocks:?} {query} {key}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_rules_are_those_of_the_papers() {
        let seen =
            |rule: Visibility, query| -> Vec<usize> { (0..9).filter(|key| rule.allows(query, *key, &[])).collect() };
        assert_eq!(seen(Visibility::CAUSAL, 4), [0, 1, 2, 3, 4]);
        assert_eq!(seen(Visibility::Causal { window: Some(3) }, 4), [2, 3, 4]);
        assert_eq!(seen(Visibility::ALL, 4).len(), 9);
        assert_eq!(seen(Visibility::Bidirectional { radius: Some(3) }, 4), [2, 3, 4, 5, 6]);
        // the look forward in an image has no limit, the look back has that of the window
        let image = [2..7, 8..9];
        let rule = Visibility::Causal { window: Some(2) };
        let seen = |query| -> Vec<usize> { (0..9).filter(|key| rule.allows(query, *key, &image)).collect() };
        assert_eq!((seen(5), seen(7), seen(1)), (vec![4, 5, 6], vec![6, 7], vec![0, 1]));
        assert_eq!(seen(2), [1, 2, 3, 4, 5, 6]);
        // a prefix sees itself whole
        assert!((0..7).all(|query| (0..7).all(|key| rule.allows(query, key, &[0..7]))));
    }

    /// What a cache may drop is what no later query sees.
    #[test]
    fn what_is_not_needed_is_never_seen() {
        for rule in [None, Some(1), Some(2), Some(5)].map(|window| Visibility::Causal { window }) {
            for next in 0..12 {
                let seen = (next..20).map(|query| rule.visible(query, 20, &[]).start).min();
                assert_eq!(seen, Some(rule.first_needed(next)), "{rule:?} {next}");
            }
        }
    }
}
