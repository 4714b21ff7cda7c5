//! One file of the hub: fetched, resumed and checked.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::http::{Announced, Client, header, misunderstood, reader};
use super::retry::Attempt;
use crate::Error;

/// Bytes read from the network at a time.
const PIECE: usize = 256 << 10;
/// A slower hub than this is as good as a silent one, in bytes per second.
const SLOWEST: u64 = 1 << 10;

/// The hash that an ETag of the hub is: the git hash of a small file, the sha256 of a large one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hash {
    /// sha1 of `blob LENGTH`, a zero byte and the content.
    Git,
    /// sha256 of the content.
    Sha256,
}

impl Hash {
    /// The kind of hash that `etag` is; `None` when it is the word of some other server.
    pub(super) fn of(etag: &str) -> Option<Self> {
        match (etag.len(), etag.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            (40, true) => Some(Self::Git),
            (64, true) => Some(Self::Sha256),
            _ => None,
        }
    }
}

/// Both hashes of a content of known length, as it arrives.
#[derive(Clone)]
struct Hasher {
    git: Sha1,
    sha256: Sha256,
}

impl Hasher {
    fn new(size: u64) -> Self {
        Self { git: Sha1::new_with_prefix(format!("blob {size}\0")), sha256: Sha256::new() }
    }

    fn update(&mut self, bytes: &[u8], hash: Option<Hash>) {
        match hash {
            Some(Hash::Git) => self.git.update(bytes),
            _ => self.sha256.update(bytes),
        }
    }

    /// The hash in hexadecimal digits: sha256 where the ETag is none.
    fn finish(&self, hash: Option<Hash>) -> String {
        match hash {
            Some(Hash::Git) => format!("{:x}", self.git.clone().finalize()),
            _ => format!("{:x}", self.sha256.clone().finalize()),
        }
    }
}

/// Whether a file has the hash that its name in the cache says. `None` for a name that is no hash.
pub(super) fn is_sound(path: &Path, etag: &str) -> Option<bool> {
    let hash = Hash::of(etag)?;
    let check = || -> io::Result<bool> {
        let mut file = File::open(path)?;
        let mut hasher = Hasher::new(file.metadata()?.len());
        let mut piece = vec![0; PIECE];
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(hasher.finish(Some(hash)).eq_ignore_ascii_case(etag)),
                read => hasher.update(&piece[..read], Some(hash)),
            }
        }
    };
    Some(check().unwrap_or(false))
}

/// Downloads a file to `path`, going on where an earlier download stopped, and checks it. Returns the name under which
/// the cache keeps its content: the hash that the hub announces, or the sha256 where it announces none, so that two
/// contents never share a name.
pub(super) fn fetch(
    client: &Client<'_>,
    name: &str,
    url: &str,
    announced: &Announced,
    path: &Path,
    report: &mut dyn FnMut(u64),
) -> Result<String, Error> {
    let unwritable = write_error(path);
    // what can be checked can be resumed
    let hash = Hash::of(&announced.etag);
    let mut partial = Partial::open(path, announced.size, hash).map_err(&unwritable)?;
    if hash.is_none() || partial.len > announced.size {
        partial.restart().map_err(&unwritable)?;
    }
    let mut resumed = partial.len > 0;
    loop {
        complete(client, url, &mut partial, announced.size, report)?;
        let found = partial.hasher.finish(hash);
        if hash.is_none() || found.eq_ignore_ascii_case(&announced.etag) {
            partial.file.sync_all().map_err(&unwritable)?;
            return Ok(if hash.is_some() { announced.etag.clone() } else { found });
        }
        partial.restart().map_err(&unwritable)?;
        if !resumed {
            fs::remove_file(path).map_err(&unwritable)?;
            return Err(Error::HubHash { file: name.to_owned(), expected: announced.etag.clone(), found });
        }
        // what an earlier process left may have been the damaged part
        resumed = false;
    }
}

/// Fetches until the file has its size. Interruptions are resumed as long as the file grows beyond what it ever had:
/// a hub that sends the same part again and again is not asked for ever.
fn complete(
    client: &Client<'_>,
    url: &str,
    partial: &mut Partial,
    size: u64,
    report: &mut dyn FnMut(u64),
) -> Result<(), Error> {
    let (mut failures, mut furthest) = (0, partial.len);
    while partial.len < size {
        report(partial.len);
        match go_on(client, url, partial, report) {
            Ok(()) => {}
            Err(Attempt::Stop(error)) => return Err(error),
            Err(Attempt::Again { error, pause }) => {
                failures = if partial.len > furthest { 1 } else { failures + 1 };
                furthest = furthest.max(partial.len);
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
fn go_on(client: &Client<'_>, url: &str, partial: &mut Partial, report: &mut dyn FnMut(u64)) -> Result<(), Attempt> {
    let (path, size) = (partial.path.clone(), partial.size);
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
    let plain = header(reply.headers(), "content-encoding").is_none_or(|word| word.eq_ignore_ascii_case("identity"));
    let sends = header(reply.headers(), "content-length").and_then(|bytes| bytes.parse::<u64>().ok());
    if let Some(sends) = sends.filter(|sends| plain && *sends != size - partial.len) {
        let why = format!("it announced {} bytes, and sends {sends}", size - partial.len);
        return Err(misunderstood(url, why).into());
    }
    let mut body = reader(reply);
    let mut piece = vec![0; PIECE];
    let mut speed = Speed::new(client.patience());
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
        if speed.is_too_slow(read as u64) {
            return Err(client.broken(url, "it sends less than a kilobyte a second".to_owned()));
        }
    }
    Ok(())
}

/// How much arrives in a stretch of time.
struct Speed {
    stretch: Duration,
    since: Instant,
    bytes: u64,
}

impl Speed {
    fn new(stretch: Duration) -> Self {
        Self { stretch, since: Instant::now(), bytes: 0 }
    }

    /// Counts bytes; true when the stretch is over and too few came in it.
    fn is_too_slow(&mut self, bytes: u64) -> bool {
        self.bytes += bytes;
        let took = self.since.elapsed();
        if took < self.stretch {
            return false;
        }
        let slow = self.bytes < took.as_secs().max(1) * SLOWEST;
        *self = Self::new(self.stretch);
        slow
    }
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
    size: u64,
    hash: Option<Hash>,
    hasher: Hasher,
}

impl Partial {
    /// Opens or makes the file, which will have `size` bytes, and hashes what it holds.
    fn open(path: &Path, size: u64, hash: Option<Hash>) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut hasher = Hasher::new(size);
        let mut piece = vec![0; PIECE];
        let mut len = 0;
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(Self { path: path.to_owned(), file, len, size, hash, hasher }),
                read => {
                    hasher.update(&piece[..read], hash);
                    len += read as u64;
                }
            }
        }
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.len = 0;
        self.hasher = Hasher::new(self.size);
        Ok(())
    }

    fn append(&mut self, piece: &[u8]) -> io::Result<()> {
        self.file.write_all(piece)?;
        self.hasher.update(piece, self.hash);
        self.len += piece.len() as u64;
        Ok(())
    }
}

/// An error of the cache's folder.
pub(super) fn write_error(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    move |cause| Error::Cache { path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_must_begin_where_the_file_ends() {
        assert!(starts_at("bytes 5-9/10", 5, 10));
        assert!(starts_at("bytes 5-9/*", 5, 10));
        for range in ["bytes 0-9/10", "bytes 5-9/11", "bytes 5-9", "5-9/10", "bytes */10", ""] {
            assert!(!starts_at(range, 5, 10), "{range}");
        }
    }

    #[test]
    fn the_hashes_are_those_of_git_and_of_the_store() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "hello\n").unwrap();
        // `git hash-object` and `sha256sum`
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        for (etag, sound) in [(git, Some(true)), (sha256, Some(true)), (&"0".repeat(40), Some(false)), ("abc", None)] {
            assert_eq!(is_sound(&path, etag), sound, "{etag}");
        }
        assert_eq!(is_sound(&folder.path().join("none"), git), Some(false));
    }

    #[test]
    fn a_trickle_is_noticed() {
        let mut speed = Speed::new(Duration::ZERO);
        assert!(speed.is_too_slow(10));
        assert!(!speed.is_too_slow(1 << 20));
        assert!(!Speed::new(Duration::from_secs(60)).is_too_slow(1));
    }
}
