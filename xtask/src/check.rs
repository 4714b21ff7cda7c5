//! `cargo xtask check`: everything that must hold before a change is offered, in the order of what fails fastest.

use crate::cargo::Step;
use crate::tidy;
use anyhow::{Result, bail};
use std::path::Path;
use std::time::{Duration, Instant};

/// What the command line asks for.
#[derive(Debug, Default, PartialEq)]
struct Options {
    /// Leave the tests out.
    fast: bool,
    /// Test with the wgpu and flex backends compiled in.
    wgpu: bool,
}

pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let options = parse(arguments)?;
    let mut results: Vec<(&str, Duration, Result<()>)> = Vec::new();

    let start = Instant::now();
    println!("==> tidy");
    let result = tidy::run(root, &[]);
    results.push(("tidy", start.elapsed(), result));
    for step in steps(&options) {
        let start = Instant::now();
        let result = step.run(root);
        results.push((step.name, start.elapsed(), result));
    }

    println!();
    for (name, time, result) in &results {
        let verdict = if result.is_ok() { "ok" } else { "FAILED" };
        println!("{name:<8} {:>8.1} s  {verdict}", time.as_secs_f64());
    }
    let failures: Vec<String> =
        results.into_iter().filter_map(|(_, _, result)| result.err()).map(|e| e.to_string()).collect();
    if !failures.is_empty() {
        bail!("{} of the steps failed:\n  {}", failures.len(), failures.join("\n  "));
    }
    Ok(())
}

fn parse(arguments: &[String]) -> Result<Options> {
    let mut options = Options::default();
    for argument in arguments {
        match argument.as_str() {
            "--fast" => options.fast = true,
            "--wgpu" => options.wgpu = true,
            unknown => bail!("unknown option {unknown:?}; the options are --fast and --wgpu"),
        }
    }
    Ok(options)
}

fn steps(options: &Options) -> Vec<Step<'static>> {
    const BACKENDS: &str = "wgpu,flex";
    let mut steps = vec![
        Step::new("fmt", &["fmt", "--all", "--check"]),
        Step::new(
            "clippy",
            &["clippy", "--workspace", "--all-targets", "--features", BACKENDS, "--", "-D", "warnings"],
        ),
    ];
    if !options.fast {
        let mut test = Step::new("test", &["test", "--release", "--workspace"]);
        if options.wgpu {
            test = test.and(&["--features".to_string(), BACKENDS.to_string()]);
        }
        steps.push(test);
    }
    // With the features of clippy, whose checked dependencies it then shares.
    let doc = Step::new("doc", &["doc", "--workspace", "--no-deps", "--features", BACKENDS]);
    steps.push(doc.env("RUSTDOCFLAGS", "-D warnings"));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(options: &Options) -> Vec<&'static str> {
        steps(options).iter().map(|step| step.name).collect()
    }

    #[test]
    fn fast_leaves_out_only_the_tests() {
        assert_eq!(names(&Options::default()), ["fmt", "clippy", "test", "doc"]);
        assert_eq!(names(&Options { fast: true, wgpu: false }), ["fmt", "clippy", "doc"]);
    }

    #[test]
    fn wgpu_reaches_the_tests() {
        let lines = |wgpu| steps(&Options { fast: false, wgpu }).iter().map(Step::line).collect::<Vec<_>>().join("\n");
        assert!(lines(true).contains("cargo test --release --workspace --features wgpu,flex"));
        assert!(!lines(false).contains("cargo test --release --workspace --features"));
    }

    #[test]
    fn an_unknown_option_is_refused() {
        assert!(parse(&["--fsat".to_string()]).is_err());
        assert_eq!(parse(&["--fast".into(), "--wgpu".into()]).ok(), Some(Options { fast: true, wgpu: true }));
    }
}
