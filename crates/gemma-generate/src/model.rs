//! All that the loop asks of a model.

use burn::tensor::Tensor;
use gemma_nn::Segment;
use gemma_tokenizer::TokenId;

/// A model that says what may come after the tokens it has read.
///
/// What a model remembers of a sequence belongs to whoever called it: a `Memory` is made by the model, owned by
/// the caller, and lent to each call. Tokens of several sequences lie on one flat axis, one segment per
/// sequence; segment `i` continues what `memories[i]` holds, so its `start` is the number of tokens that memory
/// has read. The vocabulary is that of the model's tokenizer; logits are final (after all softcaps), of any float
/// dtype, and on any device.
///
/// The loop checks what a user can get wrong (token numbers, lengths) before it calls; a model may panic on
/// segments and memories that do not match.
pub trait CausalModel {
    /// What is remembered of one sequence: keys and values, recurrent states.
    type Memory;

    /// The memory of a sequence of which nothing was read yet. It grows as needed.
    fn new_memory(&self) -> Self::Memory;

    /// Reads each segment after what its memory holds.
    ///
    /// # Shapes
    ///
    /// `tokens`: the segments one after the other. Returns `[segments, vocab]`: the logits that follow the last
    /// token of each segment.
    fn read(&self, tokens: &[TokenId], segments: &[Segment], memories: &mut [&mut Self::Memory]) -> Tensor<2>;

    /// Like [`read`](Self::read), with the logits that follow *every* token: `[tokens, vocab]`.
    fn read_all(&self, tokens: &[TokenId], segments: &[Segment], memories: &mut [&mut Self::Memory]) -> Tensor<2>;

    /// The logits `[tokens, vocab]` after every token of sequences that begin here and are forgotten at once; for
    /// training and scoring.
    ///
    /// Reads with new memories; a model that can do without them overrides this.
    fn score(&self, tokens: &[TokenId], segments: &[Segment]) -> Tensor<2> {
        let mut memories: Vec<Self::Memory> = segments.iter().map(|_| self.new_memory()).collect();
        let mut lent: Vec<&mut Self::Memory> = memories.iter_mut().collect();
        self.read_all(tokens, segments, &mut lent)
    }

    /// Makes `memory` forget all but its first `len` tokens. `false`, with nothing changed, when it cannot.
    ///
    /// That is how a prompt that begins like the last one is read, and how guesses that were wrong are taken back. The
    /// default cannot.
    fn truncate(&self, memory: &mut Self::Memory, len: usize) -> bool {
        let _ = (memory, len);
        false
    }

    /// A memory that holds no more tokens than this can be [truncated](Self::truncate) to any length. The default is 0:
    /// none can.
    fn truncatable(&self) -> usize {
        0
    }

    /// Most tokens that a memory can hold and the model was trained to use; `None`: there is no limit.
    fn context_length(&self) -> Option<usize>;

    /// Number of tokens the model knows: the columns of its logits.
    fn vocab(&self) -> usize;
}
