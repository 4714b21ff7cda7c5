//! Speculative decoding by prompt lookup: n-grams of the text draft the next tokens, the model verifies them.
//!
//! Text repeats itself, and code more than most: a name that was written once is written again, a call looks like the
//! last one. When the last few tokens occurred before, what followed them then is a good draft now (Saxena, "Prompt
//! Lookup Decoding", 2023). A model verifies several draft tokens in one forward pass; those that it would not have
//! sampled itself are rolled back, so the result does not depend on the draft.
//!
//! Whether that is faster depends on the machine. Where reading the weights is what takes the time, eight tokens cost
//! hardly more than one; where arithmetic is, they cost several. So the passes are timed, and after one that did not pay
//! the next draft waits, twice as long each time.

use gemma_tokenizer::TokenId;

/// Most tokens that are compared with what was there before.
const LONGEST: usize = 4;
/// Fewest tokens that must agree: after a single one too much may follow.
const SHORTEST: usize = 2;
/// Most draft tokens at once.
const MOST: usize = 16;
/// Draft tokens at first, and after a draft that was rejected whole.
const FIRST: usize = 2;
/// Most tokens that pass without a draft after one that did not pay.
const LONGEST_PAUSE: usize = 64;

/// Drafts the next tokens from n-grams of the sequence and of other texts.
///
/// ```
/// use gemma_generate::PromptLookup;
///
/// let lookup = PromptLookup::new(vec![vec![7, 8, 9, 10]]);
/// assert_eq!(lookup.draft(&[1, 2, 3, 4, 1, 2], 2), [3, 4]);
/// assert_eq!(lookup.draft(&[1, 7, 8], 2), [9, 10]);     // from the other text
/// assert!(lookup.draft(&[1, 2, 3], 2).is_empty());
/// ```
#[derive(Clone, Debug)]
pub struct PromptLookup {
    others: Vec<Vec<TokenId>>,
    /// How many tokens to draft next time.
    length: usize,
    /// How many tokens pass before that.
    pause: usize,
    /// How many will pass after the next draft that does not pay.
    next_pause: usize,
    /// Whether a draft must pay.
    thrifty: bool,
    /// Seconds that the model takes for one token, in the mean of the last ones.
    single: Option<f64>,
}

impl Default for PromptLookup {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl PromptLookup {
    /// Looks in the sequence itself, then in `others`, the last of them first.
    pub fn new(others: Vec<Vec<TokenId>>) -> Self {
        Self { others, length: FIRST, pause: 0, next_pause: 1, thrifty: true, single: None }
    }

    /// Drafts whenever it can, whether that pays or not: the number of forward passes then does not depend on the clock.
    pub fn always(self) -> Self {
        Self { thrifty: false, ..self }
    }

    /// What may follow `tokens`: at most `most` tokens, none when nothing like their end was there before. Longer
    /// agreement is preferred, then the sequence itself, then what was there last.
    pub fn draft<'a>(&'a self, tokens: &'a [TokenId], most: usize) -> &'a [TokenId] {
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

    /// The draft for the next forward pass, of at most `limit` tokens.
    pub(crate) fn next(&mut self, tokens: &[TokenId], limit: usize) -> Vec<TokenId> {
        if self.thrifty && (self.pause > 0 || self.single.is_none()) {
            self.pause = self.pause.saturating_sub(1);
            return Vec::new();
        }
        self.draft(tokens, self.length.min(limit)).to_vec()
    }

    /// Takes note of how long the model takes for one token.
    pub(crate) fn measured(&mut self, seconds: f64) {
        self.single = Some(self.single.map_or(seconds, |mean| 0.8 * mean + 0.2 * seconds));
    }

    /// Takes note of how many tokens of a draft were accepted, and in how many seconds: the next is longer after one that
    /// was accepted whole, short after one that
    /// was wrong, and later after one that took longer than the tokens it gave would have taken one by one.
    pub(crate) fn record(&mut self, drafted: usize, accepted: usize, seconds: f64) {
        self.length = if accepted == drafted { (2 * self.length).min(MOST) } else { accepted.clamp(FIRST, MOST) };
        let pays = self.single.is_none_or(|single| seconds <= single * (accepted + 1) as f64);
        if pays {
            (self.pause, self.next_pause) = (0, 1);
        } else {
            self.pause = self.next_pause;
            self.next_pause = (2 * self.next_pause).min(LONGEST_PAUSE);
        }
    }
}

/// A draft that the model has verified, and how far it was used.
pub(crate) struct Drafted {
    pub(crate) tokens: Vec<TokenId>,
    /// Logits `[1 + tokens, vocab]`: after the token before the draft, and after each token of it.
    pub(crate) logits: Vec<f32>,
    /// How many of these rows were used: one more than draft tokens were accepted.
    pub(crate) used: usize,
    /// Seconds of the forward pass.
    pub(crate) seconds: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_agreement_wins_then_the_latest() {
        let lookup = PromptLookup::default();
        //                  3 tokens agree       2 agree, later
        let tokens = [5, 1, 2, 3, 10, 11, 9, 2, 3, 20, 21, 1, 2, 3];
        assert_eq!(lookup.draft(&tokens, 2), [10, 11]);
        let tokens = [2, 3, 10, 2, 3, 20, 21, 7, 2, 3];
        assert_eq!(lookup.draft(&tokens, 8), [20, 21, 7, 2, 3]);
    }

    #[test]
    fn a_repetition_of_one_token_is_drafted_to_go_on() {
        assert_eq!(PromptLookup::default().draft(&[4, 4, 4], 3), [4]);
        assert!(PromptLookup::default().draft(&[4, 4], 3).is_empty());
        assert!(PromptLookup::default().draft(&[], 3).is_empty());
        assert!(PromptLookup::default().draft(&[1, 2, 1, 2], 0).is_empty());
    }

    #[test]
    fn drafts_grow_while_they_are_accepted() {
        let mut lookup = PromptLookup::default();
        let lengths: Vec<usize> = [(2, 2), (4, 4), (8, 8), (16, 16), (16, 7), (7, 0)]
            .into_iter()
            .map(|(drafted, accepted)| {
                lookup.record(drafted, accepted, 0.0);
                lookup.length
            })
            .collect();
        assert_eq!(lengths, [4, 8, 16, 16, 7, 2]);
    }

    #[test]
    fn a_draft_that_does_not_pay_lets_the_next_ones_wait() {
        let tokens = [1, 2, 3, 1, 2];
        let mut lookup = PromptLookup::default();
        assert!(lookup.next(&tokens, 9).is_empty(), "the price of one token is not known yet");
        lookup.measured(1.0);
        assert_eq!(lookup.next(&tokens, 9), [3, 1]);
        // two tokens in the time of three, and again
        for waits in [1, 2, 4, 8] {
            lookup.record(2, 1, 3.0);
            let waited = (0..100).take_while(|_| lookup.next(&tokens, 9).is_empty()).count();
            assert_eq!(waited, waits);
        }
        // three tokens in the time of two
        lookup.record(2, 2, 2.0);
        assert!(!lookup.next(&tokens, 9).is_empty());
        lookup.record(2, 0, 1.5);
        let mut always = PromptLookup::default().always();
        always.measured(1.0);
        always.record(2, 0, 100.0);
        assert!(!always.next(&tokens, 9).is_empty());
    }
}
