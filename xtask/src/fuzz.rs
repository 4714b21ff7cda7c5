//! `cargo xtask fuzz`: mutated inputs on every parser; see `xtask/fuzz`.

use crate::cargo::Step;
use anyhow::Result;
use std::path::Path;

pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    step(arguments).run(root)
}

fn step(arguments: &[String]) -> Step<'static> {
    Step::new("fuzz", &["run", "--release", "--package", "gemma-fuzz", "--"]).and(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_reach_the_campaign() {
        let step = step(&["--runs".into(), "10".into()]);
        assert!(step.line().ends_with("--package gemma-fuzz -- --runs 10"), "{}", step.line());
    }
}
