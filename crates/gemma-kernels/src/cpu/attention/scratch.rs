//! What a thread keeps from task to task.

use super::kv::{KEYS, PANEL};
use crate::cpu::buffer::Buffer;
use crate::math;
use std::cell::RefCell;

/// Values of a key in a panel.
pub(super) const DEPTH: usize = 256;
/// Values from one key of a panel to the next: a cache line more, so that keys do not fall into the same sets.
pub(super) const PANEL_ROW: usize = DEPTH + 16;
/// The most queries that lie side by side: the widest block of any instruction set.
pub(super) const WIDEST: usize = 32;

/// Buffers of one thread. A row is as long as a block is wide, unless said otherwise.
pub(super) struct Scratch {
    /// Queries `[width, head_dim]`, and outputs at the end.
    pub(super) rows: Buffer<f32>,
    /// Queries packed, `[head_dim, width]`; or, where the vectors run along a head, sums, `[width, head_dim]`.
    pub(super) queries: Buffer<f32>,
    /// Some keys, `[PANEL, PANEL_ROW]`.
    pub(super) panel: Buffer<f32>,
    /// Scores, then weights, `[KEYS, width]`.
    pub(super) scores: Buffer<f32>,
    /// Weighted sums of values, `[head_dim, width]`.
    pub(super) sums: Buffer<f32>,
    /// Keys and values that are not kept as f32, widened, `[KEYS, head_dim]` each.
    pub(super) wide: [Buffer<f32>; 2],
    /// The highest score of each query.
    pub(super) highest: [f32; WIDEST],
    /// The sum of each query's weights.
    pub(super) totals: [f32; WIDEST],
    width: usize,
}

thread_local! {
    pub(super) static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch {
            rows: Buffer::empty(),
            queries: Buffer::empty(),
            panel: Buffer::empty(),
            scores: Buffer::empty(),
            sums: Buffer::empty(),
            wide: [Buffer::empty(), Buffer::empty()],
            highest: [0.0; WIDEST],
            totals: [0.0; WIDEST],
            width: 0,
        })
    };
}

impl Scratch {
    /// Makes room, and begins anew.
    pub(super) fn begin(&mut self, head_dim: usize, width: usize) {
        for buffer in [&mut self.rows, &mut self.queries, &mut self.sums] {
            buffer.resize(head_dim * width);
        }
        self.panel.resize(PANEL * PANEL_ROW);
        self.scores.resize(KEYS * width);
        self.sums.fill(0.0);
        self.highest = [f32::NEG_INFINITY; WIDEST];
        self.totals = [0.0; WIDEST];
        self.width = width;
    }

    /// Writes the sums, highest scores and totals of the first `count` queries to `to`, `[head_dim + 2, count]`.
    pub(super) fn store(&self, to: &mut [f32], count: usize) {
        let rows = self.sums.chunks_exact(self.width).chain([&self.highest[..], &self.totals[..]]);
        for (to, row) in to.chunks_exact_mut(count).zip(rows) {
            to.copy_from_slice(&row[..count]);
        }
    }

    /// Takes up what was stored of `count` queries, each part weighted by how far its highest score lies below the
    /// highest of all.
    pub(super) fn merge<'a>(&mut self, parts: impl Iterator<Item = &'a [f32]> + Clone, count: usize) {
        let dim = self.sums.len() / self.width;
        let split = |part: &'a [f32]| {
            let (sums, rest) = part.split_at(dim * count);
            let (highest, rest) = rest.split_at(count);
            (sums, highest, &rest[..count])
        };
        for part in parts.clone() {
            self.highest.iter_mut().zip(split(part).1).for_each(|(highest, other)| *highest = highest.max(*other));
        }
        for part in parts {
            let (sums, highest, totals) = split(part);
            let mut weights = [0f32; WIDEST];
            for (i, other) in highest.iter().enumerate() {
                // a part in which a query sees nothing has no weight
                weights[i] = if *other == f32::NEG_INFINITY { 0.0 } else { math::exp(other - self.highest[i]) };
                self.totals[i] += weights[i] * totals[i];
            }
            for (sums, others) in self.sums.chunks_exact_mut(self.width).zip(sums.chunks_exact(count)) {
                for ((sum, other), weight) in sums.iter_mut().zip(others).zip(&weights) {
                    *sum += weight * other;
                }
            }
        }
    }
}
