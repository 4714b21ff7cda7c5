//! `config.json`, resolved once into what each layer needs.
//!
//! The file is read into a private mirror of its fields, old and new spellings alike (`read`), and turned into a
//! [`DecoderConfig`]; `write` makes a `config.json` of it again. A field that is read is used, or refused with an error
//! that names field and value; nothing below this module asks which generation a model belongs to.

mod read;
#[cfg(test)]
mod tests;
mod write;

use gemma_nn::{AttentionSpec, RopeSpec, Visibility};
use gemma_weights::catalogue::{self, Decoder as Kind, Shape};

/// Where a layer normalises, and what the norm before the MLP is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norms {
    /// Gemma 1: before attention and before the MLP; the second is called `post_attention_layernorm`.
    Before,
    /// VaultGemma: as Gemma 1, and the second is called `pre_feedforward_layernorm`.
    BeforeVault,
    /// Gemma 2 and 3: before and after each of the two.
    BeforeAndAfter,
}

/// What one decoder layer needs to know.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerSpec {
    /// Its attention.
    pub attention: AttentionSpec,
    /// Its rotary embedding: Gemma 3 has another base in windowed layers than in full ones.
    pub rope: RopeSpec,
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
    /// Soft cap of the logits.
    pub final_softcap: Option<f32>,
    /// The longest sequence the model was made for, in tokens.
    pub context: usize,
    /// Tokens that end a text, from `config.json`.
    pub eos: Vec<u32>,
    /// Whether the output head is the embedding table; otherwise it is `lm_head.weight`.
    pub is_tied: bool,
}

impl DecoderConfig {
    /// Whether tokens see those after them, too (EmbeddingGemma). Such a model makes no text.
    pub fn is_bidirectional(&self) -> bool {
        self.layers.iter().any(|layer| matches!(layer.attention.visibility, Visibility::Bidirectional { .. }))
    }

    /// The configuration of a released size: `gemma-2b`, `gemma-7b`, `gemma-2-2b`, `gemma-2-9b`, `gemma-2-27b`,
    /// `gemma-3-270m` to `gemma-3-27b`.
    pub fn preset(name: &str) -> Option<Self> {
        catalogue::shape(name).and_then(Self::from_shape)
    }

    /// The text decoder of a row of the catalogue; `None` for RecurrentGemma, which is another network.
    pub fn from_shape(shape: &Shape) -> Option<Self> {
        let eps = shape.rms_norm_eps as f32;
        // a windowed layer is one whose number, counted from 1, is no multiple of the period
        let (norms, scalar, caps, window, period) = match shape.decoder {
            Kind::Gemma => (Norms::Before, shape.head_dim as f32, None, None, 1),
            Kind::VaultGemma { attn_logit_softcapping, final_logit_softcapping } => {
                let caps = Some((attn_logit_softcapping as f32, final_logit_softcapping as f32));
                (Norms::BeforeVault, shape.head_dim as f32, caps, None, 1)
            }
            Kind::Gemma2 { sliding_window, query_pre_attn_scalar, attn_logit_softcapping, final_logit_softcapping } => {
                let caps = Some((attn_logit_softcapping as f32, final_logit_softcapping as f32));
                (Norms::BeforeAndAfter, query_pre_attn_scalar as f32, caps, Some(sliding_window), 2)
            }
            Kind::Gemma3 { sliding_window, query_pre_attn_scalar, .. } => {
                (Norms::BeforeAndAfter, query_pre_attn_scalar as f32, None, Some(sliding_window), 6)
            }
            Kind::RecurrentGemma { .. } => return None,
        };
        let full = RopeSpec::new(shape.head_dim, shape.rope_theta as f32);
        let (full, windowed, qk_norm) = match shape.decoder {
            Kind::Gemma3 { rope_local_theta, rope_factor, .. } => (
                RopeSpec { factor: rope_factor as f32, ..full },
                RopeSpec::new(shape.head_dim, rope_local_theta as f32),
                Some(eps),
            ),
            _ => (full, full, None),
        };
        let layer = |number: usize| {
            let window = window.filter(|_| !number.is_multiple_of(period));
            let attention = AttentionSpec {
                heads: shape.heads,
                kv_heads: shape.kv_heads,
                head_dim: shape.head_dim,
                scale: scalar.powf(-0.5),
                softcap: caps.map(|(attention, _)| attention),
                visibility: match shape.is_bidirectional() {
                    false => Visibility::Causal { window },
                    // the window lies half before a token and half behind it
                    true => Visibility::Bidirectional { radius: window.map(|window| window / 2 + 1) },
                },
                qk_norm,
                qkv_bias: false,
                output_bias: false,
            };
            let rope = if window.is_some() { windowed } else { full };
            LayerSpec { attention, rope, intermediate_size: shape.intermediate_size, norms }
        };
        Some(Self {
            vocab: shape.vocab,
            hidden_size: shape.hidden_size,
            layers: (1..=shape.layers).map(layer).collect(),
            norm_eps: eps,
            final_softcap: caps.map(|(_, logits)| logits),
            context: shape.context,
            eos: vec![1],
            is_tied: true,
        })
    }
}
