//! generation_config.json: with which tokens an answer begins and ends.

use std::path::Path;

use serde_json::Value;

use crate::Error;

/// What of generation_config.json the models use. (Sampling defaults are the user's business.)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GenerationConfig {
    /// Tokens that end a text. The file has one number or a list; absent or null is an empty list.
    pub eos: Vec<u32>,
    /// The token that begins a text.
    pub bos: Option<u32>,
}

impl GenerationConfig {
    /// Reads the content of generation_config.json; `file` is only used in messages.
    ///
    /// ```
    /// # use gemma_weights::GenerationConfig;
    /// let config = GenerationConfig::from_json("generation_config.json".as_ref(), br#"{"eos_token_id": [1, 107]}"#)?;
    /// assert_eq!(config.eos, [1, 107]);
    /// # Ok::<(), gemma_weights::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Json`] when it is not a JSON object, [`Error::Field`] when a token is not a token number.
    pub fn from_json(file: &Path, json: &[u8]) -> Result<Self, Error> {
        let object: serde_json::Map<String, Value> =
            serde_json::from_slice(json).map_err(|cause| Error::Json { file: file.to_owned(), cause })?;
        let wrong = |field, found: &Value, expected| Error::Field {
            file: file.to_owned(),
            field,
            found: found.to_string(),
            expected,
        };
        let eos = match object.get("eos_token_id") {
            None | Some(Value::Null) => Some(Vec::new()),
            Some(Value::Array(items)) => items.iter().map(token).collect(),
            Some(value) => token(value).map(|token| vec![token]),
        };
        let bos = match object.get("bos_token_id") {
            None | Some(Value::Null) => Some(None),
            Some(value) => token(value).map(Some),
        };
        let value_of = |field| object.get(field).unwrap_or(&Value::Null);
        Ok(Self {
            eos: eos
                .ok_or_else(|| wrong("eos_token_id", value_of("eos_token_id"), "a token number or a list of them"))?,
            bos: bos.ok_or_else(|| wrong("bos_token_id", value_of("bos_token_id"), "a token number"))?,
        })
    }
}

fn token(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<GenerationConfig, Error> {
        GenerationConfig::from_json(Path::new("generation_config.json"), json.as_bytes())
    }

    #[test]
    fn eos_is_a_number_or_a_list() {
        assert_eq!(read(r#"{"eos_token_id": 1, "bos_token_id": 2}"#).unwrap().eos, [1]);
        assert_eq!(read(r#"{"eos_token_id": [1, 107]}"#).unwrap().eos, [1, 107]);
        assert_eq!(read(r#"{"eos_token_id": 1, "bos_token_id": 2}"#).unwrap().bos, Some(2));
        assert_eq!(read(r#"{"eos_token_id": null, "top_k": 64}"#).unwrap(), GenerationConfig::default());
        assert_eq!(read("{}").unwrap(), GenerationConfig::default());
    }

    #[test]
    fn anything_else_names_the_field_and_the_value() {
        for (json, words) in [
            (r#"{"eos_token_id": -1}"#, ["eos_token_id", "-1"]),
            (r#"{"eos_token_id": [1, "x"]}"#, ["eos_token_id", r#"[1,"x"]"#]),
            (r#"{"eos_token_id": 4294967296}"#, ["eos_token_id", "4294967296"]),
            (r#"{"bos_token_id": 1.5}"#, ["bos_token_id", "1.5"]),
            ("[1]", ["generation_config.json", "expected a map"]),
            ("{", ["generation_config.json", "EOF"]),
        ] {
            let error = read(json).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{json}: {error}");
            assert!(!error.contains('\n'));
        }
    }
}
