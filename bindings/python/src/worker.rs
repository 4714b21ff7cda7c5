//! The thread that computes while Python goes on, and Ctrl-C.
//!
//! A verb runs on a thread of its own. The thread that called it waits without the global interpreter lock and looks for
//! signals several times a second, so that other threads of Python run and Ctrl-C ends a generation.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use crate::failure::Failure;

/// How often the waiting thread looks for signals.
const SIGNALS: Duration = Duration::from_millis(50);

/// Asks a computation to end: it looks between two tokens, and between two chunks of a prompt.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks.
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// The flag, for the library.
    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

/// Texts of a computation that goes on, and why there are no more where it failed. Dropped, it ends the computation.
#[derive(Debug)]
pub(crate) struct Pieces<T> {
    receiver: Receiver<Result<T, Failure>>,
    cancel: Cancel,
    /// When the waiting thread last looked for signals.
    looked: Instant,
}

impl<T: Send + 'static> Pieces<T> {
    /// Starts a computation, which gives values to `give` until that returns `false`.
    pub(crate) fn start(
        work: impl FnOnce(&Cancel, &mut dyn FnMut(T) -> bool) -> Result<(), Failure> + Send + 'static,
    ) -> Self {
        // one value ahead of whoever takes them, and no more
        let (sender, receiver) = sync_channel(1);
        let cancel = Cancel::default();
        let own = cancel.clone();
        std::thread::spawn(move || {
            let mut give = |value| !own.is_set() && sender.send(Ok(value)).is_ok();
            let result = catch_unwind(AssertUnwindSafe(|| work(&own, &mut give)));
            if let Err(failure) = result.unwrap_or_else(|panic| Err(panicked(&*panic))) {
                // nobody waits any more: nobody wants to know
                let _ = sender.send(Err(failure));
            }
        });
        Self { receiver, cancel, looked: Instant::now() }
    }

    /// Waits for the next value; `None` at the end.
    pub(crate) fn next(&mut self, py: Python<'_>) -> PyResult<Option<T>> {
        loop {
            let receiver = &mut self.receiver;
            let received = py.detach(move || receiver.recv_timeout(SIGNALS));
            // also while values come fast: `list(stream)` runs no code of Python in between
            if self.looked.elapsed() >= SIGNALS {
                py.check_signals().inspect_err(|_| self.cancel.set())?;
                self.looked = Instant::now();
            }
            match received {
                Ok(Ok(value)) => return Ok(Some(value)),
                Ok(Err(failure)) => return Err(failure.into()),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

impl<T> Drop for Pieces<T> {
    fn drop(&mut self) {
        self.cancel.set();
    }
}

/// Runs a computation to its end.
pub(crate) fn run<T: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce(&Cancel) -> Result<T, Failure> + Send + 'static,
) -> PyResult<T> {
    let mut pieces = Pieces::start(move |cancel, give| {
        give(work(cancel)?);
        Ok(())
    });
    let value = pieces.next(py)?;
    value.ok_or_else(|| Failure::Computation("the computation ended without a result".to_owned()).into())
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Failure {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    let text = text.unwrap_or("no message");
    Failure::Computation(format!("internal error: {text}; please report it at {}/issues", env!("CARGO_PKG_REPOSITORY")))
}
