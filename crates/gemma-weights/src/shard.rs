//! Writing one safetensors file without holding its tensors in memory.
//!
//! The header comes first but is known last. So room is left for it before the data of a large file, and filled up with
//! spaces; a small file is copied behind its header at the end. Values of four bytes and of two are collected apart,
//! so that every tensor is aligned to its values, which PyTorch insists on.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use tempfile::NamedTempFile;

use crate::Dtype;
use crate::new_file::draft;

/// Room that is left for a header, the eight bytes of its length included; some thousand tensors need more.
const ROOM: u64 = 256 << 10;
/// Files with less data are copied, so that the room is no notable part of any file.
const LARGE: u64 = 32 << 20;

/// The tensors of a file in the making.
pub(crate) struct Shard {
    metadata: BTreeMap<String, String>,
    four_bytes: Group,
    two_bytes: Group,
}

/// Tensors whose values have the same size, one after the other, in a file that they alone are in, behind the room for
/// a header.
struct Group {
    folder: PathBuf,
    data: Option<NamedTempFile>,
    bytes: u64,
    tensors: Vec<Placed>,
}

/// A tensor and where its data lies within its group.
struct Placed {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    begin: u64,
    end: u64,
}

impl Shard {
    /// An empty file, collected in `folder`.
    pub(crate) fn new(folder: &Path) -> Self {
        // transformers refuses files that do not say for which framework they were written
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        Self { metadata, four_bytes: Group::new(folder), two_bytes: Group::new(folder) }
    }

    /// The same with other metadata.
    pub(crate) fn with_metadata(self, metadata: BTreeMap<String, String>) -> Self {
        Self { metadata, ..self }
    }

    /// Bytes of data so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.four_bytes.bytes + self.two_bytes.bytes
    }

    /// Adds a tensor; `data` has the length that type and shape ask for.
    pub(crate) fn push(&mut self, name: String, dtype: Dtype, shape: Vec<usize>, data: &[u8]) -> io::Result<()> {
        let group = if dtype.bytes() == 4 { &mut self.four_bytes } else { &mut self.two_bytes };
        group.file()?.write_all(data)?;
        let begin = group.bytes;
        group.bytes += data.len() as u64;
        group.tensors.push(Placed { name, dtype, shape, begin, end: group.bytes });
        Ok(())
    }

    /// Writes the file and waits until it is on the disk. Returns the names of its tensors.
    pub(crate) fn finish(mut self, path: &Path) -> io::Result<Vec<String>> {
        // the larger group comes first and stays where it is, unless the other would not be aligned behind it
        let two_first = self.two_bytes.bytes > self.four_bytes.bytes && self.two_bytes.bytes.is_multiple_of(4);
        let header = self.header(two_first)?;
        if self.bytes() < LARGE || header.len() as u64 + 8 > ROOM {
            return self.write(&mut File::create_new(path)?);
        }
        let (first, second) = match two_first {
            true => (&mut self.two_bytes, &mut self.four_bytes),
            false => (&mut self.four_bytes, &mut self.two_bytes),
        };
        second.copy_to(first.file()?)?;
        let mut file = first.data.take().ok_or(io::ErrorKind::NotFound)?;
        file.rewind()?;
        file.write_all(&(ROOM - 8).to_le_bytes())?;
        file.write_all(&header)?;
        file.write_all(&vec![b' '; ROOM as usize - 8 - header.len()])?;
        file.as_file().sync_all()?;
        file.persist_noclobber(path)?;
        Ok(self.names())
    }

    /// The same into a file that is open and empty.
    pub(crate) fn write(mut self, file: &mut File) -> io::Result<Vec<String>> {
        let mut header = self.header(false)?;
        // spaces after the header keep the data aligned to eight bytes, as the format asks
        header.resize(header.len().next_multiple_of(8), b' ');
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        self.four_bytes.copy_to(file)?;
        self.two_bytes.copy_to(file)?;
        file.sync_all()?;
        Ok(self.names())
    }

    fn header(&self, two_first: bool) -> io::Result<Vec<u8>> {
        let groups = [&self.four_bytes, &self.two_bytes];
        let groups = if two_first { [groups[1], groups[0]] } else { groups };
        Ok(serde_json::to_vec(&Header { metadata: &self.metadata, groups })?)
    }

    fn names(self) -> Vec<String> {
        self.four_bytes.tensors.into_iter().chain(self.two_bytes.tensors).map(|tensor| tensor.name).collect()
    }
}

impl Group {
    fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), data: None, bytes: 0, tensors: Vec::new() }
    }

    /// Its file, at the end of the data.
    fn file(&mut self) -> io::Result<&mut File> {
        if self.data.is_none() {
            let mut file = draft(&self.folder)?;
            file.seek(SeekFrom::Start(ROOM))?;
            self.data = Some(file);
        }
        Ok(self.data.as_mut().ok_or(io::ErrorKind::NotFound)?.as_file_mut())
    }

    /// Copies the data to where a file is (by the kernel, without passing through this program, where the system can do
    /// that).
    fn copy_to(&mut self, to: &mut File) -> io::Result<()> {
        if self.bytes > 0 {
            let from = self.file()?;
            from.seek(SeekFrom::Start(ROOM))?;
            io::copy(from, to)?;
        }
        Ok(())
    }
}

/// The header of a shard, in the order of the data.
struct Header<'a> {
    metadata: &'a BTreeMap<String, String>,
    groups: [&'a Group; 2],
}

/// What the header says of one tensor.
#[derive(Serialize)]
struct Entry<'a> {
    dtype: &'static str,
    shape: &'a [usize],
    data_offsets: [u64; 2],
}

impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("__metadata__", self.metadata)?;
        let mut offset = 0;
        for group in self.groups {
            for Placed { name, dtype, shape, begin, end } in &group.tensors {
                let data_offsets = [offset + begin, offset + end];
                map.serialize_entry(name, &Entry { dtype: dtype.safetensors_name(), shape, data_offsets })?;
            }
            offset += group.bytes;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Large files hold what small ones do, whichever group is larger, aligned, and with room for their header.
    #[test]
    fn a_large_file_is_not_copied_and_says_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let values = |len: usize, seed: usize| -> Vec<u8> { (0..len).map(|i| (i * 31 / 7 + seed) as u8).collect() };
        let large = LARGE as usize;
        for (index, (two, four)) in
            [(large, 8), (large + 2, 8), (8, large), (6, large), (large, 0), (0, large), (2, 4)].into_iter().enumerate()
        {
            let mut shard = Shard::new(folder.path());
            let mut given = Vec::new();
            for (name, dtype, len) in [("a", Dtype::Bf16, two), ("b", Dtype::F32, four), ("c", Dtype::F16, 2)] {
                let data = values(len, given.len());
                shard.push(name.to_owned(), dtype, vec![len / dtype.bytes()], &data).unwrap();
                given.push((name, dtype, data));
            }
            let path = folder.path().join(index.to_string());
            let mut names = shard.finish(&path).unwrap();
            names.sort();
            assert_eq!(names, ["a", "b", "c"]);
            let bytes = std::fs::read(&path).unwrap();
            let is_large = two.max(four) >= large;
            assert_eq!(bytes.len() as u64 > ROOM, is_large, "{two} {four}");
            let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            for (name, dtype, data) in given {
                let view = theirs.tensor(name).unwrap();
                assert!(view.data() == data, "{two} {four} {name}");
                let offset = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
                assert_eq!(offset % dtype.bytes(), 0, "{two} {four} {name} is aligned");
            }
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), index + 1, "nothing else is left");
        }
    }
}
