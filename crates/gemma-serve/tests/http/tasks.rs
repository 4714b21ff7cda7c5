//! Fill in the middle, embeddings, moderation, vision, answers of a given form.

use base64::Engine;
use gemma_serve::http::backend::Capabilities;
use serde_json::{Value, json};

use crate::fake::Fake;
use crate::wire::{post, refused, send, server};

/// What llama.vim sends.
fn editor_request() -> Value {
    json!({
        "id_slot": 0, "input_prefix": "def f():\n", "input_suffix": "\n", "prompt": "    return ",
        "input_extra": [{"text": "x = 1\n", "filename": "a.py", "time": 12.5}],
        "n_predict": 128, "n_indent": 4, "top_k": 40, "top_p": 0.9, "samplers": ["top_k", "top_p", "infill"],
        "stop": [], "stream": false, "cache_prompt": true, "t_max_prompt_ms": 500, "t_max_predict_ms": 1000,
    })
}

#[tokio::test]
async fn an_editor_gets_its_middle_with_flattened_fields() {
    let server = server(Fake::new("7"));
    let reply = post(&server, "/infill", editor_request()).await;
    assert_eq!(
        (&reply["content"], &reply["stop_type"], &reply["truncated"]),
        (&json!("7"), &json!("eos"), &json!(false))
    );
    assert_eq!(reply["timings"]["predicted_n"], 1);
    let mut request = editor_request();
    request["response_fields"] =
        json!(["content", "timings/prompt_ms", "timings/predicted_n", "truncated", "tokens_cached"]);
    let (_, text) = send(&server, "POST", "/infill", &request.to_string()).await;
    assert!(text.contains("\"content\":\"7\"") && text.contains("\"timings/predicted_n\":1"), "{text}");
    request["n_cmpl"] = json!(3);
    assert_eq!(post(&server, "/infill", request).await.as_array().map(Vec::len), Some(3));
}

#[tokio::test]
async fn a_warm_up_call_generates_nothing_and_succeeds() {
    let server = server(Fake::new("7"));
    let mut request = editor_request();
    for (key, value) in [
        ("n_predict", json!(0)),
        ("input_prefix", json!("")),
        ("input_suffix", json!("")),
        ("prompt", json!("")),
        ("samplers", json!([])),
        ("response_fields", json!([""])),
    ] {
        request[key] = value;
    }
    assert_eq!(post(&server, "/infill", request).await, json!({}));
}

#[tokio::test]
async fn mistral_clients_fill_too_and_a_model_without_the_tokens_says_so() {
    let filled = server(Fake::new("7"));
    let reply = post(&filled, "/v1/fim/completions", json!({"prompt": "a = ", "suffix": "\n"})).await;
    assert_eq!(reply["choices"][0]["message"]["content"], "7");
    let plain = server(Fake::new("7").with_capabilities(Capabilities::default()));
    for path in ["/v1/fim/completions", "/infill", "/v1/completions"] {
        let (status, reply) = refused(&plain, path, json!({"prompt": "a", "suffix": "b"})).await;
        assert!(
            status == 400 && reply["error"]["message"].as_str().is_some_and(|text| text.contains("fake/gemma")),
            "{reply}"
        );
    }
}

#[tokio::test]
async fn llama_cpp_completions_are_answered() {
    let server = server(Fake::new("one two"));
    let reply = post(&server, "/completion", json!({"prompt": "count", "n_predict": -1})).await;
    assert_eq!((&reply["content"], &reply["stop"]), (&json!("one two"), &json!(true)));
    let (_, text) = send(&server, "POST", "/completion", r#"{"prompt":"count","stream":true}"#).await;
    let last = text.lines().rfind(|line| line.starts_with("data: ")).expect("events");
    assert!(last.contains("\"stop\":true") && last.contains("\"timings\""), "{last}");
    let shaped = json!({"prompt": "x", "n_predict": 40, "json_schema": {"type": "boolean"}});
    let content = post(&server, "/completion", shaped).await["content"].clone();
    assert!(content == "true" || content == "false", "{content}");
}

#[tokio::test]
async fn embeddings_are_floats_or_base64_and_can_be_shortened() {
    let server = server(Fake::new(""));
    let floats = post(&server, "/v1/embeddings", json!({"input": ["a", "b"], "model": "m"})).await;
    assert_eq!(floats["data"][1]["index"], 1);
    assert_eq!(floats["usage"]["prompt_tokens"], 6);
    let encoded = post(&server, "/v1/embeddings", json!({"input": [[5, 6]], "encoding_format": "base64"})).await;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(encoded["data"][0]["embedding"].as_str().expect("text"))
        .expect("base64");
    assert_eq!(
        bytes.chunks(4).map(|four| f32::from_le_bytes(four.try_into().expect("four"))).collect::<Vec<_>>(),
        [0.6, 0.0, 0.8]
    );
    let short = post(&server, "/v1/embeddings", json!({"input": "a", "dimensions": 1})).await;
    assert_eq!(short["data"][0]["embedding"], json!([1.0]));
    let (_, reply) = refused(&server, "/v1/embeddings", json!({"input": "a", "dimensions": 9})).await;
    assert_eq!(reply["error"]["param"], "dimensions");
}

#[tokio::test]
async fn moderation_flags_what_is_likelier_than_not() {
    let server = server(Fake::new(""));
    let reply = post(&server, "/v1/moderations", json!({"input": ["good", "bad"]})).await;
    assert_eq!((&reply["results"][0]["flagged"], &reply["results"][1]["flagged"]), (&json!(false), &json!(true)));
    assert_eq!(reply["results"][1]["category_scores"]["harassment"], 0.75);
    // parts are classified together
    let image = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}});
    let parts = json!([{"type": "text", "text": "good"}, image]);
    let reply = post(&server, "/v1/moderations", json!({"input": parts})).await;
    assert_eq!(reply["results"].as_array().map(Vec::len), Some(1));
    assert_eq!(reply["results"][0]["category_scores"]["harassment"], 0.5);
    for (input, status) in [(json!([]), 400), (json!(7), 400), (json!([[1]]), 400), (Value::Null, 400)] {
        assert_eq!(refused(&server, "/v1/moderations", json!({"input": input})).await.0, status, "{input}");
    }
}

#[tokio::test]
async fn vision_tasks_take_an_image_and_objects() {
    let server = server(Fake::new(""));
    let image = "data:image/png;base64,iVBORw0KGgo=";
    let caption = post(&server, "/v1/vision/caption", json!({"image": image})).await;
    assert_eq!((&caption["bytes"], &caption["task"]), (&json!(8), &json!("Caption(\"en\")")));
    let found = post(&server, "/v1/vision/detect", json!({"image": image, "objects": ["cat", "dog"]})).await;
    assert_eq!(found["task"], "Detect([\"cat\", \"dog\"])");
    for (path, body, param) in [
        ("/v1/vision/segment", json!({"image": image}), json!("objects")),
        ("/v1/vision/detect", json!({"objects": "cat"}), json!("image")),
        ("/v1/vision/paint", json!({"image": image}), Value::Null),
    ] {
        let (_, reply) = refused(&server, path, body).await;
        assert_eq!(reply["error"]["param"], param);
    }
}

#[tokio::test]
async fn answers_have_the_form_that_was_asked_for() {
    let server = server(Fake::new("not JSON at all"));
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}}, "required": ["n", "ok"], "additionalProperties": false});
    let ask = |format: Value| json!({"messages": [{"role": "user", "content": "q"}], "response_format": format, "max_tokens": 120});
    let format = json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}});
    let reply = post(&server, "/v1/chat/completions", ask(format)).await;
    let text = reply["choices"][0]["message"]["content"].as_str().expect("text");
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    // -0 is an integer of JSON that this parser takes for a fraction
    assert!(value["n"].as_f64().is_some_and(|n| n.fract() == 0.0) && value["ok"].is_boolean(), "{value}");
    let reply =
        post(&server, "/v1/completions", json!({"prompt": "q", "guided_choice": ["red", "blue"], "max_tokens": 50}))
            .await;
    assert!(["red", "blue"].contains(&reply["choices"][0]["text"].as_str().expect("text")), "{reply}");
    let reply =
        post(&server, "/v1/completions", json!({"prompt": "q", "grammar": "start: /[0-9]{3}/", "max_tokens": 50}))
            .await;
    let digits = reply["choices"][0]["text"].as_str().expect("text");
    assert!(digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit()), "{digits}");
}

#[tokio::test]
async fn a_grammar_that_is_wrong_or_explodes_is_refused_in_time() {
    let server = server(Fake::new("x"));
    let begun = std::time::Instant::now();
    let mut nested = json!({"type": "string"});
    for _ in 0..100 {
        nested = json!({"type": "array", "items": nested, "minItems": 100, "maxItems": 100});
    }
    for body in [
        json!({"prompt": "q", "grammar": "start: (("}),
        json!({"prompt": "q", "grammar": "nothing: \"a\""}),
        json!({"prompt": "q", "guided_regex": "(((a{1,1000}){1,1000}){1,1000}){1,1000}"}),
        json!({"prompt": "q", "json_schema": {"type": "string", "pattern": "(a|b|ab)*c{1,99999}(x+x+)+y{2000,4000}"}}),
        json!({"prompt": "q", "json_schema": {"type": "unheard of"}}),
        json!({"prompt": "q", "json_schema": nested}),
    ] {
        let (status, text) = send(&server, "POST", "/v1/completions", &body.to_string()).await;
        // one that can be used after all is no failure; one that takes the server down is
        assert!(status == 200 || status == 400, "{body}: {status} {text}");
    }
    assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
    let (status, reply) = refused(&server, "/v1/completions", json!({"prompt": "q", "grammar": "start: (("})).await;
    assert_eq!((status, &reply["error"]["param"]), (400, &json!("grammar")));
    // the compiler quotes the whole of what it refuses
    let long = json!({"prompt": "q", "guided_regex": format!("({}", "a".repeat(100_000))});
    let (status, reply) = refused(&server, "/v1/completions", long).await;
    assert_eq!(status, 400);
    assert!(reply.to_string().len() < 600, "{} bytes", reply.to_string().len());
}
