//! PaliGemma and PaliGemma 2.

use gemma_backend::Device;
use gemma_generate::{GenerateOptions, Generated};
use gemma_model::{LoadOptions, OnLoad};
use gemma_weights::Checkpoint;
use paligemma::{PaliGemma, VisionLanguageModel};

use crate::{Capabilities, Error, FamilyModel, Pieces};

/// The model.
pub type Model = PaliGemma;

impl FamilyModel for PaliGemma {
    type Network = VisionLanguageModel;

    const NAMES: &'static [&'static str] = &["paligemma", "PaliGemmaForConditionalGeneration"];

    const IN_GGUF: bool = false;

    fn open(
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        device: &Device,
        progress: OnLoad<'_>,
    ) -> Result<Self, Error> {
        Ok(Self::from_checkpoint_with(checkpoint, options, device, progress)?)
    }

    fn from_network(network: VisionLanguageModel) -> Self {
        Self::without_tokenizer(network)
    }

    fn model(&self) -> &gemma_model::Model<VisionLanguageModel> {
        PaliGemma::model(self)
    }

    /// Continues a prompt without an image.
    fn generate(&self, prompt: &str, options: &GenerateOptions) -> Result<Generated, Error> {
        Ok(self.ask(&[], prompt, options)?)
    }

    /// Continues a prompt without an image.
    fn stream<'m>(&'m self, prompt: &str, options: &GenerateOptions) -> Result<Pieces<'m>, Error> {
        let stream = PaliGemma::stream(self, &[], prompt, options)?;
        Ok(Box::new(stream.map(|piece| piece.map_err(Error::from))))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { generate: true, images: true, ..Capabilities::default() }
    }
}
