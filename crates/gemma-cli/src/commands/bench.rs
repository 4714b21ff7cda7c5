//! `gemma bench`: how fast this machine is with a model.

use std::{num::NonZeroUsize, time::Instant};

use anyhow::{Context, Result, bail};
use burn::tensor::Tensor;
use clap::Args;
use gemma_auto::{AutoModel, Family, LoadOptions, with_model};
use gemma_backend::Backend;
use gemma_generate::{Cache, CausalModel, GenerateOptions, Segment};
use gemma_model::Network;
use gemma_tokenizer::TokenId;
use gemma_weights::catalogue::SHAPES;
use paligemma::{Pixels, Prompt, VisionLanguageModel};
use serde::Serialize;

use crate::{
    args::{Compute, OneOf, at_least_one},
    bandwidth,
    interrupt::Ending,
    machine, output,
    session::{self, Opened},
};

/// Measure loading, prefill and decode of a model on this machine.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma bench
  gemma bench --model google/gemma-2-2b-it --precision q8_0
  gemma bench --shape gemma-2b --precision q4_0 --prompt 512 --decode 32
  gemma bench --shape gemma-2b --precision bf16 --depth 2048 --threads 2 --json
  gemma bench --shape gemma-2b --precision bf16 --sequences 8
  gemma bench --bandwidth

--shape measures random weights of a released shape, such as gemma-2b, gemma-3-1b or recurrentgemma-2b (a name that is none
is answered with all of them), so nothing need be downloaded; its load time is that of making them. Numbers are medians
with the smallest and largest beside them. --json: load_seconds, prefill_tokens_per_second, decode_tokens_per_second, each also with
_min and _max, peak_rss_bytes, weight_bytes; first_token_seconds since the program began, after a prompt of 8, for files;
memory_bytes_per_second and memory_part (the share of it that decode used), for large weights on a CPU.")]
pub(crate) struct Bench {
    /// A folder, a GGUF file or a hub id; the demo without it.
    #[arg(short, long, value_name = "FOLDER|FILE|ID", conflicts_with = "shape")]
    pub(crate) model: Option<String>,

    /// Random weights of a released shape.
    #[arg(long, value_name = "NAME", value_parser = OneOf::<String>::of(shapes()), hide_possible_values = true)]
    pub(crate) shape: Option<String>,

    /// Tokens of prefill; 512 without it, or what the context holds.
    #[arg(long, value_name = "N")]
    pub(crate) prompt: Option<usize>,

    /// Tokens of decode.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) decode: usize,

    /// Tokens in the KV cache before either is measured.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) depth: usize,

    /// Sequences in a decode batch, up to 256; the rate is that of all of them.
    #[arg(long, value_name = "N", default_value = "1", value_parser = sequences)]
    pub(crate) sequences: NonZeroUsize,

    /// How often to measure.
    #[arg(long, value_name = "N", default_value = "3", value_parser = at_least_one)]
    pub(crate) repeat: NonZeroUsize,

    /// Measure no model, only the memory bandwidth of the threads.
    #[arg(long, conflicts_with_all = ["model", "shape"])]
    pub(crate) bandwidth: bool,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) compute: Compute,

    /// Use only files that are on this machine already; the same as HF_HUB_OFFLINE=1.
    #[arg(long)]
    pub(crate) offline: bool,
}

/// The released shapes of models that make text.
fn shapes() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().filter(|shape| !shape.makes_vectors()).map(|shape| shape.name)
}

/// A number of sequences whose logits fit into memory at once.
fn sequences(text: &str) -> Result<NonZeroUsize, String> {
    let number = text.parse::<NonZeroUsize>().ok().filter(|number| number.get() <= 256);
    number.ok_or_else(|| "give a number from 1 to 256".to_owned())
}

/// The middle of some measurements, and the smallest and largest.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// `None` without measurements.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let median = (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0;
        Some(Self { median, min, max })
    }
}

/// What was measured; the JSON object.
#[derive(Serialize)]
struct Report {
    model: String,
    backend: String,
    precision: Option<&'static str>,
    /// The CPU's instructions that the kernels use, where it computes.
    instructions: Option<&'static str>,
    /// How far ahead decode requests memory, in bytes, by format.
    prefetch_bytes: std::collections::BTreeMap<&'static str, usize>,
    threads: usize,
    prompt_tokens: usize,
    decode_tokens: usize,
    depth_tokens: usize,
    /// Sequences that are written together; the rate is that of all of them.
    sequences: usize,
    repeat: usize,
    load_seconds: Option<f64>,
    load_seconds_min: Option<f64>,
    load_seconds_max: Option<f64>,
    /// From the start of the program to the first token after a short prompt; null for weights made here.
    first_token_seconds: Option<f64>,
    /// Of one image; null for models without an encoder.
    encode_seconds: Option<f64>,
    encode_seconds_min: Option<f64>,
    encode_seconds_max: Option<f64>,
    prefill_tokens_per_second: Option<f64>,
    prefill_tokens_per_second_min: Option<f64>,
    prefill_tokens_per_second_max: Option<f64>,
    decode_tokens_per_second: Option<f64>,
    decode_tokens_per_second_min: Option<f64>,
    decode_tokens_per_second_max: Option<f64>,
    peak_rss_bytes: Option<u64>,
    weight_bytes: u64,
    /// How fast the threads read cache; null where weights may lie in a cache or not in the CPU's cache.
    memory_bytes_per_second: Option<u64>,
    /// How much of that reading the weights took while writing.
    memory_part: Option<f64>,
    /// Buffers of one sequence after everything that was read.
    sequence_bytes: u64,
}

/// What is measured, in tokens.
#[derive(Clone, Copy)]
struct Lengths {
    prompt: usize,
    decode: usize,
    depth: usize,
    sequences: usize,
}

/// Every single measurement.
#[derive(Default)]
struct Measured {
    load: Vec<f64>,
    encode: Vec<f64>,
    prefill: Vec<f64>,
    decode: Vec<f64>,
    /// Buffers of the sequence that was read last.
    sequence_bytes: usize,
}

pub(crate) fn run(args: &Bench) -> Result<Ending> {
    if args.prompt == Some(0) && args.decode == 0 {
        bail!("--prompt 0 and --decode 0 leave nothing to measure");
    }
    if args.bandwidth {
        let bytes_per_second = bandwidth::of_memory(rayon::current_num_threads());
        if args.json {
            output::json(&serde_json::json!({ "memory_bytes_per_second": bytes_per_second }))?
        } else {
            output::line(format_args!("{}/s", output::bytes(bytes_per_second)))?
        }
        return Ok(Ending::Done);
    }
    let name = args.shape.as_ref().map(|shape| format!("shape:{shape}")).or_else(|| args.model.clone());
    let options = LoadOptions { offline: args.offline, ..args.compute.load_options() };
    let open = || {
        let found = session::locate(name.as_deref(), Family::Gemma, options.clone(), &args.compute)?;
        found.open_without_tokenizer()
    };
    measure(args, open)
}

/// Measures the model that `open` opens, opening it anew for each round.
fn measure(args: &Bench, open: impl Fn() -> Result<Opened<AutoModel>>) -> Result<Ending> {
    let mut measured = Measured::default();
    let mut opened = open()?;
    let lengths = lengths(args, &opened.model)?;
    let first_token_seconds = args.shape.is_none().then(|| {
        with_model!(&opened.model, model => {
            let network = model.network();
            read(network, &mut network.new_cache(), 0, FIRST_PROMPT);
        });
        machine::seconds_since_start()
    });
    for round in 0..args.repeat.get() {
        // Random weights take longer to make than to load, and making them twice tells nothing.
        if round > 0 && args.shape.is_none() {
            drop(opened.model); // two copies at once would show in the peak
            opened = open()?;
        }
        measured.load.push(opened.seconds);
        match &opened.model {
            AutoModel::PaliGemma(model) => one_image_round(model.network(), lengths, &mut measured)?,
            other => with_model!(other, model => one_round(model.network(), lengths, &mut measured))?,
        }
    }
    let mut report = report(args, &opened.model, lengths, measured);
    report.first_token_seconds = first_token_seconds;
    // after the most memory was noted, and with the model's given back
    drop(opened);
    compare_with_memory(&mut report);
    if args.json {
        output::json(&report)?
    } else {
        output::line(summary(&report))?
    }
    Ok(Ending::Done)
}

/// Measures the cache's speed beside that of writing, where the CPU reads all weights from it.
fn compare_with_memory(report: &mut Report) {
    // the encoder of images is not read while writing
    if report.instructions.is_none() || report.weight_bytes < UNCACHED || report.encode_seconds.is_some() {
        return;
    }
    let speed = bandwidth::of_memory(report.threads);
    report.memory_bytes_per_second = Some(speed);
    report.memory_part = report
        .decode_tokens_per_second
        .map(|rate| report.weight_bytes as f64 * rate / report.sequences as f64 / speed as f64);
}

/// Weights beyond any CPU's cache, in bytes.
const UNCACHED: u64 = 1 << 30;

/// The lengths asked for, if they fit; a prompt that was not asked for takes what room there is.
fn lengths(args: &Bench, model: &AutoModel) -> Result<Lengths> {
    let limit = model.context_length().unwrap_or(usize::MAX);
    let usual = match model {
        AutoModel::PaliGemma(model) => Network::config(model.network()).image_tokens() + IMAGE_TEXT,
        _ => USUAL_PROMPT,
    };
    let prompt = args.prompt.unwrap_or_else(|| usual.min(limit.saturating_sub(args.depth)));
    let lengths = Lengths { prompt, decode: args.decode, depth: args.depth, sequences: args.sequences.get() };
    let longest = args.depth.saturating_add(prompt.max(args.decode.saturating_add(1)));
    if longest > limit {
        bail!("{longest} tokens are more than the model's context of {limit}; lower --depth, --prompt or --decode");
    }
    Ok(lengths)
}

/// Reads a prompt and writes some tokens, both after `depth` tokens, and both once untimed before.
fn one_round<N: Network>(decoder: &N, lengths: Lengths, measured: &mut Measured) -> Result<()> {
    let after_depth = || {
        let mut cache = decoder.new_cache();
        read(decoder, &mut cache, 0, lengths.depth);
        cache
    };
    if lengths.prompt > 0 {
        read(decoder, &mut decoder.new_cache(), 0, lengths.prompt);
        let mut cache = after_depth();
        let start = Instant::now();
        read(decoder, &mut cache, lengths.depth, lengths.prompt);
        measured.prefill.push(lengths.prompt as f64 / start.elapsed().as_secs_f64());
        measured.sequence_bytes = cache.bytes_len();
    }
    if lengths.decode > 0 {
        let mut caches: Vec<_> = (0..lengths.sequences).map(|_| after_depth()).collect();
        step(decoder, &mut caches, lengths.depth);
        let start = Instant::now();
        for place in 1..=lengths.decode {
            step(decoder, &mut caches, lengths.depth + place);
        }
        measured.decode.push((lengths.sequences * lengths.decode) as f64 / start.elapsed().as_secs_f64());
        measured.sequence_bytes = caches[0].bytes_len();
    }
    Ok(())
}

/// Tokens of the prompt before the first token that is timed from the start of the program.
const FIRST_PROMPT: usize = 8;

/// Tokens of a prompt, where none were asked for.
const USUAL_PROMPT: usize = 512;

/// Text of a prompt about an image, in tokens: `<bos>`, a few words, a line break.
const IMAGE_TEXT: usize = 8;

/// Encodes an image, reads it with a short text as one prompt, and writes some tokens; each once untimed before.
fn one_image_round(model: &VisionLanguageModel, lengths: Lengths, measured: &mut Measured) -> Result<()> {
    let config = Network::config(model);
    let (side, image) = (config.vision.image_size, config.image_tokens());
    let values = (0..3 * side * side).map(|i| (i % 255) as f32 / 127.0 - 1.0).collect();
    let pixels = Pixels::new(values, side).context("as many values as pixels")?;
    let wait = |features: &Tensor<2>| session::values(features.clone().narrow(0, 0, 1));
    wait(&model.encode(&[&pixels])[0]);
    let start = Instant::now();
    let features = model.encode(&[&pixels]);
    wait(&features[0]);
    measured.encode.push(start.elapsed().as_secs_f64());
    let length = lengths.prompt;
    if length <= image || lengths.depth > 0 || lengths.sequences > 1 {
        bail!(
            "a prompt about an image begins with its {image} tokens and is written alone; give a longer --prompt, and \
             neither --depth nor --sequences"
        );
    }
    let text = (image..length).map(|place| token(place, config.image_token as usize));
    let tokens: Vec<TokenId> = std::iter::repeat_n(config.image_token, image).chain(text).collect();
    let prefill = || {
        let mut cache = model.new_cache();
        let prompt = Prompt { tokens: &tokens, features: &features };
        let hidden_states = model.prefill(&[prompt], &mut [&mut cache]);
        session::values(model.logits(hidden_states.narrow(0, length - 1, 1)));
        cache
    };
    prefill();
    let start = Instant::now();
    let mut cache = prefill();
    measured.prefill.push(length as f64 / start.elapsed().as_secs_f64());
    measured.sequence_bytes = cache.bytes_len();
    if lengths.decode > 0 {
        read(model, &mut cache, length, 1);
        let start = Instant::now();
        for place in 1..=lengths.decode {
            read(model, &mut cache, length + place, 1);
        }
        measured.decode.push(lengths.decode as f64 / start.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Reads tokens as a generation does, in its chunks, and waits for the logits.
fn read<M: CausalModel>(decoder: &M, cache: &mut M::Cache, start: usize, count: usize) {
    let chunk = GenerateOptions::default().prefill_chunk;
    for begin in (start..start + count).step_by(chunk) {
        let len = chunk.min(start + count - begin);
        let tokens: Vec<TokenId> = (begin..begin + len).map(|place| token(place, decoder.vocab())).collect();
        session::values(decoder.last_logits(&tokens, &[Segment::causal(begin, len)], &mut [cache]));
    }
}

/// Writes one token of each sequence, as a batch does, and waits for the logits.
fn step<M: CausalModel>(decoder: &M, caches: &mut [M::Cache], place: usize) {
    let tokens: Vec<TokenId> = (0..caches.len()).map(|sequence| token(place + sequence, decoder.vocab())).collect();
    let segments = vec![Segment::causal(place, 1); caches.len()];
    session::values(decoder.last_logits(&tokens, &segments, &mut caches.iter_mut().collect::<Vec<_>>()));
}

/// Some token for each place, spread over the vocabulary.
fn token(place: usize, vocab: usize) -> TokenId {
    (place.wrapping_mul(2_654_435_761) % vocab) as TokenId
}

fn report(args: &Bench, opened: &AutoModel, lengths: Lengths, measured: Measured) -> Report {
    let device = with_model!(opened, model => Network::device(model.network()));
    let backend = gemma_backend::describe(&device);
    let sequence_bytes = measured.sequence_bytes as u64;
    let [load, encode, prefill, decode] =
        [measured.load, measured.encode, measured.prefill, measured.decode].map(Spread::of);
    let model = match (&args.shape, &args.model) {
        (Some(shape), _) => format!("{shape} with random weights"),
        (None, Some(model)) => model.clone(),
        (None, None) => "the built-in demo".to_owned(),
    };
    let on_cpu = [Backend::NdArray, Backend::Flex].iter().any(|known| backend.starts_with(known.name()));
    Report {
        model,
        backend,
        precision: args.compute.precision.map(|precision| precision.name()),
        instructions: on_cpu.then(|| gemma_kernels::cpu_isa().name()),
        prefetch_bytes: gemma_kernels::prefetch_distances().into_iter().collect(),
        threads: rayon::current_num_threads(),
        prompt_tokens: lengths.prompt,
        decode_tokens: lengths.decode,
        depth_tokens: lengths.depth,
        sequences: lengths.sequences,
        repeat: args.repeat.get(),
        load_seconds: load.map(|spread| spread.median),
        load_seconds_min: load.map(|spread| spread.min),
        load_seconds_max: load.map(|spread| spread.max),
        first_token_seconds: None,
        encode_seconds: encode.map(|spread| spread.median),
        encode_seconds_min: encode.map(|spread| spread.min),
        encode_seconds_max: encode.map(|spread| spread.max),
        prefill_tokens_per_second: prefill.map(|spread| spread.median),
        prefill_tokens_per_second_min: prefill.map(|spread| spread.min),
        prefill_tokens_per_second_max: prefill.map(|spread| spread.max),
        decode_tokens_per_second: decode.map(|spread| spread.median),
        decode_tokens_per_second_min: decode.map(|spread| spread.min),
        decode_tokens_per_second_max: decode.map(|spread| spread.max),
        peak_rss_bytes: machine::peak_memory(),
        weight_bytes: opened.weight_bytes() as u64,
        memory_bytes_per_second: None,
        memory_part: None,
        sequence_bytes,
    }
}

fn summary(report: &Report) -> String {
    let precision = report.precision.unwrap_or("as stored");
    let Report { model, backend, threads, repeat, prompt_tokens, decode_tokens, depth_tokens, .. } = report;
    let together = match report.sequences {
        1 => String::new(),
        sequences => format!(", {sequences} sequences together"),
    };
    let mut instructions = report.instructions.map_or(String::new(), |name| format!(", {name}"));
    for (format, bytes) in &report.prefetch_bytes {
        instructions += &format!(", {format} prefetched {bytes} bytes ahead");
    }
    let (times, after) = (if *repeat == 1 { "once".to_owned() } else { format!("{repeat} times") }, depth_tokens);
    let mut table = output::Table::new(["", "median", "min", "max", ""]);
    let mut row = |what: &str, [median, min, max]: [Option<f64>; 3], unit: String| {
        if let (Some(median), Some(min), Some(max)) = (median, min, max) {
            let numbers = [median, min, max].map(significant);
            table.row(std::iter::once(what.to_owned()).chain(numbers).chain([unit]));
        }
    };
    row("load", [report.load_seconds, report.load_seconds_min, report.load_seconds_max], "s".to_owned());
    let encode = [report.encode_seconds, report.encode_seconds_min, report.encode_seconds_max];
    row("encode", encode, "s (one image)".to_owned());
    row(
        "prefill",
        [report.prefill_tokens_per_second, report.prefill_tokens_per_second_min, report.prefill_tokens_per_second_max],
        format!("tokens/s ({prompt_tokens} tokens)"),
    );
    row(
        "decode",
        [report.decode_tokens_per_second, report.decode_tokens_per_second_min, report.decode_tokens_per_second_max],
        format!("tokens/s ({decode_tokens} tokens{together})"),
    );
    let first = report
        .first_token_seconds
        .map_or(String::new(), |seconds| format!("\nfirst token {} s after the program began", significant(seconds)));
    let bandwidth = report.memory_bytes_per_second.zip(report.memory_part).map_or(String::new(), |(speed, part)| {
        // it is measured afterwards, and a shared machine's memory is not always as fast
        let moved = if part > 1.0 { " (it was faster then)" } else { "" };
        format!("\nmemory bandwidth {}/s; decode used {:.0} % of it{moved}", output::bytes(speed), 100.0 * part)
    });
    let peak = report.peak_rss_bytes.map_or("unknown".to_owned(), output::bytes);
    format!(
        "{model}, {precision}\n{backend}{instructions}, {threads} threads\nmeasured {times}, after {after} tokens\n\n{table}\n\n\
         weights {}, KV cache {}, peak memory {peak}{first}{bandwidth}",
        output::bytes(report.weight_bytes),
        output::bytes(report.sequence_bytes)
    )
}

/// Three significant digits.
fn significant(value: f64) -> String {
    let decimals = match value {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of(vec![4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of(vec![]), None);
    }

    #[test]
    fn three_digits_are_shown() {
        assert_eq!(
            [1234.5, 123.45, 12.345, 1.2345, 0.012345].map(significant),
            ["1234", "123", "12.3", "1.23", "0.012"]
        );
    }

    #[test]
    fn tokens_stay_in_the_vocabulary() {
        assert!((0..10_000).all(|place| (token(place, 300) as usize) < 300));
    }
}
