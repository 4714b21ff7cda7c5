//! Chat templates: a conversation as one prompt, by the built-in template or the model's own.
//!
//! A rendered conversation remembers which of its text came from the template and which from a message, because only
//! the former may contain control tokens.

use std::sync::{Arc, OnceLock};

use serde_json::Value as Json;

use crate::jinja::{Context, Fault, Template};
use crate::names::{BOS, END_OF_TURN, EOS, START_OF_IMAGE, START_OF_TURN};
use crate::turn::{Part, Role, Turn};
use crate::{Error, Result};

/// How a conversation becomes one text.
///
/// The built-in template is that of Gemma 1, 2 and 3, CodeGemma and RecurrentGemma. A system turn goes in front of the
/// first user turn, as Gemma 3's own template has it:
///
/// ```
/// use gemma_tokenizer::{ChatTemplate, Turn};
/// let chat = ChatTemplate::builtin().render(&[Turn::system("Be brief."), Turn::user(" Hello! ")], true)?;
/// assert_eq!(
///     chat.text(),
///     "<bos><start_of_turn>user\nBe brief.\n\nHello!<end_of_turn>\n<start_of_turn>model\n"
/// );
/// # Ok::<(), gemma_tokenizer::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ChatTemplate(Source);

#[derive(Clone, Debug)]
enum Source {
    Builtin,
    Jinja(Arc<Jinja>),
    /// A file that holds no template where one should be, with what is wrong.
    Unusable(Arc<str>),
}

/// A template in Jinja, parsed when it is first needed.
#[derive(Debug)]
struct Jinja {
    source: String,
    parsed: OnceLock<std::result::Result<Template, Fault>>,
}

/// How a conversation is rendered.
#[derive(Clone, Debug)]
pub struct ChatOptions {
    /// End where the model's answer begins.
    pub add_generation_prompt: bool,
    /// Functions that the model may call, as JSON schemas in OpenAI's form (`{"type": "function", "function": {...}}`).
    pub tools: Vec<Json>,
    /// Let the model think before it answers, where the template knows `enable_thinking`; `None` leaves it to the
    /// template.
    pub thinking: Option<bool>,
    /// Put a leading system turn in front of the first user turn where the template refuses it, as Gemma 1 and 2 do.
    pub merge_system: bool,
}

impl Default for ChatOptions {
    fn default() -> Self {
        Self { add_generation_prompt: true, tools: Vec::new(), thinking: None, merge_system: true }
    }
}

/// A stretch of a rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatPiece {
    /// Written by the template: control tokens count.
    Template(String),
    /// Written by a person, a model or a tool: everything is text.
    Message(String),
}

/// A conversation as one text, ready for [`Tokenizer::encode_chat`](crate::Tokenizer::encode_chat).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedChat {
    pieces: Vec<ChatPiece>,
}

impl From<Vec<ChatPiece>> for RenderedChat {
    /// A conversation that was put together by a program: what it wrote itself is [`ChatPiece::Template`].
    fn from(pieces: Vec<ChatPiece>) -> Self {
        Self { pieces }
    }
}

impl RenderedChat {
    /// The whole text.
    pub fn text(&self) -> String {
        self.parts().map(|(text, _)| text).collect()
    }

    /// The text in pieces, by origin.
    pub fn pieces(&self) -> &[ChatPiece] {
        &self.pieces
    }

    /// The pieces, each with whether it is trusted.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (&str, bool)> {
        self.pieces.iter().map(|piece| match piece {
            ChatPiece::Template(text) => (text.as_str(), true),
            ChatPiece::Message(text) => (text.as_str(), false),
        })
    }
}

impl ChatTemplate {
    /// The template of Gemma 1, 2 and 3, CodeGemma and RecurrentGemma.
    pub fn builtin() -> Self {
        Self(Source::Builtin)
    }

    /// A template in Jinja, as models bring one in `chat_template.jinja`. It is parsed when it is first needed; see
    /// [`check`](Self::check).
    pub fn from_jinja(source: &str) -> Self {
        Self(Source::Jinja(Arc::new(Jinja { source: source.to_owned(), parsed: OnceLock::new() })))
    }

    /// The template in a `tokenizer_config.json`, if it has one: a text, or a list of named ones (`default` is taken,
    /// or the first). What is wrong with it is reported when a conversation is rendered.
    pub fn from_tokenizer_config(bytes: &[u8]) -> Option<Self> {
        match in_tokenizer_config(bytes) {
            Ok(source) => source.map(|source| Self::from_jinja(&source)),
            Err(reason) => Some(Self(Source::Unusable(reason.into()))),
        }
    }

    /// Is it the built-in one?
    pub fn is_builtin(&self) -> bool {
        matches!(self.0, Source::Builtin)
    }

    /// Parses the template, so that a mistake in it is known before a conversation begins.
    ///
    /// # Errors
    /// [`Error::Template`] when it cannot be used, [`Error::TemplateLimit`] for one beyond the limits of its source.
    pub fn check(&self) -> Result<()> {
        match &self.0 {
            Source::Builtin => Ok(()),
            Source::Jinja(jinja) => jinja.template().map(|_| ()),
            Source::Unusable(reason) => Err(Error::Template { reason: reason.to_string() }),
        }
    }

    /// Renders a conversation. With `add_generation_prompt` it ends where the model's answer begins.
    ///
    /// # Errors
    /// [`Error::ChatRefused`] when the template does not accept the conversation (two turns of the same side in a row,
    /// say); [`Error::Template`], [`Error::TemplateLimit`] and [`Error::TemplateCost`] for a template with a mistake.
    pub fn render(&self, turns: &[Turn], add_generation_prompt: bool) -> Result<RenderedChat> {
        self.render_with(turns, &ChatOptions { add_generation_prompt, ..ChatOptions::default() })
    }

    /// [`render`](Self::render) with tools and other options.
    ///
    /// # Errors
    /// As [`render`](Self::render); the built-in template refuses tools.
    pub fn render_with(&self, turns: &[Turn], options: &ChatOptions) -> Result<RenderedChat> {
        if turns.is_empty() {
            return Err(refused("the conversation is empty; give at least one user turn"));
        }
        let rendered = self.render_once(turns, options);
        match (&rendered, turns) {
            (Err(Error::ChatRefused { .. }), [system, user, rest @ ..])
                if options.merge_system && system.role == Role::System && user.role == Role::User =>
            {
                let mut merged = vec![user.after(&system.plain_text())];
                merged.extend_from_slice(rest);
                self.render_once(&merged, options)
            }
            _ => rendered,
        }
    }

    fn render_once(&self, turns: &[Turn], options: &ChatOptions) -> Result<RenderedChat> {
        let template = match &self.0 {
            Source::Builtin => return builtin(turns, options),
            Source::Jinja(jinja) => jinja.template()?,
            Source::Unusable(reason) => return Err(Error::Template { reason: reason.to_string() }),
        };
        let messages = Json::Array(turns.iter().map(Turn::to_json).collect());
        let (prompt, nothing) = (Json::Bool(options.add_generation_prompt), Json::Null);
        let tools = if options.tools.is_empty() { Json::Null } else { Json::Array(options.tools.clone()) };
        let thinking = options.thinking.map(Json::Bool);
        let mut values = vec![
            ("messages", &messages),
            ("add_generation_prompt", &prompt),
            ("tools", &tools),
            ("documents", &nothing),
        ];
        values.extend(thinking.as_ref().map(|thinking| ("enable_thinking", thinking)));
        let texts = vec![("bos_token", BOS), ("eos_token", EOS)];
        let pieces = template.render(&Context { values, texts }).map_err(error_of)?;
        let piece = |(text, message): (String, bool)| match message {
            true => ChatPiece::Message(text),
            false => ChatPiece::Template(text),
        };
        Ok(RenderedChat { pieces: pieces.into_iter().map(piece).collect() })
    }
}

impl Jinja {
    fn template(&self) -> Result<&Template> {
        self.parsed.get_or_init(|| Template::parse(&self.source)).as_ref().map_err(|fault| error_of(fault.clone()))
    }
}

fn error_of(fault: Fault) -> Error {
    match fault {
        Fault::Refused(reason) => Error::ChatRefused { reason: first_line(&reason) },
        Fault::Failed(reason) => Error::Template { reason: ends_of(&reason) },
        Fault::Limit(reason) => Error::TemplateLimit { reason },
        Fault::Cost => Error::TemplateCost,
    }
}

/// What a template says, in one line of a length that can be read.
fn first_line(reason: &str) -> String {
    const MOST: usize = 200;
    let words = one_line(reason);
    match words.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}...", &words[..at]),
        None => words,
    }
}

/// A text on one line, without control characters.
fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

/// What is wrong with a template, in one line of a length that can be read: it may quote the template, and ends with the
/// number of a line.
fn ends_of(reason: &str) -> String {
    const BEGIN: usize = 160;
    const END: usize = 60;
    let words = one_line(reason);
    let count = words.chars().count();
    if count <= BEGIN + END {
        return words;
    }
    let begin: String = words.chars().take(BEGIN).collect();
    let end: String = words.chars().skip(count - END).collect();
    format!("{begin}...{end}")
}

fn refused(reason: &str) -> Error {
    Error::ChatRefused { reason: reason.to_owned() }
}

/// Gemma's template, that of Gemma 3 where they differ: a system turn is text in front of the first user turn, and an
/// image is `<start_of_image>`. The refusal is worded as in the released one.
fn builtin(turns: &[Turn], options: &ChatOptions) -> Result<RenderedChat> {
    if !options.tools.is_empty() || turns.iter().any(|turn| turn.role == Role::Tool || !turn.tool_calls.is_empty()) {
        return Err(refused("the built-in template knows no tools"));
    }
    let (mut system, turns) = match turns {
        [system, rest @ ..] if system.role == Role::System => (Some(system.plain_text() + "\n\n"), rest),
        turns => (None, turns),
    };
    let mut pieces = Vec::new();
    let mut template = BOS.to_owned();
    for (index, turn) in turns.iter().enumerate() {
        if turn.role == Role::System || (turn.role == Role::User) != (index % 2 == 0) {
            return Err(refused("Conversation roles must alternate user/assistant/user/assistant/..."));
        }
        let role = if turn.role == Role::User { "user" } else { "model" };
        template += &format!("{START_OF_TURN}{role}\n");
        let mut message = system.take().unwrap_or_default();
        for part in turn.content() {
            match part {
                Part::Text(text) => message += trim(&text),
                Part::Image => {
                    if !message.is_empty() {
                        pieces.push(ChatPiece::Template(std::mem::take(&mut template)));
                        pieces.push(ChatPiece::Message(std::mem::take(&mut message)));
                    }
                    template += START_OF_IMAGE;
                }
            }
        }
        pieces.push(ChatPiece::Template(std::mem::take(&mut template)));
        pieces.push(ChatPiece::Message(message));
        template = format!("{END_OF_TURN}\n");
    }
    if options.add_generation_prompt {
        template += &format!("{START_OF_TURN}model\n");
    }
    pieces.push(ChatPiece::Template(template));
    Ok(RenderedChat { pieces })
}

/// The template's source in a `tokenizer_config.json`, or what is wrong with it.
fn in_tokenizer_config(bytes: &[u8]) -> std::result::Result<Option<String>, String> {
    let config: Json =
        serde_json::from_slice(bytes).map_err(|error| format!("tokenizer_config.json cannot be read: {error}"))?;
    let wrong_shape =
        || "chat_template in tokenizer_config.json is neither a text nor a list of named texts".to_owned();
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

/// White space as Python's `str.strip` sees it, which chat templates are written for: Unicode's, and the four
/// information separators.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1C}'..='\u{1F}').contains(&c)
}

/// The text without white space at its ends.
pub(crate) fn trim(text: &str) -> &str {
    text.trim_matches(is_space)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> ChatPiece {
        ChatPiece::Template(text.into())
    }

    fn message(text: &str) -> ChatPiece {
        ChatPiece::Message(text.into())
    }

    #[test]
    fn the_builtin_template_keeps_messages_apart() {
        let turns = [Turn::user("\u{1C} a<end_of_turn> \n"), Turn::model("b"), Turn::user("c")];
        let chat = ChatTemplate::builtin().render(&turns, true).unwrap();
        assert_eq!(
            chat.pieces(),
            [
                template("<bos><start_of_turn>user\n"),
                message("a<end_of_turn>"),
                template("<end_of_turn>\n<start_of_turn>model\n"),
                message("b"),
                template("<end_of_turn>\n<start_of_turn>user\n"),
                message("c"),
                template("<end_of_turn>\n<start_of_turn>model\n"),
            ]
        );
    }

    #[test]
    fn the_builtin_template_puts_images_where_they_are_said() {
        let parts = vec![Part::Text(" one ".into()), Part::Image, Part::Image, Part::Text("two".into())];
        let turns = [Turn::system(" s "), Turn::with_parts(Role::User, parts)];
        let chat = ChatTemplate::builtin().render(&turns, false).unwrap();
        assert_eq!(
            chat.pieces(),
            [
                template("<bos><start_of_turn>user\n"),
                message(" s \n\none"),
                template("<start_of_image><start_of_image>"),
                message("two"),
                template("<end_of_turn>\n"),
            ]
        );
    }

    #[test]
    fn the_builtin_template_refuses_what_gemma_does_not_know() {
        let reason = |turns: &[Turn]| ChatTemplate::builtin().render(turns, true).unwrap_err().to_string();
        let alternate = "Conversation roles must alternate user/assistant/user/assistant/...";
        for turns in [
            &[Turn::user("a"), Turn::user("b")][..],
            &[Turn::model("a")],
            &[Turn::user("a"), Turn::system("s")],
            &[Turn::system("s"), Turn::system("t"), Turn::user("u")],
        ] {
            assert!(reason(turns).ends_with(alternate), "{}", reason(turns));
        }
        assert!(reason(&[]).contains("empty"));
        assert!(reason(&[Turn::tool("f", "1")]).contains("tools"));
    }

    #[test]
    fn what_a_message_quotes_of_a_template_is_cut() {
        for source in [
            format!("{{% end{} %}}", "filter".repeat(1000)),
            format!("{{{{ messages | {} }}}}", "f".repeat(5000)),
            format!("{{{{ x.{} }}}}", "f".repeat(5000)),
            format!("{{{{ {}() }}}}", "f".repeat(5000)),
        ] {
            let reason = match ChatTemplate::from_jinja(&source).render(&[Turn::user("a")], true) {
                Err(error) => error.to_string(),
                Ok(_) => continue,
            };
            assert!(reason.len() < 400, "{reason}");
        }
        let reason = ChatTemplate::from_jinja(&format!("\n{{% end{} %}}", "f".repeat(500))).check().unwrap_err();
        assert!(reason.to_string().contains("(line 2)"), "{reason}");
    }

    /// The template of the Gemma 2 release.
    const GEMMA: &str = concat!(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}",
        "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}",
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}",
        "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}",
        "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}",
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
    );

    #[test]
    fn gemmas_template_equals_the_builtin_one() {
        let odd =
            [Turn::user("a\u{F0000}b <end_of_turn>"), Turn::model(" \u{1C}x\n\ny\u{1F}"), Turn::user("\u{3000}z")];
        let system = [Turn::system(" Be brief. "), Turn::user("hi "), Turn::model("x"), Turn::user("y")];
        for turns in [&[Turn::user("  two words \n")], &odd[..1], &odd[..]] {
            let builtin = ChatTemplate::builtin().render(turns, true).unwrap();
            assert_eq!(ChatTemplate::from_jinja(GEMMA).render(turns, true).unwrap(), builtin);
        }
        for turns in [&[Turn::user(" ")][..], &system] {
            // Gemma 2 has no system turn, so it is merged; what is trimmed differs, the origins do not matter here
            let builtin = ChatTemplate::builtin().render(turns, true).unwrap().text();
            let own = ChatTemplate::from_jinja(GEMMA).render(turns, true).unwrap().text();
            assert_eq!(own.replace("user\nBe", "user\n Be"), builtin);
        }
    }

    #[test]
    fn refusals_come_through_in_the_templates_words() {
        let strict = ChatOptions { merge_system: false, ..ChatOptions::default() };
        let reason = |source: &str, turns: &[Turn]| {
            ChatTemplate::from_jinja(source).render_with(turns, &strict).unwrap_err().to_string()
        };
        let refuses = "the chat template refuses the conversation: ";
        let system = [Turn::system("x"), Turn::user("y")];
        assert_eq!(reason(GEMMA, &system), format!("{refuses}System role not supported"));
        let alternate = "Conversation roles must alternate user/assistant/user/assistant/...";
        assert_eq!(reason(GEMMA, &[Turn::user("x"), Turn::user("y")]), format!("{refuses}{alternate}"));
        assert_eq!(reason("{{ raise_exception(1) }}", &system), format!("{refuses}1"));
        assert!(reason("{{ raise_exception('x\n' * 5000) }}", &system).len() < 300);
    }

    #[test]
    fn messages_stay_messages_whatever_the_template_does_to_them() {
        let source =
            "<{{ messages[0].content | upper }}> {{ messages[0].content.strip()[1:] }}.{{ messages | tojson }}";
        let chat = ChatTemplate::from_jinja(source).render(&[Turn::user(" ab c ")], true).unwrap();
        let json = [
            template(".[{\""),
            message("role"),
            template("\": \"user\", \""),
            message("content"),
            template("\": \""),
            message(" ab c "),
        ];
        assert_eq!(chat.pieces()[..4], [template("<"), message(" AB C "), template("> "), message("b c")]);
        assert_eq!(chat.pieces()[4..10], json);
        let source = "{% if messages[0].content.startswith('/short') %}Be brief.{% endif %}{{ messages[0].content }}";
        let chat = ChatTemplate::from_jinja(source).render(&[Turn::user("/short hi")], true).unwrap();
        assert_eq!(chat.pieces(), [template("Be brief."), message("/short hi")]);
    }

    #[test]
    fn tools_and_thinking_reach_the_template() {
        let source = "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}{{ enable_thinking is defined }}";
        let tools = vec![serde_json::json!({"type": "function", "function": {"name": "now"}})];
        let render = |options: &ChatOptions| {
            ChatTemplate::from_jinja(source).render_with(&[Turn::user("x")], options).unwrap().text()
        };
        assert_eq!(render(&ChatOptions::default()), "False");
        assert_eq!(render(&ChatOptions { tools, thinking: Some(true), ..ChatOptions::default() }), "nowTrue");
    }

    #[test]
    fn a_template_with_a_mistake_is_an_error_when_it_is_needed() {
        for source in ["{% if %}", "{{ nothing.at.all }}", "{% include 'secrets' %}", "{{ [1].append(2) }}"] {
            let template = ChatTemplate::from_jinja(source);
            let error = template.render(&[Turn::user("x")], true).unwrap_err();
            assert!(matches!(error, Error::Template { .. }), "{source}: {error}");
        }
        assert!(ChatTemplate::from_jinja("{% if %}").check().is_err());
        assert!(ChatTemplate::from_jinja("{{ nothing.at.all }}").check().is_ok());
    }

    #[test]
    fn the_config_holds_a_text_or_a_list_or_nothing() {
        let source = |config: &str| in_tokenizer_config(config.as_bytes());
        assert_eq!(source(r#"{}"#).unwrap(), None);
        assert_eq!(source(r#"{"chat_template": null}"#).unwrap(), None);
        assert_eq!(source(r#"{"chat_template": "a"}"#).unwrap().as_deref(), Some("a"));
        let list = r#"{"chat_template": [{"name": "rag", "template": "b"}, {"name": "default", "template": "c"}]}"#;
        assert_eq!(source(list).unwrap().as_deref(), Some("c"));
        for config in [r#"{"chat_template": 3}"#, r#"{"chat_template": [{"name": "x"}]}"#, "not json"] {
            assert!(source(config).is_err());
            let template = ChatTemplate::from_tokenizer_config(config.as_bytes()).unwrap();
            assert!(matches!(template.render(&[Turn::user("x")], true), Err(Error::Template { .. })));
        }
    }
}
