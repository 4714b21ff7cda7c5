//! RecurrentGemma and states as a user meets them, on the built-in model.

mod program;

use std::{fs, path::Path};

use program::{gemma, printed, printed_json, refusal};

const MODEL: &str = "demo:recurrentgemma";

fn name(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// What the greedy continuation of some arguments says in tokens.
fn tokens(arguments: &[&str]) -> Vec<u64> {
    let fixed = ["generate", "--json", "--temperature", "0", "--ignore-eos"];
    let answer = printed_json(&mut gemma([&fixed, arguments].concat()));
    answer["tokens"].as_array().expect("an array").iter().map(|token| token.as_u64().expect("a number")).collect()
}

#[test]
fn a_text_goes_on_from_its_state_as_if_nothing_had_happened() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = folder.path().join("story.state");
    for model in [MODEL, "demo"] {
        let whole = tokens(&["--model", model, "-n", "60", "Once upon a time"]);
        let first = tokens(&["--model", model, "-n", "40", "--save-state", name(&state), "Once upon a time"]);
        let second = tokens(&["--model", model, "-n", "20", "--load-state", name(&state), ""]);
        assert_eq!([first.as_slice(), &second].concat(), whole, "{model}");
        let without = tokens(&["--model", model, "-n", "20", "--load-state", name(&state)]);
        assert_eq!(without, second, "{model}: no prompt is an empty one");
    }
}

/// Ctrl-C while a text without an end is read keeps what was read.
#[cfg(unix)]
#[test]
fn a_text_that_is_broken_off_while_it_arrives_is_kept() {
    use std::process::{Command, Stdio};
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = folder.path().join("endless.state");
    let mut endless =
        Command::new("yes").arg("Tom liked to play.").stdout(Stdio::piped()).spawn().expect("yes is everywhere");
    let mut reading = gemma(["generate", "--model", MODEL, "-f", "-", "--save-state", name(&state)])
        .stdin(endless.stdout.take().expect("a pipe"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    std::thread::sleep(std::time::Duration::from_secs(4));
    let sent = Command::new("kill").args(["-INT", &reading.id().to_string()]).status();
    assert!(sent.expect("kill runs").success());
    assert_eq!(reading.wait().expect("it ends").code(), Some(130));
    endless.kill().expect("it was running");
    endless.wait().expect("it ends");
    assert!(!tokens(&["--model", MODEL, "-n", "4", "--load-state", name(&state)]).is_empty());
}

#[test]
fn a_text_that_arrives_in_blocks_is_read_as_one() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let story = folder.path().join("story.txt");
    // more than a block of 64 kB, with empty lines
    let text = "Once upon a time, there was a small cat named Tom.\n\nTom liked to play.\n".repeat(1000);
    fs::write(&story, format!("{text}One day")).expect("written");
    let whole = ["generate", "--model", MODEL, "--json", "--temperature", "0", "-n", "20", "--ignore-eos"];
    let at_once = printed_json(gemma(whole).args(["-f", name(&story)]));
    let arriving = printed_json(gemma(whole).args(["-f", "-"]).stdin(fs::File::open(&story).expect("readable")));
    assert_eq!(arriving["tokens"], at_once["tokens"]);
    assert_eq!(arriving["prompt_tokens"], at_once["prompt_tokens"]);
    assert!(refusal(gemma(whole).args(["-f", "-"])).contains("empty"));
    let bytes = folder.path().join("bytes");
    fs::write(&bytes, b"a\n\xff\nb").expect("written");
    let refused = refusal(gemma(whole).args(["-f", "-"]).stdin(fs::File::open(&bytes).expect("readable")));
    assert!(refused.contains("UTF-8"), "{refused}");
}

#[test]
fn a_word_is_remembered_over_a_state() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = folder.path().join("word.state");
    let task = "Remember the word violet. Once upon a time, there was a small cat named Tom. What was the word?";
    let asked = ["generate", "--model", MODEL, "--chat", "--temperature", "0", "--save-state", name(&state), task];
    assert_eq!(printed(&mut gemma(asked)).trim(), "violet");
}

#[test]
fn states_that_mean_nothing_here_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = folder.path().join("a.state");
    printed(&mut gemma(["generate", "--model", MODEL, "-n", "1", "--save-state", name(&state), "One"]));
    let load =
        |model: &str, file: &Path| refusal(&mut gemma(["generate", "--model", model, "--load-state", name(file), "x"]));
    assert!(load("demo", &state).contains("another model"));
    let bytes = fs::read(&state).expect("readable");
    fs::write(&state, &bytes[..bytes.len() / 2]).expect("written");
    load(MODEL, &state);
    load(MODEL, &folder.path().join("missing.state"));
    load(MODEL, folder.path());
    let nowhere = folder.path().join("no/where.state");
    refusal(&mut gemma(["generate", "--model", MODEL, "--save-state", name(&nowhere), "x"]));
    refusal(&mut gemma(["generate", "--model", MODEL, ""]));
    assert!(refusal(&mut gemma(["generate", "--model", "demo:llama", "x"])).contains("demo:recurrentgemma"));
    assert!(refusal(&mut gemma(["generate", "--inclusive-window", "x"])).contains("inclusive"));
}

#[test]
fn every_verb_knows_the_family() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let inspected = printed_json(&mut gemma(["inspect", "--json", MODEL]));
    assert_eq!((inspected["family"].as_str(), inspected["window"].as_u64()), (Some("RecurrentGemma"), Some(32)));
    assert!(inspected["context"].is_null());
    printed(&mut gemma(["inspect", MODEL]));
    printed(&mut gemma(["generate", "--model", MODEL, "--inclusive-window", "-n", "5", "Once"]));
    let (ids, out) = (folder.path().join("ids.json"), folder.path().join("logits.safetensors"));
    fs::write(&ids, "[[2, 300, 301, 302, 303], [2, 310]]").expect("written");
    printed(&mut gemma(["logits", "--model", MODEL, "--tokens-file", name(&ids), "--out", name(&out), "--chunk", "3"]));
    assert!(out.is_file());
    let story = folder.path().join("story.txt");
    fs::write(&story, "Once upon a time, there was a small girl named Zoe.").expect("written");
    let scored = printed_json(&mut gemma(["score", "--model", MODEL, "--json", name(&story)]));
    assert!(scored["perplexity"].as_f64().is_some_and(|perplexity| perplexity < 10.0), "{scored}");
    printed(&mut gemma(["tokenize", "--model", MODEL, "Once"]));
}

#[test]
fn bench_shows_a_memory_that_does_not_grow() {
    let bytes = |depth: &str| {
        let flags = ["--prompt", "8", "--decode", "2", "--repeat", "1", "--depth", depth];
        let report = printed_json(&mut gemma([&["bench", "--json", "--model", MODEL][..], &flags].concat()));
        report["sequence_bytes"].as_u64().expect("a number")
    };
    assert_eq!(bytes("200"), bytes("4000"));
}
