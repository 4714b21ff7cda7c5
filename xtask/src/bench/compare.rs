//! Ours and theirs in turn, on the same files with the same threads.

use super::peers::{Peers, Run, run};
use super::{Options, rounded};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A run in which other programs used more cores than this is repeated.
const QUIET: f64 = 0.1;
/// How often.
const ATTEMPTS: usize = 3;
/// Text of a prompt about a picture, in tokens.
const PICTURE_TEXT: usize = 8;

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

/// Measures every shape and precision against the peers that have it.
///
/// # Errors
/// A model could not be made, or a program failed.
pub(super) fn compare(options: &Options, gemma: &Path, peers: &Peers) -> Result<Vec<Comparison>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut found = Vec::new();
    for shape in &options.shapes {
        for precision in &options.precisions {
            for rival in rivals(shape, precision) {
                let there = match rival {
                    Rival::Llama => peers.has_llama(),
                    Rival::Transformers => peers.has_transformers(),
                };
                if !there {
                    continue;
                }
                let model = model(gemma, peers.cache(), shape, precision, rival)?;
                let (mut ours, mut theirs) = (Vec::new(), Vec::new());
                for round in 1..=options.repeat {
                    eprintln!("==> {shape} {precision}, {}, round {round} of {}", rival.name(), options.repeat);
                    ours.push(quietly(|| measure_ours(gemma, &model, options, shape, threads))?);
                    let picture = shape.starts_with("paligemma");
                    let prompt = if picture { PICTURE_TEXT } else { options.prompt };
                    let run = quietly(|| match rival {
                        Rival::Llama => peers.llama(&model, prompt, options.decode, threads),
                        Rival::Transformers => peers.transformers(&model, prompt, options.decode, threads),
                    });
                    match run {
                        Ok(run) => theirs.push(run),
                        Err(error) => {
                            eprintln!("{} is left out of {shape} in {precision}: {error:#}", rival.name());
                            break;
                        }
                    }
                }
                if theirs.is_empty() {
                    continue;
                }
                found.push(Comparison { shape: shape.clone(), precision: precision.clone(), rival, ours, theirs });
            }
        }
    }
    Ok(found)
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

/// The file or folder with random weights, made if it is not there.
fn model(gemma: &Path, cache: &Path, shape: &str, precision: &str, rival: Rival) -> Result<PathBuf> {
    let name = match rival {
        Rival::Llama => format!("{shape}-{precision}.gguf"),
        Rival::Transformers => format!("{shape}-{precision}"),
    };
    let path = cache.join(name);
    if !path.exists() {
        eprintln!("making {}", path.display());
        let mut command = Command::new(gemma);
        command.arg("convert").arg(format!("shape:{shape}")).arg(&path).args(["--format", precision, "--json"]);
        run(&mut command)?;
    }
    Ok(path)
}

fn measure_ours(gemma: &Path, model: &Path, options: &Options, shape: &str, threads: usize) -> Result<Run> {
    let mut command = Command::new(gemma);
    command.args(["bench", "--backend", "ndarray", "--repeat", "1", "--json", "--model"]).arg(model);
    command.args(["--threads", &threads.to_string(), "--decode", &options.decode.to_string()]);
    if !shape.starts_with("paligemma") {
        command.args(["--prompt", &options.prompt.to_string()]);
    }
    if options.fast {
        command.arg("--fast-activations");
    }
    run(&mut command)
}

/// A run while the machine was quiet; after some attempts, one while it was not, with a word about it.
fn quietly(mut measure: impl FnMut() -> Result<Run>) -> Result<Run> {
    let mut run = measure()?;
    for _ in 1..ATTEMPTS {
        if run.others.is_none_or(|cores| cores <= QUIET) {
            break;
        }
        run = measure()?;
    }
    if let Some(cores) = run.others.filter(|cores| *cores > QUIET) {
        eprintln!("other programs used {cores:.2} cores meanwhile");
    }
    Ok(run)
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
        [bar("reading", PREFILL), bar("writing", DECODE)].into_iter().flatten().collect()
    }
}

/// The table of all comparisons.
///
/// # Errors
/// A number of ours is missing.
pub(super) fn table(comparisons: &[Comparison], bandwidth: f64) -> Result<String> {
    let mut text = "| shape, precision | against | reading: ours | theirs | ratio | writing: ours | theirs | ratio | of the bandwidth | peak memory: ours | theirs |\n\
                    |---|---|---|---|---|---|---|---|---|---|---|\n".to_owned();
    for comparison in comparisons {
        let Comparison { shape, precision, rival, ours, theirs } = comparison;
        let own = |field: &str| {
            Spread::of(ours, field).with_context(|| format!("gemma bench of {shape} in {precision} lacks {field}"))
        };
        let (prefill, decode, weights) = (own(PREFILL)?, own(DECODE)?, own("weight_bytes")?);
        let told = |spread: Option<Spread>| spread.map_or("–".to_owned(), Spread::told);
        let ratio = |field: &str| comparison.ratio(field).map_or("–".to_owned(), |ratio| format!("**{ratio:.2}**"));
        let peak = |runs: &[Run]| {
            let most = runs.iter().filter_map(|run| run.peak).max();
            most.map_or("unknown".to_owned(), |bytes| format!("{:.2} GB", bytes as f64 / 1e9))
        };
        text += &format!(
            "| {shape}, {precision} | {} | {} | {} | {} | {} | {} | {} | {:.0} % | {} | {} |\n",
            rival.name(),
            prefill.told(),
            told(Spread::of(theirs, PREFILL)),
            ratio(PREFILL),
            decode.told(),
            told(Spread::of(theirs, DECODE)),
            ratio(DECODE),
            100.0 * weights.median * decode.median / bandwidth,
            peak(ours),
            peak(theirs),
        );
    }
    for Comparison { shape, ours, theirs, .. } in comparisons {
        let encode = |runs: &[Run]| Spread::of(runs, "encode_seconds");
        if let Some((ours, theirs)) = encode(ours).zip(encode(theirs)) {
            text += &format!(
                "\n{shape}: a picture is encoded in {} s, by transformers in {} s ({:.2} times as fast).\n",
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn runs(values: &[(f64, f64)]) -> Vec<Run> {
        let run = |(prefill, decode): &(f64, f64)| Run {
            measured: json!({ PREFILL: prefill, DECODE: decode, "weight_bytes": 5e9 }),
            peak: Some(5_100_000_000),
            others: Some(0.02),
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
        let table = table(std::slice::from_ref(&one), 40e9).expect("all numbers are there");
        assert!(table.contains("| 100 [90.0–120] | 45.0 [40.0–50.0] | **2.22** |"), "{table}");
        assert!(table.contains("| 75 % | 5.10 GB | 5.10 GB |") && table.contains("0.02 cores"), "{table}");
        assert_eq!(one.bars()[1].0, "gemma-2b bf16, writing, to llama.cpp");
    }

    #[test]
    fn each_has_the_rivals_that_know_it() {
        assert_eq!(rivals("gemma-2b", "bf16"), [Rival::Transformers, Rival::Llama]);
        assert_eq!(rivals("gemma-2-2b", "q8_0"), [Rival::Llama]);
        assert_eq!(rivals("recurrentgemma-2b", "bf16"), [Rival::Transformers]);
        assert!(rivals("paligemma-3b-224", "q4_0").is_empty());
    }
}
