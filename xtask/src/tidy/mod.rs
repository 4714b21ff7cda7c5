//! `cargo xtask tidy`: the rules of the house that the compiler does not keep.
//!
//! Each file beside this one is a group of rules: functions from a [`Repository`] to complaints. They read text
//! only, so their tests build a small repository in memory and show that the rule fires.

mod backends;
mod changelog;
mod circles;
mod dependencies;
mod glossary;
mod links;
mod manifest;
mod manifests;
mod numerics;
mod repository;
mod rust;
mod sources;
mod tree;
mod words;

use anyhow::{Result, bail};
use manifest::Manifest;
use repository::Repository;
use std::path::Path;

pub(crate) use tree::write as write_tree;

/// What is wrong, where, and what to do.
#[derive(Debug, PartialEq)]
struct Complaint {
    /// A path in the repository, with `:line` where there is one.
    at: String,
    /// One sentence.
    text: String,
}

impl Complaint {
    fn new(at: impl Into<String>, text: impl Into<String>) -> Self {
        Self { at: at.into(), text: text.into() }
    }

    /// `line` counts from 1.
    fn on_line(path: &str, line: usize, text: impl Into<String>) -> Self {
        Self::new(format!("{path}:{line}"), text)
    }
}

type Rule = fn(&Repository) -> Vec<Complaint>;

/// Every rule with its name.
const RULES: &[(&str, Rule)] = &[
    ("layers", dependencies::layers),
    ("families", dependencies::families),
    ("closed doors", dependencies::closed_doors),
    ("versions", manifests::versions),
    ("members", manifests::members),
    ("backends named", backends::named),
    ("features forwarded", backends::forwarded),
    ("module docs", sources::module_docs),
    ("file names", sources::file_names),
    ("unsafe", sources::unsafe_code),
    ("no input or output", sources::no_input_or_output),
    ("circles", circles::imports),
    ("tree", tree::equals),
    ("glossary", glossary::words),
    ("numerics", numerics::tests_exist),
    ("links", links::resolve),
    ("paths", links::paths),
    ("changelog", changelog::sections),
    ("words", words::forbidden),
];

pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    if let Some(argument) = arguments.first() {
        bail!("tidy takes no options (got {argument:?})");
    }
    let repository = Repository::read(root)?;
    let mut count = 0;
    for (name, rule) in RULES {
        for Complaint { at, text } in rule(&repository) {
            println!("{at}: {text} [{name}]");
            count += 1;
        }
    }
    match count {
        0 => println!("tidy: {} rules, {} files, nothing to complain about", RULES.len(), repository.len()),
        1 => bail!("1 complaint"),
        _ => bail!("{count} complaints"),
    }
    Ok(())
}

/// Packages outside the workspace: those for other languages, programs that use the crates as a user would, and the targets
/// of cargo-fuzz, which need a nightly toolchain and flags of their own.
const OUTSIDE: [&str; 3] = ["bindings/", "tests/outside/", "fuzz/"];

/// The manifests of the workspace's members: the path of each and what it says.
fn member_manifests(repository: &Repository) -> Vec<(&str, Manifest)> {
    let members = repository
        .files()
        .filter(|(path, _)| path.ends_with("/Cargo.toml") && !OUTSIDE.iter().any(|outside| path.starts_with(outside)));
    members.map(|(path, text)| (path, Manifest::parse(text))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_repository_is_tidy() {
        let repository = Repository::read(&crate::root()).expect("the repository can be read");
        let complaints: Vec<String> = RULES
            .iter()
            .flat_map(|(name, rule)| {
                rule(&repository).into_iter().map(move |c| format!("{}: {} [{name}]", c.at, c.text))
            })
            .collect();
        assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
    }

    #[test]
    fn each_rule_has_a_name_of_its_own() {
        let mut names: Vec<_> = RULES.iter().map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), RULES.len());
    }
}
