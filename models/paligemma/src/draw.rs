//! Boxes, labels and masks, drawn onto an image.

use crate::font::{HEIGHT, WIDTH, inked};
use crate::{BoundingBox, Detection, Image, Mask, Segmentation};

/// Colours in turn; labels of one text share one.
const COLOURS: [[u8; 3]; 8] = [
    [230, 60, 50],
    [40, 120, 220],
    [30, 160, 70],
    [240, 150, 20],
    [150, 60, 190],
    [0, 160, 170],
    [220, 70, 150],
    [120, 100, 40],
];

/// What [`draw`] needs to know of an object.
pub trait Drawn {
    /// Its label, its box in pixels, and its mask if there is one.
    fn drawn(&self) -> (&str, &BoundingBox, Option<&Mask>);
}

impl Drawn for Detection {
    fn drawn(&self) -> (&str, &BoundingBox, Option<&Mask>) {
        (&self.label, &self.bounds, None)
    }
}

impl Drawn for Segmentation {
    fn drawn(&self) -> (&str, &BoundingBox, Option<&Mask>) {
        (&self.label, &self.bounds, Some(&self.mask))
    }
}

impl Drawn for (&str, &BoundingBox, Option<&Mask>) {
    fn drawn(&self) -> (&str, &BoundingBox, Option<&Mask>) {
        *self
    }
}

impl<T: Drawn + ?Sized> Drawn for &T {
    fn drawn(&self) -> (&str, &BoundingBox, Option<&Mask>) {
        T::drawn(self)
    }
}

/// White, which stands beside every colour: one of the two is seen on any ground.
const WHITE: [u8; 3] = [255; 3];

/// Draws objects onto a copy of an image, such as the items of what was [found](crate::Found): for each a box with its
/// label and, where there is one, its mask as a veil of colour with an outline. Boxes and outlines have a line of colour and
/// one of white, so that they are seen on any ground. Objects with the same label have the same colour. What lies outside
/// the image is left out.
pub fn draw<T: Drawn>(image: &Image, objects: impl IntoIterator<Item = T>) -> Image {
    let mut canvas = Canvas { image: image.clone() };
    let side = image.width().min(image.height());
    let line = (side / 200).max(1);
    // letters that can be read in small images, too
    let letter = if side < 160 { 1 } else { line.max(2) };
    let objects: Vec<T> = objects.into_iter().collect();
    let objects: Vec<_> = objects.iter().map(Drawn::drawn).collect();
    let mut labels: Vec<&str> = Vec::new();
    for (label, ..) in &objects {
        if !labels.contains(label) {
            labels.push(label);
        }
    }
    let colour = |label: &str| COLOURS[labels.iter().position(|known| *known == label).unwrap_or(0) % COLOURS.len()];
    for (label, _, mask) in &objects {
        if let Some(mask) = mask {
            canvas.veil(mask, line, colour(label));
        }
    }
    for (label, bounds, _) in &objects {
        canvas.frame(bounds, line, colour(label));
    }
    // labels last, so that no box crosses one out
    for (label, bounds, _) in &objects {
        canvas.label(label, bounds, letter, colour(label));
    }
    canvas.image
}

struct Canvas {
    image: Image,
}

impl Canvas {
    fn pixel(&mut self, x: usize, y: usize) -> Option<&mut [u8]> {
        let (width, height) = (self.image.width(), self.image.height());
        (x < width && y < height).then(|| &mut self.image.rgb_mut()[(y * width + x) * 3..][..3])
    }

    fn fill(&mut self, [x_min, y_min, x_max, y_max]: [usize; 4], colour: [u8; 3]) {
        let (width, height) = (self.image.width(), self.image.height());
        for y in y_min..y_max.min(height) {
            for x in x_min..x_max.min(width) {
                if let Some(pixel) = self.pixel(x, y) {
                    pixel.copy_from_slice(&colour);
                }
            }
        }
    }

    /// Half the colour, half what was there; at the edge of the mask a white line, and the colour around it.
    fn veil(&mut self, mask: &Mask, line: usize, colour: [u8; 3]) {
        for y in 0..mask.height {
            for x in 0..mask.width {
                if mask.inside[y * mask.width + x]
                    && let Some(pixel) = self.pixel(mask.x + x, mask.y + y)
                {
                    pixel.iter_mut().zip(colour).for_each(|(old, new)| *old = old.midpoint(new));
                }
            }
        }
        let reach = line.cast_signed();
        let near = |x: usize, y: usize, wanted: bool| {
            let steps = || (-reach..=reach).flat_map(|down| (-reach..=reach).map(move |right| (right, down)));
            steps().any(|(right, down)| {
                let place = x.checked_add_signed(right).zip(y.checked_add_signed(down));
                place.map_or(!wanted, |(x, y)| mask.contains(x, y) == wanted)
            })
        };
        let (left, top) = (mask.x.saturating_sub(line), mask.y.saturating_sub(line));
        for y in top..(mask.y + mask.height + line).min(self.image.height()) {
            for x in left..(mask.x + mask.width + line).min(self.image.width()) {
                let edge = match mask.contains(x, y) {
                    true => near(x, y, false).then_some(WHITE),
                    false => near(x, y, true).then_some(colour),
                };
                if let (Some(edge), Some(pixel)) = (edge, self.pixel(x, y)) {
                    pixel.copy_from_slice(&edge);
                }
            }
        }
    }

    /// The outline of a box: a line of colour inside the box, and a white one inside that.
    fn frame(&mut self, bounds: &BoundingBox, line: usize, colour: [u8; 3]) {
        let outer = bounds.whole_pixels();
        let [x_min, y_min, x_max, y_max] = outer;
        let inner = [x_min + line, y_min + line, x_max.saturating_sub(line), y_max.saturating_sub(line)];
        if inner[0] < inner[2] && inner[1] < inner[3] {
            self.outline(inner, line, WHITE);
        }
        self.outline(outer, line, colour);
    }

    /// The edges of a rectangle, `line` pixels thick, inside it.
    fn outline(&mut self, [x_min, y_min, x_max, y_max]: [usize; 4], line: usize, colour: [u8; 3]) {
        let (right, lower) = (x_max.saturating_sub(line).max(x_min), y_max.saturating_sub(line).max(y_min));
        self.fill([x_min, y_min, x_max, y_min + line], colour);
        self.fill([x_min, lower, x_max, y_max], colour);
        self.fill([x_min, y_min, x_min + line, y_max], colour);
        self.fill([right, y_min, x_max, y_max], colour);
    }

    /// A label on a ground of the box's colour: above the box, or inside where there is no room above.
    fn label(&mut self, text: &str, bounds: &BoundingBox, line: usize, colour: [u8; 3]) {
        if text.is_empty() {
            return;
        }
        let step = (WIDTH + 1) * line;
        let (width, height) = (text.chars().count() * step + line, (HEIGHT + 2) * line);
        let [x, y, ..] = bounds.whole_pixels();
        let left = x.min(self.image.width().saturating_sub(width));
        let top = y.checked_sub(height).unwrap_or(y);
        self.fill([left, top, left + width, top + height], colour);
        for (place, letter) in text.chars().enumerate() {
            for row in 0..HEIGHT {
                for column in (0..WIDTH).filter(|column| inked(letter, *column, row)) {
                    let (x, y) = (left + line + place * step + column * line, top + (row + 1) * line);
                    self.fill([x, y, x + line, y + line], [255; 3]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Image {
        Image::from_rgb(vec![200; 40 * 30 * 3], 40, 30).unwrap()
    }

    fn at(image: &Image, x: usize, y: usize) -> &[u8] {
        &image.rgb()[(y * image.width() + x) * 3..][..3]
    }

    #[test]
    fn a_frame_lies_on_the_edges_of_its_box() {
        let bounds = BoundingBox { x_min: 5.0, y_min: 12.0, x_max: 35.0, y_max: 25.0 };
        let drawn = draw(&plain(), [("", &bounds, None)]);
        for (x, y) in [(5, 12), (34, 12), (5, 24), (34, 24), (20, 12), (5, 20)] {
            assert_eq!(at(&drawn, x, y), COLOURS[0], "{x} {y}");
        }
        for (x, y) in [(6, 13), (33, 13), (6, 23), (20, 13)] {
            assert_eq!(at(&drawn, x, y), WHITE, "{x} {y}");
        }
        for (x, y) in [(4, 12), (35, 12), (20, 11), (20, 25), (20, 18), (7, 14)] {
            assert_eq!(at(&drawn, x, y), [200; 3], "{x} {y}");
        }
    }

    #[test]
    fn labels_of_one_text_share_a_colour_and_a_mask_is_a_veil() {
        let bounds = BoundingBox { x_min: 0.0, y_min: 10.0, x_max: 10.0, y_max: 20.0 };
        let mask = Mask { x: 20, y: 14, width: 5, height: 5, inside: vec![true; 25] };
        let drawn = draw(&plain(), [("b", &bounds, None), ("a", &bounds, Some(&mask)), ("b", &bounds, None)]);
        assert_eq!(at(&drawn, 22, 16), [120, 160, 210]);
        assert_eq!((at(&drawn, 20, 14), at(&drawn, 24, 16)), (&WHITE[..], &WHITE[..]), "the edge inside");
        assert_eq!((at(&drawn, 19, 14), at(&drawn, 25, 16)), (&COLOURS[1][..], &COLOURS[1][..]), "the edge outside");
        assert_eq!(at(&drawn, 27, 14), [200; 3]);
        assert_eq!(at(&drawn, 0, 19), COLOURS[0]);
        assert_eq!(at(&drawn, 0, 1), COLOURS[0], "the ground of the label above the box");
    }

    /// A red circle found on red ground, a white one on white.
    #[test]
    fn a_mask_is_seen_whatever_the_colours_are() {
        let bounds = BoundingBox { x_min: 5.0, y_min: 5.0, x_max: 25.0, y_max: 25.0 };
        let mask = Mask { x: 10, y: 10, width: 9, height: 9, inside: vec![true; 81] };
        for ground in [COLOURS[0], WHITE, [0; 3]] {
            let image = Image::from_rgb(ground.repeat(40 * 30), 40, 30).unwrap();
            let drawn = draw(&image, [("", &bounds, Some(&mask))]);
            let changed = |places: &[(usize, usize)]| places.iter().any(|(x, y)| at(&drawn, *x, *y) != ground);
            assert!(changed(&[(9, 12), (10, 12)]), "the mask on {ground:?}");
            assert!(changed(&[(5, 12), (6, 12)]), "the box on {ground:?}");
        }
    }

    #[test]
    fn what_is_outside_is_left_out() {
        let far = BoundingBox { x_min: 1e9, y_min: -5.0, x_max: f32::MAX, y_max: f32::INFINITY };
        let mask = Mask { x: 39, y: 29, width: 3, height: 3, inside: vec![true; 9] };
        draw(&plain(), [("a long label that does not fit", &far, Some(&mask))]);
        let dot = Image::from_rgb(vec![0; 3], 1, 1).unwrap();
        draw(&dot, [("x", &BoundingBox { x_min: 0.0, y_min: 0.0, x_max: 1.0, y_max: 1.0 }, None)]);
    }
}
