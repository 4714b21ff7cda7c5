//! The front door: a tokenizer, a network, and what belongs to them.

use std::path::Path;

use burn::tensor::Tensor;
use gemma_backend::Device;
use gemma_generate::{
    CausalModel, GenerateOptions, Generated, Generation, Prompt, Request, Sequence, TextStream, TokenId, generate_batch,
};
use gemma_model::{LoadOptions, Model, Network, OnLoad};
use gemma_tokenizer::Tokenizer;
use gemma_weights::{Checkpoint, Dtype, HubOptions};

use crate::seg::MASK_DECODERS;
use crate::{Error, Image, MaskDecoder, VisionLanguageModel, prompt};

/// A PaliGemma model, ready to look at images.
#[derive(Debug)]
pub struct PaliGemma {
    model: Model<VisionLanguageModel>,
    mask_decoder: Option<MaskDecoder>,
}

/// An image as the model sees it: encoded once, to be asked about any number of times. A clone shares the features.
#[derive(Clone, Debug)]
pub struct ImageFeatures<'m> {
    model: &'m PaliGemma,
    features: Tensor<2>,
    width: usize,
    height: usize,
}

/// A question about some images, for [`PaliGemma::ask_batch`].
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The images, in order.
    pub views: &'a [&'a ImageFeatures<'a>],
    /// The prompt: a task, such as `caption en`.
    pub prompt: &'a str,
}

impl<'m> ImageFeatures<'m> {
    fn new(model: &'m PaliGemma, image: &Image, features: Tensor<2>) -> Self {
        Self { model, features, width: image.width(), height: image.height() }
    }

    /// What the decoder reads in place of the image: `[image_tokens, text width]`.
    pub fn features(&self) -> &Tensor<2> {
        &self.features
    }

    /// The model that looked at it.
    pub fn model(&self) -> &'m PaliGemma {
        self.model
    }

    /// Width of the image, in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height of the image, in pixels.
    pub fn height(&self) -> usize {
        self.height
    }
}

impl PaliGemma {
    /// Opens a model: a folder in Hugging Face format, or a hub id `org/name[@revision]`, which is downloaded on
    /// first use.
    ///
    /// # Errors
    /// When there is no such model, it cannot be fetched, or it is not a sound PaliGemma checkpoint.
    pub fn load(model: &str, device: &Device) -> Result<Self, Error> {
        Self::load_with(model, &LoadOptions::default(), device)
    }

    /// [`PaliGemma::load`] with options.
    ///
    /// # Errors
    /// As [`PaliGemma::load`].
    pub fn load_with(model: &str, options: &LoadOptions, device: &Device) -> Result<Self, Error> {
        let hub = HubOptions::from_env();
        let hub = HubOptions { offline: hub.offline || options.offline, ..hub };
        Self::load_folder(&gemma_weights::resolve(model, &hub)?, options, device)
    }

    /// Opens a model folder. A file `vae-oid.npz` or `mask_decoder.safetensors` in it becomes the mask decoder.
    ///
    /// # Errors
    /// When it is not a sound PaliGemma checkpoint.
    pub fn load_folder(folder: &Path, options: &LoadOptions, device: &Device) -> Result<Self, Error> {
        Self::from_checkpoint(&Checkpoint::open(folder)?, options, device)
    }

    /// Makes a model of an opened checkpoint. One without tokenizer files can still be used with token numbers.
    ///
    /// # Errors
    /// As [`PaliGemma::load_folder`].
    pub fn from_checkpoint(checkpoint: &Checkpoint, options: &LoadOptions, device: &Device) -> Result<Self, Error> {
        Self::from_checkpoint_with(checkpoint, options, device, &mut |_, _| {})
    }

    /// [`PaliGemma::from_checkpoint`], reporting progress.
    ///
    /// # Errors
    /// As [`PaliGemma::load_folder`].
    pub fn from_checkpoint_with(
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        device: &Device,
        progress: OnLoad<'_>,
    ) -> Result<Self, Error> {
        let model = Model::from_checkpoint_with(checkpoint, options, device, progress)?;
        Ok(Self { model, mask_decoder: find_mask_decoder(checkpoint, device)? })
    }

    /// A model of parts that are there already, such as one that was just trained.
    pub fn from_parts(network: VisionLanguageModel, tokenizer: Tokenizer) -> Self {
        Self { model: Model::from_parts(network, tokenizer), mask_decoder: None }
    }

    /// A model around a network, for token ids only.
    pub fn without_tokenizer(network: VisionLanguageModel) -> Self {
        Self { model: Model::without_tokenizer(network), mask_decoder: None }
    }

    /// The same model with this decoder of masks.
    pub fn with_mask_decoder(self, mask_decoder: MaskDecoder) -> Self {
        Self { mask_decoder: Some(mask_decoder), ..self }
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// When the checkpoint came without one.
    pub fn tokenizer(&self) -> Result<&Tokenizer, Error> {
        Ok(self.model.tokenizer()?)
    }

    /// The tokenizer and the network beneath, to be shared with an engine on a thread ([`Model::engine`]).
    pub fn model(&self) -> &Model<VisionLanguageModel> {
        &self.model
    }

    /// The network.
    pub fn network(&self) -> &VisionLanguageModel {
        self.model.network()
    }

    /// The tokens that end an answer.
    pub fn stop_tokens(&self) -> &[TokenId] {
        self.model.stop_tokens()
    }

    /// The decoder of masks.
    ///
    /// # Errors
    /// When none was found or given.
    pub fn mask_decoder(&self) -> Result<&MaskDecoder, Error> {
        self.mask_decoder.as_ref().ok_or(Error::NoMaskDecoder)
    }

    /// Looks at an image: encodes it once, for any number of questions.
    pub fn encode_image(&self, image: &Image) -> ImageFeatures<'_> {
        self.encode_images(&[image]).remove(0)
    }

    /// Looks at several images in one call of the encoder.
    pub fn encode_images(&self, images: &[&Image]) -> Vec<ImageFeatures<'_>> {
        let side = self.network().config().vision.image_size;
        let pixels: Vec<_> = images.iter().map(|image| image.pixels(side)).collect();
        let features = self.network().encode(&pixels.iter().collect::<Vec<_>>());
        let view = |(image, features): (&&Image, Tensor<2>)| ImageFeatures::new(self, image, features);
        images.iter().zip(features).map(view).collect()
    }

    /// The tokens of a prompt about `images` images.
    ///
    /// # Errors
    /// When there is no tokenizer, or it lacks a token.
    pub fn prompt_tokens(&self, images: usize, text: &str) -> Result<Vec<TokenId>, Error> {
        let config = self.network().config();
        prompt::tokens(self.tokenizer()?, config.image_token, images * config.image_tokens(), text)
    }

    /// Answers a prompt about some images, usually one.
    ///
    /// # Errors
    /// When an option is outside its range or the prompt does not fit.
    pub fn ask(
        &self,
        views: &[&ImageFeatures<'_>],
        prompt: &str,
        options: &GenerateOptions,
    ) -> Result<Generated, Error> {
        Ok(self.stream(views, prompt, options)?.finish()?)
    }

    /// Answers a prompt about some images, piece by piece: an iterator of texts that are ready to be shown.
    ///
    /// # Errors
    /// As [`PaliGemma::ask`].
    pub fn stream(
        &self,
        views: &[&ImageFeatures<'_>],
        prompt: &str,
        options: &GenerateOptions,
    ) -> Result<TextStream<'_, '_, VisionLanguageModel>, Error> {
        let tokens = self.prompt_tokens(views.len(), prompt)?;
        let generation = self.begin(&tokens, &features(views), options)?;
        Ok(TextStream::new(generation, self.tokenizer()?.stream()))
    }

    /// Answers many prompts together: their prompts are prefilled in one pass, as segments of their own lengths, and
    /// each further step is one pass for all of them.
    ///
    /// # Errors
    /// As [`PaliGemma::ask`].
    pub fn ask_batch(&self, questions: &[Question<'_>], options: &GenerateOptions) -> Result<Vec<Generated>, Error> {
        let request = |question: &Question<'_>| {
            let tokens = self.prompt_tokens(question.views.len(), question.prompt)?;
            // all prompts are prefilled in one pass
            let options = GenerateOptions { prefill_chunk: usize::MAX, ..options.clone() };
            self.request(&tokens, &features(question.views), &options)
        };
        let requests = questions.iter().map(request).collect::<Result<Vec<_>, Error>>()?;
        Ok(generate_batch(self.network(), self.tokenizer()?, requests)?)
    }

    /// The request to an [`Engine`](gemma_generate::Engine) for a prompt that is already tokens, image tokens included, with
    /// the features that belong to them.
    ///
    /// # Errors
    /// As [`PaliGemma::ask`], and when image tokens and features do not match.
    pub fn request(
        &self,
        tokens: &[TokenId],
        features: &[Tensor<2>],
        options: &GenerateOptions,
    ) -> Result<Request<'static>, Error> {
        options.check()?;
        let network = self.network();
        network.check_prompt(tokens, features.len())?;
        let prompt = Prompt::Inputs { inputs: network.embed_with(tokens, features), blocks: vec![0..tokens.len()] };
        let stop_tokens = self.stop_tokens().to_vec();
        Ok(Request { prompt, options: options.clone(), stop_tokens, ..Request::default() })
    }

    /// Begins an answer to a prompt that is already tokens, image tokens included, with the features that belong to them.
    ///
    /// # Errors
    /// As [`PaliGemma::ask`], and when image tokens and features do not match.
    pub fn begin(
        &self,
        tokens: &[TokenId],
        features: &[Tensor<2>],
        options: &GenerateOptions,
    ) -> Result<Generation<'_, VisionLanguageModel>, Error> {
        let sequence = Sequence::new(self.network().new_cache());
        let generation = Generation::of(self.network(), sequence, self.request(tokens, features, options)?)?;
        Ok(self.model.speculating(generation))
    }

    /// Writes the model as a folder that [`PaliGemma::load`] and HF transformers open, see [`Model::save`].
    ///
    /// # Errors
    /// When the folder cannot be written, or the weights are held in a quantized format.
    pub fn save(&self, folder: &Path, dtype: Dtype, replace: bool) -> Result<(), Error> {
        Ok(self.model.save(folder, dtype, replace)?)
    }
}

/// The mask decoder that lies beside a model's weights, if one does.
fn find_mask_decoder(checkpoint: &Checkpoint, device: &Device) -> Result<Option<MaskDecoder>, Error> {
    for name in MASK_DECODERS {
        if let Some(content) = checkpoint.file(name)? {
            let path = checkpoint.path().unwrap_or(Path::new("")).join(name);
            return Ok(Some(MaskDecoder::from_bytes(&path, content, device)?));
        }
    }
    Ok(None)
}

fn features(views: &[&ImageFeatures<'_>]) -> Vec<Tensor<2>> {
    views.iter().map(|view| view.features().clone()).collect()
}
