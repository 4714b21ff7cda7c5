//! One forward pass of an engine: which tokens of which request, and what follows from their logits.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::Tensor;
use gemma_nn::Segment;
use gemma_tokenizer::TokenId;

use super::active::Active;
use super::event::{Event, TokenLogprobs};
use super::scheduler::{Engine, keep_prefix};
use crate::model::logits_in_chunks;
use crate::rows::{Row, Rows, rows, select_rows};
use crate::sampler::top_logprobs;
use crate::score::logprob_of;
use crate::sequence::to_host;
use crate::speculative::Drafted;
use crate::{Cache, CausalModel, Error, Inputs, SCORE_CHUNK};

/// The part of a request in one forward pass.
struct Part {
    /// Which request.
    index: usize,
    /// How many of its pending tokens.
    count: usize,
    /// Draft tokens after them.
    draft: Vec<TokenId>,
    /// Where its first token lies on the token axis.
    first: usize,
}

impl Part {
    fn len(&self) -> usize {
        self.count + self.draft.len()
    }
}

impl<'m, M: CausalModel> Engine<'m, M> {
    /// Runs the model once over what the requests in progress have pending, and samples for those with nothing pending.
    pub(super) fn forward(&mut self, start: Instant, events: &mut Vec<Event>) {
        self.use_drafts(start, events);
        let parts = self.schedule();
        if parts.is_empty() {
            return;
        }
        let begin = Instant::now();
        let hidden_states = self.run(&parts);
        self.give_prompt_logprobs(&parts, &hidden_states, events);
        // the logits of all rows that are sampled from, in one call of the head
        let sampled: Vec<&Part> = parts.iter().filter(|part| self.samples_after(part)).collect();
        let of_part = |part: &&Part| part.first + part.count - 1..part.first + part.len();
        let places: Vec<usize> = sampled.iter().flat_map(of_part).collect();
        let reads = |part: &&Part| std::iter::repeat_n(self.requests[part.index].reads(), 1 + part.draft.len());
        let reads: Vec<Option<usize>> = sampled.iter().flat_map(reads).collect();
        let logits = if places.is_empty() {
            Ok(Rows::default())
        } else {
            rows(self.model, select_rows(&hidden_states, &places), &reads)
        };
        drop(hidden_states);
        let seconds = begin.elapsed().as_secs_f64();
        let alone = parts.len() == 1;
        let mut failed: Vec<(usize, Error)> = Vec::new();
        match logits {
            Err(error) => failed.extend(parts.iter().map(|part| (part.index, error.clone()))),
            Ok(logits) => {
                let mut first = 0;
                for part in &parts {
                    let samples = self.samples_after(part);
                    self.note_prefill(part, events);
                    if !samples {
                        continue;
                    }
                    let own = first..first + 1 + part.draft.len();
                    first = own.end;
                    let next = logits.row(own.start);
                    let active = &mut self.requests[part.index];
                    if !part.draft.is_empty() {
                        active.timings.draft_tokens += part.draft.len();
                        let (tokens, rows) = (part.draft.clone(), logits.part(own));
                        active.drafted = Some(Drafted { tokens, rows, used: 1, seconds });
                    } else if let Some(speculation) = active.speculation.as_mut().filter(|_| !active.sampled.is_empty())
                    {
                        speculation.measured(seconds);
                    }
                    if let Err(error) = sample(active, next, start, events) {
                        failed.push((part.index, error));
                    } else if !alone && active.drafted.is_some() {
                        // others wait for the next step: take all that was accepted at once
                        if let Err(error) = drain(active, self.model.context_length(), start, events) {
                            failed.push((part.index, error));
                        }
                    }
                }
            }
        }
        self.fail(failed, events);
    }

    /// Which pending tokens of which requests the next forward pass takes.
    fn schedule(&mut self) -> Vec<Part> {
        let (context, vocab) = (self.model.context_length(), self.model.vocab());
        let drafts_allowed = !self.options.batch_invariant;
        let mut parts: Vec<Part> = Vec::new();
        // decode first
        for (index, active) in self.requests.iter_mut().enumerate() {
            let ready = active.admitted && active.finish.is_none() && active.is_decoding();
            // after a verified draft, the next token waits for the next step
            let ready = ready && active.sampled_at.is_none();
            if !ready || active.sequence.pending().is_empty() {
                continue;
            }
            let draft = if drafts_allowed { active.draft(context, vocab) } else { Vec::new() };
            parts.push(Part { index, count: active.sequence.pending().len(), draft, first: 0 });
        }
        // prefill with the rest
        let mut budget = self.options.prefill_tokens;
        let mut first = true;
        for (index, active) in self.requests.iter().enumerate() {
            if !active.admitted || active.finish.is_some() || active.is_decoding() {
                continue;
            }
            let count = self.prefill_count(active, budget, first);
            if count == 0 {
                continue;
            }
            parts.push(Part { index, count, draft: Vec::new(), first: 0 });
            budget = budget.saturating_sub(count);
            first = false;
        }
        parts.sort_by_key(|part| part.index);
        let mut at = 0;
        for part in &mut parts {
            part.first = at;
            at += part.len();
        }
        parts
    }

    /// How many tokens of a prompt the next forward pass takes, of a budget; `first`: whether no other prompt is in it.
    fn prefill_count(&self, active: &Active<'m, M::Cache>, budget: usize, first: bool) -> usize {
        let (position, pending) = (active.sequence.position(), active.sequence.pending().len());
        let chunk = active.options.prefill_chunk;
        if let Some((_, blocks)) = &active.inputs {
            return whole_blocks(blocks, position, pending.min(chunk).min(budget), first);
        }
        if self.options.batch_invariant {
            // the same chunks as alone, at multiples of their size
            let wanted = (chunk - position % chunk).min(pending);
            return if budget >= wanted || first { wanted } else { 0 };
        }
        let mut wanted = pending.min(chunk);
        if self.options.prefix_cache_bytes > 0 && !self.truncates(active) {
            // stops where its cache is kept, unless what is kept at the end of the prompt reaches back beyond that place
            let snapshot = self.options.snapshot_tokens;
            let reaches_back = pending <= snapshot && active.sequence.cache().truncatable() >= 2 * snapshot;
            if !reaches_back {
                wanted = wanted.min(snapshot - position % snapshot);
            }
        }
        wanted.min(budget)
    }

    /// The forward pass: hidden states `[tokens, hidden_size]` of all parts.
    fn run(&mut self, parts: &[Part]) -> Tensor<2> {
        let model = self.model;
        let mut segments = Vec::with_capacity(parts.len());
        let mut tokens: Vec<TokenId> = Vec::new();
        let mut embedded: Vec<Inputs> = Vec::new();
        for part in parts {
            let active = &self.requests[part.index];
            let start = active.sequence.position();
            let segment = Segment::causal(start, part.len())
                .in_phase(active.phase(self.options.batch_invariant))
                .with_adapters(Arc::clone(&active.adapters));
            segments.push(match &active.inputs {
                Some((_, blocks)) if blocks.iter().any(|block| block.end > start) => {
                    segment.with_blocks(Arc::clone(blocks))
                }
                _ => segment,
            });
            match &active.inputs {
                Some((inputs, _)) if start < inputs.len() => {
                    if !tokens.is_empty() {
                        embedded.push(model.embed(&std::mem::take(&mut tokens)));
                    }
                    embedded.push(inputs.narrow(start, part.count));
                }
                _ => {
                    tokens.extend_from_slice(&active.sequence.pending()[..part.count]);
                    tokens.extend_from_slice(&part.draft);
                }
            }
        }
        if !tokens.is_empty() {
            embedded.push(model.embed(&tokens));
        }
        let mut caches: Vec<&mut M::Cache> = Vec::with_capacity(parts.len());
        let mut parts = parts.iter().peekable();
        for (index, active) in self.requests.iter_mut().enumerate() {
            if let Some(part) = parts.next_if(|part| part.index == index) {
                active.sequence.mark_cached(part.count);
                caches.push(active.sequence.cache_mut());
            }
        }
        model.forward(Inputs::cat(embedded), &segments, &mut caches)
    }

    /// Whether a token is sampled after a part of a request, which ran.
    fn samples_after(&self, part: &Part) -> bool {
        let active = &self.requests[part.index];
        active.sequence.pending().is_empty() && active.sampled.len() < active.options.max_tokens
    }

    /// Tells the progress of a prompt, and keeps its cache where that is due.
    fn note_prefill(&mut self, part: &Part, events: &mut Vec<Event>) {
        let active = &self.requests[part.index];
        if active.is_decoding() {
            return;
        }
        let pending = active.sequence.pending().len();
        let total = active.reused + active.timings.prompt_tokens;
        events.push(Event::Prefill { id: active.id, done: total - pending, total, cached: active.reused });
        let at_snapshot =
            !self.truncates(active) && active.sequence.position().is_multiple_of(self.options.snapshot_tokens);
        if (pending == 0 || at_snapshot) && self.options.prefix_cache_bytes > 0 {
            let (model, options) = (self.model, &self.options);
            keep_prefix(&mut self.prefixes, model, options, &mut self.requests[part.index]);
        }
    }

    /// Gives the logprobs of the prompt tokens that a part predicts, for requests that asked for them.
    fn give_prompt_logprobs(&mut self, parts: &[Part], hidden_states: &Tensor<2>, events: &mut Vec<Event>) {
        let mut failed = Vec::new();
        for part in parts {
            let active = &self.requests[part.index];
            if !active.prompt_logprobs || active.is_decoding() {
                continue;
            }
            // the part is in the cache already: it ends at the position
            let end = active.sequence.tokens().len() - active.sequence.pending().len();
            let begin = end - part.count;
            let targets = &active.sequence.tokens()[begin + 1..active.sequence.tokens().len().min(end + 1)];
            let mut tokens = Vec::with_capacity(targets.len() + 1);
            if begin == 0 && active.sequence.position() == part.count {
                tokens.push(TokenLogprobs { token: active.sequence.tokens()[0], logprob: None, top: Vec::new() });
            }
            let rows = hidden_states.clone().narrow(0, part.first, part.count);
            let vocab = self.model.vocab();
            let result = logits_in_chunks(self.model, &rows, SCORE_CHUNK, |first, logits| {
                let rows = logits.dims()[0];
                let host = to_host(logits, rows, vocab)?;
                for (row, &token) in host.chunks_exact(vocab).zip(targets.iter().skip(first)) {
                    let top =
                        if active.top_logprobs == 0 { Vec::new() } else { top_logprobs(row, active.top_logprobs)? };
                    // an image token of a prepared prompt has no logit of its own
                    let logprob = if (token as usize) < vocab { Some(logprob_of(row, token)?) } else { None };
                    tokens.push(TokenLogprobs { token, logprob, top });
                }
                Ok::<(), Error>(())
            });
            match result {
                Ok(()) => events.push(Event::PromptLogprobs { id: active.id, tokens }),
                Err(error) => failed.push((part.index, error)),
            }
        }
        for (index, error) in failed {
            self.requests[index].failure = Some(error);
        }
    }

    /// Samples from verified draft rows of earlier passes, which cost no forward pass.
    fn use_drafts(&mut self, start: Instant, events: &mut Vec<Event>) {
        let mut failed = Vec::new();
        for (index, active) in self.requests.iter_mut().enumerate() {
            if active.drafted.is_some()
                && let Err(error) = next_drafted(active, start, events)
            {
                failed.push((index, error));
            }
        }
        self.fail(failed, events);
    }

    /// Takes failed requests out.
    fn fail(&mut self, mut failed: Vec<(usize, Error)>, events: &mut Vec<Event>) {
        for (index, active) in self.requests.iter_mut().enumerate() {
            if let Some(error) = active.failure.take()
                && failed.iter().all(|(other, _)| *other != index)
            {
                failed.push((index, error));
            }
        }
        failed.sort_by_key(|(index, _)| *index);
        for (index, error) in failed.into_iter().rev() {
            let mut active = self.requests.remove(index);
            events.push(Event::Failed { id: active.id, error });
            self.release(&mut active);
            if active.keep_sequence {
                self.kept.push(active);
            }
        }
    }
}

/// Samples one token of a request.
fn sample<C: Cache>(
    active: &mut Active<'_, C>,
    logits: Row<'_>,
    start: Instant,
    events: &mut Vec<Event>,
) -> Result<(), Error> {
    if let Some((token, text)) = active.accept(logits, start)? {
        events.push(Event::Token { id: active.id, token, text });
    }
    Ok(())
}

/// Samples the next token from a verified draft.
fn next_drafted<C: Cache>(active: &mut Active<'_, C>, start: Instant, events: &mut Vec<Event>) -> Result<(), Error> {
    let Some(drafted) = &mut active.drafted else { return Ok(()) };
    let row = drafted.rows.part(drafted.used..drafted.used + 1);
    drafted.used += 1;
    active.sequence.mark_cached(1);
    sample(active, row.row(0), start, events)
}

/// Samples all tokens that a verified draft gives.
fn drain<C: Cache>(
    active: &mut Active<'_, C>,
    context: Option<usize>,
    start: Instant,
    events: &mut Vec<Event>,
) -> Result<(), Error> {
    while active.drafted.is_some() {
        active.check_limits(context);
        if active.finish.is_some() {
            active.roll_back();
            return Ok(());
        }
        next_drafted(active, start, events)?;
    }
    Ok(())
}

/// How many tokens from `position` on can be taken of a prompt with blocks that must not be cut, `room` of them or fewer;
/// when none fit, one block all the same where it is the `first` of the pass.
fn whole_blocks(blocks: &[Range<usize>], position: usize, room: usize, first: bool) -> usize {
    let end = position + room;
    let Some(cut) = blocks.iter().find(|block| block.start < end && end < block.end) else { return room };
    if cut.start > position {
        cut.start - position
    } else if first {
        cut.end - position
    } else {
        0
    }
}
