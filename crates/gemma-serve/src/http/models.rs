//! The models of a server: loaded at the start or when they are first asked for, and unloaded where memory is short.
//!
//! One model is loaded at a time; requests for it wait as they wait for room. What a request uses is held by it, so that a
//! model without holders is idle, and the one idle for longest is unloaded first.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::timeout_at;

use super::App;
use super::adapted::{Adapted, adapter_card};
use super::backend::{AdapterCard, Backend, ModelCard};
use super::error::Refusal;
use crate::grammar::Grammars;

/// How often it is looked whether a model has become idle.
const LOOK: Duration = Duration::from_millis(20);

/// A model that was found and is not loaded.
pub struct Located {
    /// Bytes that its weights will take; 0 when that is not known.
    pub bytes: u64,
    /// Loads it. Blocks.
    pub open: Box<dyn FnOnce() -> Result<Arc<dyn Backend>, Refusal> + Send>,
}

impl std::fmt::Debug for Located {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Located").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// Finds a model. Blocks.
type Locate = Arc<dyn Fn() -> Result<Located, Refusal> + Send + Sync>;

/// A model that a server has, loaded or not.
pub struct ServedModel {
    id: String,
    adapters: Vec<AdapterCard>,
    locate: Option<Locate>,
    state: Mutex<State>,
}

impl std::fmt::Debug for ServedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServedModel").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What a model is at the moment.
#[derive(Default)]
struct State {
    live: Option<Live>,
    loading: bool,
    /// The card of the last time that it was loaded.
    card: Option<ModelCard>,
    /// Why it could not be loaded, and when that was.
    failed: Option<(Instant, Refusal)>,
}

/// A model that is loaded.
struct Live {
    backend: Arc<dyn Backend>,
    grammars: Arc<Grammars>,
    /// One permit for work beside the engine.
    turn: Arc<Semaphore>,
    /// Of the weights.
    bytes: u64,
    used: Instant,
}

impl Live {
    /// `located`: what its weights were said to take.
    fn new(backend: Arc<dyn Backend>, located: u64) -> Self {
        let bytes = if backend.card().bytes > 0 { backend.card().bytes } else { located };
        Self { backend, grammars: Arc::default(), turn: Arc::new(Semaphore::new(1)), bytes, used: Instant::now() }
    }
}

/// Where a model is on its way, in the words of llama.cpp's server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Loaded,
    Loading,
    Unloaded,
    Failed,
}

/// A model or an adapter, as lists show it.
pub(crate) struct Listed {
    pub(crate) card: ModelCard,
    pub(crate) status: Status,
    /// The folder of an adapter.
    pub(crate) path: Option<String>,
}

impl ServedModel {
    /// A model that is loaded, and stays.
    pub fn loaded(backend: Arc<dyn Backend>) -> Self {
        let card = backend.card().clone();
        let state =
            State { card: Some(card.clone()), live: Some(Live::new(Arc::clone(&backend), 0)), ..State::default() };
        Self { id: card.id, adapters: backend.adapters().to_vec(), locate: None, state: Mutex::new(state) }
    }

    /// A model that is loaded when it is first asked for.
    pub fn on_demand(
        id: impl Into<String>,
        locate: impl Fn() -> Result<Located, Refusal> + Send + Sync + 'static,
    ) -> Self {
        Self { id: id.into(), adapters: Vec::new(), locate: Some(Arc::new(locate)), state: Mutex::default() }
    }

    /// The same model, which may be unloaded, since this finds it again.
    #[must_use]
    pub fn with_source(self, locate: impl Fn() -> Result<Located, Refusal> + Send + Sync + 'static) -> Self {
        Self { locate: Some(Arc::new(locate)), ..self }
    }

    /// Its name and those of its adapters.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.id.as_str()).chain(self.adapters.iter().map(|adapter| adapter.name.as_str()))
    }

    /// Its adapters.
    pub(crate) fn adapters(&self) -> &[AdapterCard] {
        &self.adapters
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The model, if it is loaded; it counts as used now.
    fn touch(&self) -> Option<Arc<dyn Backend>> {
        let mut state = self.state();
        let live = state.live.as_mut()?;
        live.used = Instant::now();
        Some(Arc::clone(&live.backend))
    }

    /// The model, if it is loaded; it does not count as used.
    pub(crate) fn peek(&self) -> Option<Arc<dyn Backend>> {
        self.state().live.as_ref().map(|live| Arc::clone(&live.backend))
    }

    /// Bytes of its weights, while it is loaded.
    pub(crate) fn bytes(&self) -> Option<u64> {
        self.state().live.as_ref().map(|live| live.bytes)
    }

    /// Since when nobody uses the model, where it can be loaded again.
    fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        let live = state.live.as_ref().filter(|_| self.locate.is_some())?;
        // a new holder comes by way of `touch`, which waits for this lock
        (Arc::strong_count(&live.backend) == 1).then_some(live.used)
    }

    /// Takes the model out, if nobody uses it.
    fn take_idle(&self) -> Option<Live> {
        let mut state = self.state();
        state.live.take_if(|live| Arc::strong_count(&live.backend) == 1)
    }

    /// The model and its adapters, as lists show them.
    pub(crate) fn listed(&self) -> Vec<Listed> {
        let state = self.state();
        let status = match &*state {
            State { live: Some(_), .. } => Status::Loaded,
            State { loading: true, .. } => Status::Loading,
            State { failed: Some(_), .. } => Status::Failed,
            _ => Status::Unloaded,
        };
        let card = state.card.clone().unwrap_or_else(|| ModelCard { id: self.id.clone(), ..ModelCard::default() });
        drop(state);
        let adapters = self.adapters.iter().map(|adapter| Listed {
            card: adapter_card(&card, &adapter.name),
            status,
            path: Some(adapter.path.clone()),
        });
        let adapters: Vec<Listed> = adapters.collect();
        std::iter::once(Listed { card, status, path: None }).chain(adapters).collect()
    }
}

/// Whether a request that calls a model `name` means the one called `id`; Ollama's clients add `:latest`.
fn is_called(id: &str, name: &str) -> bool {
    id == name || name.strip_suffix(":latest") == Some(id)
}

impl App {
    /// The model of this name, loaded if it is not. A server of one model answers every name with it, as llama.cpp's server
    /// does.
    ///
    /// # Errors
    /// 404 for a name that no model has; 429 when the model was not loaded within the time limit for waiting requests; 503
    /// when it cannot be loaded.
    pub(crate) async fn backend(&self, name: Option<&str>) -> Result<Arc<dyn Backend>, Refusal> {
        let (model, adapter) = self.find(name)?;
        let backend = match model.touch() {
            Some(backend) => backend,
            None => self.load_in_turn(model).await?,
        };
        let Some(number) = adapter else { return Ok(backend) };
        let unknown = || Refusal::no_model(&model.adapters[number].name, &self.names());
        Ok(Arc::new(Adapted::new(backend, number).ok_or_else(unknown)?))
    }

    /// The model that a request means, and the number of the adapter that its name stands for.
    fn find(&self, name: Option<&str>) -> Result<(&Arc<ServedModel>, Option<usize>), Refusal> {
        let first = &self.models[0];
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok((first, None)) };
        for model in &self.models {
            if is_called(&model.id, name) {
                return Ok((model, None));
            }
            if let Some(number) = model.adapters.iter().position(|adapter| is_called(&adapter.name, name)) {
                return Ok((model, Some(number)));
            }
        }
        match self.models.as_slice() {
            [only] if only.adapters.is_empty() => Ok((only, None)),
            _ => Err(Refusal::no_model(name, &self.names())),
        }
    }

    /// The names of the models and adapters.
    pub(crate) fn names(&self) -> Vec<String> {
        self.models.iter().flat_map(|model| model.names().map(str::to_owned)).collect()
    }

    /// The model that a backend, or the base of an adapter, belongs to.
    fn model_of(&self, backend: &dyn Backend) -> Option<&Arc<ServedModel>> {
        let card = backend.card();
        let id = card.parent.as_ref().unwrap_or(&card.id);
        self.models.iter().find(|model| model.id == *id)
    }

    /// The grammars of a model.
    pub(crate) fn grammars(&self, backend: &dyn Backend) -> Arc<Grammars> {
        let of = |model: &Arc<ServedModel>| Some(Arc::clone(&model.state().live.as_ref()?.grammars));
        self.model_of(backend).and_then(of).unwrap_or_default()
    }

    /// The permit for work beside a model's engine.
    pub(crate) fn turn(&self, backend: &dyn Backend) -> Arc<Semaphore> {
        let of = |model: &Arc<ServedModel>| Some(Arc::clone(&model.state().live.as_ref()?.turn));
        self.model_of(backend).and_then(of).unwrap_or_else(|| Arc::new(Semaphore::new(1)))
    }

    /// Loads a model and waits until it is there, no longer than requests wait for room.
    async fn load_in_turn(&self, model: &Arc<ServedModel>) -> Result<Arc<dyn Backend>, Refusal> {
        if self.registry.is_closing() {
            return Err(Refusal::shutting_down());
        }
        let limit = self.settings.queue_timeout;
        let begun = Instant::now();
        let deadline = begun + limit;
        let late = |_| {
            let message = format!("the model {} was not loaded within {} s; try again", model.id, limit.as_secs());
            Refusal::busy(message, limit.as_secs().clamp(1, 30))
        };
        // those that wait for a model are no more than those that wait for room
        let Ok(_place) = Arc::clone(&self.load_places).try_acquire_owned() else {
            self.metrics.refused.inc();
            return Err(Refusal::busy("too many requests wait for models to be loaded; try again later", 5));
        };
        let turn = timeout_at(deadline.into(), Arc::clone(&self.loading).lock_owned()).await.map_err(late)?;
        if let Some(backend) = model.touch() {
            return Ok(backend);
        }
        // another request has tried while this one waited
        if let Some((_, refusal)) = model.state().failed.clone().filter(|(when, _)| *when >= begun) {
            return Err(refusal);
        }
        // a load that was begun goes on when the request that began it has gone away
        let (app, model_there) = (self.clone(), Arc::clone(model));
        let load = tokio::spawn(async move {
            let _turn = turn;
            app.load(&model_there, deadline).await
        });
        let failed = |_| Refusal::cannot_load(&model.id, "it failed");
        timeout_at(deadline.into(), load).await.map_err(late)?.unwrap_or_else(|error| Err(failed(error)))
    }

    /// Loads a model; whoever calls it has the turn to load.
    async fn load(&self, model: &Arc<ServedModel>, deadline: Instant) -> Result<Arc<dyn Backend>, Refusal> {
        model.state().loading = true;
        let begun = Instant::now();
        let loaded = self.locate_and_open(model, deadline).await;
        let mut state = model.state();
        state.loading = false;
        match loaded {
            Ok(live) => {
                let seconds = begun.elapsed().as_secs_f64();
                tracing::info!(model = %model.id, bytes = live.bytes, seconds, "loaded a model");
                let backend = Arc::clone(&live.backend);
                state.card = Some(backend.card().clone());
                state.failed = None;
                state.live = Some(live);
                Ok(backend)
            }
            Err(refusal) => {
                tracing::warn!(model = %model.id, error = %refusal.message, "cannot load a model");
                // that there is no room now says nothing of the model
                if refusal.status != StatusCode::TOO_MANY_REQUESTS {
                    state.failed = Some((Instant::now(), refusal.clone()));
                }
                Err(refusal)
            }
        }
    }

    async fn locate_and_open(&self, model: &ServedModel, deadline: Instant) -> Result<Live, Refusal> {
        let missing = || Refusal::cannot_load(&model.id, "it has no source");
        let locate = model.locate.clone().ok_or_else(missing)?;
        let panicked = |_| Refusal::cannot_load(&model.id, "it made the program fail");
        let Located { bytes, open } = tokio::task::spawn_blocking(move || locate()).await.map_err(panicked)??;
        self.make_room(model, bytes, deadline).await?;
        let backend = tokio::task::spawn_blocking(open).await.map_err(panicked)??;
        Ok(Live::new(backend, bytes))
    }

    /// Unloads idle models, the one that was used least recently first, until so many bytes fit into the limit.
    async fn make_room(&self, wanted: &ServedModel, bytes: u64, deadline: Instant) -> Result<(), Refusal> {
        let Some(limit) = self.settings.model_memory else { return Ok(()) };
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        if bytes > limit {
            let (needed, limit) = (mib(bytes), mib(limit));
            let message = format!("it needs {needed} MiB, more than the server's limit of {limit} MiB for models");
            return Err(Refusal { code: Some("model_too_large"), ..Refusal::cannot_load(&wanted.id, message) });
        }
        while self.models.iter().filter_map(|model| model.bytes()).sum::<u64>() + bytes > limit {
            let idle = self.models.iter().filter_map(|model| Some((model.idle_since()?, model)));
            if let Some((_, model)) = idle.min_by_key(|(since, _)| *since) {
                if let Some(live) = model.take_idle() {
                    tracing::info!(model = %model.id, bytes = live.bytes, "unloads a model");
                    // its engine's thread is waited for
                    let _ = tokio::task::spawn_blocking(move || drop(live)).await;
                }
                continue;
            }
            if Instant::now() >= deadline {
                let message =
                    format!("the memory for models is taken by others in use; {} waits; try again", wanted.id);
                return Err(Refusal::busy(message, 5));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}
