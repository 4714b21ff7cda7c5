//! Tokens in, whole characters out.
//!
//! Most pieces are whole characters, but a character without a piece of its own arrives as the bytes of its UTF-8
//! form, one token each. A stream holds such bytes back until the character is complete. Bytes that can no longer
//! become a character turn into U+FFFD, one for each byte, as SentencePiece writes them.

use crate::TokenId;
use crate::engine::SPACE;
use crate::tokenizer::{DecodeOptions, Tokenizer};
use crate::vocabulary::Kind;
use std::sync::Arc;

/// Decodes one token at a time; made by [`Tokenizer::stream`].
///
/// What [`push`](Self::push) and [`finish`](Self::finish) return, put together, is what [`Tokenizer::decode`] makes of
/// all the tokens at once.
///
/// ```no_run
/// # fn show(tokenizer: &gemma_tokenizer::Tokenizer, tokens: impl Iterator<Item = u32>) {
/// let mut stream = tokenizer.stream();
/// for token in tokens {
///     if let Some(text) = stream.push(token) {
///         print!("{text}");
///     }
/// }
/// print!("{}", stream.finish());
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct DecodeStream<'a> {
    tokenizer: Held<'a>,
    options: DecodeOptions,
    partial: PartialChar,
}

impl Tokenizer {
    /// The text of tokens, with a say about control tokens.
    pub fn decode_with(&self, ids: &[TokenId], options: DecodeOptions) -> String {
        let mut stream = DecodeStream::new(self, options);
        let mut text = String::new();
        for id in ids {
            stream.push_into(*id, &mut text);
        }
        text + &stream.finish()
    }

    /// Decodes tokens as they come, in whole characters.
    pub fn stream(&self) -> DecodeStream<'_> {
        self.stream_with(DecodeOptions::default())
    }

    /// Decodes tokens as they come, with a say about control tokens.
    pub fn stream_with(&self, options: DecodeOptions) -> DecodeStream<'_> {
        DecodeStream::new(self, options)
    }
}

/// The tokenizer of a stream: borrowed, or shared with whoever made the stream.
#[derive(Clone, Debug)]
enum Held<'a> {
    Borrowed(&'a Tokenizer),
    Shared(Arc<Tokenizer>),
}

impl<'a> DecodeStream<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer, options: DecodeOptions) -> Self {
        Self { tokenizer: Held::Borrowed(tokenizer), options, partial: PartialChar::default() }
    }

    /// A stream that shares the tokenizer and may outlive it, on another thread for example; otherwise as
    /// [`Tokenizer::stream`].
    pub fn shared(tokenizer: Arc<Tokenizer>) -> DecodeStream<'static> {
        let options = DecodeOptions::default();
        DecodeStream { tokenizer: Held::Shared(tokenizer), options, partial: PartialChar::default() }
    }

    /// Takes the next token; returns the characters that it completes, if any.
    pub fn push(&mut self, id: TokenId) -> Option<String> {
        let mut text = String::new();
        self.push_into(id, &mut text);
        (!text.is_empty()).then_some(text)
    }

    /// Ends the text: what was held back can no longer become a character. The stream is then as new.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        self.partial.give_up(&mut text);
        text
    }

    pub(crate) fn push_into(&mut self, id: TokenId, text: &mut String) {
        let tokenizer = match &self.tokenizer {
            Held::Borrowed(tokenizer) => tokenizer,
            Held::Shared(tokenizer) => tokenizer.as_ref(),
        };
        let vocabulary = tokenizer.vocabulary();
        let kind = vocabulary.kind(id);
        if let Kind::Byte(byte) = kind {
            self.partial.push(byte, text);
            return;
        }
        self.partial.give_up(text);
        let shown = self.options.specials || kind != (Kind::Control { hidden: true });
        if let Some(piece) = vocabulary.piece(id).filter(|_| shown) {
            text.extend(piece.chars().map(|c| if c == SPACE { ' ' } else { c }));
        }
    }
}

/// The first bytes of a character whose other bytes have not come yet.
#[derive(Clone, Debug, Default)]
struct PartialChar {
    bytes: Vec<u8>,
}

impl PartialChar {
    /// Takes a byte and writes what is complete, or can no longer be.
    fn push(&mut self, byte: u8, text: &mut String) {
        self.bytes.push(byte);
        while !self.bytes.is_empty() {
            match std::str::from_utf8(&self.bytes) {
                Ok(complete) => {
                    text.push_str(complete);
                    self.bytes.clear();
                }
                Err(error) if error.valid_up_to() == 0 && error.error_len().is_none() => return,
                Err(_) => {
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.bytes.remove(0);
                }
            }
        }
    }

    fn give_up(&mut self, text: &mut String) {
        text.extend(self.bytes.drain(..).map(|_| char::REPLACEMENT_CHARACTER));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a stream of bytes shows after each byte, and at the end.
    fn shown(bytes: &[u8]) -> Vec<String> {
        let mut partial = PartialChar::default();
        let mut steps: Vec<String> = bytes
            .iter()
            .map(|byte| {
                let mut text = String::new();
                partial.push(*byte, &mut text);
                text
            })
            .collect();
        let mut last = String::new();
        partial.give_up(&mut last);
        steps.push(last);
        steps
    }

    #[test]
    fn characters_appear_when_complete() {
        assert_eq!(shown("aé😀".as_bytes()), ["a", "", "é", "", "", "", "😀", ""]);
    }

    #[test]
    fn hopeless_bytes_become_replacement_characters_at_once() {
        assert_eq!(shown(b"\xFFa"), ["\u{FFFD}", "a", ""]);
        assert_eq!(shown(b"\xF0\x9F\x41"), ["", "", "\u{FFFD}\u{FFFD}A", ""]);
        assert_eq!(shown(b"\xF0\x9F\xC3\xA9"), ["", "", "\u{FFFD}\u{FFFD}", "é", ""]);
        assert_eq!(shown(b"\xE2\x82"), ["", "", "\u{FFFD}\u{FFFD}"]);
        // An encoded surrogate and a character beyond U+10FFFF.
        assert_eq!(shown(b"\xED\xA0\x80"), ["", "\u{FFFD}\u{FFFD}", "\u{FFFD}", ""]);
        assert_eq!(shown(b"\xF4\x90"), ["", "\u{FFFD}\u{FFFD}", ""]);
    }
}
