//! `/v1/responses`: OpenAI's newer protocol, for text.

use std::convert::Infallible;

use axum::Json;
use axum::extract::State;
use axum::response::sse::Event as SseEvent;
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use super::app::{new_id, unix_seconds};
use super::backend::{Event, Finished, Reason};
use super::body::SampledBody;
use super::chat::{Conversation, converse};
use super::completions::sse;
use super::error::Refusal;
use super::messages::ChatMessage;
use super::object::Others;
use super::running::Answer;
use super::structured::StructuredFields;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ResponsesRequest {
    model: Option<String>,
    input: Input,
    instructions: Option<String>,
    max_output_tokens: Option<usize>,
    stream: Option<bool>,
    previous_response_id: Option<String>,
    text: Option<TextOptions>,
}

/// A text, or messages.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of messages")]
enum Input {
    Text(String),
    Messages(Vec<ChatMessage>),
    #[default]
    Nothing,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TextOptions {
    format: Option<Value>,
    #[serde(flatten)]
    _others: Others,
}

impl TextOptions {
    /// The form, in chat completions' words: there the schema lies one level deeper.
    fn structured(&self) -> Result<StructuredFields, Refusal> {
        let Some(format) = &self.format else { return Ok(StructuredFields::default()) };
        let format = match format["type"].as_str() {
            Some("json_schema") => json!({"type": "json_schema", "json_schema": {"schema": format["schema"]}}),
            _ => format.clone(),
        };
        serde_json::from_value(json!({"response_format": format}))
            .map_err(|error| Refusal::field("text.format", error.to_string()))
    }
}

/// What every event of a response repeats.
struct Shape {
    id: String,
    item: String,
    created: u64,
    model: String,
    instructions: Option<String>,
}

/// `POST /v1/responses`.
pub(crate) async fn responses(
    State(app): State<App>,
    SampledBody(request, fields, _): SampledBody<ResponsesRequest>,
) -> Result<Response, Refusal> {
    let backend = app.backend(request.model.as_deref()).await?;
    if request.previous_response_id.is_some() {
        return Err(Refusal::field(
            "previous_response_id",
            "responses are not stored; send the whole conversation as input",
        ));
    }
    let mut messages = match request.input {
        Input::Text(text) => vec![ChatMessage::user(text)],
        Input::Messages(messages) => messages,
        Input::Nothing => return Err(Refusal::field("input", "missing; send a string or an array of messages")),
    };
    if let Some(instructions) = &request.instructions {
        messages.insert(0, ChatMessage::plain("system", instructions.clone()));
    }
    let conversation = Conversation {
        endpoint: "responses",
        messages: &messages,
        tools: None,
        max_tokens: request.max_output_tokens,
        logprobs: None,
        add_generation_prompt: true,
    };
    let structured = request.text.unwrap_or_default().structured()?;
    let mut answers = converse(&app, &backend, conversation, &fields, &structured).await?;
    let answer =
        answers.pop().filter(|_| answers.is_empty()).ok_or_else(|| Refusal::field("n", "a response is one answer"))?;
    let model = backend.card().id.clone();
    let shape = Shape {
        id: new_id("resp_"),
        item: new_id("msg_"),
        created: unix_seconds(),
        model,
        instructions: request.instructions,
    };
    if request.stream.unwrap_or(false) {
        return Ok(streamed(shape, answer));
    }
    let answer = answer.complete().await?;
    Ok(Json(shape.response(Some((&answer.text, &answer.finished)))).into_response())
}

impl Shape {
    /// The response object; in progress without an answer.
    fn response(&self, answer: Option<(&str, &Finished)>) -> Value {
        let incomplete =
            answer.is_some_and(|(_, finished)| !matches!(finished.reason, Reason::Stop | Reason::StopText));
        let status = match answer {
            None => "in_progress",
            Some(_) if incomplete => "incomplete",
            Some(_) => "completed",
        };
        let output: Vec<Value> = answer.iter().map(|(text, _)| self.item(status, Some(text))).collect();
        let usage = answer.map(|(_, finished)| {
            json!({
                "input_tokens": finished.prompt_tokens,
                "input_tokens_details": {"cached_tokens": finished.cached_tokens},
                "output_tokens": finished.generated_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": finished.prompt_tokens + finished.generated_tokens,
            })
        });
        json!({
            "id": self.id, "object": "response", "created_at": self.created, "model": self.model, "status": status,
            "error": null, "incomplete_details": incomplete.then(|| json!({"reason": "max_output_tokens"})),
            "instructions": self.instructions, "output": output, "usage": usage, "metadata": {}, "tools": [],
            "tool_choice": "auto", "parallel_tool_calls": false, "store": false, "text": {"format": {"type": "text"}},
        })
    }

    fn item(&self, status: &str, text: Option<&str>) -> Value {
        let content: Vec<Value> = text.iter().map(|text| part(text)).collect();
        json!({"id": self.item, "type": "message", "role": "assistant", "status": status, "content": content})
    }
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

/// The events in OpenAI's order: created, item and part added, deltas, all of them done, completed.
fn streamed(shape: Shape, answer: Answer) -> Response {
    let mut sequence = 0_u64;
    let mut whole = String::new();
    let mut begun = false;
    let next = move |mut answer: Answer| async move { answer.next().await.map(|event| (event, answer)) };
    let events = stream::unfold(answer, next).map(move |event| {
        let mut chunks: Vec<Result<SseEvent, Infallible>> = Vec::new();
        let mut send = |kind: &str, mut body: Value| {
            body["type"] = json!(kind);
            body["sequence_number"] = json!(sequence);
            sequence += 1;
            chunks.push(Ok(SseEvent::default().event(kind).data(body.to_string())));
        };
        let place = |mut body: Value| {
            body["item_id"] = json!(shape.item);
            body["output_index"] = json!(0);
            body["content_index"] = json!(0);
            body
        };
        if !begun && !matches!(event, Event::Failed(_)) {
            begun = true;
            send("response.created", json!({"response": shape.response(None)}));
            send("response.in_progress", json!({"response": shape.response(None)}));
            send("response.output_item.added", json!({"output_index": 0, "item": shape.item("in_progress", None)}));
            send("response.content_part.added", place(json!({"part": part("")})));
        }
        match event {
            Event::Started | Event::Prompt(_) => {}
            Event::Token { text, .. } => {
                whole.push_str(&text);
                if !text.is_empty() {
                    send("response.output_text.delta", place(json!({"delta": text, "logprobs": []})));
                }
            }
            Event::Done { text, finished } => {
                whole.push_str(&text);
                if !text.is_empty() {
                    send("response.output_text.delta", place(json!({"delta": text, "logprobs": []})));
                }
                let last = shape.response(Some((&whole, &finished)));
                let status = last["status"].as_str().unwrap_or("completed").to_owned();
                send("response.output_text.done", place(json!({"text": whole, "logprobs": []})));
                send("response.content_part.done", place(json!({"part": part(&whole)})));
                send(
                    "response.output_item.done",
                    json!({"output_index": 0, "item": shape.item(&status, Some(&whole))}),
                );
                send(&format!("response.{status}"), json!({"response": last}));
            }
            Event::Failed(refusal) => send("error", refusal.openai()["error"].clone()),
        }
        chunks
    });
    sse(events.flat_map(stream::iter))
}
