//! RecurrentGemma.

use gemma_backend::Device;
use gemma_generate::GenerateOptions;
use gemma_model::{LoadOptions, OnLoad};
use gemma_weights::Checkpoint;
use recurrentgemma::{Griffin, RecurrentGemma};

use crate::family_model::stream_text;
use crate::{Error, FamilyModel, Pieces};

/// The model.
pub type Model = RecurrentGemma;

impl FamilyModel for RecurrentGemma {
    type Network = Griffin;

    const NAMES: &'static [&'static str] = &["recurrent_gemma", "RecurrentGemmaForCausalLM"];

    const IN_GGUF: bool = false;

    fn open(
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        device: &Device,
        progress: OnLoad<'_>,
    ) -> Result<Self, Error> {
        Ok(Self::from_checkpoint_with(checkpoint, options, device, progress)?)
    }

    fn from_network(network: Griffin) -> Self {
        Self::without_tokenizer(network)
    }

    fn model(&self) -> &Self {
        self
    }

    fn stream<'m>(&'m self, prompt: &str, options: &GenerateOptions) -> Result<Pieces<'m>, Error> {
        stream_text(self, prompt, options)
    }
}
