//! What a decoded token asks of a GPU: launches for each layer, and bytes that go there and come back. And that what is
//! sampled there is what the host would sample.

use crate::engine::prompt;
use gemma::{Decoder, DecoderConfig, Device, Network};
use gemma_generate::{CausalModel, Engine, EngineOptions, Event, GenerateOptions, Request, TokenLogprobs};
use gemma_kernels::{Format, Traffic, is_apart, watch};
use gemma_nn::RandomWeights;
use gemma_tests::{devices, tiny};
use recurrentgemma::Griffin;
use serde_json::Value;

/// The configuration of a demo model, with as many layers; where it has recurrent ones, every second is.
fn with_layers<N: Network>(checkpoint: &gemma_weights::Checkpoint, layers: usize) -> N::Config {
    let config = gemma_model::config_file(checkpoint).expect("it has one");
    let mut config: Value = serde_json::from_slice(&config).expect("JSON");
    config["num_hidden_layers"] = layers.into();
    if let Some(types) = config["layer_types"].as_array().cloned() {
        config["layer_types"] = types.into_iter().cycle().take(layers).collect();
    }
    if config["block_types"].is_array() {
        config["block_types"] = serde_json::json!(["recurrent", "attention"]);
    }
    N::config_from_json(config.to_string().as_bytes()).expect("as before, but for the layers")
}

/// A small Gemma 2 or 3 of so many layers, half of which have a window.
fn newer(kind: &str, layers: usize) -> DecoderConfig {
    let mut config = tiny::config(kind, 3000);
    config["num_hidden_layers"] = layers.into();
    let types = ["sliding_attention", "full_attention"].into_iter().cycle().take(layers);
    config["layer_types"] = types.collect();
    Decoder::config_from_json(config.to_string().as_bytes()).expect("sound")
}

fn random<N: Network>(config: &N::Config, device: &Device) -> N {
    N::random(config, RandomWeights::Packed(Format::Bf16), 3, device)
}

/// A usual token of a greedy answer, after those in which buffers grow.
fn one_token<M: CausalModel>(model: &M) -> Traffic {
    let options = GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(12) };
    let mut engine = Engine::new(model, EngineOptions::default()).expect("valid options");
    engine.submit(Request::new(prompt(1, 9, model.vocab()), options)).expect("a valid request");
    let tokens: Vec<Traffic> = std::iter::from_fn(|| (!engine.is_idle()).then(|| watch(|| engine.step()).1)).collect();
    tokens[8].clone()
}

/// Launches of a decoded token: so many a layer, and so many beside the layers; prints where they come from.
fn launches<M: CausalModel>(name: &str, model: impl Fn(usize) -> M, [most_a_layer, most_beside]: [usize; 2]) {
    let [few, more] = [2, 6].map(|layers| one_token(&model(layers)));
    let a_layer = (more.launched() - few.launched()) as f64 / 4.0;
    let beside = few.launched() as f64 - 2.0 * a_layer;
    println!(
        "{name}: {a_layer} launches a layer and {beside} beside; {} uploads of {} bytes, {} downloads of {} bytes",
        more.uploads, more.uploaded, more.downloads, more.downloaded
    );
    for (kernel, count) in &more.launches {
        println!("  {:>3} {kernel}", count);
    }
    assert!(a_layer <= most_a_layer as f64 && beside <= most_beside as f64, "{name} takes more launches than it did");
    assert_eq!((more.downloads, more.downloaded <= 20), (1, true), "{name}: a token comes back, and no logits");
}

#[test]
fn a_decoded_token_takes_no_more_launches_than_it_did() {
    for (_, device) in devices().into_iter().filter(|(_, device)| is_apart(device)) {
        let gemma = gemma::demo_checkpoint().expect("built in");
        launches("Gemma", |layers| random::<Decoder>(&with_layers::<Decoder>(&gemma, layers), &device), [9, 7]);
        let code = codegemma::demo_checkpoint().expect("built in");
        launches("CodeGemma", |layers| random::<Decoder>(&with_layers::<Decoder>(&code, layers), &device), [9, 6]);
        // Gemma 3 norms heads in the launch that rotates them, and has no cap
        for (kind, most) in [("gemma2", [9, 7]), ("gemma3", [9, 6])] {
            launches(kind, |layers| random::<Decoder>(&newer(kind, layers), &device), most);
        }
        let griffin = recurrentgemma::demo_checkpoint().expect("built in");
        // a layer that remembers, and one that attends
        let griffin = |layers| random::<Griffin>(&with_layers::<Griffin>(&griffin, 2 * layers), &device);
        launches("RecurrentGemma, both kinds of layers", griffin, [21, 7]);
    }
}

/// The tokens of a request, and what each of the last steps moved.
fn answer<M: CausalModel>(model: &M, request: Request<'_>) -> (Vec<TokenLogprobs>, Traffic) {
    let mut engine = Engine::new(model, EngineOptions::default()).expect("valid options");
    engine.submit(request).expect("a valid request");
    let (mut tokens, mut last) = (Vec::new(), Traffic::default());
    while !engine.is_idle() {
        let (events, traffic) = watch(|| engine.step());
        last = traffic;
        for event in events {
            match event {
                Event::Token { token, .. } => tokens.push(token),
                Event::Failed { error, .. } => panic!("{error}"),
                _ => {}
            }
        }
    }
    (tokens, last)
}

/// A bias of nothing makes the sampler read all logits.
#[test]
fn tokens_sampled_from_the_largest_logits_are_those_sampled_from_all() {
    for (backend, device) in devices() {
        for kind in ["gemma2", "gemma3"] {
            let model = random::<Decoder>(&newer(kind, 2), &device);
            let vocab = model.vocab();
            let usual = GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(24) };
            let sampled = |seed: u64, top_k: usize| GenerateOptions {
                temperature: 1.5,
                top_k: Some(top_k),
                seed: Some(seed),
                ..usual.clone()
            };
            for (options, top_logprobs, read) in [
                (usual.clone(), 0, Some(1)),
                (usual.clone(), 5, Some(5)),
                (sampled(1, 40), 0, Some(40)),
                (sampled(2, 3), 2, Some(3)),
                (GenerateOptions { top_p: Some(0.8), min_p: Some(0.02), ..sampled(3, 64) }, 0, Some(64)),
                (sampled(4, 100), 0, Some(100)),
                (sampled(5, 1000), 0, None),
                (GenerateOptions { top_k: None, ..sampled(6, 1) }, 0, None),
                (GenerateOptions { repetition_penalty: 1.2, ..usual.clone() }, 0, None),
            ] {
                let context = format!("{backend}, {kind}, {options:?}");
                let request =
                    |options: GenerateOptions| Request { top_logprobs, ..Request::new(prompt(7, 20, vocab), options) };
                let whole = GenerateOptions { logit_bias: vec![(5, 0.0)], ..options.clone() };
                let (found, traffic) = answer(&model, request(options));
                let (expected, all) = answer(&model, request(whole));
                assert_eq!(found.len(), 24, "{context}");
                for (found, expected) in found.iter().zip(&expected) {
                    assert_eq!(found.token, expected.token, "{context}");
                    let logprobs = |token: &TokenLogprobs| {
                        let top = token.top.iter().map(|(_, logprob)| *logprob);
                        top.chain(token.logprob).collect::<Vec<f64>>()
                    };
                    let tokens = |token: &TokenLogprobs| token.top.iter().map(|(token, _)| *token).collect::<Vec<_>>();
                    assert_eq!(tokens(found), tokens(expected), "{context}");
                    for (found, expected) in logprobs(found).iter().zip(logprobs(expected)) {
                        // the sum of exps is in f32 on a GPU
                        assert!((found - expected).abs() < 1e-5, "{context}: {found} {expected}");
                    }
                }
                if is_apart(&device) {
                    // a capped model reads one more, which tells whether it is saturated
                    let few = read.map(|count| 4 * (2 * (count + usize::from(kind == "gemma2")) + 1));
                    assert_eq!((traffic.downloads, traffic.downloaded), (1, few.unwrap_or(4 * vocab)), "{context}");
                    assert_eq!((all.downloads, all.downloaded), (1, 4 * vocab), "{context}");
                } else {
                    assert_eq!(traffic.downloads, 0, "{context}");
                }
            }
        }
    }
}
