//! The `gemma` program: nothing but arguments, printing and progress.
//!
//! [`args`] says what can be typed, a file per verb under [`commands`] does it with the library, [`session`] opens
//! models, and [`output`] prints. This file maps every ending to an exit code: 0 done (a closed pipe included),
//! 1 an editor that left the language server without a word, 2 a mistake in what was asked (one line on standard error), 130
//! interrupted.

mod args;
mod bandwidth;
mod commands;
mod image_files;
mod interrupt;
mod logits_file;
mod machine;
mod new_file;
mod output;
mod panics;
mod progress;
mod session;
mod text;
mod tokens_file;

use std::process::ExitCode;

use clap::{Parser, error::ErrorKind};

use crate::{commands::Arguments, interrupt::Ending};

#[global_allocator]
static ALLOCATOR: gemma_kernels::LargeBlocks = gemma_kernels::LargeBlocks::new();

/// Exit code of everything that went wrong.
const FAILURE: u8 = 2;

fn main() -> ExitCode {
    machine::note_start();
    let arguments = match Arguments::try_parse_from(commands::as_typed(std::env::args_os().collect())) {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error),
    };
    gemma_kernels::report_lost_maps();
    let result = panics::caught(|| {
        interrupt::install()?;
        commands::run(arguments.verb)
    });
    match result {
        Ok(Ending::Done) => ExitCode::SUCCESS,
        Ok(Ending::Interrupted) => ExitCode::from(interrupt::EXIT_CODE),
        Err(error) if error.is::<output::Closed>() => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(format_args!("error: {}", output::with_flags(&output::one_line(&error))));
            // what the language server protocol wants after a client that leaves without saying goodbye
            let left = matches!(error.downcast_ref(), Some(gemma_serve::Error::Abandoned));
            ExitCode::from(if left { 1 } else { FAILURE })
        }
    }
}

/// Prints help where it was asked for, and a mistake in the arguments as one line.
fn refuse(error: &clap::Error) -> ExitCode {
    let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if asked_for || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // Help that cannot be printed has no reader to be told.
        let _ = error.print();
        return if asked_for { ExitCode::SUCCESS } else { ExitCode::from(FAILURE) };
    }
    let words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let line = commands::one_line(error, &words);
    // where clap names a flag itself, it also knows similar ones
    let names_another = error.kind() == ErrorKind::UnknownArgument && !line.contains("argument '--");
    let unknown = if names_another { commands::unknown_flag(&words) } else { None };
    output::complain(unknown.unwrap_or(line));
    ExitCode::from(FAILURE)
}
