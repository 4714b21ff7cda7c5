//! `gemma serve` as the tests start it, on a free port, and what clients send.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::gemma;

/// A running server; ended when it is dropped.
pub(crate) struct Server {
    child: Child,
    /// `127.0.0.1:PORT`.
    pub(crate) address: String,
    agent: ureq::Agent,
}

impl Server {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut command = gemma(["serve", "--port", "0"].into_iter().chain(arguments.iter().copied()));
        command.stdout(Stdio::piped()).stderr(Stdio::null()).env("RUST_LOG", "off");
        let mut child = command.spawn().expect("the program starts");
        let mut line = String::new();
        let out = child.stdout.take().expect("a pipe");
        BufReader::new(out).read_line(&mut line).expect("a line");
        let address = line.trim().strip_prefix("listening on http://").unwrap_or_else(|| panic!("{line:?}")).to_owned();
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(120)))
            .max_idle_connections_per_host(64)
            .build();
        Self { child, address, agent: config.into() }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Status and text of a reply.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let mut reply = self.agent.get(self.url(path)).call().expect("a reply");
        (reply.status().as_u16(), reply.body_mut().read_to_string().expect("UTF-8"))
    }

    pub(crate) fn get_json(&self, path: &str) -> Value {
        let (status, text) = self.get(path);
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
    }

    pub(crate) fn send(&self, path: &str, body: &Value) -> (u16, String) {
        let mut reply = self.agent.post(self.url(path)).send(body.to_string()).expect("a reply");
        let limit = 64 << 20;
        let text = reply.body_mut().with_config().limit(limit).read_to_string().expect("UTF-8");
        (reply.status().as_u16(), text)
    }

    /// The JSON of a good reply.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Value {
        let (status, text) = self.send(path, body);
        assert_eq!(status, 200, "{path} {body}: {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
    }

    /// Status and error object of a refusal.
    pub(crate) fn refused(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) = self.send(path, body);
        assert!(status >= 400, "{path} {body} was answered: {text}");
        let reply: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"));
        (status, reply["error"].clone())
    }

    /// The events of a stream; the last one must be `[DONE]`.
    pub(crate) fn events(&self, path: &str, body: &Value) -> Vec<Value> {
        let (status, text) = self.send(path, body);
        assert_eq!(status, 200, "{path} {body}: {text}");
        events(&text)
    }

    /// A connection with these bytes sent.
    pub(crate) fn raw(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
        // a server that has refused already may have closed the connection
        let _ = stream.write_all(bytes);
        stream
    }

    /// The value of a metric.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics");
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("{name}: {text}"))
    }

    /// Waits until a condition holds, at most so long; returns the time that took.
    pub(crate) fn wait(&self, limit: Duration, mut condition: impl FnMut(&Self) -> bool) -> Duration {
        let begun = Instant::now();
        while !condition(self) {
            assert!(begun.elapsed() < limit, "it did not come about within {limit:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        begun.elapsed()
    }

    /// Asks the server to stop.
    pub(crate) fn terminate(&self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().expect("kill starts").success());
    }

    /// Waits for the end of the program.
    pub(crate) fn ended(&mut self, limit: Duration) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the child is ours") {
                return status;
            }
            assert!(begun.elapsed() < limit, "the server did not end within {limit:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends the server; its exit code must be 0.
    pub(crate) fn stop(mut self) {
        self.terminate();
        let status = self.ended(Duration::from_secs(40));
        assert_eq!(status.code(), Some(0));
    }

    /// Memory that the program holds, in KiB.
    #[cfg(target_os = "linux")]
    pub(crate) fn memory(&self) -> usize {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the child lives");
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The events of a body; the last one must be `[DONE]`.
pub(crate) fn events(body: &str) -> Vec<Value> {
    let mut data: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.pop(), Some("[DONE]"), "{body}");
    data.into_iter().map(|data| serde_json::from_str(data).expect("JSON")).collect()
}

/// A request as bytes.
pub(crate) fn request(path: &str, body: &str) -> Vec<u8> {
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body.as_bytes()].concat()
}

/// Everything that comes until the connection is closed.
pub(crate) fn read_all(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The status of a raw reply; 0 when the connection was closed without one.
pub(crate) fn status_of(reply: &str) -> u16 {
    reply.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}
