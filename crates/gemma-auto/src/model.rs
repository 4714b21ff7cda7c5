//! What every loaded model can be asked, whatever its architecture.

use gemma_backend::Device;
use gemma_generate::{CausalModel, GenerateOptions, Generated};
use gemma_model::{LoadOptions, Network, Speculate};
use gemma_tokenizer::{Tokenizer, Turn};

use crate::{AutoModel, Capabilities, CodeGemma, Error, FamilyModel, Gemma, PaliGemma, Pieces, find};

impl AutoModel {
    /// Opens the model that a name stands for, see [the list of names](crate#names).
    ///
    /// # Errors
    /// When there is no such model, it cannot be fetched, or it is not a sound checkpoint.
    pub fn load(name: &str, device: &Device) -> Result<Self, Error> {
        Self::load_with(name, &LoadOptions::default(), device)
    }

    /// [`AutoModel::load`] with options.
    ///
    /// # Errors
    /// As [`AutoModel::load`].
    pub fn load_with(name: &str, options: &LoadOptions, device: &Device) -> Result<Self, Error> {
        find(name, options)?.open(options, device)
    }

    /// What it can do.
    pub fn capabilities(&self) -> Capabilities {
        each_family!(self, family => family.capabilities())
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// When the checkpoint came without one.
    pub fn tokenizer(&self) -> Result<&Tokenizer, Error> {
        with_model!(self, model => Ok(model.tokenizer()?))
    }

    /// Rows of the embedding table: token ids are below it.
    pub fn vocab(&self) -> usize {
        with_model!(self, model => model.network().vocab())
    }

    /// The longest sequence the model was made for, in tokens; `None` where there is no limit.
    pub fn context_length(&self) -> Option<usize> {
        with_model!(self, model => model.network().context_length())
    }

    /// Bytes of all weights as they are held.
    pub fn weight_bytes(&self) -> usize {
        with_model!(self, model => model.network().weight_bytes())
    }

    /// Continues `prompt`.
    ///
    /// # Errors
    /// When an option is outside its range, the prompt does not fit, or there is no tokenizer.
    pub fn generate(&self, prompt: &str, options: &GenerateOptions) -> Result<Generated, Error> {
        each_family!(self, family => FamilyModel::generate(family, prompt, options))
    }

    /// Continues `prompt` piece by piece: an iterator of texts that are ready to be shown.
    ///
    /// # Errors
    /// As [`AutoModel::generate`].
    pub fn stream(&self, prompt: &str, options: &GenerateOptions) -> Result<Pieces<'_>, Error> {
        each_family!(self, family => FamilyModel::stream(family, prompt, options))
    }

    /// Answers the last turn of a conversation, in the model's chat format.
    ///
    /// # Errors
    /// When the model was not trained to talk, the template refuses the conversation, or as [`AutoModel::generate`].
    pub fn chat(&self, turns: &[Turn], options: &GenerateOptions) -> Result<Generated, Error> {
        if !self.capabilities().chat {
            return Err(self.incapable("chat", "use `generate`, or a checkpoint whose name ends in -it"));
        }
        with_model!(self, model => Ok(model.stream_chat(turns, options)?.finish()?))
    }

    /// Drafts of this model, for a larger one with the same vocabulary: [`LoadOptions::speculate`].
    ///
    /// # Errors
    /// When it cannot draft, as a recurrent model.
    pub fn drafting(&self) -> Result<Speculate, Error> {
        self.drafting_after(Speculate::default())
    }

    /// `speculate`, with drafts of this model where it has none.
    ///
    /// # Errors
    /// As [`AutoModel::drafting`].
    pub fn drafting_after(&self, speculate: Speculate) -> Result<Speculate, Error> {
        with_model!(self, model => Ok(speculate.or_model(model)?))
    }

    /// The model as one that fills holes in code.
    ///
    /// # Errors
    /// When it has no fill-in-the-middle tokens.
    pub fn into_code(self) -> Result<CodeGemma, Error> {
        match self {
            Self::Gemma(gemma) => Ok(CodeGemma::new(gemma)?),
            other => Err(other.incapable("fill in code", "use a CodeGemma such as google/codegemma-2b")),
        }
    }

    /// The model as one that sees images.
    ///
    /// # Errors
    /// When it reads text only.
    pub fn into_images(self) -> Result<PaliGemma, Error> {
        match self {
            Self::PaliGemma(model) => Ok(model),
            other => Err(other.incapable("see images", "use a PaliGemma such as google/paligemma-3b-mix-224")),
        }
    }

    /// The error for something that the model does not do.
    pub fn incapable(&self, ability: &'static str, instead: &'static str) -> Error {
        Error::Incapable { architecture: self.architecture().to_string(), ability, instead }
    }
}

impl From<Gemma> for AutoModel {
    fn from(model: Gemma) -> Self {
        Self::Gemma(model)
    }
}
