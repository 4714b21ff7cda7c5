//! A language server that completes code: `textDocument/inlineCompletion` (LSP 3.18), and `textDocument/completion` for
//! editors without it.
//!
//! Three threads: one reads what the client sends, one computes, and the one in between knows the documents and never
//! waits for the model. A request takes a snapshot of its document. It is answered at once when it is cancelled, or when
//! its document changes, and the model stops before its next token; so no request waits for one that nobody wants, and
//! every answer is about the document as it is.

mod answer;
mod documents;
mod wire;
mod worker;

use crate::Error;
use answer::{Kind, Place};
use codegemma::{CodeGemma, Extent, InfillOptions, Order};
use crossbeam_channel::{Receiver, Sender, select, unbounded};
use documents::{Documents, Encoding};
use gemma_generate::GenerateOptions;
use lsp_server::{ErrorCode, Message, Notification, Request, RequestId, Response};
use lsp_types as lsp;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use worker::{Job, News};

/// How the server completes.
#[derive(Clone, Debug)]
pub struct Options {
    /// How a gap is filled.
    pub infill: InfillOptions,
    /// Open documents of the same language that go into the prompt beside the one at hand.
    pub open_files: usize,
    /// How long a request that the editor made by itself waits for another keystroke.
    pub debounce: Duration,
}

impl Default for Options {
    /// At most 64 tokens, one block, a prompt of 1024 tokens in the order suffix, prefix, middle, two open files, five
    /// seconds, 40 milliseconds of patience.
    fn default() -> Self {
        let infill = InfillOptions {
            generate: GenerateOptions::greedy(64),
            order: Order::Spm,
            budget: Some(1024),
            extent: Extent::Block,
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
    let (from_worker, news) = unbounded();
    // not joined: it may wait for a client that sends nothing more
    std::thread::spawn(move || wire::read_all(reader, &from_client));
    std::thread::scope(|scope| {
        scope.spawn(move || worker::run(load, options, &jobs, &from_worker));
        let mut server = Server::new(writer, options, to_worker);
        let ended = server.run(&incoming, &news);
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
    cancel: Arc<AtomicBool>,
    progress: Option<lsp::ProgressToken>,
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
    pending: HashMap<RequestId, Pending>,
    /// Why there is no model.
    broken: Option<String>,
    loading: Loading,
}

/// How much of the loading of the model the client knows.
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

    fn run(&mut self, incoming: &Receiver<wire::Incoming>, news: &Receiver<News>) -> Result<(), Error> {
        loop {
            select! {
                recv(incoming) -> message => match message {
                    Ok(wire::Incoming::Message(Message::Notification(note))) if note.method == "exit" => {
                        return if self.stage == Stage::ShutDown { Ok(()) } else { Err(Error::Abandoned) };
                    }
                    Ok(wire::Incoming::Message(message)) => self.receive(message)?,
                    Ok(wire::Incoming::Malformed(code, reason)) => self.complain(code, &reason)?,
                    // the end of the input: a client that shut the server down may just leave
                    Err(_) => return if self.stage == Stage::ShutDown { Ok(()) } else { Err(Error::Abandoned) },
                },
                recv(news) -> news => match news {
                    Ok(news) => self.hear(news)?,
                    Err(_) => return Err(Error::Abandoned),
                },
            }
        }
    }

    fn receive(&mut self, message: Message) -> Result<(), Error> {
        match message {
            Message::Request(request) => self.request(request),
            Message::Notification(note) => self.note(note),
            // to what the server asked: whether progress may be shown
            Message::Response(_) => Ok(()),
        }
    }

    fn request(&mut self, request: Request) -> Result<(), Error> {
        let id = request.id.clone();
        match (self.stage, request.method.as_str()) {
            (Stage::New, "initialize") => self.initialize(request),
            (Stage::New, _) => self.refuse(id, ErrorCode::ServerNotInitialized, "the first request is `initialize`"),
            (Stage::ShutDown, _) => self.refuse(id, ErrorCode::InvalidRequest, "the server was shut down"),
            (Stage::Running, "shutdown") => {
                self.stage = Stage::ShutDown;
                self.cancel_all();
                self.answer(id, Value::Null)
            }
            (Stage::Running, "textDocument/inlineCompletion") => {
                match serde_json::from_value::<lsp::InlineCompletionParams>(request.params) {
                    Ok(params) => self.inline_completion(id, params),
                    Err(error) => self.refuse(id, ErrorCode::InvalidParams, &error.to_string()),
                }
            }
            (Stage::Running, "textDocument/completion") => {
                match serde_json::from_value::<lsp::CompletionParams>(request.params) {
                    Ok(params) => self.completion(id, params),
                    Err(error) => self.refuse(id, ErrorCode::InvalidParams, &error.to_string()),
                }
            }
            (Stage::Running, "initialize") => {
                self.refuse(id, ErrorCode::InvalidRequest, "the server is initialized already")
            }
            (Stage::Running, method) => {
                let reason = format!("{method} is not offered");
                self.refuse(id, ErrorCode::MethodNotFound, &reason)
            }
        }
    }

    fn initialize(&mut self, request: Request) -> Result<(), Error> {
        let params: lsp::InitializeParams = match serde_json::from_value(request.params) {
            Ok(params) => params,
            Err(error) => return self.refuse(request.id, ErrorCode::InvalidParams, &error.to_string()),
        };
        let general = params.capabilities.general.and_then(|general| general.position_encodings).unwrap_or_default();
        if general.contains(&lsp::PositionEncodingKind::UTF8) {
            self.encoding = Encoding::Utf8;
        }
        self.shows_progress = params.capabilities.window.and_then(|window| window.work_done_progress).unwrap_or(false);
        self.stage = Stage::Running;
        self.answer(
            request.id,
            json!({
                "capabilities": {
                    "positionEncoding": self.encoding.name(),
                    "textDocumentSync": { "openClose": true, "change": 2 },
                    "inlineCompletionProvider": { "workDoneProgress": true },
                    "completionProvider": { "workDoneProgress": true },
                },
                "serverInfo": { "name": "gemma", "version": env!("CARGO_PKG_VERSION") },
            }),
        )
    }

    fn note(&mut self, note: Notification) -> Result<(), Error> {
        // what cannot be understood cannot be answered either: a notification has no answer
        match note.method.as_str() {
            "$/cancelRequest" => {
                if let Ok(params) = serde_json::from_value::<lsp::CancelParams>(note.params) {
                    let id = match params.id {
                        lsp::NumberOrString::Number(number) => RequestId::from(number),
                        lsp::NumberOrString::String(text) => RequestId::from(text),
                    };
                    self.give_up(&id, ErrorCode::RequestCanceled, "cancelled")?;
                }
            }
            "textDocument/didOpen" => {
                if let Ok(params) = serde_json::from_value::<lsp::DidOpenTextDocumentParams>(note.params) {
                    self.outdate(params.text_document.uri.as_str())?;
                    self.documents.open(params.text_document);
                }
            }
            "textDocument/didChange" => {
                if let Ok(params) = serde_json::from_value::<lsp::DidChangeTextDocumentParams>(note.params) {
                    self.outdate(params.text_document.uri.as_str())?;
                    self.documents.change(params, self.encoding);
                }
            }
            "textDocument/didClose" => {
                if let Ok(params) = serde_json::from_value::<lsp::DidCloseTextDocumentParams>(note.params) {
                    self.outdate(params.text_document.uri.as_str())?;
                    self.documents.close(params.text_document.uri.as_str());
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn inline_completion(&mut self, id: RequestId, params: lsp::InlineCompletionParams) -> Result<(), Error> {
        let at = params.text_document_position;
        let selected = params.context.selected_completion_info;
        let automatic = params.context.trigger_kind == lsp::InlineCompletionTriggerKind::Automatic;
        let token = params.work_done_progress_params.work_done_token;
        let selected = selected.map(|selected| (selected.range, selected.text));
        self.complete(id, Kind::Inline, &at, selected, automatic, token)
    }

    fn completion(&mut self, id: RequestId, params: lsp::CompletionParams) -> Result<(), Error> {
        let token = params.work_done_progress_params.work_done_token;
        let automatic =
            params.context.is_some_and(|context| context.trigger_kind != lsp::CompletionTriggerKind::INVOKED);
        self.complete(id, Kind::Menu, &params.text_document_position, None, automatic, token)
    }

    fn complete(
        &mut self,
        id: RequestId,
        kind: Kind,
        at: &lsp::TextDocumentPositionParams,
        selected: Option<(lsp::Range, String)>,
        automatic: bool,
        progress: Option<lsp::ProgressToken>,
    ) -> Result<(), Error> {
        if let Some(reason) = self.broken.clone() {
            return self.refuse(id, ErrorCode::RequestFailed, &reason);
        }
        let uri = at.text_document.uri.as_str().to_owned();
        let Some(document) = self.documents.get(&uri) else {
            let reason = format!("{uri} is not open; send textDocument/didOpen first");
            return self.refuse(id, ErrorCode::InvalidParams, &reason);
        };
        let place = match selected {
            Some((range, text)) => Place::selected(document, self.encoding, range, text),
            None => Place::cursor(document, self.encoding, at.position, kind),
        };
        let infill = place.infill(document, self.documents.others(&uri, self.options.open_files));
        if self.pending.contains_key(&id) {
            return self.refuse(id, ErrorCode::InvalidRequest, "a request with this id is still being answered");
        }
        // the same question again replaces the last one
        let older: Vec<RequestId> = self.pending_of(&uri, |pending| pending.kind == kind);
        for id in older {
            self.give_up(&id, ErrorCode::ContentModified, "another request came")?;
        }
        let cancel = Arc::new(AtomicBool::new(false));
        let wait_until = Instant::now() + if automatic { self.options.debounce } else { Duration::ZERO };
        if let Some(token) = &progress {
            self.progress(token, json!({ "kind": "begin", "title": "Completing" }))?;
        }
        let job = Job { id: id.clone(), infill, wait_until, cancel: cancel.clone() };
        self.pending.insert(id, Pending { uri, kind, place, cancel, progress });
        // a worker that is gone has said why before
        let _ = self.worker.send(job);
        Ok(())
    }

    /// The unanswered requests about a document.
    fn pending_of(&self, uri: &str, which: impl Fn(&Pending) -> bool) -> Vec<RequestId> {
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
    fn give_up(&mut self, id: &RequestId, code: ErrorCode, reason: &str) -> Result<(), Error> {
        let Some(pending) = self.pending.remove(id) else { return Ok(()) };
        pending.cancel.store(true, Ordering::Relaxed);
        if let Some(token) = &pending.progress {
            self.progress(token, json!({ "kind": "end" }))?;
        }
        self.refuse(id.clone(), code, reason)
    }

    fn cancel_all(&mut self) {
        for pending in self.pending.values() {
            pending.cancel.store(true, Ordering::Relaxed);
        }
    }

    fn hear(&mut self, news: News) -> Result<(), Error> {
        match news {
            News::Loading { done, total } => self.tell_loading(done, total),
            News::Loaded => self.end_loading("ready"),
            News::Broken(reason) => {
                self.end_loading("failed")?;
                let message = format!("gemma: {reason}");
                self.notify("window/showMessage", json!({ "type": 1, "message": message }))?;
                let waiting: Vec<RequestId> = self.pending.keys().cloned().collect();
                for id in waiting {
                    self.give_up(&id, ErrorCode::RequestFailed, &reason)?;
                }
                self.broken = Some(reason);
                Ok(())
            }
            News::Progress { id, characters } => {
                let token = self.pending.get(&id).and_then(|pending| pending.progress.clone());
                let Some(token) = token else { return Ok(()) };
                self.progress(&token, json!({ "kind": "report", "message": format!("{characters} characters") }))
            }
            News::Done { id, result } => {
                // whoever asked may have been answered meanwhile
                let Some(pending) = self.pending.remove(&id) else { return Ok(()) };
                if let Some(token) = &pending.progress {
                    self.progress(token, json!({ "kind": "end" }))?;
                }
                match result {
                    Ok(text) => self.answer(id, pending.place.answer(pending.kind, &text)),
                    Err(reason) => self.refuse(id, ErrorCode::RequestFailed, &reason),
                }
            }
        }
    }

    /// Shows the loading of the model, in steps of a tenth.
    fn tell_loading(&mut self, done: u64, total: u64) -> Result<(), Error> {
        if !self.shows_progress || self.stage != Stage::Running {
            return Ok(());
        }
        let percent = (100 * done).checked_div(total).unwrap_or(0).min(100);
        let token = lsp::NumberOrString::String(LOADING.to_owned());
        match self.loading {
            Loading::Over => Ok(()),
            Loading::Announced(told) if percent < told + 10 => Ok(()),
            Loading::Announced(_) => {
                self.loading = Loading::Announced(percent);
                self.progress(&token, json!({ "kind": "report", "percentage": percent }))
            }
            Loading::Unannounced => {
                self.loading = Loading::Announced(percent);
                let ask = Request::new(
                    RequestId::from(LOADING.to_owned()),
                    "window/workDoneProgress/create".to_owned(),
                    json!({ "token": LOADING }),
                );
                self.send(Message::Request(ask))?;
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
        let token = lsp::NumberOrString::String(LOADING.to_owned());
        self.progress(&token, json!({ "kind": "end", "message": message }))
    }

    fn progress(&mut self, token: &lsp::ProgressToken, value: Value) -> Result<(), Error> {
        self.notify("$/progress", json!({ "token": token, "value": value }))
    }

    fn notify(&mut self, method: &str, params: Value) -> Result<(), Error> {
        self.send(Message::Notification(Notification::new(method.to_owned(), params)))
    }

    fn answer(&mut self, id: RequestId, result: Value) -> Result<(), Error> {
        self.send(Message::Response(Response::new_ok(id, result)))
    }

    fn refuse(&mut self, id: RequestId, code: ErrorCode, reason: &str) -> Result<(), Error> {
        self.send(Message::Response(Response::new_err(id, code as i32, reason.to_owned())))
    }

    fn send(&mut self, message: Message) -> Result<(), Error> {
        Ok(message.write(&mut self.writer)?)
    }

    /// Answers what is no message: there is no id to answer to.
    fn complain(&mut self, code: ErrorCode, reason: &str) -> Result<(), Error> {
        let error = json!({ "jsonrpc": "2.0", "id": null, "error": { "code": code as i32, "message": reason } });
        Ok(wire::write(&mut self.writer, &error)?)
    }
}
