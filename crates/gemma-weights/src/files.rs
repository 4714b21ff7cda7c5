//! Where a checkpoint's files come from: a folder on disk, or the program itself.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::Error;
use crate::stand_in::{KIND_BYTES, other_text, stand_in, without_mark};

/// The most that is read of a file beside the weights, in bytes; the largest real one, Gemma's tokenizer.json, has
/// 34 MB.
const FILE_LIMIT: u64 = 256 << 20;

/// The files of one checkpoint.
#[derive(Clone, Debug)]
pub(crate) enum Files {
    Folder(PathBuf),
    BuiltIn(Vec<(&'static str, &'static [u8])>),
    /// Files that were made, and lie nowhere.
    Made(Vec<(&'static str, Vec<u8>)>),
    /// What a GGUF file says, as a folder's files.
    Gguf {
        path: PathBuf,
        files: Vec<(&'static str, Vec<u8>)>,
        architecture: String,
    },
}

impl Files {
    /// The files of a folder.
    pub(crate) fn of_folder(folder: &Path) -> Result<Self, Error> {
        match fs::metadata(folder) {
            Ok(metadata) if metadata.is_dir() => Ok(Self::Folder(folder.to_owned())),
            Ok(_) => {
                refuse(folder, stand_in(&beginning(folder)))?;
                Err(Error::NotAFolder { path: folder.to_owned() })
            }
            Err(cause) if cause.kind() == ErrorKind::NotFound => Err(Error::NoSuchPath { path: folder.to_owned() }),
            Err(cause) => Err(Error::Read { path: folder.to_owned(), cause }),
        }
    }

    /// How a file is called in messages.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join(name),
            Self::BuiltIn(_) => Path::new("(built in)").join(name),
            Self::Made(_) => Path::new("(made)").join(name),
            Self::Gguf { path, .. } => path.clone(),
        }
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        match self {
            Self::Folder(folder) => folder.join(name).exists(),
            Self::BuiltIn(files) => files.iter().any(|(file, _)| *file == name),
            Self::Made(files) | Self::Gguf { files, .. } => files.iter().any(|(file, _)| *file == name),
        }
    }

    /// The bytes of a weight file, mapped and not read; `None` if there is no such file.
    pub(crate) fn map(&self, name: &str) -> Result<Option<Bytes>, Error> {
        match self {
            Self::Folder(folder) => map(&folder.join(name)),
            Self::BuiltIn(files) => Ok(built_in(files, name).map(Bytes::from_static)),
            Self::Made(_) | Self::Gguf { .. } => Ok(None),
        }
    }

    /// The content of a small file; `None` if there is no such file.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        if !is_plain_name(name) {
            return Err(Error::FileName { name: name.to_owned() });
        }
        match self {
            Self::Folder(folder) => read_capped(&folder.join(name), FILE_LIMIT),
            Self::BuiltIn(files) => Ok(built_in(files, name).map(<[u8]>::to_vec)),
            Self::Made(files) | Self::Gguf { files, .. } => {
                Ok(files.iter().find(|(file, _)| *file == name).map(|(_, text)| text.clone()))
            }
        }
    }

    /// A weight file of a format that is not read, to mention when there is no other.
    pub(crate) fn foreign_weights(&self) -> Option<String> {
        let Self::Folder(folder) = self else { return None };
        let mut names: Vec<String> =
            fs::read_dir(folder).ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_unstable();
        names.into_iter().find(|name| {
            [".bin", ".gguf", ".ckpt", ".pt", ".pth", ".h5", ".msgpack", ".npz", ".safetensors"]
                .iter()
                .any(|ending| name.ends_with(ending))
        })
    }
}

fn built_in(files: &[(&'static str, &'static [u8])], name: &str) -> Option<&'static [u8]> {
    files.iter().find(|(file, _)| *file == name).map(|(_, content)| *content)
}

/// The size of a file in bytes; `None` if there is none. Only regular files count: a folder or a pipe would fail
/// late or wait forever.
fn file_len(path: &Path) -> Result<Option<u64>, Error> {
    let unreadable = |cause| Error::Read { path: path.to_owned(), cause };
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(Some(metadata.len())),
        Ok(_) => Err(unreadable(std::io::Error::other("not a regular file"))),
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(unreadable(cause)),
    }
}

/// The bytes of a file, mapped; `None` if there is none.
pub(crate) fn map(path: &Path) -> Result<Option<Bytes>, Error> {
    let mapped = file_len(path)?.map(|_| gemma_kernels::map_file(path)).transpose();
    let mapped: Option<Bytes> = mapped.map_err(|cause| Error::Read { path: path.to_owned(), cause })?;
    mapped.as_ref().map_or(Ok(()), |bytes| refuse(path, stand_in(bytes)))?;
    Ok(mapped)
}

/// Refuses a file in place of which another one lies.
fn refuse(path: &Path, other: Option<[&'static str; 2]>) -> Result<(), Error> {
    match other {
        Some([what, advice]) => Err(Error::StandIn { path: path.to_owned(), what, advice }),
        None => Ok(()),
    }
}

/// How a file begins.
pub(crate) fn beginning(path: &Path) -> Vec<u8> {
    let mut begin = Vec::new();
    if file_len(path).is_ok_and(|len| len.is_some())
        && let Ok(file) = File::open(path)
    {
        // what cannot be read is missed where it is needed
        let _ = file.take(KIND_BYTES as u64).read_to_end(&mut begin);
    }
    begin
}

/// Reads a file of at most `limit` bytes; `None` if there is none. A file that grows while it is read cannot
/// exceed the limit either. JSON may begin with a byte order mark, which is left out.
pub(crate) fn read_capped(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    let unreadable = |cause| Error::Read { path: path.to_owned(), cause };
    let Some(len) = file_len(path)? else { return Ok(None) };
    let mut content = Vec::new();
    if len <= limit {
        let file = File::open(path).map_err(unreadable)?;
        file.take(limit + 1).read_to_end(&mut content).map_err(unreadable)?;
    }
    let bytes = len.max(content.len() as u64);
    if bytes > limit {
        return Err(Error::TooLarge { path: path.to_owned(), bytes, limit });
    }
    if path.extension().is_none_or(|ending| ending != "json") {
        return Ok(Some(content));
    }
    refuse(path, other_text(&content))?;
    Ok(Some(without_mark(content)))
}

/// The content of a small file that lies outside a checkpoint's own folder, such as a module's configuration; `None` if
/// there is no such file.
///
/// # Errors
/// [`Error::Read`] when it is there but cannot be read, [`Error::TooLarge`] beyond 256 MiB.
pub fn read_small_file(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    read_capped(path, FILE_LIMIT)
}

/// Whether a name is that of a file directly in a folder, on any operating system.
pub(crate) fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name != "."
        && name != ".."
        && !name.contains(['/', '\\', ':', '\0'])
        && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_a_path_are_not_plain() {
        for name in ["config.json", "model-00001-of-00002.safetensors", "..a"] {
            assert!(is_plain_name(name), "{name}");
        }
        for name in ["", ".", "..", "../x", "/x", "a/b", "a\\b", "C:x", "a\nb", "a\0"] {
            assert!(!is_plain_name(name), "{name:?}");
        }
    }

    #[test]
    fn reads_are_capped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        fs::write(&path, b"12345678").unwrap();
        assert_eq!(read_capped(&path, 8).unwrap().unwrap(), b"12345678");
        assert!(matches!(read_capped(&path, 7).unwrap_err(), Error::TooLarge { bytes: 8, limit: 7, .. }));
        assert!(read_capped(&folder.path().join("none"), 8).unwrap().is_none());
        assert!(matches!(read_capped(folder.path(), 8).unwrap_err(), Error::Read { .. }));
    }
}
