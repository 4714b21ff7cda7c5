//! The demo of PaliGemma does what it is for, on scenes that it has not learned from.

use gemma_backend::Backend;
use gemma_demo::train_paligemma::{Summary, examine};
use gemma_tests::devices;
use paligemma::{GenerateOptions, Question, demo, demo_images};

/// At least this part of the captions must be right, word for word.
const CAPTIONS: f64 = 0.9;
/// At least this part of the answers must be right.
const ANSWERS: f64 = 0.85;
/// At least this much of the boxes must be covered, as mean intersection over union.
const OVERLAP: f64 = 0.7;
/// The same of the masks, counted in pixels. Things that are named by their shape are covered better than "shape".
const MASKS: f64 = 0.6;

#[test]
fn describes_answers_finds_and_segments_in_held_out_scenes() {
    // on flex where it is there: the mask decoder's convolutions are much slower on ndarray
    let model = demo(&gemma_demo::training::device().unwrap()).unwrap();
    // a seed that nothing else uses
    let marks = examine(&model, 300, 20_000).unwrap();
    for mark in marks.iter().filter(|mark| mark.caption != mark.scene.caption()) {
        println!("{:?}, not {:?}", mark.caption, mark.scene.caption());
    }
    for mark in marks.iter().filter(|mark| mark.asked.0.answer != mark.asked.1) {
        println!("{:?}: {:?}, not {:?}", mark.asked.0.prompt, mark.asked.1, mark.asked.0.answer);
    }
    let summary = Summary::of(&marks);
    println!("{summary}");
    assert!(summary.captions >= CAPTIONS, "{summary}");
    assert!(summary.answers >= ANSWERS, "{summary}");
    assert!(summary.overlap >= OVERLAP, "{summary}");
    assert!(summary.masks >= MASKS, "{summary}");
}

#[test]
fn every_backend_says_the_same_of_a_image() {
    let said: Vec<Vec<String>> = devices()
        .into_iter()
        .map(|(_, device)| {
            let model = demo(&device).unwrap();
            demo_images()
                .unwrap()
                .iter()
                .map(|(_, image)| {
                    let view = model.encode_image(image);
                    format!("{} {}", view.caption("en").unwrap(), view.detect(&["shape"]).unwrap().text)
                })
                .collect()
        })
        .collect();
    assert!(said.windows(2).all(|pair| pair[0] == pair[1]), "{said:#?}");
}

/// Questions of different lengths about different images, together: as each alone.
#[test]
fn a_batch_of_images_is_answered_as_each_alone() {
    for (backend, device) in devices() {
        let model = demo(&device).unwrap();
        let images = demo_images().unwrap();
        let views = model.encode_images(&images.iter().map(|(_, image)| image).collect::<Vec<_>>());
        let alone: Vec<_> = views.iter().map(|view| [view]).collect();
        let prompts = ["caption en", "detect shape", "answer en how many shapes are there?"];
        let questions: Vec<Question<'_>> =
            alone.iter().zip(prompts).map(|(views, prompt)| Question { views, prompt }).collect();
        let options = GenerateOptions::greedy(64);
        let together = model.ask_batch(&questions, &options).unwrap();
        for ((question, answer), (name, image)) in questions.iter().zip(&together).zip(&images) {
            let single = model.encode_image(image).ask(question.prompt, &options).unwrap();
            assert_eq!(single.tokens, answer.tokens, "{backend} {name}: {}", question.prompt);
            assert_eq!(single.finish_reason, answer.finish_reason);
        }
        assert!(together.iter().any(|answer| !answer.text.is_empty()));
    }
}

#[test]
fn a_saved_folder_is_the_same_model() {
    let device = Backend::compiled()[0].device().unwrap();
    let model = demo(&device).unwrap();
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("saved");
    model.save(&folder, gemma_weights::Dtype::Bf16, false).unwrap();
    assert!(model.save(&folder, gemma_weights::Dtype::Bf16, false).is_err(), "an existing folder is not overwritten");
    let again = paligemma::PaliGemma::load(folder.to_str().unwrap(), &device).unwrap();
    let image = &demo_images().unwrap()[1].1;
    let said = |model: &paligemma::PaliGemma| model.encode_image(image).detect(&["shape"]).unwrap();
    assert_eq!(said(&again), said(&model));
    assert_eq!(paligemma::Network::config(again.network()), paligemma::Network::config(model.network()));
}
