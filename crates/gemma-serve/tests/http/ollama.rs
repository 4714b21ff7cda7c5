//! Ollama's protocol.

use serde_json::{Value, json};

use crate::fake::Fake;
use crate::wire::{get, lines, post, refused, server};

#[tokio::test]
async fn generate_streams_lines_unless_told_otherwise() {
    let server = server(Fake::new("one two three"));
    let pieces = lines(&server, "/api/generate", json!({"model": "m", "prompt": "count"})).await;
    let text: String = pieces.iter().map(|piece| piece["response"].as_str().expect("text")).collect();
    assert_eq!(text, "one two three");
    let last = pieces.last().expect("a last line");
    assert_eq!((&last["done"], &last["done_reason"]), (&json!(true), &json!("stop")));
    assert!(last["eval_count"].as_u64().is_some_and(|count| count > 0) && last["eval_duration"] == 500_000_000);
    assert!(pieces[..pieces.len() - 1].iter().all(|piece| piece["done"] == false));
    let whole =
        post(&server, "/api/generate", json!({"prompt": "count", "stream": false, "options": {"num_predict": 1}}))
            .await;
    assert_eq!((&whole["done_reason"], &whole["eval_count"]), (&json!("length"), &json!(1)));
}

#[tokio::test]
async fn a_suffix_fills_the_middle_and_raw_skips_the_template() {
    let server = server(Fake::new("7"));
    let count = |reply: &Value| reply["prompt_eval_count"].as_u64().expect("a count") as usize;
    let middle = post(&server, "/api/generate", json!({"prompt": "a = ", "suffix": "\n", "stream": false})).await;
    assert_eq!(middle["response"], "7");
    assert_eq!(count(&middle), 4 + Fake::new("").tokens("a = ").len() + Fake::new("").tokens("\n").len());
    let raw = post(&server, "/api/generate", json!({"prompt": "a", "raw": true, "stream": false})).await;
    assert_eq!(count(&raw), 1 + Fake::new("").tokens("a").len());
    let loaded = post(&server, "/api/generate", json!({"model": "m"})).await;
    assert_eq!(loaded["done_reason"], "load");
}

#[tokio::test]
async fn chat_answers_with_a_message_or_a_call() {
    let plain = server(Fake::new("Blue."));
    let messages = json!([{"role": "user", "content": "sky?"}]);
    let pieces = lines(&plain, "/api/chat", json!({"messages": messages})).await;
    let text: String = pieces.iter().map(|piece| piece["message"]["content"].as_str().expect("text")).collect();
    assert_eq!(text, "Blue.");
    let calling = server(Fake::new("{\"name\": \"f\", \"parameters\": {\"x\": 1}}"));
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    for stream in [false, true] {
        let body = json!({"messages": messages, "tools": tools, "stream": stream});
        let pieces = lines(&calling, "/api/chat", body).await;
        let last = pieces.last().expect("a last line");
        assert_eq!(
            last["message"]["tool_calls"],
            json!([{"function": {"name": "f", "arguments": {"x": 1}}}]),
            "{pieces:?}"
        );
    }
}

#[tokio::test]
async fn the_rest_of_the_api_is_there() {
    let server = server(Fake::new("x"));
    assert_eq!(get(&server, "/api/tags").await["models"][0]["name"], "fake/gemma");
    assert_eq!(get(&server, "/api/ps").await["models"][0]["model"], "fake/gemma");
    // Ollama's own client shows the first twelve characters, and fails where there are fewer
    for path in ["/api/tags", "/api/ps"] {
        let digest = get(&server, path).await["models"][0]["digest"].as_str().expect("a text").to_owned();
        assert!(digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()), "{digest}");
    }
    // Copilot in VS Code takes no server before 0.6.4
    let version = get(&server, "/api/version").await["version"].as_str().expect("a text").to_owned();
    let numbers: Vec<u32> = version.split('.').map(|part| part.parse().expect("a number")).collect();
    assert!(numbers >= vec![0, 6, 4], "{version}");
    let details = get(&server, "/api/tags").await["models"][0]["details"].clone();
    assert_eq!((&details["parameter_size"], &details["quantization_level"]), (&json!("1.00M"), &json!("BF16")));
    let shown = post(&server, "/api/show", json!({"model": "fake/gemma"})).await;
    assert_eq!(shown["model_info"]["gemma.context_length"], 1024);
    assert!(shown["capabilities"].as_array().is_some_and(|list| list.contains(&json!("insert"))));
    let embedded = post(&server, "/api/embed", json!({"input": ["a", "b"]})).await;
    assert_eq!(embedded["embeddings"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        post(&server, "/api/embeddings", json!({"prompt": "a"})).await["embedding"].as_array().map(Vec::len),
        Some(3)
    );
    let (status, reply) = refused(&server, "/api/pull", json!({"model": "x"})).await;
    assert!(status == 403 && reply["error"].is_string());
    let (status, reply) = refused(&server, "/api/chat", json!({"messages": [{"role": 1}]})).await;
    assert!(
        status == 400 && reply["error"].as_str().is_some_and(|error| error.starts_with("messages[0].role")),
        "{reply}"
    );
    for (options, words) in
        [(json!([1, 2]), "options: invalid type: sequence"), (json!({"temperature": "x"}), "options.temperature: ")]
    {
        let (status, reply) = refused(&server, "/api/generate", json!({"prompt": "a", "options": options})).await;
        assert!(status == 400 && reply["error"].as_str().is_some_and(|error| error.starts_with(words)), "{reply}");
    }
    // also where nothing is to be generated
    for (path, body) in [("/api/chat", json!({"format": "xml"})), ("/api/generate", json!({"format": "xml"}))] {
        let (status, reply) = refused(&server, path, body).await;
        assert!(status == 400 && reply["error"].as_str().is_some_and(|error| error.starts_with("format")), "{reply}");
    }
}
