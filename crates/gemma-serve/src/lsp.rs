//! A language server that completes code: `textDocument/inlineCompletion` (LSP 3.18), and `textDocument/completion` for
//! editors without it.
//!
//! Three threads: one reads what the client sends, one computes, and the one in between knows the documents and never
//! waits for the model. A request takes a snapshot of its document. It is answered at once when it is cancelled, or when
//! its document changes, and the model stops before its next token; so no request waits for one that nobody wants, and
//! every answer is about the document as it is.

mod answer;
mod documents;
mod protocol;
mod wire;
mod worker;

use crate::Error;
use answer::{Kind, Place};
use codegemma::{CodeGemma, InfillOptions, InfillStop, Order};
use crossbeam_channel::{Receiver, Sender, select, unbounded};
use documents::{Documents, Encoding};
use gemma_generate::GenerateOptions;
use protocol::{Change, Client, Wanted};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use wire::{ErrorCode, Incoming};
use worker::{Event, Job};

/// How the server completes.
#[derive(Clone, Debug)]
pub struct Options {
    /// How a hole is filled.
    pub infill: InfillOptions,
    /// Open documents of the same language that go into the prompt beside the one at hand.
    pub open_files: usize,
    /// How long a request that the editor made by itself waits for another keystroke.
    pub debounce: Duration,
}

impl Default for Options {
    /// At most 64 tokens, one block, a prompt of 1024 tokens in the order suffix, prefix, completion, two open files, five
    /// seconds, 40 milliseconds of patience.
    fn default() -> Self {
        let infill = InfillOptions {
            generate: GenerateOptions::greedy(64),
            order: Order::Spm,
            budget: Some(1024),
            stop_rule: InfillStop::Block,
            time_limit: Some(Duration::from_secs(5)),
            ..InfillOptions::default()
        };
        Self { infill, open_files: 2, debounce: Duration::from_millis(40) }
    }
}

/// Called while the model is opened: bytes done and bytes in all.
pub type OnLoad<'a> = &'a mut dyn FnMut(u64, u64);

/// Serves one client, until it says goodbye. `load` opens the model; the client can edit meanwhile.
///
/// # Errors
/// When the connection breaks. What is wrong with a message is answered, and the server goes on.
pub fn serve(
    reader: impl BufRead + Send + 'static,
    writer: impl Write + Send,
    load: impl FnOnce(OnLoad<'_>) -> Result<CodeGemma, String> + Send,
    options: &Options,
) -> Result<(), Error> {
    let (from_client, incoming) = unbounded();
    let (to_worker, jobs) = unbounded();
    let (from_worker, events) = unbounded();
    // not joined: it may wait for a client that sends nothing more
    std::thread::spawn(move || wire::read_all(reader, &from_client));
    std::thread::scope(|scope| {
        scope.spawn(move || worker::run(load, options, &jobs, &from_worker));
        let mut server = Server::new(writer, options, to_worker);
        let ended = server.run(&incoming, &events);
        server.cancel_all();
        // drops the queue: the worker ends
        drop(server);
        ended
    })
}

/// Where the conversation stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    New,
    Running,
    ShutDown,
}

/// A request that was not answered yet.
struct Pending {
    uri: String,
    kind: Kind,
    place: Place,
    id: Value,
    cancel: Arc<AtomicBool>,
    progress: Option<Value>,
}

struct Server<'o, W> {
    writer: W,
    options: &'o Options,
    worker: Sender<Job>,
    stage: Stage,
    encoding: Encoding,
    /// Whether the client shows progress that the server begins.
    shows_progress: bool,
    documents: Documents,
    /// By their ids, as JSON.
    pending: HashMap<String, Pending>,
    /// Why there is no model.
    broken: Option<String>,
    loading: Loading,
}

/// How much of the loading of the model the client was shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loading {
    Unannounced,
    Announced(u64),
    Over,
}

const LOADING: &str = "gemma-loading";

impl<'o, W: Write> Server<'o, W> {
    fn new(writer: W, options: &'o Options, worker: Sender<Job>) -> Self {
        Self {
            writer,
            options,
            worker,
            stage: Stage::New,
            encoding: Encoding::Utf16,
            shows_progress: false,
            documents: Documents::default(),
            pending: HashMap::new(),
            broken: None,
            loading: Loading::Unannounced,
        }
    }

    fn run(&mut self, incoming: &Receiver<Incoming>, events: &Receiver<Event>) -> Result<(), Error> {
        loop {
            select! {
                recv(incoming) -> message => match message {
                    Ok(Incoming::Notification { method, .. }) if method == "exit" => {
                        return if self.stage == Stage::ShutDown { Ok(()) } else { Err(Error::Abandoned) };
                    }
                    Ok(Incoming::Request { id, method, params }) => self.request(id, &method, &params)?,
                    Ok(Incoming::Notification { method, params }) => self.notification(&method, &params)?,
                    // to what the server asked: whether progress may be shown
                    Ok(Incoming::Response) => {}
                    Ok(Incoming::Malformed { id, code, reason }) => self.refuse(id, code, &reason)?,
                    // the end of the input: a client that shut the server down may just leave
                    Err(_) => return if self.stage == Stage::ShutDown { Ok(()) } else { Err(Error::Abandoned) },
                },
                recv(events) -> event => match event {
                    Ok(event) => self.on_event(event)?,
                    Err(_) => return Err(Error::Abandoned),
                },
            }
        }
    }

    fn request(&mut self, id: Value, method: &str, params: &Value) -> Result<(), Error> {
        match (self.stage, method) {
            (Stage::New, "initialize") => self.initialize(id, &Client::read(params)),
            (Stage::New, _) => self.refuse(id, ErrorCode::NotInitialized, "the first request is `initialize`"),
            (Stage::ShutDown, _) => self.refuse(id, ErrorCode::InvalidRequest, "the server was shut down"),
            (Stage::Running, "shutdown") => {
                self.stage = Stage::ShutDown;
                self.cancel_all();
                self.answer(id, Value::Null)
            }
            (Stage::Running, "textDocument/inlineCompletion" | "textDocument/completion") => {
                let kind = if method == "textDocument/completion" { Kind::Menu } else { Kind::Inline };
                match Wanted::read(params, kind == Kind::Inline) {
                    Ok(wanted) => self.complete(id, kind, wanted),
                    Err(reason) => self.refuse(id, ErrorCode::InvalidParams, &reason),
                }
            }
            (Stage::Running, "initialize") => {
                self.refuse(id, ErrorCode::InvalidRequest, "the server is initialized already")
            }
            (Stage::Running, method) => {
                let method: String = method.chars().take(60).collect();
                self.refuse(id, ErrorCode::MethodNotFound, &format!("{method} is not offered"))
            }
        }
    }

    fn initialize(&mut self, id: Value, client: &Client) -> Result<(), Error> {
        self.encoding = Encoding::agreed(&client.encodings);
        self.shows_progress = client.shows_progress;
        self.documents.folders().clone_from(&client.folders);
        self.stage = Stage::Running;
        self.answer(
            id,
            json!({
                "capabilities": {
                    "positionEncoding": self.encoding.name(),
                    "textDocumentSync": { "openClose": true, "change": 2 },
                    "inlineCompletionProvider": { "workDoneProgress": true },
                    "completionProvider": { "workDoneProgress": true },
                    "workspace": { "workspaceFolders": { "supported": true, "changeNotifications": true } },
                },
                "serverInfo": { "name": "gemma", "version": env!("CARGO_PKG_VERSION") },
            }),
        )
    }

    /// What cannot be understood cannot be answered either: a notification has no answer.
    fn notification(&mut self, method: &str, params: &Value) -> Result<(), Error> {
        let document = &params["textDocument"];
        match (method, document["uri"].as_str()) {
            ("$/cancelRequest", _) => {
                self.give_up(&params["id"].to_string(), ErrorCode::RequestCancelled, "cancelled")?;
            }
            ("textDocument/didOpen", Some(uri)) => {
                self.outdate(uri)?;
                let text = |field: &str| document[field].as_str().unwrap_or_default().to_owned();
                self.documents.open(uri.to_owned(), text("languageId"), text("text"));
            }
            ("textDocument/didChange", Some(uri)) => {
                self.outdate(uri)?;
                let changes: Option<Vec<Change>> = protocol::changes(params);
                self.documents.change(uri, changes, self.encoding);
            }
            ("textDocument/didClose", Some(uri)) => {
                self.outdate(uri)?;
                self.documents.close(uri);
            }
            ("workspace/didChangeWorkspaceFolders", _) => {
                let (added, removed) = (&params["event"]["added"], &params["event"]["removed"]);
                let removed = protocol::uris(removed);
                let folders = self.documents.folders();
                folders.retain(|folder| !removed.contains(folder));
                folders.extend(protocol::uris(added));
            }
            _ => {}
        }
        Ok(())
    }

    fn complete(&mut self, id: Value, kind: Kind, wanted: Wanted) -> Result<(), Error> {
        if let Some(reason) = self.broken.clone() {
            return self.refuse(id, ErrorCode::RequestFailed, &reason);
        }
        let uri = wanted.uri;
        let Some(document) = self.documents.get(&uri) else {
            let shown: String = uri.chars().take(200).collect();
            let reason = format!("{shown} is not open; send textDocument/didOpen first");
            return self.refuse(id, ErrorCode::InvalidParams, &reason);
        };
        let place = match wanted.selected {
            Some((range, text)) => Place::selected(document, self.encoding, range, text),
            None => Place::cursor(document, self.encoding, wanted.position, kind),
        };
        let others = self.documents.others(&uri, self.options.open_files);
        let infill = place.infill(&self.documents, document, others);
        let key = id.to_string();
        if self.pending.contains_key(&key) {
            return self.refuse(id, ErrorCode::InvalidRequest, "a request with this id is still being answered");
        }
        // the same question again replaces the last one
        let older: Vec<String> = self.pending_of(&uri, |pending| pending.kind == kind);
        for older in older {
            self.give_up(&older, ErrorCode::ContentModified, "another request came")?;
        }
        let cancel = Arc::new(AtomicBool::new(false));
        let wait_until = Instant::now() + if wanted.automatic { self.options.debounce } else { Duration::ZERO };
        let progress = wanted.progress;
        if let Some(token) = &progress {
            self.progress(token, json!({ "kind": "begin", "title": "Completing" }))?;
        }
        let job = Job { id: key.clone(), infill, wait_until, cancel: cancel.clone() };
        self.pending.insert(key, Pending { uri, kind, place, id, cancel, progress });
        // a worker that is gone has reported why before
        let _ = self.worker.send(job);
        Ok(())
    }

    /// The unanswered requests about a document.
    fn pending_of(&self, uri: &str, which: impl Fn(&Pending) -> bool) -> Vec<String> {
        let about = self.pending.iter().filter(|(_, pending)| pending.uri == uri && which(pending));
        about.map(|(id, _)| id.clone()).collect()
    }

    /// A document changes: what was asked about it is about a text that is no more.
    fn outdate(&mut self, uri: &str) -> Result<(), Error> {
        for id in self.pending_of(uri, |_| true) {
            self.give_up(&id, ErrorCode::ContentModified, "the document changed")?;
        }
        Ok(())
    }

    /// Answers a request with an error now and lets the model stop.
    fn give_up(&mut self, key: &str, code: ErrorCode, reason: &str) -> Result<(), Error> {
        let Some(pending) = self.pending.remove(key) else { return Ok(()) };
        pending.cancel.store(true, Ordering::Relaxed);
        if let Some(token) = &pending.progress {
            self.progress(token, json!({ "kind": "end" }))?;
        }
        self.refuse(pending.id, code, reason)
    }

    fn cancel_all(&mut self) {
        for pending in self.pending.values() {
            pending.cancel.store(true, Ordering::Relaxed);
        }
    }

    fn on_event(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Loading { done, total } => self.show_loading(done, total),
            Event::Loaded => self.end_loading("ready"),
            Event::Broken(reason) => {
                self.end_loading("failed")?;
                let message = format!("gemma: {reason}");
                self.notify("window/showMessage", json!({ "type": 1, "message": message }))?;
                let waiting: Vec<String> = self.pending.keys().cloned().collect();
                for id in waiting {
                    self.give_up(&id, ErrorCode::RequestFailed, &reason)?;
                }
                self.broken = Some(reason);
                Ok(())
            }
            Event::Progress { id, characters } => {
                let token = self.pending.get(&id).and_then(|pending| pending.progress.clone());
                let Some(token) = token else { return Ok(()) };
                self.progress(&token, json!({ "kind": "report", "message": format!("{characters} characters") }))
            }
            Event::Done { id, result } => {
                // whoever asked may have been answered meanwhile
                let Some(pending) = self.pending.remove(&id) else { return Ok(()) };
                if let Some(token) = &pending.progress {
                    self.progress(token, json!({ "kind": "end" }))?;
                }
                match result {
                    Ok(text) => self.answer(pending.id, pending.place.answer(pending.kind, &text)),
                    Err(reason) => self.refuse(pending.id, ErrorCode::RequestFailed, &reason),
                }
            }
        }
    }

    /// Shows the loading of the model, in steps of a tenth.
    fn show_loading(&mut self, done: u64, total: u64) -> Result<(), Error> {
        if !self.shows_progress || self.stage != Stage::Running {
            return Ok(());
        }
        let percent = (100 * done).checked_div(total).unwrap_or(0).min(100);
        let token = Value::from(LOADING);
        match self.loading {
            Loading::Over => Ok(()),
            Loading::Announced(shown) if percent < shown + 10 => Ok(()),
            Loading::Announced(_) => {
                self.loading = Loading::Announced(percent);
                self.progress(&token, json!({ "kind": "report", "percentage": percent }))
            }
            Loading::Unannounced => {
                self.loading = Loading::Announced(percent);
                self.send(json!({
                    "id": LOADING, "method": "window/workDoneProgress/create", "params": { "token": LOADING },
                }))?;
                self.progress(&token, json!({ "kind": "begin", "title": "Loading the model", "percentage": percent }))
            }
        }
    }

    fn end_loading(&mut self, message: &str) -> Result<(), Error> {
        let announced = matches!(self.loading, Loading::Announced(_));
        self.loading = Loading::Over;
        if !announced {
            return Ok(());
        }
        let token = Value::from(LOADING);
        self.progress(&token, json!({ "kind": "end", "message": message }))
    }

    fn progress(&mut self, token: &Value, value: Value) -> Result<(), Error> {
        self.notify("$/progress", json!({ "token": token, "value": value }))
    }

    fn notify(&mut self, method: &str, params: Value) -> Result<(), Error> {
        self.send(json!({ "method": method, "params": params }))
    }

    fn answer(&mut self, id: Value, result: Value) -> Result<(), Error> {
        self.send(json!({ "id": id, "result": result }))
    }

    fn refuse(&mut self, id: Value, code: ErrorCode, reason: &str) -> Result<(), Error> {
        self.send(json!({ "id": id, "error": { "code": code as i32, "message": reason } }))
    }

    fn send(&mut self, mut message: Value) -> Result<(), Error> {
        message["jsonrpc"] = "2.0".into();
        Ok(wire::write(&mut self.writer, &message)?)
    }
}
