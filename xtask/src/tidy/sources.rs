//! What every source file keeps to: it says what it is, it is called after what it holds, and it is safe.

use super::repository::Repository;
use super::{Complaint, rust};

/// Where code may be unsafe: the kernels, and the border to C, whose pointers can be read in no other way.
const UNSAFE_HOMES: &[&str] = &["crates/gemma-kernels/", "bindings/c/"];
/// Lines above an unsafe block within which its `SAFETY:` comment must start.
const SAFETY_REACH: usize = 8;
/// Names that say nothing about what a file holds.
const EMPTY_NAMES: &[&str] = &["utils", "util", "common", "helpers", "helper", "misc", "types", "manager", "base"];
/// What the layers never touch.
const OUTSIDE: &[&str] = &[
    "std::fs",
    "std::io",
    "std::net",
    "std::env",
    "std::process",
    "serde",
    "serde_json",
    "safetensors",
    "println!",
    "eprintln!",
    "print!",
];

/// Every module opens with `//!`.
pub(super) fn module_docs(repository: &Repository) -> Vec<Complaint> {
    let sources = repository.with_extension("rs");
    let silent = sources.filter(|(_, text)| !text.lines().next().is_some_and(|line| line.starts_with("//! ")));
    silent.map(|(path, _)| Complaint::on_line(path, 1, "open the file with `//!`: what is in this room")).collect()
}

/// No file or folder is called by a name that fits everything.
pub(super) fn file_names(repository: &Repository) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for (path, _) in repository.with_extension("rs") {
        let parts = path.trim_end_matches(".rs").split('/');
        for part in parts.filter(|part| EMPTY_NAMES.contains(part)) {
            complaints.push(Complaint::new(path, format!("{part:?} says nothing; name the file after what it holds")));
        }
    }
    complaints
}

/// `unsafe` lives in [`UNSAFE_HOMES`] only, and each block says why it is sound.
pub(super) fn unsafe_code(repository: &Repository) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for (path, text) in repository.with_extension("rs") {
        let code = rust::code(text);
        for line in rust::lines_with(&code, "unsafe") {
            let at = line - 1;
            let source = code.lines().nth(at).unwrap_or_default();
            if !UNSAFE_HOMES.iter().any(|home| path.starts_with(home)) {
                complaints.push(Complaint::on_line(path, line, "unsafe code belongs into gemma-kernels"));
            } else if opens_block(source) && !explained(text, at) {
                complaints.push(Complaint::on_line(
                    path,
                    line,
                    "say in a `// SAFETY:` comment above why this is sound",
                ));
            }
        }
    }
    complaints
}

/// Whether a line with `unsafe` opens a block or an implementation; a declared `unsafe fn` explains itself in docs.
fn opens_block(line: &str) -> bool {
    let after = line.split("unsafe").skip(1).map(str::trim_start);
    after.into_iter().any(|rest| rest.starts_with('{') || rest.starts_with("impl") || rest.is_empty())
}

/// Whether a `SAFETY` comment stands a few lines above line `at`, or directly above an item that encloses it and so
/// speaks for every block inside.
fn explained(text: &str, at: usize) -> bool {
    let lines: Vec<&str> = text.lines().take(at + 1).collect();
    if lines[at.saturating_sub(SAFETY_REACH)..].iter().any(|line| line.contains("SAFETY")) {
        return true;
    }
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut inner = indent(lines[at]);
    for (index, line) in lines.iter().enumerate().rev().filter(|(_, line)| !line.trim().is_empty()) {
        if indent(line) < inner {
            inner = indent(line);
            let above = lines[..index].iter().rev().map(|line| line.trim_start());
            let mut notes = above.take_while(|line| line.starts_with("//") || line.starts_with("#["));
            if notes.any(|line| line.contains("SAFETY")) {
                return true;
            }
        }
    }
    false
}

/// The layers neither read nor print.
pub(super) fn no_input_or_output(repository: &Repository) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for (path, text) in repository.with_extension("rs").filter(|(path, _)| path.starts_with("crates/gemma-nn/src/")) {
        let code = rust::code(text);
        for word in OUTSIDE {
            for line in rust::lines_with(&code, word) {
                complaints.push(Complaint::on_line(
                    path,
                    line,
                    format!("gemma-nn does no input or output, so no `{word}`"),
                ));
            }
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complain(rule: fn(&Repository) -> Vec<Complaint>, path: &str, text: &str) -> Vec<String> {
        rule(&Repository::of(&[(path, text)])).into_iter().map(|complaint| complaint.at).collect()
    }

    #[test]
    fn a_module_without_an_opening_is_found() {
        assert_eq!(complain(module_docs, "a.rs", "use x;\n//! late"), ["a.rs:1"]);
        assert_eq!(complain(module_docs, "a.rs", ""), ["a.rs:1"]);
        assert_eq!(complain(module_docs, "a.rs", "//! What this is.\n").len(), 0);
    }

    #[test]
    fn an_empty_name_is_found() {
        assert_eq!(complain(file_names, "crates/a/src/utils.rs", ""), ["crates/a/src/utils.rs"]);
        assert_eq!(complain(file_names, "tests/common/mod.rs", ""), ["tests/common/mod.rs"]);
        assert_eq!(complain(file_names, "crates/a/src/visibility.rs", "").len(), 0);
    }

    #[test]
    fn unsafe_outside_the_kernels_is_found() {
        assert_eq!(
            complain(unsafe_code, "crates/gemma-nn/src/a.rs", "\nunsafe { f() }"),
            ["crates/gemma-nn/src/a.rs:2"]
        );
        assert_eq!(
            complain(unsafe_code, "crates/gemma-nn/src/a.rs", "// unsafe { f() }\nlet s = \"unsafe\";").len(),
            0
        );
        assert_eq!(complain(unsafe_code, "bindings/python/src/a.rs", "unsafe { f() }"), ["bindings/python/src/a.rs:1"]);
    }

    #[test]
    fn unsafe_without_a_reason_is_found() {
        for path in ["crates/gemma-kernels/src/cpu/a.rs", "bindings/c/src/a.rs"] {
            assert_eq!(complain(unsafe_code, path, "fn f() {\n    unsafe { g() }\n}"), [format!("{path}:2")]);
        }
        let path = "crates/gemma-kernels/src/cpu/a.rs";
        assert_eq!(complain(unsafe_code, path, "unsafe impl Send for X {}"), [format!("{path}:1")]);
        assert_eq!(complain(unsafe_code, path, "// SAFETY: g has no conditions.\nunsafe { g() }").len(), 0);
        assert_eq!(complain(unsafe_code, path, "unsafe fn g() {}").len(), 0);
        let block = "// SAFETY (every block below): the caller has checked.\n#[x]\nimpl X {\n    fn f() {\n";
        let filler = "        f();\n".repeat(SAFETY_REACH);
        assert_eq!(
            complain(unsafe_code, path, &format!("{block}{filler}        unsafe {{ g() }}\n    }}\n}}")).len(),
            0
        );
        let other = "    }\n}\nimpl Y {\n    fn f() {\n";
        assert_eq!(complain(unsafe_code, path, &format!("{block}{other}{filler}        unsafe {{ g() }}")).len(), 1);
        let far = format!("// SAFETY: too far away.\n{}unsafe {{ g() }}", "f();\n".repeat(SAFETY_REACH));
        assert_eq!(complain(unsafe_code, path, &far).len(), 1);
    }

    #[test]
    fn input_and_output_in_the_layers_are_found() {
        let path = "crates/gemma-nn/src/norm.rs";
        for text in ["use std::fs;", "use std::io::Read;", "#[derive(serde::Serialize)] struct X;", "println!(\"x\");"]
        {
            assert_eq!(complain(no_input_or_output, path, text).len(), 1, "{text}");
        }
        assert_eq!(complain(no_input_or_output, path, "/// as [`std::io`] does\nuse std::sync::Arc;").len(), 0);
        assert_eq!(complain(no_input_or_output, "crates/gemma-weights/src/a.rs", "use std::fs;").len(), 0);
    }
}
