//! `cargo xtask fuzz`: mutated inputs on every parser, bounded and repeatable.
//!
//! The campaign runs each target in a child process, which names every input before it is tried. So a hang, a stack
//! overflow and a process that the system ends are found as surely as a panic, and the campaign goes on behind them.
//! Where it stands is kept in a file; the same command goes on from there.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use gemma_fuzz::{Mutator, TARGETS, Target, seeds};
use serde::{Deserialize, Serialize};

const USAGE: &str = "\
Mutated inputs on every parser.

Usage: cargo xtask fuzz [--runs N] [--seed S] [--target NAME] [--state FILE] [--seconds N]
       cargo xtask fuzz --target NAME --seed S --show INDEX    writes that input to standard output

  --runs N      inputs for each target in all (1000)
  --seed S      which inputs (1)
  --target NAME only this one
  --state FILE  where the campaign stands (target/fuzz/state.json); a campaign that is stopped goes on from there
  --seconds N   stop after so long, with what is done by then
";

/// Longest time for one input, in seconds.
const LONGEST: u64 = 5;
/// Most memory for one input, in bytes, beyond what the process has before.
const MOST_MEMORY: u64 = 1 << 30;
/// Inputs for one child.
const CHUNK: u64 = 2000;
/// Inputs between two looks at the memory.
const LOOK: u64 = 32;

/// Where a campaign stands.
#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    seed: u64,
    /// By target: the next index.
    next: BTreeMap<String, u64>,
    faults: Vec<Fault>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Fault {
    target: String,
    index: u64,
    what: String,
}

struct Options {
    runs: u64,
    seed: u64,
    target: Option<String>,
    state: PathBuf,
    seconds: Option<u64>,
    show: Option<u64>,
    /// In a child: the first index and the one after the last.
    range: Option<(u64, u64)>,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("fuzz: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs what the arguments say; `false` when there are faults.
fn run() -> Result<bool> {
    let options = options()?;
    let chosen: Vec<&Target> = match &options.target {
        Some(name) => vec![target(name)?],
        None => TARGETS.iter().collect(),
    };
    if let Some(index) = options.show {
        let target = chosen[0];
        let seeds = seeds(target.name);
        std::io::stdout().write_all(&Mutator::new(&seeds, target.words).input(options.seed, target.name, index))?;
        return Ok(true);
    }
    if let Some(range) = options.range {
        return child(chosen[0], options.seed, range).map(|()| true);
    }
    campaign(&options, &chosen)
}

fn target(name: &str) -> Result<&'static Target> {
    let names = || TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ");
    TARGETS
        .iter()
        .find(|target| target.name == name)
        .with_context(|| format!("no target {name}; there are {}", names()))
}

fn options() -> Result<Options> {
    let mut options = Options {
        runs: 1000,
        seed: 1,
        target: None,
        state: PathBuf::from("target/fuzz/state.json"),
        seconds: None,
        show: None,
        range: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--help" {
            print!("{USAGE}");
            std::process::exit(0);
        }
        let value = arguments.next().with_context(|| format!("{argument} wants a value; --help lists the options"))?;
        let number = || value.parse::<u64>().with_context(|| format!("{argument} wants a number, not {value}"));
        match argument.as_str() {
            "--runs" => options.runs = number()?,
            "--seed" => options.seed = number()?,
            "--seconds" => options.seconds = Some(number()?),
            "--show" => options.show = Some(number()?),
            "--target" => options.target = Some(value),
            "--state" => options.state = value.into(),
            "--range" => {
                let (from, to) = value.split_once("..").context("--range wants A..B")?;
                options.range = Some((from.parse()?, to.parse()?));
            }
            _ => bail!("there is no {argument}; --help lists the options"),
        }
    }
    Ok(options)
}

/// Tries a range of inputs in this process: names each before it is tried, and says how much memory they took.
fn child(target: &Target, seed: u64, (from, to): (u64, u64)) -> Result<()> {
    let seeds = seeds(target.name);
    let mutator = Mutator::new(&seeds, target.words);
    let mut out = std::io::stdout().lock();
    target.run(&mutator.input(seed, target.name, 0));
    let before = peak_memory(true).unwrap_or(0);
    for index in from..to {
        writeln!(out, "{index}")?;
        out.flush()?;
        target.run(&mutator.input(seed, target.name, index));
        if index % LOOK == LOOK - 1 || index + 1 == to {
            let taken = peak_memory(true).unwrap_or(0).saturating_sub(before);
            writeln!(out, "memory {taken}")?;
        }
    }
    writeln!(out, "done")?;
    Ok(())
}

/// The most memory this process had since the last look, in bytes (Linux only).
fn peak_memory(reset: bool) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    if reset {
        // what is not allowed everywhere is no loss: the peak is then that of all inputs so far
        let _ = std::fs::write("/proc/self/clear_refs", "5");
    }
    Some(kilobytes << 10)
}

fn campaign(options: &Options, targets: &[&Target]) -> Result<bool> {
    let mut state: State = match std::fs::read(&options.state) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).with_context(|| format!("cannot use {}", options.state.display()))?
        }
        Err(_) => State { seed: options.seed, ..State::default() },
    };
    if state.seed != options.seed {
        bail!("{} is of a campaign with --seed {}; name another --state", options.state.display(), state.seed);
    }
    let begin = Instant::now();
    let over = || options.seconds.is_some_and(|seconds| begin.elapsed() >= Duration::from_secs(seconds));
    let next = |state: &State, name: &str| state.next.get(name).copied().unwrap_or(0);
    while !over() {
        let mut busy = false;
        for target in targets {
            let from = next(&state, target.name);
            let to = (from + CHUNK).min(options.runs);
            if from >= to || over() {
                continue;
            }
            busy = true;
            let (tried, fault) = chunk(target, state.seed, (from, to))?;
            state.next.insert(target.name.to_owned(), tried);
            if let Some(fault) = fault {
                eprintln!("FAULT {} {}: {}", fault.target, fault.index, fault.what);
                state.faults.push(fault);
            }
            save(&state, &options.state)?;
        }
        if !busy {
            break;
        }
    }
    let total: u64 = targets.iter().map(|target| next(&state, target.name)).sum();
    for target in targets {
        let faults = state.faults.iter().filter(|fault| fault.target == target.name).count();
        println!("{:18} {:>9} inputs, {faults} faults", target.name, next(&state, target.name));
    }
    println!("{total} inputs, {} faults (seed {}), {} s", state.faults.len(), state.seed, begin.elapsed().as_secs());
    for fault in &state.faults {
        println!("  {} {}: {}", fault.target, fault.index, fault.what);
    }
    Ok(state.faults.is_empty())
}

fn save(state: &State, path: &Path) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let unfinished = path.with_extension("part");
    std::fs::write(&unfinished, serde_json::to_vec_pretty(state)?)?;
    std::fs::rename(unfinished, path).with_context(|| format!("cannot write {}", path.display()))
}

/// Lets a child try a range: the index to go on from, and what went wrong before it.
fn chunk(target: &Target, seed: u64, (from, to): (u64, u64)) -> Result<(u64, Option<Fault>)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--target", target.name, "--seed", &seed.to_string(), "--range", &format!("{from}..{to}")])
        .env("RUST_BACKTRACE", "0")
        .env("RAYON_NUM_THREADS", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start a child")?;
    let out = child.stdout.take().context("the child has an output")?;
    let errors = child.stderr.take().context("the child has an output")?;
    let (sender, lines) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    // the end of what it says when it dies
    let complaint = std::thread::spawn(move || {
        let lines = BufReader::new(errors).lines().map_while(Result::ok);
        lines.filter(|line| !line.starts_with("note:")).fold(String::new(), |last, line| {
            let kept: String = (last + " " + &line).chars().rev().take(300).collect();
            kept.chars().rev().collect()
        })
    });
    let mut current = None;
    let mut patience = Duration::from_secs(120); // the first input waits for the model that some targets need
    let fault = loop {
        match lines.recv_timeout(patience) {
            Ok(line) if line == "done" => break None,
            Ok(line) => match line.strip_prefix("memory ").map(str::parse::<u64>) {
                Some(Ok(bytes)) if bytes > MOST_MEMORY => {
                    break Some(format!("{} MB of memory, here or in the {LOOK} before", bytes >> 20));
                }
                Some(_) => {}
                None => {
                    current = line.parse::<u64>().ok();
                    patience = Duration::from_secs(LONGEST);
                }
            },
            Err(mpsc::RecvTimeoutError::Timeout) => break Some(format!("more than {LONGEST} s")),
            Err(mpsc::RecvTimeoutError::Disconnected) => break Some("died".to_owned()),
        }
    };
    let status = end(&mut child, fault.is_none())?;
    drop(lines);
    let _ = reader.join();
    let complaint = complaint.join().unwrap_or_default();
    let Some(what) = fault else { return Ok((to, None)) };
    let Some(index) = current else {
        bail!("the child for {} does not begin: {what} ({status}){complaint}", target.name);
    };
    let what = if what == "died" { format!("died ({status}):{complaint}") } else { what };
    Ok((index + 1, Some(Fault { target: target.name.to_owned(), index, what })))
}

/// Waits for a child, or ends it.
fn end(child: &mut Child, waits: bool) -> Result<std::process::ExitStatus> {
    if !waits {
        // one that has ended already needs no ending
        let _ = child.kill();
    }
    Ok(child.wait()?)
}
