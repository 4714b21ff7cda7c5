//! Inputs: where the seeds lie, and how bytes become a file.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// What stands between two files of an input that holds several.
pub(crate) const BORDER: &str = "\n%%%\n";

/// The seeds of a target: the files in `fuzz/seeds/TARGET`, by name; an empty input where there are none.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder_of(target)).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    let mut seeds: Vec<Vec<u8>> = files.iter().filter_map(|file| std::fs::read(file).ok()).collect();
    if seeds.is_empty() {
        seeds.push(Vec::new());
    }
    seeds
}

/// The seed in that file, empty where there is none.
pub(crate) fn seed(target: &str, file: &str) -> Vec<u8> {
    std::fs::read(folder_of(target).join(file)).unwrap_or_default()
}

fn folder_of(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target)
}

/// Gives the bytes to `read` as a file of that ending.
pub(crate) fn as_file(ending: &str, bytes: &[u8], read: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let mut file = tempfile::Builder::new().suffix(ending).tempfile()?;
    file.write_all(bytes)?;
    file.flush()?;
    read(file.path())
}
