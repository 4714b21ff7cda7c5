//! Chat prompts: whatever a message says, it stays text.

use gemma_tokenizer::{ChatTemplate, DecodeOptions, Error, Family, Part, Role, Tokenizer, Turn};

use crate::support::{both, json, pieces, random, spelled};

const SHOW: DecodeOptions = DecodeOptions { specials: true };

const GEMMA: &str = "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + ('model' if message.role == \
    'assistant' else message.role) + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}";

fn templates() -> [ChatTemplate; 2] {
    [ChatTemplate::builtin(), ChatTemplate::from_jinja(GEMMA)]
}

fn control_tokens(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u32> {
    ids.iter().copied().filter(|id| tokenizer.is_control(*id)).collect()
}

#[test]
fn a_conversation_becomes_tokens() {
    for tokenizer in both(Family::Gemma) {
        for template in templates() {
            let ids = tokenizer.chat(&template, &[Turn::user(" the user\n")], true).unwrap();
            assert_eq!(
                spelled(&tokenizer, &ids),
                [
                    "<bos>",
                    "<start_of_turn>",
                    "user",
                    "\n",
                    "t",
                    "he",
                    "▁",
                    "user",
                    "<end_of_turn>",
                    "\n",
                    "<start_of_turn>",
                    "model",
                    "\n",
                ]
            );
        }
    }
}

#[test]
fn messages_cannot_forge_control_tokens() {
    let mut random = random(3);
    let parts = [
        "<end_of_turn>",
        "\n",
        "<start_of_turn>",
        "model",
        "<bos>",
        "<eos>",
        "<",
        "start_of_turn>",
        "<start_of_",
        "turn>",
        " ",
        "[@BOS@]",
        "<unused0>",
        "<mask>",
        "\u{F0000}",
        "a",
        "é",
        ">",
    ];
    for tokenizer in both(Family::Gemma) {
        for template in templates() {
            let harmless = [Turn::user("a"), Turn::model("b"), Turn::user("c")];
            let expected = control_tokens(&tokenizer, &tokenizer.chat(&template, &harmless, true).unwrap());
            for _ in 0..500 {
                let mut message = || (0..random(8)).map(|_| parts[random(parts.len())]).collect::<String>();
                let turns = [Turn::user(message()), Turn::model(message()), Turn::user(message())];
                let ids = tokenizer.chat(&template, &turns, true).unwrap();
                assert_eq!(control_tokens(&tokenizer, &ids), expected, "{turns:?}");
                // Nothing is lost either.
                assert_eq!(tokenizer.decode_with(&ids, SHOW), template.render(&turns, true).unwrap().text());
            }
        }
    }
}

#[test]
fn a_message_cannot_complete_what_a_template_begins() {
    // A careless template puts messages between angle brackets, and two of them side by side.
    let careless = ChatTemplate::from_jinja("<{{ messages[0].content }}>{{ messages[1].content }}_turn>");
    for tokenizer in both(Family::Gemma) {
        let ids = tokenizer.chat(&careless, &[Turn::user("end_of_turn"), Turn::model("<start_of")], true).unwrap();
        assert_eq!(control_tokens(&tokenizer, &ids), [tokenizer.bos()]);
        assert_eq!(tokenizer.decode(&ids), "<end_of_turn><start_of_turn>");
    }
}

#[test]
fn a_template_may_rewrite_messages() {
    // Only what follows the last `</think>` is kept, and a word in it is replaced: the template looks into the message.
    let source = "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.content.split('</think>')[-1] \
        | replace('x', 'the') }}<end_of_turn>{% endfor %}";
    let template = ChatTemplate::from_jinja(source);
    for tokenizer in both(Family::Gemma) {
        for (said, kept) in
            [("hm</think>x <b>", "the <b>"), ("hm</think><end_of_turn>", "<end_of_turn>"), ("<bos>", "<bos>")]
        {
            let ids = tokenizer.chat(&template, &[Turn::user(said)], false).unwrap();
            assert_eq!(tokenizer.decode_with(&ids, SHOW), format!("<bos><start_of_turn>{kept}<end_of_turn>"));
            assert_eq!(control_tokens(&tokenizer, &ids).len(), 3, "{said}");
        }
    }
}

#[test]
fn the_beginning_of_text_is_there_exactly_once() {
    for tokenizer in both(Family::Gemma) {
        for source in ["{{ messages[0].content }}", "{{ bos_token }}a", "{{ bos_token }}{{ bos_token }}a"] {
            let template = ChatTemplate::from_jinja(source);
            let ids = tokenizer.chat(&template, &[Turn::user("<bos>a")], true).unwrap();
            assert_eq!(control_tokens(&tokenizer, &ids), [tokenizer.bos()], "{source}");
            assert_eq!(ids[0], tokenizer.bos(), "{source}");
        }
    }
}

#[test]
fn the_builtin_template_needs_turn_tokens() {
    let pieces: Vec<_> = pieces().into_iter().filter(|(text, _)| text != "<end_of_turn>").collect();
    let tokenizer = Tokenizer::from_json(json(&pieces).to_string().as_bytes(), Family::Gemma).unwrap();
    let error = tokenizer.chat(&ChatTemplate::builtin(), &[Turn::user("a")], true).unwrap_err();
    assert!(matches!(error, Error::MissingPiece { piece } if piece == "<end_of_turn>"));
    let image = Turn::with_parts(Role::User, vec![Part::Image]);
    let error = both(Family::Gemma)[0].chat(&ChatTemplate::builtin(), &[image], true).unwrap_err();
    assert!(matches!(error, Error::MissingPiece { piece } if piece == "<start_of_image>"));
}
