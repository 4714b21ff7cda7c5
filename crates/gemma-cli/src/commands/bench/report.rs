//! What `gemma bench` prints: a table, or a JSON object.

use gemma_auto::{AutoModel, with_model};
use gemma_backend::Backend;
use gemma_generate::CausalModel;
use gemma_kernels::Traffic;
use gemma_model::Network;
use serde::Serialize;

use super::{Bench, Lengths, Measured};
use crate::{machine, output};

/// The middle of some measurements, and the smallest and largest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// `None` without measurements.
    pub(super) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let median = (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0;
        Some(Self { median, min, max })
    }
}

/// How decode requests the memory of matrices of a format with so many columns.
#[derive(Serialize)]
pub(super) struct Prefetched {
    format: &'static str,
    columns: usize,
    /// How far ahead.
    bytes: usize,
    /// Into the cache of which level, 1 or 2.
    level: u8,
}

impl Prefetched {
    fn new(((format, columns), prefetch): ((&'static str, usize), gemma_kernels::Prefetch)) -> Self {
        Self { format, columns, bytes: prefetch.bytes, level: 1 + u8::from(prefetch.into_l2) }
    }
}

/// What was measured; the JSON object.
#[derive(Serialize)]
pub(super) struct Report {
    pub(super) model: String,
    pub(super) backend: String,
    pub(super) precision: Option<&'static str>,
    /// The CPU's instructions that the kernels use, where it computes.
    pub(super) instructions: Option<&'static str>,
    /// How decode requests the memory of large matrices.
    pub(super) prefetch: Vec<Prefetched>,
    pub(super) threads: usize,
    pub(super) prompt_tokens: usize,
    pub(super) decode_tokens: usize,
    pub(super) depth_tokens: usize,
    /// Sequences that are written together; the rate is that of all of them.
    pub(super) sequences: usize,
    pub(super) repeat: usize,
    pub(super) load_seconds: Option<f64>,
    pub(super) load_seconds_min: Option<f64>,
    pub(super) load_seconds_max: Option<f64>,
    /// From the start of the program to the first token after a short prompt; null for weights made here.
    pub(super) first_token_seconds: Option<f64>,
    /// Of one image; null for models without an encoder.
    pub(super) encode_seconds: Option<f64>,
    pub(super) encode_seconds_min: Option<f64>,
    pub(super) encode_seconds_max: Option<f64>,
    pub(super) prefill_tokens_per_second: Option<f64>,
    pub(super) prefill_tokens_per_second_min: Option<f64>,
    pub(super) prefill_tokens_per_second_max: Option<f64>,
    pub(super) decode_tokens_per_second: Option<f64>,
    pub(super) decode_tokens_per_second_min: Option<f64>,
    pub(super) decode_tokens_per_second_max: Option<f64>,
    pub(super) peak_rss_bytes: Option<u64>,
    pub(super) weight_bytes: u64,
    /// Values of the weights, and those of them that are looked up rather than multiplied in a prompt: the embedding table.
    pub(super) parameters: u64,
    pub(super) embedding_parameters: u64,
    /// Of a token of decode, on a GPU.
    pub(super) launches_per_token: Option<usize>,
    pub(super) uploads_per_token: Option<usize>,
    pub(super) uploaded_bytes_per_token: Option<usize>,
    pub(super) downloaded_bytes_per_token: Option<usize>,
    /// How fast the threads, or the GPU, read memory; null where weights may lie in a cache.
    pub(super) memory_bytes_per_second: Option<u64>,
    /// How much of that reading the weights took while writing.
    pub(super) memory_part: Option<f64>,
    /// Buffers of one sequence after everything that was read.
    pub(super) sequence_bytes: u64,
}

pub(super) fn report(args: &Bench, opened: &AutoModel, lengths: Lengths, measured: Measured) -> Report {
    let device = with_model!(opened, model => Network::device(model.network()));
    let backend = gemma_backend::describe(&device);
    let sequence_bytes = measured.sequence_bytes as u64;
    let traffic = measured.traffic;
    let parameters = with_model!(opened, model => Network::weight_summary(model.network()).parameters);
    let embedding_parameters = with_model!(opened, model => {
        let network = model.network();
        (network.vocab() * network.embed(&[0]).embeddings.dims()[1]) as u64
    });
    let [load, encode, prefill, decode] =
        [measured.load, measured.encode, measured.prefill, measured.decode].map(Spread::of);
    let model = match (&args.shape, &args.model) {
        (Some(shape), _) => format!("{shape} with random weights"),
        (None, Some(model)) => model.clone(),
        (None, None) => "the built-in demo".to_owned(),
    };
    let prefetches = gemma_kernels::prefetches();
    let on_cpu = [Backend::NdArray, Backend::Flex].iter().any(|known| backend.starts_with(known.name()));
    Report {
        model,
        backend,
        precision: args.compute.precision.map(|precision| precision.name()),
        instructions: on_cpu.then(|| gemma_kernels::cpu_isa().name()),
        prefetch: prefetches.into_iter().map(Prefetched::new).collect(),
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
        parameters,
        embedding_parameters,
        launches_per_token: traffic.as_ref().map(Traffic::launched),
        uploads_per_token: traffic.as_ref().map(|traffic| traffic.uploads),
        uploaded_bytes_per_token: traffic.as_ref().map(|traffic| traffic.uploaded),
        downloaded_bytes_per_token: traffic.as_ref().map(|traffic| traffic.downloaded),
        memory_bytes_per_second: None,
        memory_part: None,
        sequence_bytes,
    }
}

pub(super) fn summary(report: &Report) -> String {
    let precision = report.precision.unwrap_or("as stored");
    let Report { model, backend, threads, repeat, prompt_tokens, decode_tokens, depth_tokens, .. } = report;
    let together = match report.sequences {
        1 => String::new(),
        sequences => format!(", {sequences} sequences together"),
    };
    let mut instructions = report.instructions.map_or(String::new(), |name| format!(", {name}"));
    for Prefetched { format, columns, bytes, level } in &report.prefetch {
        instructions += &format!(", {format} rows of {columns} prefetched {bytes} bytes ahead into L{level}");
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
    let of_a_token = report.launches_per_token.map_or(String::new(), |launches| {
        let bytes = |bytes: Option<usize>| output::bytes(bytes.unwrap_or_default() as u64);
        format!(
            "\na token of decode: {launches} launches, {} uploads of {}, {} back",
            report.uploads_per_token.unwrap_or_default(),
            bytes(report.uploaded_bytes_per_token),
            bytes(report.downloaded_bytes_per_token)
        )
    });
    let peak = report.peak_rss_bytes.map_or("unknown".to_owned(), output::bytes);
    format!(
        "{model}, {precision}\n{backend}{instructions}, {threads} threads\nmeasured {times}, after {after} tokens\n\n{table}\n\n\
         weights {}, KV cache {}, peak memory {peak}{first}{of_a_token}{bandwidth}",
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
}
