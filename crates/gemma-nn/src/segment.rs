//! Where one sequence's tokens lie on the flat token axis.

use crate::AdapterChoice;
use burn::tensor::Tensor;
use gemma_kernels::{Phase, indices};
use std::ops::Range;
use std::sync::Arc;

/// One stretch of tokens of one sequence.
///
/// All sequences of a call lie on one flat axis, `[tokens, hidden_size]`, one segment after the other: a whole
/// prompt, a chunk of a prompt, one new token of each of sixteen conversations and a packed training batch
/// are the same call. There is no padding.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Position of the first token of this stretch within its sequence, in tokens; 0 at the sequence's start.
    pub start: usize,
    /// Number of tokens in this stretch.
    pub len: usize,
    /// Intervals of positions of the *sequence* that see themselves both ways, as
    /// [`Visibility::allows`](gemma_kernels::Visibility::allows) says: images, or the image and the prompt of PaliGemma.
    /// Empty for text. A block is forwarded in one piece.
    pub blocks: Arc<[Range<usize>]>,
    /// What the request is doing, which chooses the arithmetic.
    pub phase: Phase,
    /// The adapters that the request chose among those that lie beside the weights for it. Empty: none.
    pub adapters: Arc<[AdapterChoice]>,
}

impl Segment {
    /// `len` tokens from position `start` of a causal sequence, in the phase that so many tokens
    /// [suggest](Phase::of_len).
    pub fn causal(start: usize, len: usize) -> Self {
        Self { start, len, blocks: Arc::default(), phase: Phase::of_len(len), adapters: Arc::default() }
    }

    /// The same of a sequence whose first `prefix_len` tokens see each other both ways.
    #[must_use]
    pub fn with_prefix(self, prefix_len: usize) -> Self {
        if prefix_len == 0 { self } else { self.with_blocks([0..prefix_len]) }
    }

    /// The same of a sequence in which these intervals of positions see themselves both ways.
    #[must_use]
    pub fn with_blocks(self, blocks: impl Into<Arc<[Range<usize>]>>) -> Self {
        Self { blocks: blocks.into(), ..self }
    }

    /// The same in a phase that is not the one that its length suggests.
    #[must_use]
    pub fn in_phase(self, phase: Phase) -> Self {
        Self { phase, ..self }
    }

    /// The same of a request that chose these adapters.
    #[must_use]
    pub fn with_adapters(self, adapters: impl Into<Arc<[AdapterChoice]>>) -> Self {
        Self { adapters: adapters.into(), ..self }
    }

    /// A block that begins or ends within this stretch, and not both. Such a stretch must not be forwarded: the block's
    /// tokens would not all see each other.
    pub fn cut_block(&self) -> Option<&Range<usize>> {
        let Range { start, end } = self.positions();
        let whole = |block: &Range<usize>| {
            block.is_empty() || block.end <= start || end <= block.start || (start <= block.start && block.end <= end)
        };
        self.blocks.iter().find(|block| !whole(block))
    }

    /// The positions of the segment's tokens within their sequence.
    pub fn positions(&self) -> Range<usize> {
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
    let index = indices(last, &x.device());
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
            let single = [0; 4].map(|start| Segment::causal(start, 1));
            assert_eq!(last_rows(x, &single).dims(), [4, 1]);
        }
    }

    #[test]
    fn a_block_that_is_forwarded_in_pieces_is_found() {
        let blocks = [2..5, 7..7];
        let cut =
            |start: usize, len: usize| Segment::causal(start, len).with_blocks(blocks.clone()).cut_block().cloned();
        for (start, len) in [(0, 2), (0, 5), (2, 3), (5, 9), (0, 9), (1, 1)] {
            assert_eq!(cut(start, len), None, "{len} from {start}");
        }
        for (start, len) in [(0, 3), (3, 1), (3, 9), (4, 1), (2, 2)] {
            assert_eq!(cut(start, len), Some(2..5), "{len} from {start}");
        }
    }
}
