//! Downloading a model into the cache: what is needed, each file once, resumed and checked.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::cache::Repository;
use super::http::{Announced, Attempt, Client, header, misunderstood, reader};
use super::{Download, HubId, HubOptions, OnDownload};
use crate::Error;

/// The files beside the weights that the models read, or that a saved copy passes on.
const WANTED: [&str; 11] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "model.safetensors.index.json",
];
/// Bytes read from the network at a time.
const PIECE: usize = 256 << 10;

/// One file to have.
struct Wanted {
    name: String,
    url: String,
    /// `None` when the snapshot has it already.
    announced: Option<Announced>,
    size: u64,
}

/// Downloads what the cache lacks of the revision's newest commit. See [`super::pull`].
pub(super) fn pull(id: &HubId, options: &HubOptions, progress: OnDownload<'_>) -> Result<PathBuf, Error> {
    let client = Client::new(id, options);
    let listing = client.listing()?;
    let names = select(listing.files);
    if !names.iter().any(|name| name.ends_with(".safetensors")) {
        return Err(Error::NoHubWeights { id: id.repository() });
    }
    let repository = Repository::new(id, options);
    let snapshot = repository.snapshot(&listing.commit);
    let mut files = Vec::new();
    for name in names {
        let url = client.file_url(&listing.commit, &name);
        files.push(match fs::metadata(snapshot.join(&name)) {
            Ok(metadata) if metadata.is_file() => Wanted { name, url, announced: None, size: metadata.len() },
            _ => {
                let announced = client.announced(&url)?;
                Wanted { name, url, size: announced.size, announced: Some(announced) }
            }
        });
    }

    let all_total = files.iter().map(|file| file.size).sum();
    let mut all_before = 0;
    for file in &files {
        let mut report = |done: u64| {
            progress(Download { file: &file.name, done, total: file.size, all_done: all_before + done, all_total });
        };
        if let Some(announced) = &file.announced {
            let locks = options.cache.join(".locks").join(id.folder());
            let place = Place { locks, blobs: repository.blobs(), pointer: snapshot.join(&file.name) };
            place.fill(&client, file, announced, &mut report)?;
        }
        report(file.size);
        all_before += file.size;
    }
    // last, so that the revision never names a snapshot that is not whole
    if id.revision() != listing.commit {
        let reference = repository.reference(id.revision());
        write_reference(&reference, &listing.commit).map_err(write_error(&reference))?;
    }
    Ok(snapshot)
}

/// Of a repository's files those that are needed; the weights come last, so that a model that has them is whole.
fn select(files: Vec<String>) -> Vec<String> {
    let (weights, others): (Vec<_>, Vec<_>) = files.into_iter().partition(|name| name.ends_with(".safetensors"));
    let others = others.into_iter().filter(|name| WANTED.contains(&name.as_str()));
    others.chain(weights).collect()
}

/// Where a file belongs in the cache.
struct Place {
    locks: PathBuf,
    blobs: PathBuf,
    pointer: PathBuf,
}

impl Place {
    /// Makes sure that the blob is there and that the snapshot points to it.
    fn fill(
        &self,
        client: &Client<'_>,
        file: &Wanted,
        announced: &Announced,
        report: &mut dyn FnMut(u64),
    ) -> Result<(), Error> {
        // held until the end: another process that wants the same file waits, and then finds it
        let _lock = self.lock(&announced.etag)?;
        if self.pointer.is_file() {
            return Ok(());
        }
        let blob = self.blobs.join(&announced.etag);
        if !fs::metadata(&blob).is_ok_and(|metadata| metadata.len() == announced.size) {
            fs::create_dir_all(&self.blobs).map_err(write_error(&self.blobs))?;
            let partial = self.blobs.join(format!("{}.incomplete", announced.etag));
            fetch(client, file, announced, &partial, report)?;
            fs::rename(&partial, &blob).map_err(write_error(&blob))?;
        }
        point(&self.pointer, &blob, symlink).map_err(write_error(&self.pointer))
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

/// Downloads a file to `path`, going on where an earlier download stopped, and checks it.
fn fetch(
    client: &Client<'_>,
    file: &Wanted,
    announced: &Announced,
    path: &Path,
    report: &mut dyn FnMut(u64),
) -> Result<(), Error> {
    let unwritable = write_error(path);
    // a sha256: the only kind of name that can be checked, and so the only kind of file that is resumed
    let hash = Some(&announced.etag).filter(|etag| etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit()));
    let mut partial = Partial::open(path).map_err(&unwritable)?;
    if hash.is_none() || partial.len > announced.size {
        partial.restart().map_err(&unwritable)?;
    }
    let mut resumed = partial.len > 0;
    loop {
        complete(client, &file.url, &mut partial, announced.size, report)?;
        let found = format!("{:x}", partial.hasher.clone().finalize());
        match hash {
            Some(expected) if !expected.eq_ignore_ascii_case(&found) => {
                partial.restart().map_err(&unwritable)?;
                if !resumed {
                    fs::remove_file(path).map_err(&unwritable)?;
                    return Err(Error::HubHash { file: file.name.clone(), expected: expected.clone(), found });
                }
                // what an earlier process left may have been the damaged part
                resumed = false;
            }
            _ => return partial.file.sync_all().map_err(unwritable),
        }
    }
}

/// Fetches until the file has its size; interruptions are resumed as long as the file grows.
fn complete(
    client: &Client<'_>,
    url: &str,
    partial: &mut Partial,
    size: u64,
    report: &mut dyn FnMut(u64),
) -> Result<(), Error> {
    let mut failures = 0;
    while partial.len < size {
        let before = partial.len;
        report(before);
        match go_on(client, url, partial, size, report) {
            Ok(()) => {}
            Err(Attempt::Stop(error)) => return Err(error),
            Err(Attempt::Again { error, pause }) => {
                failures = if partial.len > before { 1 } else { failures + 1 };
                if failures >= client.attempts() {
                    return Err(error);
                }
                client.pause(failures, pause);
            }
        }
    }
    Ok(())
}

/// One request for the rest of a file.
fn go_on(
    client: &Client<'_>,
    url: &str,
    partial: &mut Partial,
    size: u64,
    report: &mut dyn FnMut(u64),
) -> Result<(), Attempt> {
    let path = partial.path.clone();
    let unwritable = write_error(&path);
    let reply = client.get(url, partial.len)?;
    let goes_on = reply.status() == 206
        && header(reply.headers(), "content-range").is_some_and(|range| starts_at(range, partial.len, size));
    if !goes_on {
        // the server does not resume (200), or has nothing at that place (416), or sends another place
        partial.restart().map_err(&unwritable)?;
        if reply.status() != 200 {
            return Err(client.broken(url, "the hub resumes at the wrong place".to_owned()));
        }
    }
    let mut body = reader(reply);
    let mut piece = vec![0; PIECE];
    while partial.len < size {
        let read = body.read(&mut piece).map_err(|cause| client.broken(url, cause.to_string()))?;
        if read == 0 {
            return Err(client.broken(url, "the connection was closed early".to_owned()));
        }
        if partial.len + read as u64 > size {
            partial.restart().map_err(&unwritable)?;
            return Err(misunderstood(url, "it sends more than it announced".to_owned()).into());
        }
        partial.append(&piece[..read]).map_err(&unwritable)?;
        report(partial.len);
    }
    Ok(())
}

/// Whether a `Content-Range: bytes 5-9/10` begins at `from` in a file of `size` bytes.
fn starts_at(range: &str, from: u64, size: u64) -> bool {
    let parts = || {
        let (extent, total) = range.strip_prefix("bytes ")?.split_once('/')?;
        let start: u64 = extent.split_once('-')?.0.trim().parse().ok()?;
        Some(start == from && (total == "*" || total.parse() == Ok(size)))
    };
    parts().unwrap_or(false)
}

/// A file that is partly here, and the hash of that part.
struct Partial {
    path: PathBuf,
    file: File,
    len: u64,
    hasher: Sha256,
}

impl Partial {
    /// Opens or makes the file and hashes what it holds.
    fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut hasher = Sha256::new();
        let mut piece = vec![0; PIECE];
        let mut len = 0;
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(Self { path: path.to_owned(), file, len, hasher }),
                read => {
                    hasher.update(&piece[..read]);
                    len += read as u64;
                }
            }
        }
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.len = 0;
        self.hasher = Sha256::new();
        Ok(())
    }

    fn append(&mut self, piece: &[u8]) -> io::Result<()> {
        self.file.write_all(piece)?;
        self.hasher.update(piece);
        self.len += piece.len() as u64;
        Ok(())
    }
}

/// Makes `pointer` a link to `blob`, or a copy where links are not allowed.
fn point(pointer: &Path, blob: &Path, link: impl Fn(&Path, &Path) -> io::Result<()>) -> io::Result<()> {
    let folder = pointer.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(folder)?;
    match fs::remove_file(pointer) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
        _ => {}
    }
    // relative, so that the cache can be moved: snapshots/COMMIT/file -> ../../blobs/ETAG
    let relative = Path::new("../../blobs").join(blob.file_name().ok_or(io::ErrorKind::InvalidInput)?);
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

fn write_error(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    move |cause| Error::Write { path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_models_do_not_read_is_not_fetched() {
        let files = [
            "model-00001-of-00002.safetensors",
            "README.md",
            "config.json",
            "gemma-2b.gguf",
            "pytorch_model.bin",
            "tokenizer.json",
            "model.safetensors.index.json",
            "tokenizer.model",
            "model-00002-of-00002.safetensors",
        ];
        assert_eq!(
            select(files.map(str::to_owned).to_vec()),
            [
                "config.json",
                "tokenizer.json",
                "model.safetensors.index.json",
                "tokenizer.model",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
            ]
        );
    }

    #[test]
    fn a_range_must_begin_where_the_file_ends() {
        assert!(starts_at("bytes 5-9/10", 5, 10));
        assert!(starts_at("bytes 5-9/*", 5, 10));
        for range in ["bytes 0-9/10", "bytes 5-9/11", "bytes 5-9", "5-9/10", "bytes */10", ""] {
            assert!(!starts_at(range, 5, 10), "{range}");
        }
    }

    #[test]
    fn where_links_are_not_allowed_the_file_is_there_all_the_same() {
        let cache = tempfile::tempdir().unwrap();
        let blob = cache.path().join("blobs/abc");
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(&blob, b"content").unwrap();
        let pointer = cache.path().join("snapshots/123/config.json");
        for _ in 0..2 {
            point(&pointer, &blob, |_, _| Err(io::ErrorKind::PermissionDenied.into())).unwrap();
            assert_eq!(fs::read(&pointer).unwrap(), b"content");
            assert!(!fs::symlink_metadata(&pointer).unwrap().is_symlink());
        }
        point(&pointer, &blob, symlink).unwrap();
        assert_eq!(fs::read(&pointer).unwrap(), b"content");
    }
}
