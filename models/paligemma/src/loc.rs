//! Where things are: location and segment tokens to boxes and mask codes.
//!
//! An answer to `detect` or `segment` is a list of objects, separated by ` ; `. An object is four location tokens (the
//! upper, left, lower and right edge, in this order), for `segment` sixteen segment tokens after them, and a label.
//! Location `D` stands for the fraction `D / 1023` of the height or the width of the image (big_vision's evaluator).
//!
//! A model may say anything. What is not exactly such an object is left out and stays readable in the text.

use gemma_tokenizer::{TokenId, Tokenizer};

/// The largest location.
pub const LAST_LOCATION: u16 = 1023;
/// Segment tokens of one mask.
pub const CODES: usize = 16;
/// Number of different segment tokens.
pub const CODEBOOK: usize = 128;

/// A box in pixels of the image that was asked about.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct BoundingBox {
    /// Left edge.
    pub x_min: f32,
    /// Upper edge.
    pub y_min: f32,
    /// Right edge.
    pub x_max: f32,
    /// Lower edge.
    pub y_max: f32,
}

impl BoundingBox {
    /// The box of four locations `[y_min, x_min, y_max, x_max]` in an image; `None` when it has no area.
    pub fn from_locations([y_min, x_min, y_max, x_max]: [u16; 4], width: usize, height: usize) -> Option<Self> {
        let at = |location: u16, length: usize| {
            (f64::from(location.min(LAST_LOCATION)) / f64::from(LAST_LOCATION) * length as f64) as f32
        };
        (y_min < y_max && x_min < x_max).then(|| Self {
            x_min: at(x_min, width),
            y_min: at(y_min, height),
            x_max: at(x_max, width),
            y_max: at(y_max, height),
        })
    }

    /// The four locations `[y_min, x_min, y_max, x_max]` of the box: `round(fraction · 1023)`, kept in `0..=1023`.
    pub fn to_locations(&self, width: usize, height: usize) -> [u16; 4] {
        let location = |edge: f32, length: usize| {
            let last = f64::from(LAST_LOCATION);
            (f64::from(edge) / length as f64 * last).round().clamp(0.0, last) as u16
        };
        [
            location(self.y_min, height),
            location(self.x_min, width),
            location(self.y_max, height),
            location(self.x_max, width),
        ]
    }

    /// Area in pixels.
    pub fn area(&self) -> f32 {
        (self.x_max - self.x_min).max(0.0) * (self.y_max - self.y_min).max(0.0)
    }

    /// Area of the intersection over area of the union, from 0 to 1.
    pub fn iou(&self, other: &Self) -> f32 {
        let both = Self {
            x_min: self.x_min.max(other.x_min),
            y_min: self.y_min.max(other.y_min),
            x_max: self.x_max.min(other.x_max),
            y_max: self.y_max.min(other.y_max),
        };
        let union = self.area() + other.area() - both.area();
        if union > 0.0 { both.area() / union } else { 0.0 }
    }

    /// The edges in whole pixels, cut off (not rounded): `[x_min, y_min, x_max, y_max]`.
    pub fn whole_pixels(&self) -> [usize; 4] {
        [self.x_min, self.y_min, self.x_max, self.y_max].map(|edge| edge.max(0.0) as usize)
    }
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A location token, and the natural logarithm of its probability where that is known.
    Location(u16, Option<f64>),
    /// A segment token.
    Segment(u8),
    /// Text between them.
    Text(String),
}

/// One object of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// `[y_min, x_min, y_max, x_max]`.
    pub locations: [u16; 4],
    /// The codes of its mask, when exactly sixteen follow the locations.
    pub codes: Option<[u8; CODES]>,
    /// What it is, without the spaces around it.
    pub label: String,
    /// The natural logarithm of the probability of the four location tokens.
    pub log_prob: Option<f64>,
}

/// What a location or segment token is called: `<loc0012>`, `<seg007>`.
fn named(piece: &str) -> Option<Item> {
    let number = |prefix: &str, digits: usize| {
        let text = piece.strip_prefix(prefix)?.strip_suffix('>')?;
        let plain = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| text.parse::<u16>().ok()).flatten()
    };
    if let Some(location) = number("<loc", 4).filter(|location| *location <= LAST_LOCATION) {
        return Some(Item::Location(location, None));
    }
    let code = number("<seg", 3).filter(|code| usize::from(*code) < CODEBOOK)?;
    Some(Item::Segment(code as u8))
}

/// The answer that names some objects, each by locations, the codes of its mask (none for a box alone), and label:
/// `<loc0102><loc0102><loc0512><loc0614> cat ; ...`.
pub fn answer<'l, C: AsRef<[u8]>>(objects: impl IntoIterator<Item = ([u16; 4], C, &'l str)>) -> String {
    let spelled = objects.into_iter().map(|(locations, codes, label)| {
        let locations: String = locations.iter().map(|location| format!("<loc{location:04}>")).collect();
        let codes: String = codes.as_ref().iter().map(|code| format!("<seg{code:03}>")).collect();
        format!("{locations}{codes} {label}")
    });
    spelled.collect::<Vec<_>>().join(" ; ")
}

/// The longest name of such a token, in bytes.
const NAME: usize = "<loc0000>".len();

/// Cuts a text at the names of location and segment tokens.
pub fn items_of_text(text: &str) -> Vec<Item> {
    let mut items = Vec::new();
    let (mut plain, mut at) = (0, 0);
    while let Some(found) = text[at..].find('<') {
        let begin = at + found;
        let window = &text.as_bytes()[begin..text.len().min(begin + NAME)];
        let end = window.iter().position(|byte| *byte == b'>').map(|last| begin + last + 1);
        let item = end.and_then(|end| Some((named(text.get(begin..end)?)?, end)));
        match item {
            Some((item, end)) => {
                push_text(&mut items, &text[plain..begin]);
                items.push(item);
                (plain, at) = (end, end);
            }
            None => at = begin + 1,
        }
    }
    push_text(&mut items, &text[plain..]);
    items
}

/// The items of generated tokens, with the log-probability of each location.
pub fn items_of_tokens(tokenizer: &Tokenizer, tokens: &[TokenId], log_probs: &[f64]) -> Vec<Item> {
    let mut items = Vec::new();
    let mut text = Vec::new();
    let flush = |items: &mut Vec<Item>, text: &mut Vec<TokenId>| {
        push_text(items, &tokenizer.decode(text));
        text.clear();
    };
    for (index, token) in tokens.iter().enumerate() {
        match tokenizer.piece(*token).and_then(named) {
            Some(item) => {
                flush(&mut items, &mut text);
                items.push(match item {
                    Item::Location(location, _) => Item::Location(location, log_probs.get(index).copied()),
                    other => other,
                });
            }
            None => text.push(*token),
        }
    }
    flush(&mut items, &mut text);
    items
}

fn push_text(items: &mut Vec<Item>, text: &str) {
    if !text.is_empty() {
        items.push(Item::Text(text.to_owned()));
    }
}

/// The objects among items: exactly four locations in a row, then nothing, or segment tokens, then a label up to the
/// next `;` or the next location. Boxes of no area are objects here; they become no [`BoundingBox`].
pub fn objects(items: &[Item]) -> Vec<Object> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < items.len() {
        let locations: Vec<(u16, Option<f64>)> = items[at..]
            .iter()
            .map_while(|item| match item {
                Item::Location(location, log_prob) => Some((*location, *log_prob)),
                _ => None,
            })
            .collect();
        at += locations.len().max(1);
        let &[first, second, third, fourth] = locations.as_slice() else { continue };
        let codes: Vec<u8> = items[at..]
            .iter()
            .map_while(|item| match item {
                Item::Segment(code) => Some(*code),
                _ => None,
            })
            .collect();
        at += codes.len();
        let label = match items.get(at) {
            Some(Item::Text(text)) => text.split(';').next().unwrap_or_default().trim().to_owned(),
            _ => String::new(),
        };
        let four = [first, second, third, fourth];
        found.push(Object {
            locations: four.map(|(location, _)| location),
            codes: codes.try_into().ok(),
            label,
            log_prob: four.iter().map(|(_, log_prob)| *log_prob).sum(),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Vec<Object> {
        objects(&items_of_text(text))
    }

    #[test]
    fn every_location_is_its_fraction_of_the_height_or_the_width() {
        for location in 0..LAST_LOCATION {
            let last = LAST_LOCATION;
            let found = BoundingBox::from_locations([location, location, last, last], 640, 480).unwrap();
            let fraction = f64::from(location) / 1023.0;
            assert_eq!((found.x_min, found.y_min), ((fraction * 640.0) as f32, (fraction * 480.0) as f32));
            assert_eq!((found.x_max, found.y_max), (640.0, 480.0));
            assert_eq!(found.to_locations(640, 480), [location, location, last, last]);
            assert_eq!(parse(&format!("<loc{location:04}><loc0000><loc1023><loc1023> x"))[0].locations[0], location);
        }
    }

    #[test]
    fn the_upper_edge_comes_first() {
        let found = BoundingBox::from_locations([100, 200, 300, 400], 1023, 1023).unwrap();
        assert_eq!(found, BoundingBox { x_min: 200.0, y_min: 100.0, x_max: 400.0, y_max: 300.0 });
    }

    #[test]
    fn objects_are_separated_by_semicolons() {
        let found = parse("<loc0001><loc0002><loc0003><loc0004> cat ; <loc0005><loc0006><loc0007><loc0008> a dog");
        let labels: Vec<&str> = found.iter().map(|object| object.label.as_str()).collect();
        assert_eq!(labels, ["cat", "a dog"]);
        assert_eq!(found[1].locations, [5, 6, 7, 8]);
        assert_eq!(found[0].codes, None);
    }

    #[test]
    fn sixteen_codes_make_a_mask_and_no_other_number_does() {
        for count in [0, 1, 15, 16, 17, 32] {
            let codes: String = (0..count).map(|code| format!("<seg{code:03}>")).collect();
            let found = parse(&format!("<loc0000><loc0000><loc1023><loc1023>{codes} cat"));
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].label, "cat");
            assert_eq!(found[0].codes.is_some(), count == 16, "{count} codes");
        }
        let every: Vec<Item> =
            (0..CODEBOOK).map(|code| format!("<seg{code:03}>")).flat_map(|t| items_of_text(&t)).collect();
        assert_eq!(every, (0..CODEBOOK).map(|code| Item::Segment(code as u8)).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_no_object_is_left_out() {
        let good = "<loc0001><loc0002><loc0003><loc0004> cat";
        for bad in [
            "<loc0001><loc0002><loc0003> cat",                   // a coordinate is missing
            "<loc0001><loc0002><loc0003><loc0004><loc0005> cat", // one too many
            "<loc0001><loc0002> and <loc0003><loc0004> cat",     // text between
            "<seg000><seg001> cat",                              // no box
            "<loc1024><loc0002><loc0003><loc0004> cat",          // no such location
            "<loc001><loc0002><loc0003><loc0004> cat",           // misspelt
            "<loc0001 ><loc0002><loc0003><loc0004> cat",
            "cat",
            "",
            ";;; ; <",
            "<loc<loc<seg<seg000",
            "ä<löc0001>ü",
        ] {
            assert_eq!(parse(bad), [], "{bad}");
            let around = parse(&format!("{bad} ; {good}"));
            assert_eq!(around.len(), 1, "{bad} before a good one");
            assert_eq!(around[0].locations, [1, 2, 3, 4]);
        }
    }

    #[test]
    fn a_box_without_area_is_none() {
        for locations in [[5, 5, 5, 9], [5, 5, 9, 5], [9, 5, 5, 9], [5, 9, 9, 5], [0, 0, 0, 0]] {
            assert_eq!(BoundingBox::from_locations(locations, 100, 100), None, "{locations:?}");
        }
    }

    #[test]
    fn overlap_is_intersection_over_union() {
        let a = BoundingBox { x_min: 0.0, y_min: 0.0, x_max: 2.0, y_max: 2.0 };
        let b = BoundingBox { x_min: 1.0, y_min: 0.0, x_max: 3.0, y_max: 2.0 };
        assert!((a.iou(&b) - 2.0 / 6.0).abs() < 1e-6);
        assert_eq!(a.iou(&a), 1.0);
        let apart = BoundingBox { x_min: 5.0, y_min: 5.0, x_max: 6.0, y_max: 6.0 };
        assert_eq!(a.iou(&apart), 0.0);
    }
}
