//! The prompt of a hole: what fits into the budget, in the order of the parts.

use crate::fim::{fim_tokens, text_tokens};
use crate::truncation::{self, Truncation};
use crate::{Error, Infill, Order};
use gemma_tokenizer::{TokenId, Tokenizer};

/// What the model is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// `<bos>` and all that follows.
    pub tokens: Vec<TokenId>,
    /// What did not fit.
    pub truncation: Truncation,
}

impl Infill {
    /// The prompt, of at most `budget` tokens. What does not fit is cut by whole lines, those nearest to the hole kept;
    /// the prefix may fill three quarters of the room, the other files what prefix and suffix leave. Lines end in `\n`
    /// whatever they end in here, and a byte order mark is left out.
    ///
    /// # Errors
    /// [`Error::NoInfilling`] when the tokenizer has no infilling tokens, [`Error::Budget`] when `budget` is too small
    /// for any prompt.
    pub fn prompt(&self, tokenizer: &Tokenizer, order: Order, budget: usize) -> Result<Prompt, Error> {
        let fim = fim_tokens(tokenizer)?;
        let plain = self.plain();
        let cut = truncation::choose(&plain, tokenizer, budget)?;
        let mut tokens = vec![tokenizer.bos()];
        for file in &cut.files {
            tokens.extend(text_tokens(tokenizer, &format!("{}\n{}", file.path, file.text)));
            tokens.push(fim.file_separator);
        }
        if let Some(path) = cut.path {
            tokens.extend(text_tokens(tokenizer, &format!("{path}\n")));
        }
        tokens.push(fim.prefix);
        match order {
            Order::Psm => {
                tokens.extend(text_tokens(tokenizer, cut.prefix));
                tokens.push(fim.suffix);
                tokens.extend(text_tokens(tokenizer, cut.suffix));
                tokens.push(fim.middle);
            }
            Order::Spm => {
                tokens.push(fim.suffix);
                tokens.extend(text_tokens(tokenizer, cut.suffix));
                tokens.push(fim.middle);
                tokens.extend(text_tokens(tokenizer, cut.prefix));
            }
        }
        Ok(Prompt { tokens, truncation: cut.left_out })
    }
}
