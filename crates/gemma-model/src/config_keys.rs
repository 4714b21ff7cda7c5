//! The keys of `config.json`: those that are read, those that say nothing of the computation, and those that must have
//! the one value that Gemma's networks have. Any other key is harmless or unheard of, and [`unknown`] names it.

use serde_json::{Map, Value};

use crate::Error;
use crate::error::shortened;
use crate::fields::invalid;

/// Keys that a family reads, wherever they stand: used, or refused there with field and value.
const READ: &[&str] = &[
    // every decoder
    "architectures",
    "attention_bias",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "partial_rotary_factor",
    "quantization_config",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "vocab_size",
    // Gemma 2 and 3
    "_sliding_window_pattern",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "layer_types",
    "query_pre_attn_scalar",
    "rope_local_base_freq",
    "sliding_window",
    "sliding_window_pattern",
    "use_bidirectional_attention",
    // RecurrentGemma
    "_block_types",
    "attention_window_inclusive",
    "attention_window_size",
    "block_types",
    "conv1d_width",
    "embeddings_scale_by_sqrt_dim",
    "logits_soft_cap",
    "lru_width",
    // models with images
    "boi_token_id",
    "boi_token_index",
    "eoi_token_id",
    "eoi_token_index",
    "image_size",
    "image_token_id",
    "image_token_index",
    "layer_norm_eps",
    "mm_tokens_per_image",
    "no_token_index",
    "num_channels",
    "patch_size",
    "projection_dim",
    "text_config",
    "vision_config",
    "vision_use_head",
    "yes_token_index",
];

/// Keys that say nothing of the computation, by the reason.
const NEEDLESS: &[(&str, &[&str])] = &[
    (
        "who wrote the file, and in which type: the weights have their own",
        &[
            "_name_or_path",
            "auto_map",
            "dtype",
            "torch_dtype",
            "transformers_version",
            "unsloth_fixed",
            "unsloth_version",
        ],
    ),
    (
        "of training and of random parameters",
        &[
            "attention_dropout",
            "dropout",
            "final_w_init_variance_scale",
            "gradient_checkpointing",
            "hidden_dropout_prob",
            "initializer_factor",
            "initializer_range",
            "residual_dropout",
            "w_init_variance_scale",
            "ignore_index",
        ],
    ),
    ("the tokenizer has them", &["bos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "tokenizer_class"]),
    (
        "follows from the image and its patches, or from the shape of the projector; the projector has no activation",
        &["num_image_tokens", "projector_hidden_act", "vocab_size_per_layer_input"],
    ),
    (
        "how the reference's code runs, and defaults of its sampling, which are in generation_config.json",
        &[
            "_attn_implementation",
            "_attn_implementation_autoset",
            "add_cross_attention",
            "attn_implementation",
            "bad_words_ids",
            "begin_suppress_tokens",
            "cache_implementation",
            "chunk_size_feed_forward",
            "cross_attention_hidden_size",
            "decoder_start_token_id",
            "diversity_penalty",
            "do_sample",
            "early_stopping",
            "encoder_no_repeat_ngram_size",
            "exponential_decay_length_penalty",
            "finetuning_task",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "id2label",
            "is_decoder",
            "is_encoder_decoder",
            "label2id",
            "length_penalty",
            "max_length",
            "min_length",
            "no_repeat_ngram_size",
            "num_beam_groups",
            "num_beams",
            "num_return_sequences",
            "output_attentions",
            "output_hidden_states",
            "output_scores",
            "prefix",
            "pretraining_tp",
            "problem_type",
            "pruned_heads",
            "remove_invalid_values",
            "repetition_penalty",
            "return_dict",
            "return_dict_in_generate",
            "suppress_tokens",
            "task_specific_params",
            "temperature",
            "tf_legacy_loss",
            "tie_encoder_decoder",
            "top_k",
            "top_p",
            "torchscript",
            "typical_p",
            "use_bfloat16",
            "use_cache",
        ],
    ),
];

/// Keys with which other architectures change the computation; here each must be absent, null, or the value that changes
/// nothing.
const FIXED: &[(&str, f64, &str)] = &[
    ("activation_sparsity_pattern", 0.0, "absent"),
    ("alibi", 0.0, "false or absent"),
    ("altup_num_inputs", 1.0, "1 or absent"),
    ("attention_k_eq_v", 0.0, "false or absent"),
    ("attention_multiplier", 1.0, "1 or absent"),
    ("attn_output_gate", 0.0, "false or absent"),
    ("clip_qkv", 0.0, "null or absent"),
    ("embedding_multiplier", 1.0, "1 or absent"),
    ("enable_moe_block", 0.0, "false or absent"),
    ("hidden_size_per_layer_input", 0.0, "0 or absent"),
    ("laurel_rank", 0.0, "absent"),
    ("logit_scale", 1.0, "1 or absent"),
    ("logits_scaling", 1.0, "1 or absent"),
    ("mlp_bias", 0.0, "false or absent"),
    ("num_experts", 0.0, "0 or absent"),
    ("num_kv_shared_layers", 0.0, "0 or absent"),
    ("num_local_experts", 0.0, "0 or absent"),
    ("residual_multiplier", 1.0, "1 or absent"),
    ("residual_scale", 1.0, "1 or absent"),
    ("rope_interleaved", 0.0, "false or absent"),
    ("use_double_wide_mlp", 0.0, "false or absent"),
    ("use_parallel_residual", 0.0, "false or absent"),
];

/// Keys within `rope_scaling` and `rope_parameters` that are read.
const ROPE: &[&str] =
    &["factor", "full_attention", "partial_rotary_factor", "rope_theta", "rope_type", "sliding_attention", "type"];
/// And those of types that are refused, so that they mean nothing beside one that is not.
const OTHER_ROPE: &[&str] = &[
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "high_freq_factor",
    "long_factor",
    "low_freq_factor",
    "mscale",
    "mscale_all_dim",
    "original_max_position_embeddings",
    "short_factor",
    "truncate",
];

/// How many unknown keys are named.
const MOST_NAMED: usize = 20;

/// Refuses a value under a key by which other architectures change the computation.
///
/// # Errors
/// [`Error::ConfigField`] for the first; text that is not JSON is no concern of this function.
pub fn refuse_foreign(text: &[u8]) -> Result<(), Error> {
    let Ok(Value::Object(file)) = serde_json::from_slice(text) else { return Ok(()) };
    let inner = |name: &str| file.get(name).and_then(Value::as_object);
    for object in [Some(&file), inner("text_config"), inner("vision_config")].into_iter().flatten() {
        for (field, harmless, expected) in FIXED {
            let value = object.get(*field).unwrap_or(&Value::Null);
            let number = match value {
                Value::Null => continue,
                Value::Bool(value) => Some(f64::from(u8::from(*value))),
                other => other.as_f64(),
            };
            if number != Some(*harmless) {
                return Err(invalid(field, value, expected));
            }
        }
    }
    Ok(())
}

/// The keys of a `config.json` that nothing reads and that are not known to be needless, each with those that it lies
/// in; at most twenty. Empty for text that is not JSON.
pub fn unknown(text: &[u8]) -> Vec<String> {
    let Ok(Value::Object(file)) = serde_json::from_slice(text) else { return Vec::new() };
    let mut found = Vec::new();
    walk(&file, "", &mut found);
    found.sort_unstable();
    let left = found.len().saturating_sub(MOST_NAMED);
    found.truncate(MOST_NAMED);
    if left > 0 {
        found.push(format!("and {left} more"));
    }
    found
}

fn walk(object: &Map<String, Value>, within: &str, found: &mut Vec<String>) {
    for (key, value) in object {
        let name = || format!("{within}{}", shortened(key));
        match (key.as_str(), value) {
            ("rope_scaling" | "rope_parameters", Value::Object(rope)) => {
                walk_rope(rope, &format!("{}.", name()), found);
            }
            // one level deep, as they are read
            ("text_config" | "vision_config", Value::Object(inner)) if within.is_empty() => {
                walk(inner, &format!("{key}."), found);
            }
            (key, _) => {
                let needless = || NEEDLESS.iter().any(|(_, keys)| keys.contains(&key));
                if !READ.contains(&key) && !FIXED.iter().any(|(field, ..)| *field == key) && !needless() {
                    found.push(name());
                }
            }
        }
    }
}

fn walk_rope(rope: &Map<String, Value>, within: &str, found: &mut Vec<String>) {
    for (key, value) in rope {
        let known = ROPE.contains(&key.as_str()) || OTHER_ROPE.contains(&key.as_str());
        match (key.as_str(), value) {
            ("full_attention" | "sliding_attention", Value::Object(inner)) if !within.contains("_attention.") => {
                walk_rope(inner, &format!("{within}{key}."), found);
            }
            _ if known => {}
            _ => found.push(format!("{within}{}", shortened(key))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harmless_keys_that_nobody_knows_are_named() {
        let text = br#"{"model_type": "gemma2", "color": "red", "use_cache": true, "mlp_bias": false,
            "rope_scaling": {"rope_type": "default", "beta_fast": 32, "gamma": 1},
            "text_config": {"hidden_size": 8, "shade": 1, "rope_parameters": {"full_attention": {"theta": 2}}}}"#;
        assert_eq!(
            unknown(text),
            ["color", "rope_scaling.gamma", "text_config.rope_parameters.full_attention.theta", "text_config.shade"]
        );
        assert!(unknown(b"no json").is_empty());
        let many: String = (0..50).map(|key| format!("\"k{key}\": 1,")).collect();
        let named = unknown(format!("{{{many} \"{}\": 1}}", "k".repeat(5000)).as_bytes());
        assert_eq!((named.len(), named.last().map(String::as_str)), (21, Some("and 31 more")));
    }

    #[test]
    fn keys_of_other_architectures_are_refused_by_name() {
        for text in [
            r#"{"mlp_bias": true}"#,
            r#"{"num_experts": 8}"#,
            r#"{"text_config": {"hidden_size_per_layer_input": 256}}"#,
            r#"{"embedding_multiplier": 12.0}"#,
            r#"{"activation_sparsity_pattern": [0.9]}"#,
        ] {
            let error = refuse_foreign(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("config.json: ") && error.contains("absent"), "{error}");
        }
        for text in ["{}", r#"{"mlp_bias": null, "num_experts": 0, "embedding_multiplier": 1}"#, "no json"] {
            refuse_foreign(text.as_bytes()).unwrap();
        }
    }

    #[test]
    fn no_key_stands_in_two_lists() {
        let needless = NEEDLESS.iter().flat_map(|(_, keys)| keys.iter());
        let mut all: Vec<&str> = READ.iter().chain(needless).copied().collect();
        all.extend(FIXED.iter().map(|(field, ..)| *field));
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
