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
use gemma_weights::catalogue;

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
    /// `gemma-3-270m` to `gemma-3-27b` (of those with images, the text decoder).
    pub fn preset(name: &str) -> Option<Self> {
        Self::from_json(catalogue::shape(name)?.config.as_bytes()).ok()
    }
}
