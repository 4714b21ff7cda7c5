//! Files that appear complete or not at all.
//!
//! Everything is written to a temporary file beside the destination, which takes the destination's name at the end.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use tempfile::NamedTempFile;

/// A file on its way to its name; dropped before that, it leaves nothing.
pub(crate) struct NewFile {
    file: NamedTempFile,
    path: PathBuf,
}

impl NewFile {
    /// Opens a temporary file beside `path`, so that a place that cannot be written is found before any work is done.
    ///
    /// # Errors
    /// The folder does not exist or cannot be written, or `path` names something that is not an ordinary file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let name = path.display();
        match fs::metadata(path) {
            Ok(found) if !found.is_file() => bail!("cannot write {name}: it is not an ordinary file"),
            _ => {}
        }
        // A link is followed, so that the file it points to is replaced and not the link.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let file = temporary(folder).with_context(|| format!("cannot write {name}: its folder takes no new file"))?;
        Ok(Self { file, path })
    }

    /// The file to write to.
    pub(crate) fn as_file_mut(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    /// Where it will be.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the complete file its name, once it is safely on disk.
    pub(crate) fn finish(self) -> Result<()> {
        let name = self.path.display();
        self.file.as_file().sync_all().with_context(|| format!("cannot write {name}"))?;
        self.file.persist(&self.path).with_context(|| format!("cannot write {name}"))?;
        Ok(())
    }
}

#[cfg(unix)]
fn temporary(folder: &Path) -> std::io::Result<NamedTempFile> {
    use std::os::unix::fs::PermissionsExt;
    // As an ordinary program creates files; the umask still applies.
    let permissions = fs::Permissions::from_mode(0o666);
    tempfile::Builder::new().prefix(".gemma-").permissions(permissions).tempfile_in(folder)
}

#[cfg(not(unix))]
fn temporary(folder: &Path) -> std::io::Result<NamedTempFile> {
    tempfile::Builder::new().prefix(".gemma-").tempfile_in(folder)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn an_abandoned_file_leaves_nothing_and_a_finished_one_only_itself() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("x");
        drop(NewFile::open(&path).expect("writable"));
        assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 0);
        let mut file = NewFile::open(&path).expect("writable");
        file.as_file_mut().write_all(b"whole").expect("written");
        assert!(!path.exists(), "nothing may be seen before the end");
        file.finish().expect("named");
        assert_eq!(fs::read(&path).expect("readable"), b"whole");
        assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 1);
    }

    #[test]
    fn places_that_cannot_be_written_are_refused_at_once() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let refusal = |path: &Path| NewFile::open(path).err().expect("refused").to_string();
        assert!(refusal(&folder.path().join("missing/x")).contains("cannot write"));
        assert!(refusal(folder.path()).contains("not an ordinary file"));
    }

    #[test]
    #[cfg(unix)]
    fn a_file_is_replaced_through_a_link_and_others_may_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::write(&real, "old").expect("written");
        std::os::unix::fs::symlink(&real, &link).expect("linked");
        let ordinary = fs::metadata(&real).expect("there").permissions().mode();
        NewFile::open(&link).and_then(NewFile::finish).expect("named");
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
        assert_eq!(fs::read(&real).expect("readable"), b"");
        assert_eq!(fs::metadata(&real).expect("there").permissions().mode(), ordinary);
    }
}
