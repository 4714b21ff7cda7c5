//! Texts that are given as an argument, in a file, or on standard input.

use std::{
    fs,
    io::{self, Read},
    path::Path,
};

use anyhow::{Context, Result, bail};

/// The text itself, or what the file holds; `-` is standard input for both.
pub(crate) fn given(text: Option<&str>, file: Option<&Path>) -> Result<String> {
    match (text, file) {
        (Some("-"), _) => standard_input(),
        (Some(text), _) => Ok(text.to_owned()),
        (None, Some(file)) => read(file),
        (None, None) => bail!("no text was given"),
    }
}

/// What the file holds; `-` is standard input.
pub(crate) fn read(file: &Path) -> Result<String> {
    if file == Path::new("-") {
        return standard_input();
    }
    let opened = fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let bytes = bounded(opened, LONGEST_TEXT).with_context(|| format!("cannot read {}", file.display()))?;
    utf8(bytes).with_context(|| format!("cannot use {}", file.display()))
}

fn standard_input() -> Result<String> {
    let bytes = bounded(io::stdin().lock(), LONGEST_TEXT).context("cannot read standard input")?;
    utf8(bytes).context("cannot use standard input")
}

/// The longest text that is read, in bytes: far more than any model's context.
const LONGEST_TEXT: u64 = 64 << 20;

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
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => bail!("it is not UTF-8 text (byte {})", error.utf8_error().valid_up_to()),
    }
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
        assert_eq!(given(Some("x"), None).ok().as_deref(), Some("x"));
        assert_eq!(bounded(&b"1234"[..], 4).ok().as_deref(), Some(&b"1234"[..]));
        assert!(bounded(io::repeat(0), 4).expect_err("endless").to_string().contains("more than 4 bytes"));
    }
}
