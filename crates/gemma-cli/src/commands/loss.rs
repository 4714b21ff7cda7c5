//! `gemma loss`: the loss of tokens and its gradients, to compare a training with.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use burn::module::Module;
use clap::Args;
use gemma_auto::Architecture;
use gemma_model::{Blocks, LoadOptions};
use gemma_train::{Example, NamedValues, Trainer, TrainingOptions, log_probs, open_whole, open_with_factors};
use gemma_weights::{Dtype, Format, SavedTensor, save_safetensors};
use serde::Serialize;
use serde_json::Value;

use crate::{
    args::Model,
    interrupt::Ending,
    new_file::refuse_dash,
    output,
    session::{self, Found},
    tokens_file::TokenRows,
};

/// The loss of token ids, and its gradient: what a training sees, for comparing it with another program's.
#[derive(Args, Debug)]
#[command(mut_arg("mmproj", |arg| arg.hide(true)), after_help = "\
The tokens file holds a JSON array of token ids, or an array of such arrays; or an object with `tokens` and `labels`, where
a label below 0 is not learned. The loss is the mean cross-entropy, in nats, of every token but the first of each row.

Examples:
  gemma loss --tokens-file ids.json --json
  gemma loss --model DIR --tokens-file ids.json --gradients gradients.safetensors --json
  gemma loss --model DIR --adapter poems-lora --tokens-file ids.json --gradients gradients.safetensors --json

--gradients writes the gradient of every parameter under its name in the checkpoint; with --adapter, of its LoRA
matrices under PEFT's names.")]
pub(crate) struct Loss {
    /// JSON array of token ids, or array of arrays.
    #[arg(long, value_name = "FILE")]
    pub(crate) tokens_file: PathBuf,

    /// Write the gradients to this safetensors file.
    #[arg(long, value_name = "FILE")]
    pub(crate) gradients: Option<PathBuf>,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) model: Model,
}

/// The JSON object.
#[derive(Serialize)]
struct Report {
    loss: f64,
    /// Tokens that the loss is the mean of.
    tokens: usize,
}

pub(crate) fn run(args: &Loss) -> Result<Ending> {
    args.gradients.as_deref().map_or(Ok(()), refuse_dash)?;
    let examples = examples(args)?;
    let found = session::find(&args.model)?;
    let (loss, gradients) = match found.architecture()? {
        Architecture::Gemma => compute::<gemma::Decoder>(args, &found, &examples),
        Architecture::Gemma3 => compute::<gemma3::Gemma3Network>(args, &found, &examples),
        Architecture::RecurrentGemma => compute::<recurrentgemma::Griffin>(args, &found, &examples),
        Architecture::PaliGemma => compute::<paligemma::VisionLanguageModel>(args, &found, &examples),
    }?;
    if !loss.is_finite() {
        bail!("the loss is {loss}; check the checkpoint, or load it with --precision f32");
    }
    if let (Some(path), Some(gradients)) = (&args.gradients, gradients) {
        let mut tensors = gradients.iter().map(|(name, gradient)| -> SavedTensor {
            let mut bytes = vec![0; gradient.values.len() * 4];
            Format::F32.encode_row(&gradient.values, &mut bytes);
            (name.clone(), Dtype::F32, gradient.shape.clone(), bytes.into())
        });
        save_safetensors(path, [("format".to_owned(), "pt".to_owned())].into(), &mut tensors)?;
    }
    let tokens = examples.iter().map(Example::learned).sum();
    if args.json {
        output::json(&Report { loss, tokens })?;
    } else {
        output::line(format_args!("{tokens} tokens, loss {loss:.6} nats each, perplexity {:.3}", loss.exp()))?;
    }
    Ok(Ending::Done)
}

/// The rows of the file, and what is learned of each.
fn examples(args: &Loss) -> Result<Vec<Example>> {
    let rows = TokenRows::read(&args.tokens_file)?;
    let text =
        std::fs::read(&args.tokens_file).with_context(|| format!("cannot read {}", args.tokens_file.display()))?;
    let labels = serde_json::from_slice::<Value>(&text).ok().and_then(|value| value.get("labels").cloned());
    let labels: Option<Vec<Vec<i64>>> = match labels {
        None => None,
        Some(labels) => {
            let one = serde_json::from_value::<Vec<i64>>(labels.clone()).map(|row| vec![row]);
            Some(
                one.or_else(|_| serde_json::from_value(labels))
                    .context("labels must be integers, a list for each row")?,
            )
        }
    };
    if labels.as_ref().is_some_and(|labels| labels.len() != rows.rows().len()) {
        bail!("there are labels for other rows than those of the tokens");
    }
    rows.rows()
        .iter()
        .enumerate()
        .map(|(index, row)| match labels.as_ref().map(|labels| &labels[index]) {
            None => Ok(Example::text(row.clone())),
            Some(labels) if labels.len() == row.len() => {
                Ok(Example::new(row.clone(), labels.iter().map(|label| *label >= 0).collect()))
            }
            Some(labels) => bail!("row {index} has {} tokens and {} labels", row.len(), labels.len()),
        })
        .collect()
}

fn compute<N: Blocks + Module>(args: &Loss, found: &Found, examples: &[Example]) -> Result<(f64, Option<NamedValues>)> {
    let device = found.device()?;
    let options = found.options();
    let checkpoint = &*found.inner().checkpoint()?;
    let bare = LoadOptions { adapters: Vec::new(), ..options.clone() };
    let model: N = match (&args.gradients, options.adapters.as_slice()) {
        (None, _) => {
            let model = N::open(checkpoint, options, &device)?;
            check(&model, examples)?;
            let total: usize = examples.iter().map(Example::learned).sum();
            let sum: f64 = log_probs(&model, examples, TrainingOptions::default().pack_tokens).iter().sum();
            return Ok((-sum / total as f64, None));
        }
        (Some(_), []) => open_whole(checkpoint, &bare, &device, &mut |_, _| {})?,
        (Some(_), [adapter]) => open_with_factors(checkpoint, &bare, adapter, &device, &mut |_, _| {})?,
        (Some(_), _) => bail!("gradients are those of one adapter; give one"),
    };
    check(&model, examples)?;
    let trainer = Trainer::new(model, TrainingOptions::default())?;
    let (loss, gradients) = trainer.gradients(examples)?;
    Ok((loss, Some(gradients)))
}

/// Refuses rows that the model cannot read, and rows without anything to learn.
fn check<N: Blocks>(model: &N, examples: &[Example]) -> Result<()> {
    for example in examples {
        gemma_generate::check_tokens(model, &example.tokens, None)?;
    }
    if examples.iter().all(|example| example.learned() == 0) {
        bail!("no token has one before it, so there is no loss; give rows of at least two tokens");
    }
    Ok(())
}
