//! Finds shapes and draws boxes around them:
//! `cargo run --release -p paligemma --example detect -- [OUT.png]`

use anyhow::Result;
use paligemma::{Detection, default_device, demo, demo_images, draw};

/// Finds the shapes of an image, writes a drawn copy to `out`, and returns what was found.
///
/// # Errors
/// When the model or a file fails.
pub fn run(out: Option<&str>) -> Result<Vec<Detection>> {
    let model = demo(&default_device()?)?;
    let (name, image) = demo_images()?.remove(2);
    let found = model.encode_image(&image).detect(&["shape"])?;
    println!("{name}: {}", found.text);
    for Detection { label, bounds, score } in found.iter() {
        println!("{label} at {bounds:?}, probability {:.2}", score.unwrap_or_default());
    }
    let drawn = draw(&image, found.iter());
    if let Some(out) = out {
        drawn.save(out)?;
    }
    Ok(found.items)
}

fn main() -> Result<()> {
    run(std::env::args().nth(1).as_deref()).map(drop)
}
