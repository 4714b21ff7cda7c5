//! Turns of a conversation: who speaks, what is said, and calls of tools.

use std::str::FromStr;

use serde_json::{Map, Value as Json, json};

use crate::{Error, Result};

/// Who speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// The system prompt (`developer` elsewhere).
    System,
    /// The person.
    #[default]
    User,
    /// The model (`assistant` elsewhere).
    Model,
    /// A tool that the model called: what it answered.
    Tool,
}

impl Role {
    /// The name that chat templates know the role by.
    pub fn template_name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Model => "assistant",
            Role::Tool => "tool",
        }
    }
}

impl FromStr for Role {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "system" | "developer" => Ok(Role::System),
            "user" => Ok(Role::User),
            "model" | "assistant" => Ok(Role::Model),
            "tool" => Ok(Role::Tool),
            _ => Err(Error::UnknownRole { name: crate::jinja::cut(name) }),
        }
    }
}

/// A part of what is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text.
    Text(String),
    /// An image; which one is the caller's affair.
    Image,
}

/// A call of a tool by the model.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    /// What the answer will name it by.
    pub id: Option<String>,
    /// The function.
    pub name: String,
    /// Its arguments by name.
    pub arguments: Map<String, Json>,
}

/// One message of a conversation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What is said, unless it has `parts`.
    pub text: String,
    /// What is said, as texts and images; empty for a message that is only `text`.
    pub parts: Vec<Part>,
    /// Tools that the model calls.
    pub tool_calls: Vec<ToolCall>,
    /// Which call a tool answers.
    pub tool_call_id: Option<String>,
    /// The name of the tool that answers.
    pub name: Option<String>,
    /// What the model thought before it answered.
    pub reasoning: Option<String>,
}

impl Turn {
    /// A message that is only text.
    pub fn new(role: Role, text: impl Into<String>) -> Self {
        Self { role, text: text.into(), ..Self::default() }
    }

    /// A message of texts and images.
    pub fn with_parts(role: Role, parts: Vec<Part>) -> Self {
        Self { role, parts, ..Self::default() }
    }

    /// A message of the person.
    pub fn user(text: impl Into<String>) -> Self {
        Self::new(Role::User, text)
    }

    /// A message of the model.
    pub fn model(text: impl Into<String>) -> Self {
        Self::new(Role::Model, text)
    }

    /// A system prompt. Where a template knows no such turn, it goes in front of the first message of the person.
    pub fn system(text: impl Into<String>) -> Self {
        Self::new(Role::System, text)
    }

    /// What the tool `name` answered.
    pub fn tool(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..Self::new(Role::Tool, text) }
    }

    /// A message as clients of OpenAI's interface write it: `role`, `content` (a text, null, or a list of parts),
    /// `tool_calls` (arguments as an object or as JSON in a text), `tool_call_id`, `name`, `reasoning_content`.
    ///
    /// # Errors
    /// [`Error::Message`] for another shape, [`Error::UnknownRole`].
    pub fn from_json(message: &Json) -> Result<Self> {
        let wrong = |field: &'static str, wanted: &'static str| Error::Message { field, wanted };
        let text = |field: &str| message[field].as_str().map(str::to_owned);
        let role = message["role"].as_str().ok_or_else(|| wrong("role", "a text"))?;
        let mut turn = Turn::new(role.parse()?, "");
        match &message["content"] {
            Json::Null => {}
            Json::String(text) => turn.text.clone_from(text),
            Json::Array(parts) => {
                for part in parts {
                    turn.parts.push(match part["type"].as_str() {
                        Some("text" | "input_text" | "output_text") => {
                            let text = part["text"].as_str().ok_or_else(|| wrong("content[].text", "a text"))?;
                            Part::Text(text.to_owned())
                        }
                        Some("image" | "image_url" | "input_image") => Part::Image,
                        _ => return Err(wrong("content[].type", "text or image_url")),
                    });
                }
            }
            _ => return Err(wrong("content", "a text or a list of parts")),
        }
        if let Some(calls) = message.get("tool_calls").filter(|calls| !calls.is_null()) {
            let calls = calls.as_array().ok_or_else(|| wrong("tool_calls", "a list"))?;
            for call in calls {
                let name = call["function"]["name"].as_str();
                let arguments = match &call["function"]["arguments"] {
                    Json::Null => Map::new(),
                    Json::Object(arguments) => arguments.clone(),
                    Json::String(text) if text.trim().is_empty() => Map::new(),
                    Json::String(text) => serde_json::from_str(text)
                        .map_err(|_| wrong("tool_calls[].function.arguments", "a JSON object"))?,
                    _ => return Err(wrong("tool_calls[].function.arguments", "a JSON object")),
                };
                turn.tool_calls.push(ToolCall {
                    id: call["id"].as_str().map(str::to_owned),
                    name: name.ok_or_else(|| wrong("tool_calls[].function.name", "a text"))?.to_owned(),
                    arguments,
                });
            }
        }
        turn.tool_call_id = text("tool_call_id");
        turn.name = text("name");
        turn.reasoning = text("reasoning_content").or_else(|| text("reasoning"));
        Ok(turn)
    }

    /// The message as chat templates expect it.
    pub fn to_json(&self) -> Json {
        let part = |part: &Part| match part {
            Part::Text(text) => json!({"type": "text", "text": text}),
            Part::Image => json!({"type": "image"}),
        };
        let content = match self.parts.is_empty() {
            true => Json::String(self.text.clone()),
            false => Json::Array(self.parts.iter().map(part).collect()),
        };
        let mut message = json!({"role": self.role.template_name(), "content": content});
        if !self.tool_calls.is_empty() {
            let call = |call: &ToolCall| {
                let function = json!({"name": call.name, "arguments": call.arguments});
                match &call.id {
                    Some(id) => json!({"id": id, "type": "function", "function": function}),
                    None => json!({"type": "function", "function": function}),
                }
            };
            message["tool_calls"] = Json::Array(self.tool_calls.iter().map(call).collect());
        }
        for (field, value) in
            [("tool_call_id", &self.tool_call_id), ("name", &self.name), ("reasoning", &self.reasoning)]
        {
            if let Some(value) = value {
                message[field] = Json::String(value.clone());
            }
        }
        message
    }

    /// What is said, in parts.
    pub(crate) fn content(&self) -> Vec<Part> {
        match self.parts.is_empty() {
            true => vec![Part::Text(self.text.clone())],
            false => self.parts.clone(),
        }
    }

    /// How many images it has.
    pub fn images(&self) -> usize {
        self.parts.iter().filter(|part| **part == Part::Image).count()
    }

    /// All its text.
    pub fn plain_text(&self) -> String {
        let text = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Image => String::new(),
        };
        if self.parts.is_empty() { self.text.clone() } else { self.parts.iter().map(text).collect() }
    }

    /// The same message behind a system prompt.
    pub(crate) fn after(&self, system: &str) -> Self {
        let mut turn = self.clone();
        match turn.parts.first_mut() {
            None => turn.text = format!("{system}\n\n{}", turn.text),
            Some(Part::Text(text)) => *text = format!("{system}\n\n{text}"),
            Some(Part::Image) => turn.parts.insert(0, Part::Text(format!("{system}\n\n"))),
        }
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_have_names() {
        assert_eq!("assistant".parse::<Role>().unwrap(), Role::Model);
        assert_eq!("model".parse::<Role>().unwrap(), Role::Model);
        assert_eq!("developer".parse::<Role>().unwrap(), Role::System);
        assert!("robot".parse::<Role>().unwrap_err().to_string().contains("robot"));
    }

    #[test]
    fn messages_of_clients_are_read_and_written() {
        let call = json!({"role": "assistant", "content": null, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": [1]}"}}]});
        let turn = Turn::from_json(&call).unwrap();
        assert_eq!(turn.tool_calls[0].arguments["a"], json!([1]));
        assert_eq!(turn.to_json()["tool_calls"][0]["function"]["arguments"], json!({"a": [1]}));
        let parts = json!({"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "what?"}]});
        let turn = Turn::from_json(&parts).unwrap();
        assert_eq!((turn.images(), turn.plain_text()), (1, "what?".into()));
        let tool = Turn::from_json(&json!({"role": "tool", "tool_call_id": "c1", "content": "3"})).unwrap();
        assert_eq!((tool.role, tool.tool_call_id.as_deref()), (Role::Tool, Some("c1")));
        for wrong in [
            json!({}),
            json!({"role": "user", "content": 3}),
            json!({"role": "user", "content": [{"type": "smell"}]}),
            json!({"role": "user", "content": [{"type": "text"}]}),
            json!({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}),
            json!({"role": "assistant", "tool_calls": [{}]}),
        ] {
            assert!(matches!(Turn::from_json(&wrong), Err(Error::Message { .. })), "{wrong}");
        }
    }
}
