//! A smaller model that drafts for a larger one.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gemma_nn::{Phase, Segment};
use gemma_tokenizer::TokenId;

use super::Drafter;
use crate::engine::common_prefix;
use crate::rows::rows;
use crate::sampler::top_of_row;
use crate::{Cache, CausalModel, Error, Sequence};

/// Tokens that are prefilled at once.
const CHUNK: usize = 512;
/// A draft ends before a token that the draft model itself finds less probable than this.
const LEAST: f64 = 0.4;
/// Sequences of texts that are over which a draft model keeps, so that the next turn of a conversation is not read anew.
const KEPT: usize = 4;

/// The sequence of the model that a pointer leads to.
type SequenceOf<P> = Sequence<<<P as Deref>::Target as CausalModel>::Cache>;

/// A model that drafts for a larger one with the same vocabulary: the tokens that it finds the likeliest, one by one.
///
/// It keeps KV caches of its own beside those of the model it drafts for, also of the last few texts: what the next one begins
/// with is not prefilled again. `P` points to the model: `&M` or `Arc<M>`. A clone shares everything.
///
/// ```no_run
/// use gemma_generate::{CausalModel, DraftModel, Error, GenerateOptions, Generation, Speculation};
///
/// # fn run<L: CausalModel, S: CausalModel + Sync>(large: &L, small: &S, prompt: &[u32]) -> Result<(), Error> {
/// let draft_model = DraftModel::new(small)?;
/// let answer = Generation::new(large, prompt, &GenerateOptions::greedy(100), &[1])?
///     .with_speculation(Speculation::new(draft_model.drafter()));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct DraftModel<P: Deref<Target: CausalModel + Sized>> {
    model: P,
    /// The latest last.
    kept: Arc<Mutex<Vec<SequenceOf<P>>>>,
}

impl<P: Deref<Target: CausalModel + Sized> + Clone> DraftModel<P> {
    /// Drafts with `model`.
    ///
    /// # Errors
    ///
    /// [`Error::CannotDraft`] for a model whose cache cannot take back a token, such as RecurrentGemma.
    pub fn new(model: P) -> Result<Self, Error> {
        if model.new_cache().retractable() == 0 {
            return Err(Error::CannotDraft);
        }
        Ok(Self { model, kept: Arc::default() })
    }

    /// The drafter of one text.
    pub fn drafter(&self) -> ModelDrafter<P> {
        ModelDrafter { draft_model: self.clone(), sequence: None }
    }
}

impl<P: Deref<Target: CausalModel + Sized>> DraftModel<P> {
    fn kept(&self) -> MutexGuard<'_, Vec<SequenceOf<P>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kept sequence that has the most tokens in common with a text, or an empty one.
    fn sequence(&self, tokens: &[TokenId]) -> SequenceOf<P> {
        let mut kept = self.kept();
        let common = |sequence: &SequenceOf<P>| common_prefix(sequence.tokens(), tokens);
        let best = (0..kept.len()).max_by_key(|index| common(&kept[*index])).filter(|index| common(&kept[*index]) > 1);
        match best {
            Some(index) => kept.remove(index),
            None => Sequence::new(self.model.new_cache()),
        }
    }
}

/// The drafter of one text, by a [`DraftModel`].
pub struct ModelDrafter<P: Deref<Target: CausalModel + Sized>> {
    draft_model: DraftModel<P>,
    /// `None` before the first draft.
    sequence: Option<SequenceOf<P>>,
}

impl<P: Deref<Target: CausalModel + Sized>> Drop for ModelDrafter<P> {
    fn drop(&mut self) {
        let Some(sequence) = self.sequence.take() else { return };
        let mut kept = self.draft_model.kept();
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push(sequence);
    }
}

impl<P: Deref<Target: CausalModel + Sized> + Send> Drafter for ModelDrafter<P> {
    fn draft(&mut self, tokens: &[TokenId], most: usize) -> Vec<TokenId> {
        let model = &*self.draft_model.model;
        let known = tokens.iter().all(|&token| (token as usize) < model.vocab());
        let most = most.min(model.context_length().unwrap_or(usize::MAX).saturating_sub(tokens.len()));
        if tokens.is_empty() || most == 0 || !known {
            return Vec::new();
        }
        let mut sequence = self.sequence.take().unwrap_or_else(|| self.draft_model.sequence(tokens));
        sequence.reuse_prefix(model, tokens);
        // a draft model that fails is one without a guess
        let Ok(draft) = say(model, &mut sequence, most) else { return Vec::new() };
        self.sequence = Some(sequence);
        draft
    }
}

/// The likeliest continuation of a sequence, of `most` tokens or fewer.
fn say<M: CausalModel>(model: &M, sequence: &mut Sequence<M::Cache>, most: usize) -> Result<Vec<TokenId>, Error> {
    sequence.prefill(model, CHUNK, || true);
    let mut draft = Vec::with_capacity(most);
    while draft.len() < most {
        let pending = sequence.pending().to_vec();
        let segment = Segment::causal(sequence.position(), pending.len()).in_phase(Phase::Decode);
        let hidden_states = model.hidden_states(&pending, &[segment], &mut [sequence.cache_mut()]);
        sequence.mark_cached(pending.len());
        let logits = rows(model, hidden_states, &vec![Some(1); pending.len()])?;
        let best = top_of_row(logits.row(pending.len() - 1), 1)?;
        let Some(&(token, _)) = best.first().filter(|(_, logprob)| *logprob >= LEAST.ln()) else { break };
        draft.push(token);
        sequence.push(&[token]);
    }
    Ok(draft)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    #[test]
    fn it_says_what_it_would_say_and_reads_each_token_once() {
        let prompt = [2, 5, 9];
        let small = Fake::saying(50, prompt.len(), &[10, 11, 12, 13, 14, 15, 16, 17]);
        let draft_model = DraftModel::new(&small).unwrap();
        let mut drafter = draft_model.drafter();
        assert_eq!(drafter.draft(&prompt, 3), [10, 11, 12]);
        assert_eq!(small.calls(), [[2], [1], [1], [1]]);
        // one accepted, then the larger model said 30 in place of 11
        assert_eq!(drafter.draft(&[2, 5, 9, 10, 30], 2), [12, 13]);
        assert_eq!(small.calls(), [[1], [1]]);
        // all accepted, and one more: two that it has not read
        assert_eq!(drafter.draft(&[2, 5, 9, 10, 30, 12, 13, 14], 1), [15]);
        assert_eq!(small.calls().concat().iter().sum::<usize>(), 2);
        // the next text begins like this one
        drop(drafter);
        let mut next = draft_model.drafter();
        assert_eq!(next.draft(&[2, 5, 9, 10, 30, 12, 40], 1), [14]);
        assert_eq!(small.calls().concat().iter().sum::<usize>(), 1);
        assert!(draft_model.kept().is_empty());
    }

    #[test]
    fn it_keeps_few_texts() {
        let small = Fake::saying(50, 1, &[10; 20]);
        let draft_model = DraftModel::new(&small).unwrap();
        for text in 0..3 * KEPT as TokenId {
            assert_eq!(draft_model.drafter().draft(&[text, text, text], 1), [10]);
        }
        assert_eq!(draft_model.kept().len(), KEPT);
        drop(draft_model.drafter());
        assert_eq!(draft_model.kept().len(), KEPT, "one that drafted nothing has no text");
    }

    #[test]
    fn it_has_no_guess_where_it_cannot_read_or_fails_or_is_not_sure() {
        let small = Fake::saying(50, 1, &[10; 20]).with_context(4);
        let mut drafter = DraftModel::new(&small).unwrap().drafter();
        assert!(drafter.draft(&[], 4).is_empty());
        assert!(drafter.draft(&[2, 50], 4).is_empty());
        assert_eq!(drafter.draft(&[2, 10], 4).len(), 2);
        assert!(drafter.draft(&[2, 10, 10, 10], 4).is_empty());
        assert_eq!(DraftModel::new(&Fake::new(9).truncatable_to(0)).err(), Some(Error::CannotDraft));
        let broken = Fake::saying(50, 1, &[10; 20]).breaking_at(3);
        let mut drafter = DraftModel::new(&broken).unwrap().drafter();
        assert!(drafter.draft(&[2], 9).is_empty());
        assert_eq!(drafter.draft(&[2], 1), [10]);
        // fifty tokens, the likeliest with less than two fifths
        let unsure = Fake::new(50);
        assert!(DraftModel::new(&unsure).unwrap().drafter().draft(&[2, 3], 9).is_empty());
    }
}
