//! Detections and masks in the JSON of the COCO data set, which annotation tools and evaluators read.
//!
//! A box is `[x, y, width, height]` in pixels; a mask is run lengths, column by column, the first run being background
//! (<https://cocodataset.org/#format-data>).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{BoundingBox, Detection, Mask, Segmentation};

/// A whole file: images, what was found in them, and the names of what there is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Dataset {
    /// The images.
    pub images: Vec<Image>,
    /// What was found.
    pub annotations: Vec<Annotation>,
    /// The labels.
    pub categories: Vec<Category>,
}

/// An image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its number, from 1.
    pub id: usize,
    /// Its file.
    pub file_name: String,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
}

/// An object in an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Annotation {
    /// Its number, from 1.
    pub id: usize,
    /// The image it is in.
    pub image_id: usize,
    /// What it is.
    pub category_id: usize,
    /// `[x, y, width, height]` in pixels.
    pub bbox: [f32; 4],
    /// Area of the mask, or of the box, in pixels.
    pub area: f32,
    /// Always 0: an object of its own and not a crowd.
    pub iscrowd: u8,
    /// The model's probability for the box, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// The mask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segmentation: Option<RunLengths>,
}

/// A label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Category {
    /// Its number, from 1.
    pub id: usize,
    /// Its text.
    pub name: String,
}

/// A mask over a whole image: lengths of runs outside and inside in turn, going down each column, beginning outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunLengths {
    /// The lengths.
    pub counts: Vec<usize>,
    /// Height and width of the image.
    pub size: [usize; 2],
}

impl RunLengths {
    /// The run lengths of a mask in an image of that size.
    pub fn of(mask: &Mask, width: usize, height: usize) -> Self {
        let mut counts = vec![0];
        let mut current = false;
        for x in 0..width {
            for y in 0..height {
                if mask.contains(x, y) != current {
                    current = !current;
                    counts.push(0);
                }
                *counts.last_mut().expect("there is a run from the start") += 1;
            }
        }
        Self { counts, size: [height, width] }
    }

    /// Number of pixels inside.
    pub fn area(&self) -> usize {
        self.counts.iter().skip(1).step_by(2).sum()
    }
}

/// `[x, y, width, height]`.
pub fn bbox(bounds: &BoundingBox) -> [f32; 4] {
    [bounds.x_min, bounds.y_min, bounds.x_max - bounds.x_min, bounds.y_max - bounds.y_min]
}

/// An object on its way into a [`Dataset`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// What it is.
    pub label: String,
    /// `[x, y, width, height]` in pixels.
    pub bbox: [f32; 4],
    /// The model's probability for the box, where it is known.
    pub score: Option<f64>,
    /// The mask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segmentation: Option<RunLengths>,
}

impl From<&Detection> for Object {
    fn from(found: &Detection) -> Self {
        Self { label: found.label.clone(), bbox: bbox(&found.bounds), score: found.score, segmentation: None }
    }
}

impl Object {
    /// An object with its mask, in an image of that size.
    pub fn with_mask(found: &Segmentation, width: usize, height: usize) -> Self {
        let segmentation = Some(RunLengths::of(&found.mask, width, height));
        Self { label: found.label.clone(), bbox: bbox(&found.bounds), score: found.score, segmentation }
    }
}

/// Puts images together, numbering them, their objects and the labels, which are sorted.
pub fn dataset<'a>(images: impl IntoIterator<Item = (&'a str, usize, usize, &'a [Object])>) -> Dataset {
    let images: Vec<_> = images.into_iter().collect();
    let mut labels = BTreeMap::new();
    for object in images.iter().flat_map(|(.., objects)| objects.iter()) {
        labels.insert(object.label.as_str(), 0);
    }
    labels.values_mut().enumerate().for_each(|(index, id)| *id = index + 1);
    let mut set = Dataset::default();
    for (index, (file_name, width, height, objects)) in images.iter().enumerate() {
        let (width, height) = (*width, *height);
        set.images.push(Image { id: index + 1, file_name: (*file_name).to_owned(), width, height });
        for object in *objects {
            let inside = |runs: &RunLengths| runs.area() as f32;
            let area = object.segmentation.as_ref().map_or(object.bbox[2] * object.bbox[3], inside);
            set.annotations.push(Annotation {
                id: set.annotations.len() + 1,
                image_id: index + 1,
                category_id: labels[object.label.as_str()],
                bbox: object.bbox,
                area,
                iscrowd: 0,
                score: object.score,
                segmentation: object.segmentation.clone(),
            });
        }
    }
    set.categories = labels.into_iter().map(|(name, id)| Category { id, name: name.to_owned() }).collect();
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_go_down_the_columns_and_begin_outside() {
        let mask = Mask { x: 0, y: 0, width: 2, height: 2, inside: vec![true, false, true, true] };
        assert_eq!(RunLengths::of(&mask, 3, 2).counts, [0, 2, 1, 1, 2]);
        let lower = Mask { x: 1, y: 1, width: 1, height: 1, inside: vec![true] };
        let runs = RunLengths::of(&lower, 3, 2);
        assert_eq!((runs.counts, runs.size), (vec![3, 1, 2], [2, 3]));
    }

    #[test]
    fn images_objects_and_labels_are_numbered_from_one() {
        let object = |label: &str| Object {
            label: label.to_owned(),
            bbox: [1.0, 2.0, 3.0, 4.0],
            score: Some(0.5),
            segmentation: None,
        };
        let (first, second) = ([object("dog"), object("cat")], [object("dog")]);
        let set = dataset([("a.png", 10, 20, &first[..]), ("b.png", 30, 40, &[]), ("c.png", 5, 6, &second[..])]);
        let names: Vec<&str> = set.categories.iter().map(|category| category.name.as_str()).collect();
        assert_eq!(names, ["cat", "dog"]);
        let places: Vec<_> = set.annotations.iter().map(|a| (a.id, a.image_id, a.category_id)).collect();
        assert_eq!(places, [(1, 1, 2), (2, 1, 1), (3, 3, 2)]);
        assert_eq!((set.images[1].id, set.images[1].width, set.annotations[0].area), (2, 30, 12.0));
        let text = serde_json::to_string(&set).unwrap();
        assert_eq!(serde_json::from_str::<Dataset>(&text).unwrap(), set);
        assert!(!text.contains("segmentation"));
    }
}
