//! What a model remembers, kept in a file: taken up exactly, and refused where it would mean something else.

use crate::parity::{golden_case, open};
use gemma::Decoder;
use gemma_generate::Sequence;
use gemma_model::{Network, load_state, save_state};
use gemma_nn::Segment;
use gemma_tests::{References, devices, goldens};
use recurrentgemma::Griffin;
use std::path::{Path, PathBuf};

/// A sequence that has read `tokens` but the last.
fn read<N: Network>(network: &N, tokens: &[u32]) -> Sequence<N::Cache> {
    let mut sequence = Sequence::new(network.new_cache());
    sequence.push(tokens);
    sequence.prefill(network, 5, || true);
    sequence
}

/// The logits that follow everything in a sequence.
fn next<N: Network>(network: &N, sequence: Sequence<N::Cache>) -> Vec<f32> {
    let (start, unread) = (sequence.position(), sequence.pending().to_vec());
    let mut cache = sequence.into_cache();
    let logits = network.last_logits(&unread, &[Segment::causal(start, unread.len())], &mut [&mut cache]);
    logits.into_data().try_into_vec().expect("f32")
}

fn tokens_of(folder: &Path) -> Vec<u32> {
    golden_case(&References::open(&folder.join("expected.safetensors"))).tokens
}

fn check<N: Network>(name: &str) {
    let (folder, parent) = (goldens().join(name), tempfile::tempdir().expect("a temporary folder"));
    let file = parent.path().join("text.state");
    for (backend, device) in devices() {
        let network: N = open(&folder, &device);
        let tokens = tokens_of(&folder);
        for len in [1, 2, tokens.len()] {
            let sequence = read(&network, &tokens[..len]);
            save_state(&network, &sequence, &file).expect("a writable folder");
            let again = load_state(&network, &file).expect("the file that was just written");
            assert_eq!((again.position(), again.pending()), (sequence.position(), sequence.pending()));
            assert_eq!(next(&network, again), next(&network, sequence), "{name} on {backend}, {len} tokens");
        }
        assert_eq!(std::fs::read_dir(parent.path()).expect("readable").count(), 1, "nothing else is left behind");
    }
}

#[test]
fn a_state_is_taken_up_exactly() {
    check::<Griffin>("recurrentgemma-f32");
    check::<Griffin>("recurrentgemma-bf16");
    check::<Decoder>("gemma1-f32");
    check::<Decoder>("gemma2-f32");
}

/// A network and the file of a state of it.
fn kept(folder: &Path, parent: &Path) -> (Griffin, PathBuf) {
    let network: Griffin = open(folder, &devices().remove(0).1);
    let file = parent.join("text.state");
    save_state(&network, &read(&network, &tokens_of(folder)), &file).expect("a writable folder");
    (network, file)
}

/// The one line that says why a state is not taken up.
fn refusal<N: Network>(network: &N, file: &Path) -> String {
    let Err(error) = load_state(network, file) else { panic!("{} was taken up", file.display()) };
    let line = error.to_string();
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.contains(&file.display().to_string()), "{line}");
    line
}

#[test]
fn a_state_of_another_model_is_refused() {
    let parent = tempfile::tempdir().expect("a temporary folder");
    let (_, file) = kept(&goldens().join("recurrentgemma-f32"), parent.path());
    let device = devices().remove(0).1;
    let other: Decoder = open(&goldens().join("gemma2-f32"), &device);
    assert!(refusal(&other, &file).contains("another model"));
    let other: Griffin = open(&goldens().join("recurrentgemma-bf16"), &device);
    assert!(refusal(&other, &file).contains("another model"));

    // the same configuration, other numbers in one vector only
    let folder = tempfile::tempdir().expect("a temporary folder");
    let from = goldens().join("recurrentgemma-f32");
    std::fs::copy(from.join("config.json"), folder.path().join("config.json")).expect("copied");
    let mut bytes = std::fs::read(from.join("model.safetensors")).expect("readable");
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let entries: serde_json::Value = serde_json::from_slice(&bytes[8..header]).expect("JSON");
    let place = &entries["model.final_norm.weight"]["data_offsets"][0];
    let place = header + place.as_u64().expect("an offset") as usize;
    bytes[place..place + 4].copy_from_slice(&0.125f32.to_le_bytes());
    std::fs::write(folder.path().join("model.safetensors"), bytes).expect("written");
    let other: Griffin = open(folder.path(), &device);
    assert!(refusal(&other, &file).contains("another model"));
}

#[test]
fn a_state_file_that_was_damaged_is_refused_wherever_it_was() {
    let parent = tempfile::tempdir().expect("a temporary folder");
    let (network, file) = kept(&goldens().join("recurrentgemma-f32"), parent.path());
    let whole = std::fs::read(&file).expect("readable");
    let damaged = parent.path().join("damaged.state");
    let refuse = |bytes: &[u8]| {
        std::fs::write(&damaged, bytes).expect("written");
        refusal(&network, &damaged)
    };
    for len in [0, 7, 8, 9, 100, whole.len() / 2, whole.len() - 1] {
        refuse(&whole[..len]);
    }
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().expect("eight bytes")) as usize;
    // every bit of the header, and some of the numbers
    let places = (0..header).chain((header..whole.len()).step_by(97));
    for place in places {
        let mut bytes = whole.clone();
        bytes[place] ^= 1;
        std::fs::write(&damaged, &bytes).expect("written");
        // spaces that fill the header up may become other blanks; everything else counts
        if let Ok(sequence) = load_state(&network, &damaged) {
            assert!(whole[place] == b' ', "byte {place} of {} changed nothing", whole.len());
            assert_eq!(sequence.position(), tokens_of(&goldens().join("recurrentgemma-f32")).len() - 1);
        }
    }
    assert!(
        refuse(&std::fs::read(goldens().join("recurrentgemma-f32/model.safetensors")).expect("readable"))
            .contains("not a state file")
    );
    refuse(b"Once upon a time");
    refusal(&network, &parent.path().join("missing.state"));
    refusal(&network, parent.path());
}

#[test]
fn a_state_of_a_later_version_is_refused_by_its_number() {
    let parent = tempfile::tempdir().expect("a temporary folder");
    let (network, file) = kept(&goldens().join("recurrentgemma-f32"), parent.path());
    let bytes = std::fs::read(&file).expect("readable");
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let text = String::from_utf8(bytes[8..header].to_vec()).expect("UTF-8");
    let later = text.replacen(r#""version":"1""#, r#""version":"7""#, 1);
    assert_ne!(later, text, "{text}");
    std::fs::write(&file, [&bytes[..8], later.as_bytes(), &bytes[header..]].concat()).expect("written");
    assert!(refusal(&network, &file).contains("version 7"));
}
