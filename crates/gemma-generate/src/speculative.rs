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
//! hardly more than one; where arithmetic is, they cost several. So drafts and passes are timed, and a draft is made where it
//! is expected to gain time, or where little can be lost: see [`Speculation`].

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
/// The probability that the next draft token is accepted, before anything is known of a drafter, and the weight of each token
/// that is verified.
const ACCEPTED: (f64, f64) = (0.7, 0.25);
/// What each draft token adds to a forward pass, relative to a pass with one token, before one was timed, and the weight of
/// each that is timed.
const ADDED: (f64, f64) = (0.15, 0.3);
/// By how much the tokens that a draft is expected to bring must be worth more than it costs: both are estimates.
const MARGIN: f64 = 0.15;
/// The share of the time that is spent on drafts which are not expected to pay, to find out when they do again.
const TRIED: f64 = 0.01;
/// The most that is saved up for that, and the most that is owed, in passes with one token.
const SAVED: f64 = 2.0;
const OWED: f64 = 1.0;
/// Tokens that a text is expected to go on for, where it is not expected to end before; after more, as many again.
const HORIZON: usize = 64;

/// Guesses how a text goes on.
pub trait Drafter: Send {
    /// Tokens that may follow `tokens`, `most` or fewer; none where it has no guess. `tokens` is usually the text of the call
    /// before, and a few tokens more.
    fn draft(&mut self, tokens: &[TokenId], most: usize) -> Vec<TokenId>;

    /// What a draft after `tokens` is expected to take. By default nothing, until drafts were timed.
    fn cost(&mut self, tokens: &[TokenId]) -> DraftCost {
        let _ = tokens;
        DraftCost::default()
    }
}

/// What a [`Drafter`] is expected to take, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DraftCost {
    /// Before the first token: a draft model prefills what it does not know of the text.
    pub prefill: f64,
    /// For each token.
    pub token: f64,
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

    fn cost(&mut self, tokens: &[TokenId]) -> DraftCost {
        (**self).cost(tokens)
    }
}

impl Drafter for PromptLookup {
    fn draft(&mut self, tokens: &[TokenId], most: usize) -> Vec<TokenId> {
        self.find(tokens, most).to_vec()
    }
}

/// A drafter, and what is known of its drafts.
struct Entry<'a> {
    drafter: Box<dyn Drafter + 'a>,
    /// How many tokens to draft next time.
    length: usize,
    /// The probability that the next token of a draft is accepted, a mean of the last ones.
    accepted: f64,
    /// Seconds for each token of a draft, once they were measured.
    token: Option<f64>,
}

/// Speculative decoding of one request: its drafters, and how often and how long they draft.
///
/// The first drafter that has a guess drafts: 2 tokens at first, twice as many after a draft that was accepted whole, as
/// many as were accepted after another. It is asked where that is expected to gain time. With `p`, the probability that its next
/// token is accepted, a draft of `n` tokens brings `p + p² + … + pⁿ` more tokens, each worth a pass of the model with one
/// token; it costs what drafting takes and what `n` tokens add to the pass. All of that is measured as the text goes on. What a drafter
/// must do first, such as prefilling a prompt, has to be gained by the tokens that are expected to follow.
///
/// A drafter that is not expected to pay is asked where a hundredth of the time until then pays for it, so that a text that
/// begins to repeat itself is found; so drafts that are always wrong cost that much, and about two tokens' time at first.
pub struct Speculation<'a> {
    drafters: Vec<Entry<'a>>,
    /// Most tokens to draft.
    most: usize,
    /// Whether a draft must pay.
    thrifty: bool,
    /// Seconds that the model takes for one token, in the mean of the last ones.
    single: Option<f64>,
    /// What a draft token adds to a pass, relative to that.
    added: f64,
    /// Seconds that may be spent on a draft that is not expected to pay.
    credit: f64,
    /// Tokens so far.
    passed: usize,
    /// Which drafter made the last draft, and the seconds that it took.
    last: (usize, f64),
}

impl std::fmt::Debug for Speculation<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lengths: Vec<_> = self.drafters.iter().map(|entry| entry.length).collect();
        f.debug_struct("Speculation").field("lengths", &lengths).field("most", &self.most).finish_non_exhaustive()
    }
}

impl Default for Speculation<'_> {
    /// No drafter: nothing is drafted.
    fn default() -> Self {
        Self {
            drafters: Vec::new(),
            most: MOST,
            thrifty: true,
            single: None,
            added: ADDED.0,
            credit: 0.0,
            passed: 0,
            last: (0, 0.0),
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
        self.drafters.push(Entry { drafter: Box::new(drafter), length: FIRST, accepted: ACCEPTED.0, token: None });
        self
    }

    /// Drafts `most` tokens at most, 16 without this.
    pub fn at_most(self, most: usize) -> Self {
        Self { most, ..self }
    }

    /// Drafts whenever it can, whether that pays or not: the number of forward passes then does not depend on the clock.
    pub fn always(self) -> Self {
        Self { thrifty: false, ..self }
    }

    /// The draft for the next forward pass, of at most `limit` tokens, where at most `left` tokens are still wanted.
    pub(crate) fn next(&mut self, tokens: &[TokenId], limit: usize, left: usize) -> Vec<TokenId> {
        if self.thrifty && self.single.is_none() {
            return Vec::new();
        }
        for index in 0..self.drafters.len() {
            let most = self.drafters[index].length.min(self.most).min(limit);
            if most == 0 {
                continue;
            }
            // nobody asks what a draft costs that need not pay: a draft model would have to find out
            let cost = if self.thrifty { self.drafters[index].drafter.cost(tokens) } else { DraftCost::default() };
            if self.thrifty && !self.pays(index, cost, most, left) {
                continue;
            }
            // a drafter prefills a prompt once, which says nothing about the drafts to come
            let prefill = cost.prefill > 0.0;
            let entry = &mut self.drafters[index];
            let begin = Instant::now();
            let draft = entry.drafter.draft(tokens, most);
            let seconds = begin.elapsed().as_secs_f64();
            if !prefill {
                mix(&mut entry.token, seconds / draft.len().max(1) as f64);
            }
            self.last = (index, if prefill { 0.0 } else { seconds });
            if !draft.is_empty() {
                return draft;
            }
            // no guess, which took time all the same
            if self.single.is_some_and(|single| seconds > 0.01 * single) {
                entry.accepted *= 1.0 - ACCEPTED.1;
                self.gained(-self.last.1);
            }
        }
        Vec::new()
    }

    /// Whether a draft of `most` tokens is expected to gain time, or can be afforded.
    fn pays(&self, index: usize, cost: DraftCost, most: usize, left: usize) -> bool {
        let Some(single) = self.single else { return false };
        let entry = &self.drafters[index];
        let price = most as f64 * (entry.token.unwrap_or(cost.token) + self.added * single);
        let accepted: f64 = (1..=most).map(|count| entry.accepted.powi(count as i32)).sum();
        let gain = single * accepted - (1.0 + MARGIN) * price;
        let horizon = left.min(self.passed.max(HORIZON)) as f64;
        (gain > 0.0 && cost.prefill <= horizon * gain / (1.0 + accepted)) || price + cost.prefill <= self.credit
    }

    /// Takes note of how long the model took for one token.
    pub(crate) fn measured(&mut self, seconds: f64) {
        mix(&mut self.single, seconds);
        self.passed += 1;
        self.gained(TRIED * seconds);
    }

    /// Takes note of how many tokens of a draft were accepted, and in how many seconds of the model.
    pub(crate) fn record(&mut self, drafted: usize, accepted: usize, seconds: f64) {
        let (index, drafting) = self.last;
        let entry = &mut self.drafters[index];
        entry.length = if accepted == drafted { 2 * entry.length } else { accepted.max(FIRST) }.min(self.most);
        for right in (0..drafted.min(accepted + 1)).map(|place| place < accepted) {
            entry.accepted += ACCEPTED.1 * (f64::from(u8::from(right)) - entry.accepted);
        }
        self.passed += accepted + 1;
        if let Some(single) = self.single {
            // a token of a pass takes no longer than a pass of its own; what does was held up by something else
            let added = ((seconds / single - 1.0) / drafted.max(1) as f64).clamp(0.0, 1.0);
            self.added += ADDED.1 * (added - self.added);
            let spent = drafting + seconds.min(single * (drafted + 1) as f64);
            self.gained(single * (accepted + 1) as f64 - (1.0 - TRIED) * spent);
        }
    }

    /// Adds to what may be spent on drafts that are not expected to pay.
    fn gained(&mut self, seconds: f64) {
        let single = self.single.unwrap_or(0.0);
        self.credit = (self.credit + seconds).clamp(-OWED * single, SAVED * single);
    }
}

/// The mean of the last few values, with one more.
fn mix(mean: &mut Option<f64>, value: f64) {
    *mean = Some(mean.map_or(value, |mean| 0.8 * mean + 0.2 * value));
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
            speculation = speculation.always();
            let tokens: Vec<TokenId> = [7; 40].into_iter().chain([1, 2]).chain([8; 40]).chain([1, 2]).collect();
            let records = [(2, 2), (4, 4), (8, 8), (16, 16), (16, 7), (7, 0)].into_iter();
            let length = |(drafted, accepted)| {
                speculation.record(drafted, accepted, 0.0);
                speculation.next(&tokens, 99, 99).len()
            };
            records.map(length).collect()
        };
        assert_eq!(lengths(lookup()), [4, 8, 16, 16, 7, 2]);
        assert_eq!(lengths(lookup().at_most(5)), [4, 5, 5, 5, 5, 2]);
        assert_eq!(lengths(lookup().at_most(1)), [1, 1, 1, 1, 1, 1]);
    }

    /// A machine on which a pass takes `1 + added` for each draft token, and a drafter `token` for each of its own and whether
    /// each is right.
    struct Machine<F> {
        added: f64,
        right: F,
    }

    impl<F: FnMut(usize) -> bool> Machine<F> {
        /// The time of `count` tokens, of which each takes 1 without drafts, and the tokens drafted.
        fn run(&mut self, speculation: &mut Speculation<'_>, count: usize) -> (f64, usize) {
            let (mut time, mut done, mut drafted) = (0.0, 0, 0);
            let tokens = [1, 2, 3, 1, 2, 3, 1, 2];
            while done < count {
                let draft = speculation.next(&tokens, count - done - 1, count - done).len();
                let seconds = 1.0 + self.added * draft as f64;
                time += seconds;
                drafted += draft;
                let accepted = (0..draft).take_while(|place| (self.right)(done + place)).count();
                match draft {
                    0 => speculation.measured(seconds),
                    _ => {
                        time += speculation.last.1;
                        speculation.record(draft, accepted, seconds);
                    }
                }
                done += accepted + 1;
            }
            (time, drafted)
        }
    }

    #[test]
    fn drafts_that_are_wrong_or_cost_too_much_cost_hardly_anything() {
        for (added, count) in [(0.05, 300), (0.2, 300), (0.5, 300), (1.0, 300), (0.2, 5000)] {
            for mut machine in
                [0, 3, 7].map(|one_in| Machine { added, right: move |at| one_in > 0 && at % one_in == 0 })
            {
                let (time, _) = machine.run(&mut lookup(), count);
                let most = 1.015 * count as f64 + 2.5;
                assert!(time < most, "{added}: {time} for {count}");
            }
        }
        // as much as they save, if each costs a pass
        let (time, _) = Machine { added: 1.0, right: |_| true }.run(&mut lookup(), 300);
        assert!(time < 304.0, "{time}");
    }

    #[test]
    fn drafts_that_are_right_are_made_and_found_when_they_become_right() {
        let (time, _) = Machine { added: 0.1, right: |_| true }.run(&mut lookup(), 300);
        assert!(time < 105.0, "four tokens in each pass of 1.3: {time}");
        let (time, _) = Machine { added: 0.1, right: |at| at > 300 }.run(&mut lookup(), 600);
        assert!(time < 430.0, "{time}");
        let always = Machine { added: 1.0, right: |_| false }.run(&mut lookup().always(), 30);
        assert_eq!(always.1, 2 * 29 - 1, "as long as more than one token is wanted");
    }

    /// Knows what it costs, but not whether that is so.
    struct Priced {
        cost: DraftCost,
        asked: usize,
    }

    impl Drafter for &mut Priced {
        fn draft(&mut self, _tokens: &[TokenId], most: usize) -> Vec<TokenId> {
            self.asked += 1;
            self.cost.prefill = 0.0;
            vec![7; most]
        }

        fn cost(&mut self, _tokens: &[TokenId]) -> DraftCost {
            self.cost
        }
    }

    #[test]
    fn a_drafter_that_must_prefill_is_asked_where_enough_tokens_follow() {
        let first_asked = |prefill: f64, token: f64, left: usize| {
            let mut priced = Priced { cost: DraftCost { prefill, token }, asked: 0 };
            let mut speculation = Speculation::new(&mut priced);
            (0..left).find(|done| {
                speculation.measured(1.0);
                !speculation.next(&[1], 9, left - done).is_empty()
            })
        };
        // 2 tokens of which 0.7 + 0.49 are accepted, for 0.3 and what drafting takes, and 15 % of that: 0.28 for each token
        assert_eq!(first_asked(0.0, 0.1, 100), Some(0));
        assert_eq!(first_asked(10.0, 0.1, 100), Some(0));
        assert_eq!(first_asked(10.0, 0.1, 20), None, "not worth it any more");
        let late = first_asked(60.0, 0.1, 2000).unwrap();
        assert!((205..225).contains(&late), "{late}");
        assert_eq!(first_asked(0.0, 1.0, 200), None, "as slow as the model, and nothing saved up for it");
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
    fn the_time_of_drafting_counts() {
        // long enough that a busy machine changes nothing
        let mut speculation = Speculation::new(Slow(200));
        speculation.measured(0.1);
        assert_eq!(speculation.next(&[1], 9, 9), [7]);
        speculation.record(1, 1, 0.1);
        assert!(speculation.next(&[1], 9, 9).is_empty());
    }

    #[test]
    fn the_next_drafter_is_asked_where_the_first_has_no_guess() {
        let mut speculation = lookup().or(Slow(0));
        assert!(speculation.next(&[1, 2, 3, 1, 2], 9, 9).is_empty(), "the price of one token is not known yet");
        speculation.measured(1.0);
        assert_eq!(speculation.next(&[1, 2, 3, 1, 2], 9, 9), [3, 1]);
        assert_eq!(speculation.next(&[1, 2, 3], 9, 9), [7]);
        assert!(speculation.next(&[1, 2, 3], 0, 9).is_empty());
    }
}
