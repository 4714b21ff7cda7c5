//! The places of a server: what runs or waits has one, and there are so many.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::App;
use super::error::Refusal;
use super::registry::Slot;

/// The place of one answer, or of a request that waits for its model, in the registry.
pub(super) struct Place {
    pub(super) app: App,
    id: u64,
    /// It came to an end; a place that is given back before counts as cancelled.
    pub(super) finished: bool,
}

impl Place {
    /// Takes a place.
    ///
    /// # Errors
    /// 429 when the server has as many requests as it takes.
    pub(super) fn take(
        app: &App,
        model: &str,
        endpoint: &'static str,
        prompt_tokens: usize,
        max_tokens: usize,
    ) -> Result<Self, Refusal> {
        let mut slots = app.registry.lock();
        if slots.len() >= app.settings.places() {
            app.metrics.refused.inc();
            let running = slots.values().filter(|slot| slot.is_processing).count();
            let waiting = slots.len() - running;
            let seconds = 1 + (waiting / app.settings.parallel.max(1)) as u64;
            return Err(Refusal::busy(format!("{running} requests run and {waiting} wait; try again later"), seconds));
        }
        let id = app.registry.next.fetch_add(1, Ordering::Relaxed);
        let slot = Slot {
            id,
            model: model.to_owned(),
            endpoint,
            is_processing: false,
            prompt_tokens,
            generated_tokens: 0,
            max_tokens,
            since: Some(Instant::now()),
            seconds: 0.0,
        };
        slots.insert(id, slot);
        Ok(Self { app: app.clone(), id, finished: false })
    }

    /// Changes what `/slots` shows of it.
    pub(super) fn update(&self, change: impl FnOnce(&mut Slot)) {
        if let Some(slot) = self.app.registry.lock().get_mut(&self.id) {
            change(slot);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.app.registry.lock().remove(&self.id);
        if !self.finished {
            self.app.metrics.cancelled.inc();
        }
    }
}
