//! `gemma-demo` as it is started.

use std::process::Command;

#[test]
fn the_corpus_is_shown_with_what_was_held_out() {
    let program = env!("CARGO_BIN_EXE_gemma-demo");
    let output = Command::new(program).args(["corpus", "--show", "3"]).output().expect("it starts");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{text}");
    let (learned, held_out) = text.split_once("Held out:\n").expect("both parts");
    assert!(learned.contains("model  "), "{learned}");
    for part in ["return", "(", "->"] {
        assert!(held_out.contains(part), "{part}: {held_out}");
    }
}
