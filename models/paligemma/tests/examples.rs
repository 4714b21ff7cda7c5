//! The examples run to their end on the demo model.

#[allow(dead_code, unreachable_pub, reason = "the test calls `run`, the program calls `main`")]
#[path = "../examples/ask.rs"]
mod ask;
#[allow(dead_code, unreachable_pub, reason = "as above")]
#[path = "../examples/caption.rs"]
mod caption;
#[allow(dead_code, unreachable_pub, reason = "as above")]
#[path = "../examples/detect.rs"]
mod detect;
#[allow(dead_code, unreachable_pub, reason = "as above")]
#[path = "../examples/features.rs"]
mod features;

#[test]
fn caption_tells_what_is_in_every_image() {
    let captions = caption::run(&[]).unwrap();
    assert_eq!(captions.len(), 3);
    assert!(captions.iter().all(|caption| caption.starts_with(['a', 't', 'f'])), "{captions:?}");
    assert!(caption::run(&["no/such/image.png".into()]).is_err());
}

#[test]
fn ask_gets_a_number_and_a_yes_or_no() {
    let answers = ask::run().unwrap();
    assert_eq!(answers[0], "3");
    assert!(["yes", "no"].contains(&answers[2].as_str()), "{answers:?}");
}

#[test]
fn detect_finds_three_shapes_and_draws_them() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("boxes.png");
    let found = detect::run(out.to_str()).unwrap();
    assert_eq!(found.len(), 3);
    assert!(found.iter().all(|found| found.score.is_some_and(|score| (0.0..=1.0).contains(&score))));
    assert_eq!(paligemma::Image::open(&out).unwrap().width(), 224);
}

#[test]
fn features_are_of_length_one_and_differ() {
    let fingerprints = features::run().unwrap();
    assert_eq!(fingerprints.len(), 3);
    assert_ne!(fingerprints[0], fingerprints[1]);
}
