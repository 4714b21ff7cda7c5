//! `config.json`, resolved once into what each block needs.
//!
//! The file is read into a private mirror of its fields, old and new spellings alike, and turned into a
//! [`GriffinConfig`]. A field that is read is used, or refused with an error that names field and value.

use crate::recurrent::RecurrentSpec;
use gemma_model::fields::{
    self, Architecture, Ids, LARGEST_DIMENSION, LARGEST_VOCAB, MOST_LAYERS, cap, finite_positive, invalid, off,
    positive, shortest, tanh_gelu,
};
use gemma_model::{Error, config_keys};
use gemma_nn::{AttentionSpec, RopeSpec, Visibility};
use gemma_weights::Dtype;
use gemma_weights::catalogue;
use serde::Deserialize;
use serde_json::{Value, json};

/// How a block mixes tokens with those before them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Temporal {
    /// By a state that is carried along.
    Recurrent(RecurrentSpec),
    /// By looking at the last few of them.
    Attention(AttentionSpec),
}

/// What one residual block needs to know.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockSpec {
    /// Its temporal part.
    pub temporal: Temporal,
    /// Inner dimension of its MLP.
    pub intermediate_size: usize,
}

impl BlockSpec {
    fn attention(&self) -> Option<AttentionSpec> {
        match self.temporal {
            Temporal::Attention(spec) => Some(spec),
            Temporal::Recurrent(_) => None,
        }
    }

    fn recurrent(&self) -> Option<RecurrentSpec> {
        match self.temporal {
            Temporal::Recurrent(spec) => Some(spec),
            Temporal::Attention(_) => None,
        }
    }
}

/// A Griffin network, resolved: everything that building and running it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct GriffinConfig {
    /// Number of token ids; rows of the embedding table.
    pub vocab: usize,
    /// Model dimension.
    pub hidden_size: usize,
    /// The blocks, first to last.
    pub blocks: Vec<BlockSpec>,
    /// `eps` of every RMS norm.
    pub norm_eps: f32,
    /// Rotary embedding of the attention blocks.
    pub rope: RopeSpec,
    /// Soft cap of the logits.
    pub final_softcap: Option<f32>,
    /// Whether the output head is the embedding table; otherwise the checkpoint has an `lm_head.weight`.
    pub is_tied: bool,
    /// Tokens that end a text, from `config.json`.
    pub eos: Vec<u32>,
    /// `attention_window_size`, `W`. A query sees itself and the `W - 1` keys before it, as in transformers; with
    /// [`with_inclusive_window`](Self::with_inclusive_window) `W` keys before it, as in DeepMind's own code.
    window: usize,
    inclusive_window: bool,
}

/// The kinds of block of the releases, repeated.
const PATTERN: [&str; 3] = ["recurrent", "recurrent", "attention"];

/// The fields of `config.json` that describe the network, as they stand there.
#[derive(Debug, Deserialize)]
struct ConfigFile {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    lru_width: Option<usize>,
    conv1d_width: Option<usize>,
    attention_window_size: Option<usize>,
    /// Ours: whether the window counts the keys before a token, or the token too.
    attention_window_inclusive: Option<bool>,
    block_types: Option<Vec<String>>,
    #[serde(rename = "_block_types")]
    old_block_types: Option<Vec<String>>,
    #[serde(default, deserialize_with = "fields::nullable")]
    logits_soft_cap: Option<Option<f32>>,
    rms_norm_eps: Option<f32>,
    hidden_activation: Option<String>,
    attention_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
    embeddings_scale_by_sqrt_dim: Option<bool>,
    rope_theta: Option<f32>,
    partial_rotary_factor: Option<f32>,
    #[serde(default, deserialize_with = "fields::object")]
    rope_scaling: Option<RopeParameters>,
    #[serde(default, deserialize_with = "fields::object")]
    rope_parameters: Option<RopeParameters>,
    eos_token_id: Option<Ids>,
    quantization_config: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct RopeParameters {
    rope_type: Option<String>,
    // the older name
    #[serde(rename = "type")]
    kind: Option<String>,
    rope_theta: Option<f32>,
    partial_rotary_factor: Option<f32>,
}

impl GriffinConfig {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// When it is not JSON, lacks a field, names another architecture, or a value cannot be right or is not
    /// supported; the message names field and value.
    pub fn from_json(text: &[u8]) -> Result<Self, Error> {
        // the architecture first: what another family's file lacks is no fault of it
        let architecture = Architecture::from_json(text)?;
        match architecture.name() {
            Some("recurrent_gemma" | "RecurrentGemmaForCausalLM") => {
                config_keys::refuse_foreign(text)?;
                fields::parse::<ConfigFile>(text)?.resolve()
            }
            _ => Err(architecture.refuse("a RecurrentGemma model (model_type `recurrent_gemma`)")),
        }
    }

    /// A network of these blocks, with the other numbers of the releases: eps 1e-6, half of each head rotating with
    /// base 10 000, a cap of 30, `<eos>` 1. The attention blocks have one window.
    ///
    /// # Panics
    /// When there is no block.
    pub fn new(vocab: usize, hidden_size: usize, blocks: Vec<BlockSpec>) -> Self {
        assert!(!blocks.is_empty(), "a network has blocks");
        let attention = blocks.iter().find_map(BlockSpec::attention);
        Self {
            vocab,
            hidden_size,
            norm_eps: 1e-6,
            rope: RopeSpec::new(attention.map_or(2, |spec| spec.head_dim / 2), 10_000.0),
            final_softcap: Some(30.0),
            is_tied: true,
            eos: vec![1],
            window: attention.and_then(|spec| spec.window()).unwrap_or(2048),
            inclusive_window: false,
            blocks,
        }
    }

    /// The configuration of a released size: `recurrentgemma-2b`, `recurrentgemma-9b`.
    pub fn preset(name: &str) -> Option<Self> {
        Self::from_json(catalogue::shape(name)?.config.as_bytes()).ok()
    }

    /// The same network with the window read as DeepMind's own code reads it: `W` keys before a token and the token
    /// itself, one more than transformers sees.
    #[must_use]
    pub fn with_inclusive_window(mut self) -> Self {
        self.inclusive_window = true;
        for block in &mut self.blocks {
            if let Temporal::Attention(attention) = &mut block.temporal {
                attention.visibility = Visibility::Causal { window: Some(self.window + 1) };
            }
        }
        self
    }

    /// How many keys a query sees, itself included.
    pub fn window(&self) -> usize {
        self.window + usize::from(self.inclusive_window)
    }

    /// The `config.json` that HF transformers reads back as this network.
    ///
    /// Works for networks whose blocks differ only in their kind, as all released ones do.
    pub fn to_json(&self, dtype: Dtype) -> Value {
        let attention = self.blocks.iter().find_map(BlockSpec::attention);
        let recurrent = self.blocks.iter().find_map(BlockSpec::recurrent);
        let heads = attention.map(|spec| spec.heads).or(recurrent.map(|spec| spec.blocks)).unwrap_or(1);
        let head_dim = self.hidden_size / heads;
        let kinds: Vec<&str> = self
            .blocks
            .iter()
            .map(|block| match block.temporal {
                Temporal::Recurrent(_) => "recurrent",
                Temporal::Attention(_) => "attention",
            })
            .collect();
        let mut file = json!({
            "architectures": ["RecurrentGemmaForCausalLM"],
            "attention_bias": attention.is_some_and(|spec| spec.qkv_bias),
            "attention_dropout": 0.0,
            "attention_window_size": self.window,
            "block_types": kinds,
            "bos_token_id": 2,
            "conv1d_width": recurrent.map_or(4, |spec| spec.taps),
            "embeddings_scale_by_sqrt_dim": true,
            "eos_token_id": self.eos,
            "head_dim": head_dim,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": self.hidden_size,
            "intermediate_size": 2 * self.blocks.first().map_or(0, |block| block.intermediate_size),
            "logits_soft_cap": self.final_softcap.map_or(0.0, shortest),
            "lru_width": recurrent.map_or(self.hidden_size, |spec| spec.channels),
            "model_type": "recurrent_gemma",
            "num_attention_heads": heads,
            "num_hidden_layers": self.blocks.len(),
            "num_key_value_heads": attention.map_or(1, |spec| spec.kv_heads),
            "pad_token_id": 0,
            "partial_rotary_factor": self.rope.rotary_dim as f64 / head_dim as f64,
            "rms_norm_eps": shortest(self.norm_eps),
            "rope_theta": shortest(self.rope.theta),
            "tie_word_embeddings": self.is_tied,
            "torch_dtype": dtype.to_string(),
            "use_cache": true,
            "vocab_size": self.vocab,
        });
        if self.inclusive_window {
            file["attention_window_inclusive"] = json!(true);
        }
        file
    }
}

/// The attention of every block that has one.
fn attention(heads: usize, kv_heads: usize, head_dim: usize, window: usize, qkv_bias: bool) -> AttentionSpec {
    AttentionSpec {
        heads,
        kv_heads,
        head_dim,
        scale: (head_dim as f32).powf(-0.5),
        softcap: None,
        visibility: Visibility::Causal { window: Some(window) },
        qk_norm: None,
        qkv_bias,
        // whatever `attention_bias` says
        output_bias: true,
    }
}

impl ConfigFile {
    fn resolve(self) -> Result<GriffinConfig, Error> {
        self.refuse_unsupported()?;
        let hidden_size = positive("hidden_size", self.hidden_size, LARGEST_DIMENSION)?;
        let heads = positive("num_attention_heads", self.num_attention_heads, hidden_size)?;
        if !hidden_size.is_multiple_of(heads) {
            return Err(invalid("num_attention_heads", heads, "a divisor of hidden_size"));
        }
        let head_dim = hidden_size / heads;
        if let Some(other) = self.head_dim.filter(|other| *other != head_dim) {
            return Err(invalid("head_dim", other, "hidden_size / num_attention_heads"));
        }
        let kv_heads = positive("num_key_value_heads", self.num_key_value_heads.unwrap_or(heads), heads)?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(invalid("num_key_value_heads", kv_heads, "a divisor of num_attention_heads"));
        }
        let channels = positive("lru_width", self.lru_width.unwrap_or(hidden_size), LARGEST_DIMENSION)?;
        if !channels.is_multiple_of(heads) {
            return Err(invalid("lru_width", channels, "a multiple of num_attention_heads"));
        }
        // twice the width of the MLP, which has two matrices of it
        if !self.intermediate_size.is_multiple_of(2) {
            return Err(invalid("intermediate_size", self.intermediate_size, "an even number"));
        }
        let intermediate_size = positive("intermediate_size", self.intermediate_size / 2, LARGEST_DIMENSION)?;
        let window = positive("attention_window_size", self.attention_window_size.unwrap_or(2048), MOST_WINDOW)?;
        let recurrent = RecurrentSpec {
            channels,
            blocks: heads,
            taps: positive("conv1d_width", self.conv1d_width.unwrap_or(4), LARGEST_DIMENSION)?,
        };
        let attention = attention(heads, kv_heads, head_dim, window, self.attention_bias.unwrap_or(false));
        let blocks = self
            .kinds()?
            .into_iter()
            .map(|kind| match kind {
                "recurrent" => Ok(BlockSpec { temporal: Temporal::Recurrent(recurrent), intermediate_size }),
                "attention" => Ok(BlockSpec { temporal: Temporal::Attention(attention), intermediate_size }),
                other => Err(invalid("block_types", other, "`recurrent` or `attention`")),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let config = GriffinConfig {
            vocab: positive("vocab_size", self.vocab_size, LARGEST_VOCAB)?,
            hidden_size,
            blocks,
            norm_eps: finite_positive("rms_norm_eps", self.rms_norm_eps.unwrap_or(1e-6))?,
            rope: self.rope(head_dim)?,
            final_softcap: cap("logits_soft_cap", self.logits_soft_cap, 30.0)?,
            is_tied: self.tie_word_embeddings.unwrap_or(true),
            eos: Ids::eos(self.eos_token_id),
            window,
            inclusive_window: false,
        };
        Ok(if self.attention_window_inclusive == Some(true) { config.with_inclusive_window() } else { config })
    }

    /// The kind of each block: the pattern, repeated and cut.
    fn kinds(&self) -> Result<Vec<&str>, Error> {
        let layers = positive("num_hidden_layers", self.num_hidden_layers, MOST_LAYERS)?;
        let pattern: Vec<&str> = match self.block_types.as_ref().or(self.old_block_types.as_ref()) {
            Some(kinds) => kinds.iter().map(String::as_str).collect(),
            None => PATTERN.to_vec(),
        };
        if pattern.is_empty() {
            return Err(invalid("block_types", "empty", "a list of `recurrent` and `attention`"));
        }
        Ok(pattern.into_iter().cycle().take(layers).collect())
    }

    fn rope(&self, head_dim: usize) -> Result<RopeSpec, Error> {
        let inner = self.rope_parameters.as_ref();
        let part = inner.and_then(|rope| rope.partial_rotary_factor).or(self.partial_rotary_factor).unwrap_or(0.5);
        let rotary_dim = (part * head_dim as f32) as usize;
        if !(part > 0.0 && part <= 1.0) || rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
            return Err(invalid("partial_rotary_factor", part, "a part of the head with an even number of dimensions"));
        }
        let theta = inner.and_then(|rope| rope.rope_theta).or(self.rope_theta).unwrap_or(10_000.0);
        Ok(RopeSpec::new(rotary_dim, finite_positive("rope_theta", theta)?))
    }

    /// Fields that change the mathematics in ways this crate does not have.
    fn refuse_unsupported(&self) -> Result<(), Error> {
        tanh_gelu("hidden_activation", self.hidden_activation.as_deref())?;
        if self.embeddings_scale_by_sqrt_dim == Some(false) {
            return Err(invalid("embeddings_scale_by_sqrt_dim", false, "true"));
        }
        // the reference scales no positions of this family
        for (field, rope) in [("rope_scaling", &self.rope_scaling), ("rope_parameters", &self.rope_parameters)] {
            let kind = rope.as_ref().and_then(|rope| rope.rope_type.as_deref().or(rope.kind.as_deref()));
            if let Some(kind) = kind.filter(|kind| *kind != "default") {
                return Err(invalid(field, kind, "of the type `default`"));
            }
        }
        let quantize = "absent; quantize with --precision instead";
        off("quantization_config", self.quantization_config.as_ref(), quantize)
    }
}

/// A longer window than any machine could hold the keys of.
const MOST_WINDOW: usize = 1 << 24;

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"{"model_type": "recurrent_gemma", "vocab_size": 512, "hidden_size": 40,
        "intermediate_size": 192, "num_hidden_layers": 8, "num_attention_heads": 2, "num_key_value_heads": 1,
        "lru_width": 56, "attention_window_size": 6"#;

    fn with(change: &str) -> Result<GriffinConfig, Error> {
        GriffinConfig::from_json(format!("{SMALL}{change}}}").as_bytes())
    }

    fn kinds(config: &GriffinConfig) -> String {
        let letter = |block: &BlockSpec| if matches!(block.temporal, Temporal::Recurrent(_)) { 'r' } else { 'a' };
        config.blocks.iter().map(letter).collect()
    }

    fn attention_of(config: &GriffinConfig) -> AttentionSpec {
        let found = config.blocks.iter().find_map(|block| match block.temporal {
            Temporal::Attention(spec) => Some(spec),
            Temporal::Recurrent(_) => None,
        });
        found.expect("an attention block")
    }

    #[test]
    fn the_pattern_is_repeated_and_cut_in_both_spellings() {
        assert_eq!(kinds(&with("").unwrap()), "rrarrarr");
        let pattern = r#"["attention", "recurrent"]"#;
        for spelling in ["block_types", "_block_types"] {
            assert_eq!(kinds(&with(&format!(r#", "{spelling}": {pattern}"#)).unwrap()), "arararar");
        }
    }

    #[test]
    fn the_mlp_is_half_as_wide_as_the_file_says() {
        assert!(with("").unwrap().blocks.iter().all(|block| block.intermediate_size == 96));
    }

    #[test]
    fn half_of_each_head_rotates_wherever_the_fraction_stands() {
        assert_eq!(with("").unwrap().rope.rotary_dim, 10);
        assert_eq!(with(r#", "partial_rotary_factor": 0.2"#).unwrap().rope.rotary_dim, 4);
        let inner = with(r#", "rope_parameters": {"partial_rotary_factor": 1.0, "rope_theta": 500.0}"#).unwrap();
        assert_eq!(inner.rope, RopeSpec::new(20, 500.0));
    }

    #[test]
    fn a_window_counts_the_token_itself_unless_it_is_inclusive() {
        let config = with("").unwrap();
        assert_eq!((attention_of(&config).window(), config.window()), (Some(6), 6));
        let inclusive = config.with_inclusive_window();
        assert_eq!((attention_of(&inclusive).window(), inclusive.window()), (Some(7), 7));
        assert_eq!(with(r#", "attention_window_inclusive": true"#).unwrap(), inclusive);
    }

    #[test]
    fn only_the_output_of_attention_has_a_bias_in_the_releases() {
        let plain = attention_of(&with("").unwrap());
        assert!(!plain.qkv_bias && plain.output_bias);
        assert!(attention_of(&with(r#", "attention_bias": true"#).unwrap()).qkv_bias);
    }

    #[test]
    fn a_cap_of_zero_switches_it_off() {
        assert_eq!(with("").unwrap().final_softcap, Some(30.0));
        assert_eq!(with(r#", "logits_soft_cap": 0.0"#).unwrap().final_softcap, None);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let config = with(
            r#", "attention_bias": true, "block_types": ["attention", "recurrent"],
            "logits_soft_cap": 0, "eos_token_id": [1, 107]"#,
        )
        .unwrap();
        for config in
            [config.clone(), config.with_inclusive_window(), GriffinConfig::preset("recurrentgemma-9b").unwrap()]
        {
            let text = config.to_json(Dtype::Bf16).to_string();
            assert_eq!(GriffinConfig::from_json(text.as_bytes()).unwrap(), config);
        }
    }

    #[test]
    fn values_that_cannot_be_right_are_refused_by_name() {
        for (change, field) in [
            (r#", "num_attention_heads": 3"#, "num_attention_heads"),
            (r#", "num_attention_heads": 0"#, "num_attention_heads"),
            (r#", "num_key_value_heads": 0"#, "num_key_value_heads"),
            (r#", "lru_width": 57"#, "lru_width"),
            (r#", "lru_width": 0"#, "lru_width"),
            (r#", "intermediate_size": 7"#, "intermediate_size"),
            (r#", "conv1d_width": 0"#, "conv1d_width"),
            (r#", "attention_window_size": 0"#, "attention_window_size"),
            (r#", "head_dim": 21"#, "head_dim"),
            (r#", "block_types": []"#, "block_types"),
            (r#", "block_types": ["attention", "mamba"]"#, "block_types"),
            (r#", "partial_rotary_factor": 0.05"#, "partial_rotary_factor"),
            (r#", "logits_soft_cap": -1"#, "logits_soft_cap"),
            (r#", "hidden_activation": "relu""#, "hidden_activation"),
            (r#", "rope_scaling": {"rope_type": "linear", "factor": 2.0}"#, "rope_scaling"),
            (r#", "rms_norm_eps": 0"#, "rms_norm_eps"),
            (r#", "num_hidden_layers": 100000"#, "num_hidden_layers"),
        ] {
            // a later field of the same name would be refused as a duplicate: take the earlier one out
            let name = change.trim_start_matches(", \"").split('"').next().unwrap();
            let mut fields: serde_json::Map<String, Value> = serde_json::from_str(&format!("{SMALL}}}")).unwrap();
            let changed: serde_json::Map<String, Value> =
                serde_json::from_str(&format!("{{{}}}", &change[1..])).unwrap();
            fields.insert(name.to_owned(), changed[name].clone());
            let error = GriffinConfig::from_json(Value::Object(fields).to_string().as_bytes()).unwrap_err().to_string();
            assert!(error.contains(&format!("config.json: {field} is ")), "{change}: {error}");
        }
        let other = GriffinConfig::from_json(br#"{"model_type": "gemma2"}"#).unwrap_err().to_string();
        assert!(other.contains("gemma2") && other.contains("recurrent_gemma"), "{other}");
    }

    #[test]
    fn presets_have_the_released_numbers() {
        for (name, numbers) in [
            ("recurrentgemma-2b", [2560, 26, 10, 256, 7680, 2560]),
            ("recurrentgemma-9b", [4096, 38, 16, 256, 12288, 4096]),
        ] {
            let config = GriffinConfig::preset(name).unwrap();
            let attention = attention_of(&config);
            let Temporal::Recurrent(recurrent) = config.blocks[0].temporal else { panic!("{name}") };
            let intermediate_size = config.blocks[0].intermediate_size;
            let found = [
                config.hidden_size,
                config.blocks.len(),
                attention.heads,
                attention.head_dim,
                intermediate_size,
                recurrent.channels,
            ];
            assert_eq!(found, numbers, "{name}");
            assert_eq!((recurrent.taps, recurrent.blocks, attention.kv_heads), (4, attention.heads, 1));
            assert_eq!((config.window(), config.final_softcap, config.rope.rotary_dim), (2048, Some(30.0), 128));
            assert!(kinds(&config).ends_with("arr"), "{name} ends on two recurrent blocks");
        }
        assert!(GriffinConfig::preset("gemma-2b").is_none());
    }
}
