//! What every request passes first: its id, its key, the log, and the net under a handler that fails.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::App;
use super::app::new_id;
use super::error::Refusal;

/// Paths that need no key: what load balancers ask, and the page that asks for the key.
const OPEN: [&str; 4] = ["/", "/health", "/v1/health", "/openapi.json"];
/// Longest request id that is taken from a client.
const LONGEST_ID: usize = 128;

/// The middleware of all paths.
pub(crate) async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id = request_id(request.headers());
    let method = request.method().clone();
    // the route, not the path: a client chooses paths, and each would be a counter of its own
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let open = OPEN.contains(&request.uri().path());
    let ollama = request.uri().path().starts_with("/api/");
    let response = if open || is_allowed(&app.settings.api_keys, request.headers()) {
        let caught = without_panic(next.run(request)).await;
        caught.unwrap_or_else(|| Refusal::failed("the request made a handler fail; this is a bug").into_response())
    } else {
        let message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`";
        let refusal = Refusal { code: Some("invalid_api_key"), ..Refusal::new(StatusCode::UNAUTHORIZED, message) };
        if ollama { refusal.into_ollama() } else { refusal.into_response() }
    };
    let status = response.status().as_u16();
    app.metrics.requests.get_or_create(&vec![("path", route.clone()), ("status", status.to_string())]).inc();
    tracing::info!(id, %method, path = route, status, ms = begun.elapsed().as_millis() as u64, "request");
    with_headers(response, &id)
}

/// What a future makes; `None` when it panics.
async fn without_panic<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let poll = |context: &mut Context<'_>| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(poll) => poll.map(Some),
        Err(_) => Poll::Ready(None),
    };
    poll_fn(poll).await
}

/// The client's own id where it is harmless, or a new one.
fn request_id(headers: &HeaderMap) -> String {
    let harmless = |id: &&str| {
        !id.is_empty()
            && id.len() <= LONGEST_ID
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
    };
    let given = headers.get("x-request-id").and_then(|id| id.to_str().ok()).filter(harmless);
    given.map_or_else(|| new_id("req-"), str::to_owned)
}

fn with_headers(mut response: Response, id: &str) -> Response {
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert("x-request-id", id);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Whether one of the keys was sent. Every key is compared in full, whatever was sent.
fn is_allowed(keys: &[String], headers: &HeaderMap) -> bool {
    if keys.is_empty() {
        return true;
    }
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("bearer ")));
    let plain = headers.get("x-api-key").and_then(|value| value.to_str().ok());
    let sent = Sha256::digest(bearer.or(plain).unwrap_or_default().trim());
    let hits = keys.iter().map(|key| Sha256::digest(key).ct_eq(&sent).unwrap_u8()).sum::<u8>();
    hits > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::HeaderName::from_static(name), HeaderValue::from_static(value))])
    }

    #[test]
    fn one_of_the_keys_opens() {
        let keys = ["alpha".to_owned(), "beta".to_owned()];
        assert!(is_allowed(&[], &HeaderMap::new()));
        for (name, value) in
            [("authorization", "Bearer alpha"), ("authorization", "bearer beta"), ("x-api-key", "beta")]
        {
            assert!(is_allowed(&keys, &headers(name, value)), "{value}");
        }
        for (name, value) in [
            ("authorization", "Bearer gamma"),
            ("authorization", "alpha"),
            ("authorization", "Bearer "),
            ("x-api-key", "alph"),
        ] {
            assert!(!is_allowed(&keys, &headers(name, value)), "{value}");
        }
        assert!(!is_allowed(&keys, &HeaderMap::new()));
    }

    #[tokio::test]
    async fn a_panic_is_caught() {
        assert_eq!(without_panic(async { 7 }).await, Some(7));
        assert_eq!(without_panic(async { panic!("on purpose") }).await, None::<()>);
    }

    #[test]
    fn a_harmless_request_id_is_kept() {
        assert_eq!(request_id(&headers("x-request-id", "trace-1:a.b_c")), "trace-1:a.b_c");
        assert!(request_id(&headers("x-request-id", "two words")).starts_with("req-"));
        assert!(request_id(&HeaderMap::new()).starts_with("req-"));
    }
}
