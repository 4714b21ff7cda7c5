//! The thread that computes: one request after the other, on one session.

use super::{OnLoad, Options};
use codegemma::{CodeGemma, Infill, InfillOptions, Session};
use crossbeam_channel::{Receiver, Sender};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often a waiting request looks whether it is still wanted.
const POLL: Duration = Duration::from_millis(2);

/// A request with its snapshot of the document. Its id is the client's, as JSON.
pub(super) struct Job {
    pub(super) id: String,
    pub(super) infill: Infill,
    /// When to begin: another keystroke may come first.
    pub(super) wait_until: Instant,
    pub(super) cancel: Arc<AtomicBool>,
}

/// What the worker reports.
pub(super) enum Event {
    Loading {
        done: u64,
        total: u64,
    },
    Loaded,
    /// There is no model, and why.
    Broken(String),
    /// So many characters of the completion are there.
    Progress {
        id: String,
        characters: usize,
    },
    Done {
        id: String,
        result: Result<String, String>,
    },
}

/// Opens the model, then answers until the queue is closed.
pub(super) fn run(
    load: impl FnOnce(OnLoad<'_>) -> Result<CodeGemma, String>,
    options: &Options,
    jobs: &Receiver<Job>,
    events: &Sender<Event>,
) {
    // nobody listens any more when a send fails: the queue is about to be closed
    let report = |event| drop(events.send(event));
    let model = match load(&mut |done, total| report(Event::Loading { done, total })) {
        Ok(model) => model,
        Err(reason) => {
            report(Event::Broken(reason));
            // stay until the end, so that the server learns of the end from its client
            while jobs.recv().is_ok() {}
            return;
        }
    };
    report(Event::Loaded);
    let mut session = model.session();
    while let Ok(job) = jobs.recv() {
        if wait(&job) {
            let result = answer(&mut session, &job, options, &report);
            report(Event::Done { id: job.id, result });
        }
    }
}

/// Waits until it is time to begin; `false` when nobody wants the answer any more.
fn wait(job: &Job) -> bool {
    loop {
        if job.cancel.load(Ordering::Relaxed) {
            return false;
        }
        let left = job.wait_until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(POLL));
    }
}

fn answer(session: &mut Session<'_>, job: &Job, options: &Options, report: &impl Fn(Event)) -> Result<String, String> {
    let infill_options = InfillOptions { cancel: Some(job.cancel.clone()), ..options.infill.clone() };
    let stream = session.stream(&job.infill, &infill_options).map_err(|error| error.to_string())?;
    let mut text = String::new();
    for piece in stream {
        text += &piece.map_err(|error| error.to_string())?;
        report(Event::Progress { id: job.id.clone(), characters: text.chars().count() });
    }
    Ok(text)
}
