//! The field's words: private ones that were replaced do not come back.
//!
//! Checked are the documents, the comments that become documentation, and the texts of the program `gemma`. Code is
//! not: the compiler holds names together.

use super::Complaint;
use super::repository::Repository;

/// A word or phrase that is not the field's, and what to say. Lower case; matched as whole words.
const WORDS: &[(&str, &str)] = &[
    ("picture", "image"),
    ("pictures", "images"),
    ("graphics processor", "GPU"),
    ("graphics processors", "GPUs"),
    ("processors", "CPUs"),
    ("whole number", "integer"),
    ("whole numbers", "integers"),
    ("fineness", "activation precision, compute precision"),
    ("inventory", "parameter list"),
    ("plain twin", "reference implementation"),
    ("scriptorium", "tokenizer"),
    ("mill", "decoding loop"),
    ("staircase", "decoder layer"),
    ("power house", "backend"),
    ("engine room", "kernels"),
    ("model's odds", "probabilities"),
    ("log of odds", "logprob"),
    ("is told", "an active verb"),
    ("are told", "an active verb"),
    ("was told", "an active verb"),
    ("obey", "run"),
    ("wilder", "a flatter distribution"),
    ("four-hundredth", "a number: 2.5e-3"),
    ("fifty-thousandth", "a number: 2e-5"),
    ("three operations", "a number that the code gives"),
];

/// Files that may hold the old words: the walk keeps the figure of a house, and the change log speaks of the past.
const ALLOWED: &[&str] = &["docs/walkthrough.md", "CHANGELOG.md", "xtask/src/tidy/glossary.rs"];

/// No document, documentation comment or text of the program says an old word.
pub(super) fn words(repository: &Repository) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for (path, text) in repository.files() {
        let is_document = path.ends_with(".md");
        let is_source = path.ends_with(".rs") && !path.contains("/tests");
        if ALLOWED.contains(&path) || !(is_document || is_source) {
            continue;
        }
        let is_program = path.starts_with("crates/gemma-cli/src/");
        for (index, line) in text.lines().enumerate() {
            let read = if is_document {
                line.to_owned()
            } else {
                let comment = line.trim_start();
                if comment.starts_with("//!") || comment.starts_with("///") {
                    comment.to_owned()
                } else if is_program && !comment.starts_with("//") {
                    line.split('"').skip(1).step_by(2).collect::<Vec<_>>().join(" ")
                } else {
                    continue;
                }
            };
            let read = read.to_lowercase();
            for (word, instead) in WORDS.iter().filter(|(word, _)| has_word(&read, word)) {
                complaints.push(Complaint::on_line(path, index + 1, format!("say {instead:?} instead of {word:?}")));
            }
        }
    }
    complaints
}

/// Whether a text has these words, not inside longer ones.
fn has_word(text: &str, word: &str) -> bool {
    let letter = |character: Option<char>| character.is_some_and(|found| found.is_alphanumeric() || found == '_');
    text.match_indices(word)
        .any(|(at, _)| !letter(text[..at].chars().next_back()) && !letter(text[at + word.len()..].chars().next()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complain(path: &str, text: &str) -> usize {
        words(&Repository::of(&[(path, text)])).len()
    }

    #[test]
    fn every_old_word_is_found_in_documents_and_comments() {
        for (word, _) in WORDS {
            assert!(complain("docs/a.md", &format!("see the {word}.\n")) > 0, "{word}");
            assert!(complain("crates/a/src/b.rs", &format!("/// See the {word}.\n")) > 0, "{word}");
            assert_eq!(complain("docs/walkthrough.md", word), 0);
        }
    }

    #[test]
    fn code_and_longer_words_pass_and_texts_of_the_program_do_not() {
        assert_eq!(complain("crates/a/src/b.rs", "let picture = obey();\n// a picture\n"), 0);
        assert_eq!(complain("docs/a.md", "picturesque, milling, preprocessor_config.json, million\n"), 0);
        assert_eq!(complain("crates/gemma-cli/src/a.rs", "let x = \"a picture\"; let picture = 1;\n"), 1);
    }
}
