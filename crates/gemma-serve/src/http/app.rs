//! The state that all handlers share: models, settings, what runs now, and the counters.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use tokio::sync::Mutex;

use super::backend::Backend;
use super::error::Refusal;
use super::metrics::Metrics;
use super::models::ServedModel;
use super::registry::Registry;

/// How the server behaves; the defaults are those of `gemma serve`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Keys of which a client must send one; empty: everybody may ask.
    pub api_keys: Vec<String>,
    /// Origins whose web pages may ask, beside those of this machine, as `https://example.org`; `*` is every origin.
    pub allow_origins: Vec<String>,
    /// Most answers that are generated at the same time. Default 8.
    pub parallel: usize,
    /// Most answers that wait for room; more are refused with 429. Default 256.
    pub queue: usize,
    /// Longest wait for room; then 429. Default 60 s.
    pub queue_timeout: Duration,
    /// Longest time from a request to the end of its answer; what there is by then is the answer. Default 600 s.
    pub request_timeout: Duration,
    /// Longest time that a body may take to arrive. Default 30 s.
    pub body_timeout: Duration,
    /// Longest time that request headers may take to arrive. Default 10 s.
    pub header_timeout: Duration,
    /// Longest time that a client may take to read what was sent. Default 60 s.
    pub write_timeout: Duration,
    /// Longest time that running answers may take after the server was asked to stop. Default 30 s.
    pub shutdown_timeout: Duration,
    /// Most bytes of a request body. Default 32 MiB.
    pub body_limit: usize,
    /// Most bytes of one encoded image. Default 16 MiB.
    pub image_limit: usize,
    /// Most images in one request. Default 16.
    pub images: usize,
    /// Most open connections; more wait. Default 1 024.
    pub connections: usize,
    /// Most tokens of an answer whose request names no limit. Default 4 096.
    pub max_tokens: usize,
    /// Most bytes that all models that are loaded may take ([`Backend::memory_bytes`]); idle ones are unloaded for others.
    /// `None`: no limit. Default `None`.
    pub model_memory: Option<u64>,
    /// Write the bodies of requests, prompts included, to the log. Default `false`.
    pub log_requests: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            api_keys: Vec::new(),
            allow_origins: Vec::new(),
            parallel: 8,
            queue: 256,
            queue_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(600),
            body_timeout: Duration::from_secs(30),
            header_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(60),
            shutdown_timeout: Duration::from_secs(30),
            body_limit: 32 << 20,
            image_limit: 16 << 20,
            images: 16,
            connections: 1024,
            max_tokens: 4096,
            model_memory: None,
            log_requests: false,
        }
    }
}

impl Settings {
    /// Most requests that are in progress or wait.
    pub(crate) fn places(&self) -> usize {
        self.parallel + self.queue
    }
}

/// What all handlers share; cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Shared>);

/// What is behind an [`App`].
pub struct Shared {
    pub(crate) settings: Settings,
    pub(crate) models: Vec<Arc<ServedModel>>,
    /// Whose turn it is to load a model.
    pub(crate) loading: Arc<Mutex<()>>,
    pub(crate) registry: Registry,
    pub(crate) metrics: Metrics,
    pub(crate) started: SystemTime,
}

impl std::ops::Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl App {
    /// A server of these models, which are loaded and stay; requests that name none go to the first.
    ///
    /// # Panics
    /// Without a model.
    pub fn new(backends: Vec<Arc<dyn Backend>>, settings: Settings) -> Self {
        Self::with_models(backends.into_iter().map(ServedModel::loaded).collect(), settings)
    }

    /// A server of these models; requests that name none go to the first.
    ///
    /// # Panics
    /// Without a model.
    pub fn with_models(models: Vec<ServedModel>, settings: Settings) -> Self {
        assert!(!models.is_empty(), "a server has at least one model");
        Self(Arc::new(Shared {
            models: models.into_iter().map(Arc::new).collect(),
            loading: Arc::default(),
            settings,
            registry: Registry::default(),
            metrics: Metrics::default(),
            started: SystemTime::now(),
        }))
    }

    /// No more answers are begun; those that run go on.
    pub fn close(&self) {
        self.registry.close();
    }

    /// Runs what blocks on a thread of its own.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        if self.registry.is_closing() {
            return Err(Refusal::shutting_down());
        }
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(_) => Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the request made the model fail")),
        }
    }
}

/// Unix time now, in seconds.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// An id that is new each time: the prefix and 24 hexadecimal digits.
pub(crate) fn new_id(prefix: &str) -> String {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let random = || RandomState::new().build_hasher().finish();
    format!("{prefix}{:016x}{:08x}", random(), random() as u32)
}
