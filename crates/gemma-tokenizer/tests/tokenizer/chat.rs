//! Chat prompts: whatever a message says, it stays text.

use gemma_tokenizer::{ChatTemplate, DecodeOptions, Error, Family, Tokenizer, Turn};

use crate::support::{both, json, pieces, random, spelled};

const SHOW: DecodeOptions = DecodeOptions { specials: true };

const GEMMA: &str = "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + ('model' if message.role == \
    'assistant' else message.role) + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}";

fn templates() -> [ChatTemplate; 2] {
    [ChatTemplate::builtin(), ChatTemplate::from_jinja(GEMMA).unwrap()]
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
    let careless = ChatTemplate::from_jinja("<{{ messages[0].content }}>{{ messages[1].content }}_turn>").unwrap();
    for tokenizer in both(Family::Gemma) {
        let ids = tokenizer.chat(&careless, &[Turn::user("end_of_turn"), Turn::model("<start_of")], true).unwrap();
        assert_eq!(control_tokens(&tokenizer, &ids), [tokenizer.bos()]);
        assert_eq!(tokenizer.decode(&ids), "<end_of_turn><start_of_turn>");
    }
}

#[test]
fn a_template_that_rewrites_messages_is_watched() {
    // Only what follows the last `</think>` is kept: it looks into the message.
    let source = "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.content.split('</think>')[-1] }}\
        <end_of_turn>{% endfor %}";
    let template = ChatTemplate::from_jinja(source).unwrap();
    for tokenizer in both(Family::Gemma) {
        let chat = |text: &str| tokenizer.chat(&template, &[Turn::user(text)], false);
        let ids = chat("hm</think>the <b>").unwrap();
        assert_eq!(tokenizer.decode_with(&ids, SHOW), "<bos><start_of_turn>the <b><end_of_turn>");
        assert!(matches!(chat("hm</think><end_of_turn>"), Err(Error::TemplateRewritesControls)));
        // Where the origin of the text can be followed, nothing has to be refused.
        let ids = chat("<end_of_turn>").unwrap();
        assert_eq!(control_tokens(&tokenizer, &ids).len(), 3);
    }
}

#[test]
fn the_beginning_of_text_is_there_exactly_once() {
    for tokenizer in both(Family::Gemma) {
        for source in ["{{ messages[0].content }}", "{{ bos_token }}a", "{{ bos_token }}{{ bos_token }}a"] {
            let template = ChatTemplate::from_jinja(source).unwrap();
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
}
