//! The answers that are being generated or wait, as `/slots` shows them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;
use tokio::sync::watch;

/// One answer that is being generated, as `/slots` shows it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Slot {
    pub(crate) id: u64,
    pub(crate) model: String,
    pub(crate) endpoint: &'static str,
    /// Admitted by the engine; otherwise it waits.
    pub(crate) is_processing: bool,
    pub(crate) prompt_tokens: usize,
    pub(crate) generated_tokens: usize,
    pub(crate) max_tokens: usize,
    #[serde(skip)]
    pub(super) since: Option<Instant>,
    pub(crate) seconds: f64,
}

/// All answers that are being generated or wait.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    pub(super) slots: Mutex<BTreeMap<u64, Slot>>,
    pub(super) next: AtomicU64,
    pub(super) closing: AtomicBool,
    pub(super) stopping: watch::Sender<bool>,
}

impl Registry {
    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answers now, the oldest first.
    pub(crate) fn slots(&self) -> Vec<Slot> {
        let mut slots: Vec<Slot> = self.lock().values().cloned().collect();
        for slot in &mut slots {
            slot.seconds = slot.since.map_or(0.0, |since| since.elapsed().as_secs_f64());
        }
        slots
    }

    /// Answers that are being generated, and answers that wait.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let slots = self.lock();
        let running = slots.values().filter(|slot| slot.is_processing).count();
        (running, slots.len() - running)
    }

    /// No more answers are begun.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Running answers end with what there is.
    pub(crate) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Whether [`Self::close`] was called.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }
}
