//! Gemma 1, 1.1, 2 and 3, VaultGemma, and CodeGemma, whose network is Gemma's.

use gemma::{Decoder, Gemma};
use gemma_backend::Device;
use gemma_generate::GenerateOptions;
use gemma_model::{LoadOptions, OnLoad};
use gemma_weights::Checkpoint;

use crate::family_model::stream_text;
use crate::{Error, FamilyModel, Pieces};

/// The model.
pub type Model = Gemma;

impl FamilyModel for Gemma {
    type Network = Decoder;

    const NAMES: &'static [&'static str] = &[
        "gemma",
        "GemmaForCausalLM",
        "gemma2",
        "Gemma2ForCausalLM",
        "gemma3",
        "gemma3_text",
        "Gemma3ForCausalLM",
        "vaultgemma",
        "VaultGemmaForCausalLM",
    ];

    const IN_GGUF: bool = true;

    fn open(
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        device: &Device,
        progress: OnLoad<'_>,
    ) -> Result<Self, Error> {
        Ok(Self::from_checkpoint_with(checkpoint, options, device, progress)?)
    }

    fn from_network(network: Decoder) -> Self {
        Self::without_tokenizer(network)
    }

    fn model(&self) -> &Self {
        self
    }

    fn stream<'m>(&'m self, prompt: &str, options: &GenerateOptions) -> Result<Pieces<'m>, Error> {
        stream_text(self, prompt, options)
    }
}
