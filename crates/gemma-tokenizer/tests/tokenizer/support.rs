//! A small vocabulary with everything that Gemma's has, in both file formats, made in memory.

use gemma_tokenizer::{Family, TokenId, Tokenizer};
use serde_json::{Value, json};

/// SentencePiece's types of pieces.
pub(crate) const NORMAL: u64 = 1;
pub(crate) const UNKNOWN: u64 = 2;
pub(crate) const CONTROL: u64 = 3;
pub(crate) const USER_DEFINED: u64 = 4;
pub(crate) const BYTE: u64 = 6;

/// A piece with its type; its number is its place in the list, its score falls with its number.
pub(crate) type Piece = (String, u64);

/// Control tokens under other numbers than Gemma's, literal pieces, bytes, characters, and a few words.
pub(crate) fn pieces() -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut add = |kind: u64, texts: &[&str]| pieces.extend(texts.iter().map(|text| ((*text).to_owned(), kind)));
    add(CONTROL, &["<eos>", "<bos>", "<pad>"]);
    add(UNKNOWN, &["<unk>"]);
    add(USER_DEFINED, &["<start_of_turn>", "<end_of_turn>", "<mask>", "[@BOS@]", "<unused0>", "[toxicity=0]"]);
    add(USER_DEFINED, &["\n", "\n\n", "\n\n\n", "▁▁", "▁▁▁", "▁▁▁▁", "\t\t", "<b>", "</b>"]);
    pieces.extend((0..256).map(|byte| (format!("<0x{byte:02X}>"), BYTE)));
    let mut add = |texts: &[&str]| pieces.extend(texts.iter().map(|text| ((*text).to_owned(), NORMAL)));
    add(&[
        "he", "▁t", "▁the", "us", "er", "user", "mo", "mod", "el", "model", "bos", "<b", "of", "_t", "ur", "turn", "▁a",
    ]);
    add(&["<st", "art", "<start", "_of", "_turn", "<start_of", "_turn>", "é"]);
    let letters: Vec<String> = ('a'..='z').chain("<>[]@_/.!▁".chars()).map(String::from).collect();
    pieces.extend(letters.into_iter().map(|letter| (letter, NORMAL)));
    pieces
}

/// The score of piece `id`: the higher the number, the lower.
fn score((_, kind): &Piece, id: usize) -> f32 {
    if *kind == NORMAL { -(id as f32) } else { 0.0 }
}

/// The pieces as a `tokenizer.model`.
pub(crate) fn sentencepiece(pieces: &[Piece]) -> Vec<u8> {
    sentencepiece_with(pieces, &[(3, 2), (35, 1)], &[(3, 0), (4, 0), (5, 1)])
}

/// The pieces as a `tokenizer.model` with other settings: field numbers and values of trainer and normalizer.
pub(crate) fn sentencepiece_with(pieces: &[Piece], trainer: &[(u64, u64)], normalizer: &[(u64, u64)]) -> Vec<u8> {
    let mut file = Vec::new();
    for (id, piece) in pieces.iter().enumerate() {
        let mut message = Vec::new();
        bytes_field(&mut message, 1, piece.0.as_bytes());
        varint(&mut message, 2 << 3 | 5);
        message.extend(score(piece, id).to_le_bytes());
        integer_field(&mut message, 3, piece.1);
        bytes_field(&mut file, 1, &message);
    }
    for (number, fields) in [(2, trainer), (3, normalizer)] {
        let mut message = Vec::new();
        fields.iter().for_each(|(number, value)| integer_field(&mut message, *number, *value));
        bytes_field(&mut file, number, &message);
    }
    file
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn integer_field(out: &mut Vec<u8>, number: u64, value: u64) {
    varint(out, number << 3);
    varint(out, value);
}

pub(crate) fn bytes_field(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    varint(out, number << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// The pieces as a `tokenizer.json`, as the newer edition of Gemma's file is made.
pub(crate) fn json(pieces: &[Piece]) -> Value {
    let id = |text: &str| pieces.iter().position(|(piece, _)| piece == text);
    let added: Vec<Value> = pieces
        .iter()
        .enumerate()
        .filter(|(_, (_, kind))| matches!(*kind, UNKNOWN | CONTROL | USER_DEFINED))
        .map(|(id, (text, kind))| {
            let special = *kind != USER_DEFINED || text.ends_with("_of_turn>");
            json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special})
        })
        .collect();
    // Longer user-defined pieces first, then the others by score, each in all its splits.
    let mut merges = Vec::new();
    for (whole, piece) in pieces.iter().enumerate() {
        for (cut, _) in piece.0.char_indices().skip(1) {
            if let (Some(left), Some(right)) = (id(&piece.0[..cut]), id(&piece.0[cut..])) {
                let rank = if piece.1 == NORMAL { whole as isize } else { -(cut as isize) };
                merges.push((rank, whole, format!("{} {}", pieces[left].0, pieces[right].0)));
            }
        }
    }
    merges.sort();
    let vocab: serde_json::Map<String, Value> =
        pieces.iter().enumerate().map(|(id, (text, _))| (text.clone(), json!(id))).collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false},
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab,
            "merges": merges.into_iter().map(|(_, _, merge)| merge).collect::<Vec<_>>(),
        },
    })
}

/// The small tokenizer, once from each format.
pub(crate) fn both(family: Family) -> [Tokenizer; 2] {
    let pieces = pieces();
    [
        Tokenizer::from_json(json(&pieces).to_string().as_bytes(), family).unwrap(),
        Tokenizer::from_sentencepiece(&sentencepiece(&pieces), family).unwrap(),
    ]
}

/// The pieces of tokens, for assertions that can be read.
pub(crate) fn spelled<'t>(tokenizer: &'t Tokenizer, ids: &[TokenId]) -> Vec<&'t str> {
    ids.iter().map(|id| tokenizer.piece(*id).unwrap()).collect()
}

/// A repeatable source of numbers below a bound.
pub(crate) fn random(mut state: u64) -> impl FnMut(usize) -> usize {
    move |bound| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    }
}
