//! Ours and theirs in turn, on the same files with the same threads.

use super::peers::{Peers, Run, Work, free, load, run};
use super::{Options, rounded};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A run in which other programs used more cores than this is repeated.
const QUIET: f64 = 0.1;
/// How often; the least disturbed one counts.
const ATTEMPTS: usize = 3;
/// How long a run waits for others to end.
const PATIENCE: Duration = Duration::from_secs(120);
/// What making a model leaves free on the disk, in bytes.
const RESERVE: u64 = 2 << 30;
/// Text of a prompt about an image, in tokens.
const IMAGE_TEXT: usize = 8;

/// A program to compare with.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rival {
    Llama,
    Transformers,
}

impl Rival {
    fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama.cpp",
            Self::Transformers => "transformers",
        }
    }
}

/// One configuration, measured on both sides.
pub(super) struct Comparison {
    shape: String,
    precision: String,
    rival: Rival,
    ours: Vec<Run>,
    theirs: Vec<Run>,
}

/// Measures every shape and precision against the peers that have it. What cannot be measured is left out, with the
/// reason on stderr.
///
/// # Errors
/// A program of ours failed.
pub(super) fn compare(options: &Options, gemma: &Path, peers: &Peers) -> Result<Vec<Comparison>> {
    let mut found = Vec::new();
    for shape in options.shapes() {
        for precision in options.precisions(shape) {
            for rival in rivals(shape, precision) {
                let there = match rival {
                    Rival::Llama => peers.has_llama(),
                    Rival::Transformers => peers.has_transformers(),
                };
                if !there {
                    continue;
                }
                let model = match Model::find(gemma, peers.cache(), shape, precision, rival) {
                    Ok(model) => model,
                    Err(error) => {
                        eprintln!("{} is left out of {shape} in {precision}: {error:#}", rival.name());
                        continue;
                    }
                };
                let measured = in_turn(options, gemma, peers, shape, precision, rival, &model.path);
                if options.discard && model.made {
                    model.remove()?;
                }
                found.extend(measured?);
            }
        }
    }
    Ok(found)
}

/// Ours and theirs in turn; nothing if theirs fails from the start.
fn in_turn(
    options: &Options,
    gemma: &Path,
    peers: &Peers,
    shape: &str,
    precision: &str,
    rival: Rival,
    model: &Path,
) -> Result<Option<Comparison>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let prompt = if shape.starts_with("paligemma") { IMAGE_TEXT } else { options.prompt };
    let work = Work { prompt, decode: options.decode, depth: options.depth, threads };
    // so that neither waits for the disk
    touch(model).with_context(|| format!("cannot read {}", model.display()))?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=options.repeat {
        eprintln!("==> {shape} {precision}, {}, round {round} of {}", rival.name(), options.repeat);
        ours.push(quietly(|| measure_ours(gemma, model, options, shape, threads))?);
        let run = quietly(|| match rival {
            Rival::Llama => peers.llama(model, work),
            Rival::Transformers => peers.transformers(model, work),
        });
        match run {
            Ok(run) => theirs.push(run),
            Err(error) => {
                eprintln!("{} is left out of {shape} in {precision}: {error:#}", rival.name());
                break;
            }
        }
    }
    let comparison = Comparison { shape: shape.to_owned(), precision: precision.to_owned(), rival, ours, theirs };
    Ok((!comparison.theirs.is_empty()).then_some(comparison))
}

/// Who has a shape in a precision.
fn rivals(shape: &str, precision: &str) -> Vec<Rival> {
    // the only architectures of these that llama.cpp has
    let in_gguf = shape.starts_with("gemma-") || shape.starts_with("codegemma-");
    let mut rivals = Vec::new();
    if precision == "bf16" {
        rivals.push(Rival::Transformers);
    }
    if in_gguf {
        rivals.push(Rival::Llama);
    }
    rivals
}

/// A file or folder with random weights.
struct Model {
    path: PathBuf,
    /// Whether it was not there before.
    made: bool,
}

impl Model {
    /// The one in the cache, made if it is not there.
    ///
    /// # Errors
    /// There is too little room for it, or it could not be written.
    fn find(gemma: &Path, cache: &Path, shape: &str, precision: &str, rival: Rival) -> Result<Self> {
        let name = match rival {
            Rival::Llama => format!("{shape}-{precision}.gguf"),
            Rival::Transformers => format!("{shape}-{precision}"),
        };
        let path = cache.join(name);
        if path.exists() {
            return Ok(Self { path, made: false });
        }
        let needed = weight_bytes(gemma, shape, precision)?;
        if let Some(free) = free(cache)
            && free < needed + RESERVE
        {
            bail!(
                "{} would take {:.1} GB and {:.1} GB are free; make room, or set GEMMA_BENCH_CACHE to another disk",
                path.display(),
                needed as f64 / 1e9,
                free as f64 / 1e9
            );
        }
        eprintln!("making {}", path.display());
        let mut command = Command::new(gemma);
        command.arg("convert").arg(format!("shape:{shape}")).arg(&path).args(["--format", precision, "--json"]);
        run(&mut command)?;
        Ok(Self { path, made: true })
    }

    fn remove(self) -> Result<()> {
        let removed =
            if self.path.is_dir() { std::fs::remove_dir_all(&self.path) } else { std::fs::remove_file(&self.path) };
        removed.with_context(|| format!("cannot remove {}", self.path.display()))
    }
}

/// Bytes of a shape's weights, from the program's catalogue.
fn weight_bytes(gemma: &Path, shape: &str, precision: &str) -> Result<u64> {
    let listed = run(Command::new(gemma).args(["models", "--all", "--json"]))?;
    bytes_listed(&listed.measured, shape, precision)
        .with_context(|| format!("gemma models lists no {shape} in {precision}"))
}

fn bytes_listed(listed: &serde_json::Value, shape: &str, precision: &str) -> Option<u64> {
    let model = listed["models"].as_array()?.iter().find(|model| model["shape"] == shape)?;
    model["weight_bytes"][precision].as_u64()
}

/// Reads a file, or the files of a folder, once.
fn touch(model: &Path) -> std::io::Result<()> {
    if model.is_dir() {
        return std::fs::read_dir(model)?.try_for_each(|entry| touch(&entry?.path()));
    }
    std::io::copy(&mut std::fs::File::open(model)?, &mut std::io::sink()).map(|_| ())
}

fn measure_ours(gemma: &Path, model: &Path, options: &Options, shape: &str, threads: usize) -> Result<Run> {
    let mut command = Command::new(gemma);
    command.args(["bench", "--backend", "ndarray", "--repeat", "1", "--json", "--model"]).arg(model);
    command.args(["--threads", &threads.to_string(), "--decode", &options.decode.to_string()]);
    if !shape.starts_with("paligemma") {
        command.args(["--prompt", &options.prompt.to_string(), "--depth", &options.depth.to_string()]);
    }
    if options.fast {
        command.arg("--fast-activations");
    }
    let mut run = run(&mut command)?;
    // its own word: it measures the memory afterwards, which takes some
    run.peak = run.measured["peak_rss_bytes"].as_u64();
    Ok(run)
}

/// A run while the machine was quiet; after some attempts the least disturbed one, with a word about it.
fn quietly(mut measure: impl FnMut() -> Result<Run>) -> Result<Run> {
    let run = least_disturbed(|| {
        wait_for_quiet();
        measure()
    })?;
    if let Some(cores) = run.others.filter(|cores| *cores > QUIET) {
        eprintln!("other programs used {cores:.2} cores meanwhile");
    }
    Ok(run)
}

fn least_disturbed(mut measure: impl FnMut() -> Result<Run>) -> Result<Run> {
    let mut best = measure()?;
    for _ in 1..ATTEMPTS {
        if best.others.is_none_or(|cores| cores <= QUIET) {
            break;
        }
        let run = measure()?;
        if run.others < best.others {
            best = run;
        }
    }
    Ok(best)
}

/// Waits until other programs rest, but not for ever.
fn wait_for_quiet() {
    let start = Instant::now();
    let mut told = false;
    while let Some(cores) = load().filter(|cores| *cores > QUIET) {
        if start.elapsed() > PATIENCE {
            return;
        }
        if !told {
            eprintln!("waiting: other programs use {cores:.2} cores");
            told = true;
        }
    }
}

/// The middle of some numbers, and the smallest and largest.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(runs: &[Run], field: &str) -> Option<Self> {
        let mut values: Vec<f64> = runs.iter().filter_map(|run| run.measured[field].as_f64()).collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let median = (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0;
        Some(Self { median, min, max })
    }

    fn told(self) -> String {
        format!("{} [{}–{}]", rounded(self.median), rounded(self.min), rounded(self.max))
    }
}

const PREFILL: &str = "prefill_tokens_per_second";
const DECODE: &str = "decode_tokens_per_second";
const FIRST: &str = "first_token_seconds";

impl Comparison {
    /// Ours over theirs, of the medians.
    fn ratio(&self, field: &str) -> Option<f64> {
        Some(Spread::of(&self.ours, field)?.median / Spread::of(&self.theirs, field)?.median)
    }

    /// Bars for the chart.
    pub(super) fn bars(&self) -> Vec<(String, f64)> {
        let Self { shape, precision, rival, .. } = self;
        let bar = |what: &str, field: &str| {
            Some((format!("{shape} {precision}, {what}, to {}", rival.name()), self.ratio(field)?))
        };
        [bar("prefill", PREFILL), bar("decode", DECODE)].into_iter().flatten().collect()
    }
}

/// The table of all comparisons.
///
/// # Errors
/// A number of ours is missing.
pub(super) fn table(comparisons: &[Comparison]) -> Result<String> {
    let mut text = "| shape, precision | against | prefill: ours | theirs | ratio | decode: ours | theirs | ratio | of the bandwidth | peak memory: ours | theirs |\n\
                    |---|---|---|---|---|---|---|---|---|---|---|\n".to_owned();
    for comparison in comparisons {
        let Comparison { shape, precision, rival, ours, theirs } = comparison;
        let own = |field: &str| {
            Spread::of(ours, field).with_context(|| format!("gemma bench of {shape} in {precision} lacks {field}"))
        };
        let (prefill, decode) = (own(PREFILL)?, own(DECODE)?);
        let part =
            Spread::of(ours, "memory_part").map_or("–".to_owned(), |part| format!("{:.0} %", 100.0 * part.median));
        let told = |spread: Option<Spread>| spread.map_or("–".to_owned(), Spread::told);
        let ratio = |field: &str| comparison.ratio(field).map_or("–".to_owned(), |ratio| format!("**{ratio:.2}**"));
        let peak = |runs: &[Run]| {
            let most = runs.iter().filter_map(|run| run.peak).max();
            most.map_or("unknown".to_owned(), |bytes| format!("{:.2} GB", bytes as f64 / 1e9))
        };
        text += &format!(
            "| {shape}, {precision} | {} | {} | {} | {} | {} | {} | {} | {part} | {} | {} |\n",
            rival.name(),
            prefill.told(),
            told(Spread::of(theirs, PREFILL)),
            ratio(PREFILL),
            decode.told(),
            told(Spread::of(theirs, DECODE)),
            ratio(DECODE),
            peak(ours),
            peak(theirs),
        );
    }
    text += &starts(comparisons);
    for Comparison { shape, ours, theirs, .. } in comparisons {
        let encode = |runs: &[Run]| Spread::of(runs, "encode_seconds");
        if let Some((ours, theirs)) = encode(ours).zip(encode(theirs)) {
            text += &format!(
                "\n{shape}: an image is encoded in {} s, by transformers in {} s ({:.2} times as fast).\n",
                ours.told(),
                theirs.told(),
                theirs.median / ours.median
            );
        }
    }
    let versions = comparisons.iter().flat_map(|one| &one.theirs).find_map(|run| run.measured["versions"].as_str());
    let noise = comparisons.iter().flat_map(|one| one.ours.iter().chain(&one.theirs)).filter_map(|run| run.others);
    text += &format!(
        "\nTokens per second; medians with the smallest and largest. {}Other programs used at most {:.2} cores during a run.\n",
        versions.map(|versions| format!("{versions}. ")).unwrap_or_default(),
        noise.fold(0.0, f64::max)
    );
    Ok(text)
}

/// How long programs take from their start to the first token, as a table; nothing where nobody says.
fn starts(comparisons: &[Comparison]) -> String {
    let rows: String = comparisons
        .iter()
        .filter_map(|Comparison { shape, precision, rival, ours, theirs }| {
            let (ours, theirs) = Spread::of(ours, FIRST).zip(Spread::of(theirs, FIRST))?;
            let (name, ratio) = (rival.name(), theirs.median / ours.median);
            Some(format!(
                "| {shape}, {precision} | {name} | {} s | {} s | **{ratio:.2}** |\n",
                ours.told(),
                theirs.told()
            ))
        })
        .collect();
    if rows.is_empty() {
        return rows;
    }
    format!(
        "\nFrom the start of the program to the first token after a prompt of 8, the file in the page cache:\n\n\
         | shape, precision | against | ours | theirs | times as fast |\n|---|---|---|---|---|\n{rows}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn runs(values: &[(f64, f64)]) -> Vec<Run> {
        let run = |(prefill, decode): &(f64, f64)| Run {
            measured: json!({ PREFILL: prefill, DECODE: decode, FIRST: 40.0 / decode, "memory_part": 0.15 * decode }),
            peak: Some(5_100_000_000),
            others: Some(0.02),
            seconds: 60.0,
        };
        values.iter().map(run).collect()
    }

    #[test]
    fn ratios_are_those_of_the_medians() {
        let one = Comparison {
            shape: "gemma-2b".into(),
            precision: "bf16".into(),
            rival: Rival::Llama,
            ours: runs(&[(100.0, 6.0), (90.0, 5.0), (120.0, 7.0)]),
            theirs: runs(&[(50.0, 4.0), (40.0, 3.0)]),
        };
        assert_eq!(one.ratio(DECODE), Some(6.0 / 3.5));
        let table = table(std::slice::from_ref(&one)).expect("all numbers are there");
        assert!(table.contains("| 100 [90.0–120] | 45.0 [40.0–50.0] | **2.22** |"), "{table}");
        assert!(table.contains("| 90 % | 5.10 GB | 5.10 GB |") && table.contains("0.02 cores"), "{table}");
        assert!(table.contains("| 6.67 [5.71–8.00] s | 11.7 [10.0–13.3] s | **1.75** |"), "{table}");
        assert_eq!(one.bars()[1].0, "gemma-2b bf16, decode, to llama.cpp");
    }

    #[test]
    fn each_has_the_rivals_that_know_it() {
        assert_eq!(rivals("gemma-2b", "bf16"), [Rival::Transformers, Rival::Llama]);
        assert_eq!(rivals("gemma-2-2b", "q8_0"), [Rival::Llama]);
        assert_eq!(rivals("recurrentgemma-2b", "bf16"), [Rival::Transformers]);
        assert!(rivals("paligemma-3b-224", "q4_0").is_empty());
    }

    #[test]
    fn a_disturbed_run_is_repeated_and_the_least_disturbed_counts() {
        let measure = |noises: &[f64]| {
            let mut noises = noises.iter();
            let run = least_disturbed(|| {
                let others = noises.next().copied();
                Ok(Run { measured: json!({}), peak: None, others, seconds: 1.0 })
            });
            (run.expect("nothing fails").others, noises.len())
        };
        assert_eq!(measure(&[0.05, 0.0]), (Some(0.05), 1));
        assert_eq!(measure(&[0.5, 0.01, 0.0]), (Some(0.01), 1));
        assert_eq!(measure(&[0.5, 0.3, 0.4, 0.0]), (Some(0.3), 1));
        assert_eq!(measure(&[]), (None, 0));
    }

    #[test]
    fn sizes_come_from_the_catalogue() {
        let listed = json!({ "models": [{ "shape": "a", "weight_bytes": { "bf16": 7 } }] });
        assert_eq!(bytes_listed(&listed, "a", "bf16"), Some(7));
        assert_eq!((bytes_listed(&listed, "a", "q4_0"), bytes_listed(&listed, "b", "bf16")), (None, None));
    }

    #[test]
    fn files_are_read_where_they_are() {
        assert!(touch(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bench")).is_ok());
        assert!(touch(Path::new("/nowhere/at/all")).is_err());
    }
}
