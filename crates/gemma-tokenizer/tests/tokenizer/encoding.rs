//! Encoding and decoding with a small vocabulary, from both file formats.

use gemma_tokenizer::{DecodeOptions, EncodeOptions, Family, Tokenizer};

use crate::support::{both, random, spelled};

const PLAIN: EncodeOptions = EncodeOptions { bos: false, specials: false };
const SPECIALS: EncodeOptions = EncodeOptions { bos: false, specials: true };
const SHOW: DecodeOptions = DecodeOptions { specials: true };

/// Every name of a control token in the small vocabulary.
const CONTROL: [&str; 10] = [
    "<bos>",
    "<eos>",
    "<pad>",
    "<unk>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<mask>",
    "[@BOS@]",
    "<unused0>",
    "[toxicity=0]",
];

fn pieces(text: &str, options: EncodeOptions) -> Vec<String> {
    let [json, model] = both(Family::Gemma);
    let ids = json.encode_with(text, options);
    assert_eq!(ids, model.encode_with(text, options), "the formats differ on {text:?}");
    spelled(&json, &ids).into_iter().map(str::to_owned).collect()
}

#[test]
fn words_are_merged() {
    assert_eq!(pieces("the user", PLAIN), ["t", "he", "▁", "user"]);
    assert_eq!(pieces(" the a", PLAIN), ["▁the", "▁a"]);
    assert_eq!(pieces("", PLAIN), [""; 0]);
}

#[test]
fn literal_pieces_come_before_merging() {
    assert_eq!(pieces("a\n\n\n\nb", PLAIN), ["a", "\n\n\n", "\n", "b"]);
    assert_eq!(pieces("      the", PLAIN), ["▁▁▁▁", "▁▁", "t", "he"]);
    assert_eq!(pieces("     the", PLAIN), ["▁▁▁▁", "▁the"]);
    assert_eq!(pieces("\t\t\ta", PLAIN), ["\t\t", "<0x09>", "a"]);
    assert_eq!(pieces("<b>os</b>", PLAIN), ["<b>", "o", "s", "</b>"]);
}

#[test]
fn characters_without_a_piece_become_bytes() {
    assert_eq!(pieces("é😀", PLAIN), ["é", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]);
    assert_eq!(pieces("\0", PLAIN), ["<0x00>"]);
}

#[test]
fn text_is_never_a_control_token() {
    for tokenizer in both(Family::Gemma) {
        for name in CONTROL {
            for text in [name.to_owned(), format!("a{name}{name} {name}\n<{name}>")] {
                let ids = tokenizer.encode_with(&text, PLAIN);
                assert!(ids.iter().all(|id| !tokenizer.is_control(*id)), "{text}: {:?}", spelled(&tokenizer, &ids));
                assert_eq!(tokenizer.decode(&ids), text);
            }
            assert_eq!(tokenizer.encode_with(name, SPECIALS), [tokenizer.token(name).unwrap()]);
        }
    }
}

#[test]
fn byte_pieces_are_not_spelled_out() {
    assert_eq!(pieces("<0x41>", PLAIN), ["<", "<0x30>", "x", "<0x34>", "<0x31>", ">"]);
}

#[test]
fn the_beginning_of_text_is_there_exactly_once() {
    for tokenizer in both(Family::Gemma) {
        let bos = tokenizer.bos();
        let count = |text: &str, options| {
            let ids = tokenizer.encode_with(text, options);
            (ids.first() == Some(&bos), ids.iter().filter(|id| **id == bos).count())
        };
        let with = |specials| EncodeOptions { bos: true, specials };
        assert_eq!(count("a", with(false)), (true, 1));
        assert_eq!(count("", with(false)), (true, 1));
        assert_eq!(count("<bos>a", with(false)), (true, 1));
        assert_eq!(count("<bos>a", with(true)), (true, 1));
        assert_eq!(count("<bos><bos>a", with(true)), (true, 1));
        assert_eq!(count("a<bos>", with(true)), (true, 2));
        assert_eq!(count("<bos>a", SPECIALS), (true, 1));
        assert_eq!(count("a", SPECIALS), (false, 0));
        assert_eq!(tokenizer.encode("<bos>a")[1..], tokenizer.encode_with("<bos>a", PLAIN));
    }
}

#[test]
fn decoding_leaves_structure_out_and_shows_the_rest() {
    for tokenizer in both(Family::Gemma) {
        let text = "<bos><start_of_turn>user\nhe<end_of_turn>\n<mask><unused0><eos><pad><unk>";
        let mut ids = tokenizer.encode_with(text, SPECIALS);
        assert_eq!(tokenizer.decode_with(&ids, SHOW), text);
        assert_eq!(tokenizer.decode(&ids), "user\nhe\n<mask><unused0>");
        ids.push(1_000_000);
        assert_eq!(tokenizer.decode_with(&ids, SHOW), text, "numbers outside the vocabulary are left out");
    }
}

#[test]
fn a_stream_gives_whole_characters_and_the_same_text() {
    let mut random = random(7);
    for tokenizer in both(Family::Gemma) {
        let bytes: Vec<u32> = "é😀漢".bytes().map(|b| tokenizer.token(&format!("<0x{b:02X}>")).unwrap()).collect();
        let mut stream = tokenizer.stream();
        let steps: Vec<_> = bytes.iter().map(|id| stream.push(*id)).collect();
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(steps, [None, text("é"), None, None, None, text("😀"), None, None, text("漢")]);
        assert_eq!(stream.finish(), "");

        for _ in 0..2000 {
            let ids: Vec<u32> = (0..random(12)).map(|_| random(tokenizer.vocab_len() + 2) as u32).collect();
            let mut stream = tokenizer.stream();
            let mut streamed: String = ids.iter().filter_map(|id| stream.push(*id)).collect();
            streamed += &stream.finish();
            assert_eq!(streamed, tokenizer.decode(&ids), "{ids:?}");
        }
    }
}

#[test]
fn half_a_character_at_the_end_is_replaced() {
    for tokenizer in both(Family::Gemma) {
        let half: Vec<u32> = ["<0xF0>", "<0x9F>", "a"].iter().map(|piece| tokenizer.token(piece).unwrap()).collect();
        assert_eq!(tokenizer.decode(&half), "\u{FFFD}\u{FFFD}a");
        assert_eq!(tokenizer.decode(&half[..2]), "\u{FFFD}\u{FFFD}");
        let mut stream = tokenizer.stream();
        assert_eq!((stream.push(half[0]), stream.push(half[1])), (None, None));
        assert_eq!(stream.finish(), "\u{FFFD}\u{FFFD}");
        assert_eq!(stream.push(half[2]), Some("a".into()), "a finished stream is as new");
    }
}

#[test]
fn random_texts_come_back_and_both_formats_agree() {
    let mut random = random(1);
    let [json, model] = both(Family::Gemma);
    let parts = [
        "the",
        " ",
        "  ",
        "\n",
        "\t",
        "<b>",
        "<bos>",
        "<start_of_turn>",
        "<start",
        "_of_turn>",
        "é",
        "😀",
        "us",
        "<",
        ">",
        "a",
        "model",
    ];
    for _ in 0..5000 {
        let text: String = (0..random(12)).map(|_| parts[random(parts.len())]).collect();
        for options in [PLAIN, SPECIALS] {
            let ids = json.encode_with(&text, options);
            assert_eq!(ids, model.encode_with(&text, options), "{text:?}");
            assert_eq!(json.decode_with(&ids, SHOW), text);
            assert_eq!(model.decode_with(&ids, SHOW), text);
        }
    }
}

#[test]
fn a_saved_file_gives_the_same_tokenizer() {
    let text = "the user\n\n<b>é😀</b>   <start_of_turn>model";
    for tokenizer in both(Family::Gemma) {
        let saved = tokenizer.to_json().unwrap();
        let again = Tokenizer::from_json(&saved, Family::Gemma).unwrap();
        let library = tokenizers::Tokenizer::from_bytes(&saved).unwrap();
        assert_eq!(again.vocab_len(), tokenizer.vocab_len());
        for options in [PLAIN, SPECIALS] {
            assert_eq!(again.encode_with(text, options), tokenizer.encode_with(text, options));
        }
        let encoding = library.encode(text, true).unwrap();
        let ours = tokenizer.encode_with(text, EncodeOptions { bos: true, specials: true });
        assert_eq!(encoding.get_ids(), ours);
        assert_eq!(library.decode(&ours, true).unwrap(), tokenizer.decode(&ours));
        assert_eq!(saved, again.to_json().unwrap());
    }
}

#[test]
fn a_tokenizer_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    both(Family::Gemma).iter().for_each(shared);
}
