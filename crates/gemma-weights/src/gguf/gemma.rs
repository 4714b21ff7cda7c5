//! What a GGUF file says of a Gemma model, in the words of a Hugging Face folder.
//!
//! A file is one model with everything beside it. Here its keys become the files that a folder would hold
//! (`config.json`, `tokenizer.model`, ...) and its tensors get the names that the layers ask for, so that nothing above
//! this crate knows where a model came from. Two things differ in value: norm weights are stored as `1 + w`, and a
//! table may have more rows than the vocabulary has pieces.

use std::collections::BTreeMap;

use gemma_kernels::Format;
use serde_json::{Value as Json, json};

use super::architectures::ARCHITECTURES;
use super::keys::{Keys, unknown, wrong};
use super::{AdapterFile, Gguf, Pairs, Value};
use crate::{GgufFault as Fault, StoredTensor};

/// A model in a folder's words.
pub(crate) struct Translated {
    /// The small files, by name.
    pub(crate) files: Vec<(&'static str, Vec<u8>)>,
    /// The tensors, by the names that the layers ask for.
    pub(crate) tensors: BTreeMap<String, StoredTensor>,
    /// The keys that nothing reads and that should do no harm.
    pub(crate) unknown: Vec<String>,
    /// What the file calls its architecture.
    pub(crate) architecture: String,
}

/// What a file is that lies beside models and is none, by what its keys say.
pub(super) fn not_a_model(pairs: &Pairs<'_>) -> Option<Fault> {
    let text = |key: &str| match pairs.get(key) {
        Some(Value::Text(text)) => *text,
        _ => "",
    };
    let what = match (text("general.type"), text("general.architecture")) {
        ("imatrix", _) => "an importance matrix",
        ("adapter", _) => "a LoRA adapter",
        ("mmproj", _) | (_, "clip") => "the image encoder of a model (mmproj)",
        ("dataset", _) => "a data set",
        ("controlvector", _) | (_, "controlvector") => "a control vector",
        _ => return None,
    };
    Some(Fault::NotAModel { what })
}

/// What a file that was given as an adapter is, if it is none.
pub(super) fn not_an_adapter(pairs: &Pairs<'_>) -> Option<Fault> {
    let is = |key: &str, text: &str| pairs.get(key) == Some(&Value::Text(text));
    (!(is("general.type", "adapter") && is("adapter.type", "lora"))).then_some(Fault::NotAnAdapter)
}

/// The factors of an adapter's file by the names that the layers ask for.
///
/// # Errors
/// When it is for another architecture, has a tensor that no layer has, or is applied in another way.
pub(super) fn translate_adapter(file: Gguf<'_>) -> Result<AdapterFile, Fault> {
    const INVOKED: &str = "adapter.alora.invocation_tokens";
    let keys = Keys(&file.pairs);
    let architecture = keys.text("general.architecture")?;
    if !ARCHITECTURES.contains(&architecture) {
        return Err(Fault::Architecture { architecture: architecture.to_owned() });
    }
    if let Some(value) = keys.optional(INVOKED) {
        return Err(wrong(INVOKED, value, "left out: an adapter here counts for all tokens"));
    }
    let alpha = keys.optional_float("adapter.lora.alpha")?.unwrap_or_default();
    let mut factors = BTreeMap::new();
    for (name, tensor) in file.tensors {
        let split =
            name.rsplit_once('.').and_then(|(weight, factor)| Some((folder_name(weight, architecture)?, factor)));
        let Some((weight, factor)) = split else { return Err(Fault::UnknownTensor { tensor: name }) };
        factors.insert(format!("{weight}.{factor}"), tensor);
    }
    Ok(AdapterFile { factors, alpha, architecture: architecture.to_owned() })
}

/// More layers than any model has.
pub const MOST_LAYERS: usize = 1 << 10;

/// Layers of Gemma 2 27B, the one released model whose scores are scaled by the width of a query head's share of the
/// model (144) and not by the head (128). The files do not store the scale.
const LAYERS_OF_27B: u64 = 46;

/// The same of Gemma 3 27B (168, with heads of 128).
const LAYERS_OF_3_27B: u64 = 62;

/// The `query_pre_attn_scalar` of a file of Gemma 2 or 3 that says nothing of it.
pub(crate) fn default_query_scalar(
    architecture: &str,
    layers: u64,
    hidden_size: u64,
    heads: u64,
    head_dim: u64,
) -> u64 {
    let of_27b = if architecture == "gemma2" { LAYERS_OF_27B } else { LAYERS_OF_3_27B };
    if layers == of_27b { hidden_size.checked_div(heads).unwrap_or(head_dim) } else { head_dim }
}

/// Turns a parsed file into a folder's files and tensors. `beside` is a `config.json` that lies beside the file: if it is
/// one of the same network, it says what such files do not, the scale of the scores.
///
/// # Errors
/// When it is of another architecture, or lacks what a model needs.
pub(crate) fn translate(file: Gguf<'_>, beside: Option<&Json>) -> Result<Translated, Fault> {
    let keys = Keys(&file.pairs);
    let architecture = keys.text("general.architecture")?;
    if !ARCHITECTURES.contains(&architecture) {
        return Err(Fault::Architecture { architecture: architecture.to_owned() });
    }
    let unknown = unknown(&file.pairs, architecture)?;
    let mut files = Vec::new();
    let pieces = match keys.optional("tokenizer.ggml.tokens") {
        Some(_) => {
            files.push(("tokenizer.model", tokenizer(&keys)?));
            Some(keys.list("tokenizer.ggml.tokens")?.len())
        }
        None => None,
    };
    let marks = (pieces.is_some() && architecture == "gemma3").then(|| image_marks(&keys)).transpose()?;
    let has_weights = !file.tensors.is_empty();
    // what is not there is missed below
    let length = |name: &str| {
        let length = keys.number(&format!("{architecture}.{name}")).unwrap_or_default();
        usize::try_from(length).unwrap_or(usize::MAX)
    };
    let (head_dim, hidden_size) = (length("attention.key_length"), length("embedding_length"));
    let mut tensors = BTreeMap::new();
    for (name, tensor) in file.tensors {
        let Some(known) = folder_name(&name, architecture) else { return Err(Fault::UnknownTensor { tensor: name }) };
        let tensor = match (known.as_str(), pieces) {
            (TABLE | HEAD, Some(pieces)) => first_rows(tensor, pieces),
            // one of another shape is left as it is, for the network to refuse
            (known, _)
                if known.ends_with("norm.weight") && [vec![hidden_size], vec![head_dim]].contains(&tensor.shape) =>
            {
                offset_from_one(&tensor)
            }
            _ => tensor,
        };
        tensors.insert(known, tensor);
    }
    let rows = tensors.get(TABLE).and_then(|table| table.shape.first().copied());
    match config(&keys, architecture, rows.or(pieces)) {
        Ok(mut config) => {
            take_scale(&mut config, beside, architecture);
            if let (Some(marks), Some(config)) = (marks, config.as_object_mut()) {
                config.extend(marks);
            }
            files.push(("config.json", text(&config)));
        }
        // of a vocabulary alone nothing else is asked
        Err(_) if !has_weights && pieces.is_some() => {}
        Err(fault) => return Err(fault),
    }
    if let Some(template) = keys.optional("tokenizer.chat_template") {
        let key = "tokenizer.chat_template";
        let Value::Text(template) = template else { return Err(wrong(key, template, "a text")) };
        files.push(("tokenizer_config.json", text(&json!({ "chat_template": template }))));
    }
    Ok(Translated { files, tensors, unknown, architecture: architecture.to_owned() })
}

/// The numbers of the pieces around and for an image, where the vocabulary has them.
fn image_marks(keys: &Keys<'_, '_>) -> Result<serde_json::Map<String, Json>, Fault> {
    const MARKS: [(&str, &str); 3] = [
        ("<start_of_image>", "boi_token_index"),
        ("<end_of_image>", "eoi_token_index"),
        ("<image_soft_token>", "image_token_index"),
    ];
    let pieces = keys.list("tokenizer.ggml.tokens")?.texts().unwrap_or_default();
    let number = |piece: &str| pieces.iter().position(|found| *found == piece);
    Ok(MARKS.into_iter().filter_map(|(piece, field)| Some((field.to_owned(), json!(number(piece)?)))).collect())
}

/// Takes the scale of the scores from a `config.json` of the same network.
fn take_scale(config: &mut Json, beside: Option<&Json>, architecture: &str) {
    let Some(beside) = beside else { return };
    let same = |field: &str| beside.get(field).is_some_and(|value| *value == config[field]);
    let scalar = beside.get("query_pre_attn_scalar").filter(|scalar| scalar.is_number());
    let network = ["model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim"];
    if let (Some(scalar), true) = (scalar, architecture != "gemma" && network.into_iter().all(same)) {
        config["query_pre_attn_scalar"] = scalar.clone();
    }
}

fn text(json: &Json) -> Vec<u8> {
    json.to_string().into_bytes()
}

/// The `config.json` of the model.
fn config(keys: &Keys<'_, '_>, architecture: &str, rows: Option<usize>) -> Result<Json, Fault> {
    let key = |name: &str| format!("{architecture}.{name}");
    let size = |name: &str| keys.size(&key(name));
    let (hidden_size, heads) = (size("embedding_length")?, size("attention.head_count")?);
    let (layers, head_dim) = (size("block_count")?, size("attention.key_length")?);
    for name in ["attention.value_length", "rope.dimension_count"] {
        if keys.optional(&key(name)).is_some() && keys.number(&key(name))? != head_dim {
            return Err(wrong(&key(name), keys.number(&key(name))?, "the key length"));
        }
    }
    let kv_heads = match keys.optional(&key("attention.head_count_kv")) {
        Some(_) => size("attention.head_count_kv")?,
        None => heads,
    };
    let eos = match keys.optional("tokenizer.ggml.eos_token_id") {
        Some(_) => keys.token("tokenizer.ggml.eos_token_id")?,
        None => 1,
    };
    let model_type = if is_gemma3(architecture) { "gemma3_text" } else { architecture };
    let rope_theta = if is_gemma3(architecture) { 1_000_000.0 } else { 10_000.0 };
    let mut config = json!({
        "model_type": model_type,
        "vocab_size": rows,
        "hidden_size": hidden_size,
        "intermediate_size": size("feed_forward_length")?,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": keys.number(&key("context_length"))?,
        "rms_norm_eps": keys.positive_float(&key("attention.layer_norm_rms_epsilon"))?,
        "rope_theta": keys.optional_float(&key("rope.freq_base"))?.unwrap_or(rope_theta),
        "eos_token_id": eos,
        "tie_word_embeddings": true,
    });
    if let Some(factor) = rope_factor(keys, architecture)? {
        config["rope_scaling"] = json!({ "rope_type": "linear", "factor": factor });
    }
    if is_gemma3(architecture) {
        let cap = |name: &str| keys.optional_float(&key(name));
        config["attn_logit_softcapping"] = json!(cap("attn_logit_softcapping")?.filter(|cap| *cap != 0.0));
        config["final_logit_softcapping"] = json!(cap("final_logit_softcapping")?.filter(|cap| *cap != 0.0));
        config["rope_local_base_freq"] = json!(keys.optional_float(&key("rope.freq_base_swa"))?.unwrap_or(10_000.0));
        config["use_bidirectional_attention"] = json!(architecture == "gemma-embedding");
    }
    if architecture == "gemma2" {
        let cap = |name: &str, default: f64| Ok(keys.optional_float(&key(name))?.unwrap_or(default));
        config["attn_logit_softcapping"] = json!(cap("attn_logit_softcapping", 50.0)?);
        config["final_logit_softcapping"] = json!(cap("final_logit_softcapping", 30.0)?);
        let windowed = keys.optional_float(&key("rope.freq_base_swa"))?;
        if let Some(base) = windowed.filter(|base| Some(*base) != config["rope_theta"].as_f64()) {
            return Err(wrong(&key("rope.freq_base_swa"), base, "left out, or as rope.freq_base: all layers share it"));
        }
    }
    if architecture != "gemma" {
        layer_kinds(keys, &key("attention.sliding_window_pattern"), layers, &mut config)?;
        config["sliding_window"] = json!(match keys.optional(&key("attention.sliding_window")) {
            Some(_) => keys.number(&key("attention.sliding_window"))?,
            None => 4096,
        });
        config["query_pre_attn_scalar"] = match keys.optional_float(&key("attention.scale"))? {
            // a small number of digits, as a configuration has
            Some(scale) if scale > 1e-6 => json!((scale.powi(-2) * 1e3).round() / 1e3),
            Some(scale) => return Err(wrong(&key("attention.scale"), scale, "more than zero")),
            None => json!(default_query_scalar(architecture, layers, hidden_size, heads, head_dim)),
        };
    }
    Ok(config)
}

fn is_gemma3(architecture: &str) -> bool {
    matches!(architecture, "gemma3" | "gemma-embedding")
}

/// By how much positions are divided: `rope.scaling.type` and `rope.scaling.factor`, or in older files
/// `rope.scale_linear`. As for llama.cpp, a factor without a type is a linear one.
fn rope_factor(keys: &Keys<'_, '_>, architecture: &str) -> Result<Option<f64>, Fault> {
    let key = |name: &str| format!("{architecture}.rope.{name}");
    let kind = match keys.optional(&key("scaling.type")) {
        Some(_) => keys.text(&key("scaling.type"))?,
        None => "linear",
    };
    if kind == "none" {
        return Ok(None);
    }
    if kind != "linear" {
        return Err(wrong(&key("scaling.type"), kind, "none or linear"));
    }
    let names = ["scaling.factor", "scale_linear"];
    let Some(name) = names.into_iter().map(key).find(|name| keys.optional(name).is_some()) else { return Ok(None) };
    // 0 stands for none
    let factor = keys.float(&name)?;
    match factor {
        0.0 | 1.0 => Ok(None),
        _ if factor > 0.0 => Ok(Some(factor)),
        _ => Err(wrong(&name, factor, "more than zero")),
    }
}

/// Which layers are windowed, where the file says so: a truth value for each, or a period `n` of which the last layer is
/// full, and none where it is 0, as llama.cpp reads it. Else every second one (Gemma 2), or all but every sixth (Gemma 3).
fn layer_kinds(keys: &Keys<'_, '_>, key: &str, layers: u64, config: &mut Json) -> Result<(), Fault> {
    let windowed: Vec<bool> = match keys.optional(key) {
        None => return Ok(()),
        Some(Value::List(list)) => {
            let windowed = list.flags().filter(|flags| flags.len() as u64 == layers);
            let found = || format!("a list of {}", list.len());
            windowed.ok_or_else(|| wrong(key, found(), "a truth value for each layer"))?
        }
        Some(_) if layers > MOST_LAYERS as u64 => {
            return Err(wrong(key, keys.number(key)?, "a period of fewer layers"));
        }
        Some(_) => {
            let period = keys.number(key)?;
            (0..layers).map(|layer| period == 0 || layer % period < period - 1).collect()
        }
    };
    let kind = |windowed: bool| if windowed { "sliding_attention" } else { "full_attention" };
    config["layer_types"] = json!(windowed.into_iter().map(kind).collect::<Vec<_>>());
    Ok(())
}

/// Parts of a layer: in the file, in a folder of Gemma, in a folder of Gemma 2 and 3. Only Gemma 3 has norms of queries
/// and keys.
const PARTS: [(&str, Option<&str>, Option<&str>); 13] = [
    ("attn_norm", Some("input_layernorm"), Some("input_layernorm")),
    ("attn_q", Some("self_attn.q_proj"), Some("self_attn.q_proj")),
    ("attn_k", Some("self_attn.k_proj"), Some("self_attn.k_proj")),
    ("attn_v", Some("self_attn.v_proj"), Some("self_attn.v_proj")),
    ("attn_q_norm", None, Some("self_attn.q_norm")),
    ("attn_k_norm", None, Some("self_attn.k_norm")),
    ("attn_output", Some("self_attn.o_proj"), Some("self_attn.o_proj")),
    ("ffn_norm", Some("post_attention_layernorm"), Some("pre_feedforward_layernorm")),
    ("post_attention_norm", None, Some("post_attention_layernorm")),
    ("post_ffw_norm", None, Some("post_feedforward_layernorm")),
    ("ffn_gate", Some("mlp.gate_proj"), Some("mlp.gate_proj")),
    ("ffn_up", Some("mlp.up_proj"), Some("mlp.up_proj")),
    ("ffn_down", Some("mlp.down_proj"), Some("mlp.down_proj")),
];
/// The rest, in the file and in a folder; the head of its own is one that tied models do not need.
const OUTSIDE: [(&str, &str); 5] = [
    ("token_embd.weight", TABLE),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", HEAD),
    ("dense_2.weight", "2_Dense.linear.weight"),
    ("dense_3.weight", "3_Dense.linear.weight"),
];
/// The embedding table in a folder.
const TABLE: &str = "model.embed_tokens.weight";
/// A head of its own in a folder.
const HEAD: &str = "lm_head.weight";

/// The parts of a layer of an architecture, in the file and in a folder.
fn parts(architecture: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let (first, qk_norm) = (architecture == "gemma", is_gemma3(architecture));
    PARTS
        .into_iter()
        .filter(move |(file, ..)| qk_norm || !matches!(*file, "attn_q_norm" | "attn_k_norm"))
        .filter_map(move |(file, gemma, second)| Some((file, if first { gemma } else { second }?)))
}

/// The name that a layer asks for; `None` for a name that no layer knows.
fn folder_name(name: &str, architecture: &str) -> Option<String> {
    if let Some((_, outside)) = OUTSIDE.iter().find(|(file, _)| *file == name) {
        return Some((*outside).to_owned());
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    layer.parse::<u32>().ok()?;
    let part = part.strip_suffix(".weight")?;
    let (_, part) = parts(architecture).find(|(file, _)| *file == part)?;
    Some(format!("model.layers.{layer}.{part}.weight"))
}

/// The name in a file of what a layer asks for; `None` for a name that such files do not have.
pub(crate) fn file_name(name: &str, architecture: &str) -> Option<String> {
    if let Some((file, _)) = OUTSIDE.iter().find(|(_, outside)| *outside == name) {
        return Some((*file).to_owned());
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    layer.parse::<u32>().ok()?;
    let part = part.strip_suffix(".weight")?;
    let (part, _) = parts(architecture).find(|(_, folder)| *folder == part)?;
    Some(format!("blk.{layer}.{part}.weight"))
}

/// A norm's weight as the layers have it, `w` of the `1 + w` that is stored.
pub(super) fn offset_from_one(tensor: &StoredTensor) -> StoredTensor {
    let bytes: Vec<u8> = tensor.to_f32().into_iter().flat_map(|value| (value - 1.0).to_le_bytes()).collect();
    StoredTensor { format: Format::F32, shape: tensor.shape.clone(), bytes: bytes.into() }
}

/// A table without the rows that pad it beyond the vocabulary.
fn first_rows(tensor: StoredTensor, rows: usize) -> StoredTensor {
    match tensor.shape[..] {
        [stored, cols] if stored > rows => {
            let row = tensor.bytes.len() / stored;
            StoredTensor { shape: vec![rows, cols], bytes: tensor.bytes.slice(..rows * row), ..tensor }
        }
        _ => tensor,
    }
}

/// The fields of a `config.json`, and the keys that they are made of, without the name of the architecture in front.
const FIELDS: [(&str, &str); 18] = [
    ("max_position_embeddings", "context_length"),
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("rope_theta", "rope.freq_base"),
    ("rope_local_base_freq", "rope.freq_base_swa"),
    ("rope_scaling", "rope.scaling.factor"),
    ("rope_scaling.factor", "rope.scaling.factor"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
    ("sliding_window", "attention.sliding_window"),
    ("layer_types", "attention.sliding_window_pattern"),
    ("query_pre_attn_scalar", "attention.scale"),
    ("vocab_size", "vocab_size"),
];

/// A message about a folder's files in the words of the GGUF file that they were made of: its keys, and the names that its
/// tensors have there.
pub(crate) fn in_words_of_file(message: &str, architecture: &str) -> String {
    let message = message.strip_prefix("config.json: ").unwrap_or(message);
    let message = message.replace("config.json and the .safetensors files", "the keys and the tensors");
    let (mut told, mut rest) = (String::new(), message.as_str());
    let is_word = |c: char| c.is_ascii_alphanumeric() || ['_', '.'].contains(&c);
    while !rest.is_empty() {
        let (between, from) = rest.split_at(rest.find(is_word).unwrap_or(rest.len()));
        let (word, next) = from.split_at(from.find(|c| !is_word(c)).unwrap_or(from.len()));
        told.push_str(between);
        match FIELDS.iter().find(|(field, _)| *field == word) {
            Some((_, key)) => told.push_str(&format!("{architecture}.{key}")),
            None if word == "eos_token_id" => told.push_str("tokenizer.ggml.eos_token_id"),
            None if ["tokenizer.model", "tokenizer.json"].contains(&word) => told.push_str("tokenizer.ggml.tokens"),
            None => told.push_str(file_name(word, architecture).as_deref().unwrap_or(word)),
        }
        rest = next;
    }
    told
}

/// The vocabulary as a SentencePiece model: pieces with scores and types, merged by score.
fn tokenizer(keys: &Keys<'_, '_>) -> Result<Vec<u8>, Fault> {
    let model = keys.text("tokenizer.ggml.model")?;
    if model != "llama" {
        return Err(wrong("tokenizer.ggml.model", model, "`llama`, a SentencePiece vocabulary"));
    }
    if let Some(Value::Bool(true)) = keys.optional("tokenizer.ggml.add_space_prefix") {
        return Err(wrong("tokenizer.ggml.add_space_prefix", true, "false"));
    }
    let key = "tokenizer.ggml.tokens";
    let pieces = keys.list(key)?.texts().ok_or_else(|| wrong(key, "a list of numbers", "a list of texts"))?;
    let numbers = |key: &str| {
        let list = keys.list(key)?;
        let numbers = list.numbers().filter(|numbers| numbers.len() == pieces.len());
        let found = || format!("a list of {}", list.len());
        numbers.ok_or_else(|| wrong(key, found(), "a list with a number for each token"))
    };
    let (scores, types) = (numbers("tokenizer.ggml.scores")?, numbers("tokenizer.ggml.token_type")?);
    if let Some(number) = pieces.iter().position(|piece| piece.is_empty()) {
        return Err(wrong(key, format!("a list whose number {number} is empty"), "a list of texts that are not empty"));
    }
    if let Some(kind) = types.iter().find(|kind| !(1..=6).any(|known| **kind == f64::from(known))) {
        return Err(wrong(
            "tokenizer.ggml.token_type",
            format!("a list with {kind} in it"),
            "a list of types from 1 to 6",
        ));
    }
    // a piece is its text and at most this many bytes
    const BESIDE_TEXT: usize = 24;
    let texts: usize = pieces.iter().map(|piece| piece.len()).sum();
    let mut bytes = Vec::with_capacity(texts + pieces.len() * BESIDE_TEXT);
    let mut message = Vec::new();
    for ((piece, score), kind) in pieces.iter().zip(scores).zip(types) {
        // ModelProto.pieces: text, score, type (the numbers of the types are SentencePiece's own)
        message.clear();
        field(&mut message, 1, piece.as_bytes());
        message.push(2 << 3 | 5);
        message.extend((score as f32).to_le_bytes());
        message.push(3 << 3);
        varint(&mut message, kind.max(0.0) as u64);
        field(&mut bytes, 1, &message);
    }
    // trainer_spec.model_type BPE; normalizer_spec: no dummy prefix, white space kept, spaces escaped
    field(&mut bytes, 2, &[3 << 3, 2]);
    field(&mut bytes, 3, &[3 << 3, 0, 4 << 3, 0, 5 << 3, 1]);
    Ok(bytes)
}

/// A length-delimited field of a protocol buffer.
fn field(message: &mut Vec<u8>, number: u8, content: &[u8]) {
    message.push(number << 3 | 2);
    varint(message, content.len() as u64);
    message.extend(content);
}

fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_before_the_mlp_has_two_names() {
        let name = |architecture| folder_name("blk.3.ffn_norm.weight", architecture).unwrap();
        assert_eq!(name("gemma"), "model.layers.3.post_attention_layernorm.weight");
        assert_eq!(name("gemma2"), "model.layers.3.pre_feedforward_layernorm.weight");
        assert_eq!(folder_name("blk.3.post_ffw_norm.weight", "gemma"), None);
        assert_eq!(folder_name("blk.x.attn_q.weight", "gemma"), None);
        assert_eq!(folder_name("blk.3.attn_q.bias", "gemma"), None);
    }

    #[test]
    fn norms_lose_the_one_that_is_stored_with_them() {
        let bytes: Vec<u8> = [1.5f32, 0.75].iter().flat_map(|value| value.to_le_bytes()).collect();
        let tensor = StoredTensor { format: Format::F32, shape: vec![2], bytes: bytes.into() };
        assert_eq!(offset_from_one(&tensor).to_f32(), [0.5, -0.25]);
    }

    #[test]
    fn padding_rows_are_cut_off() {
        let tensor = StoredTensor { format: Format::F32, shape: vec![3, 2], bytes: vec![7; 24].into() };
        let cut = first_rows(tensor.clone(), 2);
        assert_eq!((cut.shape, cut.bytes.len()), (vec![2, 2], 16));
        assert_eq!(first_rows(tensor, 5).shape, [3, 2]);
    }

    #[test]
    fn the_scale_of_27b_is_that_of_its_layers() {
        let pairs = |layers| {
            Pairs::from([
                ("gemma2.embedding_length", Value::Unsigned(4608)),
                ("gemma2.attention.head_count", Value::Unsigned(32)),
                ("gemma2.attention.head_count_kv", Value::Unsigned(16)),
                ("gemma2.attention.key_length", Value::Unsigned(128)),
                ("gemma2.block_count", Value::Unsigned(layers)),
                ("gemma2.feed_forward_length", Value::Unsigned(36864)),
                ("gemma2.context_length", Value::Unsigned(8192)),
                ("gemma2.attention.layer_norm_rms_epsilon", Value::Float(f64::from(1e-6f32))),
            ])
        };
        let scalar = |layers| {
            let pairs = pairs(layers);
            config(&Keys(&pairs), "gemma2", Some(256_000)).unwrap()["query_pre_attn_scalar"].as_u64()
        };
        assert_eq!((scalar(46), scalar(26)), (Some(144), Some(128)));
        let pairs = pairs(46);
        assert_eq!(config(&Keys(&pairs), "gemma2", Some(9)).unwrap()["rms_norm_eps"].to_string(), "1e-6");
    }

    /// What every architecture needs, with other values of some keys.
    fn with<'a>(architecture: &str, changes: &[(&'a str, Value<'a>)]) -> Result<Json, Fault> {
        let base = [
            ("embedding_length", Value::Unsigned(64)),
            ("attention.head_count", Value::Unsigned(4)),
            ("attention.key_length", Value::Unsigned(16)),
            ("block_count", Value::Unsigned(4)),
            ("feed_forward_length", Value::Unsigned(96)),
            ("context_length", Value::Unsigned(128)),
            ("attention.layer_norm_rms_epsilon", Value::Float(1e-6)),
        ];
        let named: BTreeMap<String, Value<'a>> = base
            .into_iter()
            .chain(changes.iter().cloned())
            .map(|(name, value)| (format!("{architecture}.{name}"), value))
            .collect();
        let pairs: Pairs<'_> = named.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        config(&Keys(&pairs), architecture, Some(512))
    }

    #[test]
    fn the_windows_of_a_file_are_those_it_names() {
        let flags: &'static [u8] = &[0, 1, 0, 1];
        let listed = Value::List(super::super::List { kind: super::super::kind::BOOL, len: 4, bytes: flags });
        let kinds = |architecture: &str, value: Value<'static>| {
            let config = with(architecture, &[("attention.sliding_window_pattern", value)]).unwrap();
            let kinds = config["layer_types"].as_array().unwrap().clone();
            kinds.iter().map(|kind| if kind == "full_attention" { 'f' } else { 'w' }).collect::<String>()
        };
        for architecture in ["gemma2", "gemma3"] {
            for (value, expected) in [
                (listed.clone(), "fwfw"),
                (Value::Unsigned(3), "wwfw"),
                (Value::Unsigned(1), "ffff"),
                (Value::Unsigned(0), "wwww"),
            ] {
                assert_eq!(kinds(architecture, value), expected);
            }
        }
        assert!(with("gemma2", &[]).unwrap().get("layer_types").is_none());
    }

    #[test]
    fn one_base_for_the_windowed_layers_of_gemma_2_is_refused() {
        assert!(with("gemma2", &[("rope.freq_base_swa", Value::Float(10_000.0))]).is_ok());
        let error = with("gemma2", &[("rope.freq_base_swa", Value::Float(5_000.0))]).unwrap_err().to_string();
        assert!(error.contains("gemma2.rope.freq_base_swa is 5000"), "{error}");
        assert!(with("gemma3", &[("rope.freq_base_swa", Value::Float(5_000.0))]).is_ok());
    }

    #[test]
    fn a_message_is_told_in_the_words_of_the_file() {
        for (message, told) in [
            (
                "config.json: num_key_value_heads is 3; it must be a divisor of num_attention_heads",
                "gemma2.attention.head_count_kv is 3; it must be a divisor of gemma2.attention.head_count",
            ),
            ("config.json: sliding_window is 0", "gemma2.attention.sliding_window is 0"),
            ("missing (model.layers.3.mlp.up_proj.weight, x.y)", "missing (blk.3.ffn_up.weight, x.y)"),
            ("tokenizer.model cannot be read", "tokenizer.ggml.tokens cannot be read"),
            ("the prompt is empty…", "the prompt is empty…"),
        ] {
            assert_eq!(in_words_of_file(message, "gemma2"), told);
        }
    }
}
