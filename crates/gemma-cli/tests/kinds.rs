//! What real files, networks and terminals do: a test for each kind of fault that was found, on inputs of our own making.

mod program;

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use program::folder::{Folder, demo};
use program::{gemma, printed, printed_json, refusal, run, text};

fn tokens(model: &str, more: &[&str]) -> Value {
    let fixed =
        ["generate", "-m", model, "Once upon a time", "--temperature", "0", "--ignore-eos", "--json", "-n", "12"];
    printed_json(&mut gemma(fixed.into_iter().chain(more.iter().copied())))["tokens"].clone()
}

/// A soft cap keeps the order of the logits, also where f32 makes them equal to the cap.
#[test]
fn a_tight_cap_does_not_change_what_is_likeliest() {
    let folder = Folder::with_demo();
    let model = folder.name("");
    let mut found = Vec::new();
    for cap in [json!(null), json!(30.0), json!(0.25)] {
        folder.configure(|config| drop(config.insert("final_logit_softcapping".to_owned(), cap)));
        found.push(tokens(&model, &[]));
    }
    assert!(found.iter().all(|tokens| *tokens == found[0]), "{found:?}");
    // and sampling among the two likeliest gives one of the two
    assert_eq!(tokens(&model, &["--top-k", "1", "--seed", "3"]), found[0]);
}

#[test]
fn keys_are_used_or_refused_or_named() {
    let folder = Folder::with_demo();
    let model = folder.name("");
    let report = || printed_json(&mut gemma(["inspect", &model, "--json"]));
    assert_eq!(report()["unknown_keys"], json!([]), "the demo has none");
    folder.configure(|config| {
        config.insert("unheard_of".to_owned(), json!(1));
        config.insert("rope_scaling".to_owned(), json!({"rope_type": "default", "color": "red"}));
        config.insert("use_cache".to_owned(), json!(true));
    });
    assert_eq!(report()["unknown_keys"], json!(["rope_scaling.color", "unheard_of"]));
    assert!(printed(&mut gemma(["inspect", &model])).contains("unheard_of"));
    tokens(&model, &[]);
    for (key, value, words) in [
        ("mlp_bias", json!(true), "mlp_bias is true"),
        ("num_experts", json!(4), "num_experts is 4"),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor is 0.5"),
        ("eos_token_id", json!(9_223_372_036_854_775_808_u64), "eos_token_id: it is neither"),
        ("eos_token_id", json!("end"), "eos_token_id: it is neither"),
        ("hidden_size", json!("wide"), "hidden_size: invalid type"),
        ("head_dim", json!(-4), "head_dim: invalid value"),
    ] {
        let folder = Folder::with_demo();
        folder.configure(|config| drop(config.insert(key.to_owned(), value)));
        let model = folder.name("");
        for verb in ["inspect", "generate"] {
            let said = refusal(&mut gemma([verb, "-m", &model].into_iter().chain((verb == "generate").then_some("x"))));
            assert!(said.contains("config.json") && said.contains(words), "{verb}: {said}");
        }
    }
}

/// A template with a mistake is reported when it is needed, and not when the model opens. One beyond the limits of what is
/// read is refused like any other file of the model, unless another one is named.
#[test]
fn a_broken_template_matters_where_it_is_used() {
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000));
    let chain = format!("{{{{ {}1 }}}}", "not ".repeat(200_000));
    let long = "x".repeat(2_000_000);
    let endless =
        "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}";
    for (template, is_read) in [
        ("{% if %}", true),
        ("{{ messages | no_such_filter }}", true),
        (endless, true),
        (&deep, false),
        (&chain, false),
        (&long, false),
    ] {
        let folder = Folder::with_demo();
        folder.write("chat_template.jinja", template);
        let model = folder.name("");
        let shown = &template[..template.len().min(60)];
        let mut plain = gemma(["generate", "-m", &model, "Once", "-n", "2"]);
        if is_read {
            printed(&mut plain);
        } else {
            let said = refusal(&mut plain);
            assert!(said.contains("template") && said.contains("leave it out") && said.len() < 500, "{shown}: {said}");
        }
        let said = refusal(&mut gemma(["generate", "-m", &model, "--chat", "hello", "-n", "2"]));
        assert!(said.contains("template") && said.len() < 500, "{shown}: {said}");
        let mut chat = gemma(["chat", "-m", &model, "-n", "2"]);
        let mut child = chat
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        // it may be gone already
        let _ = child.stdin.take().expect("a pipe").write_all(b"hello\n");
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(2), "{shown}: {}", text(&output.stderr));
        printed(&mut gemma(["generate", "-m", &model, "--chat", "hello", "-n", "2", "--template", "builtin"]));
    }
}

/// What others wrote is cut where a message quotes it.
#[test]
fn messages_are_short_whatever_they_quote() {
    let long = "x".repeat(100_000);
    let with = |file: &str, content: &str| {
        let folder = Folder::with_demo();
        folder.write(file, content);
        folder
    };
    let template = with("chat_template.jinja", &format!("{{{{ raise_exception('{long}') }}}}"));
    let number = with("chat_template.jinja", "{{ raise_exception(1) }}");
    let kind = with("config.json", &format!("{{\"model_type\": \"{long}\"}}"));
    let key = with("config.json", &format!("{{\"model_type\": \"gemma\", \"{long}\": [}}"));
    let head = with("tokenizer.json", &format!("{{\"version\": \"{long}\", \"model\": {{\"type\": \"{long}\"}}}}"));
    for (folder, chat) in [(template, true), (number, true), (kind, false), (key, false), (head, false)] {
        let model = folder.name("");
        let said = refusal(&mut gemma(
            ["generate", "-m", &model, "hello", "-n", "1"].into_iter().chain(chat.then_some("--chat")),
        ));
        assert!(said.len() < 700, "{} letters: {}", said.len(), &said[..200]);
        assert!(!chat || said.contains("chat template refuses the conversation"), "{said}");
    }
}

/// What is written replaces a file of its own kind, and not the weights or the text that were named by mistake.
#[test]
fn states_and_logits_do_not_replace_other_files() {
    let folder = Folder::with_demo();
    let (model, weights, text) = (folder.name(""), folder.name("model.safetensors"), folder.write("p.txt", "Once"));
    let before = fs::read(&weights).expect("readable");
    for other in [&weights, &text] {
        refusal(&mut gemma(["logits", "-m", &model, "-f", &text, "--out", other]));
        refusal(&mut gemma(["generate", "-m", &model, "-f", &text, "-n", "1", "--save-state", other]));
    }
    assert!(fs::read(&weights).expect("readable") == before);
    let (logits, state) = (folder.name("l.safetensors"), folder.name("s.state"));
    for _ in 0..2 {
        printed(&mut gemma(["logits", "-m", &model, "-f", &text, "--out", &logits]));
        printed(&mut gemma(["generate", "-m", &model, "-f", &text, "-n", "1", "--save-state", &state]));
    }
}

/// A fine-tune with other means would see other images than it was trained on.
#[test]
fn a_processor_of_images_says_what_is_computed_or_is_refused() {
    let folder = Folder::new();
    for entry in fs::read_dir(demo("paligemma")).expect("part of the repository").flatten() {
        if entry.path().is_file() {
            fs::copy(entry.path(), folder.path(&entry.file_name().to_string_lossy())).expect("copied");
        }
    }
    let model = folder.name("");
    let mut caption = gemma(["caption", "-m", &model, "demo:shapes1.png"]);
    let plain = printed(&mut caption);
    let mut processor = json!({"image_mean": [0.5, 0.5, 0.5], "resample": 3, "size": {"height": 56, "width": 56}});
    folder.write("preprocessor_config.json", processor.to_string());
    assert_eq!(printed(&mut caption), plain);
    for (field, value) in [("image_mean", json!([0.48, 0.46, 0.41])), ("resample", json!(2)), ("size", json!(224))] {
        let before = std::mem::replace(&mut processor[field], value);
        folder.write("preprocessor_config.json", processor.to_string());
        let said = refusal(&mut caption);
        assert!(said.contains("preprocessor_config.json") && said.contains(field), "{said}");
        processor[field] = before;
    }
    let empty = folder.write("empty.png", "");
    assert!(refusal(&mut gemma(["caption", &empty])).contains("the file is empty"));
}

/// Editors and shells of Windows put a byte order mark in front of a text, or write UTF-16.
#[test]
fn a_byte_order_mark_is_no_text() {
    let folder = Folder::new();
    let ids = |file: &str| printed_json(&mut gemma(["tokenize", "--json", "-f", file]))["tokens"].clone();
    let (plain, marked) = (folder.write("a.txt", "Once"), folder.write("b.txt", "\u{feff}Once"));
    assert_eq!(ids(&plain), ids(&marked));
    let wide = folder.write("c.txt", [0xff, 0xfe, b'O', 0, b'n', 0]);
    assert!(refusal(&mut gemma(["tokenize", "-f", &wide])).contains("UTF-16"));
    let rows = folder.write("ids.json", "\u{feff}[2, 10]");
    printed(&mut gemma(["generate", "--tokens-file", &rows, "-n", "1"]));
}

/// A batch of very many rows is read in groups.
#[test]
fn thousands_of_rows_are_read_in_groups() {
    let folder = Folder::new();
    let rows: Vec<Vec<u32>> = (0..6000).map(|row| vec![2, 10 + row % 50]).collect();
    let ids = folder.write("ids.json", json!(rows).to_string());
    let out = folder.name("out.safetensors");
    let output = run(&mut gemma(["logits", "--tokens-file", &ids, "--out", &out]));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let bytes = fs::read(&out).expect("written");
    let parsed = safetensors::SafeTensors::deserialize(&bytes).expect("well formed");
    assert_eq!(parsed.len(), 6000);
    // the same row gives the same logits in whichever group it is
    let of = |row: usize| -> Vec<f32> {
        let data = parsed.tensor(&format!("logits.{row}")).expect("there").data().to_vec();
        data.chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes"))).collect()
    };
    let (first, last) = (of(7), of(5957));
    assert!(first.iter().zip(&last).all(|(a, b)| (a - b).abs() < 1e-3));
}
