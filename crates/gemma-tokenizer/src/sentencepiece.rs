//! `tokenizer.model`, a SentencePiece model: a reader of the protobuf wire format for the fields that matter.
//!
//! The file is a `ModelProto`: repeated field 1 is a piece (1 text, 2 score as f32, 3 type), field 2 the trainer's
//! settings, field 3 the normalizer's. Fields that are not listed here are skipped, as protobuf prescribes. Every
//! length is checked against what is left of the file, so a broken or hostile file is an error and nothing else.

use crate::control::{self, Family};
use crate::engine::scores::Scores;
use crate::engine::{Engine, with_spaces_replaced};
use crate::vocabulary::{Listing, MAX_ID, Vocabulary};
use crate::{Error, Result, TokenId};

const FILE: &str = "tokenizer.model";

/// Numbers of `ModelProto.SentencePiece.Type`.
pub(crate) mod kind {
    pub(crate) const NORMAL: u64 = 1;
    pub(crate) const UNKNOWN: u64 = 2;
    pub(crate) const CONTROL: u64 = 3;
    pub(crate) const USER_DEFINED: u64 = 4;
    pub(crate) const BYTE: u64 = 6;
}

/// `TrainerSpec.ModelType.BPE`.
const BPE: u64 = 2;

struct Piece<'a> {
    text: &'a str,
    score: f32,
    kind: u64,
}

/// Reads a file into a vocabulary and an engine.
///
/// # Errors
/// A file that is not a SentencePiece model, contradicts itself, or describes another kind of tokenizer.
pub(crate) fn read(bytes: &[u8], family: Family) -> Result<(Vocabulary, Engine)> {
    if is_lfs_pointer(bytes) {
        return Err(Error::SentencePiece { offset: 0, reason: "a Git LFS pointer, not the file itself," });
    }
    let pieces = parse(bytes)?;
    let mut vocabulary = Vocabulary::with_capacity(pieces.len());
    // llama.cpp's converter writes literal runs of spaces as they are typed, and looks for them in the text as it was
    // typed; files of SentencePiece itself have `▁`
    let typed = |piece: &Piece<'_>| piece.kind == kind::USER_DEFINED && piece.text.bytes().all(|byte| byte == b' ');
    for (id, piece) in (0..).zip(&pieces) {
        if typed(piece) {
            vocabulary.insert(id, &with_spaces_replaced(piece.text))?;
        } else {
            vocabulary.insert(id, piece.text)?;
        }
    }
    control::adapt(&mut vocabulary, family)?;
    let listing = |id: TokenId| match pieces.get(id as usize).map(|piece| piece.kind) {
        Some(kind::CONTROL | kind::UNKNOWN) => Listing::Special,
        Some(kind::USER_DEFINED) => Listing::Added,
        _ => Listing::Ordinary,
    };
    vocabulary.classify(listing, false);
    let scores: Vec<f32> = pieces.iter().map(|piece| piece.score).collect();
    let typed = pieces.iter().any(typed);
    let engine = Engine::Scores(Scores::new(&vocabulary, &scores)?.with_typed_literals(typed));
    Ok((vocabulary, engine))
}

/// Was the file checked out without Git LFS? Then it is a few lines of text that name the real one.
pub(crate) fn is_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs")
}

fn parse(bytes: &[u8]) -> Result<Vec<Piece<'_>>> {
    let mut pieces = Vec::new();
    // The defaults of the schema, which apply to fields that a file leaves out.
    let mut model_type = 1;
    let mut dummy_prefix = 1;
    let mut extra_whitespaces_removed = 1;
    let mut spaces_escaped = 1;
    let mut whitespace_as_suffix = 0;
    let mut character_map = 0;

    let mut file = Message::new(bytes, 0);
    while let Some((number, value)) = file.field()? {
        match number {
            1 if pieces.len() > MAX_ID as usize => return Err(file.error("more pieces than any vocabulary has")),
            1 => pieces.push(parse_piece(value.message(&file)?)?),
            2 => {
                let mut trainer = value.message(&file)?;
                while let Some((number, value)) = trainer.field()? {
                    match number {
                        3 => model_type = value.integer(&trainer)?,
                        24 => whitespace_as_suffix = value.integer(&trainer)?,
                        _ => {}
                    }
                }
            }
            3 => {
                let mut normalizer = value.message(&file)?;
                while let Some((number, value)) = normalizer.field()? {
                    match number {
                        2 => character_map = value.message(&normalizer)?.bytes.len() as u64,
                        3 => dummy_prefix = value.integer(&normalizer)?,
                        4 => extra_whitespaces_removed = value.integer(&normalizer)?,
                        5 => spaces_escaped = value.integer(&normalizer)?,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if pieces.is_empty() {
        return Err(file.error("no pieces"));
    }
    for (field, value, wanted) in [
        ("trainer_spec.model_type", model_type, BPE),
        ("trainer_spec.treat_whitespace_as_suffix", whitespace_as_suffix, 0),
        ("normalizer_spec.precompiled_charsmap (bytes)", character_map, 0),
        ("normalizer_spec.add_dummy_prefix", dummy_prefix, 0),
        ("normalizer_spec.remove_extra_whitespaces", extra_whitespaces_removed, 0),
        ("normalizer_spec.escape_whitespaces", spaces_escaped, 1),
    ] {
        if value != wanted {
            return Err(Error::Unsupported { file: FILE, field, value: value.to_string() });
        }
    }
    Ok(pieces)
}

fn parse_piece(mut message: Message<'_>) -> Result<Piece<'_>> {
    let mut piece = Piece { text: "", score: 0.0, kind: kind::NORMAL };
    while let Some((number, value)) = message.field()? {
        match number {
            1 => {
                let text = value.message(&message)?;
                piece.text = std::str::from_utf8(text.bytes).map_err(|_| text.error("a piece that is not UTF-8"))?;
            }
            2 => piece.score = value.float(&message)?,
            3 => piece.kind = value.integer(&message)?,
            _ => {}
        }
    }
    match piece.kind {
        _ if piece.text.is_empty() => Err(message.error("a piece without text")),
        kind::NORMAL | kind::UNKNOWN | kind::CONTROL | kind::USER_DEFINED | kind::BYTE => Ok(piece),
        // UNUSED (5) pieces are split again after merging; no Gemma vocabulary has any.
        _ => Err(message.error("a piece of an unsupported type")),
    }
}

/// A protobuf message: a cursor over its fields.
struct Message<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where the message begins in the file, for error messages.
    offset: usize,
}

/// The value of a field, by wire type.
enum Field<'a> {
    Integer(u64),
    Fixed64,
    Bytes { bytes: &'a [u8], offset: usize },
    Fixed32(u32),
}

impl<'a> Message<'a> {
    fn new(bytes: &'a [u8], offset: usize) -> Self {
        Self { bytes, at: 0, offset }
    }

    fn error(&self, reason: &'static str) -> Error {
        Error::SentencePiece { offset: self.offset + self.at, reason }
    }

    /// The next field, `None` at the end.
    fn field(&mut self) -> Result<Option<(u64, Field<'a>)>> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Integer(self.varint()?),
            1 => {
                self.take(8)?;
                Field::Fixed64
            }
            2 => {
                let length = self.varint()?;
                let length = usize::try_from(length).map_err(|_| self.error("a length beyond the end of the file"))?;
                let offset = self.offset + self.at;
                Field::Bytes { bytes: self.take(length)?, offset }
            }
            5 => {
                let bytes = self.take(4)?.try_into().expect("take(4) gives 4 bytes");
                Field::Fixed32(u32::from_le_bytes(bytes))
            }
            _ => return Err(self.error("an unknown kind of field (this is no SentencePiece model)")),
        };
        match key >> 3 {
            0 => Err(self.error("a field without a number (this is no SentencePiece model)")),
            number => Ok(Some((number, field))),
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..length).ok_or_else(|| self.error("a length beyond the end of the file"))?;
        self.at += length;
        Ok(taken)
    }

    /// Seven bits per byte, least significant first, at most 64 bits.
    fn varint(&mut self) -> Result<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.error("a number of more than 64 bits"))
    }
}

impl<'a> Field<'a> {
    fn message(&self, parent: &Message<'_>) -> Result<Message<'a>> {
        match self {
            Field::Bytes { bytes, offset } => Ok(Message::new(bytes, *offset)),
            _ => Err(parent.error("a field of the wrong type")),
        }
    }

    fn integer(&self, parent: &Message<'_>) -> Result<u64> {
        match self {
            Field::Integer(value) => Ok(*value),
            _ => Err(parent.error("a field of the wrong type")),
        }
    }

    fn float(&self, parent: &Message<'_>) -> Result<f32> {
        match self {
            Field::Fixed32(bits) => Ok(f32::from_bits(*bits)),
            _ => Err(parent.error("a field of the wrong type")),
        }
    }
}
