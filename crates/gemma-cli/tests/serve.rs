//! `gemma serve` and `gemma batch` as clients meet them: the program on a free port with the models that are built in.

mod program;
#[path = "program/server.rs"]
mod server;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use program::{gemma, printed, printed_json, refusal, text};
use server::{Server, events, read_all, request, status_of};

const BEFORE: &str = "def sum_prices(prices):\n    \"\"\"Return the sum of the prices.\"\"\"\n    total = 0\n    for price in prices:\n        ";
const AFTER: &str = "\n    return total\n";
const MIDDLE: &str = "total += price";

fn image_file() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/paligemma/demo/images");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("readable").path()).collect();
    files.sort();
    files.into_iter().find(|path| path.extension().is_some_and(|end| end == "png")).expect("an image")
}

/// Base64, as clients write images.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * place) & 63) as usize] as char;
            text.push(if place > three.len() { '=' } else { letter });
        }
    }
    text
}

fn data_url(file: &Path) -> String {
    format!("data:image/png;base64,{}", base64(&std::fs::read(file).expect("an image")))
}

fn greedy(prompt: &str, count: usize) -> Value {
    json!({"prompt": prompt, "max_tokens": count, "temperature": 0})
}

/// Completions that are asked for at once must be, bit for bit, what they are one after the other.
fn assert_same_in_company(server: &Server, requests: &[Value]) {
    let alone: Vec<Value> = requests.iter().map(|body| essence(&server.post("/v1/completions", body))).collect();
    let together: Vec<Value> = thread::scope(|scope| {
        let ask = |body| scope.spawn(move || essence(&server.post("/v1/completions", body)));
        let threads: Vec<_> = requests.iter().map(ask).collect();
        threads.into_iter().map(|thread| thread.join().expect("an answer")).collect()
    });
    for ((body, alone), together) in requests.iter().zip(&alone).zip(&together) {
        assert_eq!(alone, together, "{body}");
    }
}

#[test]
fn base64_is_spelled_right() {
    assert_eq!(["", "f", "fo", "foo", "foob"].map(|t| base64(t.as_bytes())), ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]);
}

#[test]
fn every_protocol_is_answered_by_the_built_in_models() {
    let server = Server::start(&["--model", "demo:codegemma", "--also", "demo", "--also", "demo:paligemma"]);
    let models = server.get_json("/v1/models");
    let names: Vec<&str> = models["data"].as_array().expect("a list").iter().filter_map(|m| m["id"].as_str()).collect();
    assert_eq!(names, ["demo:codegemma", "demo", "demo:paligemma"]);

    // the same greedy text as the program itself, whole, in a stream, and as token ids
    let whole = server
        .post("/v1/completions", &json!({"model": "demo", "prompt": "Once upon", "max_tokens": 12, "temperature": 0}));
    let said = printed_json(&mut gemma(["generate", "--temperature", "0", "-n", "12", "--json", "Once upon"]));
    assert_eq!(whole["choices"][0]["text"], said["text"], "{whole} {said}");
    let asked = json!({
        "model": "demo", "prompt": "Once upon", "max_tokens": 12, "temperature": 0, "stream": true,
        "stream_options": {"include_usage": true},
    });
    let stream = server.events("/v1/completions", &asked);
    let streamed: String = stream.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(Some(&*streamed), whole["choices"][0]["text"].as_str());
    assert_eq!(stream.last().map(|event| &event["usage"]["completion_tokens"]), Some(&json!(12)));

    // echo with logprobs: one entry a token, and the scores of `gemma score`
    let scored = server.post("/v1/completions", &json!({"model": "demo", "prompt": "Once upon a time", "max_tokens": 0, "echo": true, "logprobs": 1, "temperature": 0}));
    let logprobs = &scored["choices"][0]["logprobs"];
    let arrays: Vec<usize> = ["tokens", "token_logprobs", "top_logprobs", "text_offset"]
        .iter()
        .map(|name| logprobs[*name].as_array().expect("an array").len())
        .collect();
    assert!(arrays.iter().all(|length| *length == arrays[0] && *length > 1), "{arrays:?}");
    let sum: f64 = logprobs["token_logprobs"].as_array().expect("an array").iter().filter_map(Value::as_f64).sum();
    assert!(sum < -0.1, "{logprobs}");
    assert_eq!(scored["choices"][0]["text"], "Once upon a time");
    assert_eq!(scored["usage"]["completion_tokens"], 0);

    // a harness asks for one token more and leaves it out, also where the model would end
    for prompt in ["Once upon a time", "The cat sat on the mat."] {
        let body =
            json!({"model": "demo", "prompt": prompt, "max_tokens": 1, "echo": true, "logprobs": 1, "temperature": 0});
        let scored = server.post("/v1/completions", &body)["choices"][0]["logprobs"].clone();
        let count =
            server.post("/tokenize", &json!({"model": "demo", "content": prompt}))["tokens"].as_array().map(Vec::len);
        let found = scored["token_logprobs"].as_array().expect("an array");
        assert_eq!(Some(found.len()), count.map(|count| count + 1), "{scored}");
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(prompt.as_bytes()).expect("written");
        let said = printed_json(&mut gemma(["score", "--json", file.path().to_str().expect("UTF-8")]));
        let total = said["total_log_prob"].as_f64().expect("a number");
        let sum: f64 = found[..found.len() - 1].iter().filter_map(Value::as_f64).sum();
        assert!((sum - total).abs() < 2e-3, "{sum} {total}");
    }

    // chat, whole and streamed
    let chat = json!({
        "model": "demo", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who has a cat?"}],
        "max_tokens": 16, "temperature": 0, "logprobs": true, "top_logprobs": 2,
    });
    let reply = server.post("/v1/chat/completions", &chat);
    let answer = reply["choices"][0]["message"]["content"].as_str().expect("text").to_owned();
    assert_eq!(
        reply["choices"][0]["logprobs"]["content"].as_array().map(Vec::len),
        reply["usage"]["completion_tokens"].as_u64().map(|n| n as usize)
    );
    let mut streaming = chat.clone();
    streaming["stream"] = json!(true);
    let pieces = server.events("/v1/chat/completions", &streaming);
    let streamed: String = pieces.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(streamed, answer);

    // fill in the middle, as each client asks for it
    let fim =
        server.post("/v1/completions", &json!({"prompt": BEFORE, "suffix": AFTER, "max_tokens": 16, "temperature": 0}));
    assert_eq!(fim["choices"][0]["text"].as_str().map(str::trim_end), Some(MIDDLE), "{fim}");
    let infill = server.post("/infill", &json!({"input_prefix": BEFORE, "prompt": "", "input_suffix": AFTER, "n_predict": 16, "response_fields": ["content", "timings/prompt_n"]}));
    assert_eq!(infill["content"].as_str().map(str::trim_end), Some(MIDDLE), "{infill}");
    let mistral = server
        .post("/v1/fim/completions", &json!({"prompt": BEFORE, "suffix": AFTER, "max_tokens": 16, "temperature": 0}));
    assert_eq!(mistral["choices"][0]["message"]["content"].as_str().map(str::trim_end), Some(MIDDLE), "{mistral}");
    let ollama = server.post(
        "/api/generate",
        &json!({"prompt": BEFORE, "suffix": AFTER, "stream": false, "options": {"num_predict": 16, "temperature": 0}}),
    );
    assert_eq!(ollama["response"].as_str().map(str::trim_end), Some(MIDDLE), "{ollama}");
    let nanoseconds = |field: &str| ollama[field].as_u64().expect("a number");
    assert!(nanoseconds("total_duration") >= nanoseconds("prompt_eval_duration") + nanoseconds("eval_duration"));
    let warm = json!({"input_prefix": "", "input_suffix": "", "prompt": "", "n_predict": 0, "samplers": [], "response_fields": [""]});
    assert_eq!(server.post("/infill", &warm), json!({}));

    // the other text protocols
    let response = server.post(
        "/v1/responses",
        &json!({"model": "demo", "input": "Who has a cat?", "max_output_tokens": 8, "temperature": 0}),
    );
    assert_eq!(response["object"], "response");
    let (status, lines) = server.send(
        "/api/chat",
        &json!({"model": "demo", "messages": [{"role": "user", "content": "hi"}], "options": {"num_predict": 4}}),
    );
    assert_eq!(status, 200);
    let last: Value = serde_json::from_str(lines.lines().last().expect("a line")).expect("JSON");
    assert_eq!(last["done"], true);
    assert!(server.post("/completion", &json!({"prompt": "x = ", "n_predict": 4}))["content"].is_string());

    // tokens and templates
    let tokens = server.post("/tokenize", &json!({"content": "return best"}))["tokens"].clone();
    assert_eq!(server.post("/detokenize", &json!({"tokens": tokens}))["content"], "return best");
    let template =
        server.post("/apply-template", &json!({"model": "demo", "messages": [{"role": "user", "content": "hi"}]}));
    assert_eq!(template["prompt"], "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n");
    assert_eq!(server.get_json("/tokenizer_info")["bos_token"], "<bos>");

    // an answer of a given form
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}, "ok": {"type": "boolean"}}, "required": ["n", "ok"], "additionalProperties": false});
    let shaped = server.post("/v1/chat/completions", &json!({"model": "demo", "messages": [{"role": "user", "content": "x"}], "max_tokens": 60, "seed": 3, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}));
    let value: Value =
        serde_json::from_str(shaped["choices"][0]["message"]["content"].as_str().expect("text")).expect("JSON");
    assert!(value["n"].is_i64() && value["ok"].is_boolean(), "{value}");

    // images
    let image = data_url(&image_file());
    let caption = server.post("/v1/vision/caption", &json!({"model": "demo:paligemma", "image": image}));
    let said = printed(&mut gemma(["caption", image_file().to_str().expect("UTF-8")]));
    assert!(said.contains(caption["caption"].as_str().expect("text")), "{caption} {said}");
    let found = server.post(
        "/v1/vision/detect",
        &json!({"model": "demo:paligemma", "image": image, "objects": ["circle", "square"]}),
    );
    assert!(found["objects"].is_array() && found["image"]["width"].is_u64(), "{found}");
    let part = json!({"type": "image_url", "image_url": {"url": image}});
    let chat = json!({"model": "demo:paligemma", "messages": [{"role": "user", "content": [part, {"type": "text", "text": "caption en"}]}], "max_tokens": 24, "temperature": 0});
    let seen = server.post("/v1/chat/completions", &chat);
    assert_eq!(
        seen["choices"][0]["message"]["content"].as_str().map(str::trim),
        caption["caption"].as_str().map(str::trim)
    );

    // what a model cannot do is refused by name
    for (path, body, name) in [
        ("/v1/embeddings", json!({"input": "a"}), "EmbeddingGemma"),
        ("/v1/moderations", json!({"input": "a"}), "ShieldGemma"),
        ("/v1/vision/caption", json!({"image": image}), "PaliGemma"),
        ("/infill", json!({"model": "demo", "input_prefix": "a"}), "CodeGemma"),
    ] {
        let (status, error) = server.refused(path, &body);
        assert!(status == 400 && error["message"].as_str().is_some_and(|text| text.contains(name)), "{path}: {error}");
    }

    // how large the models are: as the program counts the tensors of their files
    let (models, tags) = (server.get_json("/v1/models"), server.get_json("/api/tags"));
    for (number, name) in names.iter().enumerate() {
        let inspected = printed_json(&mut gemma(["inspect", name, "--json"]))["parameters"].clone();
        assert!(inspected.as_u64() > Some(100_000), "{inspected}");
        let meta = &models["data"][number]["meta"];
        assert_eq!((&meta["n_params"], &meta["ftype"]), (&inspected, &json!("BF16")), "{name}");
        let shown = server.post("/api/show", &json!({"model": name}));
        assert_eq!(shown["model_info"]["general.parameter_count"], inspected, "{name}");
        for details in [&shown["details"], &tags["models"][number]["details"]] {
            assert_eq!(details["quantization_level"], "BF16", "{name}");
            let size = details["parameter_size"].as_str().expect("a text");
            let count: f64 = match size.split_at(size.len() - 1) {
                (count, "K") => 1e3 * count.parse::<f64>().expect("a number"),
                (count, "M") => 1e6 * count.parse::<f64>().expect("a number"),
                _ => panic!("{size}"),
            };
            assert!((count / inspected.as_f64().expect("a number") - 1.0).abs() < 0.01, "{size} {inspected}");
        }
    }
    assert_eq!(server.get_json("/props")["model_ftype"], "BF16");

    // what the server is and does
    assert_eq!(server.get_json("/health")["status"], "ok");
    assert_eq!(server.get_json("/slots"), json!([]));
    assert_eq!(server.get_json("/props")["total_slots"], 8);
    assert!(server.get_json("/openapi.json")["paths"]["/infill"].is_object());
    assert!(server.get("/").1.contains("<!doctype html") || server.get("/").1.contains("<!DOCTYPE html"));
    assert!(server.metric("gemma_generated_tokens_total") > 50.0);
    assert_eq!(server.metric("gemma_answers_failed_total"), 0.0);
    server.stop();
}

#[test]
fn a_server_that_drafts_answers_as_one_that_does_not() {
    let prompt = "Tom saw a dog. The dog saw Tom. Tom saw a dog. The dog saw Tom. Tom saw";
    let requests = [greedy(prompt, 40), json!({"prompt": prompt, "max_tokens": 40, "seed": 5, "temperature": 0.7})];
    let answers = |flags: &[&str]| {
        let server = Server::start(&[&["--model", "demo"], flags].concat());
        requests.each_ref().map(|body| essence(&server.post("/v1/completions", body)))
    };
    let plain = answers(&[]);
    for flags in [&["--prompt-lookup"][..], &["--draft-model", "demo"], &["--draft-model", "demo", "--prompt-lookup"]] {
        assert_eq!(answers(flags), plain, "{flags:?}");
    }
}

/// What the reply to a request says, without ids and times.
fn essence(reply: &Value) -> Value {
    json!([reply["choices"], reply["usage"]["completion_tokens"]])
}

#[test]
fn sixty_four_answers_in_company_equal_each_answer_alone() {
    let server = Server::start(&["--parallel", "64", "--prefix-cache", "0", "--batch-invariant"]);
    let words =
        ["Once upon a time", "Mia had two", "The cat", "What is", "A very long way", "Tom and Ben", "In the", "7"];
    let requests: Vec<Value> = (0..64)
        .map(|number| {
            let prompt = words[number % 8].repeat(1 + number / 8 * 3);
            let mut body = json!({"prompt": prompt, "max_tokens": 4 + number % 29, "logprobs": 2});
            match number % 4 {
                0 => body["temperature"] = json!(0),
                1 => {
                    body["seed"] = json!(number);
                    body["top_p"] = json!(0.9);
                }
                2 => {
                    body["seed"] = json!(number);
                    body["temperature"] = json!(1.5);
                    body["frequency_penalty"] = json!(0.5);
                }
                _ => {
                    body["temperature"] = json!(0);
                    body["echo"] = json!(true);
                }
            }
            body
        })
        .collect();
    assert_same_in_company(&server, &requests);
    assert_eq!(server.metric("gemma_answers_completed_total"), 128.0);
    server.stop();
}

/// Writes an adapter of random factors for every attention of the demo model.
fn write_adapter(folder: &Path, seed: usize) -> String {
    let checkpoint = gemma_auto::demo_checkpoint(gemma_auto::Family::Gemma).expect("sound").expect("built in");
    let config = gemma_weights::AdapterConfig {
        of_encoder: false,
        rank: 4,
        alpha: 8.0,
        rslora: false,
        targets: gemma_weights::Targets::All,
        rank_pattern: Default::default(),
        alpha_pattern: Default::default(),
        base_model: None,
    };
    let values = |count: usize, size: f32| -> Vec<f32> {
        (0..count).map(|place| (((place * 37 + seed * 101) % 211) as f32 / 105.0 - 1.0) * size).collect()
    };
    let factors = checkpoint.tensors().filter_map(|(name, tensor)| {
        let module = name.strip_suffix(".weight").filter(|module| module.contains("self_attn"))?;
        let &[out, inputs] = tensor.shape.as_slice() else { return None };
        Some((module.to_owned(), [4, inputs], values(4 * inputs, 0.05), [out, 4], values(4 * out, 0.1)))
    });
    gemma_weights::save_adapter(folder, &config, factors, false).expect("written");
    folder.to_str().expect("UTF-8").to_owned()
}

#[test]
fn requests_with_different_adapters_share_batches_and_get_what_each_gets_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let [first, second] = [1, 2].map(|seed| write_adapter(&folder.path().join(format!("adapter-{seed}")), seed));
    let lora = [format!("first={first}"), format!("second={second}=0.5")];
    let server = Server::start(&["--batch-invariant", "--parallel", "24", "--lora", &lora[0], "--lora", &lora[1]]);
    let models = server.get_json("/v1/models");
    let of = |field: &str| models["data"].as_array().expect("a list").iter().map(|one| one[field].clone()).collect();
    let (ids, parents): (Vec<Value>, Vec<Value>) = (of("id"), of("parent"));
    assert_eq!(ids, ["demo", "first", "second"]);
    assert_eq!(parents, [Value::Null, json!("demo"), json!("demo")]);
    assert_eq!(server.get_json("/lora-adapters")[1]["path"], json!(second));

    // by name, what the program says with the adapter alone
    let say = |body: &Value| server.post("/v1/completions", body)["choices"][0]["text"].clone();
    let program = |adapter: &[&str]| {
        let fixed = ["generate", "--batch-invariant", "--temperature", "0", "-n", "24", "--json", "Once upon"];
        printed_json(&mut gemma(fixed.into_iter().chain(adapter.iter().copied())))["text"].clone()
    };
    let half = format!("{second}=0.5");
    let body = |model: &str| json!({"model": model, "prompt": "Once upon", "max_tokens": 24, "temperature": 0});
    let base = say(&body("demo"));
    assert_eq!(base, program(&[]));
    assert_eq!(say(&body("first")), program(&["--adapter", &first]));
    assert_eq!(say(&body("second")), program(&["--adapter", &half]));
    assert!(base != say(&body("first")) && say(&body("first")) != say(&body("second")), "adapters change the text");
    // by number, as with llama.cpp
    let numbered = json!({"prompt": "Once upon", "n_predict": 24, "temperature": 0, "lora": [{"id": 1, "scale": 0.5}]});
    assert_eq!(server.post("/completion", &numbered)["content"], program(&["--adapter", &half]));

    // by default, for requests that choose nothing
    let set = |scales: Value| assert_eq!(server.post("/lora-adapters", &scales), json!({"success": true}));
    set(json!([{"id": 1, "scale": 0.5}]));
    assert_eq!(server.get_json("/lora-adapters")[1]["scale"], 0.5);
    assert_eq!(say(&body("demo")), program(&["--adapter", &half]));
    assert_eq!(say(&body("first")), program(&["--adapter", &first]), "a name is a choice");
    assert_eq!(say(&json!({"prompt": "Once upon", "max_tokens": 24, "temperature": 0, "lora": []})), base);
    set(json!([]));
    assert_eq!(say(&body("demo")), base);

    // in company as alone, bit for bit
    let words = ["Once upon a time", "Mia had two", "The cat", "What is", "A very long way", "In the"];
    let requests: Vec<Value> = (0..48)
        .map(|number| {
            let prompt = words[number % 6].repeat(1 + number % 7);
            let mut body = json!({"prompt": prompt, "max_tokens": 4 + number % 13, "logprobs": 2, "seed": number});
            match number % 5 {
                0 => {}
                1 => body["model"] = json!("first"),
                2 => body["model"] = json!("second"),
                3 => body["lora"] = json!([{"id": 0, "scale": 0.3}]),
                _ => body["lora"] = json!([{"id": 1, "scale": 1.0}, {"id": 0, "scale": 1.0}]),
            }
            body
        })
        .collect();
    assert_same_in_company(&server, &requests);
    assert_eq!(server.refused("/v1/completions", &json!({"prompt": "a", "lora": [{"id": 2, "scale": 1}]})).0, 400);
    assert_eq!(server.refused("/v1/completions", &json!({"prompt": "a", "model": "third"})).0, 404);
    server.stop();
    // two of one name, and a folder that is none
    for (arguments, words) in [
        (vec!["--lora", &lora[0], "--lora", &lora[0]], "are called first"),
        (vec!["--lora", "x=./no/such/folder"], "no/such/folder"),
        (vec!["--lora", "./no/name"], "must be a name"),
    ] {
        let line = refusal(&mut gemma(["serve", "--port", "0"].into_iter().chain(arguments)));
        assert!(line.contains(words), "{line}");
    }
}

#[test]
fn models_are_loaded_on_demand_and_unloaded_by_a_limit() {
    let arguments = [
        "--also",
        "code=demo:codegemma",
        "--also",
        "endless=demo:recurrentgemma",
        "--also",
        "nothing=./no/such/folder",
        // two of the three, of 4, 16 and 6 MiB, fit; the KV caches are more than half of that
        "--prefix-cache",
        "1",
        "--parallel",
        "2",
        "--model-memory",
        "23",
    ];
    let server = Server::start(&arguments);
    let states = || -> Vec<Value> {
        let models = server.get_json("/v1/models");
        models["data"].as_array().expect("a list").iter().map(|model| model["status"]["value"].clone()).collect()
    };
    let say = |model: &str| {
        let body = json!({"model": model, "prompt": "Once upon", "max_tokens": 8, "temperature": 0});
        server.post("/v1/completions", &body)["choices"][0]["text"].clone()
    };
    assert_eq!(states(), ["loaded", "unloaded", "unloaded", "unloaded"]);
    let first = say("demo");
    let code = say("code");
    assert_eq!(states(), ["loaded", "loaded", "unloaded", "unloaded"]);
    let endless = say("endless");
    assert_eq!(states()[2], "loaded");
    assert!(states().iter().filter(|state| **state == "loaded").count() < 3, "{:?}", states());
    let (status, error) = server.refused("/v1/completions", &json!({"model": "nothing", "prompt": "a"}));
    assert_eq!((status, &error["code"]), (404, &json!("model_not_found")), "{error}");
    assert_eq!(states()[3], "failed");
    // requests for all of them at once, while each takes the place of another
    thread::scope(|scope| {
        for number in 0..24 {
            let (model, text) = [("demo", &first), ("code", &code), ("endless", &endless)][number % 3];
            let say = &say;
            scope.spawn(move || assert_eq!(say(model), *text, "{model}"));
        }
    });
    assert_eq!(server.metric("gemma_answers_failed_total"), 0.0);
    assert!(server.metric("gemma_model_bytes") <= 23.0 * 1024.0 * 1024.0);
    server.stop();
    let line = refusal(&mut gemma(["serve", "--port", "0", "--model-memory", "1"]));
    assert!(line.contains("--model-memory is 1"), "{line}");
    // weights that fit, with KV caches that do not
    let line = refusal(&mut gemma(["serve", "--port", "0", "--model-memory", "500"]));
    assert!(line.contains("2 for weights, up to 1033 for KV caches, 1 for the tokenizer"), "{line}");
}

#[test]
fn a_client_that_goes_away_frees_its_place() {
    let server = Server::start(&["--parallel", "1"]);
    for stream in [true, false] {
        let body = json!({"prompt": "Once", "max_tokens": 3000, "ignore_eos": true, "stream": stream}).to_string();
        let mut client = server.raw(&request("/v1/completions", &body));
        server.wait(Duration::from_secs(20), |server| server.get_json("/slots")[0]["is_processing"] == true);
        if stream {
            // the first tokens have come
            let mut some = [0; 400];
            assert!(client.read(&mut some).expect("a beginning") > 0);
        }
        drop(client);
        // the next request has the only place at once
        let begun = Instant::now();
        server.post("/v1/completions", &greedy("Once", 1));
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert_eq!(server.get_json("/slots"), json!([]));
    }
    assert!(server.metric("gemma_answers_cancelled_total") >= 1.0);
    server.stop();
}

#[test]
fn a_server_that_is_told_to_stop_finishes_what_runs() {
    let mut server = Server::start(&["--parallel", "4"]);
    let body =
        json!({"prompt": "Once", "max_tokens": 150, "ignore_eos": true, "stream": true, "temperature": 0}).to_string();
    let clients: Vec<_> = (0..8).map(|_| server.raw(&request("/v1/completions", &body))).collect();
    server.wait(Duration::from_secs(20), |server| server.get_json("/slots").as_array().map(Vec::len) == Some(8));
    server.terminate();
    let texts: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = clients.into_iter().map(|client| scope.spawn(|| read_all(client))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a reply")).collect()
    });
    for text in &texts {
        let (_, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(body.contains("\"finish_reason\":\"length\"") && body.contains("data: [DONE]"), "{text}");
    }
    assert_eq!(server.ended(Duration::from_secs(30)).code(), Some(0));
}

#[test]
fn answers_beyond_the_time_for_shutting_down_end_properly() {
    let mut server = Server::start(&["--shutdown-timeout", "0.3"]);
    let body = json!({"prompt": "Once", "max_tokens": 4000, "ignore_eos": true, "stream": true}).to_string();
    let client = server.raw(&request("/v1/completions", &body));
    server.wait(Duration::from_secs(20), |server| server.get_json("/slots")[0]["generated_tokens"].as_u64() > Some(1));
    let begun = Instant::now();
    server.terminate();
    let text = read_all(client);
    assert!(text.contains("\"finish_reason\":\"length\"") && text.contains("data: [DONE]"), "{text}");
    assert_eq!(server.ended(Duration::from_secs(20)).code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn hostile_clients_are_refused_and_others_are_served() {
    let server = Server::start(&["--parallel", "2", "--queue", "2", "--body-limit", "1", "--cache-memory", "64"]);
    let timed = |limit: u64, work: &mut dyn FnMut()| {
        let begun = Instant::now();
        work();
        assert!(begun.elapsed() < Duration::from_secs(limit), "{:?}", begun.elapsed());
    };
    let deep = format!("{{\"prompt\":{}{}}}", "[".repeat(200), "]".repeat(200));
    let many: String = (0..200).map(|number| format!("x-{number}: y\r\n")).collect();
    for (bytes, wanted) in [
        (request("/v1/completions", &deep), &[400][..]),
        (request("/v1/completions", &format!("{{\"prompt\":\"{}\"}}", "a".repeat(2 << 20))), &[413]),
        (b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2147483648\r\n\r\n{".to_vec(), &[413]),
        (format!("GET /health HTTP/1.1\r\nhost: x\r\n{many}\r\n").into_bytes(), &[431, 400, 0]),
        (format!("GET /health HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(100_000)).into_bytes(), &[431, 400, 0]),
        (b"\x01\x02\x03\r\n\r\n".to_vec(), &[400, 0]),
        (b"GET /../../etc/passwd HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(), &[404]),
        (b"GET /v1/models/%2e%2e%2f%2e%2e HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(), &[404]),
        (request("/v1/completions", "{\"prompt\":\"a\""), &[400]),
        (request("/v1/completions", ""), &[400]),
    ] {
        timed(15, &mut || {
            let stream = server.raw(&bytes);
            let _ = stream.set_read_timeout(Some(Duration::from_secs(12)));
            let reply = read_all(stream);
            assert!(wanted.contains(&status_of(&reply)), "{wanted:?}: {reply}");
        });
    }
    // grammars that explode
    for body in [
        json!({"prompt": "q", "max_tokens": 4, "guided_regex": "(((a{1,1000}){1,1000}){1,1000}){1,1000}"}),
        json!({"prompt": "q", "max_tokens": 4, "json_schema": {"type": "string", "pattern": "(a|b|ab)*c{1,99999}(x+x+)+y{2000,4000}"}}),
        json!({"prompt": "q", "max_tokens": 4, "grammar": "start: (("}),
    ] {
        timed(20, &mut || {
            let (status, text) = server.send("/v1/completions", &body);
            assert!(status == 200 || status == 400, "{status}: {text}");
        });
    }
    // numbers out of range name their field
    for (field, value) in [
        ("temperature", json!(-1)),
        ("max_tokens", json!(-1)),
        ("n", json!(0)),
        ("top_p", json!("x")),
        ("logprobs", json!(99)),
        ("stop", json!([1])),
    ] {
        let mut body = greedy("a", 2);
        body[field] = value;
        let (status, error) = server.refused("/v1/completions", &body);
        assert_eq!(status, 400, "{field}");
        assert!(error["param"].as_str().is_some_and(|param| param.starts_with(field)), "{field}: {error}");
    }
    assert_eq!(
        server.refused("/v1/completions", &json!({"prompt": vec![5; 100_000]})).0,
        400,
        "longer than the context"
    );
    assert_eq!(server.refused("/v1/completions", &json!({"prompt": "a", "n": 5})).0, 413, "more answers than places");
    // a full server says when to come back
    let body = json!({"prompt": "Once", "max_tokens": 4000, "ignore_eos": true, "stream": true}).to_string();
    let busy: Vec<_> = (0..4).map(|_| server.raw(&request("/v1/completions", &body))).collect();
    server.wait(Duration::from_secs(20), |server| server.get_json("/slots").as_array().map(Vec::len) == Some(4));
    let reply = read_all(server.raw(&request("/v1/completions", &body)));
    assert_eq!(status_of(&reply), 429, "{reply}");
    assert!(reply.to_lowercase().contains("\r\nretry-after: "), "{reply}");
    drop(busy);
    server.wait(Duration::from_secs(20), |server| server.get_json("/slots") == json!([]));
    assert_eq!(server.post("/v1/completions", &greedy("Once", 3))["usage"]["completion_tokens"], 3);
    server.stop();
}

#[test]
fn without_the_key_nothing_is_answered() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys");
    std::fs::write(&file, "first\n\n second \n").expect("written");
    let server = Server::start(&["--api-key-file", file.to_str().expect("UTF-8")]);
    let ask = |header: &str| {
        let bytes = format!("GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}\r\n");
        status_of(&read_all(server.raw(bytes.as_bytes())))
    };
    for (header, status) in [
        ("", 401),
        ("authorization: Bearer wrong\r\n", 401),
        ("authorization: Bearer firs\r\n", 401),
        ("authorization: Bearer first\r\n", 200),
        ("authorization: Bearer second\r\n", 200),
        ("x-api-key: second\r\n", 200),
    ] {
        assert_eq!(ask(header), status, "{header}");
    }
    assert_eq!(server.get("/health").0, 200);
    server.stop();
    std::fs::write(&file, "\n").expect("written");
    let line = refusal(&mut gemma(["serve", "--port", "0", "--api-key-file", file.to_str().expect("UTF-8")]));
    assert!(line.contains("API key is empty"), "{line}");
}

#[test]
fn a_port_that_is_taken_is_said_before_a_model_is_loaded() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let line = refusal(&mut gemma(["serve", "--port", &port, "--model", "./no/such/model"]));
    assert!(line.contains(&port), "{line}");
}

/// The folder of a reference model; prints that the test was skipped when there is none.
fn reference(name: &str) -> Option<String> {
    let Some(folder) = std::env::var_os("GEMMA_TEST_SHARED") else {
        println!("skipped: GEMMA_TEST_SHARED is not set");
        return None;
    };
    Some(Path::new(&folder).join("reference/newer").join(name).to_str().expect("UTF-8").to_owned())
}

fn close(found: &Value, expected: &Value, tolerance: f64) {
    let (found, expected) = (found.as_array().expect("numbers"), expected.as_array().expect("numbers"));
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!((a.as_f64().expect("a number") - b.as_f64().expect("a number")).abs() <= tolerance, "{a} {b}");
    }
}

#[test]
fn embeddings_are_those_of_the_program() {
    let Some(model) = reference("embeddinggemma/f32") else { return };
    let server = Server::start(&["--model", &model]);
    let texts = ["the tin", "in the tin"];
    for task in ["none", "query", "document"] {
        let arguments = ["embed", "--model", &model, "--task", task, "--json"].into_iter().chain(texts);
        let said = printed_json(&mut gemma(arguments));
        let reply = server.post("/v1/embeddings", &json!({"input": texts, "task": task}));
        for row in 0..2 {
            close(&reply["data"][row]["embedding"], &said["embeddings"][row], 1e-6);
        }
        let tokens: u64 = said["tokens"].as_array().expect("numbers").iter().filter_map(Value::as_u64).sum();
        assert_eq!(reply["usage"]["prompt_tokens"], tokens);
    }
    // beside a model that makes text, loaded when it is first named
    let both = Server::start(&["--also", &format!("vectors={model}"), "--model-memory", "9000"]);
    let reply = both.post("/v1/embeddings", &json!({"model": "vectors", "input": texts}));
    assert_eq!(reply["data"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        both.post("/v1/completions", &json!({"prompt": "Once", "max_tokens": 2}))["usage"]["completion_tokens"],
        2
    );
    drop(both);
    let plain = server.post("/v1/embeddings", &json!({"input": "the tin"}));
    let none = server.post("/v1/embeddings", &json!({"input": ["the tin"], "task": "none"}));
    assert_eq!(plain["data"], none["data"], "without a task the text is read as it is");
    let ollama = server.post("/api/embed", &json!({"input": "the tin"}));
    close(&ollama["embeddings"][0], &plain["data"][0]["embedding"], 1e-6);
    let short = server.post("/v1/embeddings", &json!({"input": "the tin", "dimensions": 12}));
    assert_eq!(short["data"][0]["embedding"].as_array().map(Vec::len), Some(12));
    assert_eq!(server.refused("/v1/embeddings", &json!({"input": "a", "task": "poetry"})).1["param"], "task");
    assert_eq!(server.refused("/v1/embeddings", &json!({"input": [[99_999_999]]})).1["param"], "input");
    assert_eq!(server.refused("/v1/completions", &json!({"prompt": "a"})).0, 400);
    server.stop();
}

#[test]
fn moderation_is_that_of_the_program() {
    let Some(model) = reference("shieldgemma/f32") else { return };
    let server = Server::start(&["--model", &model]);
    assert_eq!(server.get_json("/v1/models")["data"][0]["capabilities"]["moderate"], true);
    let texts = ["the tin", "in the tin"];
    let said = printed_json(&mut gemma(["moderate", "--model", &model, "--json"].into_iter().chain(texts)));
    let reply = server.post("/v1/moderations", &json!({"input": texts}));
    let names = said["guidelines"].as_array().expect("names");
    for (place, (name, value)) in names.iter().zip(said["violates"].as_array().expect("numbers")).enumerate() {
        let text = place / (names.len() / 2);
        let found =
            reply["results"][text]["category_scores"][name.as_str().expect("a name")].as_f64().expect("a score");
        assert!((found - value.as_f64().expect("a number")).abs() < 1e-5, "{name}: {found} {value}");
    }
    server.stop();
}

#[test]
fn gemma_3_sees_images_in_a_chat() {
    let Some(model) = reference("gemma3_vision/f32") else { return };
    let file = Path::new(&model).join("main.image0.png");
    let server = Server::start(&["--model", &model]);
    assert_eq!(server.get_json("/v1/models")["data"][0]["capabilities"]["images"], true);
    let said = printed_json(&mut gemma([
        "generate",
        "--model",
        &model,
        "--image",
        file.to_str().expect("UTF-8"),
        "--chat",
        "--temperature",
        "0",
        "-n",
        "10",
        "--json",
        "the tin",
    ]));
    let part = json!({"type": "image_url", "image_url": {"url": data_url(&file)}});
    let ask =
        |parts: Value| json!({"messages": [{"role": "user", "content": parts}], "max_tokens": 10, "temperature": 0});
    let with = server.post("/v1/chat/completions", &ask(json!([part, {"type": "text", "text": "the tin"}])));
    assert_eq!(with["choices"][0]["message"]["content"], said["text"], "{with} {said}");
    let without = server.post("/v1/chat/completions", &ask(json!("the tin")));
    let difference = with["usage"]["prompt_tokens"].as_u64().zip(without["usage"]["prompt_tokens"].as_u64());
    assert!(difference.is_some_and(|(with, without)| with >= without + 16), "{difference:?}");
    // a chat of several turns with two images
    let turns = json!({"messages": [
        {"role": "user", "content": [part, {"type": "text", "text": "the tin"}]},
        {"role": "assistant", "content": "in"},
        {"role": "user", "content": [{"type": "text", "text": "and"}, part]},
    ], "max_tokens": 4, "temperature": 0});
    assert!(server.post("/v1/chat/completions", &turns)["choices"][0]["message"]["content"].is_string());
    let broken = json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{}", base64(b"\x89PNG\r\n\x1a\nbroken"))}});
    assert_eq!(server.refused("/v1/chat/completions", &ask(json!([broken]))).0, 400);
    server.stop();
}

fn batch_lines(count: usize) -> String {
    let line = |number: usize| {
        let body = json!({"prompt": format!("Once {number}"), "max_tokens": 5, "temperature": 0});
        format!(
            "{}\n",
            json!({"custom_id": format!("r-{number}"), "method": "POST", "url": "/v1/completions", "body": body})
        )
    };
    (0..count).map(line).collect()
}

fn ids(text: &str) -> Vec<String> {
    let id = |line: &str| {
        serde_json::from_str::<Value>(line).expect("JSON")["custom_id"].as_str().expect("an id").to_owned()
    };
    let mut ids: Vec<String> = text.lines().map(id).collect();
    ids.sort();
    ids
}

#[test]
fn a_batch_that_was_killed_goes_on_and_answers_each_line_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (input, output) = (path("in.jsonl"), path("out.jsonl"));
    std::fs::write(&input, batch_lines(400)).expect("written");
    let wanted = ids(&batch_lines(400));
    let mut killed = gemma(["batch", &input, "--out", &output])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let begun = Instant::now();
    while std::fs::metadata(&output).map_or(0, |file| file.len()) < 3000 {
        assert!(begun.elapsed() < Duration::from_secs(60), "no result came");
        thread::sleep(Duration::from_millis(2));
    }
    // two runs cannot write to one file
    let other = refusal(&mut gemma(["batch", &input, "--out", &output]));
    assert!(other.contains("another run"), "{other}");
    killed.kill().expect("killed");
    killed.wait().expect("ended");
    let summary = printed_json(&mut gemma(["batch", &input, "--out", &output, "--json"]));
    assert_eq!(summary["requests"], 400);
    assert!(summary["skipped"].as_u64() > Some(0), "{summary}");
    assert_eq!(ids(&std::fs::read_to_string(&output).expect("readable")), wanted);
    let again = printed_json(&mut gemma(["batch", &input, "--out", &output, "--json"]));
    assert_eq!((&again["skipped"], &again["answered"]), (&json!(400), &json!(0)));
    // the same through a pipe
    let mut piped = gemma(["batch", "-", "--out", "-"]);
    let mut child =
        piped.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    child.stdin.take().expect("a pipe").write_all(batch_lines(20).as_bytes()).expect("written");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(ids(&text(&output.stdout)), ids(&batch_lines(20)));
}

#[test]
fn a_load_of_every_kind_leaves_nothing_behind() {
    let server = Server::start(&["--model", "demo:codegemma", "--parallel", "16", "--prefix-cache", "16"]);
    let prompts: Vec<String> = (0..12).map(|number| format!("def f{number}(values):\n    return ")).collect();
    let counts = [1, 8, 24];
    let alone: Vec<Vec<Value>> = prompts
        .iter()
        .map(|prompt| {
            counts
                .map(|count| server.post("/v1/completions", &greedy(prompt, count))["choices"][0]["text"].clone())
                .to_vec()
        })
        .collect();
    let image = format!("data:image/png;base64,{}", "A".repeat(23 << 20));
    let image =
        json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": image}}]}]})
            .to_string();
    let one = |number: usize| {
        // a sequence without a period that matters here
        let draw = (number.wrapping_mul(2_654_435_761) >> 7) % 100;
        let (prompt, count) = (number % 12, number / 12 % 3);
        let mut body = greedy(&prompts[prompt], counts[count]);
        match draw {
            0..40 => {
                let reply = server.post("/v1/completions", &body);
                assert_eq!(reply["choices"][0]["text"], alone[prompt][count], "{body}");
            }
            40..65 => {
                body["stream"] = json!(true);
                let pieces = server.events("/v1/completions", &body);
                let whole: String = pieces.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
                assert_eq!(json!(whole), alone[prompt][count], "{body}");
            }
            65..80 => {
                let body = json!({"prompt": prompts[prompt], "max_tokens": 200, "stream": true}).to_string();
                let mut client = server.raw(&request("/v1/completions", &body));
                let mut some = vec![0; [1, 300][number % 2]];
                let _ = client.read(&mut some);
            }
            80..90 => {
                let wrong = ["{\"prompt\":7}", "{\"prompt\":\"a\"", "", "[[[["][number % 4];
                let reply = read_all(server.raw(&request("/v1/completions", wrong)));
                assert_eq!(status_of(&reply), 400, "{reply}");
            }
            90..97 => {
                body["stream"] = json!(true);
                let mut client = server.raw(&request("/v1/completions", &body.to_string()));
                let (mut text, mut some) = (Vec::new(), [0; 64]);
                while let Ok(count) = client.read(&mut some)
                    && count > 0
                {
                    text.extend_from_slice(&some[..count]);
                    thread::sleep(Duration::from_millis(1));
                }
                assert!(String::from_utf8_lossy(&text).contains("[DONE]"));
            }
            _ => {
                let reply = read_all(server.raw(&request("/v1/chat/completions", &image)));
                assert_eq!(status_of(&reply), 413, "{}", &reply[..reply.len().min(300)]);
            }
        }
    };
    let load = |from: usize, to: usize| {
        let next = std::sync::atomic::AtomicUsize::new(from);
        thread::scope(|scope| {
            for _ in 0..32 {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        if number >= to {
                            break;
                        }
                        one(number);
                    }
                });
            }
        });
    };
    // the program keeps up to 224 MiB of large blocks for the next use: bodies fill them before memory is compared
    for _ in 0..3 {
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| read_all(server.raw(&request("/v1/chat/completions", &image))));
            }
        });
    }
    load(0, 300);
    // blocks that are kept for the next use come to an end, a leak does not: it grows in every round
    for (round, from) in [300, 1000, 1700].into_iter().enumerate() {
        #[cfg(target_os = "linux")]
        let before = server.memory();
        let begun = Instant::now();
        load(from, from + 700);
        println!("700 requests in {:?}", begun.elapsed());
        server.wait(Duration::from_secs(10), |server| server.get_json("/slots") == json!([]));
        assert_eq!(server.metric("gemma_answers_failed_total"), 0.0);
        assert_eq!(server.metric("gemma_requests_running") + server.metric("gemma_requests_waiting"), 0.0);
        #[cfg(target_os = "linux")]
        {
            let after = server.memory();
            println!("memory {before} KiB before the requests, {after} KiB after them");
            if after >= before + before / 20 + 8192 {
                assert!(round < 2, "memory grew in three rounds, at last from {before} to {after} KiB");
                continue;
            }
        }
        break;
    }
    server.stop();
}

#[test]
fn events_are_read_to_their_end() {
    assert_eq!(events("data: {\"a\":1}\n\ndata: [DONE]\n\n"), [json!({"a": 1})]);
}
