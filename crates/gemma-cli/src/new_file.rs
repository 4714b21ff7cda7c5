//! Files that appear complete or not at all: those of the weights crate, under the name that the verbs know. And files
//! that grow, which one process at a time writes.

use std::fs::{self, File, TryLockError};
use std::path::Path;

use anyhow::{Context, Result, bail};

pub(crate) use gemma_weights::NewFile;

/// Opens a file that replaces one of its own kind at most: what else lies there, such as the weights of a model, was
/// named by mistake. `is_kind` tells whether a file is of that kind.
///
/// # Errors
/// When something else is there, or the place cannot be written.
pub(crate) fn replacing(path: &Path, kind: &str, is_kind: impl Fn(&Path) -> bool) -> Result<NewFile> {
    refuse_dash(path)?;
    let new = NewFile::open(path)?;
    let holds_something = fs::metadata(new.path()).is_ok_and(|found| found.len() > 0);
    if holds_something && !is_kind(new.path()) {
        bail!("{} is there already and is no {kind}; name another file, or remove it", path.display());
    }
    Ok(new)
}

/// Refuses `-`, by which somebody means standard output, where a file or a folder is written.
///
/// # Errors
/// When the path is `-`.
pub(crate) fn refuse_dash(path: &Path) -> Result<()> {
    if path == Path::new("-") {
        bail!("- is no name of a file or folder to write; give another, or ./- where it is meant");
    }
    Ok(())
}

/// Makes sure that no other run of this program writes a file that grows; as long as `file` is open, none will. File
/// systems without locks do without.
///
/// # Errors
/// When another run does.
pub(crate) fn written_alone(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            bail!("{} is being written by another run; wait for its end, or name another place", path.display())
        }
        _ => Ok(()),
    }
}

/// The same for a folder, which is made where it is not there. `None` where a system has no locks of folders.
///
/// # Errors
/// When another run writes there, or the folder cannot be made.
pub(crate) fn folder_alone(path: &Path) -> Result<Option<File>> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    let Ok(folder) = File::open(path) else { return Ok(None) };
    written_alone(&folder, path)?;
    Ok(Some(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_of_the_same_kind_is_replaced() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("x");
        let is_kind = |path: &Path| fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"kind"));
        for content in [None, Some(""), Some("kind 1")] {
            if let Some(content) = content {
                fs::write(&path, content).expect("written");
            }
            replacing(&path, "kind", is_kind).expect("nothing is lost");
        }
        fs::write(&path, "weights").expect("written");
        let error = replacing(&path, "kind", is_kind).expect_err("another file").to_string();
        assert!(error.contains("is there already and is no kind"), "{error}");
        assert_eq!(fs::read(&path).expect("readable"), b"weights");
    }

    #[test]
    fn a_file_that_grows_has_one_writer() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("log.jsonl");
        let first = File::create(&path).expect("created");
        written_alone(&first, &path).expect("nobody else");
        let second = File::options().append(true).open(&path).expect("opened");
        let error = written_alone(&second, &path).expect_err("the first has it").to_string();
        assert!(error.contains("log.jsonl is being written by another run"), "{error}");
        drop(first);
        written_alone(&second, &path).expect("the first is gone");
    }
}
