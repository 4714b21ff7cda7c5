//! The chores of this repository: `cargo xtask check | tidy | tree | goldens | demo | bench | fuzz`.
//!
//! One file per chore. Nothing here depends on Burn, so a chore starts at once; what needs a model runs the
//! program that has it (`gemma-cli`, `gemma-demo`, `gemma-fuzz`, `gemma-tests`) as a child.

mod bench;
mod cargo;
mod check;
mod demo;
mod fuzz;
mod goldens;
mod machine;
mod tidy;

use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "\
Chores of this repository.

Usage: cargo xtask <CHORE> [OPTIONS]

Chores:
  check [--fast] [--wgpu]   fmt, tidy, clippy, tests and docs, each with its time
                            --fast: no tests; --wgpu: tests with the wgpu and flex backends too
  tidy                      the rules of docs/architecture.md, read from manifests, sources and documents
  tree                      write the annotated tree of docs/architecture.md from manifests and module docs
  goldens [--python PATH]   compute the expected values in tests/goldens again (needs a Python with torch)
  demo FAMILY [ARGS]        train the demo model of gemma, codegemma or recurrentgemma into models/FAMILY/demo (ARGS go to gemma-demo)
  bench [OPTIONS]           measure the speed at a released shape and write docs/performance.md
                            --shape LIST (2B to 27B; with --peers gemma-2b), --precisions LIST (bf16,q8_0,q4_0; large
                            shapes: q4_0), --repeat N (3),
                            --prompt N (512), --decode N (32), --depth N (0): tokens of prefill, of decode, in the cache before
                            --fast-activations: ours rounds activations, --quick: fewer tokens, nothing written
                            --peers: against llama.cpp and transformers, built and kept in GEMMA_BENCH_CACHE;
                            --discard: models made for this are removed when they have been measured
                            --backend wgpu|vulkan|metal: a GPU, checked against the CPU and measured within --minutes N (8); rows
                            go into target/bench-NAME.md as they come, and with --quick small models are measured
  fuzz [OPTIONS]            mutated inputs on every parser, in bounded and repeatable runs that go on where they stopped
                            --runs N for each target, --seed S, --target NAME, --seconds N, --state FILE
  bandwidth                 print how fast this machine reads memory, in bytes per second
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (chore, rest) = match arguments.split_first() {
        Some((chore, rest)) => (chore.as_str(), rest),
        None => ("help", &[][..]),
    };
    match run(chore, rest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask {chore}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: &str, arguments: &[String]) -> Result<()> {
    let root = root();
    // what a demo is told goes on to its trainer
    let chore = if !matches!(chore, "demo" | "fuzz") && arguments.iter().any(|argument| argument == "--help") {
        "help"
    } else {
        chore
    };
    match chore {
        "check" => check::run(&root, arguments),
        "tidy" => tidy::run(&root, arguments),
        "tree" => tidy::write_tree(&root),
        "goldens" => goldens::run(&root, arguments),
        "demo" => demo::run(&root, arguments),
        "bench" => bench::run(&root, arguments),
        "fuzz" => fuzz::run(&root, arguments),
        "bandwidth" => bench::bandwidth(&root, arguments),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(())
        }
        unknown => bail!("there is no such chore; `cargo xtask help` lists them (got {unknown:?})"),
    }
}

/// The workspace's root: the folder above this package.
fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().expect("xtask lies in the workspace").to_path_buf()
}
