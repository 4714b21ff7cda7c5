//! Continues several texts of different lengths together: one pass over the weights serves all of them.
//!
//! ```text
//! cargo run --release -p gemma --example batch
//! cargo run --release -p gemma --example batch -- google/gemma-2-2b
//! ```

use gemma::{Gemma, GenerateOptions, default_device};
use gemma_generate::{Request, generate_batch};

fn main() -> anyhow::Result<()> {
    let device = default_device()?;
    let gemma = match std::env::args().nth(1) {
        Some(model) => Gemma::load(&model, &device)?,
        None => gemma::demo(&device)?,
    };
    let tokenizer = gemma.tokenizer()?;

    let prompts = ["Once upon a time", "Long ago, a brave", "One day"];
    let request = |prompt: &&str| Request { prompt: tokenizer.encode(prompt), options: GenerateOptions::greedy(40) };
    let requests: Vec<Request> = prompts.iter().map(request).collect();
    let texts = generate_batch(gemma.decoder(), tokenizer, &requests, gemma.stop_tokens())?;
    for (prompt, answer) in prompts.iter().zip(texts) {
        println!("{prompt}{} ({})\n", answer.text, answer.finish_reason.name());
    }
    Ok(())
}
