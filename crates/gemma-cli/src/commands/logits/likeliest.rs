//! The likeliest tokens after each token, as JSON.

use std::sync::Arc;

use gemma_generate::{Error, TokenId, top_logprobs};
use gemma_serve::tokens::alternative;
use gemma_tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::tokens_file::TokenRows;

/// A position, and the likeliest tokens after it with their logprobs.
type Position = (usize, Vec<(TokenId, f64)>);

/// The `top` likeliest tokens after the tokens of some rows.
pub(super) struct Likeliest {
    top: usize,
    /// Only after the last token of each row.
    last: bool,
    tokenizer: Option<Arc<Tokenizer>>,
    /// Tokens of each row.
    lengths: Vec<usize>,
    batch: bool,
    vocab: usize,
    /// Position and likeliest tokens, by row.
    found: Vec<Vec<Position>>,
}

impl Likeliest {
    pub(super) fn new(top: usize, last: bool, tokenizer: Option<Arc<Tokenizer>>) -> Self {
        Self { top, last, tokenizer, lengths: Vec::new(), batch: false, vocab: 0, found: Vec::new() }
    }

    /// The same for rows of that many tokens.
    pub(super) fn of(self, lengths: &[usize], batch: bool, vocab: usize) -> Self {
        let found = lengths.iter().map(|_| Vec::new()).collect();
        Self { top: self.top.min(vocab), lengths: lengths.to_vec(), batch, vocab, found, ..self }
    }

    /// How many of `len` tokens from `start` on come before the first that is wanted.
    pub(super) fn wanted(&self, row: usize, start: usize, len: usize) -> usize {
        if self.last { (self.lengths[row] - 1).saturating_sub(start).min(len) } else { 0 }
    }

    /// Takes the logits of some tokens of a row, the first of which is `token`.
    pub(super) fn put(&mut self, row: usize, token: usize, logits: &[f32]) -> Result<(), Error> {
        for (offset, logits) in logits.chunks_exact(self.vocab).enumerate() {
            self.found[row].push((token + offset, top_logprobs(logits, self.top)?));
        }
        Ok(())
    }

    /// The JSON object.
    pub(super) fn report(&self, ids: &TokenRows) -> Value {
        let row = |(ids, found): (&Vec<TokenId>, &Vec<Position>)| {
            let position = |(position, top): &Position| {
                let top: Vec<Value> = top.iter().map(|(id, logprob)| self.token(*id, *logprob)).collect();
                json!({"position": position, "id": ids[*position], "top_logprobs": top})
            };
            json!({"positions": found.iter().map(position).collect::<Vec<_>>()})
        };
        let mut rows: Vec<Value> = ids.rows().iter().zip(&self.found).map(row).collect();
        match (self.batch, rows.len()) {
            (false, 1) => rows.swap_remove(0),
            _ => json!({"rows": rows}),
        }
    }

    fn token(&self, id: TokenId, logprob: f64) -> Value {
        let mut entry = match &self.tokenizer {
            Some(tokenizer) => alternative(tokenizer, id, logprob as f32),
            None => json!({"token": null, "logprob": logprob as f32, "bytes": null}),
        };
        entry["id"] = id.into();
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_reported_as_they_were_given() {
        let ids = TokenRows::Batch(vec![vec![2, 5], vec![2]]);
        let mut likeliest = Likeliest::new(2, false, None).of(&[2, 1], true, 3);
        likeliest.put(0, 0, &[0.0, 2.0, 1.0, 1.0, 0.0, 0.0]).expect("finite");
        likeliest.put(1, 0, &[0.0, 0.0, 1.0]).expect("finite");
        let report = likeliest.report(&ids);
        assert_eq!(report["rows"][0]["positions"][1]["id"], 5);
        assert_eq!(report["rows"][0]["positions"][0]["top_logprobs"][1]["id"], 2);
        assert_eq!(report["rows"][1]["positions"][0]["top_logprobs"].as_array().map(Vec::len), Some(2));
        let last = Likeliest::new(2, true, None).of(&[7], false, 3);
        assert_eq!([last.wanted(0, 0, 4), last.wanted(0, 4, 3)], [4, 2]);
        assert!(Likeliest::new(1, false, None).of(&[1], false, 1).put(0, 0, &[f32::NAN]).is_err());
    }
}
