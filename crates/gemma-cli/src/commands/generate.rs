//! `gemma generate`: continue a text.

mod arriving;
mod echo;

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use gemma_auto::{Architecture, AutoModel, with_model};
use gemma_generate::{
    CausalModel, FinishReason, GenerateOptions, Generation, SampledToken, Sequence, TextStream, Timings, TokenId,
    TokenMask,
};
use gemma_model::{Model, Network, is_state, load_state, save_state};
use gemma_serve::tokens::logprob_entry;
use gemma_tokenizer::{EncodeOptions, Tokenizer, Turn};
use gemma3::{EncodedImage, Gemma3};
use indicatif::ProgressBar;
use paligemma::{Image, PaliGemma};
use serde::Serialize;
use serde_json::Value;

use crate::{
    args::{ChatFormat, Constraint, Form, Model as ModelArgs, Sampling, Source, Speculative, with_breakers},
    image_files,
    interrupt::{self, Ending},
    new_file, output, progress,
    session::{self, Opened},
    text,
    tokens_file::TokenRows,
};

/// Continue a text.
///
/// The text is continued as it stands, by instruction-tuned models too; --chat applies the chat template instead.
#[derive(Args, Debug)]
#[command(
    // a state that is gone on with needs no prompt
    mut_group("source", |group| group.required(false)),
    mut_arg("prompt", |arg| arg.required_unless_present_any(["prompt_file", "tokens_file", "load_state"])),
    after_help = "\
Examples:
  gemma generate \"Once upon a time\"
  gemma generate --max-tokens 40 --temperature 0 \"The capital of France is\"
  gemma generate --model google/gemma-2-2b-it --chat \"Why is the sky blue?\"
  git diff | gemma generate --model google/gemma-2-9b-it --precision q8_0 --chat -f -
  gemma generate --tokens-file ids.json --temperature 0 --ignore-eos --json
  gemma generate --json --logprobs 5 -n 20 \"Once upon a time\"
  gemma generate --json-schema schema.json --model google/gemma-2-2b-it --chat \"Name a city and its country.\"
  gemma generate --image demo:shapes1.png --temperature 0 \"caption en\"
  gemma generate --model google/gemma-3-12b-it --draft-model google/gemma-3-270m-it --chat \"Why is the sky blue?\"
  gemma generate --model DIR -f book.txt --max-tokens 1 --save-state book.state
  gemma generate --model DIR --load-state book.state \"In short,\"
  gemma generate --model DIR --load-state book.state               goes on without a word in between

--json prints one object when done: tokens (the new ids), text, finish_reason (stop, stop_text, length,
context_full or cancelled), prompt_tokens, seed (which gives the same text again) and timings, in seconds and
tokens per second; with --logprobs also logprobs, whose content has a token, logprob, bytes and top_logprobs per new
token, as OpenAI's API has them. With speculative decoding the timings have draft_tokens and accepted_tokens.
On a terminal, the end of the prompt is printed in front of its continuation (--echo, --no-echo).
Ctrl-C ends the text early with exit code 130; --save-state then keeps what was read and written until then."
)]
pub(crate) struct Generate {
    #[command(flatten)]
    pub(crate) source: Source,

    /// An image that the text is about; may be given several times. For PaliGemma and Gemma 3.
    ///
    /// Token ids from --tokens-file must hold the image tokens of each image.
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Vec<PathBuf>,

    /// Apply the model's chat template to the text as one user turn, and print the answer.
    #[arg(long, conflicts_with = "tokens_file")]
    pub(crate) chat: bool,

    /// Print one JSON object at the end instead of the text as it appears.
    #[arg(long)]
    pub(crate) json: bool,

    /// With --json: the logprob of each new token, and those of the N likeliest tokens in its place (0 without a number).
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "0", requires = "json", value_parser = top)]
    pub(crate) logprobs: Option<usize>,

    /// Print the whole prompt in front of its continuation.
    #[arg(long, conflicts_with_all = ["no_echo", "json", "chat", "image", "tokens_file"])]
    pub(crate) echo: bool,

    /// Print the continuation only, as it is by default where the output is no terminal.
    #[arg(long)]
    pub(crate) no_echo: bool,

    /// Continue from a state that --save-state wrote: its tokens need no prefill, and the prompt (which may be empty)
    /// follows them.
    #[arg(long, value_name = "FILE")]
    pub(crate) load_state: Option<PathBuf>,

    /// Write the KV cache or recurrent state at the end of the text, for --load-state with the same model.
    #[arg(long, value_name = "FILE")]
    pub(crate) save_state: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) format: ChatFormat,

    #[command(flatten)]
    pub(crate) model: ModelArgs,

    #[command(flatten)]
    pub(crate) sampling: Sampling,

    #[command(flatten)]
    pub(crate) form: Form,

    #[command(flatten)]
    pub(crate) speculative: Speculative,
}

/// Most alternatives beside each token: as many as OpenAI's API gives.
const MOST_ALTERNATIVES: usize = 20;

fn top(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| *count <= MOST_ALTERNATIVES).ok_or_else(|| {
        format!("must be an integer from 0 to {MOST_ALTERNATIVES}; a prompt stands before --logprobs, or behind --logprobs N")
    })
}

/// The JSON object.
#[derive(Serialize)]
struct Report {
    tokens: Vec<TokenId>,
    /// Null for a checkpoint without a tokenizer.
    text: Option<String>,
    finish_reason: FinishReason,
    prompt_tokens: usize,
    seed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Logprobs>,
    timings: Seconds,
}

/// The logprobs of the new tokens, as a chat completion of OpenAI's API has them.
#[derive(Serialize)]
struct Logprobs {
    content: Vec<Value>,
}

/// How long it took, and how fast that is.
#[derive(Serialize)]
struct Seconds {
    load_seconds: f64,
    prompt_seconds: f64,
    decode_seconds: f64,
    prompt_tokens_per_second: Option<f64>,
    decode_tokens_per_second: Option<f64>,
    /// With speculative decoding.
    #[serde(skip_serializing_if = "Option::is_none")]
    draft_tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted_tokens: Option<usize>,
}

/// What there is to read: words to be cut, or tokens as they are.
enum Given {
    Text(String),
    Tokens(Vec<TokenId>),
    /// Text on standard input that is prefilled as it arrives.
    Arriving,
}

/// How the prompt is to be continued.
struct Task<'a> {
    args: &'a Generate,
    options: GenerateOptions,
    /// Restricts the tokens of the answer.
    mask: Option<Box<dyn TokenMask>>,
    /// What is printed in front of the continuation.
    lead: Option<String>,
    load_seconds: f64,
}

/// The options of a model's tokenizer, and the mask of a grammar.
fn prepare<N: Network>(
    args: &Generate,
    options: GenerateOptions,
    constraint: Option<&Constraint>,
    model: &Model<N>,
) -> Result<(GenerateOptions, Option<Box<dyn TokenMask>>)> {
    if args.logprobs.is_some() {
        // logprobs have the texts of tokens
        model.tokenizer()?;
    }
    let mask = constraint.map(|constraint| constraint.mask(model)).transpose()?;
    Ok((with_breakers(options, model.tokenizer().ok()), mask))
}

pub(crate) fn run(args: &Generate) -> Result<Ending> {
    let options = args.sampling.options();
    options.check()?;
    // a grammar that cannot be read should be known before a model is loaded
    let constraint = args.form.read()?;
    if !args.chat && (args.format.system.is_some() || args.format.template.is_some()) {
        bail!("--system and --template are for --chat, which puts the text in the model's chat format");
    }
    // nor should a template
    let template = args.format.template()?;
    let given =
        if arriving::is_possible(args) { Given::Arriving } else { given(&args.source, args.load_state.is_some())? };
    // an image that cannot be read should be known before a model is loaded
    let images = args.image.iter().map(|file| image_files::open(file)).collect::<Result<Vec<_>>>()?;
    let found = if images.is_empty() { session::find(&args.model)? } else { session::find_images(&args.model)? };
    if !images.is_empty() && !matches!(found.architecture()?, Architecture::PaliGemma | Architecture::Gemma3) {
        bail!("--image needs a model that sees images, such as google/paligemma-3b-mix-224; this one reads text only");
    }
    if args.chat && template.is_none() {
        found.note_missing_template()?;
    }
    let speculate = args.speculative.open(&args.model.compute, args.model.offline)?;
    let Opened { model, seconds: load_seconds } = found.speculating(speculate).with_template(template).open()?;
    let given = match given {
        // a cache that grows with the text holds all of it anyway
        Given::Arriving if !matches!(model, AutoModel::RecurrentGemma(_)) => {
            self::given(&args.source, args.load_state.is_some())?
        }
        given => given,
    };
    let (options, mask) = with_model!(&model, model => prepare(args, options, constraint.as_ref(), model))?;
    let task = Task { args, options, mask, lead: echo::lead(args, &given), load_seconds };
    match &model {
        AutoModel::PaliGemma(model) => write_about(task, given, &images, model),
        AutoModel::Gemma3(model) if !images.is_empty() => write_with_images(task, given, &images, model),
        other => with_model!(other, model => write(task, given, model)),
    }
}

/// Finds out that a state cannot be written to a place before the work is done.
fn check_target(path: &Path) -> Result<()> {
    new_file::replacing(path, "state", is_state).map(drop)
}

/// Continues a prompt of PaliGemma, with the images that it is about.
fn write_about(task: Task<'_>, given: Given, images: &[Image], model: &PaliGemma) -> Result<Ending> {
    let (args, options) = (task.args, &task.options);
    let watch = interrupt::watch();
    if args.load_state.is_some() && !images.is_empty() {
        bail!("--load-state goes on after a prompt, and an image begins one; leave out one of the two");
    }
    if let Some(path) = &args.save_state {
        check_target(path)?;
    }
    if args.chat {
        bail!("--chat needs a model that was trained to talk; give PaliGemma a task instead, such as \"caption en\"");
    }
    let network = model.network();
    let state = args.load_state.as_ref().map(|file| load_state(network, file)).transpose()?;
    let prompt = match given {
        Given::Tokens(tokens) => tokens,
        Given::Arriving => unreachable!("only a recurrent model prefills what arrives"),
        Given::Text(text) if state.is_some() => model.tokenizer()?.encode_with(&text, CONTINUED),
        Given::Text(text) => model.prompt_tokens(images.len(), &text)?,
    };
    let begin = Instant::now();
    let views = if images.is_empty() { Vec::new() } else { model.encode_images(&images.iter().collect::<Vec<_>>()) };
    let features: Vec<_> = views.iter().map(|view| view.features().clone()).collect();
    let generation = match state {
        Some(sequence) => Generation::follow(network, sequence, &prompt, options, model.stop_tokens())?,
        None => model.begin(&prompt, &features, options)?,
    };
    let generation = generation.with_cancel(watch.flag());
    let prompt_seconds = begin.elapsed().as_secs_f64();
    let bar = progress::tokens("prefill", prompt.len());
    let tokenizer = model.tokenizer().map_err(Into::into);
    let load_seconds = task.load_seconds;
    let (mut ended, text, sequence) = finish(generation, tokenizer, task, &bar)?;
    ended.timings.prompt_seconds += prompt_seconds;
    if let Some(path) = &args.save_state {
        save_state(network, &sequence, path)?;
    }
    tell(args, ended, text, prompt.len(), load_seconds)
}

/// Continues a prompt of Gemma 3 in which images stand: at each `<start_of_image>` of the text, or in front of it.
fn write_with_images(task: Task<'_>, given: Given, images: &[Image], model: &Gemma3) -> Result<Ending> {
    let (args, options) = (task.args, &task.options);
    let watch = interrupt::watch();
    if args.load_state.is_some() {
        bail!("--load-state goes on after a prompt that was read; leave out --image or --load-state");
    }
    if let Some(path) = &args.save_state {
        check_target(path)?;
    }
    let begin = Instant::now();
    let encoded: Vec<EncodedImage> = images.iter().map(|image| model.encode_image(image)).collect();
    let lent: Vec<&EncodedImage> = encoded.iter().collect();
    let prompt = match given {
        Given::Tokens(tokens) => tokens,
        Given::Arriving => unreachable!("only a recurrent model prefills what arrives"),
        Given::Text(text) if args.chat => model.chat_tokens(&[Gemma3::question(images.len(), &text)], &lent)?,
        Given::Text(text) => model.text_tokens(&text, &lent)?,
    };
    let generation = model.begin(&prompt, &lent, options)?.with_cancel(watch.flag());
    let prompt_seconds = begin.elapsed().as_secs_f64();
    let bar = progress::tokens("reading", prompt.len());
    let tokenizer = model.tokenizer().map_err(Into::into);
    let load_seconds = task.load_seconds;
    let (mut ended, text, sequence) = finish(generation, tokenizer, task, &bar)?;
    ended.timings.prompt_seconds += prompt_seconds;
    if let Some(path) = &args.save_state {
        save_state(model.network(), &sequence, path)?;
    }
    tell(args, ended, text, prompt.len(), load_seconds)
}

fn write<N: Network>(task: Task<'_>, given: Given, model: &Model<N>) -> Result<Ending> {
    let (args, options) = (task.args, &task.options);
    let watch = interrupt::watch();
    if let Some(path) = &args.save_state {
        check_target(path)?;
    }
    let sequence = match &args.load_state {
        Some(file) => load_state(model.network(), file)?,
        None => Sequence::new(model.network().new_cache()),
    };
    let (given, sequence, before) = match given {
        Given::Arriving => arriving::prefill(args, model, sequence, &watch)?,
        given => (given, sequence, arriving::Prefilled::default()),
    };
    if watch.pressed() {
        // as where Ctrl-C comes later: what was read so far is kept
        if let Some(path) = &args.save_state {
            save_state(model.network(), &sequence, path)?;
        }
        return Ok(Ending::Interrupted);
    }
    let prompt = tokens(given, args, model, &sequence)?;
    let bar = progress::tokens("prefill", sequence.pending().len() + prompt.len());
    let shown = bar.clone();
    let generation = Generation::follow(model.network(), sequence, &prompt, options, model.stop_tokens())?;
    let generation = model
        .speculating(generation)
        .with_cancel(watch.flag())
        .with_progress(move |done, _| shown.set_position(done as u64));
    let tokenizer = model.tokenizer().map_err(Into::into);
    let load_seconds = task.load_seconds;
    let (mut ended, text, sequence) = finish(generation, tokenizer, task, &bar)?;
    ended.timings.prompt_tokens += before.tokens;
    ended.timings.prompt_seconds += before.seconds;
    if let Some(path) = &args.save_state {
        save_state(model.network(), &sequence, path)?;
    }
    tell(args, ended, text, before.tokens + prompt.len(), load_seconds)
}

/// Runs a generation to its end, as text where there is a tokenizer.
fn finish<M: CausalModel>(
    generation: Generation<'_, M>,
    tokenizer: Result<&Tokenizer>,
    task: Task<'_>,
    bar: &ProgressBar,
) -> Result<Written<M>> {
    let generation = generation.with_top_logprobs(task.args.logprobs.unwrap_or(0));
    let generation = match task.mask {
        Some(mask) => generation.with_mask(mask),
        None => generation,
    };
    let ended = match tokenizer {
        Ok(tokenizer) => {
            let lead = task.lead.unwrap_or_default();
            let stream = TextStream::new(generation, tokenizer.stream());
            let (mut ended, text, sequence) = with_text(stream, bar, task.args.json, lead)?;
            if task.args.logprobs.is_some() {
                ended.logprobs = Some(ended.logprobs(tokenizer));
            }
            (ended, text, sequence)
        }
        // A checkpoint without a tokenizer can be asked for numbers; words and stop texts need one.
        Err(_) if task.options.stop.is_empty() => without_text(generation, bar)?,
        Err(error) => return Err(error),
    };
    bar.finish_and_clear();
    Ok(ended)
}

/// Prints what is left to say.
fn tell(
    args: &Generate,
    ended: Ended,
    text: Option<String>,
    prompt_tokens: usize,
    load_seconds: f64,
) -> Result<Ending> {
    let Ended { sampled, finish_reason, seed, timings, logprobs, .. } = ended;
    let tokens: Vec<TokenId> = sampled.iter().map(|sampled| sampled.token).collect();
    if args.json {
        let timings = seconds(load_seconds, timings);
        output::json(&Report { tokens, text, finish_reason, prompt_tokens, seed, logprobs, timings })?;
    } else {
        // without a tokenizer, the numbers
        let numbers = || tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        output::line(if text.is_some() { String::new() } else { numbers() })?;
        output::remark(told(timings, finish_reason));
    }
    Ok(if finish_reason == FinishReason::Cancelled { Ending::Interrupted } else { Ending::Done })
}

/// What a generation leaves besides its text.
struct Ended {
    sampled: Vec<SampledToken>,
    /// The likeliest tokens in the place of each, where they were asked for.
    top: Vec<Vec<(TokenId, f64)>>,
    finish_reason: FinishReason,
    seed: u64,
    timings: Timings,
    logprobs: Option<Logprobs>,
}

impl Ended {
    fn of<M: CausalModel>(generation: &Generation<'_, M>) -> Result<Self> {
        Ok(Self {
            sampled: generation.sampled().to_vec(),
            top: generation.top_logprobs().to_vec(),
            finish_reason: generation.finish_reason().context("the text ended without a reason")?,
            seed: generation.seed(),
            timings: generation.timings(),
            logprobs: None,
        })
    }

    /// The tokens with their logprobs and alternatives.
    fn logprobs(&self, tokenizer: &Tokenizer) -> Logprobs {
        let entry = |(index, sampled): (usize, &SampledToken)| {
            let top: Vec<(TokenId, f32)> =
                self.top.get(index).into_iter().flatten().map(|(id, logprob)| (*id, *logprob as f32)).collect();
            logprob_entry(tokenizer, sampled.token, sampled.logprob as f32, &top)
        };
        Logprobs { content: self.sampled.iter().enumerate().map(entry).collect() }
    }
}

/// A generation that is over, its text where that was asked for, and the sequence it leaves.
type Written<M> = (Ended, Option<String>, Sequence<<M as CausalModel>::Cache>);

/// Runs a generation to its end, printing the text as it comes, `lead` in front of it, or, when `quiet`, returning it.
fn with_text<M: CausalModel>(
    mut stream: TextStream<'_, '_, M>,
    bar: &ProgressBar,
    quiet: bool,
    mut lead: String,
) -> Result<Written<M>> {
    let mut text = String::new();
    for piece in &mut stream {
        bar.finish_and_clear();
        let piece = std::mem::take(&mut lead) + &piece?;
        if quiet { text += &piece } else { output::piece(&piece)? }
    }
    bar.finish_and_clear();
    // where nothing follows it
    output::piece(&lead)?;
    Ok((Ended::of(stream.generation())?, Some(text), stream.into_sequence()))
}

/// Runs a generation to its end.
fn without_text<M: CausalModel>(mut generation: Generation<'_, M>, bar: &ProgressBar) -> Result<Written<M>> {
    for sampled in &mut generation {
        bar.finish_and_clear();
        sampled?;
    }
    Ok((Ended::of(&generation)?, None, generation.into_sequence()))
}

/// What there is to read; `after` something that was read before it may be nothing.
fn given(source: &Source, after: bool) -> Result<Given> {
    if let Some(path) = &source.tokens_file {
        return Ok(Given::Tokens(TokenRows::read(path)?.into_one()?));
    }
    if source.prompt.is_none() && source.prompt_file.is_none() {
        // only behind a state, which clap sees to
        return Ok(Given::Text(String::new()));
    }
    let text = text::given(source.prompt.as_deref(), source.prompt_file.as_deref())?;
    if text.is_empty() && !after {
        bail!("the prompt is empty; give some text to continue");
    }
    Ok(Given::Text(text))
}

/// The prompt in tokens: as given, as plain text behind `<bos>`, or as one question. After something that was read
/// before, without `<bos>`.
fn tokens<N: Network>(
    given: Given,
    args: &Generate,
    model: &Model<N>,
    sequence: &Sequence<N::Cache>,
) -> Result<Vec<TokenId>> {
    let begins = sequence.is_empty();
    let specials = args.source.specials;
    Ok(match given {
        Given::Tokens(tokens) => tokens,
        Given::Arriving => unreachable!("what arrived was prefilled, but for its end"),
        Given::Text(text) if args.chat => {
            let tokenizer = model.tokenizer()?;
            let turns: Vec<Turn> =
                args.format.system()?.map(Turn::system).into_iter().chain([Turn::user(text)]).collect();
            let turn = tokenizer.chat(model.chat_template(), &turns, true)?;
            let goes_on = sequence.pending().last().copied() == tokenizer.end_of_turn() && !begins;
            // the format ends a turn with a line break, which the model does not say itself
            let line_break = if goes_on { tokenizer.encode_with("\n", CONTINUED) } else { Vec::new() };
            let first = usize::from(!begins && turn.first() == Some(&tokenizer.bos()));
            line_break.into_iter().chain(turn.into_iter().skip(first)).collect()
        }
        Given::Text(text) if begins => {
            session::check_text(model.network(), model.tokenizer()?, &text)?;
            model.tokenizer()?.encode_with(&text, EncodeOptions { bos: true, specials })
        }
        Given::Text(text) => model.tokenizer()?.encode_with(&text, EncodeOptions { specials, ..CONTINUED }),
    })
}

/// How a text is encoded that follows another.
const CONTINUED: EncodeOptions = EncodeOptions { bos: false, specials: false };

fn seconds(load_seconds: f64, timings: Timings) -> Seconds {
    Seconds {
        load_seconds,
        prompt_seconds: timings.prompt_seconds,
        decode_seconds: timings.decode_seconds,
        prompt_tokens_per_second: timings.prompt_tokens_per_second(),
        decode_tokens_per_second: timings.decode_tokens_per_second(),
        draft_tokens: Some(timings.draft_tokens).filter(|count| *count > 0),
        accepted_tokens: Some(timings.accepted_tokens).filter(|_| timings.draft_tokens > 0),
    }
}

/// A line about speed and ending, for a person.
pub(super) fn told(timings: Timings, reason: FinishReason) -> String {
    let speed = |rate: Option<f64>| rate.map(|rate| format!(" at {rate:.1}/s")).unwrap_or_default();
    let ending = match reason {
        FinishReason::Stop | FinishReason::StopText => "",
        FinishReason::Length => "; stopped at --max-tokens",
        FinishReason::ContextFull => "; the context is full",
        FinishReason::Cancelled => "; stopped by Ctrl-C",
        FinishReason::OutOfTime => "; out of time",
    };
    let drafts = match timings.draft_tokens {
        0 => String::new(),
        drafted => format!(", {} of {drafted} draft tokens accepted", timings.accepted_tokens),
    };
    format!(
        "[prefill {} tokens{}, decode {}{}{drafts}{ending}]",
        timings.prompt_tokens,
        speed(timings.prompt_tokens_per_second()),
        timings.generated_tokens,
        speed(timings.decode_tokens_per_second()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remark_says_how_much_how_fast_and_why_it_ended() {
        let timings = Timings {
            prompt_tokens: 5,
            prompt_seconds: 0.5,
            generated_tokens: 3,
            decode_steps: 2,
            decode_seconds: 1.0,
            ..Timings::default()
        };
        assert_eq!(
            told(timings, FinishReason::Length),
            "[prefill 5 tokens at 10.0/s, decode 3 at 2.0/s; stopped at --max-tokens]"
        );
        assert!(told(Timings::default(), FinishReason::Stop).ends_with("decode 0]"));
        let timings = Timings { draft_tokens: 4, accepted_tokens: 3, ..Timings::default() };
        assert!(told(timings, FinishReason::Stop).ends_with("decode 0, 3 of 4 draft tokens accepted]"));
    }
}
