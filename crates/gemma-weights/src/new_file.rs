//! Files and folders that appear complete or not at all.
//!
//! Everything is written under a hidden name beside the destination, which takes the destination's name at the end. What
//! a process that was killed left there is removed by the next one that writes into the same folder: a draft is locked
//! by whoever writes it, and one without a lock is nobody's.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir};

use crate::Error;

/// How the hidden names begin and end.
const PREFIX: &str = ".saving-";
const SUFFIX: &str = ".tmp";
/// The most links that lead from one to the next.
const MOST_LINKS: usize = 40;

/// A file on its way to its name; dropped before that, it leaves nothing.
#[derive(Debug)]
pub struct NewFile {
    file: NamedTempFile,
    given: PathBuf,
    path: PathBuf,
}

impl NewFile {
    /// Opens a temporary file beside `path`, so that a place that cannot be written is found before any work is done. A
    /// link is followed, also one whose target is not there yet: the file it points to is written, and not the link.
    ///
    /// # Errors
    /// [`Error::WrongKind`] when `path` names something that is no ordinary file, [`Error::Write`] when its folder does
    /// not exist or takes no file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |cause| Error::Write { path: path.to_owned(), cause };
        let target = followed(path).map_err(failed)?;
        match fs::metadata(&target) {
            Ok(found) if !found.is_file() => {
                return Err(Error::WrongKind { path: path.to_owned(), expected: "a file" });
            }
            _ => {}
        }
        let folder = folder_of(&target);
        if !folder.is_dir() {
            return Err(failed(io::Error::other("its folder is not there")));
        }
        // of the cause only its kind is kept: its text names the draft
        let file = draft(folder).map_err(|cause| failed(cause.kind().into()))?;
        Ok(Self { file, given: path.to_owned(), path: target })
    }

    /// The file to write to.
    pub fn as_file_mut(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    /// Where it will be, links followed.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder in which it is written.
    pub(crate) fn folder(&self) -> &Path {
        folder_of(&self.path)
    }

    /// Gives the complete file its name, once it is safely on disk. A file that is there is replaced.
    ///
    /// # Errors
    /// [`Error::Write`]; what was there is then as it was.
    pub fn finish(self) -> Result<(), Error> {
        let failed = |cause| Error::Write { path: self.given.clone(), cause };
        self.file.as_file().sync_all().map_err(failed)?;
        self.file.persist(&self.path).map_err(|error| failed(error.error))?;
        sync_folder(folder_of(&self.path)).map_err(failed)
    }
}

/// The place to which links lead; it need not be there.
pub(crate) fn followed(path: &Path) -> io::Result<PathBuf> {
    let mut place = path.to_owned();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&place) {
            // relative to the folder of the link
            Ok(target) => place = folder_of(&place).join(target),
            Err(_) => return Ok(place),
        }
    }
    Err(io::Error::other("its links lead in a circle"))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Writes the names of a folder to the disk, where that can be done.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        File::open(folder)?.sync_all()
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        Ok(())
    }
}

/// A locked file with a hidden name in a folder, gone when it is dropped, and as readable as any other that the user makes
/// (the umask still applies).
pub(crate) fn draft(folder: &Path) -> io::Result<NamedTempFile> {
    sweep(folder);
    loop {
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX).suffix(SUFFIX);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let file = builder.tempfile_in(folder)?;
        // a file system without locks has no sweeping either
        let _ = file.as_file().lock();
        // a process that sweeps may have had the lock before
        if file.path().exists() {
            return Ok(file);
        }
    }
}

/// A locked folder with a hidden name in a folder, gone when it is dropped.
pub(crate) struct DraftFolder {
    folder: TempDir,
    /// Held as long as the folder is written; none where folders cannot be locked.
    _lock: Option<File>,
}

impl DraftFolder {
    pub(crate) fn new(base: &Path) -> io::Result<Self> {
        sweep(base);
        loop {
            let mut builder = tempfile::Builder::new();
            builder.prefix(PREFIX).suffix(SUFFIX);
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt;
                // a model folder is as readable as any other folder the user makes (the umask still applies)
                builder.permissions(fs::Permissions::from_mode(0o777));
            }
            let folder = builder.tempdir_in(base)?;
            let lock = File::open(folder.path()).ok().filter(|lock| lock.lock().is_ok());
            // a process that sweeps may have had the lock before
            if folder.path().exists() {
                return Ok(Self { folder, _lock: lock });
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves what has another name by now.
    pub(crate) fn keep(self) {
        let _ = self.folder.keep();
    }
}

/// Removes the drafts in a folder that nobody writes any more. What cannot be removed stays.
fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_draft = name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
        let Some(kind) = entry.file_type().ok().filter(|kind| is_draft && !kind.is_symlink()) else { continue };
        let path = entry.path();
        let Ok(lock) = File::open(&path) else { continue };
        match lock.try_lock() {
            Ok(()) if kind.is_dir() => _ = fs::remove_dir_all(&path),
            Ok(()) => _ = fs::remove_file(&path),
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn an_abandoned_file_leaves_nothing_and_a_finished_one_only_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        drop(NewFile::open(&path).unwrap());
        assert!(names(folder.path()).is_empty());
        let mut file = NewFile::open(&path).unwrap();
        file.as_file_mut().write_all(b"whole").unwrap();
        assert!(!path.exists(), "nothing may be seen before the end");
        file.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(names(folder.path()), ["x"]);
    }

    #[test]
    fn places_that_cannot_be_written_are_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let refusal = |path: &Path| NewFile::open(path).unwrap_err().to_string();
        assert!(refusal(&folder.path().join("missing/x")).contains("its folder is not there"));
        assert!(refusal(folder.path()).contains("is not a file"));
    }

    #[test]
    #[cfg(unix)]
    fn links_are_followed_whether_their_target_is_there_or_not() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("other")).unwrap();
        symlink("second", at("link")).unwrap();
        symlink("other/real", at("second")).unwrap();
        fs::write(at("plain"), "").unwrap();
        for content in ["new", "newer"] {
            let mut file = NewFile::open(&at("link")).unwrap();
            file.as_file_mut().write_all(content.as_bytes()).unwrap();
            file.finish().unwrap();
            assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
            assert_eq!(fs::read_to_string(at("other/real")).unwrap(), content);
        }
        let mode = |name: &str| fs::metadata(at(name)).unwrap().permissions().mode();
        assert_eq!(mode("other/real"), mode("plain"), "others may read it");
        symlink("b", at("a")).unwrap();
        symlink("a", at("b")).unwrap();
        assert!(NewFile::open(&at("a")).unwrap_err().to_string().contains("circle"));
        symlink("nowhere/x", at("lost")).unwrap();
        assert!(NewFile::open(&at("lost")).unwrap_err().to_string().contains("its folder is not there"));
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_another_writes_is_not() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".saving-dead.tmp"), "half").unwrap();
        fs::create_dir(folder.path().join(".saving-old.tmp")).unwrap();
        fs::write(folder.path().join(".saving-old.tmp/config.json"), "half").unwrap();
        fs::write(folder.path().join(".saving-mine.txt"), "kept").unwrap();
        let (_file, _draft) = (draft(folder.path()).unwrap(), DraftFolder::new(folder.path()).unwrap());
        let _third = draft(folder.path()).unwrap();
        let mut left = names(folder.path());
        left.sort();
        assert_eq!(left.len(), 4, "{left:?}");
        assert!(left.contains(&".saving-mine.txt".to_owned()));
    }
}
