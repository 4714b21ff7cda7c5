//! The program as a user meets it: what it prints, what it writes, and how it says no.
//!
//! Every mistake must end in one line on standard error and exit code 2, with nothing written.

mod program;

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};

use program::folder::Folder;
use program::{gemma, printed, printed_json, refusal, run, text};

/// Tensors by name: type, shape, bytes.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Changing the tensors of a folder.
trait Retensor {
    fn retensor(&self, change: impl FnOnce(&mut Tensors));
}

impl Retensor for Folder {
    /// Changes the tensors.
    fn retensor(&self, change: impl FnOnce(&mut Tensors)) {
        let bytes = fs::read(self.path("model.safetensors")).expect("readable");
        let parsed = SafeTensors::deserialize(&bytes).expect("well formed");
        let owned = |view: TensorView<'_>| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
        let mut tensors = parsed.tensors().into_iter().map(|(name, view)| (name, owned(view))).collect();
        change(&mut tensors);
        let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).expect("consistent"))
        });
        let file = safetensors::serialize(views, None).expect("serialized");
        self.write("model.safetensors", file);
    }
}

/// The vocabulary of the demo model.
fn demo_vocab() -> usize {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/gemma/demo/config.json");
    let config: Value = serde_json::from_slice(&fs::read(config).expect("readable")).expect("JSON");
    config["vocab_size"].as_u64().expect("a number") as usize
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes"))).collect()
}

/// The logits in a file, by tensor name.
fn read_logits(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = fs::read(path).expect("the file was written");
    let tensors = SafeTensors::deserialize(&bytes).expect("well formed");
    let owned = |view: TensorView<'_>| {
        assert_eq!(view.dtype(), Dtype::F32);
        (view.shape().to_vec(), floats(view.data()))
    };
    tensors.tensors().into_iter().map(|(name, view)| (name, owned(view))).collect()
}

fn assert_close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    let furthest = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(furthest < 1e-3, "they differ by {furthest}");
}

#[test]
fn the_demo_continues_a_text() {
    let story = printed(&mut gemma(["generate", "Once upon a time", "-n", "20", "--seed", "1"]));
    assert!(story.trim().len() > 20, "{story:?}");
    assert_eq!(story, printed(&mut gemma(["generate", "Once upon a time", "-n", "20", "--seed", "1"])));
}

#[test]
fn json_has_every_field_a_program_reads() {
    let arguments = ["generate", "Once upon a time", "-n", "7", "--temperature", "0", "--ignore-eos", "--json"];
    let report = printed_json(&mut gemma(arguments));
    assert_eq!(report["tokens"].as_array().map(Vec::len), Some(7));
    assert_eq!(report["finish_reason"], "length");
    assert!(report["text"].as_str().is_some_and(|text| !text.is_empty()));
    assert!(report["prompt_tokens"].as_u64().is_some_and(|count| count > 1));
    for time in ["load_seconds", "prompt_seconds", "decode_seconds"] {
        assert!(report["timings"][time].as_f64().is_some_and(|seconds| seconds > 0.0), "{time}");
    }
}

#[test]
fn drafts_change_no_text() {
    let prompt = "Tom saw a dog. The dog saw Tom. Tom saw a dog. The dog saw Tom. Tom saw";
    for options in [["--temperature", "0"], ["--seed", "3"]] {
        let of = |drafts: &[&str]| {
            let mut command = gemma(["generate", prompt, "-n", "60", "--ignore-eos", "--json"]);
            printed_json(command.args(options).args(drafts))
        };
        let plain = of(&[]);
        assert_eq!(plain["timings"]["draft_tokens"], Value::Null);
        for drafts in [
            &["--prompt-lookup"][..],
            &["--draft-model", "demo"],
            &["--draft-model", "demo", "--prompt-lookup", "--draft-max", "3"],
        ] {
            let drafted = of(drafts);
            assert_eq!(drafted["tokens"], plain["tokens"], "{options:?} {drafts:?}");
            let [offered, accepted] =
                ["draft_tokens", "accepted_tokens"].map(|name| drafted["timings"][name].as_u64().unwrap_or(0));
            assert!(accepted <= offered, "{drafted}");
        }
    }
    let said = refusal(&mut gemma(["generate", prompt, "--draft-model", "demo:codegemma"]));
    assert!(said.contains("draft model") && said.contains("same family"), "{said}");
    for wrong in ["0", "33", "-1", "x"] {
        refusal(&mut gemma(["generate", prompt, "--prompt-lookup", "--draft-max", wrong]));
    }
}

#[test]
fn token_numbers_are_read_exactly_as_given() {
    let folder = Folder::new();
    let tokens = printed_json(&mut gemma(["tokenize", "--json", "Once upon a time"]))["tokens"].clone();
    let file = folder.write("ids.json", tokens.to_string());
    let options = ["-n", "5", "--temperature", "0", "--json"];
    let by_number = printed_json(gemma(["generate", "--tokens-file", &file]).args(options));
    let by_text = printed_json(gemma(["generate", "Once upon a time"]).args(options));
    assert_eq!(by_number["tokens"], by_text["tokens"]);
    assert_eq!(by_number["prompt_tokens"], tokens.as_array().expect("a list").len());
    let without_first = Value::from(tokens.as_array().expect("a list")[1..].to_vec());
    let file = folder.write("shorter.json", without_first.to_string());
    let shorter = printed_json(gemma(["generate", "--tokens-file", &file]).args(options));
    assert_eq!(shorter["prompt_tokens"], tokens.as_array().expect("a list").len() - 1, "nothing is put in front");
}

#[test]
fn a_prompt_comes_from_a_file_or_from_standard_input() {
    let folder = Folder::new();
    let file = folder.write("prompt.txt", "Once upon a time");
    let options = ["-n", "5", "--temperature", "0"];
    let expected = printed(gemma(["generate", "Once upon a time"]).args(options));
    assert_eq!(printed(gemma(["generate", "-f", &file]).args(options)), expected);
    for arguments in [["generate", "-"].as_slice(), &["generate", "-f", "-"]] {
        let mut command = gemma([]);
        command.args(arguments).args(options).stdin(fs::File::open(&file).expect("readable"));
        assert_eq!(printed(&mut command), expected);
    }
}

#[test]
fn a_folder_on_disk_is_the_same_model_as_the_built_in_one() {
    let folder = Folder::with_demo();
    let options = ["-n", "8", "--temperature", "0", "--json", "Once upon a time"];
    let built_in = printed_json(gemma(["generate"]).args(options));
    let on_disk = printed_json(gemma(["generate", "--model", &folder.name("")]).args(options));
    assert_eq!(built_in["tokens"], on_disk["tokens"]);
}

#[test]
fn a_folder_without_a_tokenizer_answers_in_numbers() {
    let folder = Folder::with_demo();
    fs::remove_file(folder.path("tokenizer.json")).expect("removed");
    let ids = folder.write("ids.json", "[2, 5, 6]");
    let model = folder.name("");
    let arguments = ["generate", "--model", &model, "--tokens-file", &ids, "-n", "3", "--ignore-eos"];
    let report = printed_json(gemma(arguments).arg("--json"));
    assert_eq!((report["tokens"].as_array().map(Vec::len), &report["text"]), (Some(3), &Value::Null));
    assert_eq!(printed(&mut gemma(arguments)).split_whitespace().count(), 3);
    assert!(refusal(gemma(arguments).args(["--stop", "x"])).contains("tokenizer"));
    assert!(refusal(&mut gemma(["generate", "--model", &model, "hi"])).contains("tokenizer"));
    let scored = printed(&mut gemma(["score", "--model", &model, "--tokens", "--tokens-file", &ids]));
    assert!(scored.contains("scored tokens  2\n") && scored.contains("  5\n"), "{scored}");
}

#[test]
fn logits_do_not_depend_on_the_chunk_and_a_batch_holds_its_rows() {
    let folder = Folder::new();
    let (vocab, row) = (demo_vocab(), [2, 40, 41, 42, 43, 44, 45]);
    let one = folder.write("one.json", json!(row).to_string());
    let many = folder.write("many.json", json!([row, [2, 50, 51], [2]]).to_string());
    let write = |ids: &str, out: &str, more: &[&str]| {
        let out = folder.name(out);
        // many rows at once are otherwise rounded as a few are not
        printed(gemma(["logits", "--tokens-file", ids, "--out", &out, "--exact-activations"]).args(more));
        read_logits(Path::new(&out))
    };
    let whole = write(&one, "whole", &[]);
    let (shape, logits) = &whole["logits"];
    assert_eq!((whole.len(), shape.as_slice()), (1, [7, vocab].as_slice()));
    for chunk in ["1", "3", "7", "100"] {
        assert_close(logits, &write(&one, "chunked", &["--chunk", chunk])["logits"].1);
    }
    for more in [[].as_slice(), &["--chunk", "2"]] {
        let batch = write(&many, "batch", more);
        let shapes: Vec<_> = batch.values().map(|(shape, _)| shape.clone()).collect();
        assert_eq!(shapes, [[7, vocab], [3, vocab], [1, vocab]]);
        assert_close(logits, &batch["logits.0"].1);
        assert_close(&logits[..vocab], &batch["logits.2"].1);
    }
}

#[test]
fn tokenize_shows_pieces_and_keeps_control_tokens_out() {
    let plain = printed_json(&mut gemma(["tokenize", "--json", "a<end_of_turn>"]));
    let special = printed_json(&mut gemma(["tokenize", "--json", "--specials", "a<end_of_turn>"]));
    let bare = printed_json(&mut gemma(["tokenize", "--json", "--no-bos", "a<end_of_turn>"]));
    let pieces = |report: &Value| report["pieces"].as_array().expect("a list").clone();
    assert_eq!(pieces(&plain)[0], "<bos>");
    assert!(!pieces(&plain).contains(&json!("<end_of_turn>")));
    assert_eq!(pieces(&special).last(), Some(&json!("<end_of_turn>")));
    assert_eq!(pieces(&bare), pieces(&plain)[1..]);
    assert_eq!(plain["tokens"].as_array().map(Vec::len), Some(pieces(&plain).len()));
}

#[test]
fn tokenize_needs_no_weights() {
    let folder = Folder::with_demo();
    fs::remove_file(folder.path("model.safetensors")).expect("removed");
    let expected = printed(&mut gemma(["tokenize", "--json", "Hello there"]));
    for model in [folder.name(""), folder.name("tokenizer.json")] {
        assert_eq!(printed(&mut gemma(["tokenize", "--json", "--model", &model, "Hello there"])), expected);
    }
}

#[test]
fn score_gives_a_probability_per_token_and_their_perplexity() {
    let folder = Folder::new();
    let file = folder.write("text.txt", "Once upon a time there was a cat.");
    let report = printed_json(&mut gemma(["score", "--json", &file]));
    let log_probs = report["log_probs"].as_array().expect("a list");
    assert_eq!(log_probs.len(), report["tokens"].as_array().expect("a list").len());
    assert_eq!(log_probs[0], Value::Null);
    let known: Vec<f64> = log_probs[1..].iter().map(|value| value.as_f64().expect("a number")).collect();
    assert!(known.iter().all(|log_prob| *log_prob <= 0.0));
    let perplexity = (-known.iter().sum::<f64>() / known.len() as f64).exp();
    assert!((perplexity - report["perplexity"].as_f64().expect("a number")).abs() < 1e-9 * perplexity);
    let nonsense = folder.write("nonsense.txt", "was time cat a Once. there upon a");
    let worse = printed_json(&mut gemma(["score", "--json", &nonsense]));
    assert!(worse["perplexity"].as_f64() > report["perplexity"].as_f64());
    assert!(printed(&mut gemma(["score", &file])).contains("perplexity"));
}

#[test]
fn chat_reads_lines_from_a_pipe_and_remembers() {
    let mut chat = gemma(["chat", "--temperature", "0", "-n", "30"]);
    let mut chat = chat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program starts");
    let mut input = chat.stdin.take().expect("piped");
    input.write_all(b"What is 2 plus 3?\n\nWhat is 1 plus 1?\n").expect("written");
    drop(input);
    let output = chat.wait_with_output().expect("it ends");
    assert!(output.status.success());
    let answers: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
    assert!(answers.len() == 2 && answers[0].contains('5'), "{answers:?}");
    // What the conversation remembers is what its whole text says.
    let folder = Folder::new();
    let asked = |text: &str| format!("<start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n");
    let mut whole = String::from("<bos>");
    for (question, answer) in ["What is 2 plus 3?", "What is 1 plus 1?"].into_iter().zip(&answers) {
        whole += &asked(question);
        let tokens = printed_json(&mut gemma(["tokenize", "--specials", "--json", &whole]))["tokens"].to_string();
        let ids = folder.write("ids.json", tokens);
        let again = printed(&mut gemma(["generate", "--tokens-file", &ids, "--temperature", "0", "-n", "30"]));
        assert_eq!(again.trim_end(), answer);
        whole += &format!("{answer}<end_of_turn>\n");
    }
    let single = printed(&mut gemma(["generate", "--chat", "What is 2 plus 3?", "--temperature", "0", "-n", "30"]));
    assert_eq!(single.trim_end(), answers[0]);
}

#[test]
fn inspect_tells_the_demo_and_what_a_folder_lacks() {
    let report = printed_json(&mut gemma(["inspect", "--json"]));
    assert_eq!((report["family"].as_str(), report["vocab"].as_u64()), (Some("Gemma 2"), Some(demo_vocab() as u64)));
    assert!(report["memory_bytes"]["q8_0"].as_u64() < report["memory_bytes"]["bf16"].as_u64());
    assert_eq!(report["missing"], json!([]));
    assert!(printed(&mut gemma(["inspect"])).contains("Gemma 2"));
    let folder = Folder::with_demo();
    folder.retensor(|tensors| drop(tensors.remove("model.norm.weight")));
    let output = run(&mut gemma(["inspect", &folder.name(""), "--json"]));
    assert_eq!(output.status.code(), Some(2));
    let report: Value = serde_json::from_slice(&output.stdout).expect("the report is printed all the same");
    assert_eq!(report["missing"], json!(["model.norm.weight"]));
    assert!(text(&output.stderr).contains("model.norm.weight"));
}

#[test]
fn inspect_knows_released_checkpoints_that_are_not_here() {
    let report = printed_json(&mut gemma(["inspect", "google/gemma-2b", "--json"]));
    assert_eq!(report["parameters"], 2_506_172_416_u64);
    assert!(refusal(&mut gemma(["inspect", "someone/something"])).contains("gemma pull someone/something"));
}

#[test]
fn models_lists_what_was_released() {
    let listing = printed_json(&mut gemma(["models", "--json"]));
    let models = listing["models"].as_array().expect("a list");
    let big = models.iter().find(|model| model["id"] == "google/gemma-2-27b-it").expect("listed");
    assert_eq!((&big["arena"]["score"], &big["arena"]["votes"]), (&json!(1217), &json!(28_365)));
    assert_eq!(
        (&big["licence"], &big["released"], &big["context"]),
        (&json!("gemma"), &json!("2024-06"), &json!(8192))
    );
    assert_eq!(big["cached"]["complete"], false);
    assert!(printed(&mut gemma(["models", "recurrent"])).contains("google/recurrentgemma-9b-it"));
}

#[test]
fn bench_measures_the_demo_and_a_shape_is_checked() {
    let report = printed_json(&mut gemma([
        "bench", "--prompt", "16", "--decode", "4", "--depth", "8", "--repeat", "2", "--json",
    ]));
    for speed in ["load_seconds", "prefill_tokens_per_second", "decode_tokens_per_second"] {
        let [median, min, max] = ["", "_min", "_max"].map(|ending| report[format!("{speed}{ending}")].as_f64());
        assert!(min > Some(0.0) && min <= median && median <= max, "{speed}: {min:?} {median:?} {max:?}");
    }
    assert!(report["weight_bytes"].as_u64() > Some(0));
    assert!(report["first_token_seconds"].as_f64() > report["load_seconds_min"].as_f64());
    assert!(report["memory_part"].is_null(), "the demo may lie in a cache");
    let [all, table] = ["parameters", "embedding_parameters"].map(|name| report[name].as_u64());
    assert!(table > Some(0) && table < all, "{report}");
    let told = printed(&mut gemma(["bench", "--prompt", "4", "--decode", "2", "--repeat", "1"]));
    assert!(told.contains("first token") && told.contains("peak memory"), "{told}");
    let bandwidth = printed(&mut gemma(["bench", "--bandwidth", "--threads", "1"]));
    assert!(bandwidth.ends_with("B/s\n"), "{bandwidth}");
    let bandwidth = printed_json(&mut gemma(["bench", "--bandwidth", "--threads", "1", "--json"]));
    assert!(bandwidth["memory_bytes_per_second"].as_u64() > Some(1 << 20), "{bandwidth}");
    assert!(refusal(&mut gemma(["bench", "--bandwidth", "--shape", "gemma-2b"])).contains("--shape"));
    let together = printed_json(&mut gemma(["bench", "--sequences", "3", "--decode", "4", "--repeat", "1", "--json"]));
    assert_eq!(together["sequences"], 3);
    assert!(refusal(&mut gemma(["bench", "--sequences", "257"])).contains("256"));
    assert!(refusal(&mut gemma(["bench", "--prompt", "0", "--decode", "0"])).contains("nothing to measure"));
    assert!(refusal(&mut gemma(["bench", "--shape", "gemma-5b"])).contains("gemma-2b"));
    assert!(refusal(&mut gemma(["bench", "--depth", "1000000"])).contains("context"));
}

#[test]
fn help_is_printed_and_asked_for() {
    assert!(printed(&mut gemma(["--help"])).contains("gemma generate"));
    assert!(printed(&mut gemma(["generate", "--help"])).contains("Examples:"));
    assert!(printed(&mut gemma(["--version"])).starts_with("gemma "));
    assert_eq!(run(&mut gemma([])).status.code(), Some(2));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut command = gemma(["models", "--all", "--json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
}

#[test]
fn mistakes_in_arguments_are_one_line() {
    assert!(refusal(&mut gemma(["generate", "x", "--temperature", "NaN"])).contains("temperature"));
    assert!(refusal(&mut gemma(["generate", "x", "--temperature", "-1"])).contains("temperature"));
    assert!(refusal(&mut gemma(["generate", "x", "--top-p", "1.5"])).contains("--top-p is 1.5"));
    assert!(refusal(&mut gemma(["generate", "x", "--threads", "-1"])).contains("from 1 to"));
    assert!(refusal(&mut gemma(["generate", "x", "-n", "-2"])).contains("-2"));
    assert!(refusal(&mut gemma(["generate", ""])).contains("empty"));
    assert!(refusal(&mut gemma(["generate", "x", "--max-token", "3"])).contains("--max-tokens"));
    assert!(refusal(&mut gemma(["generate", "--max-token", "3", "x"])).contains("no flag --max-token;"));
    assert!(refusal(&mut gemma(["generate", "x", "--backend", "abacus"])).contains("abacus"));
    assert!(refusal(&mut gemma(["generate", "x", "--precision", "int3"])).contains("int3"));
    assert!(refusal(&mut gemma(["generate", "-f", "/nonexistent"])).contains("/nonexistent"));
    assert!(refusal(gemma(["generate", "x"]).env("GEMMA_BACKEND", "abacus")).contains("abacus"));
    assert!(refusal(gemma(["generate", "x"]).env("GEMMA_INSTRUCTIONS", "abacus")).contains("portable"));
    assert!(refusal(gemma(["generate", "x"]).env("GEMMA_PREFETCH_BYTES", "3k")).contains("3072"));
    assert!(refusal(gemma(["generate", "x"]).env("GEMMA_PREFETCH_BYTES", "64:l3")).contains("4096:l2"));
    let told = printed(gemma(["bench", "--prompt", "4", "--decode", "2"]).env("GEMMA_INSTRUCTIONS", "portable"));
    assert!(!told.contains("CPU") || told.contains("CPU, portable"), "{told}");
    assert!(refusal(&mut gemma(["frobnicate"])).contains("frobnicate"));
    assert!(refusal(&mut gemma(["models", "llama"])).contains("llama"));
}

#[test]
fn models_that_are_not_there_are_refused() {
    let folder = Folder::new();
    let file = folder.write("file", "x");
    for verb in [["generate", "x"].as_slice(), &["score", &file], &["inspect"], &["tokenize", "x"]] {
        let with = |model: &str| refusal(gemma([]).args(verb).args(["--model", model]));
        assert!(with("/no/such/path").contains("/no/such/path"));
        assert!(with(&folder.name("")).contains(&folder.name("")));
    }
    assert!(refusal(&mut gemma(["generate", "x", "--model", "google/gemma-2b"])).contains("offline"));
    assert!(refusal(&mut gemma(["pull", "google/gemma-2b"])).contains("offline"));
    assert!(refusal(&mut gemma(["pull", "not an id"])).contains("not an id"));
}

#[test]
fn configurations_that_cannot_be_used_are_refused() {
    let refused = |change: &dyn Fn(&Folder), word: &str| {
        let folder = Folder::with_demo();
        change(&folder);
        let line = refusal(&mut gemma(["generate", "x", "--model", &folder.name("")]));
        assert!(line.contains(word), "{line} does not say {word}");
    };
    let set = |field: &'static str, value: Value| {
        move |folder: &Folder| folder.configure(|config| drop(config.insert(field.into(), value.clone())))
    };
    refused(&|folder| fs::remove_file(folder.path("config.json")).expect("removed"), "config.json");
    refused(&|folder| drop(folder.write("config.json", "{\"model_type\": ")), "config.json");
    refused(&|folder| folder.configure(|config| drop(config.remove("hidden_size"))), "hidden_size");
    refused(&set("model_type", json!("llama")), "llama");
    refused(&set("hidden_size", json!(-64)), "config.json");
    refused(&set("num_hidden_layers", json!(1_000_000_000)), "num_hidden_layers");
    refused(&set("num_attention_heads", json!("four")), "config.json");
}

/// A model whose last norm is NaN computes nothing that could be told or written down.
#[test]
fn what_is_not_a_number_is_refused_by_everything_that_gives_numbers() {
    let folder = Folder::with_demo();
    folder.retensor(|tensors| {
        let (dtype, shape, _) = tensors["model.norm.weight"].clone();
        let bytes = [0xc0, 0x7f].repeat(shape.iter().product());
        assert_eq!(dtype, Dtype::BF16);
        tensors.insert("model.norm.weight".to_owned(), (dtype, shape, bytes));
    });
    let (ids, out) = (folder.write("ids.json", "[2, 300, 301, 302]"), folder.name("out.safetensors"));
    let before = folder.files();
    for arguments in [
        &["generate", "Once"][..],
        &["score", "--text", "Once upon"],
        &["loss", "--tokens-file", &ids],
        &["logits", "--tokens-file", &ids, "--out", &out],
        &["logits", "--tokens-file", &ids, "--json"],
    ] {
        let line = refusal(gemma(arguments.iter().copied()).args(["--model", &folder.name("")]));
        assert!(line.contains("NaN") && line.contains("check the checkpoint"), "{arguments:?}: {line}");
    }
    assert_eq!(folder.files(), before, "nothing may be left behind");
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_name() {
    let refused = |change: &dyn Fn(&mut Tensors), word: &str| {
        let folder = Folder::with_demo();
        folder.retensor(change);
        let (ids, out) = (folder.write("ids.json", "[2]"), folder.name("out.safetensors"));
        let before = folder.files();
        let line = refusal(&mut gemma(["logits", "--model", &folder.name(""), "--tokens-file", &ids, "--out", &out]));
        assert!(line.contains(word), "{line} does not say {word}");
        assert_eq!(folder.files(), before, "nothing may be left behind");
    };
    const NORM: &str = "model.norm.weight";
    refused(&|tensors| drop(tensors.remove(NORM)), NORM);
    refused(
        &|tensors| {
            let norm = tensors[NORM].clone();
            tensors.insert("model.extra.weight".to_owned(), norm);
        },
        "model.extra.weight",
    );
    refused(
        &|tensors| {
            let norm = tensors.get_mut(NORM).expect("present");
            norm.1 = vec![1, norm.1[0]];
        },
        NORM,
    );
}

#[test]
fn files_that_lie_about_themselves_are_refused() {
    let refused = |content: &[u8]| {
        let folder = Folder::with_demo();
        folder.write("model.safetensors", content);
        refusal(&mut gemma(["generate", "x", "--model", &folder.name("")]))
    };
    let file = |header: &str, data: usize| {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.resize(file.len() + data, 0);
        file
    };
    let tensor =
        |shape: &str, offsets: &str| format!("{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":{offsets}}}");
    refused(b"");
    refused(b"1234");
    refused(&10_000_000_000_u64.to_le_bytes());
    refused(&file("not json", 0));
    refused(&file(&format!("{{\"a\":{}}}", tensor("[4]", "[0,16]")), 8));
    refused(&file(&format!("{{\"a\":{}}}", tensor("[2500000000]", "[0,10000000000]")), 1_000));
    refused(&file(&format!("{{\"a\":{}}}", tensor("[18446744073709551615,8]", "[0,16]")), 16));
    refused(&file(&format!("{{\"a\":{},\"b\":{}}}", tensor("[4]", "[0,16]"), tensor("[4]", "[8,24]")), 24));
    refused(&file(&format!("{{\"a\":{}}}", tensor("[4]", "[16,0]")), 16));
    let demo = Folder::with_demo();
    let whole = fs::read(demo.path("model.safetensors")).expect("readable");
    refused(&whole[..whole.len() - 100]);
    refused(&whole[..100]);
}

#[test]
fn tokens_that_cannot_be_read_are_refused_and_nothing_is_written() {
    let folder = Folder::new();
    let out = folder.name("out.safetensors");
    let refused = |content: &str| {
        let ids = folder.write("ids.json", content);
        let logits = refusal(&mut gemma(["logits", "--tokens-file", &ids, "--out", &out]));
        let generate = refusal(&mut gemma(["generate", "--tokens-file", &ids]));
        assert_eq!(folder.files(), ["ids.json"], "nothing may be left behind");
        format!("{logits}{generate}")
    };
    assert!(refused("[2, 999999999]").contains("999999999"));
    assert!(refused("[2, -1]").contains("-1"));
    assert!(refused("[]").contains("no tokens"));
    assert!(refused("[[2], []]").contains("row 1"));
    assert!(refused("[2,").contains("JSON"));
    assert!(refused(&format!("{:?}", vec![2; 1_000_000])).contains("1000000"));
    assert!(refusal(&mut gemma(["logits", "--tokens-file", "/nonexistent", "--out", &out])).contains("/nonexistent"));
}

#[test]
fn outputs_that_cannot_be_written_are_refused() {
    let folder = Folder::new();
    let ids = folder.write("ids.json", "[2, 5]");
    for (out, reason) in [("/no/such/folder/out", "cannot be written"), (&folder.name(""), "is not a file")] {
        let line = refusal(&mut gemma(["logits", "--tokens-file", &ids, "--out", out]));
        assert!(line.contains(out) && line.contains(reason), "{line}");
    }
    assert_eq!(folder.files(), ["ids.json"]);
}

/// The images of PaliGemma's demo, in a folder of their own.
fn images() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/paligemma/demo/images")
}

fn named(name: &str) -> String {
    images().join(name).display().to_string()
}

#[test]
fn a_folder_of_images_is_described_line_by_line() {
    let said = printed(&mut gemma(["caption", &images().display().to_string()]));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 3, "{said}");
    for (line, name) in lines.iter().zip(["shapes1.png", "shapes2.png", "shapes3.png"]) {
        let (file, caption) = line.split_once(": ").expect("a file and a caption");
        assert!(file.ends_with(name) && !caption.is_empty(), "{line}");
    }
}

#[test]
fn a_run_over_images_goes_on_where_it_was_and_one_bad_file_does_not_stop_it() {
    let folder = Folder::new();
    fs::write(folder.path("bad.png"), b"no image").expect("written");
    let (out, bad) = (folder.path("out").display().to_string(), folder.path("bad.png").display().to_string());
    let output = run(&mut gemma(["detect", "-w", "shape", "--draw", "-o", &out, &bad, &named("shapes1.png")]));
    assert_eq!(output.status.code(), Some(2), "an image was left out");
    assert!(text(&output.stderr).contains("bad.png: not an image"), "{}", text(&output.stderr));
    assert!(fs::read_dir(&out).expect("made").count() >= 2, "the answers and a drawn image");
    let file = folder.path("out/detect.jsonl");
    let first = fs::read_to_string(&file).expect("written");
    assert_eq!(first.lines().count(), 1);
    // a line that a killed run left half written is written again; the one before it is not
    fs::write(&file, format!("{first}{}", &first[..20])).expect("written");
    let every = named("*.png");
    let coco = printed(&mut gemma(["detect", "-w", "shape", "--coco", "-o", &out, &every]));
    assert!(coco.is_empty(), "{coco}");
    let second = fs::read_to_string(&file).expect("written");
    assert!(second.starts_with(&first) && second.lines().count() == 3, "{second}");
    let set: Value =
        serde_json::from_slice(&fs::read(folder.path("out/detect.coco.json")).expect("written")).expect("JSON");
    assert_eq!(set["images"].as_array().map(Vec::len), Some(3));
    // another question is another matter
    printed(&mut gemma(["detect", "-w", "circle", "-o", &out, &named("shapes1.png")]));
    assert_eq!(fs::read_to_string(&file).expect("written").lines().count(), 4);
}

#[test]
fn questions_are_printed_as_json_and_a_image_can_be_continued() {
    let answers = printed_json(&mut gemma([
        "ask",
        "--json",
        "-q",
        "how many shapes are there?",
        "--prompt",
        "caption en",
        &named("shapes2.png"),
    ]));
    assert_eq!(answers[0]["width"], 224);
    assert_eq!(answers[0]["answers"][0]["prompt"], "answer en how many shapes are there?");
    let caption = answers[0]["answers"][1]["text"].clone();
    let made = printed_json(&mut gemma([
        "generate",
        "--json",
        "--temperature",
        "0",
        "--image",
        &named("shapes2.png"),
        "caption en",
    ]));
    assert_eq!(made["text"], caption);
}

#[test]
fn what_is_wrong_with_images_is_said_in_a_line() {
    let shapes = named("shapes1.png");
    assert!(refusal(&mut gemma(["caption", "/no/such.png"])).contains("/no/such.png"));
    assert!(refusal(&mut gemma(["caption", "/no/such/*.png"])).contains("no file matches"));
    assert!(refusal(&mut gemma(["segment", "-w", "cat", "--mask-decoder", &shapes, &shapes])).contains("zip"));
    assert!(refusal(&mut gemma(["detect", "-w", "cat", "--draw", &shapes])).contains("--out-dir"));
    assert!(refusal(&mut gemma(["detect", &shapes])).contains("--what"));
    assert!(refusal(&mut gemma(["ask", &shapes])).contains("--question"));
    let long = "many words ".repeat(2_000);
    assert!(refusal(&mut gemma(["ask", "-q", &long, &shapes])).contains("shorten the prompt"));
    let demo = Folder::with_demo();
    let model = demo.path("").display().to_string();
    assert!(refusal(&mut gemma(["caption", "-m", &model, &shapes])).contains("PaliGemma"));
    let hello = ["generate", "-m", &model, "--image", &shapes, "hello"];
    assert!(refusal(&mut gemma(hello)).contains("reads text only"));
}

#[test]
fn a_model_is_converted_both_ways_and_nothing_is_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = |name: &str| folder.path().join(name).to_str().expect("a plain path").to_owned();
    let (file, back) = (place("demo.gguf"), place("back"));
    let found = printed_json(&mut gemma(["convert", "demo:gemma", &file, "--format", "f32", "--json"]));
    assert_eq!(found["bytes"], std::fs::metadata(&file).expect("the file").len());
    printed(&mut gemma(["convert", &file, &back]));
    let said = |model: &str| {
        let arguments = ["generate", "Once upon a time", "--temperature", "0", "-n", "12", "--model", model];
        printed(&mut gemma(arguments))
    };
    assert_eq!(said(&file), said("demo:gemma"));
    assert_eq!(said(&back), said("demo:gemma"));
    assert!(printed(&mut gemma(["inspect", &file])).contains("Gemma 2"));
    for (target, more, complaint) in [
        (file.as_str(), &[][..], "--force"),
        (back.as_str(), &[][..], "--force"),
        (&format!("{file}/x"), &[][..], "x"),
        (&place("x"), &["--format", "q8_0"][..], "q8_0"),
        (&place("x"), &["--format", "q9"][..], "q9"),
        ("-", &[], "no name"),
        (&place(".gguf"), &[], "no name"),
        (&place("none/x.gguf"), &[][..], "its folder is not there"),
    ] {
        let line = refusal(gemma(["convert", "demo:gemma", target]).args(more));
        assert!(line.contains(complaint), "{line}");
    }
    assert!(refusal(&mut gemma(["convert", "demo:recurrentgemma", &place("x.gguf")])).contains("GGUF"));
    assert!(refusal(&mut gemma(["convert", "demo:unknown", &place("x.gguf")])).contains("demo:unknown"));
    printed(&mut gemma(["convert", "demo:gemma", &file, "--format", "q4_0", "--force"]));
    printed(&mut gemma(["convert", "demo:recurrentgemma", &place("griffin"), "--format", "f32"]));
    printed(&mut gemma(["convert", "demo:paligemma", &place("pali")]));
    // a file cut off anywhere is refused in one line
    let whole = std::fs::read(&file).expect("the file");
    for len in [3, 4, 30, 1000, whole.len() / 2, whole.len() - 1] {
        let cut = place("cut.gguf");
        std::fs::write(&cut, &whole[..len]).expect("a file");
        refusal(&mut gemma(["generate", "Once", "--model", &cut]));
    }
    // nothing else was left behind
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 5);
}

/// `--force` replaces a model, and takes nothing else away.
#[test]
fn a_conversion_deletes_nothing_but_a_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = |name: &str| folder.path().join(name).to_str().expect("a plain path").to_owned();
    let convert = |target: &str| gemma(["convert", "demo:gemma", target, "--force"]);
    let model = place("model");
    printed(&mut convert(&model));
    printed(&mut convert(&model));
    std::fs::write(place("model/thesis.txt"), "years of work").expect("a file");
    assert!(refusal(&mut convert(&model)).contains("thesis.txt"));
    assert!(refusal(convert(".").current_dir(&model)).contains("current folder"));
    assert!(refusal(convert("..").current_dir(&model)).contains("model"));
    let file = place("model/demo.gguf");
    printed(&mut gemma(["convert", "demo:gemma", &file, "--format", "q8_0"]));
    assert!(refusal(&mut gemma(["convert", &file, &model, "--force"])).contains("which is no file of a model"));
    assert!(refusal(&mut convert(&file.replace("gguf", "txt").replace("demo", "thesis"))).contains("is a file"));
    std::fs::create_dir(place("folder.gguf")).expect("a folder");
    assert!(refusal(&mut convert(&place("folder.gguf"))).contains("is not a file"));
    assert_eq!(std::fs::read(place("model/thesis.txt")).expect("the file"), b"years of work");
    assert_eq!(std::fs::read_dir(&model).expect("the folder").count(), 8);
    // in rows of 128 values are no blocks of 256
    let said = printed(&mut gemma(["convert", "demo:gemma", &place("k.gguf"), "--format", "q4_k"]));
    assert!(said.contains("as f16"), "{said}");
}

#[test]
fn a_gguf_file_has_a_tokenizer_and_is_named_in_its_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("demo.gguf").to_str().expect("a plain path").to_owned();
    printed(&mut gemma(["convert", "demo:gemma", &file]));
    let cut = |model: &str| printed_json(&mut gemma(["tokenize", "--json", "--model", model, "Once upon a time"]));
    assert_eq!(cut(&file), cut("demo:gemma"));
    let line = refusal(&mut gemma(["generate", "hi", "--model", folder.path().to_str().expect("a plain path")]));
    assert!(line.contains(&format!("give {file}")), "{line}");
    // what is wrong in the file is said with its name, whatever file of a folder it would be
    let mut bytes = std::fs::read(&file).expect("the file");
    let key = b"gemma2.attention.head_count\x04\0\0\0";
    let at = bytes.windows(key.len()).position(|window| window == key).expect("the key") + key.len();
    bytes[at..at + 4].copy_from_slice(&[0xff; 4]);
    std::fs::write(&file, bytes).expect("a file");
    let line = refusal(&mut gemma(["generate", "hi", "--model", &file]));
    assert!(line.contains(&file) && line.contains("gemma2.attention.head_count"), "{line}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_standard_error_that_is_full_changes_no_exit_code() {
    let full = std::fs::File::options().write(true).open("/dev/full").expect("a device");
    let ended = gemma(["generate", "--bogus"]).stderr(full).status().expect("the program starts");
    assert_eq!(ended.code(), Some(2));
}
