//! The models of a server: loaded at the start or when they are first asked for, and unloaded where memory is short.
//!
//! What a request uses is held by it, so that a model without holders is idle.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;
use tokio::sync::Semaphore;

use super::adapted::adapter_card;
use super::backend::{AdapterCard, Backend, ModelCard};
use super::error::Refusal;
use crate::grammar::Grammars;

/// A model that was found and is not loaded.
pub struct Located {
    /// Bytes that it will take, as [`Backend::memory_bytes`] counts them; 0 when that is not known.
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
    pub(super) id: String,
    adapters: Vec<AdapterCard>,
    /// How much of each adapter a request gets that chooses none; those left out: nothing.
    default_scales: Mutex<Vec<f32>>,
    pub(super) locate: Option<Locate>,
    state: Mutex<State>,
}

impl std::fmt::Debug for ServedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServedModel").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What a model is at the moment.
#[derive(Default)]
pub(super) struct State {
    pub(super) live: Option<Live>,
    pub(super) loading: bool,
    /// The card of the last time that it was loaded.
    pub(super) card: Option<ModelCard>,
    /// Why it could not be loaded, and when that was.
    pub(super) failed: Option<(Instant, Refusal)>,
}

/// A model that is loaded.
pub(super) struct Live {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) grammars: Arc<Grammars>,
    /// One permit for work beside the engine.
    pub(super) turn: Arc<Semaphore>,
    /// What it may take, as [`Backend::memory_bytes`] counts it.
    pub(super) bytes: u64,
    used: Instant,
}

impl Live {
    /// `located`: what it was said to take.
    pub(super) fn new(backend: Arc<dyn Backend>, located: u64) -> Self {
        let bytes = if backend.card().bytes > 0 { backend.memory_bytes() } else { located };
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
        let (adapters, default_scales) = (backend.adapters().to_vec(), Mutex::default());
        Self { id: card.id, adapters, default_scales, locate: None, state: Mutex::new(state) }
    }

    /// A model that is loaded when it is first asked for.
    pub fn on_demand(
        id: impl Into<String>,
        locate: impl Fn() -> Result<Located, Refusal> + Send + Sync + 'static,
    ) -> Self {
        let (adapters, default_scales) = (Vec::new(), Mutex::default());
        Self { id: id.into(), adapters, default_scales, locate: Some(Arc::new(locate)), state: Mutex::default() }
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

    /// How much of each adapter a request gets that chooses none.
    pub(super) fn default_scales(&self) -> Vec<f32> {
        let mut scales = self.default_scales.lock().unwrap_or_else(PoisonError::into_inner).clone();
        scales.resize(self.adapters.len(), 0.0);
        scales
    }

    /// Sets how much of each adapter, by number, a request gets that chooses none; of those left out, nothing.
    pub(super) fn set_default_scales(&self, choices: &[(usize, f32)]) {
        let scale = |number: usize| choices.iter().find(|(id, _)| *id == number).map_or(0.0, |(_, scale)| *scale);
        let scales = (0..self.adapters.len()).map(scale).collect();
        *self.default_scales.lock().unwrap_or_else(PoisonError::into_inner) = scales;
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The model, if it is loaded; it counts as used now.
    pub(super) fn touch(&self) -> Option<Arc<dyn Backend>> {
        let mut state = self.state();
        let live = state.live.as_mut()?;
        live.used = Instant::now();
        Some(Arc::clone(&live.backend))
    }

    /// The model, if it is loaded; it does not count as used.
    pub(crate) fn peek(&self) -> Option<Arc<dyn Backend>> {
        self.state().live.as_ref().map(|live| Arc::clone(&live.backend))
    }

    /// Bytes that it may take, while it is loaded.
    pub(crate) fn bytes(&self) -> Option<u64> {
        self.state().live.as_ref().map(|live| live.bytes)
    }

    /// Since when nobody uses the model, where it can be loaded again.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        let live = state.live.as_ref().filter(|_| self.locate.is_some())?;
        // a new holder comes by way of `touch`, which waits for this lock
        (Arc::strong_count(&live.backend) == 1).then_some(live.used)
    }

    /// Takes the model out, if nobody uses it.
    pub(super) fn take_idle(&self) -> Option<Live> {
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
