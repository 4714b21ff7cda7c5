//! One table of versions, one table of lints, one name per crate.

use super::repository::Repository;
use super::{Complaint, manifest, member_manifests};

/// Only the root's manifest says which version of a dependency is used.
pub(super) fn versions(repository: &Repository) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for (path, manifest) in member_manifests(repository) {
        for dependency in manifest.dependencies().iter().filter(|dependency| !dependency.inherits) {
            let text = format!(
                "{0} has a version or path of its own; put it into [workspace.dependencies] and write `{0}.workspace = true`",
                dependency.name
            );
            complaints.push(Complaint::on_line(path, dependency.line, text));
        }
        for entry in manifest.table("package") {
            if ["version", "edition", "rust-version", "license", "repository"].contains(&entry.key.as_str()) {
                complaints.push(Complaint::on_line(
                    path,
                    entry.line,
                    format!("take it from the workspace: `{}.workspace = true`", entry.key),
                ));
            }
        }
    }
    complaints
}

/// Every member is in the workspace's list, shares its lints, says what it is, and is called as its folder is.
pub(super) fn members(repository: &Repository) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    let root = manifest::Manifest::parse(repository.text("Cargo.toml").unwrap_or_default());
    let listed =
        root.table("workspace").find(|entry| entry.key == "members").map(|entry| manifest::quoted(&entry.value));
    let listed = listed.unwrap_or_default();
    for (path, manifest) in member_manifests(repository) {
        let folder = path.trim_end_matches("/Cargo.toml");
        if !listed.contains(&folder) {
            complaints.push(Complaint::new(path, "this package is not in the workspace's list of members"));
        }
        let shares_lints = manifest.table("lints").any(|entry| entry.key == "workspace" && entry.value == "true");
        if !shares_lints {
            complaints.push(Complaint::new(path, "add `[lints]` with `workspace = true`: there is one table of lints"));
        }
        if !manifest.table("package").any(|entry| entry.key == "description") {
            complaints.push(Complaint::new(path, "say in one line of `description` what the package is"));
        }
        let last = folder.rsplit('/').next().unwrap_or(folder);
        let expected = match folder {
            "tests" => "gemma-tests",
            "xtask/demo" => "gemma-demo",
            "xtask/fuzz" => "gemma-fuzz",
            _ => last,
        };
        if manifest.name() != expected {
            complaints.push(Complaint::new(
                path,
                format!("the folder is {last}, so the package is {expected}, not {:?}", manifest.name()),
            ));
        }
    }
    for member in listed {
        if !repository.has(&format!("{member}/Cargo.toml")) {
            complaints.push(Complaint::new("Cargo.toml", format!("the member {member} does not exist")));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: (&str, &str) = ("Cargo.toml", "[workspace]\nmembers = [\n  \"crates/a\",\n]\n");
    const GOOD: &str = "[package]\nname = \"a\"\ndescription = \"d\"\nversion.workspace = true\n[lints]\nworkspace = true\n[dependencies]\nburn.workspace = true\n";

    #[test]
    fn a_good_member_passes() {
        let repository = Repository::of(&[ROOT, ("crates/a/Cargo.toml", GOOD)]);
        assert_eq!(versions(&repository), []);
        assert_eq!(members(&repository), []);
    }

    #[test]
    fn a_version_outside_the_root_is_found() {
        for line in ["half = \"2\"", "half = { version = \"2\" }", "gemma = { path = \"../gemma\" }"] {
            let text = format!("{GOOD}{line}\n");
            assert_eq!(versions(&Repository::of(&[ROOT, ("crates/a/Cargo.toml", &text)])).len(), 1, "{line}");
        }
        let text = GOOD.replace("version.workspace = true", "version = \"0.1.0\"");
        assert_eq!(versions(&Repository::of(&[ROOT, ("crates/a/Cargo.toml", &text)]))[0].at, "crates/a/Cargo.toml:4");
    }

    #[test]
    fn what_a_member_lacks_is_found() {
        let complain = |text: &str| members(&Repository::of(&[ROOT, ("crates/a/Cargo.toml", text)])).len();
        assert_eq!(complain(&GOOD.replace("[lints]\nworkspace = true\n", "")), 1);
        assert_eq!(complain(&GOOD.replace("description = \"d\"\n", "")), 1);
        assert_eq!(complain(&GOOD.replace("name = \"a\"", "name = \"b\"")), 1);
    }

    #[test]
    fn the_list_of_members_equals_the_disk() {
        let unlisted = Repository::of(&[
            ROOT,
            ("crates/a/Cargo.toml", GOOD),
            ("crates/b/Cargo.toml", &GOOD.replace("\"a\"", "\"b\"")),
        ]);
        assert_eq!(members(&unlisted)[0].at, "crates/b/Cargo.toml");
        let missing = Repository::of(&[ROOT]);
        assert_eq!(members(&missing).len(), 1);
    }
}
