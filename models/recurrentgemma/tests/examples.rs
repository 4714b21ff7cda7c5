//! The examples run to their end on the demo model, and do what they say.

#[allow(dead_code, unreachable_pub, reason = "the test calls `run`, the program calls `main`")]
#[path = "../examples/fork.rs"]
mod fork;
#[allow(dead_code, unreachable_pub, reason = "as above")]
#[path = "../examples/long_context.rs"]
mod long_context;
#[allow(dead_code, unreachable_pub, reason = "as above")]
#[path = "../examples/stream.rs"]
mod stream;

#[test]
fn stream_runs() {
    stream::run(None, "Once upon a time").unwrap();
}

#[test]
fn long_context_takes_as_much_memory_for_a_long_text_as_for_a_short_one() {
    let read = |times: usize| {
        let text = "The little fox went to the river. Zwölf Bäume standen dort, und er blieb. ".repeat(times);
        long_context::run(None, text.as_bytes()).unwrap()
    };
    let ((short, short_bytes), (long, long_bytes)) = (read(10), read(1_000));
    assert!(long > 20_000 && long > 90 * short, "{short} and {long} tokens");
    assert_eq!(long_bytes, short_bytes);
}

#[test]
fn long_context_refuses_what_is_not_text_and_reads_nothing() {
    let error = long_context::run(None, &b"ab\xff\xfe cd"[..]).unwrap_err().to_string();
    assert!(error.contains("UTF-8"), "{error}");
    assert_eq!(long_context::run(None, &b""[..]).unwrap().0, 1);
}

#[test]
fn a_text_is_cut_before_a_word_and_within_no_character() {
    let cut = |text: &[u8]| long_context::whole_words(text);
    assert_eq!(cut(b"one two  three"), 7);
    assert_eq!(cut("one zwö".as_bytes()), 3);
    assert_eq!(cut(&"zwölf".as_bytes()[..3]), 2);
    assert_eq!(cut("zwölf".as_bytes()), 6);
    assert_eq!(cut(b"\xff\xff"), 2);
}

#[test]
fn a_fork_from_a_file_goes_on_as_one_from_a_clone() {
    let texts = fork::run(None, "Once upon a time").unwrap();
    assert_eq!(texts.len(), 4);
    assert_eq!(texts[3], texts[2]);
    assert!(texts[0] != texts[1] || texts[1] != texts[2], "{texts:?}");
}
