//! Continues several texts of different lengths together: one pass over the weights serves all of them.
//!
//! ```text
//! cargo run --release -p gemma --example batch
//! cargo run --release -p gemma --example batch -- google/gemma-2-2b
//! ```

use gemma::{Gemma, GenerateOptions, default_device};
use gemma_generate::{Request, generate_batch};

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
    let tokenizer = gemma.tokenizer()?;

    let prompts = ["Once upon a time", "Long ago, a brave", "One day"];
    let requests = prompts.map(|prompt| Request {
        stop_tokens: gemma.stop_tokens().to_vec(),
        ..Request::new(tokenizer.encode(prompt), GenerateOptions::greedy(40))
    });
    let texts = generate_batch(gemma.network(), tokenizer, requests.into())?;
    for (prompt, answer) in prompts.iter().zip(texts) {
        println!("{prompt}{} ({})\n", answer.text, answer.finish_reason.name());
    }
    Ok(())
}
