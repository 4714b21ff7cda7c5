//! The real backend: a loaded model of any family, and an engine on a thread of its own.
//!
//! The engine's thread passes the events of each request on to the request's channel. When the receiver is gone, the
//! engine drops the request before its next step.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use codegemma::{File, Infill, Order};
use gemma_generate::{
    EngineHandle, EngineOptions, EngineThread, Event as EngineEvent, FinishReason, GenerateOptions, Request,
    TextDecoder, Timings, TokenLogprobs,
};
use gemma_model::{Model, Network};
use gemma_tokenizer::{ChatTemplate, DecodeStream, TokenId, Tokenizer, Turn};
use paligemma::{Image, PaliGemma};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::backend::{
    Backend, Capabilities, Event, Events, Finished, Hole, Job, Load, Message, ModelCard, Prompt, Reason, TokenMask,
    TokenScore, VisionTask,
};
use super::error::Refusal;

/// A model that answers jobs by an engine.
pub struct EngineBackend {
    card: ModelCard,
    tokenizer: Arc<Tokenizer>,
    chat_template: ChatTemplate,
    stop_tokens: Vec<TokenId>,
    handle: EngineHandle,
    cache_limit: usize,
    /// The model again, where it sees images.
    images: Option<Arc<PaliGemma>>,
    /// Vision tasks run one after the other, beside the engine.
    vision: Mutex<()>,
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
        let network = model.network();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let card = ModelCard {
            id: name.to_owned(),
            family: family.to_owned(),
            context_length: network.context_length(),
            vocab_size: network.vocab(),
            bytes: network.weight_bytes() as u64,
            created: now,
            capabilities,
            ..ModelCard::default()
        };
        let cache_limit = options.max_cache_bytes.unwrap_or(0);
        let thread = model.engine(options)?;
        Ok(Self {
            card,
            tokenizer,
            chat_template: model.chat_template().clone(),
            stop_tokens: model.stop_tokens().to_vec(),
            handle: thread.handle(),
            cache_limit,
            images: None,
            vision: Mutex::new(()),
            _thread: thread,
        })
    }

    /// Serves a PaliGemma.
    ///
    /// # Errors
    /// As [`EngineBackend::new`].
    pub fn with_images(name: &str, model: PaliGemma, options: EngineOptions) -> Result<Self, gemma_model::Error> {
        let mut backend = Self::new(name, "paligemma", model.model(), options)?;
        backend.card.capabilities =
            Capabilities { generate: true, images: true, detect: true, ..Capabilities::default() };
        backend.images = Some(Arc::new(model));
        Ok(backend)
    }

    /// The same with a shorter context.
    #[must_use]
    pub fn with_context_limit(mut self, limit: Option<usize>) -> Self {
        let own = self.card.context_length;
        self.card.context_length = limit.map_or(own, |limit| Some(own.map_or(limit, |own| own.min(limit))));
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
        Error::CacheTooSmall { .. } => Refusal::too_large(error.to_string()),
        Error::EngineStopped | Error::ModelPanicked => Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        _ => Refusal::invalid(error.to_string()),
    }
}

/// The library's error for something that a client sent.
fn invalid(error: impl std::fmt::Display) -> Refusal {
    Refusal::invalid(error.to_string())
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

    fn submit(&self, job: Job) -> Result<Events, Refusal> {
        let (sender, events) = unbounded_channel();
        let mut passing = Passing {
            sender: sender.clone(),
            scores: job.logprobs.is_some(),
            prompt: Vec::new(),
            prompt_tokens: job.prompt.tokens.len(),
            silent: job.sampling.max_tokens == 0,
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
        // images are encoded beside the engine, so that nobody waits for them
        let (handle, model) = (self.handle.clone(), self.images.clone());
        tokio::spawn(async move {
            let submit = move || {
                let request = with_images(model.as_deref(), request, &images)?;
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
        if let Some(model) = &self.images {
            return paligemma_prompt(model, messages);
        }
        if messages.iter().any(|message| !message.images.is_empty()) {
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
        let prompt = infill.prompt(tokenizer, Order::Psm, budget).map_err(invalid)?;
        Ok((prompt.tokens, codegemma::stop_tokens(fim).to_vec()))
    }

    fn vision(&self, image: &[u8], task: &VisionTask) -> Result<Value, Refusal> {
        let Some(model) = &self.images else {
            let id = &self.card.id;
            return Err(Refusal::unsupported(format!("{id} does not caption, detect or segment; use a PaliGemma")));
        };
        let image = Image::decode(image, "image").map_err(|error| Refusal::field("image", error.to_string()))?;
        let _turn = self.vision.lock().unwrap_or_else(PoisonError::into_inner);
        let features = model.encode_image(&image);
        let size = json!({"width": image.width(), "height": image.height()});
        let mut reply = match task {
            VisionTask::Caption(language) => json!({"caption": features.caption(language).map_err(invalid)?}),
            VisionTask::Detect(objects) => {
                let found = features.detect(objects).map_err(invalid)?;
                let object = |object: &paligemma::Detection| json!({"label": object.label, "box": edges(&object.bounds), "score": object.score});
                json!({"objects": found.iter().map(object).collect::<Vec<_>>(), "text": found.text})
            }
            VisionTask::Segment(objects) => {
                let (mut list, mut texts) = (Vec::new(), Vec::new());
                for name in objects {
                    let found = features.segment(name).map_err(invalid)?;
                    for object in found.iter() {
                        let mask = &object.mask;
                        let png = png_of_mask(mask)?;
                        list.push(json!({
                            "label": object.label, "box": edges(&object.bounds), "score": object.score,
                            "mask": {"x": mask.x, "y": mask.y, "width": mask.width, "height": mask.height, "png": png},
                        }));
                    }
                    texts.push(found.text.clone());
                }
                json!({"objects": list, "text": texts.join("\n")})
            }
        };
        reply["image"] = size;
        Ok(reply)
    }
}

/// `[x_min, y_min, x_max, y_max]` in pixels.
fn edges(bounds: &paligemma::BoundingBox) -> [f32; 4] {
    [bounds.x_min, bounds.y_min, bounds.x_max, bounds.y_max]
}

/// A mask as a PNG in base64: white inside, black outside.
fn png_of_mask(mask: &paligemma::Mask) -> Result<String, Refusal> {
    let rgb = mask.inside.iter().flat_map(|inside| [if *inside { 255 } else { 0 }; 3]).collect();
    let image =
        Image::from_rgb(rgb, mask.width, mask.height).ok_or_else(|| Refusal::failed("the mask has no pixels"))?;
    let mut png = Vec::new();
    image.write_png(&mut png).map_err(|error| Refusal::failed(error.to_string()))?;
    Ok(STANDARD.encode(png))
}

/// PaliGemma has no chat format: its prompt is the images and the text of the last message.
fn paligemma_prompt(model: &PaliGemma, messages: &[Message]) -> Result<Prompt, Refusal> {
    let images: Vec<Vec<u8>> = messages.iter().flat_map(|message| message.images.iter().cloned()).collect();
    let text = messages.last().map_or("", |message| message.turn.text.trim());
    let tokens = model.prompt_tokens(images.len(), text).map_err(invalid)?;
    Ok(Prompt { tokens, images })
}

/// The request with its images encoded.
fn with_images(
    model: Option<&PaliGemma>,
    request: Request<'static>,
    images: &[Vec<u8>],
) -> Result<Request<'static>, Refusal> {
    let model = model.ok_or_else(|| Refusal::unsupported("the model does not read images"))?;
    let decode =
        |bytes: &Vec<u8>| Image::decode(bytes, "image").map_err(|error| Refusal::field("messages", error.to_string()));
    let images = images.iter().map(decode).collect::<Result<Vec<_>, Refusal>>()?;
    let features: Vec<_> = images.iter().map(|image| model.encode_image(image).features().clone()).collect();
    let gemma_generate::Prompt::Tokens(tokens) = &request.prompt else { return Ok(request) };
    let prepared = model.request(tokens, &features, &request.options).map_err(invalid)?;
    Ok(Request { prompt: prepared.prompt, ..request })
}

impl EngineBackend {
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
            seed: sampling.seed,
            ignore_eos: sampling.ignore_eos,
            ..GenerateOptions::default()
        };
        let mask = job.mask.map(|mask| Box::new(Mask(mask)) as Box<dyn gemma_generate::TokenMask>);
        Request {
            stop_tokens,
            stop_rule: Some(Box::new(text)),
            mask,
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
            EngineEvent::Finished { reason, text, timings, cached, .. } => {
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
