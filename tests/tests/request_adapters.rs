//! Adapters that requests choose: each request of a batch gets what it gets alone, with the adapter that it chose.

use std::path::Path;

use burn::tensor::Device;
use gemma::{LoadOptions, Network};
use gemma_generate::{
    AdapterChoice, CausalModel, Engine, EngineOptions, Error, GenerateOptions, Request, RequestId, TokenId,
};
use gemma_nn::RandomWeights;
use gemma_tests::devices;
use gemma_weights::{Adapter, AdapterConfig, Checkpoint, Precision, Targets, save_adapter};

use crate::engine::{Choice, MARGIN, open, prompt, run};

/// The rank of the adapters.
const RANK: usize = 3;
/// The projections of both architectures.
const PROJECTIONS: [&str; 10] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "linear_x", "linear_y", "linear_out"];

/// An adapter of random factors for these modules of a network, `[out, in]` each.
fn adapter_of(folder: &Path, modules: &[(String, [usize; 2])], seed: usize) -> Adapter {
    let config = AdapterConfig {
        of_encoder: false,
        rank: RANK,
        alpha: 2.0 * RANK as f64,
        rslora: false,
        targets: Targets::All,
        rank_pattern: Default::default(),
        alpha_pattern: Default::default(),
        base_model: None,
    };
    let values = |count: usize, salt: usize, size: f32| {
        (0..count)
            .map(|place| ((place * 37 + seed * 101 + salt) % 211) as f32 / 105.0 - 1.0)
            .map(|x| x * size)
            .collect()
    };
    let factors = modules.iter().enumerate().map(|(salt, (module, [out, inputs]))| {
        (
            module.clone(),
            [RANK, *inputs],
            values(RANK * inputs, salt, 0.05),
            [*out, RANK],
            values(out * RANK, salt, 0.1),
        )
    });
    save_adapter(folder, &config, factors, false).expect("written");
    Adapter::open(folder).expect("a sound adapter")
}

/// Two adapters: one for all projections of a network, one for those of every other layer's attention and MLP.
fn adapters<N: Network>(checkpoint: &Checkpoint, device: &Device, folder: &Path) -> Vec<Adapter> {
    let config = N::config_of(checkpoint).expect("a configuration");
    let all: Vec<(String, [usize; 2])> = N::tensors(&config, device)
        .into_iter()
        .filter_map(|tensor| {
            let module = tensor.name.strip_suffix(".weight")?;
            let shape = <[usize; 2]>::try_from(tensor.shape).ok()?;
            let is_projection = PROJECTIONS.iter().any(|name| module.ends_with(name));
            is_projection.then(|| (module.to_owned(), shape))
        })
        .collect();
    assert!(all.len() >= 14, "{all:?}");
    let some: Vec<_> = all.iter().step_by(2).cloned().collect();
    vec![adapter_of(&folder.join("first"), &all, 1), adapter_of(&folder.join("second"), &some, 2)]
}

fn chosen(choices: &[(usize, f32)]) -> Vec<AdapterChoice> {
    choices.iter().map(|&(adapter, strength)| AdapterChoice { adapter, strength }).collect()
}

/// What the requests choose: nothing, one of two adapters, some of one, both.
const CHOICES: [&[(usize, f32)]; 7] =
    [&[], &[(0, 1.0)], &[(1, 1.0)], &[(0, 1.0)], &[(1, 0.5)], &[(1, 1.0), (0, 1.0)], &[(0, 0.0)]];
const REQUESTS: usize = 14;

fn request(seed: usize, vocab: usize, adapters: Vec<AdapterChoice>) -> Request<'static> {
    let options = GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(3 + seed % 5) };
    let len = [1, 40, 7, 3, 120, 18, 2][seed % 7] + seed;
    Request { top_logprobs: 2, adapters, ..Request::new(prompt(seed, len, vocab), options) }
}

fn answers<M: CausalModel>(model: &M, options: EngineOptions, requests: Vec<Request<'static>>) -> Vec<Vec<Choice>> {
    let mut engine = Engine::new(model, options).expect("valid options");
    let ids: Vec<RequestId> =
        requests.into_iter().map(|request| engine.submit(request).expect("a valid request")).collect();
    let mut outcomes = run(&mut engine, |_| {});
    ids.into_iter().map(|id| outcomes.remove(&id).expect("it was submitted").choices).collect()
}

/// All requests together against each alone; and against models that have the adapters for all requests.
fn check<N: Network>(checkpoint: &Checkpoint, device: &Device, load: &LoadOptions, context: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let adapters = adapters::<N>(checkpoint, device, folder.path());
    let model: N = open(checkpoint, &LoadOptions { request_adapters: adapters.clone(), ..load.clone() }, device);
    let exact = load.batch_invariant;
    let vocab = model.vocab();
    let options = EngineOptions { adapters: 2, max_requests: 9, batch_invariant: exact, ..EngineOptions::default() };
    let of = |seed: usize| request(seed, vocab, chosen(CHOICES[seed % CHOICES.len()]));
    let together = answers(&model, options.clone(), (0..REQUESTS).map(of).collect());
    let same = |found: &[Choice], expected: &[Choice], context: &str| {
        for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
            if exact {
                assert_eq!(found, expected, "{context}, step {step}");
            } else if expected.margin <= MARGIN {
                return;
            } else {
                assert_eq!(found.token, expected.token, "{context}, step {step}");
            }
        }
        assert_eq!(found.len(), expected.len(), "{context}");
    };
    for (seed, found) in together.iter().enumerate() {
        let context = format!("{context}, request {seed} with {:?}", CHOICES[seed % CHOICES.len()]);
        let alone = answers(&model, options.clone(), vec![of(seed)]).remove(0);
        same(found, &alone, &context);
        // the same adapters for all requests of a model, in the order of their numbers
        let mut choices = CHOICES[seed % CHOICES.len()].to_vec();
        choices.retain(|(_, strength)| *strength != 0.0);
        choices.sort_by_key(|(number, _)| *number);
        let fixed = choices.iter().map(|(number, strength)| adapters[*number].clone().with_strength(*strength));
        let fixed: N = open(checkpoint, &LoadOptions { adapters: fixed.collect(), ..load.clone() }, device);
        let options = EngineOptions { adapters: 0, ..options.clone() };
        let expected = answers(&fixed, options, vec![request(seed, vocab, Vec::new())]).remove(0);
        same(found, &expected, &format!("{context}, against adapters for all"));
    }
    // the adapters make a difference, and each another one
    let one =
        |choices: &[(usize, f32)]| answers(&model, options.clone(), vec![request(4, vocab, chosen(choices))]).remove(0);
    let [base, first, second] = [&[][..], &[(0, 1.0)], &[(1, 1.0)]].map(one);
    assert!(base != first && base != second && first != second, "{context}: {base:?} {first:?} {second:?}");
}

fn families(load: &LoadOptions) {
    for (backend, device) in devices() {
        let gemma = gemma::demo_checkpoint().expect("built in");
        check::<gemma::Decoder>(&gemma, &device, load, &format!("Gemma on {backend}"));
        let griffin = recurrentgemma::demo_checkpoint().expect("built in");
        check::<recurrentgemma::Griffin>(&griffin, &device, load, &format!("RecurrentGemma on {backend}"));
    }
}

#[test]
fn requests_with_different_adapters_in_one_batch_get_what_each_gets_alone() {
    families(&LoadOptions::default());
}

/// Tokens and logprobs, with weights as they are stored and in 8 bits.
#[test]
fn in_batch_invariant_mode_they_get_it_bit_for_bit() {
    for precision in [None, Some(Precision::Q8_0)] {
        families(&LoadOptions { precision, batch_invariant: true, ..LoadOptions::default() });
    }
}

#[test]
fn a_prefix_is_shared_only_with_requests_that_chose_the_same_adapters() {
    let checkpoint = gemma::demo_checkpoint().expect("built in");
    for (backend, device) in devices() {
        let folder = tempfile::tempdir().expect("a folder");
        let request_adapters = adapters::<gemma::Decoder>(&checkpoint, &device, folder.path());
        let load = LoadOptions { request_adapters, ..LoadOptions::default() };
        let model: gemma::Decoder = open(&checkpoint, &load, &device);
        let options = EngineOptions { adapters: 2, prefix_cache_bytes: 64 << 20, ..EngineOptions::default() };
        let mut engine = Engine::new(&model, options.clone()).expect("valid options");
        let shared = prompt(3, 200, model.vocab());
        let mut ask = |choices: &[(usize, f32)], last: TokenId| {
            let tokens = [&shared[..], &[last]].concat();
            let greedy = GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(6) };
            let request =
                || Request { top_logprobs: 2, adapters: chosen(choices), ..Request::new(&*tokens, greedy.clone()) };
            let id = engine.submit(request()).expect("a valid request");
            let outcome = run(&mut engine, |_| {}).remove(&id).expect("it was submitted");
            let alone = answers(&model, EngineOptions { prefix_cache_bytes: 0, ..options.clone() }, vec![request()]);
            for (found, expected) in outcome.choices.iter().zip(&alone[0]).take_while(|(_, one)| one.margin > MARGIN) {
                assert_eq!(found.token, expected.token, "{choices:?} on {backend}");
            }
            outcome.cached
        };
        for (choices, known) in [
            (&[][..], false),
            (&[(0, 1.0)], false),
            (&[(1, 1.0)], false),
            (&[(0, 0.5)], false),
            (&[(0, 1.0), (1, 1.0)], false),
            (&[(0, 1.0)], true),
            (&[(1, 1.0), (0, 1.0)], true),
            (&[(0, 0.0)], true),
            (&[], true),
        ] {
            let cached = ask(choices, 30);
            assert_eq!(cached >= 192, known, "{choices:?} on {backend}: {cached} tokens were known");
        }
    }
}

#[test]
fn adapters_that_a_request_cannot_choose_are_refused() {
    let (_, device) = devices().into_iter().next().expect("a backend");
    let config = gemma::Decoder::config_of(&gemma::demo_checkpoint().expect("built in")).expect("a configuration");
    let model = gemma::Decoder::random(&config, RandomWeights::Dense, 1, &device);
    let options = EngineOptions { adapters: 2, ..EngineOptions::default() };
    let mut engine = Engine::new(&model, options).expect("valid options");
    let mut submit = |choices: &[(usize, f32)]| {
        let options = GenerateOptions::greedy(1);
        engine.submit(Request { adapters: chosen(choices), ..Request::new(vec![2, 30], options) })
    };
    assert!(submit(&[(1, -2.0), (0, 1.0)]).is_ok());
    for wrong in [&[(2, 1.0)][..], &[(0, f32::NAN)], &[(1, f32::INFINITY)], &[(0, 1.0), (0, 0.5)]] {
        let refused = submit(wrong).expect_err("it cannot be chosen");
        assert!(matches!(refused, Error::Adapter { adapters: 2, .. }), "{refused}");
    }
}

/// Images are encoded once for all requests, so factors of the encoder cannot be a request's own.
#[test]
fn an_adapter_of_what_requests_share_is_refused_by_the_name_of_its_module() {
    let (_, device) = devices().into_iter().next().expect("a backend");
    let checkpoint = paligemma::demo_checkpoint().expect("built in");
    let name = "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj";
    let found = checkpoint.tensors().find(|(tensor, _)| tensor.contains("encoder.layers.0.self_attn.q_proj.weight"));
    let [out, inputs] = <[usize; 2]>::try_from(found.expect("a projection").1.shape.clone()).expect("a matrix");
    let folder = tempfile::tempdir().expect("a folder");
    let adapter = adapter_of(&folder.path().join("eyes"), &[(name.to_owned(), [out, inputs])], 1);
    let open =
        |options: LoadOptions| gemma_auto::find("demo:paligemma", &options).expect("built in").open(&options, &device);
    assert!(open(LoadOptions { adapters: vec![adapter.clone()], ..LoadOptions::default() }).is_ok());
    let refused = open(LoadOptions { request_adapters: vec![adapter], ..LoadOptions::default() }).expect_err("shared");
    let message = refused.to_string();
    assert!(message.contains(name) && message.contains("outside the decoder's layers"), "{message}");
}
