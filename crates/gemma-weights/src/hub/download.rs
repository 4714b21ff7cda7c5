//! Downloading a model into the cache: what is needed, each file once, resumed and checked.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::cache::{CONFIG, Repository, all_parts};
use super::fetch::{Hash, fetch, is_sound, write_error};
use super::http::{Announced, Client};
use super::select::{self, ADAPTER_CONFIG, ADAPTER_WEIGHTS, Weights};
use super::{Download, HubId, HubOptions, OnDownload};
use crate::Error;
use crate::checkpoint::{INDEX_FILE, SINGLE_FILE};

/// Up to this size a file that is in the cache is checked again by `pull`, in bytes.
const CHECKED_AGAIN: u64 = 64 << 20;
/// The largest `adapter_config.json` that is read, in bytes.
const ADAPTER_CONFIG_LIMIT: u64 = 1 << 20;

/// Downloads what the cache lacks of the revision's newest commit. See [`super::pull`].
pub(super) fn pull(id: &HubId, options: &HubOptions, progress: OnDownload<'_>) -> Result<PathBuf, Error> {
    let revision = Revision::of(id, options)?;
    let names = &revision.names;
    let needs = |name: &str| match names.iter().any(|found| found == name) {
        true => Ok(()),
        false => Err(Error::HubIncomplete { id: id.repository(), lacking: name.to_owned() }),
    };
    // the weights come last, so that a model that has them is whole
    let (wanted, file) = match select::weights(names, id.choice()) {
        Weights::Single => {
            needs(CONFIG)?;
            ([select::beside(names), vec![SINGLE_FILE.to_owned()]].concat(), None)
        }
        Weights::Sharded => {
            needs(CONFIG)?;
            let index = vec![INDEX_FILE.to_owned()];
            revision.fill(&index, &mut |_| {})?;
            ([select::beside(names), index, revision.shards()?].concat(), None)
        }
        // a configuration beside the file says what the file does not
        Weights::Gguf(parts) => {
            all_parts(&parts[0]).iter().try_for_each(|part| needs(part))?;
            let config = names.iter().filter(|name| *name == CONFIG).cloned();
            (config.chain(parts.iter().cloned()).collect(), parts.into_iter().next())
        }
        Weights::Undecided(files) => {
            let choice = id.choice().map(str::to_owned);
            return Err(Error::HubChoice { id: id.repository(), choice, files });
        }
        Weights::Adapter => return Err(revision.is_an_adapter()),
        Weights::None(found) => return Err(Error::NoHubWeights { id: id.repository(), found }),
    };
    revision.fill(&wanted, progress)?;
    revision.note()?;
    Ok(file.map_or_else(|| revision.snapshot.clone(), |file| revision.snapshot.join(file)))
}

/// Downloads the two files of a LoRA adapter. See [`super::resolve_adapter`].
pub(super) fn pull_adapter(id: &HubId, options: &HubOptions, progress: OnDownload<'_>) -> Result<PathBuf, Error> {
    let revision = Revision::of(id, options)?;
    let wanted = [ADAPTER_CONFIG, ADAPTER_WEIGHTS].map(str::to_owned);
    if let Some(lacking) = wanted.iter().find(|name| !revision.names.contains(name)) {
        return Err(Error::NoHubAdapter { id: id.repository(), lacking: lacking.clone() });
    }
    revision.fill(&wanted, progress)?;
    revision.note()?;
    Ok(revision.snapshot)
}

/// A commit of a repository, on the hub and in the cache.
struct Revision<'a> {
    id: &'a HubId,
    options: &'a HubOptions,
    client: Client<'a>,
    repository: Repository,
    commit: String,
    names: Vec<String>,
    snapshot: PathBuf,
}

/// One file to have.
struct Wanted<'n> {
    name: &'n str,
    /// `None` when the snapshot has it already.
    announced: Option<Announced>,
    size: u64,
}

impl<'a> Revision<'a> {
    fn of(id: &'a HubId, options: &'a HubOptions) -> Result<Self, Error> {
        let client = Client::new(id, options)?;
        let listing = client.listing()?;
        let repository = Repository::new(id, options);
        let snapshot = repository.snapshot(&listing.commit);
        Ok(Self { id, options, client, repository, commit: listing.commit, names: listing.files, snapshot })
    }

    /// Makes sure that the snapshot holds these files.
    fn fill(&self, names: &[String], progress: OnDownload<'_>) -> Result<(), Error> {
        let mut files = Vec::new();
        for name in names {
            files.push(match kept(&self.snapshot.join(name)) {
                Some(size) => Wanted { name, announced: None, size },
                None => {
                    let announced = self.client.announced(&self.client.file_url(&self.commit, name))?;
                    Wanted { name, size: announced.size, announced: Some(announced) }
                }
            });
        }
        // what a hub says may be any number
        let all_total = files.iter().fold(0u64, |sum, file| sum.saturating_add(file.size));
        let mut all_before = 0u64;
        for Wanted { name, announced, size } in &files {
            let mut report = |done: u64| {
                let all_done = all_before.saturating_add(done);
                progress(Download { file: name, done, total: *size, all_done, all_total });
            };
            if let Some(announced) = announced {
                let locks = self.options.cache.join(".locks").join(self.id.folder());
                let place = Place { locks, blobs: self.repository.blobs(), snapshot: &self.snapshot, name };
                place.fill(&self.client, &self.client.file_url(&self.commit, name), announced, &mut report)?;
            }
            report(*size);
            all_before = all_before.saturating_add(*size);
        }
        Ok(())
    }

    /// The shards that the index names, which the repository has to hold.
    fn shards(&self) -> Result<Vec<String>, Error> {
        let unusable = || Error::NoHubWeights { id: self.id.repository(), found: vec![INDEX_FILE.to_owned()] };
        let shards = select::shards(&self.snapshot, INDEX_FILE).ok_or_else(unusable)?;
        match shards.iter().find(|shard| !self.names.contains(shard)) {
            Some(shard) => Err(Error::ShardMissing { index: self.snapshot.join(INDEX_FILE), shard: shard.clone() }),
            None => Ok(shards),
        }
    }

    /// Notes which commit the revision has; last, so that it never names a snapshot that is not whole. A cache that knows
    /// it already is not written to: it may be one that cannot be.
    fn note(&self) -> Result<(), Error> {
        let reference = self.repository.reference(self.id.revision());
        if self.id.revision() == self.commit || fs::read(&reference).is_ok_and(|known| known == self.commit.as_bytes())
        {
            return Ok(());
        }
        write_reference(&reference, &self.commit).map_err(write_error(&reference))
    }

    /// The error for a repository that holds an adapter, with the model that it belongs to.
    fn is_an_adapter(&self) -> Error {
        let config = self.client.file_url(&self.commit, ADAPTER_CONFIG);
        let config = self.client.small(&config, ADAPTER_CONFIG_LIMIT).ok();
        let config: Option<serde_json::Value> = config.and_then(|text| serde_json::from_slice(&text).ok());
        let base = config.and_then(|config| config.get("base_model_name_or_path")?.as_str().map(str::to_owned));
        Error::HubAdapter { id: self.id.repository(), base: base.unwrap_or_else(|| "its base model".to_owned()) }
    }
}

/// The size of a file that the snapshot has: not empty, and where that is quickly seen, with the content that its name
/// in the cache says. `None` for one that has to be fetched.
fn kept(pointer: &Path) -> Option<u64> {
    let size = fs::metadata(pointer).ok().filter(fs::Metadata::is_file)?.len();
    let blob = fs::read_link(pointer).ok();
    let etag = blob.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    let spoilt = size <= CHECKED_AGAIN && etag.is_some_and(|etag| is_sound(pointer, etag) == Some(false));
    (size > 0 && !spoilt).then_some(size)
}

/// Where a file belongs in the cache.
struct Place<'s> {
    locks: PathBuf,
    blobs: PathBuf,
    snapshot: &'s Path,
    name: &'s str,
}

impl Place<'_> {
    /// Makes sure that the blob is there and that the snapshot points to it.
    fn fill(
        &self,
        client: &Client<'_>,
        url: &str,
        announced: &Announced,
        report: &mut dyn FnMut(u64),
    ) -> Result<(), Error> {
        let pointer = self.snapshot.join(self.name);
        let hash = Hash::of(&announced.etag);
        // the word of another server may be the same for all files
        let key = match hash {
            Some(_) => announced.etag.clone(),
            None => format!("{:x}", Sha256::digest(format!("{} {}", self.name, announced.etag))),
        };
        // held until the end: another process that wants the same file waits, and then finds it
        let _lock = self.lock(&key)?;
        if kept(&pointer).is_some() {
            return Ok(());
        }
        let mut blob = self.blobs.join(&key);
        let size = fs::metadata(&blob).ok().filter(|_| hash.is_some()).map(|metadata| metadata.len());
        let spoilt = || announced.size <= CHECKED_AGAIN && is_sound(&blob, &key) == Some(false);
        if size != Some(announced.size) || spoilt() {
            fs::create_dir_all(&self.blobs).map_err(write_error(&self.blobs))?;
            let partial = self.blobs.join(format!("{key}.incomplete"));
            let content = fetch(client, self.name, url, announced, &partial, report)?;
            blob = self.blobs.join(content);
            fs::rename(&partial, &blob).map_err(write_error(&blob))?;
        }
        point(&pointer, self.name, &blob, symlink).map_err(write_error(&pointer))
    }

    /// The lock of a blob, which is where `huggingface_hub` has it. File systems without locks do without: two processes
    /// could then spoil each other's download, which the hash shows.
    fn lock(&self, etag: &str) -> Result<File, Error> {
        let path = self.locks.join(format!("{etag}.lock"));
        let lock = || {
            fs::create_dir_all(&self.locks)?;
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
            match file.lock() {
                Err(cause) if cause.kind() != io::ErrorKind::Unsupported => Err(cause),
                _ => Ok(file),
            }
        };
        lock().map_err(write_error(&path))
    }
}

/// Makes `pointer`, the file `name` of a snapshot, a link to `blob`, or a copy where links are not allowed.
fn point(pointer: &Path, name: &str, blob: &Path, link: impl Fn(&Path, &Path) -> io::Result<()>) -> io::Result<()> {
    let folder = pointer.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(folder)?;
    match fs::remove_file(pointer) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
        _ => {}
    }
    // relative, so that the cache can be moved: snapshots/COMMIT/file -> ../../blobs/ETAG
    let mut relative: PathBuf = name.split('/').skip(1).map(|_| "..").collect();
    relative.push("../../blobs");
    relative.push(blob.file_name().ok_or(io::ErrorKind::InvalidInput)?);
    if link(&relative, pointer).is_ok() || fs::hard_link(blob, pointer).is_ok() {
        return Ok(());
    }
    let draft = tempfile::NamedTempFile::new_in(folder)?;
    fs::copy(blob, draft.path())?;
    draft.persist(pointer)?;
    Ok(())
}

fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(target, link)
    }
    #[cfg(windows)]
    {
        std::os::windows::fs::symlink_file(target, link)
    }
    #[cfg(not(any(unix, windows)))]
    {
        let _ = (target, link);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Notes the commit of a revision.
fn write_reference(path: &Path, commit: &str) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(folder)?;
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // a cache may be shared with other users, as far as the umask lets them
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let mut draft = builder.tempfile_in(folder)?;
    draft.write_all(commit.as_bytes())?;
    draft.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_links_are_not_allowed_the_file_is_there_all_the_same() {
        let cache = tempfile::tempdir().unwrap();
        let blob = cache.path().join("blobs/abc");
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(&blob, b"content").unwrap();
        for name in ["config.json", "2_Dense/config.json"] {
            let pointer = cache.path().join("snapshots/123").join(name);
            for _ in 0..2 {
                point(&pointer, name, &blob, |_, _| Err(io::ErrorKind::PermissionDenied.into())).unwrap();
                assert_eq!(fs::read(&pointer).unwrap(), b"content");
                assert!(!fs::symlink_metadata(&pointer).unwrap().is_symlink());
            }
            point(&pointer, name, &blob, symlink).unwrap();
            assert_eq!(fs::read(&pointer).unwrap(), b"content");
        }
    }

    #[test]
    fn an_empty_or_spoilt_file_is_not_kept() {
        let cache = tempfile::tempdir().unwrap();
        let pointer = cache.path().join("snapshots/123/config.json");
        assert_eq!(kept(&pointer), None);
        // `git hash-object` of "hello\n"
        let blob = cache.path().join("blobs/ce013625030ba8dba906f756967f9e9ca394464a");
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        for (content, size) in [("hello\n", Some(6)), ("", None), ("other\n", None)] {
            fs::write(&blob, content).unwrap();
            point(&pointer, "config.json", &blob, symlink).unwrap();
            #[cfg(unix)]
            assert_eq!(kept(&pointer), size, "{content:?}");
        }
    }
}
