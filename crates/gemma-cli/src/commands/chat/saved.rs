//! A conversation in a file: JSON messages of role and content, as OpenAI's API has them.

use std::{io::Write, path::Path};

use anyhow::{Context, Result, bail};
use gemma_tokenizer::{Role, Turn};
use serde::{Deserialize, Serialize};

use crate::{
    new_file::{NewFile, refuse_dash},
    text,
};

/// What a file of messages says.
#[derive(Debug, Default)]
pub(super) struct Saved {
    pub(super) system: Option<String>,
    /// Questions and answers in turn.
    pub(super) turns: Vec<Turn>,
}

/// One message of the file.
#[derive(Deserialize, Serialize)]
struct Message {
    role: String,
    // the name that earlier versions wrote
    #[serde(alias = "text")]
    content: String,
    /// How many images stood in front of the text; they are not in the file.
    #[serde(default, skip_serializing_if = "is_none")]
    images: usize,
}

fn is_none(images: &usize) -> bool {
    *images == 0
}

/// Writes a conversation, whole or not at all.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn save(system: Option<&str>, turns: &[Turn], path: &Path) -> Result<()> {
    let system = system.map(|text| Message { role: "system".to_owned(), content: text.to_owned(), images: 0 });
    let message = |turn: &Turn| Message {
        role: if turn.role == Role::User { "user" } else { "assistant" }.to_owned(),
        content: turn.plain_text(),
        images: turn.images(),
    };
    let messages: Vec<Message> = system.into_iter().chain(turns.iter().map(message)).collect();
    refuse_dash(path)?;
    let mut file = NewFile::open(path)?;
    let text = serde_json::to_string_pretty(&messages)?;
    writeln!(file.as_file_mut(), "{text}").with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file.finish()?)
}

impl Saved {
    /// Reads messages.
    ///
    /// # Errors
    /// When the file cannot be read, or holds anything but a system message, if any, and questions and answers in turn.
    pub(super) fn load(path: &Path) -> Result<Self> {
        let name = path.display();
        let messages: Vec<Message> = serde_json::from_str(&text::read(path)?)
            .with_context(|| format!("{name} holds no JSON array of messages with role and content"))?;
        let mut saved = Self::default();
        for (index, Message { role, content, images }) in messages.into_iter().enumerate() {
            if images > 0 {
                bail!("{name}: message {index} is about an image, which is not in the file; begin anew with /image");
            }
            let is_question = saved.turns.len().is_multiple_of(2);
            match role.as_str() {
                "system" | "developer" if index == 0 => saved.system = Some(content),
                "user" if is_question => saved.turns.push(Turn::user(content)),
                "assistant" | "model" if !is_question => saved.turns.push(Turn::model(content)),
                "user" | "assistant" | "model" | "system" | "developer" => {
                    bail!(
                        "{name}: message {index} ({role}) is out of order; after system, user and assistant take turns"
                    )
                }
                other => bail!("{name}: message {index} has the role {other:?}; system, user and assistant are known"),
            }
        }
        if !saved.turns.len().is_multiple_of(2) {
            bail!("{name}: the last message is a question; a conversation goes on after an answer");
        }
        Ok(saved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_is_read_as_it_was_saved() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("talk.json");
        let turns = [Turn::user("2 + 3?"), Turn::model("5")];
        save(Some("be short"), &turns, &path).expect("saved");
        let back: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).expect("there")).expect("JSON");
        assert_eq!(back[2], serde_json::json!({"role": "assistant", "content": "5"}));
        let saved = Saved::load(&path).expect("read");
        assert_eq!((saved.system.as_deref(), saved.turns.as_slice()), (Some("be short"), &turns[..]));
        assert!(save(None, &[], &folder.path().join("missing/x")).is_err());
    }

    #[test]
    fn messages_that_are_no_conversation_are_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("talk.json");
        let refusal = |text: &str| {
            std::fs::write(&path, text).expect("written");
            format!("{:#}", Saved::load(&path).expect_err(text))
        };
        let user = r#"{"role":"user","content":"a"}"#;
        assert!(refusal("{}").contains("no JSON array of messages"));
        assert!(refusal(&format!("[{user}]")).contains("the last message is a question"));
        assert!(refusal(&format!("[{user},{user}]")).contains("message 1 (user) is out of order"));
        assert!(refusal(r#"[{"role":"assistant","content":"a"}]"#).contains("out of order"));
        assert!(refusal(r#"[{"role":"cat","content":"a"}]"#).contains("\"cat\""));
        assert!(refusal(r#"[{"role":"user","content":"a","images":1}]"#).contains("about an image"));
        std::fs::write(&path, r#"[{"role":"user","text":"a"},{"role":"model","text":"b"}]"#).expect("written");
        assert_eq!(Saved::load(&path).expect("earlier versions wrote this").turns.len(), 2);
    }
}
