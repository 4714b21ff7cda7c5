//! An engine on a thread of its own: what a server needs.
//!
//! Any thread submits requests through an [`EngineHandle`] and gets the events of each request through a channel of its
//! own. A request whose [`RequestEvents`] are dropped is cancelled.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::active::Active;
use super::event::{Event, RequestId};
use super::options::EngineOptions;
use super::request::Request;
use super::scheduler::{Engine, EngineStats};
use crate::{CausalModel, Error, Sequence};

/// What travels to the thread.
enum Message {
    Submit(Submission),
    /// The [`EngineThread`] is dropped.
    Stop,
}

/// Takes the events of a request, on the thread of the engine; `false`: nobody listens any more.
type Sink = Box<dyn FnMut(Event) -> bool + Send>;

/// A request and where its events go.
struct Submission {
    request: Request<'static>,
    events: Sink,
    cancel: Arc<AtomicBool>,
}

/// Checks a request as the engine does, without it.
type Check = dyn Fn(Request<'static>) -> Result<Request<'static>, Error> + Send + Sync;

/// A thread that owns a model and runs an [`Engine`] over it. Dropped, it cancels what is in progress and waits for the
/// thread to end.
///
/// ```no_run
/// use std::sync::Arc;
/// use gemma_generate::{CausalModel, EngineOptions, EngineThread, Error, Event, GenerateOptions, Request};
///
/// # fn serve<M: CausalModel + Send + Sync + 'static>(model: Arc<M>) -> Result<(), Error> {
/// let engine = EngineThread::spawn(model, EngineOptions::default())?;
/// let handle = engine.handle();
/// for event in handle.submit(Request::new(vec![2, 10, 11], GenerateOptions::greedy(20)))? {
///     if let Event::Token { token, .. } = event {
///         println!("{}", token.token);
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct EngineThread {
    handle: EngineHandle,
    /// Stops the loop between two steps.
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Submits requests to an [`EngineThread`]; cheap to clone, and usable from any thread.
#[derive(Clone)]
pub struct EngineHandle {
    messages: Sender<Message>,
    check: Arc<Check>,
    stats: Arc<Mutex<EngineStats>>,
    vocab: usize,
    context_length: Option<usize>,
}

/// The events of one request: an iterator that ends after [`Event::Finished`] or [`Event::Failed`]. Dropped before, it
/// cancels the request.
#[derive(Debug)]
pub struct RequestEvents {
    events: Receiver<Event>,
    cancel: Arc<AtomicBool>,
    over: bool,
}

impl EngineThread {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// What [`EngineOptions::check`] finds.
    pub fn spawn<M>(model: Arc<M>, options: EngineOptions) -> Result<Self, Error>
    where
        M: CausalModel + Send + Sync + 'static,
    {
        options.check()?;
        let (messages, incoming) = channel();
        let stats = Arc::new(Mutex::new(EngineStats::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let checked = (Arc::clone(&model), options.clone());
        let check = move |request| {
            let (model, options) = &checked;
            check(&**model, options, request)
        };
        let handle = EngineHandle {
            messages,
            check: Arc::new(check),
            stats: Arc::clone(&stats),
            vocab: model.vocab(),
            context_length: model.context_length(),
        };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || run(&*model, &options, &incoming, &stats, &stopped));
        Ok(Self { handle, stop, thread: Some(thread) })
    }

    /// A handle to submit requests with.
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // fails only when the thread has ended already
        drop(self.handle.messages.send(Message::Stop));
        if let Some(thread) = self.thread.take() {
            // the thread catches panics of the model; another one has been printed already
            drop(thread.join());
        }
    }
}

impl EngineHandle {
    /// Submits a request and returns its events. The check happens here; everything else on the thread.
    ///
    /// A cancel flag of the request itself works as well as [`RequestEvents::cancel`].
    ///
    /// # Errors
    ///
    /// As [`Engine::submit`], and [`Error::EngineStopped`].
    pub fn submit(&self, request: Request<'static>) -> Result<RequestEvents, Error> {
        let (sender, events) = channel();
        let cancel = self.submit_with(request, move |event| sender.send(event).is_ok())?;
        Ok(RequestEvents { events, cancel, over: false })
    }

    /// [`submit`](Self::submit), with a function that takes the events. It runs on the thread of the engine between two steps
    /// and must not wait. When it returns `false`, or the returned flag is set, the request is cancelled.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit).
    pub fn submit_with(
        &self,
        request: Request<'static>,
        sink: impl FnMut(Event) -> bool + Send + 'static,
    ) -> Result<Arc<AtomicBool>, Error> {
        let request = (self.check)(request)?;
        let cancel = Arc::new(AtomicBool::new(false));
        let submission = Submission { request, events: Box::new(sink), cancel: Arc::clone(&cancel) };
        self.messages.send(Message::Submit(submission)).map_err(|_| Error::EngineStopped)?;
        Ok(cancel)
    }

    /// What the engine held after its last step.
    pub fn stats(&self) -> EngineStats {
        *self.stats.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Number of tokens in the vocabulary.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Most tokens that a sequence may have; `None`: there is no limit.
    pub fn context_length(&self) -> Option<usize> {
        self.context_length
    }
}

impl std::fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineHandle").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl RequestEvents {
    /// Waits for the next event, at most so long: `None` when none has come by then, and when the request is over
    /// ([`is_over`](Self::is_over)).
    pub fn next_within(&mut self, limit: Duration) -> Option<Event> {
        if self.over {
            return None;
        }
        match self.events.recv_timeout(limit) {
            Ok(event) => Some(self.take(event)),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                self.over = true;
                None
            }
        }
    }

    /// Cancels the request; its last event comes all the same.
    pub fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }

    /// Whether no event follows. Without a last event before, the engine was stopped.
    pub fn is_over(&self) -> bool {
        self.over
    }

    fn take(&mut self, event: Event) -> Event {
        self.over = event.is_last();
        event
    }
}

impl Iterator for RequestEvents {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if self.over {
            return None;
        }
        match self.events.recv() {
            Ok(event) => Some(self.take(event)),
            Err(_) => {
                self.over = true;
                None
            }
        }
    }
}

impl std::iter::FusedIterator for RequestEvents {}

impl Drop for RequestEvents {
    fn drop(&mut self) {
        if !self.over {
            self.cancel();
        }
    }
}

/// What [`Engine::submit`] would say.
fn check<M: CausalModel>(
    model: &M,
    options: &EngineOptions,
    request: Request<'static>,
) -> Result<Request<'static>, Error> {
    Active::check(model, options, &request, &Sequence::new(model.new_cache()))?;
    Ok(request)
}

/// A request on the thread, seen from outside.
struct Client {
    id: RequestId,
    events: Sink,
    cancel: Arc<AtomicBool>,
}

/// The loop of the thread: takes submissions, steps, and hands out events, until nobody has a handle any more.
fn run<M: CausalModel>(
    model: &M,
    options: &EngineOptions,
    incoming: &Receiver<Message>,
    stats: &Mutex<EngineStats>,
    stop: &AtomicBool,
) {
    let new_engine = || Engine::new(model, options.clone()).expect("the options were checked");
    let mut engine = new_engine();
    let mut clients: Vec<Client> = Vec::new();
    loop {
        // sleeps only when there is nothing to do
        let first = if engine.is_idle() { incoming.recv().ok().or(Some(Message::Stop)) } else { None };
        for message in first.into_iter().chain(incoming.try_iter()) {
            let Message::Submit(Submission { request, events, cancel }) = message else { return };
            let mut events = events;
            match engine.submit(request) {
                Ok(id) => clients.push(Client { id, events, cancel }),
                // checked before: only a bug comes here, and whoever waits must hear of it
                Err(error) => drop(events(Event::Failed { id: RequestId(u64::MAX), error })),
            }
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
        for client in &clients {
            if client.cancel.load(Ordering::Relaxed) {
                engine.cancel(client.id);
            }
        }
        let stepped = catch_unwind(AssertUnwindSafe(|| engine.step()));
        let events = stepped.unwrap_or_else(|_| {
            // the caches of a pass that broke off are worth nothing: all requests fail, and the engine begins anew
            engine = new_engine();
            clients.iter().map(|client| Event::Failed { id: client.id, error: Error::ModelPanicked }).collect()
        });
        *stats.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = engine.stats();
        for event in events {
            let id = event.id();
            let Some(index) = clients.iter().position(|client| client.id == id) else { continue };
            let last = event.is_last();
            let unheard = !(clients[index].events)(event);
            if last {
                clients.swap_remove(index);
            } else if unheard {
                engine.cancel(id);
            }
        }
    }
}

#[cfg(test)]
mod tests;
