//! A smaller model that drafts for a larger one.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use gemma_nn::{Phase, Segment};
use gemma_tokenizer::TokenId;

use super::{DraftCost, Drafter, mix};
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

/// Fewer new tokens than this are no prefill.
const FEW: usize = 32;
/// Tokens that are prefilled in the time of one that is decoded, before it was measured: fewer than on most machines.
const PREFILLED: f64 = 8.0;

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
    speed: Arc<Mutex<Speed>>,
}

/// Seconds that a draft model takes for a token, in the mean of the last ones, once they were measured.
#[derive(Clone, Copy, Debug, Default)]
struct Speed {
    decode: Option<f64>,
    prefill: Option<f64>,
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
        Ok(Self { model, kept: Arc::default(), speed: Arc::default() })
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

    fn speed(&self) -> MutexGuard<'_, Speed> {
        self.speed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds for a token, and for each of those that are prefilled. Where no draft was made yet, a token is decoded twice, the second
    /// time when everything was read from the disk and compiled.
    fn seconds(&self) -> (f64, f64) {
        let known = *self.speed();
        let decode = known.decode.unwrap_or_else(|| {
            let mut seconds = 0.0;
            for _ in 0..2 {
                let begin = Instant::now();
                let mut sequence = Sequence::new(self.model.new_cache());
                sequence.push(&[0]);
                // a model that fails has no guesses either
                let _ = next(&*self.model, &mut sequence);
                seconds = begin.elapsed().as_secs_f64();
            }
            mix(&mut self.speed().decode, seconds);
            seconds
        });
        (decode, known.prefill.unwrap_or(decode / PREFILLED))
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
        let (begin, new) = (Instant::now(), sequence.pending().len() - 1);
        sequence.prefill(model, CHUNK, || true);
        if new >= FEW {
            mix(&mut self.draft_model.speed().prefill, begin.elapsed().as_secs_f64() / new as f64);
        }
        let begin = Instant::now();
        // a draft model that fails is one without a guess
        let Ok((draft, passes)) = say(model, &mut sequence, most) else { return Vec::new() };
        mix(&mut self.draft_model.speed().decode, begin.elapsed().as_secs_f64() / passes as f64);
        self.sequence = Some(sequence);
        draft
    }

    fn cost(&mut self, tokens: &[TokenId]) -> DraftCost {
        let own = self.sequence.as_ref().map(|sequence| common_prefix(sequence.tokens(), tokens));
        let known = own.unwrap_or_else(|| {
            let kept = self.draft_model.kept();
            kept.iter().map(|sequence| common_prefix(sequence.tokens(), tokens)).max().unwrap_or(0)
        });
        let (token, prefill) = self.draft_model.seconds();
        let new = tokens.len() - known;
        DraftCost { prefill: if new < FEW { 0.0 } else { new as f64 * prefill }, token }
    }
}

/// The likeliest continuation of a sequence, of `most` tokens or fewer, and in how many passes.
fn say<M: CausalModel>(
    model: &M,
    sequence: &mut Sequence<M::Cache>,
    most: usize,
) -> Result<(Vec<TokenId>, usize), Error> {
    let (mut draft, mut passes) = (Vec::with_capacity(most), 0);
    while draft.len() < most {
        passes += 1;
        let Some(token) = next(model, sequence)? else { break };
        draft.push(token);
        sequence.push(&[token]);
    }
    Ok((draft, passes))
}

/// The token that most likely follows a sequence, if the model is sure enough.
fn next<M: CausalModel>(model: &M, sequence: &mut Sequence<M::Cache>) -> Result<Option<TokenId>, Error> {
    let pending = sequence.pending().to_vec();
    let segment = Segment::causal(sequence.position(), pending.len()).in_phase(Phase::Decode);
    let hidden_states = model.hidden_states(&pending, &[segment], &mut [sequence.cache_mut()]);
    sequence.mark_cached(pending.len());
    let logits = rows(model, hidden_states, &vec![Some(1); pending.len()])?;
    let best = top_of_row(logits.row(pending.len() - 1), 1)?;
    Ok(best.first().filter(|(_, logprob)| *logprob >= LEAST.ln()).map(|&(token, _)| token))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Speculation;
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
    fn it_says_what_it_takes_before_it_does_it() {
        let small = Fake::saying(100, 100, &[10; 60]);
        let draft_model = DraftModel::new(&small).unwrap();
        let prompt: Vec<TokenId> = (0..100).collect();
        let mut drafter = draft_model.drafter();
        let cost = drafter.cost(&prompt);
        assert_eq!(small.calls(), [[1], [1]], "a token, twice");
        assert!(cost.token > 0.0 && (cost.prefill / cost.token - 100.0 / PREFILLED).abs() < 1e-6, "{cost:?}");
        assert_eq!(drafter.draft(&prompt, 2), [10, 10]);
        small.calls();
        assert_eq!(drafter.cost(&prompt).prefill, 0.0);
        assert!(drafter.cost(&[5; 50]).prefill > 0.0, "another text");
        drop(drafter);
        assert_eq!(draft_model.drafter().cost(&prompt).prefill, 0.0, "the text is kept");
        assert!(small.calls().is_empty(), "the speed is known");
    }

    #[test]
    fn what_it_takes_is_not_found_out_where_nobody_asks() {
        let small = Fake::saying(50, 1, &[10; 20]);
        let draft_model = DraftModel::new(&small).unwrap();
        let draft = Speculation::new(draft_model.drafter()).always().next(&[2], 2, 9);
        assert_eq!((draft, small.calls()), (vec![10, 10], vec![vec![1], vec![1]]));
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
