//! `config.json`, resolved once into what each layer needs.
//!
//! The file is read into a private mirror of its fields, old and new spellings alike, and turned into a
//! [`DecoderConfig`]. A field that is read is used, or refused with an error that names field and value; nothing
//! below this file asks which generation a model belongs to.

use crate::Error;
use gemma_model::fields::{
    self, Architecture, Ids, LARGEST_DIMENSION, LARGEST_VOCAB, MOST_LAYERS, cap, finite_positive, invalid, off,
    positive, shortest, tanh_gelu,
};
use gemma_nn::{AttentionSpec, RopeSpec, Visibility};
use gemma_weights::catalogue::{self, Decoder as Kind, Shape};
use serde::Deserialize;
use serde_json::{Value, json};

/// Where a layer normalises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norms {
    /// Gemma 1: before attention and before the MLP.
    Before,
    /// Gemma 2: before and after each of the two.
    BeforeAndAfter,
}

/// What one decoder layer needs to know.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerSpec {
    /// Its attention.
    pub attention: AttentionSpec,
    /// Inner dimension of its MLP.
    pub intermediate_size: usize,
    /// Where it normalises.
    pub norms: Norms,
}

/// A decoder, resolved: everything that building and running it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Number of token ids; rows of the embedding table.
    pub vocab: usize,
    /// Model dimension.
    pub hidden_size: usize,
    /// The layers, first to last.
    pub layers: Vec<LayerSpec>,
    /// `eps` of every RMS norm.
    pub norm_eps: f32,
    /// Rotary embedding of every layer.
    pub rope: RopeSpec,
    /// Soft cap of the logits.
    pub final_softcap: Option<f32>,
    /// The longest sequence the model was made for, in tokens.
    pub context: usize,
    /// Tokens that end a text, from `config.json`.
    pub eos: Vec<u32>,
}

/// The fields of `config.json` that describe it, as they stand there.
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
    rope_scaling: Option<Value>,
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
}

#[derive(Debug, Deserialize)]
struct RopeParameters {
    rope_type: Option<String>,
    rope_theta: Option<f32>,
    partial_rotary_factor: Option<f32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Generation {
    One,
    Two,
}

impl DecoderConfig {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// When it is not JSON, lacks a field, names another architecture, or a value cannot be right or is not
    /// supported; the message names field and value.
    pub fn from_json(text: &[u8]) -> Result<Self, Error> {
        // the architecture first: what another family's file lacks is no fault of it
        let generation = Generation::of(&Architecture::from_json(text)?)?;
        fields::parse::<ConfigFile>(text)?.resolve(generation)
    }

    /// The configuration of a released size: `gemma-2b`, `gemma-7b`, `gemma-2-2b`, `gemma-2-9b`, `gemma-2-27b`.
    pub fn preset(name: &str) -> Option<Self> {
        catalogue::shape(name).and_then(Self::from_shape)
    }

    /// The text decoder of a row of the catalogue; `None` for RecurrentGemma, which is another network.
    pub fn from_shape(shape: &Shape) -> Option<Self> {
        let (norms, scalar, attention_cap, final_cap, window) = match shape.decoder {
            Kind::Gemma => (Norms::Before, shape.head_dim as f32, None, None, None),
            Kind::Gemma2 { sliding_window, query_pre_attn_scalar, attn_logit_softcapping, final_logit_softcapping } => {
                (
                    Norms::BeforeAndAfter,
                    query_pre_attn_scalar as f32,
                    Some(attn_logit_softcapping as f32),
                    Some(final_logit_softcapping as f32),
                    Some(sliding_window),
                )
            }
            _ => return None,
        };
        let layer = |index: usize| LayerSpec {
            attention: AttentionSpec {
                heads: shape.heads,
                kv_heads: shape.kv_heads,
                head_dim: shape.head_dim,
                scale: scalar.powf(-0.5),
                softcap: attention_cap,
                visibility: Visibility::Causal { window: window.filter(|_| index.is_multiple_of(2)) },
                qkv_bias: false,
                output_bias: false,
            },
            intermediate_size: shape.intermediate_size,
            norms,
        };
        Some(Self {
            vocab: shape.vocab,
            hidden_size: shape.hidden_size,
            layers: (0..shape.layers).map(layer).collect(),
            norm_eps: shape.rms_norm_eps as f32,
            rope: RopeSpec { rotary_dim: shape.head_dim, theta: shape.rope_theta as f32 },
            final_softcap: final_cap,
            context: shape.context,
            eos: vec![1],
        })
    }

    /// The `config.json` that HF transformers reads back as this decoder.
    ///
    /// Works for decoders whose layers differ only in their window, as all released ones do.
    pub fn to_json(&self, dtype: gemma_weights::Dtype) -> Value {
        let layer = self.layers.first().expect("a decoder has layers");
        let attention = layer.attention;
        let mut file = json!({
            "attention_bias": attention.qkv_bias,
            "attention_dropout": 0.0,
            "bos_token_id": 2,
            "eos_token_id": self.eos,
            "head_dim": attention.head_dim,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": layer.intermediate_size,
            "max_position_embeddings": self.context,
            "num_attention_heads": attention.heads,
            "num_hidden_layers": self.layers.len(),
            "num_key_value_heads": attention.kv_heads,
            "pad_token_id": 0,
            "rms_norm_eps": shortest(self.norm_eps),
            "rope_theta": shortest(self.rope.theta),
            "tie_word_embeddings": true,
            "torch_dtype": dtype.to_string(),
            "use_cache": true,
            "vocab_size": self.vocab,
        });
        let fields = file.as_object_mut().expect("an object was written");
        let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        match layer.norms {
            Norms::Before => {
                set("architectures", json!(["GemmaForCausalLM"]));
                set("model_type", json!("gemma"));
            }
            Norms::BeforeAndAfter => {
                let kind = |layer: &LayerSpec| {
                    if layer.attention.window().is_some() { "sliding_attention" } else { "full_attention" }
                };
                set("architectures", json!(["Gemma2ForCausalLM"]));
                set("model_type", json!("gemma2"));
                set("attn_logit_softcapping", json!(attention.softcap.map(shortest)));
                set("final_logit_softcapping", json!(self.final_softcap.map(shortest)));
                set("layer_types", json!(self.layers.iter().map(kind).collect::<Vec<_>>()));
                // scale is query_pre_attn_scalar ^ -1/2; transformers takes an integer only
                set("query_pre_attn_scalar", json!(attention.scale.powi(-2).round() as u64));
                set("sliding_window", json!(self.layers.iter().find_map(|layer| layer.attention.window())));
            }
        }
        file
    }
}

impl Generation {
    fn of(architecture: &Architecture) -> Result<Self, Error> {
        match architecture.name() {
            Some("gemma" | "GemmaForCausalLM") => Ok(Self::One),
            Some("gemma2" | "Gemma2ForCausalLM") => Ok(Self::Two),
            _ => Err(architecture.refuse("a Gemma 1 or Gemma 2 text model (model_type `gemma` or `gemma2`)")),
        }
    }
}

impl ConfigFile {
    fn resolve(self, generation: Generation) -> Result<DecoderConfig, Error> {
        self.refuse_unsupported()?;
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
        let windows = self.windows(generation, layers)?;
        let (scalar, softcap, final_softcap) = match generation {
            Generation::One => (head_dim as f32, None, None),
            Generation::Two => (
                self.query_pre_attn_scalar.unwrap_or(256.0),
                cap("attn_logit_softcapping", self.attn_logit_softcapping, 50.0)?,
                cap("final_logit_softcapping", self.final_logit_softcapping, 30.0)?,
            ),
        };
        let attention = AttentionSpec {
            heads,
            kv_heads,
            head_dim,
            scale: finite_positive("query_pre_attn_scalar", scalar)?.powf(-0.5),
            softcap,
            visibility: Visibility::CAUSAL,
            qkv_bias: self.attention_bias.unwrap_or(false),
            output_bias: self.attention_bias.unwrap_or(false),
        };
        let intermediate_size = positive("intermediate_size", self.intermediate_size, LARGEST_DIMENSION)?;
        let norms = if generation == Generation::One { Norms::Before } else { Norms::BeforeAndAfter };
        let parameters = self.rope_parameters.as_ref();
        let theta = parameters.and_then(|rope| rope.rope_theta).or(self.rope_theta).unwrap_or(10_000.0);
        Ok(DecoderConfig {
            vocab: positive("vocab_size", self.vocab_size, LARGEST_VOCAB)?,
            hidden_size: positive("hidden_size", self.hidden_size, LARGEST_DIMENSION)?,
            layers: windows
                .into_iter()
                .map(|window| LayerSpec {
                    attention: AttentionSpec { visibility: Visibility::Causal { window }, ..attention },
                    intermediate_size,
                    norms,
                })
                .collect(),
            norm_eps: finite_positive("rms_norm_eps", self.rms_norm_eps.unwrap_or(1e-6))?,
            rope: RopeSpec { rotary_dim: head_dim, theta: finite_positive("rope_theta", theta)? },
            final_softcap,
            context: positive("max_position_embeddings", self.max_position_embeddings.unwrap_or(8192), usize::MAX)?,
            eos: Ids::eos(self.eos_token_id),
        })
    }

    /// Fields that change the mathematics in ways this crate does not have.
    fn refuse_unsupported(&self) -> Result<(), Error> {
        tanh_gelu("hidden_activation", self.hidden_activation.as_deref())?;
        tanh_gelu("hidden_act", self.hidden_act.as_deref())?;
        if self.tie_word_embeddings == Some(false) {
            return Err(invalid("tie_word_embeddings", false, "true: the output head is the embedding table"));
        }
        if let Some(scaling) = self.rope_scaling.as_ref().filter(|value| !value.is_null()) {
            return Err(invalid("rope_scaling", scaling, "null"));
        }
        if let Some(rope) = &self.rope_parameters {
            if let Some(kind) = rope.rope_type.as_deref().filter(|kind| *kind != "default") {
                return Err(invalid("rope_parameters.rope_type", kind, "`default`"));
            }
            if let Some(part) = rope.partial_rotary_factor.filter(|part| *part != 1.0) {
                return Err(invalid("rope_parameters.partial_rotary_factor", part, "1"));
            }
        }
        off("use_bidirectional_attention", self.use_bidirectional_attention.as_ref(), "null or false")?;
        let quantize = "absent; quantize with --precision instead";
        off("quantization_config", self.quantization_config.as_ref(), quantize)?;
        Ok(())
    }

    /// The window of each layer. Gemma 2 alternates windowed and full layers, windowed first, unless `layer_types`
    /// says otherwise.
    fn windows(&self, generation: Generation, layers: usize) -> Result<Vec<Option<usize>>, Error> {
        if generation == Generation::One {
            return Ok(vec![None; layers]);
        }
        let window = positive("sliding_window", self.sliding_window.unwrap_or(4096), usize::MAX)?;
        let Some(types) = &self.layer_types else {
            return Ok((0..layers).map(|layer| layer.is_multiple_of(2).then_some(window)).collect());
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

#[cfg(test)]
mod tests {
    use super::*;

    const GEMMA_2: &str = r#"{"model_type": "gemma2", "vocab_size": 512, "hidden_size": 40, "intermediate_size": 96,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "query_pre_attn_scalar": 144, "sliding_window": 6}"#;

    fn with(change: &str) -> Result<DecoderConfig, Error> {
        let text = GEMMA_2.trim_end_matches('}').to_owned() + "," + change + "}";
        DecoderConfig::from_json(text.as_bytes())
    }

    #[test]
    fn gemma_2_alternates_windows_and_reads_its_scale() {
        let config = DecoderConfig::from_json(GEMMA_2.as_bytes()).unwrap();
        let windows: Vec<_> = config.layers.iter().map(|layer| layer.attention.window()).collect();
        assert_eq!(windows, [Some(6), None, Some(6)]);
        assert_eq!(config.layers[0].attention.scale, 1.0 / 12.0);
        assert_eq!((config.layers[0].attention.softcap, config.final_softcap), (Some(50.0), Some(30.0)));
        let windows = with(r#""layer_types": ["full_attention", "sliding_attention", "full_attention"]"#).unwrap();
        assert_eq!(windows.layers[1].attention.window(), Some(6));
        assert_eq!(windows.layers[0].attention.window(), None);
    }

    #[test]
    fn null_switches_a_cap_off_and_absence_does_not() {
        let config = with(r#""attn_logit_softcapping": null, "final_logit_softcapping": 4.0"#).unwrap();
        assert_eq!((config.layers[0].attention.softcap, config.final_softcap), (None, Some(4.0)));
    }

    #[test]
    fn both_spellings_of_the_rope_base_are_read() {
        assert_eq!(with(r#""rope_theta": 500.0"#).unwrap().rope.theta, 500.0);
        assert_eq!(
            with(r#""rope_parameters": {"rope_type": "default", "rope_theta": 700.0}"#).unwrap().rope.theta,
            700.0
        );
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (change, field) in [
            (r#""rope_scaling": {"type": "linear"}"#, "rope_scaling"),
            (r#""rope_parameters": {"rope_type": "yarn"}"#, "rope_type"),
            (r#""hidden_activation": "relu""#, "hidden_activation"),
            (r#""tie_word_embeddings": false"#, "tie_word_embeddings"),
            (r#""layer_types": ["full_attention"]"#, "layer_types"),
            (r#""attn_logit_softcapping": -1"#, "attn_logit_softcapping"),
            (r#""rms_norm_eps": 0"#, "rms_norm_eps"),
            (r#""quantization_config": {"bits": 4}"#, "quantization_config"),
        ] {
            let message = with(change).unwrap_err().to_string();
            assert!(message.contains(field), "{change}: {message}");
        }
        for (from, to) in [
            ("40", "-40"),
            ("40", "0"),
            ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3"),
            ("\"hidden_size\": 40,", ""),
            ("gemma2", "llama"),
            ("512", "99999999999"),
        ] {
            let text = GEMMA_2.replace(from, to);
            assert!(DecoderConfig::from_json(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_written_configuration_reads_back_the_same() {
        for name in ["gemma-2b", "gemma-7b", "gemma-2-2b", "gemma-2-9b", "gemma-2-27b"] {
            let config = DecoderConfig::preset(name).unwrap();
            let text = config.to_json(gemma_weights::Dtype::Bf16).to_string();
            let back = DecoderConfig::from_json(text.as_bytes()).unwrap();
            assert_eq!(back, config, "{name}");
        }
        assert!(DecoderConfig::preset("recurrentgemma-2b").is_none());
    }

    #[test]
    fn another_family_is_named_whatever_its_file_lacks() {
        let error = DecoderConfig::from_json(br#"{"model_type": "paligemma"}"#).unwrap_err();
        assert!(matches!(&error, Error::Architecture { name, .. } if name == "paligemma"), "{error}");
        assert!(DecoderConfig::from_json(b"{}").is_err());
        assert!(DecoderConfig::from_json(b"not json").is_err());
    }

    #[test]
    fn presets_have_the_released_numbers() {
        // hidden size, layers, heads, kv heads, head size, MLP hidden_size, 1 / scale²
        for (name, numbers) in [
            ("gemma-2b", [2048, 18, 8, 1, 256, 16384, 256]),
            ("gemma-7b", [3072, 28, 16, 16, 256, 24576, 256]),
            ("gemma-2-2b", [2304, 26, 8, 4, 256, 9216, 256]),
            ("gemma-2-9b", [3584, 42, 16, 8, 256, 14336, 256]),
            ("gemma-2-27b", [4608, 46, 32, 16, 128, 36864, 144]),
        ] {
            let config = DecoderConfig::preset(name).unwrap();
            let LayerSpec { attention, intermediate_size, .. } = config.layers[0];
            let scalar = attention.scale.powi(-2).round() as usize;
            let found = [
                config.hidden_size,
                config.layers.len(),
                attention.heads,
                attention.kv_heads,
                attention.head_dim,
                intermediate_size,
                scalar,
            ];
            assert_eq!(found, numbers, "{name}");
            assert_eq!(
                (config.vocab, config.context, config.rope.theta, config.norm_eps),
                (256_000, 8192, 10_000.0, 1e-6)
            );
        }
    }
}
