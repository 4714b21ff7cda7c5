//! OpenAI's protocols, with what lm-evaluation-harness reads of them.

use serde_json::{Value, json};

use crate::fake::Fake;
use crate::wire::{events, get, post, refused, server};

const REPLY: &str = "def total(prices):\n    return 7\n";

#[tokio::test]
async fn a_completion_has_text_reason_and_usage() {
    let server = server(Fake::new(REPLY));
    let reply =
        post(&server, "/v1/completions", json!({"model": "any", "prompt": "def", "max_tokens": 100, "surprise": [1]}))
            .await;
    assert_eq!(reply["object"], "text_completion");
    assert_eq!(reply["model"], "fake/gemma");
    assert_eq!(reply["choices"][0], json!({"text": REPLY, "index": 0, "logprobs": null, "finish_reason": "stop"}));
    let usage = &reply["usage"];
    let (prompt, answer) =
        (usage["prompt_tokens"].as_u64().expect("a count"), usage["completion_tokens"].as_u64().expect("a count"));
    assert_eq!(answer as usize, Fake::new("").tokens(REPLY).len());
    assert_eq!(prompt as usize, 1 + Fake::new("").tokens("def").len(), "<bos> counts");
    assert_eq!(usage["total_tokens"], prompt + answer);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 1);
}

#[tokio::test]
async fn every_form_of_prompt_and_every_number_of_answers_keeps_its_order() {
    let server = server(Fake::new("x"));
    for (prompt, n, count) in
        [(json!("a"), 1, 1), (json!(["a", "b", "c"]), 1, 3), (json!([5, 6, 7]), 1, 1), (json!([[5, 6], [7]]), 2, 4)]
    {
        let reply = post(&server, "/v1/completions", json!({"prompt": prompt, "n": n})).await;
        let indices: Vec<u64> = reply["choices"]
            .as_array()
            .expect("choices")
            .iter()
            .map(|c| c["index"].as_u64().expect("an index"))
            .collect();
        assert_eq!(indices, (0..count).collect::<Vec<u64>>(), "{prompt}");
    }
}

/// What lm-evaluation-harness does with a loglikelihood request: slices by the context's length, drops the generated
/// token, sums, and compares each token with the likeliest.
fn loglikelihood(choice: &Value, context: usize) -> (f64, bool) {
    let arrays = &choice["logprobs"];
    let logprobs = arrays["token_logprobs"].as_array().expect("an array");
    let tops = arrays["top_logprobs"].as_array().expect("an array");
    assert_eq!(logprobs.len(), tops.len());
    let range = context..logprobs.len() - 1;
    let sum = logprobs[range.clone()].iter().map(|logprob| logprob.as_f64().expect("a number")).sum();
    let greedy = range.clone().all(|place| {
        let top = tops[place].as_object().expect("an object").values().map(|value| value.as_f64().expect("a number"));
        top.fold(f64::MIN, f64::max) == logprobs[place].as_f64().expect("a number")
    });
    (sum, greedy)
}

#[tokio::test]
async fn a_harness_reads_the_logprobs_of_a_batch_of_token_lists() {
    let server = server(Fake::new(REPLY));
    let prompts = [vec![10, 11, 12, 13, 14], vec![20, 21, 22]];
    let body = json!({"model": "m", "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": true});
    let reply = post(&server, "/v1/completions", body).await;
    for (prompt, context) in [(0, 2), (1, 1)] {
        let tokens = &prompts[prompt];
        let choice = &reply["choices"][prompt];
        // the prompt's tokens and the generated one; the <bos> that the server put in front is not shown
        assert_eq!(choice["logprobs"]["tokens"].as_array().map(Vec::len), Some(tokens.len() + 1));
        let (sum, greedy) = loglikelihood(choice, context);
        let expected: f64 =
            (context..tokens.len()).map(|place| f64::from(Fake::score(tokens[place], place + 1, 1).logprob)).sum();
        assert!((sum - expected).abs() < 1e-6, "{sum} is not {expected}");
        assert_eq!(greedy, (context..tokens.len()).all(|place| !(place + 1).is_multiple_of(3)));
    }
}

#[tokio::test]
async fn echo_shows_the_prompt_with_offsets_and_the_first_token_has_no_logprob() {
    let server = server(Fake::new("yes"));
    let bos = Fake::new("").tokens("<bos>")[0];
    let mut tokens = vec![bos];
    tokens.extend(Fake::new("").tokens("one two"));
    let reply =
        post(&server, "/v1/completions", json!({"prompt": tokens, "max_tokens": 0, "logprobs": 0, "echo": true})).await;
    let arrays = &reply["choices"][0]["logprobs"];
    assert_eq!(arrays["tokens"].as_array().map(Vec::len), Some(tokens.len()), "nothing was generated");
    assert_eq!(arrays["token_logprobs"][0], Value::Null);
    assert_eq!(arrays["top_logprobs"][0], Value::Null);
    assert!(arrays["token_logprobs"][1].is_number());
    assert_eq!(arrays["text_offset"][1], 5, "<bos> has five characters");
    let plain = post(&server, "/v1/completions", json!({"prompt": "one two", "echo": true})).await;
    assert_eq!(plain["choices"][0]["text"], "one twoyes");
    assert_eq!(plain["choices"][0]["logprobs"], Value::Null);
}

#[tokio::test]
async fn a_streamed_completion_is_the_whole_one_in_pieces() {
    let server = server(Fake::new(REPLY));
    let body = json!({"prompt": ["a", "b"], "n": 2, "max_tokens": 100, "stream": true, "stream_options": {"include_usage": true}});
    let mut chunks = events(&server, "/v1/completions", body).await;
    let last = chunks.pop().expect("the usage");
    assert_eq!(last["choices"], json!([]));
    assert!(last["usage"]["completion_tokens"].as_u64().is_some_and(|tokens| tokens > 0));
    for index in 0..4 {
        let mine: Vec<&Value> =
            chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == index).collect();
        let text: String = mine.iter().map(|choice| choice["text"].as_str().expect("text")).collect();
        assert_eq!(text, REPLY);
        let reasons: Vec<&Value> =
            mine.iter().map(|choice| &choice["finish_reason"]).filter(|reason| !reason.is_null()).collect();
        assert_eq!(reasons, [&json!("stop")]);
    }
}

#[tokio::test]
async fn stop_texts_and_limits_end_an_answer() {
    let server = server(Fake::new(REPLY));
    let reply = post(&server, "/v1/completions", json!({"prompt": "p", "max_tokens": 100, "stop": "return"})).await;
    assert_eq!(reply["choices"][0]["text"], "def total(prices):\n    ");
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    let reply = post(&server, "/v1/completions", json!({"prompt": "p", "max_tokens": 2, "stop": ["x y", "z"]})).await;
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    assert_eq!(reply["usage"]["completion_tokens"], 2);
}

#[tokio::test]
async fn a_suffix_fills_the_middle() {
    let server = server(Fake::new("7"));
    let reply = post(&server, "/v1/completions", json!({"prompt": "a = ", "suffix": "\n"})).await;
    assert_eq!(reply["choices"][0]["text"], "7");
    let fim = reply["usage"]["prompt_tokens"].as_u64().expect("a count") as usize;
    assert_eq!(fim, 4 + Fake::new("").tokens("a = ").len() + Fake::new("").tokens("\n").len());
}

#[tokio::test]
async fn a_chat_is_answered_whole_and_in_pieces() {
    let server = server(Fake::new("Blue."));
    let messages = json!([{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "sky?"}]}]);
    let reply = post(&server, "/v1/chat/completions", json!({"messages": messages})).await;
    assert_eq!(reply["object"], "chat.completion");
    assert_eq!(reply["choices"][0]["message"], json!({"role": "assistant", "content": "Blue.", "refusal": null}));
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    let chunks = events(&server, "/v1/chat/completions", json!({"messages": messages, "stream": true})).await;
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let text: String =
        chunks[1..].iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, "Blue.");
    assert_eq!(chunks.last().map(|chunk| &chunk["choices"][0]["finish_reason"]), Some(&json!("stop")));
}

#[tokio::test]
async fn chat_logprobs_have_tokens_bytes_and_alternatives() {
    let server = server(Fake::new("Blue."));
    let body = json!({"messages": [{"role": "user", "content": "sky?"}], "logprobs": true, "top_logprobs": 2});
    let reply = post(&server, "/v1/chat/completions", body).await;
    let content = reply["choices"][0]["logprobs"]["content"].as_array().expect("entries");
    let text: String = content.iter().map(|entry| entry["token"].as_str().expect("a token")).collect();
    assert_eq!(text, "Blue.");
    for entry in content {
        assert_eq!(entry["top_logprobs"].as_array().map(Vec::len), Some(2));
        let bytes: Vec<u8> = serde_json::from_value(entry["bytes"].clone()).expect("bytes");
        assert_eq!(String::from_utf8(bytes).expect("UTF-8"), entry["token"].as_str().expect("a token"));
    }
}

#[tokio::test]
async fn a_tool_call_is_read_from_the_answer() {
    let tools = json!([{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]);
    let server = server(Fake::new("{\"name\": \"weather\", \"parameters\": {\"city\": \"Rome\"}}"));
    let body = json!({"messages": [{"role": "user", "content": "weather in Rome?"}], "tools": tools, "max_tokens": 90});
    let reply = post(&server, "/v1/chat/completions", body.clone()).await;
    let choice = &reply["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("tool_calls"), &Value::Null));
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"], json!({"name": "weather", "arguments": "{\"city\":\"Rome\"}"}));
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let chunks = events(&server, "/v1/chat/completions", streamed).await;
    let deltas: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
    assert!(
        deltas.iter().all(|delta| delta["content"].as_str().unwrap_or_default().is_empty()),
        "no call leaks as text"
    );
    assert!(deltas.iter().any(|delta| delta["tool_calls"][0]["function"]["name"] == "weather"));
}

/// Schemas that pydantic makes of nested classes refer to their own `$defs`, which in the schema of a call lie deeper.
#[tokio::test]
async fn the_schema_of_a_required_call_may_refer_to_its_own_definitions() {
    let parameters = json!({
        "$defs": {"Person": {"type": "object", "properties": {"age": {"enum": [7]}}, "required": ["age"], "additionalProperties": false}},
        "type": "object", "properties": {"who": {"$ref": "#/$defs/Person"}}, "required": ["who"], "additionalProperties": false,
    });
    let one = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    let server = server(Fake::new("{\"name\":\"b\",\"parameters\":{\"who\":{\"age\":7}}}"));
    for (tools, choice) in [
        (json!([one("b")]), json!("required")),
        (json!([one("a"), one("b")]), json!("required")),
        (json!([one("a"), one("b")]), json!({"type": "function", "function": {"name": "b"}})),
    ] {
        let messages = json!([{"role": "user", "content": "q"}]);
        let body = json!({"messages": messages, "tools": tools, "tool_choice": choice.clone(), "max_tokens": 200});
        let reply = post(&server, "/v1/chat/completions", body).await;
        let call = &reply["choices"][0]["message"]["tool_calls"][0]["function"];
        // the model is held to the grammar, and where it may choose it chooses anything
        assert!(call["name"] == "b" || (call["name"] == "a" && choice == "required"), "{reply}");
        assert_eq!(call["arguments"], "{\"who\":{\"age\":7}}", "{reply}");
    }
}

#[tokio::test]
async fn a_text_that_only_looks_like_a_call_is_streamed_whole() {
    let server = server(Fake::new("{1} is a set."));
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let body =
        json!({"messages": [{"role": "user", "content": "q"}], "tools": tools, "stream": true, "max_tokens": 50});
    let chunks = events(&server, "/v1/chat/completions", body).await;
    let text: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, "{1} is a set.");
}

#[tokio::test]
async fn a_response_has_its_events_in_order() {
    let server = server(Fake::new("Blue."));
    let reply = post(&server, "/v1/responses", json!({"input": "sky?", "instructions": "be brief"})).await;
    assert_eq!((&reply["status"], &reply["output"][0]["content"][0]["text"]), (&json!("completed"), &json!("Blue.")));
    let body =
        json!({"input": [{"role": "user", "content": [{"type": "input_text", "text": "sky?"}]}], "stream": true});
    let (_, text) = crate::wire::send(&server, "POST", "/v1/responses", &body.to_string()).await;
    let kinds: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(
        kinds[..4],
        ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    );
    let end =
        ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"];
    assert_eq!(kinds[kinds.len() - 4..], end);
    assert!(kinds[4..kinds.len() - 4].iter().all(|kind| *kind == "response.output_text.delta"));
    let short = post(&server, "/v1/responses", json!({"input": "sky?", "max_output_tokens": 1})).await;
    assert_eq!(
        (&short["status"], &short["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
}

#[tokio::test]
async fn models_tokens_and_templates_can_be_asked_for() {
    let server = server(Fake::new("x"));
    assert_eq!(get(&server, "/v1/models").await["data"][0]["id"], "fake/gemma");
    assert_eq!(get(&server, "/v1/models/fake/gemma").await["max_model_len"], 1024);
    let llama = post(&server, "/tokenize", json!({"content": "a b"})).await;
    let vllm = post(&server, "/tokenize", json!({"prompt": "a b", "add_special_tokens": false})).await;
    assert_eq!(llama["tokens"], vllm["tokens"]);
    let bos = post(&server, "/tokenize", json!({"prompt": "a b"})).await;
    assert_eq!(bos["count"].as_u64(), vllm["count"].as_u64().map(|count| count + 1));
    // the harness asks for the id of <bos> by its name
    assert_eq!(
        post(&server, "/tokenize", json!({"prompt": "<bos>", "add_special_tokens": false})).await["tokens"],
        json!([2])
    );
    let text = post(&server, "/detokenize", json!({"tokens": llama["tokens"]})).await;
    assert_eq!(text, json!({"content": "a b", "prompt": "a b"}));
    let pieces = post(&server, "/tokenize", json!({"content": "a", "with_pieces": true})).await;
    assert_eq!(pieces["tokens"][0]["piece"], "a");
    let prompt = post(&server, "/apply-template", json!({"messages": [{"role": "user", "content": "hi"}]})).await;
    assert_eq!(prompt["prompt"], "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n");
    let info = get(&server, "/tokenizer_info").await;
    assert_eq!((&info["bos_token"], &info["eos_token"]), (&json!("<bos>"), &json!("<eos>")));
    assert_eq!(get(&server, "/health").await, json!({"status": "ok"}));
    assert_eq!(get(&server, "/props").await["total_slots"], 8);
    assert_eq!(get(&server, "/slots").await, json!([]));
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let server = server(Fake::new("x"));
    for (path, body, status, param) in [
        ("/v1/completions", json!({}), 400, "prompt"),
        ("/v1/completions", json!({"prompt": 7}), 400, "prompt"),
        ("/v1/completions", json!({"prompt": "a", "n": "two"}), 400, "n"),
        ("/v1/completions", json!({"prompt": "a", "max_tokens": -1}), 400, "max_tokens"),
        ("/v1/completions", json!({"prompt": "a", "logprobs": 50}), 400, "logprobs"),
        ("/v1/completions", json!({"prompt": "a", "logit_bias": {"x": 1}}), 400, "logit_bias"),
        ("/v1/completions", json!({"prompt": "a", "best_of": 1, "n": 2}), 400, "best_of"),
        ("/v1/completions", json!({"prompt": [99_999_999]}), 400, "prompt"),
        ("/v1/chat/completions", json!({"messages": []}), 400, "messages"),
        ("/v1/chat/completions", json!({"messages": [{"role": "king"}]}), 400, "messages[0].role"),
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": 1}]}), 400, "messages[0].content"),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 99}),
            400,
            "top_logprobs",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "x"}}),
            400,
            "response_format.type",
        ),
        // serde would read an object also from an array of its fields' values
        ("/v1/chat/completions", json!({"messages": [["user", "a"]]}), 400, "messages[0]"),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "assistant", "tool_calls": [{"function": ["f", "{}"]}]}]}),
            400,
            "messages[0].tool_calls[0].function",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "a"}], "tools": [["function", ["f"]]]}),
            400,
            "tools[0]",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "a"}], "response_format": ["text"]}),
            400,
            "response_format",
        ),
        ("/v1/completions", json!({"prompt": "a", "stream_options": [true]}), 400, "stream_options"),
        ("/infill", json!({"input_extra": [["text", "name"]]}), 400, "input_extra[0]"),
        ("/v1/responses", json!({"previous_response_id": "r"}), 400, "previous_response_id"),
        ("/detokenize", json!({"tokens": [99_999_999]}), 400, "tokens"),
    ] {
        let (code, reply) = refused(&server, path, body.clone()).await;
        assert_eq!((code, &reply["error"]["param"]), (status, &json!(param)), "{path} {body}: {reply}");
    }
    let (status, reply) = refused(&server, "/v1/completions", json!({"prompt": vec![5; 1100]})).await;
    assert_eq!((status, &reply["error"]["code"]), (400, &json!("context_length_exceeded")));
}

#[tokio::test]
async fn best_of_returns_the_likeliest_answers() {
    let server = server(Fake::new("x"));
    let reply = post(&server, "/v1/completions", json!({"prompt": "a", "n": 1, "best_of": 3})).await;
    assert_eq!(reply["choices"].as_array().map(Vec::len), Some(1));
    assert_eq!(reply["choices"][0]["logprobs"], Value::Null);
}

/// llama.cpp's clients whose address ends without `/v1`.
#[tokio::test]
async fn llama_cpps_paths_without_a_version_are_answered() {
    let server = server(Fake::new("Blue."));
    let chat = post(&server, "/chat/completions", json!({"messages": [{"role": "user", "content": "sky?"}]})).await;
    assert_eq!(chat["choices"][0]["message"]["content"], "Blue.");
    assert_eq!(post(&server, "/completions", json!({"prompt": "sky?"})).await["content"], "Blue.");
}
