//! Files of requests: exactly one result per line, also after an interruption.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use gemma_serve::http::batch::{BatchSummary, run};
use gemma_serve::http::{App, Backend, Settings};
use serde_json::{Value, json};

use crate::fake::Fake;

/// A new folder of this test.
fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("batch-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

fn app() -> App {
    App::new(vec![Arc::new(Fake::new("yes")) as Arc<dyn Backend>], Settings { queue: 10_000, ..Settings::default() })
}

fn requests(count: usize) -> String {
    let line = |number: usize| {
        let prompt = if number == 3 { json!({"wrong": 1}) } else { json!(format!("question {number}")) };
        let body = json!({"model": "m", "prompt": prompt, "max_tokens": 5});
        format!(
            "{}\n",
            json!({"custom_id": format!("r-{number}"), "method": "POST", "url": "/v1/completions", "body": body})
        )
    };
    (0..count).map(line).collect()
}

fn results(text: &str) -> BTreeMap<String, Value> {
    let mut results = BTreeMap::new();
    for line in text.lines() {
        let value: Value = serde_json::from_str(line).expect("JSON");
        let id = value["custom_id"].as_str().expect("an id").to_owned();
        assert!(results.insert(id, value).is_none(), "one line per request");
    }
    results
}

#[tokio::test]
async fn every_request_has_one_result_also_after_an_interruption() {
    let folder = folder("resume");
    let (input, output) = (folder.join("in.jsonl"), folder.join("out.jsonl"));
    std::fs::write(&input, requests(20)).expect("written");
    let first = run(app(), &input, &output, 4, |summary| summary.answered < 7).await.expect("a run");
    assert_eq!((first.answered, first.requests), (7, 20));
    // the power fails in the middle of a line
    let mut text = std::fs::read_to_string(&output).expect("read");
    text.truncate(text.len() - 9);
    std::fs::write(&output, text).expect("written");
    let second = run(app(), &input, &output, 4, |_| true).await.expect("a run");
    assert_eq!((second.skipped, second.answered), (6, 14));
    let results = results(&std::fs::read_to_string(&output).expect("read"));
    assert_eq!(results.len(), 20);
    assert_eq!(results["r-3"]["response"]["status_code"], 400);
    assert!(results["r-3"]["error"]["message"].is_string());
    assert_eq!(results["r-4"]["response"]["body"]["choices"][0]["text"], "yes");
    let third = run(app(), &input, &output, 4, |_| true).await.expect("a run");
    assert_eq!(third, BatchSummary { requests: 20, skipped: 20, answered: 0, failed: 0 });
}

#[tokio::test]
async fn a_file_that_is_wrong_is_refused_before_anything_is_answered() {
    let folder = folder("wrong");
    let (input, output) = (folder.join("in.jsonl"), folder.join("out.jsonl"));
    let good = requests(1);
    for (bad, part) in [
        (r#"{"custom_id":"r-0","url":"/v1/completions","body":{}}"#, "line 2: the custom_id \"r-0\" was used before"),
        (r#"{"custom_id":"x","url":"/v1/files","body":{}}"#, "line 2: the url \"/v1/files\" is unknown"),
        (r#"{"custom_id":"x","method":"GET","url":"/v1/completions","body":{}}"#, "POST"),
        (r#"{"custom_id":"x","url":"/v1/completions","body":{"stream":true}}"#, "no streams"),
        (r#"{"custom_id":7}"#, "line 2: it is no request of a batch"),
        ("not JSON", "line 2"),
    ] {
        std::fs::write(&input, format!("{good}{bad}\n")).expect("written");
        let error = run(app(), &input, &output, 1, |_| true).await.expect_err(bad).to_string();
        assert!(error.contains(part), "{error}");
        assert!(!output.exists(), "nothing was answered");
    }
    std::fs::write(&output, "precious notes\n").expect("written");
    std::fs::write(&input, good).expect("written");
    let error = run(app(), &input, &output, 1, |_| true).await.expect_err("no results").to_string();
    assert!(error.contains("name another file"), "{error}");
    assert_eq!(std::fs::read_to_string(&output).expect("read"), "precious notes\n");
    // requests have ids, and are no results
    let before = std::fs::read(&input).expect("read");
    let error = run(app(), &input, &input, 1, |_| true).await.expect_err("its own input").to_string();
    assert!(error.contains("name another file"), "{error}");
    assert!(std::fs::read(&input).expect("read") == before);
    let long = format!(r#"{{"custom_id":"x","url":"/{}","body":{{}}}}"#, "y".repeat(100_000));
    std::fs::write(&input, long).expect("written");
    let error = run(app(), &input, &folder.join("new.jsonl"), 1, |_| true).await.expect_err("no such url").to_string();
    assert!(error.len() < 500, "{} bytes", error.len());
}

/// Editors of Windows put it in front of a file.
#[tokio::test]
async fn a_byte_order_mark_is_no_part_of_a_request() {
    let folder = folder("mark");
    let (input, output) = (folder.join("in.jsonl"), folder.join("out.jsonl"));
    std::fs::write(&input, format!("\u{feff}{}", requests(1))).expect("written");
    let summary = run(app(), &input, &output, 1, |_| true).await.expect("a run");
    assert_eq!((summary.requests, summary.answered), (1, 1));
}
