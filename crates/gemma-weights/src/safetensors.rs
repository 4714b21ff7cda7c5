//! The safetensors format, read strictly and without copying.
//!
//! A file is eight bytes with the header's length (little-endian), the header (a JSON object: tensor name to
//! type, shape and offsets), and the data. Nothing the header says is believed before it is checked against the
//! file's size, so a lying file costs no memory: the tensors must fit their shapes, lie inside the data, and
//! cover it without overlap and without a hole.
//!
//! The format is described at <https://huggingface.co/docs/safetensors>.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::json::Entries;
use crate::{Dtype, Error, SafetensorsFault as Fault, StoredTensor, files};

/// The longest header the format allows, in bytes.
const HEADER_LIMIT: u64 = 100_000_000;
/// More axes than any tensor of these models has; bounds what an error has to print.
const AXES_LIMIT: usize = 8;

/// The tensors of a safetensors file by name, and its metadata, text to text.
pub type Described = (BTreeMap<String, StoredTensor>, BTreeMap<String, String>);

/// Maps a safetensors file and checks it.
///
/// # Errors
/// [`Error::Read`], [`Error::Safetensors`] or [`Error::UnsupportedDtype`].
pub fn read_safetensors(path: &Path) -> Result<BTreeMap<String, StoredTensor>, Error> {
    Ok(read_safetensors_with_metadata(path)?.0)
}

/// [`read_safetensors`] with the file's metadata, text to text. Of a key that stands twice the last counts.
///
/// # Errors
/// As [`read_safetensors`].
pub fn read_safetensors_with_metadata(path: &Path) -> Result<Described, Error> {
    let bytes = files::map(path)?
        .ok_or_else(|| Error::Read { path: path.to_owned(), cause: std::io::ErrorKind::NotFound.into() })?;
    parse(path, &bytes)
}

/// Checks the content of a safetensors file; `file` is only used in messages. The tensors borrow from `bytes`.
///
/// # Errors
/// [`Error::Safetensors`] or [`Error::UnsupportedDtype`].
pub fn parse_safetensors(file: &Path, bytes: &Bytes) -> Result<BTreeMap<String, StoredTensor>, Error> {
    Ok(parse(file, bytes)?.0)
}

/// [`parse_safetensors`], with the tensors that the file holds under one of two names also under the other: PyTorch's
/// `save_model` writes what is shared (an embedding table that is the output head) once, and notes in the metadata which
/// name stands for which.
pub(crate) fn parse_shared(file: &Path, bytes: &Bytes) -> Result<BTreeMap<String, StoredTensor>, Error> {
    let (mut tensors, metadata) = parse(file, bytes)?;
    for (name, held_as) in metadata {
        if let (false, Some(tensor)) = (tensors.contains_key(&name), tensors.get(&held_as)) {
            let tensor = tensor.clone();
            tensors.insert(name, tensor);
        }
    }
    Ok(tensors)
}

fn parse(file: &Path, bytes: &Bytes) -> Result<Described, Error> {
    let damaged = |fault| Error::Safetensors { file: file.to_owned(), fault };
    let (header, data) = split_header(bytes).map_err(damaged)?;
    let Header { tensors: entries, metadata } =
        serde_json::from_slice(&header).map_err(|cause| damaged(Fault::HeaderJson { cause }))?;

    let mut claims = Vec::with_capacity(entries.len());
    let mut tensors = BTreeMap::new();
    for (name, entry) in entries {
        let Some(dtype) = Dtype::from_safetensors_name(&entry.dtype) else {
            return Err(Error::UnsupportedDtype { file: file.to_owned(), tensor: name, dtype: entry.dtype });
        };
        let [begin, end] = check_extent(&name, dtype, &entry, data.len() as u64).map_err(damaged)?;
        claims.push((begin, end, name.clone()));
        let tensor = StoredTensor {
            format: dtype.format(),
            // the number of bytes fits the file, so each axis fits a usize (or an axis is zero: then all are small or refused)
            shape: entry.shape.iter().map(|&axis| axis as usize).collect(),
            bytes: data.slice(begin as usize..end as usize),
        };
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(damaged(Fault::Duplicate { tensor: name }));
        }
    }
    check_cover(claims, data.len() as u64).map_err(damaged)?;
    Ok((tensors, metadata))
}

/// The header and the data behind it.
fn split_header(bytes: &Bytes) -> Result<(Bytes, Bytes), Fault> {
    let Some(length) = bytes.first_chunk::<8>() else {
        return Err(Fault::TooShort { bytes: bytes.len() as u64 });
    };
    let claimed = u64::from_le_bytes(*length);
    let available = bytes.len() as u64 - 8;
    if claimed > available {
        return Err(Fault::HeaderLength { claimed, available });
    }
    if claimed > HEADER_LIMIT {
        return Err(Fault::HeaderLimit { claimed, limit: HEADER_LIMIT });
    }
    let data_start = 8 + claimed as usize;
    Ok((bytes.slice(8..data_start), bytes.slice(data_start..)))
}

/// The offsets of one tensor, if they lie in the data and fit its type and shape.
fn check_extent(name: &str, dtype: Dtype, entry: &TensorEntry, available: u64) -> Result<[u64; 2], Fault> {
    let tensor = || name.to_owned();
    let shape = || entry.shape.clone();
    if entry.shape.len() > AXES_LIMIT {
        return Err(Fault::Axes { tensor: tensor(), axes: entry.shape.len() });
    }
    let [begin, end] = entry.data_offsets;
    if begin > end || end > available {
        return Err(Fault::OutOfRange { tensor: tensor(), begin, end, available });
    }
    let expected = entry
        .shape
        .iter()
        .try_fold(dtype.bytes() as u64, |product, &axis| product.checked_mul(axis))
        .filter(|_| entry.shape.iter().all(|&axis| usize::try_from(axis).is_ok()))
        .ok_or_else(|| Fault::Overflow { tensor: tensor(), shape: shape() })?;
    let found = end - begin;
    if expected != found {
        return Err(Fault::ByteLength { tensor: tensor(), shape: shape(), expected, found });
    }
    Ok([begin, end])
}

/// Whether the claims (begin, end, name) cover `0..available`, each byte once.
fn check_cover(mut claims: Vec<(u64, u64, String)>, available: u64) -> Result<(), Fault> {
    claims.sort_unstable();
    let mut covered = 0;
    let mut last = String::new();
    for (begin, end, name) in claims {
        if begin < covered {
            return Err(Fault::Overlap { first: last, second: name });
        }
        if begin > covered {
            return Err(Fault::Hole { begin: covered, end: begin });
        }
        covered = end;
        last = name;
    }
    if covered < available {
        return Err(Fault::Hole { begin: covered, end: available });
    }
    Ok(())
}

/// What the header says about one tensor.
#[derive(Deserialize)]
struct TensorEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header: its tensors, and its `__metadata__` (text to text).
struct Header {
    tensors: Vec<(String, TensorEntry)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let (mut tensors, mut metadata) = (Vec::new(), BTreeMap::new());
        while let Some(key) = map.next_key::<String>()? {
            if key == "__metadata__" {
                metadata.extend(map.next_value::<Option<Entries<String>>>()?.into_iter().flat_map(|entries| entries.0));
            } else {
                tensors.push((key, map.next_value()?));
            }
        }
        Ok(Header { tensors, metadata })
    }
}
