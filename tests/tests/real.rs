//! Gemma 3 270M, the one model with released weights that tests can have: `GEMMA_TEST_REAL` names its Q4_K_M file, and the
//! shared set holds what it should compute.

use crate::parity::{ids, values};
use crate::training::adapter;
use gemma::{ActivationPrecision, Decoder, LoadOptions, Network};
use gemma_generate::{CausalModel, GenerateOptions, Generation};
use gemma_nn::Segment;
use gemma_tests::{References, shared};
use gemma_train::{Trainer, TrainingOptions};
use gemma_weights::Checkpoint;
use std::path::PathBuf;

/// The file, and the folder of references.
fn real() -> Option<(Checkpoint, PathBuf)> {
    let Some(file) = std::env::var_os("GEMMA_TEST_REAL").filter(|file| !file.is_empty()) else {
        println!("skipped: GEMMA_TEST_REAL does not name the file of Gemma 3 270M");
        return None;
    };
    Some((Checkpoint::open(file.as_ref()).expect("the file"), shared()?.join("reference/real")))
}

fn json(file: PathBuf) -> Vec<serde_json::Value> {
    serde_json::from_str(&std::fs::read_to_string(file).expect("readable")).expect("JSON")
}

/// How far the log-probabilities of the reference's best twenty tokens may be off: in the mean, for all but a hundredth, and
/// at most; and above which margin a greedy token counts.
struct Bars {
    mean: f64,
    p99: f64,
    max: f64,
    margin: f64,
}

#[test]
fn log_probabilities_and_greedy_tokens_of_the_real_model() {
    let Some((checkpoint, folder)) = real() else { return };
    let exact = Bars { mean: 1e-3, p99: 5e-3, max: 5e-3, margin: 0.02 };
    // tiles of AMX add up whole rows, so that weights are rounded there as well
    let amx = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|cpu| cpu.contains("amx_bf16"));
    let (mean, p99) = if amx { (0.0145, 0.066) } else { (0.012, 0.06) };
    let usual = Bars { mean, p99, max: f64::INFINITY, margin: 0.15 };
    for (activations, bars) in [(ActivationPrecision::F32, exact), (ActivationPrecision::default(), usual)] {
        let device = gemma_backend::default_device().expect("a device");
        let options = LoadOptions { activations, ..LoadOptions::default() };
        let model = Decoder::open(&checkpoint, &options, &device).expect("a model");
        let mut all = Vec::new();
        for prompt in json(folder.join("prompts.json")) {
            let name = prompt["id"].as_str().expect("a name");
            let expected = References::open(&folder.join(prompt["file"].as_str().expect("a file")));
            let tokens = ids(&expected.tensor("input_ids").values);
            let (top, wanted) = (expected.tensor("top_ids"), expected.tensor("top_logprobs"));
            let states = model.uncached_hidden_states(model.embed(&tokens), &[Segment::causal(0, tokens.len())]);
            for place in 0..tokens.len() {
                let logits = values(model.logits(states.clone().narrow(0, place, 1)));
                let most = logits.iter().copied().fold(f32::MIN, f32::max);
                let sum: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
                let total = f64::from(most) + sum.ln();
                for (id, wanted) in top.row(place).iter().zip(wanted.row(place)) {
                    all.push((f64::from(logits[*id as usize]) - total - wanted).abs());
                }
            }
            let (greedy, margins) =
                (ids(&expected.tensor("greedy_ids").values), expected.tensor("greedy_margin").values);
            let options = GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(greedy.len()) };
            let found = Generation::new(&model, &tokens, &options, &[]).expect("a sound prompt");
            for (step, (found, (wanted, margin))) in found.zip(greedy.iter().zip(margins)).enumerate() {
                let found = found.expect("finite logits").token;
                if found != *wanted {
                    assert!(margin <= bars.margin, "{activations:?} {name}: greedy token {step}, margin {margin}");
                    break;
                }
            }
        }
        all.sort_by(f64::total_cmp);
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let (p99, most) = (all[all.len() * 99 / 100], all[all.len() - 1]);
        println!("{activations:?}: mean {mean:.5}, p99 {p99:.5}, most {most:.5}");
        assert!(mean <= bars.mean && p99 <= bars.p99 && most <= bars.max, "{activations:?}: {mean}, {p99}, {most}");
    }
}

#[test]
fn tokens_of_the_real_vocabulary() {
    let Some((checkpoint, folder)) = real() else { return };
    let tokenizer = gemma_model::read_tokenizer(&checkpoint, Decoder::FAMILY).expect("sound").expect("a tokenizer");
    for case in json(folder.join("tokens.json")) {
        let text = case["text"].as_str().expect("a text");
        let wanted: Vec<u32> = serde_json::from_value(case["hf"].clone()).expect("ids");
        let options = gemma_tokenizer::EncodeOptions { bos: false, specials: true };
        let found = tokenizer.encode_with(text, options);
        assert_eq!(found, wanted[1..], "{}", case["name"]);
    }
}

/// A text longer than the window, in one sequence.
#[test]
fn perplexity_of_the_real_model() {
    let Some((checkpoint, folder)) = real() else { return };
    let text = std::fs::read_to_string(folder.join("text.txt")).expect("readable");
    let tokenizer = gemma_model::read_tokenizer(&checkpoint, Decoder::FAMILY).expect("sound").expect("a tokenizer");
    let tokens = tokenizer.encode(&text);
    let expected = References::open(&folder.join("ppl.safetensors"));
    let wanted = expected.tensor("nll").values;
    assert_eq!(tokens.len(), wanted.len() + 1);
    let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / wanted.len() as f64;
    let reference = mean(&mut wanted.iter().copied()).exp();
    for (activations, bar) in [(ActivationPrecision::F32, 5e-4), (ActivationPrecision::default(), 1e-3)] {
        let device = gemma_backend::default_device().expect("a device");
        let options = LoadOptions { activations, ..LoadOptions::default() };
        let model = Decoder::open(&checkpoint, &options, &device).expect("a model");
        let score = gemma_generate::score(&model, &tokens, 512).expect("a text");
        let found = mean(&mut score.logprobs.iter().map(|logprob| -logprob)).exp();
        assert!((found / reference - 1.0).abs() <= bar, "{activations:?}: {found}, the reference {reference}");
    }
}

#[test]
fn the_real_model_learns_beside_its_four_bit_weights() {
    let Some((checkpoint, _)) = real() else { return };
    let device = gemma_backend::default_device().expect("a device");
    let tokenizer = gemma_model::read_tokenizer(&checkpoint, Decoder::FAMILY).expect("readable").expect("a tokenizer");
    let template = gemma_model::read_chat_template(&checkpoint).expect("readable");
    let lesson = gemma_train::data::Examples { tokenizer: &tokenizer, template: &template };
    let example = lesson.completion("Date: 5 March 1987\nISO:", " 1987-03-05");
    let options = LoadOptions::default();
    let model: Decoder =
        gemma_train::open_with_new_factors(&checkpoint, &options, &adapter(), 1, &device, &mut |_, _| {})
            .expect("it fits");
    let options = TrainingOptions { steps: 8, warmup: 1, learning_rate: 2e-3, ..TrainingOptions::default() };
    let mut trainer = Trainer::new(model, options).expect("factors to train");
    let losses: Vec<f64> = (0..8).map(|_| trainer.step(std::slice::from_ref(&example)).expect("a step").loss).collect();
    assert!(losses[0] > 1.0 && losses[7] < 0.1 * losses[0], "{losses:?}");
    let answers = gemma_train::answers(&trainer.trained(), &[example], 1024);
    assert!(answers[0].greedy, "it says the date: {losses:?}");
}
