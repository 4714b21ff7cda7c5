//! The simplest face of the engine: one request as an iterator of tokens.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use gemma_tokenizer::TokenId;

use crate::engine::Active;
use crate::{
    CausalModel, Engine, EngineOptions, Error, Event, FinishReason, GenerateOptions, Request, RequestId, SampledToken,
    Sequence, Speculation, Timings, TokenMask,
};

/// Called after each chunk of a prompt: tokens prefilled, tokens in all.
type Progress<'m> = Box<dyn FnMut(usize, usize) + Send + 'm>;

/// The continuation of one sequence: an iterator of the tokens that a model samples.
///
/// It is an [`Engine`] with one request; each call of `next` is one step, or several while the prompt is prefilled in
/// chunks. Stop texts need text: they take effect in a [`TextStream`](crate::TextStream), or by a
/// [`StopRule`](crate::StopRule) of the request.
///
/// ```no_run
/// # use gemma_generate::{CausalModel, Error, GenerateOptions, Generation, TokenId};
/// # fn converse<M: CausalModel>(model: &M, question: &[TokenId], next: &[TokenId], stop: &[TokenId]) -> Result<(), Error> {
/// let options = GenerateOptions::greedy(100);
/// let mut answer = Generation::new(model, question, &options, stop)?;
/// for sampled in &mut answer {
///     println!("{}", sampled?.token);
/// }
/// println!("{:?}", answer.finish_reason());
/// // Only `next` is prefilled, and the last token of the answer: the cache holds the rest.
/// let answer = Generation::follow(model, answer.into_sequence(), next, &options, stop)?;
/// # Ok(()) }
/// ```
pub struct Generation<'m, M: CausalModel> {
    engine: Engine<'m, M>,
    id: RequestId,
    progress: Option<Progress<'m>>,
    /// The likeliest tokens in the place of each token yielded; empty where none were asked for.
    top: Vec<Vec<(TokenId, f64)>>,
    failed: bool,
}

impl<'m, M: CausalModel> Generation<'m, M> {
    /// Continues `prompt`, until one of `stop_tokens` is sampled at the latest.
    ///
    /// # Errors
    ///
    /// An option outside its range, an empty prompt, a token the model does not know, or a prompt longer than the
    /// model's context. No forward pass was made then.
    pub fn new(
        model: &'m M,
        prompt: &[TokenId],
        options: &GenerateOptions,
        stop_tokens: &[TokenId],
    ) -> Result<Self, Error> {
        Self::follow(model, Sequence::new(model.new_cache()), prompt, options, stop_tokens)
    }

    /// Continues a sequence after `tokens`, which may be none if the sequence has pending ones. The repetition penalty
    /// counts all tokens of the sequence.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn follow(
        model: &'m M,
        sequence: Sequence<M::Cache>,
        tokens: &[TokenId],
        options: &GenerateOptions,
        stop_tokens: &[TokenId],
    ) -> Result<Self, Error> {
        let request = Request { stop_tokens: stop_tokens.to_vec(), ..Request::new(tokens, options.clone()) };
        Self::of(model, sequence, request)
    }

    /// Runs a request after a sequence, usually an empty one: all that an [`Engine`] can do, for one request.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn of(model: &'m M, sequence: Sequence<M::Cache>, request: Request<'m>) -> Result<Self, Error> {
        let prefill_tokens = request.options.prefill_chunk.max(1);
        let mut engine = Engine::new(model, EngineOptions { prefill_tokens, ..EngineOptions::default() })?;
        let id = engine.submit_after(sequence, Request { keep_sequence: true, ..request })?;
        Ok(Self { engine, id, progress: None, top: Vec::new(), failed: false })
    }

    /// Ends the generation, with [`FinishReason::Cancelled`], once `flag` is true: it is looked at between tokens and
    /// between the chunks of a prompt.
    pub fn with_cancel(mut self, flag: Arc<AtomicBool>) -> Self {
        self.active_mut().cancel = Some(flag);
        self
    }

    /// Ends the generation, with [`FinishReason::OutOfTime`], at the first look at the clock after `deadline`: between
    /// tokens and between the chunks of a prompt.
    pub fn with_deadline(mut self, deadline: Instant) -> Self {
        self.active_mut().deadline = Some(deadline);
        self
    }

    /// Decodes speculatively: the next tokens are drafted and the model verifies several of them in one forward pass.
    /// The tokens are the same as without, but for what adding in another order may change in a logit's last digits; the
    /// time is less where drafts are often right.
    ///
    /// No tokens are drafted for a model that cannot take them back ([`Cache::retractable`](crate::Cache::retractable)).
    pub fn with_speculation(mut self, speculation: Speculation<'m>) -> Self {
        self.active_mut().speculation = Some(speculation);
        self
    }

    /// Restricts the tokens that may be sampled, for example to those that a grammar allows.
    pub fn with_mask(mut self, mask: Box<dyn TokenMask + 'm>) -> Self {
        self.active_mut().mask = Some((mask, vec![false; self.engine.model().vocab()]));
        self
    }

    /// Notes the `count` likeliest tokens in the place of each, for [`top_logprobs`](Self::top_logprobs).
    pub fn with_top_logprobs(mut self, count: usize) -> Self {
        self.active_mut().top_logprobs = count;
        self
    }

    /// Calls `progress` after each chunk of the prompt with the tokens prefilled and the tokens in all.
    pub fn with_progress(mut self, progress: impl FnMut(usize, usize) + Send + 'm) -> Self {
        self.progress = Some(Box::new(progress));
        self
    }

    /// This generation, which is over, going on after other tokens than before, such as those of a shorter prompt and of
    /// what was sampled so far. It keeps its sampler, mask, drafters, cancel flag and deadline; up to `max_tokens` tokens follow.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new); this one is then unchanged.
    pub fn moved_to(&mut self, tokens: &[TokenId], max_tokens: usize) -> Result<Self, Error> {
        let model = self.engine.model();
        let old = self.active_mut();
        let options = GenerateOptions { max_tokens, ..old.options.clone() };
        let mut moved = Self::new(model, tokens, &options, &old.stop_tokens)?;
        let new = moved.active_mut();
        std::mem::swap(&mut new.sampler, &mut old.sampler);
        (new.mask, new.cancel, new.deadline) = (old.mask.take(), old.cancel.clone(), old.deadline);
        new.speculation = old.speculation.take();
        Ok(moved)
    }

    /// Steps until a token was sampled. `None` when it is over.
    fn step(&mut self) -> Result<Option<SampledToken>, Error> {
        loop {
            let mut sampled = None;
            for event in self.engine.step() {
                match event {
                    Event::Prefill { done, total, cached, .. } => {
                        if let Some(progress) = &mut self.progress {
                            progress(done - cached, total - cached);
                        }
                    }
                    Event::Token { token, .. } => {
                        let logprob = token.logprob.expect("a sampled token has a logprob");
                        sampled = Some(SampledToken { token: token.token, logprob });
                        if !token.top.is_empty() {
                            self.top.push(token.top);
                        }
                    }
                    Event::Failed { error, .. } => return Err(error),
                    Event::Started { .. } | Event::Finished { .. } | Event::PromptLogprobs { .. } => {}
                }
            }
            if sampled.is_some() || self.finish_reason().is_some() {
                return Ok(sampled);
            }
        }
    }

    /// Ends the generation for a reason that it cannot see itself.
    pub(crate) fn end(&mut self, reason: FinishReason) {
        self.active_mut().end(reason);
    }

    /// Why it is over; `None` while it is not, and after an error.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.active().finish
    }

    /// All tokens yielded so far.
    pub fn sampled(&self) -> &[SampledToken] {
        &self.active().sampled
    }

    /// The likeliest tokens in the place of each of [`sampled`](Self::sampled), best first, with their logprobs; empty
    /// without [`with_top_logprobs`](Self::with_top_logprobs).
    pub fn top_logprobs(&self) -> &[Vec<(TokenId, f64)>] {
        &self.top
    }

    /// What it took so far.
    pub fn timings(&self) -> Timings {
        self.active().timings
    }

    /// The seed in use: the one in the options, or a fresh one.
    pub fn seed(&self) -> u64 {
        self.active().sampler.seed()
    }

    /// The options it was made with.
    pub fn options(&self) -> &GenerateOptions {
        &self.active().options
    }

    /// All tokens so far and their cache. While draft tokens are being verified the cache holds these too;
    /// [`into_sequence`](Self::into_sequence) takes them back.
    pub fn sequence(&self) -> &Sequence<M::Cache> {
        &self.active().sequence
    }

    /// Hands out the sequence, to be continued with [`follow`](Self::follow).
    pub fn into_sequence(mut self) -> Sequence<M::Cache> {
        self.engine.withdraw(self.id).expect("the engine keeps the sequence of its one request")
    }

    fn active(&self) -> &Active<'m, M::Cache> {
        self.engine.active(self.id).expect("the engine keeps its one request")
    }

    fn active_mut(&mut self) -> &mut Active<'m, M::Cache> {
        self.engine.active_mut(self.id).expect("the engine keeps its one request")
    }
}

impl<M: CausalModel> Iterator for Generation<'_, M> {
    type Item = Result<SampledToken, Error>;

    /// The next token. After an error, or once there is a [finish reason](Generation::finish_reason), `None` for good.
    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.finish_reason().is_some() {
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
