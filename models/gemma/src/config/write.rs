//! A `config.json` that HF transformers reads.

use super::{DecoderConfig, LayerSpec, Norms};
use gemma_model::fields::shortest;
use gemma_nn::{RopeSpec, Visibility};
use serde_json::{Value, json};

impl DecoderConfig {
    /// The `config.json` that HF transformers reads back as this decoder.
    ///
    /// Works for decoders whose layers differ only in their window and, in Gemma 3, the rotary embedding that goes with
    /// it, as all released ones do.
    pub fn to_json(&self, dtype: gemma_weights::Dtype) -> Value {
        let layer = self.layers.first().expect("a decoder has layers");
        let attention = layer.attention;
        let full = self.layers.iter().find(|layer| window(layer).is_none());
        let windowed = self.layers.iter().find(|layer| window(layer).is_some());
        let rope = full.unwrap_or(layer).rope;
        let mut file = json!({
            "attention_bias": attention.qkv_bias,
            "attention_dropout": 0.0,
            "bos_token_id": 2,
            "eos_token_id": self.eos,
            "head_dim": attention.head_dim,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": layer.intermediate_size,
            "max_position_embeddings": self.context,
            "num_attention_heads": attention.heads,
            "num_hidden_layers": self.layers.len(),
            "num_key_value_heads": attention.kv_heads,
            "pad_token_id": 0,
            "rms_norm_eps": shortest(self.norm_eps),
            "rope_theta": shortest(rope.theta),
            "tie_word_embeddings": self.is_tied,
            "torch_dtype": dtype.to_string(),
            "use_cache": true,
            "vocab_size": self.vocab,
        });
        let fields = file.as_object_mut().expect("an object was written");
        let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        if rope.factor != 1.0 {
            set("rope_scaling", scaling(rope));
        }
        if layer.norms == Norms::Before {
            set("architectures", json!(["GemmaForCausalLM"]));
            set("model_type", json!("gemma"));
            set("hidden_act", json!("gelu_pytorch_tanh"));
            return file;
        }
        let kind = |layer: &LayerSpec| {
            if window(layer).is_some() { "sliding_attention" } else { "full_attention" }
        };
        // scale is query_pre_attn_scalar ^ -1/2; transformers takes a whole number only
        set("query_pre_attn_scalar", json!(attention.scale.powi(-2).round() as u64));
        set("layer_types", json!(self.layers.iter().map(kind).collect::<Vec<_>>()));
        set("sliding_window", json!(windowed.and_then(window).unwrap_or(4096)));
        set("final_logit_softcapping", json!(self.final_softcap.map(shortest)));
        if attention.qk_norm.is_none() {
            let (architecture, model_type) = match layer.norms {
                Norms::BeforeVault => ("VaultGemmaForCausalLM", "vaultgemma"),
                _ => ("Gemma2ForCausalLM", "gemma2"),
            };
            set("architectures", json!([architecture]));
            set("model_type", json!(model_type));
            set("hidden_act", json!("gelu_pytorch_tanh"));
            set("attn_logit_softcapping", json!(attention.softcap.map(shortest)));
            return file;
        }
        let architecture = if self.is_bidirectional() { "Gemma3TextModel" } else { "Gemma3ForCausalLM" };
        set("architectures", json!([architecture]));
        set("model_type", json!("gemma3_text"));
        set("attn_logit_softcapping", Value::Null);
        set("use_bidirectional_attention", json!(self.is_bidirectional()));
        set("rope_local_base_freq", json!(windowed.map_or(10_000.0, |layer| shortest(layer.rope.theta))));
        if let Some(pattern) = self.pattern() {
            // for readers that do not know layer_types
            set("sliding_window_pattern", json!(pattern));
        }
        file
    }

    /// The `p` with which layer `i`, counted from 1, is full exactly where `p` divides `i`.
    fn pattern(&self) -> Option<usize> {
        let full = |index: usize| window(&self.layers[index - 1]).is_none();
        let pattern = (1..=self.layers.len()).find(|index| full(*index)).unwrap_or(self.layers.len() + 1);
        (1..=self.layers.len()).all(|index| full(index) == index.is_multiple_of(pattern)).then_some(pattern)
    }
}

/// The `sliding_window` of a layer: in bidirectional attention, twice what a token sees on each side.
fn window(layer: &LayerSpec) -> Option<usize> {
    match layer.attention.visibility {
        Visibility::Causal { window } => window,
        Visibility::Bidirectional { radius } => radius.map(|radius| 2 * (radius - 1)),
    }
}

/// The `rope_scaling` of a rotary embedding.
fn scaling(rope: RopeSpec) -> Value {
    json!({ "rope_type": "linear", "factor": shortest(rope.factor) })
}
