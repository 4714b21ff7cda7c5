//! The network: images through the encoder and the projector, among the embeddings of the text, through the decoder.
//!
//! A text is causal, and the tokens of one image see each other both ways: that is a block of its segment
//! ([`Gemma3Network::blocks`]) and nothing else, so the decoder is Gemma's own, and an answer is made by the loop that
//! makes all texts.

use std::ops::Range;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use gemma::Decoder;
use gemma_generate::{Inputs, TokenId};
use gemma_model::{Network, config_file};
use gemma_nn::{RmsNorm, Saver, Source};
use gemma_tokenizer::Family;
use gemma_vision::{Pixels, Siglip, SiglipConfig, embed_with_images};
use gemma_weights::{Checkpoint, Dtype};

use crate::{Error, Gemma3Config, names};

/// SigLIP, a projector, and Gemma 3's decoder.
#[derive(Module, Debug)]
pub struct Gemma3Network {
    vision_tower: Siglip,
    multi_modal_projector: Projector,
    language_model: Decoder,
    #[module(skip)]
    config: Gemma3Config,
}

impl Gemma3Network {
    /// The image encoder.
    pub fn vision_tower(&self) -> &Siglip {
        &self.vision_tower
    }

    /// The text decoder.
    pub fn language_model(&self) -> &Decoder {
        &self.language_model
    }

    /// From the encoder's features `[images · patches, vision hidden_size]` to what the decoder reads,
    /// `[images · image_tokens, text hidden_size]`.
    pub fn project(&self, features: Tensor<2>) -> Tensor<2> {
        self.multi_modal_projector.forward(features)
    }

    /// Encodes images of the model's size: for each `[image_tokens, text hidden_size]`.
    ///
    /// # Panics
    /// When an image does not have that size.
    pub fn encode(&self, images: &[&Pixels]) -> Vec<Tensor<2>> {
        let one = |image: &&Pixels| self.project(self.vision_tower.forward(&[image]));
        images.iter().map(one).collect()
    }

    /// The inputs of tokens among which images stand: rows of text scaled, as the decoder does it; each
    /// `<image_soft_token>` the next row of `features`, which are *not* scaled.
    ///
    /// # Panics
    /// When there is no token, or not one row per `<image_soft_token>`.
    pub fn embed_with(&self, tokens: &[TokenId], features: &[Tensor<2>]) -> Inputs {
        embed_with_images(&self.language_model, tokens, self.config.image_token, features)
    }

    /// The positions of each image: runs of `<image_soft_token>`, which see themselves both ways.
    pub fn blocks(&self, tokens: &[TokenId]) -> Vec<Range<usize>> {
        let mut blocks = Vec::new();
        let mut start = 0;
        for run in tokens.chunk_by(|a, b| (*a == self.config.image_token) == (*b == self.config.image_token)) {
            if run[0] == self.config.image_token {
                blocks.push(start..start + run.len());
            }
            start += run.len();
        }
        blocks
    }

    /// Cuts tokens into pieces of about `size` tokens, none of which ends within an image.
    pub fn pieces(&self, tokens: &[TokenId], size: usize) -> Vec<Range<usize>> {
        let blocks = self.blocks(tokens);
        let (mut pieces, mut start) = (Vec::new(), 0);
        while start < tokens.len() {
            let wanted = tokens.len().min(start.saturating_add(size.max(1)));
            let cut = blocks.iter().find(|block| block.start < wanted && wanted < block.end);
            // before the image if that leaves anything, or else with all of it
            let end = match cut {
                Some(block) if block.start > start => block.start,
                Some(block) => block.end,
                None => wanted,
            };
            pieces.push(start..end);
            start = end;
        }
        pieces
    }

    /// Whether a prompt is sound: for each of `images` images its soft tokens in one run, known tokens, and no more than
    /// the context holds.
    ///
    /// # Errors
    /// The first of these that is wrong.
    pub fn check_prompt(&self, tokens: &[TokenId], images: usize) -> Result<(), Error> {
        let (image, each) = (self.config.image_token, self.config.image_tokens);
        let runs = self.blocks(tokens);
        let found: usize = runs.iter().map(|run| run.len()).sum();
        if found != images * each || runs.iter().any(|run| run.len() % each != 0) {
            return Err(Error::ImageTokens { found, expected: images * each, images, each });
        }
        Ok(gemma_generate::check_tokens(&self.language_model, tokens, Some(image))?)
    }
}

// The decoder's own.
gemma_generate::causal_model_of!(Gemma3Network, language_model: Decoder);
gemma_model::blocks_of_decoder!(Gemma3Network);

impl Network for Gemma3Network {
    type Config = Gemma3Config;

    const FAMILY: Family = Family::Gemma;

    fn config_from_json(text: &[u8]) -> Result<Gemma3Config, gemma_model::Error> {
        Gemma3Config::from_json(text)
    }

    fn config_of(checkpoint: &Checkpoint) -> Result<Gemma3Config, gemma_model::Error> {
        let mut config = Gemma3Config::from_json(&config_file(checkpoint)?)?;
        config.text.is_tied = names::is_tied(checkpoint, config.text.is_tied);
        Ok(config)
    }

    fn prepared(checkpoint: &Checkpoint) -> Checkpoint {
        names::canonical(checkpoint)
    }

    fn config_to_json(config: &Gemma3Config, dtype: Dtype) -> serde_json::Value {
        config.to_json(dtype)
    }

    fn eos(config: &Gemma3Config) -> &[TokenId] {
        &config.text.eos
    }

    fn load(source: &mut dyn Source, config: &Gemma3Config, dtype: Dtype) -> Self {
        Self {
            vision_tower: Siglip::load(source, "vision_tower", &config.vision),
            multi_modal_projector: Projector::load(source, "multi_modal_projector", config),
            language_model: Decoder::load(source, &config.text, dtype),
            config: config.clone(),
        }
    }

    fn save(&self, saver: &mut dyn Saver) {
        let saver = &mut names::Released(saver);
        self.vision_tower.save(saver, "vision_tower");
        self.multi_modal_projector.save(saver, "multi_modal_projector");
        self.language_model.save(saver);
    }

    fn config(&self) -> &Gemma3Config {
        &self.config
    }

    fn device(&self) -> Device {
        self.language_model.device()
    }
}

/// From the encoder's features to rows that the decoder reads: mean over squares of patches, norm, product.
#[derive(Module, Debug)]
pub struct Projector {
    mm_soft_emb_norm: RmsNorm,
    /// `[vision hidden_size, text hidden_size]` as one line: stored `[in, out]`, other than every linear layer.
    mm_input_projection_weight: Param<Tensor<1>>,
    #[module(skip)]
    across: usize,
    #[module(skip)]
    pool: usize,
    #[module(skip)]
    sizes: [usize; 2],
}

impl Projector {
    /// The projector whose parameters begin with `{name}.`.
    pub fn load(source: &mut dyn Source, name: &str, config: &Gemma3Config) -> Self {
        let SiglipConfig { hidden_size, norm_eps, .. } = config.vision;
        let sizes = [hidden_size, config.text.hidden_size];
        Self {
            mm_soft_emb_norm: RmsNorm::load(source, &format!("{name}.mm_soft_emb_norm"), hidden_size, norm_eps),
            mm_input_projection_weight: source.tensor(&format!("{name}.mm_input_projection_weight"), &sizes),
            across: config.vision.patches_across(),
            pool: config.pool(),
            sizes,
        }
    }

    /// Hands the parameters to a saver, under the names they were loaded by.
    pub fn save(&self, saver: &mut dyn Saver, name: &str) {
        self.mm_soft_emb_norm.save(saver, &format!("{name}.mm_soft_emb_norm"));
        let weight = &self.mm_input_projection_weight;
        saver.tensor(&format!("{name}.mm_input_projection_weight"), &self.sizes, weight);
    }

    /// Features `[images · patches, vision hidden_size]` to `[images · image_tokens, text hidden_size]`: the mean over
    /// squares of `pool` × `pool` patches, row by row, then `norm(z) M`.
    pub fn forward(&self, features: Tensor<2>) -> Tensor<2> {
        let ([rows, hidden_size], across, pool) = (features.dims(), self.across, self.pool);
        let side = across / pool;
        let images = rows / (across * across);
        let squares = features.reshape([images * side, pool, side, pool, hidden_size]);
        let pooled = squares.mean_dim(1).mean_dim(3).reshape([images * side * side, hidden_size]);
        let weight = self.mm_input_projection_weight.val().reshape(self.sizes);
        self.mm_soft_emb_norm.forward(pooled).matmul(weight)
    }
}
