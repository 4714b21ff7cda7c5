//! `config.json`: what the fields of all families have in common.
//!
//! A value that is present is used, or refused with an error that names field and value.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::Error;
use crate::error::shortened;

/// More layers than any released model has.
pub const MOST_LAYERS: usize = gemma_weights::MOST_LAYERS;
/// A larger dimension than any released model has.
pub const LARGEST_DIMENSION: usize = 1 << 20;
/// A larger vocabulary than any released model has.
pub const LARGEST_VOCAB: usize = 1 << 24;

/// The fields that say which network a file describes.
#[derive(Debug, Deserialize)]
pub struct Architecture {
    model_type: Option<String>,
    architectures: Option<Vec<String>>,
}

impl Architecture {
    /// Reads only these fields of a `config.json`.
    ///
    /// # Errors
    /// When the text is not JSON, or these fields are no texts.
    pub fn from_json(text: &[u8]) -> Result<Self, Error> {
        parse(text)
    }

    /// What the file calls its network: `model_type`, else the first of `architectures`.
    pub fn name(&self) -> Option<&str> {
        let architecture = || self.architectures.as_ref()?.first().map(String::as_str);
        self.model_type.as_deref().or_else(architecture)
    }

    /// The error for a file of another network than the one `expected`.
    pub fn refuse(&self, expected: &'static str) -> Error {
        match self.name() {
            Some(name) if not_yet(name).is_some() => Error::NotYet { family: not_yet(name).unwrap_or_default() },
            Some(name) => Error::Architecture { name: name.to_owned(), expected },
            None => invalid("model_type", "absent", expected),
        }
    }
}

/// What people call the network of a `model_type` or a class that belongs to the Gemma family and is not computed here.
fn not_yet(name: &str) -> Option<String> {
    let name = name.to_lowercase().replace('_', "");
    let known = [
        ("gemma3n", "Gemma 3n"),
        ("t5gemma2", "T5Gemma 2"),
        ("t5gemma", "T5Gemma"),
        ("diffusiongemma", "DiffusionGemma"),
    ];
    if let Some((_, family)) = known.into_iter().find(|(start, _)| name.starts_with(start)) {
        return Some(family.to_owned());
    }
    // one that is yet to come
    let version: String = name.strip_prefix("gemma")?.chars().take_while(char::is_ascii_digit).collect();
    version.parse::<u32>().ok().filter(|version| *version > 3).map(|version| format!("Gemma {version}"))
}

/// One token id, or a list of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "it is neither the number of a token nor a list of such numbers")]
pub enum Ids {
    /// `"eos_token_id": 1`
    One(u32),
    /// `"eos_token_id": [1, 107]`
    Many(Vec<u32>),
}

impl Ids {
    /// The ids; those of Gemma's `<eos>` for an absent field.
    pub fn eos(ids: Option<Self>) -> Vec<u32> {
        match ids {
            None => vec![1],
            Some(Self::One(id)) => vec![id],
            Some(Self::Many(ids)) => ids,
        }
    }
}

/// Tells a field that is `null` (`Some(None)`) from one that is absent (`None`); to be used with
/// `#[serde(default, deserialize_with = "fields::nullable")]`.
///
/// # Errors
/// When the value is of another type.
pub fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// A value that stands in the file as an object: serde reads a struct also from an array of its fields' values.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_map(ObjectVisitor(PhantomData)).map(Self)
    }
}

/// Reads a field that is an object or `null`; to be used with `#[serde(default, deserialize_with = "fields::object")]`.
///
/// # Errors
/// When the value is of another type, an array of the object's values among them.
pub fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|object| object.0))
}

/// Reads the fields of a `config.json` into their mirror.
///
/// # Errors
/// [`Error::ConfigJson`], or [`Error::ConfigType`] for a field of another type.
pub fn parse<T: for<'de> Deserialize<'de>>(text: &[u8]) -> Result<T, Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let Object(parsed) = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let field = error.path().to_string();
        let cause = error.into_inner();
        // a mistake of the whole text lies in no field
        if field == "." || cause.is_syntax() || cause.is_eof() {
            return Error::ConfigJson { cause };
        }
        Error::ConfigType { field, cause }
    })?;
    deserializer.end().map_err(|cause| Error::ConfigJson { cause })?;
    Ok(parsed)
}

/// Reads an object within a `config.json`, which stands there under `field`.
///
/// # Errors
/// [`Error::ConfigType`]
pub fn parse_value<T: for<'de> Deserialize<'de>>(field: &str, value: Value) -> Result<T, Error> {
    let read: Result<Object<T>, _> = serde_path_to_error::deserialize(value);
    read.map(|object| object.0).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { field.to_owned() } else { format!("{field}.{path}") };
        Error::ConfigType { field, cause: error.into_inner() }
    })
}

/// The error for a value that cannot be right, or is not supported.
pub fn invalid(field: &'static str, value: impl std::fmt::Display, expected: &'static str) -> Error {
    Error::ConfigField { field, value: shortened(&value.to_string()), expected }
}

/// A size: from 1 to `most`.
///
/// # Errors
/// When it is not.
pub fn positive(field: &'static str, value: usize, most: usize) -> Result<usize, Error> {
    if (1..=most).contains(&value) {
        Ok(value)
    } else {
        Err(invalid(field, value, "a positive number of a sensible size"))
    }
}

/// A factor or an epsilon: finite and above 0.
///
/// # Errors
/// When it is not.
pub fn finite_positive(field: &'static str, value: f32) -> Result<f32, Error> {
    if value.is_finite() && value > 0.0 { Ok(value) } else { Err(invalid(field, value, "a positive number")) }
}

/// A soft cap: its value, `None` when the file says `null` (or 0), the default when the file says nothing.
///
/// # Errors
/// When it is not a positive number.
pub fn cap(field: &'static str, value: Option<Option<f32>>, default: f32) -> Result<Option<f32>, Error> {
    match value {
        None => Ok(Some(default)),
        Some(None | Some(0.0)) => Ok(None),
        Some(Some(value)) => finite_positive(field, value).map(Some),
    }
}

/// Refuses an activation that is not the tanh form of GELU. The first releases say `gelu` and mean the tanh form, as
/// does an absent or null field.
///
/// # Errors
/// When the file names another one.
pub fn tanh_gelu(field: &'static str, word: Option<&str>) -> Result<(), Error> {
    let known = ["gelu", "gelu_pytorch_tanh", "gelu_fast", "gelu_new"];
    match word.filter(|word| !known.contains(word)) {
        Some(word) => Err(invalid(field, word, "`gelu_pytorch_tanh`")),
        None => Ok(()),
    }
}

/// Refuses a value that is there and neither `null` nor `false`.
///
/// # Errors
/// When it is.
pub fn off(field: &'static str, value: Option<&Value>, expected: &'static str) -> Result<(), Error> {
    match value.filter(|value| !value.is_null() && **value != Value::Bool(false)) {
        Some(value) => Err(invalid(field, value, expected)),
        None => Ok(()),
    }
}

/// The number with the fewest digits that reads back as `value`: 1e-6, not 9.99999997e-7.
pub fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct File {
        #[serde(default, deserialize_with = "nullable")]
        cap: Option<Option<f32>>,
    }

    #[test]
    fn a_cap_is_a_number_or_null_or_the_default() {
        let read = |text: &str| parse::<File>(text.as_bytes()).and_then(|file| cap("cap", file.cap, 50.0));
        assert_eq!(read("{}").unwrap(), Some(50.0));
        assert_eq!(read(r#"{"cap": null}"#).unwrap(), None);
        assert_eq!(read(r#"{"cap": 0}"#).unwrap(), None);
        assert_eq!(read(r#"{"cap": 30}"#).unwrap(), Some(30.0));
        for wrong in [r#"{"cap": true}"#, r#"{"cap": -1}"#, r#"{"cap": "50"}"#] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_field_of_another_type_is_named() {
        #[derive(Debug, Deserialize)]
        struct Ends {
            #[allow(dead_code)]
            eos_token_id: Ids,
        }
        for wrong in ["9223372036854775808", "-1", "\"one\"", "[1, -2]"] {
            let text = format!(r#"{{"eos_token_id": {wrong}}}"#);
            let error = parse::<Ends>(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("config.json: eos_token_id: it is neither the number of a token"), "{error}");
        }
        let error = parse::<Ends>(b"{\"eos_token_id\": [1").unwrap_err().to_string();
        assert!(error.starts_with("config.json cannot be read: EOF"), "{error}");
    }

    #[test]
    fn an_array_of_the_values_is_no_object() {
        #[derive(Debug, Deserialize)]
        struct Inner {
            #[allow(dead_code)]
            factor: Option<f32>,
        }
        #[derive(Debug, Deserialize)]
        struct Outer {
            #[serde(default, deserialize_with = "object")]
            rope_scaling: Option<Inner>,
        }
        let read = |text: &str| parse::<Outer>(text.as_bytes());
        for text in ["{}", r#"{"rope_scaling": null}"#] {
            assert!(read(text).unwrap().rope_scaling.is_none(), "{text}");
        }
        assert!(read(r#"{"rope_scaling": {"factor": 2}}"#).unwrap().rope_scaling.is_some());
        let error = read(r#"{"rope_scaling": [2.0]}"#).unwrap_err().to_string();
        assert!(error.starts_with("config.json: rope_scaling: ") && error.contains("an object"), "{error}");
        assert!(read("[null]").is_err() && read("[]").is_err());
        assert!(parse_value::<Inner>("vision_config", serde_json::json!([2.0])).is_err());
        assert!(parse_value::<Inner>("vision_config", serde_json::json!({ "factor": 2.0 })).is_ok());
    }

    #[test]
    fn a_long_name_is_cut() {
        let text = format!(r#"{{"model_type": "{}\n"}}"#, "x".repeat(5000));
        let error = Architecture::from_json(text.as_bytes()).unwrap().refuse("a Gemma").to_string();
        assert!(error.len() < 200 && error.contains("xxx...`"), "{error}");
    }

    #[test]
    fn a_file_is_known_by_its_type_or_else_its_architecture() {
        let name = |text: &str| Architecture::from_json(text.as_bytes()).unwrap().name().map(str::to_owned);
        assert_eq!(name(r#"{"model_type": "a", "architectures": ["B"]}"#).as_deref(), Some("a"));
        assert_eq!(name(r#"{"architectures": ["B"]}"#).as_deref(), Some("B"));
        assert_eq!(name("{}"), None);
    }
}
