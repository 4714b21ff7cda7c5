//! A folder for the files of one test.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

/// The built-in model of a family, as a folder of the repository.
pub(crate) fn demo(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../models/{family}/demo"))
}

/// A folder for the files of one test.
pub(crate) struct Folder(pub(crate) TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    /// The demo model as a folder on disk.
    pub(crate) fn with_demo() -> Self {
        let folder = Self::new();
        for entry in fs::read_dir(demo("gemma")).expect("the demo model is part of the repository") {
            let path = entry.expect("readable").path();
            fs::copy(&path, folder.path(path.file_name().and_then(|name| name.to_str()).expect("a name")))
                .expect("copied");
        }
        folder
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The path as an argument; the folder itself for an empty name.
    pub(crate) fn name(&self, name: &str) -> String {
        let path = if name.is_empty() { self.0.path().to_owned() } else { self.path(name) };
        path.to_str().expect("UTF-8").to_owned()
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).expect("written");
        self.name(name)
    }

    pub(crate) fn files(&self) -> Vec<String> {
        let names = fs::read_dir(self.0.path()).expect("readable").map(|entry| entry.expect("readable").file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().expect("UTF-8")).collect();
        names.sort();
        names
    }

    /// Changes `config.json`.
    pub(crate) fn configure(&self, change: impl FnOnce(&mut serde_json::Map<String, Value>)) {
        let text = fs::read(self.path("config.json")).expect("readable");
        let mut config: Value = serde_json::from_slice(&text).expect("JSON");
        change(config.as_object_mut().expect("an object"));
        self.write("config.json", config.to_string());
    }
}
