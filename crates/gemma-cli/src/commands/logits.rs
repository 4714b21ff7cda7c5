//! `gemma logits`: the numbers themselves, for comparing and for tools. All of them go to a file, or the likeliest tokens
//! are printed.

mod likeliest;

use std::{num::NonZeroUsize, ops::Range, path::PathBuf, sync::Arc};

use anyhow::{Result, bail};
use burn::tensor::Tensor;
use clap::Args;
use gemma_auto::{Architecture, AutoModel, with_model};
use gemma_generate::{CausalModel, Segment, TokenId, check_tokens};
use gemma_model::Network;
use gemma_tokenizer::{EncodeOptions, Tokenizer};
use gemma3::Gemma3;
use indicatif::ProgressBar;
use paligemma::{Image, Prompt, VisionLanguageModel};

use crate::{
    args::{Model as ModelArgs, Source, at_least_one},
    image_files,
    interrupt::{self, Ending, Watch},
    logits_file::{self, LogitsFile},
    new_file::{self, NewFile},
    output, progress, session, text,
    tokens_file::TokenRows,
};

use likeliest::Likeliest;

/// Write the logits after every token to a safetensors file, or print the likeliest next tokens as JSON.
#[derive(Args, Debug)]
#[command(after_help = "\
The tokens file holds a JSON array of token ids, read exactly as given, or an array of such arrays, read together
as one batch. The output holds `logits`, f32 [tokens, vocab], or `logits.0`, `logits.1`, ... for a batch.

With --json, the --top likeliest tokens after every token (after the last of each row only, with --last) are printed
instead: {\"positions\": [{\"position\", \"id\", \"top_logprobs\": [{\"id\", \"token\", \"logprob\", \"bytes\"}]}]}, or
{\"rows\": [...]} of such objects for a batch. Logprobs are natural logarithms; token and bytes are null without a tokenizer.

Examples:
  gemma logits --json --last --top 5 \"Once upon a time\"
  echo '[2, 10, 20, 30]' > ids.json
  gemma logits --json --tokens-file ids.json
  gemma logits --tokens-file ids.json --out logits.safetensors
  gemma logits --model DIR --tokens-file ids.json --out logits.safetensors --chunk 64 --backend wgpu")]
pub(crate) struct Logits {
    #[command(flatten)]
    pub(crate) source: Source,

    /// Where to write; the file appears complete or not at all.
    #[arg(short, long, value_name = "FILE", conflicts_with = "json")]
    pub(crate) out: Option<PathBuf>,

    /// Print the likeliest tokens as one JSON object instead of writing a file.
    #[arg(long)]
    pub(crate) json: bool,

    /// With --json: how many of the likeliest tokens.
    #[arg(long, value_name = "N", default_value = "10", value_parser = at_least_one, requires = "json", allow_negative_numbers = true)]
    pub(crate) top: NonZeroUsize,

    /// With --json: only after the last token of each row.
    #[arg(long, requires = "json")]
    pub(crate) last: bool,

    /// An image, in the order of the image tokens in the rows; may be given several times. For PaliGemma and Gemma 3.
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Vec<PathBuf>,

    /// The last N tokens of each row are an answer to the others. For PaliGemma, whose prompts see themselves both ways.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) suffix: usize,

    /// Prefill N tokens of each row at a time through the KV cache; 512 without it.
    #[arg(long, value_name = "N", value_parser = at_least_one, allow_negative_numbers = true)]
    pub(crate) chunk: Option<NonZeroUsize>,

    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// Tokens of a row to read at a time: few enough that Ctrl-C is heard soon, enough to be as fast as all at once.
const CHUNK: usize = 512;
/// Rows of logits to compute at a time: 64 take 66 MB with 256 000 columns.
const HEAD_ROWS: usize = 64;

/// Where the logits go.
enum Place {
    File(NewFile),
    Json(Likeliest),
}

/// The same, once the rows are known.
enum Sink {
    File(LogitsFile),
    Json(Likeliest),
}

impl Place {
    /// Begins to take the logits of rows of that many tokens.
    fn begin(self, rows: &[usize], batch: bool, vocab: usize) -> Result<Sink> {
        Ok(match self {
            Self::File(file) => Sink::File(LogitsFile::begin(file, rows, batch, vocab)?),
            Self::Json(likeliest) => Sink::Json(likeliest.of(rows, batch, vocab)),
        })
    }
}

impl Sink {
    /// The first of `len` tokens from `start` on whose logits are wanted.
    fn wanted(&self, row: usize, start: usize, len: usize) -> usize {
        match self {
            Self::File(_) => 0,
            Self::Json(likeliest) => likeliest.wanted(row, start, len),
        }
    }

    fn put(&mut self, row: usize, token: usize, logits: &[f32]) -> Result<()> {
        match self {
            Self::File(file) => file.put(row, token, logits),
            Self::Json(likeliest) => Ok(likeliest.put(row, token, logits)?),
        }
    }

    /// Gives the complete file its name, or prints.
    fn finish(self, ids: &TokenRows) -> Result<()> {
        match self {
            Self::File(file) => file.finish(),
            Self::Json(likeliest) => output::json(&likeliest.report(ids)),
        }
    }
}

/// The rows, and the tokenizer where one is needed for texts.
fn rows(
    args: &Logits,
    given: Option<TokenRows>,
    tokenizer: Result<Arc<Tokenizer>>,
) -> Result<(TokenRows, Option<Arc<Tokenizer>>)> {
    Ok(match given {
        Some(ids) => (ids, tokenizer.ok()),
        None => {
            let text = text::given(args.source.prompt.as_deref(), args.source.prompt_file.as_deref())?;
            let (tokenizer, specials) = (tokenizer?, args.source.specials);
            let ids = tokenizer.encode_with(&text, EncodeOptions { bos: true, specials });
            (TokenRows::One(ids), Some(tokenizer))
        }
    })
}

pub(crate) fn run(args: &Logits) -> Result<Ending> {
    if args.out.is_none() && !args.json {
        bail!("say what is wanted: --out FILE for all logits, or --json for the likeliest next tokens");
    }
    let given = args.source.tokens_file.as_deref().map(TokenRows::read).transpose()?;
    let is_kind = logits_file::is_one;
    let file = args.out.as_deref().map(|out| new_file::replacing(out, "file of logits", is_kind)).transpose()?;
    let images = args.image.iter().map(|file| image_files::open(file)).collect::<Result<Vec<_>>>()?;
    let found = if images.is_empty() { session::find(&args.model)? } else { session::find_images(&args.model)? };
    if !images.is_empty() && !matches!(found.architecture()?, Architecture::PaliGemma | Architecture::Gemma3) {
        bail!("--image needs a model that sees images, such as google/paligemma-3b-mix-224; this one reads text only");
    }
    // without one, numbers can be asked for all the same
    let needed = args.json || given.is_none();
    let opened = if needed { found.open()? } else { found.open_without_tokenizer()? };
    let tokenizer = with_model!(&opened.model, model => model.shared_tokenizer().map_err(Into::into));
    let (ids, tokenizer) = rows(args, given, tokenizer)?;
    let place = match file {
        Some(file) => Place::File(file),
        None => Place::Json(Likeliest::new(args.top.get(), args.last, tokenizer)),
    };
    match &opened.model {
        AutoModel::PaliGemma(model) => read_about(args, &ids, place, &images, model.network()),
        AutoModel::Gemma3(model) => read_with_images(args, &ids, place, &images, model),
        other => with_model!(other, model => read(args, &ids, place, model.network())),
    }
}

/// Reads rows of PaliGemma: the prompt of each, with its images, in one piece, then its answer.
fn read_about(
    args: &Logits,
    ids: &TokenRows,
    place: Place,
    images: &[Image],
    model: &VisionLanguageModel,
) -> Result<Ending> {
    let config = Network::config(model);
    let (image, each) = (config.image_token, config.image_tokens());
    let wanted = |row: &[TokenId]| row.iter().filter(|token| **token == image).count() / each;
    let total: usize = ids.rows().iter().map(|row| wanted(row)).sum();
    if total != images.len() {
        bail!("the rows have image tokens for {total} image(s) and {} were given; give {each} each", images.len());
    }
    let pixels: Vec<_> = images.iter().map(|image| image.pixels(config.vision.image_size)).collect();
    let mut pixels = pixels.iter();
    let lengths: Vec<usize> = ids.rows().iter().map(Vec::len).collect();
    let (mut rows, mut features) = (Vec::new(), Vec::new());
    for row in ids.rows() {
        let own: Vec<_> = pixels.by_ref().take(wanted(row)).collect();
        model.check_prompt(row, own.len())?;
        let Some(prefix) = row.len().checked_sub(args.suffix).filter(|prefix| *prefix > 0) else {
            bail!("--suffix {} leaves nothing of a row of {} tokens; give less", args.suffix, row.len());
        };
        model.check_prompt(&row[..prefix], own.len())?;
        rows.push(row.split_at(prefix));
        features.push(model.encode(&own));
    }
    let batch = matches!(ids, TokenRows::Batch(_));
    let mut sink = place.begin(&lengths, batch, model.vocab())?;
    let bar = progress::tokens("prefill", lengths.iter().sum());
    let watch = interrupt::watch();
    let mut caches: Vec<_> = rows.iter().map(|_| model.new_cache()).collect();
    let prompts: Vec<Prompt<'_>> =
        rows.iter().zip(&features).map(|((tokens, _), features)| Prompt { tokens, features }).collect();
    let hidden = model.prefill(&prompts, &mut caches.iter_mut().collect::<Vec<_>>());
    let mut stretches: Vec<Stretch> = Vec::new();
    for (row, (tokens, _)) in rows.iter().enumerate() {
        stretches.push(Stretch { row, start: 0, len: tokens.len() });
    }
    if !put(model, hidden, &stretches, &mut sink, &bar, &watch)? {
        return Ok(Ending::Interrupted);
    }
    let chunk = args.chunk.map_or(usize::MAX, |chunk| chunk.get());
    for (row, ((prompt, answer), cache)) in rows.iter().zip(&mut caches).enumerate() {
        let mut start = prompt.len();
        for part in answer.chunks(chunk) {
            let segment = Segment::causal(start, part.len()).with_prefix(prompt.len());
            let hidden = model.hidden_states(part, &[segment], &mut [cache]);
            if !put(model, hidden, &[Stretch { row, start, len: part.len() }], &mut sink, &bar, &watch)? {
                return Ok(Ending::Interrupted);
            }
            start += part.len();
        }
    }
    bar.finish_and_clear();
    sink.finish(ids)?;
    Ok(Ending::Done)
}

/// Reads rows of Gemma 3, in which images may stand anywhere, a piece at a time; no piece ends within an image.
fn read_with_images(args: &Logits, ids: &TokenRows, place: Place, images: &[Image], model: &Gemma3) -> Result<Ending> {
    let network = model.network();
    let (image, each) = (network.config().image_token, network.config().image_tokens);
    let wanted = |row: &[TokenId]| row.iter().filter(|token| **token == image).count() / each;
    let total: usize = ids.rows().iter().map(|row| wanted(row)).sum();
    let side = network.config().vision.image_size;
    // with pan and scan, an image is several
    let pixels: Vec<_> = images.iter().flat_map(|image| model.processor().pixels(image, side)).collect();
    if total != pixels.len() {
        bail!("the rows have image tokens for {total} image(s) and {} were given; give {each} each", pixels.len());
    }
    let mut pixels = pixels.iter();
    let lengths: Vec<usize> = ids.rows().iter().map(Vec::len).collect();
    for row in ids.rows() {
        network.check_prompt(row, wanted(row))?;
    }
    let batch = matches!(ids, TokenRows::Batch(_));
    let mut sink = place.begin(&lengths, batch, network.vocab())?;
    let (bar, watch) = (progress::tokens("reading", lengths.iter().sum()), interrupt::watch());
    let chunk = args.chunk.map_or(CHUNK, |chunk| chunk.get());
    for (index, row) in ids.rows().iter().enumerate() {
        let own: Vec<_> = pixels.by_ref().take(wanted(row)).collect();
        let (inputs, blocks) = (network.embed_with(row, &network.encode(&own)), network.blocks(row));
        let mut cache = network.new_cache();
        for piece in network.pieces(row, chunk) {
            let segment = Segment::causal(piece.start, piece.len()).with_blocks(blocks.clone());
            let states = network.forward(inputs.narrow(piece.start, piece.len()), &[segment], &mut [&mut cache]);
            let stretch = Stretch { row: index, start: piece.start, len: piece.len() };
            if !put(network, states, &[stretch], &mut sink, &bar, &watch)? {
                return Ok(Ending::Interrupted);
            }
        }
    }
    bar.finish_and_clear();
    sink.finish(ids)?;
    Ok(Ending::Done)
}

/// Which tokens of which row a stretch of hidden rows belongs to.
struct Stretch {
    row: usize,
    start: usize,
    len: usize,
}

/// Takes the logits that follow rows of the network, a few at a time; `false` when Ctrl-C came in between.
fn put<N: Network>(
    network: &N,
    hidden: Tensor<2>,
    stretches: &[Stretch],
    sink: &mut Sink,
    bar: &ProgressBar,
    watch: &Watch,
) -> Result<bool> {
    let mut first = 0;
    for stretch in stretches {
        let skipped = sink.wanted(stretch.row, stretch.start, stretch.len);
        bar.inc(skipped as u64);
        for begin in (skipped..stretch.len).step_by(HEAD_ROWS) {
            if watch.pressed() {
                return Ok(false);
            }
            let count = HEAD_ROWS.min(stretch.len - begin);
            let logits = network.logits(hidden.clone().narrow(0, first + begin, count));
            sink.put(stretch.row, stretch.start + begin, &session::values(logits))?;
            bar.inc(count as u64);
        }
        first += stretch.len;
    }
    Ok(true)
}

fn read<N: Network>(args: &Logits, ids: &TokenRows, place: Place, decoder: &N) -> Result<Ending> {
    for row in ids.rows() {
        check_tokens(decoder, row, None)?;
    }
    let lengths: Vec<usize> = ids.rows().iter().map(Vec::len).collect();
    let batch = matches!(ids, TokenRows::Batch(_));
    let sink = place.begin(&lengths, batch, decoder.vocab())?;
    let chunk = args.chunk.map_or(CHUNK, |chunk| chunk.get());
    write(decoder, ids, chunk, sink)
}

/// Most tokens of all rows together in one call of the network.
const CALL_TOKENS: usize = 4096;

/// Reads up to `chunk` tokens of each row at a time, what came before being in the cache, and writes what follows. Rows
/// come together as far as a call has room; a batch of many is read in groups.
fn write<N: Network>(decoder: &N, ids: &TokenRows, chunk: usize, mut sink: Sink) -> Result<Ending> {
    let rows = ids.rows();
    let bar = progress::tokens("prefill", rows.iter().map(Vec::len).sum());
    let watch = interrupt::watch();
    for group in groups(rows, chunk) {
        let first = group.start;
        let rows = &rows[group];
        let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut caches: Vec<_> = rows.iter().map(|_| decoder.new_cache()).collect();
        for start in (0..longest).step_by(chunk) {
            let (mut tokens, mut segments, mut stretches, mut lent) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for ((index, row), cache) in rows.iter().enumerate().zip(&mut caches) {
                let end = row.len().min(start.saturating_add(chunk));
                if start < end {
                    tokens.extend_from_slice(&row[start..end]);
                    segments.push(Segment::causal(start, end - start));
                    stretches.push(Stretch { row: first + index, start, len: end - start });
                    lent.push(cache);
                }
            }
            let hidden = decoder.hidden_states(&tokens, &segments, &mut lent);
            if !put(decoder, hidden, &stretches, &mut sink, &bar, &watch)? {
                return Ok(Ending::Interrupted);
            }
        }
    }
    bar.finish_and_clear();
    sink.finish(ids)?;
    Ok(Ending::Done)
}

/// Rows that are read together: so many that their first chunks fit one call, and at least one.
fn groups(rows: &[Vec<TokenId>], chunk: usize) -> Vec<Range<usize>> {
    let (mut groups, mut start, mut tokens) = (Vec::new(), 0, 0);
    for (index, row) in rows.iter().enumerate() {
        let own = row.len().min(chunk);
        if index > start && tokens + own > CALL_TOKENS {
            groups.push(start..index);
            (start, tokens) = (index, 0);
        }
        tokens += own;
    }
    groups.push(start..rows.len());
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_a_bounded_number_of_tokens() {
        let rows = |lengths: &[usize]| lengths.iter().map(|length| vec![2; *length]).collect::<Vec<_>>();
        assert_eq!(groups(&rows(&[3, 4]), 512), [0..2]);
        assert_eq!(groups(&rows(&[4096, 1, 5000, 2]), usize::MAX), [0..1, 1..2, 2..3, 3..4]);
        assert_eq!(groups(&rows(&[5000, 5000, 5000]), 2048), [0..2, 2..3]);
        let many = groups(&rows(&[1; 100_000]), 512);
        assert_eq!((many.len(), many[0].clone(), many[24].end), (25, 0..4096, 100_000));
    }
}
