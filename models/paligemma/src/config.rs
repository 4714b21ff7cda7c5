//! `config.json` of PaliGemma: an encoder's configuration, a decoder's, and the number of `<image>`.
//!
//! Released files leave out whatever has the value that transformers takes for granted (the side of the image at 224
//! pixels, the size of a head), so each field falls back to that. The decoder's half is read by `gemma` itself.

use gemma::DecoderConfig;
use gemma_tokenizer::TokenId;
use gemma_weights::Dtype;
use gemma_weights::catalogue;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use gemma_model::fields::{self, Architecture, invalid};
use gemma_model::{Error, config_keys};
use gemma_vision::SiglipConfig;

/// A PaliGemma or PaliGemma 2, resolved: everything that building and running it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct PaliGemmaConfig {
    /// The image encoder.
    pub vision: SiglipConfig,
    /// The text decoder: Gemma 1 in PaliGemma, Gemma 2 in PaliGemma 2.
    pub text: DecoderConfig,
    /// The number of `<image>`, which stands for one patch.
    pub image_token: TokenId,
}

/// What transformers takes it to be when a file does not say.
const DEFAULT_IMAGE_TOKEN: TokenId = 256_000;

#[derive(Deserialize)]
struct ConfigFile {
    text_config: Option<Map<String, Value>>,
    vision_config: Option<Value>,
    image_token_index: Option<TokenId>,
    image_token_id: Option<TokenId>,
    projection_dim: Option<usize>,
    eos_token_id: Option<Value>,
    tie_word_embeddings: Option<bool>,
    quantization_config: Option<Value>,
}

impl PaliGemmaConfig {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// When it is not JSON, names another architecture, or a value cannot be right or is not supported; the message
    /// names field and value.
    pub fn from_json(text: &[u8]) -> Result<Self, Error> {
        let architecture = Architecture::from_json(text)?;
        if !matches!(architecture.name(), Some("paligemma" | "PaliGemmaForConditionalGeneration")) {
            return Err(architecture.refuse("PaliGemma (model_type `paligemma`)"));
        }
        config_keys::refuse_foreign(text)?;
        fields::parse::<ConfigFile>(text)?.resolve()
    }

    /// The configuration of a released size: `paligemma-3b-224` to `paligemma2-28b-896`.
    pub fn preset(name: &str) -> Option<Self> {
        Self::from_json(catalogue::shape(name)?.config.as_bytes()).ok()
    }

    /// Tokens that one image becomes.
    pub fn image_tokens(&self) -> usize {
        self.vision.patches()
    }

    /// The `config.json` that HF transformers reads back as this model.
    pub fn to_json(&self, dtype: Dtype) -> Value {
        let mut vision = self.vision.to_json();
        vision["projection_dim"] = json!(self.text.hidden_size);
        json!({
            "architectures": ["PaliGemmaForConditionalGeneration"],
            "bos_token_id": 2,
            "eos_token_id": self.text.eos,
            "hidden_size": self.text.hidden_size,
            "ignore_index": -100,
            "image_token_index": self.image_token,
            "model_type": "paligemma",
            "pad_token_id": 0,
            "projection_dim": self.text.hidden_size,
            "text_config": self.text.to_json(dtype),
            "torch_dtype": dtype.to_string(),
            "vision_config": vision,
        })
    }
}

impl ConfigFile {
    fn resolve(self) -> Result<PaliGemmaConfig, Error> {
        let instead = "absent; quantize with --precision instead";
        fields::off("quantization_config", self.quantization_config.as_ref(), instead)?;
        let image_token = self.image_token_index.or(self.image_token_id).unwrap_or(DEFAULT_IMAGE_TOKEN);
        let mut text = text_config(self.text_config.unwrap_or_default(), self.eos_token_id)?;
        text.is_tied &= self.tie_word_embeddings.unwrap_or(true);
        if let Some(hidden_size) = self.projection_dim.filter(|hidden_size| *hidden_size != text.hidden_size) {
            return Err(invalid("projection_dim", hidden_size, "the hidden_size of text_config"));
        }
        Ok(PaliGemmaConfig { vision: SiglipConfig::from_json(self.vision_config)?, text, image_token })
    }
}

/// The decoder's half, with what transformers takes for granted put in.
fn text_config(mut file: Map<String, Value>, eos: Option<Value>) -> Result<DecoderConfig, Error> {
    let kind = file.entry("model_type").or_insert_with(|| json!("gemma")).as_str().unwrap_or_default().to_owned();
    let defaults = match kind.as_str() {
        "gemma2" => json!({
            "vocab_size": 256_000, "hidden_size": 2_304, "intermediate_size": 9_216, "num_hidden_layers": 26,
            "num_attention_heads": 8, "num_key_value_heads": 4,
        }),
        _ => json!({
            "vocab_size": 256_000, "hidden_size": 3_072, "intermediate_size": 24_576, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 16,
        }),
    };
    for (field, value) in defaults.as_object().into_iter().flatten() {
        file.entry(field).or_insert_with(|| value.clone());
    }
    // the prefix that sees itself both ways is how this family reads, whatever the flag says
    file.remove("use_bidirectional_attention");
    if let Some(eos) = eos.filter(|eos| !eos.is_null()) {
        file.entry("eos_token_id").or_insert(eos);
    }
    let text = serde_json::to_vec(&file).map_err(|cause| Error::ConfigJson { cause })?;
    DecoderConfig::from_json(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::VisionLanguageModel;
    use gemma_model::Network;

    /// What the first release's file says, as it says it.
    const RELEASED_224: &str = r#"{"architectures": ["PaliGemmaForConditionalGeneration"], "bos_token_id": 2,
        "eos_token_id": 1, "hidden_size": 2048, "ignore_index": -100, "image_token_index": 257152,
        "model_type": "paligemma", "pad_token_id": 0, "projection_dim": 2048,
        "text_config": {"hidden_size": 2048, "intermediate_size": 16384, "model_type": "gemma",
            "num_attention_heads": 8, "num_hidden_layers": 18, "num_image_tokens": 256, "num_key_value_heads": 1,
            "torch_dtype": "float32", "vocab_size": 257216},
        "vision_config": {"hidden_size": 1152, "intermediate_size": 4304, "model_type": "siglip_vision_model",
            "num_attention_heads": 16, "num_hidden_layers": 27, "num_image_tokens": 256, "patch_size": 14,
            "projection_dim": 2048, "projector_hidden_act": "gelu_fast", "vision_use_head": false}}"#;

    #[test]
    fn the_sparse_file_of_the_release_is_the_preset() {
        let config = PaliGemmaConfig::from_json(RELEASED_224.as_bytes()).unwrap();
        assert_eq!(Some(config.clone()), PaliGemmaConfig::preset("paligemma-3b-224"));
        assert_eq!(config.image_tokens(), 256);
        let larger = RELEASED_224.replace("\"patch_size\": 14", "\"patch_size\": 14, \"image_size\": 896");
        assert_eq!(PaliGemmaConfig::from_json(larger.as_bytes()).unwrap().image_tokens(), 4096);
    }

    #[test]
    fn what_is_written_is_read_back() {
        for name in ["paligemma-3b-448", "paligemma2-3b-224", "paligemma2-28b-896"] {
            let config = PaliGemmaConfig::preset(name).unwrap();
            let text = config.to_json(Dtype::Bf16).to_string();
            assert_eq!(PaliGemmaConfig::from_json(text.as_bytes()).unwrap(), config, "{name}");
        }
    }

    #[test]
    fn both_spellings_of_the_image_token_are_read() {
        let newer = RELEASED_224.replace("image_token_index", "image_token_id");
        assert_eq!(PaliGemmaConfig::from_json(newer.as_bytes()).unwrap().image_token, 257_152);
        let absent = RELEASED_224.replace("\"image_token_index\": 257152,", "");
        assert_eq!(PaliGemmaConfig::from_json(absent.as_bytes()).unwrap().image_token, 256_000);
    }

    #[test]
    fn the_tensors_of_each_preset_add_up_to_the_released_parameters() {
        let device = gemma_backend::default_device().unwrap();
        for (name, parameters) in [
            ("paligemma-3b-224", 2_923_466_480u64),
            ("paligemma-3b-448", 2_924_351_216),
            ("paligemma-3b-896", 2_927_890_160),
            ("paligemma2-3b-224", 3_032_242_416),
            ("paligemma2-10b-448", 9_663_523_568),
            ("paligemma2-28b-896", 27_654_910_704),
        ] {
            let tensors = VisionLanguageModel::tensors(&PaliGemmaConfig::preset(name).unwrap(), &device);
            let sum: u64 = tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum();
            assert_eq!(sum, parameters, "{name}");
        }
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let refusal = |from: &str, to: &str| {
            let text = RELEASED_224.replacen(from, to, 1);
            assert_ne!(text, RELEASED_224, "{from} is in the file");
            PaliGemmaConfig::from_json(text.as_bytes()).expect_err(to).to_string()
        };
        assert!(refusal("\"paligemma\"", "\"llava\"").contains("llava"));
        assert!(refusal("\"siglip_vision_model\"", "\"clip_vision_model\"").contains("vision_config.model_type"));
        assert!(refusal("\"projection_dim\": 2048", "\"projection_dim\": 2304").contains("projection_dim is 2304"));
        assert!(refusal("\"patch_size\": 14", "\"patch_size\": 0").contains("patch_size is 0"));
        assert!(refusal("\"num_attention_heads\": 16", "\"num_attention_heads\": 7").contains("divisor"));
        assert!(refusal("\"vision_use_head\": false", "\"vision_use_head\": true").contains("vision_use_head"));
        let untied = RELEASED_224.replacen("\"eos_token_id\": 1", "\"tie_word_embeddings\": false", 1);
        assert!(!PaliGemmaConfig::from_json(untied.as_bytes()).unwrap().text.is_tied);
        assert!(PaliGemmaConfig::from_json(b"[]").is_err());
        assert!(PaliGemmaConfig::from_json(b"{}").is_err());
    }
}
