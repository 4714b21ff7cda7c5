//! The examples run to their end on the demo model.

#[allow(dead_code, unreachable_pub, reason = "the test calls `run`, the program calls `main`")]
#[path = "../examples/batch.rs"]
mod batch;
#[allow(dead_code, unreachable_pub, reason = "as above")]
#[path = "../examples/chat.rs"]
mod chat;
#[allow(dead_code, unreachable_pub, reason = "as above")]
#[path = "../examples/engine.rs"]
mod engine;
#[allow(dead_code, unreachable_pub, reason = "as above")]
#[path = "../examples/generate.rs"]
mod generate;

#[test]
fn generate_runs() {
    generate::run(None, "Once upon a time").unwrap();
}

#[test]
fn chat_runs() {
    chat::run(None).unwrap();
}

#[test]
fn batch_runs() {
    batch::run(None).unwrap();
}

#[test]
fn engine_runs() {
    let answers = engine::run(None).unwrap();
    assert!(answers.len() == 3 && answers.iter().all(|answer| answer.len() > 20), "{answers:?}");
}
