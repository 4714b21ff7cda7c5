//! The annotated tree in README.md equals the tree on disk.

use super::repository::Repository;
use super::{Complaint, manifest};

/// One name of the tree.
#[derive(Debug, PartialEq)]
struct Node {
    /// Line in the README, from 1.
    line: usize,
    /// Path from the root; a folder ends in `/`.
    path: String,
}

/// Names of the tree exist; folders at the root, crates, models and members are all in it; and where the tree
/// lists some of a folder's `.rs` files, it lists all of them (`lib.rs`, `main.rs` and `mod.rs` may be left out).
pub(super) fn tree(repository: &Repository) -> Vec<Complaint> {
    const README: &str = "README.md";
    let Some(text) = repository.text(README) else {
        return vec![Complaint::new(README, "there is no README.md")];
    };
    let nodes = nodes(text);
    if nodes.is_empty() {
        return vec![Complaint::new(README, "there is no annotated tree: a block of text that holds a line `crates/`")];
    }
    let start = nodes[0].line;
    let mut complaints = Vec::new();
    for Node { line, path } in &nodes {
        if !repository.has(path) {
            complaints.push(Complaint::on_line(README, *line, format!("the tree lists {path}, which does not exist")));
        }
    }
    let mut wanted: Vec<String> =
        repository.entries("").into_iter().filter(|name| name.ends_with('/') && !name.starts_with('.')).collect();
    for folder in ["crates/", "models/"] {
        wanted.extend(
            repository
                .entries(folder)
                .into_iter()
                .filter(|name| name.ends_with('/'))
                .map(|name| format!("{folder}{name}")),
        );
    }
    let root = manifest::Manifest::parse(repository.text("Cargo.toml").unwrap_or_default());
    let members = root.table("workspace").find(|entry| entry.key == "members");
    wanted.extend(members.iter().flat_map(|entry| manifest::quoted(&entry.value)).map(|member| format!("{member}/")));
    for node in nodes.iter().filter(|node| node.path.ends_with(".rs")) {
        let folder = node.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let inside = repository.entries(folder).into_iter();
        let modules =
            inside.filter(|name| name.ends_with(".rs") && !["lib.rs", "main.rs", "mod.rs"].contains(&name.as_str()));
        wanted.extend(modules.map(|name| format!("{folder}/{name}")));
    }
    wanted.sort();
    wanted.dedup();
    for path in wanted.iter().filter(|path| !nodes.iter().any(|node| node.path == **path)) {
        complaints.push(Complaint::on_line(README, start, format!("the tree does not list {path}")));
    }
    complaints
}

/// The names in the tree: the first fenced block with a line that starts with `crates/`.
///
/// A line is branches (`├── `, four columns a level), names with one space between them, and after two spaces the
/// annotation. Names after a folder's name lie in that folder; otherwise they lie side by side.
fn nodes(readme: &str) -> Vec<Node> {
    let mut block: Vec<(usize, &str)> = Vec::new();
    let mut inside = false;
    for (index, line) in readme.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            if inside && block.iter().any(|(_, line)| line.starts_with("crates/")) {
                break;
            }
            block.clear();
            inside = !inside;
        } else if inside {
            block.push((index + 1, line));
        }
    }
    if !block.iter().any(|(_, line)| line.starts_with("crates/")) {
        return Vec::new();
    }

    let mut nodes = Vec::new();
    // The folders that are open, by level.
    let mut open: Vec<String> = Vec::new();
    for (line, text) in block {
        let branches = text.chars().take_while(|character| "│├└─ ".contains(*character)).count();
        let names: String = text.chars().skip(branches).collect();
        let names = names.split("  ").next().unwrap_or_default().trim().to_string();
        if names.is_empty() {
            continue;
        }
        open.truncate(branches / 4);
        let parent = open.concat();
        let mut folder = String::new();
        for name in names.split(' ') {
            nodes.push(Node { line, path: format!("{parent}{folder}{name}") });
            if name.ends_with('/') && folder.is_empty() {
                folder = name.to_string();
            }
        }
        open.resize(branches / 4, String::new());
        open.push(folder);
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    const README: &str = "# X\n\n```rust\nlet crates = 1;\n```\n\n```text\nCargo.toml README.md  the manifest\n\ncrates/            libraries\n├── gemma-nn/      layers\n│   └── src/ norm.rs rope.rs  in order\n└── gemma-cli/     the program\nmodels/\n└── gemma/         text\n    └── src/\n        └── layer.rs  a layer\n```\n";
    const FILES: [(&str, &str); 8] = [
        ("Cargo.toml", ""),
        ("README.md", README),
        ("crates/gemma-cli/src/main.rs", ""),
        ("crates/gemma-nn/src/lib.rs", ""),
        ("crates/gemma-nn/src/norm.rs", ""),
        ("crates/gemma-nn/src/rope.rs", ""),
        (".ci/run", ""),
        ("models/gemma/src/layer.rs", ""),
    ];

    #[test]
    fn names_get_their_paths() {
        let paths: Vec<String> = nodes(README).into_iter().map(|node| node.path).collect();
        let expected = [
            "Cargo.toml",
            "README.md",
            "crates/",
            "crates/gemma-nn/",
            "crates/gemma-nn/src/",
            "crates/gemma-nn/src/norm.rs",
            "crates/gemma-nn/src/rope.rs",
            "crates/gemma-cli/",
            "models/",
            "models/gemma/",
            "models/gemma/src/",
            "models/gemma/src/layer.rs",
        ];
        assert_eq!(paths, expected);
        assert_eq!(tree(&Repository::of(&FILES)), []);
    }

    #[test]
    fn a_name_that_is_gone_is_found() {
        let files: Vec<_> = FILES.into_iter().filter(|(path, _)| !path.ends_with("norm.rs")).collect();
        let complaints = tree(&Repository::of(&files));
        assert_eq!(complaints.len(), 1);
        assert_eq!(complaints[0].at, "README.md:12");
    }

    #[test]
    fn what_the_tree_lacks_is_found() {
        for new in [
            "docs/style.md",
            "crates/gemma-serve/src/lib.rs",
            "models/codegemma/src/lib.rs",
            "crates/gemma-nn/src/mlp.rs",
        ] {
            let files: Vec<_> = FILES.into_iter().chain([(new, "")]).collect();
            assert_eq!(tree(&Repository::of(&files)).len(), 1, "{new}");
        }
        let files: Vec<_> = FILES.into_iter().chain([("crates/gemma-cli/src/chat.rs", "")]).collect();
        assert_eq!(tree(&Repository::of(&files)), [], "no file of this folder is listed");
    }

    #[test]
    fn a_readme_without_a_tree_is_found() {
        assert_eq!(tree(&Repository::of(&[("README.md", "# X\n")])).len(), 1);
        assert_eq!(tree(&Repository::of(&[])).len(), 1);
    }
}
