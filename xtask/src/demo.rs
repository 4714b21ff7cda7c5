//! `cargo xtask demo FAMILY`: trains the family's embedded demo model and puts it where the family's crate embeds it.

use crate::cargo::Step;
use anyhow::{Context, Result, bail};
use std::path::Path;

/// The families with a demo model. Each has a verb of this name in `gemma-demo`.
const FAMILIES: [&str; 4] = ["gemma", "codegemma", "recurrentgemma", "paligemma"];

pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    step(arguments)?.run(root)
}

fn step(arguments: &[String]) -> Result<Step<'static>> {
    let families = FAMILIES.join(", ");
    let which = || format!("which demo? Say `cargo xtask demo gemma`; the families with one: {families}");
    let (family, rest) = arguments.split_first().with_context(which)?;
    if !FAMILIES.contains(&family.as_str()) {
        bail!("there is no demo of {family:?}; the families with one: {families}");
    }
    // Trained on flex: of the backends that every machine has, the one that multiplies dense matrices fastest.
    let command = format!("run --release --package gemma-demo --features flex -- {family} --out models/{family}/demo");
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
        let step = super::step(&["codegemma".into()]).expect("codegemma has a demo");
        assert!(step.line().ends_with("-- codegemma --out models/codegemma/demo"), "{}", step.line());
    }

    #[test]
    fn an_unknown_family_is_refused() {
        assert!(step(&["paligemma3".into()]).is_err());
        assert!(step(&[]).is_err());
    }
}
