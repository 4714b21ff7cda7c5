//! Searches a folder of text files by meaning.
//!
//! ```text
//! cargo run --release -p embeddinggemma --example search -- google/embeddinggemma-300m ./notes "how do I bake bread?"
//! ```
//!
//! Each paragraph of each `.txt` and `.md` file is a document, its file's name the title; the five nearest are printed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use embeddinggemma::{EmbeddingGemma, Task, default_device, dot};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, folder, query] = arguments.as_slice() else {
        anyhow::bail!("usage: search MODEL FOLDER QUERY");
    };
    search(model, Path::new(folder), query)
}

/// Prints the five paragraphs that answer `query` best.
fn search(model: &str, folder: &Path, query: &str) -> Result<()> {
    let model = EmbeddingGemma::load(model, &default_device()?)?;
    let query = model.embed(&[query], Task::Query)?;
    let mut found: Vec<(f32, PathBuf, String)> = Vec::new();
    for file in texts(folder)? {
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let paragraphs: Vec<&str> = text.split("\n\n").map(str::trim).filter(|part| !part.is_empty()).collect();
        let title = file.file_stem().and_then(|stem| stem.to_str());
        let vectors = model.embed(&paragraphs, Task::Document { title })?;
        for (paragraph, vector) in paragraphs.iter().zip(vectors.rows()) {
            found.push((dot(query.row(0), vector), file.clone(), (*paragraph).to_owned()));
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (score, file, paragraph) in found.into_iter().take(5) {
        let line: String = paragraph.chars().take(100).collect();
        println!("{score:.3}  {}  {}", file.display(), line.replace('\n', " "));
    }
    Ok(())
}

/// The text files of a folder and of those below it.
fn texts(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            files.extend(texts(&path)?);
        } else if path.extension().is_some_and(|end| end == "txt" || end == "md") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
