//! The network: images through the encoder and the projector, among the embeddings of the text, through the decoder.
//!
//! The prompt (images, `<bos>`, text, line break) is a prefix that sees itself both ways; the answer is causal. That
//! is [`Segment::with_prefix`] and nothing else, so the decoder is Gemma's own, and an answer is made by the loop that
//! makes all texts.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use gemma::{Decoder, DecoderCache};
use gemma_generate::{CausalModel, Inputs, TokenId};
use gemma_model::{LoadOptions, Network, config_file};
use gemma_nn::{
    Adapted, ComputePrecision, ParameterList, Projection, RandomSource, RandomWeights, Saver, Segment, Source, Unpack,
    WithPrecision,
};
use gemma_tokenizer::Family;
use gemma_vision::{Filter, Siglip, embed_with_images, resize_filter};
use gemma_weights::{Checkpoint, Dtype, TensorSpec};

use crate::names::{Beginning, Layout, Released, Renamed};
use crate::seg::MASK_DECODERS;
use crate::{Error, PaliGemmaConfig, Pixels};

/// SigLIP, a projection, and Gemma's decoder: PaliGemma with Gemma 1, PaliGemma 2 with Gemma 2.
#[derive(Module, Debug)]
pub struct VisionLanguageModel {
    vision_tower: Siglip,
    multi_modal_projector: Projection,
    language_model: Decoder,
    #[module(skip)]
    config: PaliGemmaConfig,
}

/// A prompt: tokens, and the features that take the places of the `<image>` tokens among them, in order.
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'a> {
    /// Image tokens, `<bos>`, text, line break.
    pub tokens: &'a [TokenId],
    /// What [`VisionLanguageModel::encode`] made of each image.
    pub features: &'a [Tensor<2>],
}

impl VisionLanguageModel {
    /// Name and shape of every tensor of a checkpoint in a layout.
    fn tensors_in(layout: Layout, config: &PaliGemmaConfig, device: &Device) -> Vec<TensorSpec> {
        let mut parameter_list = ParameterList::new(device);
        Self::build(&mut Renamed::with(&mut parameter_list, layout), config, Dtype::F32);
        TensorSpec::list(parameter_list)
    }

    /// Builds the network from a source that is asked by the names inside, see `names.rs`.
    pub(crate) fn build(source: &mut dyn Source, config: &PaliGemmaConfig, dtype: Dtype) -> Self {
        let projector = "multi_modal_projector.linear";
        Self {
            vision_tower: Siglip::load(source, "vision_tower", &config.vision),
            multi_modal_projector: Projection::load(
                source,
                projector,
                config.vision.hidden_size,
                config.text.hidden_size,
                true,
            ),
            language_model: Decoder::load(source, &config.text, dtype),
            config: config.clone(),
        }
    }

    /// A trainable network that begins with what a checkpoint holds.
    ///
    /// # Errors
    /// When the checkpoint is not a sound PaliGemma model.
    pub fn open_trainable(checkpoint: &Checkpoint, device: &Device) -> Result<Self, gemma_model::Error> {
        Self::open_changed(checkpoint, &LoadOptions::default(), device, &mut |_, _| {}, Unpack)
    }

    /// The image encoder.
    pub fn vision_tower(&self) -> &Siglip {
        &self.vision_tower
    }

    /// The text decoder.
    pub fn language_model(&self) -> &Decoder {
        &self.language_model
    }

    /// From the encoder's features `[rows, vision hidden_size]` to what the decoder reads, `[rows, text hidden_size]`:
    /// `p = x Wᵀ + b`, no activation.
    pub fn project(&self, features: Tensor<2>) -> Tensor<2> {
        self.multi_modal_projector.forward(features)
    }

    /// Encodes images of the model's size: for each `[image_tokens, text hidden_size]`.
    ///
    /// # Panics
    /// When an image does not have that size.
    pub fn encode(&self, images: &[&Pixels]) -> Vec<Tensor<2>> {
        if images.is_empty() {
            return Vec::new();
        }
        let features = self.project(self.vision_tower.forward(images));
        let rows = self.config.image_tokens();
        (0..images.len()).map(|image| features.clone().narrow(0, image * rows, rows)).collect()
    }

    /// Embeddings of tokens, `[tokens, hidden_size]`: of text scaled, as the decoder does it; each `<image>` the next row of
    /// `features`, which are *not* scaled.
    ///
    /// # Panics
    /// When there is no token, or not one row per `<image>`.
    pub fn embed_with(&self, tokens: &[TokenId], features: &[Tensor<2>]) -> Inputs {
        embed_with_images(&self.language_model, tokens, self.config.image_token, features)
    }

    /// Prefills prompts, each into a new cache: hidden states `[tokens, hidden_size]`, all prompts one after the other. Each
    /// prompt is a prefix of its own, which sees itself both ways.
    ///
    /// # Panics
    /// When prompts and caches do not match, a cache is not new, or features do not match image tokens.
    pub fn prefill(&self, prompts: &[Prompt<'_>], caches: &mut [&mut DecoderCache]) -> Tensor<2> {
        let parts = prompts.iter().map(|prompt| self.embed_with(prompt.tokens, prompt.features)).collect();
        let segment = |prompt: &Prompt<'_>| {
            let len = prompt.tokens.len();
            Segment::causal(0, len).with_prefix(len)
        };
        let segments: Vec<Segment> = prompts.iter().map(segment).collect();
        self.forward(Inputs::cat(parts), &segments, caches)
    }

    /// Whether a prompt is sound: one image token for each patch of its images, known tokens, and no more than the
    /// context holds.
    ///
    /// # Errors
    /// The first of these that is wrong.
    pub fn check_prompt(&self, tokens: &[TokenId], images: usize) -> Result<(), Error> {
        let (image, each) = (self.config.image_token, self.config.image_tokens());
        let found = tokens.iter().filter(|token| **token == image).count();
        if found != images * each {
            return Err(Error::ImageTokens { found, expected: images * each, images, each });
        }
        Ok(gemma_generate::check_tokens(&self.language_model, tokens, Some(image))?)
    }
}

// The decoder's own: the embeddings of text, and a cache that can be truncated to the prompt and kept in a file.
gemma_generate::causal_model_of!(VisionLanguageModel, language_model: Decoder);
gemma_model::blocks_of_decoder!(VisionLanguageModel);

impl Network for VisionLanguageModel {
    type Config = PaliGemmaConfig;

    const FAMILY: Family = Family::PaliGemma;

    const COMPANIONS: &'static [&'static str] = &MASK_DECODERS;

    fn config_from_json(text: &[u8]) -> Result<PaliGemmaConfig, gemma_model::Error> {
        PaliGemmaConfig::from_json(text)
    }

    fn config_to_json(config: &PaliGemmaConfig, dtype: Dtype) -> serde_json::Value {
        config.to_json(dtype)
    }

    fn eos(config: &PaliGemmaConfig) -> &[TokenId] {
        &config.text.eos
    }

    /// The source is asked by the names of the released files.
    fn load(source: &mut dyn Source, config: &PaliGemmaConfig, dtype: Dtype) -> Self {
        Self::build(&mut Renamed::with(source, Layout::RELEASED), config, dtype)
    }

    fn save(&self, saver: &mut dyn Saver) {
        let saver = &mut Released(saver);
        self.vision_tower.save(saver, "vision_tower");
        self.multi_modal_projector.save(saver, "multi_modal_projector.linear");
        self.language_model.save(saver);
    }

    fn config(&self) -> &PaliGemmaConfig {
        &self.config
    }

    fn device(&self) -> Device {
        self.language_model.device()
    }

    /// A head of its own is used where the checkpoint has one that differs from the embedding table, whatever
    /// `tie_word_embeddings` says.
    fn config_of(checkpoint: &Checkpoint) -> Result<PaliGemmaConfig, gemma_model::Error> {
        let mut config = Self::config_from_json(&config_file(checkpoint)?)?;
        config.text.is_tied &= !Layout::of(checkpoint).is_untied(checkpoint);
        match resize_filter(checkpoint, config.vision.image_size, config.image_tokens())? {
            None | Some(Filter::Bicubic) => Ok(config),
            Some(Filter::Bilinear) => {
                let (field, value, expected) = ("resample", "2".to_owned(), "3 (bicubic) in a PaliGemma");
                Err(gemma_model::Error::ProcessorField { field, value, expected })
            }
        }
    }

    fn is_ignored(name: &str) -> bool {
        Layout::is_ignored(name)
    }

    fn tensors_of(checkpoint: &Checkpoint, config: &PaliGemmaConfig, device: &Device) -> Vec<TensorSpec> {
        Self::tensors_in(Layout::of(checkpoint), config, device)
    }

    /// A checkpoint may be in any of the layouts.
    fn load_from(source: &mut dyn Source, checkpoint: &Checkpoint, config: &PaliGemmaConfig) -> Self {
        Self::build(&mut Renamed::with(source, Layout::of(checkpoint)), config, checkpoint.dtype())
    }

    fn random_with(
        config: &PaliGemmaConfig,
        weights: RandomWeights,
        compute_precision: ComputePrecision,
        seed: u64,
        device: &Device,
    ) -> Self {
        let mut source = RandomSource::new(weights, seed, device);
        let mut source = WithPrecision::new(&mut source, compute_precision);
        Self::build(&mut Adapted::with(&mut source, Beginning), config, Dtype::Bf16)
    }
}
