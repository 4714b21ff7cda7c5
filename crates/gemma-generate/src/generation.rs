//! The page to read: how a text is made, token by token.
//!
//! A [`Generation`] is an iterator. Each step does the same three things: **read** what is unread, **pick** the
//! next token from the logits that follow, then **stop** or **yield**. The first step finds the whole prompt
//! unread, each later one only the token that the step before picked; there is no second path.
//!
//! Batches ([`generate_batch`](crate::generate_batch)) take the same steps for many sequences at once, by the
//! same `due` and `choose`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::tensor::Tensor;
use gemma_tokenizer::TokenId;
use serde::{Deserialize, Serialize};

use crate::sequence::{check_tokens, read_guessed, read_next, to_host};
use crate::{CausalModel, Error, GenerateOptions, Lookup, Pick, Sampler, Sequence};

/// Why a generation is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model said so: it picked one of its stop tokens, which is not part of the answer.
    Stop,
    /// A stop text came up; the answer is cut before it.
    StopText,
    /// [`GenerateOptions::max_tokens`] tokens were generated.
    Length,
    /// The model's context is full: the last token picked cannot be read any more.
    ContextFull,
    /// Whoever called set the flag given to [`Generation::with_cancel`].
    Cancelled,
    /// The moment given to [`Generation::with_deadline`] has passed.
    OutOfTime,
}

impl FinishReason {
    /// The name that serde writes: `stop`, `stop_text`, `length`, `context_full`, `cancelled`,
    /// `out_of_time`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::StopText => "stop_text",
            Self::Length => "length",
            Self::ContextFull => "context_full",
            Self::Cancelled => "cancelled",
            Self::OutOfTime => "out_of_time",
        }
    }
}

/// What a generation took. Time that the caller spends between the steps does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Timings {
    /// Tokens that were unread at the beginning.
    pub prompt_tokens: usize,
    /// Seconds of the first step: reading the prompt and picking the first token.
    pub prompt_seconds: f64,
    /// Tokens of the answer.
    pub generated_tokens: usize,
    /// Steps after the first; each picks a token (the last may be a stop token). Without guesses, each also is a call of
    /// the model.
    pub decode_steps: usize,
    /// Seconds of these steps.
    pub decode_seconds: f64,
    /// Tokens guessed by a [`Lookup`], which the model checked.
    pub guessed_tokens: usize,
    /// Of these, how many the model picked itself: so many calls were saved.
    pub accepted_tokens: usize,
}

impl Timings {
    /// Prompt tokens read per second; `None` before the first step.
    pub fn prompt_tokens_per_second(&self) -> Option<f64> {
        (self.prompt_seconds > 0.0).then(|| self.prompt_tokens as f64 / self.prompt_seconds)
    }

    /// Tokens generated per second, the first not counted; `None` before the second step.
    pub fn decode_tokens_per_second(&self) -> Option<f64> {
        (self.decode_seconds > 0.0).then(|| self.decode_steps as f64 / self.decode_seconds)
    }
}

/// What is told how much of the prompt was read: tokens read, tokens in all.
type Progress<'m> = Box<dyn FnMut(usize, usize) + Send + 'm>;

/// The continuation of one sequence: an iterator of the tokens that a model picks.
///
/// Stop texts need text: they take effect in a [`TextStream`](crate::TextStream).
///
/// ```no_run
/// # use gemma_generate::{CausalModel, Error, GenerateOptions, Generation, TokenId};
/// # fn converse<M: CausalModel>(model: &M, question: &[TokenId], next: &[TokenId], stop: &[TokenId]) -> Result<(), Error> {
/// let options = GenerateOptions::greedy(100);
/// let mut answer = Generation::new(model, question, &options, stop)?;
/// for pick in &mut answer {
///     println!("{}", pick?.token);
/// }
/// println!("{:?}", answer.finish_reason());
/// // Only `next` is read, and the last token of the answer: the memory holds the rest.
/// let answer = Generation::follow(model, answer.into_sequence(), next, &options, stop)?;
/// # Ok(()) }
/// ```
pub struct Generation<'m, M: CausalModel> {
    model: &'m M,
    sequence: Sequence<M::Memory>,
    /// Logits `[1, vocab]` that follow what was read, when they came with the sequence.
    given: Option<Tensor<2>>,
    sampler: Sampler,
    options: GenerateOptions,
    stop_tokens: Vec<TokenId>,
    cancel: Option<Arc<AtomicBool>>,
    deadline: Option<Instant>,
    lookup: Option<Lookup>,
    checked: Option<Checked>,
    progress: Option<Progress<'m>>,
    picks: Vec<Pick>,
    finish: Option<FinishReason>,
    failed: bool,
    timings: Timings,
}

/// What one call of the model said about guesses.
struct Checked {
    guess: Vec<TokenId>,
    /// Logits `[1 + guess, vocab]`: what follows the token before the guess, and each token of it.
    logits: Vec<f32>,
    /// How many of these rows were used: one more than guessed tokens turned out right.
    used: usize,
    /// Seconds of the call.
    seconds: f64,
}

impl<'m, M: CausalModel> Generation<'m, M> {
    /// Continues `prompt`, until one of `stop_tokens` is picked at the latest.
    ///
    /// # Errors
    ///
    /// An option outside its range, an empty prompt, a token the model does not know, or a prompt longer than the
    /// model's context. Nothing was read then.
    pub fn new(
        model: &'m M,
        prompt: &[TokenId],
        options: &GenerateOptions,
        stop_tokens: &[TokenId],
    ) -> Result<Self, Error> {
        Self::follow(model, Sequence::new(model.new_memory()), prompt, options, stop_tokens)
    }

    /// Continues a sequence after `tokens`, which may be none if the sequence has unread ones. The repetition
    /// penalty counts all tokens of the sequence.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn follow(
        model: &'m M,
        mut sequence: Sequence<M::Memory>,
        tokens: &[TokenId],
        options: &GenerateOptions,
        stop_tokens: &[TokenId],
    ) -> Result<Self, Error> {
        sequence.push(tokens);
        if sequence.unread().is_empty() {
            return Err(Error::EmptyPrompt);
        }
        Self::begin(model, sequence, None, options, stop_tokens)
    }

    /// Continues what `memory` holds: `position` tokens, read by other means (an image, say). `logits`
    /// (`[1, vocab]`) are those that follow the last of them.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new), and [`Error::LogitsShape`].
    pub fn resume(
        model: &'m M,
        memory: M::Memory,
        position: usize,
        logits: Tensor<2>,
        options: &GenerateOptions,
        stop_tokens: &[TokenId],
    ) -> Result<Self, Error> {
        let (found, expected) = (logits.dims(), [1, model.vocab()]);
        if found != expected {
            return Err(Error::LogitsShape { found, expected });
        }
        let sequence = Sequence::after(memory, position);
        if sequence.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        Self::begin(model, sequence, Some(logits), options, stop_tokens)
    }

    /// The one door: everything a caller can get wrong is found here.
    fn begin(
        model: &'m M,
        sequence: Sequence<M::Memory>,
        given: Option<Tensor<2>>,
        options: &GenerateOptions,
        stop_tokens: &[TokenId],
    ) -> Result<Self, Error> {
        let mut sampler = Sampler::new(options)?;
        check_tokens(sequence.unread(), model.vocab())?;
        if let Some(limit) = model.context_length().filter(|&limit| sequence.len() > limit) {
            return Err(Error::PromptTooLong { tokens: sequence.len(), limit });
        }
        sampler.observe(sequence.tokens());
        let timings = Timings { prompt_tokens: sequence.unread().len(), ..Timings::default() };
        Ok(Self {
            model,
            sequence,
            given,
            sampler,
            options: options.clone(),
            stop_tokens: if options.ignore_eos { Vec::new() } else { stop_tokens.to_vec() },
            cancel: None,
            deadline: None,
            lookup: None,
            checked: None,
            progress: None,
            picks: Vec::new(),
            finish: None,
            failed: false,
            timings,
        })
    }

    /// Ends the generation, with [`FinishReason::Cancelled`], once `flag` is true: it is looked at between tokens and
    /// between the chunks of a prompt.
    pub fn with_cancel(mut self, flag: Arc<AtomicBool>) -> Self {
        self.cancel = Some(flag);
        self
    }

    /// Ends the generation, with [`FinishReason::OutOfTime`], at the first look at the clock after `deadline`: between
    /// tokens and between the chunks of a prompt.
    pub fn with_deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Lets `lookup` guess what comes next and the model check several guesses in one call. The tokens are the same as
    /// without, but for what adding in another order may change in a logit's last digits; the time is less where guesses
    /// are often right.
    ///
    /// Nothing is guessed for a model that cannot take back what it read ([`CausalModel::truncatable`]).
    pub fn with_lookup(mut self, lookup: Lookup) -> Self {
        self.lookup = Some(lookup);
        self
    }

    /// Tells how the reading of the prompt goes: tokens read, tokens in all; after each chunk.
    pub fn with_progress(mut self, progress: impl FnMut(usize, usize) + Send + 'm) -> Self {
        self.progress = Some(Box::new(progress));
        self
    }

    /// One step: read what is unread, pick, stop or yield. `None` when it is over.
    fn step(&mut self) -> Result<Option<Pick>, Error> {
        let start = Instant::now();
        let mut logits = self.given.take();
        while let Some(count) = self.due() {
            if let Some(logits) = self.checked_logits()? {
                return self.choose(&logits, start);
            }
            if count > 0 {
                logits = Some(read_next(self.model, vec![(&mut self.sequence, count)]));
                self.report();
            }
            if self.sequence.unread().is_empty() {
                let logits = logits.expect("a sequence with nothing unread has logits that follow it");
                let logits = to_host(logits, 1, self.model.vocab())?;
                if let Some(lookup) = self.lookup.as_mut().filter(|_| !self.picks.is_empty()) {
                    lookup.took(start.elapsed().as_secs_f64());
                }
                return self.choose(&logits, start);
            }
        }
        Ok(None)
    }

    /// The logits that follow the token picked last, when it was guessed and checked already, or when it is read now
    /// together with a new guess. `None` when it is to be read alone.
    fn checked_logits(&mut self) -> Result<Option<Vec<f32>>, Error> {
        let vocab = self.model.vocab();
        if let Some(checked) = &mut self.checked {
            let row = checked.logits[checked.used * vocab..][..vocab].to_vec();
            checked.used += 1;
            self.sequence.mark_read();
            return Ok(Some(row));
        }
        let single = self.sequence.unread().len() == 1 && !self.picks.is_empty();
        let Some(lookup) = self.lookup.as_mut().filter(|_| single) else { return Ok(None) };
        // the last token asked for is not worth a guess, and what cannot be taken back is not read
        let room = self.model.context_length().unwrap_or(usize::MAX).min(self.model.truncatable());
        let limit = (self.options.max_tokens - self.picks.len() - 1).min(room.saturating_sub(self.sequence.len()));
        let guess = lookup.next(self.sequence.tokens(), limit);
        if guess.is_empty() || check_tokens(&guess, vocab).is_err() {
            return Ok(None);
        }
        let begin = Instant::now();
        let logits = to_host(read_guessed(self.model, &mut self.sequence, &guess), 1 + guess.len(), vocab)?;
        let row = logits[..vocab].to_vec();
        self.timings.guessed_tokens += guess.len();
        self.checked = Some(Checked { guess, logits, used: 1, seconds: begin.elapsed().as_secs_f64() });
        Ok(Some(row))
    }

    /// After a pick: keeps what was checked while the picks are what was guessed, and takes it back from the memory
    /// otherwise.
    fn settle(&mut self, picked: Option<TokenId>) {
        let Some(checked) = &self.checked else { return };
        let right = picked.is_some() && checked.guess.get(checked.used - 1).copied() == picked;
        self.timings.accepted_tokens += usize::from(right);
        if right && self.finish.is_none() {
            return;
        }
        if let Some(lookup) = &mut self.lookup {
            lookup.learn(checked.guess.len(), checked.used - 1 + usize::from(right), checked.seconds);
        }
        self.checked = None;
        let held = self.sequence.position();
        let taken_back = self.model.truncate(self.sequence.memory_mut(), held);
        assert!(taken_back, "a memory within CausalModel::truncatable can be truncated");
    }

    /// How many unread tokens the model should read next, a chunk at most; `None` when the generation is over.
    pub(crate) fn due(&mut self) -> Option<usize> {
        if self.finish.is_none() && !self.failed {
            self.finish = self.limit_reached();
        }
        if self.finish.is_some() || self.failed {
            self.settle(None);
            return None;
        }
        Some(self.sequence.unread().len().min(self.options.prefill_chunk))
    }

    /// Why nothing more can be read or picked.
    fn limit_reached(&self) -> Option<FinishReason> {
        if self.picks.len() >= self.options.max_tokens {
            Some(FinishReason::Length)
        } else if self.model.context_length().is_some_and(|limit| self.sequence.len() > limit) {
            Some(FinishReason::ContextFull)
        } else if self.cancel.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed)) {
            Some(FinishReason::Cancelled)
        } else if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            Some(FinishReason::OutOfTime)
        } else {
            None
        }
    }

    /// Takes the logits (`[vocab]`) that follow a sequence with nothing unread: picks a token, then stops (`None`) or
    /// yields it. `start`: when the step began.
    pub(crate) fn choose(&mut self, logits: &[f32], start: Instant) -> Result<Option<Pick>, Error> {
        let pick = self.sampler.pick(logits)?;
        self.sequence.push(&[pick.token]);
        let seconds = start.elapsed().as_secs_f64();
        if self.picks.is_empty() {
            self.timings.prompt_seconds = seconds;
        } else {
            self.timings.decode_steps += 1;
            self.timings.decode_seconds += seconds;
        }
        if self.stop_tokens.contains(&pick.token) {
            self.finish = Some(FinishReason::Stop);
            self.settle(None);
            return Ok(None);
        }
        self.picks.push(pick);
        self.settle(Some(pick.token));
        Ok(Some(pick))
    }

    /// Tells the progress of the first step, and only of that.
    fn report(&mut self) {
        if let Some(progress) = self.progress.as_mut().filter(|_| self.picks.is_empty()) {
            let total = self.timings.prompt_tokens;
            progress(total - self.sequence.unread().len(), total);
        }
    }

    /// Ends the generation for a reason that it cannot see itself.
    pub(crate) fn end(&mut self, reason: FinishReason) {
        self.finish = Some(reason);
        self.settle(None);
    }

    /// Why it is over; `None` while it is not, and after an error.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }

    /// All tokens yielded so far.
    pub fn picks(&self) -> &[Pick] {
        &self.picks
    }

    /// What it took so far.
    pub fn timings(&self) -> Timings {
        Timings { generated_tokens: self.picks.len(), ..self.timings }
    }

    /// The seed in use: the one in the options, or a fresh one.
    pub fn seed(&self) -> u64 {
        self.sampler.seed()
    }

    /// The options it was made with.
    pub fn options(&self) -> &GenerateOptions {
        &self.options
    }

    /// All tokens so far and what the model remembers of them. While guesses are being checked the memory holds these
    /// too; [`into_sequence`](Self::into_sequence) takes them back.
    pub fn sequence(&self) -> &Sequence<M::Memory> {
        &self.sequence
    }

    /// Hands out the sequence, to be continued with [`follow`](Self::follow).
    pub fn into_sequence(mut self) -> Sequence<M::Memory> {
        self.settle(None);
        self.sequence
    }

    /// The logits that came with the sequence, once.
    pub(crate) fn take_given(&mut self) -> Option<Tensor<2>> {
        self.given.take()
    }

    pub(crate) fn sequence_mut(&mut self) -> &mut Sequence<M::Memory> {
        &mut self.sequence
    }
}

impl<M: CausalModel> Iterator for Generation<'_, M> {
    type Item = Result<Pick, Error>;

    /// The next token. After an error, or once there is a [finish reason](Generation::finish_reason), `None` for good.
    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.finish.is_some() {
            return None;
        }
        let step = self.step();
        self.failed = step.is_err();
        step.transpose()
    }
}

impl<M: CausalModel> std::iter::FusedIterator for Generation<'_, M> {}

#[cfg(test)]
mod tests;
