//! Describes pictures: `cargo run --release -p paligemma --example caption -- [PICTURE]...`
//!
//! Without pictures, those that come with the library. For real ones, replace `demo(..)` by
//! `PaliGemma::load("google/paligemma-3b-mix-224", &device)?`.

use std::path::Path;

use anyhow::Result;
use paligemma::{Picture, default_device, demo, demo_pictures};

/// Describes the pictures in the files, or the library's own, and returns what was said.
///
/// # Errors
/// When the model or a file fails.
pub fn run(files: &[String]) -> Result<Vec<String>> {
    let model = demo(&default_device()?)?;
    let mut captions = Vec::new();
    let mut tell = |name: &str, picture: &Picture| -> Result<()> {
        let caption = model.look(picture).caption("en")?;
        println!("{name}: {caption}");
        captions.push(caption);
        Ok(())
    };
    for file in files {
        tell(file, &Picture::open(Path::new(file))?)?;
    }
    if files.is_empty() {
        for (name, picture) in demo_pictures()? {
            tell(name, &picture)?;
        }
    }
    Ok(captions)
}

fn main() -> Result<()> {
    run(&std::env::args().skip(1).collect::<Vec<_>>()).map(drop)
}
