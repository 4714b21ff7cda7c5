//! A small campaign: every target runs, and the next command goes on where the last one stopped.

use std::path::Path;
use std::process::{Command, Output};

fn campaign(state: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gemma-fuzz"));
    command.arg("--state").arg(state).args(more).output().expect("the program starts")
}

fn told(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn every_target_takes_its_seeds_and_some_mutations() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = folder.path().join("state.json");
    let first = told(&campaign(&state, &["--runs", "20", "--seed", "3"]));
    for target in gemma_fuzz::TARGETS {
        let line = first.lines().find(|line| line.starts_with(&format!("{} ", target.name)));
        let line = line.unwrap_or_else(|| panic!("{} is missing in\n{first}", target.name));
        assert!(line.contains(" 20 inputs, 0 faults"), "{line}");
    }
    let total = gemma_fuzz::TARGETS.len() * 25;
    let second = told(&campaign(&state, &["--runs", "25", "--seed", "3"]));
    assert!(second.contains(&format!("{total} inputs, 0 faults (seed 3)")), "{second}");
    let other = campaign(&state, &["--runs", "25", "--seed", "4"]);
    assert_eq!(other.status.code(), Some(2), "another seed is another campaign");
}

#[test]
fn an_input_is_written_out_again() {
    let show = |index: &str| {
        let arguments = ["--target", "messages", "--seed", "3", "--show", index];
        campaign(Path::new("/nonexistent"), &arguments).stdout
    };
    assert_eq!(show("0"), gemma_fuzz::seeds("messages")[0]);
    assert!(show("7") == show("7") && show("7") != show("8"));
}
