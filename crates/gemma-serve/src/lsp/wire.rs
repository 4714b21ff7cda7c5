//! JSON-RPC over a stream of bytes: a header with a length, and a body.
//!
//! `lsp-server` has a reader of its own, which ends at the first message that it does not understand. A server that an
//! editor relies on says what was wrong and reads on.

use crossbeam_channel::Sender;
use lsp_server::{ErrorCode, Message};
use serde_json::Value;
use std::io::{self, BufRead, Read, Write};

/// Longest body accepted, in bytes. A document of this size would take minutes to type.
const LONGEST_BODY: usize = 64 << 20;
/// Longest header line accepted, in bytes.
const LONGEST_LINE: u64 = 4096;

/// What came.
#[derive(Debug)]
pub(super) enum Incoming {
    Message(Message),
    /// Something that is no message: the error code, and what is wrong.
    Malformed(ErrorCode, String),
}

/// Reads until the end of the stream or until nobody listens.
pub(super) fn read_all(mut reader: impl BufRead, listener: &Sender<Incoming>) {
    // a stream that fails has ended
    while let Ok(Some(incoming)) = read(&mut reader) {
        if listener.send(incoming).is_err() {
            return;
        }
    }
}

/// The next message; `None` at the end of the stream.
fn read(reader: &mut impl BufRead) -> io::Result<Option<Incoming>> {
    let mut length = None;
    let mut is_first = true;
    loop {
        let Some(line) = header_line(reader)? else { return Ok(None) };
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
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse::<usize>().ok();
        }
    }
    let malformed = |reason: String| Ok(Some(Incoming::Malformed(ErrorCode::ParseError, reason)));
    let Some(length) = length else { return malformed("the header has no Content-Length".to_owned()) };
    if length > LONGEST_BODY {
        io::copy(&mut reader.by_ref().take(length as u64), &mut io::sink())?;
        return malformed(format!("a message of {length} bytes is longer than {LONGEST_BODY}"));
    }
    let mut body = Vec::new();
    reader.by_ref().take(length as u64).read_to_end(&mut body)?;
    if body.len() < length {
        return Ok(None);
    }
    Ok(Some(parse(&body)))
}

/// A line of a header; `None` at the end of the stream.
fn header_line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)?;
    Ok((!line.is_empty()).then(|| String::from_utf8_lossy(&line).into_owned()))
}

fn parse(body: &[u8]) -> Incoming {
    let value: Value = match serde_json::from_slice(body) {
        Ok(value) => value,
        Err(error) => return Incoming::Malformed(ErrorCode::ParseError, format!("the message is not JSON: {error}")),
    };
    let is_message = value.get("method").is_some_and(Value::is_string)
        || value.get("result").is_some()
        || value.get("error").is_some();
    match serde_json::from_value(value) {
        Ok(message) if is_message => Incoming::Message(message),
        _ => Incoming::Malformed(ErrorCode::InvalidRequest, "the message is no JSON-RPC request".to_owned()),
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

    fn all(input: &str) -> Vec<String> {
        let (sender, receiver) = crossbeam_channel::unbounded();
        read_all(input.as_bytes(), &sender);
        drop(sender);
        receiver
            .iter()
            .map(|incoming| match incoming {
                Incoming::Message(Message::Request(request)) => request.method,
                Incoming::Message(Message::Notification(note)) => note.method,
                Incoming::Message(Message::Response(response)) => format!("response {}", response.id),
                Incoming::Malformed(code, _) => format!("malformed {}", code as i32),
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
            "Content-Type: x\r\n\r\n".to_owned(),
            "Content-Length: many\r\n\r\n".to_owned(),
        ];
        let input: String = bad.iter().map(|bad| format!("{bad}{good}")).collect();
        let heard = all(&input);
        let expected =
            [-32700, -32600, -32600, -32600, -32700, -32700].map(|code| [format!("malformed {code}"), "a".to_owned()]);
        assert_eq!(heard, expected.concat());
    }

    #[test]
    fn headers_may_be_spelled_in_any_case_and_come_in_any_order() {
        let body = r#"{"method":"b"}"#;
        let input = format!("content-type: x\r\nCONTENT-LENGTH:{}\n\n{body}", body.len());
        assert_eq!(all(&input), ["b"]);
    }

    #[test]
    fn a_stream_that_ends_inside_a_message_has_ended() {
        assert!(all("Content-Length: 100\r\n\r\n{}").is_empty());
        assert!(all("Content-Length").is_empty());
    }

    #[test]
    fn lengths_count_bytes() {
        let mut out = Vec::new();
        write(&mut out, &serde_json::json!({ "method": "é🦀" })).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "Content-Length: 19\r\n\r\n{\"method\":\"é🦀\"}");
        assert_eq!(all(&text), ["é🦀"]);
    }
}
