//! The repository as texts by path, so that a rule is a function and its test needs no disk.

use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// The files that belong to the repository. Paths are relative to the root, with `/` between their parts.
pub(super) struct Repository {
    /// Path to text; a file that is not UTF-8 has an empty text.
    files: BTreeMap<String, String>,
}

impl Repository {
    /// Reads what git knows under `root`, new files included and ignored ones not; without git, everything but
    /// build output and hidden folders at the root.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let mut paths = from_git(root).unwrap_or_default();
        if paths.is_empty() {
            walk(root, root, &mut paths)?;
        }
        let mut files = BTreeMap::new();
        for path in paths {
            // A file deleted but not yet committed is still in git's list.
            let Ok(bytes) = std::fs::read(root.join(&path)) else { continue };
            files.insert(path, String::from_utf8(bytes).unwrap_or_default());
        }
        Ok(Self { files })
    }

    #[cfg(test)]
    pub(super) fn of(files: &[(&str, &str)]) -> Self {
        Self { files: files.iter().map(|(path, text)| (path.to_string(), text.to_string())).collect() }
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// Path and text of every file, in the order of the paths.
    pub(super) fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// The files whose names end in `.extension`.
    pub(super) fn with_extension<'a>(&'a self, extension: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.files().filter(move |(path, _)| path.rsplit_once('.').is_some_and(|(_, found)| found == extension))
    }

    pub(super) fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(String::as_str)
    }

    /// Whether `path` is a file or a folder of the repository; the empty path is the root.
    pub(super) fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        path.is_empty() || self.files.contains_key(path) || !self.entries(path).is_empty()
    }

    /// The names directly inside a folder; folders end in `/`. The empty path is the root.
    pub(super) fn entries(&self, folder: &str) -> BTreeSet<String> {
        let folder = folder.trim_end_matches('/');
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let inside = self.files.keys().filter_map(|path| path.strip_prefix(&prefix));
        inside
            .map(|rest| match rest.split_once('/') {
                Some((folder, _)) => format!("{folder}/"),
                None => rest.to_string(),
            })
            .collect()
    }
}

/// The folders at the root that hold ours, known to git yet or not.
const OURS: [&str; 8] = [".cargo", ".ci", "bindings", "crates", "docs", "models", "tests", "xtask"];

/// Git's list. A new file at the root, or in a folder of ours or of git's, belongs to the repository; another
/// unknown folder at the root (a checkpoint, say) does not.
fn from_git(root: &Path) -> Option<Vec<String>> {
    let list = |arguments: &[&str]| -> Option<Vec<String>> {
        let output = Command::new("git").current_dir(root).args(["ls-files", "-z"]).args(arguments).output().ok()?;
        if !output.status.success() {
            return None;
        }
        let text = String::from_utf8(output.stdout).ok()?;
        Some(text.split('\0').filter(|path| !path.is_empty()).map(str::to_string).collect())
    };
    let mut paths = list(&["--cached"])?;
    let mut known: BTreeSet<String> = OURS.map(str::to_string).into();
    known.extend(paths.iter().filter_map(|path| Some(path.split_once('/')?.0.to_string())));
    let new = list(&["--others", "--exclude-standard"])?;
    paths.extend(new.into_iter().filter(|path| path.split_once('/').is_none_or(|(top, _)| known.contains(top))));
    Some(paths)
}

fn walk(root: &Path, folder: &Path, paths: &mut Vec<String>) -> Result<()> {
    let context = || format!("cannot read the folder {}", folder.display());
    for entry in std::fs::read_dir(folder).with_context(context)? {
        let entry = entry.with_context(context)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type().with_context(context)?;
        let at_root = folder == root;
        if kind.is_dir() {
            let ours = OURS.contains(&name.as_str());
            if at_root && (name.starts_with("target") || name.starts_with('.') && !ours) {
                continue;
            }
            walk(root, &entry.path(), paths)?;
        } else if kind.is_file() {
            let path = entry.path();
            let path =
                path.strip_prefix(root).expect("the walk stays under the root").to_string_lossy().replace('\\', "/");
            paths.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_known_by_their_files() {
        let repository = Repository::of(&[("README.md", ""), ("crates/a/src/lib.rs", ""), ("crates/b.rs", "")]);
        assert_eq!(Vec::from_iter(repository.entries("")), ["README.md", "crates/"]);
        assert_eq!(Vec::from_iter(repository.entries("crates/")), ["a/", "b.rs"]);
        assert!(repository.has("crates/a") && repository.has("crates/a/src/") && repository.has(""));
        assert!(!repository.has("crate") && !repository.has("crates/a/sr"));
    }

    #[test]
    fn git_and_the_plain_walk_find_this_package() {
        let root = crate::root();
        let read = Repository::read(&root).expect("the repository can be read");
        let mut walked = Vec::new();
        walk(&root, &root, &mut walked).expect("the folders can be read");
        for file in ["Cargo.toml", "xtask/Cargo.toml", "xtask/src/tidy/repository.rs"] {
            assert!(read.has(file), "{file} is missing from what was read");
            assert!(walked.iter().any(|path| path == file), "{file} is missing from the walk");
        }
        assert!(!walked.iter().any(|path| path.starts_with("target")), "build output was walked");
    }
}
