//! A batch must give what each request gives alone.

use super::*;
use crate::fake::{EOS, Fake, VOCAB, ids, tokenizer};
use crate::{FinishReason, GenerateOptions, Generation, Prompt, TextStream};
use gemma_tokenizer::TokenId;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

fn request(prompt: &[TokenId], options: GenerateOptions) -> Request<'static> {
    Request { stop_tokens: vec![EOS], ..Request::new(prompt, options) }
}

/// The same request again.
fn again(request: &Request<'static>) -> Request<'static> {
    let cancel = request.cancel.clone();
    Request {
        prompt: request.prompt.clone(),
        options: request.options.clone(),
        cancel,
        stop_tokens: request.stop_tokens.clone(),
        ..Request::default()
    }
}

fn tokens<'a>(request: &'a Request<'_>) -> &'a [TokenId] {
    match &request.prompt {
        Prompt::Tokens(tokens) => tokens,
        Prompt::Inputs { inputs, .. } => &inputs.token_ids,
    }
}

fn run(model: &Fake, tokenizer: &Tokenizer, requests: &[Request<'static>]) -> Result<Vec<Generated>, Error> {
    generate_batch(model, tokenizer, requests.iter().map(again).collect())
}

fn sampled(max_tokens: usize, seed: u64) -> GenerateOptions {
    GenerateOptions { max_tokens, seed: Some(seed), ..GenerateOptions::default() }
}

fn alone(model: &Fake, tokenizer: &Tokenizer, request: &Request<'static>) -> Generated {
    let generation = Generation::new(model, tokens(request), &request.options, &request.stop_tokens).unwrap();
    TextStream::new(generation, tokenizer.stream()).finish().unwrap()
}

#[test]
fn a_batch_gives_what_each_request_gives_alone() {
    let (model, tokenizer) = (Fake::new(VOCAB).with_context(40), tokenizer());
    let long: Vec<TokenId> = (0..33).map(|n| 4 + n % 9).collect();
    let requests = [
        request(&[2], sampled(12, 1)),
        request(&long, sampled(20, 2)),
        request(&[2, 7, 5], GenerateOptions { seed: Some(9), ..GenerateOptions::greedy(9) }),
        request(&[2, 7, 5], GenerateOptions { stop: vec!["a".into(), "b".into()], ..sampled(30, 3) }),
        request(&long[..20], GenerateOptions { prefill_chunk: 3, ..sampled(5, 4) }),
        request(&[2, 4], GenerateOptions { ignore_eos: true, repetition_penalty: 1.3, ..sampled(25, 5) }),
        request(&[2, 4], sampled(0, 6)),
    ];
    let answers = run(&model, &tokenizer, &requests).unwrap();
    assert_eq!(answers.len(), requests.len());
    let mut reasons = Vec::new();
    for (index, (answer, request)) in answers.iter().zip(&requests).enumerate() {
        let alone = alone(&model, &tokenizer, request);
        assert_eq!(answer.tokens, alone.tokens, "request {index}");
        assert_eq!(answer.logprobs, alone.logprobs, "request {index}");
        assert_eq!(answer.text, alone.text, "request {index}");
        assert_eq!(answer.finish_reason, alone.finish_reason, "request {index}");
        assert_eq!(answer.seed, alone.seed, "request {index}");
        assert_eq!(answer.timings.prompt_tokens, tokens(request).len());
        reasons.push(answer.finish_reason);
    }
    // Otherwise this compares less than it says.
    for reason in [FinishReason::Length, FinishReason::StopText, FinishReason::ContextFull] {
        assert!(reasons.contains(&reason), "{reasons:?}");
    }
}

#[test]
fn all_prompts_are_read_in_one_call_and_who_is_done_leaves() {
    let (model, tokenizer) = (Fake::new(VOCAB), tokenizer());
    let forever = |max_tokens| GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(max_tokens) };
    let requests = [request(&[2, 4, 5], forever(2)), request(&[2], forever(4)), request(&[2, 4, 5, 6, 7], forever(1))];
    run(&model, &tokenizer, &requests).unwrap();
    assert_eq!(model.calls(), [vec![3, 1, 5], vec![1, 1], vec![1], vec![1]]);
}

#[test]
fn prompts_share_a_budget_and_do_not_hold_up_the_others() {
    let (model, tokenizer) = (Fake::new(VOCAB), tokenizer());
    let options = |prefill_chunk| GenerateOptions { prefill_chunk, ignore_eos: true, ..GenerateOptions::greedy(3) };
    let requests = [request(&[4; 3], options(4)), request(&[5; 6], options(4)), request(&[6; 4], options(2))];
    let answers = run(&model, &tokenizer, &requests).unwrap();
    for (answer, request) in answers.iter().zip(&requests) {
        assert_eq!(answer.tokens, model.greedy(tokens(request), 3));
    }
    // Four prompt tokens per call at most; the first goes on while the others are still being read.
    let calls = model.calls();
    assert_eq!(calls[..4], [vec![3, 1], vec![1, 4], vec![1, 1, 2], vec![1, 2]], "{calls:?}");
}

#[test]
fn each_request_is_stopped_by_its_own_means() {
    let tokenizer = tokenizer();
    let script = [&ids(&["a", "b", "c"])[..], &[EOS]].concat();
    let model = Fake::saying(VOCAB, 2, &script);
    let raised = Arc::new(AtomicBool::new(true));
    let greedy = GenerateOptions::greedy;
    let requests = [
        request(&[2, 4], greedy(9)),
        request(&[2, 4], greedy(2)),
        request(&[2, 4], GenerateOptions { stop: vec!["b".into()], ..greedy(9) }),
        Request { cancel: Some(raised), ..request(&[2, 4], greedy(9)) },
        Request { stop_tokens: ids(&["c"]), ..request(&[2, 4], greedy(9)) },
    ];
    let answers = run(&model, &tokenizer, &requests).unwrap();
    let found: Vec<(&str, FinishReason)> =
        answers.iter().map(|answer| (answer.text.as_str(), answer.finish_reason)).collect();
    let expected = [
        ("abc", FinishReason::Stop),
        ("ab", FinishReason::Length),
        ("a", FinishReason::StopText),
        ("", FinishReason::Cancelled),
        ("ab", FinishReason::Stop),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_wrong_request_is_named_before_any_work() {
    let (model, tokenizer) = (Fake::new(VOCAB), tokenizer());
    let requests = [request(&[2], sampled(1, 1)), request(&[], sampled(1, 1))];
    let error = run(&model, &tokenizer, &requests).unwrap_err();
    assert_eq!(error, Error::Request { index: 1, source: Box::new(Error::EmptyPrompt) });
    assert!(error.to_string().starts_with("request 1 of the batch: the prompt is empty"), "{error}");
    assert!(model.calls().is_empty());
}

#[test]
fn an_empty_batch_has_no_answers() {
    let (model, tokenizer) = (Fake::new(VOCAB), tokenizer());
    assert!(run(&model, &tokenizer, &[]).unwrap().is_empty());
    assert!(model.calls().is_empty());
}

#[test]
fn a_model_that_breaks_ends_the_batch() {
    let (model, tokenizer) = (Fake::new(VOCAB).breaking_at(4), tokenizer());
    let requests = [request(&[2], sampled(9, 1)), request(&[2, 4], sampled(9, 1))];
    assert!(matches!(run(&model, &tokenizer, &requests), Err(Error::NotFinite { .. })));
}
