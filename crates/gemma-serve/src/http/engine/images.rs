//! The models behind an engine that see images: prompts with places for images, and the features that go there.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gemma_generate::Request;
use gemma_tokenizer::{Role, Turn};
use gemma3::Gemma3;
use paligemma::{Image, PaliGemma};
use serde_json::{Value, json};

use super::super::backend::{Message, Ongoing, Prompt, VisionTask};
use super::super::error::Refusal;

/// A model that sees images.
#[derive(Clone)]
pub(super) enum ImageModel {
    PaliGemma(Arc<PaliGemma>),
    Gemma3(Arc<Gemma3>),
}

fn decoded(bytes: &[u8], field: &str) -> Result<Image, Refusal> {
    Image::decode(bytes, "image").map_err(|error| Refusal::field(field, error.to_string()))
}

impl ImageModel {
    /// The prompt of a conversation with images. No image is decoded here.
    pub(super) fn prompt(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Prompt, Refusal> {
        let images: Vec<Vec<u8>> = messages.iter().flat_map(|message| message.images.iter().cloned()).collect();
        let tokens = match self {
            // it has no chat format: its prompt is the images and the text of the last message
            Self::PaliGemma(model) => {
                let text = messages.last().map_or("", |message| message.turn.text.trim());
                model.prompt_tokens(images.len(), text).map_err(Refusal::of)?
            }
            Self::Gemma3(model) => {
                let turn = |message: &Message| match message.images.len() {
                    0 => message.turn.clone(),
                    count => Turn { role: message.turn.role, ..Gemma3::question(count, &message.turn.text) },
                };
                if messages.iter().any(|message| message.turn.role != Role::User && !message.images.is_empty()) {
                    return Err(Refusal::field("messages", "only a user's message can have images"));
                }
                let turns: Vec<Turn> = messages.iter().map(turn).collect();
                let rendered = model.model().chat_template().render(&turns, add_generation_prompt);
                let rendered = rendered.map_err(|error| Refusal::field("messages", error.to_string()))?;
                let tokens = model.placed_tokens(&rendered, &vec![1; images.len()]);
                tokens.map_err(|error| Refusal::field("messages", error.to_string()))?
            }
        };
        Ok(Prompt { tokens, images })
    }

    /// The request with its images decoded and encoded.
    pub(super) fn request(&self, request: Request<'static>, images: &[Vec<u8>]) -> Result<Request<'static>, Refusal> {
        let gemma_generate::Prompt::Tokens(tokens) = &request.prompt else { return Ok(request) };
        let images = images.iter().map(|image| decoded(image, "messages"));
        let prepared = match self {
            Self::PaliGemma(model) => {
                // one after the other, so that only one decoded image is held
                let features = images.map(|image| Ok(model.encode_image(&image?).features().clone()));
                model
                    .request(tokens, &features.collect::<Result<Vec<_>, Refusal>>()?, &request.options)
                    .map_err(Refusal::of)?
            }
            Self::Gemma3(model) => {
                let encoded =
                    images.map(|image| Ok(model.encode_image(&image?))).collect::<Result<Vec<_>, Refusal>>()?;
                model.request(tokens, &encoded.iter().collect::<Vec<_>>(), &request.options).map_err(Refusal::of)?
            }
        };
        Ok(Request { prompt: prepared.prompt, ..request })
    }

    /// PaliGemma's tasks; `None` for other models.
    pub(super) fn vision(&self, image: &[u8], task: &VisionTask, ongoing: &Ongoing) -> Option<Result<Value, Refusal>> {
        match self {
            Self::PaliGemma(model) => Some(vision(model, image, task, ongoing)),
            Self::Gemma3(_) => None,
        }
    }
}

fn vision(model: &PaliGemma, image: &[u8], task: &VisionTask, ongoing: &Ongoing) -> Result<Value, Refusal> {
    let image = decoded(image, "image")?;
    let features = model.encode_image(&image);
    let mut reply = match task {
        VisionTask::Caption(language) => json!({"caption": features.caption(language).map_err(Refusal::of)?}),
        VisionTask::Detect(objects) => {
            let found = features.detect(objects).map_err(Refusal::of)?;
            let object = |object: &paligemma::Detection| json!({"label": object.label, "box": edges(&object.bounds), "score": object.score});
            json!({"objects": found.iter().map(object).collect::<Vec<_>>(), "text": found.text})
        }
        VisionTask::Segment(objects) => {
            let (mut list, mut texts) = (Vec::new(), Vec::new());
            for name in objects {
                ongoing.check()?;
                let found = features.segment(name).map_err(Refusal::of)?;
                for object in found.iter() {
                    let mask = &object.mask;
                    let png = png_of_mask(mask)?;
                    list.push(json!({
                        "label": object.label, "box": edges(&object.bounds), "score": object.score,
                        "mask": {"x": mask.x, "y": mask.y, "width": mask.width, "height": mask.height, "png": png},
                    }));
                }
                texts.push(found.text.clone());
            }
            json!({"objects": list, "text": texts.join("\n")})
        }
    };
    reply["image"] = json!({"width": image.width(), "height": image.height()});
    Ok(reply)
}

/// `[x_min, y_min, x_max, y_max]` in pixels.
fn edges(bounds: &paligemma::BoundingBox) -> [f32; 4] {
    [bounds.x_min, bounds.y_min, bounds.x_max, bounds.y_max]
}

/// A mask as a PNG in base64: white inside, black outside.
fn png_of_mask(mask: &paligemma::Mask) -> Result<String, Refusal> {
    let rgb = mask.inside.iter().flat_map(|inside| [if *inside { 255 } else { 0 }; 3]).collect();
    let image =
        Image::from_rgb(rgb, mask.width, mask.height).ok_or_else(|| Refusal::failed("the mask has no pixels"))?;
    let mut png = Vec::new();
    image.write_png(&mut png).map_err(|error| Refusal::failed(error.to_string()))?;
    Ok(STANDARD.encode(png))
}
