//! `gemma chat`: a conversation at the keyboard, or line by line from a pipe.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
};

use anyhow::{Context, Result};
use clap::Args;
use gemma_auto::with_model;
use gemma_generate::GenerateOptions;
use gemma_model::{Answered, Conversation, Model, Network};
use gemma_tokenizer::{Role, Turn};
use rustyline::{DefaultEditor, error::ReadlineError};

use super::generate;
use crate::{
    args::{Model as ModelArgs, Sampling},
    interrupt::{self, Ending},
    new_file::NewFile,
    output, session,
};

/// Hold a conversation.
///
/// The KV cache is kept between turns: each turn prefills only what is new. Ctrl-C stops an answer, Ctrl-D leaves. When standard input is not a terminal,
/// each of its lines is a turn.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma chat
  gemma chat --model google/gemma-2-2b-it --temperature 0.7
  printf 'What is 2 plus 3?\\nAnd plus 1?\\n' | gemma chat --temperature 0

In the conversation, /help lists the commands: /reset, /undo, /save FILE, /stats, /exit.")]
pub(crate) struct Chat {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    #[command(flatten)]
    pub(crate) sampling: Sampling,
}

const HELP: &str = "\
/reset      forget the conversation
/undo       forget the last question and its answer
/save FILE  write the conversation to a JSON file
/stats      tokens and bytes in the KV cache, and the rates of the last answer
/exit       leave; Ctrl-D does too
Ctrl-C stops an answer. A line that ends with \\ goes on in the next.";

pub(crate) fn run(args: &Chat) -> Result<Ending> {
    let options = args.sampling.options();
    options.check()?;
    let opened = session::find(&args.model)?.open()?;
    with_model!(&opened.model, model => talk(model, options))
}

fn talk<N: Network>(model: &Model<N>, options: GenerateOptions) -> Result<Ending> {
    model.tokenizer()?;
    let context = model.network().context_length();
    let mut conversation = Conversation::new(model, options);
    if io::stdin().is_terminal() { at_keyboard(&mut conversation, context) } else { from_lines(&mut conversation) }
}

/// Every line is a question; Ctrl-C ends everything.
fn from_lines<N: Network>(conversation: &mut Conversation<'_, N>) -> Result<Ending> {
    for line in io::stdin().lines() {
        let line = line.context("cannot read standard input")?;
        if line.trim().is_empty() {
            continue;
        }
        let watch = interrupt::watch();
        conversation.say(&line, watch.flag(), output::piece)?;
        output::line("")?;
        if watch.pressed() {
            return Ok(Ending::Interrupted);
        }
    }
    Ok(Ending::Done)
}

/// A prompt with line editing; Ctrl-C ends the answer.
fn at_keyboard<N: Network>(conversation: &mut Conversation<'_, N>, context: Option<usize>) -> Result<Ending> {
    let mut editor = DefaultEditor::new().context("cannot read from this terminal")?;
    output::remark("/help lists commands, Ctrl-D leaves");
    let mut last = None;
    loop {
        let line = match question(&mut editor) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(Ending::Done),
            Err(error) => return Err(error).context("cannot read from this terminal"),
        };
        let line = line.trim();
        if let Some(command) = line.strip_prefix('/') {
            if command == "exit" || command == "quit" {
                return Ok(Ending::Done);
            }
            output::line(obey(command, conversation, last, context))?;
        } else if !line.is_empty() {
            // What went wrong with one question is no reason to lose the conversation.
            match answer(conversation, line) {
                Ok(answered) => last = Some(answered),
                Err(error) if error.is::<output::Closed>() => return Err(error),
                Err(error) => output::remark(format_args!("error: {}", output::one_line(&error))),
            }
        }
    }
}

/// One question, which `\` at the end of a line continues.
fn question(editor: &mut DefaultEditor) -> rustyline::Result<String> {
    let mut text = editor.readline("> ")?;
    while text.ends_with('\\') {
        text.pop();
        text.push('\n');
        text += &editor.readline("… ")?;
    }
    // A history that cannot be kept is no loss.
    let _ = editor.add_history_entry(text.as_str());
    Ok(text)
}

fn answer<N: Network>(conversation: &mut Conversation<'_, N>, text: &str) -> Result<Answered> {
    let watch = interrupt::watch();
    let answered = conversation.say(text, watch.flag(), output::piece);
    output::line("")?;
    let answered = answered?;
    if answered.forgotten > 0 {
        output::remark(format_args!("[the context was full: forgot the {} oldest exchanges]", answered.forgotten));
    }
    output::remark(generate::told(answered.timings, answered.reason));
    Ok(answered)
}

/// Does what a command says, and says what it did.
fn obey<N: Network>(
    command: &str,
    conversation: &mut Conversation<'_, N>,
    last: Option<Answered>,
    context: Option<usize>,
) -> String {
    match command.split_once(' ').unwrap_or((command, "")) {
        ("help", _) => HELP.to_owned(),
        ("reset", _) => {
            conversation.reset();
            "the conversation begins anew".to_owned()
        }
        ("undo", _) if conversation.undo() => "the last question and its answer are forgotten".to_owned(),
        ("undo", _) => "there is nothing to forget".to_owned(),
        ("save", file) if !file.trim().is_empty() => match save(conversation.turns(), Path::new(file.trim())) {
            Ok(()) => format!("saved to {}", file.trim()),
            Err(error) => format!("error: {}", output::one_line(&error)),
        },
        ("save", _) => "name a file: /save conversation.json".to_owned(),
        ("stats", _) => stats(conversation, last, context),
        (other, _) => format!("there is no command /{other}; /help lists them"),
    }
}

fn stats<N: Network>(conversation: &Conversation<'_, N>, last: Option<Answered>, context: Option<usize>) -> String {
    let (tokens, bytes) = conversation.remembered();
    let limit = context.map(|limit| format!(" of {limit}")).unwrap_or_default();
    let speed = last.map(|last| generate::told(last.timings, last.reason)).unwrap_or_default();
    format!("{} turns, {tokens}{limit} tokens in {}\n{speed}", conversation.turns().len(), output::bytes(bytes as u64))
        .trim_end()
        .to_owned()
}

/// Writes the conversation as JSON, whole or not at all.
fn save(turns: &[Turn], path: &Path) -> Result<()> {
    let role = |turn: &Turn| if turn.role == Role::User { "user" } else { "model" };
    let turns: Vec<_> = turns.iter().map(|turn| serde_json::json!({"role": role(turn), "text": turn.text})).collect();
    let mut file = NewFile::open(path)?;
    let written = writeln!(file.as_file_mut(), "{:#}", serde_json::Value::Array(turns));
    written.with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_is_saved_as_json() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("talk.json");
        save(&[Turn::user("2 + 3?"), Turn::model("5")], &path).expect("saved");
        let back: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).expect("there")).expect("JSON");
        assert_eq!(back[1], serde_json::json!({"role": "model", "text": "5"}));
        assert!(save(&[], &folder.path().join("missing/x")).is_err());
    }
}
