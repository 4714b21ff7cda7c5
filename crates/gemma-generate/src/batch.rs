//! Many prompts at once: one call of the model per step.
//!
//! The prompts lie one after the other on the token axis, each as a segment of its own length, so nothing is padded
//! and nothing of one sequence reaches another: each answer is the one that [`Generation`] would give alone.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use gemma_tokenizer::{TokenId, Tokenizer};

use crate::sequence::{read_next, to_host};
use crate::{CausalModel, Error, FinishReason, GenerateOptions, Generated, Generation, Sequence, TextDecoder};

/// One prompt of a batch, with what belongs to it alone.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The tokens to continue.
    pub prompt: Vec<TokenId>,
    /// How: each request has its own sampler, seed, limits and stop texts.
    pub options: GenerateOptions,
    /// Tokens that end this answer.
    pub stop_tokens: Vec<TokenId>,
    /// Ends this answer when it becomes true.
    pub cancel: Option<Arc<AtomicBool>>,
}

/// One request on its way.
struct Member<'m, 't, M: CausalModel> {
    generation: Generation<'m, M>,
    decoder: TextDecoder<'t>,
    text: String,
    /// When its last token came; before the first, when the batch began.
    since: Instant,
}

/// Continues all prompts together and returns the answers in the order of the requests.
///
/// Each step is one call of the model: sequences that are being continued read the one token that they picked, prompts
/// that are still being read share as many further tokens as the largest
/// [`prefill_chunk`](GenerateOptions::prefill_chunk) of the requests, first come first served. An answer that is over
/// leaves the batch, and its memory is freed.
///
/// [`Timings`](crate::Timings) hold the seconds that passed for the whole batch while a request was in it.
///
/// # Errors
///
/// [`Error::Request`], before anything is read, when a request is wrong; a failing model or device ends the batch.
pub fn generate_batch<M: CausalModel>(
    model: &M,
    tokenizer: &Tokenizer,
    requests: &[Request],
) -> Result<Vec<Generated>, Error> {
    let mut generations = Vec::with_capacity(requests.len());
    for (index, request) in requests.iter().enumerate() {
        let generation = Generation::new(model, &request.prompt, &request.options, &request.stop_tokens);
        let named = |error| Error::Request { index, source: Box::new(error) };
        let generation = generation.map_err(named)?;
        generations.push(match &request.cancel {
            Some(flag) => generation.with_cancel(Arc::clone(flag)),
            None => generation,
        });
    }
    finish_batch(model, tokenizer, generations)
}

/// Continues generations of one model together to their ends, as [`generate_batch`] does; they may have begun anywhere,
/// for example after images ([`Generation::resume`]).
///
/// # Errors
///
/// A failing model or device ends the batch.
pub fn finish_batch<M: CausalModel>(
    model: &M,
    tokenizer: &Tokenizer,
    generations: Vec<Generation<'_, M>>,
) -> Result<Vec<Generated>, Error> {
    let budget = generations.iter().map(|generation| generation.options().prefill_chunk).max().unwrap_or(0);
    let mut answers: Vec<Option<Generated>> = generations.iter().map(|_| None).collect();
    let members = generations.into_iter().map(|generation| Member::new(tokenizer, generation));
    let mut waiting: Vec<_> = members.enumerate().collect();
    while !waiting.is_empty() {
        step(model, &mut waiting, budget)?;
        for (index, member) in waiting.extract_if(.., |(_, member)| member.is_over()) {
            answers[index] = Some(member.into_generated());
        }
    }
    Ok(answers.into_iter().map(|answer| answer.expect("each request was answered before it left")).collect())
}

/// Reads once for all members that have something to read, and picks for those that have read everything.
fn step<M: CausalModel>(model: &M, members: &mut [(usize, Member<'_, '_, M>)], budget: usize) -> Result<(), Error> {
    let mut budget = budget;
    let mut reading = Vec::with_capacity(members.len());
    for (_, member) in members.iter_mut() {
        let Some(mut count) = member.generation.due() else { continue };
        if let Some(given) = member.generation.take_given() {
            member.choose(&to_host(given, 1, model.vocab())?)?;
            continue;
        }
        if member.generation.picks().is_empty() {
            count = count.min(budget);
            budget -= count;
        }
        if count > 0 {
            reading.push((member, count));
        }
    }
    if reading.is_empty() {
        return Ok(());
    }
    let due: Vec<(&mut Sequence<M::Memory>, usize)> =
        reading.iter_mut().map(|(member, count)| (member.generation.sequence_mut(), *count)).collect();
    let logits = to_host(read_next(model, due), reading.len(), model.vocab())?;
    for ((member, _), logits) in reading.into_iter().zip(logits.chunks_exact(model.vocab())) {
        if member.generation.sequence().unread().is_empty() {
            member.choose(logits)?;
        }
    }
    Ok(())
}

impl<'m, 't, M: CausalModel> Member<'m, 't, M> {
    fn new(tokenizer: &'t Tokenizer, generation: Generation<'m, M>) -> Self {
        let decoder = TextDecoder::new(tokenizer.stream(), &generation.options().stop);
        Self { generation, decoder, text: String::new(), since: Instant::now() }
    }

    /// Picks from the logits that follow, and adds the text of what was picked.
    fn choose(&mut self, logits: &[f32]) -> Result<(), Error> {
        let since = std::mem::replace(&mut self.since, Instant::now());
        if let Some(pick) = self.generation.choose(logits, since)? {
            self.text.push_str(&self.decoder.push(pick.token));
            if self.decoder.stopped().is_some() {
                self.generation.end(FinishReason::StopText);
            }
        }
        Ok(())
    }

    /// Whether it is over; looks at its limits and its flag.
    fn is_over(&mut self) -> bool {
        self.generation.due().is_none()
    }

    fn into_generated(mut self) -> Generated {
        self.text.push_str(&self.decoder.finish());
        Generated::new(&self.generation, self.text)
    }
}

#[cfg(test)]
mod tests;
