//! `gemma serve`: models over HTTP, for editors, OpenAI's clients and evaluation harnesses.

use std::{io::Write, num::NonZeroUsize, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use gemma_auto::{AutoModel, Family, LoadOptions, ServingMemory, with_model};
use gemma_generate::EngineOptions;
use gemma_serve::http::{
    self, AdapterCard, App, Backend, EmbeddingBackend, EngineBackend, Located, Refusal, ServedModel, Settings,
};

use crate::{
    args::{Model, NamedAdapter, Speculative, at_least_one, seconds},
    interrupt::{self, Ending},
    output, session,
};

/// Serve models over HTTP: OpenAI's, llama.cpp's, vLLM's, Mistral's and Ollama's protocols, and a web page.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma serve
  gemma serve --model google/gemma-2-2b-it --precision q8_0
  gemma serve --model google/codegemma-2b --port 8012              for llama.vim
  gemma serve --model DIR --lora poems=poems-lora --lora facts=facts-lora=0.5
  gemma serve --model DIR --also small=DIR --also code=DIR --model-memory 16000
  GEMMA_API_KEY=secret gemma serve --model DIR --host 0.0.0.0      behind a proxy that speaks TLS
  curl http://127.0.0.1:8080/v1/completions -d '{\"prompt\": \"Once\"}'

Without an API key and on another address than this machine's own, everybody who reaches the port may use the model.
SIGTERM lets running answers finish. docs/serving.md in the repository has the endpoints, limits and deployment files.")]
pub(crate) struct Serve {
    /// The address, or the name of the host, to listen on; 0.0.0.0 is every address of the machine.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(crate) host: String,

    /// The port; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub(crate) port: u16,

    /// A key that clients must send; may be given several times. The environment does not show in the list of processes.
    #[arg(long, value_name = "KEY", env = "GEMMA_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Vec<String>,

    /// A file with a key on each line.
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,

    /// An origin whose web pages may ask, as https://example.org, beside those of this machine; * is every origin. May be
    /// given several times.
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) allow_origin: Vec<String>,

    /// The name that clients see; the model's own without it.
    #[arg(long, value_name = "NAME")]
    pub(crate) alias: Option<String>,

    /// Serve this model too, loaded when a request first names it as its `model`; may be given several times.
    ///
    /// NAME= in front gives the name that clients see. --adapter, --lora and --mmproj are for the model of --model alone.
    #[arg(long, value_name = "[NAME=]FOLDER|FILE|ID")]
    pub(crate) also: Vec<OtherModel>,

    /// Most MiB for all models that are loaded; the idle one that was used least recently is unloaded for another. No limit
    /// without it.
    ///
    /// What counts is what a model may take: its weights, its KV caches up to their limit, and its tokenizer.
    #[arg(long, value_name = "MIB")]
    pub(crate) model_memory: Option<u64>,

    /// Most requests that wait for room; more get 429.
    #[arg(long, value_name = "N", default_value_t = Settings::default().queue)]
    pub(crate) queue: usize,

    /// Longest wait for room, in seconds; then 429.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "60")]
    pub(crate) queue_timeout: Duration,

    /// Longest time for one answer, in seconds; what there is by then is the answer.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "600")]
    pub(crate) request_timeout: Duration,

    /// Longest time that running answers may take after SIGTERM, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "30")]
    pub(crate) shutdown_timeout: Duration,

    /// Most MiB of a request.
    #[arg(long, value_name = "MIB", default_value_t = Settings::default().body_limit >> 20)]
    pub(crate) body_limit: usize,

    /// Write the bodies of requests, prompts included, to the log.
    #[arg(long)]
    pub(crate) log_requests: bool,

    /// How the log on standard error looks.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,

    #[command(flatten)]
    pub(crate) engine: Engine,
}

/// The engine's limits, for `serve` and `batch`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Engine {
    /// Most requests that are generated at the same time.
    #[arg(short = 'j', long, value_name = "N", value_parser = parallel, default_value_t = Settings::default().parallel)]
    pub(crate) parallel: usize,

    /// Most tokens of prompt and answer together; the model's own limit without it.
    #[arg(short = 'c', long, value_name = "N")]
    pub(crate) ctx_size: Option<usize>,

    /// Most tokens of an answer whose request names no limit.
    #[arg(short = 'n', long, value_name = "N", default_value_t = Settings::default().max_tokens)]
    pub(crate) max_tokens: usize,

    /// Most MiB of KV cache for all requests together; a request that needs more gets 413.
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    pub(crate) cache_memory: usize,

    /// Most MiB of KV cache that is kept of earlier requests, for prompts that begin alike; part of --cache-memory.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub(crate) prefix_cache: usize,

    /// Classify texts at /v1/moderations with a model whose name does not say that it is a ShieldGemma.
    #[arg(long)]
    pub(crate) moderate: bool,

    /// A LoRA adapter that requests choose by its name as their `model`, or by its number in llama.cpp's field `lora`; may be
    /// given several times, numbered from 0 on.
    ///
    /// The base model stays as it is, and requests with different adapters run in one batch. SCALE is how much of the adapter
    /// a request by name gets (default: 1, all of it).
    #[arg(long, alias = "lora-modules", value_name = "NAME=FOLDER[=SCALE]")]
    pub(crate) lora: Vec<NamedAdapter>,

    #[command(flatten)]
    pub(crate) speculative: Speculative,

    #[command(flatten)]
    pub(crate) model: Model,
}

/// For clap.
fn parallel(text: &str) -> Result<usize, String> {
    at_least_one(text).map(NonZeroUsize::get)
}

/// A form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Text,
    /// A JSON object per line.
    Json,
}

impl Engine {
    fn options(&self) -> EngineOptions {
        EngineOptions {
            max_requests: self.parallel,
            max_cache_bytes: Some(self.cache_memory << 20),
            prefix_cache_bytes: self.prefix_cache.min(self.cache_memory) << 20,
            batch_invariant: self.model.compute.batch_invariant,
            ..EngineOptions::default()
        }
    }

    /// Opens the model of `--model` and starts its engine; without a name, the demo of Gemma.
    pub(crate) fn backend(&self) -> Result<Arc<dyn Backend>> {
        self.open(self.find(&Place::First)?, &Place::First, &self.name(None))
    }

    /// The name of the model of `--model`.
    fn name(&self, alias: Option<&str>) -> String {
        alias.or(self.model.model.as_deref()).unwrap_or("demo").to_owned()
    }

    /// Finds a model. The adapters, and the image encoder of a file, belong to the first.
    fn find(&self, place: &Place) -> Result<session::Found> {
        let options = self.model.load_options()?;
        let (name, options) = match place {
            Place::First => {
                let open = |named: &NamedAdapter| Ok(gemma_weights::Adapter::open(&named.adapter.folder)?);
                let request_adapters = self.lora.iter().map(open).collect::<Result<_>>()?;
                (self.model.model.as_deref(), LoadOptions { request_adapters, ..options })
            }
            Place::Other(model) => {
                (Some(model.as_str()), LoadOptions { adapters: Vec::new(), image_encoder: None, ..options })
            }
        };
        session::locate(name, Family::Gemma, options, &self.model.compute)
    }

    /// Opens a model that was found and starts its engine.
    fn open(&self, found: session::Found, place: &Place, id: &str) -> Result<Arc<dyn Backend>> {
        if found.inner().is_embedding()? {
            return Ok(Arc::new(EmbeddingBackend::new(id, found.open_embedding()?)?));
        }
        let speculate = match place {
            Place::First => self.speculative.open(&self.model.compute, self.model.offline)?,
            // its vocabulary may be another one
            Place::Other(_) => None,
        };
        let found = found.speculating(speculate);
        let adapters = found.options().request_adapters.len();
        let options = EngineOptions { adapters, ..self.options() };
        let moderates = self.moderate || found.inner().is_called_shieldgemma();
        let model = found.open()?.model;
        let family = model.architecture().to_string().to_lowercase();
        let backend = match model {
            AutoModel::PaliGemma(model) => EngineBackend::with_paligemma(id, model, options)?,
            AutoModel::Gemma3(model) => EngineBackend::with_gemma3(id, model, options)?,
            model => with_model!(&model, inner => {
                let backend = EngineBackend::new(id, &family, inner, options)?;
                if moderates { backend.with_moderation(inner)? } else { backend }
            }),
        };
        let card = |NamedAdapter { name, adapter }: &NamedAdapter| AdapterCard {
            name: name.clone(),
            path: adapter.folder.display().to_string(),
            strength: adapter.strength,
        };
        let cards = self.lora.iter().take(adapters).map(card).collect();
        Ok(Arc::new(backend.with_adapters(cards).with_context_limit(self.ctx_size)))
    }

    /// What a model will take in memory.
    fn memory(&self, found: &session::Found) -> Result<ServingMemory> {
        Ok(found.inner().serving_memory(found.options(), &self.options(), self.ctx_size)?)
    }

    /// Finds a model for a server that will open it.
    fn located(&self, place: &Place, id: &str) -> Result<Located> {
        let (found, place) = (self.find(place)?, place.clone());
        let bytes = self.memory(&found)?.bytes();
        let (engine, id) = (self.clone(), id.to_owned());
        let open = move || engine.open(found, &place, &id).map_err(|error| cannot_load(&id, &error));
        Ok(Located { bytes, open: Box::new(open) })
    }

    /// [`located`](Self::located), as a server calls it.
    fn source(&self, place: Place, id: &str) -> impl Fn() -> Result<Located, Refusal> + Send + Sync + 'static {
        let (engine, id) = (self.clone(), id.to_owned());
        move || engine.located(&place, &id).map_err(|error| cannot_load(&id, &error))
    }
}

/// Which of the models of a server.
#[derive(Clone)]
enum Place {
    /// That of `--model`, which requests without a model's name get.
    First,
    /// One of `--also`.
    Other(String),
}

/// 404 for a model that is not there, 503 for one that is there and cannot be loaded.
fn cannot_load(id: &str, error: &anyhow::Error) -> Refusal {
    use gemma_auto::Error;
    use gemma_weights::Error::{NoSuchModel, NoSuchPath, NoSuchRevision};
    let refusal = Refusal::cannot_load(id, format_args!("{error:#}"));
    match error.downcast_ref::<Error>() {
        Some(
            Error::Weights(NoSuchModel { .. } | NoSuchPath { .. } | NoSuchRevision { .. })
            | Error::NoDemo { .. }
            | Error::NoShape { .. },
        ) => Refusal::not_found(refusal.message),
        _ => refusal,
    }
}

/// A model of a server beside the first: its name for clients, and what it is opened by.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OtherModel {
    id: String,
    model: String,
}

impl FromStr for OtherModel {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (id, model) = text.split_once('=').unwrap_or((text, text));
        match id.is_empty() || model.is_empty() {
            true => Err("must be a model, or a name, an equals sign and a model".to_owned()),
            false => Ok(Self { id: id.to_owned(), model: model.to_owned() }),
        }
    }
}

impl Serve {
    fn settings(&self) -> Result<Settings> {
        let mut keys: Vec<String> = self.api_key.iter().map(|key| key.trim().to_owned()).collect();
        if let Some(file) = &self.api_key_file {
            let text = crate::text::read(file)?;
            keys.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
        }
        if keys.iter().any(String::is_empty) || (keys.is_empty() && self.api_key_file.is_some()) {
            bail!("an API key is empty; give one of at least one character, or none");
        }
        Ok(Settings {
            api_keys: keys,
            allow_origins: self.allow_origin.clone(),
            parallel: self.engine.parallel,
            max_tokens: self.engine.max_tokens.max(1),
            queue: self.queue,
            queue_timeout: self.queue_timeout,
            request_timeout: self.request_timeout,
            shutdown_timeout: self.shutdown_timeout,
            body_limit: self.body_limit.max(1) << 20,
            model_memory: self.model_memory.map(|mib| mib.saturating_mul(1 << 20)),
            log_requests: self.log_requests,
            ..Settings::default()
        })
    }
}

/// A runtime for connections and for the threads that wait for the engine.
pub(crate) fn runtime(settings: &Settings) -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(settings.parallel + settings.queue + 16)
        .enable_all()
        .build()
        .context("cannot start the threads of the server")
}

pub(crate) fn run(args: &Serve) -> Result<Ending> {
    start_log(args.log_format);
    let settings = args.settings()?;
    let runtime = runtime(&settings)?;
    // a port that is taken should be known before a model is loaded
    let listener = runtime.block_on(tokio::net::TcpListener::bind((args.host.as_str(), args.port)));
    let listener = listener.with_context(|| format!("cannot listen on {}:{}", args.host, args.port))?;
    let address = listener.local_addr()?;
    if !address.ip().is_loopback() && settings.api_keys.is_empty() {
        tracing::warn!("everybody who reaches {} may use the model; set --api-key", args.host);
    }
    // until the model is there, a signal ends the program
    let models = models(args)?;
    let watch = interrupt::watch();
    output::line(format_args!("listening on http://{address}"))?;
    std::io::stdout().flush()?;
    let asked_to_stop = async {
        while !watch.pressed() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    runtime.block_on(http::serve(listener, App::with_models(models, settings), asked_to_stop))?;
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(Ending::Done)
}

/// The models: the first one loaded, the others on demand.
fn models(args: &Serve) -> Result<Vec<ServedModel>> {
    let (engine, id) = (&args.engine, args.engine.name(args.alias.as_deref()));
    let adapters = engine.lora.iter().map(|named| named.name.as_str());
    let mut names: Vec<&str> =
        std::iter::once(&*id).chain(adapters).chain(args.also.iter().map(|other| other.id.as_str())).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!("two models or adapters are called {}; give one of them another name with NAME=", twice[0]);
    }
    let found = engine.find(&Place::First)?;
    if let Some(limit) = args.model_memory {
        let memory = engine.memory(&found)?;
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let needed = mib(memory.bytes());
        if needed > limit {
            bail!(
                "{id} needs {needed} MiB ({} for weights, up to {} for KV caches, {} for the tokenizer) and --model-memory is \
                 {limit}; give at least {needed}, or a smaller --cache-memory, --prefix-cache or --precision",
                mib(memory.weights),
                mib(memory.cache),
                mib(memory.tokenizer),
            );
        }
    }
    let first = engine.open(found, &Place::First, &id)?;
    let mut models = vec![ServedModel::loaded(first).with_source(engine.source(Place::First, &id))];
    for OtherModel { id, model } in &args.also {
        models.push(ServedModel::on_demand(id, engine.source(Place::Other(model.clone()), id)));
    }
    Ok(models)
}

/// Sends the log to standard error; `RUST_LOG` chooses what is in it.
fn start_log(format: LogFormat) {
    use tracing_subscriber::{EnvFilter, fmt};
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,gemma_serve=info,gemma=info"));
    let log = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // a second log of the same process is refused, and the first one goes on
    let _ = match format {
        LogFormat::Text => log.with_ansi(false).with_target(false).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
}
