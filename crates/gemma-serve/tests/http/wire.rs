//! Requests without a network: the router is called as the server calls it.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use gemma_serve::http::{App, Backend, Settings, router};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use crate::fake::Fake;

/// The router of a server of one model.
pub(crate) fn server(fake: Fake) -> Router {
    server_with(fake, Settings::default())
}

/// The same with settings.
pub(crate) fn server_with(fake: Fake, settings: Settings) -> Router {
    router(App::new(vec![Arc::new(fake) as Arc<dyn Backend>], settings))
}

/// Sends a body and returns the status and the text.
pub(crate) async fn send(router: &Router, method: &str, path: &str, body: &str) -> (StatusCode, String) {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let request = request.body(Body::from(body.to_owned())).expect("a sound request");
    let response = router.clone().oneshot(request).await.expect("the router never fails");
    let status = response.status();
    let bytes = response.into_body().collect().await.expect("a whole body").to_bytes();
    (status, String::from_utf8(bytes.to_vec()).expect("UTF-8"))
}

/// Posts JSON and returns the JSON of a good reply.
pub(crate) async fn post(router: &Router, path: &str, body: Value) -> Value {
    let (status, text) = send(router, "POST", path, &body.to_string()).await;
    assert_eq!(status, 200, "{path} {body}: {text}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Posts JSON that is refused; returns the status and the reply.
pub(crate) async fn refused(router: &Router, path: &str, body: Value) -> (u16, Value) {
    let (status, text) = send(router, "POST", path, &body.to_string()).await;
    assert!(!status.is_success(), "{path} {body} was answered: {text}");
    (status.as_u16(), serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

/// Gets JSON.
pub(crate) async fn get(router: &Router, path: &str) -> Value {
    let (status, text) = send(router, "GET", path, "").await;
    assert_eq!(status, 200, "{path}: {text}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The JSON of each server-sent event; the last one must be `[DONE]`.
pub(crate) async fn events(router: &Router, path: &str, body: Value) -> Vec<Value> {
    let (status, text) = send(router, "POST", path, &body.to_string()).await;
    assert_eq!(status, 200, "{text}");
    let mut data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.pop(), Some("[DONE]"), "{text}");
    data.into_iter().map(|data| serde_json::from_str(data).expect("JSON")).collect()
}

/// The JSON of each line.
pub(crate) async fn lines(router: &Router, path: &str, body: Value) -> Vec<Value> {
    let (status, text) = send(router, "POST", path, &body.to_string()).await;
    assert_eq!(status, 200, "{text}");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}
