//! The streaming detokenizer: tokens become text that can be shown at once, and never has to be taken back.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use gemma_tokenizer::{DecodeStream, TokenId};
use serde::Serialize;

use crate::{CausalModel, Error, Event, FinishReason, Generation, Sequence, StopRule, StopText, Timings};

/// Tokens in, showable text out: whole characters only, and nothing of a stop text.
#[derive(Clone, Debug)]
pub struct TextDecoder<'t> {
    characters: DecodeStream<'t>,
    stop: StopText,
}

impl<'t> TextDecoder<'t> {
    /// Decodes with `characters` (from [`Tokenizer::stream`](gemma_tokenizer::Tokenizer::stream)) until one of `stops`
    /// is complete.
    pub fn new(characters: DecodeStream<'t>, stops: &[String]) -> Self {
        Self { characters, stop: StopText::new(stops) }
    }

    /// Takes the next token and returns the text that can be shown now; often none.
    pub fn push(&mut self, token: TokenId) -> String {
        match self.characters.push(token) {
            Some(text) => self.stop.push(&text),
            None => String::new(),
        }
    }

    /// No more tokens come: returns what was held back.
    pub fn finish(&mut self) -> String {
        let rest = self.characters.finish();
        let mut text = self.stop.push(&rest);
        text.push_str(&self.stop.finish());
        text
    }

    /// The stop text that ended the text.
    pub fn stopped(&self) -> Option<&str> {
        self.stop.matched()
    }
}

impl StopRule for TextDecoder<'_> {
    fn push(&mut self, token: TokenId) -> String {
        TextDecoder::push(self, token)
    }

    fn stopped(&self) -> bool {
        TextDecoder::stopped(self).is_some()
    }

    fn finish(&mut self) -> String {
        TextDecoder::finish(self)
    }
}

/// The text of a generation, piece by piece as it comes: an iterator of texts that are never empty.
///
/// Put together, the pieces are the decoded tokens, cut before the first stop text.
pub struct TextStream<'m, 't, M: CausalModel> {
    generation: Generation<'m, M>,
    decoder: TextDecoder<'t>,
    over: bool,
}

/// All that a generation gave.
#[derive(Clone, Debug, Serialize)]
pub struct Generated {
    /// The tokens sampled, without the stop token that ended them. With [`FinishReason::StopText`], the tokens that
    /// made the stop text are among them.
    pub tokens: Vec<TokenId>,
    /// The logprob of each, as in [`SampledToken::logprob`](crate::SampledToken::logprob).
    #[serde(rename = "log_probs")]
    pub logprobs: Vec<f64>,
    /// Their text, cut before a stop text.
    pub text: String,
    /// Why there are no more.
    pub finish_reason: FinishReason,
    /// The seed: with it, the same comes again.
    pub seed: u64,
    /// What it took.
    pub timings: Timings,
}

impl<'m, 't, M: CausalModel> TextStream<'m, 't, M> {
    /// The text of what `generation` yields from here on, decoded with `characters` (from
    /// [`Tokenizer::stream`](gemma_tokenizer::Tokenizer::stream)); ends at the stop texts of the generation's options.
    pub fn new(generation: Generation<'m, M>, characters: DecodeStream<'t>) -> Self {
        let decoder = TextDecoder::new(characters, &generation.options().stop);
        Self { generation, decoder, over: false }
    }

    /// As [`Generation::with_cancel`].
    pub fn with_cancel(self, flag: Arc<AtomicBool>) -> Self {
        Self { generation: self.generation.with_cancel(flag), ..self }
    }

    /// As [`Generation::with_progress`].
    pub fn with_progress(self, progress: impl FnMut(usize, usize) + Send + 'm) -> Self {
        Self { generation: self.generation.with_progress(progress), ..self }
    }

    /// Runs to the end and returns everything. Text that the iterator gave before is not in it.
    ///
    /// # Errors
    ///
    /// What the iterator yields.
    pub fn finish(mut self) -> Result<Generated, Error> {
        let text = self.by_ref().collect::<Result<String, Error>>()?;
        Ok(Generated::new(&self.generation, text))
    }

    /// The generation behind the text: its tokens, finish reason and timings.
    pub fn generation(&self) -> &Generation<'m, M> {
        &self.generation
    }

    /// Why it is over; `None` while it is not, and after an error.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.generation.finish_reason()
    }

    /// What it took so far.
    pub fn timings(&self) -> Timings {
        self.generation.timings()
    }

    /// Hands out the sequence, to be continued with [`Generation::follow`].
    pub fn into_sequence(self) -> Sequence<M::Cache> {
        self.generation.into_sequence()
    }
}

impl Default for Generated {
    /// Nothing yet.
    fn default() -> Self {
        Self {
            tokens: Vec::new(),
            logprobs: Vec::new(),
            text: String::new(),
            finish_reason: FinishReason::Length,
            seed: 0,
            timings: Timings::default(),
        }
    }
}

impl Generated {
    /// Adds what an event tells about the answer: [`Event::Token`] and [`Event::Finished`], the others nothing.
    pub fn take(&mut self, event: Event) {
        match event {
            Event::Token { token, text, .. } => {
                self.tokens.push(token.token);
                self.logprobs.extend(token.logprob);
                self.text.push_str(&text);
            }
            Event::Finished { reason, text, timings, seed, .. } => {
                self.text.push_str(&text);
                (self.finish_reason, self.timings, self.seed) = (reason, timings, seed);
            }
            Event::Started { .. } | Event::Prefill { .. } | Event::PromptLogprobs { .. } | Event::Failed { .. } => {}
        }
    }

    /// What a generation that is over gave, whose text is `text`.
    fn new<M: CausalModel>(generation: &Generation<'_, M>, text: String) -> Self {
        let sampled = generation.sampled();
        Self {
            tokens: sampled.iter().map(|sampled| sampled.token).collect(),
            logprobs: sampled.iter().map(|sampled| sampled.logprob).collect(),
            text,
            finish_reason: generation.finish_reason().expect("a generation that is over has a reason"),
            seed: generation.seed(),
            timings: generation.timings(),
        }
    }
}

impl<'m, M: CausalModel> TextStream<'m, '_, M> {
    /// The next text. Where the generation is over, `more` is asked for another one to go on with; the text is one, so
    /// that a character or a stop text may begin in one generation and end in the next.
    ///
    /// # Errors
    ///
    /// What the iterator yields, and what `more` says.
    pub fn next_with<E: From<Error>>(
        &mut self,
        mut more: impl FnMut(&mut Generation<'m, M>) -> Result<Option<Generation<'m, M>>, E>,
    ) -> Option<Result<String, E>> {
        while !self.over {
            let text = match self.generation.next() {
                Some(Err(error)) => {
                    self.over = true;
                    return Some(Err(error.into()));
                }
                Some(Ok(sampled)) => self.decoder.push(sampled.token),
                None => match more(&mut self.generation) {
                    Ok(Some(next)) => {
                        self.generation = next;
                        continue;
                    }
                    Ok(None) => {
                        self.over = true;
                        self.decoder.finish()
                    }
                    Err(error) => {
                        self.over = true;
                        return Some(Err(error));
                    }
                },
            };
            if !self.over && self.decoder.stopped().is_some() {
                self.over = true;
                self.generation.end(FinishReason::StopText);
            }
            if !text.is_empty() {
                return Some(Ok(text));
            }
        }
        None
    }
}

impl<M: CausalModel> Iterator for TextStream<'_, '_, M> {
    type Item = Result<String, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_with(|_| Ok(None))
    }
}

impl<M: CausalModel> std::iter::FusedIterator for TextStream<'_, '_, M> {}

#[cfg(test)]
mod tests;
