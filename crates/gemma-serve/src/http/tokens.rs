//! Tokens as the protocols spell them: text, bytes, and the arrays of log-probabilities.

use gemma_tokenizer::{DecodeOptions, TokenId, Tokenizer};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::backend::TokenScore;

/// The bytes that a token stands for; a control token stands for its name.
pub(crate) fn token_bytes(tokenizer: &Tokenizer, id: TokenId) -> Vec<u8> {
    let text = tokenizer.decode_with(&[id], DecodeOptions { specials: true });
    match tokenizer.piece(id).and_then(byte_of) {
        // a piece that is spelled like a byte and decodes to its spelling is text
        Some(byte) if tokenizer.piece(id) != Some(text.as_str()) => vec![byte],
        _ => text.into_bytes(),
    }
}

/// The byte that a piece such as `<0x0A>` stands for.
fn byte_of(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// The text of a token; bytes that are no character are spelled `bytes:\xE2`, as OpenAI does.
pub(crate) fn token_text(tokenizer: &Tokenizer, id: TokenId) -> String {
    match String::from_utf8(token_bytes(tokenizer, id)) {
        Ok(text) => text,
        Err(error) => {
            let escaped: String = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}")).collect();
            format!("bytes:{escaped}")
        }
    }
}

/// One token of a chat's `logprobs.content`.
pub(crate) fn chat_logprob(tokenizer: &Tokenizer, score: &TokenScore) -> Value {
    let one = |id: TokenId, logprob: f32| json!({"token": token_text(tokenizer, id), "logprob": finite(logprob), "bytes": token_bytes(tokenizer, id)});
    let mut entry = one(score.token, score.logprob);
    entry["top_logprobs"] = score.top.iter().map(|(id, logprob)| one(*id, *logprob)).collect();
    entry
}

/// The arrays of `/v1/completions`: one entry per token, all of the same length.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct LegacyLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
    text_offset: Vec<usize>,
}

impl LegacyLogprobs {
    /// Adds a token at `offset` characters from the beginning of the text; returns the offset after it.
    pub(crate) fn push(
        &mut self,
        tokenizer: &Tokenizer,
        token: TokenId,
        score: Option<&TokenScore>,
        offset: usize,
    ) -> usize {
        let text = token_text(tokenizer, token);
        let next = offset + text.chars().count();
        self.tokens.push(text);
        self.token_logprobs.push(score.map(|score| finite(score.logprob)));
        self.top_logprobs.push(score.map(|score| {
            let mut top = Map::new();
            // the token itself is always there, and the very same float: harnesses compare with the largest
            for (id, logprob) in score.top.iter().copied().chain([(score.token, score.logprob)]) {
                let text = token_text(tokenizer, id);
                // two tokens may be spelled alike; the likelier comes first
                top.entry(text).or_insert_with(|| json!(finite(logprob)));
            }
            top
        }));
        self.text_offset.push(offset);
        next
    }
}

/// JSON has no infinity: a token that a mask forbids has the logprob -9999, as vLLM writes it.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_from_their_spelling() {
        assert_eq!(byte_of("<0x0A>"), Some(10));
        assert_eq!(byte_of("<0xFF>"), Some(255));
        for text in ["<0x0>", "<0x0AB>", "0x0A", "<0xGG>", ""] {
            assert_eq!(byte_of(text), None, "{text}");
        }
    }

    #[test]
    fn a_forbidden_token_has_a_finite_logprob() {
        assert_eq!(finite(f32::NEG_INFINITY), -9999.0);
        assert_eq!(finite(-1.5), -1.5);
    }
}
