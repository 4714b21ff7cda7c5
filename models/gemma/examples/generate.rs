//! Continues a text, piece by piece.
//!
//! ```text
//! cargo run --release -p gemma --example generate
//! cargo run --release -p gemma --example generate -- google/gemma-2-2b "The sea"
//! ```

use gemma::{Gemma, GenerateOptions, default_device};
use std::io::Write;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let device = default_device()?;
    // a folder or a hub id; without one, the demo model that is part of the library
    let gemma = match arguments.next() {
        Some(model) => Gemma::load(&model, &device)?,
        None => gemma::demo(&device)?,
    };
    let prompt = arguments.next().unwrap_or_else(|| "Once upon a time".to_owned());

    let options = GenerateOptions { max_tokens: 120, temperature: 0.7, seed: Some(1), ..GenerateOptions::default() };
    print!("{prompt}");
    for piece in gemma.stream(&prompt, &options)? {
        print!("{}", piece?);
        std::io::stdout().flush()?;
    }
    println!();
    Ok(())
}
