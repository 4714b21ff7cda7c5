//! Broken and hostile files: an error of one line, never a panic, never gigabytes.

use gemma_tokenizer::{Error, Family, Tokenizer};
use serde_json::{Value, json};

use crate::support::{
    BYTE, CONTROL, Piece, bytes_field, integer_field, json, pieces, random, sentencepiece, sentencepiece_with,
};

fn from_json(file: &Value) -> Result<Tokenizer, Error> {
    Tokenizer::from_json(file.to_string().as_bytes(), Family::Gemma)
}

fn from_model(file: &[u8]) -> Result<Tokenizer, Error> {
    Tokenizer::from_sentencepiece(file, Family::Gemma)
}

/// The error of a file with one field changed.
fn json_error(path: &str, value: Value) -> Error {
    let mut file = json(&pieces());
    *file.pointer_mut(path).unwrap() = value;
    let error = from_json(&file).unwrap_err();
    assert!(!error.to_string().contains('\n'), "{error}");
    error
}

#[test]
fn json_of_another_kind_is_refused_by_name() {
    let unsupported = |path, value, wanted: &str| match json_error(path, value) {
        Error::Unsupported { field, .. } => assert_eq!(field, wanted),
        other => panic!("{path}: {other}"),
    };
    unsupported("/model/type", json!("Unigram"), "model.type");
    unsupported("/model/dropout", json!(0.1), "model.dropout");
    unsupported("/model/end_of_word_suffix", json!("</w>"), "model.end_of_word_suffix");
    unsupported("/model/continuing_subword_prefix", json!("##"), "model.continuing_subword_prefix");
    unsupported("/model/ignore_merges", json!(true), "model.ignore_merges");
    unsupported("/normalizer", json!({"type": "NFKC"}), "normalizer");
    unsupported("/normalizer", json!(null), "normalizer");
    unsupported("/pre_tokenizer", json!({"type": "ByteLevel", "add_prefix_space": false}), "pre_tokenizer");
    unsupported("/decoder", json!({"type": "ByteLevel"}), "decoder");
    let strip = json!({"type": "Sequence", "decoders": [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    unsupported("/decoder", strip, "decoder");
    unsupported("/added_tokens/0/lstrip", json!(true), "added_tokens[].single_word, lstrip or rstrip");
}

#[test]
fn json_variants_of_the_same_meaning_are_accepted() {
    let mut file = json(&pieces());
    let expected = from_json(&file).unwrap().encode("the user  a\n");
    file["pre_tokenizer"] = json!(null);
    file["normalizer"] = json!({"type": "Sequence", "normalizers": [file["normalizer"].clone()]});
    file["model"].as_object_mut().unwrap().remove("type");
    file["truncation"] = json!({"max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"});
    for merge in file["model"]["merges"].as_array_mut().unwrap() {
        let (left, right) = merge.as_str().unwrap().split_once(' ').unwrap();
        *merge = json!([left, right]);
    }
    assert_eq!(from_json(&file).unwrap().encode("the user  a\n"), expected);
}

#[test]
fn contradictions_in_json_are_named() {
    assert!(matches!(json_error("/added_tokens/0/id", json!(7)), Error::PieceTwice { first: 0, second: 7, .. }));
    assert!(matches!(json_error("/added_tokens/0/content", json!("<new>")), Error::IdTwice { id: 0, .. }));
    let mut file = json(&pieces());
    file["model"]["vocab"]["a"] = json!(4_000_000_000_u64);
    assert!(matches!(from_json(&file), Err(Error::IdTooLarge { id: 4_000_000_000, .. })));
    file["model"]["vocab"]["a"] = json!(5);
    assert!(matches!(from_json(&file), Err(Error::IdTwice { id: 5, .. })));
    file["model"]["vocab"]["a"] = json!(-1);
    assert!(matches!(from_json(&file), Err(Error::Json { .. })));
}

#[test]
fn merges_that_make_no_piece_are_errors() {
    let long = ["<start_of", "<start_of_turn"];
    for merge in [json!("no such"), json!(["t", "é"]), json!(long), json!("a"), json!("a b c"), json!(["a"]), json!(3)]
    {
        let error = json_error("/model/merges/0", merge.clone());
        assert!(matches!(error, Error::Json { .. } | Error::Merge { .. }), "{merge}: {error}");
    }
    let error = json_error("/model/merges/0", json!(["</blockquote></blockquote>", "</b>"]));
    assert!(matches!(error, Error::Merge { .. }), "{error}");
}

#[test]
fn files_that_are_something_else_are_errors() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:61a7\nsize 4241003\n";
    for file in [&b""[..], b"{}", b"[1, 2", b"null", pointer, &[0xFF; 100], b"{\"model\": {\"vocab\": 3}}"] {
        for error in [Tokenizer::from_json(file, Family::Gemma).unwrap_err(), from_model(file).unwrap_err()] {
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
    assert!(from_model(pointer).unwrap_err().to_string().contains("Git LFS"));
    let deep = "[".repeat(100_000);
    assert!(Tokenizer::from_json(deep.as_bytes(), Family::Gemma).is_err());
}

#[test]
fn a_sentencepiece_model_of_another_kind_is_refused_by_name() {
    let bpe = [(3, 2), (35, 1)];
    let identity = [(3, 0), (4, 0), (5, 1)];
    let field = |trainer: &[(u64, u64)], normalizer: &[(u64, u64)]| match from_model(&sentencepiece_with(
        &pieces(),
        trainer,
        normalizer,
    )) {
        Err(Error::Unsupported { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(&[], &identity), "trainer_spec.model_type");
    assert_eq!(field(&[(3, 1)], &identity), "trainer_spec.model_type");
    assert_eq!(field(&[(3, 2), (24, 1)], &identity), "trainer_spec.treat_whitespace_as_suffix");
    assert_eq!(field(&bpe, &[]), "normalizer_spec.add_dummy_prefix");
    assert_eq!(field(&bpe, &[(3, 0)]), "normalizer_spec.remove_extra_whitespaces");
    assert_eq!(field(&bpe, &[(3, 0), (4, 0), (5, 0)]), "normalizer_spec.escape_whitespaces");
    let mut with_map = sentencepiece(&pieces());
    let mut normalizer = Vec::new();
    bytes_field(&mut normalizer, 2, b"map");
    bytes_field(&mut with_map, 3, &normalizer);
    let error = from_model(&with_map).unwrap_err();
    assert!(matches!(error, Error::Unsupported { field: "normalizer_spec.precompiled_charsmap (bytes)", .. }));
}

#[test]
fn unknown_fields_of_a_sentencepiece_model_are_skipped() {
    let mut file = sentencepiece(&pieces());
    integer_field(&mut file, 99, u64::MAX);
    bytes_field(&mut file, 100, b"anything");
    file.extend([101 << 3 & 0x7F | 0x80 | 1, (101_u32 << 3 >> 7) as u8, 1, 2, 3, 4, 5, 6, 7, 8]); // 64 bits
    assert_eq!(from_model(&file).unwrap().encode("the"), from_model(&sentencepiece(&pieces())).unwrap().encode("the"));
}

#[test]
fn broken_wire_format_is_an_error_with_its_place() {
    let good = sentencepiece(&pieces());
    let rejected = |tail: &[u8]| {
        let error = from_model(&[&good, tail].concat()).unwrap_err();
        match error {
            Error::SentencePiece { offset, .. } => assert!(offset >= good.len() && offset <= good.len() + tail.len()),
            other => panic!("{other}"),
        }
    };
    rejected(&[0x0A]); // a field without its length
    rejected(&[0x0A, 0x05, 0x01]); // a length beyond the end
    rejected(&[0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F]); // 2^63 - 1 bytes
    rejected(&[0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01]); // 2^64 - 1 bytes
    rejected(&[0x80; 11]); // a number that does not end
    rejected(&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x02]); // more than 64 bits
    rejected(&[0x0B]); // a group
    rejected(&[0x02, 0x00]); // field number 0
    rejected(&[0x08, 0x01]); // a piece that is a number
    rejected(&[0x0D, 1, 2, 3, 4]); // a piece that is four bytes
    rejected(&[0x0A, 0x00]); // a piece without text
    rejected(&[0x0A, 0x04, 0x0A, 0x02, 0xC3, 0x28]); // not UTF-8
    rejected(&[0x0A, 0x05, 0x0A, 0x01, 0x71, 0x18, 0x07]); // a piece of a type that does not exist
    rejected(&[0x0A, 0x05, 0x0A, 0x01, 0x71, 0x10, 0x05]); // a score that is an integer
    rejected(&[0x0A, 0x02, 0x0A, 0x05]); // a text longer than its piece
    let twice = [&good[..], &[0x0A, 0x03, 0x0A, 0x01, b'a']].concat();
    assert!(matches!(from_model(&twice), Err(Error::PieceTwice { piece, .. }) if piece == "a"));
    assert!(matches!(from_model(&sentencepiece(&[])), Err(Error::SentencePiece { .. })));
}

#[test]
fn nothing_merges_into_an_unused_piece() {
    let text = "[PAD7]";
    let alone = from_model(&sentencepiece(&pieces())).unwrap().encode(text);
    let mut file = sentencepiece(&pieces());
    let mut piece = Vec::new();
    bytes_field(&mut piece, 1, text.as_bytes());
    integer_field(&mut piece, 3, 5); // UNUSED
    bytes_field(&mut file, 1, &piece);
    assert_eq!(from_model(&file).unwrap().encode(text), alone);
}

#[test]
fn strange_scores_do_no_harm() {
    let mut file = sentencepiece(&pieces());
    for (index, score) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0].into_iter().enumerate() {
        let mut piece = Vec::new();
        bytes_field(&mut piece, 1, "th".repeat(index + 1).as_bytes());
        piece.push(2 << 3 | 5);
        piece.extend(score.to_le_bytes());
        bytes_field(&mut file, 1, &piece);
    }
    let tokenizer = from_model(&file).unwrap();
    let text = "thththththth the th";
    assert_eq!(tokenizer.decode(&tokenizer.encode(text)), text);
}

#[test]
fn mutated_files_never_panic() {
    let mut random = random(11);
    let few: Vec<Piece> = pieces().into_iter().filter(|(_, kind)| *kind != BYTE).collect();
    let files = [json(&few).to_string().into_bytes(), sentencepiece(&pieces())];
    let text = "the <b>user</b>\n\n<bos>  é";
    let mut loaded = 0;
    for round in 0..4000 {
        let mut file = files[round % 2].clone();
        for _ in 0..=random(3) {
            let at = random(file.len());
            match random(4) {
                0 => file[at] = random(256) as u8,
                1 => file[at] ^= 1 << random(8),
                2 => file.truncate(at),
                _ => {
                    let end = (at + random(20)).min(file.len());
                    file.drain(at..end);
                }
            }
            if file.is_empty() {
                break;
            }
        }
        for family in [Family::Gemma, Family::PaliGemma, Family::CodeGemma] {
            let result = match round % 2 {
                0 => Tokenizer::from_json(&file, family),
                _ => Tokenizer::from_sentencepiece(&file, family),
            };
            match result {
                Ok(tokenizer) => {
                    loaded += 1;
                    let ids = tokenizer.encode(text);
                    assert!(
                        ids[1..].iter().all(|id| !tokenizer.is_control(*id) || Some(*id) == tokenizer.token("<unk>"))
                    );
                    tokenizer.decode(&ids);
                    tokenizer.to_json().unwrap();
                }
                Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
            }
        }
    }
    assert!(loaded > 100, "only {loaded} mutated files were still readable");
}

#[test]
fn an_empty_name_is_no_token() {
    let mut file = json(&pieces());
    file["added_tokens"].as_array_mut().unwrap().push(json!({"id": 5000, "content": "", "special": true}));
    let tokenizer = from_json(&file).unwrap();
    assert_eq!(tokenizer.decode(&tokenizer.encode("the")), "the");
    let unnamed: Vec<Piece> = vec![(String::new(), CONTROL)];
    assert!(from_model(&sentencepiece(&unnamed)).is_err());
}

/// A parser quotes the whole of a value of another type.
#[test]
fn what_a_message_quotes_of_a_file_is_cut() {
    let file = format!("\"{}\\u0085\"", "x".repeat(100_000));
    let error = Tokenizer::from_json(file.as_bytes(), Family::Gemma).unwrap_err().to_string();
    assert!(error.len() < 400 && !error.contains(char::is_control), "{error}");
    assert!(error.contains("invalid type") && error.contains("line 1"), "{error}");
}
