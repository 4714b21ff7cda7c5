//! Continues a text, piece by piece.
//!
//! ```text
//! cargo run --release -p gemma --example generate
//! cargo run --release -p gemma --example generate -- google/gemma-2-2b "The sea"
//! ```

use gemma::{Gemma, GenerateOptions, default_device};
use std::io::Write;

fn main() -> anyhow::Result<()> {
    run(std::env::args().nth(1), std::env::args().nth(2).as_deref().unwrap_or("Once upon a time"))
}

/// `model`: a folder or a hub id; without one, the demo model that is part of the library.
pub fn run(model: Option<String>, prompt: &str) -> anyhow::Result<()> {
    let device = default_device()?;
    let gemma = match model {
        Some(model) => Gemma::load(&model, &device)?,
        None => gemma::demo(&device)?,
    };

    let options = GenerateOptions { max_tokens: 120, temperature: 0.7, seed: Some(1), ..GenerateOptions::default() };
    print!("{prompt}");
    for piece in gemma.stream(prompt, &options)? {
        print!("{}", piece?);
        std::io::stdout().flush()?;
    }
    println!();
    Ok(())
}
