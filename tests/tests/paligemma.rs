//! PaliGemma against the reference implementation, beginning at the image files: pixels, encoder, projector, logits,
//! greedy continuations, ragged batches, several images, training masks, boxes and masks; on every compiled backend.

use burn::Tensor;
use burn::module::Param;
use gemma_demo::train_paligemma::{ImageExample, loss};
use gemma_generate::{CausalModel, GenerateOptions, Generation, Request, Sequence};
use gemma_nn::{Saver, Segment, Weight};
use gemma_tests::{Reference, References, devices, goldens, max_distance, rms_distance, shared};
use gemma_train::Example;
use gemma_weights::Checkpoint;
use paligemma::{
    BoundingBox, Device, Filter, Image, LoadOptions, Mask, MaskDecoder, Network, Pixels, Prompt, VisionLanguageModel,
    resize_rgb,
};
use std::path::Path;

/// The largest permitted distance of an f32 logit from the reference.
const LOGITS: f64 = 1e-3;
/// The largest permitted distance of an image's feature.
const FEATURES: f64 = 1e-4;
/// A greedy choice counts where the reference's best two logits are farther apart than this.
const MARGIN: f64 = 1e-3;

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("f32")
}

fn ids(reference: &[f64]) -> Vec<u32> {
    reference.iter().map(|id| *id as u32).collect()
}

fn open(folder: &Path, device: &Device) -> VisionLanguageModel {
    let checkpoint = Checkpoint::open(folder).expect("a model folder");
    VisionLanguageModel::open(&checkpoint, &LoadOptions::default(), device).expect("a model")
}

/// One row of a case: what a prompt is made of, and what the reference makes of it.
struct Row {
    tokens: Vec<u32>,
    /// Tokens of the prompt; those after it are an answer, read along.
    prefix: usize,
    images: Vec<Pixels>,
    /// Logits after the last `logits.len() / vocab` tokens.
    logits: Vec<f64>,
    /// f32 arithmetic on the same weights, where `logits` is bf16 arithmetic.
    wide: Option<Vec<f64>>,
    greedy: Option<(Vec<u32>, Vec<f64>)>,
}

/// A case of the reference: its rows, without padding, and the features of all its images.
struct Case {
    name: String,
    rows: Vec<Row>,
    siglip: Option<Vec<f64>>,
    projected: Option<Vec<f64>>,
}

impl Case {
    fn read(folder: &Path, expected: &References, about: &serde_json::Value, side: usize) -> Self {
        let name = about["name"].as_str().expect("a name").to_owned();
        let get = |tensor: &str| expected.get(&format!("{name}.{tensor}"));
        let (tokens, mask) = (get("input_ids").expect("ids"), get("attention_mask").expect("a mask"));
        let types = get("token_type_ids").expect("types");
        let logits = get("logits").or_else(|| get("logits_tail")).expect("logits");
        let mut files = about["images"].as_array().expect("images").iter();
        let rows = (0..tokens.shape[0]).map(|row| {
            let real: Vec<usize> = (0..tokens.shape[1]).filter(|place| mask.row(row)[*place] == 1.0).collect();
            let of = |reference: &Reference| real.iter().map(|place| reference.row(row)[*place]).collect::<Vec<_>>();
            let count = about["images_per_row"][row].as_u64().expect("a number");
            let images = files.by_ref().take(count as usize);
            let image = |file: &serde_json::Value| {
                Image::open(folder.join(file.as_str().expect("a file"))).expect("an image").pixels(side)
            };
            let images = images.map(image).collect();
            // the last positions are real: padding is on the left
            let last = |logits: Reference| {
                let held = logits.shape[1];
                let vocab = logits.shape[2];
                let kept = held.min(real.len());
                logits.row(row)[(held - kept) * vocab..].to_vec()
            };
            let greedy = |ids_: Reference, margins: Reference| (ids(ids_.row(row)), margins.row(row).to_vec());
            Row {
                tokens: ids(&of(&tokens)),
                prefix: of(&types).iter().filter(|kind| **kind == 0.0).count(),
                images,
                logits: last(logits.clone()),
                wide: get("logits.f32").map(last),
                greedy: get("greedy.ids").map(|ids| greedy(ids, get("greedy.margin").expect("margins"))),
            }
        });
        let rows = rows.collect();
        let flat = |tensor: &str| get(tensor).map(|reference| reference.values);
        Self { rows, siglip: flat("image_features.siglip"), projected: flat("image_features.projected"), name }
    }
}

/// All cases of a folder; the pixels of each image are compared on the way.
fn cases(folder: &Path) -> Vec<Case> {
    let expected = References::open(&folder.join("expected.safetensors"));
    let text = std::fs::read_to_string(folder.join("cases.json")).expect("cases.json");
    let about: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let cases = about.as_array().expect("a list").iter().map(|about| {
        let name = about["name"].as_str().expect("a name");
        let pixels = expected.tensor(&format!("{name}.pixel_values"));
        let case = Case::read(folder, &expected, about, pixels.shape[3]);
        let found: Vec<f32> =
            case.rows.iter().flat_map(|row| &row.images).flat_map(|p| p.values().iter().copied()).collect();
        let distance = max_distance(&found, &pixels.values);
        assert!(distance < 1e-6, "{} {name}: a pixel is {distance} off", folder.display());
        case
    });
    cases.collect()
}

fn check(folder: &Path) {
    let exact = folder.file_name().is_some_and(|name| name == "f32");
    for (backend, device) in devices() {
        let model = open(folder, &device);
        for case in cases(folder) {
            let context = format!("{} {} on {backend}", folder.display(), case.name);
            features(&model, &case, exact, &context);
            whole(&model, &case, &context);
            greedy(&model, &case, exact, &context);
        }
    }
}

fn features(model: &VisionLanguageModel, case: &Case, exact: bool, context: &str) {
    let images: Vec<&Pixels> = case.rows.iter().flat_map(|row| &row.images).collect();
    let siglip = model.vision_tower().forward(&images);
    let tolerance = if exact { FEATURES } else { 0.1 };
    for (what, found, expected) in
        [("siglip", siglip.clone(), &case.siglip), ("projected", model.project(siglip), &case.projected)]
    {
        let Some(expected) = expected else { continue };
        let distance = max_distance(&values(found), expected);
        assert!(distance < tolerance, "{context}: {what} is {distance} off");
    }
    // one at a time gives what all together give
    let one = values(model.encode(&images[..1]).remove(0));
    let first = values(model.encode(&images).remove(0));
    assert!(one.iter().zip(&first).all(|(a, b)| (a - b).abs() < 1e-5), "{context}: an image depends on the others");
}

fn encoded(model: &VisionLanguageModel, row: &Row) -> Vec<Tensor<2>> {
    model.encode(&row.images.iter().collect::<Vec<_>>())
}

/// The rows of a case as segments of one call, answers included.
fn whole(model: &VisionLanguageModel, case: &Case, context: &str) {
    let tokens: Vec<u32> = case.rows.iter().flat_map(|row| row.tokens.iter().copied()).collect();
    let features: Vec<Tensor<2>> = case.rows.iter().flat_map(|row| encoded(model, row)).collect();
    let segment = |row: &Row| Segment::causal(0, row.tokens.len()).with_prefix(row.prefix);
    let segments: Vec<Segment> = case.rows.iter().map(segment).collect();
    let found = values(model.logits(model.uncached_hidden_states(model.embed_with(&tokens, &features), &segments)));
    let vocab = model.vocab();
    let mut end = 0;
    for (index, row) in case.rows.iter().enumerate() {
        end += row.tokens.len() * vocab;
        compare(&found[end - row.logits.len()..end], row, &format!("{context}, row {index}"));
    }
}

fn compare(found: &[f32], row: &Row, context: &str) {
    match &row.wide {
        None => {
            let distance = max_distance(found, &row.logits);
            assert!(distance < LOGITS, "{context}: a logit is {distance} off");
        }
        Some(wide) => {
            let ours = rms_distance(found.iter().map(|value| f64::from(*value)), wide);
            let theirs = rms_distance(row.logits.iter().copied(), wide);
            assert!(ours <= theirs, "{context}: rms {ours}, the reference's own bf16 run has {theirs}");
        }
    }
}

/// The prompts of a case are read as segments of one call; then each answer is made by the loop that makes all texts,
/// and once more in chunks through the cache.
fn greedy(model: &VisionLanguageModel, case: &Case, exact: bool, context: &str) {
    let with_prefix: Vec<&Row> = case.rows.iter().filter(|row| row.prefix == row.tokens.len()).collect();
    if with_prefix.is_empty() {
        return suffix_in_chunks(model, case, context);
    }
    let features: Vec<Vec<Tensor<2>>> = with_prefix.iter().map(|row| encoded(model, row)).collect();
    let prompts: Vec<Prompt<'_>> =
        with_prefix.iter().zip(&features).map(|(row, features)| Prompt { tokens: &row.tokens, features }).collect();
    let mut caches: Vec<_> = prompts.iter().map(|_| model.new_cache()).collect();
    let hidden_states = model.prefill(&prompts, &mut caches.iter_mut().collect::<Vec<_>>());
    let mut end = 0;
    for (index, (row, features)) in with_prefix.iter().zip(&features).enumerate() {
        end += row.tokens.len();
        let Some((expected, margins)) = &row.greedy else { continue };
        let context = format!("{context}, row {index}");
        let next = model.logits(hidden_states.clone().narrow(0, end - 1, 1));
        if exact {
            let last = &row.logits[row.logits.len() - model.vocab()..];
            let distance = max_distance(&values(next), last);
            assert!(distance < LOGITS, "{context}: a logit after the prompt is {distance} off");
        }
        let options = GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(expected.len()) };
        let inputs = model.embed_with(&row.tokens, features);
        let prompt = gemma_generate::Prompt::Inputs { inputs, blocks: vec![0..row.tokens.len()] };
        let sequence = Sequence::new(model.new_cache());
        let generation = Generation::of(model, sequence, Request::new(prompt, options)).expect("a prompt");
        let found: Vec<u32> = generation.map(|sampled| sampled.expect("finite logits").token).collect();
        let enough = if exact { MARGIN } else { 0.2 };
        for (step, ((found, id), margin)) in found.iter().zip(expected).zip(margins).enumerate() {
            if *margin < enough {
                break;
            }
            assert_eq!(found, id, "{context}: greedy token {step}");
        }
        assert_eq!(found.len(), expected.len(), "{context}");
    }
}

/// An answer that is read behind its prompt in chunks of 1, 3 and 7 gives what the whole gives.
fn suffix_in_chunks(model: &VisionLanguageModel, case: &Case, context: &str) {
    let vocab = model.vocab();
    for row in &case.rows {
        for chunk in [1, 3, 7] {
            let mut cache = model.new_cache();
            let features = encoded(model, row);
            let prompt = Prompt { tokens: &row.tokens[..row.prefix], features: &features };
            let hidden = model.prefill(&[prompt], &mut [&mut cache]);
            let mut found = values(model.language_model().logits(hidden));
            let mut start = row.prefix;
            for part in row.tokens[row.prefix..].chunks(chunk) {
                let segment = Segment::causal(start, part.len()).with_prefix(row.prefix);
                found.extend(values(model.all_logits(part, &[segment], &mut [&mut cache])));
                start += part.len();
            }
            assert_eq!(found.len(), row.tokens.len() * vocab);
            compare(&found[found.len() - row.logits.len()..], row, &format!("{context}, chunks of {chunk}"));
        }
    }
}

#[test]
fn goldens_of_this_repository() {
    for name in ["paligemma/f32", "paligemma2/f32"] {
        check(&goldens().join(name));
    }
}

#[test]
fn fixtures_of_the_shared_set() {
    let Some(shared) = shared() else { return };
    for name in ["paligemma/f32", "paligemma/bf16", "paligemma_nested/f32", "paligemma2/f32"] {
        check(&shared.join("reference/fixtures").join(name));
    }
}

/// The prompt that the reference's CPU makes of a text.
#[test]
fn a_prompt_has_the_tokens_of_the_reference() {
    let Some(shared) = shared() else { return };
    let folder = shared.join("reference/fixtures/paligemma/f32");
    let device = devices().remove(0).1;
    let model = paligemma::PaliGemma::load_folder(&folder, &LoadOptions::default(), &device).expect("a model");
    let expected = References::open(&folder.join("expected.safetensors")).tensor("main.input_ids");
    assert_eq!(model.prompt_tokens(1, "detect cat").expect("a tokenizer"), ids(&expected.values));
    let view = model.encode_image(&Image::open(folder.join("main.image0.png")).expect("an image"));
    let answer = view.detect(&["cat"]).expect("an answer");
    assert!(!answer.text.is_empty());
}

#[test]
fn images_are_resized_to_the_last_bit() {
    let Some(shared) = shared() else { return };
    let folder = shared.join("reference/fixtures/images");
    let expected = References::open(&folder.join("expected.safetensors"));
    let text = std::fs::read_to_string(folder.join("cases.json")).expect("cases.json");
    let about: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    for case in about.as_array().expect("a list") {
        // decoders of JPEG differ by a few levels; the resampling is compared on the decoded image
        let file = case["decoded"].as_str().or(case["file"].as_str()).expect("a file");
        let name = case["file"].as_str().expect("a file").split('.').next().expect("a name");
        let side = case["size"].as_u64().expect("a size") as usize;
        let image = Image::open(folder.join(file)).expect("an image");
        let resized = expected.tensor(&format!("{name}.resized_u8"));
        let found: Vec<f64> = image.squashed(side).rgb().iter().map(|value| f64::from(*value)).collect();
        assert_eq!(found, resized.values, "{file}");
        if let Some(pixels) = expected.get(&format!("{name}.pixel_values")) {
            let distance = max_distance(image.pixels(side).values(), &pixels.values);
            assert!(distance < 1e-6, "{file}: a pixel is {distance} off");
        }
    }
    let photo = Image::open(folder.join("photo.jpg")).expect("an image");
    let decoded = Image::open(folder.join("photo.decoded.png")).expect("an image");
    let worst = photo.rgb().iter().zip(decoded.rgb()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(worst.is_some_and(|worst| worst <= 8), "a JPEG is decoded within a few levels: {worst:?}");
}

#[test]
fn masks_are_decoded_as_the_reference_decodes_them() {
    let Some(shared) = shared() else { return };
    let folder = shared.join("reference/fixtures/seg_decoder");
    let expected = References::open(&folder.join("expected.safetensors"));
    let (codes, maps) = (expected.tensor("codes"), expected.tensor("mask_64"));
    let objects: Vec<[u8; 16]> =
        (0..codes.shape[0]).map(|row| std::array::from_fn(|place| codes.row(row)[place] as u8)).collect();
    for (backend, device) in devices() {
        let decoder = MaskDecoder::open(&folder.join("vae-random.npz"), &device).expect("weights");
        for (row, map) in decoder.decode(&objects).iter().enumerate() {
            let distance = max_distance(map, maps.row(row));
            assert!(distance < 1e-4, "{backend}, map {row}: a value is {distance} off");
            let whole = BoundingBox { x_min: 0.0, y_min: 0.0, x_max: 64.0, y_max: 64.0 };
            let inside = Mask::stretch(map, &whole).expect("a box with pixels").inside;
            let sure = maps.row(row).iter().zip(&inside).filter(|(value, _)| value.abs() > 1e-4);
            assert!(sure.clone().all(|(value, inside)| (*value > 0.0) == *inside), "{backend}, map {row}");
        }
    }
}

/// A small image whose resized bytes Pillow 13.0.0 made: one of this repository's goldens.
#[test]
fn a_small_image_is_resized_to_the_last_bit() {
    let folder = goldens().join("paligemma");
    let expected = References::open(&folder.join("images.safetensors"));
    let image = Image::open(folder.join("wide.png")).expect("an image");
    for (name, filter) in [("bicubic", Filter::Bicubic), ("bilinear", Filter::Bilinear)] {
        let golden = expected.tensor(name);
        let [height, width, _] = golden.shape[..] else { panic!("height, width, channels") };
        let found = resize_rgb(image.rgb(), image.width(), image.height(), width, height, filter);
        let found: Vec<f64> = found.iter().map(|value| f64::from(*value)).collect();
        assert_eq!(found, golden.values, "{name}");
    }
}

/// Compares each parameter's gradient with the reference's.
struct Gradients<'a> {
    found: &'a burn::tensor::Gradients,
    expected: &'a References,
    context: String,
    names: Vec<String>,
}

impl Gradients<'_> {
    fn compare<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        let found = values(param.val().grad(self.found).unwrap_or_else(|| panic!("{name} has no gradient")));
        let expected = self.expected.tensor(&format!("suffix.grad.{name}"));
        let largest = expected.values.iter().fold(0f64, |most, value| most.max(value.abs()));
        let distance = max_distance(&found, &expected.values);
        assert!(distance <= 1e-3 * largest + 1e-7, "{}: {name} is {distance} off, of {largest}", self.context);
        self.names.push(name.to_owned());
    }
}

impl Saver for Gradients<'_> {
    fn matrix(&mut self, name: &str, weight: &Weight) {
        let Weight::Dense(param) = weight else { panic!("{name} is not trainable") };
        self.compare(name, param);
    }

    fn vector(&mut self, name: &str, param: &Param<Tensor<1>>) {
        self.compare(name, param);
    }

    fn tensor(&mut self, name: &str, _shape: &[usize], param: &Param<Tensor<1>>) {
        self.compare(name, param);
    }
}

/// The loss covers the answer only, and reaches every parameter, those of the encoder included.
#[test]
fn training_has_the_gradients_of_the_reference() {
    for name in ["paligemma/f32", "paligemma2/f32"] {
        let folder = goldens().join(name);
        let expected = References::open(&folder.join("expected.safetensors"));
        let case = cases(&folder).into_iter().find(|case| case.name == "suffix").expect("a case with an answer");
        let row = &case.rows[0];
        for (backend, device) in devices() {
            let checkpoint = Checkpoint::open(&folder).expect("a model folder");
            let model = VisionLanguageModel::open_trainable(&checkpoint, &device).expect("a model");
            let learn = (0..row.tokens.len()).map(|place| place >= row.prefix).collect();
            let text = Example::new(row.tokens.clone(), learn);
            let example = ImageExample { text, prefix_len: row.prefix, pixels: row.images[0].clone() };
            let loss = loss(&model, &[example]);
            let context = format!("{name} on {backend}");
            let value = f64::from(loss.clone().into_scalar::<f32>());
            assert!((value - expected.tensor("suffix.loss").values[0]).abs() < 1e-4, "{context}: loss {value}");
            let gradients = loss.backward();
            let mut compare = Gradients { found: &gradients, expected: &expected, context, names: Vec::new() };
            model.save(&mut compare);
            let all = expected.names().iter().filter(|name| name.starts_with("suffix.grad.")).count();
            assert_eq!(compare.names.len(), all);
        }
    }
}

/// Takes down the gradient of every parameter.
struct Noted<'a> {
    gradients: &'a burn::tensor::Gradients,
    values: Vec<(String, Vec<f32>)>,
}

impl Noted<'_> {
    fn of(loss: &Tensor<1>, model: &VisionLanguageModel) -> Vec<(String, Vec<f32>)> {
        let gradients = loss.backward();
        let mut noted = Noted { gradients: &gradients, values: Vec::new() };
        model.save(&mut noted);
        noted.values
    }

    fn note<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        let gradient = param.val().grad(self.gradients).unwrap_or_else(|| panic!("{name} has no gradient"));
        self.values.push((name.to_owned(), values(gradient)));
    }
}

impl Saver for Noted<'_> {
    fn matrix(&mut self, name: &str, weight: &Weight) {
        let Weight::Dense(param) = weight else { panic!("{name} is not trainable") };
        self.note(name, param);
    }

    fn vector(&mut self, name: &str, param: &Param<Tensor<1>>) {
        self.note(name, param);
    }

    fn tensor(&mut self, name: &str, _shape: &[usize], param: &Param<Tensor<1>>) {
        self.note(name, param);
    }
}

/// A batch of different images with different texts has the mean of their gradients, by tokens to be learned.
#[test]
fn a_batch_has_the_mean_gradient_of_its_examples() {
    let tokenizer = paligemma::demo_tokenizer().expect("a tokenizer");
    for (backend, device) in devices() {
        let checkpoint = paligemma::demo_checkpoint().expect("a checkpoint");
        let model = VisionLanguageModel::open_trainable(&checkpoint, &device).expect("a model");
        let config = Network::config(&model);
        let mut random = gemma_demo::random::Random::new(5);
        let examples: Vec<ImageExample> = gemma_demo::scenes::scenes(5, 3, true)
            .take(3)
            .map(|scene| {
                let pixels = scene.draw(56).pixels(config.vision.image_size);
                gemma_demo::train_paligemma::example(&scene.lesson(&mut random, None), pixels, &tokenizer, config)
                    .expect("a lesson")
            })
            .collect();
        let together = Noted::of(&loss(&model, &examples), &model);
        let learned = |example: &ImageExample| example.text.targets().flatten().count() as f32;
        let total: f32 = examples.iter().map(learned).sum();
        let mut sum: Vec<Vec<f32>> = together.iter().map(|(_, values)| vec![0.0; values.len()]).collect();
        for example in &examples {
            let alone = Noted::of(&loss(&model, std::slice::from_ref(example)), &model);
            for (sum, (_, values)) in sum.iter_mut().zip(alone) {
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value * learned(example) / total);
            }
        }
        for ((name, found), expected) in together.iter().zip(&sum) {
            let largest = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
            let distance = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(distance <= 1e-3 * largest + 1e-6, "{backend}: {name} is {distance} off, of {largest}");
        }
    }
}
