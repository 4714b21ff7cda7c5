//! Memory maps: a file as bytes, without reading it.

use bytes::Bytes;
use std::{fs::File, io, path::Path};

/// Maps a file into memory, read-only. Pages are read when they are touched, and slices of the result
/// (`Bytes::slice`) borrow the map for as long as they live.
///
/// The file must not be shortened while it is mapped: touching a page that no longer exists ends the process.
/// Model files are written once and replaced by renaming, which leaves existing maps intact.
///
/// # Errors
/// When the file cannot be opened or mapped.
pub fn map_file(path: &Path) -> io::Result<Bytes> {
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new()); // an empty range cannot be mapped
    }
    // SAFETY: the map is read-only and private. A concurrent truncation raises SIGBUS, as documented above; it
    // cannot make the slice alias Rust memory.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    Ok(Bytes::from_owner(map))
}
