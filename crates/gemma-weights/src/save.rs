//! Saving a model folder that Hugging Face transformers loads: all of it, or nothing.
//!
//! Everything is written into a hidden folder beside the target, flushed to the disk and then renamed; an error, a
//! full disk or a crash leaves the target as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::json;

use crate::checkpoint::{INDEX_FILE, SINGLE_FILE};
use crate::files::is_plain_name;
use crate::new_file::{DraftFolder, NewFile, followed, sync_folder};
use crate::shard::Shard;
use crate::{Dtype, Error};

/// A tensor to save: name, type, shape, and its values row-major and little-endian.
pub type SavedTensor = (String, Dtype, Vec<usize>, Bytes);

/// How a folder is saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaveOptions {
    /// The most data of one file, in bytes; beyond it the model is sharded. A larger tensor gets a file of its own.
    pub shard_bytes: u64,
    /// Whether a model folder that is there is replaced, with all its files. Otherwise it is an error. A folder that
    /// holds anything else than files of a model is never replaced.
    pub replace: bool,
}

/// Files of at most 5 GB, as Hugging Face makes them; nothing is replaced.
impl Default for SaveOptions {
    fn default() -> Self {
        Self { shard_bytes: 5_000_000_000, replace: false }
    }
}

/// Saves a model folder with the default [`SaveOptions`]; see [`save_folder_with`].
///
/// # Errors
/// As [`save_folder_with`].
pub fn save_folder(
    folder: &Path,
    files: &[(&str, &[u8])],
    tensors: &mut dyn Iterator<Item = SavedTensor>,
) -> Result<(), Error> {
    save_folder_with(folder, files, tensors, &SaveOptions::default())
}

/// Saves a model folder: the tensors as safetensors (with an index when there are several files), and `files` (config,
/// tokenizer) as they are. One tensor at a time is held in memory. Parent folders are made.
///
/// ```no_run
/// # use gemma_weights::{Dtype, SaveOptions, save_folder_with};
/// let mut tensors = [("w".to_owned(), Dtype::F32, vec![1, 2], vec![0; 8].into())].into_iter();
/// let options = SaveOptions { replace: true, ..SaveOptions::default() };
/// save_folder_with("tuned".as_ref(), &[("config.json", b"{}")], &mut tensors, &options)?;
/// # Ok::<(), gemma_weights::Error>(())
/// ```
///
/// # Errors
/// [`Error::WouldOverwrite`], [`Error::Foreign`], [`Error::Current`], [`Error::WrongKind`], [`Error::Write`],
/// [`Error::TensorBytes`], [`Error::GivenTwice`] or [`Error::FileName`]; the target is then as it was.
pub fn save_folder_with(
    folder: &Path,
    files: &[(&str, &[u8])],
    tensors: &mut dyn Iterator<Item = SavedTensor>,
    options: &SaveOptions,
) -> Result<(), Error> {
    try_save_folder(folder, files, &mut tensors.map(Ok), options)
}

/// [`save_folder_with`], from tensors that may fail to come: the first error ends it.
///
/// # Errors
/// As [`save_folder_with`], and what the tensors bring.
pub fn try_save_folder(
    folder: &Path,
    files: &[(&str, &[u8])],
    tensors: &mut dyn Iterator<Item = Result<SavedTensor, Error>>,
    options: &SaveOptions,
) -> Result<(), Error> {
    let target = Target::new(folder, options.replace)?;
    let draft = target.draft()?;
    let written =
        write_files(draft.path(), files).and_then(|()| write_tensors(draft.path(), tensors, options.shard_bytes));
    written.map_err(|error| target.name_in(error))?;
    target.install(draft)
}

/// Writes tensors and metadata (text to text) as one safetensors file: all of it, or nothing. A file that is there is
/// replaced; a link is followed.
///
/// # Errors
/// [`Error::Write`], [`Error::TensorBytes`] or [`Error::GivenTwice`]; what was there is then as it was.
pub fn save_safetensors(
    path: &Path,
    metadata: BTreeMap<String, String>,
    tensors: &mut dyn Iterator<Item = SavedTensor>,
) -> Result<(), Error> {
    let failed = write_error(path);
    let mut new = NewFile::open(path)?;
    let mut shard = Shard::new(new.folder()).with_metadata(metadata);
    let mut names = BTreeSet::new();
    for (name, dtype, shape, data) in tensors {
        checked_bytes(&name, dtype, &shape, data.len())?;
        if !names.insert(name.clone()) {
            return Err(Error::GivenTwice { name });
        }
        shard.push(name, dtype, shape, &data).map_err(&failed)?;
    }
    shard.write(new.as_file_mut()).map_err(&failed)?;
    new.finish()
}

/// Whether a file of this name belongs to a model folder, as hubs and programs write them.
fn is_of_a_model(name: &str) -> bool {
    const OTHERS: [&str; 9] = [
        "README.md",
        "LICENSE",
        "USE_POLICY.md",
        ".gitattributes",
        ".DS_Store",
        "tokenizer.model",
        "merges.txt",
        "vocab.txt",
        "vae-oid.npz",
    ];
    let endings = [".json", ".jinja", ".safetensors"];
    endings.iter().any(|ending| name.ends_with(ending)) || OTHERS.contains(&name)
}

fn write_error(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    move |cause| Error::Write { path: path.to_owned(), cause }
}

/// Where a folder is to appear, and the nearest folder above it that is there: the draft is made in it, so that the
/// final rename stays within one file system and a failed save leaves no empty parents.
struct Target {
    folder: PathBuf,
    base: PathBuf,
}

impl Target {
    fn new(folder: &Path, replace: bool) -> Result<Self, Error> {
        // a link is followed, so that the folder it names is replaced and not the link
        let target = followed(folder).map_err(write_error(folder))?;
        let folder = match fs::canonicalize(&target) {
            Ok(existing) => existing,
            Err(_) => std::path::absolute(&target).map_err(write_error(folder))?,
        };
        if fs::metadata(&folder).is_ok_and(|found| !found.is_dir()) {
            return Err(Error::WrongKind { path: folder, expected: "a folder" });
        }
        if folder.exists() {
            // moved away, it would leave the program, and the shell that started it, nowhere
            if std::env::current_dir().and_then(fs::canonicalize).is_ok_and(|current| current == folder) {
                return Err(Error::Current { folder });
            }
            for entry in fs::read_dir(&folder).map_err(write_error(&folder))? {
                let entry = entry.map_err(write_error(&folder))?;
                if !replace {
                    return Err(Error::WouldOverwrite { folder });
                }
                let name = entry.file_name().to_string_lossy().into_owned();
                let is_folder = entry.file_type().map_or(true, |kind| kind.is_dir());
                if is_folder || !is_of_a_model(&name) {
                    return Err(Error::Foreign { folder, found: name });
                }
            }
        }
        let base = folder.ancestors().skip(1).find(|ancestor| ancestor.exists());
        let base = base.ok_or_else(|| write_error(&folder)(io::ErrorKind::NotFound.into()))?.to_owned();
        Ok(Self { folder, base })
    }

    /// The error with the user's path in place of the draft's, which is gone when the error is read.
    fn name_in(&self, error: Error) -> Error {
        match error {
            Error::Write { cause, .. } => Error::Write { path: self.folder.clone(), cause },
            other => other,
        }
    }

    fn draft(&self) -> Result<DraftFolder, Error> {
        // of the cause only its kind is kept: its text names the draft
        DraftFolder::new(&self.base).map_err(|cause| write_error(&self.folder)(cause.kind().into()))
    }

    /// Puts the draft in its place. What was there is exchanged with it in one step where the system can do that, so
    /// that one of the two is there whenever the program ends.
    fn install(&self, draft: DraftFolder) -> Result<(), Error> {
        let failed = write_error(&self.folder);
        sync_folder(draft.path()).map_err(&failed)?;
        let parent = self.folder.parent().unwrap_or(&self.base);
        fs::create_dir_all(parent).map_err(&failed)?;
        if self.folder.exists() {
            if exchange(draft.path(), &self.folder).is_ok() {
                // what the draft's place holds now goes with its guard
                return sync_folder(parent).map_err(failed);
            }
            return self.install_by_moving(draft);
        }
        fs::rename(draft.path(), &self.folder).map_err(&failed)?;
        draft.keep();
        sync_folder(parent).map_err(failed)
    }

    /// The same in two steps. A program that ends between them leaves the old folder beside the new one's place.
    fn install_by_moving(&self, draft: DraftFolder) -> Result<(), Error> {
        let failed = write_error(&self.folder);
        let mut name = self.folder.file_name().unwrap_or_default().to_owned();
        name.push(".replaced");
        let old = self.folder.with_file_name(name);
        fs::rename(&self.folder, &old).map_err(&failed)?;
        if let Err(cause) = fs::rename(draft.path(), &self.folder) {
            // best effort: the error that matters is the one reported
            let _ = fs::rename(&old, &self.folder);
            return Err(failed(cause));
        }
        draft.keep();
        fs::remove_dir_all(&old).map_err(&failed)?;
        sync_folder(self.folder.parent().unwrap_or(&self.base)).map_err(failed)
    }
}

/// Exchanges the names of two folders in one step.
fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
    }
    #[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
    {
        let _ = (one, other);
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn write_file(path: &Path, content: &[u8]) -> Result<(), Error> {
    let write = || {
        let mut file = File::create_new(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(write_error(path))
}

fn write_files(folder: &Path, files: &[(&str, &[u8])]) -> Result<(), Error> {
    let mut names = BTreeSet::new();
    for (name, content) in files {
        if !is_plain_name(name) {
            return Err(Error::FileName { name: (*name).to_owned() });
        }
        // the weights' own names belong to the tensors
        let is_weights = name.starts_with("model") && name.ends_with(".safetensors");
        if !names.insert(*name) || *name == INDEX_FILE || is_weights {
            return Err(Error::GivenTwice { name: (*name).to_owned() });
        }
        write_file(&folder.join(name), content)?;
    }
    Ok(())
}

fn write_tensors(
    folder: &Path,
    tensors: &mut dyn Iterator<Item = Result<SavedTensor, Error>>,
    shard_bytes: u64,
) -> Result<(), Error> {
    let failed = write_error(folder);
    let mut names = BTreeSet::new();
    // tensor names of each finished shard; how many there are is known only at the end, so names come last
    let mut finished: Vec<Vec<String>> = Vec::new();
    let mut total_size = 0;
    let mut shard = Shard::new(folder);
    for tensor in tensors {
        let (name, dtype, shape, data) = tensor?;
        let bytes = checked_bytes(&name, dtype, &shape, data.len())?;
        if !names.insert(name.clone()) {
            return Err(Error::GivenTwice { name });
        }
        if shard.bytes() > 0 && shard.bytes() + bytes > shard_bytes {
            let full = std::mem::replace(&mut shard, Shard::new(folder));
            finished.push(full.finish(&draft_shard(folder, finished.len())).map_err(&failed)?);
        }
        shard.push(name, dtype, shape, &data).map_err(&failed)?;
        total_size += bytes;
    }
    finished.push(shard.finish(&draft_shard(folder, finished.len())).map_err(&failed)?);

    let shards = finished.len();
    let mut weight_map = BTreeMap::new();
    for (index, tensors) in finished.into_iter().enumerate() {
        let file = if shards == 1 {
            SINGLE_FILE.to_owned()
        } else {
            format!("model-{:05}-of-{shards:05}.safetensors", index + 1)
        };
        fs::rename(draft_shard(folder, index), folder.join(&file)).map_err(&failed)?;
        weight_map.extend(tensors.into_iter().map(|tensor| (tensor, file.clone())));
    }
    if shards > 1 {
        let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
        write_file(&folder.join(INDEX_FILE), format!("{index:#}\n").as_bytes())?;
    }
    Ok(())
}

fn draft_shard(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!(".shard-{index}"))
}

/// The size of a tensor in bytes, if its data has it.
fn checked_bytes(name: &str, dtype: Dtype, shape: &[usize], found: usize) -> Result<u64, Error> {
    let values = shape.iter().try_fold(dtype.bytes() as u64, |product, &axis| product.checked_mul(axis as u64));
    let expected = values.unwrap_or(u64::MAX);
    if expected == found as u64 {
        Ok(expected)
    } else {
        let (name, shape, dtype) = (name.to_owned(), shape.to_owned(), dtype.safetensors_name());
        Err(Error::TensorBytes { name, dtype, shape, expected, found: found as u64 })
    }
}
