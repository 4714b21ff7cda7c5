//! Fine-tuning from the outside: what is written, what is refused, and going on after a kill.

#[allow(dead_code, reason = "other tests use the rest")]
mod program;
#[allow(unreachable_pub, reason = "it belongs to the library of the end-to-end tests")]
#[path = "../../../tests/src/tiny.rs"]
mod tiny;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use program::{gemma as program_with, printed, printed_json, refusal, run, text};
use serde_json::Value;
use tempfile::TempDir;

const DATA: &str = r#"{"text": "The cat sat on the mat."}
{"prompt": "One plus one is", "completion": " two."}
{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]}
{"text": "Once upon a time there was a king who had three sons."}
"#;
const PREFERENCES: &str = r#"{"prompt": "Once upon a time there was", "chosen": " a king.", "rejected": " a tree."}
{"prompt": "The cat sat on", "chosen": " the mat.", "rejected": " the moon."}
"#;

fn gemma() -> Command {
    program_with([""; 0])
}

fn temporary() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn data(folder: &Path, name: &str, lines: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, lines).expect("written");
    path
}

/// A small training of `DATA` in `folder`, written to `out` there.
fn finetune(folder: &Path, out: &str, more: &[&str]) -> Command {
    finetune_with(gemma(), folder, out, more)
}

/// The same of a program whose first arguments are there.
fn finetune_with(mut command: Command, folder: &Path, out: &str, more: &[&str]) -> Command {
    command.args(["finetune", "--json"]);
    for (flag, value) in [("--rank", "2"), ("--batch", "2"), ("--learning-rate", "1e-2"), ("--threads", "1")] {
        if !more.contains(&flag) {
            command.args([flag, value]);
        }
    }
    command.arg("--data").arg(data(folder, "data.jsonl", DATA)).arg("--out").arg(folder.join(out)).args(more);
    command
}

fn number(report: &Value, name: &str) -> f64 {
    report[name].as_f64().unwrap_or_else(|| panic!("{name} is no number: {report}"))
}

fn adapter_of(folder: &Path, out: &str) -> Vec<u8> {
    fs::read(folder.join(out).join("adapter_model.safetensors")).expect("an adapter")
}

/// Waits for a file that a training writes.
fn wait_for(file: &Path) {
    let begin = Instant::now();
    while !file.is_file() && begin.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(file.is_file(), "{} was not written", file.display());
}

#[test]
fn a_training_learns_and_what_it_writes_is_used() {
    let folder = temporary();
    let report = printed_json(&mut finetune(folder.path(), "lora", &["--steps", "30"]));
    assert!(number(&report, "last_loss") < 0.7 * number(&report, "first_loss"), "{report}");
    let out = folder.path().join("lora");
    for file in
        ["adapter_config.json", "adapter_model.safetensors", "metrics.jsonl", "loss.svg", "training_state.safetensors"]
    {
        assert!(out.join(file).is_file(), "{file}");
    }
    assert_eq!(fs::read_to_string(out.join("metrics.jsonl")).expect("text").lines().count(), 30);

    // the adapter changes what is computed, beside the weights and merged
    let ids = data(folder.path(), "ids.json", "[2, 20, 30, 40, 50]");
    let score = |more: &[&str]| {
        let report = printed_json(gemma().args(["score", "--json", "--tokens-file"]).arg(&ids).args(more));
        number(&report, "total_log_prob")
    };
    let adapter = out.to_str().expect("UTF-8");
    let (base, with) = (score(&[]), score(&["--adapter", adapter]));
    assert!((base - with).abs() > 1e-3, "{base} {with}");
    assert!((score(&["--adapter", &format!("{adapter}=0")]) - base).abs() < 1e-5);
    let half = format!("{adapter}=0.5");
    assert!((score(&["--adapter", &half, "--adapter", &half]) - with).abs() < 1e-3, "two halves are a whole");
    let merged = folder.path().join("merged");
    printed(gemma().args(["merge", "--format", "f32", "--adapter", adapter]).arg(&merged));
    assert!((score(&["--model", merged.to_str().expect("UTF-8")]) - with).abs() < 2e-2);
    let generated = |more: &[&str]| printed(gemma().args(["generate", "--temperature", "0", "The cat sat"]).args(more));
    assert_ne!(generated(&["--adapter", adapter]), generated(&[]));
}

#[test]
fn a_killed_training_goes_on_as_if_it_had_not_been() {
    let folder = temporary();
    let more = ["--steps", "40", "--save-every", "3"];
    printed(&mut finetune(folder.path(), "whole", &more));
    let mut killed = finetune(folder.path(), "killed", &more).spawn().expect("the program starts");
    wait_for(&folder.path().join("killed/training_state.safetensors"));
    let adapter = folder.path().join("killed/adapter_model.safetensors");
    assert!(adapter.is_file(), "the state is written last: where there is one, there is all that belongs to it");
    killed.kill().expect("it was running");
    killed.wait().expect("it ends");
    let line = refusal(&mut finetune(folder.path(), "killed", &more));
    assert!(line.contains("--resume"), "an unfinished training is not overwritten without being asked: {line}");
    let line = refusal(&mut finetune(folder.path(), "killed", &[&more[..], &["--resume", "--seed", "1"]].concat()));
    assert!(line.contains("other settings (--seed was 0 and is 1)"), "{line}");
    let line = refusal(&mut finetune(folder.path(), "killed", &["--save-every", "3", "--steps", "30", "--resume"]));
    assert!(line.contains("--steps was 40 and is 30"), "{line}");
    printed(&mut finetune(folder.path(), "killed", &[&more[..], &["--resume"]].concat()));
    assert!(adapter_of(folder.path(), "whole") == adapter_of(folder.path(), "killed"), "the same, to the bit");
    // a finished training has nothing left to do
    let again = printed_json(&mut finetune(folder.path(), "killed", &[&more[..], &["--resume"]].concat()));
    assert_eq!(number(&again, "steps"), 40.0);
    // and goes on to more steps
    let more = ["--steps", "44", "--resume"];
    assert_eq!(number(&printed_json(&mut finetune(folder.path(), "killed", &more)), "steps"), 44.0);
}

/// With a constant learning rate, and its warm-up over, more steps are those of a longer training.
#[test]
fn more_steps_at_a_constant_rate_are_those_of_a_longer_training() {
    let folder = temporary();
    let constant = |steps: &'static str| ["--schedule", "constant", "--warmup", "2", "--steps", steps];
    printed(&mut finetune(folder.path(), "whole", &constant("9")));
    printed(&mut finetune(folder.path(), "longer", &constant("5")));
    printed(&mut finetune(folder.path(), "longer", &[&constant("9")[..], &["--resume"]].concat()));
    assert!(adapter_of(folder.path(), "whole") == adapter_of(folder.path(), "longer"), "the same, to the bit");
}

#[cfg(unix)]
#[test]
fn an_interrupted_training_is_saved() {
    let folder = temporary();
    let more = ["--steps", "100000", "--save-every", "2"];
    let child = finetune(folder.path(), "lora", &more).stdout(std::process::Stdio::piped()).spawn();
    let child = child.expect("the program starts");
    wait_for(&folder.path().join("lora/training_state.safetensors"));
    let line = refusal(&mut finetune(folder.path(), "lora", &["--steps", "4", "--resume"]));
    assert!(line.contains("is being written by another run"), "{line}");
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.expect("kill runs").success());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(report["interrupted"], true);
    let lines = fs::read_to_string(folder.path().join("lora/metrics.jsonl")).expect("text").lines().count();
    assert_eq!(number(&report, "steps"), lines as f64, "what was done is what was saved");
}

/// No file may grow beyond a limit: what a full disk does to a program, without one.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_last_good_state() {
    let folder = temporary();
    let more = ["--steps", "60", "--save-every", "2"];
    printed(&mut finetune(folder.path(), "whole", &more));
    let limited = |blocks: u32, more: &[&str]| {
        let mut shell = Command::new("sh");
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        shell.args(["-c", &script]).arg(env!("CARGO_BIN_EXE_gemma")).env("HF_HUB_OFFLINE", "1");
        finetune_with(shell, folder.path(), "full", more)
    };
    let line = refusal(&mut limited(8, &more));
    assert!(line.contains("full"), "{line}");
    assert!(!folder.path().join("full/adapter_model.safetensors").exists(), "nothing half written");
    let state = folder.path().join("full/training_state.safetensors");
    assert!(!state.exists());
    // some steps are saved, then the disk is full, then there is room again
    let mut killed = finetune(folder.path(), "full", &more).spawn().expect("the program starts");
    wait_for(&state);
    killed.kill().expect("it runs, or has just ended");
    killed.wait().expect("it ends");
    let before = fs::read(&state).expect("a state");
    let line = refusal(&mut limited(8, &[&more[..], &["--resume"]].concat()));
    assert!(line.contains("--resume"), "{line}");
    assert!(fs::read(&state).expect("a state") == before, "the last good state is as it was");
    printed(&mut finetune(folder.path(), "full", &[&more[..], &["--resume"]].concat()));
    assert!(adapter_of(folder.path(), "whole") == adapter_of(folder.path(), "full"), "the same, to the bit");
}

#[test]
fn every_family_learns_what_it_is_for() {
    let folder = temporary();
    let train = |model: &str, data: &Path, out: &str, more: &[&str]| {
        let mut command = gemma();
        command.args(["finetune", "--json", "--rank", "2", "--batch", "1", "--learning-rate", "1e-2", "--steps", "20"]);
        command.args(["--model", model, "--data"]).arg(data).arg("--out").arg(folder.path().join(out)).args(more);
        let report = printed_json(&mut command);
        assert!(number(&report, "last_loss") < 0.9 * number(&report, "first_loss"), "{model}: {report}");
        folder.path().join(out)
    };
    let one = data(folder.path(), "one.jsonl", "{\"text\": \"The cat sat on the mat.\"}\n");
    train("demo:recurrentgemma", &one, "recurrent", &[]);
    // whole texts have no hole, so that the loss is that of one text
    fs::create_dir(folder.path().join("src")).expect("a folder");
    data(&folder.path().join("src"), "main.py", "def add(a, b):\n    return a + b\n");
    let code = train("demo:codegemma", &folder.path().join("src"), "code", &["--fim-rate", "0"]);
    let file = folder.path().join("src/main.py");
    printed(gemma().args(["infill", "--at", "2:5", "-n", "4", "--adapter"]).arg(code).arg(file));
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/paligemma/demo/images");
    let image = fs::read_dir(images).expect("a folder").next().expect("an image").expect("an image").path();
    let line = serde_json::json!({ "image": image, "prefix": "caption en", "suffix": "a very large elephant" });
    let described = data(folder.path(), "images.jsonl", &format!("{line}\n"));
    let adapter = train("demo:paligemma", &described, "images", &[]);
    printed(gemma().args(["caption", "--adapter"]).arg(adapter).arg(image));
}

#[test]
fn gemma_3_and_vaultgemma_learn_beside_weights_of_any_format() {
    let folder = temporary();
    let one = data(folder.path(), "one.jsonl", "{\"text\": \"The cat sat on the mat.\"}\n");
    for kind in ["gemma3", "vaultgemma"] {
        let model = folder.path().join(kind);
        fs::create_dir(&model).expect("a folder");
        tiny::text_model(&model, kind, &program::folder::demo("gemma"), 3);
        let mut models = vec![(model.clone(), &[][..]), (model.clone(), &["--precision", "q8_0"][..])];
        if kind == "gemma3" {
            let gguf = folder.path().join("model.gguf");
            printed(gemma().args(["convert", "--format", "q8_0"]).arg(&model).arg(&gguf));
            models.push((gguf, &[]));
        }
        for (index, (model, more)) in models.into_iter().enumerate() {
            let out = folder.path().join(format!("{kind}-{index}"));
            let mut command = gemma();
            command.args(["finetune", "--json", "--rank", "2", "--batch", "1", "--learning-rate", "1e-2"]);
            command.args(["--steps", "20", "--model"]).arg(&model).args(more);
            let report = printed_json(command.arg("--data").arg(&one).arg("--out").arg(&out));
            assert!(number(&report, "last_loss") < 0.8 * number(&report, "first_loss"), "{kind}: {report}");
            let generated = |more: &[&Path]| {
                let mut command = gemma();
                command.args(["generate", "--temperature", "0", "-n", "6", "The cat", "--model"]).arg(&model);
                for adapter in more {
                    command.arg("--adapter").arg(adapter);
                }
                printed(&mut command)
            };
            assert_ne!(generated(&[&out]), generated(&[]), "{kind}: the adapter is used");
        }
    }
}

/// Pairs in words that the demo's tokenizer knows.
const PAIRS: &str = r#"{"query": "cat", "positive": "The king had three sons."}
{"anchor": "dog", "positive": "Once upon a time", "negative": "The tree is green."}
{"query": "sun", "positive": "Two plus two is four.", "negative": ["Good day", "Hello"]}
{"query": "tree", "positive": "Good night"}
"#;

#[test]
fn an_embedding_model_learns_what_belongs_together() {
    let folder = temporary();
    let model = folder.path().join("model");
    fs::create_dir(&model).expect("a folder");
    tiny::embedding_model(&model, &program::folder::demo("gemma"), 3);
    let pairs = data(folder.path(), "pairs.jsonl", PAIRS);
    let train = |out: &str, data: &Path, more: &[&str]| {
        let mut command = gemma();
        command.args(["finetune", "--json", "--rank", "4", "--learning-rate", "5e-3", "--steps", "30", "--model"]);
        command.arg(&model).arg("--data").arg(data).arg("--out").arg(folder.path().join(out)).args(more);
        command
    };
    let report = printed_json(&mut train("lora", &pairs, &["--eval", pairs.to_str().expect("UTF-8")]));
    assert!(number(&report, "last_loss") < 0.5 * number(&report, "first_loss"), "{report}");
    let evaluations = report["evaluations"].as_array().expect("a list");
    assert_eq!(number(&evaluations[1], "accuracy"), 1.0, "{report}");
    assert!(number(&evaluations[1], "eval_loss") < 0.5 * number(&evaluations[0], "eval_loss"), "{report}");
    let out = folder.path().join("lora");

    // as PEFT names the modules of a transformer without a head
    let config: Value =
        serde_json::from_slice(&fs::read(out.join("adapter_config.json")).expect("a file")).expect("JSON");
    assert_eq!(config["task_type"], "FEATURE_EXTRACTION");
    let factors = safetensors::SafeTensors::deserialize(&adapter_of(folder.path(), "lora")).map(|file| {
        file.names().iter().any(|name| **name == *"base_model.model.layers.0.self_attn.q_proj.lora_A.weight")
    });
    assert!(factors.expect("a safetensors file"));

    // the vectors are those of the adapter
    let vector = |task: &str, text: &str, more: &[&Path]| -> Vec<f64> {
        let mut command = gemma();
        command.args(["embed", "--json", "--task", task, text, "--model"]).arg(&model);
        for adapter in more {
            command.arg("--adapter").arg(adapter);
        }
        serde_json::from_value(printed_json(&mut command)["embeddings"][0].clone()).expect("numbers")
    };
    let cosine = |more: &[&Path], text: &str| -> f64 {
        let (query, text) = (vector("query", "cat", more), vector("document", text, more));
        query.iter().zip(&text).map(|(a, b)| a * b).sum()
    };
    let margin = |more: &[&Path]| cosine(more, "The king had three sons.") - cosine(more, "Good night");
    assert!(margin(&[&out]) > margin(&[]) + 0.1, "{} {}", margin(&[&out]), margin(&[]));

    let mut merge = gemma();
    merge.args(["merge", "--model"]).arg(&model).arg("--adapter").arg(&out).arg(folder.path().join("merged"));
    assert!(refusal(&mut merge).contains("gemma embed"));
    let texts = data(folder.path(), "texts.jsonl", "{\"text\": \"The cat\"}\n");
    let line = refusal(&mut train("x", &texts, &[]));
    assert!(line.contains("line 1") && line.contains("query and positive"), "{line}");
    let line = refusal(&mut train("x", &pairs, &["--method", "full"]));
    assert!(line.contains("--method lora"), "{line}");
    let line = refusal(&mut train("x", &pairs, &["--query-task", "poetry"]));
    assert!(line.contains("poetry") && line.contains("similarity"), "{line}");
    let line = refusal(gemma().args(["finetune", "--out", "x", "--data"]).arg(&pairs));
    assert!(line.contains("EmbeddingGemma"), "{line}");
    let lonely = data(folder.path(), "one.jsonl", "{\"query\": \"cat\", \"positive\": \"The cat\"}\n");
    let line = refusal(&mut train("x", &lonely, &[]));
    assert!(line.contains("negatives"), "{line}");
}

#[test]
fn boxes_of_a_coco_file_are_learned() {
    let folder = temporary();
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/paligemma/demo/images");
    let size = image_size(&images.join("shapes1.png"));
    let instances = |file: &str| {
        let text = serde_json::json!({
            "info": {"year": 2026},
            "images": [{"id": 5, "file_name": file, "width": size.0, "height": size.1}],
            "annotations": [
                {"id": 1, "image_id": 5, "category_id": 2, "bbox": [96, 32, 96, 96], "iscrowd": 0, "segmentation": [[1, 2]]},
                {"id": 2, "image_id": 5, "category_id": 2, "bbox": [0, 0, 5, 5], "iscrowd": 1},
            ],
            "categories": [{"id": 2, "name": "orange"}],
        });
        data(folder.path(), "instances.json", &serde_json::to_string_pretty(&text).expect("JSON"))
    };
    let train = |out: &str| {
        let mut command = gemma();
        command.args(["finetune", "--json", "--model", "demo:paligemma", "--rank", "4", "--batch", "1"]);
        command.args(["--learning-rate", "5e-3", "--steps", "40", "--image-folder"]).arg(&images);
        command.arg("--data").arg(folder.path().join("instances.json")).arg("--out").arg(folder.path().join(out));
        command
    };
    instances("shapes1.png");
    let report = printed_json(&mut train("lora"));
    assert!(number(&report, "last_loss") < 0.2 * number(&report, "first_loss"), "{report}");
    let found = printed_json(
        gemma()
            .args(["detect", "--json", "-w", "orange", "--model", "demo:paligemma", "--adapter"])
            .arg(folder.path().join("lora"))
            .arg(images.join("shapes1.png")),
    );
    let object = &found[0]["answers"][0]["objects"][0];
    assert_eq!(object["label"], "orange", "{found}");
    let bbox: Vec<f64> = serde_json::from_value(object["bbox"].clone()).expect("four numbers");
    assert_eq!(
        bbox.iter().map(|edge| edge.round()).collect::<Vec<_>>(),
        [96.0, 32.0, 96.0, 96.0],
        "as it was annotated"
    );
    instances("nowhere.png");
    let line = refusal(&mut train("x"));
    assert!(line.contains("nowhere.png") && line.contains("--image-folder"), "{line}");
    data(folder.path(), "instances.json", "{\n\"images\": []}");
    let line = refusal(&mut train("x"));
    assert!(line.contains("COCO"), "{line}");
}

/// Width and height of a PNG file.
fn image_size(file: &Path) -> (u32, u32) {
    let bytes = fs::read(file).expect("an image");
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    (number(16), number(20))
}

#[test]
fn every_parameter_can_be_trained() {
    let folder = temporary();
    let more = ["--steps", "10", "--method", "full", "--learning-rate", "1e-3"];
    let report = printed_json(&mut finetune(folder.path(), "full", &more));
    assert!(number(&report, "last_loss") < number(&report, "first_loss"), "{report}");
    let model = folder.path().join("full/model");
    printed(gemma().args(["generate", "-n", "4", "The cat", "--model"]).arg(&model));
    assert!(!folder.path().join("full/adapter_config.json").exists());
}

#[test]
fn an_adapter_is_written_for_llama_cpp() {
    let folder = temporary();
    printed(&mut finetune(folder.path(), "lora", &["--steps", "1"]));
    let target = folder.path().join("lora.gguf");
    let write = || {
        let mut command = gemma();
        command.args(["merge", "--only-adapter", "--adapter"]).arg(folder.path().join("lora")).arg(&target);
        command
    };
    printed(&mut write());
    let bytes = fs::read(&target).expect("a file");
    assert!(bytes.starts_with(b"GGUF") && String::from_utf8_lossy(&bytes).contains("blk.0.attn_q.weight.lora_a"));
    assert!(refusal(&mut write()).contains("--force"));
    // it is not taken for a model
    let line = refusal(gemma().args(["generate", "x", "--model"]).arg(&target));
    assert!(line.contains("LoRA adapter"), "{line}");
}

#[test]
fn preferences_are_learned_and_measured() {
    let folder = temporary();
    let pairs = data(folder.path(), "pairs.jsonl", PREFERENCES);
    let report = printed_json(
        gemma()
            .args(["finetune", "--json", "--rank", "2", "--batch", "2", "--learning-rate", "5e-3", "--steps", "15"])
            .arg("--data")
            .arg(&pairs)
            .arg("--eval")
            .arg(&pairs)
            .arg("--out")
            .arg(folder.path().join("dpo")),
    );
    assert!((number(&report, "first_loss") - 2f64.ln()).abs() < 1e-3, "no preference at first: {report}");
    assert!(number(&report, "last_loss") < 0.6, "{report}");
    let evaluations = report["evaluations"].as_array().expect("a list");
    assert_eq!(evaluations.len(), 2, "before and after");
    assert!(number(&evaluations[1], "eval_loss") < number(&evaluations[0], "eval_loss"));
}

#[test]
fn a_dry_run_says_what_it_takes_and_writes_nothing() {
    let folder = temporary();
    let report = printed_json(&mut finetune(folder.path(), "none", &["--steps", "10", "--dry-run"]));
    assert_eq!((number(&report, "steps"), number(&report, "examples")), (10.0, 4.0));
    assert!(number(&report, "seconds") > 0.0 && number(&report, "trainable_parameters") > 0.0, "{report}");
    assert!(!folder.path().join("none").exists());
}

#[test]
fn losses_and_gradients_have_names() {
    let folder = temporary();
    let ids = data(folder.path(), "ids.json", "[2, 20, 30, 40, 50]");
    let gradients = folder.path().join("gradients.safetensors");
    let loss = |more: &[&std::ffi::OsStr]| {
        number(&printed_json(gemma().args(["loss", "--json", "--tokens-file"]).arg(&ids).args(more)), "loss")
    };
    let names = || {
        let bytes = fs::read(&gradients).expect("a file");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
        file.names().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let plain = loss(&["--exact-activations".as_ref()]);
    let with = loss(&["--exact-activations".as_ref(), "--gradients".as_ref(), gradients.as_os_str()]);
    assert!((plain - with).abs() < 1e-4, "{plain} {with}");
    assert!(names().contains(&"model.layers.0.self_attn.q_proj.weight".to_owned()));

    printed(&mut finetune(folder.path(), "lora", &["--steps", "2"]));
    let adapter = folder.path().join("lora");
    loss(&["--adapter".as_ref(), adapter.as_os_str(), "--gradients".as_ref(), gradients.as_os_str()]);
    assert!(names().iter().all(|name| name.starts_with("base_model.model.") && name.contains(".lora_")));
}

#[test]
fn bad_lines_stop_or_are_counted() {
    let folder = temporary();
    let bad =
        data(folder.path(), "bad.jsonl", "{\"text\": \"a b c\"}\n{\"txt\": 1}\nnot JSON\n{\"text\": \"d e f\"}\n");
    let of = |more: &[&str]| {
        let mut command = gemma();
        command.args(["finetune", "--json", "--steps", "1", "--data"]).arg(&bad);
        command.arg("--out").arg(folder.path().join("x")).args(more);
        command
    };
    let line = refusal(&mut of(&[]));
    assert!(line.contains("line 2") && line.contains("txt"), "{line}");
    assert!(!folder.path().join("x").exists(), "nothing is written before it is known to work");
    let report = printed_json(&mut of(&["--skip-bad-lines", "--max-length", "3"]));
    assert_eq!(number(&report, "skipped_lines"), 2.0);
    assert_eq!(number(&report, "truncated_examples"), 2.0);
    assert!(number(&report, "truncated_tokens") >= 2.0);
}

#[test]
fn mistakes_are_named() {
    let folder = temporary();
    for (more, word) in [
        (&["--target", "nothing_proj"][..], "projection"),
        (&["--learning-rate", "-1"], "--learning-rate is -1"),
        (&["--rank", "0"], "from 1 to"),
        (&["--alpha", "nan"], "must be a number"),
        (&["--eval", "/nonexistent.jsonl"], "/nonexistent.jsonl"),
        (&["--adapter", "/nonexistent"], "gemma merge"),
        (&["--model", "/nonexistent"], "/nonexistent"),
    ] {
        let line = refusal(&mut finetune(folder.path(), "x", more));
        assert!(line.contains(word), "{more:?}: {line}");
    }
    let line = refusal(gemma().args(["finetune", "--data", "/nonexistent.jsonl", "--out", "x"]));
    assert!(line.contains("/nonexistent.jsonl"), "{line}");
    let line = refusal(gemma().args(["generate", "--adapter"]).arg(folder.path()).arg("x"));
    assert!(line.contains("adapter_config.json"), "{line}");
    let line = refusal(gemma().args(["merge"]).arg(folder.path().join("m")));
    assert!(line.contains("--adapter"), "{line}");
    assert!(!folder.path().join("x").exists(), "nothing is written before it is known to work");

    // an adapter of another model is refused by the module that does not fit
    printed(&mut finetune(folder.path(), "lora", &["--steps", "1"]));
    let other = ["generate", "--model", "demo:recurrentgemma", "x", "--adapter"];
    let line = refusal(gemma().args(other).arg(folder.path().join("lora")));
    assert!(line.contains("another model"), "{line}");
    // a cut file is refused
    let file = folder.path().join("lora/adapter_model.safetensors");
    let bytes = fs::read(&file).expect("an adapter");
    fs::write(&file, &bytes[..bytes.len() / 2]).expect("written");
    let output = run(gemma().args(["generate", "x", "--adapter"]).arg(folder.path().join("lora")));
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
}
