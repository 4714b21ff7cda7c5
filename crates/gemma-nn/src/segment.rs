//! Where one sequence's tokens lie on the flat token axis.

/// One stretch of tokens of one sequence.
///
/// All sequences of a call lie on one flat axis, `[tokens, width]`, one segment after the other: a whole
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
