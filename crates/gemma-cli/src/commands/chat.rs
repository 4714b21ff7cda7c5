//! `gemma chat`: a conversation at the keyboard, or line by line from a pipe.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Args;
use gemma_auto::{AutoModel, with_model};
use gemma_generate::GenerateOptions;
use gemma_model::{Answered, Attachments, Conversation, Model, Network};
use gemma_tokenizer::{ChatTemplate, Role, Turn};
use gemma3::Image;
use rustyline::{DefaultEditor, error::ReadlineError};

use super::generate;
use crate::{
    args::{ChatFormat, Model as ModelArgs, Sampling},
    interrupt::{self, Ending},
    new_file::NewFile,
    output, session, text,
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
  gemma chat --model google/gemma-3-1b-it --system 'Answer in one sentence.'
  printf 'What is 2 plus 3?\\nAnd plus 1?\\n' | gemma chat --temperature 0
  printf '/image cat.jpg\\nWhat is this?\\n' | gemma chat --model google/gemma-3-4b-it

In the conversation, /help lists the commands: /image FILE, /reset, /undo, /save FILE, /stats, /exit. /image is for models
that see images, such as google/gemma-3-4b-it, and is read from a pipe as well.")]
pub(crate) struct Chat {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    #[command(flatten)]
    pub(crate) format: ChatFormat,

    #[command(flatten)]
    pub(crate) sampling: Sampling,
}

/// Words that are commands also with more behind them.
const COMMANDS: [&str; 9] = ["help", "image", "reset", "undo", "save", "stats", "exit", "quit", "load"];

const HELP: &str = "\
/image FILE show an image; the next question is about it
/reset      forget the conversation
/undo       forget the last question and its answer
/save FILE  write the conversation to a JSON file
/stats      tokens and bytes in the KV cache, and the rates of the last answer
/exit       leave; Ctrl-D does too
Ctrl-C stops an answer. A line that ends with \\ goes on in the next. Another line that begins with / is a question,
and so is one that begins with //.";

pub(crate) fn run(args: &Chat) -> Result<Ending> {
    let options = args.sampling.options();
    options.check()?;
    // what cannot be read is known before the model is opened
    let (system, template) = (args.format.system()?, args.format.template()?);
    let opened = session::find(&args.model)?.open()?;
    let settings = Settings { system, template };
    match &opened.model {
        AutoModel::Gemma3(model) => {
            let show = |file: &Path| Ok(model.encode_image(&Image::open(file)?));
            talk(model.model(), model.conversation(options), settings, Some(&show))
        }
        other => with_model!(other, model => talk(model, Conversation::new(model, options), settings, None)),
    }
}

/// What the flags say of the conversation.
struct Settings {
    system: Option<String>,
    template: Option<ChatTemplate>,
}

/// Encodes the image in a file; `None` for a model that reads text only.
type Show<'s, I> = Option<&'s dyn Fn(&Path) -> Result<I>>;

/// A conversation at the keyboard or from a pipe.
struct Talk<'t, 'm, N: Network, A: Attachments> {
    conversation: Conversation<'m, N, A>,
    show: Show<'t, A::Item>,
    /// Images that the next question is about.
    shown: Vec<A::Item>,
    context: Option<usize>,
    last: Option<Answered>,
}

fn talk<N: Network, A: Attachments>(
    model: &Model<N>,
    conversation: Conversation<'_, N, A>,
    settings: Settings,
    show: Show<'_, A::Item>,
) -> Result<Ending> {
    model.tokenizer()?;
    let template = settings.template.unwrap_or_else(|| model.chat_template().clone());
    template.check()?;
    let mut conversation = conversation.with_template(template);
    if let Some(system) = settings.system {
        conversation = conversation.with_system(system);
    }
    let context = model.network().context_length();
    let mut talk = Talk { conversation, show, shown: Vec::new(), context, last: None };
    if io::stdin().is_terminal() { at_keyboard(&mut talk) } else { from_lines(&mut talk) }
}

/// Every line is a question, but for those that show an image; Ctrl-C ends everything.
fn from_lines<N: Network, A: Attachments>(talk: &mut Talk<'_, '_, N, A>) -> Result<Ending> {
    let mut input = io::stdin().lock();
    while let Some(line) = text::line(&mut input).context("cannot use standard input")? {
        let line = match String::from_utf8(line) {
            Ok(line) => line,
            // one line that cannot be read does not end the conversation
            Err(error) => {
                output::remark(format_args!("error: {}", text::not_utf8(error.utf8_error())));
                continue;
            }
        };
        if line.trim().is_empty() {
            continue;
        }
        if let (Line::Command("image", file), true) = (Line::of(line.trim()), talk.show.is_some()) {
            output::remark(talk.show(file));
            continue;
        }
        let watch = interrupt::watch();
        talk.conversation.say_with(std::mem::take(&mut talk.shown), &line, watch.flag(), output::piece)?;
        output::line("")?;
        if watch.pressed() {
            return Ok(Ending::Interrupted);
        }
    }
    Ok(Ending::Done)
}

/// What comes so soon behind a byte that cannot be read was typed or pasted with it.
const TYPED_TOGETHER: Duration = Duration::from_millis(100);

/// A prompt with line editing; Ctrl-C ends the answer.
fn at_keyboard<N: Network, A: Attachments>(talk: &mut Talk<'_, '_, N, A>) -> Result<Ending> {
    let mut editor = DefaultEditor::new().context("cannot read from this terminal")?;
    output::remark("/help lists commands, Ctrl-D leaves");
    let mut unreadable = None;
    loop {
        let line = match question(&mut editor) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(Ending::Done),
            Err(error) if is_not_utf8(&error) => {
                output::remark("error: the line is not UTF-8 text, so it is left out");
                unreadable = Some(Instant::now());
                continue;
            }
            Err(error) => return Err(error).context("cannot read from this terminal"),
        };
        // what is there at once is the rest of the line
        if unreadable.take().is_some_and(|at| at.elapsed() < TYPED_TOGETHER) {
            continue;
        }
        match Line::of(line.trim()) {
            Line::Command("exit" | "quit", _) => return Ok(Ending::Done),
            Line::Command(name, rest) => output::line(talk.run_command(name, rest))?,
            Line::Nothing => {}
            // What went wrong with one question is no reason to lose the conversation.
            Line::Question(line) => match talk.answer(line) {
                Ok(answered) => talk.last = Some(answered),
                Err(error) if error.is::<output::Closed>() => return Err(error),
                Err(error) => output::remark(format_args!("error: {}", output::one_line(&error))),
            },
        }
    }
}

/// What a typed line is.
#[derive(Debug, PartialEq, Eq)]
enum Line<'l> {
    Nothing,
    /// A command and what follows it.
    Command(&'l str, &'l str),
    Question(&'l str),
}

impl<'l> Line<'l> {
    /// A word behind a slash is a command, also one that does not exist. A path is none, nor is a word with more behind it
    /// that is no command: both begin a question. Two slashes are one that begins a question.
    fn of(line: &'l str) -> Self {
        let Some(command) = line.strip_prefix('/') else {
            return if line.is_empty() { Self::Nothing } else { Self::Question(line) };
        };
        if command.starts_with('/') {
            return Self::Question(command);
        }
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let is_command = COMMANDS.contains(&name) || (rest.trim().is_empty() && !name.contains(['/', '.', '\n']));
        if is_command && !name.is_empty() { Self::Command(name, rest.trim()) } else { Self::Question(line) }
    }
}

/// Whether bytes were typed or pasted that are no UTF-8 text.
fn is_not_utf8(error: &ReadlineError) -> bool {
    match error {
        ReadlineError::Io(error) => error.kind() == io::ErrorKind::InvalidData,
        other => other.to_string().to_lowercase().contains("utf"),
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

impl<N: Network, A: Attachments> Talk<'_, '_, N, A> {
    fn answer(&mut self, text: &str) -> Result<Answered> {
        let watch = interrupt::watch();
        let shown = std::mem::take(&mut self.shown);
        let answered = self.conversation.say_with(shown, text, watch.flag(), output::piece);
        output::line("")?;
        let answered = answered?;
        if answered.forgotten > 0 {
            output::remark(format_args!("[the context was full: forgot the {} oldest exchanges]", answered.forgotten));
        }
        output::remark(generate::told(answered.timings, answered.reason));
        Ok(answered)
    }

    /// Shows the image in a file, and says what came of it.
    fn show(&mut self, file: &str) -> String {
        let shown = match self.show {
            _ if file.is_empty() => return "name a file: /image photo.jpg".to_owned(),
            None => Err(anyhow::anyhow!(
                "this model reads text only; take one that sees images, such as google/gemma-3-4b-it"
            )),
            Some(show) => show(Path::new(file)),
        };
        match shown {
            Ok(image) => {
                self.shown.push(image);
                format!("[{file}: the next question is about {}]", if self.shown.len() == 1 { "it" } else { "it, too" })
            }
            Err(error) => format!("error: {}", output::one_line(&error)),
        }
    }

    /// Runs a command and describes what it did.
    fn run_command(&mut self, name: &str, rest: &str) -> String {
        match (name, rest) {
            ("help", _) => HELP.to_owned(),
            ("image", file) => self.show(file.trim()),
            ("reset", _) => {
                self.conversation.reset();
                self.shown.clear();
                "the conversation begins anew".to_owned()
            }
            ("undo", _) if self.conversation.undo() => "the last question and its answer are forgotten".to_owned(),
            ("undo", _) => "there is nothing to forget".to_owned(),
            ("save", file) if !file.trim().is_empty() => {
                match save(self.conversation.turns(), Path::new(file.trim())) {
                    Ok(()) => format!("saved to {}", file.trim()),
                    Err(error) => format!("error: {}", output::one_line(&error)),
                }
            }
            ("save", _) => "name a file: /save conversation.json".to_owned(),
            ("stats", _) => self.stats(),
            (other, _) => format!("there is no command /{other}; /help lists them"),
        }
    }

    fn stats(&self) -> String {
        let (tokens, bytes) = self.conversation.remembered();
        let limit = self.context.map(|limit| format!(" of {limit}")).unwrap_or_default();
        let speed = self.last.map(|last| generate::told(last.timings, last.reason)).unwrap_or_default();
        let turns = self.conversation.turns().len();
        format!("{turns} turns, {tokens}{limit} tokens in {}\n{speed}", output::bytes(bytes as u64))
            .trim_end()
            .to_owned()
    }
}

/// Writes the conversation as JSON, whole or not at all.
fn save(turns: &[Turn], path: &Path) -> Result<()> {
    let role = |turn: &Turn| if turn.role == Role::User { "user" } else { "model" };
    let one = |turn: &Turn| match turn.images() {
        0 => serde_json::json!({"role": role(turn), "text": turn.plain_text()}),
        images => serde_json::json!({"role": role(turn), "text": turn.plain_text(), "images": images}),
    };
    let turns: Vec<_> = turns.iter().map(one).collect();
    let mut file = NewFile::open(path)?;
    let written = writeln!(file.as_file_mut(), "{:#}", serde_json::Value::Array(turns));
    written.with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_may_begin_with_a_slash() {
        for (line, expected) in [
            ("", Line::Nothing),
            ("hi", Line::Question("hi")),
            ("/help", Line::Command("help", "")),
            ("/save  a b.json ", Line::Command("save", "a b.json")),
            ("/hlep", Line::Command("hlep", "")),
            ("/etc/hosts is what kind of file?", Line::Question("/etc/hosts is what kind of file?")),
            ("/image a b.jpg", Line::Command("image", "a b.jpg")),
            ("/etc/hosts", Line::Question("/etc/hosts")),
            ("/tmp is what?", Line::Question("/tmp is what?")),
            ("//help", Line::Question("/help")),
            ("/", Line::Question("/")),
        ] {
            assert_eq!(Line::of(line), expected, "{line}");
        }
    }

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
