//! Guesses what comes next from what was there before, for the model to check.
//!
//! Text repeats itself, and code more than most: a name that was written once is written again, a call looks like the
//! last one. When the last few tokens occurred before, what followed them then is a good guess now (Saxena, "Prompt
//! Lookup Decoding", 2023). A model can check several guessed tokens in one call, at hardly more than the price of one
//! where reading the weights is what takes the time; what it would not have said itself is thrown away, so the result
//! does not depend on the guesses.

use gemma_tokenizer::TokenId;

/// Most tokens that are compared with what was there before.
const LONGEST: usize = 4;
/// Fewest tokens that must agree: after a single one too much may follow.
const SHORTEST: usize = 2;
/// Most tokens guessed at once.
const MOST: usize = 16;
/// Tokens guessed at first, and after a guess that was all wrong.
const FIRST: usize = 2;

/// Guesses by looking for the last tokens in what was there before, and in other texts.
///
/// ```
/// use gemma_generate::Lookup;
///
/// let lookup = Lookup::new(vec![vec![7, 8, 9, 10]]);
/// assert_eq!(lookup.guess(&[1, 2, 3, 4, 1, 2], 2), [3, 4]);
/// assert_eq!(lookup.guess(&[1, 7, 8], 2), [9, 10]);     // from the other text
/// assert!(lookup.guess(&[1, 2, 3], 2).is_empty());
/// ```
#[derive(Clone, Debug)]
pub struct Lookup {
    others: Vec<Vec<TokenId>>,
    /// How many tokens to guess next time.
    length: usize,
}

impl Default for Lookup {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl Lookup {
    /// Looks in the sequence itself, then in `others`, the last of them first.
    pub fn new(others: Vec<Vec<TokenId>>) -> Self {
        Self { others, length: FIRST }
    }

    /// What may follow `tokens`: at most `most` tokens, none when nothing like their end was there before. Longer
    /// agreement is preferred, then the sequence itself, then what was there last.
    pub fn guess<'a>(&'a self, tokens: &'a [TokenId], most: usize) -> &'a [TokenId] {
        let lengths = (SHORTEST..=LONGEST.min(tokens.len())).rev();
        let found = lengths.into_iter().find_map(|length| {
            let (before, end) = tokens.split_at(tokens.len() - length);
            // an occurrence must end before the last token, so that something follows it
            let own = (&tokens[..before.len() + length - 1], tokens);
            let others = self.others.iter().rev().map(|text| (&text[..text.len().saturating_sub(1)], text.as_slice()));
            std::iter::once(own).chain(others).find_map(|(place, text)| {
                let at = place.windows(length).rposition(|window| window == end)? + length;
                Some(&text[at..text.len().min(at + most)])
            })
        });
        found.unwrap_or_default()
    }

    /// The guess for the next call of the model, of at most `limit` tokens.
    pub(crate) fn next(&self, tokens: &[TokenId], limit: usize) -> Vec<TokenId> {
        self.guess(tokens, self.length.min(limit)).to_vec()
    }

    /// Learns how a guess fared: the next is longer after one that was right, short after one that was wrong.
    pub(crate) fn learn(&mut self, guessed: usize, right: usize) {
        self.length = if right == guessed { (2 * self.length).min(MOST) } else { right.clamp(FIRST, MOST) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_agreement_wins_then_the_latest() {
        let lookup = Lookup::default();
        //                  3 tokens agree       2 agree, later
        let tokens = [5, 1, 2, 3, 10, 11, 9, 2, 3, 20, 21, 1, 2, 3];
        assert_eq!(lookup.guess(&tokens, 2), [10, 11]);
        let tokens = [2, 3, 10, 2, 3, 20, 21, 7, 2, 3];
        assert_eq!(lookup.guess(&tokens, 8), [20, 21, 7, 2, 3]);
    }

    #[test]
    fn a_repetition_of_one_token_is_guessed_to_go_on() {
        assert_eq!(Lookup::default().guess(&[4, 4, 4], 3), [4]);
        assert!(Lookup::default().guess(&[4, 4], 3).is_empty());
        assert!(Lookup::default().guess(&[], 3).is_empty());
        assert!(Lookup::default().guess(&[1, 2, 1, 2], 0).is_empty());
    }

    #[test]
    fn guesses_grow_while_they_are_right() {
        let mut lookup = Lookup::default();
        let lengths: Vec<usize> = [(2, 2), (4, 4), (8, 8), (16, 16), (16, 7), (7, 0)]
            .into_iter()
            .map(|(guessed, right)| {
                lookup.learn(guessed, right);
                lookup.length
            })
            .collect();
        assert_eq!(lengths, [4, 8, 16, 16, 7, 2]);
    }
}
