//! Who may depend on whom: the layers of docs/architecture.md as a table.

use super::manifest::{Dependency, Kind};
use super::repository::Repository;
use super::{Complaint, member_manifests};

/// The crates by layer, the lowest first. A crate depends on lower layers only.
const LAYERS: &[&[&str]] = &[
    &["gemma-backend", "gemma-kernels", "gemma-tokenizer"],
    &["gemma-nn", "gemma-weights"],
    &["gemma-generate"],
    &["gemma-model"],
    &["gemma-vision"],
    &["gemma", "codegemma", "embeddinggemma", "gemma3", "paligemma", "recurrentgemma", "shieldgemma", "gemma-train"],
    &["gemma-auto"],
    &["gemma-cli", "gemma-serve", "gemma-demo", "gemma-fuzz", "gemma-tests"],
];

/// The steps taken inside one layer, each with its reason.
const WITHIN: &[(&str, &str)] = &[
    // Operations are implemented per backend, and devices come from there.
    ("gemma-kernels", "gemma-backend"),
    // A loader is a `Source` of parameters, and that trait belongs to the layers.
    ("gemma-weights", "gemma-nn"),
    // CodeGemma is Gemma with other prompts; PaliGemma's decoder is Gemma.
    ("codegemma", "gemma"),
    ("paligemma", "gemma"),
    // Gemma 3 with images contains the decoder.
    ("gemma3", "gemma"),
    // EmbeddingGemma's layers are Gemma 3's; ShieldGemma is Gemma with a question.
    ("embeddinggemma", "gemma"),
    ("shieldgemma", "gemma"),
    // The program starts the servers.
    ("gemma-cli", "gemma-serve"),
    // Messages of editors are mutated, too.
    ("gemma-fuzz", "gemma-serve"),
    // The end-to-end tests read the generator that wrote the demo's questions.
    ("gemma-tests", "gemma-demo"),
];

/// The crates that are a model family.
const FAMILIES: &[&str] =
    &["gemma", "codegemma", "embeddinggemma", "gemma3", "paligemma", "recurrentgemma", "shieldgemma"];

/// What a crate must not know, whatever its layer: the crate, the dependencies, the reason.
const CLOSED: &[(&str, &[&str], &str)] = &[
    ("gemma-tokenizer", &["burn", "cubecl", "gemma-"], "a token is a number until a model reads it"),
    (
        "gemma-nn",
        &["serde", "safetensors", "tokenizers", "memmap2", "gemma-tokenizer", "gemma-weights"],
        "layers know no file and no text",
    ),
    ("xtask", &["burn", "cubecl", "gemma", "clap"], "chores start at once"),
];

/// Crates that report to a person and may therefore fail with `anyhow`.
const BINARIES: &[&str] = &["gemma-cli", "gemma-serve", "gemma-demo", "gemma-fuzz", "gemma-tests", "xtask"];

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&name)).map(|index| index + 1)
}

/// Every crate has a layer and depends on lower ones only, but for [`WITHIN`].
pub(super) fn layers(repository: &Repository) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for (path, manifest) in member_manifests(repository) {
        let name = manifest.name();
        if name == "xtask" {
            continue;
        }
        let Some(own) = layer(name) else {
            complaints.push(Complaint::new(
                path,
                format!("{name} has no layer; give it one in xtask's tidy/dependencies.rs and in docs/architecture.md"),
            ));
            continue;
        };
        for dependency in shipped(&manifest.dependencies()) {
            let Some(other) = layer(&dependency.name) else { continue };
            if other >= own && !WITHIN.contains(&(name, &dependency.name)) {
                let text =
                    format!("{name} is in layer {own} and cannot depend on {} of layer {other}", dependency.name);
                complaints.push(Complaint::on_line(path, dependency.line, text));
            }
        }
    }
    complaints
}

/// No family depends on another but on the Gemma it contains, and nothing below the families knows one, not even
/// in its tests.
pub(super) fn families(repository: &Repository) -> Vec<Complaint> {
    let below = layer(FAMILIES[0]).expect("families have a layer");
    let mut complaints = Vec::new();
    for (path, manifest) in member_manifests(repository) {
        let name = manifest.name();
        let may_not = FAMILIES.contains(&name) || layer(name).is_some_and(|own| own < below);
        for dependency in manifest.dependencies() {
            let allowed = WITHIN.contains(&(name, &dependency.name));
            if may_not && FAMILIES.contains(&dependency.name.as_str()) && !allowed {
                complaints.push(Complaint::on_line(
                    path,
                    dependency.line,
                    format!("{name} knows the family {}", dependency.name),
                ));
            }
        }
    }
    complaints
}

/// Dependencies that a crate must not have for reasons of its own.
pub(super) fn closed_doors(repository: &Repository) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for (path, manifest) in member_manifests(repository) {
        let name = manifest.name();
        let dependencies = manifest.dependencies();
        for (crate_name, closed, reason) in CLOSED.iter().filter(|(crate_name, ..)| *crate_name == name) {
            for dependency in &dependencies {
                if closed.iter().any(|closed| {
                    dependency.name.starts_with(closed) && !(*crate_name == "xtask" && dependency.name == "serde_json")
                }) {
                    let text = format!("{name} must not depend on {}: {reason}", dependency.name);
                    complaints.push(Complaint::on_line(path, dependency.line, text));
                }
            }
        }
        for dependency in shipped(&dependencies).filter(|dependency| dependency.name == "anyhow") {
            if !BINARIES.contains(&name) {
                let text = "a library has an error type of its own; anyhow is for programs (and for examples, as a dev-dependency)";
                complaints.push(Complaint::on_line(path, dependency.line, text));
            }
        }
    }
    complaints
}

fn shipped(dependencies: &[Dependency]) -> impl Iterator<Item = &Dependency> {
    dependencies.iter().filter(|dependency| dependency.kind != Kind::Dev)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depends(name: &str, table: &str, on: &str) -> Repository {
        let text = format!("[package]\nname = \"{name}\"\n[{table}]\n{on}.workspace = true\n");
        Repository::of(&[("crates/some/Cargo.toml", &text)])
    }

    #[test]
    fn a_lower_layer_may_be_used() {
        for (name, on) in
            [("gemma-nn", "gemma-kernels"), ("gemma-cli", "gemma"), ("gemma-weights", "gemma-nn"), ("gemma-nn", "burn")]
        {
            assert_eq!(layers(&depends(name, "dependencies", on)), [], "{name} -> {on}");
        }
    }

    #[test]
    fn a_step_up_or_sideways_is_found() {
        for (name, on) in [
            ("gemma-nn", "gemma-weights"),
            ("gemma-kernels", "gemma-nn"),
            ("gemma-backend", "gemma-kernels"),
            ("gemma-train", "gemma"),
        ] {
            let complaints = layers(&depends(name, "dependencies", on));
            assert_eq!(complaints.len(), 1, "{name} -> {on}");
            assert_eq!(complaints[0].at, "crates/some/Cargo.toml:4");
        }
        assert_eq!(layers(&depends("gemma-nn", "dev-dependencies", "gemma-weights")), []);
    }

    #[test]
    fn a_crate_without_a_layer_is_found() {
        assert_eq!(layers(&depends("gemma-new", "dependencies", "burn")).len(), 1);
    }

    #[test]
    fn families_do_not_know_each_other() {
        assert_eq!(families(&depends("recurrentgemma", "dependencies", "gemma")).len(), 1);
        assert_eq!(families(&depends("gemma", "dev-dependencies", "codegemma")).len(), 1);
        assert_eq!(families(&depends("gemma-generate", "dev-dependencies", "gemma")).len(), 1);
        assert_eq!(families(&depends("paligemma", "dependencies", "gemma")), []);
        assert_eq!(families(&depends("gemma-tests", "dependencies", "gemma")), []);
    }

    #[test]
    fn closed_doors_stay_closed() {
        for (name, on) in [
            ("gemma-tokenizer", "burn"),
            ("gemma-tokenizer", "burn-ndarray"),
            ("gemma-tokenizer", "gemma-nn"),
            ("gemma-nn", "serde"),
            ("gemma-nn", "serde_json"),
            ("gemma-nn", "gemma-tokenizer"),
            ("xtask", "burn"),
            ("gemma-generate", "anyhow"),
        ] {
            assert_eq!(closed_doors(&depends(name, "dependencies", on)).len(), 1, "{name} -> {on}");
        }
        for (name, table, on) in [
            ("gemma-tokenizer", "dependencies", "serde"),
            ("gemma-nn", "dependencies", "burn"),
            ("gemma", "dev-dependencies", "anyhow"),
            ("gemma-cli", "dependencies", "anyhow"),
            ("xtask", "dependencies", "serde_json"),
        ] {
            assert_eq!(closed_doors(&depends(name, table, on)), [], "{name} -> {on}");
        }
    }
}
