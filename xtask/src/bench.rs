//! `cargo xtask bench`: speed at a released shape beside the memory bandwidth of the machine, as a table in
//! docs/performance.md.
//!
//! The measuring is `gemma bench`'s, in a process of its own per row, so that one row's peak memory says nothing
//! about another. This chore adds the yardstick, the description of the machine and the commands; with `--peers` also
//! what llama.cpp and Hugging Face transformers do on the same files, in turn with ours, and a chart. With `--backend` it is
//! a GPU that is measured.

mod chart;
mod child;
mod compare;
mod gpu;
mod peers;

use crate::cargo::Step;
use crate::machine;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};

const DOCUMENT: &str = "docs/performance.md";
const BEGIN: &str = "<!-- bench: begin -->";
const END: &str = "<!-- bench: end -->";
/// Marks and chart of the comparison, of the one in which we round activations as the others do, and of the one after
/// many tokens.
const PEERS: ([&str; 2], &str) = (["<!-- peers: begin -->", "<!-- peers: end -->"], "performance.svg");
const FAST: ([&str; 2], &str) = (["<!-- fast: begin -->", "<!-- fast: end -->"], "performance-fast.svg");
const DEEP: ([&str; 2], &str) = (["<!-- deep: begin -->", "<!-- deep: end -->"], "performance-deep.svg");

/// What the command line asks for.
#[derive(Debug, PartialEq)]
struct Options {
    /// Empty: the usual ones.
    shapes: Vec<String>,
    /// Empty: those that are usual for a shape.
    precisions: Vec<String>,
    /// Measurements per number, of which the median counts.
    repeat: usize,
    /// Tokens read at once.
    prompt: usize,
    /// Tokens decoded one by one.
    decode: usize,
    /// Tokens read already before either.
    depth: usize,
    /// Whether models that were made to compare are removed when they have been measured.
    discard: bool,
    /// Whether to compare with other programs.
    peers: bool,
    /// Whether our side runs with `--fast-activations`.
    fast: bool,
    /// Whether the table goes into the document, and not only to the terminal.
    write: bool,
    /// Whether small models do.
    quick: bool,
    /// The GPU's backend.
    backend: Option<String>,
    /// How long a GPU is measured at most.
    minutes: u64,
}

impl Options {
    /// The shapes asked for; without any, small ones, and alone also large ones.
    fn shapes(&self) -> Vec<&str> {
        match (self.shapes.is_empty(), self.peers) {
            (false, _) => self.shapes.iter().map(String::as_str).collect(),
            (true, true) => vec!["gemma-2b"],
            (true, false) => vec!["gemma-2b", "gemma-2-2b", "gemma-2-9b", "gemma-2-27b"],
        }
    }

    /// The precisions asked for; without any, those in which a shape fits into the memory of a usual machine.
    fn precisions(&self, shape: &str) -> Vec<&str> {
        match self.precisions.is_empty() {
            false => self.precisions.iter().map(String::as_str).collect(),
            true if shape.ends_with("-2b") || shape.starts_with("paligemma") => vec!["bf16", "q8_0", "q4_0"],
            true => vec!["q4_0"],
        }
    }

    /// Those of `--shape` and `--precisions` that were given, to say it again.
    fn chosen(&self) -> String {
        let each = [("--shape", &self.shapes), ("--precisions", &self.precisions)];
        let given = each.iter().filter(|(_, list)| !list.is_empty());
        given.map(|(name, list)| format!(" {name} {}", list.join(","))).collect()
    }
}

/// One measured configuration.
struct Row {
    shape: String,
    precision: String,
    /// What `gemma bench --json` printed.
    measured: Value,
}

pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let options = parse(arguments)?;
    if let Some(backend) = &options.backend {
        return gpu::run(root, &options, backend);
    }
    // Built once and first, so that no compiler runs while something is measured.
    Step::new("build", &["build", "--release", "--package", "gemma-cli"]).run(root)?;
    let bandwidth = memory_speed(root)?;
    if options.peers {
        return compare_with_peers(root, &options, bandwidth);
    }
    let mut rows = Vec::new();
    for shape in options.shapes() {
        for precision in options.precisions(shape) {
            eprintln!("==> {shape} {precision}");
            let step = Step::new("bench", &["run", "--release", "--quiet", "--package", "gemma-cli", "--"]);
            let output = step.and(&measurement(&options, shape, precision)).output(root)?;
            let measured =
                serde_json::from_str(&output).with_context(|| format!("gemma bench printed no JSON: {output:?}"))?;
            rows.push(Row { shape: shape.to_string(), precision: precision.to_string(), measured });
        }
    }

    let section = section(&options, &machine::describe(), bandwidth, &rows)?;
    println!("{section}");
    if options.write {
        write(root, &section, [BEGIN, END])?;
    }
    Ok(())
}

/// Prints what `gemma bench --bandwidth` measures.
pub(crate) fn bandwidth(root: &Path, arguments: &[String]) -> Result<()> {
    if let Some(argument) = arguments.first() {
        bail!("bandwidth takes no options (got {argument:?})");
    }
    Step::new("build", &["build", "--release", "--package", "gemma-cli"]).run(root)?;
    println!("{}", memory_speed(root)?);
    Ok(())
}

/// Bytes per second that all cores together read from memory.
fn memory_speed(root: &Path) -> Result<f64> {
    let arguments = ["run", "--release", "--quiet", "--package", "gemma-cli", "--", "bench", "--bandwidth", "--json"];
    let printed = Step::new("bandwidth", &arguments).output(root)?;
    let printed: serde_json::Value = serde_json::from_str(&printed).context("gemma bench printed no JSON")?;
    printed["memory_bytes_per_second"].as_f64().context("the bandwidth is not a number")
}

fn read(root: &Path) -> Result<String> {
    std::fs::read_to_string(root.join(DOCUMENT)).with_context(|| format!("cannot read {DOCUMENT}"))
}

fn write(root: &Path, section: &str, markers: [&str; 2]) -> Result<()> {
    let text = replaced(&read(root)?, section, markers)?;
    std::fs::write(root.join(DOCUMENT), text).with_context(|| format!("cannot write {DOCUMENT}"))?;
    println!("written to {DOCUMENT}");
    Ok(())
}

fn compare_with_peers(root: &Path, options: &Options, bandwidth: f64) -> Result<()> {
    let (markers, chart) = match options {
        Options { depth: 1.., .. } => DEEP,
        Options { fast: true, .. } => FAST,
        _ => PEERS,
    };
    if options.write {
        // before the hours, not after them
        replaced(&read(root)?, "", markers)?;
    }
    let peers = peers::Peers::find()?;
    let comparisons = compare::compare(options, &program(root), &peers)?;
    if comparisons.is_empty() {
        bail!("nothing could be compared; the reasons are above");
    }
    let after = if options.depth > 0 { format!("After {} tokens, ", options.depth) } else { String::new() };
    let depth = if options.depth > 0 { format!(" --depth {}", options.depth) } else { String::new() };
    let built = peers.compiler().map(|compiler| format!(" llama.cpp built with {compiler}.")).unwrap_or_default();
    let section = format!(
        "Machine: {}; memory bandwidth {:.1} GB/s (`cargo xtask bandwidth`).{built} {after}prefill of {} tokens, then decode \
         of {}, {} times in turn (`cargo xtask bench --peers{}{depth}{}`).\n\n{}\n![Ratios]({chart})\n",
        machine::describe(),
        bandwidth / 1e9,
        options.prompt,
        options.decode,
        options.repeat,
        if options.fast { " --fast-activations" } else { "" },
        options.chosen(),
        compare::table(&comparisons)?
    );
    println!("{section}");
    if options.write {
        let bars: Vec<(String, f64)> = comparisons.iter().flat_map(compare::Comparison::bars).collect();
        let drawn = chart::chart("Times as fast as the others", &bars);
        let path = root.join("docs").join(chart);
        std::fs::write(&path, drawn).with_context(|| format!("cannot write {}", path.display()))?;
        write(root, &section, markers)?;
    }
    Ok(())
}

/// The folder that cargo builds into.
fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |folder| root.join(folder))
}

/// The program, where cargo puts it.
fn program(root: &Path) -> PathBuf {
    target(root).join("release").join(format!("gemma{}", std::env::consts::EXE_SUFFIX))
}

/// A number of what `gemma bench --json` printed.
fn number(measured: &Value, name: &str) -> Result<f64> {
    measured[name].as_f64().with_context(|| format!("gemma bench lacks the number {name}"))
}

fn parse(arguments: &[String]) -> Result<Options> {
    let list = |text: &str| -> Result<Vec<String>> {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        let items: Vec<String> = items.map(str::to_string).collect();
        if items.is_empty() { bail!("{text:?} names nothing to measure") } else { Ok(items) }
    };
    let mut options = Options {
        shapes: Vec::new(),
        precisions: Vec::new(),
        repeat: 3,
        prompt: 512,
        decode: 32,
        depth: 0,
        discard: false,
        peers: false,
        fast: false,
        write: true,
        quick: false,
        backend: None,
        minutes: 8,
    };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--shape" => options.shapes = list(value()?)?,
            "--precisions" => options.precisions = list(value()?)?,
            "--prompt" => options.prompt = value()?.parse().context("--prompt takes an integer")?,
            "--decode" => options.decode = value()?.parse().context("--decode takes an integer")?,
            "--depth" => options.depth = value()?.parse().context("--depth takes an integer")?,
            "--discard" => options.discard = true,
            "--peers" => options.peers = true,
            "--fast-activations" => options.fast = true,
            "--repeat" => options.repeat = value()?.parse().context("--repeat takes an integer")?,
            "--quick" => {
                (options.repeat, options.prompt, options.decode) = (1, 64, 8);
                (options.write, options.quick) = (false, true);
            }
            "--backend" => options.backend = Some(value()?.clone()),
            "--minutes" => options.minutes = value()?.parse().context("--minutes takes an integer")?,
            unknown => bail!(
                "unknown option {unknown:?}; the options are --shape, --precisions, --prompt, --decode, --depth, --repeat, \
                 --peers, --discard, --fast-activations, --quick, --backend and --minutes"
            ),
        }
    }
    if let Some(backend) = options.backend.as_deref() {
        if !gpu::BACKENDS.contains(&backend) {
            bail!("--backend measures a GPU: give wgpu, vulkan or metal, not {backend:?}");
        }
        if options.peers || options.fast || options.depth > 0 {
            bail!("--backend goes with none of --peers, --fast-activations and --depth");
        }
    }
    if options.minutes == 0 {
        bail!("there is no time to measure: give --minutes at least 1");
    }
    if options.repeat == 0 {
        bail!("there is nothing to measure: give at least one repetition");
    }
    if options.depth > 0 && options.shapes.iter().any(|shape| shape.starts_with("paligemma")) {
        bail!("an image comes first: leave paligemma out of --shape, or --depth");
    }
    if options.prompt == 0 || options.decode == 0 {
        bail!("prefill and decode are both measured: give --prompt and --decode at least 1");
    }
    Ok(options)
}

/// What `gemma` is asked to measure.
fn measurement(options: &Options, shape: &str, precision: &str) -> Vec<String> {
    let Options { prompt, decode, repeat, .. } = options;
    let command = format!(
        "bench --shape {shape} --precision {precision} --prompt {prompt} --decode {decode} --repeat {repeat} --json"
    );
    let depth = options.depth.to_string();
    let depth = if options.depth > 0 { vec!["--depth", &depth] } else { Vec::new() };
    let fast = options.fast.then_some("--fast-activations");
    command.split(' ').chain(depth).chain(fast).map(str::to_string).collect()
}

/// The text between the markers: machine, command and table.
///
/// # Errors
/// A measured object lacks a number.
fn section(options: &Options, machine: &str, bandwidth: f64, rows: &[Row]) -> Result<String> {
    let command = measurement(options, "SHAPE", "PRECISION").join(" ");
    let mut text = format!(
        "Machine: {machine}; memory bandwidth {:.1} GB/s (`cargo xtask bandwidth`).\n\
         Each row: `gemma {command}`.\n\n\
         | shape | precision | weights | prefill | decode | of the bandwidth | peak memory |\n\
         |---|---|---|---|---|---|---|\n",
        bandwidth / 1e9
    );
    for Row { shape, precision, measured } in rows {
        let number = |name: &str| number(measured, name).with_context(|| format!("{shape} in {precision}"));
        let spread = |name: &str| match (number(&format!("{name}_min")), number(&format!("{name}_max"))) {
            (Ok(min), Ok(max)) => format!(" [{}–{}]", rounded(min), rounded(max)),
            _ => String::new(),
        };
        let (prefill, decode) = ("prefill_tokens_per_second", "decode_tokens_per_second");
        let weights = number("weight_bytes")?;
        let part = number("memory_part").map_or("–".to_string(), |part| format!("{:.0} %", 100.0 * part));
        // Not every system says how much memory was in use at most.
        let peak = number("peak_rss_bytes").map_or("unknown".to_string(), |bytes| format!("{:.2} GB", bytes / 1e9));
        text.push_str(&format!(
            "| {shape} | {precision} | {:.2} GB | {}{} tok/s | {}{} tok/s | {part} | {peak} |\n",
            weights / 1e9,
            rounded(number(prefill)?),
            spread(prefill),
            rounded(number(decode)?),
            spread(decode),
        ));
    }
    Ok(text)
}

/// Three digits, whatever the size.
fn rounded(number: f64) -> String {
    match number {
        n if n < 10.0 => format!("{n:.2}"),
        n if n < 100.0 => format!("{n:.1}"),
        n => format!("{n:.0}"),
    }
}

/// `document` with `section` between the markers.
fn replaced(document: &str, section: &str, [first, last]: [&str; 2]) -> Result<String> {
    let places = document.find(first).zip(document.find(last)).filter(|(begin, end)| begin < end);
    let (begin, end) = places.with_context(|| format!("{DOCUMENT} lacks the markers {first} and {last}"))?;
    Ok(format!("{}\n{section}{}", &document[..begin + first.len()], &document[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &[&str]) -> Result<Options> {
        parse(&arguments.iter().map(|argument| argument.to_string()).collect::<Vec<_>>())
    }

    fn row() -> Row {
        let measured = serde_json::json!({
            "prefill_tokens_per_second": 123.4, "decode_tokens_per_second": 5.0,
            "decode_tokens_per_second_min": 4.9, "decode_tokens_per_second_max": 5.1,
            "peak_rss_bytes": 5_200_000_000u64, "weight_bytes": 5_000_000_000u64,
            "memory_part": 0.5,
        });
        Row { shape: "gemma-2b".into(), precision: "bf16".into(), measured }
    }

    #[test]
    fn options_are_read() {
        let read = options(&["--shape", "a,b", "--precisions", "q8_0", "--repeat", "5"]).expect("they are right");
        assert_eq!(
            (read.shapes, read.precisions, read.repeat, read.write),
            (vec!["a".into(), "b".into()], vec!["q8_0".into()], 5, true)
        );
        assert!(!options(&["--quick"]).expect("it is right").write);
        let usual = options(&[]).expect("it is right");
        assert_eq!((usual.shapes()[0], usual.precisions("gemma-2b").len()), ("gemma-2b", 3));
        assert_eq!((usual.shapes()[3], usual.precisions("gemma-2-27b")), ("gemma-2-27b", vec!["q4_0"]));
        assert_eq!(usual.chosen(), "");
        let chosen = options(&["--peers", "--shape", "a,b", "--precisions", "f32"]).expect("they are right");
        assert_eq!((chosen.shapes(), chosen.precisions("a")), (vec!["a", "b"], vec!["f32"]));
        assert_eq!(chosen.chosen(), " --shape a,b --precisions f32");
        let deep = options(&["--peers", "--depth", "2048", "--discard"]).expect("they are right");
        assert_eq!((deep.peers, deep.depth, deep.discard), (true, 2048, true));
        assert!(measurement(&deep, "a", "bf16").join(" ").ends_with("--json --depth 2048"));
        let wrongs = [
            &["--shape"][..],
            &["--repeat", "many"],
            &["--repeat", "0"],
            &["--precisions", ","],
            &["--fast"],
            &["--decode", "0"],
            &["--depth", "9", "--shape", "paligemma-3b-224"],
            &["--backend", "ndarray"],
            &["--backend", "vulkan", "--peers"],
            &["--minutes", "some"],
            &["--minutes", "0"],
        ];
        for wrong in wrongs {
            assert!(options(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_row_says_how_much_of_the_bandwidth_is_used() {
        let text =
            section(&options(&[]).expect("defaults"), "a machine", 50e9, &[row()]).expect("all numbers are there");
        let expected = "| gemma-2b | bf16 | 5.00 GB | 123 tok/s | 5.00 [4.90–5.10] tok/s | 50 % | 5.20 GB |";
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("gemma bench --shape SHAPE --precision PRECISION --prompt 512"), "{text}");
    }

    #[test]
    fn a_missing_number_is_named() {
        let row = Row { measured: serde_json::json!({}), ..row() };
        let error = section(&options(&[]).expect("defaults"), "", 1.0, &[row]).expect_err("nothing was measured");
        assert!(format!("{error:#}").contains("weight_bytes"), "{error:#}");
    }

    #[test]
    fn the_document_has_a_place_for_every_table() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let document = read(&root).expect("it is part of the repository");
        for markers in [[BEGIN, END], PEERS.0, FAST.0, DEEP.0, gpu::MARKERS] {
            assert!(replaced(&document, "", markers).is_ok(), "{markers:?}");
        }
    }

    #[test]
    fn only_the_text_between_the_markers_changes() {
        let document = format!("# Speed\n{BEGIN}\nold\n{END}\nafter\n");
        assert_eq!(
            replaced(&document, "new\n", [BEGIN, END]).ok(),
            Some(format!("# Speed\n{BEGIN}\nnew\n{END}\nafter\n"))
        );
        assert!(replaced("# Speed\n", "new", [BEGIN, END]).is_err());
        assert!(replaced(&format!("{END}{BEGIN}"), "new", [BEGIN, END]).is_err());
    }
}
