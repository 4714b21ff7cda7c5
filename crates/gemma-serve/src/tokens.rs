//! Tokens as the protocols spell them: text, bytes, and logprobs.

use gemma_tokenizer::{DecodeOptions, TokenId, Tokenizer};
use serde_json::{Value, json};

/// The bytes that a token stands for; a control token stands for its name.
pub fn token_bytes(tokenizer: &Tokenizer, id: TokenId) -> Vec<u8> {
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
pub fn token_text(tokenizer: &Tokenizer, id: TokenId) -> String {
    match String::from_utf8(token_bytes(tokenizer, id)) {
        Ok(text) => text,
        Err(error) => {
            let escaped: String = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}")).collect();
            format!("bytes:{escaped}")
        }
    }
}

/// A token's logprob as OpenAI's API has it: `token`, `logprob`, `bytes`, and `top_logprobs`, the likeliest tokens in its
/// place with theirs.
pub fn logprob_entry(tokenizer: &Tokenizer, token: TokenId, logprob: f32, top: &[(TokenId, f32)]) -> Value {
    let mut entry = alternative(tokenizer, token, logprob);
    entry["top_logprobs"] = top.iter().map(|(id, logprob)| alternative(tokenizer, *id, *logprob)).collect();
    entry
}

/// One of the `top_logprobs` of an entry: `token`, `logprob` and `bytes`.
pub fn alternative(tokenizer: &Tokenizer, token: TokenId, logprob: f32) -> Value {
    json!({
        "token": token_text(tokenizer, token),
        "logprob": finite(logprob),
        "bytes": token_bytes(tokenizer, token),
    })
}

/// JSON has no infinity: a token that a mask forbids has the logprob -9999, as vLLM writes it.
pub(crate) fn finite(logprob: f32) -> f32 {
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
