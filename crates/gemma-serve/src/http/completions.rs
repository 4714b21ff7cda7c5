//! `/v1/completions`: text continued, as OpenAI, vLLM and lm-evaluation-harness have it.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use gemma_tokenizer::{EncodeOptions, TokenId, Tokenizer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::App;
use super::app::{new_id, unix_seconds};
use super::backend::{Backend, Event, Finished, Hole, Job, TokenScore};
use super::body::SampledBody;
use super::error::Refusal;
use super::object::Others;
use super::running::{Answer, Completed, complete_all, merged, submit};
use super::sampling::{MOST_TOP_LOGPROBS, SamplingFields, seed_of};
use super::structured::StructuredFields;
use super::texts::{self, Prompts, TextOrTokens};
use super::tokens::LegacyLogprobs;

/// OpenAI's default.
const DEFAULT_MAX_TOKENS: usize = 16;

/// The fields that this endpoint has beside [`SamplingFields`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct CompletionRequest {
    model: Option<String>,
    prompt: Option<Prompts>,
    suffix: Option<String>,
    max_tokens: Option<usize>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    logprobs: Option<Logprobs>,
    echo: Option<bool>,
    best_of: Option<usize>,
    add_special_tokens: Option<bool>,
}

/// A number, or what chat completions have: a boolean.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged, expecting = "expected an integer")]
enum Logprobs {
    Count(usize),
    Flag(bool),
}

/// `stream_options`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StreamOptions {
    pub(crate) include_usage: bool,
    #[serde(flatten)]
    _others: Others,
}

/// Tokens that a request took.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    pub(crate) total_tokens: usize,
    prompt_tokens_details: CachedTokens,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct CachedTokens {
    cached_tokens: usize,
}

impl Usage {
    /// Adds an answer; the prompt counts once for all answers to it.
    pub(crate) fn add(&mut self, finished: &Finished, first_of_prompt: bool) {
        if first_of_prompt {
            self.prompt_tokens += finished.prompt_tokens;
            self.prompt_tokens_details.cached_tokens += finished.cached_tokens;
        }
        self.completion_tokens += finished.generated_tokens;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

/// What is the same for all answers of a request.
struct Shape {
    id: String,
    created: u64,
    model: String,
    /// Answers to each prompt.
    n: usize,
    echo: bool,
    logprobs: bool,
    /// For each prompt: its tokens, without a `<bos>` that the client did not send, and its text.
    prompts: Vec<Shown>,
}

/// What the reply shows of a prompt.
struct Shown {
    tokens: Vec<TokenId>,
    /// The server put `<bos>` in front.
    hidden_bos: bool,
    text: String,
}

/// `POST /v1/completions`.
pub(crate) async fn completions(
    State(app): State<App>,
    SampledBody(request, sampling, structured): SampledBody<CompletionRequest>,
) -> Result<Response, Refusal> {
    let backend = app.backend(request.model.as_deref()).await?;
    let (shape, answers) = begin(&app, &backend, &request, &sampling, &structured).await?;
    if request.stream.unwrap_or(false) {
        let usage = request.stream_options.unwrap_or_default().include_usage;
        return Ok(sse(streamed(backend, shape, answers, usage)).into_response());
    }
    let best_of = request.best_of.unwrap_or(0);
    let completed = complete_all(answers).await?;
    Ok(Json(whole(backend.as_ref(), &shape, completed, sampling.answers()?, best_of)).into_response())
}

/// Checks the request and submits one job per answer.
async fn begin(
    app: &App,
    backend: &Arc<dyn Backend>,
    request: &CompletionRequest,
    fields: &SamplingFields,
    structured: &StructuredFields,
) -> Result<(Shape, Vec<Answer>), Refusal> {
    let wanted = fields.answers()?;
    let n = match request.best_of {
        Some(best_of) if best_of < wanted => {
            return Err(Refusal::field("best_of", format!("{best_of} is less than n, {wanted}")));
        }
        Some(_) if request.stream.unwrap_or(false) && request.best_of != Some(wanted) => {
            return Err(Refusal::field("best_of", "the best answers are known only at the end; set stream to false"));
        }
        Some(best_of) => best_of,
        None => wanted,
    };
    let prompts = request.prompt.clone().map(|prompts| prompts.0);
    let prompts = prompts.ok_or_else(|| Refusal::field("prompt", "missing; send a string or token ids"))?;
    let most = app.settings.places();
    if prompts.len().saturating_mul(n) > most {
        let message = format!("{} prompts times {n} answers; this server takes {most} at once", prompts.len());
        return Err(Refusal { param: Some("prompt".to_owned()), ..Refusal::too_large(message) });
    }
    let logprobs = match request.logprobs {
        None | Some(Logprobs::Flag(false)) => None,
        Some(Logprobs::Flag(true)) => Some(1),
        Some(Logprobs::Count(count)) if count <= MOST_TOP_LOGPROBS => Some(count),
        Some(Logprobs::Count(count)) => {
            return Err(Refusal::field("logprobs", format!("{count} is more than {MOST_TOP_LOGPROBS}")));
        }
    };
    let echo = request.echo.unwrap_or(false);
    let max_tokens = request.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
    let sampling = fields.sampling(max_tokens)?;
    let (stop, logit_bias) = (fields.stops()?, fields.biases(backend.as_ref())?);
    let adapters = fields.adapters(backend.as_ref())?;
    let suffix = request.suffix.as_deref();
    if suffix.is_some() && echo {
        return Err(Refusal::field("echo", "a prompt with a suffix cannot be echoed"));
    }
    let mut jobs = Vec::new();
    let mut shown = Vec::new();
    for prompt in prompts {
        let (tokens, stop_tokens, show) = match (suffix, prompt) {
            (Some(suffix), TextOrTokens::Text(prefix)) => {
                let hole = Hole { prefix, suffix: suffix.to_owned(), ..Hole::default() };
                let (tokens, stop_tokens) = backend.infill_prompt(&hole, budget(backend.as_ref(), max_tokens))?;
                (tokens, stop_tokens, Shown { tokens: Vec::new(), hidden_bos: true, text: String::new() })
            }
            (Some(_), TextOrTokens::Tokens(_)) => {
                return Err(Refusal::field("prompt", "a prompt with a suffix must be text"));
            }
            (None, prompt) => {
                let bos = request.add_special_tokens.unwrap_or(true);
                let (tokens, show) = encode(backend.as_ref(), prompt, bos)?;
                (tokens, Vec::new(), show)
            }
        };
        for index in 0..n {
            let mut sampling = sampling.clone();
            sampling.seed = seed_of(sampling.seed, index);
            jobs.push(Job {
                prompt: tokens.clone().into(),
                sampling,
                stop: stop.clone(),
                stop_tokens: stop_tokens.clone(),
                // the best answers are chosen by their logprobs
                logprobs: logprobs.or((n > wanted).then_some(0)),
                prompt_logprobs: echo && logprobs.is_some(),
                logit_bias: logit_bias.clone(),
                adapters: adapters.clone(),
                mask: structured.mask(app, backend).await?,
                ..Job::default()
            });
        }
        shown.push(show);
    }
    let shape = Shape {
        id: new_id("cmpl-"),
        created: unix_seconds(),
        model: backend.card().id.clone(),
        n,
        echo,
        logprobs: logprobs.is_some(),
        prompts: shown,
    };
    let answers = jobs.into_iter().map(|job| submit(app, backend, "completions", job)).collect::<Result<_, _>>()?;
    Ok((shape, answers))
}

/// Most tokens that a fill-in-the-middle prompt may have beside an answer of `max_tokens`.
pub(crate) fn budget(backend: &dyn Backend, max_tokens: usize) -> usize {
    let context = backend.card().context_length.unwrap_or(8192);
    context.saturating_sub(max_tokens).max(context / 2)
}

/// The tokens that the model reads: Gemma must see `<bos>` first, so it is put in front where it is missing.
fn encode(backend: &dyn Backend, prompt: TextOrTokens, bos: bool) -> Result<(Vec<TokenId>, Shown), Refusal> {
    let tokenizer = backend.tokenizer();
    let (mut tokens, text) = match prompt {
        // editors and harnesses write control tokens into the text of a prompt
        TextOrTokens::Text(text) => {
            (texts::encode(backend, &text, EncodeOptions { bos: false, specials: true })?, text)
        }
        TextOrTokens::Tokens(tokens) => {
            let text = tokenizer.decode(&tokens);
            (tokens, text)
        }
    };
    let shown = tokens.clone();
    let hidden_bos = bos && tokens.first() != Some(&tokenizer.bos());
    if hidden_bos {
        tokens.insert(0, tokenizer.bos());
    }
    Ok((tokens, Shown { tokens: shown, hidden_bos, text }))
}

impl Shape {
    /// The prompt of an answer, and whether it is the first answer to it.
    fn prompt_of(&self, index: usize) -> (&Shown, bool) {
        (&self.prompts[index / self.n], index.is_multiple_of(self.n))
    }

    fn reply(&self, choices: Vec<Value>) -> Value {
        json!({"id": self.id, "object": "text_completion", "created": self.created, "model": self.model, "choices": choices})
    }

    /// The arrays of the prompt, and the offset in characters after it.
    fn prompt_logprobs(
        &self,
        tokenizer: &Tokenizer,
        shown: &Shown,
        scores: &[Option<TokenScore>],
    ) -> (LegacyLogprobs, usize) {
        let mut arrays = LegacyLogprobs::default();
        let mut offset = 0;
        let hidden = usize::from(shown.hidden_bos);
        for (place, token) in shown.tokens.iter().enumerate() {
            let score = scores.get(place + hidden).and_then(Option::as_ref);
            offset = arrays.push(tokenizer, *token, score, offset);
        }
        (arrays, offset)
    }
}

/// The whole reply.
fn whole(backend: &dyn Backend, shape: &Shape, completed: Vec<Completed>, wanted: usize, best_of: usize) -> Value {
    let tokenizer = backend.tokenizer();
    let mut usage = Usage::default();
    let mut choices = Vec::new();
    for (prompt, answers) in completed.chunks(shape.n).enumerate() {
        let shown = &shape.prompts[prompt];
        for (index, answer) in answers.iter().enumerate() {
            usage.add(&answer.finished, index == 0);
        }
        let mut answers: Vec<&Completed> = answers.iter().collect();
        if best_of > wanted {
            answers.sort_by(|a, b| mean_logprob(b).total_cmp(&mean_logprob(a)));
            answers.truncate(wanted);
        }
        for answer in answers {
            let (mut arrays, mut offset) = match shape.echo {
                true => shape.prompt_logprobs(tokenizer, shown, &answer.prompt_scores),
                false => (LegacyLogprobs::default(), 0),
            };
            for score in &answer.scores {
                offset = arrays.push(tokenizer, score.token, Some(score), offset);
            }
            let text = if shape.echo { format!("{}{}", shown.text, answer.text) } else { answer.text.clone() };
            choices.push(json!({
                "text": text,
                "index": choices.len(),
                "logprobs": shape.logprobs.then_some(arrays),
                "finish_reason": answer.finished.reason.openai(),
            }));
        }
    }
    let mut reply = shape.reply(choices);
    reply["usage"] = json!(usage);
    reply
}

fn mean_logprob(answer: &Completed) -> f32 {
    let sum: f32 = answer.scores.iter().map(|score| score.logprob).sum();
    if answer.scores.is_empty() { f32::NEG_INFINITY } else { sum / answer.scores.len() as f32 }
}

/// The reply in pieces.
fn streamed(
    backend: Arc<dyn Backend>,
    shape: Shape,
    answers: Vec<Answer>,
    include_usage: bool,
) -> impl Stream<Item = Result<SseEvent, Infallible>> + Send {
    let mut usage = Usage::default();
    let mut offsets = vec![None; answers.len()];
    let mut failed = false;
    let mut over = 0;
    let count = answers.len();
    let events = merged(answers).map(move |(index, event)| {
        let tokenizer = backend.tokenizer();
        let (shown, first) = shape.prompt_of(index);
        let mut chunks = Vec::new();
        let chunk = |text: &str, arrays: Option<LegacyLogprobs>, reason: Option<&str>| {
            let choice = json!({"text": text, "index": index, "logprobs": arrays, "finish_reason": reason});
            let mut reply = shape.reply(vec![choice]);
            if include_usage {
                reply["usage"] = Value::Null;
            }
            data(&reply)
        };
        if failed {
            return chunks;
        }
        // the echo comes before the first token
        let begins = matches!(event, Event::Token { .. } | Event::Done { .. }) && offsets[index].is_none();
        if begins {
            offsets[index] = Some(0);
            if shape.echo && !shape.logprobs {
                chunks.push(chunk(&shown.text, None, None));
            }
        }
        match event {
            Event::Started => {}
            Event::Prompt(scores) => {
                let (arrays, offset) = shape.prompt_logprobs(tokenizer, shown, &scores);
                offsets[index] = Some(offset);
                chunks.push(chunk(&shown.text, Some(arrays), None));
            }
            Event::Token { text, score, .. } => {
                let arrays = score.map(|score| {
                    let mut arrays = LegacyLogprobs::default();
                    let offset = offsets[index].unwrap_or(0);
                    offsets[index] = Some(arrays.push(tokenizer, score.token, Some(&score), offset));
                    arrays
                });
                if !text.is_empty() || arrays.is_some() {
                    chunks.push(chunk(&text, arrays, None));
                }
            }
            Event::Done { text, finished } => {
                usage.add(&finished, first);
                over += 1;
                chunks.push(chunk(&text, None, Some(finished.reason.openai())));
                if over == count && include_usage {
                    let mut last = shape.reply(Vec::new());
                    last["usage"] = json!(usage);
                    chunks.push(data(&last));
                }
            }
            Event::Failed(refusal) => {
                failed = true;
                chunks.push(data(&refusal.openai()));
            }
        }
        chunks
    });
    events.flat_map(stream::iter).chain(stream::once(async { Ok(SseEvent::default().data("[DONE]")) }))
}

/// One server-sent event.
pub(crate) fn data(value: &Value) -> Result<SseEvent, Infallible> {
    Ok(SseEvent::default().data(value.to_string()))
}

/// A stream of server-sent events that proxies pass on at once.
pub(crate) fn sse<S>(events: S) -> Response
where
    S: Stream<Item = Result<SseEvent, Infallible>> + Send + 'static,
{
    let mut response = Sse::new(events).keep_alive(KeepAlive::default()).into_response();
    response.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    response
}
