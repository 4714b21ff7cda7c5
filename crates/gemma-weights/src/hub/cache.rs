//! Reading the Hugging Face cache: refs name commits, snapshots hold their files.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::options::first_bytes;
use super::select::{self, ADAPTER_CONFIG, ADAPTER_WEIGHTS, Weights};
use super::{HubId, HubOptions};
use crate::Error;
use crate::checkpoint::{INDEX_FILE, SINGLE_FILE};
use crate::files::is_plain_name;
use crate::gguf::without_ending;

/// The tokenizer in its two formats; either will do.
const TOKENIZERS: [&str; 2] = ["tokenizer.json", "tokenizer.model"];
/// The file without which a folder is no model.
pub(super) const CONFIG: &str = "config.json";
/// The longest content of a reference, in bytes: a commit and the end of the line.
const REFERENCE_LIMIT: u64 = 1 << 10;
/// The longest `modules.json` that is read, in bytes.
const MODULES_LIMIT: u64 = 64 << 10;
/// The most files of a snapshot that are looked at.
const MOST_FILES: usize = 10_000;

/// A snapshot in the cache, whole or not.
pub(super) struct Cached {
    /// The snapshot's folder, or the GGUF file in it that is meant.
    pub place: PathBuf,
    /// Files that a model needs and that are not in it.
    pub missing: Vec<String>,
}

impl Cached {
    /// Whether nothing is missing but perhaps the tokenizer, which not every repository has.
    pub(super) fn has_weights(&self) -> bool {
        self.missing.iter().all(|file| file == TOKENIZERS[0])
    }
}

/// The folders of one model in the cache.
pub(super) struct Repository {
    root: PathBuf,
}

impl Repository {
    pub(super) fn new(id: &HubId, options: &HubOptions) -> Self {
        Self { root: options.cache.join(id.folder()) }
    }

    /// The file that holds the commit of a branch or tag.
    pub(super) fn reference(&self, revision: &str) -> PathBuf {
        self.root.join("refs").join(revision)
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The folder of the files' contents.
    #[cfg(feature = "hub")]
    pub(super) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// The folders in which everything of the repository lies: its files, and the locks of their downloads.
    pub(super) fn folders(id: &HubId, options: &HubOptions) -> [PathBuf; 2] {
        [options.cache.join(id.folder()), options.cache.join(".locks").join(id.folder())]
    }

    /// The commit of a revision, as far as the cache knows: a branch's newest when it was last pulled.
    fn commit(&self, revision: &str) -> Option<String> {
        let commit = match first_bytes(&self.reference(revision), REFERENCE_LIMIT) {
            Some(content) => content.trim().to_owned(),
            None => revision.to_owned(),
        };
        is_commit(&commit).then_some(commit)
    }
}

/// Whether a text is the name of a commit, and so a safe folder name.
pub(super) fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The model's snapshot, if the cache has one. Makes no request.
pub(super) fn find(id: &HubId, options: &HubOptions) -> Option<Cached> {
    let folder = snapshot(id, options)?;
    let names = names(&folder);
    if let Weights::Gguf(parts) = select::weights(&names, id.choice()) {
        let missing: Vec<String> = all_parts(&parts[0]).into_iter().filter(|part| lacks(&folder, part)).collect();
        return Some(Cached { place: folder.join(&parts[0]), missing });
    }
    let missing = match id.choice() {
        Some(choice) => vec![choice.to_owned()],
        None => missing(&folder),
    };
    Some(Cached { place: folder, missing })
}

/// The folder of an adapter in the cache, if it is whole.
pub(super) fn find_adapter(id: &HubId, options: &HubOptions) -> Option<PathBuf> {
    let folder = snapshot(id, options)?;
    (!lacks(&folder, ADAPTER_CONFIG) && !lacks(&folder, ADAPTER_WEIGHTS)).then_some(folder)
}

fn snapshot(id: &HubId, options: &HubOptions) -> Option<PathBuf> {
    let repository = Repository::new(id, options);
    let folder = repository.snapshot(&repository.commit(id.revision())?);
    folder.is_dir().then_some(folder)
}

/// What a repository takes in the cache, in bytes, partial downloads included; `None` when nothing of it is there. Links are
/// not followed: the files that snapshots link to are counted once, where they lie.
pub(super) fn bytes(id: &HubId, options: &HubOptions) -> Option<u64> {
    let [files, _] = Repository::folders(id, options);
    fs::symlink_metadata(&files).ok()?;
    let (mut bytes, mut folders) = (0, vec![files]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(data) if data.is_dir() => folders.push(entry.path()),
                Ok(data) if data.is_file() => bytes += data.len(),
                _ => {}
            }
        }
    }
    Some(bytes)
}

/// The repositories of models of which something lies in the cache, by name.
pub(super) fn repositories(options: &HubOptions) -> Vec<HubId> {
    let entries = fs::read_dir(&options.cache).into_iter().flatten().flatten();
    let id = |name: String| HubId::parse(&name.strip_prefix("models--")?.replacen("--", "/", 1)).ok();
    let mut found: Vec<HubId> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter_map(id).collect();
    found.sort_by_key(HubId::repository);
    found
}

/// Removes everything of a repository, and nothing else: a link is removed, what it leads to stays.
pub(super) fn remove(id: &HubId, options: &HubOptions) -> Result<(), Error> {
    for folder in Repository::folders(id, options) {
        let Ok(data) = fs::symlink_metadata(&folder) else { continue };
        let removed = if data.is_dir() { fs::remove_dir_all(&folder) } else { fs::remove_file(&folder) };
        removed.map_err(|cause| Error::Remove { path: folder, cause })?;
    }
    Ok(())
}

/// What is missing of a model that is not in the cache at all.
pub(super) fn everything() -> Vec<String> {
    [CONFIG, SINGLE_FILE, TOKENIZERS[0]].map(str::to_owned).to_vec()
}

/// The names of a snapshot's files, those in its folders with the folder.
fn names(folder: &Path) -> Vec<String> {
    let list = |folder: &Path| -> Vec<(String, bool)> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten().take(MOST_FILES);
        entries
            .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.file_type().ok()?.is_dir())))
            .collect()
    };
    let mut names = Vec::new();
    for (name, is_folder) in list(folder) {
        if is_folder {
            names.extend(list(&folder.join(&name)).into_iter().map(|(file, _)| format!("{name}/{file}")));
        } else {
            names.push(name);
        }
    }
    names
}

/// Whether a file is not there, or empty, as a failing proxy once may have left it. A link whose blob is gone counts as
/// lacking.
fn lacks(folder: &Path, name: &str) -> bool {
    !fs::metadata(folder.join(name)).is_ok_and(|found| found.is_file() && found.len() > 0)
}

/// The files that a model folder needs and this one lacks.
fn missing(folder: &Path) -> Vec<String> {
    let lacks = |name: &str| lacks(folder, name);
    let mut missing = Vec::new();
    if lacks(CONFIG) {
        missing.push(CONFIG.to_owned());
    }
    if lacks(SINGLE_FILE) {
        match select::shards(folder, INDEX_FILE) {
            Some(shards) => missing.extend(shards.into_iter().filter(|shard| lacks(shard))),
            None => missing.push(SINGLE_FILE.to_owned()),
        }
    }
    if TOKENIZERS.iter().all(|name| lacks(name)) {
        missing.push(TOKENIZERS[0].to_owned());
    }
    missing.extend(modules(folder).into_iter().filter(|file| lacks(file)));
    missing
}

/// The files of the modules after the network, as `modules.json` of an embedding model names them.
fn modules(folder: &Path) -> Vec<String> {
    #[derive(Deserialize)]
    struct Module {
        path: String,
        #[serde(rename = "type", default)]
        kind: String,
    }
    let listed = first_bytes(&folder.join("modules.json"), MODULES_LIMIT);
    let listed: Vec<Module> = listed.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let files = |module: &Module| -> Vec<String> {
        let file = |name: &str| format!("{}/{name}", module.path);
        match module.kind.rsplit('.').next() {
            _ if !is_plain_name(&module.path) => Vec::new(),
            Some("Pooling") => vec![file(CONFIG)],
            Some("Dense") => vec![file(CONFIG), file(SINGLE_FILE)],
            _ => Vec::new(),
        }
    };
    listed.iter().flat_map(files).collect()
}

/// Every part of a split GGUF file by the name of one; the file itself where it is not split.
pub(super) fn all_parts(name: &str) -> Vec<String> {
    match (select::part(name), without_ending(name)) {
        (Some((stem, _, count)), Some((_, ending))) if (2..=1000).contains(&count) => {
            (1..=count).map(|number| format!("{stem}-{number:05}-of-{count:05}{ending}")).collect()
        }
        _ => vec![name.to_owned()],
    }
}
