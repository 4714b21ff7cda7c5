//! Asks two questions, the second of which only makes sense after the first.
//!
//! ```text
//! cargo run --release -p gemma --example chat
//! cargo run --release -p gemma --example chat -- google/gemma-2-2b-it
//! ```

use gemma::{Gemma, GenerateOptions, Turn, default_device};

fn main() -> anyhow::Result<()> {
    run(std::env::args().nth(1))
}

/// `model`: a folder or a hub id; without one, the demo model that is part of the library.
pub fn run(model: Option<String>) -> anyhow::Result<()> {
    let device = default_device()?;
    let gemma = match model {
        Some(model) => Gemma::load(&model, &device)?,
        None => gemma::demo(&device)?,
    };
    let options = GenerateOptions::greedy(64);

    let mut turns = Vec::new();
    for question in ["What is 7 plus 5?", "And plus 3?"] {
        turns.push(Turn::user(question));
        let answer = gemma.stream_chat(&turns, &options)?.finish()?.text;
        println!("> {question}\n{answer}");
        turns.push(Turn::model(answer));
    }
    Ok(())
}
