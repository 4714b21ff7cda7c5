//! Keys, limits, and what a hostile client tries.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use gemma_serve::http::{App, Backend, Settings, router};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::fake::Fake;
use crate::wire::{get, post, refused, send, server, server_with};

#[tokio::test]
async fn without_the_key_only_health_and_the_page_are_open() {
    let settings = Settings { api_keys: vec!["secret".into()], ..Settings::default() };
    let server = server_with(Fake::new("x"), settings);
    for (path, status) in
        [("/health", 200), ("/", 200), ("/v1/models", 401), ("/metrics", 401), ("/slots", 401), ("/nothing", 401)]
    {
        assert_eq!(send(&server, "GET", path, "").await.0, status, "{path}");
    }
    for (key, status) in [("Bearer secret", 200), ("Bearer secre", 401), ("Bearer secrets", 401), ("secret", 401)] {
        let request = Request::get("/v1/models").header("authorization", key).body(Body::empty()).expect("a request");
        assert_eq!(server.clone().oneshot(request).await.expect("a response").status(), status, "{key}");
    }
    let (_, text) = send(&server, "GET", "/api/tags", "").await;
    assert!(serde_json::from_str::<Value>(&text).is_ok_and(|reply| reply["error"].is_string()), "{text}");
}

/// What a browser asks before it sends a page's request, and whether it then hands over the reply.
#[tokio::test]
async fn pages_of_other_origins_may_ask_where_they_are_allowed_to() {
    let settings = Settings {
        api_keys: vec!["secret".into()],
        allow_origins: vec!["https://chat.example.org".into()],
        ..Settings::default()
    };
    let server = server_with(Fake::new("x"), settings);
    for (origin, allowed) in
        [("https://chat.example.org", true), ("http://localhost:3000", true), ("https://example.org", false)]
    {
        let question = Request::options("/v1/chat/completions")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type")
            .body(Body::empty());
        let request = Request::get("/v1/models").header("origin", origin).header("authorization", "Bearer secret");
        for request in [question.expect("a request"), request.body(Body::empty()).expect("a request")] {
            let method = request.method().clone();
            let reply = server.clone().oneshot(request).await.expect("a response");
            assert_eq!(reply.status(), 200, "{method} {origin}");
            let named = reply.headers().get("access-control-allow-origin").is_some_and(|named| named == origin);
            assert_eq!(named, allowed, "{method} {origin}");
            let headers = reply.headers().get("access-control-allow-headers");
            assert_eq!(headers.is_some(), method == "OPTIONS", "{method} {origin}");
        }
    }
}

#[tokio::test]
async fn bodies_are_bounded_in_size_and_depth() {
    let settings = Settings { body_limit: 1000, ..Settings::default() };
    let server = server_with(Fake::new("x"), settings);
    let (status, reply) = refused(&server, "/v1/completions", json!({"prompt": "a".repeat(2000)})).await;
    assert_eq!(status, 413, "{reply}");
    // two gigabytes announced, one byte sent: refused before anything is read
    let request = Request::post("/v1/completions")
        .header("content-length", "2000000000")
        .body(Body::from("{"))
        .expect("a request");
    assert_eq!(server.clone().oneshot(request).await.expect("a response").status(), 413);
    for (coding, status) in [("gzip", 415), ("identity", 200)] {
        let request = Request::post("/v1/completions")
            .header("content-encoding", coding)
            .body(Body::from("{\"prompt\": \"a\"}"))
            .expect("a request");
        assert_eq!(server.clone().oneshot(request).await.expect("a response").status(), status, "{coding}");
    }
    let deep = format!("{{\"prompt\":{}{}}}", "[".repeat(200), "]".repeat(200));
    assert_eq!(send(&server, "POST", "/v1/completions", &deep).await.0, 400);
    for body in ["", "{", "[]", "null", "\u{0}", "{\"prompt\":\"a\"", "{\"prompt\":\"\\ud800\"}"] {
        assert_eq!(send(&server, "POST", "/v1/completions", body).await.0, 400, "{body:?}");
    }
}

/// Tokens are not counted where there are more than any context holds: that would take gigabytes.
#[tokio::test]
async fn a_word_of_twenty_megabytes_is_refused_before_its_tokens_are_made() {
    let server = server(Fake::new("x"));
    let word = "a".repeat(20 << 20);
    let begun = std::time::Instant::now();
    for (path, body) in [
        ("/v1/completions", json!({"prompt": word})),
        ("/completion", json!({"prompt": word})),
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": word}]})),
        ("/v1/responses", json!({"input": word})),
    ] {
        let (status, reply) = refused(&server, path, body).await;
        assert_eq!((status, &reply["error"]["code"]), (400, &json!("context_length_exceeded")), "{path}: {reply}");
    }
    for body in [json!({"prompt": word}), json!({"prompt": word, "raw": true})] {
        assert_eq!(refused(&server, "/api/generate", body).await.0, 400);
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_body_that_never_ends_times_out() {
    let settings = Settings { body_timeout: Duration::from_millis(50), ..Settings::default() };
    let server = server_with(Fake::new("x"), settings);
    let slow = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let request = Request::post("/v1/completions").body(Body::from_stream(slow)).expect("a request");
    assert_eq!(server.clone().oneshot(request).await.expect("a response").status(), 408);
}

#[tokio::test]
async fn paths_and_methods_that_are_not_there_are_json_refusals() {
    let server = server(Fake::new("x"));
    for (method, path, status) in [
        ("GET", "/nothing", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "/v1/models/../../etc/passwd", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/health", 405),
    ] {
        let (found, text) = send(&server, method, path, "").await;
        assert_eq!(found, status, "{method} {path}");
        assert!(
            serde_json::from_str::<Value>(&text).is_ok_and(|reply| reply["error"]["message"].is_string()),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_full_server_says_when_to_come_back() {
    let settings = Settings { parallel: 1, queue: 1, ..Settings::default() };
    let fake = Fake::new("one two three four five six").with_delay(Duration::from_millis(20));
    let server = server_with(fake, settings);
    let ask = || async { send(&server, "POST", "/v1/completions", r#"{"prompt":"a"}"#).await };
    let replies = futures_util::future::join_all((0..6).map(|_| ask())).await;
    let statuses: Vec<u16> = replies.iter().map(|(status, _)| status.as_u16()).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 2, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 4, "{statuses:?}");
    assert_eq!(ask().await.0, 200, "it recovers");
}

#[tokio::test]
async fn a_request_that_waits_too_long_is_refused_with_retry_after() {
    let settings = Settings { queue_timeout: Duration::from_millis(30), ..Settings::default() };
    let fake = Fake::new("one two three four five six seven eight").with_delay(Duration::from_millis(40));
    let server = server_with(fake, settings);
    let ask = || async {
        let request = Request::post("/v1/completions").body(Body::from(r#"{"prompt":"a"}"#)).expect("a request");
        server.clone().oneshot(request).await.expect("a response")
    };
    // the fake runs four at once
    let replies = futures_util::future::join_all((0..5).map(|_| ask())).await;
    let late: Vec<_> = replies.iter().filter(|reply| reply.status() == 429).collect();
    assert_eq!(late.len(), 1);
    assert_eq!(late[0].headers()["retry-after"], "1");
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_place() {
    let fake = Fake::new(&"word ".repeat(40)).with_delay(Duration::from_millis(10));
    let live = Arc::clone(&fake.live);
    let app = App::new(vec![Arc::new(fake) as Arc<dyn Backend>], Settings::default());
    let server = router(app);
    let body = r#"{"prompt":"a","max_tokens":100,"stream":true}"#;
    let request = Request::post("/v1/completions").body(Body::from(body)).expect("a request");
    let response = server.clone().oneshot(request).await.expect("a response");
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(live.load(Ordering::SeqCst), 1);
    assert_eq!(get(&server, "/slots").await.as_array().map(Vec::len), Some(1));
    drop(response);
    tokio::time::sleep(Duration::from_millis(40)).await;
    assert_eq!(live.load(Ordering::SeqCst), 0, "the job ended within a step");
    assert_eq!(get(&server, "/slots").await, json!([]));
    let (_, metrics) = send(&server, "GET", "/metrics", "").await;
    assert!(metrics.contains("gemma_answers_cancelled_total 1"), "{metrics}");
}

#[tokio::test]
async fn embeddings_wait_for_their_turn_and_end_with_their_client() {
    let fake = Fake::new("x").with_delay(Duration::from_millis(10));
    let live = Arc::clone(&fake.live);
    let settings =
        Settings { parallel: 1, queue: 3, request_timeout: Duration::from_millis(400), ..Settings::default() };
    let server = router(App::new(vec![Arc::new(fake) as Arc<dyn Backend>], settings));
    let ask = |count: usize| {
        let (server, body) = (server.clone(), json!({"input": vec!["a"; count]}).to_string());
        async move { send(&server, "POST", "/v1/embeddings", &body).await.0.as_u16() }
    };
    let statuses = futures_util::future::join_all((0..8).map(|_| ask(3))).await;
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 4, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 4, "{statuses:?}");
    assert_eq!(ask(60).await, 503, "longer than the limit of a request");
    let gone = tokio::time::timeout(Duration::from_millis(30), ask(2000)).await;
    assert!(gone.is_err(), "the client went away");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(live.load(Ordering::SeqCst), 0, "the work ended at its next look");
    assert_eq!(get(&server, "/slots").await, json!([]));
}

#[tokio::test]
async fn several_models_are_told_apart_by_name() {
    let backends: Vec<Arc<dyn Backend>> = vec![Arc::new(Fake::new("one")), Arc::new(Fake::new("two").named("other"))];
    let server = router(App::new(backends, Settings::default()));
    let text = |reply: Value| reply["choices"][0]["text"].clone();
    assert_eq!(text(post(&server, "/v1/completions", json!({"prompt": "a"})).await), "one");
    assert_eq!(text(post(&server, "/v1/completions", json!({"prompt": "a", "model": "other"})).await), "two");
    let (status, reply) = refused(&server, "/v1/completions", json!({"prompt": "a", "model": "third"})).await;
    assert_eq!((status, &reply["error"]["code"]), (404, &json!("model_not_found")));
    assert!(reply["error"]["message"].as_str().is_some_and(|text| text.contains("fake/gemma, other")));
}

#[tokio::test]
async fn images_are_bounded() {
    let settings = Settings { image_limit: 4, images: 1, ..Settings::default() };
    let server = server_with(Fake::new("x"), settings);
    let url = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}});
    let ask = |parts: Value| json!({"messages": [{"role": "user", "content": parts}]});
    assert_eq!(refused(&server, "/v1/chat/completions", ask(json!([url]))).await.0, 413);
    let remote = json!([{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}]);
    assert_eq!(refused(&server, "/v1/chat/completions", ask(remote)).await.0, 400);
}

/// A small generator of numbers, so that a failure can be repeated.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit.max(1)
    }
}

#[tokio::test]
async fn mutated_requests_never_make_a_handler_fail() {
    let server = server(Fake::new("x"));
    let seeds = [
        (
            "/v1/completions",
            r#"{"prompt":["a",[1,2]],"max_tokens":3,"n":2,"stop":["x"],"logprobs":2,"echo":true,"logit_bias":{"5":-100},"stream":true}"#,
        ),
        (
            "/v1/chat/completions",
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}],"max_tokens":3,"tools":[{"function":{"name":"f"}}],"tool_choice":"auto","top_logprobs":1,"logprobs":true}"#,
        ),
        (
            "/infill",
            r#"{"input_prefix":"a","input_suffix":"b","prompt":"c","n_predict":2,"input_extra":[{"text":"t","filename":"f"}],"response_fields":["content","timings/prompt_n"]}"#,
        ),
        (
            "/api/generate",
            r#"{"prompt":"a","suffix":"b","options":{"num_predict":2,"stop":"x","seed":-1},"format":"","stream":false}"#,
        ),
        ("/tokenize", r#"{"content":"\u00e9 <bos>","add_special":true,"with_pieces":true}"#),
        (
            "/v1/responses",
            r#"{"input":[{"role":"user","content":"a"}],"text":{"format":{"type":"text"}},"max_output_tokens":2}"#,
        ),
    ];
    let pieces =
        ["null", "-1", "1e999", "\"\"", "[]", "{}", "99999999999999999999", "true", "\"\\u0000\"", "[[[[1]]]]", "0.5"];
    let mut numbers = Numbers(7);
    for round in 0..1200 {
        let (path, seed) = seeds[round % seeds.len()];
        let mut bytes = seed.as_bytes().to_vec();
        for _ in 0..=numbers.below(3) {
            let at = numbers.below(bytes.len());
            match numbers.below(4) {
                0 => bytes[at] = numbers.below(128) as u8,
                1 => drop(bytes.remove(at)),
                2 => {
                    let piece = pieces[numbers.below(pieces.len())].as_bytes();
                    let until = (at + numbers.below(12)).min(bytes.len());
                    bytes.splice(at..until, piece.iter().copied());
                }
                _ => bytes.truncate(at.max(1)),
            }
        }
        let body = String::from_utf8_lossy(&bytes).into_owned();
        let (status, text) = send(&server, "POST", path, &body).await;
        assert!(status.as_u16() < 500, "{path} {body}: {status} {text}");
    }
}
