//! The sentence-transformers folder: which modules follow the transformer, and that they are those this crate has.
//!
//! | file | what is used of it |
//! |---|---|
//! | `modules.json` | the modules in order: Transformer, Pooling, Dense (any number), Normalize |
//! | `1_Pooling/config.json` | `pooling_mode_mean_tokens` must be the only mode, `include_prompt` true |
//! | `N_Dense/config.json`, `N_Dense/model.safetensors` | sizes; no bias, no activation |
//! | `sentence_bert_config.json` | `max_seq_length` |
//! | `config_sentence_transformers.json` | `prompts`: prefixes by name |

use std::collections::BTreeMap;
use std::path::Path;

use gemma_weights::Checkpoint;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::Error;

/// The modules behind the transformer, as a folder describes them.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    /// Sub-folders of the dense layers, with `[out_features, in_features]`, in order.
    pub(crate) dense: Vec<(String, [usize; 2])>,
    /// The longest text, in tokens.
    pub(crate) max_tokens: Option<usize>,
    /// Prefixes by name.
    pub(crate) prompts: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Dense {
    in_features: usize,
    out_features: usize,
    #[serde(default = "yes")]
    bias: bool,
    activation_function: Option<String>,
}

fn yes() -> bool {
    true
}

/// A larger dimension than any embedding has.
const LARGEST: usize = 1 << 20;
/// More bytes than any folder's name has.
const LONGEST_NAME: usize = 100;
/// More modules than any model has.
const MOST_MODULES: usize = 32;

impl Modules {
    /// Reads the files of a folder.
    pub(crate) fn of_folder(folder: &Path) -> Result<Self, Error> {
        let modules: Vec<Module> = json(folder, "modules.json")?.ok_or_else(|| missing(folder, "modules.json"))?;
        if modules.len() > MOST_MODULES {
            return Err(wrong(folder, "modules.json", "length", modules.len(), "at most 32 modules"));
        }
        let mut found = Self::default();
        let mut kinds = Vec::new();
        for Module { path, kind } in modules {
            let kind = kind.rsplit('.').next().unwrap_or_default().to_owned();
            if !is_folder_name(&path) {
                return Err(wrong(folder, "modules.json", "path", path, "the name of a folder beside it"));
            }
            match kind.as_str() {
                "Transformer" if path.is_empty() => {}
                "Pooling" => check_pooling(folder, &format!("{path}/config.json"))?,
                "Dense" => {
                    let sizes = dense(folder, &format!("{path}/config.json"))?;
                    found.dense.push((path, sizes));
                }
                "Normalize" => {}
                _ => {
                    let expected = "Transformer, Pooling, Dense or Normalize";
                    return Err(wrong(folder, "modules.json", "type", kind, expected));
                }
            }
            kinds.push(kind);
        }
        let order = kinds.iter().map(String::as_str).filter(|kind| *kind != "Dense").collect::<Vec<_>>();
        if order != ["Transformer", "Pooling", "Normalize"] {
            let expected = "Transformer, Pooling, Dense layers, Normalize";
            return Err(wrong(folder, "modules.json", "the order of modules", kinds.join(", "), expected));
        }
        let bert: Option<Map<String, Value>> = json(folder, "sentence_bert_config.json")?;
        let longest = bert.and_then(|file| file.get("max_seq_length")?.as_u64());
        found.max_tokens = longest.and_then(|length| usize::try_from(length).ok()).filter(|length| *length > 0);
        #[derive(Deserialize)]
        struct Prompts {
            #[serde(default)]
            prompts: BTreeMap<String, String>,
        }
        let prompts: Option<Prompts> = json(folder, "config_sentence_transformers.json")?;
        found.prompts = prompts.map(|file| file.prompts).unwrap_or_default();
        Ok(found)
    }

    /// Opens the weights of the dense layers.
    pub(crate) fn open_dense(&self, folder: &Path) -> Result<Vec<Checkpoint>, Error> {
        let open = |(path, _): &(String, [usize; 2])| {
            let weights = folder.join(path).join("model.safetensors");
            if !weights.is_file() {
                return Err(missing(folder, &format!("{path}/model.safetensors")));
            }
            Ok(Checkpoint::open(&folder.join(path))?)
        };
        self.dense.iter().map(open).collect()
    }
}

/// Whether a path is that of a folder beside the file, or empty.
fn is_folder_name(path: &str) -> bool {
    let special = |c: char| ['/', '\\', ':'].contains(&c) || c.is_control();
    path.len() <= LONGEST_NAME && !path.contains(special) && path != ".."
}

fn missing(folder: &Path, file: &str) -> Error {
    Error::MissingFile { folder: folder.to_owned(), file: file.to_owned() }
}

fn wrong(folder: &Path, file: &str, field: &str, value: impl ToString, expected: &str) -> Error {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let cut = |text: &str| text.chars().map(plain).take(80).collect();
    let (field, value) = (cut(field), cut(&value.to_string()));
    Error::Module { file: folder.join(file), field, value, expected: expected.to_owned() }
}

/// The content of a JSON file; `None` when there is no such file.
fn json<T: for<'de> Deserialize<'de>>(folder: &Path, name: &str) -> Result<Option<T>, Error> {
    let file = folder.join(name);
    let Some(text) = gemma_weights::read_small_file(&file)? else { return Ok(None) };
    serde_json::from_slice(&text).map(Some).map_err(|cause| Error::Json { file, cause })
}

fn check_pooling(folder: &Path, name: &str) -> Result<(), Error> {
    let file: Map<String, Value> = json(folder, name)?.ok_or_else(|| missing(folder, name))?;
    let is_true = |field: &str| file.get(field).and_then(Value::as_bool) == Some(true);
    let other = |(field, value): &(&String, &Value)| {
        field.starts_with("pooling_mode_") && *field != "pooling_mode_mean_tokens" && **value == Value::Bool(true)
    };
    if let Some((field, _)) = file.iter().find(other) {
        return Err(wrong(folder, name, field, true, "false: only the mean over tokens is computed"));
    }
    // the newer spelling is one word
    let mean = is_true("pooling_mode_mean_tokens") || file.get("pooling_mode").is_some_and(|mode| mode == "mean");
    if !mean {
        let value = file.get("pooling_mode").or(file.get("pooling_mode_mean_tokens"));
        let value = value.map_or("absent".to_owned(), Value::to_string);
        return Err(wrong(folder, name, "pooling_mode_mean_tokens", value, "true"));
    }
    if file.get("include_prompt").and_then(Value::as_bool) == Some(false) {
        return Err(wrong(folder, name, "include_prompt", false, "true: the prefix counts in the mean"));
    }
    Ok(())
}

/// `[out_features, in_features]` of a dense layer.
fn dense(folder: &Path, name: &str) -> Result<[usize; 2], Error> {
    let file: Dense = json(folder, name)?.ok_or_else(|| missing(folder, name))?;
    if file.bias {
        return Err(wrong(folder, name, "bias", true, "false"));
    }
    let activation = file.activation_function.unwrap_or_default();
    if activation != "torch.nn.modules.linear.Identity" {
        return Err(wrong(folder, name, "activation_function", activation, "torch.nn.modules.linear.Identity"));
    }
    for (field, value) in [("in_features", file.in_features), ("out_features", file.out_features)] {
        if !(1..=LARGEST).contains(&value) {
            return Err(wrong(folder, name, field, value, "a positive number of a sensible size"));
        }
    }
    Ok([file.out_features, file.in_features])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_lies_in_a_folder_beside_the_file() {
        for name in ["", "1_Pooling", "2_Dense"] {
            assert!(is_folder_name(name), "{name}");
        }
        for name in ["..", "../x", "/etc", "a\\b", "c:", "a\u{7f}b", "a\nb", &"x".repeat(1000)] {
            assert!(!is_folder_name(name), "{name:?}");
        }
    }

    #[test]
    fn what_a_message_quotes_is_cut() {
        let long = "x".repeat(100_000);
        let error = wrong(Path::new("m"), "1_Pooling/config.json", &long, &long, "false").to_string();
        assert!(error.len() < 400, "{} bytes", error.len());
    }
}
