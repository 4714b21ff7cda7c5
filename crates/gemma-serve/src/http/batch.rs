//! Files of requests in OpenAI's Batch format, answered without a network by the handlers of the server.
//!
//! Each line of the input is `{"custom_id", "method", "url", "body"}`; each line of the output has the same `custom_id`
//! and the reply. A run that was interrupted goes on where it stopped: lines whose `custom_id` the output has are
//! skipped, and a last line that was not finished is written again. So each request has exactly one line in the end.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request};
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::app::new_id;
use super::{App, router};

/// Longest line of the input, in bytes.
const LONGEST_LINE: u64 = 64 << 20;
/// The paths that a line may name.
const PATHS: [&str; 6] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/moderations",
    "/v1/responses",
    "/v1/fim/completions",
];

/// Why a batch could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// A file could not be opened, read or written.
    #[error("cannot {action} {}: {cause}", file.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// A line of the input is no request.
    #[error("{}, line {line}: {problem}", file.display())]
    Line {
        /// The input.
        file: PathBuf,
        /// The number of the line, from 1 on.
        line: usize,
        /// What is wrong and what to do.
        problem: String,
    },
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchSummary {
    /// Requests of the input.
    pub requests: usize,
    /// Requests that the output had already.
    pub skipped: usize,
    /// Requests answered in this run.
    pub answered: usize,
    /// Of these, how many with an error.
    pub failed: usize,
}

/// One line of the input.
#[derive(Debug, Deserialize)]
struct Line {
    custom_id: String,
    #[serde(default)]
    method: Option<String>,
    url: String,
    body: Value,
}

/// Answers the requests of `input` and appends the replies to `output`, `concurrency` at a time. `on_answer` hears of
/// each answer; when it returns `false`, no more requests are begun. While it runs, the output is locked.
///
/// # Errors
/// When a file cannot be read or written, another run writes to the output, a line is no request, or two have the same
/// `custom_id`.
pub async fn run(
    app: App,
    input: &Path,
    output: &Path,
    concurrency: usize,
    on_answer: impl FnMut(&BatchSummary) -> bool,
) -> Result<BatchSummary, BatchError> {
    let requests = check(input)?;
    let (mut results, done) = open_output(output)?;
    let done: HashSet<String> = done.into_iter().filter(|id| requests.contains(id)).collect();
    let summary = BatchSummary { requests: requests.len(), skipped: done.len(), ..BatchSummary::default() };
    let failed = |cause| BatchError::File { action: "write", file: output.to_owned(), cause };
    let write = |text: &[u8]| results.write_all(text).map_err(failed);
    let summary = answer_all(app, input, &done, concurrency, summary, write, on_answer).await?;
    results.sync_all().map_err(failed)?;
    Ok(summary)
}

/// [`run`] with the replies written elsewhere, such as to a pipe: nothing was answered before.
///
/// # Errors
/// As [`run`].
pub async fn run_to(
    app: App,
    input: &Path,
    mut output: impl Write,
    concurrency: usize,
    on_answer: impl FnMut(&BatchSummary) -> bool,
) -> Result<BatchSummary, BatchError> {
    let requests = check(input)?;
    let summary = BatchSummary { requests: requests.len(), ..BatchSummary::default() };
    let failed = |cause| BatchError::File { action: "write", file: PathBuf::from("the output"), cause };
    let write = |text: &[u8]| output.write_all(text).and_then(|()| output.flush()).map_err(failed);
    answer_all(app, input, &HashSet::new(), concurrency, summary, write, on_answer).await
}

/// Answers what is not done yet.
async fn answer_all(
    app: App,
    input: &Path,
    done: &HashSet<String>,
    concurrency: usize,
    mut summary: BatchSummary,
    mut write: impl FnMut(&[u8]) -> Result<(), BatchError>,
    mut on_answer: impl FnMut(&BatchSummary) -> bool,
) -> Result<BatchSummary, BatchError> {
    let router = router(app);
    // the file was checked; a line that has changed since is an error, not a panic
    let waiting = Lines::open(input)?.filter(|line| !matches!(line, Ok(line) if done.contains(&line.custom_id)));
    let answers = stream::iter(waiting).map(|line| {
        let router = router.clone();
        async move { Ok::<_, BatchError>(answer(&router, line?).await) }
    });
    let mut answers = answers.buffer_unordered(concurrency.max(1));
    while let Some(result) = answers.next().await {
        let result = result?;
        summary.answered += 1;
        summary.failed += usize::from(!result["error"].is_null());
        write(format!("{result}\n").as_bytes())?;
        if !on_answer(&summary) {
            break;
        }
    }
    Ok(summary)
}

/// Reads the whole input once; returns the ids of the requests.
fn check(input: &Path) -> Result<HashSet<String>, BatchError> {
    let mut seen = HashSet::new();
    let mut lines = Lines::open(input)?;
    while let Some(line) = lines.next() {
        let line = line?;
        let problem = if !PATHS.contains(&line.url.as_str()) {
            format!("the url {:?} is unknown; use one of {}", shown(&line.url), PATHS.join(", "))
        } else if line.method.as_deref().is_some_and(|method| method != "POST") {
            "the method must be POST".to_owned()
        } else if line.body.get("stream").is_some_and(|stream| stream == true) {
            "a batch has no streams; leave stream out".to_owned()
        } else if !seen.insert(line.custom_id.clone()) {
            format!("the custom_id {:?} was used before; give each request its own", shown(&line.custom_id))
        } else {
            continue;
        };
        return Err(BatchError::Line { file: input.to_owned(), line: lines.number, problem });
    }
    Ok(seen)
}

/// A text of the file, as a message shows it.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Opens the output at its end, and the ids that it has. A last line without its line break is cut off.
fn open_output(output: &Path) -> Result<(File, HashSet<String>), BatchError> {
    let failed = |cause| BatchError::File { action: "open", file: output.to_owned(), cause };
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(output).map_err(failed)?;
    file.try_lock()
        .map_err(|_| failed(io::Error::other("another run writes to it; wait for it or name another file")))?;
    let mut done = HashSet::new();
    let mut whole = 0_u64;
    let mut reader = BufReader::new(&file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let count = reader.read_until(b'\n', &mut line).map_err(failed)?;
        if count == 0 || !line.ends_with(b"\n") {
            break;
        }
        whole += count as u64;
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        // a request has an id, too, and no answer
        let id = serde_json::from_slice::<Value>(&line)
            .ok()
            .filter(|value| value.get("response").is_some())
            .and_then(|value| value["custom_id"].as_str().map(str::to_owned));
        let Some(id) = id else {
            let cause = io::Error::other("it holds lines that are no results of a batch; name another file");
            return Err(failed(cause));
        };
        done.insert(id);
    }
    file.set_len(whole).map_err(failed)?;
    file.seek(SeekFrom::End(0)).map_err(failed)?;
    Ok((file, done))
}

/// The requests of a file, one per line.
struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    number: usize,
}

impl Lines {
    fn open(path: &Path) -> Result<Self, BatchError> {
        let file =
            File::open(path).map_err(|cause| BatchError::File { action: "open", file: path.to_owned(), cause })?;
        Ok(Self { path: path.to_owned(), reader: BufReader::new(file), number: 0 })
    }
}

impl Iterator for Lines {
    type Item = Result<Line, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut text = Vec::new();
            let read = (&mut self.reader).take(LONGEST_LINE + 1).read_until(b'\n', &mut text);
            self.number += 1;
            match read {
                Ok(0) => return None,
                Ok(_) => {}
                Err(cause) => return Some(Err(BatchError::File { action: "read", file: self.path.clone(), cause })),
            }
            if text.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let problem = if text.len() as u64 > LONGEST_LINE {
                format!("the line is longer than {LONGEST_LINE} bytes")
            } else {
                // a byte order mark, which some editors put in front of a file, is no text
                match serde_json::from_slice(text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&text)) {
                    Ok(line) => return Some(Ok(line)),
                    Err(error) => format!("it is no request of a batch: {error}"),
                }
            };
            return Some(Err(BatchError::Line { file: self.path.clone(), line: self.number, problem }));
        }
    }
}

/// The line of the output for a line of the input.
async fn answer(router: &Router, line: Line) -> Value {
    let custom_id = line.custom_id;
    let request = Request::builder().method(Method::POST).uri(&line.url).body(Body::from(line.body.to_string()));
    let Ok(request) = request else { return failure(&custom_id, "the url cannot be requested") };
    let Ok(response) = router.clone().oneshot(request).await;
    let status = response.status();
    let id = response.headers().get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    let body = match response.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return failure(&custom_id, &error.to_string()),
    };
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let error =
        (!status.is_success()).then(|| json!({"code": body["error"]["code"], "message": body["error"]["message"]}));
    json!({
        "id": new_id("batch_req_"), "custom_id": custom_id,
        "response": {"status_code": status.as_u16(), "request_id": id, "body": body}, "error": error,
    })
}

fn failure(custom_id: &str, message: &str) -> Value {
    json!({"id": new_id("batch_req_"), "custom_id": custom_id, "response": null, "error": {"code": null, "message": message}})
}
