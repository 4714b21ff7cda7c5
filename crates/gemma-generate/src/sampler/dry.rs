//! The DRY repetition penalty ("don't repeat yourself"): a token that would prolong a repeated passage is less likely the
//! longer the passage is.

use std::collections::HashMap;

use gemma_tokenizer::{EncodeOptions, TokenId, Tokenizer};

/// The DRY penalty, of p-e-w (text-generation-webui, pull request 5677); llama.cpp's `--dry-*`.
///
/// When the last n tokens have occurred before, and the token t came next, the logit of t is lowered by
///
/// ```text
/// multiplier * base^(n - allowed_length)    if n >= allowed_length
/// ```
///
/// where n is the longest such passage. Prompt and answer both count. A passage holds no `breakers`, so that what a format
/// repeats (a line break, a speaker's name and a colon) is not penalized.
#[derive(Clone, Debug, PartialEq)]
pub struct Dry {
    /// How much: 0.8 is usual, 0 is off.
    pub multiplier: f32,
    /// How fast the penalty grows with each token of the passage. Usually 1.75; at least 1.
    pub base: f32,
    /// The shortest passage that must not be prolonged, in tokens: with 2, what followed a repeated token is free, and what
    /// followed a repeated pair is not.
    pub allowed_length: usize,
    /// Tokens that end a passage; [`with_breakers`](Self::with_breakers) finds those of texts.
    pub breakers: Vec<TokenId>,
    /// Only so many of the last tokens count; `None`: all.
    pub last_tokens: Option<usize>,
}

impl Default for Dry {
    fn default() -> Self {
        Self { multiplier: 0.8, base: 1.75, allowed_length: 2, breakers: Vec::new(), last_tokens: None }
    }
}

impl Dry {
    /// The published texts that end a passage.
    pub const BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];

    /// The same with passages that end at the last token of each of these texts, at the ends of texts and of turns.
    #[must_use]
    pub fn with_breakers<T: AsRef<str>>(self, tokenizer: &Tokenizer, texts: &[T]) -> Self {
        let last = |text: &T| {
            let plain = EncodeOptions { bos: false, specials: false };
            tokenizer.encode_with(&format!("a{}", text.as_ref()), plain).last().copied()
        };
        let control = [tokenizer.bos(), tokenizer.eos()].into_iter().chain(tokenizer.end_of_turn());
        Self { breakers: texts.iter().filter_map(last).chain(control).collect(), ..self }
    }

    /// The penalty of each token that would prolong a passage of `history`.
    pub(super) fn penalties(&self, history: &[TokenId]) -> HashMap<TokenId, f32> {
        let mut longest: HashMap<TokenId, usize> = HashMap::new();
        let history = &history[history.len() - history.len().min(self.last_tokens.unwrap_or(usize::MAX))..];
        let last: Vec<TokenId> = history.iter().rev().copied().collect();
        // no passage reaches over a breaker, so that the last tokens behind one are all that can be repeated
        let limit = last.iter().take_while(|token| !self.breakers.contains(token)).count();
        for (start, &shared) in shared_prefixes(&last).iter().enumerate().skip(1) {
            let (length, next) = (shared.min(limit), last[start - 1]);
            if length >= self.allowed_length.max(1) && !self.breakers.contains(&next) {
                let known = longest.entry(next).or_default();
                *known = length.max(*known);
            }
        }
        let penalty = |length: usize| {
            let exponent = i32::try_from(length - self.allowed_length).unwrap_or(i32::MAX);
            (self.multiplier * self.base.powi(exponent)).min(f32::MAX)
        };
        longest.into_iter().map(|(token, length)| (token, penalty(length))).collect()
    }
}

/// For each place, how many tokens from there on are those from the beginning on: the Z-function (Gusfield, "Algorithms on
/// Strings, Trees, and Sequences", 1997, section 1.4), in linear time. The first is 0.
fn shared_prefixes(tokens: &[TokenId]) -> Vec<usize> {
    let mut shared = vec![0; tokens.len()];
    // the stretch that is known to repeat the beginning, and ends furthest
    let (mut left, mut right) = (0, 0);
    for place in 1..tokens.len() {
        let mut length = if place < right { (right - place).min(shared[place - left]) } else { 0 };
        while place + length < tokens.len() && tokens[length] == tokens[place + length] {
            length += 1;
        }
        if place + length > right {
            (left, right) = (place, place + length);
        }
        shared[place] = length;
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published loop: for each earlier occurrence of the last token, as far back as both agree.
    fn published(dry: &Dry, history: &[TokenId]) -> HashMap<TokenId, f32> {
        let Some((last, before)) = history.split_last() else { return HashMap::new() };
        let breaks = |token: &TokenId| dry.breakers.contains(token);
        let mut lengths: HashMap<TokenId, usize> = HashMap::new();
        if breaks(last) {
            return HashMap::new();
        }
        for place in (0..before.len()).filter(|&place| before[place] == *last) {
            let next = history[place + 1];
            if breaks(&next) {
                continue;
            }
            let mut length = 1;
            while length <= place {
                let earlier = history[history.len() - 1 - length];
                if history[place - length] != earlier || breaks(&earlier) {
                    break;
                }
                length += 1;
            }
            let known = lengths.entry(next).or_default();
            *known = length.max(*known);
        }
        let long = lengths.into_iter().filter(|(_, length)| *length >= dry.allowed_length);
        long.map(|(token, length)| (token, dry.multiplier * dry.base.powi((length - dry.allowed_length) as i32)))
            .collect()
    }

    #[test]
    fn dry_penalties_are_those_of_the_published_loop() {
        let mut generator = crate::random::Xoshiro256PlusPlus::new(5);
        for round in 0..300 {
            let history: Vec<TokenId> = (0..round % 40).map(|_| generator.below(3) as TokenId).collect();
            let breakers = if round % 2 == 0 { vec![2] } else { Vec::new() };
            let dry = Dry { allowed_length: 1 + round % 4, breakers, ..Dry::default() };
            assert_eq!(dry.penalties(&history), published(&dry, &history), "{dry:?} {history:?}");
        }
    }

    #[test]
    fn only_the_last_tokens_count() {
        let history = [5, 6, 7, 8, 5, 6];
        let dry = |last_tokens| Dry { last_tokens, ..Dry::default() }.penalties(&history);
        assert_eq!(dry(None), HashMap::from([(7, 0.8)]));
        assert_eq!(dry(Some(6)), dry(None));
        assert_eq!(dry(Some(5)), HashMap::new());
        assert_eq!(dry(Some(0)), HashMap::new());
    }

    #[test]
    fn a_passage_ends_at_the_last_token_of_a_text_and_at_the_ends_of_texts() {
        let tokenizer = crate::fake::tokenizer();
        let dry = Dry::default().with_breakers(&tokenizer, &["b", "cd"]);
        let [b, d] = ["b", "d"].map(|piece| tokenizer.token(piece).expect("a piece"));
        assert_eq!(dry.breakers, [b, d, tokenizer.bos(), tokenizer.eos()]);
    }

    #[test]
    fn a_long_passage_has_a_finite_penalty() {
        let history = vec![7; 5000];
        let penalties = Dry { base: 4.0, ..Dry::default() }.penalties(&history);
        assert_eq!(penalties, HashMap::from([(7, f32::MAX)]));
        assert_eq!(Dry::default().penalties(&[]), HashMap::new());
    }
}
