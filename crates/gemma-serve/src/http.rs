//! The HTTP server: OpenAI's, llama.cpp's, vLLM's, Mistral's and Ollama's protocols over one queue.
//!
//! A request goes through `guard` (request id, key, log), `body` (limits, JSON), the handler of its protocol, which
//! makes a [`Job`] of it, and `running` (admission, time limits, events); the reply is built from the events.
//!
//! | Module | What is in it |
//! |---|---|
//! | [`backend`] | [`Backend`]: all that the handlers ask of a model |
//! | `engine` (feature `engine`) | the backend of loaded models: text, images, classification |
//! | `embedder` (feature `engine`) | the backend of an EmbeddingGemma |
//! | `app`, `server` | [`App`] and [`Settings`]; [`serve`]: connections, limits, graceful shutdown |
//! | `models`, `loading` | [`ServedModel`]: which model a request means; models that are loaded on demand |
//! | `adapted`, `adapters` | adapters under names of their own; `/lora-adapters` |
//! | `registry`, `place` | the answers that run or wait, as `/slots` shows them, and their number |
//! | `guard`, `cors`, `body`, `object`, `error` | keys and request ids; whose web pages may ask; JSON of bounded size; refusals |
//! | `sampling`, `structured` | how to sample; the form of an answer |
//! | `completions`, `chat`, `responses` | OpenAI's text protocols |
//! | `messages`, `tools`, `tokens` | chat messages, function calls, logprobs |
//! | `infill` | fill-in-the-middle: llama.cpp's and Mistral's |
//! | `ollama` | `/api/*` |
//! | `embeddings`, `vision` | embeddings, moderation; captions, boxes, masks |
//! | `info`, `metrics`, `openapi`, `page` | models, tokens, health; Prometheus; the API document; the web page |
//! | [`batch`] | files of requests, answered without a network |

mod adapted;
mod adapters;
mod app;
pub mod backend;
pub mod batch;
mod body;
mod chat;
mod completions;
mod cors;
#[cfg(feature = "engine")]
mod embedder;
mod embeddings;
#[cfg(feature = "engine")]
mod engine;
mod error;
mod guard;
mod infill;
mod info;
mod loading;
mod messages;
mod metrics;
mod models;
mod object;
mod ollama;
mod openapi;
mod page;
mod place;
mod registry;
mod responses;
mod running;
mod sampling;
mod server;
mod structured;
mod texts;
mod tokens;
mod tools;
mod vision;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{delete, get, post};

pub use app::{App, Settings};
pub use backend::{AdapterCard, Backend, Event, Events, Finished, Job, ModelCard, Prompt, Reason, Sampling};
#[cfg(feature = "engine")]
pub use embedder::EmbeddingBackend;
#[cfg(feature = "engine")]
pub use engine::EngineBackend;
pub use error::Refusal;
pub use models::{Located, ServedModel};
pub use server::serve;

/// Gemma's chat format as a Jinja template, for clients that render it themselves.
pub(crate) const GEMMA_CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}\
{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}";

/// All paths of a server.
pub fn router(app: App) -> Router {
    let cors = cors::layer(&app.settings.allow_origins);
    Router::new()
        .route("/", get(page::page))
        .route("/openapi.json", get(openapi::document))
        .route("/health", get(info::health))
        .route("/v1/health", get(info::health))
        .route("/metrics", get(info::metrics))
        .route("/props", get(info::props))
        .route("/slots", get(info::slots))
        .route("/v1/models", get(info::models))
        .route("/models", get(info::models))
        .route("/v1/models/{*id}", get(info::one_model))
        .route("/lora-adapters", get(adapters::list))
        .route("/lora-adapters", post(adapters::set))
        .route("/tokenize", post(info::tokenize))
        .route("/detokenize", post(info::detokenize))
        .route("/apply-template", post(info::apply_template))
        .route("/tokenizer_info", get(info::tokenizer_info))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/chat/completions", post(chat::chat))
        .route("/v1/responses", post(responses::responses))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/moderations", post(embeddings::moderations))
        .route("/v1/fim/completions", post(infill::fim))
        .route("/v1/vision/{task}", post(vision::vision))
        .route("/infill", post(infill::infill))
        .route("/completion", post(infill::completion))
        .route("/completions", post(infill::completion))
        .route("/api/generate", post(ollama::generate))
        .route("/api/chat", post(ollama::chat))
        .route("/api/embed", post(ollama::embeddings))
        .route("/api/embeddings", post(ollama::embeddings))
        .route("/api/tags", get(ollama::tags))
        .route("/api/ps", get(ollama::ps))
        .route("/api/show", post(ollama::show))
        .route("/api/version", get(ollama::version))
        .route("/api/pull", post(ollama::read_only))
        .route("/api/create", post(ollama::read_only))
        .route("/api/copy", post(ollama::read_only))
        .route("/api/push", post(ollama::read_only))
        .route("/api/delete", delete(ollama::read_only))
        .fallback(info::not_found)
        .method_not_allowed_fallback(info::wrong_method)
        .layer(from_fn_with_state(app.clone(), guard::guard))
        // a browser asks without a key whether it may ask
        .layer(cors)
        .with_state(app)
}
