//! `/v1/chat/completions`: conversations, with images, tools and answers of a given form.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::sse::Event as SseEvent;
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use super::app::{new_id, unix_seconds};
use super::backend::{Backend, Event, Job, Prompt, TokenScore};
use super::body::SampledBody;
use super::completions::{StreamOptions, Usage, data, sse};
use super::error::Refusal;
use super::messages::{self, ChatMessage};
use super::running::{Answer, complete_all, merged, submit};
use super::sampling::{MOST_TOP_LOGPROBS, SamplingFields, seed_of};
use super::structured::{self, StructuredFields};
use super::tokens::chat_logprob;
use super::tools::{Tool, ToolChoice, Tools};

/// The fields that this endpoint has beside the shared ones.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ChatRequest {
    model: Option<String>,
    messages: Vec<ChatMessage>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    tools: Option<Vec<Tool>>,
    tool_choice: Option<ToolChoice>,
    add_generation_prompt: Option<bool>,
}

/// The same for all answers of a request.
struct Shape {
    id: String,
    created: u64,
    model: String,
    tools: Option<Tools>,
}

/// A conversation to be answered, as every chat protocol has it.
pub(crate) struct Conversation<'r> {
    pub(crate) endpoint: &'static str,
    pub(crate) messages: &'r [ChatMessage],
    pub(crate) tools: Option<&'r Tools>,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) logprobs: Option<usize>,
    pub(crate) add_generation_prompt: bool,
}

/// Submits the answers of a conversation.
pub(crate) async fn converse(
    app: &App,
    backend: &Arc<dyn Backend>,
    conversation: Conversation<'_>,
    fields: &SamplingFields,
    structured: &StructuredFields,
) -> Result<Vec<Answer>, Refusal> {
    let instructions = conversation.tools.map(Tools::instructions);
    let prompt = messages::prompt(
        backend.as_ref(),
        &app.settings,
        conversation.messages,
        instructions.as_deref(),
        conversation.add_generation_prompt,
    )?;
    let sampling = fields.sampling(max_tokens(app, backend.as_ref(), &prompt, conversation.max_tokens))?;
    let (stop, logit_bias) = (fields.stops()?, fields.biases(backend.as_ref())?);
    let adapters = fields.adapters(backend.as_ref())?;
    let mut answers = Vec::new();
    for index in 0..fields.answers()? {
        let forced = conversation.tools.and_then(|tools| tools.form.clone());
        let mask = match forced {
            Some(form) => Some(structured::mask(app, backend, ("tool_choice", form)).await?),
            None => structured.mask(app, backend).await?,
        };
        let mut sampling = sampling.clone();
        sampling.seed = seed_of(sampling.seed, index);
        let job = Job {
            prompt: prompt.clone(),
            sampling,
            stop: stop.clone(),
            logprobs: conversation.logprobs,
            logit_bias: logit_bias.clone(),
            adapters: adapters.clone(),
            mask,
            ..Job::default()
        };
        answers.push(submit(app, backend, conversation.endpoint, job)?);
    }
    Ok(answers)
}

/// The limit that was asked for, or what the context leaves.
pub(crate) fn max_tokens(app: &App, backend: &dyn Backend, prompt: &Prompt, asked: Option<usize>) -> usize {
    let context = backend.card().context_length.unwrap_or(usize::MAX);
    asked.unwrap_or_else(|| context.saturating_sub(prompt.tokens.len()).clamp(1, app.settings.max_tokens))
}

/// `POST /v1/chat/completions`.
pub(crate) async fn chat(
    State(app): State<App>,
    SampledBody(request, sampling, structured): SampledBody<ChatRequest>,
) -> Result<Response, Refusal> {
    let backend = app.backend(request.model.as_deref()).await?;
    let tools = Tools::new(request.tools.as_deref(), request.tool_choice.as_ref())?;
    let top = request.top_logprobs.unwrap_or(0);
    if top > MOST_TOP_LOGPROBS {
        return Err(Refusal::field("top_logprobs", format!("{top} is more than {MOST_TOP_LOGPROBS}")));
    }
    let conversation = Conversation {
        endpoint: "chat",
        messages: &request.messages,
        tools: tools.as_ref(),
        max_tokens: request.max_completion_tokens.or(request.max_tokens),
        logprobs: request.logprobs.unwrap_or(false).then_some(top),
        add_generation_prompt: request.add_generation_prompt.unwrap_or(true),
    };
    let answers = converse(&app, &backend, conversation, &sampling, &structured).await?;
    let model = backend.card().id.clone();
    let shape = Shape { id: new_id("chatcmpl-"), created: unix_seconds(), model, tools };
    if request.stream.unwrap_or(false) {
        let usage = request.stream_options.unwrap_or_default().include_usage;
        return Ok(sse(streamed(backend, shape, answers, usage)));
    }
    let completed = complete_all(answers).await?;
    let mut usage = Usage::default();
    let mut choices = Vec::new();
    for (index, answer) in completed.iter().enumerate() {
        usage.add(&answer.finished, index == 0);
        let calls = shape.tools.as_ref().and_then(|tools| tools.calls(&answer.text));
        let (message, reason) = match &calls {
            Some(calls) => {
                let calls: Vec<Value> = calls.iter().map(|call| call.openai(None)).collect();
                (json!({"role": "assistant", "content": null, "refusal": null, "tool_calls": calls}), "tool_calls")
            }
            None => {
                (json!({"role": "assistant", "content": answer.text, "refusal": null}), answer.finished.reason.openai())
            }
        };
        let logprobs = logprobs(backend.as_ref(), &answer.scores);
        choices.push(json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}));
    }
    let mut reply = shape.reply("chat.completion", choices);
    reply["usage"] = json!(usage);
    Ok(Json(reply).into_response())
}

/// `{"content": [..]}`, or null without scores.
fn logprobs(backend: &dyn Backend, scores: &[TokenScore]) -> Value {
    if scores.is_empty() {
        return Value::Null;
    }
    let content: Vec<Value> = scores.iter().map(|score| chat_logprob(backend.tokenizer(), score)).collect();
    json!({"content": content, "refusal": null})
}

impl Shape {
    fn reply(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices})
    }
}

/// One answer of a stream: whether it has begun, and what is held back because it may become a call.
#[derive(Default)]
struct Progress {
    begun: bool,
    /// Text that may be the beginning of a call, with the scores of its tokens.
    held: Option<(String, Vec<TokenScore>)>,
}

fn streamed(
    backend: Arc<dyn Backend>,
    shape: Shape,
    answers: Vec<Answer>,
    include_usage: bool,
) -> impl Stream<Item = Result<SseEvent, Infallible>> + Send {
    let count = answers.len();
    let mut usage = Usage::default();
    let (mut over, mut failed) = (0, false);
    let hold = || shape.tools.is_some().then(Default::default);
    let mut states: Vec<Progress> = (0..count).map(|_| Progress { begun: false, held: hold() }).collect();
    let events = merged(answers).map(move |(index, event)| {
        let mut chunks = Vec::new();
        if failed {
            return chunks;
        }
        let state = &mut states[index];
        let chunk = |delta: Value, scores: &[TokenScore], reason: Option<&str>| {
            let logprobs = logprobs(backend.as_ref(), scores);
            let choice = json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason});
            let mut reply = shape.reply("chat.completion.chunk", vec![choice]);
            if include_usage {
                reply["usage"] = Value::Null;
            }
            data(&reply)
        };
        if !state.begun && !matches!(event, Event::Failed(_)) {
            state.begun = true;
            chunks.push(chunk(json!({"role": "assistant", "content": ""}), &[], None));
        }
        match event {
            Event::Started | Event::Prompt(_) => {}
            Event::Token { text, score, .. } => {
                let scores: Vec<TokenScore> = score.into_iter().collect();
                let (text, scores) = match state.held.take() {
                    Some((mut held, mut held_scores)) => {
                        held.push_str(&text);
                        held_scores.extend(scores);
                        if Tools::may_be_call(&held) {
                            state.held = Some((held, held_scores));
                            return chunks;
                        }
                        (held, held_scores)
                    }
                    None => (text, scores),
                };
                if !text.is_empty() || !scores.is_empty() {
                    chunks.push(chunk(json!({"content": text}), &scores, None));
                }
            }
            Event::Done { text, finished } => {
                usage.add(&finished, index == 0);
                over += 1;
                let (mut held, scores) = state.held.take().unwrap_or_default();
                held.push_str(&text);
                let calls = shape.tools.as_ref().and_then(|tools| tools.calls(&held));
                let mut reason = finished.reason.openai();
                if let Some(calls) = calls {
                    reason = "tool_calls";
                    let calls: Vec<Value> =
                        calls.iter().enumerate().map(|(place, call)| call.openai(Some(place))).collect();
                    chunks.push(chunk(json!({"tool_calls": calls}), &scores, None));
                } else if !held.is_empty() || !scores.is_empty() {
                    chunks.push(chunk(json!({"content": held}), &scores, None));
                }
                chunks.push(chunk(json!({}), &[], Some(reason)));
                if over == count && include_usage {
                    let mut last = shape.reply("chat.completion.chunk", Vec::new());
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
