//! `gemma infill`: complete code by fill-in-the-middle.

use std::{
    fs,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::{ArgGroup, Args};
use codegemma::{CodeGemma, File, Infill as Hole, InfillOptions, Infilled, Language, LineEnding, prompt_room};
use gemma_generate::{FinishReason, TokenId};
use gemma_model::Network;
use gemma_tokenizer::DecodeOptions;
use serde::Serialize;

use super::generate::told;
use crate::{
    args::{CodeModel, Filling, Form, with_breakers},
    interrupt::{self, Ending},
    new_file::NewFile,
    output, progress, session, text,
};

/// Complete code at a place in a file (fill-in-the-middle).
///
/// The text before the place and the text after it are the prompt; only the completion between them is printed.
#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("hole").required(true).multiple(true).args(["file", "prefix_file", "suffix_file"]),
    after_help = "\
Examples:
  gemma infill main.py --at 12:5
  gemma infill main.py --at 12:5 --stop-rule line --write
  gemma infill src/app.js --at 40:1 --context src --model google/codegemma-2b --precision q8_0
  gemma infill src/app.js --at 40:1 --context src/types.js --context src/util
  gemma infill --prefix-file before.txt --suffix-file after.txt > middle.txt
  gemma infill --prefix-file - < unfinished.py
  gemma infill main.py --at 12:5 --show-prompt --json

--json prints one object: text, tokens, mean_log_prob, finish_reason (stop, stop_text when a rule about the text ended
it, length, context_full, out_of_time or cancelled), cut (lines and files that did not fit), prompt_tokens,
reused_tokens and timings; with --alternatives, an array of these as `alternatives`.
--show-prompt prints the prompt instead, with --json as tokens and text; no model is run."
)]
pub(crate) struct Infill {
    /// The file to complete; `-` reads standard input.
    #[arg(value_name = "FILE", requires = "at", conflicts_with_all = ["prefix_file", "suffix_file"])]
    pub(crate) file: Option<PathBuf>,

    /// The place: line and column, both counted from 1, columns in characters; LINE alone is the end of that line.
    #[arg(long, value_name = "LINE:COLUMN", value_parser = place, requires = "file")]
    pub(crate) at: Option<(usize, Option<usize>)>,

    /// Read the text before the hole (the prefix) from this file; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) prefix_file: Option<PathBuf>,

    /// Read the text after the hole (the suffix) from this file; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) suffix_file: Option<PathBuf>,

    /// Show the model another file, or the files of a folder in the same language, as far as they fit; may be given several
    /// times.
    ///
    /// They stand in the prompt in the order given; where not all fit, the first are left out.
    #[arg(long, value_name = "FILE|DIR")]
    pub(crate) context: Vec<PathBuf>,

    /// The path that the prompt names; FILE's own without it. It also tells the language.
    #[arg(long, value_name = "PATH")]
    pub(crate) path: Option<String>,

    /// Put the text into FILE instead of printing it.
    #[arg(long, requires = "file", conflicts_with_all = ["json", "show_prompt", "alternatives"])]
    pub(crate) write: bool,

    /// Generate up to N different completions.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) alternatives: Option<u8>,

    /// Print the prompt and do not run the model.
    #[arg(long)]
    pub(crate) show_prompt: bool,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) filling: Filling,

    #[command(flatten)]
    pub(crate) form: Form,

    #[command(flatten)]
    pub(crate) model: CodeModel,
}

/// `LINE:COLUMN` or `LINE`, both from 1.
fn place(text: &str) -> Result<(usize, Option<usize>), String> {
    let from_one = |number: &str| number.parse().ok().filter(|number: &usize| *number >= 1);
    let place = match text.split_once(':') {
        Some((line, column)) => from_one(line).zip(from_one(column).map(Some)),
        None => from_one(text).map(|line| (line, None)),
    };
    place.ok_or_else(|| "must be LINE:COLUMN, both counted from 1, such as 12:5".to_owned())
}

impl Infill {
    /// The path that the prompt names.
    pub(crate) fn named(&self) -> Option<String> {
        let own = self.file.as_ref().filter(|file| file.as_os_str() != "-").map(|file| file.display().to_string());
        self.path.clone().or(own)
    }

    /// The language, when a path tells it.
    pub(crate) fn language(&self) -> Option<Language> {
        self.named().map(|path| Language::of_path(&path))
    }
}

/// Largest other file that is looked at, in bytes.
const LARGEST_FILE: u64 = 256 << 10;
/// Most other files that are read.
const MOST_FILES: usize = 200;
/// Most entries of folders that are looked at.
const MOST_ENTRIES: usize = 20_000;
/// The context of a model whose `config.json` is not there, for `--show-prompt`.
const CONTEXT: usize = 8192;

/// The JSON object of `--show-prompt`.
#[derive(Serialize)]
struct ShownPrompt {
    tokens: Vec<TokenId>,
    text: String,
    #[serde(rename = "cut")]
    truncation: codegemma::Truncation,
}

/// The JSON object of `--alternatives`.
#[derive(Serialize)]
struct Alternatives {
    alternatives: Vec<Infilled>,
}

pub(crate) fn run(args: &Infill) -> Result<Ending> {
    let options = args.filling.options();
    options.generate.check()?;
    let constraint = args.form.read()?;
    if constraint.is_some() && args.alternatives.is_some() {
        bail!("--grammar and --json-schema are for one completion; leave out --alternatives");
    }
    if args.write && args.file.as_deref() == Some(Path::new("-")) {
        bail!("--write puts the text into a file, and `-` is standard input; name the file, or leave out --write");
    }
    let infill = hole(args)?;
    if args.show_prompt {
        return show_prompt(args, &infill, &options);
    }
    // a file that cannot be written should be known before the model is opened
    let target = args.file.as_deref().filter(|_| args.write).map(NewFile::open).transpose()?;
    let model = session::find_code(&args.model)?.open_code(&mut |_, _| {})?;
    let watch = interrupt::watch();
    warn_instruct(args.model.model.as_deref());
    let generate = with_breakers(options.generate.clone(), model.tokenizer().ok());
    let options = InfillOptions { cancel: Some(watch.flag()), generate, ..options };
    if let Some(count) = args.alternatives {
        return alternatives(args, &model, &infill, &options, count.into());
    }
    let bar = progress::tokens("reading", 0);
    let shown = bar.clone();
    let mut stream = model.stream_infill(&infill, &options)?.with_progress(move |done, total| {
        progress::set(&shown, done as u64, total as u64);
    });
    if let Some(constraint) = constraint {
        stream = stream.with_mask(constraint.mask(model.gemma())?);
    }
    let quiet = args.json || args.write;
    for piece in stream.by_ref() {
        let piece = piece?;
        if !quiet {
            bar.finish_and_clear();
            output::piece(&piece)?;
        }
    }
    bar.finish_and_clear();
    let filled = stream.finish()?;
    // half a text in a file would be taken for a whole one
    if let Some(target) = target.filter(|_| filled.finish_reason != FinishReason::Cancelled) {
        write(target, &infill, &filled.text)?;
    }
    if args.json {
        output::json(&filled)?;
    } else {
        if !quiet && std::io::stdout().is_terminal() {
            output::line("")?;
        }
        output::remark(told(filled.timings, filled.finish_reason));
        remark_cut(&filled);
    }
    Ok(ending(filled.finish_reason))
}

fn ending(reason: FinishReason) -> Ending {
    if reason == FinishReason::Cancelled { Ending::Interrupted } else { Ending::Done }
}

/// An instruction-tuned CodeGemma has the tokens and was not trained to fill holes.
fn warn_instruct(model: Option<&str>) {
    if model.is_some_and(|model| model.trim_end_matches('/').ends_with("-it")) {
        eprintln!(
            "warning: this looks like an instruction-tuned model, which is not trained for fill-in-the-middle; codegemma-2b and codegemma-7b are made for it"
        );
    }
}

fn remark_cut(filled: &Infilled) {
    let cut = filled.truncation;
    if !cut.is_empty() {
        output::remark(format!(
            "[truncated from the prompt: {} lines before, {} lines after, {} files and {} lines of others]",
            cut.prefix_lines, cut.suffix_lines, cut.files, cut.file_lines
        ));
    }
}

fn alternatives(
    args: &Infill,
    model: &CodeGemma,
    infill: &Hole,
    options: &InfillOptions,
    count: usize,
) -> Result<Ending> {
    let found = model.session().alternatives(infill, options, count)?;
    let interrupted = found.iter().any(|filled| filled.finish_reason == FinishReason::Cancelled);
    if args.json {
        output::json(&Alternatives { alternatives: found })?;
    } else {
        for (index, filled) in found.iter().enumerate() {
            output::line(format!("--- {} ({:.3} per token)", index + 1, filled.mean_log_prob))?;
            output::line(&filled.text)?;
        }
    }
    Ok(if interrupted { Ending::Interrupted } else { Ending::Done })
}

/// The prompt, by the tokenizer alone.
fn show_prompt(args: &Infill, infill: &Hole, options: &InfillOptions) -> Result<Ending> {
    let (tokenizer, config) = session::code_tokenizer(&args.model)?;
    let context = match config {
        Some(config) => gemma::Decoder::config_from_json(&config)?.context,
        None => CONTEXT,
    };
    let room = prompt_room(context, options.generate.max_tokens);
    let prompt = infill.prompt(&tokenizer, options.order, options.budget.unwrap_or(room).min(room))?;
    let text = tokenizer.decode_with(&prompt.tokens, DecodeOptions { specials: true });
    if args.json {
        output::json(&ShownPrompt { tokens: prompt.tokens, text, truncation: prompt.truncation })?;
    } else {
        output::line(text)?;
    }
    Ok(Ending::Done)
}

/// What the arguments describe.
fn hole(args: &Infill) -> Result<Hole> {
    let (prefix, suffix) = match (&args.file, args.at) {
        (Some(file), Some(at)) => {
            let text = text::read_marked(file)?;
            let split = offset(&text, at).with_context(|| format!("cannot fill {}", file.display()))?;
            (text[..split].to_owned(), text[split..].to_owned())
        }
        _ => {
            if args.prefix_file.as_deref() == Some(Path::new("-")) && args.suffix_file == args.prefix_file {
                bail!("prefix and suffix cannot both come from standard input; give one of them as a file");
            }
            let read = |file: &Option<PathBuf>| file.as_deref().map_or(Ok(String::new()), text::read);
            (read(&args.prefix_file)?, read(&args.suffix_file)?)
        }
    };
    let path = args.named();
    let mut infill = Hole { prefix, suffix, path, context: Vec::new(), language: args.language() };
    for place in &args.context {
        let files = if place.is_dir() { context(place, args.file.as_deref(), &infill)? } else { vec![other(place)?] };
        infill.context.extend(files);
    }
    Ok(infill)
}

/// Where a line and a column are in a text, in bytes; one column past the end of the line is its end, and so is none.
fn offset(text: &str, (line, column): (usize, Option<usize>)) -> Result<usize> {
    // a byte order mark is no column
    let mut start = if text.starts_with('\u{FEFF}') { '\u{FEFF}'.len_utf8() } else { 0 };
    let mut lines = text[start..].split_inclusive('\n');
    for number in 1..line {
        let Some(passed) = lines.next() else { bail!("--at names line {line}; the text has {}", number - 1) };
        start += passed.len();
    }
    let rest = lines.next();
    if rest.is_none() && !(text.is_empty() || text.ends_with('\n')) {
        bail!("--at names line {line}; the text has {}", line - 1);
    }
    let rest = rest.unwrap_or_default().trim_end_matches(['\n', '\r']);
    let columns = rest.chars().count();
    let column = column.unwrap_or(columns + 1);
    if column > columns + 1 {
        bail!(
            "--at names column {column}; line {line} has {columns} characters, so at most {} is possible",
            columns + 1
        );
    }
    Ok(start + rest.char_indices().nth(column - 1).map_or(rest.len(), |(at, _)| at))
}

/// A file that is shown besides the one to complete.
fn other(path: &Path) -> Result<File> {
    if !path.exists() {
        bail!("--context names {}, and there is no such file or folder", path.display());
    }
    Ok(File { path: shown(path), text: text::read(path)? })
}

/// The path as the prompt names it.
fn shown(path: &Path) -> String {
    path.strip_prefix(".").unwrap_or(path).display().to_string()
}

/// The other files of a folder that may help, the most telling one last: same ending, not too large, those that the
/// program mentions nearest, then those of the same folder.
fn context(folder: &Path, file: Option<&Path>, infill: &Hole) -> Result<Vec<File>> {
    let ending = infill.path.as_deref().map(Path::new).and_then(Path::extension);
    let own = file.and_then(|file| fs::canonicalize(file).ok());
    let mut paths = Vec::new();
    let mut entries = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        // a folder that cannot be read helps nobody
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            entries += 1;
            let (path, name) = (entry.path(), entry.file_name());
            let hidden = name.to_string_lossy().starts_with('.');
            // links are not followed: they can form circles
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && !hidden && !["target", "node_modules", "__pycache__"].iter().any(|skip| name == *skip) {
                folders.push(path);
            } else if kind.is_file()
                && !hidden
                && (ending.is_none() || path.extension() == ending)
                && entry.metadata().is_ok_and(|data| data.len() <= LARGEST_FILE)
                && own.as_ref().is_none_or(|own| fs::canonicalize(&path).ok().as_ref() != Some(own))
            {
                paths.push(path);
            }
        }
        if entries > MOST_ENTRIES {
            break;
        }
    }
    let here = file.and_then(Path::parent);
    let telling = |path: &PathBuf| {
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let mentioned = stem.len() > 1 && (infill.prefix.contains(&stem) || infill.suffix.contains(&stem));
        (mentioned, path.parent() == here)
    };
    paths.sort_by(|a, b| telling(a).cmp(&telling(b)).then_with(|| b.cmp(a)));
    let nearest = paths.split_off(paths.len().saturating_sub(MOST_FILES));
    let read = |path: PathBuf| {
        let text = String::from_utf8(fs::read(&path).ok()?).ok()?;
        Some(File { path: shown(&path), text })
    };
    Ok(nearest.into_iter().filter_map(read).collect())
}

/// Puts the completion into its file, whose permissions and line endings stay.
fn write(mut target: NewFile, infill: &Hole, completion: &str) -> Result<()> {
    let name = target.path().display().to_string();
    let permissions = fs::metadata(target.path()).map(|data| data.permissions());
    let line_ending = LineEnding::of(&format!("{}{}", infill.prefix, infill.suffix));
    let completion = line_ending.apply(completion);
    let file = target.as_file_mut();
    for part in [&*infill.prefix, &completion, &infill.suffix] {
        file.write_all(part.as_bytes()).with_context(|| format!("cannot write {name}"))?;
    }
    if let Ok(permissions) = permissions {
        file.set_permissions(permissions).with_context(|| format!("cannot write {name}"))?;
    }
    Ok(target.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_counts_from_one_in_characters() {
        let text = "ab\r\né🦀x\n";
        let found = |text: &str, at: &str| place(at).ok().and_then(|at| offset(text, at).ok());
        for (at, expected) in
            [("1:1", 0), ("1:3", 2), ("2:1", 4), ("2:2", 6), ("2:3", 10), ("2:4", 11), ("3:1", 12), ("1", 2), ("2", 11)]
        {
            assert_eq!(found(text, at), Some(expected), "{at}");
        }
        for at in ["1:4", "2:5", "3:2", "4:1", "4", "0", "1:0", "1:", ":1", "x"] {
            assert_eq!(found(text, at), None, "{at}");
        }
        assert_eq!(found("", "1:1"), Some(0));
        assert_eq!(found("\u{FEFF}ab", "1:2"), Some(4));
        assert_eq!(found("a", "2:1"), None);
    }

    #[test]
    fn other_files_are_those_of_the_language_and_the_mentioned_one_is_last() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("sub/.git")).expect("made");
        for name in ["main.py", "a.py", "zebra.py", "sub/tools.py", "b.js", ".hidden.py", "sub/.git/x.py"] {
            fs::write(path(name), format!("# {name}\n")).expect("written");
        }
        fs::write(path("binary.py"), b"\xff\xfe").expect("written");
        let mut infill = Hole::new("import tools\n", "");
        infill.path = Some("main.py".into());
        let found = context(folder.path(), Some(&path("main.py")), &infill).expect("a folder");
        let names: Vec<&str> = found.iter().map(|file| file.text.trim_start_matches("# ").trim()).collect();
        assert_eq!(names, ["zebra.py", "a.py", "sub/tools.py"]);
        assert!(other(&path("none")).is_err());
        assert_eq!(other(&path("b.js")).expect("a file").text, "# b.js\n");
    }
}
