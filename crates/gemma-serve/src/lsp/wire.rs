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

/// The same JSON with U+FFFD in place of each escaped half of a surrogate pair that stands alone: as many UTF-16 units, so
/// that positions stay the same.
fn with_whole_letters(body: &[u8]) -> Vec<u8> {
    // the unit of an escape at a place
    let unit = |at: usize| {
        let digits = body.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let mut whole = Vec::with_capacity(body.len());
    let mut at = 0;
    while at < body.len() {
        let (length, kept) = match (unit(at), unit(at + 6)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => (12, true),
            (Some(0xD800..=0xDFFF), _) => (6, false),
            // an escaped backslash escapes nothing
            _ if body[at..].starts_with(b"\\\\") => (2, true),
            _ => (1, true),
        };
        whole.extend_from_slice(if kept { &body[at..at + length] } else { b"\\uFFFD" });
        at += length;
    }
    whole
}

fn parse(body: &[u8]) -> Incoming {
    let malformed = |id: Value, code, reason: String| Incoming::Malformed { id, code, reason };
    // half an emoji is no letter, but an editor may hold one while it is typed
    let parsed = serde_json::from_slice(body).or_else(|_| serde_json::from_slice(&with_whole_letters(body)));
    let mut value: Value = match parsed {
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
    fn half_an_emoji_is_a_letter_of_the_same_length() {
        let whole = |text: &str| String::from_utf8(with_whole_letters(text.as_bytes())).expect("UTF-8");
        assert_eq!(whole(r#""a\ud83e b \uDD80""#), r#""a\uFFFD b \uFFFD""#);
        for sound in [r#""\ud83e\udd80é\u0041""#, r#""\\ud83e""#, "\"\\u12", ""] {
            assert_eq!(whole(sound), sound);
        }
        let message = framed(r#"{"method":"m","params":{"text":"\ud83e"}}"#);
        assert_eq!(all(message.as_bytes()), ["m"]);
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
