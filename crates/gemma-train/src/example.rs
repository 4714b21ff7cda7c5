//! One text to learn from.

use burn::tensor::Tensor;
use gemma_generate::TokenId;
use gemma_nn::{Phase, Segment};

/// A text as tokens, and which of them are to be learned.
#[derive(Clone, Debug, Default)]
pub struct Example {
    /// The whole sequence, beginning with `<bos>`.
    pub tokens: Vec<TokenId>,
    /// For each token, whether the model is to predict it from those before; as long as `tokens`. The first token is
    /// never predicted.
    pub learn: Vec<bool>,
    /// Tokens at the beginning that see each other both ways; 0 for a causal text.
    pub prefix_len: usize,
    /// Features that take the places of image tokens, `[image tokens, hidden_size]` for each image, in order.
    pub images: Vec<Tensor<2>>,
}

impl Example {
    /// A causal text of which some tokens are learned.
    ///
    /// # Panics
    /// When there is not one mark for each token.
    pub fn new(tokens: Vec<TokenId>, learn: Vec<bool>) -> Self {
        assert_eq!(tokens.len(), learn.len(), "a mark for every token");
        Self { tokens, learn, prefix_len: 0, images: Vec::new() }
    }

    /// A text that is learned from end to end.
    pub fn text(tokens: Vec<TokenId>) -> Self {
        let learn = vec![true; tokens.len()];
        Self::new(tokens, learn)
    }

    /// A prompt and what is to follow it, which alone is learned.
    pub fn completion(prompt: Vec<TokenId>, completion: &[TokenId]) -> Self {
        let mut learn = vec![false; prompt.len()];
        learn.resize(prompt.len() + completion.len(), true);
        let mut tokens = prompt;
        tokens.extend_from_slice(completion);
        Self::new(tokens, learn)
    }

    /// What the model reads: every token but the last.
    pub fn inputs(&self) -> &[TokenId] {
        &self.tokens[..self.tokens.len().saturating_sub(1)]
    }

    /// What it should say after each of them.
    pub fn targets(&self) -> impl Iterator<Item = Option<TokenId>> {
        self.tokens.iter().zip(&self.learn).skip(1).map(|(token, learn)| learn.then_some(*token))
    }

    /// Number of tokens that are learned.
    pub fn learned(&self) -> usize {
        self.targets().flatten().count()
    }

    /// Whether it asks for something: whether its first tokens are not to be learned.
    pub fn has_prompt(&self) -> bool {
        self.learn.first().is_some_and(|learn| !learn)
    }

    /// Where [`inputs`](Self::inputs) lie in their sequence. They are read like a prompt, however few they are.
    pub fn segment(&self) -> Segment {
        Segment::causal(0, self.inputs().len()).with_prefix(self.prefix_len).in_phase(Phase::Prefill)
    }

    /// Cuts the example to its first `most` tokens; how many were cut off.
    pub fn truncate(&mut self, most: usize) -> usize {
        let cut = self.tokens.len().saturating_sub(most);
        self.tokens.truncate(most);
        self.learn.truncate(most);
        cut
    }
}

impl AsRef<Example> for Example {
    fn as_ref(&self) -> &Example {
        self
    }
}
