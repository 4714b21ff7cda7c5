//! Words that belong to one person's machine and not into a repository.

use super::Complaint;
use super::repository::Repository;

/// The words, cut in two so that this file may hold them, each with the reason.
const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("/wo", "rk/", "a path of one machine"),
    ("/ro", "ot/", "a path of one machine"),
    ("/home", "/", "a path of one machine"),
    ("/Us", "ers/", "a path of one machine"),
    ("crates", ".io", "the host of a package registry; say \"the Rust registry\""),
    ("static.rust-", "lang.org", "the host of a package registry"),
    ("sparse", "+http", "the address of a package registry"),
    ("py", "pi.org", "the host of a package registry"),
    ("FIX", "ME", "a note to oneself; mend it or write an issue"),
    ("XX", "X:", "a note to oneself; mend it or write an issue"),
];

/// No file of ours holds a forbidden word. The lock file, which cargo writes, may.
pub(super) fn forbidden(repository: &Repository) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for (path, text) in repository.files().filter(|(path, _)| *path != "Cargo.lock" && !path.ends_with(".json")) {
        for (index, line) in text.lines().enumerate() {
            for (head, tail, reason) in FORBIDDEN {
                let word = format!("{head}{tail}");
                if line.contains(&word) {
                    complaints.push(Complaint::on_line(path, index + 1, format!("{word:?} is {reason}")));
                }
            }
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_forbidden_word_is_found() {
        for (head, tail, _) in FORBIDDEN {
            let text = format!("fine\nsee {head}{tail}x\n");
            let complaints = forbidden(&Repository::of(&[("docs/a.md", &text)]));
            assert_eq!(complaints.len(), 1, "{head}{tail}");
            assert_eq!(complaints[0].at, "docs/a.md:2");
            assert_eq!(forbidden(&Repository::of(&[("Cargo.lock", &text)])), []);
        }
    }

    #[test]
    fn other_words_pass() {
        assert_eq!(forbidden(&Repository::of(&[("docs/a.md", "a workspace of crates; no network\n")])), []);
    }
}
