//! Requests on their way: admission, limits, and the events of one answer.
//!
//! An [`Answer`] is dropped when its client goes away, which cancels its job and frees its place.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use gemma_tokenizer::TokenId;
use tokio::sync::watch;

use super::App;
use super::backend::{Backend, Event, Events, Finished, Job, Ongoing, Reason, TokenScore};
use super::error::Refusal;
use super::place::Place;

/// One answer as its events come.
pub(crate) struct Answer {
    /// The model is not unloaded while it answers.
    _backend: Arc<dyn Backend>,
    events: Events,
    place: Place,
    begun: Instant,
    started: bool,
    first_token: Option<Instant>,
    decode_limit: Option<Duration>,
    stopping: watch::Receiver<bool>,
    /// Text of several lines was generated.
    line_break: bool,
    counts: (usize, usize),
}

/// A whole answer.
#[derive(Clone, Debug)]
pub(crate) struct Completed {
    pub(crate) text: String,
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) scores: Vec<TokenScore>,
    pub(crate) prompt_scores: Vec<Option<TokenScore>>,
    pub(crate) finished: Finished,
}

/// Begins an answer.
///
/// # Errors
/// When the server is full or shutting down, or the backend refuses the job.
pub(crate) fn submit(
    app: &App,
    backend: &Arc<dyn Backend>,
    endpoint: &'static str,
    mut job: Job,
) -> Result<Answer, Refusal> {
    if app.registry.is_closing() {
        return Err(Refusal::shutting_down());
    }
    check_tokens(backend.as_ref(), &job)?;
    job.adapters = app.adapters_of(backend.as_ref(), job.adapters);
    if let Some(limit) = backend.card().context_length {
        // the cache of an answer is reserved in full: no more than can ever be used
        job.sampling.max_tokens = job.sampling.max_tokens.min(limit - job.prompt.tokens.len());
    }
    let begun = Instant::now();
    job.deadline.get_or_insert(begun + app.settings.request_timeout);
    let decode_limit = job.decode_limit.take();
    let counts = (job.prompt.tokens.len(), 0);
    let mut place = Place::take(app, &backend.card().id, endpoint, job.prompt.tokens.len(), job.sampling.max_tokens)?;
    match backend.submit(job) {
        Ok(events) => {
            let stopping = app.registry.stopping.subscribe();
            let (started, first_token, line_break) = (false, None, false);
            let _backend = Arc::clone(backend);
            Ok(Answer {
                _backend,
                events,
                place,
                begun,
                started,
                first_token,
                decode_limit,
                stopping,
                line_break,
                counts,
            })
        }
        Err(refusal) => {
            place.finished = true;
            app.metrics.refused.inc();
            Err(refusal)
        }
    }
}

/// Refuses tokens that the model does not know, an empty prompt, and prompts beyond the context.
fn check_tokens(backend: &dyn Backend, job: &Job) -> Result<(), Refusal> {
    let vocab = backend.card().vocab_size;
    let tokens = &job.prompt.tokens;
    if tokens.is_empty() {
        return Err(Refusal::field("prompt", "the prompt is empty; send at least one token"));
    }
    if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab) {
        return Err(Refusal::field("prompt", format!("{token} is no token; the vocabulary has {vocab}")));
    }
    match backend.card().context_length {
        Some(limit) if tokens.len() > limit => Err(Refusal::context(tokens.len(), limit)),
        _ => Ok(()),
    }
}

impl Answer {
    /// The next event; `None` after the last one.
    ///
    /// An answer that waits longer than the queue's time limit fails with 429.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        if self.place.finished {
            return None;
        }
        if let Some(done) = self.out_of_time() {
            return Some(done);
        }
        let queue_timeout = self.place.app.settings.queue_timeout;
        let deadline = (!self.started).then(|| self.begun + queue_timeout);
        let wait = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        enum Next {
            Event(Option<Event>),
            Stopping,
            Late,
        }
        let next = tokio::select! {
            biased;
            event = self.events.recv() => Next::Event(event),
            _ = async { self.stopping.wait_for(|stopping| *stopping).await.map(|_| ()) } => Next::Stopping,
            () = wait => Next::Late,
        };
        let event = match next {
            Next::Event(event) => event,
            Next::Stopping => return Some(self.cut_short(Reason::Shutdown)),
            Next::Late => {
                self.place.finished = true;
                self.place.app.metrics.refused.inc();
                self.events.close();
                return Some(Event::Failed(waited_too_long(queue_timeout)));
            }
        };
        let metrics = &self.place.app.metrics;
        match &event {
            Some(Event::Started) => {
                self.started = true;
                metrics.queue_seconds.observe(self.begun.elapsed().as_secs_f64());
                self.place.update(|slot| slot.is_processing = true);
            }
            Some(Event::Token { text, .. }) => {
                self.started = true;
                self.counts.1 += 1;
                self.line_break |= text.contains('\n');
                metrics.generated_tokens.inc();
                if self.first_token.is_none() {
                    self.first_token = Some(Instant::now());
                    metrics.first_token_seconds.observe(self.begun.elapsed().as_secs_f64());
                }
                self.place.update(|slot| {
                    slot.is_processing = true;
                    slot.generated_tokens += 1;
                });
            }
            Some(Event::Done { finished, .. }) => {
                self.place.finished = true;
                metrics.finished(finished, self.begun.elapsed().as_secs_f64());
            }
            Some(Event::Failed(_)) => {
                self.place.finished = true;
                metrics.failed.inc();
            }
            Some(Event::Prompt(_)) => self.started = true,
            None if !self.place.finished => {
                self.place.finished = true;
                metrics.failed.inc();
                let message = "the engine ended without an answer; send the request again";
                return Some(Event::Failed(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message)));
            }
            None => {}
        }
        event
    }

    /// The end of an answer that took longer than its `decode_limit`.
    fn out_of_time(&mut self) -> Option<Event> {
        let (limit, since) = (self.decode_limit?, self.first_token?);
        let over = self.line_break && !self.place.finished && since.elapsed() >= limit;
        over.then(|| self.cut_short(Reason::OutOfTime))
    }

    /// Ends the answer here: the job is cancelled, and what there is counts.
    fn cut_short(&mut self, reason: Reason) -> Event {
        self.events.close();
        while self.events.try_recv().is_ok() {}
        let (prompt_tokens, generated_tokens) = self.counts;
        let since = self.first_token.unwrap_or_else(Instant::now);
        let finished = Finished {
            reason,
            prompt_tokens,
            cached_tokens: 0,
            generated_tokens,
            prompt_seconds: (since - self.begun).as_secs_f64(),
            decode_seconds: since.elapsed().as_secs_f64(),
        };
        self.place.finished = true;
        self.place.app.metrics.finished(&finished, self.begun.elapsed().as_secs_f64());
        Event::Done { text: String::new(), finished }
    }

    /// Waits for the whole answer.
    ///
    /// # Errors
    /// What it failed with.
    pub(crate) async fn complete(mut self) -> Result<Completed, Refusal> {
        let (mut text, mut tokens, mut scores, mut prompt_scores) = (String::new(), Vec::new(), Vec::new(), Vec::new());
        while let Some(event) = self.next().await {
            match event {
                Event::Started => {}
                Event::Prompt(scores) => prompt_scores = scores,
                Event::Token { token, text: piece, score } => {
                    tokens.push(token);
                    scores.extend(score);
                    text.push_str(&piece);
                }
                Event::Done { text: rest, finished } => {
                    text.push_str(&rest);
                    return Ok(Completed { text, tokens, scores, prompt_scores, finished });
                }
                Event::Failed(refusal) => return Err(refusal),
            }
        }
        Err(Refusal::failed("the engine ended without an answer"))
    }
}

fn waited_too_long(limit: Duration) -> Refusal {
    let seconds = limit.as_secs();
    Refusal::busy(format!("the request waited {seconds} s for room; try again later"), seconds.max(1))
}

/// Runs what blocks beside the engine: embeddings, classification, vision tasks. It has a place like any answer, and a model
/// does one such work at a time.
///
/// # Errors
/// When the server is full or shutting down, or what the work fails with.
pub(crate) async fn beside<T: Send + 'static>(
    app: &App,
    backend: &Arc<dyn Backend>,
    endpoint: &'static str,
    work: impl FnOnce(&dyn Backend, &Ongoing) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    if app.registry.is_closing() {
        return Err(Refusal::shutting_down());
    }
    let mut place = Place::take(app, &backend.card().id, endpoint, 0, 0)?;
    let begun = Instant::now();
    let queue_timeout = app.settings.queue_timeout;
    let Ok(turn) = tokio::time::timeout(queue_timeout, app.turn(backend.as_ref()).acquire_owned()).await else {
        place.finished = true;
        app.metrics.refused.inc();
        return Err(waited_too_long(queue_timeout));
    };
    app.metrics.queue_seconds.observe(begun.elapsed().as_secs_f64());
    place.update(|slot| slot.is_processing = true);
    let ongoing = Ongoing::within(app.settings.request_timeout);
    // when the client goes away, this future is dropped, and the work ends at its next look
    let _wanted = Wanted(ongoing.clone());
    let backend = Arc::clone(backend);
    let work = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work(backend.as_ref(), &ongoing)
    });
    let mut stopping = app.registry.stopping.subscribe();
    let result = tokio::select! {
        done = work => done.unwrap_or_else(|_| Err(Refusal::failed("the request made the model fail"))),
        _ = stopping.wait_for(|stopping| *stopping) => Err(Refusal::shutting_down()),
    };
    place.finished = true;
    match &result {
        Ok(_) => app.metrics.completed.inc(),
        Err(refusal) if refusal.status.is_server_error() => app.metrics.failed.inc(),
        Err(_) => 0,
    };
    result
}

/// Gives work up when it is dropped.
struct Wanted(Ongoing);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

/// Waits for several whole answers; the first failure ends all.
///
/// # Errors
/// What the first of them failed with.
pub(crate) async fn complete_all(answers: Vec<Answer>) -> Result<Vec<Completed>, Refusal> {
    futures_util::future::try_join_all(answers.into_iter().map(Answer::complete)).await
}

/// The events of several answers as they come, each with the index of its answer.
pub(crate) fn merged(answers: Vec<Answer>) -> impl futures_util::Stream<Item = (usize, Event)> + Send {
    let one = |(index, answer): (usize, Answer)| {
        let next = move |mut answer: Answer| async move { answer.next().await.map(|event| ((index, event), answer)) };
        Box::pin(futures_util::stream::unfold(answer, next))
    };
    futures_util::stream::select_all(answers.into_iter().enumerate().map(one))
}
