//! Compares images by what the encoder makes of them, without any text:
//! `cargo run --release -p paligemma --example features`
//!
//! `Siglip` can be used alone: a feature per patch, `[patches, width]`. Their mean is a fingerprint of the image.

use anyhow::Result;
use paligemma::{default_device, demo, demo_images};

/// Prints how much alike the library's images are, and returns a fingerprint of each.
///
/// # Errors
/// When the model or a file fails.
pub fn run() -> Result<Vec<Vec<f32>>> {
    let model = demo(&default_device()?)?;
    let encoder = model.network().vision_tower();
    let mut fingerprints: Vec<Vec<f32>> = Vec::new();
    for (name, image) in demo_images()? {
        let pixels = image.pixels(encoder.config().image_size);
        let features = encoder.forward(&[&pixels]);
        println!("{name}: {:?}", features.dims());
        let mean = features.mean_dim(0).into_data().try_into_vec::<f32>().expect("features are f32");
        let length = mean.iter().map(|value| value * value).sum::<f32>().sqrt();
        fingerprints.push(mean.iter().map(|value| value / length).collect());
    }
    for a in &fingerprints {
        let alike = |b: &Vec<f32>| format!("{:5.2}", a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>());
        println!("{}", fingerprints.iter().map(alike).collect::<Vec<_>>().join(" "));
    }
    Ok(fingerprints)
}

fn main() -> Result<()> {
    run().map(drop)
}
