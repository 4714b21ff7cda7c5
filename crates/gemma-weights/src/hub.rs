//! Models by name: `org/name` or `org/name@revision`, found in the standard Hugging Face cache and, with the feature
//! `hub`, downloaded into it.
//!
//! The cache has the layout of the Python library `huggingface_hub`, so that models are shared with it: blobs named by
//! their hash, snapshots of links to them, and refs that say which commit a branch had.

mod cache;
#[cfg(feature = "hub")]
mod download;
#[cfg(feature = "hub")]
mod http;
mod id;
mod options;

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

/// The folder of a model: `model` itself where that is a path, else the snapshot of that hub id, downloaded if it is
/// not in the cache. A model that is in the cache costs no request, so a branch is not looked up again: [`pull`] does
/// that.
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
    if Path::new(model).exists() {
        return Ok(PathBuf::from(model));
    }
    if reads_as_path(model) {
        return Err(Error::NoSuchPath { path: PathBuf::from(model) });
    }
    let id = HubId::parse(model)?;
    let cached = cache::find(&id, options);
    if let Some(cached) = &cached
        && (cached.missing.is_empty() || (cannot_download(options) && cached.has_weights()))
    {
        return Ok(cached.folder.clone());
    }
    match (fetch(&id, options, progress), cached) {
        // better a model without its tokenizer files than none: whoever needs them will say so
        (Err(Error::HubConnection { .. }), Some(cached)) if cached.has_weights() => Ok(cached.folder),
        (fetched, _) => fetched,
    }
}

/// Downloads what is missing of a model's newest commit (of the revision in its id) and returns its folder.
///
/// Interrupted downloads are resumed, also by a later process; files are checked against the hash that the hub
/// announces; two processes may pull the same model at the same time.
///
/// # Errors
/// [`Error::HubId`], [`Error::Offline`], [`Error::HubNotCompiled`], [`Error::Gated`], [`Error::NoSuchModel`],
/// [`Error::NoSuchRevision`], [`Error::NoHubWeights`], [`Error::HubStatus`], [`Error::HubAnswer`],
/// [`Error::HubConnection`], [`Error::HubHash`], or [`Error::Write`] when the cache cannot be written.
pub fn pull(id: &str, options: &HubOptions, progress: OnDownload<'_>) -> Result<PathBuf, Error> {
    fetch(&HubId::parse(id)?, options, progress)
}

/// The folder of a model in the cache, if its configuration and weights are there. Makes no request.
pub fn cached(id: &HubId, options: &HubOptions) -> Option<PathBuf> {
    cache::find(id, options).filter(cache::Cached::has_weights).map(|cached| cached.folder)
}

/// Whether a text that names nothing on disk was meant as a path: hub ids have one slash, in the middle.
fn reads_as_path(model: &str) -> bool {
    let name = model.split_once('@').map_or(model, |(name, _)| name);
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
            std::fs::write(folder.join(file), b"").unwrap();
        }
        assert_eq!(resolve("org/name@0123456789", &options).unwrap(), folder);
    }

    #[test]
    fn paths_and_ids_are_told_apart() {
        for path in ["", ".", "..", "./a", "../a/b", "/a/b", "~/a", "a", "a/b/c", "a\\b", "C:\\a", "a/"] {
            assert!(reads_as_path(path), "{path}");
        }
        for id in ["google/gemma-2b", "google/gemma-2b@refs/pr/1", "a/b@c"] {
            assert!(!reads_as_path(id), "{id}");
        }
    }
}
