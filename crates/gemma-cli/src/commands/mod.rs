//! What can be typed after `gemma`: a file per verb, which holds the verb's flags, its help and what it does.

#[cfg(feature = "serve")]
mod batch;
mod bench;
mod chat;
mod completions;
mod convert;
mod embed;
mod eval;
mod finetune;
mod generate;
mod images;
mod infill;
mod inspect;
mod logits;
mod loss;
mod lsp;
mod merge;
mod models;
mod moderate;
mod pull;
mod score;
#[cfg(feature = "serve")]
mod serve;
mod tokenize;

use std::ffi::OsString;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

use crate::{args::Compute, interrupt::Ending, session};

/// Gemma language models on your own machine.
#[derive(Debug, Parser)]
#[command(
    name = "gemma",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "\
Without --model, a tiny model is used that is built into the program: no download, no files. Only embed and moderate need
a --model.

Start here:
  gemma generate \"Once upon a time\"             continue a text
  gemma chat                                    a conversation
  gemma caption demo:                           describe images
  gemma infill main.py --at 12:5                complete code (fill-in-the-middle)
  gemma models                                  released checkpoints, and which fit this machine
  gemma pull google/gemma-2-2b-it               download it (after accepting its licence on the hub)
  gemma chat --model google/gemma-2-2b-it       chat with it

`gemma COMMAND --help` (or `gemma help COMMAND`) explains a command and gives examples."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// The verbs, each with its flags.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    #[command(alias = "complete")]
    Generate(generate::Generate),
    Chat(chat::Chat),
    Caption(images::Caption),
    Ask(images::Ask),
    Detect(images::Detect),
    Segment(images::Segment),
    Tokenize(tokenize::Tokenize),
    Logits(logits::Logits),
    Score(score::Score),
    Embed(embed::Embed),
    Moderate(moderate::Moderate),
    Inspect(inspect::Inspect),
    #[command(aliases = ["list", "ls"])]
    Models(models::Models),
    #[command(alias = "download")]
    Pull(pull::Pull),
    Convert(convert::Convert),
    Merge(merge::Merge),
    Loss(loss::Loss),
    #[command(alias = "train")]
    Finetune(Box<finetune::Finetune>),
    Bench(bench::Bench),
    Infill(infill::Infill),
    Completions(completions::Completions),
    Man(completions::ManPages),
    Lsp(lsp::Lsp),
    Eval(eval::Eval),
    #[cfg(feature = "serve")]
    Serve(Box<serve::Serve>),
    #[cfg(feature = "serve")]
    Batch(batch::Batch),
}

impl Verb {
    /// How this verb computes, if it does.
    pub(crate) fn compute(&self) -> Option<&Compute> {
        match self {
            Self::Generate(args) => Some(&args.model.compute),
            Self::Chat(args) => Some(&args.model.compute),
            Self::Caption(args) => Some(&args.images.model.compute),
            Self::Ask(args) => Some(&args.images.model.compute),
            Self::Detect(args) => Some(&args.images.model.compute),
            Self::Segment(args) => Some(&args.images.model.compute),
            Self::Logits(args) => Some(&args.model.compute),
            Self::Score(args) => Some(&args.model.compute),
            Self::Embed(args) => Some(&args.model.compute),
            Self::Moderate(args) => Some(&args.model.compute),
            Self::Loss(args) => Some(&args.model.compute),
            Self::Finetune(args) => Some(&args.model.compute),
            Self::Bench(args) => Some(&args.compute),
            Self::Infill(args) => Some(&args.model.compute),
            Self::Lsp(args) => Some(&args.model.compute),
            Self::Eval(eval::Eval { task: eval::EvalTask::Infilling(args) }) => Some(&args.model.compute),
            #[cfg(feature = "serve")]
            Self::Serve(args) => Some(&args.engine.model.compute),
            #[cfg(feature = "serve")]
            Self::Batch(args) => Some(&args.engine.model.compute),
            Self::Tokenize(_)
            | Self::Inspect(_)
            | Self::Models(_)
            | Self::Pull(_)
            | Self::Completions(_)
            | Self::Man(_)
            | Self::Convert(_)
            | Self::Merge(_) => None,
        }
    }
}

/// Does what was asked.
pub(crate) fn run(verb: Verb) -> Result<Ending> {
    gemma_kernels::chosen_isa()?;
    gemma_kernels::chosen_prefetch()?;
    match verb.compute() {
        Some(compute) => session::set_threads(compute.threads)?,
        None if matches!(verb, Verb::Convert(_) | Verb::Merge(_)) => session::set_threads(None)?,
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
        Verb::Embed(args) => embed::run(&args),
        Verb::Moderate(args) => moderate::run(&args),
        Verb::Inspect(args) => inspect::run(&args),
        Verb::Models(args) => models::run(&args),
        Verb::Pull(args) => pull::run(&args),
        Verb::Convert(args) => convert::run(&args),
        Verb::Merge(args) => merge::run(&args),
        Verb::Loss(args) => loss::run(&args),
        Verb::Finetune(args) => finetune::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Infill(args) => infill::run(&args),
        Verb::Completions(args) => completions::completions(&args),
        Verb::Man(args) => completions::man(&args),
        Verb::Lsp(args) => lsp::run(&args),
        Verb::Eval(args) => eval::run(&args),
        #[cfg(feature = "serve")]
        Verb::Serve(args) => serve::run(&args),
        #[cfg(feature = "serve")]
        Verb::Batch(args) => batch::run(&args),
    }
}

/// The words of a command line as clap takes them: `help VERB` is `VERB --help`.
pub(crate) fn as_typed(mut words: Vec<OsString>) -> Vec<OsString> {
    if words.get(1).is_some_and(|word| word == "help") {
        words.remove(1);
        words.push("--help".into());
    }
    words
}

/// The first word of a command line, without the program's name, that looks like a flag of its verb and is none. A text
/// may begin with a hyphen, so clap takes such a word for the text and complains of the next one.
pub(crate) fn unknown_flag(words: &[String]) -> Option<String> {
    let (verb, words) = words.split_first()?;
    let command = Arguments::command();
    let command = command.find_subcommand(verb)?;
    let is_known = |name: &str| {
        let has = |arg: &clap::Arg| {
            arg.get_long() == Some(name) || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
        };
        name == "help" || command.get_arguments().any(has)
    };
    let flags = words.iter().take_while(|word| *word != "--").filter_map(|word| word.strip_prefix("--"));
    let mut names = flags.map(|flag| flag.split('=').next().unwrap_or_default());
    let unknown = names.find(|name| name.starts_with(|c: char| c.is_ascii_lowercase()) && !is_known(name))?;
    Some(format!("error: gemma {verb} has no flag --{unknown}; `gemma {verb} --help` lists those that it has"))
}

/// A mistake in the arguments in one line: what clap says first, then its tips.
/// `typed`: the command line without the program's name.
pub(crate) fn one_line(error: &clap::Error, typed: &[String]) -> String {
    let text = error.render().to_string();
    // what the standard library says of numbers
    let text = [
        ("invalid digit found in string", "it must be an integer from 0"),
        ("invalid float literal", "it must be a number"),
        ("number too large to fit in target type", "the number is too large"),
        ("number would be zero for non-zero type", "it must be an integer from 1"),
    ]
    .iter()
    .fold(text, |text, (from, to)| text.replace(from, to));
    let mut paragraphs = text.split("\n\n");
    let words = |paragraph: &str| paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut line = words(paragraphs.next().unwrap_or_default());
    for tip in paragraphs.map(words).filter(|paragraph| paragraph.starts_with("tip:")) {
        line = format!("{line} ({tip})");
    }
    // what is easily mistaken by those who know other programs
    if line.contains("'--precision <FORMAT>'") {
        line += " (-p is the precision; a prompt needs no flag)";
    } else if line.contains("not provided") && (line.contains("--prompt-file") || line.contains("<PROMPT>")) {
        line += " (`-` reads standard input)";
    }
    let is_command = |word: &&String| Arguments::command().find_subcommand(word).is_some();
    let command = typed.first().filter(is_command).map(|word| format!(" {word}")).unwrap_or_default();
    format!("{line}; `gemma{command} --help` shows what can be given")
}

#[cfg(test)]
mod tests;
