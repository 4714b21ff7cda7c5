//! The whole loop, on a model without weights.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::fake::{Fake, History};
use crate::{Cache, CacheTensors, Inputs, Prompt, PromptLookup};
use burn::tensor::Tensor;
use serde::Deserialize;

const PROMPT: [TokenId; 7] = [2, 9, 4, 4, 7, 1, 3];

fn greedy(max_tokens: usize) -> GenerateOptions {
    GenerateOptions::greedy(max_tokens)
}

/// All tokens of a generation, and why it ended.
fn run(generation: &mut Generation<'_, Fake>) -> (Vec<TokenId>, Option<FinishReason>) {
    let tokens = generation.by_ref().map(|sampled| sampled.unwrap().token).collect();
    (tokens, generation.finish_reason())
}

/// The error that `Generation::new` gives before the model was asked anything.
fn refusal(model: &Fake, prompt: &[TokenId], options: &GenerateOptions) -> Error {
    let error = Generation::new(model, prompt, options, &[]).err().expect("must be refused");
    assert!(model.calls().is_empty(), "the model was called before: {error}");
    error
}

#[test]
fn the_first_step_reads_the_prompt_and_the_others_one_token() {
    let model = Fake::new(50);
    let mut generation = Generation::new(&model, &PROMPT, &greedy(4), &[]).unwrap();
    assert_eq!(run(&mut generation), (model.greedy(&PROMPT, 4), Some(FinishReason::Length)));
    assert_eq!(model.calls(), [[7], [1], [1], [1]]);
    assert!(generation.next().is_none());
    assert!(model.calls().is_empty(), "a generation that is over asks nothing more");
}

#[test]
fn a_prompt_is_read_in_chunks_with_the_same_result() {
    let model = Fake::new(50);
    for (prefill_chunk, calls) in
        [(1, vec![1; 9]), (3, vec![3, 3, 1, 1, 1]), (6, vec![6, 1, 1, 1]), (7, vec![7, 1, 1]), (99, vec![7, 1, 1])]
    {
        let options = GenerateOptions { prefill_chunk, ..greedy(3) };
        let mut generation = Generation::new(&model, &PROMPT, &options, &[]).unwrap();
        assert_eq!(run(&mut generation).0, model.greedy(&PROMPT, 3), "chunks of {prefill_chunk}");
        let lengths: Vec<usize> = model.calls().concat();
        assert_eq!(lengths, calls);
    }
}

#[test]
fn each_token_carries_its_logprob() {
    let model = Fake::new(50);
    let mut generation = Generation::new(&model, &PROMPT, &greedy(3), &[]).unwrap();
    let sampled: Vec<SampledToken> = generation.by_ref().map(Result::unwrap).collect();
    let mut history = PROMPT.to_vec();
    for sampled in &sampled {
        let logits: Vec<f64> = model.after(&history).into_iter().map(f64::from).collect();
        let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
        let expected = logits[sampled.token as usize] - sum.ln();
        assert!((sampled.logprob - expected).abs() < 1e-6, "{} {expected}", sampled.logprob);
        history.push(sampled.token);
    }
    assert_eq!(generation.sampled(), sampled);
}

#[test]
fn a_stop_token_ends_the_answer_and_is_not_part_of_it() {
    let model = Fake::saying(50, PROMPT.len(), &[20, 21, 30, 22]);
    let mut generation = Generation::new(&model, &PROMPT, &greedy(9), &[31, 30]).unwrap();
    assert_eq!(run(&mut generation), (vec![20, 21], Some(FinishReason::Stop)));
    assert_eq!(model.calls(), [[7], [1], [1]]);
    assert_eq!(generation.sequence().pending(), [30], "it belongs to the sequence all the same");
    assert_eq!(generation.timings().generated_tokens, 2);
}

#[test]
fn ignore_eos_goes_on() {
    let model = Fake::saying(50, PROMPT.len(), &[20, 30, 22]);
    let options = GenerateOptions { ignore_eos: true, ..greedy(3) };
    let mut generation = Generation::new(&model, &PROMPT, &options, &[30]).unwrap();
    assert_eq!(run(&mut generation), (vec![20, 30, 22], Some(FinishReason::Length)));
}

#[test]
fn no_tokens_wanted_reads_nothing() {
    let model = Fake::new(50);
    let mut generation = Generation::new(&model, &PROMPT, &greedy(0), &[]).unwrap();
    assert_eq!(run(&mut generation), (vec![], Some(FinishReason::Length)));
    assert!(model.calls().is_empty());
}

#[test]
fn a_full_context_ends_the_answer_after_what_could_still_be_predicted() {
    // Ten tokens fit: seven of the prompt and three of the answer, which predict a fourth.
    let model = Fake::new(50).with_context(10);
    let mut generation = Generation::new(&model, &PROMPT, &greedy(99), &[]).unwrap();
    assert_eq!(run(&mut generation), (model.greedy(&PROMPT, 4), Some(FinishReason::ContextFull)));
    // A prompt that fills the context exactly predicts one token.
    let model = Fake::new(50).with_context(7);
    let mut generation = Generation::new(&model, &PROMPT, &greedy(99), &[]).unwrap();
    assert_eq!(run(&mut generation), (model.greedy(&PROMPT, 1), Some(FinishReason::ContextFull)));
}

/// An answer that comes to the edge of the context goes on after a shorter prompt, with its sampler and cancel flag.
#[test]
fn a_generation_moves_to_other_tokens() {
    let model = Fake::new(50).with_context(10);
    let flag = Arc::new(AtomicBool::new(false));
    let options = GenerateOptions { temperature: 1.0, seed: Some(5), max_tokens: 99, ..GenerateOptions::default() };
    let begin = || Generation::new(&model, &PROMPT, &options, &[]).unwrap().with_cancel(flag.clone());
    let mut first = begin();
    let (said, reason) = run(&mut first);
    assert_eq!((said.len(), reason), (4, Some(FinishReason::ContextFull)));
    let shorter = [&PROMPT[..2], &said].concat();
    let mut second = first.moved_to(&shorter, 3).unwrap();
    assert_eq!(second.timings().prompt_tokens, shorter.len());
    // a sampler that began anew would draw the numbers of the first answer again
    let mut anew =
        Generation::new(&model, &shorter, &GenerateOptions { max_tokens: 3, ..options.clone() }, &[]).unwrap();
    assert_ne!(run(&mut second).0, run(&mut anew).0);
    assert!(first.moved_to(&[0; 11], 3).is_err(), "longer than the context");
    let mut first = begin();
    run(&mut first);
    flag.store(true, Ordering::Relaxed);
    let mut second = first.moved_to(&shorter, 3).unwrap();
    assert_eq!(run(&mut second), (vec![], Some(FinishReason::Cancelled)));
}

#[test]
fn bad_requests_are_refused_before_any_work() {
    let model = Fake::new(50).with_context(6);
    assert_eq!(refusal(&model, &[], &greedy(1)), Error::EmptyPrompt);
    assert_eq!(refusal(&model, &PROMPT, &greedy(1)), Error::PromptTooLong { tokens: 7, limit: 6 });
    let unknown = Error::TokenOutOfRange { token: 50, place: 1, vocab: 50 };
    assert_eq!(refusal(&model, &[49, 50], &greedy(1)), unknown);
    let options = GenerateOptions { temperature: f32::NAN, ..greedy(1) };
    assert!(matches!(refusal(&model, &[1], &options), Error::InvalidOption { option: "temperature", .. }));
}

#[test]
fn error_messages_are_one_line() {
    let model = Fake::new(50).with_context(6);
    for error in [
        refusal(&model, &[], &greedy(1)),
        refusal(&model, &PROMPT, &greedy(1)),
        refusal(&model, &[50], &greedy(1)),
        Error::Request { index: 3, source: Box::new(Error::EmptyPrompt) },
        Error::NotFinite { token: 1, logit: f32::NAN },
        Error::NoToken { vocab: 2 },
        Error::NothingToScore { tokens: 1 },
        Error::LogitsShape { found: [1, 2], expected: [1, 3] },
    ] {
        let message = error.to_string();
        assert!(!message.contains('\n') && !message.contains("  ") && message.len() > 20, "{message:?}");
    }
}

#[test]
fn a_model_that_breaks_ends_the_generation_with_an_error() {
    let model = Fake::new(50).breaking_at(9);
    let mut generation = Generation::new(&model, &PROMPT, &greedy(9), &[]).unwrap();
    assert!(generation.next().unwrap().is_ok());
    assert!(generation.next().unwrap().is_ok());
    let broken = generation.next().unwrap();
    assert!(matches!(broken, Err(Error::NotFinite { token: 0, .. })), "{broken:?}");
    assert!(generation.next().is_none());
    assert_eq!(generation.finish_reason(), None);
}

#[test]
fn cancelling_works_between_tokens() {
    let model = Fake::new(50);
    let flag = Arc::new(AtomicBool::new(false));
    let mut generation = Generation::new(&model, &PROMPT, &greedy(99), &[]).unwrap().with_cancel(Arc::clone(&flag));
    generation.next().unwrap().unwrap();
    generation.next().unwrap().unwrap();
    flag.store(true, Ordering::Relaxed);
    assert!(generation.next().is_none());
    assert_eq!(generation.finish_reason(), Some(FinishReason::Cancelled));
    assert_eq!(model.calls(), [[7], [1]]);
}

#[test]
fn cancelling_works_between_the_chunks_of_a_prompt_and_the_rest_is_read_later() {
    let model = Fake::new(50);
    let flag = Arc::new(AtomicBool::new(false));
    let options = GenerateOptions { prefill_chunk: 2, ..greedy(2) };
    let raise = Arc::clone(&flag);
    let mut generation = Generation::new(&model, &PROMPT, &options, &[])
        .unwrap()
        .with_cancel(flag)
        .with_progress(move |read, _| raise.store(read >= 4, Ordering::Relaxed));
    assert_eq!(run(&mut generation), (vec![], Some(FinishReason::Cancelled)));
    assert_eq!(model.calls(), [[2], [2]]);

    let sequence = generation.into_sequence();
    assert_eq!(sequence.pending(), &PROMPT[4..]);
    let mut later = Generation::follow(&model, sequence, &[5], &options, &[]).unwrap();
    let whole = [&PROMPT[..], &[5]].concat();
    assert_eq!(run(&mut later).0, model.greedy(&whole, 2));
    assert_eq!(model.calls(), [[2], [2], [1]]);
}

#[test]
fn progress_is_told_after_each_chunk_of_the_prompt_only() {
    let model = Fake::new(50);
    let told = Mutex::new(Vec::new());
    let options = GenerateOptions { prefill_chunk: 3, ..greedy(3) };
    let mut generation = Generation::new(&model, &PROMPT, &options, &[])
        .unwrap()
        .with_progress(|read, total| told.lock().unwrap().push((read, total)));
    run(&mut generation);
    drop(generation);
    assert_eq!(told.into_inner().unwrap(), [(3, 7), (6, 7), (7, 7)]);
}

#[test]
fn a_conversation_goes_on_with_only_the_new_tokens() {
    let model = Fake::saying(50, PROMPT.len(), &[20, 21, 30]);
    let mut first = Generation::new(&model, &PROMPT, &greedy(9), &[30]).unwrap();
    run(&mut first);
    model.calls();

    let sequence = first.into_sequence();
    assert_eq!((sequence.position(), sequence.pending()), (9, &[30][..]));
    let mut second = Generation::follow(&model, sequence, &[11, 12], &greedy(3), &[30]).unwrap();
    let whole = [&PROMPT[..], &[20, 21, 30, 11, 12]].concat();
    assert_eq!(run(&mut second).0, model.greedy(&whole, 3));
    assert_eq!(model.calls(), [[3], [1], [1]], "the stop token and the two new ones, then one by one");
    assert_eq!(second.sequence().tokens()[..whole.len()], whole);
    let cache = second.into_sequence().into_cache();
    assert_eq!(cache.tokens[..whole.len()], whole);
    assert_eq!(cache.tokens.len(), whole.len() + 2, "the last token sampled was not run");
}

#[test]
fn a_sequence_that_was_cut_off_can_simply_go_on() {
    let model = Fake::new(50);
    let mut first = Generation::new(&model, &PROMPT, &greedy(2), &[]).unwrap();
    let begun = run(&mut first).0;
    let mut second = Generation::follow(&model, first.into_sequence(), &[], &greedy(3), &[]).unwrap();
    assert_eq!([begun, run(&mut second).0].concat(), model.greedy(&PROMPT, 5));
}

#[test]
fn a_clone_of_a_sequence_is_a_fork() {
    let model = Fake::new(50);
    let mut trunk = Generation::new(&model, &PROMPT, &greedy(1), &[]).unwrap();
    let first = run(&mut trunk).0[0];
    let sequence = trunk.into_sequence();
    for branch in [40, 41] {
        let mut generation = Generation::follow(&model, sequence.clone(), &[branch], &greedy(4), &[]).unwrap();
        let whole = [&PROMPT[..], &[first, branch]].concat();
        assert_eq!(run(&mut generation).0, model.greedy(&whole, 4));
    }
}

#[test]
fn following_needs_something_to_read_and_room_for_it() {
    let model = Fake::new(50).with_context(8);
    let empty = Generation::follow(&model, Sequence::new(History::default()), &[], &greedy(1), &[]);
    assert_eq!(empty.err(), Some(Error::EmptyPrompt));
    let mut full = Generation::new(&model, &PROMPT, &greedy(1), &[]).unwrap();
    run(&mut full);
    let error = Generation::follow(&model, full.into_sequence(), &[1], &greedy(1), &[]).err();
    assert_eq!(error, Some(Error::PromptTooLong { tokens: 9, limit: 8 }));
}

#[test]
fn rows_that_are_embedded_already_are_a_prompt_too() {
    let model = Fake::new(50);
    let request = |prefix_len: usize| Request {
        prompt: Prompt::Inputs { inputs: model.embed(&PROMPT), blocks: vec![0..prefix_len] },
        options: GenerateOptions { prefill_chunk: 3, ..greedy(3) },
        ..Request::default()
    };
    for (prefix_len, calls) in [(0, vec![3, 3, 1, 1, 1]), (7, vec![7, 1, 1]), (5, vec![5, 2, 1, 1])] {
        let sequence = Sequence::new(model.new_cache());
        let mut generation = Generation::of(&model, sequence, request(prefix_len)).unwrap();
        assert_eq!(run(&mut generation), (model.greedy(&PROMPT, 3), Some(FinishReason::Length)));
        assert_eq!(model.calls().concat(), calls, "a prefix of {prefix_len} is prefilled in one piece");
        assert_eq!(generation.timings().prompt_tokens, PROMPT.len());
        assert_eq!(generation.sequence().position(), PROMPT.len() + 2);
    }
}

#[test]
fn embedded_rows_may_follow_a_sequence_that_they_begin_with() {
    let model = Fake::new(50);
    let mut first = Generation::new(&model, &PROMPT, &greedy(2), &[]).unwrap();
    run(&mut first);
    let sequence = first.into_sequence();
    let whole = [sequence.tokens(), &[4, 5, 6]].concat();
    model.calls();
    let prompt = Prompt::Inputs { inputs: model.embed(&whole), blocks: vec![9..11] };
    let mut second =
        Generation::of(&model, sequence, Request { prompt, options: greedy(3), ..Request::default() }).unwrap();
    assert_eq!(run(&mut second), (model.greedy(&whole, 3), Some(FinishReason::Length)));
    // the last token of the answer, and what is new
    assert_eq!(model.calls().concat(), [4, 1, 1]);
}

#[test]
fn rows_that_do_not_fit_together_are_refused() {
    let model = Fake::new(50).with_context(8);
    let refused = |sequence, inputs, last| {
        let request = Request { prompt: Prompt::Inputs { inputs, blocks: vec![0..last] }, ..Request::default() };
        Generation::of(&model, sequence, request).err()
    };
    let empty = || Sequence::new(model.new_cache());
    let rows = |tokens: &[TokenId]| model.embed(tokens);
    let found = refused(empty(), Inputs { token_ids: vec![1, 2], ..rows(&PROMPT) }, 0);
    assert_eq!(found, Some(Error::InputRows { rows: 7, tokens: 2, last: 0 }));
    let found = refused(empty(), rows(&PROMPT), 8);
    assert_eq!(found, Some(Error::InputRows { rows: 7, tokens: 7, last: 8 }));
    let mut begun = empty();
    begun.push(&[1]);
    assert!(matches!(refused(begun, rows(&PROMPT), 0), Some(Error::InputRows { .. })));
    assert_eq!(refused(empty(), rows(&[]), 0), Some(Error::EmptyPrompt));
    assert_eq!(refused(empty(), rows(&[1; 9]), 0), Some(Error::PromptTooLong { tokens: 9, limit: 8 }));
}

/// A text that repeats itself, with surprises.
const SCRIPT: [TokenId; 30] =
    [5, 6, 7, 8, 9, 10, 11, 12, 5, 6, 7, 8, 9, 10, 30, 11, 12, 5, 6, 7, 8, 9, 10, 30, 11, 12, 5, 6, 40, 41];

#[test]
fn drafts_change_the_number_of_calls_and_nothing_else() {
    let plain = Fake::saying(50, PROMPT.len(), &SCRIPT);
    let expected = run(&mut Generation::new(&plain, &PROMPT, &greedy(40), &[41]).unwrap());
    assert_eq!(expected.1, Some(FinishReason::Stop));
    let calls = plain.calls().len();

    let model = Fake::saying(50, PROMPT.len(), &SCRIPT);
    let generation = Generation::new(&model, &PROMPT, &greedy(40), &[41]).unwrap();
    let mut generation =
        generation.with_speculation(Speculation::new(PromptLookup::new(vec![vec![5, 6, 7, 8, 1, 1, 1]])).always());
    assert_eq!(run(&mut generation), expected);
    let saved = calls - model.calls().len();
    let timings = generation.timings();
    assert!(saved >= 8, "{saved} calls saved");
    assert_eq!(timings.accepted_tokens, saved);
    assert!(timings.draft_tokens > saved, "the other text drafts wrong tokens");
    assert_eq!(timings.decode_steps, SCRIPT.len() - 1);
    let sequence = generation.into_sequence();
    assert_eq!(sequence.cache().tokens, [&PROMPT, &SCRIPT[..29]].concat(), "rejected drafts are rolled back");
    assert_eq!(sequence.pending(), [41]);
}

/// The model knows no script here: what it says depends on every token read, so one wrong token left in its cache would
/// change all that follows.
#[test]
fn two_hundred_prompts_give_the_same_tokens_with_drafts() {
    let model = Fake::new(6);
    for seed in 0..200_u32 {
        let prompt: Vec<TokenId> = (0..40).map(|place| (seed * 31 + place * place) % 6).collect();
        let options =
            GenerateOptions { max_tokens: 30, seed: Some(seed.into()), temperature: (seed % 2) as f32, ..greedy(0) };
        let stop = [5];
        let expected = run(&mut Generation::new(&model, &prompt, &options, &stop).unwrap());
        let generation = Generation::new(&model, &prompt, &options, &stop).unwrap();
        let mut generation = generation.with_speculation(Speculation::new(PromptLookup::default()).always());
        assert_eq!(run(&mut generation), expected, "prompt {seed}");
    }
}

#[test]
fn whoever_stops_early_gets_a_cache_without_drafts() {
    let model = Fake::saying(50, PROMPT.len(), &SCRIPT);
    for taken in 1..25 {
        let generation = Generation::new(&model, &PROMPT, &greedy(40), &[]).unwrap();
        let mut generation = generation.with_speculation(Speculation::new(PromptLookup::default()).always());
        for _ in 0..taken {
            generation.next().unwrap().unwrap();
        }
        let sequence = generation.into_sequence();
        assert_eq!(sequence.cache().tokens.len(), sequence.position());
        assert_eq!(sequence.tokens(), [&PROMPT, &SCRIPT[..taken]].concat());
    }
}

#[test]
fn a_generation_that_moves_to_other_tokens_goes_on_drafting() {
    let model = Fake::saying(50, PROMPT.len(), &SCRIPT);
    let speculation = Speculation::new(PromptLookup::default()).always();
    let mut first = Generation::new(&model, &PROMPT, &greedy(10), &[]).unwrap().with_speculation(speculation);
    assert_eq!(run(&mut first).0, SCRIPT[..10]);
    let tokens = [&PROMPT, &SCRIPT[..10]].concat();
    let mut second = first.moved_to(&tokens, 15).unwrap();
    assert_eq!(run(&mut second).0, SCRIPT[10..25]);
    assert!(second.timings().accepted_tokens > 0);
}

#[test]
fn nothing_is_drafted_that_could_not_be_taken_back_or_does_not_fit() {
    let longest = |model: &Fake| model.calls().into_iter().skip(1).flatten().max();
    let run_with = |model: &Fake, max_tokens| {
        let generation = Generation::new(model, &PROMPT, &greedy(max_tokens), &[]).unwrap();
        run(&mut generation.with_speculation(Speculation::new(PromptLookup::default()).always())).0.len()
    };
    let model = Fake::saying(50, PROMPT.len(), &SCRIPT).truncatable_to(PROMPT.len() + 9);
    assert_eq!(run_with(&model, 30), 30);
    assert_eq!(longest(&model), Some(1));
    let model = Fake::saying(50, PROMPT.len(), &SCRIPT).with_context(PROMPT.len() + 12);
    assert_eq!(run_with(&model, 30), 13, "as many as without drafts");
    let model = Fake::saying(50, PROMPT.len(), &SCRIPT);
    assert_eq!(run_with(&model, 12), 12);
}

#[test]
fn a_sequence_is_reused_for_a_prompt_that_begins_alike() {
    let model = Fake::new(50);
    let mut generation = Generation::new(&model, &PROMPT, &greedy(4), &[]).unwrap();
    let begun = run(&mut generation).0;
    let mut sequence = generation.into_sequence();
    model.calls();
    // forward, back, aside, the same again
    let longer = [&PROMPT[..], &begun[..2], &[8, 9]].concat();
    for (prompt, reused) in
        [(&longer[..], 9), (&PROMPT[..5], 4), (&[2, 9, 4, 30][..], 3), (&[2, 9, 4, 30][..], 3), (&[7][..], 0)]
    {
        assert_eq!(sequence.reuse_prefix(&model, prompt), reused);
        let generation = Generation::follow(&model, sequence, &[], &greedy(2), &[]).unwrap();
        let mut generation = generation;
        assert_eq!(run(&mut generation).0, model.greedy(prompt, 2), "{prompt:?}");
        assert_eq!(model.calls(), [[prompt.len() - reused], [1]]);
        sequence = generation.into_sequence();
    }
}

#[test]
fn a_model_that_forgets_nothing_reads_anew() {
    let model = Fake::new(50).truncatable_to(3);
    let mut generation = Generation::new(&model, &PROMPT, &greedy(2), &[]).unwrap();
    run(&mut generation);
    let mut sequence = generation.into_sequence();
    // the token that was sampled and run
    let next = [&PROMPT[..], &[40]].concat();
    assert_eq!(sequence.reuse_prefix(&model, &next), 0);
    assert_eq!(sequence.pending(), next);
    // nothing to take back: what was read stays
    sequence.prefill(&model, 3, || true);
    assert_eq!(sequence.reuse_prefix(&model, &next), PROMPT.len());
}

#[test]
fn reading_ahead_leaves_the_last_token_and_can_be_stopped() {
    let model = Fake::new(50);
    let mut sequence = Sequence::new(model.new_cache());
    sequence.push(&PROMPT);
    let looks = AtomicUsize::new(0);
    sequence.prefill(&model, 4, || looks.fetch_add(1, Ordering::Relaxed) < 1);
    assert_eq!(sequence.position(), 4);
    sequence.prefill(&model, 4, || true);
    assert_eq!(sequence.pending(), [3]);
    assert_eq!(model.calls(), [[4], [2]]);
    let forks = [sequence.clone(), sequence];
    for fork in forks {
        let mut generation = Generation::follow(&model, fork, &[], &greedy(3), &[]).unwrap();
        assert_eq!(run(&mut generation).0, model.greedy(&PROMPT, 3));
    }
}

#[test]
fn a_deadline_ends_the_generation() {
    let model = Fake::new(50);
    let generation = Generation::new(&model, &PROMPT, &greedy(9), &[]).unwrap();
    let mut generation = generation.with_deadline(Instant::now());
    assert_eq!(run(&mut generation), (vec![], Some(FinishReason::OutOfTime)));
    assert!(model.calls().is_empty());
    let later = Instant::now() + std::time::Duration::from_secs(3600);
    let generation = Generation::new(&model, &PROMPT, &greedy(2), &[]).unwrap();
    assert_eq!(run(&mut generation.with_deadline(later)).1, Some(FinishReason::Length));
}

#[test]
fn the_same_seed_gives_the_same_tokens_and_another_gives_others() {
    let model = Fake::new(50);
    let tokens = |seed: Option<u64>| {
        let options = GenerateOptions { seed, max_tokens: 30, ..GenerateOptions::default() };
        let mut generation = Generation::new(&model, &PROMPT, &options, &[]).unwrap();
        (run(&mut generation).0, generation.seed())
    };
    let (first, seed) = tokens(Some(5));
    assert_eq!(seed, 5);
    assert_eq!(tokens(Some(5)).0, first);
    assert_ne!(tokens(Some(6)).0, first);
    let (fresh, seed) = tokens(None);
    assert_eq!(tokens(Some(seed)).0, fresh);
}

#[test]
fn the_repetition_penalty_counts_prompt_and_answer() {
    // So strong that no token ever comes twice, nor one of the prompt.
    let model = Fake::new(30);
    let options = GenerateOptions { repetition_penalty: 1e6, ..greedy(20) };
    let mut generation = Generation::new(&model, &PROMPT, &options, &[]).unwrap();
    let tokens = run(&mut generation).0;
    // A positive logit becomes nearly 0 and a negative one hugely negative: the other tokens with positive logits win.
    let distinct: std::collections::HashSet<_> = tokens[..6].iter().chain(&PROMPT).collect();
    assert_eq!(distinct.len(), 6 + 6, "{tokens:?}: the prompt has 6 distinct tokens");
    assert_ne!(tokens, model.greedy(&PROMPT, 20));
}

#[test]
fn the_repetition_penalty_counts_the_whole_conversation() {
    // The model wants to say 20 again and again; once it stands in the conversation, it must not.
    let model = Fake::saying(50, PROMPT.len(), &[20; 6]);
    let options = GenerateOptions { repetition_penalty: 1e6, ..greedy(1) };
    let mut first = Generation::new(&model, &PROMPT, &options, &[]).unwrap();
    assert_eq!(run(&mut first).0, [20]);
    let mut second = Generation::follow(&model, first.into_sequence(), &[11], &options, &[]).unwrap();
    let [said] = run(&mut second).0[..] else { panic!("one token was wanted") };
    assert!(!PROMPT.contains(&said) && said != 20 && said != 11, "{said}");
    // In a third turn, 20 was read long ago.
    let mut third = Generation::follow(&model, second.into_sequence(), &[12], &options, &[]).unwrap();
    assert_ne!(run(&mut third).0, [20]);
}

#[test]
fn timings_count_tokens_and_the_models_time() {
    let model = Fake::saying(50, PROMPT.len(), &[20, 21, 30]);
    let mut generation = Generation::new(&model, &PROMPT, &greedy(9), &[30]).unwrap();
    assert_eq!(generation.timings(), Timings { prompt_tokens: 7, ..Timings::default() });
    assert_eq!(generation.timings().prompt_tokens_per_second(), None);
    generation.next().unwrap().unwrap();
    let first = generation.timings();
    assert!(first.prompt_seconds > 0.0);
    assert_eq!((first.generated_tokens, first.decode_steps, first.decode_seconds), (1, 0, 0.0));
    assert_eq!(first.decode_tokens_per_second(), None);
    run(&mut generation);
    let all = generation.timings();
    assert_eq!((all.prompt_tokens, all.generated_tokens, all.decode_steps), (7, 2, 2));
    assert_eq!(all.prompt_seconds, first.prompt_seconds);
    assert_eq!(all.decode_tokens_per_second(), Some(2.0 / all.decode_seconds));
    assert_eq!(all.prompt_tokens_per_second(), Some(7.0 / all.prompt_seconds));
}

#[test]
fn finish_reasons_have_the_names_that_serde_writes() {
    use serde::de::IntoDeserializer;
    use serde::de::value::{Error, StrDeserializer};
    for (reason, name) in [
        (FinishReason::Stop, "stop"),
        (FinishReason::StopText, "stop_text"),
        (FinishReason::Length, "length"),
        (FinishReason::ContextFull, "context_full"),
        (FinishReason::Cancelled, "cancelled"),
        (FinishReason::OutOfTime, "out_of_time"),
    ] {
        assert_eq!(reason.name(), name);
        let text: StrDeserializer<'_, Error> = name.into_deserializer();
        assert_eq!(FinishReason::deserialize(text), Ok(reason));
    }
}

#[test]
fn a_generation_can_move_to_another_thread() {
    fn is_send<T: Send>(_: &T) {}
    struct Sendable;
    #[derive(Clone)]
    struct Nothing;
    impl Cache for Nothing {
        fn len(&self) -> usize {
            0
        }
        fn bytes_len(&self) -> usize {
            0
        }
        fn pages(&self) -> Vec<(gemma_nn::PageId, usize)> {
            Vec::new()
        }
        fn truncate(&mut self, _: usize) -> bool {
            false
        }
        fn truncatable(&self) -> usize {
            0
        }
        fn retractable(&self) -> usize {
            0
        }
        fn tensors(&self) -> CacheTensors {
            CacheTensors::new()
        }
    }
    impl CausalModel for Sendable {
        type Cache = Nothing;
        fn embed(&self, _: &[TokenId]) -> Inputs {
            unreachable!("never run")
        }
        fn forward(&self, _: Inputs, _: &[gemma_nn::Segment], _: &mut [&mut Nothing]) -> Tensor<2> {
            unreachable!("never run")
        }
        fn logits(&self, _: Tensor<2>) -> Tensor<2> {
            unreachable!("never run")
        }
        fn new_cache(&self) -> Nothing {
            Nothing
        }
        fn no_cache(&self) -> Nothing {
            Nothing
        }
        fn restore_cache(&self, _: usize, _: &CacheTensors) -> Option<Nothing> {
            None
        }
        fn cache_bytes(&self, _: usize) -> usize {
            0
        }
        fn context_length(&self) -> Option<usize> {
            None
        }
        fn vocab(&self) -> usize {
            5
        }
    }
    is_send(&Generation::new(&Sendable, &[1], &greedy(1), &[]).unwrap());
}
