//! Fills a hole in a program, piece by piece, then in other ways.
//!
//! ```text
//! cargo run --release -p codegemma --example infill
//! cargo run --release -p codegemma --example infill -- google/codegemma-2b
//! ```

use codegemma::{CodeGemma, Infill, InfillOptions};
use std::io::Write;

const BEFORE: &str =
    "def largest_price(prices):\n    \"\"\"Return the largest of the prices.\"\"\"\n    best = prices[0]\n";
const AFTER: &str = "            best = price\n    return best\n";

fn main() -> anyhow::Result<()> {
    run(std::env::args().nth(1))
}

/// `model`: a folder or a hub id; without one, the demo model that is part of the library.
pub fn run(model: Option<String>) -> anyhow::Result<()> {
    let device = codegemma::default_device()?;
    let model = match model {
        Some(model) => CodeGemma::load(&model, &device)?,
        None => codegemma::demo(&device)?,
    };

    let hole = Infill { path: Some("prices.py".into()), ..Infill::new(BEFORE, AFTER) };
    let options = InfillOptions::default();
    print!("{BEFORE}");
    for piece in model.stream_infill(&hole, &options)? {
        print!("{}", piece?);
        std::io::stdout().flush()?;
    }
    print!("{AFTER}");

    // a session reads the prompt once, and each alternative goes on from there
    for other in model.session().alternatives(&hole, &options, 3)?.iter().skip(1) {
        println!("\nor, at {:.2} per token:\n{}", other.mean_log_prob, other.text);
    }
    Ok(())
}
