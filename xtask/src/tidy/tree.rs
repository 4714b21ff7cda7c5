//! The annotated tree in docs/architecture.md, generated from manifests and module docs so that no fact stands twice.
//!
//! `cargo xtask tree` writes it between two markers; the rule complains when it differs.

use anyhow::{Context, Result};
use std::path::Path;

use super::repository::Repository;
use super::{Complaint, member_manifests};

const DOCUMENT: &str = "docs/architecture.md";
const BEGIN: &str = "<!-- tree: begin -->";
const END: &str = "<!-- tree: end -->";
/// Columns of the names; annotations follow.
const NAMES: usize = 26;
/// Longest annotation, in characters.
const LONGEST: usize = 100;

/// The tree in the document is the one that the sources give.
pub(super) fn equals(repository: &Repository) -> Vec<Complaint> {
    let Some(text) = repository.text(DOCUMENT) else {
        return vec![Complaint::new(DOCUMENT, "there is no map of the code")];
    };
    match replaced(text, &render(repository)) {
        None => vec![Complaint::new(DOCUMENT, format!("there is no tree between {BEGIN} and {END}"))],
        Some(wanted) if wanted != text => {
            vec![Complaint::new(DOCUMENT, "the tree is not that of the sources; run `cargo xtask tree`")]
        }
        Some(_) => Vec::new(),
    }
}

/// Writes the tree into the document.
///
/// # Errors
/// When the document cannot be read or written, or has no markers.
pub(crate) fn write(root: &Path) -> Result<()> {
    let repository = Repository::read(root)?;
    let text = repository.text(DOCUMENT).with_context(|| format!("{DOCUMENT} is missing"))?;
    let wanted =
        replaced(text, &render(&repository)).with_context(|| format!("{DOCUMENT} has no {BEGIN} and {END}"))?;
    std::fs::write(root.join(DOCUMENT), wanted).with_context(|| format!("cannot write {DOCUMENT}"))
}

/// The document with another tree; `None` without markers.
fn replaced(text: &str, tree: &str) -> Option<String> {
    let begin = text.find(BEGIN)? + BEGIN.len();
    let end = begin + text[begin..].find(END)?;
    Some(format!("{}\n```text\n{tree}```\n{}", &text[..begin], &text[end..]))
}

/// A line per member with its description, and a line per module with the first sentence of its documentation.
fn render(repository: &Repository) -> String {
    let mut tree = String::new();
    let mut line = |depth: usize, name: &str, annotation: &str| {
        let name = format!("{}{name}", "  ".repeat(depth));
        tree += format!("{name:<NAMES$} {}", shortened(annotation)).trim_end();
        tree.push('\n');
    };
    for (path, manifest) in member_manifests(repository) {
        let folder = path.trim_end_matches("/Cargo.toml");
        let description = manifest.table("package").find(|entry| entry.key == "description");
        line(0, &format!("{folder}/"), description.map_or("", |entry| entry.value.trim_matches('"')));
        for (depth, name, source) in modules(repository, &format!("{folder}/src")) {
            line(depth, &name, &first_sentence(repository.text(&source).unwrap_or_default()));
        }
    }
    tree
}

/// The modules of a source folder, one level of folders deep: depth, name, and the file whose documentation speaks.
fn modules(repository: &Repository, source: &str) -> Vec<(usize, String, String)> {
    let mut found = Vec::new();
    for name in repository.entries(source) {
        let path = format!("{source}/{name}");
        if name.ends_with('/') {
            // the folder of a module whose file stands beside it is not listed again
            let of_file = repository.has(&format!("{}.rs", path.trim_end_matches('/')));
            let index = format!("{path}mod.rs");
            if !of_file && repository.has(&index) {
                found.push((1, name, index));
            }
        } else if name.ends_with(".rs") && !["lib.rs", "main.rs", "tests.rs", "error.rs"].contains(&name.as_str()) {
            found.push((1, name, path));
        }
    }
    found
}

/// The first sentence of a file's `//!`, without marks of code and links.
fn first_sentence(source: &str) -> String {
    let docs = source.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim);
    let paragraph: Vec<&str> = docs.take_while(|line| !line.is_empty()).collect();
    let text = paragraph.join(" ").replace(['`', '[', ']'], "");
    let end = text.find(". ").map_or(text.len(), |at| at);
    text[..end].trim_end_matches('.').to_owned()
}

fn shortened(text: &str) -> String {
    let text = text.trim_end_matches('.');
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    let cut: String = text.chars().take(LONGEST).collect();
    let end = cut.rfind(' ').unwrap_or(cut.len());
    format!("{} …", cut[..end].trim_end_matches([',', ':', ';']))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "[package]\nname = \"a\"\ndescription = \"Layers.\"\n";
    const FILES: [(&str, &str); 6] = [
        ("crates/a/Cargo.toml", MANIFEST),
        ("crates/a/src/lib.rs", "//! The crate.\n"),
        ("crates/a/src/norm.rs", "//! [`Norm`]: RMS norm. More of it.\n//!\n//! Another paragraph.\n"),
        ("crates/a/src/cpu/mod.rs", "//! Kernels for\n//! the CPU\n"),
        ("crates/a/src/cpu/tile.rs", "//! A tile.\n"),
        ("crates/a/src/cube/tests.rs", "//! Tests.\n"),
    ];

    #[test]
    fn members_and_modules_are_listed_with_their_first_sentences() {
        let tree = render(&Repository::of(&FILES));
        let expected = [
            "crates/a/                  Layers",
            "  cpu/                     Kernels for the CPU",
            "  norm.rs                  Norm: RMS norm",
        ];
        assert_eq!(tree.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_tree_that_differs_is_found_and_its_own_output_passes() {
        let stale = format!("# A\n{BEGIN}\n```text\nold\n```\n{END}\n");
        let with = |text: &str| {
            let files: Vec<(&str, &str)> = FILES.into_iter().chain([(DOCUMENT, text)]).collect();
            equals(&Repository::of(&files)).len()
        };
        assert_eq!((with(&stale), with("# A\n")), (1, 1));
        let fresh = replaced(&stale, &render(&Repository::of(&FILES))).expect("markers");
        assert_eq!(with(&fresh), 0);
    }

    #[test]
    fn long_sentences_are_cut_at_a_word() {
        let long = "word ".repeat(40);
        let cut = shortened(long.trim());
        assert!(cut.ends_with("word …") && cut.chars().count() <= LONGEST + 2, "{cut}");
        assert_eq!(shortened("short."), "short");
    }
}
