//! One sequence on its way through a model: what was read, what is still to be read.

use burn::tensor::Tensor;
use gemma_nn::Segment;
use gemma_tokenizer::TokenId;

use crate::{CausalModel, Error};

/// The tokens of one sequence and the memory of those that the model has read.
///
/// A [`Generation`](crate::Generation) gives its sequence back when it is over, so that a conversation goes on
/// where it was: only what is new is read. The token picked last was not read yet; it waits in
/// [`unread`](Self::unread) and comes first. A clone (when the memory can be cloned) is a fork of the conversation.
#[derive(Clone, Debug)]
pub struct Sequence<Memory> {
    memory: Memory,
    /// How many tokens the memory held before the first of `tokens`.
    before: usize,
    tokens: Vec<TokenId>,
    /// How many of `tokens` the memory holds.
    read: usize,
}

impl<Memory> Sequence<Memory> {
    /// An empty sequence, with a memory that holds nothing.
    pub fn new(memory: Memory) -> Self {
        Self::after(memory, 0)
    }

    /// A sequence whose memory already holds `position` tokens, read by other means than this crate's: an image,
    /// or a saved memory.
    pub fn after(memory: Memory, position: usize) -> Self {
        Self { memory, before: position, tokens: Vec::new(), read: 0 }
    }

    /// Appends tokens for the model to read.
    pub fn push(&mut self, tokens: &[TokenId]) {
        self.tokens.extend_from_slice(tokens);
    }

    /// All tokens pushed, read or not.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// The tokens that the model has yet to read.
    pub fn unread(&self) -> &[TokenId] {
        &self.tokens[self.read..]
    }

    /// How many tokens the memory holds; also the position of the first unread token.
    pub fn position(&self) -> usize {
        self.before + self.read
    }

    /// How many tokens the sequence has, read or not.
    pub fn len(&self) -> usize {
        self.before + self.tokens.len()
    }

    /// Whether there is nothing, read or unread.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the model remembers.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Makes this the sequence of `prompt`, keeping what the memory holds of their common beginning; at least the last
    /// token is left unread, since what follows it is to be asked for. Returns how many tokens need not be read again.
    ///
    /// A model that cannot take back what it read ([`CausalModel::truncate`]) begins anew, and so does a sequence that
    /// began with something else than tokens.
    pub fn turn_to<M: CausalModel<Memory = Memory>>(&mut self, model: &M, prompt: &[TokenId]) -> usize {
        let held = self.tokens[..self.read].iter().zip(prompt);
        let common = held.take_while(|(old, new)| old == new).count().min(prompt.len().saturating_sub(1));
        let kept = self.before == 0 && (common == self.read || model.truncate(&mut self.memory, common));
        if !kept || common == 0 {
            *self = Self::new(model.new_memory());
        }
        self.read = if kept { common } else { 0 };
        self.tokens.clear();
        self.tokens.extend_from_slice(prompt);
        self.read
    }

    /// Reads all unread tokens but the last, in pieces of `chunk` tokens, as long as `go_on` says so before each. What
    /// several continuations share is read once like this, and then cloned.
    pub fn read_ahead<M: CausalModel<Memory = Memory>>(&mut self, model: &M, chunk: usize, go_on: impl Fn() -> bool) {
        while self.unread().len() > 1 && go_on() {
            let count = chunk.clamp(1, self.unread().len() - 1);
            read_next(model, vec![(self, count)]);
        }
    }

    /// Lets go of the tokens that were read: what the model remembers of them stays, and a text of any length takes no
    /// more room than that. A repetition penalty no longer counts them, and [`turn_to`](Self::turn_to) begins anew.
    pub fn let_go(&mut self) {
        self.before += self.read;
        self.tokens.drain(..self.read);
        self.read = 0;
    }

    /// Notes that the memory holds the next unread token already.
    pub(crate) fn mark_read(&mut self) {
        self.read += 1;
    }

    /// What the model remembers, to be changed together with what is marked as read.
    pub(crate) fn memory_mut(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// What the model remembers; the tokens are let go.
    pub fn into_memory(self) -> Memory {
        self.memory
    }
}

/// Reads the next so many unread tokens of each sequence, all in one call of the model.
///
/// Returns logits `[sequences, vocab]`: what follows the last token that was read of each.
pub(crate) fn read_next<M: CausalModel>(model: &M, due: Vec<(&mut Sequence<M::Memory>, usize)>) -> Tensor<2> {
    let mut tokens = Vec::with_capacity(due.iter().map(|(_, count)| count).sum());
    let mut segments = Vec::with_capacity(due.len());
    let mut memories = Vec::with_capacity(due.len());
    for (sequence, count) in due {
        segments.push(Segment::causal(sequence.position(), count));
        tokens.extend_from_slice(&sequence.unread()[..count]);
        sequence.read += count;
        memories.push(&mut sequence.memory);
    }
    model.read(&tokens, &segments, &mut memories)
}

/// Reads the one unread token of a sequence and `guessed` after it, which the sequence does not get.
///
/// Returns logits `[1 + guessed, vocab]`: what follows each of them.
pub(crate) fn read_guessed<M: CausalModel>(
    model: &M,
    sequence: &mut Sequence<M::Memory>,
    guessed: &[TokenId],
) -> Tensor<2> {
    let tokens = [sequence.unread(), guessed].concat();
    let segment = Segment::causal(sequence.position(), tokens.len());
    sequence.read += 1;
    model.read_all(&tokens, &[segment], &mut [&mut sequence.memory])
}

/// Brings logits to the host: `rows` times `vocab` numbers, row after row.
///
/// # Errors
///
/// [`Error::LogitsShape`] when there are more or fewer, [`Error::Device`] when the device failed.
pub(crate) fn to_host(logits: Tensor<2>, rows: usize, vocab: usize) -> Result<Vec<f32>, Error> {
    let (found, expected) = (logits.dims(), [rows, vocab]);
    if found != expected {
        return Err(Error::LogitsShape { found, expected });
    }
    logits.try_into_vec_as::<f32>().map_err(|error| {
        let report = error.to_string();
        let reason = report.split_whitespace().collect::<Vec<_>>().join(" ");
        Error::Device { reason }
    })
}

/// Refuses token numbers that the model does not know.
///
/// # Errors
///
/// [`Error::TokenOutOfRange`] for the first.
pub(crate) fn check_tokens(tokens: &[TokenId], vocab: usize) -> Result<(), Error> {
    match tokens.iter().position(|&token| token as usize >= vocab) {
        Some(place) => Err(Error::TokenOutOfRange { token: tokens[place], place, vocab }),
        None => Ok(()),
    }
}
