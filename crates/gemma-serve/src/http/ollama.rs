//! Ollama's `/api/*`: the same answers in its words, as lines of JSON.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use gemma_tokenizer::EncodeOptions;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::App;
use super::backend::{Backend, Event, Finished, Hole, Job, ModelCard, Prompt, Reason};
use super::body::OllamaBody;
use super::chat::{Conversation, converse, max_tokens};
use super::completions::budget;
use super::embeddings::embed;
use super::error::Refusal;
use super::messages::{self, ChatMessage};
use super::object::Others;
use super::running::{Answer, Completed, submit};
use super::sampling::SamplingFields;
use super::structured::StructuredFields;
use super::texts::{Prompts, Texts, encode};
use super::tools::{Tool, Tools};

/// `options`: how to sample.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "an object")]
struct Options {
    num_predict: Option<i64>,
    temperature: Option<f32>,
    top_k: Option<i64>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    seed: Option<i64>,
    stop: Option<Texts>,
    repeat_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    mirostat: Option<i64>,
    mirostat_tau: Option<f32>,
    mirostat_eta: Option<f32>,
    #[serde(flatten)]
    _others: Others,
}

impl Options {
    /// The shared fields, with Ollama's defaults: temperature 0.8, top-k 40, top-p 0.9.
    fn fields(&self) -> SamplingFields {
        SamplingFields {
            temperature: self.temperature.or(Some(0.8)),
            top_k: self.top_k.or(Some(40)),
            top_p: self.top_p.or(Some(0.9)),
            min_p: self.min_p,
            repetition_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            mirostat: self.mirostat,
            mirostat_tau: self.mirostat_tau,
            mirostat_eta: self.mirostat_eta,
            seed: self.seed,
            stop: self.stop.clone(),
            ..SamplingFields::default()
        }
    }

    /// The limit; -1 and -2 are none.
    fn limit(&self) -> Option<usize> {
        self.num_predict.and_then(|n| usize::try_from(n).ok())
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct GenerateRequest {
    model: Option<String>,
    prompt: String,
    suffix: Option<String>,
    system: Option<String>,
    template: Option<String>,
    images: Option<Vec<String>>,
    format: Option<Value>,
    raw: Option<bool>,
    stream: Option<bool>,
    options: Options,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ChatRequest {
    model: Option<String>,
    messages: Vec<ChatMessage>,
    tools: Option<Vec<Tool>>,
    format: Option<Value>,
    stream: Option<bool>,
    options: Options,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct EmbedRequest {
    model: Option<String>,
    input: Option<Prompts>,
    /// The older `/api/embeddings`.
    prompt: Option<String>,
    dimensions: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ShowRequest {
    #[serde(alias = "name")]
    model: Option<String>,
}

/// Whose words the answer is in.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Generate,
    Chat,
}

/// `format`: `"json"`, a schema, or nothing.
fn structured(format: &Option<Value>) -> Result<StructuredFields, Refusal> {
    let wrapped = match format {
        None | Some(Value::Null) => json!({}),
        Some(Value::String(text)) if text.is_empty() => json!({}),
        Some(Value::String(text)) if text == "json" => json!({"response_format": {"type": "json_object"}}),
        Some(schema @ Value::Object(_)) => json!({"json_schema": schema}),
        Some(_) => return Err(Refusal::field("format", "must be \"json\" or a JSON schema")),
    };
    serde_json::from_value(wrapped).map_err(|error| Refusal::field("format", error.to_string()))
}

/// `POST /api/generate`.
pub(crate) async fn generate(State(app): State<App>, OllamaBody(request): OllamaBody<GenerateRequest>) -> Response {
    let (begun, stream) = (Instant::now(), request.stream.unwrap_or(true));
    match begin_generate(&app, request).await {
        Ok((backend, None)) => Json(loaded(backend.card())).into_response(),
        Ok((backend, Some(answer))) => respond(backend, answer, Form::Generate, None, (begun, stream)).await,
        Err(refusal) => refusal.into_ollama(),
    }
}

/// The answer that a request without a prompt gets: the model is loaded.
fn loaded(card: &ModelCard) -> Value {
    json!({"model": card.id, "created_at": timestamp(SystemTime::now()), "response": "", "done": true, "done_reason": "load"})
}

async fn begin_generate(app: &App, request: GenerateRequest) -> Result<(Arc<dyn Backend>, Option<Answer>), Refusal> {
    let backend = app.backend(request.model.as_deref()).await?;
    if request.template.as_deref().is_some_and(|template| !template.is_empty()) {
        return Err(Refusal::field(
            "template",
            "templates of requests are not supported; set raw and send the whole prompt",
        ));
    }
    let (fields, limit) = (request.options.fields(), request.options.limit());
    fields.sampling(1)?;
    let form = structured(&request.format)?;
    if request.prompt.is_empty() && request.suffix.is_none() {
        return Ok((backend, None));
    }
    let (prompt, stop_tokens): (Prompt, _) = if let Some(suffix) = request.suffix.filter(|suffix| !suffix.is_empty()) {
        let hole = Hole { prefix: request.prompt, suffix, ..Hole::default() };
        let (tokens, stop_tokens) = backend.infill_prompt(&hole, budget(backend.as_ref(), limit.unwrap_or(128)))?;
        (tokens.into(), stop_tokens)
    } else if request.raw.unwrap_or(false) {
        let tokens = encode(backend.as_ref(), &request.prompt, EncodeOptions { bos: true, specials: true })?;
        (tokens.into(), Vec::new())
    } else {
        let user = ChatMessage::user(request.prompt).with_images(request.images);
        let system =
            request.system.filter(|system| !system.is_empty()).map(|system| ChatMessage::plain("system", system));
        let messages: Vec<ChatMessage> = system.into_iter().chain([user]).collect();
        (messages::prompt(backend.as_ref(), &app.settings, &messages, None, true)?, Vec::new())
    };
    let job = Job {
        sampling: fields.sampling(max_tokens(app, backend.as_ref(), &prompt, limit))?,
        stop: fields.stops()?,
        stop_tokens,
        mask: form.mask(app, &backend).await?,
        prompt,
        ..Job::default()
    };
    let answer = submit(app, &backend, "ollama_generate", job)?;
    Ok((backend, Some(answer)))
}

/// `POST /api/chat`.
pub(crate) async fn chat(State(app): State<App>, OllamaBody(request): OllamaBody<ChatRequest>) -> Response {
    let (begun, stream) = (Instant::now(), request.stream.unwrap_or(true));
    match begin_chat(&app, request).await {
        Ok((backend, None, _)) => {
            let mut reply = loaded(backend.card());
            reply["message"] = json!({"role": "assistant", "content": ""});
            Json(reply).into_response()
        }
        Ok((backend, Some(answer), tools)) => respond(backend, answer, Form::Chat, tools, (begun, stream)).await,
        Err(refusal) => refusal.into_ollama(),
    }
}

async fn begin_chat(
    app: &App,
    request: ChatRequest,
) -> Result<(Arc<dyn Backend>, Option<Answer>, Option<Tools>), Refusal> {
    let backend = app.backend(request.model.as_deref()).await?;
    request.options.fields().sampling(1)?;
    let form = structured(&request.format)?;
    if request.messages.is_empty() {
        return Ok((backend, None, None));
    }
    let tools = Tools::new(request.tools.as_deref(), None)?;
    let conversation = Conversation {
        endpoint: "ollama_chat",
        messages: &request.messages,
        tools: tools.as_ref(),
        max_tokens: request.options.limit(),
        logprobs: None,
        add_generation_prompt: true,
    };
    let mut answers = converse(app, &backend, conversation, &request.options.fields(), &form).await?;
    Ok((backend, answers.pop(), tools))
}

/// The answer: one object, or a line of JSON for each piece. `begun` is when the request came.
async fn respond(
    backend: Arc<dyn Backend>,
    answer: Answer,
    form: Form,
    tools: Option<Tools>,
    (begun, stream): (Instant, bool),
) -> Response {
    let model = backend.card().id.clone();
    if !stream {
        return match answer.complete().await {
            Ok(Completed { text, finished, .. }) => {
                let calls = tools.as_ref().and_then(|tools| tools.calls(&text));
                let mut reply = match calls {
                    Some(calls) => {
                        let mut reply = piece(&model, form, "");
                        reply["message"]["tool_calls"] = calls.iter().map(|call| call.ollama()).collect();
                        reply
                    }
                    None => piece(&model, form, &text),
                };
                end(&mut reply, &finished, begun);
                Json(reply).into_response()
            }
            Err(refusal) => refusal.into_ollama(),
        };
    }
    let mut held = tools.is_some().then(String::new);
    let next = move |mut answer: Answer| async move { answer.next().await.map(|event| (event, answer)) };
    let events = stream::unfold(answer, next);
    let lines = events.map(move |event| {
        let mut lines = Vec::new();
        match event {
            Event::Started | Event::Prompt(_) => {}
            Event::Token { text, .. } => {
                let text = match held.take() {
                    Some(before) => {
                        let whole = before + &text;
                        if Tools::may_be_call(&whole) {
                            held = Some(whole);
                            return lines;
                        }
                        whole
                    }
                    None => text,
                };
                if !text.is_empty() {
                    lines.push(piece(&model, form, &text));
                }
            }
            Event::Done { text, finished } => {
                let rest = held.take().unwrap_or_default() + &text;
                let calls = tools.as_ref().and_then(|tools| tools.calls(&rest));
                let mut last = piece(&model, form, "");
                match calls {
                    Some(calls) => last["message"]["tool_calls"] = calls.iter().map(|call| call.ollama()).collect(),
                    None if !rest.is_empty() => lines.push(piece(&model, form, &rest)),
                    None => {}
                }
                end(&mut last, &finished, begun);
                lines.push(last);
            }
            Event::Failed(refusal) => lines.push(refusal.ollama()),
        }
        lines
    });
    let lines = lines.flat_map(stream::iter).map(|line| Ok::<_, std::convert::Infallible>(format!("{line}\n")));
    let mut response = Body::from_stream(lines).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

/// A piece of an answer.
fn piece(model: &str, form: Form, text: &str) -> Value {
    let mut reply = json!({"model": model, "created_at": timestamp(SystemTime::now()), "done": false});
    match form {
        Form::Generate => reply["response"] = json!(text),
        Form::Chat => reply["message"] = json!({"role": "assistant", "content": text}),
    }
    reply
}

/// Makes a piece the last one.
fn end(reply: &mut Value, finished: &Finished, begun: Instant) {
    let nanoseconds = |seconds: f64| (seconds * 1e9) as u64;
    reply["done"] = json!(true);
    reply["done_reason"] = json!(match finished.reason {
        Reason::Stop | Reason::StopText => "stop",
        _ => "length",
    });
    reply["total_duration"] = json!(begun.elapsed().as_nanos() as u64);
    reply["load_duration"] = json!(0);
    reply["prompt_eval_count"] = json!(finished.prompt_tokens);
    reply["prompt_eval_duration"] = json!(nanoseconds(finished.prompt_seconds));
    reply["eval_count"] = json!(finished.generated_tokens);
    reply["eval_duration"] = json!(nanoseconds(finished.decode_seconds));
}

/// `POST /api/embed`, and the older `/api/embeddings` with one `prompt`.
pub(crate) async fn embeddings(State(app): State<App>, OllamaBody(request): OllamaBody<EmbedRequest>) -> Response {
    let run = async {
        let begun = Instant::now();
        let backend = app.backend(request.model.as_deref()).await?;
        let old = request.prompt.map(super::texts::TextOrTokens::Text);
        let one = old.is_some();
        let inputs = request.input.map(|input| input.0).or(old.map(|old| vec![old]));
        let inputs = inputs.ok_or_else(|| Refusal::field("input", "missing; send a string or an array of strings"))?;
        let (mut vectors, tokens) = embed(&app, &backend, inputs, request.dimensions, None).await?;
        if one {
            return Ok(json!({"embedding": vectors.pop()}));
        }
        Ok(json!({
            "model": backend.card().id, "embeddings": vectors, "total_duration": begun.elapsed().as_nanos() as u64,
            "load_duration": 0, "prompt_eval_count": tokens,
        }))
    };
    match run.await {
        Ok(reply) => Json(reply).into_response(),
        Err(refusal) => Refusal::into_ollama(refusal),
    }
}

/// A number of parameters as Ollama writes it: `2.6B`, `268.10M`, `361.34K`; nothing for 0, which is not known.
fn parameter_size(parameters: u64) -> String {
    match parameters as f64 {
        0.0 => String::new(),
        count if count >= 1e9 => format!("{:.1}B", count / 1e9),
        count if count >= 1e6 => format!("{:.2}M", count / 1e6),
        count if count >= 1e3 => format!("{:.2}K", count / 1e3),
        count => count.to_string(),
    }
}

/// What Ollama tells of a model.
fn details(card: &ModelCard) -> Value {
    json!({
        "parent_model": card.parent.as_deref().unwrap_or_default(), "format": "gguf", "family": card.family, "families": [card.family],
        "parameter_size": parameter_size(card.parameters), "quantization_level": card.quantization.to_uppercase(),
    })
}

fn entry(app: &App, card: &ModelCard) -> Value {
    json!({
        "name": card.id, "model": card.id, "modified_at": timestamp(app.started), "size": card.bytes, "digest": digest(card),
        "details": details(card),
    })
}

/// 64 hexadecimal digits that name a model, which clients shorten and compare: they stand for its name and what it consists
/// of, not for its files, which would take long to read.
fn digest(card: &ModelCard) -> String {
    let about = format!("{} {} {} {} {}", card.id, card.family, card.parameters, card.bytes, card.quantization);
    format!("{:x}", Sha256::digest(about))
}

/// `GET /api/tags`.
pub(crate) async fn tags(State(app): State<App>) -> Json<Value> {
    let listed = app.models.iter().flat_map(|model| model.listed());
    Json(json!({"models": listed.map(|listed| entry(&app, &listed.card)).collect::<Vec<_>>()}))
}

/// `GET /api/ps`.
pub(crate) async fn ps(State(app): State<App>) -> Json<Value> {
    let one = |backend: Arc<dyn Backend>| {
        let mut model = entry(&app, backend.card());
        model["size_vram"] = json!(backend.card().bytes);
        model["expires_at"] = json!("9999-12-31T23:59:59Z");
        model
    };
    Json(json!({"models": app.models.iter().filter_map(|model| model.peek()).map(one).collect::<Vec<_>>()}))
}

/// `POST /api/show`.
pub(crate) async fn show(State(app): State<App>, OllamaBody(request): OllamaBody<ShowRequest>) -> Response {
    let backend = match app.backend(request.model.as_deref()).await {
        Ok(backend) => backend,
        Err(refusal) => return refusal.into_ollama(),
    };
    let card = backend.card();
    let can = card.capabilities;
    let capabilities: Vec<&str> = [
        (can.generate, "completion"),
        (can.chat, "tools"),
        (can.infill, "insert"),
        (can.images, "vision"),
        (can.embed, "embedding"),
    ]
    .into_iter()
    .filter_map(|(can, name)| can.then_some(name))
    .collect();
    let info = json!({
        "general.architecture": card.family, "general.parameter_count": card.parameters,
        format!("{}.context_length", card.family): card.context_length, "general.basename": card.id,
    });
    Json(json!({
        "modelfile": format!("FROM {}\n", card.id), "parameters": "", "template": "", "details": details(card),
        "model_info": info, "capabilities": capabilities, "modified_at": timestamp(app.started),
    }))
    .into_response()
}

/// The version of Ollama whose API this is. Clients compare it: Copilot in VS Code takes no server before 0.6.4.
const OLLAMA_VERSION: &str = "0.6.4";

/// `GET /api/version`.
pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": OLLAMA_VERSION, "server": concat!("gemma-serve ", env!("CARGO_PKG_VERSION"))}))
}

/// `POST /api/pull` and the others that would change what the server has.
pub(crate) async fn read_only() -> Response {
    let message = "this server serves the models it was started with; use `gemma pull` to download others";
    Refusal::new(StatusCode::FORBIDDEN, message).into_ollama()
}

/// A moment as `2026-11-30T21:00:00.123456Z` (days to civil date: Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn timestamp(moment: SystemTime) -> String {
    let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = ((since.as_secs() / 86_400) as i64, since.as_secs() % 86_400);
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", since.subsec_micros())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn timestamps_are_those_of_the_calendar() {
        let at = |seconds: u64| timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59.000000Z");
        assert_eq!(at(951_868_800), "2000-03-01T00:00:00.000000Z");
        assert_eq!(at(1_709_164_800), "2024-02-29T00:00:00.000000Z");
        assert_eq!(at(1_798_761_599), "2026-12-31T23:59:59.000000Z");
    }

    #[test]
    fn parameters_are_counted_in_words() {
        for (count, text) in
            [(0, ""), (999, "999"), (361_344, "361.34K"), (268_098_176, "268.10M"), (2_614_341_888, "2.6B")]
        {
            assert_eq!(parameter_size(count), text);
        }
    }

    #[test]
    fn formats_are_json_a_schema_or_nothing() {
        for nothing in [None, Some(Value::Null), Some(json!(""))] {
            assert_eq!(structured(&nothing).expect("nothing").form(), Ok(None));
        }
        assert!(structured(&Some(json!("json"))).expect("json").form().expect("a form").is_some());
        assert!(structured(&Some(json!({"type": "object"}))).expect("schema").form().expect("a form").is_some());
        assert_eq!(structured(&Some(json!("xml"))).expect_err("xml").param.as_deref(), Some("format"));
    }
}
