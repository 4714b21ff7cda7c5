//! Folders that transformers wrote: all of them open, hold what the reference library reads, and come back unchanged
//! when they are saved.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, its helpers too")]

use std::fs;
use std::path::PathBuf;

use gemma_weights::{Checkpoint, Dtype, SaveOptions, save_folder_with};

/// Every `fixtures/MODEL/PRECISION` folder, or none where the fixtures are not at hand.
fn folders() -> Vec<PathBuf> {
    let Some(shared) = std::env::var_os("GEMMA_TEST_SHARED") else {
        println!("skipped: GEMMA_TEST_SHARED is not set");
        return Vec::new();
    };
    let entries = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let folders: Vec<PathBuf> = entries(PathBuf::from(shared).join("reference/fixtures"))
        .flat_map(entries)
        .filter(|folder| folder.join("config.json").is_file())
        .collect();
    assert!(!folders.is_empty(), "GEMMA_TEST_SHARED has no reference/fixtures/*/* with a config.json");
    folders
}

#[test]
fn they_hold_what_the_reference_library_reads() {
    for folder in folders() {
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let mut tensors = 0;
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if !(name.starts_with("model") && name.ends_with(".safetensors")) {
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            for (name, view) in safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors() {
                let tensor = checkpoint.get(&name).unwrap();
                assert_eq!((&tensor.shape[..], &tensor.bytes[..]), (view.shape(), view.data()), "{path:?} {name}");
                assert_eq!(Dtype::of_format(tensor.format).unwrap().safetensors_name(), format!("{:?}", view.dtype()));
                tensors += 1;
            }
        }
        assert_eq!(checkpoint.tensors().count(), tensors, "{folder:?}");
        let wanted = if folder.ends_with("bf16") { "bfloat16" } else { "float32" };
        assert_eq!(checkpoint.dtype().to_string(), wanted);
        assert!(!checkpoint.generation_config().unwrap().unwrap().eos.is_empty());
    }
}

#[test]
fn they_come_back_unchanged_when_saved_in_shards() {
    for folder in folders() {
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let target = tempfile::tempdir().unwrap();
        let config = checkpoint.file("config.json").unwrap().unwrap();
        let mut tensors = checkpoint.tensors().map(|(name, tensor)| {
            (name.to_owned(), Dtype::of_format(tensor.format).unwrap(), tensor.shape.clone(), tensor.bytes.clone())
        });
        let options = SaveOptions { shard_bytes: checkpoint.bytes_len() / 3, replace: false };
        save_folder_with(target.path(), &[("config.json", &config)], &mut tensors, &options).unwrap();
        let saved = Checkpoint::open(target.path()).unwrap();
        assert!(
            target.path().join("model-00002-of-00003.safetensors").exists()
                || target.path().join("model-00002-of-00004.safetensors").exists()
        );
        assert_eq!(saved.tensors().count(), checkpoint.tensors().count());
        for (name, tensor) in checkpoint.tensors() {
            let again = saved.get(name).unwrap();
            assert_eq!(
                (again.format, &again.shape, &again.bytes),
                (tensor.format, &tensor.shape, &tensor.bytes),
                "{name}"
            );
        }
    }
}
