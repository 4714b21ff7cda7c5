//! JSON-RPC over a stream of bytes: a header with a length, and a body.
//!
//! A server that an editor relies on says what was wrong with a message and reads on. Ids are whatever the client
//! numbers its requests with, and are given back as they came.

use crossbeam_channel::Sender;
use serde_json::Value;
use std::io::{self, BufRead, Read, Write};

/// Longest body that is read, in bytes.
const LONGEST_BODY: u64 = 64 << 20;
/// Longest body that is skipped, in bytes: a file that is too large to be completed. More is no message of an editor, and
/// the connection ends.
const LONGEST_SKIP: u64 = 4 << 30;
/// Longest header line accepted, in bytes.
const LONGEST_LINE: u64 = 4096;

/// Error codes of JSON-RPC and of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorCode {
    Parse = -32700,
    InvalidRequest = -32600,
    MethodNotFound = -32601,
    InvalidParams = -32602,
    NotInitialized = -32002,
    RequestFailed = -32803,
    ContentModified = -32801,
    RequestCancelled = -32800,
}

/// What came.
#[derive(Debug)]
pub(super) enum Incoming {
    Request {
        id: Value,
        method: String,
        params: Value,
    },
    Notification {
        method: String,
        params: Value,
    },
    /// To what the server asked.
    Response,
    /// Something that is no message: what to answer, and to which id (null when it has none).
    Malformed {
        id: Value,
        code: ErrorCode,
        reason: String,
    },
}

/// Reads until the end of the stream or until nobody listens.
pub(super) fn read_all(reader: impl BufRead, listener: &Sender<Incoming>) {
    let mut reader = Reader { reader, skip: 0 };
    // a stream that fails has ended
    while let Ok(Some(incoming)) = reader.next() {
        if listener.send(incoming).is_err() {
            return;
        }
    }
}

struct Reader<R> {
    reader: R,
    /// Bytes of a body that is too long, to be left out.
    skip: u64,
}

impl<R: BufRead> Reader<R> {
    /// The next message; `None` at the end of the stream.
    fn next(&mut self) -> io::Result<Option<Incoming>> {
        let skip = std::mem::take(&mut self.skip);
        if skip > LONGEST_SKIP || io::copy(&mut self.reader.by_ref().take(skip), &mut io::sink())? < skip {
            return Ok(None);
        }
        let mut length = None;
        let mut is_first = true;
        loop {
            let Some(line) = self.header_line()? else { return Ok(None) };
            let line = line.trim();
            if line.is_empty() {
                // blank lines between messages mean nothing
                if is_first {
                    continue;
                }
                break;
            }
            is_first = false;
            if let Some((name, value)) = line.split_once(':')
                && name.trim().eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse::<u64>().ok();
            }
        }
        let malformed =
            |reason: String| Ok(Some(Incoming::Malformed { id: Value::Null, code: ErrorCode::Parse, reason }));
        let Some(length) = length else { return malformed("the header has no Content-Length".to_owned()) };
        if length > LONGEST_BODY {
            self.skip = length;
            return malformed(format!("a message of {length} bytes is longer than {LONGEST_BODY}"));
        }
        let mut body = Vec::new();
        self.reader.by_ref().take(length).read_to_end(&mut body)?;
        if (body.len() as u64) < length {
            return Ok(None);
        }
        Ok(Some(parse(&body)))
    }

    /// A line of a header; `None` at the end of the stream.
    fn header_line(&mut self) -> io::Result<Option<String>> {
        let mut line = Vec::new();
        self.reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)?;
        Ok((!line.is_empty()).then(|| String::from_utf8_lossy(&line).into_owned()))
    }
}

fn parse(body: &[u8]) -> Incoming {
    let malformed = |id: Value, code, reason: String| Incoming::Malformed { id, code, reason };
    let mut value: Value = match serde_json::from_slice(body) {
        Ok(value) => value,
        Err(error) => {
            return malformed(Value::Null, ErrorCode::Parse, format!("the message is not JSON: {error}"));
        }
    };
    let params = value.get_mut("params").map(Value::take).unwrap_or_default();
    let id = value.get_mut("id").map(Value::take);
    let method = value["method"].as_str().map(str::to_owned);
    match (id, method) {
        (Some(id @ (Value::Number(_) | Value::String(_))), Some(method)) => Incoming::Request { id, method, params },
        (None | Some(Value::Null), Some(method)) => Incoming::Notification { method, params },
        (Some(id), None) if value.get("result").is_some() || value.get("error").is_some() => {
            let _ = id;
            Incoming::Response
        }
        (id, _) => {
            let id = id.filter(|id| id.is_number() || id.is_string()).unwrap_or_default();
            malformed(id, ErrorCode::InvalidRequest, "the message is no JSON-RPC request".to_owned())
        }
    }
}

/// Writes one message.
pub(super) fn write(writer: &mut impl Write, message: &Value) -> io::Result<()> {
    let body = message.to_string();
    write!(writer, "Content-Length: {}\r\n\r\n{body}", body.len())?;
    writer.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(input: &[u8]) -> Vec<String> {
        let (sender, receiver) = crossbeam_channel::unbounded();
        read_all(input, &sender);
        drop(sender);
        receiver
            .iter()
            .map(|incoming| match incoming {
                Incoming::Request { id, method, .. } => format!("{method} {id}"),
                Incoming::Notification { method, .. } => method,
                Incoming::Response => "response".to_owned(),
                Incoming::Malformed { id, code, .. } => format!("malformed {} {id}", code as i32),
            })
            .collect()
    }

    fn framed(body: &str) -> String {
        format!("Content-Length: {}\r\n\r\n{body}", body.len())
    }

    #[test]
    fn after_a_malformed_message_the_next_one_is_read() {
        let good = framed(r#"{"jsonrpc":"2.0","id":1,"method":"a"}"#);
        let bad = [
            framed("{not json"),
            framed("[1, 2]"),
            framed("{}"),
            framed(r#"{"id":true,"method":5}"#),
            framed(r#"{"id":7}"#),
            "Content-Type: x\r\n\r\n".to_owned(),
            "Content-Length: many\r\n\r\n".to_owned(),
        ];
        let input: String = bad.iter().map(|bad| format!("{bad}{good}")).collect();
        let expected =
            ["-32700 null", "-32600 null", "-32600 null", "-32600 null", "-32600 7", "-32700 null", "-32700 null"]
                .map(|answer| [format!("malformed {answer}"), "a 1".to_owned()]);
        assert_eq!(all(input.as_bytes()), expected.concat());
    }

    #[test]
    fn ids_are_what_the_client_likes() {
        for id in ["1", "-1", "4294967296", "18446744073709551615", "1.5", "\"x\"", "\"\""] {
            let message = framed(&format!(r#"{{"id":{id},"method":"m"}}"#));
            assert_eq!(all(message.as_bytes()), [format!("m {id}")]);
        }
        assert_eq!(all(framed(r#"{"id":null,"method":"m"}"#).as_bytes()), ["m"]);
        assert_eq!(all(framed(r#"{"id":1,"result":null}"#).as_bytes()), ["response"]);
    }

    #[test]
    fn headers_may_be_spelled_in_any_case_and_come_in_any_order() {
        let body = r#"{"method":"b"}"#;
        let input = format!("content-type: x\r\nCONTENT-LENGTH:{}\n\n{body}", body.len());
        assert_eq!(all(input.as_bytes()), ["b"]);
    }

    #[test]
    fn a_stream_that_ends_inside_a_message_has_ended() {
        assert!(all(b"Content-Length: 100\r\n\r\n{}").is_empty());
        assert!(all(b"Content-Length").is_empty());
    }

    #[test]
    fn a_message_that_is_too_long_is_answered_at_once_and_left_out() {
        let length = LONGEST_BODY + 1;
        let mut input = format!("Content-Length: {length}\r\n\r\n").into_bytes();
        input.resize(input.len() + length as usize, b' ');
        input.extend(framed(r#"{"method":"b"}"#).bytes());
        assert_eq!(all(&input), ["malformed -32700 null", "b"]);
        // nothing of it has come yet, and it is answered
        for length in [u64::MAX, LONGEST_BODY + 1] {
            let input = format!("Content-Length: {length}\r\n\r\n{}", framed(r#"{"method":"b"}"#));
            assert_eq!(all(input.as_bytes()), ["malformed -32700 null"]);
        }
    }

    #[test]
    fn lengths_count_bytes() {
        let mut out = Vec::new();
        write(&mut out, &serde_json::json!({ "method": "é🦀" })).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "Content-Length: 19\r\n\r\n{\"method\":\"é🦀\"}");
        assert_eq!(all(text.as_bytes()), ["é🦀"]);
    }
}
