//! `preprocessor_config.json`: how an image becomes what the encoder reads. What it asks for is computed or refused.
//!
//! Newer folders keep the same under `image_processor` of `processor_config.json`.

use gemma_model::Error;
use gemma_weights::Checkpoint;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::Filter;

/// The files, in the order in which a later one counts more.
const FILES: [&str; 2] = ["processor_config.json", "preprocessor_config.json"];

/// What the files of a model's processor say of images: their values, those that count more last.
///
/// # Errors
/// When a file cannot be read, or is not JSON.
fn values(checkpoint: &Checkpoint) -> Result<Vec<Value>, Error> {
    let mut values = Vec::new();
    for name in FILES {
        let Some(text) = checkpoint.file(name)? else { continue };
        let file = checkpoint.path().map_or_else(|| name.into(), |folder| folder.join(name));
        let mut value: Value =
            serde_json::from_slice(&text).map_err(|cause| gemma_weights::Error::Json { file, cause })?;
        let inner = value.get_mut("image_processor").map(Value::take).filter(Value::is_object);
        values.push(value);
        values.extend(inner);
    }
    Ok(values)
}

/// The same as `T`, whose fields are those that a family reads beside the shared ones.
///
/// # Errors
/// When a file cannot be read, is not JSON, or has a field of another type.
pub fn preprocessor_files<T: DeserializeOwned>(checkpoint: &Checkpoint) -> Result<Vec<T>, Error> {
    values(checkpoint)?
        .into_iter()
        .map(|value| gemma_model::fields::parse_value("preprocessor_config.json", value))
        .collect()
}

/// The fields that every family reads.
#[derive(Default, Deserialize)]
struct Fields {
    size: Option<Value>,
    resample: Option<u32>,
    rescale_factor: Option<f64>,
    image_mean: Option<Vec<f64>>,
    image_std: Option<Vec<f64>>,
    do_resize: Option<bool>,
    do_rescale: Option<bool>,
    do_normalize: Option<bool>,
    do_center_crop: Option<bool>,
    image_seq_length: Option<usize>,
}

/// How images are resized to squares of `side` pixels, each of which becomes `tokens` tokens, by the files of a model's
/// processor; `None` where they do not say.
///
/// # Errors
/// When a file cannot be read, or says what does not fit the model or is not computed; the message names field and value.
pub fn resize_filter(checkpoint: &Checkpoint, side: usize, tokens: usize) -> Result<Option<Filter>, Error> {
    let mut filter = None;
    for fields in preprocessor_files::<Fields>(checkpoint)? {
        fields.fit(side, tokens)?;
        filter = match fields.resample {
            None => filter,
            Some(2) => Some(Filter::Bilinear),
            Some(3) => Some(Filter::Bicubic),
            Some(other) => return Err(wrong("resample", other, "2 (bilinear) or 3 (bicubic)")),
        };
    }
    Ok(filter)
}

/// The error for a value of these files.
fn wrong(field: &'static str, value: impl std::fmt::Display, expected: &'static str) -> Error {
    Error::ProcessorField { field, value: value.to_string(), expected }
}

impl Fields {
    fn fit(&self, side: usize, tokens: usize) -> Result<(), Error> {
        if let Some(size) = &self.size {
            // one number is that of both sides
            let of = |name: &str| size.get(name).unwrap_or(size).as_u64();
            if [of("height"), of("width")] != [Some(side as u64); 2] {
                return Err(wrong("size", size, "the image_size of vision_config, as height and width"));
            }
        }
        if let Some(found) = self.image_seq_length.filter(|found| *found != tokens) {
            return Err(wrong("image_seq_length", found, "the number of tokens that config.json gives an image"));
        }
        for (field, on) in
            [("do_resize", self.do_resize), ("do_rescale", self.do_rescale), ("do_normalize", self.do_normalize)]
        {
            if on == Some(false) {
                return Err(wrong(field, false, "true"));
            }
        }
        if self.do_center_crop == Some(true) {
            return Err(wrong("do_center_crop", true, "false: the whole image is seen"));
        }
        if let Some(factor) = self.rescale_factor.filter(|factor| (factor * 255.0 - 1.0).abs() > 1e-6) {
            return Err(wrong("rescale_factor", factor, "1/255"));
        }
        for (field, values) in [("image_mean", &self.image_mean), ("image_std", &self.image_std)] {
            if let Some(values) = values.as_ref().filter(|values| values.iter().any(|value| *value != 0.5)) {
                return Err(wrong(field, format!("{values:?}"), "0.5 three times"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn folder(files: &[(&str, String)]) -> (tempfile::TempDir, Checkpoint) {
        let folder = tempfile::tempdir().unwrap();
        let mut weights = std::iter::empty();
        gemma_weights::save_safetensors(&folder.path().join("model.safetensors"), Default::default(), &mut weights)
            .unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        (folder, checkpoint)
    }

    #[test]
    fn the_filter_is_read_wherever_it_stands() {
        let filter = |files: &[(&str, Value)]| {
            let files: Vec<_> = files.iter().map(|(name, value)| (*name, value.to_string())).collect();
            resize_filter(&folder(&files).1, 56, 16).unwrap()
        };
        assert_eq!(filter(&[]), None);
        assert_eq!(filter(&[("preprocessor_config.json", json!({ "resample": 3 }))]), Some(Filter::Bicubic));
        let nested = ("processor_config.json", json!({ "image_seq_length": 16, "image_processor": { "resample": 2 } }));
        assert_eq!(filter(std::slice::from_ref(&nested)), Some(Filter::Bilinear));
        assert_eq!(filter(&[nested, ("preprocessor_config.json", json!({ "resample": 3 }))]), Some(Filter::Bicubic));
        for size in [json!({ "height": 56, "width": 56 }), json!(56)] {
            assert_eq!(filter(&[("preprocessor_config.json", json!({ "size": size }))]), None);
        }
    }

    #[test]
    fn what_is_not_computed_is_refused_by_its_name() {
        for (field, value) in [
            ("size", json!({ "height": 56, "width": 28 })),
            ("size", json!({ "shortest_edge": 56 })),
            ("resample", json!(0)),
            ("rescale_factor", json!(0.0078125)),
            ("image_mean", json!([0.48, 0.5, 0.5])),
            ("image_std", json!([1, 1, 1])),
            ("do_normalize", json!(false)),
            ("do_center_crop", json!(true)),
            ("image_seq_length", json!(4)),
        ] {
            let files = [("preprocessor_config.json", json!({ field: value }).to_string())];
            let error = resize_filter(&folder(&files).1, 56, 16).unwrap_err().to_string();
            assert!(error.contains("preprocessor_config.json") && error.contains(field), "{field}: {error}");
        }
        let (_guard, damaged) = folder(&[("preprocessor_config.json", "{".to_owned())]);
        assert!(resize_filter(&damaged, 56, 16).unwrap_err().to_string().contains("preprocessor_config.json"));
    }
}
