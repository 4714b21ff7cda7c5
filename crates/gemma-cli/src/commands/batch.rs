//! `gemma batch`: answer a file of requests without a server.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use gemma_serve::http::{App, Settings, batch};

use super::serve::{Engine, runtime};
use crate::{
    interrupt::{self, Ending},
    output, progress,
};

/// Answer a file of requests in OpenAI's Batch format, resumably.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma batch requests.jsonl --out results.jsonl
  gemma batch requests.jsonl --out results.jsonl --model google/gemma-2-2b-it --parallel 16
  split -n l/4 requests.jsonl part- && gemma batch part-aa --out results-aa.jsonl    one of four machines

Each line is {\"custom_id\", \"method\", \"url\", \"body\"}; url is /v1/chat/completions, /v1/completions, /v1/embeddings,
/v1/moderations, /v1/responses or /v1/fim/completions. Run again after an interruption, it answers what is missing: each
request has exactly one line in the end. Results come in the order in which they are finished.")]
pub(crate) struct Batch {
    /// The requests, one JSON object per line.
    #[arg(value_name = "FILE")]
    pub(crate) requests: PathBuf,

    /// Where the results go; a file with results is continued.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) out: PathBuf,

    /// Print the summary as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) engine: Engine,
}

pub(crate) fn run(args: &Batch) -> Result<Ending> {
    let parallel = args.engine.parallel.max(1);
    let settings = Settings { parallel, queue: 1024, max_tokens: args.engine.max_tokens.max(1), ..Settings::default() };
    let runtime = runtime(&settings)?;
    let watch = interrupt::watch();
    let backend = args.engine.backend(args.engine.model.model.as_deref(), None)?;
    let bar = progress::tasks("answering", 0);
    let app = App::new(vec![backend], settings);
    let run = batch::run(app, &args.requests, &args.out, 2 * parallel, |summary| {
        progress::set(&bar, (summary.skipped + summary.answered) as u64, summary.requests as u64);
        !watch.pressed()
    });
    let summary = runtime.block_on(run)?;
    bar.finish_and_clear();
    let batch::BatchSummary { requests, skipped, answered, failed } = summary;
    if args.json {
        output::json(
            &serde_json::json!({"requests": requests, "skipped": skipped, "answered": answered, "failed": failed}),
        )?;
    } else {
        output::line(format_args!(
            "{answered} answered ({failed} with an error), {skipped} were there, of {requests}"
        ))?;
    }
    Ok(if skipped + answered < requests { Ending::Interrupted } else { Ending::Done })
}
