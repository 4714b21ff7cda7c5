//! Files that appear complete or not at all: those of the weights crate, under the name that the verbs know. And files
//! that grow, which one process at a time writes.

use std::fs::{File, TryLockError};
use std::path::Path;

use anyhow::{Result, bail};

pub(crate) use gemma_weights::NewFile;

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

#[cfg(test)]
mod tests {
    use super::*;

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
