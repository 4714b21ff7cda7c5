//! What each field of a `config.json` becomes.

use super::*;
use crate::Error;

const GEMMA_2: &str = r#"{"model_type": "gemma2", "vocab_size": 512, "hidden_size": 40, "intermediate_size": 96,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "query_pre_attn_scalar": 144, "sliding_window": 6}"#;

fn with(change: &str) -> Result<DecoderConfig, Error> {
    let text = GEMMA_2.trim_end_matches('}').to_owned() + "," + change + "}";
    DecoderConfig::from_json(text.as_bytes())
}

#[test]
fn gemma_2_alternates_windows_and_reads_its_scale() {
    let config = DecoderConfig::from_json(GEMMA_2.as_bytes()).unwrap();
    let windows: Vec<_> = config.layers.iter().map(|layer| layer.attention.window()).collect();
    assert_eq!(windows, [Some(6), None, Some(6)]);
    assert_eq!(config.layers[0].attention.scale, 1.0 / 12.0);
    assert_eq!((config.layers[0].attention.softcap, config.final_softcap), (Some(50.0), Some(30.0)));
    let windows = with(r#""layer_types": ["full_attention", "sliding_attention", "full_attention"]"#).unwrap();
    assert_eq!(windows.layers[1].attention.window(), Some(6));
    assert_eq!(windows.layers[0].attention.window(), None);
}

#[test]
fn null_switches_a_cap_off_and_absence_does_not() {
    let config = with(r#""attn_logit_softcapping": null, "final_logit_softcapping": 4.0"#).unwrap();
    assert_eq!((config.layers[0].attention.softcap, config.final_softcap), (None, Some(4.0)));
}

#[test]
fn both_spellings_of_the_rope_base_are_read() {
    assert_eq!(with(r#""rope_theta": 500.0"#).unwrap().layers[0].rope.theta, 500.0);
    assert_eq!(
        with(r#""rope_parameters": {"rope_type": "default", "rope_theta": 700.0}"#).unwrap().layers[0].rope.theta,
        700.0
    );
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (change, field) in [
        (r#""rope_scaling": {"type": "linear"}"#, "rope_scaling"),
        (r#""rope_parameters": {"rope_type": "yarn"}"#, "rope_type"),
        (r#""hidden_activation": "relu""#, "hidden_activation"),
        (r#""layer_types": ["full_attention"]"#, "layer_types"),
        (r#""attn_logit_softcapping": -1"#, "attn_logit_softcapping"),
        (r#""rms_norm_eps": 0"#, "rms_norm_eps"),
        (r#""quantization_config": {"bits": 4}"#, "quantization_config"),
    ] {
        let message = with(change).unwrap_err().to_string();
        assert!(message.contains(field), "{change}: {message}");
    }
    for (from, to) in [
        ("40", "-40"),
        ("40", "0"),
        ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3"),
        ("\"hidden_size\": 40,", ""),
        ("gemma2", "llama"),
        ("512", "99999999999"),
    ] {
        let text = GEMMA_2.replace(from, to);
        assert!(DecoderConfig::from_json(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn a_written_configuration_reads_back_the_same() {
    for name in RELEASED {
        let config = DecoderConfig::preset(name).unwrap();
        let text = config.to_json(gemma_weights::Dtype::Bf16).to_string();
        let back = DecoderConfig::from_json(text.as_bytes()).unwrap();
        assert_eq!(back, config, "{name}");
    }
    assert!(DecoderConfig::preset("recurrentgemma-2b").is_none());
}

#[test]
fn another_family_is_named_whatever_its_file_lacks() {
    let error = DecoderConfig::from_json(br#"{"model_type": "paligemma"}"#).unwrap_err();
    assert!(matches!(&error, Error::Architecture { name, .. } if name == "paligemma"), "{error}");
    assert!(DecoderConfig::from_json(b"{}").is_err());
    assert!(DecoderConfig::from_json(b"not json").is_err());
}

#[test]
fn presets_have_the_released_numbers() {
    // hidden size, layers, heads, kv heads, head size, MLP hidden_size, 1 / scale²
    for (name, numbers) in [
        ("gemma-2b", [2048, 18, 8, 1, 256, 16384, 256]),
        ("gemma-7b", [3072, 28, 16, 16, 256, 24576, 256]),
        ("gemma-2-2b", [2304, 26, 8, 4, 256, 9216, 256]),
        ("gemma-2-9b", [3584, 42, 16, 8, 256, 14336, 256]),
        ("gemma-2-27b", [4608, 46, 32, 16, 128, 36864, 144]),
    ] {
        let config = DecoderConfig::preset(name).unwrap();
        let LayerSpec { attention, intermediate_size, .. } = config.layers[0];
        let scalar = attention.scale.powi(-2).round() as usize;
        let found = [
            config.hidden_size,
            config.layers.len(),
            attention.heads,
            attention.kv_heads,
            attention.head_dim,
            intermediate_size,
            scalar,
        ];
        assert_eq!(found, numbers, "{name}");
        assert_eq!(
            (config.vocab, config.context, config.layers[0].rope.theta, config.norm_eps),
            (256_000, 8192, 10_000.0, 1e-6)
        );
    }
}

const RELEASED: [&str; 10] = [
    "gemma-2b",
    "gemma-7b",
    "gemma-2-2b",
    "gemma-2-9b",
    "gemma-2-27b",
    "gemma-3-270m",
    "gemma-3-1b",
    "gemma-3-4b",
    "gemma-3-12b",
    "gemma-3-27b",
];

const GEMMA_3: &str = r#"{"model_type": "gemma3_text", "vocab_size": 512, "hidden_size": 40, "intermediate_size": 96,
    "num_hidden_layers": 7, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16,
    "query_pre_attn_scalar": 16, "sliding_window": 6"#;

fn gemma3(change: &str) -> Result<DecoderConfig, Error> {
    DecoderConfig::from_json(format!("{GEMMA_3}{change}}}").as_bytes())
}

#[test]
fn every_sixth_layer_of_gemma_3_is_full_and_turns_slower() {
    let config = gemma3("").unwrap();
    let windows: Vec<_> = config.layers.iter().map(|layer| layer.attention.window()).collect();
    assert_eq!(windows, [Some(6), Some(6), Some(6), Some(6), Some(6), None, Some(6)]);
    assert_eq!((config.layers[0].rope.theta, config.layers[5].rope.theta), (10_000.0, 1_000_000.0));
    assert_eq!(config.layers[0].attention.qk_norm, Some(1e-6));
    assert_eq!((config.layers[0].attention.softcap, config.final_softcap), (None, None));
    let third = gemma3(r#", "sliding_window_pattern": 3"#).unwrap();
    assert_eq!(third.layers.iter().filter(|layer| layer.attention.window().is_none()).count(), 2);
    let newer = gemma3(r#", "_sliding_window_pattern": 3"#).unwrap();
    assert_eq!(newer, third);
}

#[test]
fn both_spellings_of_gemma_3s_ropes_are_read() {
    let older =
        r#", "rope_theta": 500.0, "rope_local_base_freq": 50.0, "rope_scaling": {"type": "linear", "factor": 8}"#;
    let newer = r#", "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8, "rope_theta": 500.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}"#;
    let config = gemma3(older).unwrap();
    assert_eq!(config, gemma3(newer).unwrap());
    assert_eq!(config.layers[0].rope, RopeSpec::new(16, 50.0), "windowed layers are not scaled");
    assert_eq!(config.layers[5].rope, RopeSpec { factor: 8.0, ..RopeSpec::new(16, 500.0) });
}

#[test]
fn gemma_2_is_scaled_in_every_layer() {
    let scaled = with(r#""rope_scaling": {"rope_type": "linear", "factor": 4.0}"#).unwrap();
    assert!(scaled.layers.iter().all(|layer| layer.rope == RopeSpec { factor: 4.0, ..RopeSpec::new(16, 10_000.0) }));
    let back = DecoderConfig::from_json(scaled.to_json(gemma_weights::Dtype::F32).to_string().as_bytes()).unwrap();
    assert_eq!(back, scaled);
}

#[test]
fn vaultgemma_is_gemma_2_with_the_norms_of_gemma_1() {
    let text = GEMMA_2.replace("gemma2", "vaultgemma");
    let (vault, two) =
        (DecoderConfig::from_json(text.as_bytes()).unwrap(), DecoderConfig::from_json(GEMMA_2.as_bytes()).unwrap());
    assert_eq!(vault.layers[0].norms, Norms::BeforeVault);
    assert_eq!(vault.layers[0].attention, two.layers[0].attention);
    let back = DecoderConfig::from_json(vault.to_json(gemma_weights::Dtype::F32).to_string().as_bytes()).unwrap();
    assert_eq!(back, vault);
}

#[test]
fn the_text_half_of_a_model_with_images_is_read() {
    let text = r#"{"model_type": "gemma3", "eos_token_id": [1, 106], "vision_config": {"hidden_size": 1152},
        "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "final_logit_softcapping": 3.0}}"#;
    let config = DecoderConfig::from_json(text.as_bytes()).unwrap();
    let released = DecoderConfig::preset("gemma-3-4b").unwrap();
    assert_eq!(config, DecoderConfig { eos: vec![1, 106], ..released });
}

#[test]
fn what_gemma_3_does_not_compute_is_refused_by_name() {
    for (change, field) in [
        (r#", "attn_logit_softcapping": 50.0"#, "attn_logit_softcapping"),
        (r#", "use_bidirectional_attention": "vision""#, "use_bidirectional_attention"),
        (r#", "sliding_window_pattern": 0"#, "sliding_window_pattern"),
        (r#", "sliding_window": 0"#, "sliding_window"),
        (r#", "rope_scaling": {"rope_type": "yarn", "factor": 8}"#, "rope_type"),
        (r#", "rope_scaling": {"rope_type": "linear", "factor": 0}"#, "factor"),
        (r#", "rope_parameters": {"rope_type": "default", "rope_theta": 5}"#, "rope_parameters"),
        (r#", "rope_parameters": {"full_attention": {"partial_rotary_factor": 0.5}}"#, "partial_rotary_factor"),
        (r#", "layer_types": ["full_attention"]"#, "layer_types"),
    ] {
        // the last of two fields counts
        let text = GEMMA_3.replace(r#", "sliding_window": 6"#, "");
        let message = DecoderConfig::from_json(format!("{text}{change}}}").as_bytes()).unwrap_err().to_string();
        assert!(message.contains(field), "{change}: {message}");
    }
    let encoder = gemma3(r#", "use_bidirectional_attention": true"#).unwrap();
    assert!(encoder.is_bidirectional());
    assert_eq!(encoder.layers[0].attention.visibility, Visibility::Bidirectional { radius: Some(4) });
    assert_eq!(encoder.layers[5].attention.visibility, Visibility::ALL);
    let back = DecoderConfig::from_json(encoder.to_json(gemma_weights::Dtype::F32).to_string().as_bytes()).unwrap();
    assert_eq!(back, encoder, "the window is not halved twice");
    assert!(!gemma3(r#", "tie_word_embeddings": false"#).unwrap().is_tied);
}

#[test]
fn presets_of_gemma_3_have_the_released_numbers() {
    // hidden size, layers, heads, kv heads, head size, MLP, 1 / scale², window
    for (name, numbers) in [
        ("gemma-3-270m", [640, 18, 4, 1, 256, 2048, 256, 512]),
        ("gemma-3-1b", [1152, 26, 4, 1, 256, 6912, 256, 512]),
        ("gemma-3-4b", [2560, 34, 8, 4, 256, 10240, 256, 1024]),
        ("gemma-3-12b", [3840, 48, 16, 8, 256, 15360, 256, 1024]),
        ("gemma-3-27b", [5376, 62, 32, 16, 128, 21504, 168, 1024]),
    ] {
        let config = DecoderConfig::preset(name).unwrap();
        let LayerSpec { attention, intermediate_size, .. } = config.layers[0];
        let scalar = attention.scale.powi(-2).round() as usize;
        let window = attention.window().unwrap();
        let found = [
            config.hidden_size,
            config.layers.len(),
            attention.heads,
            attention.kv_heads,
            attention.head_dim,
            intermediate_size,
            scalar,
            window,
        ];
        assert_eq!(found, numbers, "{name}");
        let factor = if name.ends_with("270m") || name.ends_with("1b") { 1.0 } else { 8.0 };
        assert_eq!(config.layers[5].rope, RopeSpec { factor, ..RopeSpec::new(attention.head_dim, 1e6) }, "{name}");
        assert_eq!(config.layers[6].rope, RopeSpec::new(attention.head_dim, 1e4), "{name}");
    }
}
