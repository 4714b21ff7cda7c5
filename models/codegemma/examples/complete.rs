//! Goes on from the end of a program, without a hole.
//!
//! ```text
//! cargo run --release -p codegemma --example complete
//! cargo run --release -p codegemma --example complete -- google/codegemma-2b "fn main() {"
//! ```

use codegemma::CodeGemma;
use gemma::GenerateOptions;

const PROGRAM: &str = "// Return the sum of the weights.\nfunction sumWeights(weights) {\n";

fn main() -> anyhow::Result<()> {
    run(std::env::args().nth(1), std::env::args().nth(2).as_deref().unwrap_or(PROGRAM))
}

/// `model`: a folder or a hub id; without one, the demo model that is part of the library.
pub fn run(model: Option<String>, program: &str) -> anyhow::Result<()> {
    let device = codegemma::default_device()?;
    let model = match model {
        Some(model) => CodeGemma::load(&model, &device)?,
        None => codegemma::demo(&device)?,
    };

    let completed = model.complete(program, &GenerateOptions::greedy(80))?;
    println!("{program}{}", completed.text);
    Ok(())
}
