//! `cargo xtask bench --backend NAME`: what a GPU gives, within minutes. First whether it computes what the CPU does, then
//! its bandwidth, then a row for each shape and precision.
//!
//! Every row is a process with a time limit, and is written down as soon as it is there, so that a machine that is lent
//! for minutes, or a driver that hangs, costs no more than the rest.

use super::{Options, child, number, rounded};
use crate::cargo::Step;
use crate::machine;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

pub(super) const MARKERS: [&str; 2] = ["<!-- gpu: begin -->", "<!-- gpu: end -->"];
/// Backends that this is for.
pub(super) const BACKENDS: [&str; 3] = ["wgpu", "vulkan", "metal"];
/// Names a program that was built before, with the feature of the backend.
const PROGRAM: &str = "GEMMA_BENCH_PROGRAM";
/// The longest that one process may take.
const ROW: Duration = Duration::from_secs(120);
/// Less is not worth a process.
const LEAST: Duration = Duration::from_secs(5);
/// By how much a logprob may differ from the CPU's.
const TOLERANCE: f64 = 2e-3;
/// Models and precisions whose logprobs are compared with the CPU's.
const COMPARED: [(&str, &str); 5] = [
    ("demo:gemma", "bf16"),
    ("demo:gemma", "q8_0"),
    ("demo:gemma", "q4_0"),
    ("demo:codegemma", "q4_0"),
    ("demo:recurrentgemma", "bf16"),
];
/// What they are asked to score.
const TEXT: &str =
    "Once upon a time there was a little girl who lived in a house by the sea. One day she found a red boat.";

/// What is measured, and how it is called.
struct Row {
    model: String,
    precision: Option<String>,
}

impl Row {
    fn shape(name: &str, precision: &str) -> Self {
        Self { model: format!("--shape {name}"), precision: Some(precision.to_string()) }
    }

    fn name(&self) -> &str {
        self.model.rsplit(' ').next().unwrap_or(&self.model)
    }

    fn arguments(&self, options: &Options, backend: &str) -> Vec<String> {
        let Options { prompt, decode, repeat, .. } = options;
        let precision = self.precision.iter().map(|precision| format!(" --precision {precision}")).collect::<String>();
        let command = format!(
            "bench {}{precision} --backend {backend} --prompt {prompt} --decode {decode} --repeat {repeat} --json",
            self.model
        );
        command.split(' ').map(str::to_string).collect()
    }
}

/// The rows asked for; without any, those that say most, the most telling first.
fn rows(options: &Options, small: bool) -> Vec<Row> {
    if !options.shapes.is_empty() {
        let each = |shape: &String| {
            let precisions = options.precisions(shape).into_iter().map(|precision| Row::shape(shape, precision));
            precisions.collect::<Vec<_>>()
        };
        return options.shapes.iter().flat_map(each).collect();
    }
    if small {
        let demo = |name: &str| Row { model: format!("--model demo:{name}"), precision: None };
        return vec![demo("gemma"), demo("recurrentgemma"), Row::shape("gemma-3-270m", "q4_0")];
    }
    let pairs = [
        ("gemma-2b", "q4_0"),
        ("gemma-2b", "bf16"),
        ("gemma-2b", "q8_0"),
        ("recurrentgemma-2b", "bf16"),
        ("recurrentgemma-2b", "q4_0"),
        ("gemma-2-2b", "q4_0"),
        ("gemma-3-270m", "bf16"),
    ];
    pairs.into_iter().map(|(shape, precision)| Row::shape(shape, precision)).collect()
}

pub(super) fn run(root: &Path, options: &Options, backend: &str) -> Result<()> {
    let program = match std::env::var_os(PROGRAM) {
        Some(program) => PathBuf::from(program),
        None => {
            let features = ["build", "--release", "--package", "gemma-cli", "--features", backend];
            Step::new("build", &features).run(root)?;
            super::program(root)
        }
    };
    let file = super::target(root).join(format!("bench-{backend}.md"));
    let end = Instant::now() + Duration::from_secs(60 * options.minutes);
    let mut record = Record { file, text: String::new() };
    let gemma = |arguments: &[String]| limited(&program, arguments, end);

    let compared = compared(&gemma, backend);
    record.add(&format!("Machine: {}.\n", machine::describe()))?;
    record.add(&compared.clone().unwrap_or_else(|error| format!("WRONG: {error}\n")))?;

    let words = |line: &str| line.split(' ').map(str::to_string).collect::<Vec<_>>();
    // the smallest model names the device
    let demo = gemma(&words(&format!(
        "bench --model demo:gemma --backend {backend} --prompt 8 --decode 2 --repeat 1 --json"
    )))?;
    let adapter = demo["backend"].as_str().context("gemma bench names no device")?.to_string();
    let is_software = adapter.contains("software");
    let bandwidth = gemma(&words(&format!("bench --bandwidth --backend {backend} --json")))
        .and_then(|measured| number(&measured, "memory_bytes_per_second"));
    let bandwidth = bandwidth.map_or_else(|error| error.to_string(), |speed| format!("{:.0} GB/s", speed / 1e9));
    record.add(&format!(
        "Device: {adapter}; it reads and writes {bandwidth} (`gemma bench --bandwidth --backend {backend}`).\n\
         Each row: `gemma {}`.\n\n\
         | shape | precision | weights | prefill | multiplied | decode | of the bandwidth | launches a token | up | back |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
        Row::shape("SHAPE", "PRECISION").arguments(options, backend).join(" ")
    ))?;
    let mut missing = 0;
    for row in rows(options, options.quick || is_software) {
        let line = gemma(&row.arguments(options, backend)).and_then(|measured| line(&row, &measured));
        missing += usize::from(line.is_err());
        record.add(&line.unwrap_or_else(|reason| {
            let precision = row.precision.as_deref().unwrap_or("as stored");
            let reason = reason.to_string().replace('|', "/");
            format!("| {} | {precision} | not measured: {reason} | | | | | | | |\n", row.name())
        }))?;
    }
    println!("written to {}", record.file.display());
    if let Err(error) = compared {
        bail!("the {backend} backend does not compute what the CPU does: {error}");
    }
    match (is_software, options.write) {
        (true, _) => println!("{} keeps its table: this device is software", super::DOCUMENT),
        (false, true) => super::write(root, &record.text, MARKERS)?,
        (false, false) => {}
    }
    if missing > 0 { bail!("{missing} rows were not measured; the file says why") } else { Ok(()) }
}

/// What was found so far, in a file that is always complete up to the last row.
struct Record {
    file: PathBuf,
    text: String,
}

impl Record {
    fn add(&mut self, text: &str) -> Result<()> {
        print!("{text}");
        self.text.push_str(text);
        std::fs::write(&self.file, &self.text).with_context(|| format!("cannot write {}", self.file.display()))
    }
}

/// Compares the logprobs of a text with those of the CPU. `Err` says in a sentence what differs.
fn compared(gemma: &impl Fn(&[String]) -> Result<Value>, backend: &str) -> std::result::Result<String, String> {
    let mut largest = 0.0f64;
    for (model, precision) in COMPARED {
        let score = |backend: &str| -> Result<Vec<f64>> {
            let flags = format!("score --json --exact-activations --model {model} --precision {precision}");
            let flags = flags.split(' ').map(str::to_string);
            let rest = ["--backend", backend, "--text", TEXT].map(str::to_string);
            let found = gemma(&flags.chain(rest).collect::<Vec<_>>())?;
            let logprobs = found["log_probs"].as_array().context("gemma score gives no log_probs")?;
            Ok(logprobs.iter().filter_map(Value::as_f64).collect())
        };
        let [theirs, ours] = ["ndarray", backend].map(|backend| score(backend).map_err(|error| format!("{error:#}")));
        let (theirs, ours) = (theirs?, ours?);
        let pairs = theirs.iter().zip(&ours).map(|(theirs, ours)| (theirs - ours).abs());
        let difference = pairs.fold(0.0, |a: f64, b| if b > a || b.is_nan() { b } else { a });
        if theirs.len() != ours.len() || difference.is_nan() || difference > TOLERANCE {
            return Err(format!(
                "{model} in {precision} gives {} logprobs that differ by up to {difference:.1e} from ndarray's {}",
                ours.len(),
                theirs.len()
            ));
        }
        largest = largest.max(difference);
    }
    Ok(format!(
        "Logprobs of {} models and precisions differ by at most {largest:.1e} from those of ndarray.\n",
        COMPARED.len()
    ))
}

/// A row of the table.
///
/// # Errors
/// A number is missing.
fn line(row: &Row, measured: &Value) -> Result<String> {
    let get = |name: &str| number(measured, name);
    let (prefill, decode) = (get("prefill_tokens_per_second")?, get("decode_tokens_per_second")?);
    let multiplied = get("parameters")? - get("embedding_parameters")?;
    let part = get("memory_part").map_or("–".to_string(), |part| format!("{:.0} %", 100.0 * part));
    Ok(format!(
        "| {} | {} | {:.2} GB | {} tok/s | {} TFLOP/s | {} tok/s | {part} | {} | {} in {} B | {} B |\n",
        row.name(),
        row.precision.as_deref().unwrap_or("as stored"),
        get("weight_bytes")? / 1e9,
        rounded(prefill),
        rounded(2.0 * multiplied * prefill / 1e12),
        rounded(decode),
        get("launches_per_token")?,
        get("uploads_per_token")?,
        get("uploaded_bytes_per_token")?,
        get("downloaded_bytes_per_token")?,
    ))
}

/// Runs the program until `end`, or for as long as a row may take, and reads the JSON that it prints.
///
/// # Errors
/// It took longer, failed, or printed something else.
fn limited(program: &Path, arguments: &[String], end: Instant) -> Result<Value> {
    let limit = ROW.min(end.saturating_duration_since(Instant::now()));
    if limit < LEAST {
        bail!("the time was over");
    }
    eprintln!("==> gemma {}", arguments.join(" "));
    let (value, seconds) = child::json(Command::new(program).args(arguments), Some(limit), |_| ())?;
    eprintln!("<== {seconds:.1} s");
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_a_token_costs() {
        let measured = serde_json::json!({
            "prefill_tokens_per_second": 10_000.0, "decode_tokens_per_second": 250.0, "weight_bytes": 1_410_000_000u64,
            "parameters": 2_500_000_000u64, "embedding_parameters": 500_000_000u64, "memory_part": 0.706,
            "launches_per_token": 330, "uploads_per_token": 6, "uploaded_bytes_per_token": 1500,
            "downloaded_bytes_per_token": 12,
        });
        let row = Row::shape("gemma-2b", "q4_0");
        let expected = "| gemma-2b | q4_0 | 1.41 GB | 10000 tok/s | 40.0 TFLOP/s | 250 tok/s | 71 % | 330 | 6 in 1500 B | 12 B |\n";
        assert_eq!(line(&row, &measured).expect("all numbers are there"), expected);
        assert!(line(&row, &serde_json::json!({})).is_err());
    }

    #[test]
    fn a_program_that_takes_too_long_is_cut() {
        let soon = Instant::now() + LEAST + Duration::from_millis(300);
        let words = |line: &str| line.split(' ').map(str::to_string).collect::<Vec<_>>();
        if cfg!(unix) {
            let error = limited(Path::new("sleep"), &words("60"), soon).expect_err("it sleeps longer");
            assert!(error.to_string().starts_with("cut after"), "{error}");
            let error = limited(Path::new("ls"), &words("/nowhere"), soon + ROW).expect_err("there is no such folder");
            assert!(error.to_string().contains("nowhere"), "{error}");
            let found = limited(Path::new("echo"), &words("{\"a\":1}"), soon + ROW).expect("it is JSON");
            assert_eq!(found["a"], 1);
        }
        let error = limited(Path::new("echo"), &words("{}"), Instant::now()).expect_err("there is no time");
        assert_eq!(error.to_string(), "the time was over");
    }

    #[test]
    fn rows_are_those_asked_for() {
        let mut options = super::super::parse(&["--backend", "wgpu", "--quick"].map(str::to_string)).expect("right");
        assert_eq!(rows(&options, true)[0].name(), "demo:gemma");
        assert!(rows(&options, false).len() >= 5);
        options.shapes = vec!["gemma-2b".into()];
        let named: Vec<_> = rows(&options, true).into_iter().filter_map(|row| row.precision).collect();
        assert_eq!(named, ["bf16", "q8_0", "q4_0"]);
        let row = Row::shape("gemma-2b", "q4_0");
        assert!(
            row.arguments(&options, "wgpu")
                .join(" ")
                .starts_with("bench --shape gemma-2b --precision q4_0 --backend wgpu")
        );
    }
}
