//! One place names a backend; everybody else hands the features on.

use super::repository::Repository;
use super::rust;
use super::{Complaint, member_manifests};

/// The crates that may name one: the one that makes devices and the one that implements operations per backend.
const NAMERS: &[&str] = &["gemma-backend", "gemma-kernels"];
/// The features that choose backends.
const FEATURES: &[&str] = &["ndarray", "flex", "wgpu", "vulkan", "metal"];
/// What naming a backend looks like in a source.
const IN_SOURCES: &[&str] = &[
    "burn::backend",
    "burn_ndarray",
    "burn_flex",
    "burn_wgpu",
    "burn_cubecl",
    "cubecl",
    "Device::ndarray(",
    "Device::flex(",
    "Device::wgpu(",
    "Device::wgpu_options(",
    "Device::vulkan(",
    "Device::metal(",
    "Device::cpu(",
    "Device::default(",
];
/// What naming one looks like in a manifest.
const CRATES: &[&str] = &["burn-ndarray", "burn-flex", "burn-wgpu", "burn-cubecl", "burn-cpu", "cubecl"];

/// The package a path belongs to, as its folder is called.
fn package(path: &str) -> &str {
    let mut parts = path.split('/');
    match parts.next() {
        Some("crates" | "models") => parts.next().unwrap_or_default(),
        Some(top) => top,
        None => "",
    }
}

/// Only [`NAMERS`] name a backend.
pub(super) fn named(repository: &Repository) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for (path, text) in repository.with_extension("rs").filter(|(path, _)| !NAMERS.contains(&package(path))) {
        let code = rust::code(text);
        for word in IN_SOURCES {
            for line in rust::lines_with(&code, word) {
                let text = format!("`{word}` names a backend; take the device from gemma_backend");
                complaints.push(Complaint::on_line(path, line, text));
            }
        }
    }
    for (path, manifest) in member_manifests(repository) {
        if NAMERS.contains(&manifest.name()) {
            continue;
        }
        for dependency in manifest.dependencies().iter().filter(|dependency| CRATES.contains(&dependency.name.as_str()))
        {
            let text = format!("only {} may depend on {}", NAMERS.join(" and "), dependency.name);
            complaints.push(Complaint::on_line(path, dependency.line, text));
        }
        for feature in FEATURES {
            let direct = manifest.feature(feature).unwrap_or_default().into_iter().find(|on| on.starts_with("burn/"));
            if let Some(direct) = direct {
                complaints.push(Complaint::new(
                    path,
                    format!("the feature {feature} switches on {direct} itself; hand it on to gemma-backend"),
                ));
            }
        }
    }
    complaints
}

/// A crate that depends on Burn or on a crate with backend features has all of these features, starts with
/// ndarray, and hands each on to every such dependency.
pub(super) fn forwarded(repository: &Repository) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    let manifests = member_manifests(repository);
    let with_features: Vec<&str> = manifests
        .iter()
        .filter(|(_, manifest)| manifest.feature("ndarray").is_some())
        .map(|(_, manifest)| manifest.name())
        .collect();
    for (path, manifest) in &manifests {
        let dependencies = manifest.dependencies();
        let normal = dependencies.iter().filter(|dependency| dependency.kind == super::manifest::Kind::Normal);
        let onward: Vec<&str> =
            normal.map(|dependency| dependency.name.as_str()).filter(|name| with_features.contains(name)).collect();
        let touches = !onward.is_empty() || dependencies.iter().any(|dependency| dependency.name == "burn");
        if !touches {
            continue;
        }
        if !manifest.feature("default").unwrap_or_default().contains(&"ndarray") {
            complaints.push(Complaint::new(
                *path,
                "the default features must hold ndarray, so that the crate works as it is",
            ));
        }
        for feature in FEATURES {
            let Some(switched) = manifest.feature(feature) else {
                complaints
                    .push(Complaint::new(*path, format!("the crate touches a device and lacks the feature {feature}")));
                continue;
            };
            for dependency in &onward {
                let wanted = format!("{dependency}/{feature}");
                if !switched.iter().any(|on| on.replace('?', "") == wanted) {
                    complaints.push(Complaint::new(*path, format!("the feature {feature} must switch on {wanted}")));
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
    fn a_backend_named_in_a_source_is_found() {
        let complain = |path: &str, text: &str| named(&Repository::of(&[(path, text)]));
        for text in [
            "use burn::backend::NdArray;",
            "let d = Device::ndarray();",
            "use burn_wgpu::X;",
            "let d = Device::default();",
        ] {
            assert_eq!(complain("crates/gemma-nn/src/norm.rs", text).len(), 1, "{text}");
            assert_eq!(complain("crates/gemma-kernels/src/backend/ndarray.rs", text), [], "{text}");
        }
        assert_eq!(
            complain("models/gemma/examples/chat.rs", "\n\nlet d = Device::wgpu(x);")[0].at,
            "models/gemma/examples/chat.rs:3"
        );
        assert_eq!(complain("crates/gemma-nn/src/norm.rs", "// burn::backend is named elsewhere"), []);
    }

    #[test]
    fn a_backend_named_in_a_manifest_is_found() {
        let manifest = "[package]\nname = \"gemma-nn\"\n[features]\nwgpu = [\"burn/wgpu\"]\n[dependencies]\nburn-wgpu.workspace = true\n";
        let complaints = named(&Repository::of(&[("crates/gemma-nn/Cargo.toml", manifest)]));
        assert_eq!(complaints.len(), 2, "{complaints:?}");
        let manifest = manifest.replace("gemma-nn", "gemma-backend");
        assert_eq!(named(&Repository::of(&[("crates/gemma-backend/Cargo.toml", &manifest)])), []);
    }

    const BACKEND: &str = "[package]\nname = \"gemma-backend\"\n[features]\ndefault = [\"ndarray\"]\nndarray = []\nflex = []\nwgpu = []\nvulkan = [\"wgpu\"]\nmetal = [\"wgpu\"]\n[dependencies]\nburn.workspace = true\n";

    fn nn(features: &str) -> Vec<Complaint> {
        let text = format!(
            "[package]\nname = \"gemma-nn\"\n[features]\n{features}\n[dependencies]\ngemma-backend.workspace = true\n"
        );
        forwarded(&Repository::of(&[
            ("crates/gemma-backend/Cargo.toml", BACKEND),
            ("crates/gemma-nn/Cargo.toml", &text),
        ]))
    }

    #[test]
    fn features_reach_every_crate() {
        let all = "default = [\"ndarray\"]\nndarray = [\"gemma-backend/ndarray\"]\nflex = [\"gemma-backend/flex\"]\nwgpu = [\"gemma-backend/wgpu\"]\nvulkan = [\"gemma-backend/vulkan\"]\nmetal = [\"gemma-backend/metal\"]";
        assert_eq!(nn(all), []);
        assert_eq!(nn(&all.replace("\"gemma-backend/flex\"", "")).len(), 1, "flex is not handed on");
        assert_eq!(nn(&all.replace("default = [\"ndarray\"]", "default = []")).len(), 1, "nothing by default");
        assert_eq!(nn(&all.replace("metal = [\"gemma-backend/metal\"]", "")).len(), 1, "metal is missing");
        assert_eq!(nn(&all.replace("\"gemma-backend/vulkan\"", "\"wgpu\"")).len(), 1, "vulkan arrives as plain wgpu");
    }
}
