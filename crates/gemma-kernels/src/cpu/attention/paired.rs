//! Keys and values in bf16, rounded and laid together once for all queries of a prompt.

use super::kv::{Run, Tile};
use super::{Heads, Sequence};
use crate::cpu::bf16;
use crate::cpu::buffer::Buffer;
use crate::cpu::isa::{Isa, pairs_are_faster};
use crate::cpu::output::Output;
use crate::cpu::pool;
use crate::{ActivationPrecision, AttendParams, Phase};
use std::ops::Range;

/// Keys that a task lays together.
const STRETCH: usize = 128;

/// The keys and values that any query of a sequence sees, as words of two bf16 values.
pub(super) struct Paired {
    /// Two neighbours of a key, `[kv_heads, keys, head_dim / 2]`.
    k: Buffer<f32>,
    /// The values of two neighbouring keys, `[kv_heads, keys / 2, head_dim]`.
    v: Buffer<f32>,
    /// The position of the first key, which is even: a pair is the same whatever is visible.
    base: usize,
    /// How many there are, an even number; those that no query sees are zeros.
    keys: usize,
    head_dim: usize,
}

impl Paired {
    /// `None` where they are not to be rounded, or nothing is gained.
    pub(super) fn new(isa: Isa, sequence: &Sequence<'_>, heads: Heads, params: &AttendParams) -> Option<Self> {
        let Heads { kv_heads, head_dim, .. } = heads;
        let wanted = params.activations != ActivationPrecision::F32 && sequence.phase == Phase::Prefill;
        let possible = head_dim.is_multiple_of(2) && isa >= Isa::Avx512Bf16;
        if !(wanted && possible && sequence.len > 0 && pairs_are_faster()) {
            return None;
        }
        let seen = sequence.visible(0..sequence.len, params);
        let base = seen.start / 2 * 2;
        let count = (seen.end - base).next_multiple_of(2);
        let mut paired = Self {
            k: Buffer::zeroed(kv_heads * count * head_dim / 2),
            v: Buffer::zeroed(kv_heads * count / 2 * head_dim),
            base,
            keys: count,
            head_dim,
        };
        let to = [Output(paired.k.as_mut_ptr()), Output(paired.v.as_mut_ptr())];
        let stretches = count.div_ceil(STRETCH);
        pool::for_each(kv_heads * stretches, |task| {
            let (head, first) = (task / stretches, task % stretches * STRETCH);
            // two keys and their values
            let mut rows = vec![0f32; 4 * head_dim];
            for pair in (first..count.min(first + STRETCH)).step_by(2) {
                let (first_row, second_row) = rows.split_at_mut(2 * head_dim);
                let [first, second] = [(pair, first_row), (pair + 1, second_row)].map(|(key, row)| {
                    let (k, v) = row.split_at_mut(head_dim);
                    if seen.contains(&(base + key)) {
                        return sequence.keys.run(base + key, head, heads).0.read([k, v]);
                    }
                    k.fill(0.0);
                    v.fill(0.0);
                    [&*k, &*v]
                });
                let at = (head * count + pair) * head_dim / 2;
                // SAFETY: the ISA says that the CPU has the instructions; both keys' places are this task's.
                unsafe {
                    let k = std::slice::from_raw_parts_mut(to[0].at(at), head_dim);
                    let (words, more_words) = k.split_at_mut(head_dim / 2);
                    bf16::pair(first[0], words);
                    bf16::pair(second[0], more_words);
                    bf16::interleave(first[1].as_ptr(), second[1].as_ptr(), head_dim, to[1].at(at));
                }
            }
        });
        Some(paired)
    }

    /// The keys of a tile, in whole pairs.
    #[inline(always)]
    pub(super) fn tile(&self, kv_head: usize, position: usize, count: usize, tile: &mut Tile) {
        let words = self.head_dim / 2;
        let at = (kv_head * self.keys + position - self.base) * words;
        let keys = Run { at: self.k[at..].as_ptr(), step: words, count };
        // two values in each word
        let values = Run { at: self.v[at..].as_ptr(), step: self.head_dim, count: count / 2 };
        tile.one_run(keys, values);
    }

    /// The positions in whole pairs.
    pub(super) fn pairs(keys: Range<usize>) -> Range<usize> {
        keys.start / 2 * 2..keys.end.next_multiple_of(2)
    }
}
