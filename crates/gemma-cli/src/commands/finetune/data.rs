//! What a training learns from, read from files and folders.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use gemma_tokenizer::{ChatTemplate, Tokenizer};
use gemma_train::Example;
use gemma_train::data::{Examples, OnBadLine, Record, read_lines};

use paligemma::coco;

use super::Finetune;
use super::training::LeftOut;

/// A line with an image, which is opened when it is learned.
#[derive(Clone, Debug)]
pub(super) struct ImageLine {
    pub(super) file: PathBuf,
    /// Where it stands in the file.
    pub(super) item: String,
    pub(super) image: PathBuf,
    pub(super) prefix: String,
    pub(super) suffix: String,
}

/// What the files hold: one kind of it.
pub(super) enum Learned {
    Examples(Vec<Example>),
    Images(Vec<ImageLine>),
    Preferences(Vec<(Example, Example)>),
}

impl Learned {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Examples(examples) => examples.len(),
            Self::Images(lines) => lines.len(),
            Self::Preferences(pairs) => pairs.len(),
        }
    }

    /// Tokens of each; `None` of images, which are made later and about equally long.
    pub(super) fn sizes(&self) -> Option<Vec<usize>> {
        let tokens = |example: &Example| example.inputs().len();
        match self {
            Self::Examples(examples) => Some(examples.iter().map(tokens).collect()),
            Self::Images(_) => None,
            Self::Preferences(pairs) => Some(pairs.iter().map(|(a, b)| tokens(a) + tokens(b)).collect()),
        }
    }
}

/// What was read, and what of it was left out.
pub(super) struct Read {
    pub(super) learned: Learned,
    pub(super) left_out: LeftOut,
    /// Tells other data apart.
    pub(super) digest: String,
}

/// One example of a file.
enum Item {
    Example(Example),
    Image(ImageLine),
    Preference(Example, Example),
}

pub(super) fn read(args: &Finetune, tokenizer: &Tokenizer, template: &ChatTemplate, paths: &[PathBuf]) -> Result<Read> {
    let most = args.max_length.get();
    let (mut items, mut left_out) = (Vec::new(), LeftOut::default());
    let truncated = &mut left_out.truncated;
    for path in paths {
        if is_coco(path)? {
            let (found, remark) = coco(args, path)?;
            items.extend(found);
            left_out.remarks.extend(remark);
            continue;
        }
        if is_code(path) {
            let examples = code(args, tokenizer, path);
            let examples = examples.with_context(|| format!("{} is read as source code", path.display()))?;
            items.extend(examples.into_iter().map(Item::Example));
            continue;
        }
        let make = Examples { tokenizer, template };
        let (found, bad) = read_lines(path, on_bad_line(args), |number, record| {
            let mut cut = |mut example: Example| {
                let off = example.truncate(most);
                if example.learned() == 0 {
                    return Err(format!("nothing that is learned is left of it within {most} tokens (--max-length)"));
                }
                if off > 0 {
                    *truncated = (truncated.0 + 1, truncated.1 + off);
                }
                Ok(example)
            };
            Ok(match record {
                Record::Text(text) => Item::Example(cut(make.text(&text))?),
                Record::Completion { prompt, completion } => Item::Example(cut(make.completion(&prompt, &completion))?),
                Record::Messages(turns) => Item::Example(cut(make.conversation(&turns)?)?),
                Record::Preference { prompt, chosen, rejected } => {
                    Item::Preference(cut(make.completion(&prompt, &chosen))?, cut(make.completion(&prompt, &rejected))?)
                }
                Record::Image { image, prefix, suffix } => {
                    let image = path.parent().unwrap_or(Path::new("")).join(image);
                    if !image.is_file() {
                        return Err(format!("the image {} is not there", image.display()));
                    }
                    Item::Image(ImageLine { file: path.clone(), item: format!("line {number}"), image, prefix, suffix })
                }
                Record::Pair { .. } => {
                    return Err("pairs are for models that embed texts; give --model an EmbeddingGemma".to_owned());
                }
            })
        })?;
        items.extend(found);
        left_out.skipped.extend(bad.into_iter().map(|(line, reason)| (path.clone(), line, reason)));
    }
    let digest = digest(&items);
    Ok(Read { learned: of_one_kind(items)?, left_out, digest })
}

/// What to do with a line that cannot be used.
pub(super) fn on_bad_line(args: &Finetune) -> OnBadLine {
    if args.skip_bad_lines { OnBadLine::Skip } else { OnBadLine::Stop }
}

/// Whether a file is one JSON object as COCO's are, and not lines of JSON: that cannot be told from its beginning, only
/// from its name.
fn is_coco(path: &Path) -> Result<bool> {
    if path.extension().and_then(|ending| ending.to_str()) != Some("json") {
        return Ok(false);
    }
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    // lines of JSON have a whole object in the first line
    let mut first = String::new();
    let read = BufReader::new(file).take(FIRST_LINE).read_line(&mut first);
    let whole = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&first);
    Ok(read.is_ok() && !first.trim().is_empty() && whole.map_or(true, |fields| fields.contains_key("annotations")))
}

/// Bytes of a first line that is looked at.
const FIRST_LINE: u64 = 1 << 16;

/// The images of a COCO file of instances, and what was left out of them.
fn coco(args: &Finetune, path: &Path) -> Result<(Vec<Item>, Option<String>)> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let found =
        coco::read_instances(BufReader::new(file)).map_err(|reason| anyhow::anyhow!("{}: {reason}", path.display()))?;
    let folder = args.image_folder.as_deref().or(path.parent()).unwrap_or(Path::new(""));
    let mut items = Vec::with_capacity(found.images.len());
    for annotated in found.images {
        let image = folder.join(&annotated.file_name);
        if !image.is_file() {
            bail!(
                "{}: the image {} is not there; --image-folder says where images are",
                path.display(),
                image.display()
            );
        }
        let item = format!("image {}", annotated.file_name);
        let prefix = annotated.prompt();
        items.push(Item::Image(ImageLine { file: path.to_owned(), item, image, prefix, suffix: annotated.answer }));
    }
    if items.is_empty() {
        bail!("{}: no image has a box", path.display());
    }
    let left_out = found.empty_images + found.dropped_boxes > 0;
    let remark = left_out.then(|| {
        format!(
            "{}: left out: {} images without boxes, {} boxes that are crowds or too small",
            path.display(),
            found.empty_images,
            found.dropped_boxes
        )
    });
    Ok((items, remark))
}

/// Sorts examples into the one kind that they are of.
fn of_one_kind(items: Vec<Item>) -> Result<Learned> {
    let (mut examples, mut images, mut pairs) = (Vec::new(), Vec::new(), Vec::new());
    for item in items {
        match item {
            Item::Example(example) => examples.push(example),
            Item::Image(line) => images.push(line),
            Item::Preference(chosen, rejected) => pairs.push((chosen, rejected)),
        }
    }
    match (examples.is_empty(), images.is_empty(), pairs.is_empty()) {
        (false, true, true) => Ok(Learned::Examples(examples)),
        (true, false, true) => Ok(Learned::Images(images)),
        (true, true, false) => Ok(Learned::Preferences(pairs)),
        (true, true, true) => bail!("there is nothing to learn in the data"),
        _ => bail!("texts, images and preferences cannot be learned in one training; give files of one kind"),
    }
}

/// A number that follows from all tokens (FNV-1a), so that a training is not resumed with other data.
pub(super) struct Digest(u64);

impl Digest {
    pub(super) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(super) fn add(&mut self, values: impl IntoIterator<Item = u64>) {
        for value in values.into_iter().chain([u64::MAX]) {
            self.0 = (self.0 ^ value).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub(super) fn finish(self) -> String {
        format!("{:016x}", self.0)
    }
}

fn digest(items: &[Item]) -> String {
    let mut digest = Digest::new();
    for item in items {
        match item {
            Item::Example(example) => digest.add(example.tokens.iter().map(|token| u64::from(*token))),
            Item::Preference(chosen, rejected) => {
                digest.add(chosen.tokens.iter().chain(&rejected.tokens).map(|token| u64::from(*token)));
            }
            Item::Image(line) => {
                let text = line.image.to_string_lossy();
                let bytes = [text.as_ref(), &line.prefix, &line.suffix].into_iter().flat_map(str::bytes);
                digest.add(bytes.map(u64::from));
            }
        }
    }
    digest.finish()
}

/// Whether a path is source code and not lines of JSON.
fn is_code(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    path.is_dir() || !matches!(ending, "jsonl" | "json" | "ndjson" | "txt" | "")
}

/// Endings of files that are learned from a folder.
const CODE: [&str; 24] = [
    "rs", "py", "js", "ts", "tsx", "jsx", "java", "kt", "go", "c", "h", "cc", "cpp", "hpp", "cs", "rb", "php", "swift",
    "scala", "sh", "sql", "lua", "jl", "hs",
];
/// Bytes of a file for each of its examples, the fewest examples of a file (a short one costs little, and one hole would
/// teach little of it), and the most bytes of a file.
const BYTES_PER_EXAMPLE: usize = 1024;
const FEWEST_EXAMPLES: usize = 4;
const MOST_BYTES: u64 = 4 << 20;

/// Examples of source files: whole ones, and ones with a hole.
fn code(args: &Finetune, tokenizer: &Tokenizer, path: &Path) -> Result<Vec<Example>> {
    let mut files = Vec::new();
    if path.is_dir() {
        walk(path, &mut files)?
    } else {
        files.push(path.to_owned())
    }
    files.sort();
    let mut state = args.seed ^ 0x636f_6465;
    let mut below = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((u128::from(state >> 32) * bound as u128) >> 32) as usize
    };
    let mut examples = Vec::new();
    for file in &files {
        if std::fs::metadata(file).map_or(0, |found| found.len()) > MOST_BYTES {
            continue;
        }
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let Ok(text) = String::from_utf8(bytes) else { continue };
        let name = file.strip_prefix(path).ok().filter(|name| !name.as_os_str().is_empty()).unwrap_or(file);
        for _ in 0..text.len().div_ceil(BYTES_PER_EXAMPLE).max(FEWEST_EXAMPLES) {
            let lesson = codegemma::code_lesson(
                &text,
                name.to_str(),
                tokenizer,
                args.fim_rate,
                args.max_length.get(),
                &mut below,
            )?;
            let mut example = Example::text(lesson.tokens);
            example.learn[..lesson.prompt_len].fill(false);
            if example.learned() > 0 {
                examples.push(example);
            }
        }
    }
    if examples.is_empty() {
        bail!("{}: no source file can be learned from", path.display());
    }
    Ok(examples)
}

/// All source files below a folder; hidden folders and those that builds fill are passed over.
fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        let kind = entry.file_type()?;
        if kind.is_dir() && !name.starts_with('.') && !matches!(&*name, "target" | "node_modules" | "build" | "dist") {
            walk(&path, files)?;
        } else if kind.is_file() && path.extension().and_then(|end| end.to_str()).is_some_and(|end| CODE.contains(&end))
        {
            files.push(path);
        }
    }
    Ok(())
}
