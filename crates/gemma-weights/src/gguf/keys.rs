//! The key-value pairs of a GGUF file, asked for by name and type; and those that nobody asks for.

use std::fmt::Display;

use super::{ARCHITECTURES, List, Pairs, Value};
use crate::GgufFault as Fault;

/// A larger dimension, or number of layers, than any model has.
const LARGEST_SIZE: u64 = 1 << 24;

/// The error for a key whose value is not `expected`.
pub(super) fn wrong(key: &str, found: impl Display, expected: &'static str) -> Fault {
    Fault::Field { key: key.to_owned(), found: found.to_string(), expected }
}

/// The key-value pairs, asked for by name and type.
pub(super) struct Keys<'f, 'a>(pub(super) &'f Pairs<'a>);

impl<'a> Keys<'_, 'a> {
    pub(super) fn optional(&self, key: &str) -> Option<&Value<'a>> {
        self.0.get(key)
    }

    fn get(&self, key: &str) -> Result<&Value<'a>, Fault> {
        self.optional(key).ok_or_else(|| Fault::Missing { key: key.to_owned() })
    }

    pub(super) fn text(&self, key: &str) -> Result<&'a str, Fault> {
        match self.get(key)? {
            Value::Text(text) => Ok(text),
            other => Err(wrong(key, other, "a text")),
        }
    }

    pub(super) fn list(&self, key: &str) -> Result<&List<'a>, Fault> {
        match self.get(key)? {
            Value::List(list) => Ok(list),
            other => Err(wrong(key, other, "a list")),
        }
    }

    pub(super) fn number(&self, key: &str) -> Result<u64, Fault> {
        match self.get(key)? {
            Value::Unsigned(number) => Ok(*number),
            Value::Signed(number) => u64::try_from(*number).map_err(|_| wrong(key, number, "a number from 0")),
            other => Err(wrong(key, other, "an integer")),
        }
    }

    /// A dimension, or a number of layers or heads.
    pub(super) fn size(&self, key: &str) -> Result<u64, Fault> {
        let number = self.number(key)?;
        let sensible = (1..=LARGEST_SIZE).contains(&number);
        if sensible { Ok(number) } else { Err(wrong(key, number, "a positive number of a sensible size")) }
    }

    /// The number of a token.
    pub(super) fn token(&self, key: &str) -> Result<u32, Fault> {
        let number = self.number(key)?;
        u32::try_from(number).map_err(|_| wrong(key, number, "the number of a token"))
    }

    /// The value of a float, with the digits that tell it from its neighbours in f32.
    pub(super) fn float(&self, key: &str) -> Result<f64, Fault> {
        match self.get(key)? {
            Value::Float(value) if !value.is_finite() => Err(wrong(key, value, "finite")),
            Value::Float(value) => Ok((*value as f32).to_string().parse().unwrap_or(*value)),
            other => Err(wrong(key, other, "a floating-point number")),
        }
    }

    pub(super) fn positive_float(&self, key: &str) -> Result<f64, Fault> {
        let value = self.float(key)?;
        if value > 0.0 { Ok(value) } else { Err(wrong(key, value, "more than zero")) }
    }

    pub(super) fn optional_float(&self, key: &str) -> Result<Option<f64>, Fault> {
        self.optional(key).map(|_| self.float(key)).transpose()
    }
}

/// Every architecture.
const ALL: &[&str] = &ARCHITECTURES;
/// Those that have windows, caps and a scale of the scores of their own.
const SINCE_2: &[&str] = &["gemma2", "gemma3", "gemma-embedding"];

/// Keys that are read, without the name of the architecture in front, and of which architectures.
const READ: [(&str, &[&str]); 21] = [
    ("context_length", ALL),
    ("embedding_length", ALL),
    ("block_count", ALL),
    ("feed_forward_length", ALL),
    ("attention.head_count", ALL),
    ("attention.head_count_kv", ALL),
    ("attention.key_length", ALL),
    ("attention.value_length", ALL),
    ("attention.layer_norm_rms_epsilon", ALL),
    ("attention.sliding_window", SINCE_2),
    ("attention.sliding_window_pattern", SINCE_2),
    ("attention.scale", SINCE_2),
    ("attn_logit_softcapping", SINCE_2),
    ("final_logit_softcapping", SINCE_2),
    ("rope.dimension_count", ALL),
    ("rope.freq_base", ALL),
    ("rope.freq_base_swa", SINCE_2),
    ("rope.scaling.type", ALL),
    ("rope.scaling.factor", ALL),
    ("rope.scale_linear", ALL),
    // the number of rows is that of the embedding table
    ("vocab_size", ALL),
];

/// Keys of an architecture that say what the models are in any case, each with the value that says so; any other value
/// is refused.
const FIXED: [(&str, f64, &str); 12] = [
    // attention looks back only, and scores get no bias
    ("attention.causal", 1.0, "true"),
    ("attention.max_alibi_bias", 0.0, "0"),
    ("attention.clamp_kqv", 0.0, "0"),
    // YaRN's correction of the scores
    ("rope.scaling.attn_factor", 1.0, "1"),
    ("rope.scaling.yarn_log_multiplier", 0.0, "0"),
    ("attention.temperature_scale", 1.0, "1"),
    // factors of other families
    ("logit_scale", 1.0, "1"),
    ("residual_scale", 1.0, "1"),
    ("embedding_scale", 1.0, "1"),
    ("use_parallel_residual", 0.0, "false"),
    ("expert_count", 0.0, "0"),
    ("expert_used_count", 0.0, "0"),
];

/// Keys of an architecture that say nothing that is needed.
const NEEDLESS: [&str; 9] = [
    // how the file was made longer, which type and factor say in full
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    // how the tensors are laid out, which their shapes say
    "tensor_data_layout",
    // an embedding model: the mean is taken, and the shapes of the last layers are those of their tensors
    "pooling_type",
    "dense_2_feat_in",
    "dense_2_feat_out",
    "dense_3_feat_in",
    "dense_3_feat_out",
    // the norm is RMS, and has its own key
    "attention.layer_norm_epsilon",
];

/// The other keys that are read, or say nothing of the computation: names, licences, and how the file was made.
const GENERAL: [&str; 8] =
    ["general.", "tokenizer.", "split.", "quantize.imatrix.", "training.", "GGUF.", "convert.", "mradermacher."];

/// The keys that nothing reads. Those under which a file changes how attention and positions are computed are refused.
///
/// # Errors
/// [`Fault::Field`] for such a key.
pub(super) fn unknown(pairs: &Pairs<'_>, architecture: &str) -> Result<Vec<String>, Fault> {
    let mut unknown = Vec::new();
    for (key, value) in pairs {
        let Some(own) = key.strip_prefix(architecture).and_then(|own| own.strip_prefix('.')) else {
            if !GENERAL.iter().any(|known| key.starts_with(known)) {
                unknown.push((*key).to_owned());
            }
            continue;
        };
        // an embedding model reads both ways, which its architecture says already
        let is_known = (architecture, own) == ("gemma-embedding", "attention.causal");
        let readers = READ.iter().find(|(name, _)| *name == own).map(|(_, readers)| *readers);
        if is_known || readers.is_some_and(|readers| readers.contains(&architecture)) || NEEDLESS.contains(&own) {
            continue;
        }
        if readers.is_some() {
            // what only later architectures compute with; 0 stands for none
            if number(value) != Some(0.0) {
                return Err(wrong(key, value, "left out, or 0: this architecture has nothing of the kind"));
            }
            continue;
        }
        if let Some((_, fixed, expected)) = FIXED.iter().find(|(name, ..)| *name == own) {
            if number(value) != Some(*fixed) {
                return Err(wrong(key, value, expected));
            }
        } else if ["attention.", "rope.", "ssm.", "expert"].iter().any(|begin| own.starts_with(begin)) {
            return Err(wrong(key, value, "left out: what it asks for is not computed"));
        } else {
            unknown.push((*key).to_owned());
        }
    }
    Ok(unknown)
}

/// A value as a number, where it is one.
fn number(value: &Value<'_>) -> Option<f64> {
    match value {
        Value::Unsigned(number) => Some(*number as f64),
        Value::Signed(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        Value::Bool(value) => Some(f64::from(u8::from(*value))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_or_refused_or_named() {
        let found = |key: &'static str, value: Value<'static>| unknown(&Pairs::from([(key, value)]), "gemma2");
        for (key, value) in [
            ("general.name", Value::Text("x")),
            ("gemma2.block_count", Value::Unsigned(2)),
            ("gemma2.attention.causal", Value::Bool(true)),
            ("gemma2.rope.scaling.finetuned", Value::Bool(false)),
        ] {
            assert_eq!(found(key, value).unwrap(), [] as [String; 0], "{key}");
        }
        assert_eq!(found("gemma2.color", Value::Text("red")).unwrap(), ["gemma2.color"]);
        assert_eq!(found("llama.block_count", Value::Unsigned(2)).unwrap(), ["llama.block_count"]);
        for (key, value) in [
            ("gemma2.attention.causal", Value::Bool(false)),
            ("gemma2.attention.max_alibi_bias", Value::Float(8.0)),
            ("gemma2.rope.scaling.attn_factor", Value::Float(0.5)),
            ("gemma2.attention.new", Value::Unsigned(1)),
            ("gemma2.expert_count", Value::Unsigned(8)),
        ] {
            let error = found(key, value).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("must be"), "{error}");
        }
    }

    #[test]
    fn what_only_later_architectures_compute_with_is_refused_in_the_first() {
        for (name, value) in [
            ("attention.sliding_window", Value::Unsigned(4)),
            ("attention.sliding_window_pattern", Value::Unsigned(2)),
            ("attention.scale", Value::Float(0.9)),
            ("attn_logit_softcapping", Value::Float(50.0)),
            ("final_logit_softcapping", Value::Float(30.0)),
            ("rope.freq_base_swa", Value::Float(5.0)),
        ] {
            let found = |architecture: &str, value: Value<'static>| {
                let key = format!("{architecture}.{name}");
                unknown(&Pairs::from([(key.as_str(), value)]), architecture)
            };
            let error = found("gemma", value.clone()).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
            assert_eq!(found("gemma", Value::Float(0.0)).unwrap(), [] as [String; 0], "{name}");
            for architecture in SINCE_2 {
                assert_eq!(found(architecture, value.clone()).unwrap(), [] as [String; 0], "{name}");
            }
        }
    }
}
