//! The tokenizer of a model, without its weights.

use std::path::{Path, PathBuf};

use gemma_model::{LoadOptions, read_tokenizer};
use gemma_tokenizer::{Family, Tokenizer};
use gemma_weights::{Checkpoint, read_small_file};

use crate::find::{family_of, folder, in_gguf};
use crate::{Error, OnProgress, demo_called, demo_checkpoint};

/// The tokenizer of a model: a name that [`find`](crate::find) takes, or a tokenizer file itself. Only the tokenizer's
/// files need be there. `options` may name the family and forbid downloads.
///
/// # Errors
/// When there is no such model, or its tokenizer's file is missing or damaged.
pub fn tokenizer(name: &str, options: &LoadOptions, on_progress: OnProgress<'_>) -> Result<Tokenizer, Error> {
    Ok(tokenizer_and_config(name, options, on_progress)?.0)
}

/// [`tokenizer`], and the text of `config.json` where there is one.
///
/// # Errors
/// As [`tokenizer`].
pub fn tokenizer_and_config(
    name: &str,
    options: &LoadOptions,
    on_progress: OnProgress<'_>,
) -> Result<(Tokenizer, Option<Vec<u8>>), Error> {
    let missing = || Error::NoTokenizer { name: name.to_owned() };
    if let Some(family) = demo_called(name)?
        && let Some(checkpoint) = demo_checkpoint(family)?
    {
        let tokenizer = read_tokenizer(&checkpoint, options.family.unwrap_or(family))?.ok_or_else(missing)?;
        return Ok((tokenizer, checkpoint.file("config.json")?));
    }
    let named = Path::new(name);
    if gemma_weights::is_gguf(named) {
        let checkpoint = Checkpoint::open(named)?;
        let config = checkpoint.file("config.json")?;
        let read = read_tokenizer(&checkpoint, family(name, options, config.as_deref()));
        let tokenizer = read.map_err(|cause| in_gguf(&checkpoint, cause.into()))?.ok_or_else(missing)?;
        return Ok((tokenizer, config));
    }
    let (folder, files) = match named.file_name().and_then(|name| name.to_str()) {
        Some(file) if named.is_file() => (named.with_file_name(""), vec![file.to_owned()]),
        _ => {
            let files = ["tokenizer.json", "tokenizer.model"].map(str::to_owned);
            (folder(name, options.offline, on_progress)?, files.to_vec())
        }
    };
    let config = read_small_file(&folder.join("config.json")).ok().flatten();
    let family = family(name, options, config.as_deref());
    let file = files.iter().map(|name| folder.join(name)).find(|file| file.is_file()).ok_or_else(missing)?;
    Ok((read(&file, family)?, config))
}

fn family(name: &str, options: &LoadOptions, config: Option<&[u8]>) -> Family {
    options.family.or_else(|| family_of(name, config.unwrap_or_default())).unwrap_or(Family::Gemma)
}

/// Reads a tokenizer.json or tokenizer.model.
fn read(file: &Path, family: Family) -> Result<Tokenizer, Error> {
    let bytes = read_small_file(file)?.ok_or_else(|| Error::NoTokenizer { name: file.display().to_string() })?;
    let tokenizer = match file.extension().and_then(|ending| ending.to_str()) {
        Some("json") => Tokenizer::from_json(&bytes, family),
        Some("model") => Tokenizer::from_sentencepiece(&bytes, family),
        _ => return Err(Error::NotATokenizer { file: file.to_owned() }),
    };
    tokenizer.map_err(|cause| Error::TokenizerFile { file: PathBuf::from(file), cause })
}
