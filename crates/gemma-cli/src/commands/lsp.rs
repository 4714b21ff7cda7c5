//! `gemma lsp`: complete code in an editor.

use std::io;

use anyhow::Result;
use gemma_serve::lsp;

use crate::{args, commands::Ending, output, session};

pub(crate) fn run(args: &args::Lsp) -> Result<Ending> {
    let options = args.options();
    options.infill.generate.check()?;
    let load = |on_load: lsp::OnLoad<'_>| {
        let opened = session::find_code(&args.model).and_then(|found| found.open_code(on_load));
        opened.map(|opened| opened.model).map_err(|error| output::one_line(&error))
    };
    lsp::serve(io::BufReader::new(io::stdin()), io::stdout(), load, &options)?;
    Ok(Ending::Done)
}
