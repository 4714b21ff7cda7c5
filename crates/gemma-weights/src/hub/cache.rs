//! Reading the Hugging Face cache: refs name commits, snapshots hold their files.

use std::fs;
use std::path::{Path, PathBuf};

use super::{HubId, HubOptions};
use crate::checkpoint::{INDEX_FILE, Index, SINGLE_FILE};
use crate::files::{Files, is_plain_name};

/// The tokenizer in its two formats; either will do.
const TOKENIZERS: [&str; 2] = ["tokenizer.json", "tokenizer.model"];
/// The file without which a folder is no model.
const CONFIG: &str = "config.json";

/// A snapshot in the cache, whole or not.
pub(super) struct Cached {
    /// The snapshot's folder.
    pub folder: PathBuf,
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

    /// The commit of a revision, as far as the cache knows: a branch's newest when it was last pulled.
    fn commit(&self, revision: &str) -> Option<String> {
        let commit = match fs::read_to_string(self.reference(revision)) {
            Ok(content) => content.trim().to_owned(),
            Err(_) => revision.to_owned(),
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
    let repository = Repository::new(id, options);
    let folder = repository.snapshot(&repository.commit(id.revision())?);
    folder.is_dir().then(|| Cached { missing: missing(&folder), folder })
}

/// What is missing of a model that is not in the cache at all.
pub(super) fn everything() -> Vec<String> {
    [CONFIG, SINGLE_FILE, TOKENIZERS[0]].map(str::to_owned).to_vec()
}

/// The files that a model folder needs and this one lacks. A link whose blob is gone counts as lacking.
fn missing(folder: &Path) -> Vec<String> {
    let lacks = |name: &str| !folder.join(name).is_file();
    let mut missing = Vec::new();
    if lacks(CONFIG) {
        missing.push(CONFIG.to_owned());
    }
    if lacks(SINGLE_FILE) {
        match shards(folder) {
            Some(shards) => missing.extend(shards.into_iter().filter(|shard| lacks(shard))),
            None => missing.push(SINGLE_FILE.to_owned()),
        }
    }
    if TOKENIZERS.iter().all(|name| lacks(name)) {
        missing.push(TOKENIZERS[0].to_owned());
    }
    missing
}

/// The shards that the folder's index names, each once; `None` without a readable index.
fn shards(folder: &Path) -> Option<Vec<String>> {
    let content = Files::Folder(folder.to_owned()).read(INDEX_FILE).ok()??;
    let index: Index = serde_json::from_slice(&content).ok()?;
    let mut shards: Vec<String> = index.weight_map.0.into_iter().map(|(_, shard)| shard).collect();
    shards.sort_unstable();
    shards.dedup();
    (!shards.is_empty() && shards.iter().all(|shard| is_plain_name(shard))).then_some(shards)
}
