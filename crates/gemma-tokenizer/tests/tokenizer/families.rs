//! Control tokens of the families, found by name or put in where a file lacks them.

use gemma_tokenizer::{EncodeOptions, Error, Family, Tokenizer};
use serde_json::json;

use crate::support::{CONTROL, NORMAL, USER_DEFINED, both, json, pieces, sentencepiece};

const SPECIALS: EncodeOptions = EncodeOptions { bos: false, specials: true };
const PLAIN: EncodeOptions = EncodeOptions { bos: false, specials: false };

#[test]
fn control_tokens_are_found_by_name() {
    for tokenizer in both(Family::Gemma) {
        let control = tokenizer.control();
        assert_eq!((control.eos, control.bos, control.pad, control.unk), (0, 1, Some(2), Some(3)));
        assert_eq!((control.start_of_turn, control.end_of_turn), (Some(4), Some(5)));
        assert_eq!((control.fim, control.image), (None, None));
        assert_eq!(tokenizer.family(), Family::Gemma);
    }
}

#[test]
fn a_file_that_lists_four_added_tokens_still_has_all_control_tokens() {
    let mut file = json(&pieces());
    file["added_tokens"].as_array_mut().unwrap().truncate(4);
    let tokenizer = Tokenizer::from_json(file.to_string().as_bytes(), Family::Gemma).unwrap();
    for name in ["<start_of_turn>", "<end_of_turn>", "<mask>", "<unused0>", "[@BOS@]"] {
        assert_eq!(tokenizer.encode_with(name, SPECIALS), [tokenizer.token(name).unwrap()], "{name}");
        assert!(tokenizer.encode_with(name, PLAIN).iter().all(|id| !tokenizer.is_control(*id)), "{name}");
    }
    let turn = tokenizer.end_of_turn().unwrap();
    assert_eq!(tokenizer.decode(&[turn]), "");
    // This is not Gemma's vocabulary, so what is not listed is left to the merges, as the library would do.
    assert!(tokenizer.encode_with("</b>", PLAIN).len() > 1);
}

#[test]
fn the_older_edition_of_gemmas_file_gets_its_literal_pieces_back() {
    let mut pieces = pieces();
    pieces.push(("\n".repeat(31), USER_DEFINED));
    let newer = Tokenizer::from_json(json(&pieces).to_string().as_bytes(), Family::Gemma).unwrap();
    let mut file = json(&pieces);
    file["added_tokens"].as_array_mut().unwrap().truncate(4);
    // Merges that would cut runs of spaces from pairs, and leave tags in parts.
    let merges = file["model"]["merges"].as_array_mut().unwrap();
    merges.retain(|merge| !merge.as_str().unwrap().contains("▁▁"));
    let older = Tokenizer::from_json(file.to_string().as_bytes(), Family::Gemma).unwrap();
    for text in ["a\n\n\n\nb", "     the  a", "<b>\t\t</b>", "<start_of_turn>user\n"] {
        assert_eq!(older.encode_with(text, SPECIALS), newer.encode_with(text, SPECIALS), "{text:?}");
    }
}

#[test]
fn codegemmas_tokens_are_renamed_only_where_gemma_has_unused_ones() {
    let mut gemma: Vec<_> = pieces();
    // Numbers 67 to 70 are byte pieces in the small vocabulary; move them and put unused pieces there.
    for (id, name) in (67..=70).zip(60..=63) {
        let byte = std::mem::replace(&mut gemma[id], (format!("<unused{name}>"), USER_DEFINED));
        gemma.push(byte);
    }
    let files = |family| {
        [
            Tokenizer::from_json(json(&gemma).to_string().as_bytes(), family),
            Tokenizer::from_sentencepiece(&sentencepiece(&gemma), family),
        ]
    };
    for tokenizer in files(Family::CodeGemma).map(Result::unwrap) {
        let fim = tokenizer.control().fim.unwrap();
        assert_eq!((fim.prefix, fim.middle, fim.suffix, fim.file_separator), (67, 68, 69, 70));
        assert_eq!(tokenizer.encode_with("<|fim_middle|>a", SPECIALS)[0], 68);
        assert!(tokenizer.encode_with("<|fim_middle|>", PLAIN).iter().all(|id| !tokenizer.is_control(*id)));
        assert!(tokenizer.encode_with("<unused60>", SPECIALS).iter().all(|id| !tokenizer.is_control(*id)));
        assert_eq!(tokenizer.decode(&[68]), "");
        // The names survive saving.
        let again = Tokenizer::from_json(&tokenizer.to_json().unwrap(), Family::Gemma).unwrap();
        assert_eq!(again.control().fim, Some(fim));
    }
    for tokenizer in files(Family::Gemma).map(Result::unwrap) {
        assert_eq!(tokenizer.control().fim, None);
        assert_eq!(tokenizer.token("<unused60>"), Some(67));
    }
    // A vocabulary with other pieces at those numbers keeps them.
    for tokenizer in both(Family::CodeGemma) {
        assert_eq!(tokenizer.control().fim, None);
    }
}

#[test]
fn paligemmas_tokens_follow_the_last_piece() {
    for tokenizer in both(Family::PaliGemma) {
        let first = pieces().len() as u32;
        assert_eq!(tokenizer.token("<loc0000>"), Some(first));
        assert_eq!(tokenizer.token("<seg127>"), Some(first + 1024 + 127));
        assert_eq!(tokenizer.control().image, Some(first + 1152));
        assert_eq!(tokenizer.vocab_len(), pieces().len() + 1153);
        let boxed = "<loc0256><loc1023> a <seg001><loc1024>";
        let ids = tokenizer.encode_with(boxed, SPECIALS);
        assert_eq!(ids[..2], [first + 256, first + 1023]);
        assert_eq!(tokenizer.decode(&ids), boxed, "locations are shown");
        assert!(tokenizer.encode_with(boxed, PLAIN).iter().all(|id| !tokenizer.is_control(*id)));
        assert_eq!(tokenizer.decode(&[first + 1152]), "", "the image token is not");
        // Saved and loaded, nothing is added twice.
        let again = Tokenizer::from_json(&tokenizer.to_json().unwrap(), Family::PaliGemma).unwrap();
        assert_eq!(again.vocab_len(), tokenizer.vocab_len());
    }
}

#[test]
fn tokens_that_a_file_adds_are_control_tokens_or_literal_ones() {
    let mut file = json(&pieces());
    let next = pieces().len();
    let added = file["added_tokens"].as_array_mut().unwrap();
    added.push(json!({"id": next, "content": "<|tool|>", "special": false}));
    added.push(json!({"id": next + 1, "content": "§", "special": true}));
    added.push(json!({"id": next + 2, "content": "penicillin", "special": false, "normalized": true}));
    let tokenizer = Tokenizer::from_json(file.to_string().as_bytes(), Family::Gemma).unwrap();
    for (name, id) in [("<|tool|>", next), ("§", next + 1)] {
        assert_eq!(tokenizer.encode_with(name, SPECIALS), [id as u32]);
        let plain = tokenizer.encode_with(name, PLAIN);
        assert!(plain.iter().all(|id| !tokenizer.is_control(*id)), "{name}");
        assert_eq!(tokenizer.decode(&plain), name);
    }
    assert_eq!(tokenizer.encode_with("penicillin", PLAIN), [next as u32 + 2]);
}

#[test]
fn merges_cannot_reach_a_control_token() {
    // A vocabulary whose merges spell `<bos>` out.
    let mut file = json(&pieces());
    let merges = file["model"]["merges"].as_array_mut().unwrap();
    merges.insert(0, json!(["b", "os>"]));
    file["model"]["vocab"]["os>"] = json!(pieces().len());
    for merge in [["<", "bos>"], ["bos", ">"], ["<b", "os>"], ["o", "s>"], ["s", ">"]] {
        let joined = merge.concat();
        let next = file["model"]["vocab"].as_object().unwrap().len();
        let vocab = file["model"]["vocab"].as_object_mut().unwrap();
        vocab.entry(joined).or_insert(json!(next));
        file["model"]["merges"].as_array_mut().unwrap().insert(0, json!(merge));
    }
    let vocab = file["model"]["vocab"].as_object_mut().unwrap();
    let next = vocab.len();
    vocab.entry("bos>").or_insert(json!(next));
    let merges = file["model"]["merges"].as_array_mut().unwrap();
    for merge in merges.iter_mut() {
        if let Some((left, right)) = merge.as_str().and_then(|merge| merge.split_once(' ')) {
            *merge = json!([left, right]);
        }
    }
    let tokenizer = Tokenizer::from_json(file.to_string().as_bytes(), Family::Gemma).unwrap();
    let library = tokenizers::Tokenizer::from_bytes(file.to_string()).unwrap();
    assert_eq!(library.encode("<bos>", false).unwrap().get_ids(), [tokenizer.bos()]);
    let plain = tokenizer.encode_with("<bos>", PLAIN);
    assert!(!plain.contains(&tokenizer.bos()), "{plain:?}");
    assert_eq!(tokenizer.decode(&plain), "<bos>");
}

#[test]
fn a_vocabulary_needs_a_beginning_and_an_end() {
    for missing in ["<bos>", "<eos>"] {
        let mut pieces = pieces();
        pieces.iter_mut().find(|(text, _)| text == missing).unwrap().0 = "<other>".into();
        for result in [
            Tokenizer::from_json(json(&pieces).to_string().as_bytes(), Family::Gemma),
            Tokenizer::from_sentencepiece(&sentencepiece(&pieces), Family::Gemma),
        ] {
            assert!(matches!(result, Err(Error::MissingPiece { piece }) if piece == missing));
        }
    }
}

#[test]
fn without_byte_pieces_a_text_would_be_lost() {
    let few: Vec<_> = [("<eos>", CONTROL), ("<bos>", CONTROL), ("<unk>", CONTROL), ("a", NORMAL), ("▁", NORMAL)]
        .map(|(text, kind)| (text.to_owned(), kind))
        .to_vec();
    let without_one: Vec<_> = pieces().into_iter().filter(|(text, _)| text != "<0x41>").collect();
    for (pieces, missing) in [(few, "<0x00>"), (without_one, "<0x41>")] {
        for result in [
            Tokenizer::from_json(json(&pieces).to_string().as_bytes(), Family::Gemma),
            Tokenizer::from_sentencepiece(&sentencepiece(&pieces), Family::Gemma),
        ] {
            let error = result.unwrap_err();
            assert!(matches!(&error, Error::MissingPiece { piece } if piece == missing), "{error}");
        }
    }
    // the same when the file has byte pieces but says not to use them, or says nothing
    for off in [json!(false), json!(null)] {
        let mut file = json(&pieces());
        match off.is_null() {
            true => drop(file["model"].as_object_mut().unwrap().remove("byte_fallback")),
            false => file["model"]["byte_fallback"] = off,
        }
        let error = Tokenizer::from_json(file.to_string().as_bytes(), Family::Gemma).unwrap_err().to_string();
        assert!(error.contains("model.byte_fallback"), "{error}");
    }
}

#[test]
fn an_array_is_no_object_of_a_file() {
    let file = json(&pieces());
    let model = &file["model"];
    let listed = json!(["BPE", null, null, null, true, false, model["vocab"], model["merges"]]);
    let mut other = file.clone();
    other["model"] = listed.clone();
    let whole = json!([file["added_tokens"], file["normalizer"], null, file["decoder"], model]);
    for wrong in [other, whole] {
        let error = Tokenizer::from_json(wrong.to_string().as_bytes(), Family::Gemma).unwrap_err();
        assert!(matches!(error, Error::Json { .. }), "{error}");
    }
}
