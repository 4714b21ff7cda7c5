//! Opening model folders: one file, shards and their index, and everything that can be wrong with them.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, its helpers too")]

use std::fs;
use std::path::Path;

use gemma_weights::{Checkpoint, Dtype, Error, SaveOptions, SavedTensor, TensorSpec, save_folder_with};
use tempfile::TempDir;

/// Three tensors of 32, 16 and 8 bytes.
fn tensors() -> Vec<SavedTensor> {
    vec![
        ("a.weight".to_owned(), Dtype::Bf16, vec![4, 4], (0..32).collect()),
        ("b.weight".to_owned(), Dtype::F32, vec![4], (32..48).collect()),
        ("c.weight".to_owned(), Dtype::Bf16, vec![2, 2], (48..56).collect()),
    ]
}

/// A folder with these tensors; `shard_bytes` of 32 makes two shards, (a) and (b, c).
fn saved(shard_bytes: u64) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let options = SaveOptions { shard_bytes, replace: false };
    save_folder_with(folder.path(), &[("config.json", b"{}")], &mut tensors().into_iter(), &options).unwrap();
    folder
}

const INDEX: &str = "model.safetensors.index.json";
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// The error of opening a folder, after checking that it is one line.
fn error(folder: &Path) -> Error {
    let error = Checkpoint::open(folder).expect_err("the folder is damaged");
    assert!(!error.to_string().contains('\n'), "{error}");
    error
}

fn edit_index(folder: &Path, edit: impl Fn(String) -> String) {
    let path = folder.join(INDEX);
    fs::write(&path, edit(fs::read_to_string(&path).unwrap())).unwrap();
}

#[test]
fn one_file_and_shards_hold_the_same() {
    let (one, many) = (saved(1000), saved(32));
    assert!(one.path().join("model.safetensors").exists() && !one.path().join(INDEX).exists());
    assert!(SHARDS.iter().all(|shard| many.path().join(shard).exists()));
    for folder in [&one, &many] {
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let names: Vec<&str> = checkpoint.tensors().map(|(name, _)| name).collect();
        assert_eq!(names, ["a.weight", "b.weight", "c.weight"]);
        for (name, dtype, shape, data) in tensors() {
            let tensor = checkpoint.get(&name).unwrap();
            assert_eq!(
                (Dtype::of_format(tensor.format).unwrap(), &tensor.shape, &tensor.bytes[..]),
                (dtype, &shape, &data[..])
            );
        }
        assert_eq!(checkpoint.dtype(), Dtype::Bf16);
        assert_eq!((checkpoint.parameters(), checkpoint.bytes_len()), (24, 56));
        assert_eq!(checkpoint.path(), Some(folder.path()));
        assert_eq!(checkpoint.file("config.json").unwrap().unwrap(), b"{}");
        assert_eq!(checkpoint.file("tokenizer.json").unwrap(), None);
        assert!(checkpoint.get("d").is_none());
    }
}

/// A clone without Git LFS, and a download from the wrong link.
#[test]
fn what_lies_in_place_of_a_file_is_named() {
    let folder = saved(1000);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4988025760\n";
    fs::write(folder.path().join("model.safetensors"), pointer).unwrap();
    assert!(error(folder.path()).to_string().contains("Git LFS pointer"));
    let file = folder.path().join("model.gguf");
    fs::write(&file, "<!doctype html>\n<html>").unwrap();
    assert!(error(&file).to_string().contains("a web page"));
    let folder = saved(1000);
    fs::write(folder.path().join("config.json"), "\u{feff}{}").unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.file("config.json").unwrap().unwrap(), b"{}", "without its byte order mark");
    fs::write(folder.path().join("config.json"), b"\xff\xfe{\0}\0").unwrap();
    assert!(checkpoint.file("config.json").unwrap_err().to_string().contains("UTF-16"));
}

#[test]
fn an_adapter_alone_is_told_from_a_model() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("adapter_model.safetensors"), "").unwrap();
    assert!(error(folder.path()).to_string().contains("--adapter"));
}

/// PyTorch's `save_model` writes a shared tensor under one of its names and notes the other.
#[test]
fn a_shared_tensor_is_found_under_both_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut tensors = [("lm_head.weight".to_owned(), Dtype::F32, vec![1, 2], vec![7; 8].into())].into_iter();
    let shared = [("model.embed_tokens.weight", "lm_head.weight"), ("format", "pt"), ("other", "not.there")];
    let metadata = shared.map(|(name, held_as)| (name.to_owned(), held_as.to_owned())).into();
    gemma_weights::save_safetensors(&path, metadata, &mut tensors).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let names: Vec<&str> = checkpoint.tensors().map(|(name, _)| name).collect();
    assert_eq!(names, ["lm_head.weight", "model.embed_tokens.weight"]);
    assert!(!checkpoint.is_untied("lm_head.weight", "model.embed_tokens.weight"));
}

#[test]
fn a_checkpoint_may_be_part_of_the_program() {
    let folder = saved(1000);
    let leak = |name: &str| -> &'static [u8] { fs::read(folder.path().join(name)).unwrap().leak() };
    let config: &'static [u8] = br#"{"eos_token_id": [1, 7]}"#;
    let checkpoint = Checkpoint::from_static(&[
        ("model.safetensors", leak("model.safetensors")),
        ("generation_config.json", config),
    ])
    .unwrap();
    assert_eq!(checkpoint.parameters(), 24);
    assert_eq!(checkpoint.path(), None);
    assert_eq!(checkpoint.generation_config().unwrap().unwrap().eos, [1, 7]);
    assert_eq!(checkpoint.file("config.json").unwrap(), None);

    let damaged = Checkpoint::from_static(&[("model.safetensors", b"short")]).unwrap_err();
    assert!(matches!(damaged, Error::Safetensors { .. }), "{damaged}");
    assert!(matches!(Checkpoint::from_static(&[]).unwrap_err(), Error::NoWeights { .. }));
}

#[test]
fn what_is_no_model_folder() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(error(&folder.path().join("none")), Error::NoSuchPath { .. }));
    assert!(matches!(error(folder.path()), Error::NoWeights { found: None, .. }));
    fs::write(folder.path().join("pytorch_model.bin"), b"").unwrap();
    let no_weights = error(folder.path());
    assert!(no_weights.to_string().contains("pytorch_model.bin"), "{no_weights}");
    let file = folder.path().join("pytorch_model.bin");
    assert!(matches!(error(&file), Error::NotAFolder { .. }));
    let file = folder.path().join("model.gguf");
    fs::write(&file, b"GGUF").unwrap();
    assert!(matches!(error(&file), Error::Gguf { .. }));
    fs::create_dir(folder.path().join("model.safetensors")).unwrap();
    assert!(matches!(error(folder.path()), Error::Read { .. }));
}

#[test]
fn a_damaged_file_is_named() {
    let one = saved(1000);
    let path = one.path().join("model.safetensors");
    let content = fs::read(&path).unwrap();
    for len in [0, 7, 8, 100, content.len() - 1] {
        fs::write(&path, &content[..len]).unwrap();
        assert!(matches!(error(one.path()), Error::Safetensors { .. }), "{len}");
    }
    let many = saved(32);
    fs::write(many.path().join(SHARDS[1]), &content[..20]).unwrap();
    assert!(error(many.path()).to_string().contains(SHARDS[1]));
}

#[test]
fn an_index_that_is_not_json_or_lacks_its_map() {
    for content in ["", "{", "[]", "{}", r#"{"weight_map": 1}"#, r#"{"weight_map": {"a": 1}}"#, r#"{"weight_map": []}"#]
    {
        let folder = saved(32);
        edit_index(folder.path(), |_| content.to_owned());
        let error = error(folder.path());
        assert!(matches!(error, Error::Json { .. }) && error.to_string().contains(INDEX), "{content}: {error}");
    }
}

#[test]
fn a_shard_that_is_missing() {
    let folder = saved(32);
    fs::remove_file(folder.path().join(SHARDS[0])).unwrap();
    assert!(matches!(error(folder.path()), Error::ShardMissing { shard, .. } if shard == SHARDS[0]));
}

#[test]
fn a_shard_outside_the_folder() {
    for shard in
        ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "config.json", "a\\\\b.safetensors"]
    {
        let folder = saved(32);
        edit_index(folder.path(), |index| index.replace(SHARDS[0], shard));
        let error = error(folder.path());
        assert!(matches!(error, Error::ShardName { .. }), "{shard}: {error}");
    }
}

#[test]
fn a_tensor_that_is_not_where_the_index_says() {
    let folder = saved(32);
    edit_index(folder.path(), |index| {
        index.replace("\"weight_map\": {", &format!("\"weight_map\": {{\"z\": \"{}\",", SHARDS[1]))
    });
    assert!(matches!(error(folder.path()), Error::NotInShard { tensor, .. } if tensor == "z"));

    let folder = saved(32);
    let (named, found) = (format!("\"c.weight\": \"{}\"", SHARDS[1]), format!("\"c.weight\": \"{}\"", SHARDS[0]));
    edit_index(folder.path(), |index| index.replace(&named, &found));
    assert!(
        matches!(error(folder.path()), Error::NotInShard { tensor, shard, .. } if tensor == "c.weight" && shard == SHARDS[0])
    );
}

#[test]
fn a_tensor_in_two_shards() {
    let folder = saved(32);
    // the second shard is now a copy of all tensors
    fs::copy(saved(1000).path().join("model.safetensors"), folder.path().join(SHARDS[1])).unwrap();
    let found = error(folder.path());
    assert!(matches!(&found, Error::InTwoShards { tensor, .. } if tensor == "a.weight"), "{found}");

    let folder = saved(32);
    edit_index(folder.path(), |index| {
        index.replace("\"weight_map\": {", &format!("\"weight_map\": {{\"b.weight\": \"{}\",", SHARDS[0]))
    });
    let found = error(folder.path());
    assert!(matches!(&found, Error::InTwoShards { tensor, .. } if tensor == "b.weight"), "{found}");
}

#[test]
fn a_tensor_that_the_index_does_not_mention() {
    let folder = saved(32);
    edit_index(folder.path(), |index| index.replace(&format!(",\n    \"c.weight\": \"{}\"", SHARDS[1]), ""));
    assert!(matches!(error(folder.path()), Error::NotInIndex { tensor, .. } if tensor == "c.weight"));
}

#[test]
fn files_beside_the_weights_are_plain_names() {
    let checkpoint = Checkpoint::open(saved(1000).path()).unwrap();
    for name in ["../config.json", "/etc/passwd", ""] {
        assert!(matches!(checkpoint.file(name).unwrap_err(), Error::FileName { .. }), "{name}");
    }
}

#[test]
fn a_tokenizer_of_gigabytes_is_not_read() {
    let folder = saved(1000);
    let file = fs::File::create(folder.path().join("tokenizer.json")).unwrap();
    file.set_len(300 << 20).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap().file("tokenizer.json").unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

#[test]
fn the_check_lists_everything_at_once() {
    let folder = saved(1000);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let spec = |name: &str, shape: &[usize]| TensorSpec::new(name, shape);
    let right = [spec("a.weight", &[4, 4]), spec("b.weight", &[4]), spec("c.weight", &[2, 2])];
    checkpoint.check(&right, &|_| false).unwrap();
    checkpoint.check(&right[..2], &|name| name == "c.weight").unwrap();

    let wrong = [spec("a.weight", &[2, 8]), spec("b.weight", &[4]), spec("d.weight", &[2, 2])];
    let text = checkpoint.check(&wrong, &|_| false).unwrap_err().to_string();
    for words in
        ["1 missing (d.weight)", "1 unexpected (c.weight)", "1 misshapen (a.weight: expected [2, 8], found [4, 4])"]
    {
        assert!(text.contains(words), "{text}");
    }
    // an ignored name is still checked when it is asked for
    assert!(checkpoint.check(&wrong, &|_| true).unwrap_err().to_string().contains("1 misshapen"));
}
