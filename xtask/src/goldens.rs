//! `cargo xtask goldens`: computes the expected values under `tests/goldens` again.
//!
//! What other software must say (Hugging Face transformers) is written by `tests/goldens/make.py`, which needs a
//! Python with torch; what this workspace itself is held to would be written by a program `goldens` of the test
//! package. A golden that changes without a reason is a mistake found, so read the difference before committing it.

use crate::cargo::Step;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;

/// Makes the values of the reference implementation.
const SCRIPT: &str = "tests/goldens/make.py";
/// Makes the values that are our own, where there is such a program.
const PROGRAM: &str = "tests/src/bin/goldens.rs";

pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let (python, rest) = split(arguments)?;
    let (script, program) = (root.join(SCRIPT).is_file(), root.join(PROGRAM).is_file());
    if !script && !program {
        bail!("there is nothing that computes goldens: neither {SCRIPT} nor {PROGRAM} exists");
    }
    if script {
        println!("==> {python} {SCRIPT}");
        let mut command = Command::new(&python);
        let status = command.current_dir(root).arg(SCRIPT).args(&rest).status();
        let status =
            status.with_context(|| format!("cannot start {python:?}; name a Python with torch by --python"))?;
        if !status.success() {
            bail!("{SCRIPT} failed ({status}); its first lines say which packages it needs");
        }
    }
    if program {
        let command = ["run", "--release", "--package", "gemma-tests", "--bin", "goldens", "--"];
        Step::new("goldens", &command).and(&rest).run(root)?;
    }
    Ok(())
}

/// The Python to use, and the arguments that are handed on.
fn split(arguments: &[String]) -> Result<(String, Vec<String>)> {
    let (mut python, mut rest) = ("python3".to_string(), Vec::new());
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--python" {
            python = arguments.next().context("--python needs the path of a Python")?.clone();
        } else {
            rest.push(argument.clone());
        }
    }
    Ok((python, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_to_run_is_said() {
        let error = run(Path::new("/nowhere"), &[]).expect_err("nothing lies there");
        assert!(error.to_string().contains(SCRIPT), "{error}");
    }

    #[test]
    fn python_is_taken_out_of_the_arguments() {
        let arguments = |list: &[&str]| list.iter().map(|item| item.to_string()).collect::<Vec<_>>();
        let (python, rest) = split(&arguments(&["--seed", "1", "--python", "venv/bin/python"])).expect("it is right");
        assert_eq!((python.as_str(), rest), ("venv/bin/python", arguments(&["--seed", "1"])));
        assert_eq!(split(&[]).expect("it is right").0, "python3");
        assert!(split(&arguments(&["--python"])).is_err());
    }
}
