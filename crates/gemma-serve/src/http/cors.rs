//! Which web pages may ask: cross-origin resource sharing, as the Fetch standard has it.
//!
//! A browser lets the pages of another origin read an answer only where the answer says so. Pages that come from this
//! machine, and those of desktop applications and editors, may always ask, as Ollama has it; others must be named.

use std::time::Duration;

use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// Hosts that are this machine.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];
/// Schemes of pages that are part of an application.
const APPLICATIONS: [&str; 4] = ["app", "tauri", "vscode-file", "vscode-webview"];
/// How long a browser may keep the answer to its question whether it may ask.
const MAX_AGE: Duration = Duration::from_secs(600);

/// The layer that answers browsers' questions and marks the replies.
pub(crate) fn layer(allowed: &[String]) -> CorsLayer {
    let allowed: Vec<String> = allowed.iter().map(|origin| origin.trim_end_matches('/').to_lowercase()).collect();
    let may = move |origin: &HeaderValue, _: &_| origin.to_str().is_ok_and(|origin| may_ask(origin, &allowed));
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(may))
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, HeaderName::from_static("x-request-id")])
        .max_age(MAX_AGE)
}

/// Whether the pages of an origin may ask.
fn may_ask(origin: &str, allowed: &[String]) -> bool {
    let origin = origin.to_lowercase();
    if allowed.iter().any(|allowed| *allowed == "*" || *allowed == origin) {
        return true;
    }
    let Some((scheme, host)) = origin.split_once("://") else { return false };
    // an IPv6 address has colons of its own
    let port = host.rfind(':').filter(|at| host[at + 1..].bytes().all(|digit| digit.is_ascii_digit()));
    let name = port.map_or(host, |at| &host[..at]);
    APPLICATIONS.contains(&scheme) || matches!(scheme, "http" | "https") && LOCAL.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_this_machine_and_those_that_are_named_may_ask() {
        let named = ["https://chat.example.org".to_owned()];
        for origin in [
            "http://localhost",
            "http://localhost:3000",
            "https://127.0.0.1:8443",
            "http://[::1]:8080",
            "http://[::1]",
            "vscode-webview://0abc",
            "tauri://localhost",
            "https://chat.example.org",
            "https://Chat.Example.org",
        ] {
            assert!(may_ask(origin, &named), "{origin}");
        }
        for origin in [
            "https://example.org",
            "http://chat.example.org",
            "https://chat.example.org:444",
            "http://localhost.example.org",
            "http://127.0.0.1.example.org:80",
            "file://localhost",
            "null",
            "localhost",
        ] {
            assert!(!may_ask(origin, &named), "{origin}");
        }
        assert!(may_ask("https://example.org", &["*".to_owned()]));
    }
}
