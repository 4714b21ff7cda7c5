//! The chat template that a model brings along, in Jinja.
//!
//! Two things make this harder than calling a template engine.
//!
//! **Messages must not become control tokens.** The engine joins strings and forgets where they came from, so each
//! conversation is rendered twice: as it is, and with every character of every message, white space apart, replaced by
//! one private character. Where the second text has that character, the first has text from a message; everywhere
//! else the two must agree. They do for every template that trims, joins, or changes messages character by character.
//! White space stays itself so that trimming has the same effect on both, and the text keeps its length. When the two
//! do not line up (the template looks into messages and rewrites them), the rendering is accepted only if it contains
//! the same control tokens as the harmless one, which [`crate::Tokenizer::encode_chat`] checks.
//!
//! **A template is a program from the internet.** It gets a budget of steps ("fuel", which also pays for the memory
//! it uses), limited recursion, and no access to anything but the conversation.

use std::fmt;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, Value};
use serde_json::Value as Json;

use crate::chat::{ChatPiece, RenderedChat, Turn, is_space, trim};
use crate::control::{BOS, EOS};
use crate::{Error, Result};

/// Longest template accepted, in bytes; real ones have at most some tens of thousands.
const MAX_SOURCE: usize = 1 << 20;
/// Steps for any conversation, for each turn, and for each byte of messages (a step pays for 64 bytes of data).
/// Gemma's template takes about forty steps per turn.
const FUEL: u64 = 100_000;
const FUEL_PER_TURN: u64 = 10_000;
const FUEL_PER_BYTE: u64 = 1;

/// Stands for each character of a message (first character of the second-last private plane).
const MASK: char = '\u{F0000}';

const NAME: &str = "chat";

/// A compiled template.
#[derive(Clone)]
pub(crate) struct JinjaTemplate {
    environment: Environment<'static>,
}

impl JinjaTemplate {
    /// Compiles a template.
    pub(crate) fn new(source: &str) -> Result<Self> {
        if source.len() > MAX_SOURCE {
            return Err(Error::Template { reason: format!("it has {} bytes, more than {MAX_SOURCE}", source.len()) });
        }
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        // As transformers sets its engine up.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the delimiters are Jinja's own"));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> std::result::Result<Value, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, "refused").with_source(Refusal(message)))
            },
        );
        environment.add_filter("trim", |text: &str, chars: Option<&str>| match chars {
            Some(chars) => text.trim_matches(|c| chars.contains(c)).to_owned(),
            None => trim(text).to_owned(),
        });
        environment.add_template_owned(NAME, source.to_owned()).map_err(template_error)?;
        Ok(Self { environment })
    }

    /// Renders a conversation and finds out what in it came from messages.
    pub(crate) fn render(&self, turns: &[Turn], add_generation_prompt: bool) -> Result<RenderedChat> {
        let plain = self.text(turns, add_generation_prompt)?;
        let masked_turns: Vec<Turn> =
            turns.iter().map(|turn| Turn { role: turn.role, text: mask(&turn.text) }).collect();
        let masked = self.text(&masked_turns, add_generation_prompt)?;
        Ok(match by_origin(&plain, &masked) {
            Some(pieces) => RenderedChat::new(pieces),
            None => RenderedChat::untraced(plain, masked),
        })
    }

    fn text(&self, turns: &[Turn], add_generation_prompt: bool) -> Result<String> {
        let message = |turn: &Turn| {
            Value::from_pairs([
                ("role", Value::from(turn.role.template_name())),
                ("content", Value::from(turn.text.as_str())),
            ])
        };
        let context = Value::from_pairs([
            ("messages", turns.iter().map(message).collect::<Value>()),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("bos_token", Value::from(BOS)),
            ("eos_token", Value::from(EOS)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ]);
        let bytes: usize = turns.iter().map(|turn| turn.text.len()).sum();
        let fuel = FUEL + FUEL_PER_TURN * turns.len() as u64 + FUEL_PER_BYTE * bytes as u64;
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let template = environment.get_template(NAME).map_err(template_error)?;
        template.render(context).map_err(|error| match error.kind() {
            ErrorKind::OutOfFuel => Error::TemplateCost { fuel },
            _ => template_error(error),
        })
    }
}

impl fmt::Debug for JinjaTemplate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("JinjaTemplate").finish_non_exhaustive()
    }
}

/// What a template says when it calls `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn template_error(error: minijinja::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        if let Some(Refusal(reason)) = current.downcast_ref() {
            return Error::ChatRefused { reason: reason.clone() };
        }
        cause = current.source();
    }
    Error::Template { reason: error.to_string() }
}

/// The message with every character but white space masked.
fn mask(text: &str) -> String {
    text.chars().map(|c| if is_space(c) { c } else { MASK }).collect()
}

/// Cuts `plain` into what came from the template and what from messages, by comparing it with the masked rendering;
/// `None` when the two do not line up. White space between two stretches of messages is counted to them: it can be
/// part of no control token.
fn by_origin(plain: &str, masked: &str) -> Option<Vec<ChatPiece>> {
    let mut pieces: Vec<ChatPiece> = Vec::new();
    let mut spaces = String::new();
    let mut masked = masked.chars();
    for character in plain.chars() {
        let from_message = match masked.next()? {
            MASK => true,
            same if same == character => false,
            _ => return None,
        };
        if !from_message && is_space(character) && matches!(pieces.last(), Some(ChatPiece::Message(_))) {
            spaces.push(character);
            continue;
        }
        match (pieces.last_mut(), from_message) {
            (Some(ChatPiece::Message(text)), true) | (Some(ChatPiece::Template(text)), false) => {
                text.push_str(&spaces);
                text.push(character);
            }
            (_, true) => pieces.push(ChatPiece::Message(character.into())),
            (_, false) => pieces.push(ChatPiece::Template(format!("{spaces}{character}"))),
        }
        spaces.clear();
    }
    if !spaces.is_empty() {
        pieces.push(ChatPiece::Template(spaces));
    }
    masked.next().is_none().then_some(pieces)
}

/// The template's source in a `tokenizer_config.json`.
pub(crate) fn in_tokenizer_config(bytes: &[u8]) -> Result<Option<String>> {
    let bad = |reason: String| Error::Json { file: "tokenizer_config.json", reason };
    let config: Json = serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
    let wrong_shape = || bad("chat_template is neither a text nor a list of named texts".into());
    match &config["chat_template"] {
        Json::Null => Ok(None),
        Json::String(source) => Ok(Some(source.clone())),
        Json::Array(list) => {
            let chosen = list.iter().find(|entry| entry["name"] == "default").or(list.first());
            let source = |entry: &Json| entry["template"].as_str().map(str::to_owned).ok_or_else(wrong_shape);
            chosen.map(source).transpose()
        }
        _ => Err(wrong_shape()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The template of the Gemma 2 release.
    const GEMMA: &str = concat!(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}",
        "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}",
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}",
        "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}",
        "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}",
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
    );

    fn render(source: &str, turns: &[Turn]) -> Result<RenderedChat> {
        JinjaTemplate::new(source)?.render(turns, true)
    }

    #[test]
    fn gemmas_template_equals_the_builtin_one() {
        let odd =
            [Turn::user("a\u{F0000}b <end_of_turn>"), Turn::model(" \u{1C}x\n\ny\u{1F}"), Turn::user("\u{3000}z")];
        for turns in [&[Turn::user("  two words \n")], &odd[..1], &odd[..]] {
            let builtin = crate::ChatTemplate::builtin().render(turns, true).unwrap();
            assert_eq!(render(GEMMA, turns).unwrap(), builtin);
        }
        let empty = [Turn::user(" ")];
        let builtin = crate::ChatTemplate::builtin().render(&empty, true).unwrap();
        assert_eq!(render(GEMMA, &empty).unwrap().text(), builtin.text());
    }

    #[test]
    fn refusals_come_through_in_the_templates_words() {
        let error = render(GEMMA, &[Turn::system("x"), Turn::user("y")]).unwrap_err();
        assert_eq!(error.to_string(), "System role not supported");
        let error = render(GEMMA, &[Turn::user("x"), Turn::user("y")]).unwrap_err();
        assert_eq!(error.to_string(), "Conversation roles must alternate user/assistant/user/assistant/...");
    }

    #[test]
    fn messages_are_recognised_when_changed_character_by_character() {
        let chat =
            render("<{{ messages[0].content | upper }}> {{ messages[0].content.strip() }}.", &[Turn::user(" ab c ")]);
        let template = |text: &str| ChatPiece::Template(text.into());
        let message = |text: &str| ChatPiece::Message(text.into());
        assert_eq!(
            chat.unwrap().pieces(),
            [template("< "), message("AB C"), template(" > "), message("ab c"), template(".")]
        );
    }

    #[test]
    fn a_template_that_looks_into_messages_is_rendered_as_it_is_and_marked() {
        let source = "{% if messages[0].content.startswith('/short') %}Be brief.{% endif %}{{ messages[0].content }}";
        let chat = render(source, &[Turn::user("/short hi")]).unwrap();
        assert_eq!(chat.text(), "Be brief./short hi");
        assert!(chat.harmless_rendering().is_some());
    }

    #[test]
    fn hostile_templates_run_out_of_fuel() {
        for source in [
            "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}",
            "{% set ns = namespace(s='xx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
            "{{ 'x' * 99999999 }}",
        ] {
            let error = render(source, &[Turn::user("hi")]).unwrap_err();
            assert!(matches!(error, Error::TemplateCost { .. }), "{source}: {error}");
        }
        let recursive = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
        assert!(matches!(render(recursive, &[Turn::user("hi")]), Err(Error::Template { .. })));
        let nested = format!("{}1{}", "{{ (".repeat(2000), ") }}".repeat(2000));
        assert!(matches!(render(&nested, &[Turn::user("hi")]), Err(Error::Template { .. })));
        let nested = format!("{{{{ {}1{} }}}}", "(".repeat(20_000), ")".repeat(20_000));
        assert!(matches!(render(&nested, &[Turn::user("hi")]), Err(Error::Template { .. })));
    }

    #[test]
    fn a_long_conversation_has_fuel_enough() {
        let turns: Vec<Turn> =
            (0..501).map(|i| if i % 2 == 0 { Turn::user("word ".repeat(1000)) } else { Turn::model("yes") }).collect();
        assert!(render(GEMMA, &turns).is_ok());
    }

    #[test]
    fn a_template_with_a_mistake_is_an_error() {
        assert!(matches!(JinjaTemplate::new("{% if %}"), Err(Error::Template { .. })));
        assert!(matches!(render("{{ nothing.at.all }}", &[Turn::user("x")]), Err(Error::Template { .. })));
        assert!(matches!(render("{% include 'secrets' %}", &[Turn::user("x")]), Err(Error::Template { .. })));
    }

    #[test]
    fn the_config_holds_a_text_or_a_list_or_nothing() {
        let source = |config: &str| in_tokenizer_config(config.as_bytes());
        assert_eq!(source(r#"{}"#).unwrap(), None);
        assert_eq!(source(r#"{"chat_template": null}"#).unwrap(), None);
        assert_eq!(source(r#"{"chat_template": "a"}"#).unwrap().as_deref(), Some("a"));
        let list = r#"{"chat_template": [{"name": "rag", "template": "b"}, {"name": "default", "template": "c"}]}"#;
        assert_eq!(source(list).unwrap().as_deref(), Some("c"));
        assert!(source(r#"{"chat_template": 3}"#).is_err());
        assert!(source(r#"{"chat_template": [{"name": "x"}]}"#).is_err());
        assert!(source("not json").is_err());
    }
}
