//! `gemma chat`: a conversation at the keyboard, or line by line from a pipe.

mod saved;

use std::{
    io::{self, IsTerminal},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use gemma_auto::{AutoModel, with_model};
use gemma_model::{Answered, Attachments, Conversation, Model, Network};
use gemma_tokenizer::Turn;
use rustyline::{DefaultEditor, error::ReadlineError};

use super::generate;
use crate::{
    args::{ChatFormat, Constraint, Form, Model as ModelArgs, Sampling, Speculative, at_least_one, with_breakers},
    image_files,
    interrupt::{self, Ending},
    output, session, text,
};

use saved::Saved;

/// Hold a conversation.
///
/// The KV cache is kept: each question prefills only what is new. Ctrl-C stops an answer, Ctrl-D leaves. When standard input
/// is not a terminal, each of its lines is a question or a command.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma chat
  gemma chat --model google/gemma-2-2b-it --temperature 0.7
  gemma chat --model google/gemma-3-1b-it --system 'Answer in one sentence.'
  gemma chat --model google/gemma-2-2b-it --load yesterday.json
  printf 'What is 2 plus 3?\\nAnd plus 1?\\n/save sums.json\\n' | gemma chat --temperature 0
  printf '/image cat.jpg\\nWhat is this?\\n' | gemma chat --model google/gemma-3-4b-it

In the conversation, /help lists the commands: /image FILE, /regenerate, /undo, /clear, /system TEXT, /save FILE, /load FILE,
/stats, /exit. They are the same from a pipe. /image is for models that see images, such as google/gemma-3-4b-it.

/save writes JSON messages, [{\"role\": \"user\", \"content\": \"...\"}, {\"role\": \"assistant\", ...}], which --load and
/load read. It asks before it replaces a file; from a pipe, /save! FILE replaces it. A line of a pipe that fails is
reported, the conversation goes on, and the exit code is 2.")]
pub(crate) struct Chat {
    /// Go on with the messages that /save wrote: a JSON array of role (system, user, assistant) and content.
    #[arg(long, value_name = "FILE")]
    pub(crate) load: Option<PathBuf>,

    /// Context length of the conversation, in tokens; the model's own without it. What no longer fits is forgotten, the
    /// oldest exchanges first.
    #[arg(long, visible_alias = "ctx-size", value_name = "N", value_parser = at_least_one, allow_negative_numbers = true)]
    pub(crate) context: Option<NonZeroUsize>,

    #[command(flatten)]
    pub(crate) format: ChatFormat,

    #[command(flatten)]
    pub(crate) model: ModelArgs,

    #[command(flatten)]
    pub(crate) sampling: Sampling,

    #[command(flatten)]
    pub(crate) form: Form,

    #[command(flatten)]
    pub(crate) speculative: Speculative,
}

/// Words that are commands also with more behind them.
const COMMANDS: [&str; 14] = [
    "help",
    "image",
    "regenerate",
    "undo",
    "clear",
    "reset",
    "system",
    "save",
    "save!",
    "load",
    "stats",
    "exit",
    "quit",
    "bye",
];

const HELP: &str = "\
/image FILE   show an image; the next question is about it
/regenerate   answer the last question again; in the same words at --temperature 0 or with --seed
/undo         forget the last question and its answer
/clear        forget the conversation, and keep the system prompt; /reset is the same
/system TEXT  change the system prompt; without TEXT, show it
/save FILE    write the conversation to a JSON file; /save! FILE replaces one that is there
/load FILE    go on with a conversation that /save wrote, in place of this one
/stats        tokens and bytes in the KV cache, and the rates of the last answer
/exit         leave; Ctrl-D does too
Ctrl-C stops an answer. On a terminal, a line that ends with \\ goes on in the next. A word alone behind / that is no command
is refused; any other line that begins with / is a question, and so is one that begins with //.";

pub(crate) fn run(args: &Chat) -> Result<Ending> {
    let options = args.sampling.options();
    options.check()?;
    // what cannot be read is known before the model is opened
    let (system, template) = (args.format.system()?, args.format.template()?);
    let loaded = args.load.as_deref().map(Saved::load).transpose()?.unwrap_or_default();
    let (constraint, context) = (args.form.read()?, args.context.map(NonZeroUsize::get));
    let speculate = args.speculative.open(&args.model.compute, args.model.offline)?;
    let found = session::find(&args.model)?;
    if template.is_none() {
        found.note_missing_template()?;
    }
    let opened = found.speculating(speculate).with_template(template).open()?;
    let options = with_model!(&opened.model, model => with_breakers(options, model.tokenizer().ok()));
    // what is typed now holds rather than what was saved
    let system = system.or(loaded.system);
    let settings = Settings { system, turns: loaded.turns, constraint, context };
    match &opened.model {
        AutoModel::Gemma3(model) => {
            let show = |file: &Path| Ok(model.encode_image(&image_files::open(file)?));
            talk(model.model(), model.conversation(options), settings, Some(&show))
        }
        other => with_model!(other, model => talk(model, Conversation::new(model, options), settings, None)),
    }
}

/// What the flags say of the conversation.
struct Settings {
    system: Option<String>,
    /// What was said before.
    turns: Vec<Turn>,
    /// What each answer has to look like.
    constraint: Option<Constraint>,
    context: Option<usize>,
}

/// Encodes the image in a file; `None` for a model that reads text only.
type Show<'s, I> = Option<&'s dyn Fn(&Path) -> Result<I>>;

/// A conversation at the keyboard or from a pipe.
struct Talk<'t, 'm, N: Network, A: Attachments> {
    conversation: Conversation<'m, N, A>,
    model: &'m Model<N>,
    constraint: Option<Constraint>,
    /// The system prompt, which is saved too.
    system: Option<String>,
    show: Show<'t, A::Item>,
    /// Images that the next question is about.
    shown: Vec<A::Item>,
    last: Option<Answered>,
}

fn talk<'m, N: Network, A: Attachments>(
    model: &'m Model<N>,
    mut conversation: Conversation<'m, N, A>,
    settings: Settings,
    show: Show<'_, A::Item>,
) -> Result<Ending> {
    model.tokenizer()?;
    model.chat_template().check()?;
    if let Some(system) = &settings.system {
        conversation = conversation.with_system(system);
    }
    if let Some(context) = settings.context {
        conversation = conversation.with_context(context);
    }
    conversation = conversation.with_turns(settings.turns)?;
    let (constraint, system) = (settings.constraint, settings.system);
    if let Some(constraint) = &constraint {
        // a grammar that cannot be used should be known before the first question
        constraint.mask(model)?;
    }
    let mut talk = Talk { conversation, model, constraint, system, show, shown: Vec::new(), last: None };
    if io::stdin().is_terminal() { at_keyboard(&mut talk) } else { from_lines(&mut talk) }
}

/// Every line is a question or a command, as at the keyboard. What fails is reported, and the conversation goes on.
fn from_lines<N: Network, A: Attachments>(talk: &mut Talk<'_, '_, N, A>) -> Result<Ending> {
    let mut input = io::stdin().lock();
    let (mut lines, mut failed) = (0, 0);
    while let Some(line) = text::line(&mut input).context("cannot use standard input")? {
        lines += 1;
        let done = match std::str::from_utf8(&line) {
            Ok(line) => talk.take_line(line.trim(), false),
            Err(error) => Err(anyhow::anyhow!(text::not_utf8(error))),
        };
        match done {
            Ok(Next::Line) => {}
            Ok(Next::Leave) => break,
            Ok(Next::Interrupted) => return Ok(Ending::Interrupted),
            Err(error) if error.is::<output::Closed>() => return Err(error),
            Err(error) => {
                failed += 1;
                output::complain(format_args!("error: line {lines}: {}", output::one_line(&error)));
            }
        }
    }
    match failed {
        0 => Ok(Ending::Done),
        1 => bail!("1 line of standard input failed"),
        _ => bail!("{failed} lines of standard input failed"),
    }
}

/// What comes after a line.
enum Next {
    Line,
    Leave,
    /// Ctrl-C cut an answer short.
    Interrupted,
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
            Err(ReadlineError::Interrupted) => {
                output::remark("[Ctrl-D or /exit leaves]");
                continue;
            }
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
        let line = line.trim();
        if let Line::Command("save", file) = Line::of(line)
            && Path::new(file).is_file()
        {
            let replaced = replaces(&mut editor, file)?.then(|| talk.run_command("save!", file)).transpose();
            match replaced {
                Ok(done) => done.map_or(Ok(()), output::line)?,
                Err(error) => output::complain(format_args!("error: {}", output::one_line(&error))),
            }
            continue;
        }
        match talk.take_line(line, true) {
            Ok(Next::Line | Next::Interrupted) => {}
            Ok(Next::Leave) => return Ok(Ending::Done),
            Err(error) if error.is::<output::Closed>() => return Err(error),
            // what went wrong with one question is no reason to lose the conversation
            Err(error) => output::complain(format_args!("error: {}", output::one_line(&error))),
        }
    }
}

/// Asks whether a file may be replaced.
fn replaces(editor: &mut DefaultEditor, file: &str) -> Result<bool> {
    match editor.readline(&format!("{file} is there already; replace it? [y/N] ")) {
        Ok(answer) => Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str())),
        Err(ReadlineError::Interrupted | ReadlineError::Eof) => Ok(false),
        Err(error) => Err(error).context("cannot read from this terminal"),
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
    /// that is no command: both begin a question. Two slashes are one that begins a question. Several lines were pasted and
    /// are a question, too, but for a system message, which may have them.
    fn of(line: &'l str) -> Self {
        let Some(command) = line.strip_prefix('/') else {
            return if line.is_empty() { Self::Nothing } else { Self::Question(line) };
        };
        if command.starts_with('/') {
            return Self::Question(command);
        }
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        if command.contains('\n') && name != "system" {
            return Self::Question(line);
        }
        let is_command = COMMANDS.contains(&name) || (rest.trim().is_empty() && !name.contains(['/', '.']));
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
    /// Does what a line says: a command, or a question, which is answered. `at_keyboard` tells whether a person reads what is
    /// said of it.
    fn take_line(&mut self, line: &str, at_keyboard: bool) -> Result<Next> {
        match Line::of(line) {
            Line::Nothing => Ok(Next::Line),
            Line::Command("exit" | "quit" | "bye", _) => Ok(Next::Leave),
            Line::Command("regenerate", _) => self.answer(None, at_keyboard),
            Line::Command(name, rest) => {
                let done = self.run_command(name, rest)?;
                match name {
                    _ if at_keyboard => output::line(done)?,
                    "help" | "stats" | "system" => output::complain(done),
                    _ => output::remark(done),
                }
                Ok(Next::Line)
            }
            Line::Question(question) => self.answer(Some(question), at_keyboard),
        }
    }

    /// Answers a question, or without one the last question again.
    fn answer(&mut self, question: Option<&str>, at_keyboard: bool) -> Result<Next> {
        let watch = interrupt::watch();
        if let Some(constraint) = &self.constraint {
            self.conversation.restrict_next(constraint.mask(self.model)?);
        }
        let answered = match question {
            Some(question) => {
                let shown = std::mem::take(&mut self.shown);
                self.conversation.say_with(shown, question, watch.flag(), output::piece)
            }
            None => match self.conversation.say_again(watch.flag(), output::piece) {
                Ok(None) => bail!("there is no question to answer again"),
                Ok(Some(answered)) => Ok(answered),
                Err(error) => Err(error),
            },
        };
        output::line("")?;
        let answered = answered?;
        if at_keyboard {
            match answered.forgotten {
                0 => {}
                1 => output::remark("[the context was full: the oldest exchange was forgotten]"),
                count => {
                    output::remark(format_args!("[the context was full: the {count} oldest exchanges were forgotten]"))
                }
            }
            output::remark(generate::told(answered.timings, answered.reason));
        }
        self.last = Some(answered);
        Ok(if watch.pressed() { Next::Interrupted } else { Next::Line })
    }

    /// Shows the image in a file, and says so.
    fn show(&mut self, file: &str) -> Result<String> {
        let Some(show) = self.show else {
            bail!("this model reads text only; take one that sees images, such as google/gemma-3-4b-it");
        };
        if file.is_empty() {
            bail!("/image needs a file: /image photo.jpg");
        }
        self.shown.push(show(Path::new(file))?);
        let too = if self.shown.len() == 1 { "" } else { ", too" };
        Ok(format!("[{file}: the next question is about it{too}]"))
    }

    /// Runs a command and describes what it did.
    fn run_command(&mut self, name: &str, rest: &str) -> Result<String> {
        Ok(match (name, rest) {
            ("help", _) => HELP.to_owned(),
            ("image", file) => self.show(file.trim())?,
            ("clear" | "reset", _) => {
                self.conversation.reset();
                self.shown.clear();
                "the conversation begins anew".to_owned()
            }
            ("system", "") => match &self.system {
                Some(system) => format!("the system prompt is: {system}"),
                None => "there is no system prompt; /system TEXT gives one".to_owned(),
            },
            ("system", text) => {
                self.conversation.set_system(Some(text.to_owned()));
                self.system = Some(text.to_owned());
                "the system prompt is another".to_owned()
            }
            ("undo", _) if self.conversation.undo() => "the last question and its answer are forgotten".to_owned(),
            ("undo", _) => "there is nothing to forget".to_owned(),
            ("save" | "save!" | "load", "") => bail!("/{name} needs a file: /{name} conversation.json"),
            ("save", file) if Path::new(file).exists() => {
                bail!("{file} is there already; /save! {file} replaces it")
            }
            ("save" | "save!", file) => {
                saved::save(self.system.as_deref(), self.conversation.turns(), Path::new(file))?;
                format!("saved to {file}")
            }
            ("load", file) => {
                let loaded = Saved::load(Path::new(file))?;
                let exchanges = exchanges(loaded.turns.len());
                self.conversation.set_turns(loaded.turns)?;
                if let Some(system) = loaded.system {
                    self.conversation.set_system(Some(system.clone()));
                    self.system = Some(system);
                }
                self.shown.clear();
                format!("loaded {exchanges} from {file}")
            }
            ("stats", _) => self.stats(),
            (other, _) => bail!("there is no command /{other}; /help lists them"),
        })
    }

    fn stats(&self) -> String {
        let (tokens, bytes) = self.conversation.remembered();
        let limit = self.conversation.context().map(|limit| format!(" of {limit}")).unwrap_or_default();
        let speed = self.last.map(|last| generate::told(last.timings, last.reason)).unwrap_or_default();
        let exchanges = exchanges(self.conversation.turns().len());
        format!("{exchanges}, {tokens}{limit} tokens in {}\n{speed}", output::bytes(bytes as u64)).trim_end().to_owned()
    }
}

/// Questions with their answers, counted in words.
fn exchanges(turns: usize) -> String {
    match turns / 2 {
        1 => "1 exchange".to_owned(),
        count => format!("{count} exchanges"),
    }
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
            ("/regenerate", Line::Command("regenerate", "")),
            ("/system Be brief.", Line::Command("system", "Be brief.")),
            ("/system Be brief.\nAnd kind.", Line::Command("system", "Be brief.\nAnd kind.")),
            ("/save x\nis a line of a script", Line::Question("/save x\nis a line of a script")),
            ("/etc/hosts is what kind of file?", Line::Question("/etc/hosts is what kind of file?")),
            ("/save! a.json", Line::Command("save!", "a.json")),
            ("/image a b.jpg", Line::Command("image", "a b.jpg")),
            ("/etc/hosts", Line::Question("/etc/hosts")),
            ("/tmp is what?", Line::Question("/tmp is what?")),
            ("//help", Line::Question("/help")),
            ("/", Line::Question("/")),
        ] {
            assert_eq!(Line::of(line), expected, "{line}");
        }
    }
}
