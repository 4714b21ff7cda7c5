//! `gemma batch`: answer a file of requests without a server.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use gemma_serve::http::{App, Settings, batch};
use tempfile::NamedTempFile;

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
  make-requests | gemma batch - --out - | jq -r .response.body.choices[0].text
  split -n l/4 requests.jsonl part- && gemma batch part-aa --out results-aa.jsonl    one of four machines

Each line is {\"custom_id\", \"method\", \"url\", \"body\"}; url is /v1/chat/completions, /v1/completions, /v1/embeddings,
/v1/moderations, /v1/responses or /v1/fim/completions. Run again after an interruption, it answers what is missing: each
request has exactly one line in the end. Results come in the order in which they are finished.")]
pub(crate) struct Batch {
    /// The requests, one JSON object per line; `-` is standard input.
    #[arg(value_name = "FILE")]
    pub(crate) requests: PathBuf,

    /// Where the results go; a file with results is continued, `-` is standard output.
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
    // the requests are read twice, so what comes through a pipe is put down first
    let piped = if args.requests == Path::new("-") { Some(put_down(&mut std::io::stdin().lock())?) } else { None };
    let requests = piped.as_ref().map_or(&*args.requests, NamedTempFile::path);
    let backend = args.engine.backend()?;
    let bar = progress::count("answering", "requests", 0);
    let app = App::new(vec![backend], settings);
    let on_answer = |summary: &batch::BatchSummary| {
        progress::set(&bar, (summary.skipped + summary.answered) as u64, summary.requests as u64);
        !watch.pressed()
    };
    let to_stdout = args.out == Path::new("-");
    let summary = match to_stdout {
        true => {
            let written = batch::run_to(app, requests, std::io::stdout(), 2 * parallel, on_answer);
            match runtime.block_on(written) {
                Err(batch::BatchError::File { action: "write", cause, .. })
                    if cause.kind() == std::io::ErrorKind::BrokenPipe =>
                {
                    return Err(output::Closed.into());
                }
                other => other?,
            }
        }
        false => runtime.block_on(batch::run(app, requests, &args.out, 2 * parallel, on_answer))?,
    };
    bar.finish_and_clear();
    let batch::BatchSummary { requests, skipped, answered, failed } = summary;
    let words = format!("{answered} answered ({failed} with an error), {skipped} were there, of {requests}");
    if to_stdout {
        eprintln!("{words}");
    } else if args.json {
        output::json(
            &serde_json::json!({"requests": requests, "skipped": skipped, "answered": answered, "failed": failed}),
        )?;
    } else {
        output::line(words)?;
    }
    Ok(if skipped + answered < requests { Ending::Interrupted } else { Ending::Done })
}

/// Everything that is read, as a file.
fn put_down(input: &mut impl Read) -> Result<NamedTempFile> {
    let mut file = NamedTempFile::new().context("cannot make a temporary file")?;
    std::io::copy(input, &mut file).context("cannot keep the requests")?;
    Ok(file)
}
