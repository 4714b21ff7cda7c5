//! The messages of a chat as clients send them, and how they become turns.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use gemma_tokenizer::{Role, Turn};
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::Value;

use super::app::Settings;
use super::backend::{Backend, Message, Prompt};
use super::error::Refusal;
use super::object::Others;
use super::texts::check_len;
use super::tools;

/// One message.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ChatMessage {
    role: String,
    #[serde(default)]
    content: Content,
    #[serde(default)]
    tool_calls: Option<Vec<ToolCall>>,
    #[serde(default, alias = "tool_name")]
    name: Option<String>,
    /// Ollama: images in base64.
    #[serde(default)]
    images: Option<Vec<String>>,
    #[serde(flatten)]
    _others: Others,
}

/// A call that the model made earlier.
#[derive(Clone, Debug, Deserialize)]
struct ToolCall {
    function: CalledFunction,
    #[serde(flatten)]
    _others: Others,
}

#[derive(Clone, Debug, Deserialize)]
struct CalledFunction {
    name: String,
    /// A JSON text (OpenAI), or an object (Ollama).
    #[serde(default)]
    arguments: Value,
    #[serde(flatten)]
    _others: Others,
}

/// A message's text and images.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    pub(crate) text: String,
    /// Data URLs of images.
    pub(crate) urls: Vec<String>,
}

#[derive(Deserialize)]
struct Part {
    r#type: Option<String>,
    text: Option<String>,
    image_url: Option<ImageUrl>,
    #[serde(flatten)]
    _others: Others,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a URL or an object with the field url")]
enum ImageUrl {
    Url(String),
    Object { url: String },
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of content parts")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content { text: text.to_owned(), urls: Vec::new() })
            }

            fn visit_unit<E: de::Error>(self) -> Result<Content, E> {
                Ok(Content::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Content, A::Error> {
                let mut content = Content::default();
                while let Some(part) = seq.next_element::<Part>()? {
                    match (part.r#type.as_deref(), part.text, part.image_url) {
                        (Some("text" | "input_text" | "output_text") | None, Some(text), _) => {
                            content.text.push_str(&text)
                        }
                        (
                            Some("image_url" | "input_image") | None,
                            _,
                            Some(ImageUrl::Url(url) | ImageUrl::Object { url }),
                        ) => {
                            content.urls.push(url);
                        }
                        (kind, ..) => {
                            let kind = kind.unwrap_or("no type");
                            return Err(de::Error::custom(format_args!(
                                "a content part of {kind} without its text or image_url; use text or image_url"
                            )));
                        }
                    }
                }
                Ok(content)
            }
        }
        deserializer.deserialize_any(Form)
    }
}

impl ChatMessage {
    /// A user's message of plain text.
    pub(crate) fn user(text: impl Into<String>) -> Self {
        Self::plain("user", text)
    }

    /// A message of plain text.
    pub(crate) fn plain(role: &str, text: impl Into<String>) -> Self {
        let content = Content { text: text.into(), urls: Vec::new() };
        Self { role: role.to_owned(), content, tool_calls: None, name: None, images: None, _others: Others::default() }
    }

    /// The same with images in base64.
    pub(crate) fn with_images(self, images: Option<Vec<String>>) -> Self {
        Self { images, ..self }
    }
}

/// The prompt of a chat, with the tools that the model may call.
///
/// # Errors
/// An unknown role, an image that is not sound or too large, or what the chat template refuses.
pub(crate) fn prompt(
    backend: &dyn Backend,
    settings: &Settings,
    messages: &[ChatMessage],
    tools: Option<&str>,
    add_generation_prompt: bool,
) -> Result<Prompt, Refusal> {
    if messages.is_empty() {
        return Err(Refusal::field("messages", "empty; send at least one message"));
    }
    let mut turns: Vec<Message> = Vec::new();
    let mut images = 0;
    for (index, message) in messages.iter().enumerate() {
        let turn = turn(index, message, settings)?;
        images += turn.images.len();
        if images > settings.images {
            return Err(Refusal::field("messages", format!("more than {} images in one request", settings.images)));
        }
        match turns.last_mut() {
            // results of several tools are one turn
            Some(last) if message.role == "tool" && last.turn.role == turn.turn.role => {
                last.turn.text.push_str("\n\n");
                last.turn.text.push_str(&turn.turn.text);
            }
            _ => turns.push(turn),
        }
    }
    if let Some(tools) = tools {
        match turns.first_mut().filter(|first| first.turn.role == Role::System) {
            Some(system) => system.turn.text = format!("{tools}\n\n{}", system.turn.text),
            None => turns.insert(0, Message { turn: Turn::system(tools), images: Vec::new() }),
        }
    }
    check_len(backend, turns.iter().map(|message| message.turn.text.len()).sum())?;
    let rendered = backend.chat_prompt(&turns, add_generation_prompt);
    if rendered.is_err() && turns.iter().any(|message| message.turn.role == Role::System) {
        // Gemma 1 and 2 know no system turn: its text opens the next user's turn, as Gemma 3's template does itself
        return backend.chat_prompt(&without_system(turns), add_generation_prompt);
    }
    rendered
}

/// The turns with each system message at the head of the user's turn that follows it.
fn without_system(turns: Vec<Message>) -> Vec<Message> {
    let mut standing = String::new();
    let mut plain = Vec::new();
    for mut message in turns {
        if message.turn.role == Role::System {
            standing.push_str(&message.turn.text);
            standing.push_str("\n\n");
            continue;
        }
        if message.turn.role == Role::User && !standing.is_empty() {
            message.turn.text.insert_str(0, &std::mem::take(&mut standing));
        }
        plain.push(message);
    }
    if !standing.is_empty() {
        plain.push(Message { turn: Turn::user(standing.trim_end()), images: Vec::new() });
    }
    plain
}

fn turn(index: usize, message: &ChatMessage, settings: &Settings) -> Result<Message, Refusal> {
    let mut text = message.content.text.clone();
    let role = match message.role.as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" | "model" => Role::Model,
        "tool" | "function" => {
            text = tools::result_text(message.name.as_deref(), &text);
            Role::User
        }
        other => {
            let message = format!("{other:?} is unknown; use system, user, assistant or tool");
            return Err(Refusal::field(format!("messages[{index}].role"), message));
        }
    };
    if let Some(calls) = &message.tool_calls {
        let calls: Vec<String> =
            calls.iter().map(|call| tools::call_text(&call.function.name, &call.function.arguments)).collect();
        text.push_str(&calls.join("\n"));
    }
    let field = format!("messages[{index}].content");
    let from_urls = message.content.urls.iter().map(|url| image_of_url(url, &field, settings.image_limit));
    let from_base64 = message.images.iter().flatten().map(|data| image_of_base64(data, &field, settings.image_limit));
    let images = from_urls.chain(from_base64).collect::<Result<_, _>>()?;
    Ok(Message { turn: Turn::new(role, text), images })
}

/// The image file of a data URL. Other URLs are not fetched: a server that fetches what clients name can be made to
/// reach what they cannot.
pub(crate) fn image_of_url(url: &str, field: &str, limit: usize) -> Result<Vec<u8>, Refusal> {
    let Some(rest) = url.strip_prefix("data:") else {
        return Err(Refusal::field(
            field,
            "an image must be a data URL (data:image/png;base64,...); nothing is fetched",
        ));
    };
    match rest.split_once(',') {
        Some((kind, data)) if kind.starts_with("image/") && kind.ends_with(";base64") => {
            image_of_base64(data, field, limit)
        }
        _ => Err(Refusal::field(field, "the data URL is not data:image/...;base64,...")),
    }
}

/// An image file in base64, bare or as a data URL.
pub(crate) fn image_of_base64(data: &str, field: &str, limit: usize) -> Result<Vec<u8>, Refusal> {
    if data.starts_with("data:") {
        return image_of_url(data, field, limit);
    }
    if data.len() / 4 * 3 > limit {
        let base = Refusal::too_large(format!("{field}: an image has more than {limit} bytes; send a smaller one"));
        return Err(Refusal { param: Some(field.to_owned()), ..base });
    }
    let decoded = STANDARD.decode(data).or_else(|_| STANDARD_NO_PAD.decode(data));
    let bytes = decoded.map_err(|error| Refusal::field(field, format!("the image is not base64: {error}")))?;
    let known = [&b"\x89PNG"[..], b"\xFF\xD8\xFF", b"RIFF"];
    if !known.iter().any(|magic| bytes.starts_with(magic)) {
        return Err(Refusal::field(field, "the image is neither PNG, JPEG nor WebP"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::parse;

    fn message(json: &str) -> Result<Message, Refusal> {
        turn(3, &parse::<ChatMessage>(json.as_bytes())?, &Settings::default())
    }

    #[test]
    fn content_is_text_or_parts() {
        let text = |json: &str| message(json).expect(json).turn.text;
        assert_eq!(text(r#"{"role":"user","content":"a"}"#), "a");
        assert_eq!(text(r#"{"role":"assistant","content":null}"#), "");
        assert_eq!(
            text(r#"{"role":"user","content":[{"type":"text","text":"a"},{"type":"input_text","text":"b"}]}"#),
            "ab"
        );
        let png = r#"{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo="}}]}"#;
        assert_eq!(message(png).expect("a PNG").images, [b"\x89PNG\r\n\x1a\n"]);
    }

    #[test]
    fn what_cannot_be_a_message_is_refused_by_name() {
        for (json, param) in [
            (r#"{"role":"king","content":"a"}"#, "messages[3].role"),
            (r#"{"role":"user","content":7}"#, "content"),
            (r#"{"role":"user","content":[{"type":"audio"}]}"#, "content"),
            (r#"{"role":"user","content":[{"type":"image_url","image_url":"http://x/y.png"}]}"#, "messages[3].content"),
            (
                r#"{"role":"user","content":[{"type":"image_url","image_url":"data:image/png;base64,AAAA"}]}"#,
                "messages[3].content",
            ),
            (r#"{"role":"user","images":["!"]}"#, "messages[3].content"),
        ] {
            let refusal = message(json).expect_err(json);
            assert!(refusal.param.as_deref().is_some_and(|found| found.starts_with(param)), "{json}: {refusal:?}");
        }
        let settings = Settings { image_limit: 4, ..Settings::default() };
        assert_eq!(
            image_of_base64("iVBORw0KGgo=", "images[0]", settings.image_limit).expect_err("5 bytes").status,
            413
        );
    }

    #[test]
    fn a_system_message_opens_the_next_user_turn() {
        let turns = [Turn::system("be brief"), Turn::user("hi"), Turn::model("ho")];
        let turns = turns.map(|turn| Message { turn, images: Vec::new() }).to_vec();
        let plain: Vec<Turn> = without_system(turns).into_iter().map(|message| message.turn).collect();
        assert_eq!(plain, [Turn::user("be brief\n\nhi"), Turn::model("ho")]);
    }
}
