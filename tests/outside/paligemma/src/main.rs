//! Detects shapes in an image and draws their boxes: with the crate `paligemma` alone.

use paligemma::{Detection, default_device, demo, demo_images, draw};

fn main() -> Result<(), paligemma::Error> {
    let model = demo(&default_device()?)?;
    let (name, image) = demo_images()?.remove(0);
    let features = model.encode_image(&image); // once, for any number of questions
    println!("{name}: {}", features.caption("en")?);
    let found = features.detect(&["shape"])?;
    for Detection { label, bounds, score } in found.iter() {
        println!("{label} at {bounds:?}, probability {:.2}", score.unwrap_or_default());
    }
    let drawn = draw(&image, found.iter().map(|found| (found.label.as_str(), &found.bounds, None)));
    assert_eq!((drawn.width(), drawn.height()), (image.width(), image.height()));
    assert!(found.iter().count() > 0, "the demo finds shapes");
    Ok(())
}
