//! The GGUF container, versions 2 and 3, read strictly and without copying, and written.
//!
//! A file is a head (`GGUF`, version, counts), key-value pairs, a table of tensors, and the data, each tensor aligned.
//! Nothing is believed before it is checked against the file's size, so a lying file costs no memory. What the keys and
//! the names of the tensors mean is said in [`gemma`].
//!
//! The format is described at <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod architectures;
mod clip;
mod gemma;
mod keys;
pub(crate) mod write;

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use gemma_kernels::Format;

use crate::{Error, GgufFault as Fault, StoredTensor, files};

pub(crate) use architectures::ARCHITECTURES;
pub(crate) use clip::translate_encoder;
pub use gemma::MOST_LAYERS;
pub(crate) use gemma::{Translated, file_name, in_words_of_file, translate};
pub use write::{GgufVocabulary, OnConvert, save_gguf};

/// The first four bytes of every file.
const MAGIC: &[u8; 4] = b"GGUF";
/// More axes than the format allows.
const AXES_LIMIT: usize = 4;
/// Alignment of the data where the file says nothing, in bytes.
const ALIGNMENT: u64 = 32;
/// What the name of a file ends in.
const ENDING: &str = ".gguf";
/// More parts than any split model has.
const PARTS_LIMIT: u64 = 1000;

/// Whether a file is a GGUF file, by its first four bytes.
pub fn is_gguf(path: &Path) -> bool {
    files::beginning(path).starts_with(MAGIC)
}

/// What a key-value pair holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(&'a str),
    List(List<'a>),
}

/// As a message shows it.
impl Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(number) => write!(f, "{number}"),
            Self::Signed(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Text(text) => f.write_str(text),
            Self::List(list) => write!(f, "a list of {}", list.len()),
        }
    }
}

/// A list of numbers or texts, checked and still as it lies in the file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct List<'a> {
    kind: u32,
    len: usize,
    bytes: &'a [u8],
}

/// The numbers by which the format calls its types.
mod kind {
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const TEXT: u32 = 8;
    pub(super) const LIST: u32 = 9;
}

/// The key-value pairs of a file.
pub(crate) type Pairs<'a> = BTreeMap<&'a str, Value<'a>>;

/// A parsed file, or the parts of a split one taken together.
pub(crate) struct Gguf<'a> {
    /// The pairs of the (first) file.
    pub(crate) pairs: Pairs<'a>,
    /// Every tensor, by the name it has in the file. Shapes are `[rows, cols]`, the slowest axis first.
    pub(crate) tensors: BTreeMap<String, StoredTensor>,
}

/// The numbers by which GGML calls the formats.
const NUMBERS: [(u32, Format); 26] = [
    (0, Format::F32),
    (1, Format::F16),
    (2, Format::Q4_0),
    (3, Format::Q4_1),
    (6, Format::Q5_0),
    (7, Format::Q5_1),
    (8, Format::Q8_0),
    (10, Format::Q2K),
    (11, Format::Q3K),
    (12, Format::Q4K),
    (13, Format::Q5K),
    (14, Format::Q6K),
    (16, Format::Iq2Xxs),
    (17, Format::Iq2Xs),
    (18, Format::Iq3Xxs),
    (19, Format::Iq1S),
    (20, Format::Iq4Nl),
    (21, Format::Iq3S),
    (22, Format::Iq2S),
    (23, Format::Iq4Xs),
    (29, Format::Iq1M),
    (30, Format::Bf16),
    (34, Format::Tq1_0),
    (35, Format::Tq2_0),
    (39, Format::Mxfp4),
    (40, Format::Nvfp4),
];

fn format_of(number: u32) -> Option<Format> {
    NUMBERS.iter().find(|(known, _)| *known == number).map(|(_, format)| *format)
}

fn ggml_number(format: Format) -> u32 {
    let known = NUMBERS.iter().find(|(_, known)| *known == format);
    known.expect("every format has a number").0
}

/// What GGML calls the formats that are not read.
fn foreign_format(number: u32) -> String {
    const NAMES: [(u32, &str); 20] = [
        (4, "Q4_2"),
        (5, "Q4_3"),
        (9, "Q8_1"),
        (15, "Q8_K"),
        (24, "I8"),
        (25, "I16"),
        (26, "I32"),
        (27, "I64"),
        (28, "F64"),
        (31, "Q4_0_4_4"),
        (32, "Q4_0_4_8"),
        (33, "Q4_0_8_8"),
        (36, "IQ4_NL_4_4"),
        (37, "IQ4_NL_4_8"),
        (38, "IQ4_NL_8_8"),
        (41, "Q1_0"),
        // of a widespread fork
        (137, "IQ2_K"),
        (138, "IQ3_K"),
        (139, "IQ4_K"),
        (140, "IQ5_K"),
    ];
    let known = NAMES.iter().find(|(known, _)| *known == number);
    known.map_or_else(|| format!("the unknown GGML type {number}"), |(_, name)| (*name).to_owned())
}

/// Maps a GGUF file, and the other parts of a split one: the first part is enough to name.
///
/// # Errors
/// [`Error::GgufPart`] for a part that is missing, [`Error::Read`] for one that is unreadable.
pub(crate) fn map_parts(path: &Path) -> Result<Vec<(PathBuf, Bytes)>, Error> {
    let map = |path: PathBuf| {
        let bytes = files::map(&path)?.ok_or_else(|| Error::GgufPart { file: path.clone() })?;
        Ok((path, bytes))
    };
    let Some((stem, count, ending)) = split_name(path) else { return Ok(vec![map(path.to_owned())?]) };
    (1..=count).map(|part| map(path.with_file_name(format!("{stem}-{part:05}-of-{count:05}{ending}")))).collect()
}

/// A name without its `.gguf`, in either case, and that ending.
pub(crate) fn without_ending(name: &str) -> Option<(&str, &str)> {
    let (stem, ending) = name.split_at_checked(name.len().checked_sub(ENDING.len())?)?;
    ending.eq_ignore_ascii_case(ENDING).then_some((stem, ending))
}

/// The stem, the number of parts and the ending of `STEM-00001-of-00003.gguf`.
fn split_name(path: &Path) -> Option<(&str, u64, &str)> {
    let (name, ending) = without_ending(path.file_name()?.to_str()?)?;
    let (rest, count) = name.rsplit_once("-of-")?;
    let (stem, part) = rest.rsplit_once('-')?;
    let number = |digits: &str| (digits.len() == 5).then(|| digits.parse::<u64>().ok()).flatten();
    let count = number(count).filter(|count| (2..=PARTS_LIMIT).contains(count))?;
    number(part).filter(|part| (1..=count).contains(part)).map(|_| (stem, count, ending))
}

/// Checks the parts of a model; tensors borrow from their bytes.
///
/// # Errors
/// [`Error::Gguf`], naming the part.
pub(crate) fn parse(parts: &[(PathBuf, Bytes)]) -> Result<Gguf<'_>, Error> {
    parse_parts(parts, gemma::not_a_model)
}

/// [`parse`], for the image encoder that lies beside a model (`mmproj`).
///
/// # Errors
/// As [`parse`], and for a file that is none.
pub(crate) fn parse_encoder(parts: &[(PathBuf, Bytes)]) -> Result<Gguf<'_>, Error> {
    parse_parts(parts, clip::not_an_encoder)
}

/// An adapter as its file has it.
pub(crate) struct AdapterFile {
    /// By the names that layers have, with `.lora_a` or `.lora_b` behind them.
    pub(crate) factors: BTreeMap<String, StoredTensor>,
    /// 0: none.
    pub(crate) alpha: f64,
    /// What the file calls the architecture of the model it changes.
    pub(crate) architecture: String,
}

/// Reads the file of a LoRA adapter.
///
/// # Errors
/// [`Error::Gguf`] for a file that is damaged, no adapter, or for a model of another family.
pub(crate) fn parse_adapter(parts: &[(PathBuf, Bytes)]) -> Result<AdapterFile, Error> {
    let file = parse_parts(parts, gemma::not_an_adapter)?;
    let path = parts.first().map(|(path, _)| path.clone()).unwrap_or_default();
    gemma::translate_adapter(file).map_err(|fault| Error::Gguf { file: path, fault })
}

/// [`parse`], for a file of any kind: what was written is read back in tests.
#[cfg(test)]
pub(crate) fn parse_any(parts: &[(PathBuf, Bytes)]) -> Result<Gguf<'_>, Error> {
    parse_parts(parts, |_| None)
}

/// `refuse` says of the keys of a file why it is not the wanted kind, if it is not.
fn parse_parts(parts: &[(PathBuf, Bytes)], refuse: impl Fn(&Pairs<'_>) -> Option<Fault>) -> Result<Gguf<'_>, Error> {
    let mut whole: Option<Gguf<'_>> = None;
    let mut announced = None;
    for (index, (path, bytes)) in parts.iter().enumerate() {
        let damaged = |fault| Error::Gguf { file: path.clone(), fault };
        let part = parse_part(bytes, &refuse).map_err(damaged)?;
        check_place(&part.pairs, index as u64, parts.len() as u64).map_err(damaged)?;
        announced = announced.or(whole_number(&part.pairs, TENSORS_COUNT).map(|count| (count, path)));
        let Some(whole) = &mut whole else {
            whole = Some(part);
            continue;
        };
        for (name, tensor) in part.tensors {
            if whole.tensors.contains_key(&name) {
                return Err(damaged(Fault::Duplicate { name }));
            }
            whole.tensors.insert(name, tensor);
        }
    }
    let whole = whole.expect("a model has at least one part");
    match announced {
        Some((count, path)) if count != whole.tensors.len() as u64 => {
            let fault = Fault::SplitTensors { announced: count, found: whole.tensors.len() };
            Err(Error::Gguf { file: path.clone(), fault })
        }
        _ => Ok(whole),
    }
}

/// The key under which the parts of a split model say how many tensors they hold together.
const TENSORS_COUNT: &str = "split.tensors.count";

/// Whether a part of a split model says itself that it is the one with this index, of so many.
fn check_place(pairs: &Pairs<'_>, index: u64, parts: u64) -> Result<(), Fault> {
    let (number, count) = (whole_number(pairs, "split.no"), whole_number(pairs, "split.count"));
    // a file that is not split may say so: it is one of none, or of one
    let (number, count) = (number.unwrap_or(index), count.unwrap_or(parts).max(1));
    if number != index || count != parts {
        return Err(Fault::Part { part: number.saturating_add(1), parts: count });
    }
    Ok(())
}

/// The integer under a key; `None` without one.
fn whole_number(pairs: &Pairs<'_>, key: &str) -> Option<u64> {
    match pairs.get(key)? {
        Value::Unsigned(number) => Some(*number),
        Value::Signed(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

fn parse_part<'b>(bytes: &'b Bytes, refuse: &impl Fn(&Pairs<'_>) -> Option<Fault>) -> Result<Gguf<'b>, Fault> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.take(4)? != MAGIC {
        return Err(Fault::Magic);
    }
    let version = reader.u32()?;
    if (1..=3).contains(&version.swap_bytes()) {
        return Err(Fault::BigEndian);
    }
    if !(2..=3).contains(&version) {
        return Err(Fault::Version { version });
    }
    let (tensor_count, pair_count) = (reader.u64()?, reader.u64()?);
    let mut pairs = Pairs::new();
    for _ in 0..pair_count {
        let key = reader.text()?;
        let kind = reader.u32()?;
        let value = reader.value(kind)?;
        if pairs.insert(key, value).is_some() {
            return Err(Fault::Duplicate { name: key.to_owned() });
        }
    }
    // what is no model need not be a sound one; the later parts of a split one say nothing
    if let Some(fault) = refuse(&pairs) {
        return Err(fault);
    }
    let mut infos = Vec::new();
    for _ in 0..tensor_count {
        infos.push(reader.info()?);
    }
    let alignment = match pairs.get("general.alignment") {
        None => ALIGNMENT,
        Some(Value::Unsigned(alignment)) if alignment.is_power_of_two() && *alignment <= 1 << 20 => *alignment,
        Some(value) => {
            let (key, found) = ("general.alignment".to_owned(), value.to_string());
            return Err(Fault::Field { key, found, expected: "a power of two" });
        }
    };
    let begin = (reader.at as u64).next_multiple_of(alignment);
    let (mut tensors, mut ranges) = (BTreeMap::new(), Vec::new());
    for Info { name, shape, kind, offset } in infos {
        let Some(format) = format_of(kind) else {
            return Err(Fault::Format { tensor: name.to_owned(), format: foreign_format(kind) });
        };
        let outside = || Fault::OutOfRange { tensor: name.to_owned(), file: bytes.len() as u64 };
        let cols = shape.last().copied().unwrap_or(1);
        let rows = shape[..shape.len().saturating_sub(1)].iter().try_fold(1usize, |rows, axis| rows.checked_mul(*axis));
        let row = format.row_bytes(cols).ok_or_else(|| Fault::Block { tensor: name.to_owned(), format, cols })?;
        let len = rows.and_then(|rows| rows.checked_mul(row)).ok_or_else(outside)?;
        let start = begin.checked_add(offset).and_then(|start| usize::try_from(start).ok()).ok_or_else(outside)?;
        let end = start.checked_add(len).filter(|end| *end <= bytes.len()).ok_or_else(outside)?;
        // so that what is made of the tensors is in proportion to the file
        ranges.push((start, end, name));
        let tensor = StoredTensor { format, shape, bytes: bytes.slice(start..end) };
        if tensors.insert(name.to_owned(), tensor).is_some() {
            return Err(Fault::Duplicate { name: name.to_owned() });
        }
    }
    ranges.sort_unstable();
    if let Some(pair) = ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        return Err(Fault::Overlap { tensor: pair[1].2.to_owned() });
    }
    Ok(Gguf { pairs, tensors })
}

/// A line of the table of tensors.
struct Info<'a> {
    name: &'a str,
    /// The slowest axis first.
    shape: Vec<usize>,
    kind: u32,
    offset: u64,
}

/// A place in the bytes of a file.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..len).ok_or(Fault::Truncated { at: self.at as u64 })?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        Ok(self.take(N)?.try_into().expect("as many bytes as were taken"))
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<&'a str, Fault> {
        let at = self.at as u64;
        let len = usize::try_from(self.u64()?).map_err(|_| Fault::Truncated { at })?;
        std::str::from_utf8(self.take(len)?).map_err(|_| Fault::NotText { at })
    }

    fn value(&mut self, kind: u32) -> Result<Value<'a>, Fault> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(self.array::<1>()?[0])),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array()?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Value::Unsigned(u64::from(self.u32()?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            kind::TEXT => Value::Text(self.text()?),
            kind::LIST => Value::List(self.list()?),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(Fault::Kind { kind, at: self.at as u64 }),
        })
    }

    fn list(&mut self) -> Result<List<'a>, Fault> {
        let kind = self.u32()?;
        let truncated = Fault::Truncated { at: self.at as u64 };
        let len = self.u64()?;
        let width = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            kind::TEXT => 0,
            _ => return Err(Fault::Kind { kind, at: self.at as u64 }),
        };
        let begin = self.at;
        if kind == kind::TEXT {
            for _ in 0..len {
                self.text()?;
            }
        } else {
            let bytes = len.checked_mul(width).and_then(|bytes| usize::try_from(bytes).ok());
            self.take(bytes.ok_or(truncated)?)?;
        }
        // every element took at least a byte, so that the number fits
        Ok(List { kind, len: len as usize, bytes: &self.bytes[begin..self.at] })
    }

    fn info(&mut self) -> Result<Info<'a>, Fault> {
        let name = self.text()?;
        let axes = self.u32()? as usize;
        if axes > AXES_LIMIT {
            return Err(Fault::Axes { tensor: name.to_owned(), axes });
        }
        let mut shape = Vec::with_capacity(axes);
        for _ in 0..axes {
            let axis = usize::try_from(self.u64()?).map_err(|_| Fault::Truncated { at: self.at as u64 })?;
            shape.insert(0, axis);
        }
        Ok(Info { name, shape, kind: self.u32()?, offset: self.u64()? })
    }
}

impl<'a> List<'a> {
    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The elements, if they are texts.
    pub(crate) fn texts(&self) -> Option<Vec<&'a str>> {
        let mut reader = Reader { bytes: self.bytes, at: 0 };
        let text = |_| reader.text().expect("checked when the file was parsed");
        (self.kind == kind::TEXT).then(|| (0..self.len).map(text).collect())
    }

    /// The elements, if they are truth values.
    pub(crate) fn flags(&self) -> Option<Vec<bool>> {
        (self.kind == kind::BOOL).then(|| self.bytes.iter().map(|byte| *byte != 0).collect())
    }

    /// The elements, if they are numbers.
    pub(crate) fn numbers(&self) -> Option<Vec<f64>> {
        let mut reader = Reader { bytes: self.bytes, at: 0 };
        let number = |_| match reader.value(self.kind).expect("checked when the file was parsed") {
            Value::Unsigned(value) => value as f64,
            Value::Signed(value) => value as f64,
            Value::Float(value) => value,
            _ => f64::NAN,
        };
        (!matches!(self.kind, kind::TEXT | 7)).then(|| (0..self.len).map(number).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &mut Vec<u8>, text: &str) {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    }

    /// A file with one pair and one tensor `w` of 3 rows of 2 values.
    fn small() -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
        bytes.extend(2u64.to_le_bytes());
        text(&mut bytes, "general.name");
        bytes.extend(8u32.to_le_bytes());
        text(&mut bytes, "small");
        text(&mut bytes, "list");
        bytes.extend(9u32.to_le_bytes());
        bytes.extend(5u32.to_le_bytes());
        bytes.extend(2u64.to_le_bytes());
        bytes.extend([(-7i32).to_le_bytes(), 9i32.to_le_bytes()].concat());
        text(&mut bytes, "w");
        bytes.extend(2u32.to_le_bytes());
        bytes.extend(2u64.to_le_bytes());
        bytes.extend(3u64.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(0u64.to_le_bytes());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        for value in 0..6u8 {
            bytes.extend(f32::from(value).to_le_bytes());
        }
        bytes
    }

    fn parts(bytes: Vec<u8>) -> Vec<(PathBuf, Bytes)> {
        vec![(PathBuf::from("small.gguf"), bytes.into())]
    }

    #[test]
    fn pairs_and_tensors_are_found() {
        let parts = parts(small());
        let file = parse(&parts).unwrap();
        assert_eq!(file.pairs["general.name"], Value::Text("small"));
        let Value::List(list) = &file.pairs["list"] else { panic!("no list") };
        assert_eq!((list.len(), list.numbers(), list.texts()), (2, Some(vec![-7.0, 9.0]), None));
        let tensor = &file.tensors["w"];
        assert_eq!((tensor.shape.as_slice(), tensor.to_f32()), (&[3, 2][..], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let whole = small();
        for len in 0..whole.len() {
            assert!(parse(&parts(whole[..len].to_vec())).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn a_changed_byte_never_panics() {
        let whole = small();
        for at in 0..whole.len() {
            for value in [0, 1, 9, 127, 255] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let _ = parse(&parts(bytes));
            }
        }
    }

    #[test]
    fn every_format_has_a_number_and_a_foreign_one_its_name() {
        for format in Format::ALL.into_iter().chain(Format::READ_ONLY) {
            assert_eq!(format_of(ggml_number(format)), Some(format));
        }
        for (number, name) in [(9, "Q8_1"), (31, "Q4_0_4_4"), (139, "IQ4_K"), (99, "the unknown GGML type 99")] {
            assert!(format_of(number).is_none() && foreign_format(number) == name, "{number}");
        }
    }

    #[test]
    fn what_is_no_model_is_named() {
        let refusal = |bytes: Vec<u8>| parse(&parts(bytes)).map(|_| ()).unwrap_err().to_string();
        let mut big = small();
        big[4..8].reverse();
        assert!(refusal(big).contains("big-endian"));
        // `general.name` becomes `general.type`, of the same length
        let with_type = |kind: &[u8; 5]| {
            let mut bytes = small();
            let at = bytes.windows(12).position(|bytes| bytes == b"general.name").expect("the key");
            bytes[at + 8..at + 12].copy_from_slice(b"type");
            bytes[at + 24..at + 29].copy_from_slice(kind);
            bytes
        };
        // the same place holds another kind of file when its text is longer
        assert!(parse(&parts(with_type(b"model"))).is_ok());
        let mut imatrix = with_type(b"imatr");
        let at = imatrix.windows(5).position(|bytes| bytes == b"imatr").expect("the text");
        imatrix[at - 8] = 7;
        imatrix.splice(at + 5..at + 5, *b"ix");
        assert!(refusal(imatrix).contains("an importance matrix"));
    }

    #[test]
    fn tensors_share_no_bytes() {
        let mut bytes = small();
        // a second tensor, one value further on in the same bytes
        let at = bytes.windows(9).position(|bytes| bytes == b"\x01\0\0\0\0\0\0\0w").expect("the tensor's line");
        let mut line = bytes[at..at + 9 + 4 + 16 + 4 + 8].to_vec();
        line[8] = b'v';
        let place = line.len() - 8;
        line[place] = 4;
        line[13] = 1;
        bytes.truncate(at + line.len());
        bytes.extend(&line);
        bytes[8] = 2;
        bytes.resize(bytes.len().next_multiple_of(32) + 24, 0);
        let error = parse(&parts(bytes)).map(|_| ()).unwrap_err();
        assert!(matches!(&error, Error::Gguf { fault: Fault::Overlap { tensor }, .. } if tensor == "v"), "{error}");
    }

    #[test]
    fn the_parts_of_a_split_model_are_known_by_their_names() {
        assert_eq!(split_name(Path::new("a/gemma-00002-of-00003.gguf")), Some(("gemma", 3, ".gguf")));
        assert_eq!(split_name(Path::new("a/gemma-00002-of-00003.GGUF")), Some(("gemma", 3, ".GGUF")));
        for name in ["gemma.gguf", "gemma-00004-of-00003.gguf", "gemma-1-of-3.gguf", "gemma-00001-of-00001.gguf"] {
            assert_eq!(split_name(Path::new(name)), None, "{name}");
        }
    }

    #[test]
    fn parts_that_contradict_their_places_are_refused() {
        let pairs = |number: u64, count: u64| {
            Pairs::from([("split.no", Value::Unsigned(number)), ("split.count", Value::Unsigned(count))])
        };
        assert!(check_place(&pairs(1, 2), 1, 2).is_ok() && check_place(&Pairs::new(), 1, 2).is_ok());
        assert!(check_place(&pairs(0, 1), 0, 1).is_ok() && check_place(&pairs(0, 0), 0, 1).is_ok());
        for (number, count, index, parts) in [(1, 2, 0, 2), (0, 3, 0, 2), (1, 2, 0, 1), (7, 2, 1, 2)] {
            let error = check_place(&pairs(number, count), index, parts).unwrap_err().to_string();
            assert!(error.contains(&format!("part {} of a model in {count} parts", number + 1)), "{error}");
        }
    }

    #[test]
    fn parts_that_together_hold_fewer_tensors_than_announced_are_refused() {
        let with = |count: i32| {
            let mut bytes = b"GGUF".to_vec();
            bytes.extend(3u32.to_le_bytes());
            bytes.extend(0u64.to_le_bytes());
            bytes.extend(1u64.to_le_bytes());
            text(&mut bytes, "split.tensors.count");
            bytes.extend(5u32.to_le_bytes());
            bytes.extend(count.to_le_bytes());
            parse_any(&parts(bytes)).map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(with(0), Ok(()));
        assert!(with(3).unwrap_err().contains("3 tensors"), "{:?}", with(3));
    }
}
