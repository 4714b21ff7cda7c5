//! The engine's account of its requests: submission, admission, what ends them, and what is kept of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use gemma_nn::PAGE_LEN;

use super::active::Active;
use super::event::{Event, RequestId};
use super::options::EngineOptions;
use super::prefix::{Found, Kind, PrefixCache, common_prefix};
use super::request::Request;
use crate::{Cache, CausalModel, Error, FinishReason, Sequence};

/// A shared prefix shorter than this is not worth waiting for, in tokens.
const WORTH_WAITING: usize = 32;

/// Requests to one model, and everything that is kept of them.
///
/// ```no_run
/// use gemma_generate::{CausalModel, Engine, EngineOptions, Error, Event, GenerateOptions, Request};
///
/// # fn run<M: CausalModel>(model: &M, prompts: Vec<Vec<u32>>) -> Result<(), Error> {
/// let mut engine = Engine::new(model, EngineOptions::default())?;
/// for prompt in prompts {
///     engine.submit(Request::new(prompt, GenerateOptions::greedy(100)))?;
/// }
/// while !engine.is_idle() {
///     for event in engine.step() {
///         match event {
///             Event::Token { id, token, .. } => println!("{id}: {}", token.token),
///             Event::Failed { id, error } => eprintln!("{id}: {error}"),
///             _ => {}
///         }
///     }
/// }
/// # Ok(()) }
/// ```
pub struct Engine<'m, M: CausalModel> {
    pub(super) model: &'m M,
    pub(super) options: EngineOptions,
    /// In the order in which they came; those that are admitted and those that wait.
    pub(super) requests: Vec<Active<'m, M::Cache>>,
    /// Requests that are over and whose sequences are kept.
    pub(super) kept: Vec<Active<'m, M::Cache>>,
    pub(super) prefixes: PrefixCache<M::Cache>,
    next_id: u64,
}

/// What an engine holds at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Requests in progress.
    pub running: usize,
    /// Requests that wait for room.
    pub waiting: usize,
    /// Bytes reserved for the caches of the requests in progress, without what they share with the prefix cache.
    pub request_bytes: usize,
    /// Bytes of the prefix cache.
    pub prefix_bytes: usize,
    /// Entries of the prefix cache.
    pub prefix_entries: usize,
}

impl<'m, M: CausalModel> Engine<'m, M> {
    /// An engine without requests.
    ///
    /// # Errors
    ///
    /// What [`EngineOptions::check`] finds.
    pub fn new(model: &'m M, options: EngineOptions) -> Result<Self, Error> {
        options.check()?;
        Ok(Self { model, options, requests: Vec::new(), kept: Vec::new(), prefixes: PrefixCache::new(), next_id: 0 })
    }

    /// Takes up a request; it begins in one of the next steps.
    ///
    /// # Errors
    ///
    /// An option outside its range, an empty prompt, a token the model does not know, a prompt longer than the context, or
    /// one that does not fit into [`EngineOptions::max_cache_bytes`] even alone.
    pub fn submit(&mut self, request: Request<'m>) -> Result<RequestId, Error> {
        self.submit_after(Sequence::new(self.model.new_cache()), request)
    }

    /// [`submit`](Self::submit), with a prompt that continues a sequence. The prompt may be empty when the sequence has
    /// pending tokens. Penalties count the sequence's tokens as the prompt's.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit).
    pub fn submit_after(&mut self, sequence: Sequence<M::Cache>, request: Request<'m>) -> Result<RequestId, Error> {
        let id = RequestId(self.next_id);
        let active = Active::new(self.model, &self.options, id, request, sequence)?;
        self.next_id += 1;
        self.requests.push(active);
        Ok(id)
    }

    /// Ends a request; its [`Event::Finished`] comes in the next step. Nothing happens when it is over already.
    pub fn cancel(&mut self, id: RequestId) {
        if let Some(active) = self.requests.iter_mut().find(|active| active.id == id) {
            active.end(FinishReason::Cancelled);
        }
    }

    /// Whether there are no requests.
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }

    /// The sequence of a request that is over and asked for it with [`Request::keep_sequence`]; once.
    pub fn take_sequence(&mut self, id: RequestId) -> Option<Sequence<M::Cache>> {
        let index = self.kept.iter().position(|active| active.id == id)?;
        Some(self.kept.swap_remove(index).sequence)
    }

    /// Bytes of the pages of keys and values that its requests and its prefix cache hold, each page counted once however
    /// many share it. It looks at every page; [`stats`](Self::stats) is what to ask often.
    pub fn page_bytes(&self) -> usize {
        let of_requests = self.requests.iter().chain(&self.kept).map(|active| active.sequence.cache());
        let pages: HashMap<_, _> = of_requests.chain(self.prefixes.caches()).flat_map(Cache::pages).collect();
        pages.values().sum()
    }

    /// What it holds at the moment.
    pub fn stats(&self) -> EngineStats {
        let running = self.requests.iter().filter(|active| active.admitted).count();
        EngineStats {
            running,
            waiting: self.requests.len() - running,
            request_bytes: self
                .requests
                .iter()
                .filter(|active| active.admitted)
                .map(|active| self.reserved(active))
                .sum(),
            prefix_bytes: self.prefixes.bytes(),
            prefix_entries: self.prefixes.len(),
        }
    }

    /// The model.
    pub fn model(&self) -> &'m M {
        self.model
    }

    /// The caches of the requests in progress.
    pub fn caches(&self) -> impl Iterator<Item = &M::Cache> {
        self.requests.iter().filter(|active| active.admitted).map(|active| active.sequence.cache())
    }

    /// One forward pass for all requests in progress: admits, prefills, decodes, samples. Returns what happened, the events
    /// of each request in their order; nothing when there is no request.
    pub fn step(&mut self) -> Vec<Event> {
        let start = Instant::now();
        let mut events = Vec::new();
        self.check_limits();
        self.retire(&mut events);
        self.admit(&mut events);
        self.forward(start, &mut events);
        self.check_limits();
        self.retire(&mut events);
        let seconds = start.elapsed().as_secs_f64();
        for active in &mut self.requests {
            // a request that got a token waits for the next one from then on
            active.waited = match active.sampled_at.take() {
                Some(moment) => moment.elapsed().as_secs_f64(),
                None => active.waited + seconds,
            };
        }
        events
    }

    /// A request in progress or kept.
    pub(crate) fn active(&self, id: RequestId) -> Option<&Active<'m, M::Cache>> {
        self.requests.iter().chain(&self.kept).find(|active| active.id == id)
    }

    /// A request in progress or kept.
    pub(crate) fn active_mut(&mut self, id: RequestId) -> Option<&mut Active<'m, M::Cache>> {
        self.requests.iter_mut().chain(&mut self.kept).find(|active| active.id == id)
    }

    /// Takes a request out, over or not, and hands out its sequence.
    pub fn withdraw(&mut self, id: RequestId) -> Option<Sequence<M::Cache>> {
        if let Some(index) = self.requests.iter().position(|active| active.id == id) {
            let mut active = self.requests.remove(index);
            active.roll_back();
            self.release(&mut active);
            return Some(active.sequence);
        }
        self.take_sequence(id)
    }

    /// Ends a request's use of the prefix cache.
    pub(super) fn release(&mut self, active: &mut Active<'m, M::Cache>) {
        if let Some((entry, _)) = active.shared.take() {
            self.prefixes.release(entry);
        }
    }

    fn check_limits(&mut self) {
        let context = self.model.context_length();
        self.requests.iter_mut().for_each(|active| active.check_limits(context));
    }

    /// Lets those that are over go.
    fn retire(&mut self, events: &mut Vec<Event>) {
        let over: Vec<_> = self.requests.extract_if(.., |active| active.finish.is_some()).collect();
        for mut active in over {
            active.roll_back();
            let text = active.stop_rule.as_mut().map(|rule| rule.finish()).unwrap_or_default();
            let reason = active.finish.expect("only those with a reason are taken");
            events.push(Event::Finished {
                id: active.id,
                reason,
                text,
                stop_token: active.stop_token.take(),
                timings: active.timings,
                cached: active.reused,
                seed: active.sampler.seed(),
            });
            if !self.options.batch_invariant {
                keep_prefix(&mut self.prefixes, self.model, &self.options, &mut active);
            }
            self.release(&mut active);
            if active.keep_sequence {
                self.kept.push(active);
            }
        }
        self.prefixes.evict_to(self.prefix_limit());
    }

    /// Takes up waiting requests, first come first served, while there is room.
    fn admit(&mut self, events: &mut Vec<Event>) {
        for index in 0..self.requests.len() {
            if self.requests[index].admitted {
                continue;
            }
            let running = self.requests.iter().filter(|active| active.admitted).count();
            if running >= self.options.max_requests {
                return;
            }
            if self.options.prefix_cache_bytes > 0 && self.waits_for_prefix(index) {
                continue;
            }
            let found = self.find_prefix(index);
            let shared = found.as_ref().map_or(0, |found| found.len);
            let context = self.model.context_length();
            let needed = unshared_bytes(self.model, self.requests[index].longest(context), shared);
            if !self.make_room(needed) {
                if let Some(found) = found {
                    self.prefixes.release(found.id);
                }
                return;
            }
            let active = &mut self.requests[index];
            active.admitted = true;
            if let Some(found) = found {
                active.sequence.set_cache(found.cache, found.len);
                active.reused = found.len;
                active.shared = Some((found.id, found.len));
                active.timings.prompt_tokens -= found.len;
            }
            events.push(Event::Started { id: active.id, cached: active.reused });
        }
    }

    /// The longest prefix of a request's prompt that the prefix cache holds.
    fn find_prefix(&mut self, index: usize) -> Option<Found<M::Cache>> {
        let active = &self.requests[index];
        let usable = active.is_plain() && active.sequence.position() == 0 && !active.prompt_logprobs;
        if !usable || self.options.prefix_cache_bytes == 0 {
            return None;
        }
        let kind = prefix_kind(&self.options, active);
        self.prefixes.take(active.sequence.tokens(), &kind)
    }

    /// Whether another request is about to compute a prefix that this one can use.
    fn waits_for_prefix(&self, index: usize) -> bool {
        let waiting = &self.requests[index];
        if !waiting.is_plain() || waiting.sequence.position() > 0 || waiting.prompt_logprobs {
            return false;
        }
        let prompt = waiting.sequence.tokens();
        let kind = prefix_kind(&self.options, waiting);
        let known = self.prefixes.longest(prompt, &kind);
        let longer = |active: &Active<'m, M::Cache>| {
            let alike = active.is_plain() && active.adapters == waiting.adapters;
            let computing = active.admitted && alike && !active.is_decoding();
            let unit = if self.truncates(active) { kind.unit } else { self.options.snapshot_tokens };
            let common = common_prefix(active.sequence.tokens(), prompt).min(prompt.len() - 1) / unit * unit;
            computing && common >= known + WORTH_WAITING
        };
        self.requests.iter().any(longer)
    }

    /// Whether the cache of a request's prompt can be truncated to any length.
    pub(super) fn truncates(&self, active: &Active<'m, M::Cache>) -> bool {
        active.sequence.len() <= active.sequence.cache().truncatable()
    }

    fn reserved(&self, active: &Active<'m, M::Cache>) -> usize {
        let shared = active.shared.map_or(0, |(_, len)| len);
        unshared_bytes(self.model, active.longest(self.model.context_length()), shared)
    }

    /// Evicts what nobody uses until so many bytes are free; `false` when they are not.
    fn make_room(&mut self, bytes: usize) -> bool {
        let Some(limit) = self.options.max_cache_bytes else { return true };
        let running: usize =
            self.requests.iter().filter(|active| active.admitted).map(|active| self.reserved(active)).sum();
        let Some(left) = limit.checked_sub(running.saturating_add(bytes)) else { return false };
        self.prefixes.evict_to(left);
        self.prefixes.bytes() <= left
    }

    /// Bytes that the prefix cache may take.
    fn prefix_limit(&self) -> usize {
        let Some(limit) = self.options.max_cache_bytes else { return self.options.prefix_cache_bytes };
        let running: usize =
            self.requests.iter().filter(|active| active.admitted).map(|active| self.reserved(active)).sum();
        limit.saturating_sub(running).min(self.options.prefix_cache_bytes)
    }
}

/// Keeps what the cache of a request holds, for prompts that begin alike.
pub(super) fn keep_prefix<M: CausalModel>(
    prefixes: &mut PrefixCache<M::Cache>,
    model: &M,
    options: &EngineOptions,
    active: &mut Active<'_, M::Cache>,
) {
    let (cached, shared) = (active.sequence.position(), active.shared.map_or(0, |(_, len)| len));
    let wanted = options.prefix_cache_bytes > 0 && active.admitted && active.is_plain() && cached > shared;
    // tokens that were decoded are not, bit for bit, what prefill makes of them
    if !wanted || (options.batch_invariant && !active.from_start) {
        return;
    }
    let mut cache = active.sequence.cache().clone();
    // A request that goes on writes into its last page, which it would have to copy if the entry held it, too.
    let whole_pages = cached / PAGE_LEN * PAGE_LEN;
    let cached = if active.finish.is_none() && cache.truncate(whole_pages) { whole_pages } else { cached };
    if cached <= shared {
        return;
    }
    let bytes = unshared_bytes(model, cached, shared);
    let tokens = &active.sequence.tokens()[..cached];
    let kind = prefix_kind(options, active);
    let entry = prefixes.insert(tokens, cache, bytes, active.shared, kind);
    if let Some((old, _)) = active.shared.replace((entry, cached)) {
        prefixes.release(old);
    }
}

/// Bytes of the cache of `tokens` tokens, of which the first `shared` are another's: those of the tokens after them, and a
/// recurrent state, which is never shared.
fn unshared_bytes<M: CausalModel>(model: &M, tokens: usize, shared: usize) -> usize {
    model.cache_bytes(tokens.saturating_sub(shared))
}

/// Whose prefixes a request can use. In batch-invariant mode chunks are the same as without reuse, so the length of a reused
/// prefix is a multiple of their size.
fn prefix_kind<C: Cache>(options: &EngineOptions, active: &Active<'_, C>) -> Kind {
    let unit = if options.batch_invariant { active.options.prefill_chunk } else { 1 };
    Kind { unit, adapters: Arc::clone(&active.adapters) }
}
