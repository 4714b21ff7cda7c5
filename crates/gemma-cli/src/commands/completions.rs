//! `gemma completions` and `gemma man`: what a shell and a reader know of the program.

use std::{fs, io::Write, path::PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::Arguments;
use crate::{interrupt::Ending, output};

/// Print a script that completes commands, flags and their values in a shell.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma completions bash > ~/.local/share/bash-completion/completions/gemma
  gemma completions zsh > ~/.zfunc/_gemma
  gemma completions fish > ~/.config/fish/completions/gemma.fish")]
pub(crate) struct Completions {
    /// The shell: bash, elvish, fish, powershell or zsh.
    pub(crate) shell: Shell,
}

/// Print the manual page, or write one per command into a folder.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma man | man -l -
  gemma man ~/.local/share/man/man1")]
pub(crate) struct ManPages {
    /// Write gemma.1 and gemma-COMMAND.1 into this folder, which is made if it is not there.
    #[arg(value_name = "DIR")]
    pub(crate) folder: Option<PathBuf>,
}

pub(crate) fn completions(args: &Completions) -> Result<Ending> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Arguments::command(), "gemma", &mut script);
    output::text(&script)?;
    Ok(Ending::Done)
}

pub(crate) fn man(args: &ManPages) -> Result<Ending> {
    let mut command = Arguments::command();
    // gives the verbs the names of their pages: gemma-generate
    command.build();
    let Some(folder) = &args.folder else {
        output::text(&page(&command)?)?;
        return Ok(Ending::Done);
    };
    if folder.exists() && !folder.is_dir() {
        bail!("{} is a file; give the folder for the pages", folder.display());
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let pages = with_verbs(&command);
    for command in &pages {
        let path = folder.join(format!("{}.1", command.get_display_name().unwrap_or(command.get_name())));
        fs::write(&path, page(command)?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    output::line(format_args!("{} pages in {}", pages.len(), folder.display()))?;
    Ok(Ending::Done)
}

/// A command, its verbs and their own.
fn with_verbs(command: &Command) -> Vec<Command> {
    let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set()).flat_map(with_verbs);
    [command.clone()].into_iter().chain(verbs).collect()
}

/// The manual page of a command.
fn page(command: &Command) -> Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command.clone().version(env!("CARGO_PKG_VERSION"))).render(&mut page)?;
    page.flush()?;
    Ok(page)
}
