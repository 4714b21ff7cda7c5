//! What the functions do, in safe code over `gemma-auto`.

use std::ffi::c_int;
use std::path::Path;

use gemma_auto::{
    AutoModel, Backend, CausalModel, GenerateOptions, LoadOptions, Precision, TextStream, TokenId, Turn,
    default_device, with_model,
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
    set_threads(given.threads)?;
    let device = match backend {
        Some(backend) => backend.device()?,
        None => default_device()?,
    };
    Ok(AutoModel::load_with(given.name.unwrap_or(DEMO), &options, &device)?)
}

/// Sets how many threads compute; 0 leaves it as it is. There is one pool of threads in a process.
fn set_threads(threads: usize) -> Result<(), Failure> {
    /// More than any machine has, few enough to start.
    const MOST: usize = 1024;
    if threads == 0 {
        return Ok(());
    }
    if threads > MOST {
        return Err(Failure::Option(format!("threads is {threads}; choose a number from 1 to {MOST}, or 0")));
    }
    let built = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    let running = rayon::current_num_threads();
    if built.is_err() && running != threads {
        return Err(Failure::Option(format!(
            "this process computes with {running} threads already; give threads {threads} to the first gemma_load"
        )));
    }
    Ok(())
}

/// Continues a prompt.
pub(crate) fn generate(
    model: &AutoModel,
    prompt: &str,
    options: &GenerateOptions,
    mut give: impl FnMut(&str) -> bool,
) -> Result<c_int, Failure> {
    for piece in model.stream(prompt, options)? {
        if !give(&piece?) {
            return Ok(GEMMA_STOPPED);
        }
    }
    Ok(GEMMA_OK)
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

fn give_all<M: CausalModel>(
    stream: TextStream<'_, '_, M>,
    mut give: impl FnMut(&str) -> bool,
) -> Result<c_int, Failure> {
    for piece in stream {
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
