//! Texts that are given as an argument, in a file, or on standard input.

use std::{
    fs,
    io::{self, BufRead, Read},
    path::Path,
    str::Utf8Error,
};

use anyhow::{Context, Result, bail};

/// The text itself, or what the file holds; `-` is standard input for both.
pub(crate) fn given(text: Option<&str>, file: Option<&Path>) -> Result<String> {
    match (text, file) {
        (Some("-"), _) => read(Path::new("-")),
        (Some(text), _) => Ok(text.to_owned()),
        (None, Some(file)) => read(file),
        (None, None) => bail!("no text was given"),
    }
}

/// Most bytes of a text: a book has one million, and an endless file has no end.
const LONGEST: u64 = 256 << 20;
/// Most bytes of a line, which is held whole.
const LONGEST_LINE: u64 = 16 << 20;

/// Most bytes of all lines of a file, which are held.
const MOST_LINES: u64 = 2 << 30;

/// What some editors put in front of a text in UTF-8: a byte order mark.
const MARK: char = '\u{feff}';

/// What the file holds, without a byte order mark; `-` is standard input.
pub(crate) fn read(file: &Path) -> Result<String> {
    let mut text = read_marked(file)?;
    if text.starts_with(MARK) {
        text.drain(..MARK.len_utf8());
    }
    Ok(text)
}

/// [`read`], with the byte order mark if there is one.
pub(crate) fn read_marked(file: &Path) -> Result<String> {
    if file == Path::new("-") {
        return standard_input();
    }
    let bytes = read_bytes(file)?;
    utf8(bytes).with_context(|| format!("cannot use {}", file.display()))
}

/// The bytes of a file, of which there may be as many as a text has at most.
fn read_bytes(file: &Path) -> Result<Vec<u8>> {
    let open = || format!("cannot read {}", file.display());
    bounded(fs::File::open(file).with_context(open)?, LONGEST).with_context(open)
}

fn standard_input() -> Result<String> {
    utf8(bounded(io::stdin().lock(), LONGEST).context("cannot read standard input")?)
        .context("cannot use standard input")
}

/// The next line without its line break and without a byte order mark, `None` at the end.
pub(crate) fn line(input: &mut impl BufRead) -> Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    if input.take(LONGEST_LINE + 1).read_until(b'\n', &mut line).context("it cannot be read")? == 0 {
        return Ok(None);
    }
    if line.len() as u64 > LONGEST_LINE {
        bail!("a line has more than {} MB", LONGEST_LINE >> 20);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
        line.pop_if(|last| *last == b'\r');
    }
    if line.starts_with(MARK.encode_utf8(&mut [0; 4]).as_bytes()) {
        line.drain(..MARK.len_utf8());
    }
    Ok(Some(line))
}

/// The lines of a file without their line breaks and a byte order mark; `-` is standard input. Blank lines are lines.
///
/// # Errors
/// When it cannot be read, a line is no text, or all of it is more than a text may be.
pub(crate) fn lines(file: &Path) -> Result<Vec<String>> {
    if file == Path::new("-") {
        return lines_of(io::stdin().lock()).context("cannot use standard input");
    }
    let opened = fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    lines_of(io::BufReader::new(opened)).with_context(|| format!("cannot use {}", file.display()))
}

fn lines_of(mut input: impl BufRead) -> Result<Vec<String>> {
    let (mut lines, mut bytes) = (Vec::new(), 0);
    while let Some(line) = line(&mut input).with_context(|| format!("line {}", lines.len() + 1))? {
        bytes += line.len() as u64 + 1;
        if bytes > MOST_LINES {
            bail!("it holds more than {} MB; split it", MOST_LINES >> 20);
        }
        let wrong = |error: std::string::FromUtf8Error| anyhow::anyhow!(not_utf8(error.utf8_error()));
        lines.push(String::from_utf8(line).map_err(wrong).with_context(|| format!("line {}", lines.len() + 1))?);
    }
    Ok(lines)
}

/// Everything that a source holds, if that is at most `limit` bytes. Devices and pipes may have no end.
pub(crate) fn bounded(source: impl Read, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        bail!("it holds more than {limit} bytes");
    }
    Ok(bytes)
}

fn utf8(bytes: Vec<u8>) -> Result<String> {
    // the shell of Windows writes so
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        bail!("it is text in UTF-16; save it in UTF-8");
    }
    String::from_utf8(bytes).map_err(|error| anyhow::anyhow!(not_utf8(error.utf8_error())))
}

/// What is wrong with bytes that are no text, in a sentence.
pub(crate) fn not_utf8(error: Utf8Error) -> String {
    format!("it is not UTF-8 text (byte {})", error.valid_up_to())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_must_exist_and_be_text() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("x");
        assert!(read(&path).expect_err("missing").to_string().contains("cannot read"));
        fs::write(&path, b"ab\xff").expect("written");
        assert!(format!("{:#}", read(&path).expect_err("not text")).contains("byte 2"));
        fs::write(&path, "zwölf\n").expect("written");
        assert_eq!(given(None, Some(&path)).ok().as_deref(), Some("zwölf\n"));
        fs::write(&path, "\u{feff}zwölf").expect("written");
        assert_eq!(given(None, Some(&path)).ok().as_deref(), Some("zwölf"));
        assert_eq!(read_marked(&path).ok().as_deref(), Some("\u{feff}zwölf"));
        fs::write(&path, b"\xff\xfea\0").expect("written");
        assert!(format!("{:#}", read(&path).expect_err("UTF-16")).contains("UTF-16"));
        assert_eq!(given(Some("x"), None).ok().as_deref(), Some("x"));
        assert_eq!(bounded(&b"1234"[..], 4).ok().as_deref(), Some(&b"1234"[..]));
        assert!(bounded(io::repeat(0), 4).expect_err("endless").to_string().contains("more than 4 bytes"));
    }

    #[test]
    fn every_line_is_a_line_blank_ones_too() {
        let of = |text: &[u8]| lines_of(text);
        assert_eq!(of(b"\xef\xbb\xbfa\n\nb\r\n").expect("text"), ["a", "", "b"]);
        assert!(of(b"").expect("text").is_empty());
        assert!(format!("{:#}", of(b"a\n\xff\n").expect_err("no text")).contains("line 2: it is not UTF-8"));
    }

    #[test]
    fn endless_input_ends_with_an_error() {
        assert!(bounded(io::repeat(0), 1000).is_err());
        assert_eq!(bounded(io::repeat(7).take(1000), 1000).expect("at the edge").len(), 1000);
        assert!(line(&mut io::BufReader::new(io::repeat(b'x'))).is_err());
        let mut lines = &b"\xef\xbb\xbfa\r\n\n\xe9\nlast"[..];
        let mut next = || line(&mut lines).expect("short lines");
        assert_eq!(
            [next(), next(), next(), next(), next()],
            [Some(b"a".to_vec()), Some(Vec::new()), Some(b"\xe9".to_vec()), Some(b"last".to_vec()), None]
        );
    }
}
