//! Detections and masks in the JSON of the COCO data set, which annotation tools and evaluators read.
//!
//! [`read_instances`] is the way back: annotated images, as a training takes them.
//!
//! A box is `[x, y, width, height]` in pixels; a mask is run lengths, column by column, the first run being background
//! (<https://cocodataset.org/#format-data>).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::loc;
use crate::{BoundingBox, Detection, Mask, Segmentation, prompt};

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

    /// The mask over the whole image; `None` where the lengths are not those of an image of that size.
    pub fn mask(&self) -> Option<Mask> {
        let [height, width] = self.size;
        let pixels = height.checked_mul(width)?;
        let sum = self.counts.iter().try_fold(0_usize, |sum, count| sum.checked_add(*count))?;
        if sum != pixels {
            return None;
        }
        let mut inside = vec![false; pixels];
        let mut place = 0;
        for (index, count) in self.counts.iter().enumerate() {
            for at in place..place + count {
                inside[(at % height) * width + at / height] = index % 2 == 1;
            }
            place += count;
        }
        Some(Mask { x: 0, y: 0, width, height, inside })
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

/// The box of `[x, y, width, height]`.
pub fn bounds([x, y, width, height]: [f32; 4]) -> BoundingBox {
    BoundingBox { x_min: x, y_min: y, x_max: x + width, y_max: y + height }
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

/// An image and what there is to be found in it.
#[derive(Clone, Debug, PartialEq)]
pub struct AnnotatedImage {
    /// Its file.
    pub file_name: String,
    /// What is in it.
    pub labels: Vec<String>,
    /// The answer that a training learns: `<loc0012><loc0034><loc0056><loc0078> cat ; ...`.
    pub answer: String,
}

impl AnnotatedImage {
    /// The prompt that the answer follows: `detect cat ; dog`.
    pub fn prompt(&self) -> String {
        prompt::detect(&self.labels)
    }
}

/// Annotated images, and what was left out of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Instances {
    /// The images with at least one object, in the order of the file.
    pub images: Vec<AnnotatedImage>,
    /// Images without an object.
    pub empty_images: usize,
    /// Crowds, and boxes smaller than a location.
    pub dropped_boxes: usize,
}

/// Reads the instances of a COCO file: images, boxes, categories. Masks are passed over.
///
/// # Errors
/// What is wrong with the file, in words.
pub fn read_instances(reader: impl std::io::Read) -> Result<Instances, String> {
    #[derive(Deserialize)]
    struct File {
        images: Vec<Image>,
        annotations: Vec<Box>,
        categories: Vec<Named>,
    }
    #[derive(Deserialize)]
    struct Image {
        id: u64,
        file_name: String,
        width: usize,
        height: usize,
    }
    #[derive(Deserialize)]
    struct Box {
        image_id: u64,
        category_id: u64,
        bbox: [f32; 4],
        #[serde(default)]
        iscrowd: u8,
    }
    #[derive(Deserialize)]
    struct Named {
        id: u64,
        name: String,
    }
    let file: File = serde_json::from_reader(reader).map_err(|error| {
        format!("it is not a COCO file of instances ({error}); it must have images, annotations and categories")
    })?;
    let names: BTreeMap<u64, &str> =
        file.categories.iter().map(|category| (category.id, category.name.trim())).collect();
    if let Some(name) = names.values().find(|name| name.is_empty() || name.contains([';', '<', '\n'])) {
        return Err(format!("the category {name:?} cannot be said in an answer; rename it without ; and <"));
    }
    let mut boxes: BTreeMap<u64, Vec<&Box>> = BTreeMap::new();
    for found in &file.annotations {
        boxes.entry(found.image_id).or_default().push(found);
    }
    let mut found = Instances::default();
    for image in file.images {
        let mut objects = Vec::new();
        for instance in boxes.remove(&image.id).unwrap_or_default() {
            let unknown = || format!("image {}: there is no category {}", image.id, instance.category_id);
            let label = names.get(&instance.category_id).ok_or_else(unknown)?;
            let locations = bounds(instance.bbox).to_locations(image.width, image.height);
            match instance.iscrowd == 0 && BoundingBox::from_locations(locations, 1, 1).is_some() {
                true => objects.push((locations, *label)),
                false => found.dropped_boxes += 1,
            }
        }
        if objects.is_empty() {
            found.empty_images += 1;
            continue;
        }
        let labels: std::collections::BTreeSet<&str> = objects.iter().map(|(_, label)| *label).collect();
        found.images.push(AnnotatedImage {
            file_name: image.file_name,
            labels: labels.into_iter().map(str::to_owned).collect(),
            answer: loc::answer(objects.into_iter().map(|(locations, label)| (locations, [], label))),
        });
    }
    match boxes.keys().next() {
        Some(id) => Err(format!("there are boxes for image {id}, and the file has no such image")),
        None => Ok(found),
    }
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

    #[test]
    fn annotations_become_what_the_model_answers() {
        let file = r#"{"info": {}, "images": [
            {"id": 7, "file_name": "a.jpg", "width": 200, "height": 100, "license": 3},
            {"id": 9, "file_name": "b.jpg", "width": 10, "height": 10}],
          "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [20, 10, 100, 40.0], "segmentation": [[1, 2, 3]], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 200, 100]},
            {"id": 3, "image_id": 7, "category_id": 1, "bbox": [0, 0, 200, 100], "iscrowd": 1},
            {"id": 4, "image_id": 7, "category_id": 1, "bbox": [5, 5, 0.01, 0.01]}],
          "categories": [{"id": 1, "name": "dog", "supercategory": "animal"}, {"id": 3, "name": "cat"}]}"#;
        let found = read_instances(file.as_bytes()).unwrap();
        assert_eq!((found.images.len(), found.empty_images, found.dropped_boxes), (1, 1, 2));
        let image = &found.images[0];
        assert_eq!((image.file_name.as_str(), image.prompt().as_str()), ("a.jpg", "detect cat ; dog"));
        // upper, left, lower, right: 10/100, 20/200, 50/100, 120/200 of 1023
        let answer = "<loc0102><loc0102><loc0512><loc0614> cat ; <loc0000><loc0000><loc1023><loc1023> dog";
        assert_eq!(image.answer, answer);
        // and the way back
        let objects = loc::objects(&loc::items_of_text(answer));
        let back: Vec<[f32; 4]> = objects
            .iter()
            .map(|object| bbox(&BoundingBox::from_locations(object.locations, 200, 100).unwrap()).map(f32::round))
            .collect();
        assert_eq!(back, [[20.0, 10.0, 100.0, 40.0], [0.0, 0.0, 200.0, 100.0]]);
        let labels: Vec<&str> = objects.iter().map(|object| object.label.as_str()).collect();
        assert_eq!(labels, ["cat", "dog"]);
    }

    #[test]
    fn a_file_that_cannot_be_learned_from_says_why() {
        let image = r#""images": [{"id": 1, "file_name": "a", "width": 1, "height": 1}]"#;
        let of = |annotation: &str, category: &str| {
            format!(r#"{{{image}, "annotations": [{annotation}], "categories": [{category}]}}"#)
        };
        let cat = r#"{"id": 1, "name": "cat"}"#;
        for (file, word) in [
            ("{}".to_owned(), "images"),
            ("[".to_owned(), "not a COCO file"),
            (of(r#"{"image_id": 1, "category_id": 2, "bbox": [0, 0, 1, 1]}"#, cat), "no category 2"),
            (of(r#"{"image_id": 2, "category_id": 1, "bbox": [0, 0, 1, 1]}"#, cat), "no such image"),
            (of("", r#"{"id": 1, "name": "a;b"}"#), "a;b"),
        ] {
            let reason = read_instances(file.as_bytes()).unwrap_err();
            assert!(reason.contains(word), "{file}: {reason}");
        }
    }
}
