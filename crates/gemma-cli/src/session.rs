//! The way to the library: which device and which model the flags mean, with a progress bar on the way.

use std::{num::NonZeroUsize, path::PathBuf, time::Instant};

use anyhow::{Context, Result, bail};
use burn::tensor::Tensor;
use codegemma::CodeGemma;
use gemma_auto::{Architecture, AutoModel, Device, EmbeddingGemma, Family, LoadOptions, Progress, Speculate};
use gemma_generate::CausalModel;
use gemma_model::{OnLoad, own_chat_template};
use gemma_tokenizer::{ChatTemplate, TokenId, Tokenizer};
use gemma_weights::HubOptions;
use paligemma::PaliGemma;
use serde::Serialize;

use crate::{
    args::{self, Compute},
    output, progress,
};

/// The hub's settings: the environment's, and what was typed.
pub(crate) fn hub(offline: bool) -> HubOptions {
    let options = HubOptions::from_env();
    HubOptions { offline: offline || options.offline, ..options }
}

/// Sets how many threads compute on the CPU, all cores without a number; to be called once. Where the system
/// refuses to start so many, a number that was asked for is an error, and otherwise fewer have to do.
pub(crate) fn set_threads(threads: Option<NonZeroUsize>) -> Result<()> {
    let builder = |count| rayon::ThreadPoolBuilder::new().num_threads(count);
    // a global pool that could not be started cannot be tried again, so another one is tried first
    let starts = |count| builder(count).build().is_ok();
    let wanted = threads.map_or(0, NonZeroUsize::get);
    if starts(wanted) {
        return builder(wanted).build_global().context("cannot set the number of threads");
    }
    if let Some(threads) = threads {
        bail!("the system refuses to start {threads} threads; give a smaller --threads");
    }
    let mut count = std::thread::available_parallelism().map_or(1, NonZeroUsize::get) / 2;
    while count > 1 && !starts(count) {
        count /= 2;
    }
    let pool = if count > 1 { builder(count) } else { builder(1).use_current_thread() };
    pool.build_global().context("cannot start a thread")
}

/// The device that computes.
pub(crate) fn device(args: &Compute) -> Result<Device> {
    Ok(match args.backend {
        Some(backend) => backend.device()?,
        None => gemma_backend::default_device()?,
    })
}

/// Something that was loaded, and how long that took.
pub(crate) struct Opened<T> {
    pub(crate) model: T,
    pub(crate) seconds: f64,
}

/// A model that was found, and what to open it with.
pub(crate) struct Found {
    found: gemma_auto::Found,
    options: LoadOptions,
    compute: Compute,
    begin: Instant,
}

/// Finds the model that the flags name, downloading it where that is needed and allowed; without a name, the demo of
/// Gemma.
pub(crate) fn find(args: &args::Model) -> Result<Found> {
    locate(args.model.as_deref(), Family::Gemma, args.load_options()?, &args.compute)
}

/// [`find`], for verbs and flags that need images: without a name, the demo of PaliGemma.
pub(crate) fn find_images(args: &args::Model) -> Result<Found> {
    locate(args.model.as_deref(), Family::PaliGemma, args.load_options()?, &args.compute)
}

/// [`find`], for verbs about code: without a name, the demo of CodeGemma.
pub(crate) fn find_code(args: &args::CodeModel) -> Result<Found> {
    locate(args.model.as_deref(), Family::CodeGemma, args.load_options()?, &args.compute)
}

/// [`find`], for a name, options and flags that stand apart; `demo` is the family whose demo is taken without a name.
pub(crate) fn locate(model: Option<&str>, demo: Family, options: LoadOptions, compute: &Compute) -> Result<Found> {
    // A backend that was asked for and is not there should be known before a download, while looking for the best
    // one takes time that a mistyped name need not cost.
    compute.backend.map(|backend| backend.device()).transpose()?;
    let found = match model {
        Some(name) => with_bar("pulling", |on_progress| gemma_auto::find_with(name, &options, on_progress))?,
        None => gemma_auto::Found::demo(demo)?,
    };
    Ok(Found { found, options, compute: *compute, begin: Instant::now() })
}

/// Shows a bar while something is downloaded or loaded.
fn with_bar<T>(what: &'static str, work: impl FnOnce(&mut dyn FnMut(Progress)) -> T) -> T {
    let bar = progress::bytes(what);
    let result = work(&mut |progress| {
        let (Progress::Download { done, total } | Progress::Load { done, total }) = progress;
        progress::set(&bar, done, total);
    });
    bar.finish_and_clear();
    result
}

impl Found {
    /// Which network it is.
    pub(crate) fn architecture(&self) -> Result<Architecture> {
        Ok(self.found.architecture()?)
    }

    /// The same, decoding speculatively.
    pub(crate) fn speculating(mut self, speculate: Option<Speculate>) -> Self {
        self.options.speculate = speculate;
        self
    }

    /// The model as the library found it.
    pub(crate) fn inner(&self) -> &gemma_auto::Found {
        &self.found
    }

    /// How it is opened.
    pub(crate) fn options(&self) -> &LoadOptions {
        &self.options
    }

    /// The same with a chat template in place of the model's, if there is one.
    pub(crate) fn with_template(mut self, template: Option<ChatTemplate>) -> Self {
        self.options.chat_template = template.or(self.options.chat_template);
        self
    }

    /// Says that a checkpoint comes without a chat template, where it does: base models do, and were not trained to answer.
    pub(crate) fn note_missing_template(&self) -> Result<()> {
        if self.found.path().is_some() && own_chat_template(&*self.found.checkpoint()?)?.is_none() {
            output::complain(
                "note: this model has no chat template, so it may be a base model, which continues texts and was not trained \
                 to answer; Gemma's own format is used (--template names another)",
            );
        }
        Ok(())
    }

    /// The device that computes.
    pub(crate) fn device(&self) -> Result<Device> {
        device(&self.compute)
    }

    /// Opens the model.
    pub(crate) fn open(self) -> Result<Opened<AutoModel>> {
        self.open_with(&mut |_, _| {})
    }

    /// Opens the model for token ids only, which is faster.
    pub(crate) fn open_without_tokenizer(mut self) -> Result<Opened<AutoModel>> {
        self.options.without_tokenizer = true;
        self.open()
    }

    /// Opens a model that sees images.
    pub(crate) fn open_images(self) -> Result<PaliGemma> {
        Ok(self.open()?.model.into_images()?)
    }

    /// Opens a model that embeds texts.
    pub(crate) fn open_embedding(self) -> Result<EmbeddingGemma> {
        if !self.options.request_adapters.is_empty() {
            bail!("an embedding model takes no --lora; give it an --adapter, for all requests");
        }
        let device = device(&self.compute)?;
        Ok(with_bar("loading", |on_progress| self.found.open_embedding_with(&self.options, &device, on_progress))?)
    }

    /// Opens a model that fills holes in code; `on_load` gets the progress as well.
    pub(crate) fn open_code(self, on_load: OnLoad<'_>) -> Result<CodeGemma> {
        Ok(self.open_with(on_load)?.model.into_code()?)
    }

    fn open_with(self, on_load: OnLoad<'_>) -> Result<Opened<AutoModel>> {
        if self.found.is_embedding()? {
            bail!(
                "{} is an EmbeddingGemma, which makes vectors and no text; use it with `gemma embed`",
                self.found.name()
            );
        }
        let device = device(&self.compute)?;
        let model = with_bar("loading", |on_progress| {
            self.found.open_with(&self.options, &device, &mut |progress| {
                on_progress(progress);
                if let Progress::Load { done, total } = progress {
                    on_load(done, total);
                }
            })
        })?;
        Ok(Opened { model, seconds: self.begin.elapsed().as_secs_f64() })
    }
}

/// The tokenizer of a model: its files are enough, no weights are needed. `model` may also be a tokenizer file itself.
pub(crate) fn tokenizer(model: Option<&str>, family: Option<Family>, offline: bool) -> Result<Tokenizer> {
    Ok(tokenizer_and_config(model, Family::Gemma, family, offline)?.0)
}

/// The tokenizer of a model for code, and its `config.json` if there is one: enough for a prompt.
pub(crate) fn code_tokenizer(args: &args::CodeModel) -> Result<(Tokenizer, Option<Vec<u8>>)> {
    tokenizer_and_config(args.model.as_deref(), Family::CodeGemma, args.family, args.offline)
}

fn tokenizer_and_config(
    model: Option<&str>,
    demo: Family,
    family: Option<Family>,
    offline: bool,
) -> Result<(Tokenizer, Option<Vec<u8>>)> {
    let options = LoadOptions { family, offline, ..LoadOptions::default() };
    let demo = format!("demo:{demo}");
    let name = model.unwrap_or(&demo);
    Ok(with_bar("pulling", |on_progress| gemma_auto::tokenizer_and_config(name, &options, on_progress))?)
}

/// Refuses a text that is too long for the context whatever tokens it is cut into, before much memory is spent on that.
pub(crate) fn check_text(decoder: &impl CausalModel, tokenizer: &Tokenizer, text: &str) -> Result<()> {
    const SMALL: usize = 1 << 20;
    let Some(limit) = decoder.context_length().filter(|_| text.len() > SMALL) else { return Ok(()) };
    let pieces = (0..tokenizer.vocab_len()).filter_map(|id| tokenizer.piece(id as TokenId));
    let longest = pieces.map(str::len).max().unwrap_or(1);
    if text.len() / longest > limit {
        bail!("the prompt has {} bytes, more than {limit} tokens, the context, can say; shorten it", text.len());
    }
    Ok(())
}

/// The numbers of a tensor, row by row.
pub(crate) fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_into_vec().expect("converted to f32")
}

/// How much of a checkpoint is on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Cached {
    /// Whether it can be opened without a download.
    pub(crate) complete: bool,
    /// The folder, if it can.
    pub(crate) folder: Option<PathBuf>,
}

impl Cached {
    /// As the table shows it.
    pub(crate) fn word(&self) -> &'static str {
        if self.complete { "yes" } else { "" }
    }
}

/// Looks for a released checkpoint in the cache.
pub(crate) fn cached(id: &str) -> Cached {
    let options = hub(true);
    let folder = options.id(id).ok().and_then(|id| gemma_weights::cached(&id, &options));
    Cached { complete: folder.is_some(), folder }
}
