//! Links and paths in the documents lead somewhere.

use super::Complaint;
use super::repository::Repository;

/// Relative links in every `.md` file resolve, their anchors too.
pub(super) fn resolve(repository: &Repository) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for (path, text) in repository.with_extension("md") {
        for (line, target) in prose(text).flat_map(|(line, text)| targets(text).map(move |target| (line, target))) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let Some(file) = join(path, file) else {
                complaints.push(Complaint::on_line(path, line, format!("the link {target} leaves the repository")));
                continue;
            };
            if !repository.has(&file) {
                complaints.push(Complaint::on_line(
                    path,
                    line,
                    format!("the link {target} leads to {file}, which does not exist"),
                ));
            } else if !anchor.is_empty() && file.ends_with(".md") {
                let headings = repository.text(&file).unwrap_or_default();
                if !prose(headings).any(|(_, line)| line.starts_with('#') && slug(line) == anchor) {
                    complaints.push(Complaint::on_line(path, line, format!("{file} has no heading #{anchor}")));
                }
            }
        }
    }
    complaints
}

/// A path of the repository in a document's `code span` exists. What has a placeholder in it is no path.
pub(super) fn paths(repository: &Repository) -> Vec<Complaint> {
    const TOPS: [&str; 8] = ["bindings/", "crates/", "models/", "xtask/", "tests/", "docs/", ".ci/", ".cargo/"];
    let mut complaints = Vec::new();
    for (path, text) in repository.with_extension("md") {
        for (line, span) in
            prose(text).flat_map(|(line, text)| text.split('`').skip(1).step_by(2).map(move |span| (line, span)))
        {
            let named = span.split("::").next().unwrap_or(span);
            let placeholder =
                named.contains(|character: char| character.is_whitespace() || "*<>{}[]$…".contains(character));
            if !placeholder && TOPS.iter().any(|top| named.starts_with(top)) && !repository.has(named) {
                complaints.push(Complaint::on_line(path, line, format!("{named} does not exist")));
            }
        }
    }
    complaints
}

/// The lines outside fenced blocks, counted from 1.
pub(super) fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        (!fenced && !fence).then_some((index + 1, line))
    })
}

/// What the links of a line point to. A link inside a code span is none.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    let outside = line.split('`').step_by(2);
    outside.flat_map(|text| text.split("](").skip(1)).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target)
}

/// `target` as seen from the file `from`, or nothing where it leads out of the repository.
fn join(from: &str, target: &str) -> Option<String> {
    if target.is_empty() {
        return Some(from.to_string());
    }
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The anchor that a heading gets when it is rendered.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|character| character.is_alphanumeric() || " -_".contains(*character));
    kept.map(|character| if character == ' ' { '-' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complain(text: &str) -> Vec<String> {
        let files = [
            ("docs/a.md", text),
            ("docs/b.md", "# One `two`, three!\n"),
            ("crates/x/src/lib.rs", ""),
            ("README.md", ""),
        ];
        resolve(&Repository::of(&files)).into_iter().map(|complaint| complaint.at).collect()
    }

    #[test]
    fn a_broken_link_is_found() {
        for text in ["[x](c.md)", "[x](../crates/y)", "[x](b.md#four)", "[x](../../out.md)", "[![badge](no.svg)](b.md)"]
        {
            assert_eq!(complain(text), ["docs/a.md:1"], "{text}");
        }
    }

    #[test]
    fn a_link_that_leads_somewhere_passes() {
        for text in [
            "[x](b.md)",
            "[x](../crates/x/src/lib.rs)",
            "[x](../crates/x/)",
            "[x](b.md#one-two-three)",
            "[x](https://example.org/y)",
            "`[x](c.md)`",
        ] {
            assert_eq!(complain(text).len(), 0, "{text}");
        }
        assert_eq!(complain("# Here\n[x](#here)").len(), 0);
        assert_eq!(complain("```\n[x](c.md)\n```").len(), 0);
    }

    #[test]
    fn a_path_that_does_not_exist_is_found() {
        let complain = |text| paths(&Repository::of(&[("docs/a.md", text), ("crates/x/src/lib.rs", "")])).len();
        for text in ["see `crates/y/src`", "see `docs/b.md`", "see `crates/x/src/a.rs::test_name`"] {
            assert_eq!(complain(text), 1, "{text}");
        }
        for text in [
            "see `crates/x/src/lib.rs`",
            "see `crates/x/`",
            "see `crates/x/src/lib.rs::f`",
            "say `crates/<name>/src`",
            "`models/*`",
            "see crates/y",
        ] {
            assert_eq!(complain(text), 0, "{text}");
        }
    }
}
