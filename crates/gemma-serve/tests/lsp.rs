//! The language server as an editor meets it: over the wire, message by message.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gemma_serve::Error;
use gemma_serve::lsp::{Options, serve};
use serde_json::{Value, json};

const URI: &str = "file:///project/prices.py";

/// A client that speaks the protocol and keeps its own copy of the document.
struct Client {
    to_server: PipeWriter,
    from_server: BufReader<PipeReader>,
    server: Option<JoinHandle<Result<(), Error>>>,
    next_id: i64,
    version: i32,
    text: String,
    /// Answers that came while another was waited for.
    early: HashMap<i64, Value>,
    notes: Vec<Value>,
}

impl Client {
    fn start(options: Options) -> Self {
        Self::start_with(options, || {
            let device = gemma_backend::default_device().map_err(|error| error.to_string())?;
            codegemma::demo(&device).map_err(|error| error.to_string())
        })
    }

    fn start_with(
        options: Options,
        load: impl FnOnce() -> Result<codegemma::CodeGemma, String> + Send + 'static,
    ) -> Self {
        let (server_in, to_server) = std::io::pipe().expect("the connection and its messages are sound");
        let (from_server, server_out) = std::io::pipe().expect("the connection and its messages are sound");
        let server = std::thread::spawn(move || {
            let load = |on_load: gemma_serve::lsp::OnLoad<'_>| {
                on_load(50, 100);
                load()
            };
            serve(BufReader::new(server_in), server_out, load, &options)
        });
        Self {
            to_server,
            from_server: BufReader::new(from_server),
            server: Some(server),
            next_id: 1,
            version: 1,
            text: String::new(),
            early: HashMap::new(),
            notes: Vec::new(),
        }
    }

    fn send_raw(&mut self, body: &str) {
        write!(self.to_server, "Content-Length: {}\r\n\r\n{body}", body.len())
            .expect("the connection and its messages are sound");
        self.to_server.flush().expect("the connection and its messages are sound");
    }

    fn notify(&mut self, method: &str, params: Value) {
        self.send_raw(&json!({ "jsonrpc": "2.0", "method": method, "params": params }).to_string());
    }

    fn request(&mut self, method: &str, params: Value) -> i64 {
        let id = self.next_id;
        self.next_id += 1;
        self.send_raw(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }).to_string());
        id
    }

    fn read(&mut self) -> Value {
        let mut length = 0;
        loop {
            let mut line = String::new();
            assert!(
                self.from_server.read_line(&mut line).expect("the connection and its messages are sound") > 0,
                "the server hung up"
            );
            let line = line.trim();
            if line.is_empty() {
                break;
            }
            length = line
                .strip_prefix("Content-Length: ")
                .expect("the connection and its messages are sound")
                .parse()
                .expect("the connection and its messages are sound");
        }
        let mut body = vec![0; length];
        self.from_server.read_exact(&mut body).expect("the connection and its messages are sound");
        serde_json::from_slice(&body).expect("the connection and its messages are sound")
    }

    /// The answer to a request; what else comes is kept.
    fn answer(&mut self, id: i64) -> Value {
        loop {
            if let Some(answer) = self.early.remove(&id) {
                return answer;
            }
            let message = self.read();
            if message.get("method").is_some() {
                self.notes.push(message);
            } else if let Some(id) = message["id"].as_i64() {
                assert!(self.early.insert(id, message).is_none(), "{id} was answered twice");
            } else {
                self.notes.push(message);
            }
        }
    }

    fn initialize(&mut self, capabilities: Value) -> Value {
        let id =
            self.request("initialize", json!({ "processId": null, "rootUri": null, "capabilities": capabilities }));
        let answer = self.answer(id);
        self.notify("initialized", json!({}));
        answer["result"].clone()
    }

    fn open(&mut self, text: &str) {
        self.text = text.to_owned();
        self.notify(
            "textDocument/didOpen",
            json!({ "textDocument": { "uri": URI, "languageId": "python", "version": 1, "text": text } }),
        );
    }

    /// Line and UTF-16 column of a byte.
    fn position(&self, at: usize) -> Value {
        let before = &self.text[..at];
        let line = before.rsplit('\n').next().expect("the connection and its messages are sound");
        json!({ "line": before.matches('\n').count(), "character": line.encode_utf16().count() })
    }

    /// Replaces bytes of the document.
    fn edit(&mut self, from: usize, to: usize, text: &str) {
        self.version += 1;
        let range = json!({ "start": self.position(from), "end": self.position(to) });
        self.text.replace_range(from..to, text);
        self.notify(
            "textDocument/didChange",
            json!({
                "textDocument": { "uri": URI, "version": self.version },
                "contentChanges": [{ "range": range, "text": text }],
            }),
        );
    }

    fn ask(&mut self, at: usize, automatic: bool) -> i64 {
        let position = self.position(at);
        self.request(
            "textDocument/inlineCompletion",
            json!({
                "textDocument": { "uri": URI }, "position": position,
                "context": { "triggerKind": if automatic { 2 } else { 1 } },
            }),
        )
    }

    fn inline(&mut self, at: usize) -> String {
        let id = self.ask(at, false);
        let answer = self.answer(id);
        assert!(answer.get("error").is_none(), "{answer}");
        answer["result"]["items"][0]["insertText"].as_str().unwrap_or_default().to_owned()
    }

    fn stop(mut self) {
        let id = self.request("shutdown", Value::Null);
        assert_eq!(self.answer(id)["result"], Value::Null);
        self.notify("exit", Value::Null);
        self.server
            .take()
            .expect("the connection and its messages are sound")
            .join()
            .expect("the connection and its messages are sound")
            .expect("the connection and its messages are sound");
    }
}

fn patient() -> Options {
    let mut options = Options { debounce: Duration::ZERO, ..Options::default() };
    options.infill.time_limit = None;
    options
}

const BEGUN: &str =
    "def sum_prices(prices):\n    \"\"\"Return the sum of the prices.\"\"\"\n    total = 0\n    for price in prices:\n";

#[test]
fn an_editor_asks_and_gets_a_line_and_a_menu_item() {
    let mut client = Client::start(patient());
    let offered = client.initialize(json!({}));
    assert_eq!(offered["capabilities"]["positionEncoding"], "utf-16");
    assert_eq!(offered["capabilities"]["textDocumentSync"]["change"], 2);
    assert!(offered["capabilities"]["inlineCompletionProvider"].is_object());
    client.open(&format!("{BEGUN}        \n    return total\n"));
    let cursor = BEGUN.len() + 8;
    assert_eq!(client.inline(cursor), "total += price");
    // in the middle of a word, the menu's item replaces the word
    client.edit(cursor, cursor, "tot");
    let position = client.position(cursor + 3);
    let id = client.request("textDocument/completion", json!({ "textDocument": { "uri": URI }, "position": position }));
    let answer = client.answer(id);
    let item = &answer["result"]["items"][0];
    assert_eq!(answer["result"]["isIncomplete"], true);
    let new_text = item["textEdit"]["newText"].as_str().unwrap();
    assert!(new_text.starts_with("tot") && new_text.len() > 3, "{item}");
    assert_eq!(item["textEdit"]["range"]["start"]["character"], 8);
    assert_eq!(item["filterText"], new_text);
    client.stop();
}

#[test]
fn two_hundred_keystrokes_with_corrections_undo_and_a_cancelled_request() {
    let mut client = Client::start(patient());
    client.initialize(json!({}));
    client.open("");
    // what a server that never saw an edit would say about each state
    let model = codegemma::demo(&gemma_backend::default_device().unwrap()).unwrap();
    let mut options = patient().infill;
    options.lookup = false;
    let program = "# caf\u{e9} \u{1f980}\r\ndef largest_score(scores):\n    \"\"\"Return the largest of the scores.\"\"\"\n    best = scores[0]\n    for score in scores:\n        if score > best:\n            best = score\n    return best\n";
    // a line break is one keystroke, also where it is two characters
    let typed: Vec<String> = program.replace('\r', "").chars().map(|c| c.to_string()).collect();
    let windows = |key: &str| if key == "\n" { "\r\n".to_owned() } else { key.to_owned() };
    let program = program.replace('\r', "").replace('\n', "\r\n");
    let (mut keystrokes, mut place, mut asked, mut compared) = (0, 0, 0, 0);
    let mut outdated = Vec::new();
    while place < typed.len() || keystrokes < 200 {
        match keystrokes % 40 {
            // a correction in the middle, and its undo
            20 if client.text.len() > 30 => {
                let middle = client.text.floor_char_boundary(client.text.len() / 2);
                client.edit(middle, middle, "x\u{1f980}y\n");
                client.edit(middle, middle + "x\u{1f980}y\n".len(), "");
            }
            // delete a character, and type it again
            30 if !client.text.is_empty() && !client.text.ends_with('\n') => {
                let last = client.text.chars().next_back().unwrap();
                let end = client.text.len();
                client.edit(end - last.len_utf8(), end, "");
                let end = client.text.len();
                client.edit(end, end, &last.to_string());
            }
            _ => {
                let end = client.text.len();
                let next = typed.get(place).map_or(" ".to_owned(), |key| windows(key));
                place += 1;
                client.edit(end, end, &next);
            }
        }
        keystrokes += 1;
        let end = client.text.len();
        asked += 1;
        let id = client.ask(end, true);
        if keystrokes % 10 != 0 {
            // the next keystroke comes before the answer
            outdated.push(id);
            continue;
        }
        let answer = client.answer(id);
        let range = client.position(end);
        let document = codegemma::Infill {
            prefix: client.text.clone(),
            path: Some("project/prices.py".into()),
            ..Default::default()
        };
        let expected = model.infill(&document, &options).unwrap().text;
        // the document's line breaks, not the model's
        let expected = if client.text.contains("\r\n") { expected.replace('\n', "\r\n") } else { expected };
        let item = &answer["result"]["items"][0];
        assert_eq!(item["insertText"].as_str().unwrap_or_default(), expected, "after {:?}", client.text);
        if !expected.is_empty() {
            assert_eq!(item["range"], json!({ "start": range, "end": range }));
        }
        compared += 1;
    }
    assert!(asked >= 200 && compared >= 20);
    assert!(client.text.starts_with(&program));
    // every request was answered once: with a result, or because the document had changed
    let mut modified = 0;
    for id in outdated {
        let answer = client.answer(id);
        match answer["error"]["code"].as_i64() {
            Some(code) => {
                assert_eq!(code, -32801, "{answer}");
                modified += 1;
            }
            None => assert!(answer["result"]["items"].is_array(), "{answer}"),
        }
    }
    assert!(modified > 0, "no request was outdated");
    let end = client.text.len();
    let id = client.ask(end, false);
    client.notify("$/cancelRequest", json!({ "id": id }));
    let answer = client.answer(id);
    assert!(answer["error"]["code"] == -32800 || answer["result"]["items"].is_array(), "{answer}");
    client.stop();
}

/// A cancelled request would take many seconds; the next one does not wait for it.
#[test]
fn no_request_waits_for_a_cancelled_one() {
    let mut options = patient();
    options.infill.generate.max_tokens = 400;
    options.infill.generate.ignore_eos = true;
    options.infill.stop_rule = codegemma::InfillStop::Free;
    let mut client = Client::start(options);
    client.initialize(json!({}));
    client.open(&format!("{BEGUN}        "));
    // the model is loaded and warm
    client.inline(client.text.len());
    let begin = Instant::now();
    let end = client.text.len();
    client.inline(end);
    let whole = begin.elapsed();
    let begin = Instant::now();
    for _ in 0..20 {
        let id = client.ask(end, false);
        client.notify("$/cancelRequest", json!({ "id": id }));
        let answer = client.answer(id);
        assert_eq!(answer["error"]["code"], -32800, "{answer}");
    }
    let cancelled = begin.elapsed();
    assert!(cancelled < whole.mul_f64(5.0), "20 cancelled requests took {cancelled:?}, one whole one {whole:?}");
    // and the same question again replaces the one before
    let first = client.ask(end, false);
    let second = client.ask(end, false);
    assert_eq!(client.answer(first)["error"]["code"], -32801);
    assert!(client.answer(second)["result"]["items"].is_array());
    client.stop();
}

#[test]
fn a_request_waits_for_the_next_keystroke() {
    let mut options = patient();
    options.debounce = Duration::from_millis(300);
    let mut client = Client::start(options);
    client.initialize(json!({}));
    client.open(BEGUN);
    client.inline(BEGUN.len());
    let begin = Instant::now();
    let id = client.ask(BEGUN.len(), true);
    client.answer(id);
    assert!(begin.elapsed() >= Duration::from_millis(300), "an automatic request waits");
    let begin = Instant::now();
    let id = client.ask(BEGUN.len(), true);
    client.edit(BEGUN.len(), BEGUN.len(), " ");
    assert_eq!(client.answer(id)["error"]["code"], -32801);
    assert!(begin.elapsed() < Duration::from_millis(250), "what is outdated is answered at once");
    client.stop();
}

#[test]
fn malformed_messages_get_an_error_and_the_server_lives() {
    let mut client = Client::start(patient());
    // before `initialize`
    let id = client.request("textDocument/completion", json!({}));
    assert_eq!(client.answer(id)["error"]["code"], -32002);
    client.initialize(json!({}));
    client.open(BEGUN);
    for (body, id, code) in [
        ("{\"jsonrpc\":", Value::Null, -32700),
        ("\u{1f980}", Value::Null, -32700),
        ("[]", Value::Null, -32600),
        ("{\"id\":7}", json!(7), -32600),
    ] {
        client.send_raw(body);
        let message = client.read();
        assert_eq!((&message["id"], message["error"]["code"].as_i64()), (&id, Some(code)), "{body}");
    }
    client.to_server.write_all(b"Content-Length: zero\r\n\r\n").unwrap();
    assert_eq!(client.read()["error"]["code"], -32700);
    for (method, params, code) in [
        ("textDocument/hover", json!({}), -32601),
        ("textDocument/completion", json!({ "textDocument": 5 }), -32602),
        ("textDocument/inlineCompletion", Value::Null, -32602),
        ("initialize", json!({ "capabilities": {} }), -32600),
    ] {
        let id = client.request(method, params);
        assert_eq!(client.answer(id)["error"]["code"].as_i64(), Some(code), "{method}");
    }
    // notifications that make no sense are left alone
    client.notify("textDocument/didChange", json!({ "nothing": true }));
    client.notify("textDocument/didClose", json!({ "textDocument": { "uri": "file:///other" } }));
    client.notify("$/cancelRequest", json!({ "id": 9999 }));
    let nowhere = json!({ "textDocument": { "uri": "file:///other" }, "position": { "line": 0, "character": 0 } });
    let id = client.request("textDocument/completion", nowhere);
    assert_eq!(client.answer(id)["error"]["code"], -32602, "a document that is not open");
    let far = json!({
        "textDocument": { "uri": URI }, "position": { "line": 4_000_000, "character": 4_000_000 },
        "context": { "triggerKind": 1 },
    });
    let id = client.request("textDocument/inlineCompletion", far);
    assert!(client.answer(id)["result"]["items"].is_array());
    client.stop();
}

#[test]
fn columns_are_bytes_when_the_client_offers_that() {
    let mut client = Client::start(patient());
    let offered = client.initialize(json!({ "general": { "positionEncodings": ["utf-8", "utf-16"] } }));
    assert_eq!(offered["capabilities"]["positionEncoding"], "utf-8");
    let text = format!("# \u{1f980}\u{e9}\n{BEGUN}        \n    return total\n");
    client.open(&text);
    let change = json!({
        "textDocument": { "uri": URI, "version": 2 },
        // the crab, four bytes
        "contentChanges": [{ "range": { "start": { "line": 0, "character": 2 }, "end": { "line": 0, "character": 6 } }, "text": "" }],
    });
    client.notify("textDocument/didChange", change);
    client.text = text.replace('\u{1f980}', "");
    let cursor = client.text.len() - "\n    return total\n".len();
    assert_eq!(client.inline(cursor), "total += price");
    client.stop();
}

#[test]
fn an_item_selected_in_the_menu_is_extended() {
    let mut client = Client::start(patient());
    client.initialize(json!({}));
    client.open(&format!("{BEGUN}        to\n    return total\n"));
    let line = BEGUN.matches('\n').count();
    let range = json!({ "start": { "line": line, "character": 8 }, "end": { "line": line, "character": 10 } });
    let params = json!({
        "textDocument": { "uri": URI }, "position": { "line": line, "character": 10 },
        "context": { "triggerKind": 2, "selectedCompletionInfo": { "range": range, "text": "total" } },
    });
    let id = client.request("textDocument/inlineCompletion", params);
    let item = client.answer(id)["result"]["items"][0].clone();
    assert!(item["insertText"].as_str().unwrap().starts_with("total +="), "{item}");
    assert_eq!(item["range"], range);
    client.stop();
}

#[test]
fn progress_is_told_where_it_was_asked_for() {
    let mut client = Client::start(patient());
    client.initialize(json!({ "window": { "workDoneProgress": true } }));
    client.open(BEGUN);
    let position = client.position(BEGUN.len());
    let params = json!({
        "textDocument": { "uri": URI }, "position": position, "workDoneToken": "mine",
        "context": { "triggerKind": 1 },
    });
    let id = client.request("textDocument/inlineCompletion", params);
    client.answer(id);
    let told = |kind: &str| {
        let is = |note: &&Value| note["params"]["token"] == "mine" && note["params"]["value"]["kind"] == kind;
        client.notes.iter().filter(is).count()
    };
    assert_eq!((told("begin"), told("end")), (1, 1));
    assert!(told("report") >= 1);
    client.stop();
}

#[test]
fn a_model_that_cannot_be_opened_is_an_error_and_no_end() {
    let mut client = Client::start_with(patient(), || Err("there is no such folder".to_owned()));
    client.initialize(json!({}));
    client.open(BEGUN);
    for _ in 0..2 {
        let id = client.ask(BEGUN.len(), false);
        let answer = client.answer(id);
        assert_eq!(answer["error"]["code"], -32803, "{answer}");
        assert_eq!(answer["error"]["message"], "there is no such folder");
    }
    assert!(client.notes.iter().any(|note| note["method"] == "window/showMessage"));
    client.stop();
}

#[test]
fn other_open_documents_go_into_the_prompt() {
    let mut client = Client::start(patient());
    client.initialize(json!({}));
    for (name, language) in [("a.py", "python"), ("b.js", "javascript")] {
        let document = json!({ "uri": format!("file:///project/{name}"), "languageId": language, "version": 1, "text": "x = 1\n" });
        client.notify("textDocument/didOpen", json!({ "textDocument": document }));
    }
    client.open(BEGUN);
    client.inline(BEGUN.len());
    client.notify("textDocument/didClose", json!({ "textDocument": { "uri": "file:///project/a.py" } }));
    client.inline(BEGUN.len());
    client.stop();
}

#[test]
fn a_client_that_just_leaves_is_told_from_one_that_says_goodbye() {
    let mut client = Client::start(patient());
    client.initialize(json!({}));
    let Client { to_server, mut server, .. } = client;
    drop(to_server);
    assert!(matches!(server.take().unwrap().join().unwrap(), Err(Error::Abandoned)));
}
