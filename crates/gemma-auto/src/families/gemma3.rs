//! Gemma 3 with images, and ShieldGemma 2.

use gemma_backend::Device;
use gemma_generate::GenerateOptions;
use gemma_model::{LoadOptions, OnLoad};
use gemma_weights::Checkpoint;
use gemma3::{Gemma3, Gemma3Network};

use crate::family_model::{stream_text, text_capabilities};
use crate::{Capabilities, Error, FamilyModel, Pieces};

/// The model.
pub type Model = Gemma3;

impl FamilyModel for Gemma3 {
    type Network = Gemma3Network;

    // `gemma3` alone may also be a text model, see `Architecture::of_config`
    const NAMES: &'static [&'static str] =
        &["Gemma3ForConditionalGeneration", "shieldgemma2", "ShieldGemma2ForImageClassification"];

    const IN_GGUF: bool = false;

    fn open(
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        device: &Device,
        progress: OnLoad<'_>,
    ) -> Result<Self, Error> {
        Ok(Self::from_checkpoint_with(checkpoint, options, device, progress)?)
    }

    fn from_network(network: Gemma3Network) -> Self {
        Self::without_tokenizer(network)
    }

    fn model(&self) -> &gemma_model::Model<Gemma3Network> {
        Gemma3::model(self)
    }

    /// Continues a prompt without an image.
    fn stream<'m>(&'m self, prompt: &str, options: &GenerateOptions) -> Result<Pieces<'m>, Error> {
        stream_text(Gemma3::model(self), prompt, options)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { images: true, ..text_capabilities(Gemma3::model(self)) }
    }
}
