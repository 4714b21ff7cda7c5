//! Gemma 3 (text), VaultGemma and ShieldGemma against the reference implementation: whole prompts, chunks, single cached
//! steps, prompts past the window, greedy continuations; folders and GGUF files; heads of their own.

use crate::parity::{check, check_with, open, shared_cases, values};
use gemma::{ActivationPrecision, Decoder, LoadOptions, Network};
use gemma_generate::CausalModel;
use gemma_model::{convert_to_folder, convert_to_gguf};
use gemma_nn::Segment;
use gemma_tests::{References, devices, max_distance, shared};
use gemma_weights::{Checkpoint, Dtype, Format};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> Option<PathBuf> {
    Some(shared()?.join("reference/newer").join(name))
}

#[test]
fn text_models_of_the_newer_set() {
    for name in [
        "gemma3/f32",
        "gemma3/bf16",
        "gemma3_scaled/f32",
        "gemma3_scaled/bf16",
        "vaultgemma/f32",
        "vaultgemma/bf16",
        "shieldgemma/f32",
        "shieldgemma/bf16",
    ] {
        let Some(folder) = fixture(name) else { return };
        let expected = References::open(&folder.join("expected.safetensors"));
        check::<Decoder>(&folder, &shared_cases(&expected));
    }
}

/// The file of the shared set holds f16 values, and its norms the one that the layers add.
#[test]
fn a_gguf_file_of_gemma_3() {
    let Some(folder) = fixture("gemma3/f32") else { return };
    let expected = References::open(&folder.join("gguf.expected.safetensors"));
    let case = crate::parity::Case {
        name: "f16".to_owned(),
        tokens: crate::parity::ids(&expected.tensor("input_ids").values),
        logits: expected.tensor("f16.logits").values,
        wide: None,
        greedy: None,
    };
    let options = LoadOptions { activations: ActivationPrecision::F32, ..LoadOptions::default() };
    check_with::<Decoder>(&folder.join("model-f16.gguf"), &options, &[case]);
}

fn logits(checkpoint: &Checkpoint, tokens: &[u32]) -> Vec<f32> {
    let (_, device) = devices().remove(0);
    let model = Decoder::open(checkpoint, &LoadOptions::default(), &device).expect("a model");
    values(model.uncached_logits(tokens, &[Segment::causal(0, tokens.len())]))
}

/// Folder to GGUF file to folder: scaled ropes, kinds of layers that no pattern gives, and a scale of the scores that is
/// not the head size survive, and so do the values.
#[test]
fn conversions_keep_what_is_computed() {
    let tokens: Vec<u32> = (0..40).map(|i| (i * 37 + 5) % 500).collect();
    for name in ["gemma3/f32", "gemma3_scaled/f32"] {
        let Some(source) = fixture(name) else { return };
        let folder = tempfile::tempdir().expect("a folder");
        let source = Checkpoint::open(&source).expect("a fixture");
        let (file, again) = (folder.path().join("model.gguf"), folder.path().join("again"));
        let go_on = &mut |_, _| ControlFlow::Continue(());
        convert_to_gguf::<Decoder>(&source, None, Some(Format::F32), &file, false, go_on).expect("a file");
        let gguf = Checkpoint::open(&file).expect("a GGUF file");
        convert_to_folder::<Decoder>(&gguf, None, Dtype::F32, &again, false, go_on).expect("a folder");
        let again = Checkpoint::open(&again).expect("a folder");
        let configs =
            [&source, &gguf, &again].map(|checkpoint| Decoder::config_of(checkpoint).expect("a configuration"));
        for config in &configs[1..] {
            assert_eq!(config.layers.len(), configs[0].layers.len(), "{name}");
            for (layer, first) in config.layers.iter().zip(&configs[0].layers) {
                assert_eq!(
                    (layer.rope, layer.attention.visibility),
                    (first.rope, first.attention.visibility),
                    "{name}"
                );
                assert!((layer.attention.scale - first.attention.scale).abs() < 1e-6, "{name}");
            }
        }
        let first: Vec<f64> = logits(&source, &tokens).into_iter().map(f64::from).collect();
        for checkpoint in [&gguf, &again] {
            let distance = max_distance(&logits(checkpoint, &tokens), &first);
            assert!(distance < 1e-4, "{name}: a logit is {distance} off");
        }
    }
}

/// Writes a copy of a folder with other tensors and another field in its `config.json`.
fn copy(from: &Path, to: &Path, field: &str, rename: impl Fn(&str) -> String, head: Option<f32>) {
    let source = Checkpoint::open(from).expect("a fixture");
    let mut config: serde_json::Value =
        serde_json::from_slice(&source.file("config.json").expect("readable").expect("there")).expect("JSON");
    config["tie_word_embeddings"] = field.parse::<bool>().map_or(serde_json::Value::Null, Into::into);
    let mut tensors: Vec<gemma_weights::SavedTensor> = source
        .tensors()
        .map(|(name, tensor)| (rename(name), Dtype::F32, tensor.shape.clone(), tensor.bytes.clone()))
        .collect();
    if let Some(factor) = head {
        let table = source.get("model.embed_tokens.weight").expect("a table");
        let values: Vec<u8> = table.to_f32().iter().flat_map(|value| (value * factor).to_le_bytes()).collect();
        tensors.push((rename("lm_head.weight"), Dtype::F32, table.shape.clone(), values.into()));
    }
    let config = config.to_string().into_bytes();
    gemma_weights::save_folder(to, &[("config.json", &config)], &mut tensors.into_iter()).expect("a copy");
}

/// A head that differs from the embedding table is used, whatever `tie_word_embeddings` says; one that repeats it is not
/// kept a second time; names may stand behind the prefixes that programs leave.
#[test]
fn heads_of_their_own_are_used_and_wrapped_names_are_read() {
    let Some(source) = fixture("gemma3/f32") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let tokens = [2, 17, 300, 41, 5];
    let tied = logits(&Checkpoint::open(&source).expect("a fixture"), &tokens);
    let wrapped: [fn(&str) -> String; 4] = [
        str::to_owned,
        |name| format!("base_model.model.{name}"),
        |name| format!("_orig_mod.{name}"),
        |name| name.strip_prefix("model.").unwrap_or(name).to_owned(),
    ];
    for (index, rename) in wrapped.into_iter().enumerate() {
        for field in ["true", "false", "absent"] {
            for (head, factor) in [(None, 1.0), (Some(1.0), 1.0), (Some(2.0), 2.0f32)] {
                if head.is_none() && field == "false" {
                    continue;
                }
                let path = folder.path().join(format!("{index}-{field}-{head:?}"));
                copy(&source, &path, field, rename, head);
                let checkpoint = Checkpoint::open(&path).expect("a copy");
                let config = Decoder::config_of(&checkpoint).expect("a configuration");
                assert_eq!(config.is_tied, factor == 1.0, "{}", path.display());
                let found = logits(&checkpoint, &tokens);
                let near = found.iter().zip(&tied).all(|(found, tied)| (found - factor * tied).abs() < 1e-3);
                assert!(near, "{}", path.display());
            }
        }
    }
    let path = folder.path().join("no head");
    copy(&source, &path, "false", str::to_owned, None);
    let (_, device) = devices().remove(0);
    let error = Decoder::open(&Checkpoint::open(&path).expect("a copy"), &LoadOptions::default(), &device);
    assert!(error.expect_err("a head is missing").to_string().contains("lm_head.weight"));
}

/// A head of its own goes into a GGUF file and comes back.
#[test]
fn a_head_of_its_own_survives_conversion() {
    let Some(source) = fixture("gemma3/f32") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("untied");
    copy(&source, &path, "false", str::to_owned, Some(-1.5));
    let untied = Checkpoint::open(&path).expect("a copy");
    let file = folder.path().join("model.gguf");
    let go_on = &mut |_, _| ControlFlow::Continue(());
    convert_to_gguf::<Decoder>(&untied, None, Some(Format::F32), &file, false, go_on).expect("a file");
    let tokens = [2, 17, 300, 41, 5];
    let expected: Vec<f64> = logits(&untied, &tokens).into_iter().map(f64::from).collect();
    let found = logits(&Checkpoint::open(&file).expect("a GGUF file"), &tokens);
    assert!(max_distance(&found, &expected) < 1e-4);
}

/// A model that is saved reads back as itself, norms of queries and keys included.
#[test]
fn a_saved_model_has_all_its_parameters() {
    let Some(folder) = fixture("gemma3_scaled/f32") else { return };
    let (_, device) = devices().remove(0);
    let model: Decoder = open(&folder, &device);
    let names: Vec<String> = Decoder::tensors(model.config(), &device).into_iter().map(|tensor| tensor.name).collect();
    struct Names(Vec<String>);
    impl gemma_nn::Saver for Names {
        fn matrix(&mut self, name: &str, _: &gemma_nn::Weight) {
            self.0.push(name.to_owned());
        }
        fn vector(&mut self, name: &str, _: &burn::module::Param<burn::Tensor<1>>) {
            self.0.push(name.to_owned());
        }
        fn tensor(&mut self, name: &str, _: &[usize], _: &burn::module::Param<burn::Tensor<1>>) {
            self.0.push(name.to_owned());
        }
    }
    let mut saved = Names(Vec::new());
    model.save(&mut saved);
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    assert_eq!(sorted(saved.0), sorted(names));
}
