//! docs/numerics.md names tests that exist.

use super::repository::Repository;
use super::{Complaint, links, rust};

const DOCUMENT: &str = "docs/numerics.md";

/// Every `file.rs::name` in the document is a function of that file, and every row of a table whose last column is
/// called `test` names at least one.
pub(super) fn tests_exist(repository: &Repository) -> Vec<Complaint> {
    let Some(text) = repository.text(DOCUMENT) else {
        return vec![Complaint::new(DOCUMENT, "the table of formulas is missing")];
    };
    let mut complaints = Vec::new();
    // Whether the table that the line belongs to has a column of tests.
    let mut wants_test = false;
    let mut previous = "";
    for (line, text) in links::prose(text) {
        let references: Vec<(&str, &str)> = text.split('`').skip(1).step_by(2).filter_map(reference).collect();
        for (file, name) in &references {
            let Some(source) = repository.text(file) else {
                complaints.push(Complaint::on_line(DOCUMENT, line, format!("{file} does not exist")));
                continue;
            };
            if rust::lines_with(&rust::code(source), &format!("fn {name}")).next().is_none() {
                complaints.push(Complaint::on_line(DOCUMENT, line, format!("{file} has no function {name}")));
            }
        }
        if !text.starts_with('|') {
            wants_test = false;
        } else if text.starts_with("|-") || text.starts_with("| -") {
            let header = previous.trim_end_matches(['|', ' ']);
            wants_test = header.rsplit('|').next().is_some_and(|last| last.trim() == "test");
        } else if wants_test && references.is_empty() {
            let text = "a formula without a test: name one as `path/file.rs::test_name`";
            complaints.push(Complaint::on_line(DOCUMENT, line, text));
        }
        previous = text;
    }
    complaints
}

/// `path/file.rs::name`, with any modules between them left out.
fn reference(span: &str) -> Option<(&str, &str)> {
    let (file, name) = span.split_once(".rs::")?;
    let file = &span[..file.len() + ".rs".len()];
    Some((file, name.rsplit("::").next().unwrap_or(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complain(document: &str) -> Vec<String> {
        let source = "//! x\n#[test]\nfn half_split() {}\n// fn commented_out() {}\n";
        let files = [(DOCUMENT, document), ("crates/a/src/rope.rs", source)];
        tests_exist(&Repository::of(&files)).into_iter().map(|complaint| complaint.text).collect()
    }

    #[test]
    fn a_test_that_exists_passes() {
        assert!(complain("| formula | test |\n|---|---|\n| rope | `crates/a/src/rope.rs::half_split` |\n").is_empty());
        assert!(complain("as in `crates/a/src/rope.rs::tests::half_split`").is_empty());
    }

    #[test]
    fn a_test_that_does_not_exist_is_found() {
        for name in ["half", "half_split_", "commented_out", "gone"] {
            assert_eq!(complain(&format!("`crates/a/src/rope.rs::{name}`")).len(), 1, "{name}");
        }
        assert_eq!(complain("`crates/a/src/norm.rs::half_split`"), ["crates/a/src/norm.rs does not exist"]);
    }

    #[test]
    fn a_row_without_a_test_is_found() {
        assert_eq!(complain("| formula | test |\n|---|---|\n| rope | soon |\n| norm | soon |\n").len(), 2);
        assert_eq!(complain("| value | type |\n|---|---|\n| angle | f32 |\n").len(), 0, "not a table of formulas");
    }

    #[test]
    fn a_missing_document_is_found() {
        assert_eq!(tests_exist(&Repository::of(&[])).len(), 1);
    }
}
