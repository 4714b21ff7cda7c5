//! Images of shapes, and what can be said about them: the lessons of the PaliGemma demo.
//!
//! A scene is a ground and one to three shapes on a grid, each of a colour. It can be drawn at any size, described from
//! left to right, asked about and searched. A tenth of all scenes, chosen by what is in them, is kept for the test.

use std::collections::BTreeMap;

use paligemma::{BoundingBox, Image, loc, prompt};

use crate::masks::MaskCodes;
use crate::random::Random;

/// Cells of the grid, across and down.
pub const GRID: usize = 7;
/// The most shapes of a scene.
pub const MOST: u32 = 3;
/// Sides of a shape, in cells.
const SIZES: (u32, u32) = (2, 3);
/// Samples per pixel and direction, so that slanted edges are smooth.
const SAMPLES: usize = 3;

/// What a shape is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    /// A disc.
    Circle,
    /// A square.
    Square,
    /// A triangle that stands on its side.
    Triangle,
    /// A plus sign.
    Cross,
}

impl Shape {
    /// Every shape.
    pub const ALL: [Self; 4] = [Self::Circle, Self::Square, Self::Triangle, Self::Cross];

    fn name(self) -> &'static str {
        match self {
            Self::Circle => "circle",
            Self::Square => "square",
            Self::Triangle => "triangle",
            Self::Cross => "cross",
        }
    }

    /// Whether the point, in fractions of the shape's box, belongs to it.
    pub fn contains(self, x: f32, y: f32) -> bool {
        match self {
            Self::Circle => (x - 0.5).powi(2) + (y - 0.5).powi(2) <= 0.25,
            Self::Square => true,
            Self::Triangle => (x - 0.5).abs() <= y / 2.0,
            Self::Cross => (x - 0.5).abs() <= 1.0 / 6.0 || (y - 0.5).abs() <= 1.0 / 6.0,
        }
    }
}

const COLOURS: [(&str, [u8; 3]); 6] = [
    ("red", [220, 40, 40]),
    ("green", [40, 170, 70]),
    ("blue", [40, 80, 220]),
    ("yellow", [240, 210, 40]),
    ("purple", [150, 60, 190]),
    ("orange", [245, 140, 30]),
];
/// Light ones only: on dark ground every edge has the opposite sign, which takes a small encoder long to learn.
const GROUNDS: [[u8; 3]; 4] = [[255, 255, 255], [235, 235, 235], [250, 245, 230], [230, 240, 250]];
const NUMBERS: [&str; 4] = ["no", "one", "two", "three"];

/// One shape of a scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thing {
    /// What it is.
    pub shape: Shape,
    /// Its colour, as a place in the table.
    colour: usize,
    /// Left edge, in cells.
    x: usize,
    /// Upper edge, in cells.
    y: usize,
    /// Width and height, in cells.
    size: usize,
}

impl Thing {
    /// `red circle`.
    pub fn name(&self) -> String {
        format!("{} {}", COLOURS[self.colour].0, self.shape.name())
    }

    /// Its box as location tokens number it.
    fn locations(&self) -> [u16; 4] {
        self.bounds(GRID).to_locations(GRID, GRID)
    }

    /// Its box in an image of `side` pixels.
    pub fn bounds(&self, side: usize) -> BoundingBox {
        let pixels = |cells: usize| (cells * side) as f32 / GRID as f32;
        BoundingBox {
            x_min: pixels(self.x),
            y_min: pixels(self.y),
            x_max: pixels(self.x + self.size),
            y_max: pixels(self.y + self.size),
        }
    }

    /// Whether the middle of the pixel lies inside it, in an image of `side` pixels.
    pub fn covers(&self, x: usize, y: usize, side: usize) -> bool {
        let within = |pixel: usize, edge: usize| {
            ((pixel as f32 + 0.5) * GRID as f32 / side as f32 - edge as f32) / self.size as f32
        };
        let (x, y) = (within(x, self.x), within(y, self.y));
        (0.0..1.0).contains(&x) && (0.0..1.0).contains(&y) && self.shape.contains(x, y)
    }

    /// Whether it comes nearer than a cell to another, or has its middle on the same vertical line.
    fn clashes(&self, other: &Self) -> bool {
        let apart = |a: usize, b: usize| a > b + other.size || b > a + self.size;
        let middle = |thing: &Self| 2 * thing.x + thing.size;
        !(apart(self.x, other.x) || apart(self.y, other.y)) || middle(self).abs_diff(middle(other)) < 2
    }
}

/// A ground and some shapes, from left to right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scene {
    ground: usize,
    /// The shapes, from left to right.
    pub things: Vec<Thing>,
}

/// A question about a scene and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lesson {
    /// What is asked.
    pub prompt: String,
    /// What should be said.
    pub answer: String,
}

impl Scene {
    /// A scene drawn by lot, of `most` shapes at most.
    pub fn random(random: &mut Random, most: u32) -> Self {
        let wanted = random.between(1, most) as usize;
        let mut things: Vec<Thing> = Vec::new();
        // a crowded scene may have no room for all that are wanted
        for _ in 0..20 * wanted {
            if things.len() == wanted {
                break;
            }
            let size = random.between(SIZES.0, SIZES.1) as usize;
            let (x, y) = (random.below(GRID - size + 1), random.below(GRID - size + 1));
            // now and then a second one of a kind, so that there is something to count
            let like = (!things.is_empty() && random.chance(25)).then(|| things[random.below(things.len())]);
            let (shape, colour) = match like {
                Some(thing) => (thing.shape, thing.colour),
                None => (random.pick(&Shape::ALL), random.below(COLOURS.len())),
            };
            let thing = Thing { shape, colour, x, y, size };
            if !things.iter().any(|other| thing.clashes(other)) {
                things.push(thing);
            }
        }
        things.sort_by_key(|thing| 2 * thing.x + thing.size);
        Self { ground: random.below(GROUNDS.len()), things }
    }

    /// Whether the scene is kept for the test: one in ten, by what is in it and where.
    pub fn is_held_out(&self) -> bool {
        let mut state = 0;
        for thing in &self.things {
            for number in [thing.shape as usize, thing.colour, thing.x, thing.y, thing.size] {
                state = Random::new(state ^ number as u64).bits();
            }
        }
        state % 10 == 0
    }

    /// The scene as an image of `side` x `side` pixels.
    ///
    /// # Panics
    /// When `side` is zero.
    pub fn draw(&self, side: usize) -> Image {
        let mut rgb = Vec::with_capacity(side * side * 3);
        let colour_at = |x: f32, y: f32| {
            let found = self.things.iter().find(|thing| {
                let inside = |place: f32, edge: usize| (place - edge as f32) / thing.size as f32;
                let (x, y) = (inside(x, thing.x), inside(y, thing.y));
                (0.0..1.0).contains(&x) && (0.0..1.0).contains(&y) && thing.shape.contains(x, y)
            });
            found.map_or(GROUNDS[self.ground], |thing| COLOURS[thing.colour].1)
        };
        for y in 0..side {
            for x in 0..side {
                let mut sums = [0usize; 3];
                for sample in 0..SAMPLES * SAMPLES {
                    let at = |pixel: usize, sample: usize| {
                        let fine = (pixel * SAMPLES + sample) as f32 + 0.5;
                        fine / (side * SAMPLES) as f32 * GRID as f32
                    };
                    let colour = colour_at(at(x, sample % SAMPLES), at(y, sample / SAMPLES));
                    sums.iter_mut().zip(colour).for_each(|(sum, value)| *sum += usize::from(value));
                }
                rgb.extend(sums.map(|sum| (sum / (SAMPLES * SAMPLES)) as u8));
            }
        }
        Image::from_rgb(rgb, side, side).expect("three bytes were made for each pixel")
    }

    /// The scene in words, from left to right: `two red circles and a blue square`.
    pub fn caption(&self) -> String {
        let mut kinds: Vec<(String, usize)> = Vec::new();
        for thing in &self.things {
            let name = thing.name();
            match kinds.iter_mut().find(|(known, _)| *known == name) {
                Some((_, count)) => *count += 1,
                None => kinds.push((name, 1)),
            }
        }
        let said: Vec<String> = kinds.iter().map(|(name, count)| counted(name, *count)).collect();
        match said.split_last() {
            Some((last, [])) => last.clone(),
            Some((last, others)) => format!("{} and {last}", others.join(", ")),
            None => "nothing".to_owned(),
        }
    }

    /// The shapes with a name: `circle`, `red circle`, or `shape` for all.
    pub fn named(&self, name: &str) -> Vec<&Thing> {
        let matches = |thing: &&Thing| name == "shape" || thing.name() == name || thing.shape.name() == name;
        self.things.iter().filter(matches).collect()
    }

    /// The caption as a lesson.
    pub fn captioning(&self) -> Lesson {
        Lesson { prompt: prompt::caption("en"), answer: self.caption() }
    }

    /// A question about numbers, colours or whether there is something.
    pub fn asking(&self, random: &mut Random) -> Lesson {
        let shape = random.pick(&Shape::ALL);
        let present = self.things[random.below(self.things.len())];
        let counts = self.things.iter().fold(BTreeMap::new(), |mut counts, thing| {
            *counts.entry(thing.shape).or_insert(0) += 1;
            counts
        });
        let once: Vec<&Thing> = self.things.iter().filter(|thing| counts[&thing.shape] == 1).collect();
        let (question, answer) = match random.below(4) {
            0 => ("how many shapes are there?".to_owned(), self.things.len().to_string()),
            1 if !once.is_empty() => {
                let thing = once[random.below(once.len())];
                (format!("what color is the {}?", thing.shape.name()), COLOURS[thing.colour].0.to_owned())
            }
            2 => {
                let colour = if random.chance(50) { present.colour } else { random.below(COLOURS.len()) };
                let shape = if random.chance(50) { present.shape } else { shape };
                let there = self.things.iter().any(|thing| thing.colour == colour && thing.shape == shape);
                let answer = if there { "yes" } else { "no" };
                (format!("is there a {} {}?", COLOURS[colour].0, shape.name()), answer.to_owned())
            }
            _ => {
                let shape = if random.chance(60) { present.shape } else { shape };
                (format!("how many {} are there?", plural(shape.name())), self.named(shape.name()).len().to_string())
            }
        };
        Lesson { prompt: prompt::answer("en", &question), answer }
    }

    /// What to look for: usually something that is there, by its shape, its colour and shape, or all of them.
    pub fn wanted(&self, random: &mut Random) -> String {
        let thing = if random.chance(90) {
            self.things[random.below(self.things.len())]
        } else {
            let (shape, colour) = (random.pick(&Shape::ALL), random.below(COLOURS.len()));
            Thing { shape, colour, ..self.things[0] }
        };
        match random.below(5) {
            0 => "shape".to_owned(),
            1 | 2 => thing.shape.name().to_owned(),
            _ => thing.name(),
        }
    }

    /// Where the shapes of that name are, from left to right.
    pub fn detecting(&self, name: &str) -> Lesson {
        let objects = self.named(name).into_iter().map(|thing| (thing.locations(), [], name));
        Lesson { prompt: prompt::detect(&[name]), answer: loc::answer(objects) }
    }

    /// Where the shapes of that name are and which pixels they cover, from left to right.
    pub fn segmenting(&self, name: &str, masks: &MaskCodes) -> Lesson {
        let codes = |thing: &Thing| masks.encode(|x, y| thing.shape.contains(x, y));
        let objects = self.named(name).into_iter().map(|thing| (thing.locations(), codes(thing), name));
        Lesson { prompt: prompt::segment(name), answer: loc::answer(objects) }
    }

    /// One lesson of any kind; of masks only where their codes are given.
    pub fn lesson(&self, random: &mut Random, masks: Option<&MaskCodes>) -> Lesson {
        match (random.below(10), masks) {
            (0..3, Some(codes)) => self.segmenting(&self.wanted(random), codes),
            (0..6, Some(_)) | (0..5, None) => self.captioning(),
            (6..8, Some(_)) | (5..7, None) => self.asking(random),
            _ => self.detecting(&self.wanted(random)),
        }
    }
}

fn counted(name: &str, count: usize) -> String {
    match count {
        1 if name.starts_with('o') => format!("an {name}"),
        1 => format!("a {name}"),
        _ => format!("{} {}", NUMBERS[count.min(NUMBERS.len() - 1)], plural(name)),
    }
}

fn plural(name: &str) -> String {
    if name.ends_with("ss") { format!("{name}es") } else { format!("{name}s") }
}

/// Scenes without end, of `most` shapes at most: those to learn from, or those kept for the test.
pub fn scenes(seed: u64, most: u32, held_out: bool) -> impl Iterator<Item = Scene> {
    let mut random = Random::new(seed);
    std::iter::repeat_with(move || Scene::random(&mut random, most))
        .filter(move |scene| scene.is_held_out() == held_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thing(shape: Shape, colour: usize, x: usize, y: usize, size: usize) -> Thing {
        Thing { shape, colour, x, y, size }
    }

    #[test]
    fn a_caption_goes_from_left_to_right_and_counts() {
        let scene = |things: &[Thing]| Scene { ground: 0, things: things.to_vec() };
        let red_circle = thing(Shape::Circle, 0, 0, 0, 4);
        let orange_cross = thing(Shape::Cross, 5, 5, 5, 4);
        assert_eq!(scene(&[red_circle]).caption(), "a red circle");
        assert_eq!(scene(&[orange_cross, red_circle]).caption(), "an orange cross and a red circle");
        let many = [red_circle, orange_cross, thing(Shape::Square, 2, 9, 9, 4), red_circle];
        assert_eq!(scene(&many).caption(), "two red circles, an orange cross and a blue square");
        assert_eq!(plural("cross"), "crosses");
    }

    #[test]
    fn a_detection_spells_the_box_in_locations() {
        let scene = Scene { ground: 0, things: vec![thing(Shape::Circle, 0, 3, 1, 3)] };
        let lesson = scene.detecting("circle");
        assert_eq!(lesson.prompt, "detect circle");
        assert_eq!(lesson.answer, "<loc0146><loc0438><loc0585><loc0877> circle");
        assert_eq!(scene.detecting("square").answer, "");
        assert_eq!(scene.named("shape").len(), 1);
    }

    #[test]
    fn a_segmentation_has_sixteen_codes_behind_its_box() {
        let scene = Scene { ground: 0, things: vec![thing(Shape::Square, 0, 3, 1, 3)] };
        let lesson = scene.segmenting("square", &MaskCodes::new());
        assert_eq!(lesson.prompt, "segment square");
        assert_eq!(lesson.answer, format!("<loc0146><loc0438><loc0585><loc0877>{} square", "<seg001>".repeat(16)));
        assert!(scene.things[0].covers(42, 10, 70) && !scene.things[0].covers(42, 9, 70));
    }

    #[test]
    fn a_shape_fills_its_box_and_touches_its_edges() {
        for shape in Shape::ALL {
            let scene = Scene { ground: 0, things: vec![thing(shape, 0, 1, 4, 3)] };
            let image = scene.draw(70);
            let inked: Vec<(usize, usize)> = (0..70 * 70)
                .map(|place| (place % 70, place / 70))
                .filter(|(x, y)| image.rgb()[(y * 70 + x) * 3 + 1] < 200)
                .collect();
            let span = |of: fn(&(usize, usize)) -> usize| (inked.iter().map(of).min(), inked.iter().map(of).max());
            assert_eq!(span(|place| place.0), (Some(10), Some(39)), "{shape:?}");
            assert!(span(|place| place.1).0.is_some_and(|top| top <= 42), "{shape:?}");
            assert_eq!(span(|place| place.1).1, Some(69), "{shape:?}");
        }
    }

    #[test]
    fn scenes_are_varied_sound_and_the_same_for_a_seed() {
        let some: Vec<Scene> = scenes(3, MOST, false).take(500).collect();
        assert_eq!(scenes(3, MOST, false).take(500).collect::<Vec<_>>(), some);
        for count in 1..=MOST as usize {
            assert!(some.iter().filter(|scene| scene.things.len() == count).count() > 50, "{count}");
        }
        for scene in &some {
            for (index, a) in scene.things.iter().enumerate() {
                assert!(a.x + a.size <= GRID && a.y + a.size <= GRID);
                assert!(scene.things[..index].iter().all(|b| !a.clashes(b)));
            }
            assert!(!scene.is_held_out());
        }
        assert!(scenes(3, MOST, true).take(20).all(|scene| scene.is_held_out()));
    }
}
