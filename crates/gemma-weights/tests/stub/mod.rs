//! A tiny hub: an HTTP server on this machine that serves one repository, badly where a test wants it to.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

/// An answer to send.
#[derive(Clone, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub(crate) cut: Option<usize>,
    /// Do not even close it, but say nothing more.
    pub(crate) stall: bool,
}

impl Answer {
    pub(crate) fn new(status: u16, headers: &[(&'static str, &str)]) -> Self {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Self { status, headers, ..Self::default() }
    }

    pub(crate) fn with_body(self, body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..self }
    }
}

/// A server and what it was asked.
pub(crate) struct Server {
    pub(crate) address: String,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Serves until the test program ends.
    pub(crate) fn start(mut answer: impl FnMut(&Request) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port on loopback");
        let address = format!("http://{}", listener.local_addr().expect("a bound listener has an address"));
        let log = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&log);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Some(request) = read_request(&stream) {
                    seen.lock().expect("no thread panicked while logging").push(request.clone());
                    let reply = answer(&request);
                    // whoever hung up does not want to know
                    let _ = send(stream, &request, &reply);
                }
            }
        });
        Self { address, log }
    }

    /// Everything asked so far, as "METHOD path".
    pub(crate) fn asked(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| format!("{} {}", request.method, request.path)).collect()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.log.lock().expect("no thread panicked while logging").clone()
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line.ok()?;
        match line.split_once(':') {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.trim().to_owned()),
            None => break,
        };
    }
    Some(Request { method, path, headers })
}

fn send(mut stream: TcpStream, request: &Request, answer: &Answer) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", answer.status);
    if !answer.headers.iter().any(|(name, _)| *name == "Content-Length") {
        head += &format!("Content-Length: {}\r\n", answer.body.len());
    }
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(head.as_bytes())?;
    stream.write_all(b"\r\n")?;
    if request.method != "HEAD" {
        let end = answer.cut.unwrap_or(answer.body.len()).min(answer.body.len());
        stream.write_all(&answer.body[..end])?;
    }
    stream.flush()?;
    if !answer.stall {
        stream.shutdown(std::net::Shutdown::Write)?;
    }
    // wait until the other side has read it, or it might be told of a reset instead
    stream.read_to_end(&mut Vec::new()).map(drop)
}

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The repository `org/name` at one commit.
#[derive(Clone)]
pub(crate) struct Repository {
    pub(crate) files: BTreeMap<&'static str, Vec<u8>>,
}

impl Repository {
    /// A model with an 80 kB weight file.
    pub(crate) fn small() -> Self {
        let files = [
            ("config.json", b"{}".to_vec()),
            ("tokenizer.json", b"{\"model\": 1}".to_vec()),
            ("README.md", b"read me".to_vec()),
            ("model.gguf", b"GGUF".to_vec()),
            ("original/model.bin", b"old".to_vec()),
            ("model.safetensors", (0..80_000_u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect()),
        ];
        Self { files: files.into() }
    }

    pub(crate) fn weights(&self) -> &[u8] {
        &self.files["model.safetensors"]
    }

    /// What the hub's API says of `revision`.
    pub(crate) fn listing(&self) -> Answer {
        let siblings: Vec<_> = self.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "id": "org/name", "sha": COMMIT, "siblings": siblings });
        Answer::new(200, &[("Content-Type", "application/json")]).with_body(body.to_string())
    }

    /// A well-behaved answer.
    pub(crate) fn answer(&self, request: &Request) -> Answer {
        if request.path.starts_with("/api/models/org/name/revision/") {
            return self.listing();
        }
        let name = request.path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/"));
        match name.and_then(|name| self.files.get(name).map(|content| (name, content))) {
            Some((name, content)) => file(name, content, request),
            None => Answer::new(404, &[("X-Error-Code", "EntryNotFound")]),
        }
    }
}

/// A file with its hash, or the rest of it where only that is asked for.
pub(crate) fn file(name: &str, content: &[u8], request: &Request) -> Answer {
    let etag =
        if name.ends_with(".safetensors") || name.ends_with(".gguf") { sha256(content) } else { git_hash(content) };
    let size = content.len();
    let headers = [("ETag", format!("\"{etag}\"")), ("Accept-Ranges", "bytes".to_owned())];
    let from =
        request.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match from {
        Some(from) if from >= size => Answer::new(416, &[]),
        Some(from) => {
            let range = ("Content-Range", format!("bytes {from}-{}/{size}", size - 1));
            Answer {
                status: 206,
                headers: [headers.to_vec(), vec![range]].concat(),
                body: content[from..].to_vec(),
                ..Answer::default()
            }
        }
        None => Answer { status: 200, headers: headers.to_vec(), body: content.to_vec(), ..Answer::default() },
    }
}

/// The name that git gives to a file's content.
pub(crate) fn git_hash(content: &[u8]) -> String {
    format!("{:x}", Sha1::new_with_prefix(format!("blob {}\0", content.len())).chain_update(content).finalize())
}

pub(crate) fn sha256(content: &[u8]) -> String {
    format!("{:x}", Sha256::digest(content))
}
