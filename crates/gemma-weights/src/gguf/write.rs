//! Writing a Gemma model as a GGUF file that llama.cpp opens: the whole file, or nothing.

use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::Path;

use gemma_kernels::Format;
use serde_json::Value as Json;

use super::{ALIGNMENT, MAGIC, ggml_number, kind};
use crate::convert::finite_bytes;
use crate::gguf::gemma::{default_query_scalar, file_name};
use crate::new_file::NewFile;
use crate::{Checkpoint, Error, StoredTensor};

/// The version of the container that is written.
const VERSION: u32 = 3;
/// The version of the block layouts, which GGML counts.
const QUANTIZATION_VERSION: u32 = 2;

/// The vocabulary and the chat template that go into the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufVocabulary {
    /// Pieces as SentencePiece spells them, with score and type (1 text, 2 unknown, 3 control, 4 literal, 6 byte), by
    /// token.
    pub pieces: Vec<(String, f32, i32)>,
    /// Tokens by the role that their key names, such as `bos_token_id`.
    pub tokens: Vec<(&'static str, u32)>,
    /// The chat template, in Jinja.
    pub chat_template: Option<String>,
}

/// Told before each tensor how many bytes of how many are done; may end the work.
pub type OnConvert<'a> = &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// Writes a checkpoint of Gemma, Gemma 2 or CodeGemma as one GGUF file.
///
/// `config` is its `config.json` with every field. Matrices are stored in `format`, or as they are where there is none;
/// rows that whole blocks do not fill become f16. Norms are f32 and hold the one that the layers add. One tensor at a
/// time is held in memory. A file that is there is replaced only when `replace` is set. Returns how many matrices are not in
/// the `format` that was wished.
///
/// # Errors
/// [`Error::NotForGguf`] for another architecture or a tensor that such files do not have, [`Error::WouldOverwrite`],
/// [`Error::NotFinite`], [`Error::Write`], [`Error::Stopped`]; what was there is then as it was.
pub fn save_gguf(
    checkpoint: &Checkpoint,
    config: &Json,
    vocabulary: Option<&GgufVocabulary>,
    format: Option<Format>,
    path: &Path,
    replace: bool,
    on_progress: OnConvert<'_>,
) -> Result<usize, Error> {
    let architecture = architecture_of(config)?;
    let mut tensors = Vec::new();
    for (name, tensor) in checkpoint.tensors() {
        // a copy of the table, and constants that some old folders hold
        let tied = config["tie_word_embeddings"] != false;
        if (tied && name == "lm_head.weight") || name.ends_with("rotary_emb.inv_freq") {
            continue;
        }
        let Some(known) = file_name(name, architecture) else {
            return Err(Error::NotForGguf { reason: format!("such files have no place for the tensor {name}") });
        };
        tensors.push((known, tensor, stored_format(tensor, format)));
    }
    let pairs = pairs(config, architecture, vocabulary, &tensors)?;
    if !replace && path.exists() {
        return Err(Error::WouldOverwrite { folder: path.to_owned() });
    }
    let mut new = NewFile::open(path)?;
    write(&mut BufWriter::new(new.as_file_mut()), &pairs, &tensors, on_progress, path)?;
    new.finish()?;
    let differs =
        |(_, tensor, stored): &&Outgoing<'_>| tensor.shape.len() > 1 && format.is_some_and(|wished| wished != *stored);
    Ok(tensors.iter().filter(differs).count())
}

/// What GGUF calls the architecture of a `config.json`.
pub(crate) fn architecture_of(config: &Json) -> Result<&str, Error> {
    Ok(match config["model_type"].as_str() {
        Some(known @ ("gemma" | "gemma2")) => known,
        Some("gemma3_text") if config["use_bidirectional_attention"] == true => "gemma-embedding",
        Some("gemma3_text") => "gemma3",
        other => {
            let reason = format!("there is no GGUF architecture for {}", other.unwrap_or("a model without a type"));
            return Err(Error::NotForGguf { reason });
        }
    })
}

/// A tensor on its way into the file: its name there, and the format in which it will lie.
pub(crate) type Outgoing<'a> = (String, &'a StoredTensor, Format);

/// Vectors are f32; a matrix is as it was wished, f16 where that does not fit.
fn stored_format(tensor: &StoredTensor, wish: Option<Format>) -> Format {
    match (tensor.shape[..].last(), tensor.shape.len()) {
        (Some(cols), 2..) => {
            let wished = wish.unwrap_or(tensor.format);
            if wished.row_bytes(*cols).is_some() { wished } else { Format::F16 }
        }
        _ => Format::F32,
    }
}

/// A number as llama.cpp's list of file types has it: what most of the file is stored in.
fn file_type(format: Format) -> u32 {
    match format {
        Format::F32 => 0,
        Format::F16 => 1,
        Format::Q4_0 => 2,
        Format::Q4_1 => 3,
        Format::Q8_0 => 7,
        Format::Q5_0 => 8,
        Format::Q5_1 => 9,
        Format::Q4K => 14,
        Format::Q5K => 16,
        Format::Q6K => 18,
        Format::Q2K => 10,
        Format::Q3K => 12,
        Format::Iq2Xxs => 19,
        Format::Iq2Xs => 20,
        Format::Iq3Xxs => 23,
        Format::Iq1S => 24,
        Format::Iq4Nl => 25,
        Format::Iq3S => 26,
        Format::Iq2S => 28,
        Format::Iq4Xs => 30,
        Format::Iq1M => 31,
        Format::Bf16 => 32,
        Format::Tq1_0 => 36,
        Format::Tq2_0 => 37,
        Format::Mxfp4 => 38,
        Format::Nvfp4 => 39,
    }
}

/// Key-value pairs as they are written.
#[derive(Default)]
pub(crate) struct Pairs {
    count: u64,
    bytes: Vec<u8>,
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

impl Pairs {
    fn key(&mut self, key: &str, kind: u32) -> &mut Vec<u8> {
        self.count += 1;
        put_text(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
        &mut self.bytes
    }

    fn number(&mut self, key: &str, value: u32) {
        self.key(key, kind::U32).extend(value.to_le_bytes());
    }

    pub(crate) fn float(&mut self, key: &str, value: f64) {
        self.key(key, kind::F32).extend((value as f32).to_le_bytes());
    }

    fn flag(&mut self, key: &str, value: bool) {
        self.key(key, kind::BOOL).push(u8::from(value));
    }

    pub(crate) fn text(&mut self, key: &str, value: &str) {
        put_text(self.key(key, kind::TEXT), value);
    }

    fn list<T>(&mut self, key: &str, kind: u32, values: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
        let bytes = self.key(key, kind::LIST);
        bytes.extend(kind.to_le_bytes());
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| put(bytes, value));
    }
}

fn pairs(
    config: &Json,
    architecture: &str,
    vocabulary: Option<&GgufVocabulary>,
    tensors: &[Outgoing<'_>],
) -> Result<Pairs, Error> {
    let lacks = |field: &str| Error::NotForGguf { reason: format!("config.json has no usable {field}") };
    let number =
        |field: &str| config[field].as_u64().and_then(|number| u32::try_from(number).ok()).ok_or_else(|| lacks(field));
    let float = |field: &str| config[field].as_f64().ok_or_else(|| lacks(field));
    let mut pairs = Pairs::default();
    pairs.text("general.architecture", architecture);
    pairs.text("general.name", architecture);
    let largest = tensors.iter().max_by_key(|(_, tensor, _)| tensor.elements()).map(|(.., format)| *format);
    pairs.number("general.file_type", file_type(largest.unwrap_or(Format::F32)));
    pairs.number("general.quantization_version", QUANTIZATION_VERSION);
    let key = |name: &str| format!("{architecture}.{name}");
    for (name, field) in [
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("block_count", "num_hidden_layers"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("attention.key_length", "head_dim"),
        ("attention.value_length", "head_dim"),
    ] {
        pairs.number(&key(name), number(field)?);
    }
    pairs.float(&key("attention.layer_norm_rms_epsilon"), float("rms_norm_eps")?);
    pairs.float(&key("rope.freq_base"), float("rope_theta")?);
    if let Some(factor) = config["rope_scaling"]["factor"].as_f64() {
        pairs.text(&key("rope.scaling.type"), "linear");
        pairs.float(&key("rope.scaling.factor"), factor);
    }
    if architecture == "gemma2" {
        pairs.float(&key("attn_logit_softcapping"), float("attn_logit_softcapping")?);
        pairs.float(&key("final_logit_softcapping"), float("final_logit_softcapping")?);
    } else if architecture != "gemma" {
        if let Some(cap) = config["final_logit_softcapping"].as_f64() {
            pairs.float(&key("final_logit_softcapping"), cap);
        }
        // readers that know nothing of these keys take them for granted
        let base = config["rope_local_base_freq"].as_f64().unwrap_or(10_000.0);
        if base != 10_000.0 {
            pairs.float(&key("rope.freq_base_swa"), base);
        }
        let kinds = config["layer_types"].as_array().ok_or_else(|| lacks("layer_types"))?;
        let windowed: Vec<bool> = kinds.iter().map(|kind| kind == "sliding_attention").collect();
        if (1..).zip(&windowed).any(|(layer, windowed): (usize, _)| layer.is_multiple_of(6) == *windowed) {
            pairs.list(&key("attention.sliding_window_pattern"), kind::BOOL, &windowed, |bytes, windowed| {
                bytes.push(u8::from(*windowed));
            });
        }
    }
    if architecture != "gemma" {
        pairs.number(&key("attention.sliding_window"), number("sliding_window")?);
        let scalar = float("query_pre_attn_scalar")?;
        let [layers, hidden_size, heads, head_dim] =
            ["num_hidden_layers", "hidden_size", "num_attention_heads", "head_dim"].map(number);
        let usual =
            default_query_scalar(architecture, layers?.into(), hidden_size?.into(), heads?.into(), head_dim?.into());
        if scalar != usual as f64 {
            // llama.cpp assumes the usual one, whatever is said here
            pairs.float(&key("attention.scale"), scalar.powf(-0.5));
        }
    }
    if let Some(GgufVocabulary { pieces, tokens, chat_template }) = vocabulary {
        pairs.text("tokenizer.ggml.model", "llama");
        pairs.text("tokenizer.ggml.pre", "default");
        pairs.list("tokenizer.ggml.tokens", kind::TEXT, pieces, |bytes, (piece, ..)| put_text(bytes, piece));
        pairs
            .list("tokenizer.ggml.scores", kind::F32, pieces, |bytes, (_, score, _)| bytes.extend(score.to_le_bytes()));
        pairs
            .list("tokenizer.ggml.token_type", kind::I32, pieces, |bytes, (.., kind)| bytes.extend(kind.to_le_bytes()));
        for (role, token) in tokens {
            pairs.number(&format!("tokenizer.ggml.{role}"), *token);
        }
        pairs.flag("tokenizer.ggml.add_bos_token", true);
        pairs.flag("tokenizer.ggml.add_eos_token", false);
        pairs.flag("tokenizer.ggml.add_space_prefix", false);
        if let Some(template) = chat_template {
            pairs.text("tokenizer.chat_template", template);
        }
    }
    if vocabulary.is_none() {
        pairs.text("tokenizer.ggml.model", "no_vocab");
        pairs.number(&key("vocab_size"), number("vocab_size")?);
    }
    Ok(pairs)
}

/// Writes the whole file.
///
/// # Errors
/// [`Error::NotFinite`], [`Error::Write`], [`Error::Stopped`].
pub(crate) fn write(
    file: &mut impl Write,
    pairs: &Pairs,
    tensors: &[Outgoing<'_>],
    on_progress: OnConvert<'_>,
    path: &Path,
) -> Result<(), Error> {
    let failed = |cause| Error::Write { path: path.to_owned(), cause };
    let mut head = MAGIC.to_vec();
    head.extend(VERSION.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend(pairs.count.to_le_bytes());
    head.extend(&pairs.bytes);
    let mut offset = 0;
    for (name, tensor, format) in tensors {
        put_text(&mut head, name);
        head.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|axis| head.extend((*axis as u64).to_le_bytes()));
        head.extend(ggml_number(*format).to_le_bytes());
        head.extend(u64::to_le_bytes(offset));
        offset += (size(tensor, *format) as u64).next_multiple_of(ALIGNMENT);
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT as usize), 0);
    file.write_all(&head).map_err(failed)?;
    let mut done = 0;
    for (name, tensor, format) in tensors {
        if on_progress(done, offset).is_break() {
            return Err(Error::Stopped);
        }
        let bytes = if name.ends_with("norm.weight") {
            let with_one: Vec<u8> = tensor.to_f32().into_iter().flat_map(|value| (value + 1.0).to_le_bytes()).collect();
            let tensor = StoredTensor { format: Format::F32, shape: tensor.shape.clone(), bytes: with_one.into() };
            finite_bytes(name, &tensor, *format)?
        } else {
            finite_bytes(name, tensor, *format)?
        };
        file.write_all(&bytes).map_err(failed)?;
        let len = size(tensor, *format) as u64;
        let padded = len.next_multiple_of(ALIGNMENT);
        file.write_all(&vec![0; (padded - len) as usize]).map_err(failed)?;
        done += padded;
    }
    file.flush().map_err(failed)
}

/// Bytes of a tensor in a format whose blocks fill its rows.
fn size(tensor: &StoredTensor, format: Format) -> usize {
    tensor.elements() / format.block_len() * format.block_bytes()
}
