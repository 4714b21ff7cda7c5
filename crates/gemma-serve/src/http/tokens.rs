//! Logprobs as the protocols spell them.

use gemma_tokenizer::{TokenId, Tokenizer};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::backend::TokenScore;
use crate::tokens::{finite, logprob_entry, token_text};

/// One token of a chat's `logprobs.content`.
pub(crate) fn chat_logprob(tokenizer: &Tokenizer, score: &TokenScore) -> Value {
    logprob_entry(tokenizer, score.token, score.logprob, &score.top)
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
