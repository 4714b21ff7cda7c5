//! `tokenizer.json`, the file format of the `tokenizers` library: reading and writing.
//!
//! The file is checked before anything is built from it, because the library panics on some broken merge lists and
//! would quietly do what no Gemma tokenizer does (another normalizer, another decoder). Two editions of Gemma's file
//! exist: one lists all 249 user-defined pieces as added tokens, the older one only four; see [`read`].
//!
//! Not used from the file: `post_processor` (the beginning of text is put in front by [`crate::Tokenizer`]),
//! `truncation` and `padding` (nothing is ever cut or padded).

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use serde::de::{self, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::control::{self, Family};
use crate::engine::Engine;
use crate::engine::merges::Merges;
use crate::names::{BOS, UNK};
use crate::sentencepiece::is_lfs_pointer;
use crate::vocabulary::{Kind, Listing, Vocabulary};
use crate::{Error, Result, TokenId};

const FILE: &str = "tokenizer.json";

#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow, default)]
    added_tokens: Vec<AddedToken<'a>>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    model: Model,
    /// The other fields; with them, serde reads an object and no array of the fields' values.
    #[serde(flatten)]
    _others: IgnoredAny,
}

#[derive(Deserialize, Serialize)]
struct AddedToken<'a> {
    id: u64,
    #[serde(borrow)]
    content: Cow<'a, str>,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    dropout: Option<f32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: Pieces,
    merges: Vec<Merge>,
    #[serde(flatten)]
    _others: IgnoredAny,
}

/// Reads a file into a vocabulary and an engine.
///
/// Control tokens are registered by name even where the file does not list them. When it is the older edition of
/// Gemma's file (the vocabulary has the run of 31 newlines, but it is not listed as an added token), the literal
/// pieces are recognised by name, too.
///
/// # Errors
/// A file that is not JSON of this shape, contradicts itself, or describes another kind of tokenizer.
pub(crate) fn read(bytes: &[u8], family: Family) -> Result<(Vocabulary, Engine)> {
    if is_lfs_pointer(bytes) {
        return Err(Error::Json { file: FILE, reason: "it is a Git LFS pointer, not the file itself".into() });
    }
    let file: File<'_> =
        serde_json::from_slice(bytes).map_err(|error| Error::Json { file: FILE, reason: error.to_string() })?;
    check(&file)?;

    let mut vocabulary = file.model.vocab.0?;
    let mut listed = HashMap::new();
    for token in file.added_tokens.iter().filter(|token| !token.content.is_empty()) {
        let id = vocabulary.insert(token.id, &token.content)?;
        listed.insert(id, if token.special { Listing::Special } else { Listing::Added });
    }
    control::adapt(&mut vocabulary, family)?;
    let listing = |id: TokenId| listed.get(&id).copied().unwrap_or(Listing::Ordinary);
    let older_edition = vocabulary.id(&"\n".repeat(31)).is_some_and(|id| listing(id) == Listing::Ordinary);
    vocabulary.classify(listing, older_edition);

    let merges = file.model.merges.into_iter().map(|Merge(left, right)| (left, right)).collect();
    let engine = Engine::Merges(Merges::new(&vocabulary, merges)?);
    Ok((vocabulary, engine))
}

/// Refuses what no Gemma tokenizer does.
fn check(file: &File<'_>) -> Result<()> {
    let model = &file.model;
    let refuse = |field: &'static str, value: String| Err(Error::Unsupported { file: FILE, field, value });
    match &model.kind {
        Some(kind) if kind != "BPE" => return refuse("model.type", shown(&json!(kind))),
        _ => {}
    }
    match model.dropout {
        Some(dropout) if dropout != 0.0 => return refuse("model.dropout", dropout.to_string()),
        _ => {}
    }
    for (field, affix) in [
        ("model.continuing_subword_prefix", &model.continuing_subword_prefix),
        ("model.end_of_word_suffix", &model.end_of_word_suffix),
    ] {
        if let Some(affix) = affix.as_ref().filter(|affix| !affix.is_empty()) {
            return refuse(field, shown(&json!(affix)));
        }
    }
    if !model.byte_fallback {
        return refuse("model.byte_fallback", "not true".into());
    }
    if model.ignore_merges {
        return refuse("model.ignore_merges", "true".into());
    }
    if in_sequence(&file.normalizer, "normalizers") != [&normalizer()] {
        return refuse("normalizer", shown(&file.normalizer));
    }
    // After the normalizer there is no space left, so a split at spaces never happens.
    let splits_at_spaces = file.pre_tokenizer["type"] == "Split" && file.pre_tokenizer["pattern"]["String"] == " ";
    if !file.pre_tokenizer.is_null() && !splits_at_spaces {
        return refuse("pre_tokenizer", shown(&file.pre_tokenizer));
    }
    let harmless = [space_decoder(), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if !in_sequence(&file.decoder, "decoders").iter().all(|step| harmless.contains(step)) {
        return refuse("decoder", shown(&file.decoder));
    }
    for token in &file.added_tokens {
        if token.single_word || token.lstrip || token.rstrip {
            return refuse("added_tokens[].single_word, lstrip or rstrip", format!("true for {:?}", token.content));
        }
    }
    Ok(())
}

/// The steps of a `Sequence`, or the one step there is.
fn in_sequence<'a>(value: &'a Value, field: &str) -> Vec<&'a Value> {
    match value {
        Value::Null => Vec::new(),
        value if value["type"] == "Sequence" => {
            value[field].as_array().map_or(vec![value], |steps| steps.iter().collect())
        }
        value => vec![value],
    }
}

/// A value for an error message, at most about one line long.
fn shown(value: &Value) -> String {
    crate::jinja::cut(&value.to_string())
}

fn normalizer() -> Value {
    json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
}

fn space_decoder() -> Value {
    json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "})
}

/// The `vocab` object, as a vocabulary, or what is wrong with it.
struct Pieces(Result<Vocabulary>);

impl<'de> Deserialize<'de> for Pieces {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct PiecesVisitor;
        impl<'de> Visitor<'de> for PiecesVisitor {
            type Value = Pieces;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of pieces and their numbers")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> std::result::Result<Pieces, A::Error> {
                let mut pieces = Ok(Vocabulary::default());
                while let Some((piece, id)) = map.next_entry::<Text<'de>, u64>()? {
                    pieces = pieces.and_then(|mut vocabulary| vocabulary.insert(id, &piece.0).map(|_| vocabulary));
                }
                Ok(Pieces(pieces))
            }
        }
        deserializer.deserialize_map(PiecesVisitor)
    }
}

/// A string, borrowed from the file unless it has escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> std::result::Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// One entry of `merges`: `"left right"` in older files, `["left", "right"]` in newer ones.
struct Merge(String, String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct MergeVisitor;
        impl<'de> Visitor<'de> for MergeVisitor {
            type Value = Merge;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("two pieces, as \"left right\" or as a pair")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<Merge, E> {
                let (left, right) = halves(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))?;
                Ok(Merge(left.to_owned(), right.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Merge, A::Error> {
                let left = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
                let right = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(1, &self))?;
                match seq.next_element::<de::IgnoredAny>()? {
                    None => Ok(Merge(left, right)),
                    Some(_) => Err(de::Error::invalid_length(3, &self)),
                }
            }
        }
        deserializer.deserialize_any(MergeVisitor)
    }
}

/// Both sides of the one space in `text`.
fn halves(text: &str) -> Option<(&str, &str)> {
    text.split_once(' ').filter(|(_, right)| !right.contains(' '))
}

/// Writes a file that `tokenizers` and transformers load, with every literal piece and control token listed.
///
/// # Errors
/// None in practice; serializing to memory reports errors as a matter of form.
pub(crate) fn write(vocabulary: &Vocabulary, engine: &Engine, bos: TokenId) -> Result<Vec<u8>> {
    let added: Vec<AddedToken<'_>> = vocabulary
        .iter()
        .filter(|(_, _, kind)| matches!(kind, Kind::Literal | Kind::Control { .. }))
        .map(|(id, piece, kind)| AddedToken {
            id: u64::from(id),
            content: piece.into(),
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            special: kind == Kind::Control { hidden: true },
        })
        .collect();
    let bos_token = json!({"SpecialToken": {"id": BOS, "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let file = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": normalizer(),
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos_token, text],
            "pair": [bos_token, text, {"SpecialToken": {"id": BOS, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {BOS: {"id": BOS, "ids": [bos], "tokens": [BOS]}},
        },
        "decoder": {"type": "Sequence", "decoders": [space_decoder(), {"type": "ByteFallback"}, {"type": "Fuse"}]},
    });
    let model = ModelOut {
        kind: "BPE",
        dropout: (),
        unk_token: vocabulary.id(UNK).map(|_| UNK),
        continuing_subword_prefix: (),
        end_of_word_suffix: (),
        fuse_unk: true,
        byte_fallback: true,
        ignore_merges: false,
        vocab: PiecesOut(vocabulary),
        merges: engine.merge_list(vocabulary)?,
    };
    serde_json::to_vec(&FileOut { file: &file, model })
        .map_err(|error| Error::Json { file: FILE, reason: error.to_string() })
}

#[derive(Serialize)]
struct FileOut<'a> {
    #[serde(flatten)]
    file: &'a Value,
    model: ModelOut<'a>,
}

#[derive(Serialize)]
struct ModelOut<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    dropout: (),
    unk_token: Option<&'static str>,
    continuing_subword_prefix: (),
    end_of_word_suffix: (),
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: PiecesOut<'a>,
    merges: Vec<(String, String)>,
}

struct PiecesOut<'a>(&'a Vocabulary);

impl Serialize for PiecesOut<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (id, piece, _) in self.0.iter() {
            map.serialize_entry(piece, &id)?;
        }
        map.end()
    }
}
