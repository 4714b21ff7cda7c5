//! Every formula of the text decoder against the reference implementation: whole prompts, chunks, single cached
//! steps, batches of segments, lengths past the window, greedy continuations, gradients; on every compiled backend.

use gemma::{ActivationPrecision, Decoder, Device, LoadOptions, Network};
use gemma_generate::{CausalModel, GenerateOptions, Generation};
use gemma_nn::Segment;
use gemma_tests::{References, devices, goldens, max_distance, rms_distance, shared};
use gemma_weights::Checkpoint;
use std::path::Path;

/// The largest permitted distance of an f32 logit from the reference.
const LOGITS: f64 = 1e-3;
/// The largest permitted distance of a logit in a batch from what it is alone.
const ALONE: f32 = 1e-5;
/// The same with weights in bf16, where few tokens are added up in another order than many.
const ALONE_BF16: f32 = 1e-4;
/// A greedy choice counts where the reference's best two logits are farther apart than this.
const MARGIN: f64 = 1e-3;

pub(crate) fn open<N: Network>(folder: &Path, device: &Device) -> N {
    open_with(folder, &LoadOptions::default(), device)
}

pub(crate) fn open_with<N: Network>(folder: &Path, options: &LoadOptions, device: &Device) -> N {
    let checkpoint = Checkpoint::open(folder).expect("a model folder");
    N::open(&checkpoint, options, device).expect("a model")
}

pub(crate) fn values(tensor: burn::Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("f32 logits")
}

/// The logits after every token, read `chunk` tokens at a time through one cache.
pub(crate) fn in_chunks(model: &impl CausalModel, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let mut cache = model.new_cache();
    let mut logits = Vec::new();
    for (index, part) in tokens.chunks(chunk).enumerate() {
        let segment = Segment::causal(index * chunk, part.len());
        logits.extend(values(model.all_logits(part, &[segment], &mut [&mut cache])));
    }
    logits
}

/// One prompt and what the reference makes of it.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) tokens: Vec<u32>,
    pub(crate) logits: Vec<f64>,
    /// f32 arithmetic on the same weights, where `logits` is bf16 arithmetic.
    pub(crate) wide: Option<Vec<f64>>,
    pub(crate) greedy: Option<(Vec<u32>, Vec<f64>)>,
}

pub(crate) fn check<N: Network>(folder: &Path, cases: &[Case]) {
    check_with::<N>(folder, &LoadOptions::default(), cases);
}

pub(crate) fn check_with<N: Network>(folder: &Path, options: &LoadOptions, cases: &[Case]) {
    assert!(!cases.is_empty(), "{}: no case", folder.display());
    for (backend, device) in devices() {
        let model: N = open_with(folder, options, &device);
        for case in cases {
            let context = format!("{} {} on {backend}", folder.display(), case.name);
            for chunk in [case.tokens.len(), 1, 3, 7] {
                compare(&in_chunks(&model, &case.tokens, chunk), case, &format!("{context}, chunk {chunk}"));
            }
            compare(
                &values(model.uncached_logits(&case.tokens, &[Segment::causal(0, case.tokens.len())])),
                case,
                &context,
            );
            greedy(&model, case, &context);
        }
        // by default the rows of a long prompt are rounded as those of a short one are not
        let exact: N =
            open_with(folder, &LoadOptions { activations: ActivationPrecision::F32, ..options.clone() }, &device);
        batch(&exact, cases, &format!("{} on {backend}", folder.display()));
    }
}

fn compare(found: &[f32], case: &Case, context: &str) {
    match &case.wide {
        None => {
            let distance = max_distance(found, &case.logits);
            assert!(distance < LOGITS, "{context}: a logit is {distance} off");
        }
        Some(wide) => {
            let ours = rms_distance(found.iter().map(|value| f64::from(*value)), wide);
            let theirs = rms_distance(case.logits.iter().copied(), wide);
            assert!(ours <= theirs, "{context}: rms {ours}, the reference's own bf16 run has {theirs}");
        }
    }
}

fn greedy(model: &impl CausalModel, case: &Case, context: &str) {
    let Some((ids, margins)) = &case.greedy else { return };
    let options = GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(ids.len()) };
    let found: Vec<u32> = Generation::new(model, &case.tokens, &options, &[])
        .expect("a valid prompt")
        .map(|step| step.expect("finite logits").token)
        .collect();
    for (step, ((found, id), margin)) in found.iter().zip(ids).zip(margins).enumerate() {
        if *margin < MARGIN {
            return;
        }
        assert_eq!(found, id, "{context}: greedy token {step}");
    }
    assert_eq!(found.len(), ids.len(), "{context}");
}

/// All cases as segments of one call, then one more token for each: as each alone.
fn batch(model: &impl CausalModel, cases: &[Case], context: &str) {
    let permitted = if cases.iter().any(|case| case.wide.is_some()) { ALONE_BF16 } else { ALONE };
    let tokens: Vec<u32> = cases.iter().flat_map(|case| case.tokens.iter().copied()).collect();
    let segments: Vec<Segment> = cases.iter().map(|case| Segment::causal(0, case.tokens.len())).collect();
    let mut caches: Vec<_> = cases.iter().map(|_| model.new_cache()).collect();
    let mut lent: Vec<_> = caches.iter_mut().collect();
    let together = values(model.all_logits(&tokens, &segments, &mut lent));
    let next: Vec<u32> = vec![5; cases.len()];
    let steps: Vec<Segment> = cases.iter().map(|case| Segment::causal(case.tokens.len(), 1)).collect();
    let after = values(model.last_logits(&next, &steps, &mut lent));
    let vocab = model.vocab();
    let (mut together, mut after) = (together.as_slice(), after.as_slice());
    for case in cases {
        let len = case.tokens.len();
        let mut cache = model.new_cache();
        let prompt = values(model.all_logits(&case.tokens, &[Segment::causal(0, len)], &mut [&mut cache]));
        let last = values(model.last_logits(&[5], &[Segment::causal(len, 1)], &mut [&mut cache]));
        for (what, part, alone) in [("batch", &mut together, prompt), ("batched step", &mut after, last)] {
            let (found, rest) = part.split_at(alone.len());
            *part = rest;
            let distance = found.iter().zip(&alone).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(distance <= permitted, "{context}: {} is {distance} off in a {what}", case.name);
        }
    }
    assert!(together.is_empty() && after.is_empty(), "{context}: rows of {vocab} logits");
}

pub(crate) fn ids(reference: &[f64]) -> Vec<u32> {
    reference.iter().map(|id| *id as u32).collect()
}

/// The one case of a folder of this repository.
pub(crate) fn golden_case(expected: &References) -> Case {
    Case {
        name: "random".into(),
        tokens: ids(&expected.tensor("tokens").values),
        logits: expected.tensor("logits").values,
        wide: expected.get("logits.f32").map(|wide| wide.values),
        greedy: expected.get("greedy").map(|greedy| (ids(&greedy.values), expected.tensor("greedy.margin").values)),
    }
}

/// Every row of every case of a folder of the shared set that has the logits of all its tokens.
pub(crate) fn shared_cases(expected: &References) -> Vec<Case> {
    let names = expected.names();
    let cases = names.iter().filter_map(|tensor| tensor.strip_suffix(".input_ids"));
    let cases = cases.filter(|case| expected.get(&format!("{case}.logits")).is_some());
    cases.flat_map(|case| rows_of(expected, case)).collect()
}

#[test]
fn goldens_of_this_repository() {
    for name in ["gemma1-f32", "gemma1-bf16", "gemma2-f32", "gemma2-bf16"] {
        let folder = goldens().join(name);
        let case = golden_case(&References::open(&folder.join("expected.safetensors")));
        check::<Decoder>(&folder, &[case]);
    }
}

#[test]
fn fixtures_of_the_shared_set() {
    let Some(shared) = shared() else { return };
    for name in [
        "gemma1_mqa/f32",
        "gemma1_mqa/bf16",
        "gemma1_mha/f32",
        "gemma1_mha/bf16",
        "gemma2/f32",
        "gemma2/bf16",
        "gemma2_v5/f32",
        "codegemma/f32",
    ] {
        let folder = shared.join("reference/fixtures").join(name);
        let expected = References::open(&folder.join("expected.safetensors"));
        check::<Decoder>(&folder, &shared_cases(&expected));
    }
}

/// The rows of one case of the shared set, without their left padding.
pub(crate) fn rows_of(expected: &References, case: &str) -> Vec<Case> {
    let tokens = expected.tensor(&format!("{case}.input_ids"));
    let mask = expected.tensor(&format!("{case}.attention_mask"));
    let logits = expected.tensor(&format!("{case}.logits"));
    let wide = expected.get(&format!("{case}.logits.f32"));
    let greedy = expected.get(&format!("{case}.greedy.ids")).filter(|_| wide.is_none());
    let margin = expected.get(&format!("{case}.greedy.margin"));
    let row = |row: usize| {
        let padding = mask.row(row).iter().filter(|real| **real == 0.0).count();
        let vocab = logits.shape[2];
        let real = |values: &[f64]| values[padding * vocab..].to_vec();
        Case {
            name: format!("{case}[{row}]"),
            tokens: ids(&tokens.row(row)[padding..]),
            logits: real(logits.row(row)),
            wide: wide.as_ref().map(|wide| real(wide.row(row))),
            greedy: greedy
                .as_ref()
                .zip(margin.as_ref())
                .map(|(greedy, margin)| (ids(greedy.row(row)), margin.row(row).to_vec())),
        }
    };
    (0..tokens.shape[0]).map(row).collect()
}
