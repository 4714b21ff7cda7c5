//! The fields of `config.json` as they stand there, and what they mean.

use super::{DecoderConfig, LayerSpec, Norms};
use crate::Error;
use gemma_model::config_keys;
use gemma_model::fields::{
    self, Architecture, Ids, LARGEST_DIMENSION, LARGEST_VOCAB, MOST_LAYERS, cap, finite_positive, invalid, off,
    positive, tanh_gelu,
};
use gemma_nn::{AttentionSpec, RopeSpec, Visibility};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The fields that describe a text decoder.
#[derive(Debug, Deserialize)]
struct ConfigFile {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f32>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    attention_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
    rope_theta: Option<f32>,
    partial_rotary_factor: Option<f32>,
    #[serde(default, deserialize_with = "fields::object")]
    rope_scaling: Option<Rope>,
    #[serde(default, deserialize_with = "fields::object")]
    rope_parameters: Option<RopeParameters>,
    eos_token_id: Option<Ids>,
    // Gemma 2
    sliding_window: Option<usize>,
    layer_types: Option<Vec<String>>,
    query_pre_attn_scalar: Option<f32>,
    #[serde(default, deserialize_with = "fields::nullable")]
    attn_logit_softcapping: Option<Option<f32>>,
    #[serde(default, deserialize_with = "fields::nullable")]
    final_logit_softcapping: Option<Option<f32>>,
    use_bidirectional_attention: Option<Value>,
    quantization_config: Option<Value>,
    // Gemma 3
    rope_local_base_freq: Option<f32>,
    sliding_window_pattern: Option<usize>,
    /// The same, as transformers 5 writes it.
    #[serde(rename = "_sliding_window_pattern")]
    older_sliding_window_pattern: Option<usize>,
}

/// A rotary embedding in the new spelling, or the scaling of one in the old.
#[derive(Clone, Debug, Default, Deserialize)]
struct Rope {
    rope_type: Option<String>,
    #[serde(rename = "type")]
    older_rope_type: Option<String>,
    rope_theta: Option<f32>,
    factor: Option<f32>,
    partial_rotary_factor: Option<f32>,
}

/// `rope_parameters`: one for all layers, or one for each kind of layer.
#[derive(Debug, Deserialize)]
struct RopeParameters {
    #[serde(default, deserialize_with = "fields::object")]
    full_attention: Option<Rope>,
    #[serde(default, deserialize_with = "fields::object")]
    sliding_attention: Option<Rope>,
    #[serde(flatten)]
    all: Rope,
}

/// The decoders that share this file's fields.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Generation {
    One,
    Two,
    Vault,
    Three,
}

/// What transformers takes a Gemma 3 to be where a file does not say; the released files of 4B and more leave most of it
/// out.
fn gemma3_defaults() -> Value {
    json!({
        "vocab_size": 262_208, "hidden_size": 2_304, "intermediate_size": 9_216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131_072,
    })
}

impl DecoderConfig {
    /// Reads the text of a `config.json`. Of a model with images, its text decoder is read.
    ///
    /// # Errors
    /// When it is not JSON, lacks a field, names another architecture, or a value cannot be right or is not
    /// supported; the message names field and value.
    pub fn from_json(text: &[u8]) -> Result<Self, Error> {
        // the architecture first: what another family's file lacks is no fault of it
        let generation = Generation::of(&Architecture::from_json(text)?)?;
        config_keys::refuse_foreign(text)?;
        if generation != Generation::Three {
            return fields::parse::<ConfigFile>(text)?.resolve(generation);
        }
        let file = gemma3_text(fields::parse(text)?)?;
        let text = serde_json::to_vec(&file).map_err(|cause| Error::ConfigJson { cause })?;
        fields::parse::<ConfigFile>(&text)?.resolve(generation)
    }
}

/// The fields of a Gemma 3 decoder, with the defaults put in. In a file of a model with images they stand under
/// `text_config`; some programs leave that layout in folders without images.
fn gemma3_text(mut file: Map<String, Value>) -> Result<Map<String, Value>, Error> {
    if let Some(Value::Object(mut text)) = file.remove("text_config") {
        if let Some(kind) = text.get("model_type").and_then(Value::as_str).filter(|kind| *kind != "gemma3_text") {
            return Err(invalid("text_config.model_type", kind, "`gemma3_text`"));
        }
        for field in ["eos_token_id", "tie_word_embeddings", "quantization_config"] {
            if let Some(value) = file.remove(field).filter(|value| !value.is_null()) {
                text.entry(field).or_insert(value);
            }
        }
        // transformers reads this cap and does not apply it in models with images
        text.remove("final_logit_softcapping");
        file = text;
    }
    for (field, value) in gemma3_defaults().as_object().into_iter().flatten() {
        file.entry(field).or_insert_with(|| value.clone());
    }
    Ok(file)
}

impl Generation {
    fn of(architecture: &Architecture) -> Result<Self, Error> {
        match architecture.name() {
            Some("gemma" | "GemmaForCausalLM") => Ok(Self::One),
            Some("gemma2" | "Gemma2ForCausalLM") => Ok(Self::Two),
            Some("vaultgemma" | "VaultGemmaForCausalLM") => Ok(Self::Vault),
            Some(
                "gemma3_text"
                | "gemma3"
                | "shieldgemma2"
                | "Gemma3ForCausalLM"
                | "Gemma3TextModel"
                | "Gemma3ForConditionalGeneration"
                | "ShieldGemma2ForImageClassification",
            ) => Ok(Self::Three),
            _ => Err(architecture
                .refuse("a text model of Gemma 1, 2 or 3 (model_type `gemma`, `gemma2`, `gemma3_text`, `vaultgemma`)")),
        }
    }

    fn norms(self) -> Norms {
        match self {
            Self::One => Norms::Before,
            Self::Vault => Norms::BeforeVault,
            Self::Two | Self::Three => Norms::BeforeAndAfter,
        }
    }
}

impl ConfigFile {
    fn resolve(self, generation: Generation) -> Result<DecoderConfig, Error> {
        self.refuse_unsupported(generation)?;
        let heads = positive("num_attention_heads", self.num_attention_heads, LARGEST_DIMENSION)?;
        let kv_heads = positive("num_key_value_heads", self.num_key_value_heads.unwrap_or(heads), heads)?;
        if heads % kv_heads != 0 {
            return Err(invalid("num_key_value_heads", kv_heads, "a divisor of num_attention_heads"));
        }
        let head_dim = positive("head_dim", self.head_dim.unwrap_or(256), LARGEST_DIMENSION)?;
        if head_dim % 2 != 0 {
            return Err(invalid("head_dim", head_dim, "an even number"));
        }
        let layers = positive("num_hidden_layers", self.num_hidden_layers, MOST_LAYERS)?;
        let (full_rope, windowed_rope) = self.ropes(generation, head_dim)?;
        let scalar = if generation == Generation::One { None } else { self.query_pre_attn_scalar.or(Some(256.0)) };
        let (softcap, final_softcap) = match generation {
            Generation::One => (None, None),
            Generation::Two | Generation::Vault => (
                cap("attn_logit_softcapping", self.attn_logit_softcapping, 50.0)?,
                cap("final_logit_softcapping", self.final_logit_softcapping, 30.0)?,
            ),
            Generation::Three => {
                (None, cap("final_logit_softcapping", Some(self.final_logit_softcapping.flatten()), 0.0)?)
            }
        };
        let norm_eps = finite_positive("rms_norm_eps", self.rms_norm_eps.unwrap_or(1e-6))?;
        let attention = AttentionSpec {
            heads,
            kv_heads,
            head_dim,
            scale: finite_positive("query_pre_attn_scalar", scalar.unwrap_or(head_dim as f32))?.powf(-0.5),
            softcap,
            visibility: Visibility::CAUSAL,
            qk_norm: (generation == Generation::Three).then_some(norm_eps),
            qkv_bias: self.attention_bias.unwrap_or(false),
            output_bias: self.attention_bias.unwrap_or(false),
        };
        let intermediate_size = positive("intermediate_size", self.intermediate_size, LARGEST_DIMENSION)?;
        let norms = generation.norms();
        let bidirectional = self.use_bidirectional_attention == Some(Value::Bool(true));
        let visibility = |window: Option<usize>| match bidirectional {
            false => Visibility::Causal { window },
            // the window lies half before a token and half behind it
            true => Visibility::Bidirectional { radius: window.map(|window| window / 2 + 1) },
        };
        let layer = |window: Option<usize>| LayerSpec {
            attention: AttentionSpec { visibility: visibility(window), ..attention },
            rope: if window.is_some() { windowed_rope } else { full_rope },
            intermediate_size,
            norms,
        };
        let context = self.max_position_embeddings.unwrap_or(8192);
        Ok(DecoderConfig {
            vocab: positive("vocab_size", self.vocab_size, LARGEST_VOCAB)?,
            hidden_size: positive("hidden_size", self.hidden_size, LARGEST_DIMENSION)?,
            layers: self.windows(generation, layers)?.into_iter().map(layer).collect(),
            norm_eps,
            final_softcap,
            context: positive("max_position_embeddings", context, usize::MAX)?,
            is_tied: self.tie_word_embeddings.unwrap_or(true),
            eos: Ids::eos(self.eos_token_id),
        })
    }

    /// Fields that change the mathematics in ways this crate does not have.
    fn refuse_unsupported(&self, generation: Generation) -> Result<(), Error> {
        tanh_gelu("hidden_activation", self.hidden_activation.as_deref())?;
        tanh_gelu("hidden_act", self.hidden_act.as_deref())?;
        let bidirectional = self.use_bidirectional_attention.as_ref();
        if generation != Generation::Three {
            off("use_bidirectional_attention", bidirectional, "null or false")?;
        } else {
            let other = bidirectional.filter(|value| **value != Value::Bool(true));
            off("use_bidirectional_attention", other, "null, false or true")?;
            // transformers reads this one and does not apply it
            if let Some(Some(cap)) = self.attn_logit_softcapping.filter(|cap| *cap != Some(0.0)) {
                return Err(invalid("attn_logit_softcapping", cap, "null in a Gemma 3 model"));
            }
        }
        if let Some(part) = self.partial_rotary_factor.filter(|part| *part != 1.0) {
            return Err(invalid("partial_rotary_factor", part, "1"));
        }
        let quantize = "absent; quantize with --precision instead";
        off("quantization_config", self.quantization_config.as_ref(), quantize)?;
        Ok(())
    }

    /// The rotary embeddings of full and of windowed layers.
    fn ropes(&self, generation: Generation, head_dim: usize) -> Result<(RopeSpec, RopeSpec), Error> {
        let older = self.rope_scaling.clone().unwrap_or_default();
        let parameters = self.rope_parameters.as_ref();
        let per_kind = parameters.is_some_and(|rope| rope.full_attention.is_some() || rope.sliding_attention.is_some());
        if generation != Generation::Three {
            if per_kind {
                return Err(invalid("rope_parameters", "an entry for each kind of layer", "one for all layers"));
            }
            let rope = parameters.map(|rope| rope.all.clone()).unwrap_or_default().or(older);
            let rope = rope.resolve(head_dim, self.rope_theta, 10_000.0)?;
            return Ok((rope, rope));
        }
        if parameters.is_some_and(|rope| !per_kind && rope.all.says_something()) {
            let expected = "an entry `full_attention` and an entry `sliding_attention` in a Gemma 3 model";
            return Err(invalid("rope_parameters", "one entry for all layers", expected));
        }
        let of = |kind: fn(&RopeParameters) -> &Option<Rope>| {
            parameters.and_then(|rope| kind(rope).clone()).unwrap_or_default()
        };
        // the old spelling scales full layers only
        let full = of(|rope| &rope.full_attention).or(older).resolve(head_dim, self.rope_theta, 1_000_000.0)?;
        let windowed = of(|rope| &rope.sliding_attention).resolve(head_dim, self.rope_local_base_freq, 10_000.0)?;
        Ok((full, windowed))
    }

    /// The window of each layer; `None` for a layer that sees everything before. Gemma 2 and VaultGemma alternate, a
    /// windowed layer first; in Gemma 3 every sixth layer is full; `layer_types` goes before that.
    fn windows(&self, generation: Generation, layers: usize) -> Result<Vec<Option<usize>>, Error> {
        if generation == Generation::One {
            return Ok(vec![None; layers]);
        }
        let window = positive("sliding_window", self.sliding_window.unwrap_or(4096), usize::MAX)?;
        let Some(types) = &self.layer_types else {
            let pattern = match generation {
                Generation::Three => self.sliding_window_pattern.or(self.older_sliding_window_pattern).unwrap_or(6),
                _ => 2,
            };
            let pattern = positive("sliding_window_pattern", pattern, usize::MAX)?;
            return Ok((1..=layers).map(|layer| (!layer.is_multiple_of(pattern)).then_some(window)).collect());
        };
        if types.len() != layers {
            return Err(invalid("layer_types", format!("{} entries", types.len()), "one entry per layer"));
        }
        types
            .iter()
            .map(|kind| match kind.as_str() {
                "sliding_attention" => Ok(Some(window)),
                "full_attention" => Ok(None),
                other => Err(invalid("layer_types", other, "`sliding_attention` or `full_attention`")),
            })
            .collect()
    }
}

impl Rope {
    /// Itself, and what it does not say as `other` says it.
    fn or(self, other: Self) -> Self {
        Self {
            rope_type: self.rope_type.or(other.rope_type),
            older_rope_type: self.older_rope_type.or(other.older_rope_type),
            rope_theta: self.rope_theta.or(other.rope_theta),
            factor: self.factor.or(other.factor),
            partial_rotary_factor: self.partial_rotary_factor.or(other.partial_rotary_factor),
        }
    }

    fn says_something(&self) -> bool {
        self.rope_type.is_some() || self.older_rope_type.is_some() || self.rope_theta.is_some() || self.factor.is_some()
    }

    /// `theta` is what the file says elsewhere.
    fn resolve(self, head_dim: usize, theta: Option<f32>, default: f32) -> Result<RopeSpec, Error> {
        if let Some(part) = self.partial_rotary_factor.filter(|part| *part != 1.0) {
            return Err(invalid("rope_parameters.partial_rotary_factor", part, "1"));
        }
        let factor = match (self.rope_type.or(self.older_rope_type).as_deref(), self.factor) {
            (None | Some("default"), None | Some(1.0)) => 1.0,
            (None | Some("default"), Some(factor)) => {
                return Err(invalid("rope_scaling.factor", factor, "absent without rope_type `linear`"));
            }
            (Some("linear"), Some(factor)) => finite_positive("rope_scaling.factor", factor)?,
            (Some("linear"), None) => return Err(invalid("rope_scaling.factor", "absent", "a positive number")),
            (Some(other), _) => return Err(invalid("rope_scaling.rope_type", other, "`default` or `linear`")),
        };
        let theta = finite_positive("rope_theta", self.rope_theta.or(theta).unwrap_or(default))?;
        Ok(RopeSpec { rotary_dim: head_dim, theta, factor })
    }
}
