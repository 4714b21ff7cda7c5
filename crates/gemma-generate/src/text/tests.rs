//! Text as it streams, from a model that says what the test wants.

use gemma_tokenizer::Tokenizer;

use super::*;
use crate::GenerateOptions;
use crate::fake::{EOS, Fake, VOCAB, ids, tokenizer};

const PROMPT: [TokenId; 2] = [2, 4];

/// What a model that says `pieces` gives, piece by piece, with the finish reason.
fn stream(pieces: &[&str], stops: &[&str]) -> (Vec<String>, FinishReason) {
    let (model, tokenizer) = (saying(pieces), tokenizer());
    let mut stream = begin(&model, &tokenizer, stops, 99);
    let shown: Vec<String> = stream.by_ref().map(Result::unwrap).collect();
    assert!(stream.next().is_none());
    assert!(shown.iter().all(|text| !text.is_empty()));
    (shown, stream.finish_reason().unwrap())
}

/// A model that says `pieces` and then ends.
fn saying(pieces: &[&str]) -> Fake {
    Fake::saying(VOCAB, PROMPT.len(), &[&ids(pieces)[..], &[EOS]].concat())
}

fn begin<'a>(model: &'a Fake, tokenizer: &'a Tokenizer, stops: &[&str], max_tokens: usize) -> TextStream<'a, 'a, Fake> {
    let stop = stops.iter().map(|stop| stop.to_string()).collect();
    let options = GenerateOptions { stop, ..GenerateOptions::greedy(max_tokens) };
    TextStream::new(Generation::new(model, &PROMPT, &options, &[EOS]).unwrap(), tokenizer.stream())
}

#[test]
fn text_comes_token_by_token() {
    let (shown, reason) = stream(&["a", "▁", "bc", "▁END"], &[]);
    assert_eq!(shown, ["a", " ", "bc", " END"]);
    assert_eq!(reason, FinishReason::Stop);
}

#[test]
fn characters_come_whole() {
    let (shown, _) = stream(&["a", "<0xC3>", "<0xA9>", "b", "<0xF0>", "<0x9F>", "<0xA6>", "<0x80>"], &[]);
    assert_eq!(shown, ["a", "é", "b", "🦀"]);
}

#[test]
fn a_character_that_never_becomes_whole_is_shown_as_such_at_the_end() {
    let (shown, reason) = stream(&["a", "<0xF0>", "<0x9F>"], &[]);
    assert_eq!(shown.concat(), "a\u{fffd}\u{fffd}");
    assert_eq!(reason, FinishReason::Stop);
}

#[test]
fn what_is_left_at_the_end_comes_in_order_and_stops_at_a_stop_text_too() {
    assert_eq!(stream(&["a", "▁", "EN", "<0xF0>"], &[" END"]).0.concat(), "a EN\u{fffd}");
    assert_eq!(stream(&["a", "b", "<0xF0>"], &["b\u{fffd}"]).0, ["a"]);
}

#[test]
fn an_answer_without_tokens_has_no_text() {
    assert_eq!(stream(&[], &["x"]), (vec![], FinishReason::Stop));
}

#[test]
fn a_stop_text_that_overlaps_itself_is_cut_exactly() {
    let (shown, reason) = stream(&["a", "a", "a", "b", "c"], &["aab"]);
    assert_eq!((shown.concat().as_str(), reason), ("a", FinishReason::StopText));
    let (shown, reason) = stream(&["a", "aab", "c"], &["aab"]);
    assert_eq!((shown.concat().as_str(), reason), ("a", FinishReason::StopText));
}

#[test]
fn a_stop_text_may_span_tokens_or_lie_inside_one() {
    let (shown, reason) = stream(&["d", "a", "bc", "d"], &["abc"]);
    assert_eq!((shown, reason), (vec!["d".to_string()], FinishReason::StopText));
    let (shown, reason) = stream(&["d", "abcd", "d"], &["bc"]);
    assert_eq!((shown.concat().as_str(), reason), ("da", FinishReason::StopText));
    let (shown, _) = stream(&["c", "▁", "EN", "D", "a"], &[" END"]);
    assert_eq!(shown, ["c"]);
}

#[test]
fn a_stop_text_may_be_made_of_bytes() {
    let (shown, reason) = stream(&["a", "<0xC3>", "<0xA9>", "b"], &["é"]);
    assert_eq!((shown, reason), (vec!["a".to_string()], FinishReason::StopText));
}

#[test]
fn of_several_stop_texts_the_first_to_be_complete_wins() {
    let (shown, reason) = stream(&["a", "c", "d", "b"], &["b", "d"]);
    assert_eq!((shown.concat().as_str(), reason), ("ac", FinishReason::StopText));
}

#[test]
fn what_was_held_back_for_nothing_comes_at_the_end() {
    let (shown, reason) = stream(&["a", "▁", "EN"], &[" END"]);
    assert_eq!(shown, ["a", " EN"]);
    assert_eq!(reason, FinishReason::Stop);
}

#[test]
fn the_model_is_not_asked_after_the_stop_text() {
    let (model, tokenizer) = (saying(&["a", "b", "c", "d"]), tokenizer());
    let stream = begin(&model, &tokenizer, &["b"], 99);
    let generated = stream.finish().unwrap();
    assert_eq!((generated.text.as_str(), generated.finish_reason), ("a", FinishReason::StopText));
    assert_eq!(generated.tokens, ids(&["a", "b"]), "the tokens tell what was sampled");
    assert_eq!(model.calls(), [[2], [1]]);
}

#[test]
fn length_counts_tokens_and_flushes_the_text() {
    let (model, tokenizer) = (saying(&["a", "▁", "END"].map(|p| if p == "END" { "EN" } else { p })), tokenizer());
    let generated = begin(&model, &tokenizer, &[" END"], 2).finish().unwrap();
    assert_eq!((generated.text.as_str(), generated.finish_reason), ("a ", FinishReason::Length));
    assert_eq!(generated.tokens.len(), 2);
    assert_eq!(generated.logprobs.len(), 2);
    assert_eq!(generated.timings.generated_tokens, 2);
}

#[test]
fn a_conversation_goes_on_after_a_stream() {
    let (model, tokenizer) = (saying(&["a", "b"]), tokenizer());
    let mut stream = begin(&model, &tokenizer, &[], 99);
    stream.by_ref().for_each(|text| drop(text.unwrap()));
    let sequence = stream.into_sequence();
    let expected = [&PROMPT[..], &ids(&["a", "b"]), &[EOS]].concat();
    assert_eq!(sequence.tokens(), expected);
}

#[test]
fn a_stream_can_be_cancelled() {
    let (model, tokenizer) = (saying(&["a", "▁", "b"]), tokenizer());
    let flag = Arc::new(AtomicBool::new(false));
    let mut read = 0;
    let mut stream =
        begin(&model, &tokenizer, &[" END"], 99).with_cancel(Arc::clone(&flag)).with_progress(|_, total| read = total);
    assert_eq!(stream.next(), Some(Ok("a".to_string())));
    flag.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(stream.next(), None);
    assert_eq!(stream.finish_reason(), Some(FinishReason::Cancelled));
    drop(stream);
    assert_eq!(read, PROMPT.len());
}

#[test]
fn an_error_ends_the_stream() {
    let (model, tokenizer) = (saying(&["a", "b"]).breaking_at(3), tokenizer());
    let mut stream = begin(&model, &tokenizer, &[], 99);
    assert_eq!(stream.next(), Some(Ok("a".to_string())));
    assert!(matches!(stream.next(), Some(Err(Error::NotFinite { .. }))));
    assert!(stream.next().is_none());
    assert_eq!(stream.finish_reason(), None);
}
