//! The everyday manners of the program: summaries, logprobs, constrained answers, saved conversations, built-in images.

mod program;

use std::{
    fs,
    io::Write,
    process::{Output, Stdio},
};

use serde_json::{Value, json};

use program::folder::{Folder, demo};
use program::{gemma, printed, printed_json, refusal, run, text};

/// What `gemma chat` does with lines from a pipe.
fn chat(arguments: &[&str], lines: &str) -> Output {
    let mut command = gemma(["chat", "--temperature", "0", "-n", "30"]);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    // it may be gone already
    let _ = child.stdin.take().expect("piped").write_all(lines.as_bytes());
    child.wait_with_output().expect("it ends")
}

#[test]
fn a_score_is_a_summary_and_with_tokens_a_list() {
    let folder = Folder::new();
    let file = folder.write("story.txt", "Once upon a time there was a cat.");
    let summary = printed(&mut gemma(["score", &file]));
    let names: Vec<&str> = summary.lines().map(|line| &line[..line.find("  ").expect("a value")]).collect();
    assert_eq!(names, ["scored tokens", "total logprob", "mean logprob", "perplexity"]);
    assert_eq!(printed(&mut gemma(["score", "-f", &file])), summary);
    assert_eq!(printed(&mut gemma(["score", "--text", "Once upon a time there was a cat."])), summary);
    let list = printed(&mut gemma(["score", "--tokens", &file]));
    assert!(list.ends_with(&summary) && list.starts_with(" logprob     prob  token\n"), "{list}");
    let report = printed_json(&mut gemma(["score", "--json", &file]));
    let mean = report["total_log_prob"].as_f64().expect("a number")
        / (report["tokens"].as_array().expect("a list").len() - 1) as f64;
    assert_eq!(report["mean_log_prob"].as_f64(), Some(mean));
    assert!(refusal(&mut gemma(["score", "Once upon a time"])).contains("--text"));
    assert!(refusal(&mut gemma(["score", "--text", ""])).contains("no text"));
    assert!(refusal(&mut gemma(["score", "--text", "a", &file])).contains("cannot be used with"));
}

#[test]
fn a_text_to_tokenize_that_names_a_file_gives_a_hint() {
    let folder = Folder::new();
    let file = folder.write("story.txt", "Once upon a time");
    let output = run(&mut gemma(["tokenize", "--json", &file]));
    assert!(output.status.success() && text(&output.stderr).contains(&format!("tokenize -f {file}")));
    let cut: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let pieces = cut["pieces"].as_array().expect("a list").iter().map(|piece| piece.as_str().expect("a text"));
    assert!(pieces.collect::<String>().ends_with("story.txt"), "the name is cut as it was typed");
    let output = run(&mut gemma(["tokenize", "--json", "-f", &file]));
    assert!(output.status.success() && output.stderr.is_empty());
}

#[test]
fn logprobs_have_the_shape_of_openais_api() {
    let options = ["generate", "Once upon a time", "-n", "6", "--temperature", "0", "--ignore-eos", "--json"];
    assert!(printed_json(&mut gemma(options)).get("logprobs").is_none());
    let report = printed_json(gemma(options).args(["--logprobs", "3"]));
    let content = report["logprobs"]["content"].as_array().expect("a list");
    assert_eq!(content.len(), 6);
    let mut said = String::new();
    for entry in content {
        let top = entry["top_logprobs"].as_array().expect("a list");
        assert_eq!(top.len(), 3);
        // greedy: the likeliest was taken
        for name in ["token", "logprob", "bytes"] {
            assert_eq!(entry[name], top[0][name]);
        }
        assert!(entry["logprob"].as_f64() <= Some(0.0) && top[0]["logprob"].as_f64() >= top[1]["logprob"].as_f64());
        let bytes: Vec<u8> = entry["bytes"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|byte| byte.as_u64().expect("a byte") as u8)
            .collect();
        said += &text(&bytes);
    }
    assert_eq!(report["text"], said);
    let bare = printed_json(gemma(options).arg("--logprobs"));
    assert_eq!(bare["logprobs"]["content"][0]["top_logprobs"], json!([]));
    assert!(refusal(&mut gemma(["generate", "x", "--logprobs", "3"])).contains("--json"));
    assert!(refusal(&mut gemma(["generate", "--json", "--logprobs", "x"])).contains("stands before --logprobs"));
    assert!(refusal(&mut gemma(["generate", "x", "--json", "--logprobs", "21"])).contains("from 0 to 20"));
}

#[test]
fn the_likeliest_next_tokens_are_printed() {
    let folder = Folder::new();
    let tokens = printed_json(&mut gemma(["tokenize", "--json", "Once upon a time"]))["tokens"].clone();
    let ids = folder.write("ids.json", tokens.to_string());
    let every = printed_json(&mut gemma(["logits", "--json", "--top", "4", "--tokens-file", &ids]));
    let positions = every["positions"].as_array().expect("a list");
    assert_eq!(positions.len(), tokens.as_array().expect("a list").len());
    for (index, position) in positions.iter().enumerate() {
        assert_eq!((&position["position"], &position["id"]), (&json!(index), &tokens[index]));
        assert_eq!(position["top_logprobs"].as_array().map(Vec::len), Some(4));
    }
    let last = printed_json(&mut gemma(["logits", "--json", "--top", "4", "--last", "Once upon a time"]));
    assert_eq!(last["positions"].as_array().map(Vec::len), Some(1));
    let likeliest = |position: &Value| position["top_logprobs"][0]["id"].clone();
    assert_eq!(likeliest(&last["positions"][0]), likeliest(&positions[positions.len() - 1]));
    let next = printed_json(&mut gemma(["generate", "Once upon a time", "-n", "1", "--temperature", "0", "--json"]));
    assert_eq!(next["tokens"][0], likeliest(&last["positions"][0]));
    let batch = folder.write("batch.json", "[[2, 5], [2]]");
    let rows = printed_json(&mut gemma(["logits", "--json", "--last", "--tokens-file", &batch]));
    assert_eq!(rows["rows"].as_array().map(Vec::len), Some(2));
    assert_eq!(rows["rows"][0]["positions"][0]["position"], 1);
    assert!(refusal(&mut gemma(["logits", "--tokens-file", &ids])).contains("--out"));
    assert!(refusal(&mut gemma(["logits", "--json", "--out", "x", "--tokens-file", &ids])).contains("cannot be used"));
    assert_eq!(folder.files(), ["batch.json", "ids.json"]);
}

#[test]
fn the_first_argument_says_what_to_look_for() {
    let by_flag = printed(&mut gemma(["detect", "-w", "shape", "demo:"]));
    assert_eq!(by_flag.matches("demo:shapes").count(), by_flag.lines().count());
    assert_eq!(printed(&mut gemma(["detect", "shape", "demo:"])), by_flag);
    let question = "how many shapes are there?";
    let asked = printed(&mut gemma(["ask", question, "demo:shapes2.png"]));
    assert_eq!(asked, printed(&mut gemma(["ask", "-q", question, "demo:shapes2.png"])));
    assert!(refusal(&mut gemma(["detect", "demo:"])).contains("--what"));
    assert!(refusal(&mut gemma(["detect", "missing.png", "demo:"])).contains("there is no file missing.png"));
    assert!(refusal(&mut gemma(["detect", "red circle"])).contains("no image is named"));
    assert!(refusal(&mut gemma(["detect", "-w", "shape", "missing.png"])).contains("missing.png"));
    assert!(refusal(&mut gemma(["ask", "why?", "demo:cat.png"])).contains("demo:shapes1.png"));
}

#[test]
fn a_refused_run_over_images_leaves_nothing() {
    let folder = Folder::new();
    let out = folder.name("masks");
    let mut command = gemma(["segment", "cat", "demo:", "--mask-decoder", "missing.npz", "--out-dir", &out]);
    assert!(refusal(&mut command).contains("missing.npz"));
    assert!(folder.files().is_empty(), "{:?}", folder.files());
    fs::create_dir(&out).expect("made");
    fs::write(folder.path("masks/notes.txt"), "mine").expect("written");
    refusal(&mut command);
    assert_eq!(fs::read_dir(&out).expect("still there").count(), 1);
}

#[test]
fn built_in_images_are_named_anywhere() {
    let folder = Folder::new();
    let said = printed(gemma(["caption", "demo:"]).current_dir(folder.path("")));
    assert_eq!(said.lines().count(), 3, "{said}");
    let one = printed(&mut gemma(["generate", "--image", "demo:shapes1.png", "--temperature", "0", "caption en"]));
    assert!(said.starts_with(&format!("demo:shapes1.png: {}\n", one.trim_end())), "{said}{one}");
    let out = folder.name("out");
    printed(&mut gemma(["detect", "shape", "--draw", "--out-dir", &out, "demo:shapes1.png"]));
    assert!(folder.path("out/demo_shapes1.png.shape.detect.png").is_file());
}

/// `a/one.png`, `a_one.png` and `../x/one.png` are three images, and a drawing of one is none.
#[test]
fn drawings_stay_apart_and_are_not_drawn_again() {
    let folder = Folder::new();
    fs::create_dir(folder.path("a")).expect("made");
    let image = demo("paligemma").join("images/shapes1.png");
    let files = ["one.png", "a/one.png", "a_one.png"].map(|file| {
        fs::copy(&image, folder.path(file)).expect("copied");
        file.to_owned()
    });
    let itself = folder.path("").file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
    let around = format!("../{itself}/one.png");
    let mut draw = gemma(["detect", "shape", "--draw", "--out-dir", "out"]);
    printed(draw.args(&files).arg(around).current_dir(folder.path("")));
    let drawings = fs::read_dir(folder.path("out")).expect("made").flatten();
    let drawings = drawings.filter(|entry| entry.file_name().to_string_lossy().ends_with(".detect.png")).count();
    assert_eq!(drawings, 4);
    for _ in 0..2 {
        printed(gemma(["detect", "shape", "--draw", "--out-dir", "a", "a"]).current_dir(folder.path("")));
        let lines = fs::read_to_string(folder.path("a/detect.jsonl")).expect("written");
        assert_eq!(lines.lines().count(), 1, "{lines}");
    }
}

#[test]
fn sampling_flags_change_what_is_said() {
    let said = |more: &[&str]| {
        printed_json(
            gemma(["generate", "Once upon a time", "-n", "24", "--temperature", "0", "--ignore-eos", "--json"])
                .args(more),
        )
    };
    let plain = said(&[]);
    let first = plain["tokens"][0].as_u64().expect("an id");
    let never = said(&["--logit-bias", &format!("{first}=-inf")]);
    assert!(!never["tokens"].as_array().expect("a list").contains(&json!(first)), "{never}");
    let always = said(&["--logit-bias", "9=1000"]);
    assert!(always["tokens"].as_array().expect("a list").iter().all(|token| *token == 9));
    // the same token for ever, unless something makes it less likely
    for penalty in [
        &["--presence-penalty", "2000"][..],
        &["--frequency-penalty", "600"],
        &["--dry-multiplier", "600", "--dry-allowed-length", "1"],
    ] {
        let biased = said(&[&["--logit-bias", "9=1000"], penalty].concat());
        assert!(biased["tokens"].as_array().expect("a list").iter().any(|token| *token != 9), "{penalty:?}");
    }
    let surprise = |tau: &str| {
        let more = ["--temperature", "1", "--seed", "1", "--mirostat", "2", "--mirostat-tau", tau, "--json"];
        printed_json(gemma(["generate", "Once upon a time", "-n", "24", "--ignore-eos"]).args(more))["text"].clone()
    };
    assert_ne!(surprise("0.1"), surprise("8"));
    for (wrong, says) in [
        (["--mirostat", "1"], "must be 2"),
        (["--logit-bias", "cat=1"], "token id"),
        (["--logit-bias", "4000000000=1"], "vocabulary"),
        (["--dry-multiplier", "-1"], "--dry-multiplier is"),
        (["--presence-penalty", "NaN"], "--presence-penalty is"),
    ] {
        assert!(refusal(gemma(["generate", "x"]).args(wrong)).contains(says), "{wrong:?}");
    }
    // infill has them too
    let infill = ["infill", "--prefix-file", "-", "-n", "4", "--logit-bias", "4000000000=1"];
    assert!(refusal(&mut gemma(infill)).contains("vocabulary"));
}

#[test]
fn answers_keep_to_a_grammar_or_a_schema() {
    let folder = Folder::new();
    let grammar = folder.write("digits.lark", "start: /[0-9]{3}/\n");
    let digits = |said: &str| said.trim_end().len() == 3 && said.trim_end().bytes().all(|byte| byte.is_ascii_digit());
    let said = printed(&mut gemma(["generate", "A number:", "--grammar", &grammar]));
    assert!(digits(&said), "{said}");
    let schema = r#"{"type":"object","properties":{"n":{"enum":[1,2]}},"required":["n"],"additionalProperties":false}"#;
    let file = folder.write("schema.json", schema);
    for given in [schema, &file] {
        let said = printed(&mut gemma(["generate", "--json-schema", given, "A number:"]));
        let said: Value = serde_json::from_str(&said).expect("JSON");
        assert!(said["n"] == 1 || said["n"] == 2, "{said}");
    }
    // every answer of a conversation
    let output = chat(&["--grammar", &grammar], "What is 2 plus 3?\nAnd plus 1?\n");
    let said = text(&output.stdout);
    assert!(output.status.success() && said.lines().count() == 2 && said.lines().all(digits), "{said}");
    let prefix = folder.write("main.py", "x = ");
    assert!(digits(&printed(&mut gemma(["infill", "--prefix-file", &prefix, "--grammar", &grammar]))));
    let wrong = folder.write("wrong.lark", "start: ((");
    for (arguments, says) in [
        (["generate", "x", "--grammar", &wrong], "the grammar cannot be used"),
        (["generate", "x", "--grammar", "/nonexistent"], "/nonexistent"),
        (["generate", "x", "--json-schema", "{"], "no JSON schema"),
        (["generate", "x", "--json-schema", "/nonexistent"], "/nonexistent"),
    ] {
        assert!(refusal(&mut gemma(arguments)).contains(says), "{arguments:?}");
    }
}

#[test]
fn a_conversation_is_saved_and_gone_on_with() {
    let folder = Folder::new();
    let file = folder.name("talk.json");
    let questions = ["What is 2 plus 3?\n", "What is 1 plus 1?\n"];
    let whole = text(&chat(&[], &questions.concat()).stdout);
    let output = chat(&[], &format!("{}/save {file}\n/exit\nnot asked\n", questions[0]));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let first = text(&output.stdout);
    assert_eq!(first.lines().count(), 1, "/exit ends");
    let saved: Value = serde_json::from_slice(&fs::read(&file).expect("saved")).expect("JSON");
    assert_eq!(saved[0], json!({"role": "user", "content": "What is 2 plus 3?"}));
    assert_eq!(saved[1], json!({"role": "assistant", "content": first.trim_end()}));
    let second = text(&chat(&["--load", &file], questions[1]).stdout);
    assert_eq!(format!("{first}{second}"), whole);
    // nothing is replaced unasked
    let before = fs::read(&file).expect("there");
    let output = chat(&[], &format!("{}/save {file}\n", questions[1]));
    assert!(output.status.code() == Some(2) && text(&output.stderr).contains("/save!"), "{}", text(&output.stderr));
    assert_eq!(fs::read(&file).expect("there"), before);
    assert!(chat(&[], &format!("{}/save! {file}\n", questions[1])).status.success());
    assert_ne!(fs::read(&file).expect("there"), before);
    let stats = chat(&["--load", &file, "--ctx-size", "64"], "What is 2 plus 3?\n/stats\n");
    assert!(
        text(&stats.stderr).contains("2 exchanges, ") && text(&stats.stderr).contains("of 64 tokens"),
        "{}",
        text(&stats.stderr)
    );
    assert!(refusal(&mut gemma(["chat", "--load", "/nonexistent"])).contains("/nonexistent"));
    let wrong = folder.write("wrong.json", r#"[{"role":"user","content":"a"}]"#);
    assert!(refusal(&mut gemma(["chat", "--load", &wrong])).contains("the last message is a question"));
    let small = chat(&["--context", "4"], questions[0]);
    assert!(small.status.code() == Some(2) && text(&small.stderr).contains("context"), "{}", text(&small.stderr));
}

#[test]
fn a_downloaded_model_is_removed() {
    let folder = Folder::new();
    fs::create_dir_all(folder.path("hub/models--org--name/blobs")).expect("made");
    fs::write(folder.path("hub/models--org--name/blobs/a.incomplete"), vec![0; 2000]).expect("written");
    fs::create_dir_all(folder.path("hub/models--org--other")).expect("made");
    let remove = |more: &[&str]| {
        let mut command = gemma(["models", "rm"]);
        command.args(more).env("HF_HOME", folder.path(""));
        command
    };
    assert!(refusal(&mut remove(&["org/name"])).contains("--yes"));
    assert!(refusal(&mut remove(&["--yes", "org/name@main"])).contains("give org/name"));
    assert!(refusal(&mut remove(&["--yes", "../name"])).contains("../name"));
    assert_eq!(printed(&mut remove(&["--yes", "org/name"])), "removed org/name: 2 kB freed\n");
    assert!(!folder.path("hub/models--org--name").exists() && folder.path("hub/models--org--other").exists());
    assert!(refusal(&mut remove(&["--yes", "org/name"])).contains("nothing of org/name"));
    assert!(
        printed(&mut gemma(["models", "gemma-2-2b"])).contains("google/gemma-2-2b"),
        "a filter is none of the tasks"
    );
}

#[test]
fn shells_and_readers_learn_of_the_program() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = printed(&mut gemma(["completions", shell]));
        assert!(script.contains("temperature") && script.contains("tokenize"), "{shell}");
    }
    assert!(refusal(&mut gemma(["completions", "cmd"])).contains("bash"));
    assert!(printed(&mut gemma(["man"])).contains(".TH gemma 1"));
    let folder = Folder::new();
    printed(&mut gemma(["man", &folder.name("man1")]));
    let page = fs::read_to_string(folder.path("man1/gemma-generate.1")).expect("written");
    assert!(page.contains("gemma\\-generate") && page.contains("\\-\\-temperature"), "{page}");
    assert!(folder.path("man1/gemma.1").is_file());
    let file = folder.write("file", "");
    assert!(refusal(&mut gemma(["man", &file])).contains("is a file"));
}

#[test]
fn the_prompt_is_printed_in_front_when_asked_for() {
    let options = ["generate", "Once upon a time", "-n", "8", "--temperature", "0"];
    let bare = printed(&mut gemma(options));
    assert_eq!(printed(gemma(options).arg("--no-echo")), bare, "a pipe has the continuation only");
    assert_eq!(printed(gemma(options).arg("--echo")), format!("Once upon a time{bare}"));
    assert!(refusal(gemma(options).args(["--echo", "--json"])).contains("cannot be used with"));
}

/// A long conversation from a pipe, in contexts of several sizes: no answer is cut at the context's edge where older
/// exchanges could have been forgotten, and most turns prefill only what is new.
#[test]
fn two_hundred_turns_are_answered_whole_and_prefill_little() {
    let question = |turn: usize| match turn % 4 {
        0 => format!("What is {} plus {}?", turn % 37, turn % 23),
        1 => format!("Which is larger, {} or {}?", turn % 41, turn % 29 + 50),
        2 => "Tell me a story.".to_owned(),
        _ => "Name three animals.".to_owned(),
    };
    let lines: String = (0..200).map(|turn| format!("{}\n/stats\n", question(turn))).collect();
    for context in [1024, 512, 256, 160] {
        let mut command = gemma(["chat", "--temperature", "0", "--context", &context.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let mut input = child.stdin.take().expect("piped");
        let sent = lines.clone();
        let writer = std::thread::spawn(move || input.write_all(sent.as_bytes()));
        let output = child.wait_with_output().expect("it ends");
        writer.join().expect("no panic").expect("every line is read");
        let said = text(&output.stderr);
        assert!(output.status.success(), "{said}");
        let summaries: Vec<&str> = said.lines().filter(|line| line.starts_with("[prefill ")).collect();
        assert_eq!(summaries.len(), 200, "{said}");
        let cut: Vec<&&str> = summaries.iter().filter(|line| line.contains(';')).collect();
        assert!(cut.is_empty(), "context {context}: {cut:?}");
        let prefilled =
            summaries.iter().map(|line| line.split(' ').nth(1).expect("a count").parse::<usize>().expect("a number"));
        let mean = prefilled.sum::<usize>() / 200;
        println!("context {context}: {mean} tokens prefilled in a turn");
        assert!(mean < context / 3, "context {context}: {mean} tokens prefilled in a turn");
    }
}

/// The masks of the demo, printed, written and drawn; a folder of the model keeps its mask decoder, and without one the
/// refusal leaves no file behind.
#[test]
fn the_demo_segments_and_a_refusal_leaves_no_file() {
    let folder = Folder::new();
    let records = printed_json(&mut gemma(["segment", "shape", "demo:", "--json"]));
    let objects: Vec<&Value> = records
        .as_array()
        .expect("a list")
        .iter()
        .flat_map(|record| record["answers"][0]["objects"].as_array().expect("objects"))
        .collect();
    assert!(objects.len() >= 4, "{records}");
    for object in &objects {
        let counts = object["segmentation"]["counts"].as_array().expect("run lengths");
        let inside: f64 = counts.iter().skip(1).step_by(2).map(|run| run.as_f64().expect("a number")).sum();
        let side = |index: usize| object["bbox"][index].as_f64().expect("a number");
        // a triangle is half of its box, a square all of it
        assert!((0.4..1.05).contains(&(inside / (side(2) * side(3)))), "{object}");
    }
    let out = folder.name("masks");
    let said = printed(&mut gemma(["segment", "red circle", "demo:", "--out-dir", &out, "--draw"]));
    assert!(said.contains("demo:shapes3.png: red circle") && said.contains("mask of"), "{said}");
    assert!(
        folder.path("masks/segment.jsonl").is_file()
            && folder.path("masks/demo_shapes3.png.red_circle.segment.png").is_file()
    );

    let model = folder.name("model");
    printed(&mut gemma(["convert", "demo:paligemma", &model]));
    let again = printed(&mut gemma(["segment", "red circle", "demo:", "--model", &model]));
    assert_eq!(again, said, "a converted model has its mask decoder");
    fs::remove_file(folder.path("model/mask_decoder.safetensors")).expect("it was written");
    let none = folder.name("none");
    let refused = refusal(&mut gemma(["segment", "shape", "demo:", "--model", &model, "--out-dir", &none]));
    assert!(refused.contains("vae-oid.npz") && refused.contains("--mask-decoder"), "{refused}");
    assert!(!folder.path("none").exists());
    fs::create_dir(folder.path("none")).expect("made");
    refusal(&mut gemma(["segment", "shape", "demo:", "--model", &model, "--out-dir", &none]));
    assert_eq!(fs::read_dir(folder.path("none")).expect("a folder").count(), 0);
}

/// A pipe and a terminal take the same commands, and a line that fails ends nothing.
#[test]
fn commands_of_a_conversation_are_the_same_from_a_pipe() {
    let folder = Folder::new();
    let file = folder.name("talk.json");
    let output = chat(&[], "/undoo\n/image x.png\n/save\nWhat is 2 plus 3?\n");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for words in
        ["line 1: there is no command /undoo", "line 2: this model reads text only", "line 3: /save needs a file"]
    {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(said.contains("3 lines of standard input failed"), "{said}");
    assert_eq!(text(&output.stdout).lines().count(), 1, "the question was answered");

    let question = "What is 2 plus 3?\n";
    let output =
        chat(&[], &format!("{question}/regenerate\n/system Be brief.\n/save {file}\n/clear\n/stats\n/system\n"));
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    let answers: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
    assert!(answers.len() == 2 && answers[0] == answers[1], "greedy: {answers:?}");
    assert!(said.contains("0 exchanges") && said.contains("the system prompt is: Be brief."), "{said}");
    let saved: Value = serde_json::from_slice(&fs::read(&file).expect("saved")).expect("JSON");
    assert_eq!(saved[0], json!({"role": "system", "content": "Be brief."}));
    assert_eq!(saved.as_array().map(Vec::len), Some(3), "one question, however often it was answered");

    let output = chat(&[], &format!("/load {file}\n/stats\n/regenerate\n/load /nonexistent\n"));
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("1 exchange,") && said.contains("/nonexistent"), "{said}");
    assert_eq!(text(&output.stdout).lines().count(), 1);
    let nothing = chat(&[], "/regenerate\n");
    assert!(text(&nothing.stderr).contains("no question to answer again"));
}

/// The vectors of an EmbeddingGemma: a row per line, from a file and from standard input.
#[test]
fn lines_and_rows_of_vectors_agree() {
    let Some(model) = embedding_model() else { return };
    let folder = Folder::new();
    let lines = folder.write("lines.txt", "one\n\ntwo\n");
    let embed = |more: &[&str]| {
        let mut command = gemma(["embed", "--model", &model, "--dimensions", "8", "--json"]);
        command.args(more);
        command
    };
    let found = printed_json(&mut embed(&["--input", &lines]));
    let rows = found["embeddings"].as_array().expect("a list");
    assert_eq!(rows.len(), 3, "the blank line has a row");
    let given = printed_json(&mut embed(&["one", "", "two"]));
    assert_eq!(found, given);
    for dash in [&["-"][..], &["--input", "-"]] {
        let piped = printed_json(embed(dash).stdin(fs::File::open(&lines).expect("there")));
        assert_eq!(piped, given, "{dash:?}");
    }
    let blank = folder.write("lines.jsonl", "\"one\"\n\n");
    assert!(refusal(&mut embed(&["--input", &blank])).contains("line 2 of"));
    let empty = folder.write("empty.txt", "");
    let output = run(&mut embed(&["--input", &empty]));
    assert!(output.status.success() && text(&output.stderr).contains("nothing to embed"));
}

#[test]
fn an_embedding_model_is_described_and_says_what_it_is_for() {
    let Some(model) = embedding_model() else { return };
    let report = printed_json(&mut gemma(["inspect", &model, "--json"]));
    assert_eq!((&report["family"], &report["dtype"]), (&json!("EmbeddingGemma"), &json!("f32")));
    assert_eq!((&report["missing"], &report["unexpected"]), (&json!([]), &json!([])));
    let told = printed(&mut gemma(["inspect", &model]));
    assert!(told.contains("as stored") && told.contains(" as f32"), "{told}");
    for arguments in [
        &["bench", "--model", &model][..],
        &["generate", "--model", &model, "x"],
        &["score", "-m", &model, "--text", "x"],
    ] {
        let said = refusal(&mut gemma(arguments.iter().copied()));
        assert!(said.contains("makes vectors and no text"), "{said}");
    }
    let folder = Folder::new();
    let said = refusal(&mut gemma(["convert", &model, &folder.name("x.gguf")]));
    assert!(said.contains("`gemma embed` opens its folders and GGUF files"), "{said}");
}

/// A small EmbeddingGemma among the fixtures.
fn embedding_model() -> Option<String> {
    let Some(shared) = std::env::var_os("GEMMA_TEST_SHARED") else {
        println!("skipped: GEMMA_TEST_SHARED is not set");
        return None;
    };
    let folder = std::path::Path::new(&shared).join("reference/newer/embeddinggemma/f32");
    folder.is_dir().then(|| folder.display().to_string())
}

#[test]
fn completions_are_not_written_to_standard_input() {
    let said = refusal(&mut gemma(["infill", "-", "--at", "1", "--write"]));
    assert!(said.contains("name the file, or leave out --write"), "{said}");
    let folder = Folder::new();
    let ids = folder.write("ids.json", "[2, 5]");
    let data = folder.write("data.jsonl", "{\"text\": \"The cat sat.\"}");
    for arguments in [
        &["generate", "x", "-n", "1", "--save-state", "-"][..],
        &["logits", "--tokens-file", &ids, "--out", "-"],
        &["loss", "--tokens-file", &ids, "--gradients", "-"],
        &["detect", "shape", "demo:", "--out-dir", "-"],
        &["finetune", "--data", &data, "--out", "-"],
    ] {
        let said = refusal(gemma(arguments.iter().copied()).current_dir(folder.path("")));
        assert!(said.contains("- is no name of a file or folder to write"), "{said}");
    }
    assert_eq!(folder.files(), ["data.jsonl", "ids.json"]);
}

#[test]
fn other_files_are_shown_in_the_order_given() {
    let folder = Folder::new();
    let main = folder.write("main.py", "x = \n");
    let (b, a) = (folder.write("b.py", "B = 1\n"), folder.write("a.js", "A = 1\n"));
    let shown = |files: &[&str]| {
        let mut command = gemma(["infill", &main, "--at", "1", "--show-prompt"]);
        for file in files {
            command.args(["--context", file]);
        }
        printed(&mut command)
    };
    let place = |prompt: &str, text: &str| prompt.find(text).expect("shown");
    let (one, other) = (shown(&[&b, &a]), shown(&[&a, &b]));
    assert!(place(&one, "B = 1") < place(&one, "A = 1"), "{one}");
    assert!(place(&other, "A = 1") < place(&other, "B = 1"), "{other}");
    let said = refusal(&mut gemma(["infill", &main, "--at", "1", "--context", "/nonexistent"]));
    assert!(said.contains("no such file or folder"), "{said}");
}

/// What was answered before is drawn without the model, and another question has pictures of its own.
#[test]
fn kept_answers_are_drawn() {
    let folder = Folder::new();
    let out = folder.name("found");
    let detect = |what: &str, more: &[&str]| {
        let mut command = gemma(["detect", what, "demo:", "--out-dir", &out]);
        command.args(more);
        run(&mut command)
    };
    let drawings = || {
        let names =
            fs::read_dir(&out).expect("made").flatten().map(|entry| entry.file_name().into_string().expect("UTF-8"));
        let mut names: Vec<String> = names.filter(|name| name.ends_with(".detect.png")).collect();
        names.sort();
        names
    };
    assert!(detect("shape", &["--draw"]).status.success());
    let fresh = drawings();
    assert_eq!(fresh.len(), 3, "{fresh:?}");
    let pictures: Vec<Vec<u8>> =
        fresh.iter().map(|name| fs::read(folder.path("found").join(name)).expect("there")).collect();
    fresh.iter().for_each(|name| fs::remove_file(folder.path("found").join(name)).expect("removed"));
    let again = detect("shape", &["--draw", "--crop"]);
    assert!(
        again.status.success() && text(&again.stderr) == "all 3 images were done before\n",
        "{}",
        text(&again.stderr)
    );
    for (name, picture) in fresh.iter().zip(&pictures) {
        assert!(fs::read(folder.path("found").join(name)).expect("drawn") == *picture, "{name}");
    }
    assert!(drawings().iter().any(|name| name.ends_with(".shape.1.detect.png")), "{:?}", drawings());
    let before = drawings().len();
    assert!(detect("red circle", &["--draw"]).status.success());
    assert_eq!(drawings().len(), before + 3, "nothing is replaced");
}

#[test]
fn what_lies_in_the_cache_is_listed() {
    let folder = Folder::new();
    fs::create_dir_all(folder.path("hub/models--someone--gemma-3-270m-it-GGUF/blobs")).expect("made");
    fs::write(folder.path("hub/models--someone--gemma-3-270m-it-GGUF/blobs/a"), vec![0; 2000]).expect("written");
    let list = |more: &[&str]| {
        let mut command = gemma(["models"]);
        command.args(more).env("HF_HOME", folder.path(""));
        command
    };
    let told = printed(&mut list(&[]));
    assert!(told.contains("someone/gemma-3-270m-it-GGUF") && told.contains("2 kB"), "{told}");
    assert!(printed(&mut list(&["someone"])).contains("gemma models rm ID"));
    let others = printed_json(&mut list(&["--json"]))["others"].clone();
    assert_eq!(others, json!([{"id": "someone/gemma-3-270m-it-GGUF", "bytes": 2000}]));
    assert_eq!(printed(&mut list(&["ls"])).lines().count(), told.lines().count());
    assert!(!printed(&mut list(&["gemma-2-2b"])).contains("someone"));
}

/// Families that are not computed yet are called by their names, and so are built-in models that do not exist.
#[test]
fn later_families_are_named() {
    for (kind, family) in [("gemma4_text", "Gemma 4"), ("gemma3n", "Gemma 3n"), ("gemma5", "Gemma 5")] {
        let folder = Folder::with_demo();
        folder.configure(|config| drop(config.insert("model_type".to_owned(), json!(kind))));
        let said = refusal(&mut gemma(["generate", "-m", &folder.name(""), "x"]));
        assert!(
            said.contains(&format!("this is a {family} model, which is not computed yet; Gemma 1, 2 and 3")),
            "{said}"
        );
    }
    let folder = Folder::with_demo();
    folder.configure(|config| drop(config.insert("model_type".to_owned(), json!("llama"))));
    assert!(refusal(&mut gemma(["generate", "-m", &folder.name(""), "x"])).contains("is not an architecture of"));
    assert!(refusal(&mut gemma(["generate", "-m", "demo:gemma3", "x"])).contains("no built-in model demo:gemma3"));
}

#[test]
fn advice_names_what_was_typed() {
    let offline = |flag: Option<&str>| {
        let mut command = gemma(["generate", "-m", "google/gemma-2-2b", "x"]);
        command.args(flag);
        if flag.is_some() {
            command.env("HF_HUB_OFFLINE", "0");
        }
        refusal(&mut command)
    };
    assert!(offline(Some("--offline")).contains("leave out --offline"));
    assert!(offline(None).contains("unset HF_HUB_OFFLINE"));
    for (arguments, says) in [
        (&["generate", "x", "--top-p", "2"][..], "--top-p is 2"),
        (&["score", "--text", "abc", "--context", "1"], "--context is 1"),
        (&["tokenize", "--foo"], "`gemma tokenize --help` shows"),
    ] {
        let said = refusal(&mut gemma(arguments.iter().copied()));
        assert!(said.contains(says), "{said}");
    }
}

#[test]
fn ids_become_text_again() {
    let ids = printed_json(&mut gemma(["tokenize", "--json", "--no-bos", "Once upon a time"]))["tokens"].to_string();
    assert_eq!(printed(&mut gemma(["tokenize", "--ids", &ids])), "Once upon a time\n");
    assert!(refusal(&mut gemma(["tokenize", "--ids", "2 x"])).contains("no token id"));
    assert!(refusal(&mut gemma(["tokenize", "--ids", "4000000000"])).contains("not in the vocabulary"));
    let cut = printed(&mut gemma(["tokenize", "--", "--foo"]));
    assert!(!cut.is_empty(), "behind -- everything is text");
}

#[test]
fn help_is_asked_for_in_several_ways() {
    let help = printed(&mut gemma(["infill", "--help"]));
    assert_eq!(printed(&mut gemma(["help", "infill"])), help);
    assert_eq!(printed(&mut gemma(["help"])), printed(&mut gemma(["--help"])));
    let script = printed(&mut gemma(["completions", "bash"]));
    for value in ["q8_0 q4_0", "ndarray flex wgpu vulkan metal", "q5_k q6_k"] {
        assert!(script.contains(value), "{value}");
    }
    let help = printed(&mut gemma(["embed", "--help"]));
    assert!(!help.contains("--mmproj") && !help.contains("--inclusive-window"), "{help}");
    assert_eq!(
        printed(&mut gemma(["generate", "x", "-n", "-1", "--temperature", "0", "--stop", "e"])).lines().count(),
        1
    );
}

/// A reader that goes away ends a batch as it ends everything else: quietly.
#[cfg(unix)]
#[test]
fn a_batch_ends_quietly_when_nobody_reads_it() {
    let folder = Folder::new();
    let line = |id: usize| {
        let body = json!({"prompt": "Once", "max_tokens": 2});
        json!({"custom_id": id.to_string(), "method": "POST", "url": "/v1/completions", "body": body}).to_string()
            + "\n"
    };
    let requests = folder.write("requests.jsonl", (0..50).map(line).collect::<String>());
    let mut command = gemma(["batch", &requests, "--out", "-"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
}

#[test]
fn a_model_without_a_chat_template_is_noted_once() {
    let folder = Folder::with_demo();
    let name = folder.name("");
    let noted = |arguments: &[&str]| {
        text(&chat(arguments, "What is 2 plus 3?\nAnd plus 1?\n").stderr).matches("no chat template").count()
    };
    assert_eq!((noted(&[]), noted(&["-m", &name])), (0, 0));
    // whichever of the two files has it
    let _ = fs::remove_file(folder.path("chat_template.jinja"));
    let config = folder.path("tokenizer_config.json");
    if let Ok(bytes) = fs::read(&config) {
        let mut content: Value = serde_json::from_slice(&bytes).expect("JSON");
        content.as_object_mut().expect("an object").remove("chat_template");
        fs::write(&config, content.to_string()).expect("written");
    }
    assert_eq!((noted(&["-m", &name]), noted(&["-m", &name, "--template", "builtin"])), (1, 0));
    let said = run(&mut gemma(["generate", "-m", &name, "--chat", "What is 2 plus 3?", "-n", "4"]));
    assert!(text(&said.stderr).contains("no chat template"), "{}", text(&said.stderr));
    let warned = run(&mut gemma(["moderate", "-m", &name, "a text"]));
    assert!(
        text(&warned.stderr).contains("only a ShieldGemma judges") || text(&warned.stderr).contains("mean nothing")
    );
}
