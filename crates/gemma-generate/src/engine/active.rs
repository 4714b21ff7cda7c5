//! One request in progress: its sequence, its sampler, and everything that can end it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use gemma_nn::{AdapterChoice, Phase};
use gemma_tokenizer::TokenId;

use super::event::{RequestId, TokenLogprobs};
use super::options::EngineOptions;
use super::request::{Prompt, Request, StopRule, TokenMask};
use crate::rows::Row;
use crate::sampler::top_of_row;
use crate::sequence::check_ids;
use crate::speculative::Drafted;
use crate::{
    Cache, CausalModel, Error, FinishReason, GenerateOptions, Inputs, SampledToken, Sampler, Sequence, Speculation,
    Timings,
};

/// See the module.
pub(crate) struct Active<'m, C> {
    pub(crate) id: RequestId,
    pub(crate) sequence: Sequence<C>,
    /// Rows of a prompt that is embedded already, from the first token of the sequence on, and its blocks.
    pub(crate) inputs: Option<(Inputs, Arc<[Range<usize>]>)>,
    /// The adapters that it chose, in the order of their numbers, without those of strength 0.
    pub(crate) adapters: Arc<[AdapterChoice]>,
    /// Whether nothing was in the cache when it was submitted.
    pub(crate) from_start: bool,
    /// Whether it takes part in the steps, or waits.
    pub(crate) admitted: bool,
    /// Tokens of the prompt that the prefix cache held.
    pub(crate) reused: usize,
    /// The entry of the prefix cache that it shares pages with, and how many tokens.
    pub(crate) shared: Option<(u64, usize)>,
    pub(crate) sampler: Sampler,
    pub(crate) options: GenerateOptions,
    pub(crate) stop_tokens: Vec<TokenId>,
    /// The one that ended the answer.
    pub(crate) stop_token: Option<TokenLogprobs>,
    pub(crate) stop_rule: Option<Box<dyn StopRule + 'm>>,
    pub(crate) mask: Option<(Box<dyn TokenMask + 'm>, Vec<bool>)>,
    pub(crate) cancel: Option<Arc<AtomicBool>>,
    pub(crate) deadline: Option<Instant>,
    pub(crate) speculation: Option<Speculation<'m>>,
    pub(crate) drafted: Option<Drafted>,
    pub(crate) top_logprobs: usize,
    pub(crate) prompt_logprobs: bool,
    pub(crate) keep_sequence: bool,
    pub(crate) sampled: Vec<SampledToken>,
    pub(crate) finish: Option<FinishReason>,
    /// What went wrong in this step.
    pub(crate) failure: Option<Error>,
    pub(crate) timings: Timings,
    /// Seconds of earlier steps since the last token.
    pub(crate) waited: f64,
    /// When a token was sampled in this step.
    pub(crate) sampled_at: Option<Instant>,
}

impl<'m, C: Cache> Active<'m, C> {
    /// Finds everything that a caller can get wrong; `sequence` is what the prompt is appended to.
    pub(crate) fn check<M: CausalModel<Cache = C>>(
        model: &M,
        limits: &EngineOptions,
        request: &Request<'_>,
        sequence: &Sequence<C>,
    ) -> Result<(), Error> {
        let options = &request.options;
        options.check()?;
        let choices = &request.adapters;
        let wrong = choices.iter().enumerate().find(|(place, choice)| {
            let known = choice.adapter < limits.adapters && choice.strength.is_finite();
            !known || choices[..*place].iter().any(|other| other.adapter == choice.adapter)
        });
        if let Some((_, &AdapterChoice { adapter, strength })) = wrong {
            return Err(Error::Adapter { adapter, strength, adapters: limits.adapters });
        }
        let vocab = model.vocab();
        if let Some(&(token, _)) = options.logit_bias.iter().find(|(token, _)| *token as usize >= vocab) {
            return Err(Error::BiasedTokenOutOfRange { token, vocab });
        }
        if matches!(request.prompt, Prompt::Tokens(_)) {
            check_ids(sequence.pending(), vocab, None)?;
        }
        let added = match &request.prompt {
            Prompt::Tokens(tokens) => {
                check_ids(tokens, vocab, None)?;
                tokens.len()
            }
            Prompt::Inputs { inputs, blocks } => {
                let (rows, tokens) = (inputs.embeddings.dims()[0], inputs.len());
                let last = blocks.iter().map(|block| block.end).max().unwrap_or(0);
                let ordered = blocks.is_sorted_by(|a, b| a.end <= b.start);
                let follows = sequence.before() == 0 && inputs.token_ids.starts_with(sequence.tokens());
                if rows != tokens || last > tokens || !ordered || !follows {
                    return Err(Error::InputRows { rows, tokens, last });
                }
                tokens - sequence.len()
            }
        };
        if sequence.pending().len() + added == 0 {
            return Err(Error::EmptyPrompt);
        }
        let (tokens, context) = (sequence.len() + added, model.context_length());
        if let Some(limit) = context.filter(|&limit| tokens > limit) {
            return Err(Error::PromptTooLong { tokens, limit });
        }
        if let Some(limit) = limits.max_cache_bytes {
            let longest = tokens.saturating_add(options.max_tokens).min(context.unwrap_or(usize::MAX));
            let needed = model.cache_bytes(longest);
            if needed > limit {
                return Err(Error::CacheTooSmall { needed, limit });
            }
        }
        Ok(())
    }

    /// A request that was [checked](Self::check).
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub(crate) fn new<M: CausalModel<Cache = C>>(
        model: &M,
        limits: &EngineOptions,
        id: RequestId,
        request: Request<'m>,
        mut sequence: Sequence<C>,
    ) -> Result<Self, Error> {
        Self::check(model, limits, &request, &sequence)?;
        let mut sampler = Sampler::new(&request.options)?;
        let from_start = sequence.is_empty();
        let inputs = match request.prompt {
            Prompt::Tokens(tokens) => {
                sequence.push(&tokens);
                None
            }
            Prompt::Inputs { inputs, blocks } => {
                let known = sequence.len();
                sequence.push(&inputs.token_ids[known..]);
                Some((inputs, blocks.into()))
            }
        };
        sampler.observe_prompt(sequence.tokens());
        let mut adapters: Vec<_> = request.adapters.into_iter().filter(|choice| choice.strength != 0.0).collect();
        adapters.sort_by_key(|choice| choice.adapter);
        let timings = Timings { prompt_tokens: sequence.pending().len(), ..Timings::default() };
        Ok(Self {
            id,
            sequence,
            inputs,
            adapters: adapters.into(),
            from_start,
            admitted: false,
            reused: 0,
            shared: None,
            sampler,
            stop_tokens: if request.options.ignore_eos { Vec::new() } else { request.stop_tokens },
            stop_token: None,
            options: request.options,
            stop_rule: request.stop_rule,
            mask: request.mask.map(|mask| (mask, vec![false; model.vocab()])),
            cancel: request.cancel,
            deadline: request.deadline,
            speculation: request.speculation,
            drafted: None,
            top_logprobs: request.top_logprobs,
            prompt_logprobs: request.prompt_logprobs,
            keep_sequence: request.keep_sequence,
            sampled: Vec::new(),
            finish: None,
            failure: None,
            timings,
            waited: 0.0,
            sampled_at: None,
        })
    }

    /// Whether the prompt is in the cache but for its last token at most, and tokens are sampled one by one.
    pub(crate) fn is_decoding(&self) -> bool {
        !self.sampled.is_empty()
    }

    /// The phase of its next tokens. That of a prompt follows from its length alone, so that its last chunk is computed as the
    /// others are.
    pub(crate) fn phase(&self, batch_invariant: bool) -> Phase {
        let reused = if batch_invariant { self.reused } else { 0 };
        if self.is_decoding() { Phase::Decode } else { Phase::of_len(self.timings.prompt_tokens + reused) }
    }

    /// Whether the sequence is tokens from its beginning on, which other sequences may share.
    pub(crate) fn is_plain(&self) -> bool {
        self.inputs.is_none() && self.sequence.before() == 0
    }

    /// Most tokens that the sequence may come to have.
    pub(crate) fn longest(&self, context: Option<usize>) -> usize {
        let wanted = self.sequence.len().saturating_add(self.options.max_tokens.saturating_sub(self.sampled.len()));
        wanted.min(context.unwrap_or(usize::MAX)).max(self.sequence.len())
    }

    /// Notes why nothing more can be computed for it, if that is so.
    pub(crate) fn check_limits(&mut self, context: Option<usize>) {
        if self.finish.is_some() {
            return;
        }
        let prompt_wanted = self.prompt_logprobs && !self.sequence.pending().is_empty() && !self.is_decoding();
        self.finish = if self.sampled.len() >= self.options.max_tokens && !prompt_wanted {
            Some(FinishReason::Length)
        } else if context.is_some_and(|limit| self.sequence.len() > limit) {
            Some(FinishReason::ContextFull)
        } else if self.cancel.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed)) {
            Some(FinishReason::Cancelled)
        } else if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            Some(FinishReason::OutOfTime)
        } else {
            None
        };
    }

    /// How many of the largest logits after a sequence are all that its next token and its logprobs follow from; `None` where
    /// all are read.
    pub(crate) fn reads(&self) -> Option<usize> {
        let reads = self.sampler.reads().filter(|_| self.mask.is_none());
        reads.map(|count| count.max(self.top_logprobs))
    }

    /// Takes the logits after a sequence with nothing pending: samples a token and appends it. Returns its
    /// logprobs and the text that can be shown; `None` for a stop token. `start`: when the step began.
    pub(crate) fn accept(&mut self, logits: Row<'_>, start: Instant) -> Result<Option<(TokenLogprobs, String)>, Error> {
        let allowed = match &mut self.mask {
            Some((mask, allowed)) => {
                allowed.fill(false);
                mask.allow(allowed).map_err(|reason| Error::Mask { reason })?;
                Some(allowed.as_slice())
            }
            None => None,
        };
        let sampled = self.sampler.sample_row(logits, allowed)?;
        let top = match self.top_logprobs {
            0 => Vec::new(),
            count => top_of_row(logits, count)?,
        };
        if let Some((mask, _)) = &mut self.mask {
            mask.accept(sampled.token).map_err(|reason| Error::Mask { reason })?;
        }
        self.sequence.push(&[sampled.token]);
        self.sampled_at = Some(Instant::now());
        let seconds = start.elapsed().as_secs_f64() + std::mem::take(&mut self.waited);
        if self.sampled.is_empty() {
            self.timings.prompt_seconds = seconds;
        } else {
            self.timings.decode_steps += 1;
            self.timings.decode_seconds += seconds;
        }
        if self.stop_tokens.contains(&sampled.token) {
            self.finish = Some(FinishReason::Stop);
            self.stop_token = Some(TokenLogprobs { token: sampled.token, logprob: Some(sampled.logprob), top });
            self.settle_draft(None);
            return Ok(None);
        }
        self.sampled.push(sampled);
        self.timings.generated_tokens += 1;
        self.settle_draft(Some(sampled.token));
        let mut text = String::new();
        if let Some(rule) = &mut self.stop_rule {
            text = rule.push(sampled.token);
            if rule.stopped() {
                self.end(FinishReason::StopText);
            }
        }
        Ok(Some((TokenLogprobs { token: sampled.token, logprob: Some(sampled.logprob), top }, text)))
    }

    /// Ends it.
    pub(crate) fn end(&mut self, reason: FinishReason) {
        self.finish = Some(reason);
        self.settle_draft(None);
    }

    /// After a token was sampled: keeps the verified draft while the tokens are those of the draft, and takes the rest of
    /// the draft back from the cache otherwise.
    fn settle_draft(&mut self, sampled: Option<TokenId>) {
        let Some(drafted) = &self.drafted else { return };
        let accepted = sampled.is_some() && drafted.tokens.get(drafted.used - 1).copied() == sampled;
        self.timings.accepted_tokens += usize::from(accepted);
        if accepted && self.finish.is_none() {
            return;
        }
        if let Some(speculation) = &mut self.speculation {
            speculation.record(drafted.tokens.len(), drafted.used - 1 + usize::from(accepted), drafted.seconds);
        }
        self.drafted = None;
        let held = self.sequence.position();
        let rolled_back = self.sequence.cache_mut().truncate(held);
        assert!(rolled_back, "no more was drafted than Cache::retractable");
    }

    /// Gives up a draft that was not used to its end: the cache then holds the sequence and nothing else.
    pub(crate) fn roll_back(&mut self) {
        self.settle_draft(None);
    }

    /// Draft tokens for the next forward pass, which must fit.
    pub(crate) fn draft(&mut self, context: Option<usize>, vocab: usize) -> Vec<TokenId> {
        if self.sequence.pending().len() != 1 || !self.is_decoding() || self.mask.is_some() {
            return Vec::new();
        }
        let Some(speculation) = &mut self.speculation else { return Vec::new() };
        // the last token wanted is not worth a draft, and what cannot be taken back is not computed
        let room = context.unwrap_or(usize::MAX).saturating_sub(self.sequence.len());
        let wanted = (self.options.max_tokens - self.sampled.len()).saturating_sub(1);
        let limit = wanted.min(room).min(self.sequence.cache().retractable());
        let draft = speculation.next(self.sequence.tokens(), limit, wanted);
        if check_ids(&draft, vocab, None).is_err() { Vec::new() } else { draft }
    }
}
