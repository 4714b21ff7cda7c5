//! Drafts of another model change no token, past every sliding window, on real (tiny) checkpoints.

use gemma_auto::{AutoModel, GenerateOptions, LoadOptions, Precision, Speculate, with_model};
use gemma_generate::{
    CausalModel, DraftModel, Engine, EngineOptions, Event, Generation, PromptLookup, Request, Speculation, TokenId,
};
use gemma_tests::devices;
use std::collections::HashMap;

/// Longer than the demo's window of 32 keys, and than what a page behind it keeps.
const TOKENS: usize = 150;
const PROMPTS: [&str; 4] = ["Once upon a time", "One", "The fox", "What is 2 plus 3?"];

fn q4_0() -> LoadOptions {
    LoadOptions { precision: Some(Precision::Q4_0), ..LoadOptions::default() }
}

fn options(seed: u64) -> GenerateOptions {
    let temperature = if seed.is_multiple_of(2) { 0.0 } else { 0.7 };
    GenerateOptions { temperature, seed: Some(seed), ignore_eos: true, ..GenerateOptions::greedy(TOKENS) }
}

fn run<M: CausalModel>(generation: Generation<'_, M>) -> (Vec<TokenId>, usize, usize) {
    let mut generation = generation;
    let tokens = generation.by_ref().map(|sampled| sampled.expect("a sound model").token).collect();
    let timings = generation.timings();
    (tokens, timings.draft_tokens, timings.accepted_tokens)
}

/// The drafter is the same model in 4 bits: often right, and wrong often enough.
#[test]
fn a_quantized_draft_model_changes_no_token_past_the_window() {
    for (_, device) in devices() {
        let large = gemma::demo(&device).unwrap();
        let small = AutoModel::load_with("demo", &q4_0(), &device).unwrap();
        let AutoModel::Gemma(small) = &small else { panic!("the demo is a Gemma") };
        let draft_model = DraftModel::new(small.network()).unwrap();
        let (mut drafted, mut accepted) = (0, 0);
        for (seed, prompt) in PROMPTS.iter().enumerate() {
            let prompt = large.tokenizer().unwrap().encode(prompt);
            let generation = || Generation::new(large.network(), &prompt, &options(seed as u64), &[]).unwrap();
            let (plain, none, _) = run(generation());
            assert_eq!((plain.len(), none), (TOKENS, 0));
            for most in [1, 5, 16] {
                let speculation = Speculation::new(draft_model.drafter()).at_most(most).always();
                let (tokens, offered, right) = run(generation().with_speculation(speculation));
                assert_eq!(tokens, plain, "prompt {seed}, drafts of {most}");
                (drafted, accepted) = (drafted + offered, accepted + right);
            }
            let lookup = Speculation::new(PromptLookup::default()).or(draft_model.drafter()).always();
            assert_eq!(run(generation().with_speculation(lookup)).0, plain, "prompt {seed}, with prompt lookup");
        }
        println!("{accepted} of {drafted} draft tokens accepted");
        // with drafts of one token, half of the tokens at most are drafted
        assert!(accepted > TOKENS * PROMPTS.len() && accepted < drafted, "{accepted} of {drafted}");
    }
}

/// Requests with drafts and without share the forward passes of one engine.
#[test]
fn drafts_of_one_request_disturb_no_other() {
    for (_, device) in devices() {
        let model = gemma::demo(&device).unwrap();
        let speculate = Speculate::by_lookup().or_model(&model).unwrap();
        let mut engine = Engine::new(model.network(), EngineOptions::default()).unwrap();
        let mut expected = HashMap::new();
        for (seed, prompt) in PROMPTS.iter().cycle().take(8).enumerate() {
            let prompt = model.tokenizer().unwrap().encode(prompt);
            let alone = run(Generation::new(model.network(), &prompt, &options(seed as u64), &[]).unwrap()).0;
            let speculation = (seed % 3 > 0).then(|| speculate.start().always());
            let request = Request { speculation, ..Request::new(prompt, options(seed as u64)) };
            expected.insert(engine.submit(request).unwrap(), alone);
        }
        let mut found: HashMap<_, Vec<TokenId>> = HashMap::new();
        while !engine.is_idle() {
            for event in engine.step() {
                match event {
                    Event::Token { id, token, .. } => found.entry(id).or_default().push(token.token),
                    Event::Failed { error, .. } => panic!("{error}"),
                    _ => {}
                }
            }
        }
        assert_eq!(found, expected);
    }
}

#[test]
fn the_front_door_drafts_and_refuses_what_cannot() {
    let (_, device) = devices().into_iter().next().unwrap();
    let prompt = "Once upon a time";
    let plain = AutoModel::load("demo", &device).unwrap();
    let draft = |name: &str| AutoModel::load(name, &device).unwrap().drafting();
    let opened = |speculate: Speculate| {
        AutoModel::load_with("demo", &LoadOptions { speculate: Some(speculate), ..LoadOptions::default() }, &device)
    };
    let expected = plain.generate(prompt, &options(0)).unwrap();
    let speculating = opened(draft("demo").unwrap().at_most(4)).unwrap();
    let found = speculating.generate(prompt, &options(0)).unwrap();
    assert_eq!(found.text, expected.text);
    with_model!(&speculating, model => assert!(model.speculate().is_some()));
    // its vocabulary is another one
    let error = opened(draft("demo:codegemma").unwrap()).unwrap_err().to_string();
    assert!(error.contains("draft model") && error.contains("same family"), "{error}");
    let error = draft("demo:recurrentgemma").unwrap_err().to_string();
    assert!(error.contains("cannot draft"), "{error}");
}
