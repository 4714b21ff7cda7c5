//! The front door: a tokenizer, a network, a processor, and what belongs to them.

use std::ops::Range;
use std::path::Path;

use burn::tensor::Tensor;
use gemma_backend::Device;
use gemma_generate::{
    CausalModel, GenerateOptions, Generated, Generation, Prompt, Request, Sequence, TextStream, TokenId,
};
use gemma_model::{Attachments, Conversation, LoadOptions, Model, Network, OnLoad};
use gemma_nn::Segment;
use gemma_tokenizer::{ChatPiece, RenderedChat, Tokenizer, Turn};
use gemma_vision::{Image, Pixels, resize_rgb};
use gemma_weights::{Checkpoint, Dtype, HubOptions};

use crate::config::Processor;
use crate::{Error, Gemma3Network, PanAndScan};

/// Where an image stands in a text.
pub const IMAGE_MARK: &str = "<start_of_image>";
/// The marks around the rows of an image, which are put between them as tokens.
const AROUND: &str = "\n\n<start_of_image><end_of_image>\n\n";

/// A Gemma 3 with images, ready to look and to talk.
#[derive(Debug)]
pub struct Gemma3 {
    model: Model<Gemma3Network>,
    processor: Processor,
}

/// An image as the model sees it: encoded once, to be asked about any number of times. A clone shares the features.
#[derive(Clone, Debug)]
pub struct EncodedImage {
    /// Rows `[image_tokens, hidden_size]` of the whole image, and then of each crop.
    features: Vec<Tensor<2>>,
}

impl EncodedImage {
    /// What the decoder reads in place of the image's tokens: the whole image first, then its crops.
    pub fn features(&self) -> &[Tensor<2>] {
        &self.features
    }
}

/// The text that stands in a prompt where an image of so many parts is.
fn image_text(parts: usize) -> String {
    match parts {
        0 | 1 => AROUND.to_owned(),
        parts => {
            let crops = vec![AROUND; parts - 1].join(" ");
            format!("Here is the original image {AROUND} and here are some crops to help you see better {crops}")
        }
    }
}

impl Gemma3 {
    /// Opens a model: a folder in Hugging Face format, or a hub id `org/name[@revision]`, which is downloaded on
    /// first use.
    ///
    /// # Errors
    /// When there is no such model, it cannot be fetched, or it is not a sound checkpoint of Gemma 3 with images.
    pub fn load(model: &str, device: &Device) -> Result<Self, Error> {
        Self::load_with(model, &LoadOptions::default(), device)
    }

    /// [`Gemma3::load`] with options.
    ///
    /// # Errors
    /// As [`Gemma3::load`].
    pub fn load_with(model: &str, options: &LoadOptions, device: &Device) -> Result<Self, Error> {
        let hub = HubOptions::from_env();
        let hub = HubOptions { offline: hub.offline || options.offline, ..hub };
        Self::from_checkpoint(&Checkpoint::open(&gemma_weights::resolve(model, &hub)?)?, options, device)
    }

    /// Makes a model of an opened checkpoint. One without tokenizer files can still be used with token numbers.
    ///
    /// # Errors
    /// As [`Gemma3::load`].
    pub fn from_checkpoint(checkpoint: &Checkpoint, options: &LoadOptions, device: &Device) -> Result<Self, Error> {
        Self::from_checkpoint_with(checkpoint, options, device, &mut |_, _| {})
    }

    /// [`Gemma3::from_checkpoint`], reporting progress.
    ///
    /// # Errors
    /// As [`Gemma3::load`], and when the folder's processor does not fit the model.
    pub fn from_checkpoint_with(
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        device: &Device,
        progress: OnLoad<'_>,
    ) -> Result<Self, Error> {
        let processor = Processor::of(checkpoint, &Gemma3Network::config_of(checkpoint)?)?;
        Ok(Self { model: Model::from_checkpoint_with(checkpoint, options, device, progress)?, processor })
    }

    /// The model with its text door: tokenizer, chat template, stop tokens.
    pub fn model(&self) -> &Model<Gemma3Network> {
        &self.model
    }

    /// The network.
    pub fn network(&self) -> &Gemma3Network {
        self.model.network()
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// When the checkpoint came without one.
    pub fn tokenizer(&self) -> Result<&Tokenizer, Error> {
        Ok(self.model.tokenizer()?)
    }

    /// How images are made ready.
    pub fn processor(&self) -> &Processor {
        &self.processor
    }

    /// The same model, which also reads crops of images that are much longer than wide: finer, and up to five times the
    /// tokens. Without it the folder's own setting counts, which is off in the released files.
    #[must_use]
    pub fn with_pan_and_scan(self, pan_and_scan: bool) -> Self {
        let pan_and_scan = pan_and_scan.then_some(self.processor.crops);
        Self { processor: Processor { pan_and_scan, ..self.processor }, ..self }
    }

    /// Encodes an image, once for any number of questions.
    pub fn encode_image(&self, image: &Image) -> EncodedImage {
        let pixels = self.processor.pixels(image, self.network().config().vision.image_size);
        EncodedImage { features: self.network().encode(&pixels.iter().collect::<Vec<_>>()) }
    }

    /// The tokens of a text among which images stand: at each `<start_of_image>` the next one, or all in front of a text
    /// without such a mark.
    ///
    /// # Errors
    /// When there is no tokenizer, or marks and images do not match.
    pub fn text_tokens(&self, text: &str, images: &[&EncodedImage]) -> Result<Vec<TokenId>, Error> {
        self.rendered_tokens(&RenderedChat::from(vec![ChatPiece::Message(marked(text, images.len()))]), images)
    }

    /// The tokens of a conversation whose turns have a `<start_of_image>` where images stand, as [`Gemma3::question`]
    /// puts them there.
    ///
    /// # Errors
    /// When there is no tokenizer, the template refuses the conversation, or images and places do not match.
    pub fn chat_tokens(&self, turns: &[Turn], images: &[&EncodedImage]) -> Result<Vec<TokenId>, Error> {
        self.rendered_tokens(&self.model.chat_template().render(turns, true)?, images)
    }

    /// A question about images, as a turn of a conversation: each image at its mark, or all in front of a text without
    /// marks.
    pub fn question(images: usize, text: &str) -> Turn {
        Turn::user(marked(text, images))
    }

    /// The tokens of a rendered prompt, with each image at its mark.
    ///
    /// # Errors
    /// When there is no tokenizer, or images and marks do not match.
    pub fn rendered_tokens(&self, chat: &RenderedChat, images: &[&EncodedImage]) -> Result<Vec<TokenId>, Error> {
        self.placed_tokens(chat, &images.iter().map(|image| image.features.len()).collect::<Vec<_>>())
    }

    /// [`Gemma3::rendered_tokens`] before the images are encoded: `parts` has for each image 1, and 1 more for each crop
    /// of it.
    ///
    /// # Errors
    /// As [`Gemma3::rendered_tokens`].
    pub fn placed_tokens(&self, chat: &RenderedChat, parts: &[usize]) -> Result<Vec<TokenId>, Error> {
        let pieces = chat.pieces();
        let mut next = parts.iter();
        let mut found = 0;
        let mut whole = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let (text, same): (_, fn(String) -> ChatPiece) = match piece {
                ChatPiece::Template(text) => (text, ChatPiece::Template),
                ChatPiece::Message(text) => (text, ChatPiece::Message),
            };
            // a mark in a text without images is text like any other
            let around: Vec<&str> = if parts.is_empty() { vec![text] } else { text.split(IMAGE_MARK).collect() };
            for (index, text) in around.into_iter().enumerate() {
                if index > 0 {
                    found += 1;
                    whole.extend(next.next().map(|parts| ChatPiece::Template(image_text(*parts))));
                }
                whole.push(same(text.to_owned()));
            }
        }
        if found != parts.len() {
            return Err(Error::ImageMarks { found, images: parts.len() });
        }
        let tokens = self.tokenizer()?.encode_chat(&RenderedChat::from(whole));
        let config = self.network().config();
        let mut out = Vec::with_capacity(tokens.len() + parts.iter().sum::<usize>() * config.image_tokens);
        for (index, token) in tokens.iter().enumerate() {
            out.push(*token);
            if *token == config.begin_token && tokens.get(index + 1) == Some(&config.end_token) {
                out.extend(std::iter::repeat_n(config.image_token, config.image_tokens));
            }
        }
        Ok(out)
    }

    /// Answers a question about some images, usually one.
    ///
    /// # Errors
    /// When an option is outside its range or the prompt does not fit.
    pub fn ask(&self, images: &[&EncodedImage], text: &str, options: &GenerateOptions) -> Result<Generated, Error> {
        Ok(self.stream(images, text, options)?.finish()?)
    }

    /// Answers a question about some images, piece by piece: an iterator of texts that are ready to be shown.
    ///
    /// # Errors
    /// As [`Gemma3::ask`].
    pub fn stream(
        &self,
        images: &[&EncodedImage],
        text: &str,
        options: &GenerateOptions,
    ) -> Result<TextStream<'_, '_, Gemma3Network>, Error> {
        let tokens = self.chat_tokens(&[Self::question(images.len(), text)], images)?;
        Ok(TextStream::new(self.begin(&tokens, images, options)?, self.tokenizer()?.stream()))
    }

    /// A conversation in which images can be shown.
    pub fn conversation(&self, options: GenerateOptions) -> Conversation<'_, Gemma3Network, ShownImages<'_>> {
        Conversation::with_attachments(&self.model, options, ShownImages { model: self, images: Vec::new() })
    }

    /// The prompt of tokens among which these images stand.
    fn prompt(&self, tokens: &[TokenId], images: &[&EncodedImage]) -> Prompt {
        let features: Vec<Tensor<2>> = images.iter().flat_map(|image| image.features.iter().cloned()).collect();
        let network = self.network();
        Prompt::Inputs { inputs: network.embed_with(tokens, &features), blocks: network.blocks(tokens) }
    }

    /// The request to an [`Engine`](gemma_generate::Engine) for a prompt that is already tokens, image tokens included.
    ///
    /// # Errors
    /// When an option is outside its range, the prompt does not fit, or image tokens and images do not match.
    pub fn request(
        &self,
        tokens: &[TokenId],
        images: &[&EncodedImage],
        options: &GenerateOptions,
    ) -> Result<Request<'static>, Error> {
        options.check().map_err(gemma_model::Error::from)?;
        self.network().check_prompt(tokens, images.iter().map(|image| image.features.len()).sum())?;
        let prompt = self.prompt(tokens, images);
        let stop_tokens = self.model.stop_tokens().to_vec();
        Ok(Request { prompt, options: options.clone(), stop_tokens, ..Request::default() })
    }

    /// Begins an answer to a prompt that is already tokens, image tokens included.
    ///
    /// # Errors
    /// As [`Gemma3::request`].
    pub fn begin(
        &self,
        tokens: &[TokenId],
        images: &[&EncodedImage],
        options: &GenerateOptions,
    ) -> Result<Generation<'_, Gemma3Network>, Error> {
        let sequence = Sequence::new(self.network().new_cache());
        let generation = Generation::of(self.network(), sequence, self.request(tokens, images, options)?)?;
        Ok(self.model.speculating(generation))
    }

    /// The logits `[1, vocab]` after a prompt that is already tokens, image tokens included.
    ///
    /// # Errors
    /// When the prompt does not fit, or image tokens and images do not match.
    pub fn next_logits(&self, tokens: &[TokenId], images: &[&EncodedImage]) -> Result<Tensor<2>, Error> {
        let network = self.network();
        let features: Vec<Tensor<2>> = images.iter().flat_map(|image| image.features.iter().cloned()).collect();
        network.check_prompt(tokens, features.len())?;
        let segment = Segment::causal(0, tokens.len()).with_blocks(network.blocks(tokens));
        let states = network.uncached_hidden_states(network.embed_with(tokens, &features), &[segment]);
        Ok(network.logits(states.narrow(0, tokens.len() - 1, 1)))
    }

    /// A model around a network, without a tokenizer.
    pub fn without_tokenizer(network: Gemma3Network) -> Self {
        Self { model: Model::without_tokenizer(network), processor: Processor::default() }
    }

    /// Writes the model as a folder that [`Gemma3::load`] and HF transformers open, see [`Model::save`].
    ///
    /// # Errors
    /// When the folder cannot be written, or the weights are held in a quantized format.
    pub fn save(&self, folder: &Path, dtype: Dtype, replace: bool) -> Result<(), Error> {
        Ok(self.model.save(folder, dtype, replace)?)
    }
}

/// The images of a conversation.
#[derive(Debug)]
pub struct ShownImages<'m> {
    model: &'m Gemma3,
    images: Vec<EncodedImage>,
}

impl Attachments for ShownImages<'_> {
    type Item = EncodedImage;

    fn push(&mut self, image: EncodedImage) {
        self.images.push(image);
    }

    fn drain(&mut self, range: Range<usize>) {
        self.images.drain(range);
    }

    fn len(&self) -> usize {
        self.images.len()
    }

    fn tokens(&self, chat: &RenderedChat, first: usize) -> Result<Vec<TokenId>, gemma_model::Error> {
        let images: Vec<&EncodedImage> = self.images[first..].iter().collect();
        self.model.rendered_tokens(chat, &images).map_err(|error| match error {
            Error::Model(error) => error,
            Error::ImageMarks { found, images } => gemma_model::Error::Places { found, given: images },
            _ => gemma_model::Error::Places { found: 0, given: images.len() },
        })
    }

    fn prompt(&self, tokens: Vec<TokenId>, first: usize) -> Prompt {
        self.model.prompt(&tokens, &self.images[first..].iter().collect::<Vec<_>>())
    }
}

/// A text with a mark for each image: its own, or else in front of it.
fn marked(text: &str, images: usize) -> String {
    if text.contains(IMAGE_MARK) { text.to_owned() } else { IMAGE_MARK.repeat(images) + text }
}

impl Processor {
    /// What the encoder reads of an image: the whole of it, and its crops where they are wanted.
    ///
    /// # Panics
    /// When `side` is zero.
    pub fn pixels(&self, image: &Image, side: usize) -> Vec<Pixels> {
        let resized = |rgb: &[u8], width: usize, height: usize| {
            let square = resize_rgb(rgb, width, height, side, side, self.filter);
            Pixels::of_rgb(&square, side).expect("resized to this size")
        };
        let (width, height) = (image.width(), image.height());
        let mut pixels = vec![resized(image.rgb(), width, height)];
        for [left, upper, right, lower] in
            self.pan_and_scan.iter().flat_map(|scan: &PanAndScan| scan.crops(width, height))
        {
            let row = |y: usize| &image.rgb()[(y * width + left) * 3..(y * width + right) * 3];
            let crop: Vec<u8> = (upper..lower).flat_map(|y| row(y).iter().copied()).collect();
            pixels.push(resized(&crop, right - left, lower - upper));
        }
        pixels
    }
}
