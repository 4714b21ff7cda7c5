//! Fine-tuning from the outside: what is written, what is refused, and going on after a kill.

#[allow(dead_code, reason = "other tests use the rest")]
mod program;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use program::gemma as program_with;
use serde_json::Value;

const DATA: &str = r#"{"text": "The cat sat on the mat."}
{"prompt": "One plus one is", "completion": " two."}
{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]}
{"text": "Once upon a time there was a king who had three sons."}
"#;

fn gemma() -> Command {
    program_with([""; 0])
}

fn finetune(folder: &Path, out: &str, more: &[&str]) -> Command {
    let data = folder.join("data.jsonl");
    fs::write(&data, DATA).expect("written");
    let mut command = gemma();
    command.args(["finetune", "--json", "--rank", "2", "--batch", "2", "--learning-rate", "1e-2", "--threads", "1"]);
    command.arg("--data").arg(data).arg("--out").arg(folder.join(out)).args(more);
    command
}

#[test]
fn a_training_learns_and_what_it_writes_is_used() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = finetune(folder.path(), "lora", &["--steps", "30"]).output().expect("the program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let loss = |name: &str| report[name].as_f64().expect("a number");
    assert!(loss("last_loss") < 0.7 * loss("first_loss"), "{report}");
    let out = folder.path().join("lora");
    for file in
        ["adapter_config.json", "adapter_model.safetensors", "metrics.jsonl", "loss.svg", "training_state.safetensors"]
    {
        assert!(out.join(file).is_file(), "{file}");
    }
    assert_eq!(fs::read_to_string(out.join("metrics.jsonl")).expect("text").lines().count(), 30);

    // the adapter changes what is computed, beside the weights and merged
    let ids = folder.path().join("ids.json");
    fs::write(&ids, "[2, 20, 30, 40, 50]").expect("written");
    let score = |more: &[&str]| {
        let output = gemma().args(["score", "--json", "--tokens-file"]).arg(&ids).args(more).output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        report["total_log_prob"].as_f64().expect("a number")
    };
    let adapter = out.to_str().expect("UTF-8");
    let (base, with) = (score(&[]), score(&["--adapter", adapter]));
    assert!((base - with).abs() > 1e-3, "{base} {with}");
    assert!((score(&["--adapter", &format!("{adapter}=0")]) - base).abs() < 1e-5);
    let merged = folder.path().join("merged");
    let output =
        gemma().args(["merge", "--format", "f32", "--adapter", adapter]).arg(&merged).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!((score(&["--model", merged.to_str().expect("UTF-8")]) - with).abs() < 2e-2);
}

#[test]
fn a_killed_training_goes_on_as_if_it_had_not_been() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let more = ["--steps", "40", "--save-every", "3"];
    let whole = finetune(folder.path(), "whole", &more).output().expect("the program runs");
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    let mut killed = finetune(folder.path(), "killed", &more).spawn().expect("the program runs");
    let state = folder.path().join("killed/training_state.safetensors");
    let begin = Instant::now();
    while !state.is_file() && begin.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    killed.kill().expect("it was running");
    killed.wait().expect("it ends");
    let again = finetune(folder.path(), "killed", &more).output().expect("the program runs");
    assert!(!again.status.success(), "an unfinished training is not overwritten without being asked");
    let resumed = finetune(folder.path(), "killed", &[&more[..], &["--resume"]].concat()).output().expect("it runs");
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    let adapter = |out: &str| fs::read(folder.path().join(out).join("adapter_model.safetensors")).expect("an adapter");
    assert!(adapter("whole") == adapter("killed"), "the same adapter, to the bit");
}

#[test]
fn losses_and_gradients_have_names() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (ids, gradients) = (folder.path().join("ids.json"), folder.path().join("gradients.safetensors"));
    fs::write(&ids, "[2, 20, 30, 40, 50]").expect("written");
    let loss = |more: &[&std::ffi::OsStr]| {
        let output = gemma().args(["loss", "--json", "--tokens-file"]).arg(&ids).args(more).output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        report["loss"].as_f64().expect("a number")
    };
    let plain = loss(&[]);
    let with = loss(&["--gradients".as_ref(), gradients.as_os_str()]);
    assert!((plain - with).abs() < 1e-4, "{plain} {with}");
    let bytes = fs::read(&gradients).expect("a file");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    assert!(file.names().iter().any(|name| *name == "model.layers.0.self_attn.q_proj.weight"));
}

#[test]
fn mistakes_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let refusal = |command: &mut Command| {
        let output = command.output().expect("the program runs");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let bad = folder.path().join("bad.jsonl");
    fs::write(&bad, "{\"text\": \"a b c\"}\n{\"txt\": 1}\n").expect("written");
    let text = refusal(gemma().args(["finetune", "--data"]).arg(&bad).arg("--out").arg(folder.path().join("x")));
    assert!(text.contains("line 2") && text.contains("txt"), "{text}");
    let text = refusal(&mut finetune(folder.path(), "x", &["--target", "nothing_proj"]));
    assert!(text.contains("projection"), "{text}");
    let text = refusal(&mut finetune(folder.path(), "x", &["--learning-rate", "-1"]));
    assert!(text.contains("learning"), "{text}");
    let text = refusal(gemma().args(["generate", "--adapter"]).arg(folder.path()).arg("x"));
    assert!(text.contains("adapter_config.json"), "{text}");
    assert!(!folder.path().join("x").exists(), "nothing is written before it is known to work");
}
