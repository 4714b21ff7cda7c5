//! The engine on real (tiny) checkpoints of three families: requests do not disturb each other, prefixes are shared, and
//! what is wrong with one request stays with it.

use burn::tensor::{Tensor, TensorData};
use gemma::{Device, LoadOptions, Network};
use gemma_generate::{
    Cache, CacheTensors, CausalModel, Engine, EngineOptions, Error, Event, FinishReason, GenerateOptions, Inputs,
    Request, RequestId, TokenId,
};
use gemma_kernels::Format;
use gemma_nn::{RandomWeights, Segment};
use gemma_tests::devices;
use gemma_weights::{Checkpoint, Precision};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A greedy choice counts where the best two logits are farther apart than this.
pub(crate) const MARGIN: f64 = 1e-3;
/// The token whose embedding is NaN in a [`Poisoned`] model: one that no text has, and no model says.
const POISON: TokenId = 3;
/// Requests of all families together.
const REQUESTS: usize = 64;

/// A model that computes NaN for every sequence with [`POISON`] in it.
struct Poisoned<'m, M>(&'m M);

impl<M: CausalModel> CausalModel for Poisoned<'_, M> {
    type Cache = M::Cache;

    fn embed(&self, tokens: &[TokenId]) -> Inputs {
        let inputs = self.0.embed(tokens);
        let factors: Vec<f32> = tokens.iter().map(|token| if *token == POISON { f32::NAN } else { 1.0 }).collect();
        let device = inputs.embeddings.device();
        let factors = Tensor::<2>::from_data(TensorData::new(factors, [tokens.len(), 1]), &device);
        Inputs { embeddings: inputs.embeddings * factors, ..inputs }
    }

    fn forward(&self, inputs: Inputs, segments: &[Segment], caches: &mut [&mut M::Cache]) -> Tensor<2> {
        self.0.forward(inputs, segments, caches)
    }

    fn logits(&self, hidden_states: Tensor<2>) -> Tensor<2> {
        self.0.logits(hidden_states)
    }

    fn final_softcap(&self) -> Option<f32> {
        self.0.final_softcap()
    }

    fn uncapped_logits(&self, hidden_states: Tensor<2>) -> Tensor<2> {
        self.0.uncapped_logits(hidden_states)
    }

    fn new_cache(&self) -> M::Cache {
        self.0.new_cache()
    }

    fn no_cache(&self) -> M::Cache {
        self.0.no_cache()
    }

    fn restore_cache(&self, len: usize, tensors: &CacheTensors) -> Option<M::Cache> {
        self.0.restore_cache(len, tensors)
    }

    fn cache_bytes(&self, tokens: usize) -> usize {
        self.0.cache_bytes(tokens)
    }

    fn context_length(&self) -> Option<usize> {
        self.0.context_length()
    }

    fn vocab(&self) -> usize {
        self.0.vocab()
    }
}

/// A token and by how much its logprob exceeds that of the next best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Choice {
    pub(crate) token: TokenId,
    logprob: f64,
    pub(crate) margin: f64,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) choices: Vec<Choice>,
    end: Result<FinishReason, Error>,
    pub(crate) cached: usize,
}

/// Runs all requests to their ends.
pub(crate) fn run<M: CausalModel>(
    engine: &mut Engine<'_, M>,
    mut between: impl FnMut(usize),
) -> HashMap<RequestId, Outcome> {
    let mut choices: HashMap<RequestId, Vec<Choice>> = HashMap::new();
    let mut outcomes = HashMap::new();
    let mut steps = 0;
    while !engine.is_idle() {
        for event in engine.step() {
            let id = event.id();
            match event {
                Event::Token { token, .. } => choices.entry(id).or_default().push(Choice {
                    token: token.token,
                    logprob: token.logprob.expect("a token of an answer has one"),
                    margin: token.top[0].1 - token.top[1].1,
                }),
                Event::Finished { reason, cached, .. } => {
                    let choices = choices.remove(&id).unwrap_or_default();
                    outcomes.insert(id, Outcome { choices, end: Ok(reason), cached });
                }
                Event::Failed { error, .. } => {
                    let choices = choices.remove(&id).unwrap_or_default();
                    outcomes.insert(id, Outcome { choices, end: Err(error), cached: 0 });
                }
                Event::Started { .. } | Event::Prefill { .. } | Event::PromptLogprobs { .. } => {}
            }
        }
        steps += 1;
        between(steps);
    }
    outcomes
}

/// Some tokens of a text, never [`POISON`].
pub(crate) fn prompt(seed: usize, len: usize, vocab: usize) -> Vec<TokenId> {
    let token = |place: usize| {
        let mixed = (seed * 7_919 + place * place * 31 + place * 101) % (vocab - 20);
        mixed as TokenId + 20
    };
    std::iter::once(2).chain((1..len).map(token)).collect()
}

/// Lengths of 1 to 700 tokens, short ones more often.
fn length(seed: usize) -> usize {
    [1, 2, 7, 33, 64, 150, 301, 512, 700, 18][seed % 10] + if seed % 10 < 8 { seed / 10 } else { 0 }
}

fn request(seed: usize, vocab: usize) -> Request<'static> {
    let options = GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(2 + seed % 9) };
    Request { top_logprobs: 2, ..Request::new(prompt(seed, length(seed), vocab), options) }
}

fn alone<M: CausalModel>(model: &M, request: Request<'_>, batch_invariant: bool) -> Vec<Choice> {
    let options = EngineOptions { batch_invariant, ..EngineOptions::default() };
    let mut engine = Engine::new(model, options).expect("valid options");
    let id = engine.submit(request).expect("a valid request");
    run(&mut engine, |_| {}).remove(&id).expect("it was submitted").choices
}

/// Which requests end in a way of their own.
const BROKEN: usize = 5;
const CANCELLED: usize = 17;
const LATE: usize = 23;

fn company<M: CausalModel>(model: &M, seeds: std::ops::Range<usize>, batch_invariant: bool, context: &str) {
    let model = Poisoned(model);
    let vocab = model.vocab();
    let options = EngineOptions { max_requests: 12, batch_invariant, ..EngineOptions::default() };
    let mut engine = Engine::new(&model, options).expect("valid options");
    let raise = Arc::new(AtomicBool::new(false));
    let mut ids = HashMap::new();
    for seed in seeds {
        let mut request = request(seed, vocab);
        match seed {
            BROKEN => {
                let mut tokens = prompt(seed, length(seed), vocab);
                *tokens.last_mut().expect("a prompt") = POISON;
                request.prompt = tokens.into();
            }
            CANCELLED => request.cancel = Some(Arc::clone(&raise)),
            LATE => request.deadline = Some(Instant::now()),
            _ => {}
        }
        ids.insert(engine.submit(request).expect("a valid request"), seed);
    }
    let outcomes = run(&mut engine, |steps| raise.store(steps >= 9, Ordering::Relaxed));
    assert_eq!(outcomes.len(), ids.len(), "{context}");
    for (id, outcome) in outcomes {
        let seed = ids[&id];
        let context = format!("{context}, request {seed} of {} tokens", length(seed));
        let expected = match seed {
            BROKEN => Err(Error::NotFinite { token: 0, logit: f32::NAN }),
            CANCELLED => Ok(FinishReason::Cancelled),
            LATE => Ok(FinishReason::OutOfTime),
            _ => Ok(FinishReason::Length),
        };
        match (&expected, &outcome.end) {
            (Err(_), Err(Error::NotFinite { .. })) => {}
            // WGSL does not promise that a NaN stays one
            (Err(_), Ok(FinishReason::Length)) if context.contains("wgpu") => {}
            (expected, found) => assert_eq!(found, expected, "{context}"),
        }
        if seed == BROKEN {
            continue;
        }
        if seed == LATE {
            assert!(outcome.choices.is_empty(), "{context}");
            continue;
        }
        let alone = alone(&model, request(seed, vocab), batch_invariant);
        if seed != CANCELLED {
            assert_eq!(outcome.choices.len(), alone.len(), "{context}");
        }
        for (step, (found, expected)) in outcome.choices.iter().zip(&alone).enumerate() {
            if batch_invariant {
                assert_eq!(found, expected, "{context}, step {step}");
            } else if expected.margin <= MARGIN {
                break;
            } else {
                assert_eq!(found.token, expected.token, "{context}, step {step}, margin {}", expected.margin);
            }
        }
    }
}

pub(crate) fn open<N: Network>(checkpoint: &Checkpoint, options: &LoadOptions, device: &Device) -> N {
    N::open(checkpoint, options, device).expect("a demo model")
}

/// Requests of one family on a device: a third of all, and on a software rasterizer, which is slow, as few as still fill a
/// batch and include a cancelled, a late and a broken one.
fn requests(family: usize, device: &Device) -> std::ops::Range<usize> {
    let third = REQUESTS / 3;
    let end = if family == 2 { REQUESTS } else { (family + 1) * third };
    let few = gemma_backend::describe(device).contains("software");
    family * third..if few { end.min(family * third + 6) } else { end }
}

/// All three families.
fn families(options: &LoadOptions) {
    let batch_invariant = options.batch_invariant;
    for (backend, device) in devices() {
        let [first, second, third] = [0, 1, 2].map(|family| requests(family, &device));
        let gemma: gemma::Decoder = open(&gemma::demo_checkpoint().expect("built in"), options, &device);
        company(&gemma, first, batch_invariant, &format!("Gemma on {backend}"));
        let code: gemma::Decoder = open(&codegemma::demo_checkpoint().expect("built in"), options, &device);
        company(&code, second, batch_invariant, &format!("CodeGemma on {backend}"));
        let griffin: recurrentgemma::Griffin =
            open(&recurrentgemma::demo_checkpoint().expect("built in"), options, &device);
        company(&griffin, third, batch_invariant, &format!("RecurrentGemma on {backend}"));
    }
}

#[test]
fn sixty_four_requests_of_three_families_get_what_each_gets_alone() {
    families(&LoadOptions::default());
}

/// Tokens and logprobs, with weights as they are stored, in 8 and in 4 bits.
#[test]
fn in_batch_invariant_mode_they_get_it_bit_for_bit() {
    for precision in [None, Some(Precision::Q8_0), Some(Precision::Q4_0)] {
        families(&LoadOptions { precision, batch_invariant: true, ..LoadOptions::default() });
    }
}

/// A prefix of the prompt that another request had is taken from the prefix cache, in a family that can truncate its cache,
/// in one with sliding windows and in one with recurrent states.
#[test]
fn a_shared_prefix_changes_nothing_but_the_time() {
    fn check<M: CausalModel>(model: &M, context: &str, keeps_pages: bool) {
        let vocab = model.vocab();
        let options = EngineOptions { prefix_cache_bytes: 64 << 20, snapshot_tokens: 64, ..EngineOptions::default() };
        let mut engine = Engine::new(model, options).expect("valid options");
        let shared = prompt(1, 300, vocab);
        let after = |len: usize, seed: usize| [&shared[..len], &prompt(seed, 1 + seed * 5, vocab)[1..], &[21]].concat();
        let ask = |tokens: Vec<u32>| {
            let options = GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(6) };
            Request { top_logprobs: 2, ..Request::new(tokens, options) }
        };
        let request = |seed: usize| ask(after(shared.len(), seed));
        let ids: Vec<(RequestId, usize)> =
            (0..8).map(|seed| (engine.submit(request(seed)).expect("a valid request"), seed)).collect();
        let outcomes = run(&mut engine, |_| {});
        let reused = outcomes.values().filter(|outcome| outcome.cached >= 256).count();
        assert_eq!(reused, 7, "{context}: {:?}", outcomes.values().map(|one| one.cached).collect::<Vec<_>>());
        let same = |outcome: &Outcome, request: Request<'static>, context: &str| {
            for (found, expected) in outcome.choices.iter().zip(&alone(model, request, false)) {
                if expected.margin <= MARGIN {
                    break;
                }
                assert_eq!(found.token, expected.token, "{context}");
            }
        };
        for (id, seed) in ids {
            same(&outcomes[&id], request(seed), &format!("{context}, request {seed}"));
        }
        // prompts that leave the prefix anywhere, also where a window has moved on
        for len in [70, 131, 211, 299] {
            let id = engine.submit(ask(after(len, 3))).expect("a valid request");
            let outcome = &run(&mut engine, |_| {})[&id];
            let expected = if keeps_pages { len } else { len / 64 * 64 };
            assert_eq!(outcome.cached, expected, "{context}, {len} tokens");
            same(outcome, ask(after(len, 3)), &format!("{context}, {len} tokens"));
        }
    }
    for (backend, device) in devices() {
        let options = LoadOptions::default();
        let gemma: gemma::Decoder = open(&gemma::demo_checkpoint().expect("built in"), &options, &device);
        check(&gemma, &format!("Gemma on {backend}"), true);
        let code: gemma::Decoder = open(&codegemma::demo_checkpoint().expect("built in"), &options, &device);
        check(&code, &format!("CodeGemma on {backend}"), true);
        let griffin: recurrentgemma::Griffin =
            open(&recurrentgemma::demo_checkpoint().expect("built in"), &options, &device);
        check(&griffin, &format!("RecurrentGemma on {backend}"), false);
    }
}

/// 64 requests that share a long prefix hold its pages once, beside a tail of their own; the pages of a prefix that was evicted
/// are given back.
#[test]
fn requests_with_a_common_prefix_hold_it_once() {
    const REQUESTS: usize = 64;
    const TAIL: usize = 40;
    for (backend, device) in devices() {
        let prefix_len = if gemma_backend::describe(&device).contains("software") { 640 } else { 4_000 };
        let config = gemma_model::config_file(&gemma::demo_checkpoint().expect("built in")).expect("it has one");
        let mut config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
        config["max_position_embeddings"] = 8_192.into();
        let config =
            gemma::Decoder::config_from_json(config.to_string().as_bytes()).expect("as before, but for the context");
        let model = gemma::Decoder::random(&config, RandomWeights::Packed(Format::Bf16), 1, &device);
        let vocab = model.vocab();
        let options = EngineOptions { prefix_cache_bytes: 1 << 30, ..EngineOptions::default() };
        let mut engine = Engine::new(&model, options).expect("valid options");
        let prefix = prompt(1, prefix_len, vocab);
        let request = |seed: usize| {
            let tokens = [&prefix[..], &prompt(seed, TAIL, vocab)[1..]].concat();
            Request::new(tokens, GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(4) })
        };
        let first = Request::new(prefix.clone(), GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(1) });
        engine.submit(first).expect("a valid request");
        while !engine.is_idle() {
            engine.step();
        }
        let one = engine.page_bytes();
        assert!(one > 0, "{backend}");
        for seed in 0..REQUESTS {
            engine.submit(request(seed)).expect("a valid request");
        }
        let mut most = 0;
        while !engine.is_idle() {
            for event in engine.step() {
                if let Event::Finished { cached, .. } = event {
                    assert_eq!(cached, prefix_len, "{backend}");
                }
            }
            most = most.max(engine.page_bytes());
        }
        let tails = REQUESTS * model.cache_bytes(TAIL + 4);
        assert!(most > one, "{backend}: {most} of {one} bytes");
        assert!(10 * most <= 11 * (one + tails), "{backend}: {most} bytes; a prefix has {one}, the tails {tails}");
    }
}

/// With room for one prefix only, what was evicted is computed anew, and never read.
#[test]
fn a_tiny_prefix_cache_changes_no_answer() {
    for (backend, device) in devices() {
        let model: gemma::Decoder =
            open(&gemma::demo_checkpoint().expect("built in"), &LoadOptions::default(), &device);
        let vocab = model.vocab();
        let room = model.cache_bytes(120);
        let options = EngineOptions { prefix_cache_bytes: room, max_requests: 2, ..EngineOptions::default() };
        let mut engine = Engine::new(&model, options).expect("valid options");
        let request = |seed: usize| {
            let tokens = [&prompt(seed % 3, 70, vocab)[..], &prompt(seed, 9, vocab)[1..]].concat();
            let options = GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(6) };
            Request { top_logprobs: 2, ..Request::new(tokens, options) }
        };
        let ids: Vec<(RequestId, usize)> =
            (0..12).map(|seed| (engine.submit(request(seed)).expect("a valid request"), seed)).collect();
        let outcomes = run(&mut engine, |_| {});
        assert!(engine.stats().prefix_bytes <= room, "{backend}: {:?}", engine.stats());
        for (id, seed) in ids {
            let alone = alone(&model, request(seed), false);
            assert_eq!(outcomes[&id].choices.len(), alone.len(), "{backend}, request {seed}");
            for (found, expected) in outcomes[&id].choices.iter().zip(&alone) {
                if expected.margin <= MARGIN {
                    break;
                }
                assert_eq!(found.token, expected.token, "{backend}, request {seed}");
            }
        }
    }
}

/// A prompt with an image is one piece: its cache can be truncated to its end and to nothing, and kept in a file.
#[test]
fn the_cache_of_an_image_can_be_truncated_and_kept() {
    for (backend, device) in devices() {
        let model = paligemma::PaliGemma::from_checkpoint(
            &paligemma::demo_checkpoint().expect("built in"),
            &LoadOptions::default(),
            &device,
        )
        .expect("a demo model");
        let network = model.network();
        let (_, image) = paligemma::demo_images().expect("built in").remove(0);
        let features = model.encode_image(&image).features().clone();
        let tokens = model.prompt_tokens(1, "caption en").expect("a tokenizer");
        let request = || {
            let options = GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(5) };
            let request = model.request(&tokens, std::slice::from_ref(&features), &options).expect("a prompt");
            Request { keep_sequence: true, top_logprobs: 2, ..request }
        };
        let mut engine = Engine::new(network, EngineOptions::default()).expect("valid options");
        let id = engine.submit(request()).expect("a valid request");
        let first = run(&mut engine, |_| {}).remove(&id).expect("it was submitted");
        let sequence = engine.take_sequence(id).expect("it was to be kept");
        let file = std::env::temp_dir().join(format!("gemma-image-{}-{backend}", std::process::id()));
        gemma_model::save_state(network, &sequence, &file).expect("it can be written");
        let loaded = gemma_model::load_state(network, &file);
        std::fs::remove_file(&file).expect("it was written");
        let loaded = loaded.expect("it was just written");
        assert_eq!((loaded.position(), loaded.pending()), (sequence.position(), sequence.pending()), "{backend}");
        let mut caches = [loaded.into_cache(), sequence.into_cache()];
        for cache in &mut caches {
            assert!(!cache.truncate(tokens.len() - 1), "{backend}: the prompt has seen all of itself");
            assert_eq!(cache.len(), tokens.len() + 4, "{backend}");
            assert!(cache.truncate(tokens.len()), "{backend}: the answer can be taken back");
            let step = Segment::causal(tokens.len(), 1);
            let logits = network.last_logits(&[first.choices[0].token], &[step], &mut [cache]);
            let logits: Vec<f32> = logits.into_data().try_into_vec().expect("f32");
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).expect("logits");
            assert_eq!(best as TokenId, first.choices[1].token, "{backend}");
        }
        assert!(caches[0].truncate(0) && caches[0].is_empty(), "{backend}");
    }
}

/// A chat that is longer than the context: the oldest exchanges are dropped seldom and many at once, each answer keeps its
/// room, and all turns between prefill nothing but what is new.
#[test]
fn a_long_chat_drops_old_turns_in_large_steps() {
    let model = gemma::demo(&devices().remove(0).1).expect("a model that is built in");
    let context = model.network().context_length().expect("Gemma's is limited");
    let mut chat =
        gemma::Conversation::new(&model, GenerateOptions { ignore_eos: false, ..GenerateOptions::greedy(40) });
    let (mut drops, mut prefilled, mut turns) = (0, 0, 0);
    while prefilled < 3 * context && turns < 200 {
        let question = format!("Tell me of number {turns}, of the sea and of the mountains, please.");
        let show = |_: &str| Ok::<(), gemma::Error>(());
        let answered = chat.say(&question, Arc::new(AtomicBool::new(false)), show).expect("an answer");
        assert_ne!(answered.reason, FinishReason::ContextFull, "turn {turns}: an answer without room");
        if answered.forgotten > 0 {
            drops += 1;
        } else if turns > 0 {
            assert!(answered.timings.prompt_tokens < context / 8, "turn {turns}: {:?}", answered.timings);
        }
        let (tokens, _) = chat.remembered();
        assert!(tokens <= context, "turn {turns}: {tokens} tokens");
        prefilled += answered.timings.prompt_tokens + answered.timings.generated_tokens;
        turns += 1;
    }
    assert!(turns > 20, "{turns} turns");
    println!("{drops} drops in {turns} turns");
    assert!(drops >= 1 && drops <= turns / 6, "{drops} drops in {turns} turns");
}
