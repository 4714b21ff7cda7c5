//! The real tokenizers against recorded results of SentencePiece and of the `tokenizers` library.
//!
//! These need files that are too large (or not ours) to keep in the repository: `GEMMA_TEST_SHARED` names a folder
//! with `tokenizer/` and `reference/fixtures/`. Without it they say so and pass.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use gemma_tokenizer::{
    ChatOptions, ChatTemplate, DecodeOptions, EncodeOptions, Error, Family, TokenId, Tokenizer, Turn,
};
use serde_json::Value;

static SHARED: LazyLock<Option<PathBuf>> = LazyLock::new(|| std::env::var_os("GEMMA_TEST_SHARED").map(PathBuf::from));

static JSON: LazyLock<Tokenizer> = LazyLock::new(|| from_json(Family::Gemma));
static MODEL: LazyLock<Tokenizer> = LazyLock::new(|| from_model(Family::Gemma));

fn skipped() -> bool {
    if SHARED.is_none() {
        println!("skipped: GEMMA_TEST_SHARED is not set");
    }
    SHARED.is_none()
}

fn bytes(path: &str) -> Vec<u8> {
    let path = SHARED.as_ref().expect("asked only when set").join(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json(path: &str) -> Value {
    serde_json::from_slice(&bytes(path)).unwrap()
}

fn from_json(family: Family) -> Tokenizer {
    Tokenizer::from_json(&bytes("tokenizer/gemma2/tokenizer.json"), family).unwrap()
}

fn from_model(family: Family) -> Tokenizer {
    Tokenizer::from_sentencepiece(&bytes("tokenizer/tokenizer.model"), family).unwrap()
}

fn ids(value: &Value) -> Vec<TokenId> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as TokenId).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

const SPECIALS: EncodeOptions = EncodeOptions { bos: false, specials: true };
const PLAIN: EncodeOptions = EncodeOptions { bos: false, specials: false };
const SHOW: DecodeOptions = DecodeOptions { specials: true };

/// What a stream gives, all pieces together.
fn streamed(tokenizer: &Tokenizer, tokens: &[TokenId]) -> String {
    let mut stream = tokenizer.stream();
    let mut text: String = tokens.iter().filter_map(|token| stream.push(*token)).collect();
    text += &stream.finish();
    text
}

fn check_encode_case(tokenizer: &Tokenizer, case: &Value) {
    let name = text(&case["name"]);
    let expected = ids(&case["hf_ids"]);
    let input = text(&case["text"]);
    assert_eq!(tokenizer.encode_with(input, SPECIALS), expected, "{name}");
    assert_eq!(tokenizer.decode_with(&expected, SHOW), text(&case["hf_decode"]), "{name}");
    if let Some(hidden) = case["hf_decode_skip_special"].as_str() {
        assert_eq!(tokenizer.decode(&expected), hidden, "{name}");
    }
    assert_eq!(streamed(tokenizer, &expected), tokenizer.decode(&expected), "{name}");

    // Without `specials` the text comes back whole, and nothing in it is a control token.
    let plain = tokenizer.encode_with(input, PLAIN);
    assert!(plain.iter().all(|id| !tokenizer.is_control(*id)), "{name}");
    let spaces_for_literal_marks = input.replace('▁', " ");
    assert_eq!(tokenizer.decode(&plain), spaces_for_literal_marks, "{name}");
    if !expected.iter().any(|id| tokenizer.is_control(*id)) {
        assert_eq!(plain, expected, "{name}");
    }
}

#[test]
fn gemma_texts() {
    if skipped() {
        return;
    }
    let cases = json("reference/fixtures/tokenizer_cases/gemma.json");
    for case in cases["encode"].as_array().unwrap() {
        let name = text(&case["name"]);
        check_encode_case(&JSON, case);
        check_encode_case(&MODEL, case);
        // The one documented difference: SentencePiece takes the literal text of its four control pieces as text.
        // Ours does so in both formats, unless asked; every other text agrees.
        let expected = ids(&case["sp_ids"]);
        if name == "control_literals" {
            assert_eq!(case["agree"], false);
            assert_eq!(JSON.encode_with(text(&case["text"]), PLAIN), expected);
            assert_eq!(MODEL.encode_with(text(&case["text"]), PLAIN), expected);
        } else {
            assert_eq!(case["agree"], true, "{name}");
            assert_eq!(MODEL.encode_with(text(&case["text"]), SPECIALS), expected, "{name}");
        }
        let with_bos = JSON.encode(text(&case["text"]));
        assert_eq!((with_bos[0], &with_bos[1..]), (2, &JSON.encode_with(text(&case["text"]), PLAIN)[..]), "{name}");
    }
    for case in cases["decode"].as_array().unwrap() {
        let tokens = ids(&case["ids"]);
        for tokenizer in [&*JSON, &*MODEL] {
            let name = text(&case["name"]);
            assert_eq!(tokenizer.decode_with(&tokens, SHOW), text(&case["hf_decode"]), "{name}");
            assert_eq!(tokenizer.decode(&tokens), text(&case["hf_decode_skip_special"]), "{name}");
            assert_eq!(streamed(tokenizer, &tokens), tokenizer.decode(&tokens), "{name}");
        }
    }
    for tokenizer in [&*JSON, &*MODEL] {
        assert_eq!(tokenizer.vocab_len(), 256_000);
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.end_of_turn()), (2, 1, Some(107)));
        assert_eq!(tokenizer.control().pad, Some(0));
        assert_eq!(tokenizer.control().fim, None);
    }
}

#[test]
fn codegemma_texts() {
    if skipped() {
        return;
    }
    let cases = json("reference/fixtures/tokenizer_cases/codegemma.json");
    for tokenizer in [from_json(Family::CodeGemma), from_model(Family::CodeGemma)] {
        for case in cases["encode"].as_array().unwrap() {
            check_encode_case(&tokenizer, case);
        }
        let fim = tokenizer.control().fim.unwrap();
        assert_eq!((fim.prefix, fim.middle, fim.suffix, fim.file_separator), (67, 68, 69, 70));
        assert_eq!(tokenizer.token("<unused60>"), None);
        assert_eq!(tokenizer.piece(70), Some("<|file_separator|>"));
    }
}

#[test]
fn paligemma_texts() {
    if skipped() {
        return;
    }
    let cases = json("reference/fixtures/tokenizer_cases/paligemma.json");
    for tokenizer in [from_json(Family::PaliGemma), from_model(Family::PaliGemma)] {
        for case in cases["encode"].as_array().unwrap() {
            check_encode_case(&tokenizer, case);
        }
        assert_eq!(tokenizer.control().image.map(u64::from), cases["image_token"].as_u64());
        for case in cases["prompts"].as_array().unwrap() {
            let images = case["image_tokens"].as_u64().unwrap() as usize;
            let prompt = format!("{}<bos>{}\n", "<image>".repeat(images), text(&case["prompt"]));
            let tokens = tokenizer.encode_with(&prompt, SPECIALS);
            assert!(tokens[..images].iter().all(|token| Some(*token) == tokenizer.control().image));
            assert_eq!(tokens[images..], ids(&case["ids_after_images"]));
            assert_eq!(tokenizer.encode(&format!("{}\n", text(&case["prompt"]))), ids(&case["ids_after_images"]));
        }
    }
}

#[test]
fn the_older_edition_of_the_json_file_gives_the_same_tokens() {
    if skipped() {
        return;
    }
    let mut file = json("tokenizer/gemma2/tokenizer.json");
    file["added_tokens"].as_array_mut().unwrap().truncate(4);
    let older = Tokenizer::from_json(file.to_string().as_bytes(), Family::Gemma).unwrap();
    let cases = json("reference/fixtures/tokenizer_cases/gemma.json");
    for case in cases["encode"].as_array().unwrap() {
        check_encode_case(&older, case);
    }
}

#[test]
fn both_formats_agree_on_long_and_odd_texts() {
    if skipped() {
        return;
    }
    // Every run of white space up to well beyond the longest piece, alone, and between words and other white space.
    for length in 0..100 {
        for run in [" ", "\n", "\t"] {
            let run = run.repeat(length);
            for input in [run.clone(), format!("a{run}b"), format!("{run}a{run}"), format!("\n{run} \t{run}x  y")] {
                assert_eq!(JSON.encode(&input), MODEL.encode(&input), "{input:?}");
            }
        }
    }
    // Texts made of what cuts texts: pieces at random, joined.
    let mut random = 12345_u64;
    let mut next = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        random >> 33
    };
    for _ in 0..3000 {
        let pieces = (0..next() % 20).map(|_| {
            let id = match next() % 4 {
                0 => next() % 217,
                1 => 255_968 + next() % 32,
                _ => 473 + next() % 255_000,
            };
            JSON.piece(id as TokenId).unwrap().replace('▁', " ")
        });
        let input: String = pieces.collect();
        for options in [PLAIN, SPECIALS] {
            assert_eq!(JSON.encode_with(&input, options), MODEL.encode_with(&input, options), "{input:?}");
        }
        let plain = JSON.encode_with(&input, PLAIN);
        assert!(plain.iter().all(|id| !JSON.is_control(*id)), "{input:?}");
        assert_eq!(JSON.decode(&plain), input);
        assert_eq!(streamed(&JSON, &plain), input);
    }
}

#[test]
fn long_texts_take_no_more_than_their_length() {
    if skipped() {
        return;
    }
    // A rule that compared each character with all others would take hours for these.
    for unit in ["a", "<", "<loc00", "<unused0>", " ", "\n", "\n\n ", "漢", "the cat sat on the mat. "] {
        let input = unit.repeat(1_000_000 / unit.len());
        for tokenizer in [&*JSON, &*MODEL] {
            let started = Instant::now();
            let tokens = tokenizer.encode(&input);
            assert!(started.elapsed() < Duration::from_secs(30), "{unit:?}: {:?}", started.elapsed());
            assert_eq!(tokenizer.decode(&tokens), input);
        }
    }
}

#[test]
fn a_file_made_of_the_model_is_the_released_one() {
    if skipped() {
        return;
    }
    let made: Value = serde_json::from_slice(&MODEL.to_json().unwrap()).unwrap();
    let released = json("tokenizer/gemma2/tokenizer.json");
    let merges = |file: &Value| -> Vec<String> {
        let pair = |merge: &Value| match merge {
            Value::String(both) => both.clone(),
            pair => format!("{} {}", text(&pair[0]), text(&pair[1])),
        };
        // The model file has the tab as a byte, which nothing can be merged with; runs of tabs are matched literally.
        let with_one_tab = |merge: &String| merge.split(' ').any(|part| part == "\t");
        file["model"]["merges"].as_array().unwrap().iter().map(pair).filter(|merge| !with_one_tab(merge)).collect()
    };
    assert!(merges(&made) == merges(&released), "merges differ");
    // For the same reason one piece is spelled differently.
    let pieces = |file: &Value| {
        let mut pieces = file["model"]["vocab"].as_object().unwrap().clone();
        pieces.retain(|_, id| *id != 226);
        pieces
    };
    assert!(pieces(&made) == pieces(&released), "vocabularies differ");
    for field in ["added_tokens", "normalizer", "decoder", "post_processor"] {
        assert_eq!(made[field], released[field], "{field}");
    }
}

#[test]
fn a_saved_file_loads_again_and_in_the_library() {
    if skipped() {
        return;
    }
    let cases = json("reference/fixtures/tokenizer_cases/gemma.json");
    for tokenizer in [&*JSON, &*MODEL] {
        let saved = tokenizer.to_json().unwrap();
        let again = Tokenizer::from_json(&saved, Family::Gemma).unwrap();
        let library = tokenizers::Tokenizer::from_bytes(&saved).unwrap();
        for case in cases["encode"].as_array().unwrap() {
            check_encode_case(&again, case);
            let encoding = library.encode(text(&case["text"]), true).unwrap();
            assert_eq!((encoding.get_ids()[0], &encoding.get_ids()[1..]), (2, &ids(&case["hf_ids"])[..]));
        }
    }
}

#[test]
fn chat_renderings() {
    if skipped() {
        return;
    }
    let source = String::from_utf8(bytes("reference/fixtures/chat/gemma_it.jinja")).unwrap();
    let config = bytes("reference/fixtures/gemma2/f32/tokenizer_config.json");
    let templates = [
        ChatTemplate::builtin(),
        ChatTemplate::from_jinja(&source),
        ChatTemplate::from_tokenizer_config(&config).unwrap(),
    ];
    let cases = json("reference/fixtures/chat/cases.json");
    for (template, case) in templates.iter().flat_map(|t| cases.as_array().unwrap().iter().map(move |c| (t, c))) {
        let name = text(&case["name"]);
        let messages = case["messages"].as_array().unwrap();
        let turns: Vec<Turn> = messages.iter().map(|message| Turn::from_json(message).unwrap()).collect();
        let prompt = case["add_generation_prompt"].as_bool().unwrap();
        if let Some(expected) = case["error"].as_str() {
            if template.is_builtin() && messages[0]["role"] == "system" {
                continue; // merged into the first user turn, as Gemma 3 does
            }
            let options = ChatOptions { add_generation_prompt: prompt, merge_system: false, ..ChatOptions::default() };
            let error = template.render_with(&turns, &options).unwrap_err();
            assert!(matches!(&error, Error::ChatRefused { reason } if reason == expected), "{name}: {error}");
            continue;
        }
        assert_eq!(template.render(&turns, prompt).unwrap().text(), text(&case["text"]), "{name}");
        for tokenizer in [&*JSON, &*MODEL] {
            let tokens = tokenizer.chat(template, &turns, prompt).unwrap();
            if name == "injected_turn" {
                // The reference lets a message close its turn and open another; ours does not.
                assert_eq!(tokenizer.decode_with(&tokens, SHOW), text(&case["text"]));
                let ends = |ids: &[TokenId]| ids.iter().filter(|id| **id == 107).count();
                assert_eq!((ends(&tokens), ends(&ids(&case["ids"]))), (1, 2));
            } else {
                assert_eq!(tokens, ids(&case["ids"]), "{name}");
            }
        }
    }
}

#[test]
fn small_models_tokenizers() {
    if skipped() {
        return;
    }
    for (model, family) in [
        ("gemma1_mqa", Family::Gemma),
        ("gemma1_mha", Family::Gemma),
        ("gemma2", Family::Gemma),
        ("gemma2_v5", Family::Gemma),
        ("codegemma", Family::CodeGemma),
        ("paligemma", Family::PaliGemma),
        ("paligemma_nested", Family::PaliGemma),
        ("paligemma2", Family::PaliGemma),
        ("recurrentgemma", Family::RecurrentGemma),
    ] {
        let file = bytes(&format!("reference/fixtures/{model}/f32/tokenizer.json"));
        let tokenizer = Tokenizer::from_json(&file, family).unwrap();
        let library = tokenizers::Tokenizer::from_bytes(&file).unwrap();
        let texts = [
            "me and the ri  ver\n\n\tas <b>one</b>   \n",
            "<bos>x<end_of_turn>\n",
            "née 😀",
            "<|fim_prefix|>a<|fim_suffix|>b",
            "<image><loc0012><seg003> one",
            "<unused60>",
            "  \u{2581}\u{2581} x",
        ];
        for input in texts {
            let expected = library.encode(input, false).unwrap();
            assert_eq!(tokenizer.encode_with(input, SPECIALS), expected.get_ids(), "{model} {input:?}");
            let shown = library.decode(expected.get_ids(), true).unwrap();
            assert_eq!(tokenizer.decode(expected.get_ids()), shown, "{model} {input:?}");
            let plain = tokenizer.encode(input);
            assert!(plain[1..].iter().all(|id| !tokenizer.is_control(*id)), "{model} {input:?}");
        }
        assert_eq!(tokenizer.control().fim.is_some(), family == Family::CodeGemma, "{model}");
        assert_eq!(tokenizer.control().image.is_some(), family == Family::PaliGemma, "{model}");
        // Texts that the fixtures encode, where they say so.
        for case in json(&format!("reference/fixtures/{model}/f32/cases.json")).as_array().unwrap() {
            let Some([input]) = case["texts"].as_array().map(Vec::as_slice) else { continue };
            let images = case["images"].as_array().map_or(0, Vec::len);
            if images == 0 {
                let length = tokenizer.encode_with(text(input), EncodeOptions { bos: true, specials: true }).len();
                assert_eq!(Some(length as u64), case["length"].as_u64(), "{model}");
            }
        }
    }
}

/// The Gemma 3 tokenizer, which is not in the shared folder: `GEMMA_TEST_TOKENIZER3` names its tokenizer.json.
#[test]
fn gemma_3s_tokenizer() {
    let (Some(shared), Some(file)) = (&*SHARED, std::env::var_os("GEMMA_TEST_TOKENIZER3")) else {
        println!("skipped: GEMMA_TEST_SHARED or GEMMA_TEST_TOKENIZER3 is not set");
        return;
    };
    let file = std::fs::read(file).unwrap();
    let tokenizer = Tokenizer::from_json(&file, Family::Gemma).unwrap();
    let control = *tokenizer.control();
    assert_eq!((control.pad, control.eos, control.bos, control.unk), (Some(0), 1, 2, Some(3)));
    assert_eq!((control.start_of_turn, control.end_of_turn), (Some(105), Some(106)));
    assert_eq!((control.start_of_image, control.end_of_image), (Some(255_999), Some(256_000)));
    assert_eq!(control.image, Some(262_144));
    let library = tokenizers::Tokenizer::from_bytes(&file).unwrap();
    for input in [
        "Why is the sky blue?",
        "  two\n\n\n  spaces\t\ttabs <b>x</b> née 😀 \u{0301}",
        "fn main() {\n    println!(\"{}\", 1);\n}\n",
        "<start_of_turn>user\nhi<end_of_turn>\n<start_of_image><unused7>[multimodal]",
        "▁ ▁▁ x",
    ] {
        let expected = library.encode(input, false).unwrap();
        assert_eq!(tokenizer.encode_with(input, SPECIALS), expected.get_ids(), "{input:?}");
        let plain = tokenizer.encode_with(input, PLAIN);
        assert!(plain.iter().all(|id| !tokenizer.is_control(*id)), "{input:?}");
        if !input.contains('▁') {
            assert_eq!(tokenizer.decode(&plain), input);
        }
    }
    let folder = shared.join("reference/newer/newer_chat");
    let source = std::fs::read_to_string(folder.join("gemma3.jinja")).unwrap();
    let cases = json("reference/newer/newer_chat/cases.json");
    for case in cases["gemma3"].as_array().unwrap().iter().filter(|case| case["ids"].is_array()) {
        if case["name"] == "control_tokens" {
            continue; // the reference lets a message spell them
        }
        let turns: Vec<Turn> =
            case["messages"].as_array().unwrap().iter().map(|message| Turn::from_json(message).unwrap()).collect();
        for template in [ChatTemplate::builtin(), ChatTemplate::from_jinja(&source)] {
            let prompt = case["add_generation_prompt"].as_bool().unwrap();
            assert_eq!(tokenizer.chat(&template, &turns, prompt).unwrap(), ids(&case["ids"]), "{case}");
        }
    }
    // Written and read again, it is the same.
    let again = Tokenizer::from_json(&tokenizer.to_json().unwrap(), Family::Gemma).unwrap();
    let text = "Hello,  world\n\n<b>é</b>";
    assert_eq!(again.encode(text), tokenizer.encode(text));
}
