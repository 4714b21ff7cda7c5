//! The change log speaks of the version that is being built.

use super::repository::Repository;
use super::{Complaint, manifest};

/// `CHANGELOG.md` has a section `[Unreleased]` or one of the workspace's version.
pub(super) fn sections(repository: &Repository) -> Vec<Complaint> {
    const CHANGELOG: &str = "CHANGELOG.md";
    let Some(text) = repository.text(CHANGELOG) else {
        return vec![Complaint::new(CHANGELOG, "there is no change log")];
    };
    let root = manifest::Manifest::parse(repository.text("Cargo.toml").unwrap_or_default());
    let version = root.table("workspace.package").find(|entry| entry.key == "version");
    let version = version.map_or("", |entry| entry.value.trim_matches('"'));
    let headings = [String::from("## [Unreleased]"), format!("## [{version}]")];
    if text.lines().any(|line| headings.iter().any(|heading| line.starts_with(heading))) {
        return Vec::new();
    }
    vec![Complaint::new(CHANGELOG, format!("there is no section {}", headings.join(" or ")))]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complain(changelog: &str) -> usize {
        let manifest = "[workspace.package]\nversion = \"0.2.0\"\n";
        sections(&Repository::of(&[("CHANGELOG.md", changelog), ("Cargo.toml", manifest)])).len()
    }

    #[test]
    fn a_change_log_of_another_version_is_found() {
        assert_eq!(complain("# Changelog\n\n## [0.1.0] - 2026-11-23\n"), 1);
        assert_eq!(complain("# Changelog\n\n## [0.2.0] - 2026-11-23\n"), 0);
        assert_eq!(complain("# Changelog\n\n## [Unreleased]\n"), 0);
        assert_eq!(sections(&Repository::of(&[])).len(), 1);
    }
}
