//! The real backend: a loaded model of any family, and an engine on a thread of its own.
//!
//! The engine's thread passes the events of each request on to the request's channel. When the receiver is gone, the
//! engine drops the request before its next step.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use codegemma::{File, Infill, Order};
use gemma_generate::{
    AdapterChoice, Dry, EngineHandle, EngineOptions, EngineThread, Event as EngineEvent, FinishReason, GenerateOptions,
    Mirostat, Request, TextDecoder, Timings, TokenLogprobs,
};
use gemma_model::{Model, Network, Speculate};
use gemma_tokenizer::{ChatTemplate, DecodeStream, TokenId, Tokenizer, Turn};
use gemma3::Gemma3;
use paligemma::PaliGemma;
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{Semaphore, oneshot};

use super::backend::{
    AdapterCard, Backend, Capabilities, Event, Events, Finished, Hole, Job, Load, Message, ModelCard, Moderated,
    Ongoing, Prompt, Reason, TokenMask, TokenScore, VisionTask,
};
use super::error::Refusal;
use images::ImageModel;
use moderation::{Judge, image_judge, text_judge};

mod images;
mod moderation;

/// A model that answers jobs by an engine.
pub struct EngineBackend {
    card: ModelCard,
    tokenizer: Arc<Tokenizer>,
    chat_template: ChatTemplate,
    stop_tokens: Vec<TokenId>,
    speculate: Option<Speculate>,
    handle: EngineHandle,
    /// The most that caches of sequences no longer than this take.
    most_cache_bytes: Box<dyn Fn(Option<usize>) -> usize + Send + Sync>,
    cache_limit: usize,
    /// Those that requests may choose, in the order in which the model was given them.
    adapters: Vec<AdapterCard>,
    /// The model again, where it sees images.
    images: Option<ImageModel>,
    /// One permit: the images of one request are encoded at a time.
    encoding: Arc<Semaphore>,
    /// The model again, where it classifies content.
    judge: Option<Judge>,
    /// Ends the engine's thread when it is dropped.
    _thread: EngineThread,
}

impl std::fmt::Debug for EngineBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineBackend").field("card", &self.card).finish_non_exhaustive()
    }
}

impl EngineBackend {
    /// Serves a model that reads text under a name; `family` names its architecture to clients.
    ///
    /// # Errors
    /// When the model has no tokenizer, or an option of the engine is outside its range.
    pub fn new<N>(
        name: &str,
        family: &str,
        model: &Model<N>,
        options: EngineOptions,
    ) -> Result<Self, gemma_model::Error>
    where
        N: Network + Send + Sync + 'static,
    {
        let tokenizer = model.shared_tokenizer()?;
        let control = tokenizer.control();
        let capabilities = Capabilities {
            generate: true,
            chat: control.end_of_turn.is_some(),
            infill: control.fim.is_some(),
            ..Capabilities::default()
        };
        let network = model.shared_network();
        let weights = network.weight_summary();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let card = ModelCard {
            id: name.to_owned(),
            family: family.to_owned(),
            context_length: network.context_length(),
            vocab_size: network.vocab(),
            parameters: weights.parameters,
            bytes: weights.bytes as u64,
            quantization: weights.format().to_owned(),
            created: now,
            capabilities,
            ..ModelCard::default()
        };
        let limits = options.clone();
        let most_cache_bytes = Box::new(move |context| limits.most_cache_bytes(&*network, context));
        let cache_limit = most_cache_bytes(None);
        let thread = model.engine(options)?;
        Ok(Self {
            card,
            tokenizer,
            chat_template: model.chat_template().clone(),
            stop_tokens: model.stop_tokens().to_vec(),
            speculate: model.speculate().cloned(),
            handle: thread.handle(),
            most_cache_bytes,
            cache_limit,
            adapters: Vec::new(),
            images: None,
            encoding: Arc::new(Semaphore::new(1)),
            judge: None,
            _thread: thread,
        })
    }

    /// Serves a PaliGemma.
    ///
    /// # Errors
    /// As [`EngineBackend::new`].
    pub fn with_paligemma(name: &str, model: PaliGemma, options: EngineOptions) -> Result<Self, gemma_model::Error> {
        let mut backend = Self::new(name, "paligemma", model.model(), options)?;
        backend.card.capabilities =
            Capabilities { generate: true, images: true, detect: true, ..Capabilities::default() };
        backend.images = Some(ImageModel::PaliGemma(Arc::new(model)));
        Ok(backend)
    }

    /// Serves a Gemma 3 with images, or a ShieldGemma 2. Images are read whole: pan and scan is turned off.
    ///
    /// # Errors
    /// As [`EngineBackend::new`].
    pub fn with_gemma3(name: &str, model: Gemma3, options: EngineOptions) -> Result<Self, gemma_model::Error> {
        let model = Arc::new(model.with_pan_and_scan(false));
        let mut backend = Self::new(name, "gemma3", model.model(), options)?;
        backend.card.capabilities.images = true;
        if let Some(answers) = model.network().config().yes_and_no {
            backend.judge = Some(image_judge(Arc::clone(&model), answers));
            backend.card.capabilities.moderate = true;
        }
        backend.images = Some(ImageModel::Gemma3(model));
        Ok(backend)
    }

    /// The same, which also classifies texts: for a ShieldGemma, whose model this is.
    ///
    /// # Errors
    /// When the tokenizer has no `Yes` and `No`.
    pub fn with_moderation<N>(mut self, model: &Model<N>) -> Result<Self, shieldgemma::Error>
    where
        N: Network + Send + Sync + 'static,
    {
        self.judge = Some(text_judge(model)?);
        self.card.capabilities.moderate = true;
        Ok(self)
    }

    /// The same with adapters that requests may choose: those of the model's `LoadOptions::request_adapters`, in that order, and
    /// as many as `EngineOptions::adapters` says.
    #[must_use]
    pub fn with_adapters(self, adapters: Vec<AdapterCard>) -> Self {
        Self { adapters, ..self }
    }

    /// The same with a shorter context.
    #[must_use]
    pub fn with_context_limit(mut self, limit: Option<usize>) -> Self {
        let own = self.card.context_length;
        if let Some((limit, own)) = limit.zip(own).filter(|(limit, own)| limit > own) {
            tracing::warn!(model = %self.card.id, "the context length is the model's, {own}, and not {limit}");
        }
        self.card.context_length = limit.map_or(own, |limit| Some(own.map_or(limit, |own| own.min(limit))));
        self.cache_limit = (self.most_cache_bytes)(self.card.context_length);
        self
    }
}

/// Whatever the library refuses is the request's fault; whatever fails later is not.
fn refusal(error: &gemma_generate::Error) -> Refusal {
    use gemma_generate::Error;
    match error {
        Error::PromptTooLong { tokens, limit, .. } => Refusal::context(*tokens, *limit),
        Error::InvalidOption { option, .. } => Refusal::field(*option, error.to_string()),
        Error::Mask { .. } => Refusal::field("response_format", error.to_string()),
        Error::CacheTooSmall { needed, limit } => Refusal::too_large(format!(
            "the request needs up to {needed} bytes of KV cache and the server has {limit}; send a shorter prompt, a smaller \
             max_tokens, or start the server with more --cache-memory"
        )),
        Error::EngineStopped | Error::ModelPanicked => Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        Error::NotFinite { .. } | Error::LogitsShape { .. } | Error::Device { .. } => {
            Refusal::failed(error.to_string())
        }
        _ => Refusal::invalid(error.to_string()),
    }
}

/// A grammar as the engine asks for it.
struct Mask(Box<dyn TokenMask>);

impl gemma_generate::TokenMask for Mask {
    fn allow(&mut self, allowed: &mut [bool]) -> Result<(), String> {
        self.0.allowed(allowed)
    }

    fn accept(&mut self, token: TokenId) -> Result<(), String> {
        self.0.accept(token)
    }
}

impl Backend for EngineBackend {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn chat_template(&self) -> &ChatTemplate {
        &self.chat_template
    }

    fn adapters(&self) -> &[AdapterCard] {
        &self.adapters
    }

    fn submit(&self, job: Job) -> Result<Events, Refusal> {
        let (sender, events) = unbounded_channel();
        let mut passing = Passing {
            sender: sender.clone(),
            scores: job.logprobs.is_some(),
            prompt: Vec::new(),
            prompt_tokens: job.prompt.tokens.len(),
            silent: job.sampling.max_tokens == 0,
            with_stop: job.prompt_logprobs && job.logprobs.is_some(),
        };
        let images = job.prompt.images.clone();
        let request = self.request(job);
        // lives as long as the engine has the request
        let (alive, over) = oneshot::channel::<()>();
        let sink = move |event| {
            let _alive = &alive;
            passing.pass(event)
        };
        let watch = |cancel: Arc<AtomicBool>, client: UnboundedSender<Event>| async move {
            tokio::select! {
                // a request that waits has no events by which the engine could notice
                () = client.closed() => cancel.store(true, Ordering::Relaxed),
                _ = over => {}
            }
        };
        if images.is_empty() {
            let cancel = self.handle.submit_with(request, sink).map_err(|error| refusal(&error))?;
            tokio::spawn(watch(cancel, sender));
            return Ok(events);
        }
        let Some(model) = self.images.clone() else {
            return Err(Refusal::unsupported(format!("{} does not read images", self.card.id)));
        };
        // images are encoded beside the engine, so that nobody waits for them, and those of one request at a time, so that
        // the decoded images of many do not fill the memory
        let (handle, encoding) = (self.handle.clone(), Arc::clone(&self.encoding));
        tokio::spawn(async move {
            let permit = tokio::select! {
                permit = encoding.acquire_owned() => permit,
                () = sender.closed() => return,
            };
            let submit = move || {
                let _permit = permit;
                let request = model.request(request, &images)?;
                handle.submit_with(request, sink).map_err(|error| refusal(&error))
            };
            match tokio::task::spawn_blocking(submit).await {
                Ok(Ok(cancel)) => watch(cancel, sender).await,
                Ok(Err(refusal)) => drop(sender.send(Event::Failed(refusal))),
                Err(_) => drop(sender.send(Event::Failed(Refusal::failed("the image made the model fail")))),
            }
        });
        Ok(events)
    }

    fn load(&self) -> Load {
        let stats = self.handle.stats();
        Load {
            running: stats.running,
            waiting: stats.waiting,
            cache_bytes: stats.request_bytes + stats.prefix_bytes,
            cache_limit_bytes: self.cache_limit,
        }
    }

    fn chat_prompt(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Prompt, Refusal> {
        let has_images = messages.iter().any(|message| !message.images.is_empty());
        match &self.images {
            Some(model @ ImageModel::PaliGemma(_)) => return model.prompt(messages, add_generation_prompt),
            Some(model) if has_images => return model.prompt(messages, add_generation_prompt),
            _ => {}
        }
        if has_images {
            return Err(Refusal::unsupported(format!("{} does not read images", self.card.id)));
        }
        let turns: Vec<Turn> = messages.iter().map(|message| message.turn.clone()).collect();
        let tokens = self.tokenizer().chat(self.chat_template(), &turns, add_generation_prompt);
        Ok(tokens.map_err(|error| Refusal::field("messages", error.to_string()))?.into())
    }

    fn infill_prompt(&self, hole: &Hole, budget: usize) -> Result<(Vec<TokenId>, Vec<TokenId>), Refusal> {
        let tokenizer = self.tokenizer();
        let fim = codegemma::fim_tokens(tokenizer).map_err(|_| {
            Refusal::unsupported(format!("{} has no fill-in-the-middle tokens; use a CodeGemma", self.card.id))
        })?;
        let file = |(path, text): &(String, String)| File { path: path.clone(), text: text.clone() };
        let infill = Infill {
            prefix: hole.prefix.clone(),
            suffix: hole.suffix.clone(),
            path: hole.path.clone(),
            context: hole.files.iter().map(file).collect(),
            language: None,
        };
        let prompt = infill.prompt(tokenizer, Order::Psm, budget).map_err(Refusal::of)?;
        Ok((prompt.tokens, codegemma::stop_tokens(fim).to_vec()))
    }

    fn moderate(&self, subject: &Moderated, ongoing: &Ongoing) -> Result<Vec<(String, f32)>, Refusal> {
        match &self.judge {
            Some(judge) => judge(subject, ongoing),
            None => {
                let id = &self.card.id;
                Err(Refusal::unsupported(format!("{id} does not classify content; use a ShieldGemma")))
            }
        }
    }

    fn vision(&self, image: &[u8], task: &VisionTask, ongoing: &Ongoing) -> Result<Value, Refusal> {
        self.images.as_ref().and_then(|model| model.vision(image, task, ongoing)).unwrap_or_else(|| {
            let id = &self.card.id;
            Err(Refusal::unsupported(format!("{id} does not caption, detect or segment; use a PaliGemma")))
        })
    }
}

impl EngineBackend {
    /// The penalty with the tokens that end a passage.
    fn dry(&self, dry: super::backend::Dry) -> Dry {
        let super::backend::Dry { multiplier, base, allowed_length, last_tokens, breakers } = dry;
        let plain = Dry { multiplier, base, allowed_length, last_tokens, ..Dry::default() };
        match breakers {
            Some(texts) => plain.with_breakers(&self.tokenizer, &texts),
            None => plain.with_breakers(&self.tokenizer, &Dry::BREAKERS),
        }
    }

    /// The engine's request for a job, without its images.
    fn request(&self, job: Job) -> Request<'static> {
        let sampling = job.sampling;
        let stop_tokens: Vec<TokenId> = self.stop_tokens.iter().copied().chain(job.stop_tokens).collect();
        let text = TextDecoder::new(DecodeStream::shared(Arc::clone(&self.tokenizer)), &job.stop);
        let vocab = self.card.vocab_size;
        let finite = |(token, bias): (TokenId, f32)| (token, bias.max(-1e9));
        let options = GenerateOptions {
            // without a token the prompt is not prefilled, and warm-up calls and scoring ask for just that
            max_tokens: sampling.max_tokens.max(1),
            temperature: sampling.temperature,
            top_k: sampling.top_k.map(|k| k.min(vocab)),
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            logit_bias: job.logit_bias.into_iter().map(finite).collect(),
            dry: sampling.dry.map(|dry| self.dry(dry)),
            mirostat: sampling.mirostat.map(|super::backend::Mirostat { tau, eta }| Mirostat { tau, eta }),
            seed: sampling.seed,
            ignore_eos: sampling.ignore_eos,
            ..GenerateOptions::default()
        };
        let mask = job.mask.map(|mask| Box::new(Mask(mask)) as Box<dyn gemma_generate::TokenMask>);
        let adapters = job.adapters.unwrap_or_default().into_iter();
        Request {
            adapters: adapters.map(|(adapter, strength)| AdapterChoice { adapter, strength }).collect(),
            stop_tokens,
            stop_rule: Some(Box::new(text)),
            mask,
            speculation: self.speculate.as_ref().map(Speculate::start),
            top_logprobs: job.logprobs.unwrap_or(0),
            prompt_logprobs: job.prompt_logprobs,
            deadline: job.deadline,
            ..Request::new(job.prompt.tokens, options)
        }
    }
}

/// What becomes of the engine's events.
struct Passing {
    sender: UnboundedSender<Event>,
    scores: bool,
    prompt: Vec<Option<TokenScore>>,
    prompt_tokens: usize,
    /// No token was asked for: the one that the engine samples after the prompt is not shown.
    silent: bool,
    /// The stop token is shown among the logprobs: harnesses that score a prompt ask for one token after it and leave out
    /// the last one that they get.
    with_stop: bool,
}

impl Passing {
    /// Passes an event on; `false` when nobody listens any more.
    fn pass(&mut self, event: EngineEvent) -> bool {
        let passed = match event {
            EngineEvent::Started { .. } => Event::Started,
            EngineEvent::Prefill { .. } => return !self.sender.is_closed(),
            EngineEvent::PromptLogprobs { tokens, .. } => {
                self.prompt.extend(tokens.into_iter().map(score));
                // all of them at once: clients want arrays
                if self.prompt.len() < self.prompt_tokens {
                    return !self.sender.is_closed();
                }
                Event::Prompt(std::mem::take(&mut self.prompt))
            }
            EngineEvent::Token { .. } if self.silent => return !self.sender.is_closed(),
            EngineEvent::Token { token, text, .. } => {
                let id = token.token;
                let score = if self.scores { score(token) } else { None };
                Event::Token { token: id, text, score }
            }
            EngineEvent::Finished { timings, cached, .. } if self.silent => {
                let finished = finished(FinishReason::Length, timings, cached, self.prompt_tokens);
                Event::Done { text: String::new(), finished: Finished { generated_tokens: 0, ..finished } }
            }
            EngineEvent::Finished { reason, text, stop_token, timings, cached, .. } => {
                if let Some(stop) = stop_token.filter(|_| self.with_stop) {
                    let shown = Event::Token { token: stop.token, text: String::new(), score: score(stop) };
                    // whether somebody listens shows with the next event
                    let _ = self.sender.send(shown);
                }
                Event::Done { text, finished: finished(reason, timings, cached, self.prompt_tokens) }
            }
            EngineEvent::Failed { error, .. } => Event::Failed(refusal(&error)),
        };
        self.sender.send(passed).is_ok()
    }
}

/// A token without a logprob has nothing before it. Clients compare logprobs, so all are rounded to f32 alike.
fn score(token: TokenLogprobs) -> Option<TokenScore> {
    let top = token.top.into_iter().map(|(id, logprob)| (id, logprob as f32)).collect();
    Some(TokenScore { token: token.token, logprob: token.logprob? as f32, top })
}

fn finished(reason: FinishReason, timings: Timings, cached: usize, prompt_tokens: usize) -> Finished {
    let reason = match reason {
        FinishReason::Stop => Reason::Stop,
        FinishReason::StopText => Reason::StopText,
        FinishReason::ContextFull => Reason::ContextFull,
        FinishReason::OutOfTime => Reason::OutOfTime,
        _ => Reason::Length,
    };
    Finished {
        reason,
        prompt_tokens,
        cached_tokens: cached,
        generated_tokens: timings.generated_tokens,
        prompt_seconds: timings.prompt_seconds,
        decode_seconds: timings.decode_seconds,
    }
}
