//! A file per verb.

mod bench;
mod chat;
mod convert;
mod eval;
mod generate;
mod images;
mod infill;
mod inspect;
mod logits;
mod lsp;
mod models;
mod pull;
mod score;
mod tokenize;

use anyhow::Result;

use crate::{args::Verb, session};

/// How a verb that did not fail ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It did all it was asked to.
    Done,
    /// Ctrl-C cut it short.
    Interrupted,
}

/// Does what was asked.
pub(crate) fn run(verb: Verb) -> Result<Ending> {
    gemma_kernels::chosen_level()?;
    match verb.compute() {
        Some(compute) => session::set_threads(compute.threads)?,
        None if matches!(verb, Verb::Convert(_)) => session::set_threads(None)?,
        None => {}
    }
    match verb {
        Verb::Generate(args) => generate::run(&args),
        Verb::Chat(args) => chat::run(&args),
        Verb::Caption(args) => images::caption(&args),
        Verb::Ask(args) => images::ask(&args),
        Verb::Detect(args) => images::detect(&args),
        Verb::Segment(args) => images::segment(&args),
        Verb::Tokenize(args) => tokenize::run(&args),
        Verb::Logits(args) => logits::run(&args),
        Verb::Score(args) => score::run(&args),
        Verb::Inspect(args) => inspect::run(&args),
        Verb::Models(args) => models::run(&args),
        Verb::Pull(args) => pull::run(&args),
        Verb::Convert(args) => convert::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Infill(args) => infill::run(&args),
        Verb::Lsp(args) => lsp::run(&args),
        Verb::Eval(args) => eval::run(&args),
    }
}
