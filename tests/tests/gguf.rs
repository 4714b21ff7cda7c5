//! Models in GGUF files: the same logits as the reference computes from the weights they stand for.

use crate::parity::{Case, check_with, ids, values};
use gemma::{Backend, Decoder, Gemma, GenerateOptions};
use gemma_generate::{CausalModel, Segment};
use gemma_model::{
    ActivationPrecision, Error, LoadOptions, Network, convert_to_folder, convert_to_gguf, read_tokenizer,
};
use gemma_tests::{References, devices, goldens, max_distance, shared};
use gemma_weights::{Checkpoint, Dtype, Format, Precision};
use std::ops::ControlFlow;

/// The largest permitted distance of a value from what the reference reads in the same block.
const VALUES: f64 = 1e-6;

#[test]
fn files_of_the_shared_set() {
    let Some(shared) = shared() else { return };
    for (name, kinds) in [("gemma1_mha", &["q8_0", "q4_0"][..]), ("gemma2", &["f16"][..])] {
        let folder = shared.join("reference/fixtures").join(name).join("f32");
        let expected = References::open(&folder.join("gguf.expected.safetensors"));
        for kind in kinds {
            let file = folder.join(format!("model-{kind}.gguf"));
            let dequantized = expected.tensor(&format!("{kind}.dequantised.blk.0.ffn_down.weight"));
            let checkpoint = Checkpoint::open(&file).expect("a GGUF file");
            let found = checkpoint.get("model.layers.0.mlp.down_proj.weight").expect("under the folder's name");
            assert_eq!(found.shape, dequantized.shape);
            assert!(max_distance(&found.to_f32(), &dequantized.values) < VALUES, "{}", file.display());
            let case = Case {
                name: (*kind).to_owned(),
                tokens: ids(&expected.tensor("input_ids").values),
                logits: expected.tensor(&format!("{kind}.logits")).values,
                wide: None,
                greedy: None,
            };
            let options = LoadOptions { activations: ActivationPrecision::F32, ..LoadOptions::default() };
            check_with::<Decoder>(&file, &options, &[case]);
        }
    }
}

/// Blocks of every format hold what the gguf package reads from them, and those of 32 values are written as it does.
#[test]
fn blocks_are_those_of_ggml() {
    let expected = References::open(&goldens().join("gguf/blocks.safetensors"));
    let values: Vec<f32> = expected.tensor("values").values.iter().map(|value| *value as f32).collect();
    let quantized = Format::ALL.into_iter().filter(|format| format.block_len() > 1);
    for format in quantized {
        let bytes = |what: &str| -> Option<Vec<u8>> {
            Some(expected.get(&format!("{format}.{what}"))?.values.iter().map(|byte| *byte as u8).collect())
        };
        let read = expected.tensor(&format!("{format}.read")).values;
        let mut found = vec![0.0; read.len()];
        format.decode_row(&bytes("bytes").expect("blocks"), &mut found);
        assert!(max_distance(&found, &read) == 0.0, "{format}");
        if let Some(written) = bytes("written") {
            let mut found = vec![0; written.len()];
            format.encode_row(&values, &mut found);
            assert_eq!(found, written, "{format}");
        }
    }
}

/// Blocks of the formats that are only read hold what the gguf package reads from them.
#[test]
fn blocks_of_few_bits_are_those_of_ggml() {
    let expected = References::open(&goldens().join("gguf/low_bits.safetensors"));
    for format in Format::READ_ONLY {
        let bytes = expected.tensor(&format!("{format}.bytes")).values;
        let bytes: Vec<u8> = bytes.into_iter().map(|byte| byte as u8).collect();
        let read = expected.tensor(&format!("{format}.read")).values;
        let mut found = vec![0.0; read.len()];
        format.decode_row(&bytes, &mut found);
        assert!(max_distance(&found, &read) == 0.0, "{format}");
    }
}

/// The demo as a GGUF file and back: the same tensors, the same words on every backend.
#[test]
fn a_model_goes_into_a_file_and_comes_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, back) = (folder.path().join("demo.gguf"), folder.path().join("back"));
    let demo = gemma::demo_checkpoint().expect("the demo");
    let go_on = &mut |_, _| ControlFlow::Continue(());
    convert_to_gguf::<Decoder>(&demo, None, Some(Format::F32), &file, false, go_on).expect("a file");
    let again = convert_to_gguf::<Decoder>(&demo, None, None, &file, false, go_on);
    assert!(matches!(again, Err(Error::Weights(gemma_weights::Error::WouldOverwrite { .. }))));
    let opened = Checkpoint::open(&file).expect("a GGUF file");
    convert_to_folder::<Decoder>(&opened, None, Dtype::Bf16, &back, false, go_on).expect("a folder");
    let returned = Checkpoint::open(&back).expect("a folder");
    assert_eq!(returned.tensors().count(), demo.tensors().count());
    for (name, tensor) in demo.tensors() {
        let found = returned.get(name).expect(name);
        assert_eq!((found.format, &found.shape), (tensor.format, &tensor.shape), "{name}");
        if name.ends_with("norm.weight") {
            // the one that is added for the file rounds
            let expected: Vec<f64> = tensor.to_f32().into_iter().map(f64::from).collect();
            assert!(max_distance(&found.to_f32(), &expected) < 2e-7, "{name} changed");
        } else {
            assert!(found.bytes == tensor.bytes, "{name} changed");
        }
    }
    let options = GenerateOptions::greedy(24);
    for (backend, device) in devices() {
        let said = |model: Gemma| model.generate("Once upon a time", &options).expect("a text").text;
        let expected = said(gemma::demo(&device).expect("the demo"));
        for place in [&file, &back] {
            let model = Gemma::load(place.to_str().expect("a plain path"), &device).expect("a model");
            assert_eq!(said(model), expected, "{backend} {}", place.display());
        }
    }
    // whoever is told of the progress can stop it, and nothing is left behind
    let stopped = folder.path().join("stopped.gguf");
    let stop = &mut |_, _| ControlFlow::Break(());
    let ended = convert_to_gguf::<Decoder>(&demo, None, None, &stopped, false, stop);
    assert!(matches!(ended, Err(Error::Weights(gemma_weights::Error::Stopped))));
    let ended = convert_to_folder::<Decoder>(&demo, None, Dtype::F32, &stopped, false, stop);
    assert!(matches!(ended, Err(Error::Weights(gemma_weights::Error::Stopped))));
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 2);
}

/// Quantized while converting, a model is what it is when quantized while loading.
#[test]
fn quantizing_before_or_while_loading_is_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let demo = gemma::demo_checkpoint().expect("the demo");
    let tokens = [2, 17, 300, 45, 6, 78, 100, 9];
    for (format, precision) in [(Format::Q8_0, Precision::Q8_0), (Format::Q4_0, Precision::Q4_0)] {
        let file = folder.path().join(format!("{format}.gguf"));
        let go_on = &mut |_, _| ControlFlow::Continue(());
        convert_to_gguf::<Decoder>(&demo, None, Some(format), &file, false, go_on).expect("a file");
        let device = Backend::compiled()[0].device().expect("a compiled backend opens");
        let options = LoadOptions { precision: Some(precision), ..LoadOptions::default() };
        let expected = Decoder::open(&demo, &options, &device).expect("a model");
        let file = Checkpoint::open(&file).expect("a GGUF file");
        let found = Decoder::open(&file, &LoadOptions::default(), &device).expect("a model");
        let logits = |model: &Decoder| values(model.uncached_logits(&tokens, &[Segment::causal(0, tokens.len())]));
        let distance = logits(&found).iter().zip(logits(&expected)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // constants are rounded to bf16 for a bf16 folder only
        assert!(distance < 0.1, "{format}: {distance}");
    }
}

/// llama.cpp opens what is converted, and writes the same text.
#[test]
fn llama_cpp_writes_the_same_text() {
    let Some(llama) = std::env::var_os("GEMMA_TEST_LLAMA") else {
        return println!("skipped: GEMMA_TEST_LLAMA does not name a llama-completion");
    };
    let folder = tempfile::tempdir().expect("a folder");
    let demo = gemma::demo_checkpoint().expect("the demo");
    let device = Backend::compiled()[0].device().expect("a compiled backend opens");
    let prompt = "Once upon a time";
    // in coarser formats its 8-bit activations decide between words that are equally likely
    for format in ["f32", "bf16", "f16", "q8_0", "q4_0"] {
        let file = folder.path().join(format!("{format}.gguf"));
        let go_on = &mut |_, _| ControlFlow::Continue(());
        let wish = Some(format.parse().expect("a format"));
        convert_to_gguf::<Decoder>(&demo, None, wish, &file, false, go_on).expect("a file");
        let model = Gemma::load(file.to_str().expect("a plain path"), &device).expect("a model");
        let ours = model.generate(prompt, &GenerateOptions::greedy(24)).expect("a text").text;
        let once = || {
            let mut command = std::process::Command::new(&llama);
            command.arg("--model").arg(&file).args(["--prompt", prompt, "--predict", "24", "--temp", "0"]);
            command.args(["-no-cnv", "--no-warmup", "--simple-io"]).stdin(std::process::Stdio::null());
            let output = command.output().expect("llama.cpp starts");
            assert!(output.status.success(), "{format}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        };
        // on a busy machine it ends before it has printed all that it wrote
        let mut theirs = String::new();
        for _ in 0..20 {
            if theirs.len() < prompt.len() + ours.trim_end().len() {
                theirs = std::cmp::max_by_key(theirs, once(), String::len);
            }
        }
        assert_eq!(theirs, format!("{prompt}{}", ours.trim_end()), "{format}");
    }
}

/// The released vocabularies come out of a file as they went in, whichever of their files they were read from.
#[test]
fn released_vocabularies_come_back() {
    let Some(shared) = shared() else { return };
    let golden = goldens().join("gemma2-f32");
    let texts = [
        "Hello, world",
        "  two  spaces\n\n\tand a tab ",
        "naïve café 12345 <b>bold</b>",
        "日本語 \u{1f600} \u{10ffff}",
        "fn main() { println!(\"{}\", x as u8); }",
        "<start_of_turn>user",
        "",
    ];
    for name in ["tokenizer.model", "gemma2/tokenizer.json"] {
        let source = shared.join("tokenizer").join(name);
        let folder = tempfile::tempdir().expect("a folder");
        for part in ["config.json", "model.safetensors"] {
            std::fs::copy(golden.join(part), folder.path().join(part)).expect("a copy");
        }
        std::fs::copy(&source, folder.path().join(source.file_name().expect("a name"))).expect("a copy");
        let checkpoint = Checkpoint::open(folder.path()).expect("a folder");
        let file = folder.path().join("model.gguf");
        let go_on = &mut |_, _| ControlFlow::Continue(());
        convert_to_gguf::<Decoder>(&checkpoint, None, None, &file, false, go_on).expect("a file");
        let tokenizer = |checkpoint: &Checkpoint| {
            read_tokenizer(checkpoint, Decoder::FAMILY).expect("a sound tokenizer").expect("a tokenizer")
        };
        let (before, after) = (tokenizer(&checkpoint), tokenizer(&Checkpoint::open(&file).expect("a GGUF file")));
        for text in texts {
            assert_eq!(after.encode(text), before.encode(text), "{name}: {text:?}");
        }
        assert_eq!(after.control(), before.control());
    }
}

/// A file says nothing of the scale of the scores; the configuration beside it may, or a key of its own.
#[test]
fn the_scale_of_the_scores_is_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = Checkpoint::open(&goldens().join("gemma2-f32")).expect("goldens");
    let scale = |checkpoint: &Checkpoint| {
        let config = Decoder::config_of(checkpoint).expect("a configuration");
        config.layers[0].attention.scale
    };
    let file = folder.path().join("model.gguf");
    let go_on = &mut |_, _| ControlFlow::Continue(());
    convert_to_gguf::<Decoder>(&source, None, None, &file, false, go_on).expect("a file");
    assert!((scale(&Checkpoint::open(&file).expect("a GGUF file")) - scale(&source)).abs() < 1e-6);
}

/// The file brings its own tokenizer.
#[test]
fn the_tokenizer_in_the_file_is_used() {
    let Some(shared) = shared() else { return };
    let folder = shared.join("reference/fixtures/gemma1_mha/f32");
    let device = Backend::compiled()[0].device().expect("a compiled backend opens");
    let open = |name: &str| Gemma::load(folder.join(name).to_str().expect("a plain path"), &device).expect("a model");
    let (file, folder) = (open("model-q8_0.gguf"), open(""));
    // a piece of two characters, of which one has no piece of its own, is made by scores and not by a list of merges
    for text in ["12345<b>", "\u{1f600}", ""] {
        assert_eq!(
            file.tokenizer().expect("one").encode(text),
            folder.tokenizer().expect("one").encode(text),
            "{text:?}"
        );
    }
    let text = "naïve,café(日本語)";
    let tokens = file.tokenizer().expect("one").encode(text);
    assert_eq!(file.tokenizer().expect("one").decode(&tokens), text);
    assert_eq!(file.stop_tokens(), folder.stop_tokens());
    assert!(file.generate("Hello", &GenerateOptions::greedy(4)).is_ok());
}
