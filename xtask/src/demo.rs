//! `cargo xtask demo FAMILY`: trains the family's embedded demo model and puts it where the family's crate embeds it.

use crate::cargo::Step;
use anyhow::{Context, Result, bail};
use std::path::Path;

pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    step(arguments)?.run(root)
}

fn step(arguments: &[String]) -> Result<Step<'static>> {
    let (family, rest) = arguments.split_first().context("which demo? Say `cargo xtask demo gemma`")?;
    // Trained on flex: of the backends that every machine has, the one that multiplies dense matrices fastest.
    let command = match family.as_str() {
        "gemma" => "run --release --package gemma-demo --features flex -- gemma --out models/gemma/demo",
        "paligemma" => "run --release --package gemma-demo --features flex -- paligemma --out models/paligemma/demo",
        _ => bail!("there is no demo of {family:?}; the families with one: gemma, paligemma"),
    };
    let command: Vec<&str> = command.split(' ').collect();
    Ok(Step::new("demo", &command).and(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_after_the_family_reach_the_trainer() {
        let step = step(&["gemma".into(), "--steps".into(), "10".into()]).expect("gemma has a demo");
        assert!(step.line().ends_with("-- gemma --out models/gemma/demo --steps 10"), "{}", step.line());
    }

    #[test]
    fn an_unknown_family_is_refused() {
        assert!(step(&["paligemma3".into()]).is_err());
        assert!(step(&[]).is_err());
    }
}
