//! Describes images: `cargo run --release -p paligemma --example caption -- [IMAGE]...`
//!
//! Without images, those that come with the library. For real ones, replace `demo(..)` by
//! `PaliGemma::load("google/paligemma-3b-mix-224", &device)?`.

use std::path::Path;

use anyhow::Result;
use paligemma::{Image, default_device, demo, demo_images};

/// Describes the images in the files, or the library's own, and returns what was said.
///
/// # Errors
/// When the model or a file fails.
pub fn run(files: &[String]) -> Result<Vec<String>> {
    let model = demo(&default_device()?)?;
    let mut captions = Vec::new();
    let mut tell = |name: &str, image: &Image| -> Result<()> {
        let caption = model.encode_image(image).caption("en")?;
        println!("{name}: {caption}");
        captions.push(caption);
        Ok(())
    };
    for file in files {
        tell(file, &Image::open(Path::new(file))?)?;
    }
    if files.is_empty() {
        for (name, image) in demo_images()? {
            tell(name, &image)?;
        }
    }
    Ok(captions)
}

fn main() -> Result<()> {
    run(&std::env::args().skip(1).collect::<Vec<_>>()).map(drop)
}
