//! Which of the modules that `target_modules` names an adapter leaves alone: `exclude_modules` and `layers_to_transform`.

use regex::Regex;
use serde_json::Value as Json;

use super::config::whole;
use super::{AdapterFault as Fault, Targets};

/// What narrows the modules of an adapter.
#[derive(Debug, Default)]
pub(super) struct Scope {
    excluded: Option<Targets>,
    layers: Option<Vec<u64>>,
    /// Expressions whose group is a layer's number, for the part of a path before a module.
    places: Vec<Regex>,
}

impl Scope {
    /// Reads the fields of an `adapter_config.json`.
    pub(super) fn from_json(json: &Json) -> Result<Self, Fault> {
        let wrong = |field: &'static str, expected| Fault::Field { field, value: json[field].to_string(), expected };
        let excluded = Targets::from_json("exclude_modules", &json["exclude_modules"])?;
        let numbers = "a number of a layer, or a list of such numbers";
        let layers = match &json["layers_to_transform"] {
            Json::Null => None,
            Json::Array(layers) => {
                let layers: Option<Vec<u64>> = layers.iter().map(Json::as_u64).collect();
                // an empty list is taken for none, as PEFT takes it
                Some(layers.ok_or_else(|| wrong("layers_to_transform", numbers))?).filter(|layers| !layers.is_empty())
            }
            one => Some(vec![one.as_u64().ok_or_else(|| wrong("layers_to_transform", numbers))?]),
        };
        let patterns = match &json["layers_pattern"] {
            Json::Null => Vec::new(),
            Json::String(pattern) => vec![pattern.clone()],
            names => serde_json::from_value(names.clone())
                .map_err(|_| wrong("layers_pattern", "a name, or a list of names"))?,
        };
        let expressions = match patterns.is_empty() {
            true => vec![r".*\.[^.]*\.(\d+)\..*".to_owned()],
            false => patterns.iter().map(|pattern| format!(r".*\.(?:{pattern})\.(\d+)\..*")).collect(),
        };
        let place = |expression: &String| whole("layers_pattern", expression, expression);
        Ok(Self { excluded, layers, places: expressions.iter().map(place).collect::<Result<_, _>>()? })
    }

    /// The field that rules the module at `path` out, if one does. As PEFT has it, `layers_to_transform` says nothing of a
    /// module that `targets` names by its whole path.
    pub(super) fn ruled_out_by(&self, path: &str, targets: &Targets) -> Option<&'static str> {
        if self.excluded.as_ref().is_some_and(|excluded| excluded.contains(path)) {
            return Some("exclude_modules");
        }
        let layers = self.layers.as_ref()?;
        if matches!(targets, Targets::Names(names) if names.iter().any(|name| name == path)) {
            return None;
        }
        // a path without anything in front of its layers is one all the same
        let path = format!(".{path}");
        let layer = self.places.iter().find_map(|place| place.captures(&path)?.get(1)?.as_str().parse().ok());
        (!layer.is_some_and(|layer: u64| layers.contains(&layer))).then_some("layers_to_transform")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn modules_are_ruled_out_as_peft_does() {
        let targets = Targets::Names(vec!["q_proj".to_owned(), "model.layers.7.mlp.up_proj".to_owned()]);
        let out = |fields: Json, path: &str| Scope::from_json(&fields).expect("sound").ruled_out_by(path, &targets);
        let (first, second) = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj");
        assert_eq!(out(json!({}), first), None);
        assert_eq!(out(json!({ "layers_to_transform": null, "exclude_modules": null }), first), None);
        for fields in
            [json!({ "layers_to_transform": [0] }), json!({ "layers_to_transform": 0, "layers_pattern": "layers" })]
        {
            assert_eq!(out(fields.clone(), first), None);
            assert_eq!(out(fields.clone(), second), Some("layers_to_transform"));
            assert_eq!(out(fields.clone(), "layers.0.self_attn.q_proj"), None);
            assert_eq!(out(fields, "model.layers.7.mlp.up_proj"), None, "named in full");
        }
        assert_eq!(out(json!({ "layers_to_transform": [] }), second), None);
        for fields in [json!({ "exclude_modules": ["q_proj"] }), json!({ "exclude_modules": ".*q_proj" })] {
            assert_eq!(out(fields, first), Some("exclude_modules"));
        }
        assert_eq!(out(json!({ "exclude_modules": ["v_proj"] }), first), None);
        for wrong in [
            json!({ "layers_to_transform": "0" }),
            json!({ "layers_to_transform": [-1] }),
            json!({ "exclude_modules": 3 }),
            json!({ "exclude_modules": "(" }),
            json!({ "layers_pattern": {} }),
        ] {
            assert!(Scope::from_json(&wrong).is_err(), "{wrong}");
        }
    }
}
