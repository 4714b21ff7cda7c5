//! Continues a text piece by piece, and says what the model had to remember for it.
//!
//! ```text
//! cargo run --release -p recurrentgemma --example stream
//! cargo run --release -p recurrentgemma --example stream -- google/recurrentgemma-2b "The sea"
//! ```

use recurrentgemma::{Cache, GenerateOptions, RecurrentGemma, default_device};
use std::io::Write;

fn main() -> anyhow::Result<()> {
    run(std::env::args().nth(1), std::env::args().nth(2).as_deref().unwrap_or("Once upon a time"))
}

/// `model`: a folder or a hub id; without one, the demo model that is part of the library.
pub fn run(model: Option<String>, prompt: &str) -> anyhow::Result<()> {
    let device = default_device()?;
    let model = match model {
        Some(model) => RecurrentGemma::load(&model, &device)?,
        None => recurrentgemma::demo(&device)?,
    };

    let options = GenerateOptions { max_tokens: 300, temperature: 0.7, seed: Some(1), ..GenerateOptions::default() };
    print!("{prompt}");
    let mut text = model.stream(prompt, &options)?;
    for piece in &mut text {
        print!("{}", piece?);
        std::io::stdout().flush()?;
    }
    let sequence = text.into_sequence();
    println!("\n\n{} tokens, remembered in {} bytes", sequence.len(), sequence.cache().bytes_len());
    Ok(())
}
