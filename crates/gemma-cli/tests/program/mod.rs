//! The program as the tests start it, and what they expect of its endings.

#[allow(dead_code)]
pub(crate) mod folder;

use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// The program with some arguments, away from the user's own models and the network.
pub(crate) fn gemma<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gemma"));
    command.args(arguments).env("HF_HUB_OFFLINE", "1").env("HF_HOME", "/nonexistent").env_remove("HF_HUB_CACHE");
    // Graphics libraries complain on standard error about a machine without a desktop.
    command.env("XDG_RUNTIME_DIR", std::env::temp_dir()).stdin(Stdio::null());
    command
}

pub(crate) fn run(command: &mut Command) -> Output {
    command.output().expect("the program starts")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// What the program prints when all is well.
pub(crate) fn printed(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

pub(crate) fn printed_json(command: &mut Command) -> Value {
    serde_json::from_str(&printed(command)).expect("one JSON object")
}

/// The one line with which the program refuses.
pub(crate) fn refusal(command: &mut Command) -> String {
    let output = run(command);
    let line = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{line}");
    assert!(line.starts_with("error: ") && line.lines().count() == 1 && line.ends_with('\n'), "{line:?}");
    assert!(!line.contains("internal error"), "{line}");
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    line
}
