//! Scores against their definition.

use super::*;
use crate::fake::{Fake, History};
use crate::{CacheTensors, Inputs};
use crate::{GenerateOptions, Generation};
use burn::tensor::Tensor;

const TEXT: [TokenId; 11] = [2, 9, 4, 4, 7, 1, 3, 8, 8, 0, 5];

/// log p(token | context), by the definition in f64.
fn log_prob(model: &Fake, context: &[TokenId], token: TokenId) -> f64 {
    let logits: Vec<f64> = model.after(context).into_iter().map(f64::from).collect();
    logits[token as usize] - logits.iter().map(|logit| logit.exp()).sum::<f64>().ln()
}

fn assert_close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() < 1e-6, "{place}: {found} {expected}");
    }
}

#[test]
fn each_token_is_scored_given_all_before_it_whatever_the_chunk() {
    let model = Fake::new(30);
    let expected: Vec<f64> = (1..TEXT.len()).map(|n| log_prob(&model, &TEXT[..n], TEXT[n])).collect();
    for chunk in [1, 2, 3, 9, 10, 11, usize::MAX] {
        let found = score(&model, &TEXT, chunk).unwrap();
        assert_close(&found.logprobs, &expected);
        let calls = model.calls().concat();
        assert!(calls.iter().all(|&len| len <= chunk), "{calls:?}");
        assert_eq!(calls.iter().sum::<usize>(), TEXT.len() - 1, "the last token is not read");
    }
}

#[test]
fn perplexity_is_that_of_the_mean() {
    let score = Score { logprobs: vec![0.5_f64.ln(), 0.125_f64.ln()] };
    assert!((score.total() - 0.0625_f64.ln()).abs() < 1e-12);
    assert!((score.perplexity() - 4.0).abs() < 1e-12);
}

#[test]
fn a_model_without_opinion_is_as_uncertain_as_its_vocabulary_is_large() {
    struct Even(Fake);
    impl CausalModel for Even {
        type Cache = History;
        fn embed(&self, tokens: &[TokenId]) -> Inputs {
            self.0.embed(tokens)
        }
        fn forward(&self, inputs: Inputs, segments: &[Segment], caches: &mut [&mut History]) -> Tensor<2> {
            self.0.forward(inputs, segments, caches)
        }
        fn logits(&self, hidden_states: Tensor<2>) -> Tensor<2> {
            self.0.tensor(vec![vec![1.5; 30]; hidden_states.dims()[0]])
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
            None
        }
        fn vocab(&self) -> usize {
            30
        }
    }
    let even = Even(Fake::new(30));
    assert!((score(&even, &TEXT, 4).unwrap().perplexity() - 30.0).abs() < 1e-4);
}

#[test]
fn the_score_of_an_answer_is_the_log_probability_of_its_answer() {
    let model = Fake::new(30);
    let options = GenerateOptions { max_tokens: 6, seed: Some(2), ..GenerateOptions::default() };
    let answer: Vec<_> = Generation::new(&model, &TEXT, &options, &[]).unwrap().map(Result::unwrap).collect();
    let mut whole = TEXT.to_vec();
    whole.extend(answer.iter().map(|sampled| sampled.token));
    let logprobs: Vec<f64> = answer.iter().map(|sampled| sampled.logprob).collect();
    assert_close(&score(&model, &whole, 5).unwrap().logprobs[TEXT.len() - 1..], &logprobs);
}

#[test]
fn windows_score_each_token_once_given_the_first_token_and_the_overlap() {
    let model = Fake::new(30).with_context(6);
    for (window, overlap) in [(6, 2), (6, 0), (6, 4), (5, 1), (2, 0), (3, 1)] {
        let mut expected = Vec::new();
        let mut window_start = 0;
        let mut new = window;
        for n in 1..TEXT.len() {
            if n == new {
                // As the definition says: the first token, then the overlap before the first new one.
                window_start = n - overlap;
                new = n + window - 1 - overlap;
            }
            let context =
                if window_start == 0 { TEXT[..n].to_vec() } else { [&TEXT[..1], &TEXT[window_start..n]].concat() };
            expected.push(log_prob(&model, &context, TEXT[n]));
        }
        let found = score_windows(&model, &TEXT, window, overlap, 3).unwrap();
        assert_close(&found.logprobs, &expected);
    }
}

#[test]
fn a_window_that_holds_the_text_is_the_plain_score() {
    let model = Fake::new(30);
    let plain = score(&model, &TEXT, 4).unwrap();
    assert_eq!(score_windows(&model, &TEXT, TEXT.len(), 5, 4).unwrap(), plain);
    assert_eq!(score_windows(&model, &TEXT, 500, 0, 4).unwrap(), plain);
}

#[test]
fn what_cannot_be_scored_is_refused_before_any_work() {
    let model = Fake::new(30).with_context(6);
    assert_eq!(score(&model, &[], 4), Err(Error::NothingToScore { tokens: 0 }));
    assert_eq!(score(&model, &[2], 4), Err(Error::NothingToScore { tokens: 1 }));
    assert_eq!(score(&model, &TEXT, 4), Err(Error::PromptTooLong { tokens: 11, limit: 6 }));
    assert_eq!(score(&model, &[2, 30], 4), Err(Error::TokenOutOfRange { token: 30, place: 1, vocab: 30 }));
    assert!(matches!(score(&model, &[2, 3], 0), Err(Error::InvalidOption { option: "chunk", .. })));
    for (window, overlap, option) in [(7, 0, "window"), (1, 0, "window"), (6, 5, "overlap")] {
        let refused = score_windows(&model, &TEXT, window, overlap, 4);
        assert!(matches!(&refused, Err(Error::InvalidOption { option: named, .. }) if *named == option), "{refused:?}");
    }
    assert!(model.calls().is_empty());
}

#[test]
fn a_model_that_breaks_is_an_error() {
    let model = Fake::new(30).breaking_at(4);
    assert!(matches!(score(&model, &TEXT, 3), Err(Error::NotFinite { token: 0, .. })));
}

#[test]
fn the_default_score_of_a_model_reads_each_segment_with_a_memory_of_its_own() {
    let model = Fake::new(30);
    let tokens = [2, 5, 6, 2, 7];
    let logits = model.uncached_logits(&tokens, &[Segment::causal(0, 3), Segment::causal(0, 2)]);
    let rows = to_host(logits, 5, 30).unwrap();
    let expected: Vec<f32> =
        [&tokens[..1], &tokens[..2], &tokens[..3], &tokens[3..4], &tokens[3..]].map(|h| model.after(h)).concat();
    assert_eq!(rows, expected);
}
