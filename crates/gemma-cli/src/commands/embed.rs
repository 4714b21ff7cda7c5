//! `gemma embed`: texts to vectors.
//!
//! Texts come as arguments, as token ids, or from files; vectors go to standard output or into a file. A file of
//! vectors is made beside its place, row by row, and takes its name at the end; work that was interrupted goes on after
//! the last whole row.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use embeddinggemma::{EmbedOptions, EmbeddingGemma, Embeddings};
use gemma_tokenizer::TokenId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    args,
    interrupt::{self, Ending},
    new_file::{self, NewFile, written_alone},
    output, progress, session, text,
    tokens_file::TokenRows,
};

/// Turn texts into vectors, for search, clustering and comparison.
#[derive(Args, Debug)]
#[command(mut_arg("mmproj", |arg| arg.hide(true)), mut_arg("inclusive_window", |arg| arg.hide(true)), after_help = "\
Examples:
  gemma embed --model google/embeddinggemma-300m --json \"Which planet is red?\"
  gemma embed --model ./embeddinggemma --task document --input notes.jsonl --out notes.npy
  gemma embed --model ./embeddinggemma --input a.txt --input b.txt --dimensions 256 --out vectors.jsonl
  gemma embed --model ./embeddinggemma --tokens-file ids.json --out vectors.safetensors
  head -100 notes.txt | gemma embed --model ./embeddinggemma --out notes.npy -

Vectors have length 1: a dot product is a cosine. A .jsonl file holds a text, or an object with a field `text` (and perhaps
`title`) a line; any other file, and standard input, a text a line. Row i is line i: a blank line is embedded as the empty
text, and is a mistake in a .jsonl file. --out writes .safetensors (tensor `embedding`, [rows, dimensions]), .npy
(the same as an array) or .jsonl (a list of numbers a line). A file that was interrupted goes on where it stopped when
the same command is given again.")]
pub(crate) struct Embed {
    /// The texts; `-` alone reads standard input, a text a line.
    #[arg(value_name = "TEXT", conflicts_with_all = ["tokens_file", "input"])]
    pub(crate) texts: Vec<String>,

    /// Embed token ids from this file, exactly as given: a JSON array of numbers, or an array of such arrays.
    #[arg(long, value_name = "FILE", conflicts_with = "input")]
    pub(crate) tokens_file: Option<PathBuf>,

    /// Embed the texts of this file, a text a line; `-` is standard input. May be given several times.
    #[arg(long, value_name = "FILE")]
    pub(crate) input: Vec<PathBuf>,

    /// What the texts are embedded for; a name of the model's own prompts works, too.
    ///
    /// query, document, question-answering, fact-checking, classification, clustering, similarity, code-retrieval,
    /// summarization, or none for no prefix.
    #[arg(long, value_name = "NAME", default_value = "query")]
    pub(crate) task: String,

    /// Cut vectors to this many values and normalise them again; 512, 256 and 128 were trained for.
    #[arg(long, value_name = "N", value_parser = args::at_least_one)]
    pub(crate) dimensions: Option<NonZeroUsize>,

    /// Write the vectors to this .safetensors, .npy or .jsonl file.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) model: args::Model,
}

/// The JSON object.
#[derive(Serialize)]
struct Report<'a> {
    dimensions: usize,
    tokens: Vec<usize>,
    embeddings: Vec<&'a [f32]>,
}

/// Rows that are embedded before they are written.
const ROWS_PER_WRITE: usize = 256;

pub(crate) fn run(args: &Embed) -> Result<Ending> {
    let rows = match &args.tokens_file {
        Some(file) => Some(TokenRows::read(file)?.rows().to_vec()),
        None => None,
    };
    if rows.is_none() && args.texts.is_empty() && args.input.is_empty() {
        bail!("there is nothing to embed; give texts, --input FILE or --tokens-file FILE");
    }
    let format = args.out.as_deref().map(Format::of).transpose()?;
    let inputs = if args.texts == ["-"] { vec![PathBuf::from("-")] } else { args.input.clone() };
    let found = session::find(&args.model)?;
    if args.model.model.is_none() {
        bail!(
            "no model that is built in makes vectors; give one that does, such as --model google/embeddinggemma-300m"
        );
    }
    let model = found.open_embedding()?;
    let options = EmbedOptions { dimensions: args.dimensions.map(NonZeroUsize::get) };
    // what is out of range is said before anything is read
    model.embed_tokens::<Vec<TokenId>>(&[], options)?;
    let texts = if inputs.is_empty() { given(&args.texts) } else { read_inputs(&inputs)? };
    if texts.is_empty() && !inputs.is_empty() {
        output::complain("note: the input holds no line, so there is nothing to embed");
    }
    let rows = match rows {
        Some(rows) => rows,
        None => texts.iter().map(|text| tokens(&model, &args.task, text)).collect::<Result<_>>()?,
    };
    match (&args.out, format) {
        (Some(out), Some(format)) => write(args, &model, &rows, options, out, format),
        _ => print(args, &model, &rows, options),
    }
}

/// A text, and its title where it has one.
struct Text {
    text: String,
    title: Option<String>,
}

fn given(texts: &[String]) -> Vec<Text> {
    texts.iter().map(|text| Text { text: text.clone(), title: None }).collect()
}

/// A text for each line of the files, blank ones too.
fn read_inputs(files: &[PathBuf]) -> Result<Vec<Text>> {
    let mut texts = Vec::new();
    for path in files {
        let jsonl = path.extension().is_some_and(|end| end == "jsonl");
        for (index, line) in text::lines(path)?.into_iter().enumerate() {
            let place = || format!("line {} of {}", index + 1, path.display());
            texts.push(if jsonl { parse(&line).with_context(place)? } else { Text { text: line, title: None } });
        }
    }
    Ok(texts)
}

fn parse(line: &str) -> Result<Text> {
    #[derive(Deserialize)]
    struct Object {
        text: String,
        title: Option<String>,
    }
    if line.trim().is_empty() {
        bail!("it is blank; take the line out, so that row and line agree");
    }
    Ok(match serde_json::from_str::<Value>(line).context("it is not JSON")? {
        Value::String(text) => Text { text, title: None },
        other => {
            let Object { text, title } =
                serde_json::from_value(other).context("it is neither a text nor an object with a field `text`")?;
            Text { text, title }
        }
    })
}

/// The tokens of a text for a task.
fn tokens(model: &EmbeddingGemma, task: &str, Text { text, title }: &Text) -> Result<Vec<TokenId>> {
    let prefix = model.prefix(task, title.as_deref())?;
    Ok(model.tokens(&prefix, text)?)
}

fn print(args: &Embed, model: &EmbeddingGemma, rows: &[Vec<TokenId>], options: EmbedOptions) -> Result<Ending> {
    let (bar, watch) = (progress::count("embedding", "texts", rows.len()), interrupt::watch());
    let found = model.embed_tokens_with(rows, options, &mut |done, _| {
        bar.set_position(done as u64);
        !watch.pressed()
    });
    bar.finish_and_clear();
    let Some(found) = found? else { return Ok(Ending::Interrupted) };
    if args.json {
        let tokens = rows.iter().map(Vec::len).collect();
        output::json(&Report { dimensions: found.dimensions(), tokens, embeddings: found.rows().collect() })?;
    } else {
        for row in found.rows() {
            output::line(row.iter().map(f32::to_string).collect::<Vec<_>>().join(" "))?;
        }
    }
    Ok(Ending::Done)
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Safetensors,
    Npy,
    Jsonl,
}

impl Format {
    fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|end| end.to_str()) {
            Some("safetensors") => Ok(Self::Safetensors),
            Some("npy") => Ok(Self::Npy),
            Some("jsonl") => Ok(Self::Jsonl),
            _ => bail!("--out {} must end in .safetensors, .npy or .jsonl", path.display()),
        }
    }

    /// What stands in front of the values.
    fn head(self, rows: usize, dimensions: usize) -> Vec<u8> {
        match self {
            Self::Jsonl => Vec::new(),
            Self::Safetensors => {
                let bytes = rows * dimensions * size_of::<f32>();
                let entry = json!({"dtype": "F32", "shape": [rows, dimensions], "data_offsets": [0, bytes]});
                let mut header = json!({ "embedding": entry }).to_string().into_bytes();
                header.resize(header.len().next_multiple_of(8), b' ');
                [&(header.len() as u64).to_le_bytes()[..], &header].concat()
            }
            Self::Npy => {
                let about = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dimensions}), }}");
                // magic, version 1.0, length; the whole is a multiple of 64 bytes and ends in a line break
                let len = (10 + about.len() + 1).next_multiple_of(64) - 10;
                let mut head = b"\x93NUMPY\x01\x00".to_vec();
                head.extend((len as u16).to_le_bytes());
                head.extend(format!("{about:<width$}\n", width = len - 1).into_bytes());
                head
            }
        }
    }
}

/// Vectors on their way into a file: a line of JSON that says of what, then the values, row after row.
struct Partial {
    file: File,
    path: PathBuf,
    rows: usize,
    dimensions: usize,
    start: u64,
}

impl Partial {
    /// Opens what an interrupted run of the same work left, or begins.
    fn open(out: &Path, about: &str, dimensions: usize) -> Result<Self> {
        let name = out.file_name().and_then(|name| name.to_str()).context("--out needs the name of a file")?;
        let path = out.with_file_name(format!(".{name}.partial"));
        let failed = || format!("cannot write {}", path.display());
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).with_context(failed)?;
        written_alone(&file, &path)?;
        let mut first = String::new();
        // a first line that is no text is that of another file
        let same = BufReader::new(&file).take(about.len() as u64 + 1).read_line(&mut first).is_ok()
            && first.strip_suffix('\n') == Some(about);
        let start = about.len() as u64 + 1;
        let row = (dimensions * size_of::<f32>()) as u64;
        let rows = if same { (file.metadata().with_context(failed)?.len() - start) / row } else { 0 };
        if !same {
            file.set_len(0).with_context(failed)?;
            file.seek(SeekFrom::Start(0))
                .and_then(|_| file.write_all(format!("{about}\n").as_bytes()))
                .with_context(failed)?;
        }
        file.set_len(start + rows * row).with_context(failed)?;
        file.seek(SeekFrom::End(0)).with_context(failed)?;
        Ok(Self { file, path, rows: rows as usize, dimensions, start })
    }

    fn push(&mut self, found: &Embeddings) -> Result<()> {
        let bytes: Vec<u8> = found.values().iter().flat_map(|value| value.to_le_bytes()).collect();
        self.file.write_all(&bytes).with_context(|| format!("cannot write {}", self.path.display()))?;
        self.rows += found.len();
        Ok(())
    }

    /// Writes the file of vectors and takes the partial one away.
    fn finish(mut self, out: &Path, format: Format) -> Result<()> {
        let mut target = NewFile::open(out)?;
        let written = (|| {
            self.file.seek(SeekFrom::Start(self.start))?;
            let mut from = BufReader::new(&self.file);
            let mut to = BufWriter::new(target.as_file_mut());
            to.write_all(&format.head(self.rows, self.dimensions))?;
            if format != Format::Jsonl {
                std::io::copy(&mut from, &mut to)?;
                return to.flush();
            }
            let mut row = vec![0; self.dimensions * size_of::<f32>()];
            for _ in 0..self.rows {
                from.read_exact(&mut row)?;
                let values: Vec<f32> = row.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
                serde_json::to_writer(&mut to, &values)?;
                to.write_all(b"\n")?;
            }
            to.flush()
        })();
        written.with_context(|| format!("cannot write {}", out.display()))?;
        target.finish()?;
        // best effort: the file of vectors is whole
        let _ = std::fs::remove_file(&self.path);
        Ok(())
    }
}

/// Whether a file is one of vectors, by its beginning or its tensors.
fn is_vectors(path: &Path) -> bool {
    let mut begin = [0; 6];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut begin));
    read.is_ok() && (begin.starts_with(b"[") || begin == *b"\x93NUMPY")
        || gemma_weights::read_safetensors(path).is_ok_and(|tensors| tensors.keys().eq(["embedding"]))
}

fn write(
    args: &Embed,
    model: &EmbeddingGemma,
    rows: &[Vec<TokenId>],
    options: EmbedOptions,
    out: &Path,
    format: Format,
) -> Result<Ending> {
    // a place that cannot be written is found before the work is done
    drop(new_file::replacing(out, "file of vectors", is_vectors)?);
    let dimensions = options.dimensions.unwrap_or(model.network().config().dimensions());
    // the same rows in the same order, by the same model: what was done of them counts
    let mut digest = 0xcbf2_9ce4_8422_2325u64;
    for token in rows.iter().flat_map(|row| row.iter().copied().chain([u32::MAX])) {
        digest = (digest ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3);
    }
    let about = json!({
        "model": args.model.model, "dimensions": dimensions, "rows": rows.len(), "digest": format!("{digest:016x}"),
    });
    let mut partial = Partial::open(out, &about.to_string(), dimensions)?;
    let (bar, watch) = (progress::count("embedding", "texts", rows.len()), interrupt::watch());
    while partial.rows < rows.len() {
        let first = partial.rows;
        let part = &rows[first..(first + ROWS_PER_WRITE).min(rows.len())];
        let found = model.embed_tokens_with(part, options, &mut |done, _| {
            bar.set_position((first + done) as u64);
            !watch.pressed()
        })?;
        let Some(found) = found else {
            bar.finish_and_clear();
            return Ok(Ending::Interrupted);
        };
        partial.push(&found)?;
    }
    bar.finish_and_clear();
    let count = partial.rows;
    partial.finish(out, format)?;
    if args.json {
        output::json(&json!({"rows": count, "dimensions": dimensions, "out": out.display().to_string()}))?;
    } else {
        output::remark(format_args!("{count} vectors of {dimensions} values in {}", out.display()));
    }
    Ok(Ending::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_those_of_their_formats() {
        let npy = Format::Npy.head(3, 128);
        assert_eq!((npy.len() % 64, &npy[..8], npy.last()), (0, &b"\x93NUMPY\x01\x00"[..], Some(&b'\n')));
        assert!(String::from_utf8_lossy(&npy).contains("'shape': (3, 128)"));
        let tensors = [Format::Safetensors.head(2, 1), vec![0; 8]].concat();
        let file = safetensors::SafeTensors::deserialize(&tensors).expect("well formed");
        assert_eq!(file.tensor("embedding").expect("there").shape(), [2, 1]);
        assert!(Format::of(Path::new("x.csv")).is_err());
    }

    #[test]
    fn interrupted_work_goes_on_after_the_last_whole_row() {
        let folder = tempfile::tempdir().expect("a folder");
        let out = folder.path().join("x.jsonl");
        let rows = |values: &[f32]| Embeddings::cut(values, 2, 2);
        let mut partial = Partial::open(&out, "{}", 2).expect("begun");
        partial.push(&rows(&[1.0, 0.0, 0.0, 1.0])).expect("written");
        partial.file.write_all(&[0; 5]).expect("written");
        drop(partial);
        let mut partial = Partial::open(&out, "{}", 2).expect("found");
        assert_eq!(partial.rows, 2, "half a row does not count");
        partial.push(&rows(&[0.0, -3.0])).expect("written");
        partial.finish(&out, Format::Jsonl).expect("finished");
        assert_eq!(std::fs::read_to_string(&out).expect("there"), "[1.0,0.0]\n[0.0,1.0]\n[0.0,-1.0]\n");
        assert_eq!(std::fs::read_dir(folder.path()).expect("there").count(), 1);
        assert_eq!(Partial::open(&out, "{\"other\":1}", 2).expect("begun").rows, 0);
    }

    #[test]
    fn lines_are_texts_or_objects() {
        assert_eq!(parse("\"a\"").expect("a text").text, "a");
        let found = parse(r#"{"text": "b", "title": "t", "id": 7}"#).expect("an object");
        assert_eq!((found.text.as_str(), found.title.as_deref()), ("b", Some("t")));
        assert!(parse("[1]").is_err() && parse("{").is_err() && parse("{\"x\": 1}").is_err());
    }
}
