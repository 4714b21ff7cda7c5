//! Values in bf16, rounded and laid together once for all queries of a prompt.
//!
//! Keys and queries are not rounded: a score is a large number that goes through an exponential function, where what bf16
//! loses of them shows; of a value, and of its weight, it is averaged away.

use super::kv::{Run, Tile};
use super::{Heads, Sequence};
use crate::AttendParams;
use crate::cpu::bf16;
use crate::cpu::buffer::Buffer;
use crate::cpu::isa::{Isa, pairs_are_faster};
use crate::cpu::output::Output;
use crate::cpu::pool;
use std::ops::Range;

/// Keys whose values a task lays together.
const STRETCH: usize = 128;

/// The values that any query of a sequence sees.
pub(super) struct Paired {
    /// Those of two neighbouring keys, as words of two bf16 values, `[kv_heads, keys / 2, head_dim]`.
    v: Buffer<f32>,
    /// The position of the first key, which is even: a pair is the same whatever is visible.
    base: usize,
    /// How many there are, an even number; the values of those that no query sees are zeros.
    keys: usize,
    /// The end of those that are seen.
    end: usize,
    head_dim: usize,
}

impl Paired {
    /// `None` where nothing is gained.
    pub(super) fn new(isa: Isa, sequence: &Sequence<'_>, heads: Heads, params: &AttendParams) -> Option<Self> {
        let Heads { kv_heads, head_dim, .. } = heads;
        if isa < Isa::Avx512Bf16 || !pairs_are_faster() {
            return None;
        }
        let seen = sequence.visible(0..sequence.len, params);
        let base = seen.start / 2 * 2;
        let count = (seen.end - base).next_multiple_of(2);
        let v = Buffer::zeroed(kv_heads * count / 2 * head_dim);
        let mut paired = Self { v, base, keys: count, end: seen.end, head_dim };
        let to = Output(paired.v.as_mut_ptr());
        let stretches = count.div_ceil(STRETCH);
        pool::for_each(kv_heads * stretches, |task| {
            let (head, first) = (task / stretches, task % stretches * STRETCH);
            let mut wide = vec![0f32; 2 * head_dim];
            for pair in (first..count.min(first + STRETCH)).step_by(2) {
                let (wide, more) = wide.split_at_mut(head_dim);
                let [first, second] = [(pair, wide), (pair + 1, more)].map(|(key, wide)| {
                    if seen.contains(&(base + key)) {
                        return sequence.keys.run(base + key, head, heads).0.value(wide);
                    }
                    wide.fill(0.0);
                    wide
                });
                // SAFETY: the ISA says that the CPU has the instructions; the pair's place is this task's.
                unsafe {
                    let to = to.at((head * count + pair) * head_dim / 2);
                    bf16::interleave(first.as_ptr(), second.as_ptr(), head_dim, to);
                }
            }
        });
        Some(paired)
    }

    /// How many of the `count` keys from a position on there are to be read; the others are hidden from every query.
    #[inline(always)]
    pub(super) fn readable(&self, position: usize, count: usize) -> (usize, usize) {
        (count.min(self.end - position), self.end)
    }

    /// Gives a tile of `count` keys, an even number, their values.
    #[inline(always)]
    pub(super) fn pair(&self, kv_head: usize, position: usize, count: usize, tile: &mut Tile) {
        let at = (kv_head * self.keys + position - self.base) / 2 * self.head_dim;
        // two values in each word
        tile.replace_values(count, Run { at: self.v[at..].as_ptr(), step: self.head_dim, count: count / 2 });
    }

    /// The positions in whole pairs.
    pub(super) fn pairs(keys: Range<usize>) -> Range<usize> {
        keys.start / 2 * 2..keys.end.next_multiple_of(2)
    }
}
