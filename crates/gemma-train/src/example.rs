//! One text to learn from.

use gemma_generate::TokenId;

/// A text as tokens, and which of them are to be learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The whole sequence, beginning with `<bos>`.
    pub tokens: Vec<TokenId>,
    /// For each token, whether the model is to predict it from those before; as long as `tokens`. The first token is
    /// never predicted.
    pub learn: Vec<bool>,
}

impl Example {
    /// A text that is learned from end to end.
    pub fn text(tokens: Vec<TokenId>) -> Self {
        let learn = vec![true; tokens.len()];
        Self { tokens, learn }
    }

    /// What the model reads: every token but the last.
    pub fn inputs(&self) -> &[TokenId] {
        &self.tokens[..self.tokens.len().saturating_sub(1)]
    }

    /// What it should say after each of them.
    pub fn targets(&self) -> impl Iterator<Item = Option<TokenId>> {
        self.tokens.iter().zip(&self.learn).skip(1).map(|(token, learn)| learn.then_some(*token))
    }
}

impl AsRef<Example> for Example {
    fn as_ref(&self) -> &Example {
        self
    }
}
