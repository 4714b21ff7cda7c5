//! `gemma moderate`: how likely texts or images violate a guideline.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use gemma_auto::{AutoModel, with_model};
use gemma_model::{Model, Network};
use gemma_tokenizer::TokenId;
use gemma3::{Gemma3, IMAGE_MARK, Image};
use serde_json::json;
use shieldgemma::{Guideline, Subject, image_prompt, judge_tokens, text_prompt, violation, yes_and_no};

use crate::{args, image_files, interrupt::Ending, output, progress, session, text, tokens_file::TokenRows};

/// Ask a ShieldGemma how likely texts or images violate a guideline.
#[derive(Args, Debug)]
#[command(mut_arg("inclusive_window", |arg| arg.hide(true)), after_help = "\
Examples:
  gemma moderate --model google/shieldgemma-2b --guideline harassment \"You are all fools.\"
  gemma moderate --model ./shieldgemma --response \"How do I pick a lock?\" \"First, ...\"
  gemma moderate --model ./shieldgemma --guideline rules.json --json \"some text\"
  gemma moderate --model ./shieldgemma --input questions.txt --json        a text a line; - is standard input
  gemma moderate --model ./shieldgemma --tokens-file ids.json --json
  gemma moderate --model google/shieldgemma-2-4b-it --guideline violence --image photo.jpg

Guidelines: dangerous, harassment, hate, sexual, violence (images only), or a file: a JSON object with `name`, `title` and
any of `prompt`, `response` and `image`, a list of such objects, or one rule as plain text. Without --guideline, all that
speak of what is judged are asked about. --json prints {\"violates\": [p, ...]}, one probability for each text and
guideline (texts first), or for each row of a tokens file.")]
pub(crate) struct Moderate {
    /// What a person asks a model; with --response, pairs of a question and its answer. `-` alone reads standard input, a
    /// text a line.
    #[arg(value_name = "TEXT", conflicts_with = "tokens_file")]
    pub(crate) texts: Vec<String>,

    /// Judge the texts of this file, a text a line; `-` is standard input. May be given several times.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["texts", "tokens_file"])]
    pub(crate) input: Vec<PathBuf>,

    /// Judge prompts that are token ids already: a JSON array of numbers, or an array of such arrays.
    #[arg(long, value_name = "FILE")]
    pub(crate) tokens_file: Option<PathBuf>,

    /// An image to judge; may be given several times. For ShieldGemma 2.
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["texts", "tokens_file", "input", "response"])]
    pub(crate) image: Vec<PathBuf>,

    /// A guideline by its name, or a file; may be given several times.
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) guideline: Vec<String>,

    /// Judge answers: texts come in pairs, question and answer.
    #[arg(long)]
    pub(crate) response: bool,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) model: args::Model,
}

pub(crate) fn run(args: &Moderate) -> Result<Ending> {
    let rows = args.tokens_file.as_deref().map(TokenRows::read).transpose()?;
    let inputs = if args.texts == ["-"] { vec![PathBuf::from("-")] } else { args.input.clone() };
    if rows.is_none() && args.texts.is_empty() && inputs.is_empty() && args.image.is_empty() {
        bail!("there is nothing to judge; give texts, --input FILE, --image FILE or --tokens-file FILE");
    }
    let mut texts = if inputs.is_empty() { args.texts.clone() } else { Vec::new() };
    for input in &inputs {
        texts.extend(text::lines(input)?);
    }
    if texts.is_empty() && !inputs.is_empty() {
        output::complain("note: the input holds no line, so there is nothing to judge");
    }
    if args.response && !texts.len().is_multiple_of(2) {
        bail!("--response judges pairs; give a question and its answer, {} texts are no pairs", texts.len());
    }
    let guidelines = guidelines(args)?;
    // an image that cannot be read should be known before a model is loaded
    let images = args.image.iter().map(|file| image_files::open(file)).collect::<Result<Vec<_>>>()?;
    let found = session::find(&args.model)?;
    let is_shieldgemma = found.inner().is_called_shieldgemma();
    let model = found.open()?.model;
    let knows_its_answers = matches!(&model, AutoModel::Gemma3(model) if model.network().config().yes_and_no.is_some());
    if args.model.model.is_some() && !is_shieldgemma && !knows_its_answers {
        output::complain(
            "warning: this model is not called a ShieldGemma; the verdicts of one that was not trained to judge mean nothing",
        );
    }
    match &model {
        AutoModel::Gemma3(model) if !images.is_empty() => judge_images(args, &images, &guidelines, model),
        _ if !images.is_empty() => bail!("--image needs a ShieldGemma 2; this model is another"),
        model => with_model!(model, model => judge(args, &texts, rows, &guidelines, model)),
    }
}

/// The guidelines that the flags name; the built-in ones that speak of texts without any.
fn guidelines(args: &Moderate) -> Result<Vec<Guideline>> {
    let mut found = Vec::new();
    for name in &args.guideline {
        if Path::new(name).is_file() {
            let text = text::read(Path::new(name))?;
            found.extend(Guideline::from_text(name, &text)?);
        } else {
            found.push(Guideline::named(name)?);
        }
    }
    if args.guideline.is_empty() {
        found = Guideline::built_in();
        found.retain(|guideline| match () {
            () if !args.image.is_empty() => guideline.image.is_some(),
            () if args.response => guideline.response.is_some(),
            () => guideline.prompt.is_some(),
        });
    }
    Ok(found)
}

fn judge<N: Network>(
    args: &Moderate,
    texts: &[String],
    rows: Option<TokenRows>,
    guidelines: &[Guideline],
    model: &Model<N>,
) -> Result<Ending> {
    let tokenizer = model.tokenizer()?;
    let answers = yes_and_no(tokenizer)
        .ok()
        .context("only a ShieldGemma judges; give one with --model, such as google/shieldgemma-2b")?;
    let mut asked: Vec<(String, String)> = Vec::new();
    let prompts: Vec<Vec<TokenId>> = match rows {
        Some(rows) => rows.rows().to_vec(),
        None => {
            let mut prompts = Vec::new();
            let subjects: Vec<Subject<'_>> = match args.response {
                true => texts
                    .chunks_exact(2)
                    .map(|pair| Subject::Response { prompt: &pair[0], response: &pair[1] })
                    .collect(),
                false => texts.iter().map(|text| Subject::Prompt(text)).collect(),
            };
            for subject in subjects {
                for guideline in guidelines {
                    prompts.push(tokenizer.encode_chat(&text_prompt(subject, guideline)?));
                    let (Subject::Prompt(text) | Subject::Response { response: text, .. }) = subject;
                    asked.push((guideline.name.clone(), text.to_owned()));
                }
            }
            prompts
        }
    };
    let bar = progress::count("judging", "verdicts", prompts.len());
    let mut violates = Vec::with_capacity(prompts.len());
    for prompt in &prompts {
        violates.extend(judge_tokens(model.network(), std::slice::from_ref(prompt), answers)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    tell(args, &violates, &asked)
}

/// Judges images, each by each guideline.
fn judge_images(args: &Moderate, images: &[Image], guidelines: &[Guideline], model: &Gemma3) -> Result<Ending> {
    let answers = match model.network().config().yes_and_no {
        Some(answers) => answers,
        None => yes_and_no(model.tokenizer()?)?,
    };
    let bar = progress::count("judging", "verdicts", images.len() * guidelines.len());
    let (mut violates, mut asked) = (Vec::new(), Vec::new());
    for (image, file) in images.iter().zip(&args.image) {
        let encoded = model.encode_image(image);
        for guideline in guidelines {
            let prompt = model.rendered_tokens(&image_prompt(guideline, IMAGE_MARK)?, &[&encoded])?;
            violates.push(violation(model.next_logits(&prompt, &[&encoded])?, answers)?);
            asked.push((guideline.name.clone(), file.display().to_string()));
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    tell(args, &violates, &asked)
}

/// Prints the probabilities; `asked`: guideline and what was judged, where that is known.
fn tell(args: &Moderate, violates: &[f64], asked: &[(String, String)]) -> Result<Ending> {
    if args.json {
        let names: Vec<&String> = asked.iter().map(|(name, _)| name).collect();
        let mut report = json!({ "violates": violates });
        if !names.is_empty() {
            report["guidelines"] = json!(names);
        }
        output::json(&report)?;
    } else if asked.is_empty() {
        for probability in violates {
            output::line(format_args!("{probability:.4}"))?;
        }
    } else {
        for (probability, (name, text)) in violates.iter().zip(asked) {
            let text: String = text.chars().take(60).collect();
            output::line(format_args!("{probability:.4}  {name:<12}  {}", output::visible(&text)))?;
        }
    }
    Ok(Ending::Done)
}
