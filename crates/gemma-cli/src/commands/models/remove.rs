//! `gemma models rm`: a repository of the hub leaves the cache.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{Context, Result, bail};
use clap::Args;
use gemma_weights::{cached_bytes, remove_cached};

use crate::{interrupt::Ending, output, session};

/// Remove a downloaded checkpoint from the cache, partial downloads of it too.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma models rm google/gemma-2-2b-it
  gemma models rm --yes bartowski/gemma-2-2b-it-GGUF

All revisions and files of the repository go, and nothing else. Other Hugging Face programs share the cache, which
HF_HOME and HF_HUB_CACHE name.")]
pub(crate) struct Remove {
    /// Hub id, ORGANISATION/NAME.
    pub(crate) id: String,

    /// Remove it without asking.
    #[arg(short, long)]
    pub(crate) yes: bool,
}

pub(crate) fn run(args: &Remove) -> Result<Ending> {
    let options = session::hub(true);
    let id = options.id(&args.id)?;
    let repository = id.repository();
    if id.to_string() != repository {
        bail!("{id} names a part of a repository, and the whole of it would go; give {repository}");
    }
    let Some(bytes) = cached_bytes(&id, &options) else {
        bail!("nothing of {repository} is in the cache {}; HF_HUB_CACHE names another one", options.cache.display());
    };
    if !args.yes && !confirmed(&repository, bytes)? {
        output::complain(format_args!("{repository} stays"));
        return Ok(Ending::Done);
    }
    let freed = remove_cached(&id, &options)?.unwrap_or(0);
    output::line(format_args!("removed {repository}: {} freed", output::bytes(freed)))?;
    Ok(Ending::Done)
}

/// Asks a person; nobody else is taken to have agreed.
fn confirmed(repository: &str, bytes: u64) -> Result<bool> {
    if !io::stdin().is_terminal() {
        bail!(
            "{repository} takes {} and would be removed; give --yes to do so without being asked",
            output::bytes(bytes)
        );
    }
    let mut stderr = io::stderr();
    write!(stderr, "remove {repository} ({}) from the cache? [y/N] ", output::bytes(bytes))
        .and_then(|()| stderr.flush())
        .context("cannot ask on standard error")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("cannot read standard input")?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}
