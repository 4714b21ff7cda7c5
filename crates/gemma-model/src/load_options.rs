//! How a model is opened.

use std::path::PathBuf;

use gemma_nn::{ActivationPrecision, CachePrecision, ComputePrecision};
use gemma_tokenizer::{ChatTemplate, Family};
use gemma_weights::{Adapter, Precision};

use crate::Speculate;

/// How a model is opened.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// The precision in which matrices are held; `None`: as they are stored.
    pub precision: Option<Precision>,
    /// Use only what is on this machine, as `HF_HUB_OFFLINE=1` does.
    pub offline: bool,
    /// Whose control tokens the tokenizer has; `None`: those of the network's own family. It matters only for
    /// tokenizer files that leave the names out.
    pub family: Option<Family>,
    /// Read a window of `W` as DeepMind's own code reads RecurrentGemma's: `W` keys before a token and the token
    /// itself, one more than transformers sees. Other models refuse it.
    pub inclusive_window: bool,
    /// How finely products on the CPU represent activations; the default loses nothing that shows.
    pub activations: ActivationPrecision,
    /// In how many bits keys and values are kept.
    pub cache: CachePrecision,
    /// Add up every product in an order that does not depend on how many requests share a call. With
    /// [`EngineOptions::batch_invariant`](gemma_generate::EngineOptions::batch_invariant), each request gets bit for bit
    /// the results it gets alone.
    pub batch_invariant: bool,
    /// Leave the tokenizer out, for programs that give token ids and read logits: a large vocabulary takes a second to
    /// read.
    pub without_tokenizer: bool,
    /// A chat template in place of the checkpoint's, which is then not looked at.
    pub chat_template: Option<ChatTemplate>,
    /// LoRA adapters whose effects are added, each computed beside the weights, which stay as they are.
    pub adapters: Vec<Adapter>,
    /// LoRA adapters that a request may choose, by their places in this list
    /// ([`Request::adapters`](gemma_generate::Request::adapters)); they change nothing for requests that do not.
    pub request_adapters: Vec<Adapter>,
    /// The file of the image encoder (`mmproj`) that belongs to a GGUF file of Gemma 3.
    pub image_encoder: Option<PathBuf>,
    /// Speculative decoding of whatever the model generates; `None`: every token by a forward pass of its own.
    pub speculate: Option<Speculate>,
}

impl LoadOptions {
    /// How finely the layers compute.
    pub fn compute_precision(&self) -> ComputePrecision {
        ComputePrecision { activations: self.activations, cache: self.cache, batch_invariant: self.batch_invariant }
    }
}

/// Called while a model is opened: bytes done and bytes in all.
pub type OnLoad<'a> = &'a mut dyn FnMut(u64, u64);
