//! The few fields of the protocol that the server reads, and nothing else.
//!
//! Clients differ: they send words that no edition of the protocol knows, and URIs that are none by the letter
//! (`file:///disk/me/routes/[id]/größe.py`). A URI is a key, and a path for the prompt; everything that is not read here
//! may be whatever it likes.

use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

/// A place in a document: line, and column in the units that were agreed on; both from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) line: usize,
    pub(super) character: usize,
}

impl Position {
    /// Reads one. Fractions and negative numbers are none.
    pub(super) fn read(value: &Value) -> Option<Self> {
        let number = |field: &str| value[field].as_u64().map(|number| usize::try_from(number).unwrap_or(usize::MAX));
        Some(Self { line: number("line")?, character: number("character")? })
    }

    fn to_json(self) -> Value {
        json!({ "line": self.line, "character": self.character })
    }
}

/// From a place to a place, the second not included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: Position,
    pub(super) end: Position,
}

impl Range {
    pub(super) fn read(value: &Value) -> Option<Self> {
        Some(Self { start: Position::read(&value["start"])?, end: Position::read(&value["end"])? })
    }

    pub(super) fn to_json(self) -> Value {
        json!({ "start": self.start.to_json(), "end": self.end.to_json() })
    }
}

/// What `initialize` says that matters here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Client {
    /// Units of columns that the client offers, by the protocol's names, the preferred first.
    pub(super) encodings: Vec<String>,
    /// Whether it shows progress that the server begins.
    pub(super) shows_progress: bool,
    /// The folders that are open, as URIs.
    pub(super) folders: Vec<String>,
}

impl Client {
    pub(super) fn read(params: &Value) -> Self {
        let capabilities = &params["capabilities"];
        let mut folders = uris(&params["workspaceFolders"]);
        if folders.is_empty() {
            folders.extend(["rootUri", "rootPath"].iter().find_map(|field| params[*field].as_str()).map(str::to_owned));
        }
        let encodings = capabilities["general"]["positionEncodings"].as_array();
        Self {
            encodings: encodings.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect(),
            shows_progress: capabilities["window"]["workDoneProgress"].as_bool().unwrap_or(false),
            folders,
        }
    }
}

/// The URIs of a list of folders.
pub(super) fn uris(folders: &Value) -> Vec<String> {
    folders.as_array().into_iter().flatten().filter_map(|folder| folder["uri"].as_str()).map(str::to_owned).collect()
}

/// What a completion is asked for.
#[derive(Debug, PartialEq)]
pub(super) struct Wanted {
    pub(super) uri: String,
    pub(super) position: Position,
    /// The item that is selected in the editor's menu: what it replaces, and by what.
    pub(super) selected: Option<(Range, String)>,
    /// Whether the editor asked by itself, while somebody types.
    pub(super) automatic: bool,
    /// What progress is reported to.
    pub(super) progress: Option<Value>,
}

impl Wanted {
    /// Reads the parameters of either kind of completion.
    ///
    /// # Errors
    /// What is missing, in words.
    pub(super) fn read(params: &Value, inline: bool) -> Result<Self, String> {
        let uri = params["textDocument"]["uri"].as_str().ok_or("textDocument.uri is missing")?;
        let position = Position::read(&params["position"]).ok_or("position is no line and character")?;
        let context = &params["context"];
        let selected = &context["selectedCompletionInfo"];
        let selected = Range::read(&selected["range"]).zip(selected["text"].as_str().map(str::to_owned));
        let kind = context["triggerKind"].as_u64();
        // inline: 1 is invoked, 2 automatic; menu: 1 is invoked, 2 and 3 come with typing
        let automatic = kind.is_some_and(|kind| kind != 1);
        let token = &params["workDoneToken"];
        Ok(Self {
            uri: uri.to_owned(),
            position,
            selected: selected.filter(|_| inline),
            automatic,
            progress: (token.is_string() || token.is_number()).then(|| token.clone()),
        })
    }
}

/// A change of a document: a range and its new text, or all of it.
#[derive(Debug, PartialEq)]
pub(super) struct Change {
    pub(super) range: Option<Range>,
    pub(super) text: String,
}

/// The changes that `textDocument/didChange` lists; `None` when one of them cannot be understood, after which the text
/// would not be the editor's.
pub(super) fn changes(params: &Value) -> Option<Vec<Change>> {
    let change = |change: &Value| {
        let range = match &change["range"] {
            Value::Null => None,
            range => Some(Range::read(range)?),
        };
        Some(Change { range, text: change["text"].as_str()?.to_owned() })
    };
    params["contentChanges"].as_array()?.iter().map(change).collect()
}

/// The path in a URI, percent signs decoded where they encode something. What is not a URI is a path already.
pub(super) fn path(uri: &str) -> String {
    let is_scheme = |scheme: &str| {
        // one letter is a drive
        scheme.len() > 1 && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
    };
    let path = match uri.split_once(':') {
        Some((scheme, rest)) if is_scheme(scheme) => rest.strip_prefix("//").unwrap_or(rest),
        _ => uri,
    };
    percent_decode_str(path).decode_utf8_lossy().replace('\\', "/")
}

/// The path of a document for the prompt: within the folder that holds it, or else its last folder and its name. Where on
/// the disk a project lies says nothing.
pub(super) fn path_in(folders: &[String], uri: &str) -> String {
    let own = path(uri);
    let within = folders
        .iter()
        .filter_map(|folder| own.strip_prefix(path(folder).trim_end_matches('/'))?.strip_prefix('/'))
        .filter(|rest| !rest.is_empty())
        .min_by_key(|rest| rest.len());
    if let Some(within) = within {
        return within.to_owned();
    }
    let parts: Vec<&str> = own.split('/').filter(|part| !part.is_empty()).collect();
    parts[parts.len().saturating_sub(2)..].join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_is_a_path_whatever_it_is_made_of() {
        for (uri, expected) in [
            ("file:///a/b/c.py", "/a/b/c.py"),
            ("file:///a/routes/[id]/p.tsx", "/a/routes/[id]/p.tsx"),
            ("file:///a/routes/%5Bid%5D/p.tsx", "/a/routes/[id]/p.tsx"),
            ("file:///a/my%20project/gr%C3%B6%C3%9Fe.py", "/a/my project/größe.py"),
            ("file:///a/größe {x}|^.py", "/a/größe {x}|^.py"),
            ("file:///c%3A/code/x.py", "/c:/code/x.py"),
            ("file:///a/100%.py", "/a/100%.py"),
            ("untitled:Untitled-1", "Untitled-1"),
            ("C:\\x\\y.py", "C:/x/y.py"),
            ("a.py", "a.py"),
            ("", ""),
        ] {
            assert_eq!(path(uri), expected, "{uri}");
        }
    }

    #[test]
    fn a_prompt_names_the_path_in_the_innermost_folder() {
        let folders = ["file:///disk/me/my%20project".to_owned(), "file:///disk/me/my project/sub/".to_owned()];
        for (uri, expected) in [
            ("file:///disk/me/my%20project/a/b/c.py", "a/b/c.py"),
            ("file:///disk/me/my project/sub/x.py", "x.py"),
            ("file:///disk/me/my project2/x.py", "my project2/x.py"),
            ("file:///a/b/c.py", "b/c.py"),
            ("untitled:Untitled-1", "Untitled-1"),
        ] {
            assert_eq!(path_in(&folders, uri), expected, "{uri}");
        }
    }

    #[test]
    fn initialize_is_read_as_far_as_it_matters() {
        let odd = json!({ "trace": "compact", "processId": "x", "rootUri": "file:///a/[x]", "capabilities": {
            "general": { "positionEncodings": ["utf-32", 7, "utf-16"] }, "textDocument": 5,
            "window": { "workDoneProgress": true } } });
        let client = Client::read(&odd);
        assert_eq!(client.encodings, ["utf-32", "utf-16"]);
        assert_eq!((client.shows_progress, client.folders), (true, vec!["file:///a/[x]".to_owned()]));
        assert_eq!(Client::read(&Value::Null), Client::default());
        let folders = json!({ "workspaceFolders": [{ "uri": "a", "name": 1 }, { "name": "x" }, { "uri": "b" }] });
        assert_eq!(Client::read(&folders).folders, ["a", "b"]);
    }
}
