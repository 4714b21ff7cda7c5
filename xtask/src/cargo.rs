//! Running cargo as a child, with the command line printed first.

use anyhow::{Context, Result, anyhow};
use std::fmt::Display;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// One call of cargo: what it is for, its arguments, and what is added to its environment.
pub(crate) struct Step<'a> {
    /// A word or two for the summary.
    pub(crate) name: &'a str,
    /// What follows `cargo` on the command line.
    pub(crate) arguments: Vec<String>,
    /// Variables set for this call only.
    pub(crate) environment: Vec<(&'a str, &'a str)>,
}

impl<'a> Step<'a> {
    pub(crate) fn new(name: &'a str, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|argument| argument.to_string()).collect();
        Self { name, arguments, environment: Vec::new() }
    }

    pub(crate) fn and(mut self, arguments: &[String]) -> Self {
        self.arguments.extend_from_slice(arguments);
        self
    }

    pub(crate) fn env(mut self, name: &'a str, value: &'a str) -> Self {
        self.environment.push((name, value));
        self
    }

    /// The command line as one would type it.
    pub(crate) fn line(&self) -> String {
        let mut line = String::new();
        for (name, value) in &self.environment {
            line.push_str(&format!("{name}={} ", quoted(value)));
        }
        line.push_str("cargo");
        for argument in &self.arguments {
            line.push(' ');
            line.push_str(&quoted(argument));
        }
        line
    }

    /// Runs the step with this process's input and output.
    ///
    /// # Errors
    /// Cargo could not be started, or ended with another status than 0.
    pub(crate) fn run(&self, root: &Path) -> Result<()> {
        println!("\n==> {}: {}", self.name, self.line());
        let start = Instant::now();
        let status = self.command(root).status().context("cargo could not be started")?;
        println!("<== {}: {:.1} s", self.name, start.elapsed().as_secs_f64());
        if !status.success() {
            return Err(self.failed(status));
        }
        Ok(())
    }

    /// Runs the step and returns what it printed; its messages go to this process's stderr.
    ///
    /// # Errors
    /// As [`Step::run`], or the output is not UTF-8.
    pub(crate) fn output(&self, root: &Path) -> Result<String> {
        eprintln!("==> {}: {}", self.name, self.line());
        let mut command = self.command(root);
        command.stderr(std::process::Stdio::inherit());
        let output = command.output().context("cargo could not be started")?;
        if !output.status.success() {
            return Err(self.failed(output.status));
        }
        String::from_utf8(output.stdout).with_context(|| format!("{} printed something that is not UTF-8", self.name))
    }

    fn failed(&self, status: impl Display) -> anyhow::Error {
        anyhow!("{} failed ({status}); run it alone with: {}", self.name, self.line())
    }

    fn command(&self, root: &Path) -> Command {
        // Cargo names itself to its children; a toolchain chosen with `cargo +x xtask` is kept this way.
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.current_dir(root).args(&self.arguments).envs(self.environment.iter().copied());
        command
    }
}

fn quoted(argument: &str) -> String {
    if argument.is_empty() || argument.contains([' ', '"', '\'', '$', '*']) {
        format!("'{}'", argument.replace('\'', r"'\''"))
    } else {
        argument.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_can_be_typed_again() {
        let step = Step::new("doc", &["doc", "--workspace", "a b", ""]).env("RUSTDOCFLAGS", "-D warnings");
        assert_eq!(step.line(), "RUSTDOCFLAGS='-D warnings' cargo doc --workspace 'a b' ''");
    }

    #[test]
    fn a_failed_step_says_how_to_run_it_alone() {
        let step = Step::new("fmt", &["fmt", "--all", "--check"]);
        assert_eq!(
            step.failed("exit status: 1").to_string(),
            "fmt failed (exit status: 1); run it alone with: cargo fmt --all --check"
        );
    }

    #[test]
    fn a_step_reports_how_cargo_ended() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let version = Step::new("version", &["--version"]).output(root).expect("cargo knows its version");
        assert!(version.starts_with("cargo "), "{version}");
        assert!(
            Step::new("version", &["--version", "--quiet"]).run(Path::new("/nowhere")).is_err(),
            "there is no such folder"
        );
    }
}
