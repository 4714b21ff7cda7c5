//! Which model a request means, and loading it.
//!
//! One model is loaded at a time; requests for it wait as they wait for room. Of the idle models, the one idle for longest is
//! unloaded first.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use tokio::sync::Semaphore;
use tokio::time::timeout_at;

use super::App;
use super::adapted::Adapted;
use super::backend::Backend;
use super::error::Refusal;
use super::models::{Live, Located, ServedModel};
use super::place::Place;
use crate::grammar::Grammars;

/// How often it is looked whether a model has become idle.
const LOOK: Duration = Duration::from_millis(20);

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
        let unknown = || Refusal::no_model(&model.adapters()[number].name, &self.names());
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
            if let Some(number) = model.adapters().iter().position(|adapter| is_called(&adapter.name, name)) {
                return Ok((model, Some(number)));
            }
        }
        match self.models.as_slice() {
            [only] if only.adapters().is_empty() => Ok((only, None)),
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

    /// The adapters of a job: those that the request chose, or else the defaults of its model (`POST /lora-adapters`).
    pub(super) fn adapters_of(
        &self,
        backend: &dyn Backend,
        chosen: Option<Vec<(usize, f32)>>,
    ) -> Option<Vec<(usize, f32)>> {
        // an adapter's own name is a choice
        if chosen.is_some() || backend.card().parent.is_some() {
            return chosen;
        }
        let scales = self.model_of(backend)?.default_scales().into_iter().enumerate();
        let defaults: Vec<(usize, f32)> = scales.filter(|(_, scale)| *scale != 0.0).collect();
        (!defaults.is_empty()).then_some(defaults)
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
        let begun = Instant::now();
        let deadline = begun + self.settings.queue_timeout;
        // it waits like those that wait for room, and gives its place back before its answers take theirs
        let mut place = Place::take(self, &model.id, "load", 0, 0)?;
        let loaded = self.wait_for_load(model, begun, deadline).await;
        place.finished = true;
        if loaded.as_ref().is_err_and(|refusal| refusal.status == StatusCode::TOO_MANY_REQUESTS) {
            self.metrics.refused.inc();
        }
        loaded
    }

    /// Has its turn to load a model, or waits for the one who has.
    async fn wait_for_load(
        &self,
        model: &Arc<ServedModel>,
        begun: Instant,
        deadline: Instant,
    ) -> Result<Arc<dyn Backend>, Refusal> {
        let limit = self.settings.queue_timeout;
        let late = |_| {
            let message = format!("the model {} was not loaded within {} s; try again", model.id, limit.as_secs());
            Refusal::busy(message, limit.as_secs().clamp(1, 30))
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
