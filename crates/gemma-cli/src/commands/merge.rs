//! `gemma merge`: adapters become part of a model's weights.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use gemma_auto::{Family, LoadOptions};
use gemma_weights::{Dtype, Format};

use crate::{
    args::{Adapters, Compute, written_format},
    commands::convert,
    interrupt::Ending,
    session,
};

/// Add LoRA adapters to the weights of a model and write the result, which needs no adapter any more.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma merge --model google/gemma-2-2b --adapter poems-lora gemma-2-2b-poems
  gemma merge --model google/gemma-2-2b --adapter poems-lora poems.gguf --format q8_0
  gemma merge --adapter style=0.5 --adapter facts both
  gemma merge --model google/gemma-2-2b --adapter poems-lora poems-lora.gguf --only-adapter

The name of the target says what is written: FILE.gguf, or else a folder in Hugging Face format. A folder holds f32, bf16
or f16 (default: bf16), a GGUF file any of its formats (default: as the model is stored).")]
pub(crate) struct Merge {
    /// Where to write: FILE.gguf, or a folder.
    pub(crate) target: PathBuf,

    /// The model: a folder, a GGUF file, a hub id or demo:FAMILY; the built-in demo without it.
    #[arg(short, long, value_name = "FOLDER|FILE|ID", help_heading = "Model")]
    pub(crate) model: Option<String>,

    /// How values are stored.
    #[arg(long, value_name = "FORMAT", value_parser = written_format(), hide_possible_values = true)]
    pub(crate) format: Option<Format>,

    /// Write the adapter alone, not merged, as a GGUF file that llama.cpp loads beside the model (--lora).
    #[arg(long, conflicts_with = "format")]
    pub(crate) only_adapter: bool,

    /// Replace the file, or the model folder, that is there.
    #[arg(long)]
    pub(crate) force: bool,

    /// Use only files that are on this machine already.
    #[arg(long)]
    pub(crate) offline: bool,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) adapters: Adapters,
}

pub(crate) fn run(args: &Merge) -> Result<Ending> {
    let adapters = args.adapters.open()?;
    if adapters.is_empty() {
        bail!("give at least one --adapter to merge");
    }
    let options = LoadOptions { offline: args.offline, ..LoadOptions::default() };
    let found = session::locate(args.model.as_deref(), Family::Gemma, options, &Compute::default())?;
    if args.only_adapter {
        let [adapter] = adapters.as_slice() else { bail!("--only-adapter writes one adapter; give one") };
        if !convert::is_gguf(&args.target) {
            bail!("--only-adapter writes a GGUF file; name one that ends in .gguf");
        }
        let written = found.inner().adapter_to_gguf(adapter, &args.target, args.force);
        return convert::finish(written.map(|()| 0), &args.target, args.format, args.json);
    }
    if found.inner().is_embedding()? {
        bail!("an embedding model is not written with its adapter merged; give `gemma embed` the --adapter");
    }
    // a folder's values go to its dtype at once, so that they are rounded once
    let format =
        if convert::is_gguf(&args.target) { args.format } else { Some(args.format.unwrap_or(Dtype::Bf16.format())) };
    let merged = found.inner().merged(&adapters, format)?;
    convert::write(&merged, &args.target, args.format, args.force, args.json)
}
