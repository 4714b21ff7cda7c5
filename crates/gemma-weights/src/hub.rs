//! Models by name: `org/name`, `org/name@revision` or, of a GGUF repository, `org/name:Q4_K_M`, found in the standard
//! Hugging Face cache and, with the feature `hub`, downloaded into it.
//!
//! The cache has the layout of the Python library `huggingface_hub`, so that models are shared with it: blobs named by
//! their hash, snapshots of links to them, and refs that say which commit a branch had.

mod cache;
#[cfg(feature = "hub")]
mod download;
#[cfg(feature = "hub")]
mod fetch;
#[cfg(feature = "hub")]
mod http;
mod id;
mod options;
#[cfg(feature = "hub")]
mod retry;
mod select;
#[cfg(feature = "hub")]
mod tls;

use std::path::{Path, PathBuf};

use crate::Error;

pub use id::HubId;
pub use options::HubOptions;

/// How far a download is; handed to the progress callback after each piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Download<'a> {
    /// The file being fetched, as the repository calls it.
    pub file: &'a str,
    /// Bytes of it that are here, those of an earlier interrupted download included.
    pub done: u64,
    /// Its size in bytes.
    pub total: u64,
    /// Bytes of all files that are here.
    pub all_done: u64,
    /// Size of all files in bytes.
    pub all_total: u64,
}

/// Called as a download goes on.
pub type OnDownload<'a> = &'a mut dyn FnMut(Download<'_>);

/// The place of a model: `model` itself where that is a path, else the snapshot of that hub id (of a GGUF repository the
/// file in it), downloaded if it is not in the cache. A model that is in the cache costs no request, so a branch is not
/// looked up again: [`pull`] does that.
///
/// # Errors
/// [`Error::NoSuchPath`] or [`Error::HubId`] for what is neither path nor id; [`Error::Offline`] or
/// [`Error::HubNotCompiled`] when it would have to be downloaded; the errors of [`pull`].
pub fn resolve(model: &str, options: &HubOptions) -> Result<PathBuf, Error> {
    resolve_with(model, options, &mut |_| {})
}

/// [`resolve`], with a callback for the progress of a download.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_with(model: &str, options: &HubOptions, progress: OnDownload<'_>) -> Result<PathBuf, Error> {
    let id = match named(model, options)? {
        Named::Path(path) => return Ok(path),
        Named::Hub(id) => id,
    };
    let cached = cache::find(&id, options);
    if let Some(cached) = &cached
        && (cached.missing.is_empty() || (cannot_download(options) && cached.has_weights()))
    {
        return Ok(cached.place.clone());
    }
    if reads_as_path(model) && cached.is_none() {
        return Err(Error::NoSuchPath { path: PathBuf::from(model) });
    }
    match (fetch(&id, options, progress), cached) {
        // better a model without its tokenizer files than none: whoever needs them will say so
        (Err(Error::HubConnection { .. }), Some(cached)) if cached.has_weights() => Ok(cached.place),
        (fetched, _) => fetched,
    }
}

/// The folder of a LoRA adapter: `adapter` itself where that is a path, else the snapshot of that hub id, of which
/// `adapter_config.json` and `adapter_model.safetensors` are downloaded if they are not in the cache.
///
/// # Errors
/// As [`resolve`], and [`Error::NoHubAdapter`] for a repository that holds none.
pub fn resolve_adapter(adapter: &str, options: &HubOptions, progress: OnDownload<'_>) -> Result<PathBuf, Error> {
    let id = match named(adapter, options)? {
        Named::Path(path) => return Ok(path),
        Named::Hub(id) => id,
    };
    if let Some(folder) = cache::find_adapter(&id, options) {
        return Ok(folder);
    }
    if reads_as_path(adapter) {
        return Err(Error::NoSuchPath { path: PathBuf::from(adapter) });
    }
    let missing = || vec!["adapter_config.json".to_owned(), "adapter_model.safetensors".to_owned()];
    if options.offline {
        return Err(Error::Offline { id: id.to_string(), cache: options.cache.clone(), missing: missing() });
    }
    #[cfg(feature = "hub")]
    {
        download::pull_adapter(&id, options, progress)
    }
    #[cfg(not(feature = "hub"))]
    {
        let _ = progress;
        Err(Error::HubNotCompiled { id: id.to_string(), cache: options.cache.clone(), missing: missing() })
    }
}

/// Downloads what is missing of a model's newest commit (of the revision in its id) and returns its folder; of a GGUF
/// repository the one file that the id chooses, and returns that.
///
/// Only the files that are used are fetched: `model.safetensors`, or the shards that the index names, never both.
/// Interrupted downloads are resumed, also by a later process; files are checked against the hash that the hub
/// announces; two processes may pull the same model at the same time.
///
/// # Errors
/// [`Error::HubId`], [`Error::Offline`], [`Error::HubNotCompiled`], [`Error::Gated`], [`Error::NoSuchModel`],
/// [`Error::NoSuchRevision`], [`Error::NoHubWeights`], [`Error::HubChoice`], [`Error::HubAdapter`],
/// [`Error::HubStatus`], [`Error::HubAnswer`], [`Error::HubConnection`], [`Error::HubCertificate`],
/// [`Error::Certificates`], [`Error::HubHash`], or [`Error::Cache`] when the cache cannot be written.
pub fn pull(id: &str, options: &HubOptions, progress: OnDownload<'_>) -> Result<PathBuf, Error> {
    fetch(&options.id(id)?, options, progress)
}

/// The repositories of models of which something lies in the cache, by name. Makes no request.
pub fn cached_repositories(options: &HubOptions) -> Vec<HubId> {
    cache::repositories(options)
}

/// The folder (or GGUF file) of a model in the cache, if its configuration and weights are there. Makes no request.
pub fn cached(id: &HubId, options: &HubOptions) -> Option<PathBuf> {
    cache::find(id, options).filter(cache::Cached::has_weights).map(|cached| cached.place)
}

/// What a repository takes in the cache, in bytes: all its revisions and files, partial downloads included. `None` when
/// nothing of it is there.
pub fn cached_bytes(id: &HubId, options: &HubOptions) -> Option<u64> {
    cache::bytes(id, options)
}

/// Removes a repository from the cache, with all its revisions and files and partial downloads, and nothing else. Returns
/// how many bytes it took; `None` when nothing of it was there.
///
/// # Errors
/// [`Error::Remove`] when a folder cannot be removed.
pub fn remove_cached(id: &HubId, options: &HubOptions) -> Result<Option<u64>, Error> {
    let bytes = cache::bytes(id, options);
    cache::remove(id, options)?;
    Ok(bytes)
}

impl HubOptions {
    /// Reads a model's name as [`HubId::parse`] does; the addresses of pages of [`endpoint`](Self::endpoint) are names too.
    ///
    /// # Errors
    /// [`Error::HubId`]
    pub fn id(&self, text: &str) -> Result<HubId, Error> {
        HubId::parse_at(text, &self.endpoint)
    }
}

/// What a text names: something on disk, or a model of the hub.
enum Named {
    Path(PathBuf),
    Hub(HubId),
}

fn named(model: &str, options: &HubOptions) -> Result<Named, Error> {
    if Path::new(model).exists() {
        return Ok(Named::Path(PathBuf::from(model)));
    }
    let is_path = reads_as_path(model);
    match options.id(model) {
        Ok(id) => Ok(Named::Hub(id)),
        Err(_) if is_path => Err(Error::NoSuchPath { path: PathBuf::from(model) }),
        Err(error) => Err(error),
    }
}

/// Whether a text that names nothing on disk was meant as a path: hub ids have one slash, in the middle. A path to a
/// file that is not there is never asked of the hub, but for one that names a file of a repository in the cache.
fn reads_as_path(model: &str) -> bool {
    if id::is_address(model) {
        return false;
    }
    let name = model.split(['@', ':']).next().unwrap_or(model);
    name.starts_with(['.', '/', '~']) || name.contains('\\') || name.split('/').count() != 2 || name.ends_with('/')
}

fn cannot_download(options: &HubOptions) -> bool {
    options.offline || !cfg!(feature = "hub")
}

fn fetch(id: &HubId, options: &HubOptions, progress: OnDownload<'_>) -> Result<PathBuf, Error> {
    let missing = || cache::find(id, options).map_or_else(cache::everything, |cached| cached.missing);
    if options.offline {
        return Err(Error::Offline { id: id.to_string(), cache: options.cache.clone(), missing: missing() });
    }
    #[cfg(feature = "hub")]
    {
        download::pull(id, options, progress)
    }
    #[cfg(not(feature = "hub"))]
    {
        let _ = progress;
        Err(Error::HubNotCompiled { id: id.to_string(), cache: options.cache.clone(), missing: missing() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(feature = "hub"))]
    #[test]
    fn without_the_feature_the_cache_is_all_there_is() {
        let home = tempfile::tempdir().unwrap();
        let options = HubOptions::from_variables(&|name| (name == "HF_HOME").then(|| home.path().into()));
        let error = resolve("org/name", &options).unwrap_err();
        assert!(matches!(error, Error::HubNotCompiled { .. }), "{error}");
        let folder = options.cache.join("models--org--name/snapshots/0123456789");
        std::fs::create_dir_all(&folder).unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::write(folder.join(file), b"x").unwrap();
        }
        assert_eq!(resolve("org/name@0123456789", &options).unwrap(), folder);
    }

    #[test]
    fn a_repository_is_removed_and_nothing_else() {
        let home = tempfile::tempdir().unwrap();
        let options = HubOptions::from_variables(&|name| (name == "HF_HOME").then(|| home.path().into()));
        let id = HubId::parse("org/name").unwrap();
        assert_eq!(remove_cached(&id, &options).unwrap(), None);
        let write = |path: &str, bytes: usize| {
            let path = options.cache.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, vec![0; bytes]).unwrap();
        };
        write("models--org--name/blobs/one", 100);
        write("models--org--name/blobs/two.incomplete", 20);
        write("models--org--name/refs/main", 3);
        write(".locks/models--org--name/one.lock", 0);
        write("models--org--name-2/blobs/one", 7);
        #[cfg(unix)]
        {
            let snapshot = options.cache.join("models--org--name/snapshots/0123456789");
            std::fs::create_dir_all(&snapshot).unwrap();
            std::os::unix::fs::symlink("../../blobs/one", snapshot.join("model.safetensors")).unwrap();
            // what a link leads to is not the repository's
            write("elsewhere/thesis.txt", 9);
            std::os::unix::fs::symlink("../../../elsewhere", snapshot.join("folder")).unwrap();
        }
        assert_eq!(cached_bytes(&id, &options), Some(123));
        assert_eq!(remove_cached(&id, &options).unwrap(), Some(123));
        assert!(!options.cache.join("models--org--name").exists());
        assert!(!options.cache.join(".locks/models--org--name").exists());
        assert!(options.cache.join("models--org--name-2/blobs/one").exists());
        #[cfg(unix)]
        assert!(options.cache.join("elsewhere/thesis.txt").exists());
    }

    #[test]
    fn paths_and_ids_are_told_apart() {
        for path in ["", ".", "..", "./a", "../a/b", "/a/b", "~/a", "a", "a/b/c", "a\\b", "C:\\a", "C:/a/b", "a/"] {
            assert!(reads_as_path(path), "{path}");
        }
        for id in
            ["google/gemma-2b", "google/gemma-2b@refs/pr/1", "a/b@c", "a/b:Q4_K_M", "https://hub.co/a/b/c", "hf.co/a/b"]
        {
            assert!(!reads_as_path(id), "{id}");
        }
    }
}
