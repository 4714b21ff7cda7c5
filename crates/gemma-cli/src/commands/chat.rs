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
/// The KV cache is kept between turns: each turn prefills only what is new. Ctrl-C stops an answer, Ctrl-D leaves. When
/// standard input is not a terminal, each of its lines is a turn or a command.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma chat
  gemma chat --model google/gemma-2-2b-it --temperature 0.7
  gemma chat --model google/gemma-3-1b-it --system 'Answer in one sentence.'
  gemma chat --model google/gemma-2-2b-it --load yesterday.json
  printf 'What is 2 plus 3?\\nAnd plus 1?\\n/save sums.json\\n' | gemma chat --temperature 0
  printf '/image cat.jpg\\nWhat is this?\\n' | gemma chat --model google/gemma-3-4b-it

In the conversation, /help lists the commands: /image FILE, /reset, /undo, /save FILE, /stats, /exit. They are read from a
pipe as well. /image is for models that see images, such as google/gemma-3-4b-it.

/save writes JSON messages, [{\"role\": \"user\", \"content\": \"...\"}, {\"role\": \"assistant\", ...}], which --load reads.
It asks before it replaces a file; from a pipe, /save! FILE replaces it.")]
pub(crate) struct Chat {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    #[command(flatten)]
    pub(crate) format: ChatFormat,

    /// Go on with the messages that /save wrote: a JSON array of role (system, user, assistant) and content.
    #[arg(long, value_name = "FILE")]
    pub(crate) load: Option<PathBuf>,

    /// Context length of the conversation, in tokens; the model's own without it. What no longer fits is forgotten, the
    /// oldest exchanges first.
    #[arg(long, visible_alias = "ctx-size", value_name = "N", value_parser = at_least_one, allow_negative_numbers = true)]
    pub(crate) context: Option<NonZeroUsize>,

    #[command(flatten)]
    pub(crate) sampling: Sampling,

    #[command(flatten)]
    pub(crate) form: Form,

    #[command(flatten)]
    pub(crate) speculative: Speculative,
}

/// Words that are commands also with more behind them.
const COMMANDS: [&str; 10] = ["help", "image", "reset", "undo", "save", "save!", "stats", "exit", "quit", "load"];

const HELP: &str = "\
/image FILE show an image; the next question is about it
/reset      forget the conversation
/undo       forget the last question and its answer
/save FILE  write the conversation to a JSON file, for --load; /save! FILE replaces one that is there
/stats      tokens and bytes in the KV cache, and the rates of the last answer
/exit       leave; Ctrl-D does too
Ctrl-C stops an answer. A line that ends with \\ goes on in the next. Another line that begins with / is a question,
and so is one that begins with //.";

pub(crate) fn run(args: &Chat) -> Result<Ending> {
    let options = args.sampling.options();
    options.check()?;
    // what cannot be read is known before the model is opened
    let (system, template) = (args.format.system()?, args.format.template()?);
    let loaded = args.load.as_deref().map(Saved::load).transpose()?.unwrap_or_default();
    let (constraint, context) = (args.form.read()?, args.context.map(NonZeroUsize::get));
    let speculate = args.speculative.open(&args.model.compute, args.model.offline)?;
    let opened = session::find(&args.model)?.speculating(speculate).with_template(template).open()?;
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
    /// The standing instructions, which are saved too.
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

/// Every line is a question, but for commands; a command that fails ends everything, and so does Ctrl-C.
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
        match Line::of(line.trim()) {
            Line::Command("exit" | "quit", _) => return Ok(Ending::Done),
            Line::Command(name @ ("help" | "stats"), rest) => {
                output::complain(talk.run_command(name, rest)?);
                continue;
            }
            // what is no command here is a question: nobody mistyped it
            Line::Command(name, rest) if COMMANDS.contains(&name) && (name != "image" || talk.show.is_some()) => {
                output::remark(talk.run_command(name, rest)?);
                continue;
            }
            _ => {}
        }
        let watch = interrupt::watch();
        talk.restrict()?;
        talk.last =
            Some(talk.conversation.say_with(std::mem::take(&mut talk.shown), &line, watch.flag(), output::piece)?);
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
            Line::Command("save", file) if Path::new(file).is_file() && !replaces(&mut editor, file)? => {}
            Line::Command(name, rest) => {
                let name = if name == "save" { "save!" } else { name };
                let done = talk.run_command(name, rest);
                output::line(done.unwrap_or_else(|error| format!("error: {}", output::one_line(&error))))?;
            }
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
    /// Restricts the next answer to the grammar, if there is one.
    fn restrict(&mut self) -> Result<()> {
        if let Some(constraint) = &self.constraint {
            self.conversation.restrict_next(constraint.mask(self.model)?);
        }
        Ok(())
    }

    fn answer(&mut self, text: &str) -> Result<Answered> {
        let watch = interrupt::watch();
        self.restrict()?;
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
            ("reset", _) => {
                self.conversation.reset();
                self.shown.clear();
                "the conversation begins anew".to_owned()
            }
            ("undo", _) if self.conversation.undo() => "the last question and its answer are forgotten".to_owned(),
            ("undo", _) => "there is nothing to forget".to_owned(),
            ("save" | "save!", "") => bail!("/{name} needs a file: /{name} conversation.json"),
            ("save", file) if Path::new(file).exists() => {
                bail!("{file} is there already; /save! {file} replaces it")
            }
            ("save" | "save!", file) => {
                saved::save(self.system.as_deref(), self.conversation.turns(), Path::new(file))?;
                format!("saved to {file}")
            }
            ("load", _) => bail!("a conversation is read at the start: gemma chat --load FILE"),
            ("stats", _) => self.stats(),
            (other, _) => bail!("there is no command /{other}; /help lists them"),
        })
    }

    fn stats(&self) -> String {
        let (tokens, bytes) = self.conversation.remembered();
        let limit = self.conversation.context().map(|limit| format!(" of {limit}")).unwrap_or_default();
        let speed = self.last.map(|last| generate::told(last.timings, last.reason)).unwrap_or_default();
        let turns = self.conversation.turns().len();
        format!("{turns} turns, {tokens}{limit} tokens in {}\n{speed}", output::bytes(bytes as u64))
            .trim_end()
            .to_owned()
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
