//! A checkpoint in another type or container: folders and GGUF files, both ways.
//!
//! Nothing is computed with: tensors go from file to file one at a time, so a model that does not fit into memory can be
//! converted as well.

use std::path::Path;

use gemma_kernels::Format;
use gemma_tokenizer::{Family, Tokenizer};
use gemma_weights::catalogue::Shape;
use gemma_weights::{Checkpoint, Dtype, GgufVocabulary, OnConvert, SaveOptions, save_gguf, try_save_folder};

use crate::model::{CHAT_TEMPLATE, read_tokenizer, small_files, stop_tokens};
use crate::{Error, Network};

/// Writes a checkpoint as a folder that [`Model::load`](crate::Model::load) and HF transformers open, its values in
/// `dtype`. All of it, or nothing; an existing folder is replaced only when `replace` is set.
///
/// # Errors
/// When the checkpoint is not a sound one of this architecture, or the folder cannot be written.
pub fn convert_to_folder<N: Network>(
    checkpoint: &Checkpoint,
    family: Option<Family>,
    dtype: Dtype,
    folder: &Path,
    replace: bool,
    on_progress: OnConvert<'_>,
) -> Result<(), Error> {
    let (config, tokenizer) = described::<N>(checkpoint, family)?;
    let checkpoint = &N::prepared(checkpoint);
    let stop_tokens = stop_tokens(checkpoint, N::eos(&config), tokenizer.as_ref())?;
    let mut files = small_files(&N::config_to_json(&config, dtype), tokenizer.as_ref(), &stop_tokens)?;
    // the checkpoint's own template in place of the family's, and all that it says of its tokenizer
    if let Some(template) = checkpoint.file("chat_template.jinja")? {
        files.push(("chat_template.jinja", template));
    }
    for name in N::COMPANIONS {
        files.extend(checkpoint.file(name)?.map(|content| (*name, content)));
    }
    let named = files.iter_mut().find(|(name, _)| *name == "tokenizer_config.json");
    if let (Some((_, ours)), Some(theirs)) = (named, checkpoint.file("tokenizer_config.json")?) {
        *ours = with_defaults(&theirs, ours).unwrap_or(theirs);
    }
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, content)| (*name, content.as_slice())).collect();
    let (total, mut done) = (checkpoint.bytes_len(), 0);
    let mut tensors = checkpoint.tensors().map(|(name, tensor)| {
        if on_progress(done, total).is_break() {
            return Err(gemma_weights::Error::Stopped);
        }
        done += tensor.bytes.len() as u64;
        Ok((name.to_owned(), dtype, tensor.shape.clone(), tensor.in_dtype(name, dtype)?))
    });
    let options = SaveOptions { replace, ..SaveOptions::default() };
    Ok(try_save_folder(folder, &files, &mut tensors, &options)?)
}

/// Writes a checkpoint of Gemma as a GGUF file that llama.cpp opens, its matrices in `format`, or as they are stored; see
/// [`save_gguf`], also for what is returned.
///
/// # Errors
/// When the checkpoint is not a sound one of this architecture, the architecture is none that such files hold, or
/// the file cannot be written.
pub fn convert_to_gguf<N: Network>(
    checkpoint: &Checkpoint,
    family: Option<Family>,
    format: Option<Format>,
    path: &Path,
    replace: bool,
    on_progress: OnConvert<'_>,
) -> Result<usize, Error> {
    let (config, tokenizer) = described::<N>(checkpoint, family)?;
    let checkpoint = &N::prepared(checkpoint);
    let config = N::config_to_json(&config, checkpoint.dtype());
    let vocabulary = tokenizer.map(|tokenizer| vocabulary(checkpoint, &tokenizer)).transpose()?;
    Ok(save_gguf(checkpoint, &config, vocabulary.as_ref(), format, path, replace, on_progress)?)
}

/// A checkpoint of random bf16 values in a released shape, to measure programs with; `None` when the shape is of another
/// architecture.
///
/// # Errors
/// When no backend opens.
pub fn random_checkpoint<N: Network>(shape: &Shape) -> Result<Option<Checkpoint>, Error> {
    let Ok(config) = N::config_from_json(shape.config.as_bytes()) else { return Ok(None) };
    Ok(Some(Checkpoint::random(
        shape.config.as_bytes().to_vec(),
        &N::tensors(&config, &gemma_backend::default_device()?),
    )))
}

/// A `tokenizer_config.json` with what it leaves out, but for a chat template; `None` for what is no object.
fn with_defaults(own: &[u8], defaults: &[u8]) -> Option<Vec<u8>> {
    let object = |text: &[u8]| serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(text).ok();
    let (mut own, defaults) = (object(own)?, object(defaults)?);
    for (key, value) in defaults.into_iter().filter(|(key, _)| key != "chat_template") {
        own.entry(key).or_insert(value);
    }
    Some(format!("{:#}\n", serde_json::Value::Object(own)).into_bytes())
}

fn described<N: Network>(
    checkpoint: &Checkpoint,
    family: Option<Family>,
) -> Result<(N::Config, Option<Tokenizer>), Error> {
    let config = N::config_of(checkpoint)?;
    N::check(&N::prepared(checkpoint), &config, &gemma_backend::default_device()?)?;
    Ok((config, read_tokenizer(checkpoint, family.unwrap_or(N::FAMILY))?))
}

/// What a GGUF file says of a tokenizer.
fn vocabulary(checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Result<GgufVocabulary, Error> {
    let pieces = tokenizer.to_sentencepiece()?.into_iter();
    let control = tokenizer.control();
    let fim = control.fim;
    let roles = [
        ("bos_token_id", Some(control.bos)),
        ("eos_token_id", Some(control.eos)),
        ("eot_token_id", control.end_of_turn),
        ("unknown_token_id", control.unk),
        ("padding_token_id", control.pad),
        ("fim_pre_token_id", fim.map(|fim| fim.prefix)),
        ("fim_suf_token_id", fim.map(|fim| fim.suffix)),
        ("fim_mid_token_id", fim.map(|fim| fim.middle)),
        ("fim_sep_token_id", fim.map(|fim| fim.file_separator)),
    ];
    let own = match checkpoint.file("chat_template.jinja")? {
        Some(template) => Some(String::from_utf8_lossy(&template).into_owned()),
        None => checkpoint
            .file("tokenizer_config.json")?
            .and_then(|json| serde_json::from_slice::<serde_json::Value>(&json).ok())
            .and_then(|json| json.get("chat_template")?.as_str().map(str::to_owned)),
    };
    Ok(GgufVocabulary {
        pieces: pieces.map(|piece| (piece.text, piece.score, i32::from(piece.kind))).collect(),
        tokens: roles.into_iter().filter_map(|(role, token)| Some((role, token?))).collect(),
        chat_template: own.or_else(|| control.end_of_turn.map(|_| CHAT_TEMPLATE.to_owned())),
    })
}
