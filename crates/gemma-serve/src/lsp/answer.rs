//! Where a completion goes in its document, and how the protocol wants to be told.

use super::documents::{Document, Documents, Encoding};
use super::protocol::{Position, Range};
use codegemma::{File, Infill, Language, LineEnding};
use serde_json::{Value, json};

/// Longest label of a menu item, in characters.
const LABEL: usize = 60;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Grey text at the cursor.
    Inline,
    /// An item of the completion menu.
    Menu,
}

/// What a completion replaces.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The bytes of the document that the completion replaces, `begun` included.
    bytes: (usize, usize),
    /// The same range as the protocol counts.
    range: Range,
    /// What the new text begins with: the word before the cursor, or the item selected in the menu.
    begun: String,
    /// How lines of the document end.
    line_ending: LineEnding,
}

impl Place {
    /// At the cursor. A menu item replaces the word before it, since editors compare items with that word.
    pub(super) fn cursor(document: &Document, encoding: Encoding, position: Position, kind: Kind) -> Self {
        let at = document.offset(encoding, position);
        let before = &document.text[..at];
        let word = match kind {
            Kind::Inline => at,
            Kind::Menu => before.trim_end_matches(|c: char| c.is_alphanumeric() || c == '_').len(),
        };
        let range = Range { start: document.position(encoding, word), end: document.position(encoding, at) };
        Self { bytes: (word, at), range, begun: before[word..].to_owned(), line_ending: LineEnding::of(&document.text) }
    }

    /// After the text that is selected in the editor's menu and would replace `range`.
    pub(super) fn selected(document: &Document, encoding: Encoding, range: Range, text: String) -> Self {
        let start = document.offset(encoding, range.start);
        let end = document.offset(encoding, range.end).max(start);
        Self { bytes: (start, end), range, begun: text, line_ending: LineEnding::of(&document.text) }
    }

    /// The hole, with other open files around it.
    pub(super) fn infill(&self, documents: &Documents, document: &Document, others: Vec<&Document>) -> Infill {
        let (start, end) = self.bytes;
        let path = documents.path(document);
        let language = match Language::of_path(&path) {
            Language::Other => Language::of_name(&document.language),
            known => known,
        };
        let context = others.into_iter().map(|other| File { path: documents.path(other), text: other.text.clone() });
        Infill {
            prefix: format!("{}{}", &document.text[..start], self.begun),
            suffix: document.text[end..].to_owned(),
            path: Some(path),
            context: context.collect(),
            language: Some(language),
        }
    }

    /// The result of the request, when the model's `text` goes into the hole. Lines end as those of the document do.
    pub(super) fn answer(&self, kind: Kind, text: &str) -> Value {
        let new_text = format!("{}{}", self.begun, self.line_ending.apply(text));
        match kind {
            Kind::Inline if text.is_empty() => json!({ "items": [] }),
            Kind::Inline => json!({ "items": [{ "insertText": new_text, "range": self.range.to_json() }] }),
            Kind::Menu if text.trim().is_empty() => json!({ "isIncomplete": true, "items": [] }),
            Kind::Menu => json!({
                // another keystroke may change the completion: it has to be asked for again
                "isIncomplete": true,
                "items": [{
                    "label": label(&new_text),
                    "kind": 1,
                    "detail": "gemma",
                    "documentation": new_text,
                    "filterText": new_text.trim_start(),
                    "insertTextFormat": 1,
                    "textEdit": { "range": self.range.to_json(), "newText": new_text },
                }],
            }),
        }
    }
}

/// The first line that is not blank, shortened.
fn label(text: &str) -> String {
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    if line.chars().count() <= LABEL {
        return line.to_owned();
    }
    line.chars().take(LABEL - 1).chain(['…']).collect()
}
