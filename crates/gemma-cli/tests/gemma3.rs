//! Gemma 3 with images in the verbs that a user types, on the small model of the shared set.

mod program;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use program::folder::Folder;
use program::{gemma, printed, printed_json, refusal, text};

/// A copy of the small model, whose `config.json` may be changed.
fn model() -> Option<(Folder, PathBuf)> {
    let Some(shared) = std::env::var_os("GEMMA_TEST_SHARED") else {
        println!("skipped: GEMMA_TEST_SHARED names no folder of fixtures");
        return None;
    };
    let source = Path::new(&shared).join("reference/newer/gemma3_vision/f32");
    let folder = Folder::new();
    for name in
        ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"]
    {
        fs::copy(source.join(name), folder.path(name)).expect("copied");
    }
    Some((folder, source))
}

/// What `gemma chat` answers to lines from a pipe, and how it ends.
fn chat(model: &str, lines: &str) -> (String, Option<i32>, String) {
    let mut command = gemma(["chat", "-m", model, "-n", "5", "--temperature", "0", "--template", "builtin"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    // it may be gone already
    let _ = child.stdin.take().expect("a pipe").write_all(lines.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code(), text(&output.stderr))
}

#[test]
fn an_image_is_shown_in_a_conversation() {
    let Some((folder, source)) = model() else { return };
    let name = folder.name("");
    let [one, two] = ["main.image0.png", "two_images.image1.png"].map(|image| source.join(image).display().to_string());
    let (about_one, code, said) = chat(&name, &format!("/image {one}\na\nb\n"));
    assert_eq!(code, Some(0), "{said}");
    let (about_two, ..) = chat(&name, &format!("/image {two}\na\nb\n"));
    let (about_none, ..) = chat(&name, "a\nb\n");
    assert!(about_one != about_two && about_one != about_none, "the image matters");
    let asked = printed(&mut gemma([
        "generate",
        "-m",
        &name,
        "--image",
        &one,
        "--chat",
        "a",
        "-n",
        "5",
        "--temperature",
        "0",
        "--template",
        "builtin",
    ]));
    assert!(about_one.starts_with(asked.trim_end()), "{about_one:?} {asked:?}");
    let (_, code, said) = chat(&name, "/image /nonexistent.png\na\n");
    assert!(code == Some(2) && said.contains("/nonexistent.png"), "{said}");
    // a model of text shows none
    let demo = program::folder::demo("gemma");
    let (answer, code, said) = chat(demo.to_str().expect("UTF-8"), "/image cat.png\n");
    assert!(answer.is_empty() && code == Some(2) && said.contains("reads text only"), "{said}");
}

#[test]
fn images_are_described_and_asked_about_in_words() {
    let Some((folder, source)) = model() else { return };
    let name = folder.name("");
    let image = source.join("main.image0.png").display().to_string();
    let caption = printed_json(&mut gemma(["caption", "-m", &name, "-n", "4", "--json", &image]));
    assert_eq!(caption[0]["answers"][0]["prompt"], "Describe the image in one sentence.");
    let out = Folder::new();
    let ask = ["ask", "-m", &name, "-n", "4", "-q", "what?", "-q", "how?", "--out-dir", &out.name(""), &image];
    printed(&mut gemma(ask));
    let lines = fs::read_to_string(out.path("ask.jsonl")).expect("written");
    let record: Value = serde_json::from_str(lines.trim_end()).expect("one line");
    assert_eq!(record["answers"].as_array().map(Vec::len), Some(2), "{record}");
    // a second run has nothing to do
    printed(&mut gemma(ask));
    assert_eq!(fs::read_to_string(out.path("ask.jsonl")).expect("there"), lines);
    let said = refusal(&mut gemma(["detect", "-m", &name, "-w", "cat", &image]));
    assert!(said.contains("PaliGemma"), "{said}");
}

/// ShieldGemma 2 is Gemma 3 with the numbers of two answers.
#[test]
fn images_are_judged_by_guidelines() {
    let Some((folder, source)) = model() else { return };
    folder.configure(|config| {
        config.insert("model_type".to_owned(), json!("shieldgemma2"));
        config.insert("architectures".to_owned(), json!(["ShieldGemma2ForImageClassification"]));
        config.insert("yes_token_index".to_owned(), json!(10));
        config.insert("no_token_index".to_owned(), json!(20));
    });
    let name = folder.name("");
    let [one, two] = ["main.image0.png", "two_images.image1.png"].map(|image| source.join(image).display().to_string());
    let judge = |more: &[&str]| {
        let fixed = ["moderate", "-m", &name, "--json"];
        printed_json(&mut gemma(fixed.into_iter().chain(more.iter().copied())))
    };
    let found = judge(&["--image", &one, "--image", &two, "--guideline", "violence", "--guideline", "sexual"]);
    let violates: Vec<f64> = serde_json::from_value(found["violates"].clone()).expect("numbers");
    assert_eq!(violates.len(), 4, "{found}");
    assert!(violates.iter().all(|probability| (0.0..=1.0).contains(probability)));
    let alone = judge(&["--image", &two, "--guideline", "sexual"]);
    let alone: Vec<f64> = serde_json::from_value(alone["violates"].clone()).expect("numbers");
    assert!((alone[0] - violates[3]).abs() < 1e-6);
    // without a guideline, all that speak of images
    assert_eq!(judge(&["--image", &one])["violates"].as_array().map(Vec::len), Some(3));
    let said = refusal(&mut gemma(["moderate", "-m", &name, "--image", &one, "--guideline", "hate"]));
    assert!(said.contains("hate"), "{said}");
}
