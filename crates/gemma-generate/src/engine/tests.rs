//! The engine on a model without weights: what each request gets alone, whatever else is in the batch.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use gemma_tokenizer::TokenId;

use super::*;
use crate::fake::{Fake, VOCAB};
use crate::{Error, FinishReason};
use crate::{GenerateOptions, Generation, PromptLookup, Speculation};

fn greedy(max_tokens: usize) -> GenerateOptions {
    GenerateOptions::greedy(max_tokens)
}

fn prompt(seed: u32, len: usize) -> Vec<TokenId> {
    (0..len as u32).map(|place| (seed * 31 + place * place + place) % 40 + 2).collect()
}

/// What became of each request: its tokens, and its last event.
fn run(engine: &mut Engine<'_, Fake>) -> HashMap<RequestId, (Vec<TokenId>, Event)> {
    let mut tokens: HashMap<RequestId, Vec<TokenId>> = HashMap::new();
    let mut over = HashMap::new();
    while !engine.is_idle() {
        for event in engine.step() {
            let id = event.id();
            assert!(!over.contains_key(&id), "an event after the last one: {event:?}");
            match event {
                Event::Token { token, .. } => tokens.entry(id).or_default().push(token.token),
                event if event.is_last() => {
                    over.insert(id, (tokens.remove(&id).unwrap_or_default(), event));
                }
                _ => {}
            }
        }
    }
    over
}

fn reason(event: &Event) -> Option<FinishReason> {
    match event {
        Event::Finished { reason, .. } => Some(*reason),
        _ => None,
    }
}

#[test]
fn sixty_four_requests_give_what_each_gives_alone() {
    let model = Fake::new(50).with_context(120);
    for batch_invariant in [false, true] {
        let options =
            EngineOptions { max_requests: 10, prefill_tokens: 64, batch_invariant, ..EngineOptions::default() };
        let mut engine = Engine::new(&model, options).unwrap();
        let mut expected = HashMap::new();
        for seed in 0..64 {
            let tokens = prompt(seed, 1 + (seed as usize * 37) % 110);
            let options = GenerateOptions {
                max_tokens: 1 + seed as usize % 17,
                temperature: (seed % 3) as f32 / 2.0,
                seed: Some(u64::from(seed)),
                prefill_chunk: 1 + seed as usize % 40,
                ..GenerateOptions::default()
            };
            let alone = Generation::new(&model, &tokens, &options, &[7]).unwrap();
            let alone: Vec<TokenId> = alone.map(|sampled| sampled.unwrap().token).collect();
            let speculation = (seed % 5 == 0).then(|| Speculation::new(PromptLookup::default()).always());
            let request = Request { stop_tokens: vec![7], speculation, ..Request::new(tokens, options) };
            expected.insert(engine.submit(request).unwrap(), alone);
        }
        let found = run(&mut engine);
        assert_eq!(found.len(), 64);
        for (id, (tokens, last)) in found {
            assert_eq!(tokens, expected[&id], "request {id}, invariant {batch_invariant}");
            assert!(reason(&last).is_some(), "{last:?}");
        }
        assert_eq!(engine.stats(), EngineStats::default(), "nothing is left");
    }
}

#[test]
fn decode_comes_first_and_prefill_shares_a_budget() {
    let model = Fake::new(50);
    let options = EngineOptions { prefill_tokens: 6, ..EngineOptions::default() };
    let mut engine = Engine::new(&model, options).unwrap();
    for len in [3, 8, 4] {
        engine.submit(Request::new(prompt(1, len), greedy(9))).unwrap();
    }
    for _ in 0..3 {
        engine.step();
    }
    assert_eq!(model.calls(), [vec![3, 3], vec![1, 5, 1], vec![1, 1, 3]]);
    // one that comes later joins at once
    engine.submit(Request::new(prompt(2, 2), greedy(9))).unwrap();
    engine.step();
    assert_eq!(model.calls(), [vec![1, 1, 1, 2]]);
}

#[test]
fn one_request_fails_alone() {
    // NaN after twelve tokens: only the long one gets there
    let model = Fake::new(50).breaking_at(12);
    let mut engine = Engine::new(&model, EngineOptions::default()).unwrap();
    let broken = engine.submit(Request::new(prompt(1, 10), greedy(9))).unwrap();
    let sound = engine.submit(Request::new(prompt(2, 3), greedy(5))).unwrap();
    let found = run(&mut engine);
    assert!(matches!(found[&broken].1, Event::Failed { error: Error::NotFinite { .. }, .. }), "{:?}", found[&broken]);
    assert_eq!(found[&sound].0, model.greedy(&prompt(2, 3), 5));
}

#[test]
fn a_request_is_cancelled_or_runs_out_of_time_alone() {
    let model = Fake::new(50);
    let mut engine = Engine::new(&model, EngineOptions { max_requests: 3, ..EngineOptions::default() }).unwrap();
    let flag = Arc::new(AtomicBool::new(true));
    let submit = |engine: &mut Engine<'_, Fake>, seed, cancel, deadline| {
        engine.submit(Request { cancel, deadline, ..Request::new(prompt(seed, 5), greedy(8)) }).unwrap()
    };
    let flagged = submit(&mut engine, 1, Some(flag), None);
    let late = submit(&mut engine, 2, None, Some(Instant::now()));
    let later = submit(&mut engine, 3, None, Some(Instant::now() + Duration::from_secs(3600)));
    let called = submit(&mut engine, 4, None, None);
    let waiting = submit(&mut engine, 5, None, None);
    engine.step();
    engine.cancel(called);
    let found = run(&mut engine);
    assert!(!found.contains_key(&flagged) && !found.contains_key(&late), "they were over in the first step");
    assert_eq!(reason(&found[&called].1), Some(FinishReason::Cancelled));
    for (id, seed) in [(later, 3), (waiting, 5)] {
        let expected = model.greedy(&prompt(seed, 5), 8);
        assert!(expected.ends_with(&found[&id].0), "request {id}");
        assert_eq!(reason(&found[&id].1), Some(FinishReason::Length));
    }
}

#[test]
fn a_request_that_never_fits_is_refused_and_others_wait_for_room() {
    let model = Fake::new(50);
    // four bytes per token: room for thirty tokens
    let options = EngineOptions { max_cache_bytes: Some(120), ..EngineOptions::default() };
    let mut engine = Engine::new(&model, options).unwrap();
    let refused = engine.submit(Request::new(prompt(1, 20), greedy(11)));
    assert_eq!(refused, Err(Error::CacheTooSmall { needed: 124, limit: 120 }));
    for seed in 0..5 {
        engine.submit(Request::new(prompt(seed, 8), greedy(4))).unwrap();
    }
    engine.step();
    assert_eq!((engine.stats().running, engine.stats().waiting, engine.stats().request_bytes), (2, 3, 96));
    let found = run(&mut engine);
    assert_eq!(found.len(), 5);
}

#[test]
fn a_shared_prefix_is_computed_once() {
    for truncatable in [usize::MAX, 0] {
        let model = Fake::new(50).truncatable_to(truncatable);
        let options = EngineOptions { prefix_cache_bytes: 1 << 20, snapshot_tokens: 32, ..EngineOptions::default() };
        let mut engine = Engine::new(&model, options).unwrap();
        let shared = prompt(1, 96);
        let prompts: Vec<Vec<TokenId>> = (0..8).map(|seed| [&shared[..], &prompt(seed, 4)].concat()).collect();
        let ids: Vec<RequestId> =
            prompts.iter().map(|prompt| engine.submit(Request::new(prompt.clone(), greedy(3))).unwrap()).collect();
        let found = run(&mut engine);
        for (id, prompt) in ids.iter().zip(&prompts) {
            assert_eq!(found[id].0, model.greedy(prompt, 3), "truncatable {truncatable}");
        }
        let run_over: usize = model.calls().concat().iter().sum();
        // the prefix and the first tail, then seven tails, and two decoded tokens each
        assert_eq!(run_over, 100 + 7 * 4 + 8 * 2, "truncatable {truncatable}");
        let cached: Vec<usize> = ids.iter().map(|id| cached(&found[id].1)).collect();
        assert_eq!(cached.iter().filter(|cached| **cached == 96).count(), 7, "{cached:?}");
        // the same once more, and a longer one: nothing but its end is new
        let again = engine.submit(Request::new(prompts[3].clone(), greedy(3))).unwrap();
        let found = run(&mut engine);
        assert_eq!(found[&again].0, model.greedy(&prompts[3], 3));
        let expected = if truncatable == 0 { 96 } else { 99 };
        assert_eq!(cached_of(&found, again), expected, "truncatable {truncatable}");
    }
}

/// A window gives back the beginning of a long prompt while that is prefilled; what is kept on the way serves prompts that
/// leave it anywhere, and their own tokens are prefilled in one piece, across places where caches are kept.
#[test]
fn a_prompt_that_leaves_a_long_one_anywhere_prefills_its_own_tokens_alone() {
    let model = Fake::new(50).truncatable_to(64);
    let options = EngineOptions { prefix_cache_bytes: 1 << 20, snapshot_tokens: 32, ..EngineOptions::default() };
    let mut engine = Engine::new(&model, options).unwrap();
    let long = prompt(1, 300);
    let mut answer = |tokens: &[TokenId]| {
        let id = engine.submit(Request::new(tokens.to_vec(), greedy(2))).unwrap();
        let found = run(&mut engine);
        assert_eq!(found[&id].0, model.greedy(tokens, 2));
        cached_of(&found, id)
    };
    assert_eq!(answer(&long), 0);
    model.calls();
    for len in [3, 90, 127, 201, 299] {
        let tokens = [&long[..len], &prompt(2, 20)].concat();
        assert_eq!(answer(&tokens), len);
        assert_eq!(model.calls(), [[20], [1]], "after {len} tokens");
    }
}

fn cached(event: &Event) -> usize {
    match event {
        Event::Finished { cached, .. } => *cached,
        other => panic!("not finished: {other:?}"),
    }
}

fn cached_of(found: &HashMap<RequestId, (Vec<TokenId>, Event)>, id: RequestId) -> usize {
    cached(&found[&id].1)
}

#[test]
fn the_prefix_cache_keeps_to_its_limit_and_evicted_prefixes_are_computed_anew() {
    let model = Fake::new(50);
    // room for about two sequences of twenty tokens
    let options = EngineOptions { prefix_cache_bytes: 200, ..EngineOptions::default() };
    let mut engine = Engine::new(&model, options).unwrap();
    for round in 0..3 {
        for seed in 0..6 {
            let tokens = prompt(seed, 20);
            let id = engine.submit(Request::new(tokens.clone(), greedy(3))).unwrap();
            let found = run(&mut engine);
            assert_eq!(found[&id].0, model.greedy(&tokens, 3), "round {round}");
            assert!(engine.stats().prefix_bytes <= 200, "{:?}", engine.stats());
        }
    }
    assert!(engine.stats().prefix_entries > 0);
}

#[test]
fn logprobs_of_the_prompt_and_the_likeliest_tokens_are_given() {
    let model = Fake::new(50);
    let tokens = prompt(3, 11);
    for prefill_chunk in [4, 100] {
        let mut engine = Engine::new(&model, EngineOptions::default()).unwrap();
        let options = GenerateOptions { prefill_chunk, ..greedy(2) };
        let request = Request { prompt_logprobs: true, top_logprobs: 3, ..Request::new(tokens.clone(), options) };
        engine.submit(request).unwrap();
        let (mut of_prompt, mut of_answer) = (Vec::new(), Vec::new());
        while !engine.is_idle() {
            for event in engine.step() {
                match event {
                    Event::PromptLogprobs { tokens, .. } => of_prompt.extend(tokens),
                    Event::Token { token, .. } => of_answer.push(token),
                    _ => {}
                }
            }
        }
        let all = [&of_prompt[..], &of_answer[..]].concat();
        assert_eq!(all.iter().map(|one| one.token).take(11).collect::<Vec<_>>(), tokens);
        assert_eq!((of_prompt.len(), of_answer.len()), (11, 2));
        assert_eq!(all[0].logprob, None);
        let history: Vec<TokenId> = all.iter().map(|one| one.token).collect();
        for (place, one) in all.iter().enumerate().skip(1) {
            let logits = model.after(&history[..place]);
            let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
            let logprob = |token: TokenId| f64::from(logits[token as usize]) - sum.ln();
            assert!((one.logprob.unwrap() - logprob(one.token)).abs() < 1e-6);
            let mut order: Vec<TokenId> = (0..50).collect();
            order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
            assert_eq!(one.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), order[..3]);
            assert!(one.top.iter().all(|(token, found)| (found - logprob(*token)).abs() < 1e-6));
        }
    }
    // scoring alone: no token is sampled
    let mut engine = Engine::new(&model, EngineOptions::default()).unwrap();
    engine.submit(Request { prompt_logprobs: true, ..Request::new(tokens, greedy(0)) }).unwrap();
    let events: Vec<Event> = std::iter::from_fn(|| (!engine.is_idle()).then(|| engine.step())).flatten().collect();
    assert!(events.iter().any(|event| matches!(event, Event::PromptLogprobs { tokens, .. } if tokens.len() == 11)));
    assert!(!events.iter().any(|event| matches!(event, Event::Token { .. })));
}

/// Allows only multiples of a number.
struct Multiples(u32, Arc<std::sync::Mutex<Vec<TokenId>>>);

impl TokenMask for Multiples {
    fn allow(&mut self, allowed: &mut [bool]) -> Result<(), String> {
        allowed.iter_mut().step_by(self.0 as usize).for_each(|allowed| *allowed = true);
        Ok(())
    }

    fn accept(&mut self, token: TokenId) -> Result<(), String> {
        self.1.lock().unwrap().push(token);
        Ok(())
    }
}

/// Allows nothing, and complains when it is to say so twice.
struct Nothing(usize);

impl TokenMask for Nothing {
    fn allow(&mut self, _: &mut [bool]) -> Result<(), String> {
        self.0.checked_sub(1).map(|_| ()).ok_or_else(|| "it is too much".to_owned())
    }

    fn accept(&mut self, _: TokenId) -> Result<(), String> {
        Ok(())
    }
}

#[test]
fn a_mask_restricts_what_is_sampled_and_hears_of_it() {
    let model = Fake::new(50);
    let mut engine = Engine::new(&model, EngineOptions::default()).unwrap();
    let heard = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mask: Option<Box<dyn TokenMask>> = Some(Box::new(Multiples(7, Arc::clone(&heard))));
    let masked = engine.submit(Request { mask, ..Request::new(prompt(1, 4), greedy(10)) }).unwrap();
    let nothing = Request { mask: Some(Box::new(Nothing(1))), ..Request::new(prompt(1, 4), greedy(3)) };
    let nothing = engine.submit(nothing).unwrap();
    let failing = Request { mask: Some(Box::new(Nothing(0))), ..Request::new(prompt(1, 4), greedy(3)) };
    let failing = engine.submit(failing).unwrap();
    let found = run(&mut engine);
    assert!(found[&masked].0.iter().all(|token| token % 7 == 0) && found[&masked].0.len() == 10);
    assert_eq!(*heard.lock().unwrap(), found[&masked].0);
    assert_eq!(found[&nothing].1, Event::Failed { id: nothing, error: Error::NothingAllowed });
    let error = Error::Mask { reason: "it is too much".to_owned() };
    assert_eq!(found[&failing].1, Event::Failed { id: failing, error });
}

#[test]
fn stop_rules_give_text_and_end_the_answer() {
    let tokenizer = crate::fake::tokenizer();
    let script = crate::fake::ids(&["a", "b", "c", "d"]);
    let model = Fake::saying(VOCAB, 2, &script);
    let mut engine = Engine::new(&model, EngineOptions::default()).unwrap();
    let rule: Option<Box<dyn StopRule>> =
        Some(Box::new(crate::TextDecoder::new(tokenizer.stream(), &["bc".to_owned()])));
    engine.submit(Request { stop_rule: rule, ..Request::new(vec![2, 4], greedy(9)) }).unwrap();
    let mut generated = crate::Generated::default();
    while !engine.is_idle() {
        engine.step().into_iter().for_each(|event| generated.take(event));
    }
    assert_eq!((generated.text.as_str(), generated.finish_reason), ("a", FinishReason::StopText));
    assert_eq!(generated.tokens, script[..3]);
}

#[test]
fn a_sequence_is_kept_on_request_and_goes_on() {
    let model = Fake::new(50);
    let mut engine = Engine::new(&model, EngineOptions::default()).unwrap();
    let request = || Request { keep_sequence: true, ..Request::new(prompt(1, 6), greedy(4)) };
    let id = engine.submit(request()).unwrap();
    let first = run(&mut engine)[&id].0.clone();
    let sequence = engine.take_sequence(id).unwrap();
    assert!(engine.take_sequence(id).is_none());
    model.calls();
    let id = engine.submit_after(sequence, Request::new(vec![3, 4], greedy(4))).unwrap();
    let whole = [prompt(1, 6), first, vec![3, 4]].concat();
    assert_eq!(run(&mut engine)[&id].0, model.greedy(&whole, 4));
    assert_eq!(model.calls()[0], [3], "the token sampled last and the two new ones");
}

#[test]
fn what_is_wrong_with_a_request_is_said_when_it_is_submitted() {
    let model = Fake::new(50).with_context(9);
    let mut engine = Engine::new(&model, EngineOptions::default()).unwrap();
    assert_eq!(engine.submit(Request::new(vec![], greedy(1))), Err(Error::EmptyPrompt));
    assert_eq!(engine.submit(Request::new(vec![1; 10], greedy(1))), Err(Error::PromptTooLong { tokens: 10, limit: 9 }));
    let biased = GenerateOptions { logit_bias: vec![(50, 1.0)], ..greedy(1) };
    let error = Error::BiasedTokenOutOfRange { token: 50, vocab: 50 };
    assert_eq!(engine.submit(Request::new(vec![1], biased)), Err(error));
    assert!(engine.is_idle() && engine.step().is_empty());
    let options = EngineOptions { max_requests: 0, ..EngineOptions::default() };
    assert!(matches!(Engine::new(&model, options).err(), Some(Error::InvalidOption { option: "max_requests", .. })));
}
