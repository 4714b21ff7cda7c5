//! Stores a [`Vocabulary`] in the three files that a Hugging Face folder of a Gemma model has.
//!
//! The structure is that of Gemma's own files: BPE with byte fallback, spaces replaced by `▁` before and back
//! after, `<bos>` in front, control tokens and runs of white space matched before the merges. Only the pieces
//! differ, and their ids.

use serde_json::{Value, json};

use crate::bpe::{LONGEST_RUN, SPACE, Vocabulary};

/// Gemma's chat template: turns alternate, "assistant" is called "model", there is no system turn.
pub const CHAT_TEMPLATE: &str = concat!(
    "{{ bos_token }}",
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}",
    "{% for message in messages %}",
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}",
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}",
    "{% endif %}",
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}",
    "{% else %}{% set role = message['role'] %}{% endif %}",
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}",
    "{% endfor %}",
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
);

/// The files, by name: `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`.
pub fn tokenizer_files(vocabulary: &Vocabulary) -> [(&'static str, Vec<u8>); 3] {
    [
        ("tokenizer.json", file(&tokenizer_json(vocabulary))),
        ("tokenizer_config.json", file(&tokenizer_config())),
        ("special_tokens_map.json", file(&special_tokens())),
    ]
}

fn file(content: &Value) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(content).expect("strings, numbers and lists are JSON");
    bytes.push(b'\n');
    bytes
}

fn tokenizer_json(vocabulary: &Vocabulary) -> Value {
    let ids: serde_json::Map<String, Value> =
        vocabulary.pieces.iter().enumerate().map(|(id, piece)| (piece.clone(), json!(id))).collect();
    // Control tokens, LONGEST_RUN runs of line breaks, and the runs of two spaces and more.
    let added = vocabulary.control + LONGEST_RUN + LONGEST_RUN - 1;
    let added_tokens: Vec<Value> = (0..added)
        .map(|id| {
            json!({
                "id": id, "content": vocabulary.pieces[id], "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": id < vocabulary.control,
            })
        })
        .collect();
    let merges: Vec<Value> = vocabulary.merges.iter().map(|(left, right)| json!([left, right])).collect();
    let bos = json!({ "SpecialToken": { "id": "<bos>", "type_id": 0 } });
    let second_bos = json!({ "SpecialToken": { "id": "<bos>", "type_id": 1 } });
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let second_text = json!({ "Sequence": { "id": "B", "type_id": 1 } });
    let bos_id = vocabulary.pieces.iter().position(|piece| *piece == "<bos>");
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens,
        "normalizer": { "type": "Replace", "pattern": { "String": " " }, "content": SPACE },
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, text],
            "pair": [bos, text, second_bos, second_text],
            "special_tokens": { "<bos>": { "id": "<bos>", "ids": [bos_id], "tokens": ["<bos>"] } },
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                { "type": "Replace", "pattern": { "String": SPACE }, "content": " " },
                { "type": "ByteFallback" },
                { "type": "Fuse" },
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": "<unk>",
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": ids,
            "merges": merges,
        },
    })
}

fn tokenizer_config() -> Value {
    json!({
        "add_bos_token": true,
        "add_eos_token": false,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"],
        "clean_up_tokenization_spaces": false,
        "spaces_between_special_tokens": false,
        "use_default_system_prompt": false,
        "tokenizer_class": "GemmaTokenizer",
        "chat_template": CHAT_TEMPLATE,
    })
}

fn special_tokens() -> Value {
    json!({
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpe::{CONTROL, learn, words};
    use crate::corpus::{Document, training_text};
    use crate::{VOCABULARY_DOCUMENTS, VOCABULARY_SIZE, vocabulary_text};
    use gemma_tokenizer::Family;
    use tokenizers::Tokenizer;

    fn tokenizer() -> Tokenizer {
        let [(_, json), ..] =
            tokenizer_files(&learn(&CONTROL, vocabulary_text(0, VOCABULARY_DOCUMENTS), VOCABULARY_SIZE));
        Tokenizer::from_bytes(json).unwrap()
    }

    fn pieces(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
        tokenizer.encode(text, false).unwrap().get_tokens().to_vec()
    }

    #[test]
    fn words_spaces_digits_and_control_tokens_are_cut_as_gemma_cuts_them() {
        let tokenizer = tokenizer();
        let opening = pieces(&tokenizer, "Once upon a time, there was");
        assert_eq!(opening, ["Once", "▁upon", "▁a", "▁time", ",", "▁there", "▁was"]);
        assert_eq!(pieces(&tokenizer, "is 12."), ["is", "▁", "1", "2", "."]);
        assert_eq!(pieces(&tokenizer, "<start_of_turn>user\n"), ["<start_of_turn>", "user", "\n"]);
        assert_eq!(pieces(&tokenizer, "a   b"), ["a", "▁▁▁", "b"]);
        assert_eq!(pieces(&tokenizer, "\n\n\n"), ["\n\n\n"]);
        assert_eq!(pieces(&tokenizer, "é"), ["<0xC3>", "<0xA9>"]);
    }

    #[test]
    fn a_text_is_cut_like_its_words() {
        let tokenizer = tokenizer();
        for document in training_text(8).take(300) {
            let texts = match document {
                Document::Story(text) => vec![text],
                Document::Chat(turns) => turns.into_iter().map(|turn| turn.text).collect(),
            };
            for text in texts {
                let apart: Vec<String> = words(&text).iter().flat_map(|word| pieces(&tokenizer, word)).collect();
                assert_eq!(pieces(&tokenizer, &text), apart);
            }
        }
    }

    #[test]
    fn our_reader_and_the_hugging_face_library_agree() {
        let [(_, json), ..] =
            tokenizer_files(&learn(&CONTROL, vocabulary_text(0, VOCABULARY_DOCUMENTS), VOCABULARY_SIZE));
        let ours = gemma_tokenizer::Tokenizer::from_json(&json, Family::Gemma).unwrap();
        let theirs = tokenizer();
        assert_eq!(ours.end_of_turn(), theirs.token_to_id("<end_of_turn>"));
        for document in training_text(8).take(300) {
            if let Document::Story(text) = document {
                assert_eq!(ours.encode(&text), theirs.encode(text.as_str(), true).unwrap().get_ids());
                assert_eq!(ours.decode(&ours.encode(&text)), text);
            }
        }
    }

    #[test]
    fn the_committed_tokenizers_are_the_ones_that_are_learned() {
        let learned = crate::train_gemma::make_tokenizer(0).unwrap();
        let code = crate::training::tokenizer(&crate::train_codegemma::vocabulary(0), Family::CodeGemma).unwrap();
        for (learned, committed) in
            [(learned, gemma::demo_tokenizer().unwrap()), (code, codegemma::demo_tokenizer().unwrap())]
        {
            assert_eq!(learned.vocab_len(), committed.vocab_len());
            for id in 0..learned.vocab_len() as u32 {
                assert_eq!(learned.piece(id), committed.piece(id));
            }
        }
    }

    #[test]
    fn long_runs_are_cut_from_the_left() {
        let tokenizer = tokenizer();
        let cut = pieces(&tokenizer, &" ".repeat(19));
        let lengths: Vec<usize> = cut.iter().map(|piece| piece.chars().count()).collect();
        assert_eq!(lengths, [8, 8, 3]);
    }

    #[test]
    fn bos_comes_first_and_once() {
        let tokenizer = tokenizer();
        let encoding = tokenizer.encode("Hello!", true).unwrap();
        let ids = encoding.get_ids();
        assert_eq!(ids[0], 2);
        assert_eq!(ids.iter().filter(|id| **id == 2).count(), 1);
    }

    #[test]
    fn texts_survive_the_way_there_and_back() {
        let tokenizer = tokenizer();
        for text in ["Zoë ate  3 crêpes.\n\nÜber-good 🙂 ▁", " leading", "tab\there", ""] {
            let encoding = tokenizer.encode(text, false).unwrap();
            let decoded = tokenizer.decode(encoding.get_ids(), false).unwrap();
            // A literal ▁ is a space for SentencePiece, and so here.
            assert_eq!(decoded, text.replace(SPACE, " "));
        }
        for document in training_text(9).take(500) {
            if let Document::Story(text) = document {
                let encoding = tokenizer.encode(text.as_str(), false).unwrap();
                assert!(encoding.get_tokens().iter().all(|piece| !piece.starts_with("<0x")));
                assert_eq!(tokenizer.decode(encoding.get_ids(), false).unwrap(), text);
            }
        }
    }
}
