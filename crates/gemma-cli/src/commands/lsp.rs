//! `gemma lsp`: complete code in an editor.

use std::{io, time::Duration};

use anyhow::Result;
use clap::Args;
use gemma_serve::lsp;

use crate::{
    args::{CodeModel, OrderName, StopRuleName, seconds},
    interrupt::Ending,
    output, session,
};

/// Complete code in an editor: a language server on standard input and output.
///
/// The editor starts it; docs/editors.md in the repository has the lines for Neovim, Helix, VS Code and Zed.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma lsp
  gemma lsp --model google/codegemma-2b --precision q8_0 --max-tokens 48
  gemma lsp --model ./my-codegemma --stop-rule line --debounce 150

It offers textDocument/inlineCompletion (LSP 3.18) and, for editors without it, textDocument/completion.")]
pub(crate) struct Lsp {
    /// Most tokens of one completion.
    #[arg(short = 'n', long, value_name = "N", default_value_t = lsp::Options::default().infill.generate.max_tokens)]
    pub(crate) max_tokens: usize,

    /// Most tokens of the prompt.
    #[arg(long, value_name = "N", default_value_t = lsp::Options::default().infill.budget.unwrap_or_default())]
    pub(crate) budget: usize,

    /// The order of the parts in the prompt.
    #[arg(long, value_name = "ORDER", default_value = "spm")]
    pub(crate) order: OrderName,

    /// How far a completion may reach.
    #[arg(long, alias = "extent", value_name = "RULE", default_value = "block")]
    pub(crate) stop_rule: StopRuleName,

    /// Most time for one completion, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "5")]
    pub(crate) time_limit: Duration,

    /// Milliseconds that a request waits for another keystroke.
    #[arg(long, value_name = "MS", default_value_t = lsp::Options::default().debounce.as_millis() as u64)]
    pub(crate) debounce: u64,

    /// Other open documents of the same language that the model is shown.
    #[arg(long, value_name = "N", default_value_t = lsp::Options::default().open_files)]
    pub(crate) open_files: usize,

    #[command(flatten)]
    pub(crate) model: CodeModel,
}

impl Lsp {
    /// The server's options for these flags.
    pub(crate) fn options(&self) -> lsp::Options {
        let mut options = lsp::Options::default();
        options.infill.generate.max_tokens = self.max_tokens;
        options.infill.budget = Some(self.budget);
        options.infill.order = self.order.order();
        options.infill.stop_rule = self.stop_rule.stop_rule();
        options.infill.time_limit = Some(self.time_limit);
        options.debounce = Duration::from_millis(self.debounce);
        options.open_files = self.open_files;
        options
    }
}

pub(crate) fn run(args: &Lsp) -> Result<Ending> {
    let options = args.options();
    options.infill.generate.check()?;
    let load = |on_load: lsp::OnLoad<'_>| {
        let opened = session::find_code(&args.model).and_then(|found| found.open_code(on_load));
        opened.map_err(|error| output::one_line(&error))
    };
    lsp::serve(io::BufReader::new(io::stdin()), io::stdout(), load, &options)?;
    Ok(Ending::Done)
}
