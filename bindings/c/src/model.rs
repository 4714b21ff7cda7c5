//! What the functions do, in safe code over `gemma-auto`.

use std::ffi::c_int;
use std::path::Path;

use gemma_auto::{
    AutoModel, Backend, GenerateOptions, LoadOptions, Precision, TokenId, Turn, default_device, with_model,
};
use gemma_tokenizer::EncodeOptions;
use gemma_weights::Adapter;

use crate::border::Failure;
use crate::{GEMMA_OK, GEMMA_STOPPED};

/// The name of the model that is opened without a name.
const DEMO: &str = "demo";

/// How a model is opened.
#[derive(Default)]
pub(crate) struct Loading<'a> {
    pub(crate) name: Option<&'a str>,
    pub(crate) precision: Option<&'a str>,
    pub(crate) backend: Option<&'a str>,
    pub(crate) adapter: Option<&'a str>,
    pub(crate) threads: usize,
    pub(crate) offline: bool,
}

/// Opens a model.
pub(crate) fn load(given: &Loading<'_>) -> Result<AutoModel, Failure> {
    let options = LoadOptions {
        precision: given.precision.map(str::parse::<Precision>).transpose()?,
        adapters: given.adapter.map(|folder| Adapter::open(Path::new(folder))).transpose()?.into_iter().collect(),
        offline: given.offline,
        ..LoadOptions::default()
    };
    let backend = given.backend.map(str::parse::<Backend>).transpose()?;
    if given.threads > 0 {
        gemma_auto::set_threads(given.threads)?;
    }
    let device = match backend {
        Some(backend) => backend.device()?,
        None => default_device()?,
    };
    Ok(AutoModel::load_with(given.name.unwrap_or(DEMO), &options, &device)?)
}

/// Continues a prompt.
pub(crate) fn generate(
    model: &AutoModel,
    prompt: &str,
    options: &GenerateOptions,
    give: impl FnMut(&str) -> bool,
) -> Result<c_int, Failure> {
    give_all(model.stream(prompt, options)?, give)
}

/// Answers the last of some messages, each a role and what is said.
pub(crate) fn chat(
    model: &AutoModel,
    messages: &[(&str, &str)],
    options: &GenerateOptions,
    give: impl FnMut(&str) -> bool,
) -> Result<c_int, Failure> {
    if !model.capabilities().chat {
        let instead = "use gemma_generate, or a checkpoint whose name ends in -it";
        return Err(model.incapable("chat", instead).into());
    }
    let turn = |(role, content): &(&str, &str)| -> Result<Turn, gemma_tokenizer::Error> {
        Ok(Turn::new(role.parse()?, *content))
    };
    let turns = messages.iter().map(turn).collect::<Result<Vec<_>, _>>()?;
    with_model!(model, model => give_all(model.stream_chat(&turns, options)?, give))
}

/// Hands out the pieces of a text.
fn give_all<E: Into<gemma_auto::Error>>(
    pieces: impl Iterator<Item = Result<String, E>>,
    mut give: impl FnMut(&str) -> bool,
) -> Result<c_int, Failure> {
    for piece in pieces {
        if !give(&piece?) {
            return Ok(GEMMA_STOPPED);
        }
    }
    Ok(GEMMA_OK)
}

/// The token ids of a text.
pub(crate) fn tokenize(model: &AutoModel, text: &str, bos: bool) -> Result<Vec<TokenId>, Failure> {
    Ok(model.tokenizer()?.encode_with(text, EncodeOptions { bos, specials: false }))
}

/// The text of token ids.
pub(crate) fn detokenize(model: &AutoModel, tokens: &[TokenId]) -> Result<String, Failure> {
    Ok(model.tokenizer()?.decode(tokens))
}
