//! Asks Gemma 3 about images.
//!
//! ```text
//! cargo run --release -p gemma3 --example look -- google/gemma-3-4b-it "What differs?" before.png after.png
//! ```

use gemma3::{Gemma3, GenerateOptions, Image, default_device};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, question, files @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: look MODEL QUESTION IMAGE...");
    };
    let model = Gemma3::load(model, &default_device()?)?;
    let images = files.iter().map(Image::open).collect::<Result<Vec<_>, _>>()?;
    let encoded: Vec<_> = images.iter().map(|image| model.encode_image(image)).collect();
    let lent: Vec<_> = encoded.iter().collect();
    for piece in model.stream(&lent, question, &GenerateOptions::default())? {
        print!("{}", piece?);
    }
    println!();
    Ok(())
}
