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
    adapted: Vec<(Range<usize>, Phase, Arc<[AdapterChoice]>)>,
}

/// Rows to which the factors of an adapter are added alike.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AdaptedRows {
    /// Intervals of rows, in order; none follows another without a gap.
    pub(crate) ranges: Vec<Range<usize>>,
    /// The phases of these rows, so many at a time.
    pub(crate) phases: Vec<(usize, Phase)>,
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
                adapted.push((range, segment.phase, Arc::clone(&segment.adapters)));
            }
        }
        Self { phases: segments.iter().map(|segment| (segment.len, segment.phase)).collect(), adapted }
    }

    /// Rows of one request, which chose no adapter.
    pub fn in_phase(rows: usize, phase: Phase) -> Self {
        Self { phases: vec![(rows, phase)], adapted: Vec::new() }
    }

    /// Rows of one request, which chose no adapter, in the [phase](Phase::of_len) that so many suggest.
    pub fn of_one(rows: usize) -> Self {
        Self::in_phase(rows, Phase::of_len(rows))
    }

    /// The phases, so many rows at a time.
    pub fn phases(&self) -> &[(usize, Phase)] {
        &self.phases
    }

    /// The phase of all rows, where they are in the same.
    pub(crate) fn phase(&self) -> Option<Phase> {
        let (_, first) = self.phases.first()?;
        self.phases.iter().all(|(_, phase)| phase == first).then_some(*first)
    }

    /// How much of an adapter's effect all rows get, where all get the same.
    pub(crate) fn strength_of_all(&self, groups: &[AdaptedRows]) -> Option<f32> {
        let rows: usize = self.phases.iter().map(|(rows, _)| rows).sum();
        match groups {
            [AdaptedRows { ranges, strength, .. }] if *ranges == [0..rows] => Some(*strength),
            _ => None,
        }
    }

    /// The rows to which factors are added: those whose requests chose `adapter`, or all rows. Rows with the same strength
    /// are computed together.
    pub(crate) fn adapted(&self, adapter: Option<usize>) -> Vec<AdaptedRows> {
        let Some(adapter) = adapter else {
            let rows: usize = self.phases.iter().map(|(rows, _)| rows).sum();
            let all = AdaptedRows { ranges: vec![0..rows], phases: self.phases.clone(), strength: 1.0 };
            return if rows == 0 { Vec::new() } else { vec![all] };
        };
        let mut groups: Vec<AdaptedRows> = Vec::new();
        for (range, phase, choices) in &self.adapted {
            for AdapterChoice { strength, .. } in choices.iter().filter(|choice| choice.adapter == adapter) {
                let (range, phase) = (range.clone(), (range.len(), *phase));
                match groups.iter_mut().find(|group| group.strength == *strength) {
                    None => groups.push(AdaptedRows { ranges: vec![range], phases: vec![phase], strength: *strength }),
                    Some(group) => {
                        group.phases.push(phase);
                        match group.ranges.last_mut() {
                            Some(last) if last.end == range.start => last.end = range.end,
                            _ => group.ranges.push(range),
                        }
                    }
                }
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
    fn rows_have_a_phase_where_all_are_in_it() {
        let phase = |lens: [usize; 2]| Rows::of(&segments(&lens, &[&[], &[]])).phase();
        assert_eq!([[1, 1], [90, 70], [1, 70]].map(phase), [Some(Phase::Decode), Some(Phase::Prefill), None]);
        assert_eq!(Rows::of(&[]).phase(), None);
    }

    #[test]
    fn rows_with_one_adapter_and_strength_are_computed_together() {
        let a: &[(usize, f32)] = &[(0, 1.0)];
        let rows = Rows::of(&segments(&[2, 1, 3, 1, 2], &[a, a, &[], &[(1, 0.5), (0, 1.0)], &[(0, 0.25)]]));
        let group = |ranges: &[Range<usize>], phases: &[usize], strength| AdaptedRows {
            ranges: ranges.to_vec(),
            phases: phases.iter().map(|rows| (*rows, Phase::of_len(*rows))).collect(),
            strength,
        };
        assert_eq!(rows.adapted(Some(0)), [group(&[0..3, 6..7], &[2, 1, 1], 1.0), group(&[7..9], &[2], 0.25)]);
        assert_eq!(rows.adapted(Some(1)), [group(&[6..7], &[1], 0.5)]);
        assert_eq!(rows.adapted(Some(2)), []);
        assert_eq!(rows.adapted(None), [group(&[0..9], &[2, 1, 3, 1, 2], 1.0)]);
        assert_eq!(rows.strength_of_all(&rows.adapted(None)), Some(1.0));
        assert_eq!(rows.strength_of_all(&rows.adapted(Some(0))), None);
    }
}
