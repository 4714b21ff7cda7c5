//! `gemma pull`: a checkpoint from the hub into the cache.

use anyhow::Result;
use clap::Args;
use gemma_weights::{catalogue, pull};
use serde::Serialize;

use crate::{interrupt::Ending, output, progress, session};

/// Download a checkpoint from the hub into the cache that other Hugging Face programs use too.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma pull google/gemma-2-2b-it
  gemma pull google/gemma-2b@main
  gemma pull bartowski/gemma-2-2b-it-GGUF:Q4_K_M
  HF_TOKEN=hf_... gemma pull google/gemma-2-9b-it

Gemma is gated: accept the licence on the model's page once and give a token, by HF_TOKEN or `hf auth login`.
Of a repository of several GGUF files without a QUANTIZATION the first that it has of Q4_K_M, Q4_0, Q8_0 and BF16 is
taken. An interrupted download goes on where it stopped. HF_HOME and HF_HUB_CACHE say where the cache is.")]
pub(crate) struct Pull {
    /// Hub id, ORGANISATION/NAME or ORGANISATION/NAME@REVISION; of a repository of GGUF files
    /// ORGANISATION/NAME:QUANTIZATION or ORGANISATION/NAME:FILE.gguf; or the address of its page.
    pub(crate) id: String,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Serialize)]
struct Pulled<'a> {
    id: &'a str,
    folder: String,
}

pub(crate) fn run(args: &Pull) -> Result<Ending> {
    let bar = progress::bytes("pulling");
    let folder = pull(&args.id, &session::hub(false), &mut |download| progress::show(&bar, download));
    bar.finish_and_clear();
    let folder = folder?.display().to_string();
    if args.json {
        output::json(&Pulled { id: &args.id, folder })?;
    } else {
        output::line(&folder)?;
        remark_on(&args.id);
    }
    Ok(Ending::Done)
}

/// Says how to go on, for checkpoints that are known.
fn remark_on(id: &str) {
    let repository = session::hub(true).id(id).map(|id| id.repository()).unwrap_or_default();
    let release = catalogue::release(&repository);
    match release.map(|release| release.variant) {
        Some(catalogue::Variant::Instruct) => output::remark(format!("now: gemma chat --model {id}")),
        Some(_) => output::remark(format!("now: gemma generate --model {id} \"Once upon a time\"")),
        None => {}
    }
}
