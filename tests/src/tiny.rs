//! Tiny models of random weights, as folders that are opened like released ones.

use std::path::Path;

use embeddinggemma::{EmbeddingConfig, EmbeddingNetwork};
use gemma::{Decoder, DecoderConfig, Network};
use gemma_weights::{Dtype, Format, SavedTensor, TensorSpec, save_safetensors};
use serde_json::{Value, json};

/// The `config.json` of a tiny model of one of the newer kinds: windows, two rotary bases, norms of queries and keys where
/// it has them.
///
/// # Panics
/// When there is no such kind.
pub fn config(kind: &str, vocab: usize) -> Value {
    let mut config = json!({
        "attention_bias": false, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "head_dim": 8,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 32, "intermediate_size": 64,
        "max_position_embeddings": 512, "num_attention_heads": 4, "num_hidden_layers": 3, "num_key_value_heads": 2,
        "query_pre_attn_scalar": 8, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "tie_word_embeddings": true,
        "vocab_size": vocab,
    });
    let own = match kind {
        "gemma2" => json!({
            "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        }),
        "vaultgemma" => json!({
            "architectures": ["VaultGemmaForCausalLM"], "model_type": "vaultgemma", "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        }),
        "gemma3" => json!({
            "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "rope_theta": 1e6,
            "rope_local_base_freq": 10000.0,
        }),
        "embeddinggemma" => json!({
            "architectures": ["Gemma3TextModel"], "model_type": "gemma3_text", "rope_theta": 1e6,
            "rope_local_base_freq": 10000.0, "use_bidirectional_attention": true,
        }),
        other => panic!("there is no kind {other}"),
    };
    for (field, value) in own.as_object().expect("an object") {
        config[field] = value.clone();
    }
    config
}

/// Random values around 0, large enough that attention is not even.
fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut unit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..len).map(|_| 0.6 * unit()).collect()
}

/// Tensors of random values for a file; `rename` gives the name in it, `None` for those that are left out.
fn save(file: &Path, tensors: &[TensorSpec], seed: u64, rename: impl Fn(&str) -> Option<String>) {
    let saved = |(index, tensor): (usize, &TensorSpec)| -> Option<SavedTensor> {
        let values = values(seed.wrapping_add(index as u64 * 977), tensor.shape.iter().product());
        let mut bytes = vec![0; values.len() * 4];
        Format::F32.encode_row(&values, &mut bytes);
        Some((rename(&tensor.name)?, Dtype::F32, tensor.shape.clone(), bytes.into()))
    };
    let mut tensors = tensors.iter().enumerate().filter_map(saved);
    save_safetensors(file, [("format".to_owned(), "pt".to_owned())].into(), &mut tensors).expect("written");
}

/// Writes JSON into a file, whose folder is made where it is not there.
fn write(folder: &Path, name: &str, content: &Value) {
    let file = folder.join(name);
    std::fs::create_dir_all(file.parent().expect("a folder")).expect("made");
    std::fs::write(file, content.to_string()).expect("written");
}

/// Writes a tiny text model ([`config`]) with the tokenizer files of the folder `tokenizer`.
///
/// # Panics
/// When a file cannot be written.
pub fn text_model(folder: &Path, kind: &str, tokenizer: &Path, seed: u64) {
    let config = config(kind, tokenizer_files(folder, tokenizer));
    write(folder, "config.json", &config);
    let device = gemma_backend::default_device().expect("a device");
    let tensors = Decoder::tensors(&Decoder::config_from_json(config.to_string().as_bytes()).expect("sound"), &device);
    save(&folder.join("model.safetensors"), &tensors, seed, |name| Some(name.to_owned()));
}

/// Writes a tiny embedding model as sentence-transformers does, with the tokenizer files of the folder `tokenizer`.
///
/// # Panics
/// When a file cannot be written.
pub fn embedding_model(folder: &Path, tokenizer: &Path, seed: u64) {
    let config = config("embeddinggemma", tokenizer_files(folder, tokenizer));
    write(folder, "config.json", &config);
    let kind = |kind: &str| format!("sentence_transformers.models.{kind}");
    let modules = ["", "1_Pooling", "2_Dense", "3_Dense", "4_Normalize"].iter().enumerate().map(|(index, path)| {
        let name = path.split('_').nth(1).unwrap_or("Transformer");
        json!({"idx": index, "name": index.to_string(), "path": path, "type": kind(name)})
    });
    write(folder, "modules.json", &modules.collect());
    write(folder, "1_Pooling/config.json", &json!({"pooling_mode_mean_tokens": true, "include_prompt": true}));
    let dense = [[64, 32], [32, 64]];
    let text = DecoderConfig::from_json(config.to_string().as_bytes()).expect("sound");
    let config = EmbeddingConfig { text, dense: dense.to_vec(), max_tokens: 512 };
    let device = gemma_backend::default_device().expect("a device");
    let tensors = EmbeddingNetwork::tensors(&config, &device);
    let bare = |name: &str| name.strip_prefix("model.").map(str::to_owned);
    save(&folder.join("model.safetensors"), &tensors, seed, bare);
    for (index, [outputs, inputs]) in dense.into_iter().enumerate() {
        let module = format!("{}_Dense", index + 2);
        let config = json!({
            "in_features": inputs, "out_features": outputs, "bias": false,
            "activation_function": "torch.nn.modules.linear.Identity",
        });
        write(folder, &format!("{module}/config.json"), &config);
        let own = |name: &str| name.strip_prefix(&format!("{module}.")).map(str::to_owned);
        save(&folder.join(module.as_str()).join("model.safetensors"), &tensors, seed, own);
    }
}

/// Copies the files of a tokenizer; the size of its vocabulary.
fn tokenizer_files(folder: &Path, from: &Path) -> usize {
    for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
        std::fs::copy(from.join(file), folder.join(file)).expect("copied");
    }
    let bytes = std::fs::read(folder.join("tokenizer.json")).expect("readable");
    gemma_tokenizer::Tokenizer::from_json(&bytes, Decoder::FAMILY).expect("a tokenizer").vocab_len()
}
