//! What a client can ask without generating: models, tokens, templates, health, slots, metrics.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use gemma_tokenizer::{DecodeOptions, EncodeOptions, TokenId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use super::backend::Load;
use super::body::JsonBody;
use super::error::Refusal;
use super::messages::{self, ChatMessage};
use super::models::Listed;
use super::tools::{Tool, Tools};
use crate::tokens::token_text;

fn model(Listed { card, status, path }: &Listed) -> Value {
    json!({
        "id": card.id, "object": "model", "created": card.created, "owned_by": "gemma",
        "root": path.as_ref().unwrap_or(&card.id), "parent": card.parent, "status": {"value": status},
        "max_model_len": card.context_length, "family": card.family, "capabilities": card.capabilities,
        "meta": {
            "n_vocab": card.vocab_size, "n_ctx_train": card.context_length, "n_params": card.parameters,
            "size": card.bytes, "ftype": card.quantization.to_uppercase(), "quantization": card.quantization,
        },
    })
}

/// The models and their adapters.
fn listed(app: &App) -> Vec<Listed> {
    app.models.iter().flat_map(|model| model.listed()).collect()
}

/// `GET /v1/models`.
pub(crate) async fn models(State(app): State<App>) -> Json<Value> {
    Json(json!({"object": "list", "data": listed(&app).iter().map(model).collect::<Vec<_>>()}))
}

/// `GET /v1/models/{id}`.
pub(crate) async fn one_model(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, Refusal> {
    let listed = listed(&app);
    let found = listed.iter().find(|listed| listed.card.id == id);
    found.map(|listed| Json(model(listed))).ok_or_else(|| Refusal::no_model(&id, &app.names()))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TokenizeRequest {
    model: Option<String>,
    /// llama.cpp's name.
    content: Option<String>,
    /// vLLM's name.
    prompt: Option<String>,
    messages: Option<Vec<ChatMessage>>,
    add_special: Option<bool>,
    add_special_tokens: Option<bool>,
    add_generation_prompt: Option<bool>,
    parse_special: Option<bool>,
    with_pieces: Option<bool>,
    return_token_strs: Option<bool>,
}

/// `POST /tokenize`: llama.cpp's `content` and vLLM's `prompt` or `messages`.
///
/// `<bos>` is put in front where `add_special` (default false) or `add_special_tokens` (default true) says so.
pub(crate) async fn tokenize(
    State(app): State<App>,
    JsonBody(request): JsonBody<TokenizeRequest>,
) -> Result<Json<Value>, Refusal> {
    let backend = app.backend(request.model.as_deref()).await?;
    let tokenizer = backend.tokenizer();
    let specials = request.parse_special.unwrap_or(true);
    let llama = request.content.is_some();
    let tokens = match (&request.content, &request.prompt, &request.messages) {
        (Some(text), ..) => {
            tokenizer.encode_with(text, EncodeOptions { bos: request.add_special.unwrap_or(false), specials })
        }
        (None, Some(text), _) => {
            let bos = request.add_special_tokens.or(request.add_special).unwrap_or(true);
            tokenizer.encode_with(text, EncodeOptions { bos, specials })
        }
        (None, None, Some(list)) => {
            let generation = request.add_generation_prompt.unwrap_or(true);
            messages::prompt(backend.as_ref(), &app.settings, list, None, generation)?.tokens
        }
        (None, None, None) => return Err(Refusal::field("content", "missing; send content, prompt or messages")),
    };
    let texts = || tokens.iter().map(|id| token_text(tokenizer, *id)).collect::<Vec<_>>();
    if llama && request.with_pieces.unwrap_or(false) {
        let pieces: Vec<Value> =
            tokens.iter().zip(texts()).map(|(id, piece)| json!({"id": id, "piece": piece})).collect();
        return Ok(Json(json!({"tokens": pieces})));
    }
    let token_strs = request.return_token_strs.unwrap_or(false).then(texts);
    let limit = backend.card().context_length;
    Ok(Json(json!({"count": tokens.len(), "max_model_len": limit, "tokens": tokens, "token_strs": token_strs})))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct DetokenizeRequest {
    model: Option<String>,
    tokens: Vec<TokenId>,
}

/// `POST /detokenize`: the text under both names, llama.cpp's `content` and vLLM's `prompt`.
pub(crate) async fn detokenize(
    State(app): State<App>,
    JsonBody(request): JsonBody<DetokenizeRequest>,
) -> Result<Json<Value>, Refusal> {
    let backend = app.backend(request.model.as_deref()).await?;
    let tokenizer = backend.tokenizer();
    if let Some(token) = request.tokens.iter().find(|token| **token as usize >= tokenizer.vocab_len()) {
        return Err(Refusal::field(
            "tokens",
            format!("{token} is no token; the vocabulary has {}", tokenizer.vocab_len()),
        ));
    }
    let text = tokenizer.decode_with(&request.tokens, DecodeOptions { specials: true });
    Ok(Json(json!({"content": text, "prompt": text})))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TemplateRequest {
    model: Option<String>,
    messages: Vec<ChatMessage>,
    tools: Option<Vec<Tool>>,
    add_generation_prompt: Option<bool>,
}

/// `POST /apply-template`: the prompt of a chat as text.
pub(crate) async fn apply_template(
    State(app): State<App>,
    JsonBody(request): JsonBody<TemplateRequest>,
) -> Result<Json<Value>, Refusal> {
    let backend = app.backend(request.model.as_deref()).await?;
    let tools = Tools::new(request.tools.as_deref(), None)?.map(|tools| tools.instructions());
    let generation = request.add_generation_prompt.unwrap_or(true);
    let prompt = messages::prompt(backend.as_ref(), &app.settings, &request.messages, tools.as_deref(), generation)?;
    let text = backend.tokenizer().decode_with(&prompt.tokens, DecodeOptions { specials: true });
    Ok(Json(json!({"prompt": text})))
}

/// `GET /tokenizer_info`: what lm-evaluation-harness asks of vLLM.
pub(crate) async fn tokenizer_info(State(app): State<App>) -> Result<Json<Value>, Refusal> {
    let backend = app.backend(None).await?;
    let tokenizer = backend.tokenizer();
    let name = |id: TokenId| tokenizer.piece(id);
    Ok(Json(json!({
        "tokenizer_class": "GemmaTokenizer", "bos_token": name(tokenizer.bos()), "eos_token": name(tokenizer.eos()),
        "pad_token": tokenizer.token("<pad>").map(|_| "<pad>"), "unk_token": tokenizer.token("<unk>").map(|_| "<unk>"),
        "add_bos_token": true, "add_eos_token": false, "vocab_size": tokenizer.vocab_len(),
        "model_max_length": backend.card().context_length,
        "chat_template": super::GEMMA_CHAT_TEMPLATE,
    })))
}

/// `GET /health`: 200 while requests are taken, 503 while the server shuts down.
pub(crate) async fn health(State(app): State<App>) -> Response {
    match app.registry.is_closing() {
        true => Refusal::shutting_down().into_response(),
        false => Json(json!({"status": "ok"})).into_response(),
    }
}

/// All models that are loaded, together.
fn load(app: &App) -> Load {
    app.models.iter().filter_map(|model| Some(model.peek()?.load())).fold(Load::default(), |sum, load| Load {
        running: sum.running + load.running,
        waiting: sum.waiting + load.waiting,
        cache_bytes: sum.cache_bytes + load.cache_bytes,
        cache_limit_bytes: sum.cache_limit_bytes + load.cache_limit_bytes,
    })
}

/// `GET /props`.
pub(crate) async fn props(State(app): State<App>) -> Result<Json<Value>, Refusal> {
    let backend = app.backend(None).await?;
    let card = backend.card();
    Ok(Json(json!({
        "default_generation_settings": {"n_ctx": card.context_length, "n_predict": app.settings.max_tokens},
        "total_slots": app.settings.parallel, "model_path": card.id, "model_alias": card.id,
        "model_ftype": card.quantization.to_uppercase(),
        "chat_template": super::GEMMA_CHAT_TEMPLATE, "bos_token": "<bos>", "eos_token": "<eos>",
        "modalities": {"vision": card.capabilities.images, "audio": false},
        "build_info": concat!("gemma-serve ", env!("CARGO_PKG_VERSION")), "capabilities": card.capabilities,
        "load": load(&app),
    })))
}

/// `GET /slots`: the answers that are being generated or wait, the oldest first.
pub(crate) async fn slots(State(app): State<App>) -> Json<Value> {
    Json(json!(app.registry.slots()))
}

/// `GET /metrics`.
pub(crate) async fn metrics(State(app): State<App>) -> Response {
    let bytes: Vec<u64> = app.models.iter().filter_map(|model| model.bytes()).collect();
    let text = app.metrics.render(app.registry.counts(), load(&app), &bytes);
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
}

/// Whatever has no route.
pub(crate) async fn not_found() -> Refusal {
    let message = "there is no such path; GET /openapi.json lists the paths";
    Refusal { code: Some("not_found"), ..Refusal::new(axum::http::StatusCode::NOT_FOUND, message) }
}

/// A path with another method.
pub(crate) async fn wrong_method() -> Refusal {
    let message = "this path has another method; GET /openapi.json lists them";
    Refusal { code: Some("method_not_allowed"), ..Refusal::new(axum::http::StatusCode::METHOD_NOT_ALLOWED, message) }
}
