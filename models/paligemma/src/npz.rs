//! NumPy archives: a zip file of arrays.
//!
//! Only what such files have is read: entries that are stored or deflated, arrays of little-endian f32 in row-major
//! order. Sizes are bounded by what the caller asks for before anything is inflated, and checksums are compared.
//!
//! Formats: PKWARE's APPNOTE 6.3 (4.3.6 to 4.3.16) and NumPy's NEP 1.

use std::io::Read;

/// What is wrong with an archive; part of a sentence that names the file.
pub(crate) type Fault = String;

/// A zip archive in memory.
pub(crate) struct Archive<'a> {
    bytes: &'a [u8],
    entries: Vec<Entry>,
}

/// What the central directory says of an entry.
struct Entry {
    name: String,
    deflated: bool,
    crc: u32,
    compressed: usize,
    size: usize,
    local_header: usize,
}

/// The most entries that are listed: the archive of the mask decoder has about 50.
const MOST_ENTRIES: usize = 4096;
/// Bytes of the record that ends an archive, without its comment.
const END_RECORD: usize = 22;

impl<'a> Archive<'a> {
    /// Reads the list of entries.
    pub(crate) fn open(bytes: &'a [u8]) -> Result<Self, Fault> {
        let tail = bytes.len().saturating_sub(END_RECORD + usize::from(u16::MAX));
        let end = bytes[tail..].windows(4).rposition(|window| window == b"PK\x05\x06");
        let end = tail + end.ok_or("it is not a zip archive, or it is cut off")?;
        let count = usize::from(u16_at(bytes, end + 10)?);
        let mut at = u32_at(bytes, end + 16)? as usize;
        if count > MOST_ENTRIES {
            return Err(format!("it lists {count} entries, more than the {MOST_ENTRIES} that are read"));
        }
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            if part(bytes, at, 4)? != b"PK\x01\x02" {
                return Err("its list of entries is damaged".into());
            }
            let [name, extra, comment] = [28, 30, 32].map(|field| u16_at(bytes, at + field).map(usize::from));
            let (name, extra, comment) = (name?, extra?, comment?);
            let title = String::from_utf8_lossy(part(bytes, at + 46, name)?).into_owned();
            if u16_at(bytes, at + 8)? & 1 != 0 {
                return Err(format!("{title:?} is encrypted"));
            }
            let deflated = match u16_at(bytes, at + 10)? {
                0 => false,
                8 => true,
                other => return Err(format!("{title:?} is compressed by method {other}, not stored or deflated")),
            };
            entries.push(Entry {
                name: title,
                deflated,
                crc: u32_at(bytes, at + 16)?,
                compressed: u32_at(bytes, at + 20)? as usize,
                size: u32_at(bytes, at + 24)? as usize,
                local_header: u32_at(bytes, at + 42)? as usize,
            });
            at += 46 + name + extra + comment;
        }
        Ok(Self { bytes, entries })
    }

    /// The values of the array called `name`, which must have that shape; row-major.
    pub(crate) fn array(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Fault> {
        let file = format!("{name}.npy");
        let entry = self.entries.iter().find(|entry| entry.name == file);
        let entry = entry.ok_or_else(|| format!("it has no array {name}"))?;
        let values: usize = shape.iter().product();
        // NumPy's headers are 128 bytes, the longest a few hundred
        if entry.size > 4 * values + 4096 {
            return Err(format!("array {name} has {} bytes, too many for shape {shape:?}", entry.size));
        }
        let content = self.content(entry).map_err(|fault| format!("array {name}: {fault}"))?;
        npy(&content, shape).map_err(|fault| format!("array {name}: {fault}"))
    }

    fn content(&self, entry: &Entry) -> Result<Vec<u8>, Fault> {
        let at = entry.local_header;
        if part(self.bytes, at, 4)? != b"PK\x03\x04" {
            return Err("its place in the archive is wrong".into());
        }
        let name = usize::from(u16_at(self.bytes, at + 26)?);
        let extra = usize::from(u16_at(self.bytes, at + 28)?);
        let packed = part(self.bytes, at + 30 + name + extra, entry.compressed)?;
        let mut content = Vec::new();
        if entry.deflated {
            let inflate = flate2::read::DeflateDecoder::new(packed);
            let read = inflate.take(entry.size as u64 + 1).read_to_end(&mut content);
            read.map_err(|cause| format!("it cannot be inflated ({cause})"))?;
        } else {
            content.extend_from_slice(packed);
        }
        let mut crc = flate2::Crc::new();
        crc.update(&content);
        if content.len() != entry.size || crc.sum() != entry.crc {
            return Err("its content does not match its checksum".into());
        }
        Ok(content)
    }
}

/// The values of an `.npy` file, which must be f32 in row-major order and have that shape.
fn npy(content: &[u8], shape: &[usize]) -> Result<Vec<f32>, Fault> {
    if content.get(..6) != Some(b"\x93NUMPY") {
        return Err("it is not a NumPy array".into());
    }
    let (header, data) = match content.get(6) {
        Some(1) => (10, usize::from(u16_at(content, 8)?)),
        _ => (12, u32_at(content, 8)? as usize),
    };
    let text: String = String::from_utf8_lossy(part(content, header, data)?).split_whitespace().collect();
    let axes = shape.iter().map(|axis| format!("{axis},")).collect::<String>();
    // a tuple of one axis keeps its comma, others have none at the end
    let axes = if shape.len() == 1 { axes } else { axes.trim_end_matches(',').to_owned() };
    for (what, wanted) in [
        ("type", "'descr':'<f4'".to_owned()),
        ("order", "'fortran_order':False".to_owned()),
        ("shape", format!("'shape':({axes})")),
    ] {
        if !text.contains(&wanted) {
            return Err(format!("its {what} is not {wanted}; its header says {text}"));
        }
    }
    let values = &content[header + data..];
    if values.len() != 4 * shape.iter().product::<usize>() {
        return Err(format!("{} bytes of values do not fill its shape", values.len()));
    }
    Ok(values.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

fn part(bytes: &[u8], at: usize, len: usize) -> Result<&[u8], Fault> {
    let end = at.checked_add(len);
    end.and_then(|end| bytes.get(at..end)).ok_or_else(|| "it is cut off".into())
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Fault> {
    Ok(u16::from_le_bytes(part(bytes, at, 2)?.try_into().expect("two bytes were taken")))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Fault> {
    Ok(u32::from_le_bytes(part(bytes, at, 4)?.try_into().expect("four bytes were taken")))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    /// An archive of arrays as `numpy.savez_compressed` (or `savez`) writes it.
    pub(crate) fn archive(arrays: &[(&str, Vec<usize>, Vec<f32>)], deflate: bool) -> Vec<u8> {
        let (mut bytes, mut directory) = (Vec::new(), Vec::new());
        for (name, shape, values) in arrays {
            let axes: Vec<String> = shape.iter().map(usize::to_string).collect();
            let comma = if shape.len() == 1 { "," } else { "" };
            let mut header =
                format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}{comma}), }}", axes.join(", "));
            while (10 + header.len() + 1) % 64 != 0 {
                header.push(' ');
            }
            header.push('\n');
            let mut content = b"\x93NUMPY\x01\x00".to_vec();
            content.extend((header.len() as u16).to_le_bytes());
            content.extend(header.bytes());
            content.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            let mut crc = flate2::Crc::new();
            crc.update(&content);
            let packed = if deflate {
                let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&content).unwrap();
                encoder.finish().unwrap()
            } else {
                content.clone()
            };
            let name = format!("{name}.npy");
            let mut shared = Vec::new();
            for field in [20u16, 0, if deflate { 8 } else { 0 }, 0, 0] {
                shared.extend(field.to_le_bytes());
            }
            for field in [crc.sum(), packed.len() as u32, content.len() as u32] {
                shared.extend(field.to_le_bytes());
            }
            shared.extend((name.len() as u16).to_le_bytes());
            shared.extend([0, 0]);
            directory.extend(b"PK\x01\x02\x14\x00");
            directory.extend(&shared);
            directory.extend([0; 10]);
            directory.extend((bytes.len() as u32).to_le_bytes());
            directory.extend(name.bytes());
            bytes.extend(b"PK\x03\x04");
            bytes.extend(&shared);
            bytes.extend(name.bytes());
            bytes.extend(packed);
        }
        let begin = bytes.len() as u32;
        bytes.extend(&directory);
        bytes.extend(b"PK\x05\x06\0\0\0\0");
        bytes.extend([(arrays.len() as u16).to_le_bytes(); 2].concat());
        bytes.extend((directory.len() as u32).to_le_bytes());
        bytes.extend(begin.to_le_bytes());
        bytes.extend([0, 0]);
        bytes
    }

    fn two() -> Vec<(&'static str, Vec<usize>, Vec<f32>)> {
        vec![("a.b", vec![2, 3], vec![1.0, -2.0, 3.5, 4.0, 5.0, 6.0]), ("c", vec![3], vec![7.0, 8.0, 9.0])]
    }

    #[test]
    fn stored_and_deflated_arrays_come_back() {
        for deflate in [false, true] {
            let bytes = archive(&two(), deflate);
            let archive = Archive::open(&bytes).unwrap();
            for (name, shape, values) in two() {
                assert_eq!(archive.array(name, &shape).unwrap(), values);
            }
            assert!(archive.array("d", &[1]).unwrap_err().contains("no array d"));
            assert!(archive.array("c", &[4]).unwrap_err().contains("shape"));
            assert!(archive.array("a.b", &[3, 2]).unwrap_err().contains("shape"));
        }
    }

    #[test]
    fn a_damaged_archive_is_refused_wherever_it_is_cut_or_changed() {
        for deflate in [false, true] {
            let whole = archive(&two(), deflate);
            let read = |bytes: &[u8]| -> Result<(), Fault> {
                let archive = Archive::open(bytes)?;
                two().iter().try_for_each(|(name, shape, _)| archive.array(name, shape).map(drop))
            };
            read(&whole).unwrap();
            for length in 0..whole.len() - 2 {
                assert!(read(&whole[..length]).is_err(), "{length} of {} bytes", whole.len());
            }
            for place in 0..whole.len() {
                let mut changed = whole.clone();
                changed[place] ^= 0x55;
                // some bytes (times, comments) mean nothing; none may panic or give other values
                let _ = read(&changed);
            }
        }
    }

    #[test]
    fn an_entry_that_claims_to_be_huge_is_not_inflated() {
        let zeros = vec![("c", vec![1_000_000], vec![0.0; 1_000_000])];
        let bytes = archive(&zeros, true);
        assert!(bytes.len() < 100_000);
        assert!(Archive::open(&bytes).unwrap().array("c", &[3]).unwrap_err().contains("too many"));
    }
}
