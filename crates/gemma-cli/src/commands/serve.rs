//! `gemma serve`: models over HTTP, for editors, OpenAI's clients and evaluation harnesses.

use std::{io::Write, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use gemma_auto::{AutoModel, Family, with_model};
use gemma_generate::EngineOptions;
use gemma_serve::http::{self, App, Backend, EmbeddingBackend, EngineBackend, Settings};

use crate::{
    args::{Model, Speculative, seconds},
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
  GEMMA_API_KEY=secret gemma serve --model DIR --host 0.0.0.0      behind a proxy that speaks TLS
  curl http://127.0.0.1:8080/v1/completions -d '{\"prompt\": \"Once\"}'

Without an API key and on another address than this machine's own, everybody who reaches the port may use the model.
SIGTERM lets running answers finish. docs/serving.md in the repository has the endpoints, limits and deployment files.")]
pub(crate) struct Serve {
    /// The address to listen on; 0.0.0.0 is every address of the machine.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(crate) host: IpAddr,

    /// The port; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub(crate) port: u16,

    /// A key that clients must send; may be given several times. The environment does not show in the list of processes.
    #[arg(long, value_name = "KEY", env = "GEMMA_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Vec<String>,

    /// A file with a key on each line.
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,

    /// The name that clients see; the model's own without it.
    #[arg(long, value_name = "NAME")]
    pub(crate) alias: Option<String>,

    /// Serve this model too; may be given several times. Requests choose by `model`.
    #[arg(long, value_name = "FOLDER|FILE|ID")]
    pub(crate) also: Vec<String>,

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
#[derive(Args, Debug)]
pub(crate) struct Engine {
    /// Most requests that are generated at the same time.
    #[arg(short = 'j', long, value_name = "N", default_value_t = Settings::default().parallel)]
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

    #[command(flatten)]
    pub(crate) speculative: Speculative,

    #[command(flatten)]
    pub(crate) model: Model,
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
            max_requests: self.parallel.max(1),
            max_cache_bytes: Some(self.cache_memory << 20),
            prefix_cache_bytes: self.prefix_cache.min(self.cache_memory) << 20,
            batch_invariant: self.model.compute.batch_invariant,
            ..EngineOptions::default()
        }
    }

    /// Opens a model and starts its engine; without a name, the demo of Gemma.
    pub(crate) fn backend(&self, name: Option<&str>, alias: Option<&str>) -> Result<Arc<dyn Backend>> {
        let found = session::locate(name, Family::Gemma, self.model.load_options()?, &self.model.compute)?;
        let id = alias.or(name).unwrap_or("demo");
        if found.inner().is_embedding()? {
            return Ok(Arc::new(EmbeddingBackend::new(id, found.open_embedding()?)?));
        }
        let speculate = self.speculative.open(&self.model.compute, self.model.offline)?;
        let found = found.speculating(speculate);
        let options = self.options();
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
        Ok(Arc::new(backend.with_context_limit(self.ctx_size)))
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
            parallel: self.engine.parallel.max(1),
            max_tokens: self.engine.max_tokens.max(1),
            queue: self.queue,
            queue_timeout: self.queue_timeout,
            request_timeout: self.request_timeout,
            shutdown_timeout: self.shutdown_timeout,
            body_limit: self.body_limit.max(1) << 20,
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
    if !args.host.is_loopback() && settings.api_keys.is_empty() {
        tracing::warn!("everybody who reaches {} may use the model; set --api-key", args.host);
    }
    let runtime = runtime(&settings)?;
    // a port that is taken should be known before a model is loaded
    let listener = runtime.block_on(tokio::net::TcpListener::bind((args.host, args.port)));
    let listener = listener.with_context(|| format!("cannot listen on {}:{}", args.host, args.port))?;
    let watch = interrupt::watch();
    let mut backends = vec![args.engine.backend(args.engine.model.model.as_deref(), args.alias.as_deref())?];
    for name in &args.also {
        backends.push(args.engine.backend(Some(name), None)?);
    }
    let address = listener.local_addr()?;
    output::line(format_args!("listening on http://{address}"))?;
    std::io::stdout().flush()?;
    let asked_to_stop = async {
        while !watch.pressed() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    runtime.block_on(http::serve(listener, App::new(backends, settings), asked_to_stop))?;
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(Ending::Done)
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
