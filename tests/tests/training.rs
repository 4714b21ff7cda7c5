//! Training without a reference: gradients against finite differences, for every kind of decoder and for pairs; several
//! processes against one; and a search that is learned.

use std::path::Path;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Device;
use embeddinggemma::{EmbeddingGemma, EmbeddingNetwork};
use gemma::{Decoder, LoadOptions};
use gemma_model::{ActivationPrecision, BlockStack};
use gemma_tests::{devices, tiny};
use gemma_train::run::{Batches, Data, Keeping, Learn, Pairs, run};
use gemma_train::{
    BatchGradients, Error, Example, NamedValues, Pair, ThreadRank, Trainer, TrainingOptions, Values, open_whole,
    open_with_new_factors, with_new_factors,
};
use gemma_weights::{AdapterConfig, Checkpoint, Precision, Targets};

/// The largest permitted difference of a slope, relative to the length of the gradient it is taken from: the loss is a sum of
/// f32 products, and a difference of two of them keeps three digits.
const RELATIVE: f64 = 1e-2;

fn demo() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/gemma/demo")
}

fn exact() -> LoadOptions {
    LoadOptions { activations: ActivationPrecision::F32, ..LoadOptions::default() }
}

/// Factors of a small rank beside every projection.
pub(crate) fn adapter() -> AdapterConfig {
    AdapterConfig {
        rank: 3,
        alpha: 6.0,
        rslora: false,
        targets: Targets::Names(gemma_train::TARGETS.map(str::to_owned).to_vec()),
        rank_pattern: Default::default(),
        alpha_pattern: Default::default(),
        base_model: None,
        of_encoder: false,
    }
}

/// Numbers between -1 and 1.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    (0..len as u64).map(|i| ((i.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed) as f64 * 0.7).sin() as f32).collect()
}

/// The same parameters, moved by `by` along `direction`.
fn moved(values: &Values, direction: &[f64], by: f64) -> Values {
    let values_moved = values.values.iter().zip(direction).map(|(value, along)| value + (by * along) as f32);
    Values { shape: values.shape.clone(), values: values_moved.collect() }
}

/// Factors whose `B` is zero have no gradient in `A`: gives all of them values.
fn fill_factors<M: BlockStack + Module>(trainer: &mut Trainer<M>) {
    let filled = |(index, (name, values)): (usize, (&String, &Values))| {
        let values_filled = noise(values.values.len(), index as u64).iter().map(|value| 0.1 * value).collect();
        (name.clone(), Values { shape: values.shape.clone(), values: values_filled })
    };
    let values: NamedValues = trainer.values().iter().enumerate().map(filled).collect();
    trainer.set_values(values);
}

/// Compares the slope of the loss along the gradient of each parameter, and along another direction, with the gradient.
fn check_slopes<M: BlockStack + Module>(
    trainer: &mut Trainer<M>,
    loss: impl Fn(&Trainer<M>) -> BatchGradients,
    context: &str,
) {
    let found = loss(trainer);
    assert_eq!(found.gradients.len(), trainer.values().len(), "{context}: every parameter has a gradient");
    for (index, (name, gradient)) in found.gradients.iter().enumerate() {
        let gradient: Vec<f64> = gradient.values.iter().map(|value| f64::from(*value)).collect();
        let length = gradient.iter().map(|value| value * value).sum::<f64>().sqrt();
        assert!(length > 0.0, "{context}: {name} has an effect");
        let noise: Vec<f64> = noise(gradient.len(), index as u64).into_iter().map(f64::from).collect();
        let size = noise.iter().map(|value| value * value).sum::<f64>().sqrt();
        let along: Vec<f64> = gradient.iter().map(|value| value / length).collect();
        // half along the gradient, so that the slope is not lost in rounding
        let across: Vec<f64> =
            along.iter().zip(&noise).map(|(along, noise)| 0.5 * along + 0.5 * noise / size).collect();
        for direction in [along, across] {
            let expected: f64 = gradient.iter().zip(&direction).map(|(a, b)| a * b).sum();
            let start = trainer.values()[name].clone();
            // a step that changes the loss by about a hundredth
            let step = (5e-3 * found.loss / length).min(0.02);
            let mut at = |by: f64| {
                trainer.set_values([(name.clone(), moved(&start, &direction, by))].into());
                loss(trainer).loss
            };
            let slope = (at(step) - at(-step)) / (2.0 * step);
            at(0.0);
            assert!(
                (slope - expected).abs() < RELATIVE * length,
                "{context}: {name}: the loss rises by {slope}, the gradient says {expected}"
            );
        }
    }
}

/// A tiny text model in a folder.
fn tiny_text(kind: &str) -> (tempfile::TempDir, Checkpoint) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    tiny::text_model(folder.path(), kind, &demo(), 11);
    let checkpoint = Checkpoint::open(folder.path()).expect("a model folder");
    (folder, checkpoint)
}

/// Two texts longer than the window; of the second only the end is learned.
fn examples() -> Vec<Example> {
    let first = Example::text(vec![2, 30, 31, 32, 33, 34, 35, 36, 37]);
    let second = Example::completion(vec![2, 41, 42, 43, 44, 45], &[46, 47, 1]);
    vec![first, second]
}

#[test]
fn gradients_of_every_kind_of_decoder_are_those_of_finite_differences() {
    // ShieldGemma is a Gemma 2
    for kind in ["gemma2", "gemma3", "vaultgemma"] {
        let (_folder, checkpoint) = tiny_text(kind);
        for (backend, device) in devices() {
            let model: Decoder = open_whole(&checkpoint, &exact(), &device, &mut |_, _| {}).expect("a checkpoint");
            let mut trainer = Trainer::new(model, TrainingOptions::default()).expect("parameters to train");
            let examples = examples();
            check_slopes(&mut trainer, |trainer| trainer.text_gradients(&examples), &format!("{kind} on {backend}"));
        }
    }
}

#[test]
fn gradients_through_quantized_weights_are_those_of_finite_differences() {
    for kind in ["gemma3", "vaultgemma"] {
        let (_folder, checkpoint) = tiny_text(kind);
        for (backend, device) in devices() {
            let options = LoadOptions { precision: Some(Precision::Q8_0), ..exact() };
            let open = open_with_new_factors(&checkpoint, &options, &adapter(), 1, &device, &mut |_, _| {});
            let model: Decoder = open.expect("it fits");
            let mut trainer = Trainer::new(model, TrainingOptions::default()).expect("factors to train");
            fill_factors(&mut trainer);
            let examples = examples();
            check_slopes(&mut trainer, |trainer| trainer.text_gradients(&examples), &format!("{kind} on {backend}"));
        }
    }
}

/// A tiny embedding model with new factors.
fn tiny_encoder(device: &Device, options: TrainingOptions) -> Trainer<EmbeddingNetwork> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    tiny::embedding_model(folder.path(), &demo(), 5);
    let checkpoint = Checkpoint::open(folder.path()).expect("a folder");
    let model = with_new_factors(&adapter(), 1, device, |change| {
        EmbeddingGemma::from_checkpoint_changed(&checkpoint, &exact(), device, &mut |_, _| {}, change)
    });
    Trainer::new(model.expect("it fits").into_network(), options).expect("factors to train")
}

/// Pairs whose texts share no token with their queries; the last has a negative.
fn pairs(count: u32) -> Vec<Pair> {
    let pair = |number: u32| Pair {
        query: vec![2, 300 + 2 * number, 40, 41 + number % 3, 1],
        positive: vec![2, 50, 60 + 3 * number, 51, 52, 53 + number % 2, 1],
        negatives: if number + 1 == count { vec![vec![2, 70, 71, 1]] } else { Vec::new() },
    };
    (0..count).map(pair).collect()
}

#[test]
fn gradients_of_pairs_are_those_of_finite_differences() {
    for (backend, device) in devices() {
        let mut trainer = tiny_encoder(&device, TrainingOptions::default());
        fill_factors(&mut trainer);
        let pairs = pairs(5);
        let loss = |trainer: &Trainer<EmbeddingNetwork>| trainer.pair_gradients(&pairs, 20.0).expect("alone");
        check_slopes(&mut trainer, loss, &format!("pairs on {backend}"));
        let ranking = trainer.ranking(&pairs, 5, 20.0).expect("pairs");
        assert!((ranking.loss - loss(&trainer).loss / 5.0).abs() < 1e-5, "{backend}: the loss that is reported");
    }
}

fn assert_near(found: &NamedValues, expected: &NamedValues, tolerance: f32, context: &str) {
    assert_eq!(found.len(), expected.len(), "{context}");
    for (name, expected) in expected {
        let largest = expected.values.iter().fold(0f32, |most, value| most.max(value.abs()));
        for (found, expected) in found[name].values.iter().zip(&expected.values) {
            assert!((found - expected).abs() <= tolerance * largest, "{context}: {name}: {found}, not {expected}");
        }
    }
}

#[test]
fn a_batch_of_pairs_is_the_same_in_one_part_and_in_many() {
    let (_, device) = devices().remove(0);
    let gradients = |pack_tokens: usize| {
        let mut trainer = tiny_encoder(&device, TrainingOptions { pack_tokens, ..TrainingOptions::default() });
        fill_factors(&mut trainer);
        trainer.pair_gradients(&pairs(6), 20.0).expect("alone")
    };
    let (whole, parts) = (gradients(1000), gradients(1));
    assert!((whole.loss - parts.loss).abs() < 1e-5 * whole.loss, "{} {}", whole.loss, parts.loss);
    assert_eq!((whole.count, whole.tokens), (parts.count, parts.tokens));
    assert_near(&parts.gradients, &whole.gradients, 1e-4, "in parts");
}

#[test]
fn texts_that_belong_together_are_learned() {
    for (backend, device) in devices() {
        let options = TrainingOptions { steps: 30, learning_rate: 5e-3, ..TrainingOptions::default() };
        let mut trainer = tiny_encoder(&device, options);
        let pairs = pairs(12);
        let before = trainer.ranking(&pairs, 12, 20.0).expect("pairs");
        assert!(before.accuracy < 0.5, "{backend}: a random model finds little: {before:?}");
        for _ in 0..30 {
            trainer.pair_step(&pairs, 20.0).expect("a step");
        }
        let after = trainer.ranking(&pairs, 12, 20.0).expect("pairs");
        println!("{backend}: {before:?} to {after:?}");
        assert!(after.accuracy == 1.0 && after.loss < 0.2 * before.loss, "{backend}: {before:?} to {after:?}");
    }
}

/// Trains `data` in `size` threads of this process, each a rank; the losses and the values at the end of each, and the
/// folders they wrote.
fn in_threads<M: BlockStack + Module>(
    size: usize,
    trainer: impl Fn() -> Trainer<M> + Sync,
    data: impl Fn() -> Box<dyn Learn<M>> + Sync,
    folder: &Path,
    fails: Option<(usize, usize)>,
) -> Vec<(Vec<f64>, NamedValues, Result<(), Error>)> {
    let ranks = ThreadRank::new(size);
    std::thread::scope(|scope| {
        let threads: Vec<_> = ranks
            .into_iter()
            .enumerate()
            .map(|(number, rank)| {
                let (trainer, data) = (&trainer, &data);
                scope.spawn(move || {
                    let mut trainer = trainer().with_communicator(Arc::new(rank));
                    let data = data();
                    let batches = Batches { examples: data.len(), batch: 4, seed: 3 };
                    let keeping =
                        Keeping { folder: folder.join(number.to_string()), every: 100, adapter: None, run: "x".into() };
                    let mut losses = Vec::new();
                    let ended = run(&mut trainer, &*data, batches, &keeping, &mut Vec::new(), &mut |_, report, _| {
                        losses.push(report.loss);
                        let fails = fails == Some((number, losses.len()));
                        Ok(if fails { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) })
                    });
                    (losses, trainer.values().clone(), ended.map(|_| ()))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

fn check_threads<M: BlockStack + Module>(
    trainer: impl Fn() -> Trainer<M> + Sync,
    data: impl Fn() -> Box<dyn Learn<M>> + Sync,
    context: &str,
) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let alone = in_threads(1, &trainer, &data, &folder.path().join("alone"), None).remove(0);
    let both = in_threads(2, &trainer, &data, &folder.path().join("both"), None);
    for (losses, values, ended) in &both {
        ended.as_ref().expect("all is well");
        assert_eq!(losses.len(), alone.0.len());
        for (found, expected) in losses.iter().zip(&alone.0) {
            assert!((found - expected).abs() < 1e-5 * expected.max(1.0), "{context}: loss {found}, alone {expected}");
        }
        assert_eq!(values, &both[0].1, "{context}: all ranks hold the same values");
    }
    let written = |rank: &str| folder.path().join("both").join(rank).join(gemma_train::run::STATE_FILE).is_file();
    assert!(written("0") && !written("1"), "{context}: the first rank writes");

    // a rank that goes away: the other one ends, and keeps what all have done
    let lost = in_threads(2, &trainer, &data, &folder.path().join("lost"), Some((1, 3)));
    let message = lost[0].2.as_ref().expect_err("rank 1 is gone").to_string();
    assert!(message.contains("--resume"), "{context}: {message}");
    let mut resumed = trainer();
    resumed.load_state(&folder.path().join("lost/0").join(gemma_train::run::STATE_FILE), "x").expect("a good state");
    assert_eq!(resumed.steps(), 3, "{context}: the steps that all have taken");
}

#[test]
fn two_processes_train_as_one_with_the_whole_batch() {
    let (_folder, checkpoint) = tiny_text("gemma3");
    let (_, device) = devices().remove(0);
    let options = TrainingOptions { steps: 6, learning_rate: 5e-3, ..TrainingOptions::default() };
    let texts = || {
        let open = open_with_new_factors(&checkpoint, &exact(), &adapter(), 1, &device, &mut |_, _| {});
        Trainer::new(open.expect("it fits"), options).expect("factors to train")
    };
    // unequal lengths, so that a mean of means would be another one
    let lessons = || {
        let text = |number: u32| Example::text((0..4 + 3 * number).map(|token| 2 + token * 7 % 90).collect());
        Data::of((0..7).map(text).collect())
    };
    check_threads::<Decoder>(texts, || Box::new(lessons()), "texts");
    let encoder = || tiny_encoder(&device, options);
    let lessons = || Pairs { pairs: pairs(10), scale: 20.0, batch: 4 };
    check_threads::<EmbeddingNetwork>(encoder, || Box::new(lessons()), "pairs");
}
