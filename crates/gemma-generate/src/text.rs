//! The balcony: tokens become text that can be shown at once, and never has to be taken back.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use gemma_tokenizer::{DecodeStream, TokenId};
use serde::Serialize;

use crate::{CausalModel, Error, FinishReason, Generation, Sequence, StopText, Timings};

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
    /// The tokens picked, without the stop token that ended them. With [`FinishReason::StopText`], the tokens that
    /// made the stop text are among them.
    pub tokens: Vec<TokenId>,
    /// The log-probability of each, as in [`Pick::log_prob`](crate::Pick::log_prob).
    pub log_probs: Vec<f64>,
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
    pub fn into_sequence(self) -> Sequence<M::Memory> {
        self.generation.into_sequence()
    }
}

impl Generated {
    /// What a generation that is over gave, whose text is `text`.
    pub(crate) fn new<M: CausalModel>(generation: &Generation<'_, M>, text: String) -> Self {
        let picks = generation.picks();
        Self {
            tokens: picks.iter().map(|pick| pick.token).collect(),
            log_probs: picks.iter().map(|pick| pick.log_prob).collect(),
            text,
            finish_reason: generation.finish_reason().expect("a generation that is over has a reason"),
            seed: generation.seed(),
            timings: generation.timings(),
        }
    }
}

impl<M: CausalModel> Iterator for TextStream<'_, '_, M> {
    type Item = Result<String, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.over {
            let text = match self.generation.next() {
                Some(Err(error)) => {
                    self.over = true;
                    return Some(Err(error));
                }
                Some(Ok(pick)) => self.decoder.push(pick.token),
                None => {
                    self.over = true;
                    self.decoder.finish()
                }
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

impl<M: CausalModel> std::iter::FusedIterator for TextStream<'_, '_, M> {}

#[cfg(test)]
mod tests;
