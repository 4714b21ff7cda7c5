//! LoRA adapters against PEFT: logits, losses and gradients of the adapters that it wrote, beside the weights and merged.

use std::path::{Path, PathBuf};

use burn::module::Module;
use gemma::{Backend, Decoder, LoadOptions, Network};
use gemma_model::{ActivationPrecision, Blocks};
use gemma_nn::Segment;
use gemma_tests::{References, max_distance, shared};
use gemma_train::{Example, Trainer, TrainingOptions, open_whole, open_with_factors};
use gemma_weights::{Adapter, Checkpoint, Precision};
use recurrentgemma::Griffin;

/// The largest permitted difference of a gradient, relative to its largest value.
const RELATIVE: f64 = 1e-3;

fn devices() -> impl Iterator<Item = (Backend, burn::tensor::Device)> {
    gemma_tests::devices().into_iter()
}

/// The folder of a model of the shared set, and the tokens that its adapter was tried on.
fn folder(name: &str) -> Option<(PathBuf, Vec<u32>)> {
    let folder = shared()?.join("reference/fixtures").join(name).join("f32");
    let ids = References::open(&folder.join("expected.safetensors")).tensor("main.input_ids").values;
    Some((folder, ids.iter().map(|id| *id as u32).collect()))
}

fn exact() -> LoadOptions {
    LoadOptions { activations: ActivationPrecision::F32, ..LoadOptions::default() }
}

fn logits<N: Network>(model: &N, tokens: &[u32]) -> Vec<f32> {
    model.uncached_logits(tokens, &[Segment::causal(0, tokens.len())]).into_data().try_into_vec().expect("f32")
}

fn assert_near(found: &[f32], expected: &[f64], tolerance: f64, context: &str) {
    let distance = max_distance(found, expected);
    assert!(distance < tolerance, "{context}: {distance} off");
}

/// Logits with the adapter beside the weights, with two halves of it, and merged; loss and gradients of its factors.
fn check<N: Blocks + Module>(name: &str) {
    let Some((folder, tokens)) = folder(name) else { return };
    let expected = References::open(&folder.join("lora/expected.safetensors"));
    let checkpoint = Checkpoint::open(&folder).expect("a model folder");
    let adapter = Adapter::open(&folder.join("lora")).expect("a folder of PEFT");
    for (backend, device) in devices() {
        let context = format!("{name} on {backend}");
        let open = |adapters: Vec<Adapter>| {
            N::open(&checkpoint, &LoadOptions { adapters, ..exact() }, &device).expect("the adapter fits")
        };
        let beside = logits(&open(vec![adapter.clone()]), &tokens);
        assert_near(&beside, &expected.tensor("logits").values, 2e-4, &context);
        let half = || adapter.clone().with_strength(0.5);
        assert_near(&logits(&open(vec![half(), half()]), &tokens), &expected.tensor("logits").values, 2e-4, &context);
        let without = logits(&open(vec![adapter.clone().with_strength(0.0)]), &tokens);
        assert!(
            max_distance(&without, &expected.tensor("logits").values) > 1e-2,
            "{context}: the adapter does nothing"
        );
        let merged = checkpoint.merged(std::slice::from_ref(&adapter), None);
        let merged = N::open(&merged, &exact(), &device).expect("a checkpoint");
        assert_near(&logits(&merged, &tokens), &expected.tensor("logits_merged").values, 2e-4, &context);

        let model: N = open_with_factors(&checkpoint, &exact(), &adapter, &device, &mut |_, _| {}).expect("it fits");
        let trainer = Trainer::new(model, TrainingOptions::default()).expect("factors to train");
        let (loss, gradients) = trainer.gradients(&[Example::text(tokens.clone())]).expect("tokens to learn");
        let reference = expected.tensor("loss").values[0];
        assert!((loss - reference).abs() < 1e-4, "{context}: loss {loss}, not {reference}");
        let mut compared = 0;
        for name in expected.names() {
            let Some(parameter) = name.strip_prefix("grad.") else { continue };
            let reference = expected.tensor(&name);
            let largest = reference.values.iter().fold(0f64, |most, value| most.max(value.abs()));
            let found = &gradients[parameter];
            assert_eq!(found.shape, reference.shape, "{context}: {parameter}");
            let distance = max_distance(&found.values, &reference.values);
            assert!(distance <= RELATIVE * largest, "{context}: {parameter} is {distance} off, of {largest}");
            compared += 1;
        }
        assert_eq!(compared, gradients.len(), "{context}: every factor has a gradient");
    }
}

#[test]
fn adapters_of_peft_compute_what_peft_computes() {
    check::<Decoder>("gemma1_mqa");
    check::<Decoder>("gemma2");
    check::<Griffin>("recurrentgemma");
}

/// The gradients of all parameters, computed block by block, against the reference.
fn check_whole<N: Blocks + Module>(name: &str) {
    let Some(shared) = shared() else { return };
    let folder = shared.join("reference/fixtures").join(name).join("f32");
    let expected = References::open(&folder.join("train.safetensors"));
    let tokens: Vec<u32> = expected.tensor("input_ids").values.iter().map(|id| *id as u32).collect();
    let learn: Vec<bool> = expected.tensor("labels").values.iter().map(|label| *label >= 0.0).collect();
    let checkpoint = Checkpoint::open(&folder).expect("a model folder");
    for (backend, device) in devices() {
        let model: N = open_whole(&checkpoint, &exact(), &device, &mut |_, _| {}).expect("a checkpoint");
        let trainer = Trainer::new(model, TrainingOptions::default()).expect("parameters to train");
        let example = Example::new(tokens.clone(), learn.clone());
        let (loss, gradients) = trainer.gradients(std::slice::from_ref(&example)).expect("tokens to learn");
        let reference = expected.tensor("loss").values[0];
        assert!((loss - reference).abs() < 1e-4, "{name} on {backend}: loss {loss}, not {reference}");
        for (parameter, found) in &gradients {
            let reference = expected.tensor(&format!("grad.{parameter}"));
            let largest = reference.values.iter().fold(0f64, |most, value| most.max(value.abs()));
            let distance = max_distance(&found.values, &reference.values);
            assert!(distance <= RELATIVE * largest, "{name} on {backend}: {parameter} is {distance} off, of {largest}");
        }
        assert_eq!(gradients.len(), trainer.values().len());
        // the same text twice, packed in one part or in two, has the same mean and the same gradient
        for pack_tokens in [1, 1000] {
            let options = TrainingOptions { pack_tokens, ..TrainingOptions::default() };
            let model: N = open_whole(&checkpoint, &exact(), &device, &mut |_, _| {}).expect("a checkpoint");
            let trainer = Trainer::new(model, options).expect("parameters to train");
            let (twice, again) = trainer.gradients(&[example.clone(), example.clone()]).expect("tokens to learn");
            assert!((twice - loss).abs() < 1e-5, "{name} on {backend}: {twice} {loss}");
            for (parameter, found) in &gradients {
                let expected: Vec<f64> = found.values.iter().map(|value| f64::from(*value)).collect();
                let largest = expected.iter().fold(0f64, |most, value| most.max(value.abs()));
                let distance = max_distance(&again[parameter].values, &expected);
                assert!(distance <= 1e-4 * largest + 1e-9, "{name} on {backend}: {parameter} changes by {distance}");
            }
        }
    }
}

#[test]
fn gradients_block_by_block_are_those_of_the_reference() {
    check_whole::<Decoder>("gemma1_mqa");
    check_whole::<Griffin>("recurrentgemma");
}

/// Losses of a short training with factors beside a model held in a precision.
fn losses(checkpoint: &Checkpoint, precision: Option<Precision>, steps: usize) -> Vec<f64> {
    let (_, device) = devices().next().expect("a backend");
    let config = gemma_weights::AdapterConfig {
        rank: 4,
        alpha: 8.0,
        rslora: false,
        targets: gemma_weights::Targets::Names(gemma_train::TARGETS.map(str::to_owned).to_vec()),
        rank_pattern: Default::default(),
        alpha_pattern: Default::default(),
        base_model: None,
        of_encoder: false,
    };
    let options = LoadOptions { precision, ..exact() };
    let model: Decoder =
        gemma_train::open_with_new_factors(checkpoint, &options, &config, 1, &device, &mut |_, _| {}).expect("it fits");
    let options = TrainingOptions { steps, learning_rate: 2e-3, ..TrainingOptions::default() };
    let mut trainer = Trainer::new(model, options).expect("factors to train");
    let tokenizer = gemma::demo_tokenizer().expect("the demo's tokenizer");
    let examples: Vec<Example> =
        ["The cat sat on the mat.", "Once upon a time there was a dog.", "Two plus two is four."]
            .map(|text| Example::text(tokenizer.encode(text)))
            .to_vec();
    (0..steps).map(|_| trainer.step(&examples).expect("a step").loss).collect()
}

#[test]
fn quantized_weights_train_as_their_values_do() {
    let checkpoint = gemma::demo_checkpoint().expect("the demo");
    for precision in [Precision::Q8_0, Precision::Q4_0] {
        // the same values, as f32: the quantized model is written out and read again
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = dequantized(&checkpoint, precision, folder.path());
        let quantized = losses(&checkpoint, Some(precision), 50);
        let dense = losses(&Checkpoint::open(&path).expect("what was written"), None, 50);
        for (step, (quantized, dense)) in quantized.iter().zip(&dense).enumerate() {
            assert!((quantized - dense).abs() < 0.01 * dense, "{precision}, step {step}: {quantized} and {dense}");
        }
        assert!(quantized[49] < 0.5 * quantized[0], "{precision}: it learns: {quantized:?}");
    }
}

/// A folder with a model's values as a quantized precision has them, in f32.
fn dequantized(checkpoint: &Checkpoint, precision: Precision, folder: &Path) -> PathBuf {
    let gguf = folder.join("quantized.gguf");
    let progress = &mut |_, _| std::ops::ControlFlow::Continue(());
    gemma_model::convert_to_gguf::<Decoder>(checkpoint, None, Some(precision.format()), &gguf, false, progress)
        .expect("a GGUF file");
    let target = folder.join("dense");
    let quantized = Checkpoint::open(&gguf).expect("a GGUF file");
    gemma_model::convert_to_folder::<Decoder>(&quantized, None, gemma_weights::Dtype::F32, &target, false, progress)
        .expect("a folder");
    target
}

/// A trainer of new factors beside the demo, and what it learns.
fn demo_training(steps: usize) -> (Trainer<Decoder>, Vec<Example>) {
    let (_, device) = devices().next().expect("a backend");
    let checkpoint = gemma::demo_checkpoint().expect("the demo");
    let config = gemma_weights::AdapterConfig {
        rank: 2,
        alpha: 4.0,
        rslora: false,
        targets: gemma_weights::Targets::Names(vec!["q_proj".into(), "down_proj".into()]),
        rank_pattern: Default::default(),
        alpha_pattern: Default::default(),
        base_model: None,
        of_encoder: false,
    };
    let model: Decoder = gemma_train::open_with_new_factors(&checkpoint, &exact(), &config, 3, &device, &mut |_, _| {})
        .expect("it fits");
    let options = TrainingOptions { steps, learning_rate: 1e-2, ..TrainingOptions::default() };
    let trainer = Trainer::new(model, options).expect("factors to train");
    let tokenizer = gemma::demo_tokenizer().expect("the demo's tokenizer");
    let texts = ["The cat sat.", "Once upon a time there was a dog.", "Two plus two is four.", "The sun is warm."];
    (trainer, texts.map(|text| Example::text(tokenizer.encode(text))).to_vec())
}

#[test]
fn a_resumed_training_ends_where_an_uninterrupted_one_does() {
    let batches = gemma_train::run::Batches { examples: 4, batch: 3, seed: 5 };
    let run = |trainer: &mut Trainer<Decoder>, examples: &[Example], until: usize| {
        while trainer.steps() < until {
            let chosen: Vec<Example> =
                batches.of_step(trainer.steps()).into_iter().map(|index| examples[index].clone()).collect();
            trainer.step(&chosen).expect("a step");
        }
    };
    let (mut whole, examples) = demo_training(6);
    run(&mut whole, &examples, 6);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = folder.path().join("state.safetensors");
    let (mut first, _) = demo_training(6);
    run(&mut first, &examples, 2);
    first.save_state(&state, "this run").expect("written");
    drop(first);
    let (mut second, _) = demo_training(6);
    assert!(second.load_state(&state, "another run").is_err(), "a state of another run is refused");
    second.load_state(&state, "this run").expect("the same run");
    run(&mut second, &examples, 6);
    assert_eq!(second.values(), whole.values(), "to the bit");
}

#[test]
fn preferences_raise_the_better_answer_over_the_worse() {
    let (mut trainer, examples) = demo_training(20);
    let reference = trainer.log_probs(&examples[..2]);
    let pair = gemma_train::Preference {
        chosen: examples[0].clone(),
        rejected: examples[1].clone(),
        reference: [reference[0], reference[1]],
    };
    let first = trainer.preference_step(std::slice::from_ref(&pair), 0.1).expect("a step").loss;
    assert!((first - 2f64.ln()).abs() < 1e-4, "no preference yet: {first}");
    for _ in 1..20 {
        trainer.preference_step(std::slice::from_ref(&pair), 0.1).expect("a step");
    }
    let after = trainer.log_probs(&examples[..2]);
    assert!(after[0] - reference[0] > after[1] - reference[1], "{after:?} {reference:?}");
    assert!(trainer.preference_loss(std::slice::from_ref(&pair), 0.1) < 0.5 * first);
}
