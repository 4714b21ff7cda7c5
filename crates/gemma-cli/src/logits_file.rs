//! A safetensors file of logits, written row by row as they are computed.
//!
//! The file can be far larger than memory (2 GB per 2 000 tokens of a 256 000-piece vocabulary), so the header is
//! written first, from the shapes, and every chunk goes straight to its place.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, json};

use crate::new_file::NewFile;

/// Bytes of one logit.
const F32: usize = size_of::<f32>();

/// A file of logits that is being written.
pub(crate) struct LogitsFile {
    file: NewFile,
    vocab: usize,
    /// Where each row's tensor begins, in bytes from the start of the file.
    starts: Vec<u64>,
}

impl LogitsFile {
    /// Begins a file with one tensor `logits` per row of that many tokens, or `logits.0` and so on for a batch.
    pub(crate) fn begin(file: NewFile, rows: &[usize], batch: bool, vocab: usize) -> Result<Self> {
        let (header, offsets) = header(rows, batch, vocab);
        let data = (8 + header.len()) as u64;
        let mut file = Self { file, vocab, starts: offsets.iter().map(|offset| data + offset).collect() };
        let mut start = (header.len() as u64).to_le_bytes().to_vec();
        start.extend(header);
        file.write(0, &start)?;
        Ok(file)
    }

    /// Writes the logits of some tokens of a row, the first of which is `token`.
    pub(crate) fn put(&mut self, row: usize, token: usize, logits: &[f32]) -> Result<()> {
        logits.chunks(self.vocab).try_for_each(gemma_generate::check_logits)?;
        let bytes: Vec<u8> = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
        let position = self.starts[row] + (token * self.vocab * F32) as u64;
        self.write(position, &bytes)
    }

    /// Gives the complete file its name.
    pub(crate) fn finish(self) -> Result<()> {
        Ok(self.file.finish()?)
    }

    fn write(&mut self, position: u64, bytes: &[u8]) -> Result<()> {
        let file = self.file.as_file_mut();
        let written = file.seek(SeekFrom::Start(position)).and_then(|_| file.write_all(bytes));
        written.with_context(|| format!("cannot write {}", self.file.path().display()))
    }
}

/// The JSON header, padded to whole 8 bytes, and each tensor's offset in the data behind it.
fn header(rows: &[usize], batch: bool, vocab: usize) -> (Vec<u8>, Vec<u64>) {
    let (mut entries, mut offsets, mut end) = (Map::new(), Vec::new(), 0_u64);
    for (index, &tokens) in rows.iter().enumerate() {
        let name = if batch { format!("logits.{index}") } else { "logits".to_owned() };
        offsets.push(end);
        end += (tokens * vocab * F32) as u64;
        let span = [offsets[index], end];
        entries.insert(name, json!({"dtype": "F32", "shape": [tokens, vocab], "data_offsets": span}));
    }
    let mut header = serde_json::Value::Object(entries).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    (header, offsets)
}

/// Whether a file holds logits and nothing else.
pub(crate) fn is_one(path: &Path) -> bool {
    let is_logits = |name: &str| name == "logits" || name.starts_with("logits.");
    gemma_weights::read_safetensors(path)
        .is_ok_and(|tensors| !tensors.is_empty() && tensors.keys().all(|name| is_logits(name)))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use safetensors::SafeTensors;

    use super::*;

    fn begin(path: &Path, rows: &[usize], vocab: usize) -> LogitsFile {
        NewFile::open(path)
            .map_err(anyhow::Error::from)
            .and_then(|file| LogitsFile::begin(file, rows, true, vocab))
            .expect("writable")
    }

    fn floats(bytes: &[u8]) -> Vec<f32> {
        bytes.chunks(F32).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes"))).collect()
    }

    #[test]
    fn rows_written_in_any_order_are_read_back() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("logits.safetensors");
        let mut file = begin(&path, &[3, 1], 2);
        file.put(0, 2, &[5.0, 6.0]).expect("written");
        file.put(1, 0, &[7.0, -8.5]).expect("written");
        file.put(0, 0, &[1.0, 2.0, 3.0, 4.0]).expect("written");
        file.finish().expect("named");
        let bytes = fs::read(&path).expect("readable");
        let tensors = SafeTensors::deserialize(&bytes).expect("well formed");
        let first = tensors.tensor("logits.0").expect("present");
        assert_eq!((first.shape(), floats(first.data())), (&[3, 2][..], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        let second = tensors.tensor("logits.1").expect("present");
        assert_eq!((second.shape(), floats(second.data())), (&[1, 2][..], vec![7.0, -8.5]));
    }

    #[test]
    fn a_single_row_has_no_number() {
        let (header, offsets) = header(&[4], false, 10);
        let header: serde_json::Value = serde_json::from_slice(&header).expect("JSON");
        assert_eq!(header["logits"]["shape"], json!([4, 10]));
        assert_eq!((header["logits"]["data_offsets"].clone(), offsets), (json!([0, 160]), vec![0]));
    }

    /// `logits.10` sorts before `logits.2` and lies behind it.
    #[test]
    fn many_rows_are_a_file_that_readers_accept() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("many.safetensors");
        let mut file = begin(&path, &[1; 12], 1);
        for row in 0..12 {
            file.put(row, 0, &[row as f32]).expect("written");
        }
        file.finish().expect("named");
        let bytes = fs::read(&path).expect("readable");
        let tensors = SafeTensors::deserialize(&bytes).expect("well formed");
        assert_eq!(floats(tensors.tensor("logits.10").expect("present").data()), [10.0]);
    }
}
