//! No import circle between the files of a crate, tests aside.
//!
//! A file imports another when one of its paths (`use` or inline, through `crate`, `super`, `self` or a module's name)
//! ends at an item that the other defines. A re-export is followed to the file that has the item; `mod x;` alone is
//! no import, and a module and its submodules count as one thing.

use std::collections::{BTreeMap, BTreeSet};

use super::repository::Repository;
use super::{Complaint, rust};

/// Every group of files of one crate that import each other in a circle.
pub(super) fn imports(repository: &Repository) -> Vec<Complaint> {
    let mut sources: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for (path, text) in repository.with_extension("rs") {
        if let Some((package, file)) = path.split_once("/src/") {
            sources.entry(package).or_default().push((file, text));
        }
    }
    let mut complaints = Vec::new();
    for (package, files) in sources {
        let package_files = Package::new(&files);
        for circle in circles(&package_files.edges()) {
            let at = format!("{package}/src/{}", circle[0]);
            complaints.push(Complaint::new(at, format!("files import each other in a circle: {}", circle.join(", "))));
        }
    }
    complaints
}

/// The files of one crate by module path.
struct Package {
    modules: BTreeMap<Vec<String>, Module>,
}

struct Module {
    file: String,
    /// Its code without comments, texts and tests.
    code: String,
    /// Names that `use` brings into it, with the path as written; a glob has the name `*`.
    uses: Vec<(String, Vec<String>)>,
}

impl Package {
    fn new(files: &[(&str, &str)]) -> Self {
        let mut modules = BTreeMap::new();
        for (file, text) in files {
            let path = module_path(file);
            if path.last().is_some_and(|name| name == "tests") {
                continue;
            }
            let code = without_tests(&rust::code(text));
            let uses = uses(&code);
            modules.insert(path, Module { file: (*file).to_owned(), code, uses });
        }
        Self { modules }
    }

    fn edges(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (path, module) in &self.modules {
            let imported = module.uses.iter().map(|(_, path)| path.clone()).chain(inline(&module.code));
            for named in imported {
                let Some(target) = self.resolve(path, &named, 0) else { continue };
                if target != module.file && !are_nested(&module_path(&module.file), &module_path(target)) {
                    edges.entry(&module.file).or_default().insert(target);
                }
            }
        }
        edges
    }

    /// The file that defines what `named` means in the module `from`; `None` for what is of another crate.
    fn resolve(&self, from: &[String], named: &[String], depth: usize) -> Option<&str> {
        if depth > 8 {
            return None;
        }
        let mut at = from.to_vec();
        let mut rest = named;
        match rest.first().map(String::as_str) {
            Some("crate") => {
                at.clear();
                rest = &rest[1..];
            }
            Some("self") => rest = &rest[1..],
            Some("super") => {
                while rest.first().is_some_and(|word| word == "super") {
                    at.pop()?;
                    rest = &rest[1..];
                }
            }
            // a module of this one, or the name of another crate
            Some(first) => {
                let mut child = at.clone();
                child.push(first.to_owned());
                self.modules.get(&child)?;
            }
            None => return None,
        }
        for (index, segment) in rest.iter().enumerate() {
            let mut child = at.clone();
            child.push(segment.clone());
            if self.modules.contains_key(&child) {
                at = child;
                continue;
            }
            let module = self.modules.get(&at)?;
            if let Some((_, path)) = module.uses.iter().find(|(name, _)| name == segment) {
                let path: Vec<String> = path.iter().chain(&rest[index + 1..]).cloned().collect();
                return self.resolve(&at, &path, depth + 1);
            }
            for (_, glob) in module.uses.iter().filter(|(name, _)| name == "*") {
                let Some(found) = self.resolve(&at, &glob[..glob.len() - 1], depth + 1) else { continue };
                if self.modules.values().any(|module| module.file == found && defines(&module.code, segment)) {
                    return Some(found);
                }
            }
            return Some(&module.file);
        }
        self.modules.get(&at).map(|module| module.file.as_str())
    }
}

/// The module that a file is.
fn module_path(file: &str) -> Vec<String> {
    let mut path: Vec<String> = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if matches!(path.last().map(String::as_str), Some("lib" | "main" | "mod")) {
        path.pop();
    }
    path
}

/// Whether one module lies in the other.
fn are_nested(one: &[String], other: &[String]) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

/// Whether code has an item of this name.
fn defines(code: &str, name: &str) -> bool {
    ["fn", "struct", "enum", "trait", "type", "const", "static", "union", "macro_rules!"]
        .iter()
        .any(|kind| rust::lines_with(code, &format!("{kind} {name}")).next().is_some())
}

/// Blanks what follows `#[cfg(test)]`, up to the end of its item.
fn without_tests(code: &str) -> String {
    let mut out = String::new();
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        out += &rest[..at];
        let after = &rest[at..];
        let open = after.find(['{', ';']).unwrap_or(after.len());
        let end = if after[open..].starts_with('{') { closing(after, open) } else { (open + 1).min(after.len()) };
        rest = &after[end..];
    }
    out + rest
}

/// Where the brace that opens at `open` is closed.
fn closing(text: &str, open: usize) -> usize {
    let mut depth = 0;
    for (at, character) in text[open..].char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 1 => return open + at + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    text.len()
}

/// Every leaf of every `use`: the name it gets and its path.
fn uses(code: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("use ") {
        let before = code[..at].trim_end_matches(' ');
        let begins = before.is_empty()
            || before.ends_with(['\n', ';', '{', '}'])
            || before.ends_with("pub")
            || before.ends_with(')');
        let Some(end) = code[at..].find(';').filter(|_| begins) else { continue };
        leaves(&code[at + 4..at + end], &[], &mut found);
    }
    found
}

fn leaves(tree: &str, prefix: &[String], found: &mut Vec<(String, Vec<String>)>) {
    let tree = tree.trim();
    if let Some(open) = tree.find('{') {
        let mut prefix = prefix.to_vec();
        prefix.extend(segments(&tree[..open]));
        let inside = &tree[open + 1..closing(tree, open).saturating_sub(1).max(open + 1)];
        for part in top_level_parts(inside) {
            leaves(part, &prefix, found);
        }
        return;
    }
    let (path, alias) = tree.split_once(" as ").map_or((tree, None), |(path, alias)| (path, Some(alias.trim())));
    let mut whole = prefix.to_vec();
    whole.extend(segments(path));
    if whole.last().is_some_and(|last| last == "self") && whole.len() > 1 {
        whole.pop();
    }
    let Some(last) = whole.last().cloned() else { return };
    found.push((alias.map_or(last, str::to_owned), whole));
}

fn segments(path: &str) -> Vec<String> {
    path.split("::").map(str::trim).filter(|segment| !segment.is_empty()).map(str::to_owned).collect()
}

/// The parts between the commas that are in no inner brace.
fn top_level_parts(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, character) in text.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts.into_iter().filter(|part| !part.trim().is_empty()).collect()
}

/// Paths of two or more segments that stand in code outside `use`.
fn inline(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let word = |character: char| character.is_alphanumeric() || character == '_';
    for line in code.lines().filter(|line| !line.trim_start().trim_start_matches("pub ").starts_with("use ")) {
        let mut rest = line;
        while let Some(at) = rest.find("::") {
            let head = rest[..at].rfind(|character| !word(character)).map_or(0, |place| place + 1);
            let mut path = vec![rest[head..at].to_owned()];
            let mut tail = &rest[at..];
            while let Some(after) = tail.strip_prefix("::") {
                let end = after.find(|character| !word(character)).unwrap_or(after.len());
                if end == 0 {
                    tail = after;
                    break;
                }
                path.push(after[..end].to_owned());
                tail = &after[end..];
            }
            if !path[0].is_empty() && path.len() > 1 {
                found.push(path);
            }
            rest = tail;
        }
    }
    found
}

/// Groups of more than one file in which each reaches each other, in the order of the names.
fn circles(edges: &BTreeMap<&str, BTreeSet<&str>>) -> Vec<Vec<String>> {
    let reach = |from: &str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from.to_owned()]);
        while let Some(file) = open.pop() {
            for next in edges.get(file.as_str()).into_iter().flatten() {
                if seen.insert((*next).to_owned()) {
                    open.push((*next).to_owned());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<String, BTreeSet<String>> =
        edges.keys().map(|file| ((*file).to_owned(), reach(file))).collect();
    let mut found: Vec<Vec<String>> = Vec::new();
    for (file, reaches) in &reached {
        if !reaches.contains(file) || found.iter().any(|circle| circle.contains(file)) {
            continue;
        }
        let circle: Vec<String> = reached
            .iter()
            .filter(|(other, back)| reaches.contains(*other) && back.contains(file))
            .map(|(other, _)| other.clone())
            .collect();
        found.push(circle);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complain(files: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<(String, &str)> =
            files.iter().map(|(file, text)| (format!("crates/a/src/{file}"), *text)).collect();
        let files: Vec<(&str, &str)> = files.iter().map(|(file, text)| (file.as_str(), *text)).collect();
        imports(&Repository::of(&files)).into_iter().map(|complaint| complaint.text).collect()
    }

    #[test]
    fn a_circle_through_a_re_export_is_found() {
        let files = [
            ("lib.rs", "mod one;\nmod two;\npub use one::{A, f as g};\npub use two::B;\n"),
            ("one.rs", "use crate::B;\npub struct A(B);\npub fn f() {}\n"),
            ("two.rs", "pub struct B;\nfn h() { crate::g() }\n"),
        ];
        assert_eq!(complain(&files), ["files import each other in a circle: one.rs, two.rs"]);
    }

    #[test]
    fn one_direction_passes_and_so_do_tests() {
        let files = [
            ("lib.rs", "mod one;\nmod two;\npub use one::A;\npub use two::B;\n"),
            ("one.rs", "use crate::B;\npub struct A(B);\n#[cfg(test)]\nmod tests {\n    use crate::A;\n}\n"),
            ("two.rs", "pub struct B;\n#[cfg(test)]\nmod tests {\n    use crate::A;\n}\n"),
        ];
        assert_eq!(complain(&files), Vec::<String>::new());
    }

    #[test]
    fn siblings_that_meet_through_their_parent_are_found_and_parents_are_not() {
        let parent = "mod pool;\nmod tile;\nuse pool::run;\npub(crate) fn level() -> u8 { tile::x() }\n";
        let files = [
            ("lib.rs", "mod cpu;"),
            ("cpu/mod.rs", parent),
            ("cpu/pool.rs", "pub(super) fn run() { super::tile::x(); }\n"),
            ("cpu/tile.rs", "use super::run;\npub(super) fn x() -> u8 { run(); super::level() }\n"),
        ];
        assert_eq!(complain(&files), ["files import each other in a circle: cpu/pool.rs, cpu/tile.rs"]);
        let files = [files[0], files[1], ("cpu/pool.rs", "pub(super) fn run() {}\n"), files[3]];
        assert_eq!(complain(&files), Vec::<String>::new());
    }

    #[test]
    fn trees_of_names_are_taken_apart() {
        let found = uses("use super::{a::{B, C as D}, self as up, E};\npub(crate) use crate::x::*;\n");
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["B", "D", "up", "E", "*"]);
        assert_eq!(found[1].1, ["super", "a", "C"]);
    }
}
