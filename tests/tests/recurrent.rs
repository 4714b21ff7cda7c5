//! RecurrentGemma against the reference: logits however the text is cut, the states it leaves, both readings of the
//! window.

use crate::parity::{check, golden_case, in_chunks, open, rows_of, shared_cases};
use burn::Tensor;
use gemma_demo::train_recurrentgemma::{WINDOW, examine};
use gemma_generate::{Cache, CausalModel};
use gemma_nn::{PAGE_LEN, Segment};
use gemma_tests::{References, devices, goldens, max_distance, shared};
use recurrentgemma::{GenerateOptions, Griffin, GriffinCache, LayerCache, LoadOptions, Network};
use std::path::Path;

/// The largest permitted distance of an f32 logit or state from the reference.
const VALUES: f64 = 1e-3;

#[test]
fn goldens_of_this_repository() {
    for name in ["recurrentgemma-f32", "recurrentgemma-bf16"] {
        let folder = goldens().join(name);
        check::<Griffin>(&folder, &[golden_case(&References::open(&folder.join("expected.safetensors")))]);
    }
}

#[test]
fn fixtures_of_the_shared_set() {
    let Some(shared) = shared() else { return };
    for name in ["recurrentgemma/f32", "recurrentgemma/bf16"] {
        let folder = shared.join("reference/fixtures").join(name);
        check::<Griffin>(&folder, &shared_cases(&References::open(&folder.join("expected.safetensors"))));
    }
}

/// The cache of tokens that are read `chunk` at a time.
fn read(model: &Griffin, tokens: &[u32], chunk: usize) -> GriffinCache {
    let mut cache = model.new_cache();
    for (index, part) in tokens.chunks(chunk).enumerate() {
        model.last_logits(part, &[Segment::causal(index * chunk, part.len())], &mut [&mut cache]);
    }
    cache
}

fn values(state: &Option<Tensor<2>>) -> Vec<f32> {
    state.clone().expect("a state after the first token").into_data().try_into_vec().expect("f32")
}

/// Compares the states after `tokens` with the reference's, whatever the chunks.
fn check_states(folder: &Path, expected: &References, prefix: &str, tokens: &[u32]) {
    for (backend, device) in devices() {
        let model: Griffin = open(folder, &device);
        for chunk in [tokens.len(), 1, 3, 7] {
            let cache = read(&model, tokens, chunk);
            let mut compared = 0;
            for (index, layer) in cache.layers().iter().enumerate() {
                let LayerCache::Recurrent(state) = layer else { continue };
                let context = format!("{} layer {index} on {backend}, chunk {chunk}", folder.display());
                let hidden = expected.tensor(&format!("{prefix}state.rg_lru.{index}"));
                let width = hidden.values.len();
                let distance = max_distance(&values(&state.hidden), &hidden.values);
                assert!(distance < VALUES, "{context}: the hidden state is {distance} off");
                // [channels, K - 1] there, the oldest input first, as here
                let tail = expected.tensor(&format!("{prefix}state.conv.{index}"));
                let past = *tail.shape.last().expect("inputs");
                let tail = &tail.values;
                let transposed: Vec<f64> =
                    (0..past).flat_map(|tap| (0..width).map(move |channel| tail[channel * past + tap])).collect();
                let distance = max_distance(&values(&state.tail), &transposed);
                assert!(distance < VALUES, "{context}: the convolution's inputs are {distance} off");
                compared += 1;
            }
            assert!(compared > 0, "{}: no recurrent layer", folder.display());
        }
    }
}

#[test]
fn states_are_the_references_however_the_text_is_cut() {
    let folder = goldens().join("recurrentgemma-f32");
    let expected = References::open(&folder.join("expected.safetensors"));
    check_states(&folder, &expected, "", &golden_case(&expected).tokens);
    let Some(shared) = shared() else { return };
    let folder = shared.join("reference/fixtures/recurrentgemma/f32");
    let expected = References::open(&folder.join("expected.safetensors"));
    // the one case of that set with states
    check_states(&folder, &expected, "main.", &rows_of(&expected, "main")[0].tokens);
}

#[test]
fn the_inclusive_window_sees_one_key_more() {
    let mut cases = vec![(goldens().join("recurrentgemma-f32"), "")];
    cases.extend(shared().map(|shared| (shared.join("reference/fixtures/recurrentgemma/f32"), "main.")));
    for (folder, prefix) in cases {
        let expected = References::open(&folder.join("expected.safetensors"));
        let tokens = match prefix {
            "" => golden_case(&expected).tokens,
            _ => rows_of(&expected, "main").remove(0).tokens,
        };
        let wider = expected.tensor(&format!("{prefix}logits.window_plus_one")).values;
        for (backend, device) in devices() {
            let options = LoadOptions { inclusive_window: true, ..LoadOptions::default() };
            let checkpoint = gemma_weights::Checkpoint::open(&folder).expect("a model folder");
            let model = Griffin::open(&checkpoint, &options, &device).expect("a model");
            for chunk in [tokens.len(), 1, 7] {
                let distance = max_distance(&in_chunks(&model, &tokens, chunk), &wider);
                assert!(distance < VALUES, "{} on {backend}, chunk {chunk}: {distance} off", folder.display());
            }
            let usual: Griffin = open(&folder, &device);
            let distance = max_distance(&in_chunks(&usual, &tokens, 7), &wider);
            assert!(distance > 10.0 * VALUES, "both readings agree: the text is too short to tell");
        }
    }
}

#[test]
fn another_family_refuses_the_inclusive_window() {
    let checkpoint = gemma_weights::Checkpoint::open(&goldens().join("gemma2-f32")).expect("a model folder");
    let options = LoadOptions { inclusive_window: true, ..LoadOptions::default() };
    let device = devices().remove(0).1;
    let error = gemma::Decoder::open(&checkpoint, &options, &device).unwrap_err().to_string();
    assert!(error.contains("inclusive_window"), "{error}");
}

#[test]
fn a_memory_does_not_grow_once_its_window_is_full_and_a_clone_is_a_fork() {
    let folder = goldens().join("recurrentgemma-f32");
    for (backend, device) in devices() {
        let model: Griffin = open(&folder, &device);
        let window = model.config().window();
        let text = |len: usize| (0..len).map(|place| (place * 7 % 60 + 3) as u32).collect::<Vec<u32>>();
        // from when the window and some positions before it fill whole pages
        let full = (window + PAGE_LEN).next_multiple_of(PAGE_LEN) + PAGE_LEN;
        let sizes: Vec<usize> =
            [full, 4 * full, 40 * full].iter().map(|len| read(&model, &text(*len), 16).bytes_len()).collect();
        assert!(sizes.windows(2).all(|pair| pair[0] == pair[1]), "{backend}: {sizes:?}");

        let stem = read(&model, &text(50), 16);
        let after = |cache: &mut GriffinCache, token: u32| {
            let logits = model.last_logits(&[token], &[Segment::causal(cache.len(), 1)], &mut [cache]);
            logits.into_data().try_into_vec::<f32>().expect("f32")
        };
        let (mut one, mut other) = (stem.clone(), stem.clone());
        let first = after(&mut one, 9);
        let second = after(&mut other, 10);
        assert_ne!(first, second);
        assert_eq!(after(&mut stem.clone(), 9), first, "{backend}: a fork changed the stem");
        assert_eq!((stem.len(), one.len()), (50, 51));
    }
}

/// The part of its cases that the demo must get right.
const RIGHT: f64 = 0.9;

#[test]
fn the_demo_remembers_a_word_over_ten_windows() {
    let model = recurrentgemma::demo(&devices().remove(0).1).expect("a model that is built in");
    assert_eq!(model.network().config().window(), WINDOW);
    // a seed that nothing else uses
    let marks = examine(&model, 100, 10 * WINDOW, 20_000).expect("answers");
    for mark in marks.iter().filter(|mark| !mark.right) {
        println!("{:?}, not {:?}", mark.answer, mark.recall.word);
    }
    let right = marks.iter().filter(|mark| mark.right).count();
    println!("{right} of {} right", marks.len());
    let shortest = marks.iter().map(|mark| model.tokenizer().expect("its own").encode(&mark.recall.text).len()).min();
    assert!(shortest.expect("cases") > 10 * WINDOW, "{shortest:?} tokens are not ten windows");
    assert!(right as f64 >= RIGHT * marks.len() as f64, "{right} of {} words remembered", marks.len());
}

#[test]
fn the_demo_tells_a_story() {
    let model = recurrentgemma::demo(&devices().remove(0).1).expect("a model that is built in");
    let story = model.generate("Once upon a time", &GenerateOptions::greedy(250)).expect("a story");
    println!("Once upon a time{}", story.text);
    let words = story.text.split_whitespace().count();
    assert!((40..220).contains(&words), "{words} words");
    let named = story.text.split(" named ").nth(1).and_then(|rest| rest.split_whitespace().next());
    let name = named.expect("a hero with a name").trim_matches(|c: char| !c.is_alphabetic());
    assert!(story.text.matches(name).count() >= 2, "{name} is not mentioned again");
}
