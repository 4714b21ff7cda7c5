//! What a request is refused with: a status, a message and the field that is wrong.
//!
//! One type for every protocol; [`Refusal::openai`] and [`Refusal::ollama`] are its two JSON forms.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// What is wrong and what to do, in one or two sentences.
    pub message: String,
    /// The field of the request that is wrong, as a path such as `messages[0].role`.
    pub param: Option<String>,
    /// A fixed word for programs, such as `context_length_exceeded`.
    pub code: Option<&'static str>,
    /// Seconds after which the request may be sent again.
    pub retry_after: Option<u64>,
}

/// A text that may quote what a client sent, in a length that can be read: its beginning and its end, which says what to
/// do.
fn shortened(text: String) -> String {
    const BEGIN: usize = 600;
    const END: usize = 200;
    let count = text.chars().count();
    if count <= BEGIN + END {
        return text;
    }
    let begin: String = text.chars().take(BEGIN).collect();
    let end: String = text.chars().skip(count - END).collect();
    format!("{begin}...{end}")
}

impl Refusal {
    /// A refusal with this status and message.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: shortened(message.into()), param: None, code: None, retry_after: None }
    }

    /// 400: the request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 400: what the library found wrong with something that a client sent.
    pub fn of(error: impl std::fmt::Display) -> Self {
        Self::invalid(error.to_string())
    }

    /// 400: this field is wrong.
    pub fn field(param: impl Into<String>, message: impl AsRef<str>) -> Self {
        let param = param.into();
        let message = format!("{param}: {}", message.as_ref());
        Self { param: Some(shortened(param)), ..Self::invalid(message) }
    }

    /// 400: the prompt and the answer do not fit into the context.
    pub fn context(tokens: usize, limit: usize) -> Self {
        let message =
            format!("the prompt has {tokens} tokens and the context length is {limit}; send a shorter prompt");
        Self { code: Some("context_length_exceeded"), ..Self::invalid(message) }
    }

    /// 400: the loaded model cannot do this.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self { code: Some("unsupported"), ..Self::invalid(message) }
    }

    /// 404: there is no such model.
    pub fn no_model(model: &str, known: &[String]) -> Self {
        let message = format!("there is no model {model:?} here; this server has {}", known.join(", "));
        Self { param: Some("model".to_owned()), ..Self::not_found(message) }
    }

    /// 404: a model of the server's list is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { code: Some("model_not_found"), ..Self::new(StatusCode::NOT_FOUND, message) }
    }

    /// 413: more than a limit of the server.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// 429: the server has as many requests as it takes.
    pub fn busy(message: impl Into<String>, retry_after: u64) -> Self {
        let base = Self::new(StatusCode::TOO_MANY_REQUESTS, message);
        Self { code: Some("server_busy"), retry_after: Some(retry_after), ..base }
    }

    /// 503: a model of the server cannot be loaded.
    pub fn cannot_load(id: &str, reason: impl std::fmt::Display) -> Self {
        let message = format!("the model {id} cannot be loaded: {reason}");
        Self { code: Some("model_load_failed"), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// 503: the server is shutting down.
    pub fn shutting_down() -> Self {
        let message = "the server is shutting down; send the request to another replica";
        let base = Self::new(StatusCode::SERVICE_UNAVAILABLE, message);
        Self { code: Some("shutting_down"), retry_after: Some(5), ..base }
    }

    /// 503: the answer took longer than the server's time limit for a request.
    pub fn too_slow(limit: std::time::Duration) -> Self {
        let message = format!("the answer took longer than {} s; send less at once", limit.as_secs_f32());
        Self { code: Some("timeout"), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// 500: the model or the device failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// The word that OpenAI's clients choose their exception by.
    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// `{"error": {"message", "type", "param", "code"}}`.
    pub fn openai(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind(), "param": self.param, "code": self.code}})
    }

    /// `{"error": "..."}`.
    pub fn ollama(&self) -> Value {
        json!({"error": self.message})
    }

    /// The response with Ollama's body.
    pub fn into_ollama(self) -> Response {
        let body = self.ollama();
        self.with_body(body)
    }

    fn with_body(self, body: Value) -> Response {
        let mut response = (self.status, Json(body)).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = self.openai();
        self.with_body(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_short_whatever_it_quotes() {
        let long = "é".repeat(100_000);
        let refusal = Refusal::field(long.clone(), format!("{long} is unknown; use user or assistant"));
        assert!(refusal.openai().to_string().len() < 4000);
        assert!(refusal.message.ends_with("is unknown; use user or assistant"), "{}", refusal.message);
        assert_eq!(Refusal::invalid("short").message, "short");
    }

    #[test]
    fn a_refusal_names_the_field_and_says_when_to_come_back() {
        let refusal = Refusal::field("messages[0].role", "unknown role \"king\"");
        assert_eq!(refusal.openai()["error"]["param"], "messages[0].role");
        assert_eq!(refusal.openai()["error"]["type"], "invalid_request_error");
        assert_eq!(refusal.ollama(), json!({"error": "messages[0].role: unknown role \"king\""}));
        let response = Refusal::busy("full", 7).into_response();
        assert_eq!((response.status().as_u16(), response.headers()["retry-after"].to_str().ok()), (429, Some("7")));
    }
}
