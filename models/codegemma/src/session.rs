//! One hole after the other: the prefix that a request shares with the last one is not prefilled again.
//!
//! An editor asks at every keystroke, and nearly all of the prompt is the same each time. The session keeps the sequence
//! of the last request; the next takes over what their prompts have in common at the beginning. In the order suffix,
//! prefix, middle the hole comes last, so that only what was typed is new.

use crate::fim::text_tokens;
use crate::infill_stop::StopRules;
use crate::{CodeGemma, Error, Infill, InfillOptions, Truncation};
use gemma::{Decoder, DecoderCache};
use gemma_generate::{
    FinishReason, GenerateOptions, Generation, PromptLookup, Sequence, Speculation, Timings, TokenMask,
};
use gemma_tokenizer::{DecodeStream, TokenId};
use serde::Serialize;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Bytes of a text that was cut in which draft tokens are looked for.
const LOOKUP_BYTES: usize = 32 << 10;
/// The temperature of further alternatives when the first is greedy.
const ALTERNATIVE_TEMPERATURE: f32 = 0.8;

/// A row of requests to one model.
#[derive(Debug)]
pub struct Session<'m> {
    model: &'m CodeGemma,
    sequence: Option<Sequence<DecoderCache>>,
}

/// A filled hole.
#[derive(Clone, Debug, Serialize)]
pub struct Infilled {
    /// What belongs into the hole.
    pub text: String,
    /// All tokens sampled; where a rule cut the text, more than the text has.
    pub tokens: Vec<TokenId>,
    /// The mean log-probability of these tokens, in nats; 0 when there are none.
    pub mean_log_prob: f64,
    /// Why there are no more. [`FinishReason::StopText`]: a rule about the text ended it.
    pub finish_reason: FinishReason,
    /// What of the program was left out of the prompt.
    #[serde(rename = "cut")]
    pub truncation: Truncation,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// How many of these were read for an earlier request.
    pub reused_tokens: usize,
    /// What it took.
    pub timings: Timings,
}

impl CodeGemma {
    /// A session: a row of requests, each of which reads only what the one before did not.
    pub fn session(&self) -> Session<'_> {
        Session::new(self)
    }

    /// Fills a hole.
    ///
    /// # Errors
    /// When an option is outside its range, the budget is too small, or the device fails.
    pub fn infill(&self, infill: &Infill, options: &InfillOptions) -> Result<Infilled, Error> {
        self.stream_infill(infill, options)?.finish()
    }

    /// Fills a hole piece by piece: an iterator of texts that are ready to be shown, none of which is taken back.
    ///
    /// # Errors
    /// As [`CodeGemma::infill`].
    pub fn stream_infill(&self, infill: &Infill, options: &InfillOptions) -> Result<InfillStream<'_, '_>, Error> {
        InfillStream::begin(self, infill, options, None)
    }
}

impl<'m> Session<'m> {
    pub(crate) fn new(model: &'m CodeGemma) -> Self {
        Self { model, sequence: None }
    }

    /// The model.
    pub fn model(&self) -> &'m CodeGemma {
        self.model
    }

    /// Fills a hole.
    ///
    /// # Errors
    /// As [`CodeGemma::infill`].
    pub fn infill(&mut self, infill: &Infill, options: &InfillOptions) -> Result<Infilled, Error> {
        self.stream(infill, options)?.finish()
    }

    /// Fills a hole piece by piece.
    ///
    /// # Errors
    /// As [`CodeGemma::infill`].
    pub fn stream(&mut self, infill: &Infill, options: &InfillOptions) -> Result<InfillStream<'m, '_>, Error> {
        InfillStream::begin(self.model, infill, options, Some(&mut self.sequence))
    }

    /// Fills a hole in several ways, the likeliest first as the options have it and the others drawn; the prompt is read
    /// once, and each continues a fork of the cache. Texts that come up again are left out, so there may be
    /// fewer than `count`.
    ///
    /// # Errors
    /// As [`CodeGemma::infill`].
    pub fn alternatives(
        &mut self,
        infill: &Infill,
        options: &InfillOptions,
        count: usize,
    ) -> Result<Vec<Infilled>, Error> {
        let begin = Instant::now();
        let prepared = Prepared::new(self.model, infill, options)?;
        let (mut sequence, reused) = prepared.turn(&mut self.sequence);
        let go_on = || {
            let cancelled = options.cancel.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed));
            !cancelled && options.time_limit.is_none_or(|limit| begin.elapsed() < limit)
        };
        let decoder = self.model.gemma().network();
        sequence.prefill(decoder, options.generate.prefill_chunk, go_on);
        let mut found: Vec<Infilled> = Vec::new();
        for index in 0..count {
            let generate = alternative(&options.generate, index);
            let stream = prepared.stream(sequence.clone(), generate, reused, begin, None)?;
            let infilled = stream.finish()?;
            if found.iter().all(|other| other.text != infilled.text) {
                found.push(infilled);
            }
            if !go_on() {
                break;
            }
        }
        self.sequence = Some(sequence);
        Ok(found)
    }

    /// Reads the prompt of a hole without filling it, so that the next request finds it read. Returns how many tokens were
    /// new.
    ///
    /// # Errors
    /// As [`CodeGemma::infill`].
    pub fn warm_up(&mut self, infill: &Infill, options: &InfillOptions) -> Result<usize, Error> {
        let prepared = Prepared::new(self.model, infill, options)?;
        let (mut sequence, reused) = prepared.turn(&mut self.sequence);
        let cancelled = || options.cancel.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed));
        sequence.prefill(self.model.gemma().network(), options.generate.prefill_chunk, || !cancelled());
        let new = sequence.position() - reused;
        self.sequence = Some(sequence);
        Ok(new)
    }

    /// The sequence of the last request and its cache.
    pub fn sequence(&self) -> Option<&Sequence<DecoderCache>> {
        self.sequence.as_ref()
    }

    /// Drops the last request and its cache.
    pub fn forget(&mut self) {
        self.sequence = None;
    }
}

/// The options of the alternative with this index.
fn alternative(options: &GenerateOptions, index: usize) -> GenerateOptions {
    if index == 0 {
        return options.clone();
    }
    let temperature = if options.temperature == 0.0 { ALTERNATIVE_TEMPERATURE } else { options.temperature };
    GenerateOptions { temperature, seed: options.seed.map(|seed| seed.wrapping_add(index as u64)), ..options.clone() }
}

/// A request whose prompt is made.
struct Prepared<'m, 'o> {
    model: &'m CodeGemma,
    options: &'o InfillOptions,
    prompt: Vec<TokenId>,
    truncation: Truncation,
    rules: StopRules,
    lookup: Option<PromptLookup>,
}

/// Tokens of a context that a prompt may take before a completion of `max_tokens` tokens: a quarter is left to one that may
/// be as long as the context.
pub fn prompt_room(context: usize, max_tokens: usize) -> usize {
    match context.saturating_sub(max_tokens) {
        0 if max_tokens > context => context - context / 4,
        room => room,
    }
}

impl<'m, 'o> Prepared<'m, 'o> {
    fn new(model: &'m CodeGemma, infill: &Infill, options: &'o InfillOptions) -> Result<Self, Error> {
        let tokenizer = model.tokenizer()?;
        let infill = &infill.plain();
        let context = gemma_generate::CausalModel::context_length(model.gemma().network());
        let room = context.map(|context| prompt_room(context, options.generate.max_tokens));
        let budget = options.budget.unwrap_or(usize::MAX).min(room.unwrap_or(usize::MAX)).min(1 << 20);
        let prompt = infill.prompt(tokenizer, options.order, budget)?;
        // what is in the prompt is looked through anyway
        let others = || {
            let texts = [&infill.suffix[..infill.suffix.floor_char_boundary(LOOKUP_BYTES)], tail(&infill.prefix)];
            texts.iter().map(|text| text_tokens(tokenizer, text)).collect()
        };
        let lookup =
            options.lookup.then(|| PromptLookup::new(if prompt.truncation.is_empty() { Vec::new() } else { others() }));
        let rules = StopRules::new(infill, options.stop_rule);
        Ok(Self { model, options, prompt: prompt.tokens, truncation: prompt.truncation, rules, lookup })
    }

    /// The sequence of the prompt, and how many of its tokens were read for the one that lay there.
    fn turn(&self, last: &mut Option<Sequence<DecoderCache>>) -> (Sequence<DecoderCache>, usize) {
        let decoder = self.model.gemma().network();
        let new = || Sequence::new(gemma_generate::CausalModel::new_cache(decoder));
        let mut sequence = last.take().unwrap_or_else(new);
        let reused = sequence.reuse_prefix(decoder, &self.prompt);
        (sequence, reused)
    }

    fn stream<'s>(
        &self,
        sequence: Sequence<DecoderCache>,
        generate: GenerateOptions,
        reused: usize,
        begin: Instant,
        home: Option<&'s mut Option<Sequence<DecoderCache>>>,
    ) -> Result<InfillStream<'m, 's>, Error> {
        let decoder = self.model.gemma().network();
        let mut generation = Generation::follow(decoder, sequence, &[], &generate, self.model.stop_tokens())?;
        let lookup = self.lookup.clone().map(Speculation::new);
        let speculation = match self.model.gemma().speculate() {
            Some(speculate) => Some(speculate.extend(lookup.unwrap_or_default())),
            None => lookup,
        };
        if let Some(speculation) = speculation {
            generation = generation.with_speculation(speculation);
        }
        if let Some(flag) = &self.options.cancel {
            generation = generation.with_cancel(flag.clone());
        }
        if let Some(limit) = self.options.time_limit {
            generation = generation.with_deadline(begin + limit);
        }
        Ok(InfillStream {
            generation: Some(generation),
            characters: self.model.tokenizer()?.stream(),
            rules: self.rules.clone(),
            truncation: self.truncation,
            prompt_tokens: self.prompt.len(),
            reused,
            text: String::new(),
            shown: 0,
            kept: None,
            by_rule: false,
            home,
        })
    }
}

/// The end of a text, as far as draft tokens are looked for in it.
fn tail(text: &str) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(LOOKUP_BYTES))..]
}

/// A hole being filled: an iterator of texts that are ready to be shown and never empty.
pub struct InfillStream<'m, 's> {
    /// `None` only while it is dropped.
    generation: Option<Generation<'m, Decoder>>,
    characters: DecodeStream<'m>,
    rules: StopRules,
    truncation: Truncation,
    prompt_tokens: usize,
    reused: usize,
    /// All that the model said.
    text: String,
    /// How much of it was handed out.
    shown: usize,
    /// How much of it is the middle, once it is over.
    kept: Option<usize>,
    by_rule: bool,
    /// Where the sequence goes afterwards.
    home: Option<&'s mut Option<Sequence<DecoderCache>>>,
}

impl<'m, 's> InfillStream<'m, 's> {
    pub(crate) fn begin(
        model: &'m CodeGemma,
        infill: &Infill,
        options: &InfillOptions,
        home: Option<&'s mut Option<Sequence<DecoderCache>>>,
    ) -> Result<Self, Error> {
        let begin = Instant::now();
        let prepared = Prepared::new(model, infill, options)?;
        let mut nothing = None;
        let mut home = home;
        let (sequence, reused) = prepared.turn(home.as_deref_mut().unwrap_or(&mut nothing));
        prepared.stream(sequence, options.generate.clone(), reused, begin, home)
    }

    /// Tells how the reading of the prompt goes: new tokens read, new tokens in all.
    pub fn with_progress(mut self, progress: impl FnMut(usize, usize) + Send + 'm) -> Self {
        self.generation = self.generation.take().map(|generation| generation.with_progress(progress));
        self
    }

    /// Restricts the tokens of the middle, for example to those that a grammar allows.
    pub fn with_mask(mut self, mask: Box<dyn TokenMask + 'm>) -> Self {
        self.generation = self.generation.take().map(|generation| generation.with_mask(mask));
        self
    }

    /// Runs to the end and returns everything, also what the iterator gave before.
    ///
    /// # Errors
    /// What the iterator yields.
    pub fn finish(mut self) -> Result<Infilled, Error> {
        for piece in self.by_ref() {
            piece?;
        }
        let generation = self.generation.as_ref().expect("a stream holds its generation until it is dropped");
        let tokens: Vec<TokenId> = generation.sampled().iter().map(|sampled| sampled.token).collect();
        let log_probs: f64 = generation.sampled().iter().map(|sampled| sampled.logprob).sum();
        Ok(Infilled {
            text: self.text[..self.kept.unwrap_or(self.text.len())].to_owned(),
            mean_log_prob: if tokens.is_empty() { 0.0 } else { log_probs / tokens.len() as f64 },
            tokens,
            finish_reason: self.finish_reason().unwrap_or(FinishReason::Stop),
            truncation: self.truncation,
            prompt_tokens: self.prompt_tokens,
            reused_tokens: self.reused,
            timings: generation.timings(),
        })
    }

    /// Why it is over; `None` while it is not, and after an error.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        if self.by_rule {
            return Some(FinishReason::StopText);
        }
        self.generation.as_ref().and_then(Generation::finish_reason)
    }

    /// What of the program was left out of the prompt.
    pub fn truncation(&self) -> Truncation {
        self.truncation
    }

    /// Takes what the model says next, `None` when it says nothing more.
    fn take(&mut self) -> Result<(), Error> {
        let next = self.generation.as_mut().and_then(Iterator::next);
        match next {
            Some(sampled) => {
                let piece = self.characters.push(sampled?.token).unwrap_or_default();
                self.text.push_str(&piece);
                self.kept = self.rules.end(&self.text);
                self.by_rule = self.kept.is_some();
            }
            None => {
                let rest = self.characters.finish();
                self.text.push_str(&rest);
                self.by_rule = self.rules.end(&self.text).is_some();
                self.kept = Some(self.rules.finish(&self.text));
            }
        }
        Ok(())
    }
}

impl Iterator for InfillStream<'_, '_> {
    type Item = Result<String, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.kept.is_none() {
            if let Err(error) = self.take() {
                self.kept = Some(self.shown);
                return Some(Err(error));
            }
            let ready = self.kept.unwrap_or_else(|| self.rules.safe(&self.text));
            if ready > self.shown {
                let piece = self.text[self.shown..ready].to_owned();
                self.shown = ready;
                return Some(Ok(piece));
            }
        }
        None
    }
}

impl std::iter::FusedIterator for InfillStream<'_, '_> {}

impl Drop for InfillStream<'_, '_> {
    /// What was read is kept for the next request, also when nobody waited for the end.
    fn drop(&mut self) {
        if let (Some(home), Some(generation)) = (self.home.take(), self.generation.take()) {
            *home = Some(generation.into_sequence());
        }
    }
}
