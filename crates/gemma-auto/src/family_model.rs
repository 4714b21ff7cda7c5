//! What a family brings to this crate: its network, and how its model is opened.

use gemma_backend::Device;
use gemma_generate::{GenerateOptions, Generated};
use gemma_model::{LoadOptions, Model, Network, OnLoad};
use gemma_weights::Checkpoint;

use crate::Error;

/// Pieces of text as they are generated.
pub type Pieces<'m> = Box<dyn Iterator<Item = Result<String, Error>> + 'm>;

/// What a model can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Generates text from text.
    pub generate: bool,
    /// Answers in a conversation: its tokenizer has the tokens of turns.
    pub chat: bool,
    /// Takes images in its prompt.
    pub images: bool,
    /// Fills a hole between a prefix and a suffix: its tokenizer has the fill-in-the-middle tokens.
    pub infill: bool,
    /// Turns a text into one vector.
    pub embed: bool,
}

/// The model of a family: what this crate asks of it.
pub trait FamilyModel: Sized {
    /// The network inside.
    type Network: Network;

    /// `model_type` and the classes in `architectures` of the `config.json` files that describe it.
    const NAMES: &'static [&'static str];

    /// Whether GGUF has an architecture for it.
    const IN_GGUF: bool;

    /// Loads a checkpoint.
    ///
    /// # Errors
    /// When it is not a sound checkpoint of this architecture.
    fn open(
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        device: &Device,
        progress: OnLoad<'_>,
    ) -> Result<Self, Error>;

    /// A model around a network, without a tokenizer.
    fn from_network(network: Self::Network) -> Self;

    /// The model, as all families have it.
    fn model(&self) -> &Model<Self::Network>;

    /// Continues `prompt`.
    ///
    /// # Errors
    /// As [`FamilyModel::stream`].
    fn generate(&self, prompt: &str, options: &GenerateOptions) -> Result<Generated, Error> {
        Ok(self.model().generate(prompt, options)?)
    }

    /// Continues `prompt`, piece by piece.
    ///
    /// # Errors
    /// When an option is outside its range, the prompt does not fit, or there is no tokenizer.
    fn stream<'m>(&'m self, prompt: &str, options: &GenerateOptions) -> Result<Pieces<'m>, Error>;

    /// What it can do.
    fn capabilities(&self) -> Capabilities {
        text_capabilities(self.model())
    }
}

/// What a model of text can do, by the tokens of its tokenizer.
pub(crate) fn text_capabilities<N: Network>(model: &Model<N>) -> Capabilities {
    let control = model.tokenizer().ok().map(|tokenizer| tokenizer.control());
    Capabilities {
        generate: true,
        chat: control.is_some_and(|control| control.end_of_turn.is_some()),
        infill: control.is_some_and(|control| control.fim.is_some()),
        ..Capabilities::default()
    }
}

/// Continues a prompt of a model that reads text only.
pub(crate) fn stream_text<'m, N: Network>(
    model: &'m Model<N>,
    prompt: &str,
    options: &GenerateOptions,
) -> Result<Pieces<'m>, Error> {
    let stream = model.stream(prompt, options)?;
    Ok(Box::new(stream.map(|piece| piece.map_err(Error::from))))
}
