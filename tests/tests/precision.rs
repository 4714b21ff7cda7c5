//! A checkpoint in every precision: the same model, as far as the precision allows.

use crate::parity::{in_chunks, values};
use gemma::{ActivationPrecision, Backend, CachePrecision, Decoder, LoadOptions, Network};
use gemma_generate::{Cache, CausalModel, Sequence};
use gemma_model::{load_state, save_state};
use gemma_nn::Segment;
use gemma_tests::{References, goldens, rms_distance};
use gemma_tokenizer::{Family, Tokenizer};
use gemma_weights::{Checkpoint, Precision};

#[test]
fn coarser_precisions_stay_near_the_reference() {
    // 24 wide: no whole blocks, so the quantized precisions leave most matrices as they are; the down projection's
    // 64 columns and the output projection's 32 are quantized
    let folder = goldens().join("gemma2-f32");
    let expected = References::open(&folder.join("expected.safetensors"));
    let tokens: Vec<u32> = expected.tensor("tokens").values.iter().map(|id| *id as u32).collect();
    let logits = expected.tensor("logits").values;
    for backend in [Backend::NdArray, Backend::Flex, Backend::Wgpu].into_iter().filter(|backend| backend.is_compiled())
    {
        let device = backend.device().expect("a compiled backend opens");
        let checkpoint = Checkpoint::open(&folder).expect("a model folder");
        let mut last = -1.0;
        for (precision, limit) in [
            (Precision::F32, 1e-5),
            (Precision::F16, 5e-3),
            (Precision::Bf16, 5e-2),
            (Precision::Q8_0, 5e-2),
            (Precision::Q4_0, 0.8),
        ] {
            let options = LoadOptions { precision: Some(precision), ..LoadOptions::default() };
            let model = Decoder::open(&checkpoint, &options, &device).expect("a model");
            let found: Vec<f32> = model
                .uncached_logits(&tokens, &[Segment::causal(0, tokens.len())])
                .into_data()
                .try_into_vec()
                .expect("f32");
            let distance = rms_distance(found.iter().map(|value| f64::from(*value)), &logits);
            assert!(distance < limit, "{precision} on {backend}: rms distance {distance}");
            assert!(precision == Precision::F32 || distance > 1e-6, "{precision} on {backend} changed nothing");
            if matches!(precision, Precision::Q8_0) {
                last = distance;
            }
            if matches!(precision, Precision::Q4_0) {
                assert!(distance > last, "4 bits are nearer than 8");
            }
        }
    }
}

/// Quantized weights on a CPU: 16-bit activations, the default, change the logits of a small model by less than
/// its own rounding, 8-bit ones by little, and exact ones are those of the dequantized weights.
#[test]
fn activations_are_as_fine_as_was_asked_for() {
    let checkpoint = Checkpoint::open(&goldens().join("gemma2-f32")).expect("a model folder");
    let expected = References::open(&goldens().join("gemma2-f32").join("expected.safetensors"));
    let tokens: Vec<u32> = expected.tensor("tokens").values.iter().map(|id| *id as u32).collect();
    for backend in [Backend::NdArray, Backend::Flex].into_iter().filter(|backend| backend.is_compiled()) {
        let device = backend.device().expect("a compiled backend opens");
        for precision in [Precision::Q8_0, Precision::Q4_0] {
            let logits = |activations, tokens: &[u32]| -> Vec<f32> {
                let options = LoadOptions { precision: Some(precision), activations, ..LoadOptions::default() };
                let model = Decoder::open(&checkpoint, &options, &device).expect("a model");
                model
                    .uncached_logits(tokens, &[Segment::causal(0, tokens.len())])
                    .into_data()
                    .try_into_vec()
                    .expect("f32")
            };
            for tokens in [&tokens[..1], &tokens[..]] {
                let exact = logits(ActivationPrecision::F32, tokens);
                let distance = |activations| {
                    let found = logits(activations, tokens);
                    found.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max)
                };
                let (fine, coarse) = (distance(ActivationPrecision::Int16OrBf16), distance(ActivationPrecision::Int8));
                // long prompts are multiplied in bf16 where the CPU has instructions for that
                let limit = if tokens.len() > 8 { 0.1 } else { 1e-3 };
                assert!(fine < limit && coarse < 0.1, "{precision} on {backend}: {fine} and {coarse}");
                assert!(tokens.len() > 1 || fine > 0.0, "{precision} on {backend}: 16 bits changed nothing");
            }
        }
    }
}

/// What is asked for of activations reaches the products of every family.
#[test]
fn every_family_is_told_how_finely_to_see_activations() {
    fn logits<N: Network>(checkpoint: &Checkpoint, activations: ActivationPrecision) -> Vec<f32> {
        // GPUs have f32 whatever is asked for
        let backend = if Backend::NdArray.is_compiled() { Backend::NdArray } else { Backend::Flex };
        let device = backend.device().expect("a compiled backend opens");
        let options = LoadOptions { precision: Some(Precision::Q8_0), activations, ..LoadOptions::default() };
        let model = N::open(checkpoint, &options, &device).expect("a demo");
        values(model.last_logits(&[2, 5, 7], &[Segment::causal(0, 3)], &mut [&mut model.new_cache()]))
    }
    fn told<N: Network>(demo: Result<Checkpoint, gemma_model::Error>) -> bool {
        let demo = demo.expect("a demo");
        logits::<N>(&demo, ActivationPrecision::F32) != logits::<N>(&demo, ActivationPrecision::Int16OrBf16)
    }
    if !Backend::NdArray.is_compiled() && !Backend::Flex.is_compiled() {
        return println!("skipped: no backend on the CPU is compiled in");
    }
    assert!(told::<gemma::Decoder>(gemma::demo_checkpoint()), "Gemma");
    assert!(told::<recurrentgemma::Griffin>(recurrentgemma::demo_checkpoint()), "RecurrentGemma");
    assert!(told::<paligemma::VisionLanguageModel>(paligemma::demo_checkpoint()), "PaliGemma");
}

/// Keys and values kept as f16 or q8_0: half the cache or a quarter, and logits that differ by a thousandth or a
/// hundredth of theirs, however a text is read; what was read is kept in files as before.
#[test]
fn a_smaller_cache_changes_little() {
    fn check<N: Network>(name: &str, checkpoint: &Checkpoint, tokens: &[u32], precision: CachePrecision, allowed: f64) {
        let backends = [Backend::NdArray, Backend::Flex, Backend::Wgpu];
        for backend in backends.into_iter().filter(|backend| backend.is_compiled()) {
            let device = backend.device().expect("a compiled backend opens");
            let open = |cache| -> N {
                let options = LoadOptions { cache, ..LoadOptions::default() };
                N::open(checkpoint, &options, &device).expect("a model")
            };
            let (wide, narrow) = (open(CachePrecision::F32), open(precision));
            let exact: Vec<f64> = in_chunks(&wide, tokens, 1).into_iter().map(f64::from).collect();
            for chunk in [1, 3, 7] {
                let found = in_chunks(&narrow, tokens, chunk);
                let distance = rms_distance(found.into_iter().map(f64::from), &exact);
                let context = format!("{name} in {precision:?} on {backend}, chunk {chunk}: {distance}");
                println!("{context}");
                assert!(distance > 0.0 && distance < allowed, "{context}");
            }
            let read = |model: &N| {
                let mut cache = model.new_cache();
                model.last_logits(tokens, &[Segment::causal(0, tokens.len())], &mut [&mut cache]);
                cache
            };
            let (wide_memory, cache) = (read(&wide), read(&narrow));
            assert!(cache.bytes_len() < wide_memory.bytes_len(), "{backend}");
            // and once more from a file
            let file = std::env::temp_dir().join(format!("gemma-cache-{}-{backend}", std::process::id()));
            let sequence = Sequence::new(cache);
            save_state(&narrow, &sequence, &file).expect("it can be written");
            let loaded = load_state(&narrow, &file);
            std::fs::remove_file(&file).expect("it was written");
            let next = |sequence: &Sequence<N::Cache>| {
                let mut cache: N::Cache = sequence.cache().clone();
                assert!(cache.bytes_len() < wide_memory.bytes_len(), "{backend}");
                let caches: &mut [&mut N::Cache] = &mut [&mut cache];
                values(narrow.last_logits(&[5], &[Segment::causal(tokens.len(), 1)], caches))
            };
            assert_eq!(next(&loaded.expect("it was just written")), next(&sequence), "{backend}");
        }
    }
    fn check_golden<N: Network>(name: &str) {
        let folder = goldens().join(name);
        let checkpoint = Checkpoint::open(&folder).expect("a model folder");
        let expected = References::open(&folder.join("expected.safetensors"));
        let tokens: Vec<u32> = expected.tensor("tokens").values.iter().map(|id| *id as u32).collect();
        check::<N>(name, &checkpoint, &tokens, CachePrecision::F16, 2e-3);
    }
    check_golden::<Decoder>("gemma2-f32");
    check_golden::<recurrentgemma::Griffin>("recurrentgemma-f32");
    // heads of the goldens are smaller than a block
    let story =
        "Once upon a time there was a little fox who lived in the forest. One day she found a red ball. ".repeat(3);
    let gemma = gemma::demo_checkpoint().expect("it is built in");
    let griffin = recurrentgemma::demo_checkpoint().expect("it is built in");
    let tokens = gemma::demo_tokenizer().expect("it is built in").encode(&story);
    check::<Decoder>("Gemma's demo", &gemma, &tokens, CachePrecision::Q8_0, 2e-2);
    let json = griffin.file("tokenizer.json").expect("it is built in").expect("it has a tokenizer");
    let tokens = Tokenizer::from_json(&json, Family::RecurrentGemma).expect("it is sound").encode(&story);
    check::<recurrentgemma::Griffin>("RecurrentGemma's demo", &griffin, &tokens, CachePrecision::Q8_0, 2e-2);
}
