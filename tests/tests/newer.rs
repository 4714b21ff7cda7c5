//! EmbeddingGemma, ShieldGemma and Gemma 3 with images against the reference implementation, on every compiled backend.

use burn::Tensor;
use embeddinggemma::{EmbedOptions, EmbeddingGemma, Task};
use gemma::{Decoder, LoadOptions, Network};
use gemma_generate::{CausalModel, GenerateOptions, Prompt, Request, Sequence};
use gemma_nn::Segment;
use gemma_tests::{Reference, References, devices, max_distance, rms_distance, shared};
use gemma_vision::{Filter, Pixels};
use gemma_weights::Checkpoint;
use gemma3::{Gemma3Network, Image, PanAndScan, Processor};
use std::path::{Path, PathBuf};

/// The largest permitted distance of an f32 logit from the reference.
const LOGITS: f64 = 1e-3;
/// The largest permitted distance of a value of an embedding, and of its cosine from 1.
const EMBEDDING: f64 = 1e-5;
/// The largest permitted distance of a probability.
const PROBABILITY: f64 = 1e-4;
/// A greedy choice counts where the reference's best two logits are farther apart than this.
const MARGIN: f64 = 1e-3;

fn fixture(name: &str) -> Option<PathBuf> {
    Some(shared()?.join("reference/newer").join(name))
}

fn ids(values: &[f64]) -> Vec<u32> {
    values.iter().map(|value| *value as u32).collect()
}

/// The rows of a case without padding, which stands on either side.
fn rows(expected: &References, case: &str) -> Vec<Vec<u32>> {
    let (tokens, mask) =
        (expected.tensor(&format!("{case}.input_ids")), expected.tensor(&format!("{case}.attention_mask")));
    let row = |row: usize| {
        let real = tokens.row(row).iter().zip(mask.row(row)).filter(|(_, real)| **real == 1.0);
        ids(&real.map(|(token, _)| *token).collect::<Vec<_>>())
    };
    (0..tokens.shape[0]).map(row).collect()
}

fn cosine(a: &[f32], b: &[f64]) -> f64 {
    let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * b).sum();
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    dot / (length(&mut a.iter().map(|value| f64::from(*value))) * length(&mut b.iter().copied()))
}

#[test]
fn embeddings_and_what_they_are_cut_to() {
    for name in ["embeddinggemma/f32", "embeddinggemma/bf16"] {
        let Some(folder) = fixture(name) else { return };
        let expected = References::open(&folder.join("expected.safetensors"));
        let exact = name.ends_with("f32");
        for (backend, device) in devices() {
            let checkpoint = Checkpoint::open(&folder).expect("a folder");
            let model =
                EmbeddingGemma::from_checkpoint(&checkpoint, &LoadOptions::default(), &device).expect("a model");
            for case in ["main", "batch", "prompts"] {
                if expected.get(&format!("{case}.input_ids")).is_none() {
                    continue;
                }
                let rows = rows(&expected, case);
                for dimensions in [None, Some(24), Some(12)] {
                    let tail = dimensions.map(|size| format!(".{size}")).unwrap_or_default();
                    let Some(wanted) = expected.get(&format!("{case}.embedding{tail}")) else { continue };
                    let found = model.embed_tokens(&rows, EmbedOptions { dimensions }).expect("embeddings");
                    assert_eq!([found.len(), found.dimensions()], wanted.shape[..], "{name} {case} on {backend}");
                    for (index, row) in found.rows().enumerate() {
                        let near = cosine(row, wanted.row(index));
                        let distance = max_distance(row, wanted.row(index));
                        let limits = if exact { (EMBEDDING, EMBEDDING) } else { (1e-3, 0.05) };
                        assert!(1.0 - near < limits.0, "{name} {case} on {backend}, row {index}: cosine {near}");
                        assert!(distance < limits.1, "{name} {case} on {backend}, row {index}: {distance} off");
                    }
                }
                // each row alone is what it is in company
                let together = model.embed_tokens(&rows, EmbedOptions::default()).expect("embeddings");
                for (index, row) in rows.iter().enumerate() {
                    let alone = model.embed_tokens(&[row], EmbedOptions::default()).expect("an embedding");
                    let difference = alone.row(0).iter().zip(together.row(index)).map(|(a, b)| (a - b).abs());
                    assert!(difference.fold(0.0, f32::max) < 1e-5, "{name} {case} on {backend}, row {index}");
                }
            }
        }
    }
}

#[test]
fn a_text_becomes_its_prefix_and_its_tokens() {
    let Some(folder) = fixture("embeddinggemma/f32") else { return };
    let expected = References::open(&folder.join("expected.safetensors"));
    let (_, device) = devices().remove(0);
    let checkpoint = Checkpoint::open(&folder).expect("a folder");
    let model = EmbeddingGemma::from_checkpoint(&checkpoint, &LoadOptions::default(), &device).expect("a model");
    let rows = rows(&expected, "prompts");
    assert_eq!(model.tokens(&Task::Query.prefix(), "the tin").expect("tokens"), rows[0]);
    assert_eq!(model.tokens(&Task::Document { title: None }.prefix(), "in the tin").expect("tokens"), rows[1]);
    assert_eq!(model.prompt("STS"), Some("task: sentence similarity | query: "));
    let found = model.embed(&["the tin"], Task::Query).expect("an embedding");
    assert!(max_distance(found.row(0), expected.tensor("prompts.embedding").row(0)) < EMBEDDING);
    assert!(model.embed_tokens::<Vec<u32>>(&[vec![]], EmbedOptions::default()).is_err());
    assert!(model.embed_tokens(&[[99_999]], EmbedOptions::default()).is_err());
    assert!(model.embed_tokens(&[[2]], EmbedOptions { dimensions: Some(49) }).is_err());
}

/// A folder without one of its parts is an error that names the file.
#[test]
fn a_folder_without_its_dense_layers_is_refused() {
    let Some(source) = fixture("embeddinggemma/f32") else { return };
    let (_, device) = devices().remove(0);
    for missing in ["2_Dense/model.safetensors", "3_Dense/config.json", "1_Pooling/config.json", "modules.json"] {
        let folder = tempfile::tempdir().expect("a folder");
        let parts = ["", "1_Pooling", "2_Dense", "3_Dense"];
        for part in parts {
            std::fs::create_dir_all(folder.path().join(part)).expect("a folder");
            for entry in std::fs::read_dir(source.join(part)).expect("a folder").flatten() {
                let name = Path::new(part).join(entry.file_name());
                if entry.path().is_file() && name != Path::new(missing) {
                    std::fs::copy(entry.path(), folder.path().join(name)).expect("a copy");
                }
            }
        }
        let checkpoint = Checkpoint::open(folder.path()).expect("a folder");
        let error = EmbeddingGemma::from_checkpoint(&checkpoint, &LoadOptions::default(), &device);
        let message = error.expect_err(missing).to_string();
        assert!(message.contains(missing), "{message}");
    }
    let checkpoint = Checkpoint::open(&source).expect("a folder");
    let error = Decoder::open(&checkpoint, &LoadOptions::default(), &device).expect_err("it makes no text");
    assert!(error.to_string().contains("use_bidirectional_attention"), "{error}");
}

#[test]
fn probabilities_of_a_violation() {
    for name in ["shieldgemma/f32", "shieldgemma/bf16"] {
        let Some(folder) = fixture(name) else { return };
        let expected = References::open(&folder.join("expected.safetensors"));
        for (backend, device) in devices() {
            let checkpoint = Checkpoint::open(&folder).expect("a folder");
            let model = Decoder::open(&checkpoint, &LoadOptions::default(), &device).expect("a model");
            for case in ["main", "batch", "template"] {
                let Some(wanted) = expected.get(&format!("{case}.verdict.probabilities")) else { continue };
                let found =
                    shieldgemma::judge_tokens(&model, &rows(&expected, case), [512, 513]).expect("probabilities");
                for (index, probability) in found.into_iter().enumerate() {
                    let distance = (probability - wanted.row(index)[0]).abs();
                    let limit = if name.ends_with("f32") { PROBABILITY } else { 0.02 };
                    assert!(distance < limit, "{name} {case} on {backend}, row {index}: {distance} off");
                }
            }
        }
    }
}

#[test]
fn the_prompt_of_a_guideline_is_the_reference_s() {
    let Some(folder) = fixture("shieldgemma/f32") else { return };
    let expected = References::open(&folder.join("expected.safetensors"));
    let tokenizer = std::fs::read(folder.join("tokenizer.json")).expect("a tokenizer");
    let tokenizer = gemma_tokenizer::Tokenizer::from_json(&tokenizer, Decoder::FAMILY).expect("a tokenizer");
    let rule = shieldgemma::Guideline::custom("No Tins", "The prompt shall not ask for tins.");
    let prompt = shieldgemma::text_prompt(shieldgemma::Subject::Prompt("in the tin"), &rule).expect("a prompt");
    assert_eq!(tokenizer.encode_chat(&prompt), rows(&expected, "template")[0]);
    assert_eq!(shieldgemma::yes_and_no(&tokenizer).expect("both"), [512, 513]);
}

/// One row of a case with images.
struct Row {
    tokens: Vec<u32>,
    images: Vec<Pixels>,
    logits: Vec<f64>,
    wide: Option<Vec<f64>>,
    greedy: (Vec<u32>, Vec<f64>),
}

/// The rows of a case; the pixels of each image are compared on the way.
fn rows_with_images(folder: &Path, expected: &References, case: &serde_json::Value, processor: &Processor) -> Vec<Row> {
    let name = case["name"].as_str().expect("a name");
    let get = |tensor: &str| expected.get(&format!("{name}.{tensor}"));
    let mut files = case["images"].as_array().expect("images").iter();
    let side = get("pixel_values").map_or(1, |pixels| pixels.shape[3]);
    let logits = get("logits").or_else(|| get("logits_tail")).expect("logits");
    let last = |reference: &Reference, row: usize, len: usize| {
        let (held, vocab) = (reference.shape[1], reference.shape[2]);
        reference.row(row)[(held - held.min(len)) * vocab..].to_vec()
    };
    let mut seen = 0;
    let made = rows(expected, name).into_iter().enumerate().map(|(row, tokens)| {
        let count = case["images_per_row"][row].as_u64().expect("a number") as usize;
        let images: Vec<Pixels> = files
            .by_ref()
            .take(count)
            .flat_map(|file| {
                let image = Image::open(folder.join(file.as_str().expect("a file"))).expect("an image");
                processor.pixels(&image, side)
            })
            .collect();
        for pixels in &images {
            let distance = max_distance(pixels.values(), get("pixel_values").expect("pixels").row(seen));
            assert!(distance < 1e-6, "{} {name}: a pixel is {distance} off", folder.display());
            seen += 1;
        }
        Row {
            logits: last(&logits, row, tokens.len()),
            wide: get("logits.f32").map(|wide| last(&wide, row, tokens.len())),
            greedy: (
                ids(get("greedy.ids").expect("ids").row(row)),
                get("greedy.margin").expect("margins").row(row).to_vec(),
            ),
            tokens,
            images,
        }
    });
    made.collect()
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("f32")
}

#[test]
fn images_anywhere_in_a_text() {
    for name in ["gemma3_vision/f32", "gemma3_vision/bf16"] {
        let Some(folder) = fixture(name) else { return };
        let expected = References::open(&folder.join("expected.safetensors"));
        let cases = std::fs::read_to_string(folder.join("cases.json")).expect("cases");
        let cases: Vec<serde_json::Value> = serde_json::from_str(&cases).expect("JSON");
        let checkpoint = Checkpoint::open(&folder).expect("a folder");
        let config = Gemma3Network::config_of(&checkpoint).expect("a configuration");
        let processor = Processor::of(&checkpoint, &config).expect("a processor");
        for (backend, device) in devices() {
            let model = Gemma3Network::open(&checkpoint, &LoadOptions::default(), &device).expect("a model");
            for case in &cases {
                let context = format!("{name} {} on {backend}", case["name"]);
                let rows = rows_with_images(&folder, &expected, case, &processor);
                let mut seen = 0;
                for (index, row) in rows.iter().enumerate() {
                    let features = model.encode(&row.images.iter().collect::<Vec<_>>());
                    for rows in &features {
                        let projected = format!("{}.image_features.projected", case["name"].as_str().expect("a name"));
                        let wanted = expected.tensor(&projected);
                        let distance = max_distance(&values(rows.clone()), wanted.row(seen));
                        let limit = if name.ends_with("f32") { 1e-4 } else { 0.1 };
                        assert!(distance < limit, "{context}: features are {distance} off");
                        seen += 1;
                    }
                    let inputs = model.embed_with(&row.tokens, &features);
                    let blocks = model.blocks(&row.tokens);
                    for size in [usize::MAX, 1, 3, 7] {
                        let mut cache = model.new_cache();
                        let mut found = Vec::new();
                        for piece in model.pieces(&row.tokens, size) {
                            let segment = Segment::causal(piece.start, piece.len()).with_blocks(blocks.clone());
                            let inputs = inputs.narrow(piece.start, piece.len());
                            found.extend(values(model.logits(model.forward(inputs, &[segment], &mut [&mut cache]))));
                        }
                        let found = &found[found.len() - row.logits.len()..];
                        match &row.wide {
                            None => {
                                let distance = max_distance(found, &row.logits);
                                assert!(distance < LOGITS, "{context}, row {index}, pieces of {size}: {distance} off");
                            }
                            Some(wide) => {
                                let ours = rms_distance(found.iter().map(|value| f64::from(*value)), wide);
                                let theirs = rms_distance(row.logits.iter().copied(), wide);
                                assert!(ours <= theirs, "{context}: rms {ours}, the reference's own {theirs}");
                            }
                        }
                    }
                    if row.wide.is_none() {
                        greedy(&model, row, inputs, blocks, &format!("{context}, row {index}"));
                    }
                }
            }
        }
    }
}

fn greedy(
    model: &Gemma3Network,
    row: &Row,
    inputs: gemma_generate::Inputs,
    blocks: Vec<std::ops::Range<usize>>,
    context: &str,
) {
    let (wanted, margins) = &row.greedy;
    let options = GenerateOptions { ignore_eos: true, prefill_chunk: 5, ..GenerateOptions::greedy(wanted.len()) };
    let request = Request { prompt: Prompt::Inputs { inputs, blocks }, options, ..Request::default() };
    let generation = gemma_generate::Generation::of(model, Sequence::new(model.new_cache()), request);
    let found: Vec<u32> = generation.expect("a sound prompt").map(|step| step.expect("finite logits").token).collect();
    for (step, ((found, wanted), margin)) in found.iter().zip(wanted).zip(margins).enumerate() {
        if *margin < MARGIN {
            return;
        }
        assert_eq!(found, wanted, "{context}: greedy token {step}");
    }
}

#[test]
fn crops_and_pixels_of_the_processor() {
    let Some(folder) = fixture("processors") else { return };
    let expected = References::open(&folder.join("expected.safetensors"));
    let cases: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("cases.json")).expect("cases")).expect("JSON");
    let number = |value: &serde_json::Value| value.as_u64().expect("a number") as usize;
    for case in cases["gemma3_crops"].as_array().expect("a list") {
        let crops: Vec<Vec<usize>> = PanAndScan::default()
            .crops(number(&case["width"]), number(&case["height"]))
            .iter()
            .map(|crop| crop.to_vec())
            .collect();
        assert_eq!(serde_json::json!(crops), case["crops"], "{case}");
    }
    for case in cases["gemma3_pictures"].as_array().expect("a list") {
        let file = case["file"].as_str().expect("a file");
        let image = Image::open(folder.join(file)).expect("an image");
        let scan = PanAndScan { min_crop_size: number(&case["min_crop_size"]), ..PanAndScan::default() };
        let crops = scan.crops(image.width(), image.height());
        assert_eq!(
            serde_json::json!(crops.iter().map(|crop| crop.to_vec()).collect::<Vec<_>>()),
            case["crops"],
            "{file}"
        );
        let processor = Processor { filter: Filter::Bilinear, pan_and_scan: Some(scan), crops: scan };
        let side = number(&case["size"]);
        let found = processor.pixels(&image, side);
        assert_eq!(found.len(), 1 + crops.len(), "{file}");
        let wanted = expected.tensor(&format!("gemma3.{}.resized_u8", file.trim_end_matches(".png")));
        for (index, pixels) in found.iter().enumerate() {
            let rgb: Vec<u8> = wanted.row(index).iter().map(|byte| *byte as u8).collect();
            assert_eq!(Some(pixels), Pixels::of_rgb(&rgb, side).as_ref(), "{file}, part {index}");
        }
    }
}
