//! Where one sequence's tokens lie on the flat token axis.

use burn::tensor::{Int, Tensor, TensorData};

/// One stretch of tokens of one sequence.
///
/// All sequences of a call lie on one flat axis, `[tokens, hidden_size]`, one segment after the other: a whole
/// prompt, a chunk of a prompt, one new token of each of sixteen conversations and a packed training batch
/// are the same call. There is no padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Position of the first token of this stretch within its sequence, in tokens; 0 at the sequence's start.
    pub start: usize,
    /// Number of tokens in this stretch.
    pub len: usize,
    /// How many tokens at the start of the *sequence* see each other both ways; 0 for a causal model.
    pub prefix_len: usize,
}

impl Segment {
    /// `len` tokens from position `start` of a causal sequence.
    pub fn causal(start: usize, len: usize) -> Self {
        Self { start, len, prefix_len: 0 }
    }

    /// The positions of the segment's tokens within their sequence.
    pub fn positions(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.len
    }
}

/// The sum of the segments' lengths: the length of the flat token axis.
pub fn total_tokens(segments: &[Segment]) -> usize {
    segments.iter().map(|segment| segment.len).sum()
}

/// The last row of each segment, `[segments, hidden_size]` of `[tokens, hidden_size]`: what the output head, the largest matrix of
/// a model, is needed for.
///
/// # Panics
/// When a segment is empty, or `x` is not as long as the segments.
pub fn last_rows(x: Tensor<2>, segments: &[Segment]) -> Tensor<2> {
    assert_eq!(x.dims()[0], total_tokens(segments), "a row per token");
    if segments.iter().all(|segment| segment.len == 1) {
        return x;
    }
    let mut end = 0;
    let last: Vec<i32> = segments
        .iter()
        .map(|segment| {
            assert!(segment.len > 0, "a segment has tokens");
            end += segment.len;
            end as i32 - 1
        })
        .collect();
    let index = Tensor::<1, Int>::from_data(TensorData::new(last, [segments.len()]), &x.device());
    x.select(0, index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_device;

    #[test]
    fn the_last_row_of_each_segment_is_taken() {
        for device in test_device::all() {
            let x = Tensor::<2>::from_data([[0.0], [1.0], [2.0], [3.0]], &device);
            let segments = [Segment::causal(0, 3), Segment::causal(7, 1)];
            let rows: Vec<f32> = last_rows(x.clone(), &segments).into_data().try_into_vec().unwrap();
            assert_eq!(rows, [2.0, 3.0]);
            let single = [Segment::causal(0, 1); 4];
            assert_eq!(last_rows(x, &single).dims(), [4, 1]);
        }
    }
}
