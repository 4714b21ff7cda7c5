//! A template's source as tokens: text, and what stands between `{{ }}` and `{% %}`.
//!
//! White space is treated as transformers sets Jinja up (`trim_blocks`, `lstrip_blocks`): the newline after a block
//! or comment goes, and so do spaces in front of one that begins its line; `-` removes all white space on its side, `+`
//! none. A newline at the end of the source goes, too.

use super::budget::Fault;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Text(String),
    OpenOutput,
    CloseOutput,
    OpenBlock,
    CloseBlock,
    Name(String),
    Int(i64),
    Float(f64),
    Str(String),
    /// An operator or a bracket.
    Sign(&'static str),
    End,
}

/// Longest first, so that `//` is not two of `/`.
const SIGNS: [&str; 28] = [
    "**", "//", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "~", "<", ">", "=", "(", ")", "[", "]", "{", "}", ",",
    ":", ".", "|", ";", "!", "&",
];

/// The tokens with the line each begins in.
pub(super) fn tokens(source: &str) -> Result<Vec<(Token, u32)>, Fault> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = source.strip_suffix('\n').unwrap_or(&source);
    let mut lexer = Lexer { rest: source, line: 1, tokens: Vec::new(), line_starting: true };
    lexer.run()?;
    let line = lexer.line;
    lexer.tokens.push((Token::End, line));
    Ok(lexer.tokens)
}

struct Lexer<'s> {
    rest: &'s str,
    line: u32,
    tokens: Vec<(Token, u32)>,
    /// Did what was read last end a line?
    line_starting: bool,
}

impl<'s> Lexer<'s> {
    fn run(&mut self) -> Result<(), Fault> {
        while !self.rest.is_empty() {
            let tag = self
                .rest
                .match_indices('{')
                .map(|(at, _)| at)
                .find(|&at| matches!(self.rest.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#')));
            let Some(at) = tag else {
                let text = self.take(self.rest.len());
                self.text(text);
                return Ok(());
            };
            let kind = self.rest.as_bytes()[at + 1];
            let mark = self.rest.as_bytes().get(at + 2).copied();
            let text = &self.rest[..at];
            let kept = match mark {
                Some(b'-') => text.trim_end(),
                Some(b'+') => text,
                _ if kind != b'{' => {
                    let line_start = text.rfind('\n').map_or(0, |newline| newline + 1);
                    let begins_line = line_start > 0 || self.line_starting;
                    let blank = begins_line && text[line_start..].chars().all(char::is_whitespace);
                    if blank { &text[..line_start] } else { text }
                }
                _ => text,
            };
            let kept = kept.to_owned();
            self.take(at + 2 + usize::from(matches!(mark, Some(b'-' | b'+'))));
            self.text(&kept);
            match kind {
                b'#' => self.comment()?,
                b'{' => self.tag("}}", Token::OpenOutput, Token::CloseOutput)?,
                _ if !self.raw()? => self.tag("%}", Token::OpenBlock, Token::CloseBlock)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn take(&mut self, bytes: usize) -> &'s str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.line += taken.bytes().filter(|byte| *byte == b'\n').count() as u32;
        self.rest = rest;
        taken
    }

    fn push(&mut self, token: Token) {
        self.tokens.push((token, self.line));
    }

    fn text(&mut self, text: &str) {
        if !text.is_empty() {
            self.push(Token::Text(text.to_owned()));
        }
    }

    fn fail<T>(&self, reason: &str) -> Result<T, Fault> {
        Fault::failed(format!("{reason} (line {})", self.line))
    }

    /// What follows a tag: `mark` is the character in front of its end.
    fn after_tag(&mut self, mark: Option<char>, block: bool) {
        self.line_starting = false;
        match mark {
            Some('-') => {
                let blank = self.rest.len() - self.rest.trim_start().len();
                self.line_starting = self.take(blank).ends_with('\n');
            }
            Some('+') => {}
            _ if block && self.rest.starts_with('\n') => {
                self.take(1);
                self.line_starting = true;
            }
            _ => {}
        }
    }

    fn comment(&mut self) -> Result<(), Fault> {
        let Some(end) = self.rest.find("#}") else { return self.fail("a comment is not closed") };
        let mark = self.rest[..end].chars().next_back();
        self.take(end + 2);
        self.after_tag(mark, true);
        Ok(())
    }

    /// Reads a raw block; `false` when the tag is another one.
    fn raw(&mut self) -> Result<bool, Fault> {
        let word = self.rest.trim_start();
        let Some(after) = word.strip_prefix("raw") else { return Ok(false) };
        let after = after.trim_start();
        let (mark, after) = match after.strip_prefix(['-', '+']) {
            Some(rest) => (after.chars().next(), rest),
            None => (None, after),
        };
        let Some(after) = after.strip_prefix("%}") else { return Ok(false) };
        self.take(self.rest.len() - after.len());
        self.after_tag(mark, true);
        for (at, _) in self.rest.match_indices("{%") {
            let inner = &self.rest[at + 2..];
            let (before, inner) = match inner.strip_prefix(['-', '+']) {
                Some(rest) => (inner.chars().next(), rest),
                None => (None, inner),
            };
            let Some(inner) = inner.trim_start().strip_prefix("endraw") else { continue };
            let inner = inner.trim_start();
            let (mark, inner) = match inner.strip_prefix(['-', '+']) {
                Some(rest) => (inner.chars().next(), rest),
                None => (None, inner),
            };
            let Some(inner) = inner.strip_prefix("%}") else { continue };
            let text = &self.rest[..at];
            let line_start = text.rfind('\n').map_or(0, |newline| newline + 1);
            let kept = match before {
                Some('-') => text.trim_end(),
                None if line_start > 0 && text[line_start..].chars().all(char::is_whitespace) => &text[..line_start],
                _ => text,
            };
            let kept = kept.to_owned();
            self.take(self.rest.len() - inner.len());
            self.text(&kept);
            self.after_tag(mark, true);
            return Ok(true);
        }
        self.fail("a raw block is not closed")
    }

    fn tag(&mut self, end: &str, open: Token, close: Token) -> Result<(), Fault> {
        let block = close == Token::CloseBlock;
        self.push(open);
        let mut brackets = 0_usize;
        loop {
            let blank = self.rest.len() - self.rest.trim_start().len();
            self.take(blank);
            if brackets == 0 {
                let mark = self.rest.chars().next().filter(|c| matches!(c, '-' | '+'));
                let ending = if mark.is_some() { &self.rest[1..] } else { self.rest };
                if ending.starts_with(end) {
                    self.take(self.rest.len() - ending.len() + end.len());
                    self.push(close);
                    self.after_tag(mark, block);
                    return Ok(());
                }
            }
            let Some(first) = self.rest.chars().next() else { return self.fail("a tag is not closed") };
            if first.is_alphabetic() || first == '_' {
                let length = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest.len());
                let name = self.take(length).to_owned();
                self.push(Token::Name(name));
            } else if first.is_ascii_digit() {
                self.number()?;
            } else if first == '"' || first == '\'' {
                self.string(first)?;
            } else if let Some(sign) = SIGNS.iter().find(|sign| self.rest.starts_with(**sign)) {
                match *sign {
                    "(" | "[" | "{" => brackets += 1,
                    ")" | "]" | "}" => {
                        brackets = match brackets.checked_sub(1) {
                            Some(left) => left,
                            None => return self.fail(&format!("{sign} closes nothing")),
                        }
                    }
                    _ => {}
                }
                self.take(sign.len());
                self.push(Token::Sign(sign));
            } else {
                return self.fail(&format!("unexpected character {first:?}"));
            }
        }
    }

    fn number(&mut self) -> Result<(), Fault> {
        let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
        let whole = digits(self.rest);
        let mut length = whole;
        let after = &self.rest[whole..];
        let mut float = false;
        if after.starts_with('.') && after[1..].starts_with(|c: char| c.is_ascii_digit()) {
            float = true;
            length += 1 + digits(&after[1..]);
        }
        let exponent = &self.rest[length..];
        if let Some(rest) = exponent.strip_prefix(['e', 'E']) {
            let unsigned = rest.strip_prefix(['+', '-']).unwrap_or(rest);
            if unsigned.starts_with(|c: char| c.is_ascii_digit()) {
                float = true;
                length += exponent.len() - unsigned.len() + digits(unsigned);
            }
        }
        let number = self.take(length).replace('_', "");
        let token = if float { number.parse().ok().map(Token::Float) } else { number.parse().ok().map(Token::Int) };
        match token {
            Some(token) => self.push(token),
            None => return self.fail("a number is out of range"),
        }
        Ok(())
    }

    fn string(&mut self, quote: char) -> Result<(), Fault> {
        let mut text = String::new();
        let mut chars = self.rest[1..].chars();
        loop {
            match chars.next() {
                None => return self.fail("a string is not closed"),
                Some(c) if c == quote => break,
                Some('\\') => {
                    if escape(&mut chars, &mut text).is_none() {
                        return self.fail("a string has an escape that is no character");
                    }
                }
                Some(c) => text.push(c),
            }
        }
        let length = self.rest.len() - chars.as_str().len();
        self.take(length);
        self.push(Token::Str(text));
        Ok(())
    }
}

/// What stands after a backslash, as Python reads it: a character, or nothing for a newline. `None` for a code that is
/// no character.
fn escape(chars: &mut std::str::Chars<'_>, text: &mut String) -> Option<()> {
    let escaped = chars.next()?;
    let digits = match escaped {
        'x' => 2,
        'u' => 4,
        'U' => 8,
        _ => 0,
    };
    if digits > 0 {
        let rest = chars.as_str();
        let code = rest.get(..digits).filter(|code| code.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        text.push(u32::from_str_radix(code, 16).ok().and_then(char::from_u32)?);
        *chars = rest[digits..].chars();
        return Some(());
    }
    match escaped {
        '\n' => {}
        'n' => text.push('\n'),
        't' => text.push('\t'),
        'r' => text.push('\r'),
        'a' => text.push('\u{7}'),
        'b' => text.push('\u{8}'),
        'f' => text.push('\u{C}'),
        'v' => text.push('\u{B}'),
        '0'..='7' => {
            let mut code = escaped as u32 - '0' as u32;
            for _ in 0..2 {
                let mut ahead = chars.clone();
                let Some(digit) = ahead.next().and_then(|c| c.to_digit(8)) else { break };
                code = code * 8 + digit;
                *chars = ahead;
            }
            text.push(char::from_u32(code)?);
        }
        '\\' | '\'' | '"' => text.push(escaped),
        other => {
            text.push('\\');
            text.push(other);
        }
    }
    Some(())
}
