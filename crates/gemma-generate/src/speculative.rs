//! Speculative decoding: a drafter guesses the next tokens, the model verifies several of them in one forward pass.
//!
//! A draft token is accepted while the model samples the same token from its own logits (Leviathan et al. 2023,
//! arXiv:2211.17192, with a draft that is not random), so the text does not depend on the draft. There are two drafters:
//!
//! - [`PromptLookup`]: text repeats itself, and code more than most. When the last few tokens occurred before, what
//!   followed them then is a good draft now (Saxena, "Prompt Lookup Decoding", 2023).
//! - [`DraftModel`]: a smaller model with the same vocabulary says what it would say.
//!
//! Whether that is faster depends on the machine. Where reading the weights is what takes the time, eight tokens cost
//! hardly more than one; where arithmetic is, they cost several. So drafts and passes are timed, and after one that did not
//! pay the next draft waits, twice as long each time.

mod draft_model;

use std::time::Instant;

use gemma_tokenizer::TokenId;

use crate::rows::Rows;

pub use draft_model::{DraftModel, ModelDrafter};

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

/// Guesses how a text goes on.
pub trait Drafter: Send {
    /// Tokens that may follow `tokens`, `most` or fewer; none where it has no guess. `tokens` is usually the text of the call
    /// before, and a few tokens more.
    fn draft(&mut self, tokens: &[TokenId], most: usize) -> Vec<TokenId>;
}

/// Drafts the next tokens from n-grams of the sequence and of other texts.
///
/// ```
/// use gemma_generate::PromptLookup;
///
/// let lookup = PromptLookup::new(vec![vec![7, 8, 9, 10]]);
/// assert_eq!(lookup.find(&[1, 2, 3, 4, 1, 2], 2), [3, 4]);
/// assert_eq!(lookup.find(&[1, 7, 8], 2), [9, 10]);     // from the other text
/// assert!(lookup.find(&[1, 2, 3], 2).is_empty());
/// ```
#[derive(Clone, Debug, Default)]
pub struct PromptLookup {
    others: Vec<Vec<TokenId>>,
}

impl PromptLookup {
    /// Looks in the sequence itself, then in `others`, the last of them first.
    pub fn new(others: Vec<Vec<TokenId>>) -> Self {
        Self { others }
    }

    /// What may follow `tokens`: at most `most` tokens, none when nothing like their end was there before. Longer
    /// agreement is preferred, then the sequence itself, then what was there last.
    pub fn find<'a>(&'a self, tokens: &'a [TokenId], most: usize) -> &'a [TokenId] {
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
}

impl Drafter for Box<dyn Drafter + '_> {
    fn draft(&mut self, tokens: &[TokenId], most: usize) -> Vec<TokenId> {
        (**self).draft(tokens, most)
    }
}

impl Drafter for PromptLookup {
    fn draft(&mut self, tokens: &[TokenId], most: usize) -> Vec<TokenId> {
        self.find(tokens, most).to_vec()
    }
}

/// Speculative decoding of one request: its drafters, and how often and how long they draft.
pub struct Speculation<'a> {
    /// The first that has a guess drafts.
    drafters: Vec<Box<dyn Drafter + 'a>>,
    /// How many tokens to draft next time.
    length: usize,
    /// Most tokens to draft.
    most: usize,
    /// How many tokens pass before that.
    pause: usize,
    /// How many will pass after the next draft that does not pay.
    next_pause: usize,
    /// Whether a draft must pay.
    thrifty: bool,
    /// Seconds that the model takes for one token, in the mean of the last ones.
    single: Option<f64>,
    /// Seconds that the last draft took.
    drafting: f64,
    /// Whether the drafters know the text but for its last tokens.
    begun: bool,
}

impl std::fmt::Debug for Speculation<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Speculation").field("drafters", &self.drafters.len()).field("length", &self.length).finish()
    }
}

impl Default for Speculation<'_> {
    /// No drafter: nothing is drafted.
    fn default() -> Self {
        Self {
            drafters: Vec::new(),
            length: FIRST,
            most: MOST,
            pause: 0,
            next_pause: 1,
            thrifty: true,
            single: None,
            drafting: 0.0,
            begun: false,
        }
    }
}

impl<'a> Speculation<'a> {
    /// Drafts with `drafter`, where that pays.
    pub fn new(drafter: impl Drafter + 'a) -> Self {
        Self::default().or(drafter)
    }

    /// Asks `drafter` where those before it have no guess.
    pub fn or(mut self, drafter: impl Drafter + 'a) -> Self {
        self.drafters.push(Box::new(drafter));
        self
    }

    /// Drafts `most` tokens at most, 16 without this.
    pub fn at_most(self, most: usize) -> Self {
        Self { most, length: self.length.min(most), ..self }
    }

    /// Drafts whenever it can, whether that pays or not: the number of forward passes then does not depend on the clock.
    pub fn always(self) -> Self {
        Self { thrifty: false, ..self }
    }

    /// The draft for the next forward pass, of at most `limit` tokens.
    pub(crate) fn next(&mut self, tokens: &[TokenId], limit: usize) -> Vec<TokenId> {
        if self.thrifty && (self.pause > 0 || self.single.is_none()) {
            self.pause = self.pause.saturating_sub(1);
            return Vec::new();
        }
        let (begin, most) = (Instant::now(), self.length.min(limit));
        if most == 0 {
            return Vec::new();
        }
        let draft = self.drafters.iter_mut().map(|drafter| drafter.draft(tokens, most)).find(|draft| !draft.is_empty());
        let draft = draft.unwrap_or_default();
        // a model that drafts prefills the prompt once, which says nothing about the drafts to come
        let counts = std::mem::replace(&mut self.begun, true);
        self.drafting = if counts { begin.elapsed().as_secs_f64() } else { 0.0 };
        draft
    }

    /// Takes note of how long the model takes for one token.
    pub(crate) fn measured(&mut self, seconds: f64) {
        self.single = Some(self.single.map_or(seconds, |mean| 0.8 * mean + 0.2 * seconds));
    }

    /// Takes note of how many tokens of a draft were accepted, and in how many seconds of the model: the next is longer after
    /// one that was accepted whole, short after one that was wrong, and later after one that, with its verification, took
    /// longer than the tokens it gave would have taken one by one.
    pub(crate) fn record(&mut self, drafted: usize, accepted: usize, seconds: f64) {
        let longest = if accepted == drafted { 2 * self.length } else { accepted.max(FIRST) };
        self.length = longest.min(self.most);
        let spent = seconds + self.drafting;
        if self.single.is_none_or(|single| spent <= single * (accepted + 1) as f64) {
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
    /// The logits after the token before the draft, and after each token of it.
    pub(crate) rows: Rows,
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
        assert_eq!(lookup.find(&tokens, 2), [10, 11]);
        let tokens = [2, 3, 10, 2, 3, 20, 21, 7, 2, 3];
        assert_eq!(lookup.find(&tokens, 8), [20, 21, 7, 2, 3]);
    }

    #[test]
    fn a_repetition_of_one_token_is_drafted_to_go_on() {
        assert_eq!(PromptLookup::default().find(&[4, 4, 4], 3), [4]);
        assert!(PromptLookup::default().find(&[4, 4], 3).is_empty());
        assert!(PromptLookup::default().find(&[], 3).is_empty());
        assert!(PromptLookup::default().find(&[1, 2, 1, 2], 0).is_empty());
    }

    fn lookup() -> Speculation<'static> {
        Speculation::new(PromptLookup::default())
    }

    #[test]
    fn drafts_grow_while_they_are_accepted() {
        let lengths = |mut speculation: Speculation<'_>| -> Vec<usize> {
            let records = [(2, 2), (4, 4), (8, 8), (16, 16), (16, 7), (7, 0)].into_iter();
            let length = |(drafted, accepted)| {
                speculation.record(drafted, accepted, 0.0);
                speculation.length
            };
            records.map(length).collect()
        };
        assert_eq!(lengths(lookup()), [4, 8, 16, 16, 7, 2]);
        assert_eq!(lengths(lookup().at_most(5)), [4, 5, 5, 5, 5, 2]);
        assert_eq!(lengths(lookup().at_most(1)), [1, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn a_draft_that_does_not_pay_lets_the_next_ones_wait() {
        let tokens = [1, 2, 3, 1, 2];
        let mut speculation = lookup();
        assert!(speculation.next(&tokens, 9).is_empty(), "the price of one token is not known yet");
        speculation.measured(1.0);
        assert_eq!(speculation.next(&tokens, 9), [3, 1]);
        // two tokens in the time of three, and again
        for waits in [1, 2, 4, 8] {
            speculation.record(2, 1, 3.0);
            let waited = (0..100).take_while(|_| speculation.next(&tokens, 9).is_empty()).count();
            assert_eq!(waited, waits);
        }
        // three tokens in the time of two
        speculation.record(2, 2, 2.0);
        assert!(!speculation.next(&tokens, 9).is_empty());
        speculation.record(2, 0, 1.5);
        let mut always = lookup().always();
        always.measured(1.0);
        always.record(2, 0, 100.0);
        assert!(!always.next(&tokens, 9).is_empty());
    }

    /// Drafts one token, and takes its time.
    struct Slow(u64);

    impl Drafter for Slow {
        fn draft(&mut self, _tokens: &[TokenId], _most: usize) -> Vec<TokenId> {
            std::thread::sleep(std::time::Duration::from_millis(self.0));
            vec![7]
        }
    }

    #[test]
    fn the_time_of_drafting_counts_but_for_the_first_draft() {
        // long enough that a busy machine changes nothing
        let mut speculation = Speculation::new(Slow(240));
        speculation.measured(0.16);
        for (accepted, next) in [(1, vec![7]), (1, vec![7]), (0, vec![])] {
            speculation.next(&[1], 9);
            // one token in the time of one, or two in that of two and a half
            speculation.record(1, accepted, 0.04);
            assert_eq!(speculation.next(&[1], 9), next);
            speculation.pause = 0;
        }
    }

    #[test]
    fn the_next_drafter_is_asked_where_the_first_has_no_guess() {
        let mut speculation = lookup().or(Slow(0));
        speculation.measured(1.0);
        assert_eq!(speculation.next(&[1, 2, 3, 1, 2], 9), [3, 1]);
        assert_eq!(speculation.next(&[1, 2, 3], 9), [7]);
        assert!(speculation.next(&[1, 2, 3], 0).is_empty());
    }
}
