//! The names of tensors without what wrappers put in front of them.
//!
//! Programs that train save a model as they hold it: compiled, spread over machines, or below an adapter. Each leaves its
//! mark in every name, and none of them means anything to the weights.

use std::collections::BTreeMap;

/// What wrappers insert before a part of a name: `torch.compile`, FSDP, activation checkpointing, PEFT around a projection.
const INSERTED: [&str; 4] = ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "base_layer."];
/// The embedding table's name in the layouts of files, the longest first. What stands before it and before every other
/// name is a wrapper's: `module.` (`DataParallel`), `base_model.model.` (PEFT), `model.` (a class with a model inside).
const TABLES: [&str; 6] = [
    "model.language_model.model.embed_tokens.weight",
    "model.language_model.embed_tokens.weight",
    "language_model.model.embed_tokens.weight",
    "language_model.embed_tokens.weight",
    "model.embed_tokens.weight",
    TABLE,
];
/// What a causal model has before the names of its base model, and the base model by itself has not.
const BASE: &str = "model.";
/// The tensor by which a base model is known, and the one outside of it.
const TABLE: &str = "embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// The same tensors under the names that layers ask for. Left as they are when two of them would then share a name.
pub(crate) fn unwrapped<T>(tensors: BTreeMap<String, T>) -> BTreeMap<String, T> {
    let mut names: Vec<String> = tensors.keys().map(|name| without_inserted(name)).collect();
    let before = names.iter().find_map(|name| TABLES.iter().find_map(|table| name.strip_suffix(table)));
    let wrapper = before.filter(|prefix| prefix.ends_with('.')).unwrap_or_default().to_owned();
    if names.iter().all(|name| name.starts_with(&wrapper)) {
        names.iter_mut().for_each(|name| *name = name.split_off(wrapper.len()));
    }
    if names.iter().any(|name| name == TABLE) {
        names.iter_mut().filter(|name| *name != HEAD).for_each(|name| name.insert_str(0, BASE));
    }
    let mut distinct: Vec<&String> = names.iter().collect();
    distinct.sort_unstable();
    distinct.dedup();
    if distinct.len() < names.len() { tensors } else { names.into_iter().zip(tensors.into_values()).collect() }
}

fn without_inserted(name: &str) -> String {
    let mut name = name.to_owned();
    for part in INSERTED {
        while let Some(at) = name.find(part).filter(|at| *at == 0 || name.as_bytes()[at - 1] == b'.') {
            name.replace_range(at..at + part.len(), "");
        }
    }
    name
}

/// What stands in front of every one of the `missing` names in the other list, if it is the same for all.
pub(crate) fn prefix_of<'n>(missing: &[String], found: &'n [String]) -> Option<&'n str> {
    let first = missing.first()?;
    let prefixes =
        found.iter().filter_map(|name| name.strip_suffix(first.as_str())).filter(|prefix| !prefix.is_empty());
    let known: std::collections::BTreeSet<&str> = found.iter().map(String::as_str).collect();
    prefixes.into_iter().find(|prefix| missing.iter().all(|name| known.contains(format!("{prefix}{name}").as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(given: &[&str]) -> Vec<String> {
        unwrapped(given.iter().map(|name| ((*name).to_owned(), ())).collect()).into_keys().collect()
    }

    #[test]
    fn wrappers_leave_no_mark() {
        let plain =
            ["lm_head.weight", "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"];
        assert_eq!(names(&plain), plain);
        for prefix in [
            "base_model.model.",
            "_orig_mod.",
            "module.",
            "module._orig_mod.",
            "_orig_mod.module.",
            "model.",
            "student.model.",
        ] {
            let given: Vec<String> = plain.iter().map(|name| format!("{prefix}{name}")).collect();
            assert_eq!(names(&given.iter().map(String::as_str).collect::<Vec<_>>()), plain, "{prefix}");
        }
        let inside = ["model.embed_tokens.weight", "model.layers.0._orig_mod.mlp._fsdp_wrapped_module.up_proj.weight"];
        assert_eq!(names(&inside), ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"]);
    }

    #[test]
    fn projections_below_an_adapter_have_their_own_names() {
        let inside = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.base_layer.weight"];
        assert_eq!(names(&inside), ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"]);
    }

    #[test]
    fn a_prefix_of_some_names_is_no_wrapper() {
        let some = ["model.model.embed_tokens.weight", "other.norm.weight"];
        assert_eq!(names(&some), some);
        let parts = ["model.language_model.embed_tokens.weight", "model.vision_tower.post_layernorm.weight"];
        assert_eq!(names(&parts), parts);
    }

    #[test]
    fn a_base_model_gets_the_name_it_has_in_a_causal_one() {
        assert_eq!(
            names(&["embed_tokens.weight", "layers.0.input_layernorm.weight", "norm.weight"]),
            ["model.embed_tokens.weight", "model.layers.0.input_layernorm.weight", "model.norm.weight"]
        );
        let image = ["language_model.model.embed_tokens.weight", "vision_tower.vision_model.post_layernorm.weight"];
        assert_eq!(names(&image), image);
        assert_eq!(names(&[]), [] as [String; 0]);
    }

    #[test]
    fn names_that_would_meet_stay_apart() {
        let both = ["_orig_mod.model.norm.weight", "model.norm.weight"];
        assert_eq!(names(&both), both);
    }

    #[test]
    fn a_prefix_is_the_same_for_all() {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let found = list(&["student.model.a", "student.model.b", "x.model.a"]);
        assert_eq!(prefix_of(&list(&["model.a", "model.b"]), &found), Some("student."));
        assert_eq!(prefix_of(&list(&["model.a", "model.c"]), &found), None);
        assert_eq!(prefix_of(&[], &found), None);
    }
}
