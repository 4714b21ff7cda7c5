//! The rows of a call, as a row-wise layer sees them: what their requests are doing, and which adapters they chose.

use crate::{AdapterChoice, Segment};
use gemma_kernels::Phase;
use std::ops::Range;
use std::sync::Arc;

/// The rows of a call, request by request: their phases, which choose the arithmetic, and the adapters that they chose.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// So many rows at a time.
    phases: Vec<(usize, Phase)>,
    /// The rows whose requests chose adapters.
    adapted: Vec<(Range<usize>, Arc<[AdapterChoice]>)>,
}

/// Rows to which the factors of an adapter are added alike.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AdaptedRows {
    /// Intervals of rows, in order; none follows another without a gap.
    pub(crate) ranges: Vec<Range<usize>>,
    /// How much of the adapter's effect.
    pub(crate) strength: f32,
}

impl Rows {
    /// The rows of these segments, one after the other.
    pub fn of(segments: &[Segment]) -> Self {
        let mut first = 0;
        let mut adapted = Vec::new();
        for segment in segments {
            let range = first..first + segment.len;
            first = range.end;
            if !segment.adapters.is_empty() && !range.is_empty() {
                adapted.push((range, Arc::clone(&segment.adapters)));
            }
        }
        Self { phases: segments.iter().map(|segment| (segment.len, segment.phase)).collect(), adapted }
    }

    /// Rows of one request, which chose no adapter.
    pub fn in_phase(rows: usize, phase: Phase) -> Self {
        Self { phases: vec![(rows, phase)], adapted: Vec::new() }
    }

    /// The phases, so many rows at a time.
    pub fn phases(&self) -> &[(usize, Phase)] {
        &self.phases
    }

    /// Whether all rows are prefilled.
    pub(crate) fn are_prompts(&self) -> bool {
        self.phases.iter().all(|(_, phase)| *phase == Phase::Prefill)
    }

    /// How much of an adapter's effect all rows get, where all get the same.
    pub(crate) fn strength_of_all(&self, groups: &[AdaptedRows]) -> Option<f32> {
        let rows: usize = self.phases.iter().map(|(rows, _)| rows).sum();
        match groups {
            [AdaptedRows { ranges, strength }] if *ranges == [0..rows] => Some(*strength),
            _ => None,
        }
    }

    /// The rows to which factors are added: those whose requests chose `adapter`, or all rows. Rows with the same strength
    /// are computed together or, with `apart`, each request's by themselves, so that they are computed as without company.
    pub(crate) fn adapted(&self, adapter: Option<usize>, apart: bool) -> Vec<AdaptedRows> {
        let mut wanted: Vec<(Range<usize>, f32)> = Vec::new();
        match adapter {
            None => {
                let mut first = 0;
                for (rows, _) in &self.phases {
                    wanted.push((first..first + rows, 1.0));
                    first += rows;
                }
            }
            Some(adapter) => {
                for (range, choices) in &self.adapted {
                    let chosen = choices.iter().filter(|choice| choice.adapter == adapter);
                    wanted.extend(chosen.map(|choice| (range.clone(), choice.strength)));
                }
            }
        }
        let mut groups: Vec<AdaptedRows> = Vec::new();
        for (range, strength) in wanted.into_iter().filter(|(range, _)| !range.is_empty()) {
            match groups.iter_mut().find(|group| group.strength == strength && !apart) {
                None => groups.push(AdaptedRows { ranges: vec![range], strength }),
                Some(group) => match group.ranges.last_mut() {
                    Some(last) if last.end == range.start => last.end = range.end,
                    _ => group.ranges.push(range),
                },
            }
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(lens: &[usize], choices: &[&[(usize, f32)]]) -> Vec<Segment> {
        let choice = |&(adapter, strength): &(usize, f32)| AdapterChoice { adapter, strength };
        let adapters = choices.iter().map(|choices| choices.iter().map(choice).collect::<Vec<_>>());
        lens.iter().zip(adapters).map(|(len, adapters)| Segment::causal(0, *len).with_adapters(adapters)).collect()
    }

    #[test]
    fn rows_with_one_adapter_and_strength_are_computed_together_or_apart() {
        let a: &[(usize, f32)] = &[(0, 1.0)];
        let rows = Rows::of(&segments(&[2, 1, 3, 1, 2], &[a, a, &[], &[(1, 0.5), (0, 1.0)], &[(0, 0.25)]]));
        let group = |ranges: &[Range<usize>], strength| AdaptedRows { ranges: ranges.to_vec(), strength };
        assert_eq!(rows.adapted(Some(0), false), [group(&[0..3, 6..7], 1.0), group(&[7..9], 0.25)]);
        let apart = [0..2, 2..3, 6..7].map(|range| group(&[range], 1.0));
        assert_eq!(rows.adapted(Some(0), true)[..3], apart);
        assert_eq!(rows.adapted(Some(1), false), [group(&[6..7], 0.5)]);
        assert_eq!(rows.adapted(Some(2), false), []);
        assert_eq!(rows.adapted(None, false), [group(&[0..9], 1.0)]);
        assert_eq!(rows.adapted(None, true).len(), 5);
        assert_eq!(rows.strength_of_all(&rows.adapted(None, false)), Some(1.0));
        assert_eq!(rows.strength_of_all(&rows.adapted(Some(0), false)), None);
        assert_eq!(rows.strength_of_all(&rows.adapted(None, true)), None);
    }
}
