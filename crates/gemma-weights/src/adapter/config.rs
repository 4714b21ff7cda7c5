//! What `adapter_config.json` says.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::{Value as Json, json};

use super::AdapterFault as Fault;

/// An adapter's settings: ranks, scales, and which modules it changes.
#[derive(Clone, Debug)]
pub struct AdapterConfig {
    /// The rank of modules that no pattern names.
    pub rank: usize,
    /// The alpha of modules that no pattern names.
    pub alpha: f64,
    /// rsLoRA: the scale is `alpha / √rank`, not `alpha / rank`.
    pub rslora: bool,
    /// Which modules have factors.
    pub targets: Targets,
    /// Other ranks, by the end of a module's path or a regular expression for it.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Other alphas, likewise.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// The model that the adapter was trained on, as its maker called it.
    pub base_model: Option<String>,
    /// Whether the model makes vectors of texts, and not texts.
    pub of_encoder: bool,
}

/// Which modules of a network have factors.
#[derive(Clone, Debug)]
pub enum Targets {
    /// Those whose path is one of these, or ends with a dot and one of these.
    Names(Vec<String>),
    /// Those whose whole path a regular expression describes.
    Pattern(String, Regex),
    /// Every projection.
    All,
}

impl Targets {
    /// The modules whose whole path `pattern`, a regular expression, describes.
    ///
    /// # Errors
    /// When it is not one.
    pub fn pattern(pattern: &str) -> Result<Self, Fault> {
        Self::described("target_modules", pattern)
    }

    fn described(field: &'static str, pattern: &str) -> Result<Self, Fault> {
        Ok(Self::Pattern(pattern.to_owned(), whole(field, &format!("(?:{pattern})"), pattern)?))
    }

    /// Reads a field of `adapter_config.json`: a list of names, or a regular expression; `None` for `null`.
    pub(super) fn from_json(field: &'static str, value: &Json) -> Result<Option<Self>, Fault> {
        let wrong = |expected| Fault::Field { field, value: value.to_string(), expected };
        Ok(Some(match value {
            Json::Null => return Ok(None),
            Json::String(pattern) => Self::described(field, pattern)?,
            Json::Array(names) => {
                let names = names.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
                Self::Names(names.ok_or_else(|| wrong("a list of names"))?)
            }
            _ => return Err(wrong("a list of names, or a regular expression")),
        }))
    }

    /// Whether the module at `path` is one.
    pub fn contains(&self, path: &str) -> bool {
        match self {
            Self::Names(names) => names.iter().any(|name| {
                path.strip_suffix(name.as_str()).is_some_and(|before| before.is_empty() || before.ends_with('.'))
            }),
            Self::Pattern(_, regex) => regex.is_match(path),
            Self::All => true,
        }
    }

    fn to_json(&self) -> Json {
        match self {
            Self::Names(names) => json!(names),
            Self::Pattern(pattern, _) => json!(pattern),
            Self::All => json!("all-linear"),
        }
    }
}

/// A regular expression that has to match the whole of a path.
pub(super) fn whole(field: &'static str, expression: &str, shown: &str) -> Result<Regex, Fault> {
    // a pattern comes from a file: its automaton may not take much memory
    regex::RegexBuilder::new(&format!("^{expression}$"))
        .size_limit(1 << 20)
        .build()
        .map_err(|_| Fault::Pattern { field, pattern: shown.to_owned() })
}

/// Fields that change nothing about what an adapter computes once it is trained, or that are read below.
const HARMLESS: &[&str] = &[
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
];

/// What PEFT calls the task of a model that makes vectors.
const ENCODER_TASK: &str = "FEATURE_EXTRACTION";

/// Ways to begin a training that leave the base model as it is; others (PiSSA, OLoRA, LoftQ, ...) change its weights, and
/// the factors mean nothing without that.
const PLAIN_BEGINNINGS: &[&str] = &["gaussian", "eva", "orthogonal"];

impl AdapterConfig {
    /// Reads the content of an `adapter_config.json`.
    ///
    /// # Errors
    /// When a field has a value of the wrong kind, or asks for something that is not computed here.
    pub fn from_json(json: &Json) -> Result<Self, Fault> {
        let Some(fields) = json.as_object() else {
            return Err(Fault::Field { field: "the file", value: json.to_string(), expected: "a JSON object" });
        };
        let unsupported = |field: &str, advice| Fault::Unsupported {
            field: field.to_owned(),
            value: fields.get(field).map(Json::to_string).unwrap_or_default(),
            advice,
        };
        let wrong = |field: &'static str, expected| Fault::Field {
            field,
            value: fields.get(field).unwrap_or(&Json::Null).to_string(),
            expected,
        };
        match fields.get("peft_type").and_then(Json::as_str) {
            Some("LORA") => {}
            Some(_) => return Err(unsupported("peft_type", "only LORA is")),
            None => return Err(wrong("peft_type", "\"LORA\"")),
        }
        if !matches!(fields.get("bias").unwrap_or(&Json::Null), Json::Null) && fields["bias"] != json!("none") {
            return Err(unsupported("bias", "train the adapter with bias \"none\""));
        }
        match fields.get("init_lora_weights").unwrap_or(&Json::Null) {
            Json::Null | Json::Bool(_) => {}
            Json::String(name) if PLAIN_BEGINNINGS.contains(&name.as_str()) => {}
            _ => {
                let advice = "such a beginning changes the base model; convert the adapter to plain LoRA with PEFT";
                return Err(unsupported("init_lora_weights", advice));
            }
        }
        if let Some((field, _)) =
            fields.iter().find(|(field, value)| !HARMLESS.contains(&field.as_str()) && !is_off(value))
        {
            return Err(unsupported(field, "train the adapter without it"));
        }
        let rank = count(fields.get("r")).ok_or_else(|| wrong("r", "an integer from 1"))?;
        let alpha = match fields.get("lora_alpha") {
            None => rank as f64,
            Some(value) => number(value).ok_or_else(|| wrong("lora_alpha", "a number"))?,
        };
        let rslora = match fields.get("use_rslora").unwrap_or(&Json::Null) {
            Json::Null => false,
            Json::Bool(on) => *on,
            _ => return Err(wrong("use_rslora", "true or false")),
        };
        let targets = match fields.get("target_modules").unwrap_or(&Json::Null) {
            Json::String(word) if word == "all-linear" => Targets::All,
            other => Targets::from_json("target_modules", other)?.unwrap_or(Targets::All),
        };
        let config = Self {
            rank,
            alpha,
            rslora,
            targets,
            rank_pattern: pattern(fields.get("rank_pattern"), |value| count(Some(value)))
                .ok_or_else(|| wrong("rank_pattern", "an object of integers from 1"))?,
            alpha_pattern: pattern(fields.get("alpha_pattern"), number)
                .ok_or_else(|| wrong("alpha_pattern", "an object of numbers"))?,
            base_model: fields.get("base_model_name_or_path").and_then(Json::as_str).map(str::to_owned),
            of_encoder: fields.get("task_type").and_then(Json::as_str) == Some(ENCODER_TASK),
        };
        for (field, keys) in [
            ("rank_pattern", config.rank_pattern.keys().collect::<Vec<_>>()),
            ("alpha_pattern", config.alpha_pattern.keys().collect()),
        ] {
            keys.into_iter().try_for_each(|key| end_of_path(field, key).map(|_| ()))?;
        }
        Ok(config)
    }

    /// The file's content, as PEFT reads it.
    pub fn to_json(&self) -> Json {
        json!({
            "peft_type": "LORA",
            "task_type": if self.of_encoder { ENCODER_TASK } else { "CAUSAL_LM" },
            "base_model_name_or_path": self.base_model,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "use_rslora": self.rslora,
            "use_dora": false,
            "target_modules": self.targets.to_json(),
            "rank_pattern": self.rank_pattern,
            "alpha_pattern": self.alpha_pattern,
            "modules_to_save": null,
            "bias": "none",
            "fan_in_fan_out": false,
            "init_lora_weights": true,
            "inference_mode": true,
        })
    }

    /// The rank of the module at `path`.
    pub fn rank_of(&self, path: &str) -> usize {
        of_pattern(&self.rank_pattern, path).unwrap_or(self.rank)
    }

    /// The factor of `B A` in the module at `path`.
    pub fn scale_of(&self, path: &str) -> f32 {
        let alpha = of_pattern(&self.alpha_pattern, path).unwrap_or(self.alpha);
        let rank = self.rank_of(path) as f64;
        (alpha / if self.rslora { rank.sqrt() } else { rank }) as f32
    }
}

/// Whether a value says that something is not used.
fn is_off(value: &Json) -> bool {
    match value {
        Json::Null | Json::Bool(false) => true,
        Json::Array(items) => items.is_empty(),
        Json::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

fn count(value: Option<&Json>) -> Option<usize> {
    let count = value?.as_u64()?;
    usize::try_from(count).ok().filter(|count| (1..=1 << 20).contains(count))
}

fn number(value: &Json) -> Option<f64> {
    value.as_f64().filter(|number| number.is_finite())
}

fn pattern<T>(value: Option<&Json>, read: impl Fn(&Json) -> Option<T>) -> Option<BTreeMap<String, T>> {
    match value.unwrap_or(&Json::Null) {
        Json::Null => Some(BTreeMap::new()),
        Json::Object(fields) => fields.iter().map(|(key, value)| Some((key.clone(), read(value)?))).collect(),
        _ => None,
    }
}

/// The value of the first key that the end of the path matches, as PEFT decides it.
fn of_pattern<T: Copy>(pattern: &BTreeMap<String, T>, path: &str) -> Option<T> {
    pattern
        .iter()
        .find(|(key, _)| end_of_path("pattern", key).is_ok_and(|regex| regex.is_match(path)))
        .map(|(_, value)| *value)
}

fn end_of_path(field: &'static str, key: &str) -> Result<Regex, Fault> {
    whole(field, &format!(r"(?:.*\.)?(?:{key})"), key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(changes: Json) -> Result<AdapterConfig, Fault> {
        let mut json =
            json!({ "peft_type": "LORA", "r": 4, "lora_alpha": 10, "target_modules": ["q_proj", "mlp.up_proj"] });
        for (key, value) in changes.as_object().expect("an object") {
            json[key] = value.clone();
        }
        AdapterConfig::from_json(&json)
    }

    #[test]
    fn scales_follow_rank_alpha_and_patterns() {
        let config = of(json!({})).expect("sound");
        assert_eq!(config.scale_of("model.layers.0.self_attn.q_proj"), 2.5);
        let config = of(json!({ "use_rslora": true })).expect("sound");
        assert_eq!(config.scale_of("x.q_proj"), 5.0);
        let config = of(
            json!({ "rank_pattern": { "q_proj": 8, r"layers\.1\.mlp\.up_proj": 2 }, "alpha_pattern": { "up_proj": 3 } }),
        );
        let config = config.expect("sound");
        assert_eq!(config.rank_of("model.layers.1.self_attn.q_proj"), 8);
        assert_eq!(
            (config.rank_of("model.layers.1.mlp.up_proj"), config.scale_of("model.layers.1.mlp.up_proj")),
            (2, 1.5)
        );
        assert_eq!(config.rank_of("model.layers.11.mlp.up_proj"), 4, "a key is the end of a path");
    }

    #[test]
    fn targets_are_ends_of_paths_or_whole_ones() {
        let names = of(json!({})).expect("sound").targets;
        assert!(names.contains("model.layers.0.self_attn.q_proj") && names.contains("q_proj"));
        assert!(!names.contains("model.layers.0.self_attn.xq_proj") && !names.contains("model.layers.0.block.up_proj"));
        let pattern = of(json!({ "target_modules": r".*\.(q|v)_proj" })).expect("sound").targets;
        assert!(pattern.contains("a.q_proj") && !pattern.contains("a.q_proj.b") && !pattern.contains("q_proj"));
    }

    #[test]
    fn what_is_not_computed_is_refused_by_its_name() {
        for (field, value) in [
            ("use_dora", json!(true)),
            ("fan_in_fan_out", json!(true)),
            ("modules_to_save", json!(["lm_head"])),
            ("bias", json!("all")),
            ("init_lora_weights", json!("pissa")),
            ("peft_type", json!("IA3")),
            ("lora_bias", json!(true)),
            ("something_new", json!(3)),
        ] {
            let error = of(json!({ field: value })).expect_err("refused").to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
        for (field, value) in
            [("r", json!(0)), ("r", json!("x")), ("lora_alpha", json!([])), ("target_modules", json!(3))]
        {
            assert!(of(json!({ field: value })).is_err(), "{field}");
        }
        let error = of(json!({ "target_modules": "(" })).expect_err("no expression").to_string();
        assert!(error.contains("target_modules"), "{error}");
        assert!(of(json!({ "rank_pattern": { "[": 3 } })).is_err());
    }

    #[test]
    fn what_is_written_is_read_again() {
        let config = of(json!({ "rank_pattern": { "q_proj": 8 }, "use_rslora": true })).expect("sound");
        let again = AdapterConfig::from_json(&config.to_json()).expect("sound");
        assert_eq!((again.rank, again.alpha, again.rslora), (4, 10.0, true));
        assert_eq!(again.rank_pattern, config.rank_pattern);
    }
}
