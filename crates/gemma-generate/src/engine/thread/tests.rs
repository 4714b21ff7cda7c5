//! An engine on a thread: events arrive, requests are cancelled, and panics end requests and nothing else.

use super::*;
use crate::fake::{Fake, History};
use crate::{CacheTensors, FinishReason, GenerateOptions, Inputs};
use burn::tensor::Tensor;
use gemma_nn::Segment;
use gemma_tokenizer::TokenId;

fn request(prompt: &[TokenId], max_tokens: usize) -> Request<'static> {
    Request::new(prompt, GenerateOptions::greedy(max_tokens))
}

fn tokens(events: impl Iterator<Item = Event>) -> Vec<TokenId> {
    events
        .filter_map(|event| match event {
            Event::Token { token, .. } => Some(token.token),
            _ => None,
        })
        .collect()
}

#[test]
fn many_threads_submit_and_each_gets_its_own_answer() {
    let model = Arc::new(Fake::new(50));
    let engine = EngineThread::spawn(Arc::clone(&model), EngineOptions::default()).unwrap();
    std::thread::scope(|scope| {
        for seed in 0..16 {
            let (handle, model) = (engine.handle(), &model);
            scope.spawn(move || {
                let prompt = [2, seed, seed + 1, 7];
                assert_eq!(tokens(handle.submit(request(&prompt, 9)).unwrap()), model.greedy(&prompt, 9));
            });
        }
    });
    assert_eq!(engine.handle().vocab(), 50);
}

#[test]
fn a_wrong_request_is_refused_where_it_is_submitted() {
    let engine = EngineThread::spawn(Arc::new(Fake::new(50)), EngineOptions::default()).unwrap();
    assert_eq!(engine.handle().submit(request(&[], 1)).err(), Some(Error::EmptyPrompt));
    let error = Error::TokenOutOfRange { token: 99, place: 0, vocab: 50 };
    assert_eq!(engine.handle().submit(request(&[99], 1)).err(), Some(error));
}

#[test]
fn who_stops_listening_cancels() {
    let engine = EngineThread::spawn(Arc::new(Fake::new(50)), EngineOptions::default()).unwrap();
    let handle = engine.handle();
    let mut endless = handle.submit(request(&[2], usize::MAX)).unwrap();
    assert!(endless.next().is_some());
    endless.cancel();
    let last = endless.by_ref().last();
    assert!(matches!(last, Some(Event::Finished { reason: FinishReason::Cancelled, .. })), "{last:?}");
    assert!(endless.is_over());
    drop(handle.submit(request(&[2], usize::MAX)).unwrap());
    let began = std::time::Instant::now();
    while handle.stats().running + handle.stats().waiting > 0 {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", handle.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_dropped_engine_ends_what_is_in_progress() {
    let engine = EngineThread::spawn(Arc::new(Fake::new(50)), EngineOptions::default()).unwrap();
    let handle = engine.handle();
    let mut endless = handle.submit(request(&[2], usize::MAX)).unwrap();
    assert!(endless.next().is_some());
    drop(engine);
    assert!(endless.by_ref().count() < usize::MAX);
    assert!(endless.is_over());
    assert_eq!(handle.submit(request(&[2], 1)).err(), Some(Error::EngineStopped));
}

/// Panics when it meets a token.
struct Fragile(Fake);

const POISON: TokenId = 13;

impl CausalModel for Fragile {
    type Cache = History;

    fn embed(&self, tokens: &[TokenId]) -> Inputs {
        assert!(!tokens.contains(&POISON), "a model that fails");
        self.0.embed(tokens)
    }

    fn forward(&self, inputs: Inputs, segments: &[Segment], caches: &mut [&mut History]) -> Tensor<2> {
        self.0.forward(inputs, segments, caches)
    }

    fn logits(&self, hidden_states: Tensor<2>) -> Tensor<2> {
        self.0.logits(hidden_states)
    }

    fn new_cache(&self) -> History {
        self.0.new_cache()
    }

    fn no_cache(&self) -> History {
        self.0.no_cache()
    }

    fn restore_cache(&self, len: usize, tensors: &CacheTensors) -> Option<History> {
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

#[test]
fn a_panic_of_the_model_fails_its_requests_and_the_engine_goes_on() {
    let engine = EngineThread::spawn(Arc::new(Fragile(Fake::new(50))), EngineOptions::default()).unwrap();
    let handle = engine.handle();
    let last = handle.submit(request(&[2, POISON], 4)).unwrap().last();
    assert!(matches!(last, Some(Event::Failed { error: Error::ModelPanicked, .. })), "{last:?}");
    let prompt = [2, 4, 5];
    assert_eq!(tokens(handle.submit(request(&prompt, 1)).unwrap()), Fake::new(50).greedy(&prompt, 1));
}
