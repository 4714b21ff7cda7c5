//! Rust source without its comments and texts, so that a rule that looks for a word finds code only.

/// `source` with every comment and every string or character literal blanked. Lines stay where they are.
pub(super) fn code(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => line_end(bytes, at),
            b'/' if bytes[at..].starts_with(b"/*") => block_end(bytes, at),
            b'"' => text_end(bytes, at),
            b'r' | b'b' | b'c' if !follows_name(bytes, at) => prefixed_end(bytes, at),
            b'\'' => character_end(bytes, at),
            _ => at,
        };
        if end == at {
            out.push(bytes[at]);
            at += 1;
        } else {
            out.extend(bytes[at..end].iter().map(|&byte| if byte == b'\n' { b'\n' } else { b' ' }));
            at = end;
        }
    }
    String::from_utf8(out).expect("only whole literals and comments are blanked")
}

/// The lines of `code` that hold `needle` not inside a longer name, counted from 1.
pub(super) fn lines_with<'a>(code: &'a str, needle: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.lines().enumerate().filter(move |(_, line)| contains_name(line, needle)).map(|(index, _)| index + 1)
}

fn contains_name(line: &str, needle: &str) -> bool {
    let in_name = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    line.match_indices(needle).any(|(at, _)| {
        let (before, after) = (line.as_bytes()[..at].last(), line.as_bytes().get(at + needle.len()));
        let opens_in_name = in_name(needle.as_bytes().first()) && in_name(before);
        let ends_in_name = in_name(needle.as_bytes().last()) && in_name(after);
        !opens_in_name && !ends_in_name
    })
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |len| at + len)
}

/// Block comments nest.
fn block_end(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if bytes[at..].starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

fn text_end(bytes: &[u8], quote: usize) -> usize {
    let mut at = quote + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// A raw, byte or C string that starts at `at`, if one does; otherwise `at`.
fn prefixed_end(bytes: &[u8], at: usize) -> usize {
    let letters = bytes[at..].iter().take(2).take_while(|byte| b"rbc".contains(byte)).count();
    let raw = bytes[at..at + letters].contains(&b'r');
    let hashes = bytes[at + letters..].iter().take_while(|&&byte| byte == b'#').count();
    let quote = at + letters + hashes;
    if bytes.get(quote) != Some(&b'"') || (hashes > 0 && !raw) {
        return at;
    }
    if !raw {
        return text_end(bytes, quote);
    }
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let found = bytes[quote + 1..].windows(close.len()).position(|window| window == close);
    found.map_or(bytes.len(), |len| quote + 1 + len + close.len())
}

/// A character literal that starts at `quote`; a lifetime is none.
fn character_end(bytes: &[u8], quote: usize) -> usize {
    match bytes.get(quote + 1) {
        Some(b'\\') => {
            let close = bytes[quote + 3..].iter().position(|&byte| byte == b'\'');
            close.map_or(bytes.len(), |len| quote + 3 + len + 1)
        }
        Some(_) => {
            // One character of up to four bytes, then the closing quote.
            let close = (quote + 2..=quote + 5).find(|&at| bytes.get(at) == Some(&b'\''));
            match close {
                Some(at) if std::str::from_utf8(&bytes[quote + 1..at]).is_ok_and(|text| text.chars().count() == 1) => {
                    at + 1
                }
                _ => quote,
            }
        }
        None => quote,
    }
}

fn follows_name(bytes: &[u8], at: usize) -> bool {
    at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(source: &str) -> Vec<String> {
        code(source).split_whitespace().map(str::to_string).collect()
    }

    #[test]
    fn comments_are_blanked() {
        assert_eq!(words("a // b\nc /* d /* e */ f */ g //! h"), ["a", "c", "g"]);
        assert_eq!(words("a /* never closed"), ["a"]);
    }

    #[test]
    fn texts_are_blanked() {
        assert_eq!(words(r##"a "b \" // c" d r#"e " f"# g br"h" i b"j" k c"l""##), ["a", "d", "g", "i", "k"]);
        assert_eq!(words("var\"b\" + number"), ["var", "+", "number"]);
    }

    #[test]
    fn characters_are_blanked_and_lifetimes_are_not() {
        assert_eq!(words(r"a '\'' b '\u{1F600}' c '▁' d 'e' f"), ["a", "b", "c", "d", "f"]);
        assert_eq!(code("fn f<'a>(x: &'a str, y: &'a str)"), "fn f<'a>(x: &'a str, y: &'a str)");
    }

    #[test]
    fn lines_keep_their_numbers() {
        let source = "//! x\nlet s = \"\nunsafe\n\";\nunsafe { f() }\n";
        assert_eq!(lines_with(&code(source), "unsafe").collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn a_name_is_found_only_whole() {
        let lines = |source| lines_with(source, "unsafe").count();
        assert_eq!((lines("unsafe_code"), lines("not_unsafe"), lines("(unsafe)")), (0, 0, 1));
        assert_eq!(lines_with("x.std::fs::read", "std::fs").count(), 1);
        assert_eq!(lines_with("Device::ndarray()", "Device::ndarray(").count(), 1);
    }
}
