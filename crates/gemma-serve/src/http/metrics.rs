//! Counters and histograms, as `/metrics` shows them to Prometheus.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::backend::{Finished, Load};

/// What the server counts.
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) requests: Family<Vec<(&'static str, String)>, Counter>,
    pub(crate) request_seconds: Histogram,
    pub(crate) first_token_seconds: Histogram,
    pub(crate) queue_seconds: Histogram,
    pub(crate) prompt_tokens: Counter,
    pub(crate) cached_tokens: Counter,
    pub(crate) generated_tokens: Counter,
    pub(crate) completed: Counter,
    pub(crate) cancelled: Counter,
    pub(crate) refused: Counter,
    pub(crate) failed: Counter,
    prompt_rate: Gauge<f64, std::sync::atomic::AtomicU64>,
    decode_rate: Gauge<f64, std::sync::atomic::AtomicU64>,
    running: Gauge,
    waiting: Gauge,
    cache_bytes: Gauge,
    cache_limit_bytes: Gauge,
    models_loaded: Gauge,
    model_bytes: Gauge,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("gemma");
        let seconds = || Histogram::new(exponential_buckets(0.005, 2.0, 16));
        let (request_seconds, first_token_seconds, queue_seconds) = (seconds(), seconds(), seconds());
        let requests = Family::<Vec<(&'static str, String)>, Counter>::default();
        registry.register("http_requests", "HTTP requests by path and status", requests.clone());
        registry.register("request_seconds", "Seconds from a request to its whole answer", request_seconds.clone());
        registry.register(
            "time_to_first_token_seconds",
            "Seconds from a request to its first token",
            first_token_seconds.clone(),
        );
        registry.register("queue_seconds", "Seconds that a request waited for room", queue_seconds.clone());
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let prompt_tokens = counter("prompt_tokens", "Prompt tokens of finished answers");
        let cached_tokens = counter("cached_prompt_tokens", "Prompt tokens that the prefix cache held");
        let generated_tokens = counter("generated_tokens", "Tokens generated");
        let completed = counter("answers_completed", "Answers that finished");
        let cancelled = counter("answers_cancelled", "Answers whose client went away");
        let refused = counter("answers_refused", "Answers refused because the server was full");
        let failed = counter("answers_failed", "Answers that failed");
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::<i64, std::sync::atomic::AtomicI64>::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let running = gauge("requests_running", "Answers that are being generated");
        let waiting = gauge("requests_waiting", "Answers that wait for room");
        let cache_bytes = gauge("kv_cache_bytes", "Bytes of KV cache in use");
        let cache_limit_bytes = gauge("kv_cache_limit_bytes", "Most bytes that the KV cache may take");
        let models_loaded = gauge("models_loaded", "Models that are loaded");
        let model_bytes =
            gauge("model_bytes", "Bytes that the loaded models may take: weights, KV cache limits, tokenizers");
        let mut rate = |name: &str, help: &str| {
            let gauge = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let prompt_rate = rate("prompt_tokens_per_second", "Prefill of the last answer");
        let decode_rate = rate("generated_tokens_per_second", "Decode of the last answer");
        Self {
            registry,
            requests,
            request_seconds,
            first_token_seconds,
            queue_seconds,
            prompt_tokens,
            cached_tokens,
            generated_tokens,
            completed,
            cancelled,
            refused,
            failed,
            prompt_rate,
            decode_rate,
            running,
            waiting,
            cache_bytes,
            cache_limit_bytes,
            models_loaded,
            model_bytes,
        }
    }
}

impl Metrics {
    /// Counts an answer that is over.
    pub(crate) fn finished(&self, finished: &Finished, seconds: f64) {
        self.completed.inc();
        self.prompt_tokens.inc_by(finished.prompt_tokens as u64);
        self.cached_tokens.inc_by(finished.cached_tokens as u64);
        self.request_seconds.observe(seconds);
        let fresh = finished.prompt_tokens.saturating_sub(finished.cached_tokens);
        if finished.prompt_seconds > 0.0 && fresh > 0 {
            self.prompt_rate.set(fresh as f64 / finished.prompt_seconds);
        }
        if finished.decode_seconds > 0.0 && finished.generated_tokens > 1 {
            self.decode_rate.set((finished.generated_tokens - 1) as f64 / finished.decode_seconds);
        }
    }

    /// The text that Prometheus reads; `models` has the bytes of each model that is loaded.
    pub(crate) fn render(&self, counts: (usize, usize), load: Load, models: &[u64]) -> String {
        self.running.set(counts.0 as i64);
        self.waiting.set(counts.1 as i64);
        self.cache_bytes.set(load.cache_bytes as i64);
        self.cache_limit_bytes.set(load.cache_limit_bytes as i64);
        self.models_loaded.set(models.len() as i64);
        self.model_bytes.set(models.iter().sum::<u64>() as i64);
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(error) => format!("# {error}\n"),
        }
    }
}
