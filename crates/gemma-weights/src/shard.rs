//! Writing one safetensors file without holding its tensors in memory.
//!
//! The header comes first but is known last, so the data of a file is collected in unnamed temporary files and
//! copied behind the header at the end (by the kernel, without passing through this program, where the system can
//! do that). Values of four bytes are collected apart and come first: then every tensor is aligned to its values,
//! which PyTorch insists on.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::Path;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::Dtype;

/// The tensors of a file in the making.
pub(crate) struct Shard {
    metadata: BTreeMap<String, String>,
    four_bytes: Group,
    two_bytes: Group,
}

/// Tensors whose values have the same size, one after the other.
struct Group {
    data: File,
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
    pub(crate) fn new(folder: &Path) -> io::Result<Self> {
        // transformers refuses files that do not say for which framework they were written
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        Ok(Self { metadata, four_bytes: Group::new(folder)?, two_bytes: Group::new(folder)? })
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
        group.data.write_all(data)?;
        let begin = group.bytes;
        group.bytes += data.len() as u64;
        group.tensors.push(Placed { name, dtype, shape, begin, end: group.bytes });
        Ok(())
    }

    /// Writes the file and waits until it is on the disk. Returns the names of its tensors.
    pub(crate) fn finish(self, path: &Path) -> io::Result<Vec<String>> {
        self.write(&mut File::create_new(path)?)
    }

    /// [`finish`](Self::finish), for a file that is open and empty.
    pub(crate) fn write(mut self, file: &mut File) -> io::Result<Vec<String>> {
        let mut header = serde_json::to_vec(&Header(&self))?;
        // spaces after the header keep the data aligned to eight bytes, as the format asks
        header.resize(header.len().next_multiple_of(8), b' ');
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for group in [&mut self.four_bytes, &mut self.two_bytes] {
            group.data.rewind()?;
            io::copy(&mut group.data, file)?;
        }
        file.sync_all()?;
        Ok(self.four_bytes.tensors.into_iter().chain(self.two_bytes.tensors).map(|tensor| tensor.name).collect())
    }
}

impl Group {
    fn new(folder: &Path) -> io::Result<Self> {
        Ok(Self { data: tempfile::tempfile_in(folder)?, bytes: 0, tensors: Vec::new() })
    }
}

/// The header of a shard, in the order of the data.
struct Header<'a>(&'a Shard);

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
        let Shard { metadata, four_bytes, two_bytes } = self.0;
        map.serialize_entry("__metadata__", metadata)?;
        for (group, offset) in [(four_bytes, 0), (two_bytes, four_bytes.bytes)] {
            for Placed { name, dtype, shape, begin, end } in &group.tensors {
                let data_offsets = [offset + begin, offset + end];
                map.serialize_entry(name, &Entry { dtype: dtype.safetensors_name(), shape, data_offsets })?;
            }
        }
        map.end()
    }
}
