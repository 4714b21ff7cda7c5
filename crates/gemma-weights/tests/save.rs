//! Saving a folder: readable by others, all or nothing.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, its helpers too")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use gemma_weights::{Checkpoint, Dtype, Error, SaveOptions, SavedTensor, save_folder, save_folder_with};

fn tensor(name: &str, dtype: Dtype, shape: &[usize]) -> SavedTensor {
    let bytes = shape.iter().product::<usize>() * dtype.bytes();
    (name.to_owned(), dtype, shape.to_vec(), (0..bytes).map(|i| (i * 7 + name.len()) as u8).collect())
}

/// Odd numbers of 16-bit values before 32-bit ones, which is where alignment goes wrong.
fn mixed() -> Vec<SavedTensor> {
    vec![
        tensor("model.embed.weight", Dtype::Bf16, &[3, 5]),
        tensor("model.norm.weight", Dtype::F32, &[5]),
        tensor("model.proj.weight", Dtype::F16, &[7, 3]),
        tensor("model.scale", Dtype::F32, &[]),
    ]
}

/// Every file below a folder with its content.
fn content(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap_or_default()))
        .collect()
}

#[test]
fn the_reference_library_reads_what_is_saved() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("deep/er/model");
    save_folder(&folder, &[("config.json", b"{\"a\": 1}"), ("tokenizer.json", b"{}")], &mut mixed().into_iter())
        .unwrap();

    let names: Vec<String> = content(&folder).into_keys().collect();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), b"{\"a\": 1}");
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let (header_len, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    assert_eq!(header_len % 8, 0);
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (name, dtype, shape, data) in mixed() {
        let view = theirs.tensor(&name).unwrap();
        assert_eq!((view.shape(), view.data()), (&shape[..], &data[..]));
        assert_eq!(format!("{:?}", view.dtype()), dtype.safetensors_name());
        let offset = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
        assert_eq!(offset % dtype.bytes(), 0, "{name} is aligned");
    }
    assert_eq!(content(parent.path()).len(), 1, "nothing is left beside the target");
}

#[test]
fn large_models_are_sharded_with_an_index() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("model");
    // 40 bytes, then one tensor larger than a shard, then two that fit together
    let tensors = [("a", 10), ("b", 100), ("c", 5), ("d", 5)].map(|(name, len)| tensor(name, Dtype::F32, &[len]));
    let options = SaveOptions { shard_bytes: 40, replace: false };
    save_folder_with(&folder, &[], &mut tensors.clone().into_iter(), &options).unwrap();
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("model.safetensors.index.json")).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], 480);
    let map = index["weight_map"].as_object().unwrap();
    assert_eq!(map.len(), 4);
    for (name, shard) in [("a", 1), ("b", 2), ("c", 3), ("d", 3)] {
        assert_eq!(map[name], format!("model-{shard:05}-of-00003.safetensors"));
    }
    assert_eq!(content(&folder).len(), 4);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    for (name, _, _, data) in tensors {
        assert_eq!(checkpoint.get(&name).unwrap().bytes, data);
    }
}

#[test]
fn a_folder_that_is_not_empty_is_kept_unless_told() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("model");
    fs::create_dir(&folder).unwrap();
    save_folder(&folder, &[], &mut mixed().into_iter()).expect("an empty folder is filled");
    fs::write(folder.join("notes.txt"), b"mine").unwrap();
    let before = content(&folder);

    let error = save_folder(&folder, &[("config.json", b"{}")], &mut mixed().into_iter()).unwrap_err();
    assert!(matches!(error, Error::WouldOverwrite { .. }), "{error}");
    assert_eq!(content(&folder), before);

    // what is no file of a model is nobody's to delete
    let options = SaveOptions { replace: true, ..SaveOptions::default() };
    let replace = || save_folder_with(&folder, &[("config.json", b"{}")], &mut mixed().into_iter().take(1), &options);
    let error = replace().unwrap_err();
    assert!(matches!(&error, Error::Foreign { found, .. } if found == "notes.txt"), "{error}");
    assert_eq!(content(&folder), before);
    fs::remove_file(folder.join("notes.txt")).unwrap();
    fs::create_dir(folder.join("model.json")).unwrap();
    let error = replace().unwrap_err();
    assert!(matches!(&error, Error::Foreign { found, .. } if found == "model.json"), "{error}");
    fs::remove_dir(folder.join("model.json")).unwrap();

    replace().unwrap();
    assert_eq!(content(&folder).into_keys().collect::<Vec<_>>(), ["config.json", "model.safetensors"]);
    assert_eq!(content(parent.path()).len(), 1);
}

#[test]
fn after_an_error_everything_is_as_it_was() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("model");
    let short: SavedTensor = ("bad".to_owned(), Dtype::F32, vec![2, 2], vec![0; 15].into());
    let huge: SavedTensor = ("bad".to_owned(), Dtype::F32, vec![usize::MAX, usize::MAX], vec![0; 4].into());
    let replace = SaveOptions { replace: true, ..SaveOptions::default() };
    for exists in [false, true] {
        if exists {
            save_folder(&folder, &[("config.json", b"old")], &mut mixed().into_iter()).unwrap();
        }
        let before = content(parent.path());
        for bad in [short.clone(), huge.clone()] {
            let error = save_folder_with(&folder, &[], &mut mixed().into_iter().chain([bad]), &replace).unwrap_err();
            assert!(matches!(error, Error::TensorBytes { .. }), "{error}");
        }
        let twice = mixed().into_iter().chain(mixed());
        let error = save_folder_with(&folder, &[], &mut { twice }, &replace).unwrap_err();
        assert!(matches!(error, Error::GivenTwice { .. }), "{error}");
        for name in ["../x", "a/b", "", "model.safetensors", "model.safetensors.index.json"] {
            let error = save_folder_with(&folder, &[(name, b"")], &mut mixed().into_iter(), &replace).unwrap_err();
            assert!(matches!(error, Error::FileName { .. } | Error::GivenTwice { .. }), "{error}");
        }
        assert_eq!(content(parent.path()), before);
        assert_eq!(folder.exists(), exists);
        if exists {
            assert_eq!(fs::read(folder.join("config.json")).unwrap(), b"old");
        }
    }
}

#[test]
fn a_target_that_cannot_be_a_folder() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("file");
    fs::write(&file, b"mine").unwrap();
    let replace = SaveOptions { replace: true, ..SaveOptions::default() };
    let unwritable = Path::new(if cfg!(target_os = "linux") { "/proc/model" } else { "" });
    for target in [&file, &file.join("model"), Path::new(""), unwritable] {
        let error = save_folder_with(target, &[], &mut mixed().into_iter(), &replace).unwrap_err();
        assert!(
            matches!(error, Error::Write { .. } | Error::WrongKind { .. } | Error::Current { .. }),
            "{target:?}: {error}"
        );
        assert!(!error.to_string().contains('\n') && !error.to_string().contains(".saving-"), "{error}");
    }
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    assert_eq!(content(parent.path()).len(), 1);
}

#[cfg(unix)]
#[test]
fn others_may_read_what_the_umask_lets_them() {
    use std::os::unix::fs::PermissionsExt;
    let parent = tempfile::tempdir().unwrap();
    let (saved, plain) = (parent.path().join("model"), parent.path().join("plain"));
    save_folder(&saved, &[], &mut mixed().into_iter()).unwrap();
    fs::create_dir(&plain).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&saved), mode(&plain));
    fs::write(plain.join("x"), b"").unwrap();
    assert_eq!(mode(&saved.join("model.safetensors")), mode(&plain.join("x")));
}
