//! The encoder's half of a `config.json`: `vision_config`.

use gemma_model::Error;
use gemma_model::fields::{LARGEST_DIMENSION, MOST_LAYERS, finite_positive, invalid, parse_value, positive, shortest};
use serde::Deserialize;
use serde_json::{Value, json};

/// A larger image, in pixels, than any released model looks at.
const LARGEST_SIDE: usize = 1 << 13;

/// The numbers that make an encoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SiglipConfig {
    /// Side of the square image, in pixels.
    pub image_size: usize,
    /// Side of one square patch, in pixels.
    pub patch: usize,
    /// Numbers per patch between layers.
    pub hidden_size: usize,
    /// Encoder layers.
    pub layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub heads: usize,
    /// Inner dimension of the MLP.
    pub intermediate_size: usize,
    /// `eps` of every layer norm.
    pub norm_eps: f32,
}

/// The fields as they stand in a file.
#[derive(Default, Deserialize)]
struct VisionFile {
    model_type: Option<String>,
    image_size: Option<usize>,
    patch_size: Option<usize>,
    num_channels: Option<usize>,
    hidden_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    intermediate_size: Option<usize>,
    layer_norm_eps: Option<f32>,
    hidden_act: Option<String>,
    vision_use_head: Option<bool>,
}

impl SiglipConfig {
    /// Patches of one image; what does not fill a patch at the right and lower edge is not seen.
    pub fn patches(&self) -> usize {
        self.patches_across() * self.patches_across()
    }

    /// Patches of one row of an image.
    pub fn patches_across(&self) -> usize {
        self.image_size / self.patch
    }

    /// Reads the value of `vision_config`; what is left out has the value that transformers takes for granted.
    ///
    /// # Errors
    /// When a value cannot be right or is not supported; the message names field and value.
    pub fn from_json(value: Option<Value>) -> Result<Self, Error> {
        let value = value.filter(|value| !value.is_null());
        let file: Option<VisionFile> = value.map(|value| parse_value("vision_config", value)).transpose()?;
        file.unwrap_or_default().resolve()
    }

    /// The value of `vision_config`. A family may add fields of its own.
    pub fn to_json(&self) -> Value {
        json!({
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": self.hidden_size,
            "image_size": self.image_size,
            "intermediate_size": self.intermediate_size,
            "layer_norm_eps": shortest(self.norm_eps),
            "model_type": "siglip_vision_model",
            "num_attention_heads": self.heads,
            "num_channels": 3,
            "num_hidden_layers": self.layers,
            "patch_size": self.patch,
            "vision_use_head": false,
        })
    }
}

impl VisionFile {
    fn resolve(self) -> Result<SiglipConfig, Error> {
        let known = ["siglip_vision_model", "siglip"];
        if let Some(other) = self.model_type.as_deref().filter(|kind| !known.contains(kind)) {
            return Err(invalid("vision_config.model_type", other, "`siglip_vision_model`"));
        }
        if let Some(act) = self.hidden_act.as_deref().filter(|act| *act != "gelu_pytorch_tanh") {
            return Err(invalid("vision_config.hidden_act", act, "`gelu_pytorch_tanh`"));
        }
        if let Some(channels) = self.num_channels.filter(|channels| *channels != 3) {
            return Err(invalid("vision_config.num_channels", channels, "3"));
        }
        if self.vision_use_head == Some(true) {
            return Err(invalid("vision_config.vision_use_head", true, "false: a feature per patch is needed"));
        }
        let image_size = positive("vision_config.image_size", self.image_size.unwrap_or(224), LARGEST_SIDE)?;
        let patch = positive("vision_config.patch_size", self.patch_size.unwrap_or(16), image_size)?;
        let hidden_size = positive("vision_config.hidden_size", self.hidden_size.unwrap_or(768), LARGEST_DIMENSION)?;
        let heads = self.num_attention_heads.unwrap_or(12);
        let heads = positive("vision_config.num_attention_heads", heads, hidden_size)?;
        if hidden_size % heads != 0 {
            return Err(invalid("vision_config.num_attention_heads", heads, "a divisor of hidden_size"));
        }
        let layers = self.num_hidden_layers.unwrap_or(12);
        let intermediate_size = self.intermediate_size.unwrap_or(3_072);
        Ok(SiglipConfig {
            image_size,
            patch,
            hidden_size,
            layers: positive("vision_config.num_hidden_layers", layers, MOST_LAYERS)?,
            heads,
            intermediate_size: positive("vision_config.intermediate_size", intermediate_size, LARGEST_DIMENSION)?,
            norm_eps: finite_positive("vision_config.layer_norm_eps", self.layer_norm_eps.unwrap_or(1e-6))?,
        })
    }
}
