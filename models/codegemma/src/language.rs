//! What a programming language says about where a block ends.

/// How blocks are marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// By indentation: Python and its like.
    Indented,
    /// By brackets: most others.
    Bracketed,
    /// Unknown: neither is relied on.
    Other,
}

/// Endings of languages whose blocks are marked by indentation.
const INDENTED: [&str; 9] = ["py", "pyi", "nim", "coffee", "fs", "haml", "pug", "sass", "gd"];
/// Endings of languages whose blocks are marked by brackets.
const BRACKETED: [&str; 31] = [
    "c", "h", "cc", "cpp", "cxx", "hpp", "cs", "css", "cu", "dart", "go", "groovy", "java", "js", "jsx", "json", "kt",
    "mjs", "cjs", "m", "php", "pl", "proto", "rs", "scala", "scss", "swift", "ts", "tsx", "vala", "zig",
];

impl Language {
    /// What the ending of a path says.
    pub fn of_path(path: &str) -> Self {
        let ending = std::path::Path::new(path).extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if INDENTED.contains(&ending) {
            Self::Indented
        } else if BRACKETED.contains(&ending) {
            Self::Bracketed
        } else {
            Self::Other
        }
    }

    /// What an editor's name of the language says (`python`, `javascript`, ...).
    pub fn of_name(name: &str) -> Self {
        match name {
            "python" | "nim" | "coffeescript" | "fsharp" | "gdscript" => Self::Indented,
            "plaintext" | "markdown" | "" => Self::Other,
            "ruby" | "lua" | "elixir" | "shellscript" | "sh" | "yaml" | "haskell" | "html" | "xml" | "sql" => {
                Self::Other
            }
            _ => Self::Bracketed,
        }
    }
}
