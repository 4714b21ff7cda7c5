//! `config.json` of Gemma 3 with images: an encoder's configuration, a decoder's, the tokens around an image; and what
//! `preprocessor_config.json` says of images.

use gemma::DecoderConfig;
use gemma_model::Error;
use gemma_model::fields::{self, Architecture, invalid};
use gemma_tokenizer::TokenId;
use gemma_vision::{Filter, SiglipConfig, preprocessor_files, resize_filter};
use gemma_weights::{Checkpoint, Dtype};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// A Gemma 3 with images, resolved: everything that building and running it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Gemma3Config {
    /// The image encoder.
    pub vision: SiglipConfig,
    /// The text decoder.
    pub text: DecoderConfig,
    /// Tokens that one image becomes: a square number.
    pub image_tokens: usize,
    /// `<image_soft_token>`, in whose place a row of features stands. It may lie outside the embedding table.
    pub image_token: TokenId,
    /// `<start_of_image>`.
    pub begin_token: TokenId,
    /// `<end_of_image>`.
    pub end_token: TokenId,
    /// ShieldGemma 2's answers, `Yes` and `No`.
    pub yes_and_no: Option<[TokenId; 2]>,
}

const IMAGE_TOKEN: TokenId = 262_144;
const BEGIN_TOKEN: TokenId = 255_999;
const END_TOKEN: TokenId = 256_000;
const IMAGE_TOKENS: usize = 256;

#[derive(Deserialize)]
struct ConfigFile {
    vision_config: Option<Value>,
    mm_tokens_per_image: Option<usize>,
    image_token_index: Option<TokenId>,
    image_token_id: Option<TokenId>,
    boi_token_index: Option<TokenId>,
    boi_token_id: Option<TokenId>,
    eoi_token_index: Option<TokenId>,
    eoi_token_id: Option<TokenId>,
    yes_token_index: Option<TokenId>,
    no_token_index: Option<TokenId>,
}

impl Gemma3Config {
    /// Whether a `config.json` describes a model with images: it has a `vision_config` and does not call itself a text
    /// model.
    pub fn describes(text: &[u8]) -> bool {
        #[derive(Deserialize)]
        struct Kind {
            model_type: Option<String>,
            architectures: Option<Vec<String>>,
            vision_config: Option<Map<String, Value>>,
        }
        let Ok(Kind { model_type, architectures, vision_config }) = serde_json::from_slice(text) else { return false };
        let named = |name: &str| architectures.iter().flatten().any(|architecture| architecture == name);
        let kind = model_type.as_deref();
        (matches!(kind, Some("gemma3" | "shieldgemma2")) || kind.is_none() && named("Gemma3ForConditionalGeneration"))
            && vision_config.is_some()
            && !named("Gemma3ForCausalLM")
    }

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// When it is not JSON, names another architecture, or a value cannot be right or is not supported; the message
    /// names field and value.
    pub fn from_json(text: &[u8]) -> Result<Self, Error> {
        let architecture = Architecture::from_json(text)?;
        if !Self::describes(text) {
            return Err(architecture.refuse("Gemma 3 with images (model_type `gemma3` and a `vision_config`)"));
        }
        let file: ConfigFile = fields::parse(text)?;
        let decoder = DecoderConfig::from_json(text)?;
        let vision = SiglipConfig::from_json(file.vision_config)?;
        let image_tokens = file.mm_tokens_per_image.unwrap_or(IMAGE_TOKENS);
        let config = Self {
            vision,
            text: decoder,
            image_tokens,
            image_token: file.image_token_index.or(file.image_token_id).unwrap_or(IMAGE_TOKEN),
            begin_token: file.boi_token_index.or(file.boi_token_id).unwrap_or(BEGIN_TOKEN),
            end_token: file.eoi_token_index.or(file.eoi_token_id).unwrap_or(END_TOKEN),
            yes_and_no: file.yes_token_index.zip(file.no_token_index).map(|(yes, no)| [yes, no]),
        };
        let side = image_tokens.isqrt();
        let divides = side > 0 && side * side == image_tokens && vision.patches_across().is_multiple_of(side);
        if !divides {
            let expected = "a square number whose root divides the patches across an image";
            return Err(invalid("mm_tokens_per_image", image_tokens, expected));
        }
        if config.text.is_bidirectional() {
            return Err(invalid("use_bidirectional_attention", true, "false or null in a model with images"));
        }
        Ok(config)
    }

    /// Patches along each side of the square that becomes one token.
    pub fn pool(&self) -> usize {
        self.vision.patches_across() / self.image_tokens.isqrt()
    }

    /// The `config.json` that HF transformers reads back as this model.
    pub fn to_json(&self, dtype: Dtype) -> Value {
        let (model_type, architecture) = match self.yes_and_no {
            Some(_) => ("shieldgemma2", "ShieldGemma2ForImageClassification"),
            None => ("gemma3", "Gemma3ForConditionalGeneration"),
        };
        let mut file = json!({
            "architectures": [architecture],
            "boi_token_index": self.begin_token,
            "bos_token_id": 2,
            "eoi_token_index": self.end_token,
            "eos_token_id": self.text.eos,
            "image_token_index": self.image_token,
            "initializer_range": 0.02,
            "mm_tokens_per_image": self.image_tokens,
            "model_type": model_type,
            "pad_token_id": 0,
            "text_config": self.text.to_json(dtype),
            "tie_word_embeddings": self.text.is_tied,
            "torch_dtype": dtype.to_string(),
            "vision_config": self.vision.to_json(),
        });
        if let Some([yes, no]) = self.yes_and_no {
            file["yes_token_index"] = json!(yes);
            file["no_token_index"] = json!(no);
        }
        file
    }
}

/// How an image is made ready, from `preprocessor_config.json`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Processor {
    /// How it is resized to a square.
    pub filter: Filter,
    /// How large images are cut into crops, where the file or the user asks for that.
    pub pan_and_scan: Option<PanAndScan>,
    /// What pan and scan does when the user asks for it.
    pub crops: PanAndScan,
}

/// When an image is also read in crops ("pan and scan"): one that is much longer than wide is cut along its long side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PanAndScan {
    /// Crops smaller than this, in pixels, are not made.
    pub min_crop_size: usize,
    /// The most crops.
    pub max_crops: usize,
    /// The least ratio of the long side to the short one.
    pub min_ratio: f64,
}

impl Default for PanAndScan {
    fn default() -> Self {
        Self { min_crop_size: 256, max_crops: 4, min_ratio: 1.2 }
    }
}

/// The most crops, whatever a file says.
const MOST_CROPS: usize = 16;

/// A crop of an image: left, upper, right and lower edge in pixels, the last two outside.
pub type Crop = [usize; 4];

impl PanAndScan {
    /// The crops of an image of that size, in order along its long side; none for most images.
    pub fn crops(&self, width: usize, height: usize) -> Vec<Crop> {
        let (long, short) = (width.max(height), width.min(height));
        if short == 0 || (long as f64 / short as f64) < self.min_ratio {
            return Vec::new();
        }
        let by_ratio = (long as f64 / short as f64 + 0.5) as usize;
        let count = (long / self.min_crop_size.max(1)).min(by_ratio).max(2).min(self.max_crops);
        if count == 0 {
            return Vec::new();
        }
        let length = long.div_ceil(count);
        if length.min(short) < self.min_crop_size {
            return Vec::new();
        }
        let crop = |index: usize| {
            let (from, to) = (index * length, ((index + 1) * length).min(long));
            if width >= height { [from, 0, to, height] } else { [0, from, width, to] }
        };
        (0..count).map(crop).filter(|[left, upper, right, lower]| left < right && upper < lower).collect()
    }
}

impl Default for Processor {
    fn default() -> Self {
        Self { filter: Filter::Bilinear, pan_and_scan: None, crops: PanAndScan::default() }
    }
}

/// What the processor of this family has beside the fields of all.
#[derive(Default, Deserialize)]
struct PanAndScanFields {
    do_pan_and_scan: Option<bool>,
    pan_and_scan_min_crop_size: Option<usize>,
    pan_and_scan_max_num_crops: Option<usize>,
    pan_and_scan_min_ratio_to_activate: Option<f64>,
}

impl Processor {
    /// Of a model: what its files say, and that they fit it.
    ///
    /// # Errors
    /// When a file is not JSON, or says what does not fit the model or is not computed; the message names field and
    /// value.
    pub fn of(checkpoint: &Checkpoint, config: &Gemma3Config) -> Result<Self, Error> {
        let filter = resize_filter(checkpoint, config.vision.image_size, config.image_tokens)?;
        let (mut crops, mut wanted) = (PanAndScan::default(), false);
        for file in preprocessor_files::<PanAndScanFields>(checkpoint)? {
            crops = PanAndScan {
                min_crop_size: file.pan_and_scan_min_crop_size.unwrap_or(crops.min_crop_size),
                max_crops: file.pan_and_scan_max_num_crops.map_or(crops.max_crops, |crops| crops.min(MOST_CROPS)),
                min_ratio: file.pan_and_scan_min_ratio_to_activate.unwrap_or(crops.min_ratio),
            };
            wanted = file.do_pan_and_scan.unwrap_or(wanted);
        }
        let filter = filter.unwrap_or(Self::default().filter);
        Ok(Self { filter, pan_and_scan: wanted.then_some(crops), crops })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the released file of 4B says it.
    const RELEASED_4B: &str = r#"{"architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999,
        "eoi_token_index": 256000, "eos_token_id": [1, 106], "image_token_index": 262144, "mm_tokens_per_image": 256,
        "model_type": "gemma3", "text_config": {"hidden_size": 2560, "intermediate_size": 10240,
            "model_type": "gemma3_text", "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024},
        "vision_config": {"hidden_size": 1152, "image_size": 896, "intermediate_size": 4304,
            "model_type": "siglip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14,
            "vision_use_head": false}}"#;

    #[test]
    fn the_sparse_file_of_the_release_is_completed() {
        let config = Gemma3Config::from_json(RELEASED_4B.as_bytes()).unwrap();
        assert_eq!((config.pool(), config.image_tokens, config.vision.patches()), (4, 256, 4096));
        let attention = config.text.layers[0].attention;
        assert_eq!((attention.heads, attention.kv_heads, attention.head_dim), (8, 4, 256));
        assert_eq!((attention.window(), config.text.layers[5].attention.window()), (Some(1024), None));
        assert_eq!((config.text.layers[0].rope.factor, config.text.layers[5].rope.factor), (1.0, 8.0));
        assert_eq!(config.text.eos, [1, 106]);
        let again = Gemma3Config::from_json(config.to_json(Dtype::Bf16).to_string().as_bytes()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let refusal = |from: &str, to: &str| {
            let text = RELEASED_4B.replacen(from, to, 1);
            assert_ne!(text, RELEASED_4B, "{from} is in the file");
            Gemma3Config::from_json(text.as_bytes()).expect_err(to).to_string()
        };
        assert!(
            refusal("\"mm_tokens_per_image\": 256", "\"mm_tokens_per_image\": 250").contains("mm_tokens_per_image")
        );
        assert!(refusal("\"mm_tokens_per_image\": 256", "\"mm_tokens_per_image\": 9").contains("mm_tokens_per_image"));
        assert!(refusal("\"vision_use_head\": false", "\"vision_use_head\": true").contains("vision_use_head"));
        assert!(refusal("\"linear\"", "\"yarn\"").contains("rope_type"));
        assert!(refusal("\"gemma3_text\"", "\"llama\"").contains("text_config.model_type"));
    }

    #[test]
    fn a_text_model_in_the_layout_of_one_with_images_is_told_apart() {
        let text = RELEASED_4B.replace("Gemma3ForConditionalGeneration", "Gemma3ForCausalLM");
        assert!(Gemma3Config::describes(RELEASED_4B.as_bytes()) && !Gemma3Config::describes(text.as_bytes()));
        assert_eq!(DecoderConfig::from_json(text.as_bytes()).unwrap().layers.len(), 34);
    }
}
