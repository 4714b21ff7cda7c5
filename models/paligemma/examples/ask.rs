//! Asks about an image, and asks again without looking again:
//! `cargo run --release -p paligemma --example ask`
//!
//! The encoder sees the image once, in `look`; each question costs reading its words and writing the answer.

use anyhow::Result;
use paligemma::{GenerateOptions, default_device, demo, demo_images};

/// Asks some questions about one image and returns the answers.
///
/// # Errors
/// When the model or a file fails.
pub fn run() -> Result<Vec<String>> {
    let model = demo(&default_device()?)?;
    let (name, image) = demo_images()?.remove(2);
    println!("{name}");
    let view = model.encode_image(&image);
    let mut answers = Vec::new();
    for question in ["how many shapes are there?", "how many circles are there?", "is there a red square?"] {
        let answer = view.answer("en", question)?;
        println!("{question} {answer}");
        answers.push(answer);
    }
    // any prompt, with any options
    let sampled = GenerateOptions { max_tokens: 20, temperature: 0.5, seed: Some(1), ..GenerateOptions::default() };
    println!("{}", view.ask("caption en", &sampled)?.text);
    Ok(answers)
}

fn main() -> Result<()> {
    run().map(drop)
}
