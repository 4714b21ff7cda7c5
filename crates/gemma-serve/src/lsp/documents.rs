//! The open documents, kept in step with the editor.
//!
//! An editor sends its edits as ranges of line and column, and a column counts UTF-16 code units unless both sides agree
//! on bytes. A line ends at `\n`, `\r\n` or `\r`. A position beyond the end of a line means its end, and one inside a
//! character its beginning, so no edit can be out of range.

use super::protocol::{Change, Position, path_in};
use std::collections::HashMap;

/// Most bytes of all documents together; beyond that the one that was not touched for longest is forgotten.
const MOST_BYTES: usize = 512 << 20;

/// What a column counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Utf8,
    Utf16,
    Utf32,
}

impl Encoding {
    /// What is agreed on: bytes where the client offers them, else the client's first choice that is known. A client that
    /// offers nothing counts UTF-16 code units, as all did once.
    pub(super) fn agreed(offered: &[String]) -> Self {
        let known = |name: &String| [Self::Utf8, Self::Utf16, Self::Utf32].into_iter().find(|own| own.name() == name);
        let known: Vec<Self> = offered.iter().filter_map(known).collect();
        if known.contains(&Self::Utf8) { Self::Utf8 } else { known.first().copied().unwrap_or(Self::Utf16) }
    }

    /// The protocol's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Utf8 => "utf-8",
            Self::Utf16 => "utf-16",
            Self::Utf32 => "utf-32",
        }
    }

    fn width(self, text: &str) -> usize {
        match self {
            Self::Utf8 => text.len(),
            Self::Utf16 => text.encode_utf16().count(),
            Self::Utf32 => text.chars().count(),
        }
    }
}

/// One open document.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub(super) uri: String,
    pub(super) language: String,
    pub(super) text: String,
    /// When it was opened or changed last, counted over all documents.
    touched: u64,
}

impl Document {
    /// Where a position is, in bytes.
    pub(super) fn offset(&self, encoding: Encoding, position: Position) -> usize {
        let start = line_start(&self.text, position.line);
        let line = &self.text[start..];
        let line = &line[..line.find(['\n', '\r']).unwrap_or(line.len())];
        start + column_offset(line, encoding, position.character)
    }

    /// The position of a byte.
    pub(super) fn position(&self, encoding: Encoding, offset: usize) -> Position {
        let before = &self.text[..offset];
        let line = line_breaks(before).count();
        let start = line_breaks(before).last().unwrap_or(0);
        Position { line, character: encoding.width(&before[start..]) }
    }

    fn apply(&mut self, encoding: Encoding, change: Change) {
        match change.range {
            Some(range) => {
                let (start, end) = (self.offset(encoding, range.start), self.offset(encoding, range.end));
                self.text.replace_range(start..end.max(start), &change.text);
            }
            None => self.text = change.text,
        }
    }
}

/// Where the lines after the first begin.
fn line_breaks(text: &str) -> impl Iterator<Item = usize> {
    let bytes = text.as_bytes();
    (0..bytes.len()).filter_map(move |at| match bytes[at] {
        b'\n' => Some(at + 1),
        b'\r' if bytes.get(at + 1) != Some(&b'\n') => Some(at + 1),
        _ => None,
    })
}

/// Where a line begins; the end of the text when there is no such line.
fn line_start(text: &str, line: usize) -> usize {
    match line {
        0 => 0,
        _ => line_breaks(text).nth(line - 1).unwrap_or(text.len()),
    }
}

/// Where a column is in its line, in bytes.
fn column_offset(line: &str, encoding: Encoding, column: usize) -> usize {
    match encoding {
        Encoding::Utf8 => line.floor_char_boundary(column),
        Encoding::Utf32 => line.char_indices().nth(column).map_or(line.len(), |(at, _)| at),
        Encoding::Utf16 => {
            let mut left = column;
            let inside = line.char_indices().find(|(_, character)| match left.checked_sub(character.len_utf16()) {
                Some(rest) => {
                    left = rest;
                    false
                }
                None => true,
            });
            inside.map_or(line.len(), |(at, _)| at)
        }
    }
}

/// All open documents.
#[derive(Debug, Default)]
pub(super) struct Documents {
    open: HashMap<String, Document>,
    folders: Vec<String>,
    clock: u64,
}

impl Documents {
    pub(super) fn get(&self, uri: &str) -> Option<&Document> {
        self.open.get(uri)
    }

    pub(super) fn open(&mut self, uri: String, language: String, text: String) {
        self.clock += 1;
        let document = Document { uri: uri.clone(), language, text, touched: self.clock };
        self.open.insert(uri, document);
        self.forget_oldest();
    }

    /// Applies edits in their order; each is about the text that the one before left. Edits that cannot be understood
    /// (`None`) close the document: what is here would not be what the editor has.
    pub(super) fn change(&mut self, uri: &str, changes: Option<Vec<Change>>, encoding: Encoding) {
        let Some(changes) = changes else { return self.close(uri) };
        let Some(document) = self.open.get_mut(uri) else { return };
        self.clock += 1;
        document.touched = self.clock;
        for change in changes {
            document.apply(encoding, change);
        }
        self.forget_oldest();
    }

    fn forget_oldest(&mut self) {
        let size =
            |documents: &HashMap<String, Document>| documents.values().map(|open| open.text.len()).sum::<usize>();
        while self.open.len() > 1 && size(&self.open) > MOST_BYTES {
            let oldest =
                self.open.values().min_by_key(|document| document.touched).map(|document| document.uri.clone());
            let Some(oldest) = oldest else { return };
            self.open.remove(&oldest);
        }
    }

    /// The path of a document for a prompt.
    pub(super) fn path(&self, document: &Document) -> String {
        path_in(&self.folders, &document.uri)
    }

    /// The folders that are open, as URIs.
    pub(super) fn folders(&mut self) -> &mut Vec<String> {
        &mut self.folders
    }

    pub(super) fn close(&mut self, uri: &str) {
        self.open.remove(uri);
    }

    /// The documents of the same language that were touched last, the latest at the end.
    pub(super) fn others(&self, uri: &str, count: usize) -> Vec<&Document> {
        let Some(document) = self.open.get(uri) else { return Vec::new() };
        let alike = |other: &&Document| other.uri != uri && other.language == document.language;
        let mut others: Vec<&Document> = self.open.values().filter(alike).collect();
        others.sort_by_key(|other| other.touched);
        others.split_off(others.len().saturating_sub(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsp::protocol::Range;

    fn document(text: &str) -> Document {
        Document { uri: "file:///a/b/c.py".into(), language: "python".into(), text: text.into(), touched: 0 }
    }

    fn change(from: (usize, usize), to: (usize, usize), text: &str) -> Change {
        let position = |(line, character)| Position { line, character };
        Change { range: Some(Range { start: position(from), end: position(to) }), text: text.to_owned() }
    }

    #[test]
    fn columns_count_utf_16_or_bytes() {
        let document = document("aé🦀b\nx");
        let at = |encoding, character| document.offset(encoding, Position { line: 0, character });
        assert_eq!([0, 1, 2, 3, 4, 5, 99].map(|c| at(Encoding::Utf16, c)), [0, 1, 3, 3, 7, 8, 8]);
        assert_eq!([0, 1, 2, 3, 4, 7, 8, 99].map(|c| at(Encoding::Utf8, c)), [0, 1, 1, 3, 3, 7, 8, 8]);
    }

    #[test]
    fn lines_end_in_three_ways() {
        let document = document("a\r\nb\rc\nd");
        for (line, offset) in [(0, 0), (1, 3), (2, 5), (3, 7), (4, 8), (900, 8)] {
            assert_eq!(document.offset(Encoding::Utf16, Position { line, character: 0 }), offset, "line {line}");
        }
        // the end of a line is before its line break
        assert_eq!(document.offset(Encoding::Utf16, Position { line: 0, character: 50 }), 1);
        assert_eq!(document.offset(Encoding::Utf16, Position { line: 1, character: 50 }), 4);
    }

    #[test]
    fn a_position_goes_there_and_back() {
        let document = document("aé🦀b\r\n\tx🦀\n\n");
        for encoding in [Encoding::Utf8, Encoding::Utf16] {
            for (offset, _) in document.text.char_indices().filter(|(_, c)| *c != '\n') {
                assert_eq!(document.offset(encoding, document.position(encoding, offset)), offset);
            }
        }
    }

    #[test]
    fn edits_apply_in_order() {
        let mut document = document("one\r\ntwo 🦀 three\n");
        document.apply(Encoding::Utf16, change((1, 4), (1, 6), "crab"));
        assert_eq!(document.text, "one\r\ntwo crab three\n");
        document.apply(Encoding::Utf16, change((0, 3), (1, 3), ""));
        assert_eq!(document.text, "one crab three\n");
        document.apply(Encoding::Utf16, change((1, 0), (1, 0), "end"));
        document.apply(Encoding::Utf16, change((9, 9), (0, 0), "!"));
        assert_eq!(document.text, "one crab three\nend!", "a range that ends before it begins is empty");
        document.apply(Encoding::Utf16, Change { range: None, text: "new".into() });
        assert_eq!(document.text, "new");
    }

    #[test]
    fn units_of_columns_are_agreed_on() {
        let agreed =
            |offered: &[&str]| Encoding::agreed(&offered.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(agreed(&[]), Encoding::Utf16);
        assert_eq!(agreed(&["utf-16", "utf-8"]), Encoding::Utf8);
        assert_eq!(agreed(&["utf-64", "utf-32", "utf-16"]), Encoding::Utf32);
        let document = document("aé🦀b");
        let at = |character| document.offset(Encoding::Utf32, Position { line: 0, character });
        assert_eq!([0, 1, 2, 3, 4, 99].map(at), [0, 1, 3, 7, 8, 8]);
        assert_eq!(document.position(Encoding::Utf32, 7).character, 3);
    }

    #[test]
    fn edits_that_are_none_close_the_document() {
        let mut documents = Documents::default();
        documents.open("u".into(), "python".into(), "text".into());
        documents.change("u", Some(vec![change((0, 0), (0, 1), "T")]), Encoding::Utf16);
        assert_eq!(documents.get("u").map(|document| &*document.text), Some("Text"));
        documents.change("u", None, Encoding::Utf16);
        assert!(documents.get("u").is_none());
    }
}
