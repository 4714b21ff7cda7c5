//! Fill in the middle: `/infill` and `/completion` as llama.cpp's editor plugins send them, `/v1/fim/completions` as
//! Mistral's clients do.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use gemma_tokenizer::{EncodeOptions, TokenId};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::App;
use super::app::{new_id, unix_seconds};
use super::backend::{Backend, Event, Finished, Hole, Job, Reason};
use super::body::SampledBody;
use super::completions::{StreamOptions, Usage, budget, data, sse};
use super::error::Refusal;
use super::object::Others;
use super::running::{Completed, complete_all, merged, submit};
use super::sampling::{SamplingFields, seed_of};
use super::structured::StructuredFields;
use super::texts;

/// Most tokens of a middle whose request names no limit.
const DEFAULT_MIDDLE: usize = 128;

/// `POST /infill` and `POST /completion`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct LlamaRequest {
    model: Option<String>,
    input_prefix: String,
    input_suffix: String,
    input_extra: Vec<Extra>,
    prompt: LlamaPrompt,
    n_predict: Option<i64>,
    n_cmpl: Option<usize>,
    stream: Option<bool>,
    response_fields: Vec<String>,
    t_max_predict_ms: Option<u64>,
}

/// llama.cpp's `prompt`: text or tokens; null and nothing are the empty text.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of token ids")]
enum LlamaPrompt {
    Text(String),
    Tokens(Vec<TokenId>),
    #[default]
    Nothing,
}

/// Another file of the project.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Extra {
    text: String,
    filename: String,
    #[serde(flatten)]
    _others: Others,
}

/// `POST /v1/fim/completions`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct FimRequest {
    model: Option<String>,
    prompt: Option<String>,
    suffix: Option<String>,
    max_tokens: Option<usize>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
}

/// `POST /infill`.
pub(crate) async fn infill(
    State(app): State<App>,
    SampledBody(request, sampling, structured): SampledBody<LlamaRequest>,
) -> Result<Response, Refusal> {
    let backend = app.backend(request.model.as_deref()).await?;
    let n_predict = n_predict(request.n_predict, DEFAULT_MIDDLE);
    let mut prefix = request.input_prefix.clone();
    // the text of the line before the cursor follows the prefix: what llama.cpp's code does, and its plugins rely on
    if let LlamaPrompt::Text(line) = &request.prompt {
        prefix.push_str(line);
    }
    let files = request.input_extra.iter().map(|extra| (extra.filename.clone(), extra.text.clone())).collect();
    let hole = Hole { prefix, suffix: request.input_suffix.clone(), files, path: None };
    let (tokens, stop_tokens) =
        backend.infill_prompt(&hole, budget(backend.as_ref(), n_predict.max(DEFAULT_MIDDLE)))?;
    // plugins send no temperature: of code the likeliest is wanted
    let sampling = SamplingFields { temperature: sampling.temperature.or(Some(0.0)), ..sampling };
    llama(&app, backend, "infill", request, &sampling, &structured, tokens, stop_tokens, n_predict).await
}

/// `POST /completion`: llama.cpp's own completion.
pub(crate) async fn completion(
    State(app): State<App>,
    SampledBody(request, sampling, structured): SampledBody<LlamaRequest>,
) -> Result<Response, Refusal> {
    let backend = app.backend(request.model.as_deref()).await?;
    let n_predict = n_predict(request.n_predict, app.settings.max_tokens);
    let tokens = match &request.prompt {
        LlamaPrompt::Text(text) => texts::encode(backend.as_ref(), text, EncodeOptions { bos: true, specials: true })?,
        LlamaPrompt::Tokens(tokens) => tokens.clone(),
        LlamaPrompt::Nothing => return Err(Refusal::field("prompt", "missing; send a string or token ids")),
    };
    let sampling = SamplingFields {
        temperature: sampling.temperature.or(Some(0.8)),
        top_k: sampling.top_k.or(Some(40)),
        top_p: sampling.top_p.or(Some(0.95)),
        min_p: sampling.min_p.or(Some(0.05)),
        ..sampling
    };
    llama(&app, backend, "completion", request, &sampling, &structured, tokens, Vec::new(), n_predict).await
}

/// -1 and -2 mean as much as there is room for.
fn n_predict(asked: Option<i64>, default: usize) -> usize {
    asked.map_or(default, |n| usize::try_from(n).unwrap_or(default))
}

/// Answers in llama.cpp's form.
#[expect(clippy::too_many_arguments, reason = "what the two endpoints share is what they differ in")]
async fn llama(
    app: &App,
    backend: Arc<dyn Backend>,
    endpoint: &'static str,
    request: LlamaRequest,
    fields: &SamplingFields,
    structured: &StructuredFields,
    tokens: Vec<TokenId>,
    stop_tokens: Vec<TokenId>,
    n_predict: usize,
) -> Result<Response, Refusal> {
    let sampling = fields.sampling(n_predict)?;
    let n = request.n_cmpl.unwrap_or(1);
    if !(1..=16).contains(&n) {
        return Err(Refusal::field("n_cmpl", format!("{n} is outside 1 to 16")));
    }
    let (stop, logit_bias) = (fields.stops()?, fields.biases(backend.as_ref())?);
    let adapters = app.adapters_of(backend.as_ref(), fields.adapters(backend.as_ref())?);
    let decode_limit = request.t_max_predict_ms.filter(|ms| *ms > 0).map(Duration::from_millis);
    let mut answers = Vec::new();
    for index in 0..n {
        let mut sampling = sampling.clone();
        sampling.seed = seed_of(sampling.seed, index);
        let job = Job {
            prompt: tokens.clone().into(),
            sampling,
            stop: stop.clone(),
            stop_tokens: stop_tokens.clone(),
            logit_bias: logit_bias.clone(),
            adapters: adapters.clone(),
            mask: structured.mask(app, &backend).await?,
            decode_limit,
            ..Job::default()
        };
        answers.push(submit(app, &backend, endpoint, job)?);
    }
    let settings = json!({
        "n_predict": n_predict, "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p,
        "min_p": sampling.min_p, "seed": sampling.seed, "stop": stop, "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "dry_multiplier": sampling.dry.as_ref().map_or(0.0, |dry| dry.multiplier),
        "mirostat": if sampling.mirostat.is_some() { 2 } else { 0 },
        "lora": adapters.iter().flatten().map(|(id, scale)| json!({"id": id, "scale": scale})).collect::<Vec<_>>(),
    });
    let model = backend.card().id.clone();
    if request.stream.unwrap_or(false) {
        let events = merged(answers).map(move |(index, event)| {
            let chunk = |content: &str, tokens: &[TokenId]| {
                json!({"index": index, "content": content, "tokens": tokens, "stop": false, "id_slot": -1})
            };
            match event {
                Event::Token { token, text, .. } if !text.is_empty() => vec![data(&chunk(&text, &[token]))],
                Event::Done { text, finished } => {
                    let mut last = reply(&model, &settings, index, &text, &finished);
                    last["stop"] = json!(true);
                    vec![data(&last)]
                }
                Event::Failed(refusal) => vec![data(&refusal.openai())],
                _ => Vec::new(),
            }
        });
        return Ok(sse(events.flat_map(stream::iter)));
    }
    let completed = complete_all(answers).await?;
    let replies: Vec<Value> = completed
        .iter()
        .enumerate()
        .map(|(index, Completed { text, tokens, finished, .. })| {
            let mut whole = reply(&model, &settings, index, text, finished);
            whole["tokens"] = json!(tokens);
            if request.response_fields.is_empty() { whole } else { flattened(&whole, &request.response_fields) }
        })
        .collect();
    Ok(match <[Value; 1]>::try_from(replies) {
        Ok([one]) => Json(one).into_response(),
        Err(several) => Json(several).into_response(),
    })
}

/// One answer as llama.cpp's server writes it.
fn reply(model: &str, settings: &Value, index: usize, text: &str, finished: &Finished) -> Value {
    json!({
        "index": index,
        "content": text,
        "id_slot": -1,
        "stop": true,
        "model": model,
        "tokens_predicted": finished.generated_tokens,
        "tokens_evaluated": finished.prompt_tokens,
        "tokens_cached": finished.prompt_tokens + finished.generated_tokens,
        "truncated": finished.reason == Reason::ContextFull,
        "stop_type": finished.reason.llama(),
        "stopping_word": "",
        "generation_settings": settings,
        "timings": timings(finished),
    })
}

/// llama.cpp's `timings`.
pub(crate) fn timings(finished: &Finished) -> Value {
    let fresh = finished.prompt_tokens.saturating_sub(finished.cached_tokens);
    let per_token = |seconds: f64, tokens: usize| if tokens > 0 { seconds * 1e3 / tokens as f64 } else { 0.0 };
    let per_second = |seconds: f64, tokens: usize| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
    json!({
        "cache_n": finished.cached_tokens,
        "prompt_n": fresh,
        "prompt_ms": finished.prompt_seconds * 1e3,
        "prompt_per_token_ms": per_token(finished.prompt_seconds, fresh),
        "prompt_per_second": per_second(finished.prompt_seconds, fresh),
        "predicted_n": finished.generated_tokens,
        "predicted_ms": finished.decode_seconds * 1e3,
        "predicted_per_token_ms": per_token(finished.decode_seconds, finished.generated_tokens),
        "predicted_per_second": per_second(finished.decode_seconds, finished.generated_tokens),
    })
}

/// Only these fields: `timings/prompt_n` stays one literal key, as llama.cpp does and llama.vim reads.
fn flattened(whole: &Value, fields: &[String]) -> Value {
    let mut flat = Map::new();
    for field in fields {
        if let Some(value) = whole.pointer(&format!("/{field}")).filter(|_| !field.is_empty()) {
            flat.insert(field.clone(), value.clone());
        }
    }
    Value::Object(flat)
}

/// `POST /v1/fim/completions`.
pub(crate) async fn fim(
    State(app): State<App>,
    SampledBody(request, fields, _): SampledBody<FimRequest>,
) -> Result<Response, Refusal> {
    let backend = app.backend(request.model.as_deref()).await?;
    let max_tokens = request.max_tokens.unwrap_or(DEFAULT_MIDDLE);
    let prefix = request.prompt.ok_or_else(|| Refusal::field("prompt", "missing; send the text before the hole"))?;
    let hole = Hole { prefix, suffix: request.suffix.unwrap_or_default(), ..Hole::default() };
    let (tokens, stop_tokens) = backend.infill_prompt(&hole, budget(backend.as_ref(), max_tokens))?;
    let job = Job {
        prompt: tokens.into(),
        sampling: fields.sampling(max_tokens)?,
        stop: fields.stops()?,
        stop_tokens,
        logit_bias: fields.biases(backend.as_ref())?,
        adapters: fields.adapters(backend.as_ref())?,
        ..Job::default()
    };
    let answer = submit(&app, &backend, "fim", job)?;
    let (id, created, model) = (new_id("cmpl-"), unix_seconds(), backend.card().id.clone());
    let shape = move |object: &str, choice: Value| json!({"id": id, "object": object, "created": created, "model": model, "choices": [choice]});
    if request.stream.unwrap_or(false) {
        let include_usage = request.stream_options.is_none_or(|options| options.include_usage);
        let events = merged(vec![answer]).map(move |(_, event)| {
            let chunk = |text: &str, reason: Option<&str>| {
                let delta = json!({"role": "assistant", "content": text});
                shape("chat.completion.chunk", json!({"index": 0, "delta": delta, "finish_reason": reason}))
            };
            match event {
                Event::Token { text, .. } if !text.is_empty() => vec![data(&chunk(&text, None))],
                Event::Done { text, finished } => {
                    let mut last = chunk(&text, Some(finished.reason.openai()));
                    if include_usage {
                        let mut usage = Usage::default();
                        usage.add(&finished, true);
                        last["usage"] = json!(usage);
                    }
                    vec![data(&last)]
                }
                Event::Failed(refusal) => vec![data(&refusal.openai())],
                _ => Vec::new(),
            }
        });
        let done = stream::once(async { Ok(axum::response::sse::Event::default().data("[DONE]")) });
        return Ok(sse(events.flat_map(stream::iter).chain(done)));
    }
    let answer = answer.complete().await?;
    let message = json!({"role": "assistant", "content": answer.text, "tool_calls": null, "prefix": false});
    let reason = answer.finished.reason.openai();
    let mut reply = shape("chat.completion", json!({"index": 0, "message": message, "finish_reason": reason}));
    let mut usage = Usage::default();
    usage.add(&answer.finished, true);
    reply["usage"] = json!(usage);
    Ok(Json(reply).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished() -> Finished {
        Finished {
            reason: Reason::Stop,
            prompt_tokens: 30,
            cached_tokens: 20,
            generated_tokens: 4,
            prompt_seconds: 0.5,
            decode_seconds: 2.0,
        }
    }

    #[test]
    fn fields_with_slashes_are_literal_keys() {
        let whole = reply("m", &json!({}), 0, "x", &finished());
        let fields = ["content", "timings/prompt_n", "timings/predicted_per_second", "nothing", ""].map(String::from);
        let flat = flattened(&whole, &fields);
        assert_eq!(flat, json!({"content": "x", "timings/prompt_n": 10, "timings/predicted_per_second": 2.0}));
        assert!(flat.to_string().contains("\"content\":\"x\""), "llama.vim looks for this without a space");
    }

    #[test]
    fn negative_limits_mean_the_default() {
        assert_eq!((n_predict(Some(-1), 7), n_predict(Some(0), 7), n_predict(None, 7)), (7, 0, 7));
    }
}
