//! Conversations as prompts: turns, the built-in template, and what a template makes of them.
//!
//! A rendered conversation remembers which of its text came from the template and which from a message, because only
//! the former may contain control tokens.

use std::str::FromStr;

use crate::control::{BOS, END_OF_TURN, START_OF_TURN};
use crate::jinja::JinjaTemplate;
use crate::{Error, Result};

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Standing instructions; Gemma 1 and 2 have no such role, and their templates refuse it.
    System,
    /// The person.
    User,
    /// The model (`assistant` elsewhere).
    Model,
}

impl Role {
    /// The name that chat templates know the role by.
    pub(crate) fn template_name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Model => "assistant",
        }
    }
}

impl FromStr for Role {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "system" => Ok(Role::System),
            "user" => Ok(Role::User),
            "model" | "assistant" => Ok(Role::Model),
            _ => Err(Error::UnknownRole { name: name.to_owned() }),
        }
    }
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub text: String,
}

impl Turn {
    /// A message of the person.
    pub fn user(text: impl Into<String>) -> Self {
        Self { role: Role::User, text: text.into() }
    }

    /// A message of the model.
    pub fn model(text: impl Into<String>) -> Self {
        Self { role: Role::Model, text: text.into() }
    }

    /// Standing instructions, for templates that know them.
    pub fn system(text: impl Into<String>) -> Self {
        Self { role: Role::System, text: text.into() }
    }
}

/// How a conversation becomes one text.
///
/// The built-in template is that of Gemma 1, 1.1 and 2, CodeGemma and RecurrentGemma:
///
/// ```
/// use gemma_tokenizer::{ChatTemplate, Turn};
/// let chat = ChatTemplate::builtin().render(&[Turn::user(" Hello! ")], true)?;
/// assert_eq!(chat.text(), "<bos><start_of_turn>user\nHello!<end_of_turn>\n<start_of_turn>model\n");
/// # Ok::<(), gemma_tokenizer::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ChatTemplate(Source);

#[derive(Clone, Debug)]
enum Source {
    Builtin,
    Jinja(Box<JinjaTemplate>),
}

/// A stretch of a rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatPiece {
    /// Written by the template: control tokens count.
    Template(String),
    /// Written by a person or a model: everything is text.
    Message(String),
}

/// A conversation as one text, ready for [`Tokenizer::encode_chat`](crate::Tokenizer::encode_chat).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedChat {
    pieces: Vec<ChatPiece>,
    /// Set when the origin of the text could not be followed: the same conversation with harmless messages.
    harmless: Option<String>,
}

impl From<Vec<ChatPiece>> for RenderedChat {
    /// A conversation that was put together by a program: what it wrote itself is [`ChatPiece::Template`].
    fn from(pieces: Vec<ChatPiece>) -> Self {
        Self::new(pieces)
    }
}

impl RenderedChat {
    pub(crate) fn new(pieces: Vec<ChatPiece>) -> Self {
        Self { pieces, harmless: None }
    }

    pub(crate) fn untraced(text: String, harmless: String) -> Self {
        Self { pieces: vec![ChatPiece::Template(text)], harmless: Some(harmless) }
    }

    /// The whole text.
    pub fn text(&self) -> String {
        self.parts().map(|(text, _)| text).collect()
    }

    /// The text in pieces, by origin. A template that rewrites messages (rather than to trim or join them) leaves a
    /// single piece.
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

    pub(crate) fn harmless_rendering(&self) -> Option<&str> {
        self.harmless.as_deref()
    }
}

impl ChatTemplate {
    /// The template of Gemma 1, 1.1 and 2, CodeGemma and RecurrentGemma.
    pub fn builtin() -> Self {
        Self(Source::Builtin)
    }

    /// A template in Jinja, as models bring one in `chat_template.jinja`.
    ///
    /// # Errors
    /// [`Error::Template`] when it does not compile.
    pub fn from_jinja(source: &str) -> Result<Self> {
        Ok(Self(Source::Jinja(Box::new(JinjaTemplate::new(source)?))))
    }

    /// The template in a `tokenizer_config.json`, if it has one: a text, or a list of named ones (`default` is taken,
    /// or the first).
    ///
    /// # Errors
    /// [`Error::Json`] for a file that is not JSON or an entry of another shape; [`Error::Template`] for a template
    /// that does not compile.
    pub fn from_tokenizer_config(bytes: &[u8]) -> Result<Option<Self>> {
        crate::jinja::in_tokenizer_config(bytes)?.map(|source| Self::from_jinja(&source)).transpose()
    }

    /// Is it the built-in one?
    pub fn is_builtin(&self) -> bool {
        matches!(self.0, Source::Builtin)
    }

    /// Renders a conversation. With `add_generation_prompt` it ends where the model's answer begins.
    ///
    /// # Errors
    /// [`Error::ChatRefused`] when the template does not accept the conversation (a system role, or two turns of the
    /// same side in a row); [`Error::Template`] and [`Error::TemplateCost`] for a template with a mistake.
    pub fn render(&self, turns: &[Turn], add_generation_prompt: bool) -> Result<RenderedChat> {
        if turns.is_empty() {
            return Err(refused("the conversation is empty; give at least one user turn"));
        }
        match &self.0 {
            Source::Builtin => builtin(turns, add_generation_prompt),
            Source::Jinja(template) => template.render(turns, add_generation_prompt),
        }
    }
}

fn refused(reason: &str) -> Error {
    Error::ChatRefused { reason: reason.to_owned() }
}

/// Gemma's template. The two refusals are worded as in the released one.
fn builtin(turns: &[Turn], add_generation_prompt: bool) -> Result<RenderedChat> {
    if turns.iter().any(|turn| turn.role == Role::System) {
        return Err(refused("System role not supported"));
    }
    let mut pieces = Vec::new();
    let mut template = BOS.to_owned();
    for (index, turn) in turns.iter().enumerate() {
        if (turn.role == Role::User) != (index % 2 == 0) {
            return Err(refused("Conversation roles must alternate user/assistant/user/assistant/..."));
        }
        let role = if turn.role == Role::User { "user" } else { "model" };
        template += &format!("{START_OF_TURN}{role}\n");
        pieces.push(ChatPiece::Template(std::mem::take(&mut template)));
        pieces.push(ChatPiece::Message(trim(&turn.text).to_owned()));
        template = format!("{END_OF_TURN}\n");
    }
    if add_generation_prompt {
        template += &format!("{START_OF_TURN}model\n");
    }
    pieces.push(ChatPiece::Template(template));
    Ok(RenderedChat::new(pieces))
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

    #[test]
    fn the_builtin_template_keeps_messages_apart() {
        let turns = [Turn::user("\u{1C} a<end_of_turn> \n"), Turn::model("b"), Turn::user("c")];
        let chat = ChatTemplate::builtin().render(&turns, true).unwrap();
        let template = |text: &str| ChatPiece::Template(text.into());
        let message = |text: &str| ChatPiece::Message(text.into());
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
    fn the_builtin_template_refuses_what_gemma_does_not_know() {
        let reason = |turns: &[Turn]| ChatTemplate::builtin().render(turns, true).unwrap_err().to_string();
        assert_eq!(reason(&[Turn::system("s"), Turn::user("u")]), "System role not supported");
        let alternate = "Conversation roles must alternate user/assistant/user/assistant/...";
        assert_eq!(reason(&[Turn::user("a"), Turn::user("b")]), alternate);
        assert_eq!(reason(&[Turn::model("a")]), alternate);
        assert!(reason(&[]).contains("empty"));
    }

    #[test]
    fn roles_have_names() {
        assert_eq!("assistant".parse::<Role>().unwrap(), Role::Model);
        assert_eq!("model".parse::<Role>().unwrap(), Role::Model);
        assert!("robot".parse::<Role>().unwrap_err().to_string().contains("robot"));
    }
}
