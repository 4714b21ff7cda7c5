//! As much of a `Cargo.toml` as the rules ask about: tables, keys, dependencies and features.

/// A manifest as its entries, in the order of the file.
pub(super) struct Manifest {
    entries: Vec<Entry>,
}

/// `key = value` in a table.
pub(super) struct Entry {
    /// Line of the key, from 1.
    pub(super) line: usize,
    /// The table's header without its brackets.
    pub(super) table: String,
    /// The key as written, dots included.
    pub(super) key: String,
    /// The value as written; an array over several lines is joined.
    pub(super) value: String,
}

/// In which table of dependencies something stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Normal,
    Dev,
    Build,
}

pub(super) struct Dependency {
    pub(super) line: usize,
    pub(super) name: String,
    pub(super) kind: Kind,
    /// Whether it takes its version from the workspace.
    pub(super) inherits: bool,
}

impl Manifest {
    pub(super) fn parse(text: &str) -> Self {
        let mut entries: Vec<Entry> = Vec::new();
        let mut table = String::new();
        let mut open = 0i32;
        for (index, line) in text.lines().enumerate() {
            let line = without_comment(line).trim();
            if line.is_empty() {
                continue;
            }
            if open > 0 {
                let entry = entries.last_mut().expect("a value is open");
                entry.value.push_str(line);
                open += balance(line);
            } else if let Some(header) = line.strip_prefix('[') {
                table = header.trim_matches(['[', ']']).to_string();
            } else if let Some((key, value)) = line.split_once('=') {
                let (key, value) = (key.trim().to_string(), value.trim().to_string());
                open = balance(&value);
                entries.push(Entry { line: index + 1, table: table.clone(), key, value });
            }
        }
        Self { entries }
    }

    /// The entries of one table.
    pub(super) fn table<'a>(&'a self, table: &'a str) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(move |entry| entry.table == table)
    }

    /// The name of the package, or the empty text where there is none.
    pub(super) fn name(&self) -> &str {
        self.table("package").find(|entry| entry.key == "name").map_or("", |entry| entry.value.trim_matches('"'))
    }

    /// Every dependency, also those of one target or written as a table of their own.
    pub(super) fn dependencies(&self) -> Vec<Dependency> {
        let mut found: Vec<Dependency> = Vec::new();
        for Entry { line, table, key, value } in &self.entries {
            let Some((kind, own_table)) = dependency_table(table) else { continue };
            match own_table {
                None => {
                    let (name, rest) = key.split_once('.').unwrap_or((key, ""));
                    let inherits = rest == "workspace" && value == "true" || inline_true(value, "workspace");
                    found.push(Dependency { line: *line, name: name.to_string(), kind, inherits });
                }
                Some(name) => {
                    let inherits = key == "workspace" && value == "true";
                    match found.last_mut().filter(|last| last.name == name && last.kind == kind) {
                        Some(last) => last.inherits |= inherits,
                        None => found.push(Dependency { line: *line, name: name.to_string(), kind, inherits }),
                    }
                }
            }
        }
        found
    }

    /// The features that feature `name` switches on, or nothing where there is no such feature.
    pub(super) fn feature(&self, name: &str) -> Option<Vec<&str>> {
        let entry = self.table("features").find(|entry| entry.key == name)?;
        Some(quoted(&entry.value))
    }
}

/// The texts between quotes in `value`.
pub(super) fn quoted(value: &str) -> Vec<&str> {
    value.split('"').skip(1).step_by(2).collect()
}

/// The kind of a dependency table, and the dependency's name where the table is that of one dependency.
fn dependency_table(table: &str) -> Option<(Kind, Option<&str>)> {
    let table = match table.strip_prefix("target.") {
        Some(rest) => rest.rsplit_once("'.").map_or(rest, |(_, table)| table),
        None => table,
    };
    let (head, name) = table.split_once('.').map_or((table, None), |(head, name)| (head, Some(name)));
    let kind = match head {
        "dependencies" => Kind::Normal,
        "dev-dependencies" => Kind::Dev,
        "build-dependencies" => Kind::Build,
        _ => return None,
    };
    Some((kind, name))
}

/// Whether an inline table says `key = true`.
fn inline_true(value: &str, key: &str) -> bool {
    let fields = value.trim_matches(['{', '}', ' ']).split(',');
    fields.filter_map(|field| field.split_once('=')).any(|(name, value)| name.trim() == key && value.trim() == "true")
}

fn without_comment(line: &str) -> &str {
    let mut in_text = false;
    for (at, character) in line.char_indices() {
        match character {
            '"' => in_text = !in_text,
            '#' if !in_text => return &line[..at],
            _ => {}
        }
    }
    line
}

fn balance(text: &str) -> i32 {
    let count = |wanted: [char; 2]| text.matches(wanted).count() as i32;
    count(['[', '{']) - count([']', '}'])
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
[package]
name = "gemma-x"   # a comment
version.workspace = true

[features]
default = ["ndarray"]
wgpu = [
    "gemma-nn/wgpu", # why
    "dep:cubecl",
]

[dependencies]
burn.workspace = true
serde = { workspace = true, features = ["derive"] }
half = "2"
gemma = { path = "../gemma", version = "0.1" }

[target.'cfg(unix)'.dependencies]
libc = "0.2"

[dependencies.clap]
workspace = true
features = ["env"]

[dev-dependencies]
tempfile.workspace = true
"#;

    #[test]
    fn dependencies_are_found_in_every_spelling() {
        let found: Vec<(String, Kind, bool)> =
            Manifest::parse(TEXT).dependencies().into_iter().map(|d| (d.name, d.kind, d.inherits)).collect();
        let expected = [
            ("burn", Kind::Normal, true),
            ("serde", Kind::Normal, true),
            ("half", Kind::Normal, false),
            ("gemma", Kind::Normal, false),
            ("libc", Kind::Normal, false),
            ("clap", Kind::Normal, true),
            ("tempfile", Kind::Dev, true),
        ];
        assert_eq!(found, expected.map(|(name, kind, inherits)| (name.to_string(), kind, inherits)));
    }

    #[test]
    fn features_may_span_lines() {
        let manifest = Manifest::parse(TEXT);
        assert_eq!(manifest.name(), "gemma-x");
        assert_eq!(manifest.feature("wgpu"), Some(vec!["gemma-nn/wgpu", "dep:cubecl"]));
        assert_eq!(manifest.feature("metal"), None);
    }
}
