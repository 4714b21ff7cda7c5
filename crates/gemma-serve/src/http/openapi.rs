//! `GET /openapi.json`: the API as an OpenAPI document.

use axum::http::header;
use axum::response::{IntoResponse, Response};

/// The document; a test compares its paths with the router's.
pub(crate) const DOCUMENT: &str = include_str!("openapi.json");

/// `GET /openapi.json`.
pub(crate) async fn document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT).into_response()
}
