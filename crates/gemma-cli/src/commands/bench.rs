//! `gemma bench`: how fast this machine is with a model.

mod report;

use std::{num::NonZeroUsize, time::Instant};

use anyhow::{Context, Result, bail};
use burn::tensor::{Device, Tensor};
use clap::Args;
use gemma_auto::{AutoModel, Family, LoadOptions, with_model};
use gemma_generate::{Cache, CausalModel, GenerateOptions, Segment};
use gemma_kernels::{Traffic, is_apart, watch};
use gemma_model::Network;
use gemma_tokenizer::TokenId;
use gemma_weights::catalogue::SHAPES;
use paligemma::{Pixels, Prompt, VisionLanguageModel};

use crate::{
    args::{Compute, OneOf, at_least_one},
    bandwidth,
    interrupt::Ending,
    machine, output,
    session::{self, Opened},
};
use report::{Report, report, summary};

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
memory_bytes_per_second and memory_part (the share of it that decode used), for large weights; prefetch, how decode requests
memory, on a CPU; launches_per_token,
uploads_per_token, uploaded_bytes_per_token and downloaded_bytes_per_token, on a GPU. --bandwidth --backend NAME measures the
GPU's memory.")]
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

    /// Measure no model, only the memory bandwidth of the threads, or of a GPU that --backend names.
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
    /// What a token of decode asked of a GPU.
    traffic: Option<Traffic>,
    /// Buffers of the sequence that was read last.
    sequence_bytes: usize,
}

pub(crate) fn run(args: &Bench) -> Result<Ending> {
    if args.prompt == Some(0) && args.decode == 0 {
        bail!("--prompt 0 and --decode 0 leave nothing to measure");
    }
    if args.bandwidth {
        let bytes_per_second = match args.compute.backend.map(|backend| backend.device()).transpose()? {
            Some(device) if is_apart(&device) => {
                eprintln!("{}", gemma_backend::describe(&device));
                bandwidth::of_device(&device)?
            }
            _ => bandwidth::of_memory(rayon::current_num_threads()),
        };
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
    let device = with_model!(&opened.model, model => Network::device(model.network()));
    drop(opened);
    compare_with_memory(&mut report, &device)?;
    if args.json {
        output::json(&report)?
    } else {
        output::line(summary(&report))?
    }
    Ok(Ending::Done)
}

/// Measures the memory's speed beside that of decode, where that reads all weights from it.
fn compare_with_memory(report: &mut Report, device: &Device) -> Result<()> {
    // the encoder of images is not read while writing
    if report.weight_bytes < UNCACHED || report.encode_seconds.is_some() {
        return Ok(());
    }
    let speed = if is_apart(device) { bandwidth::of_device(device)? } else { bandwidth::of_memory(report.threads) };
    report.memory_bytes_per_second = Some(speed);
    report.memory_part = report
        .decode_tokens_per_second
        .map(|rate| report.weight_bytes as f64 * rate / report.sequences as f64 / speed as f64);
    Ok(())
}

/// Weights beyond any cache, in bytes.
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
        for place in 1..lengths.decode {
            step(decoder, &mut caches, lengths.depth + place);
        }
        let ((), traffic) = watch(|| step(decoder, &mut caches, lengths.depth + lengths.decode));
        measured.traffic = is_apart(&decoder.device()).then_some(traffic);
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
    let encoded = |features: &Tensor<2>| session::values(features.clone().narrow(0, 0, 1));
    encoded(&model.encode(&[&pixels])[0]);
    let start = Instant::now();
    let features = model.encode(&[&pixels]);
    encoded(&features[0]);
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
        wait(model.logits(hidden_states.narrow(0, length - 1, 1)));
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

/// Waits for logits as a greedy generation does: where they are far, for the largest of each row.
fn wait(logits: Tensor<2>) {
    if is_apart(&logits.device()) {
        gemma_kernels::largest(logits, 1).expect("a device that fails ends the measurement");
    } else {
        session::values(logits);
    }
}

/// Reads tokens as a generation does, in its chunks, and waits for the logits.
fn read<M: CausalModel>(decoder: &M, cache: &mut M::Cache, start: usize, count: usize) {
    let chunk = GenerateOptions::default().prefill_chunk;
    for begin in (start..start + count).step_by(chunk) {
        let len = chunk.min(start + count - begin);
        let tokens: Vec<TokenId> = (begin..begin + len).map(|place| token(place, decoder.vocab())).collect();
        wait(decoder.last_logits(&tokens, &[Segment::causal(begin, len)], &mut [cache]));
    }
}

/// Writes one token of each sequence, as a batch does, and waits for the logits.
fn step<M: CausalModel>(decoder: &M, caches: &mut [M::Cache], place: usize) {
    let tokens: Vec<TokenId> = (0..caches.len()).map(|sequence| token(place + sequence, decoder.vocab())).collect();
    let segments = vec![Segment::causal(place, 1); caches.len()];
    wait(decoder.last_logits(&tokens, &segments, &mut caches.iter_mut().collect::<Vec<_>>()));
}

/// Some token for each place, spread over the vocabulary.
fn token(place: usize, vocab: usize) -> TokenId {
    (place.wrapping_mul(2_654_435_761) % vocab) as TokenId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_stay_in_the_vocabulary() {
        assert!((0..10_000).all(|place| (token(place, 300) as usize) < 300));
    }
}
