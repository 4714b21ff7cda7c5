//! The web page at `/`: one file, nothing loaded from elsewhere.

use axum::http::header;
use axum::response::{Html, IntoResponse, Response};

/// Only what the page itself holds may run; it may talk to its own server alone.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `GET /`.
pub(crate) async fn page() -> Response {
    let headers = [(header::CONTENT_SECURITY_POLICY, POLICY), (header::CACHE_CONTROL, "no-cache")];
    (headers, Html(include_str!("page.html"))).into_response()
}
