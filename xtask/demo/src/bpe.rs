//! Learns a small byte-pair vocabulary in Gemma's manner.
//!
//! A word is a run of letters, or of punctuation marks, with the `▁` of the space before it, if there is one;
//! merges stay inside words. Digits and line breaks are pieces of their own. Since no learned piece reaches over
//! a word's border and `▁` only ever begins one, applying the merges to a whole text gives the pieces of its words, and
//! the stored tokenizer needs no pre-tokenizer, like Gemma's.

use std::collections::{BTreeMap, BTreeSet};

/// What stands for a space (U+2581).
pub const SPACE: char = '▁';
/// Gemma's control tokens, in the order of their ids here.
pub const CONTROL: [&str; 6] = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"];
/// CodeGemma's further control tokens.
pub const FIM_CONTROL: [&str; 4] = ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|file_separator|>"];
/// The longest run of spaces or line breaks that is one piece.
pub const LONGEST_RUN: usize = 8;

/// Pieces in the order of their ids, and the merges that build the longer ones, most urgent first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    /// How many control tokens come first.
    pub control: usize,
    /// Control tokens, runs of line breaks and spaces, the 256 bytes, single characters, learned pieces.
    pub pieces: Vec<String>,
    /// Pairs of pieces, in the order in which they are joined.
    pub merges: Vec<(String, String)>,
}

/// Learns a vocabulary of `size` pieces (fewer if the texts have no more pairs to join), `control` first.
///
/// Bytes cover every character that the texts do not have.
pub fn learn<T: AsRef<str>>(control: &[&str], texts: impl IntoIterator<Item = T>, size: usize) -> Vocabulary {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for text in texts {
        // runs of spaces and of line breaks have their pieces already
        for word in words(text.as_ref()).into_iter().filter(|word| !word.ends_with([SPACE, '\n'])) {
            *counts.entry(word).or_default() += 1;
        }
    }
    let mut vocabulary = Vocabulary { control: control.len(), pieces: fixed_pieces(control), merges: run_merges() };
    let characters: BTreeSet<char> = counts.keys().flat_map(|word| word.chars()).collect();
    let alphabet = ('0'..='9').chain([SPACE]).chain(characters).collect::<BTreeSet<char>>();
    vocabulary.pieces.extend(alphabet.into_iter().map(String::from));

    let mut words: Vec<(Vec<String>, u64)> =
        counts.into_iter().map(|(word, count)| (word.chars().map(String::from).collect(), count)).collect();
    while vocabulary.pieces.len() < size {
        let Some((left, right)) = most_frequent_pair(&words) else { break };
        let joined = format!("{left}{right}");
        for (pieces, _) in &mut words {
            join(pieces, &left, &right, &joined);
        }
        vocabulary.merges.push((left, right));
        // Two pairs can build the same piece ("th" + "e", "t" + "he"): two merges, one piece.
        if !vocabulary.pieces.contains(&joined) {
            vocabulary.pieces.push(joined);
        }
    }
    vocabulary
}

/// Control tokens, runs of line breaks and of spaces, bytes.
fn fixed_pieces(control: &[&str]) -> Vec<String> {
    let control = control.iter().map(|piece| (*piece).to_owned());
    let line_breaks = (1..=LONGEST_RUN).map(|length| "\n".repeat(length));
    let spaces = (2..=LONGEST_RUN).map(run_of_spaces);
    let bytes = (0..=255u8).map(|byte| format!("<0x{byte:02X}>"));
    control.chain(line_breaks).chain(spaces).chain(bytes).collect()
}

/// Merges that gather spaces from the left into runs: longest first, so that a run begun is finished before the
/// next one begins, and before a word takes the last space.
fn run_merges() -> Vec<(String, String)> {
    (1..LONGEST_RUN).rev().map(|length| (run_of_spaces(length), run_of_spaces(1))).collect()
}

fn run_of_spaces(length: usize) -> String {
    SPACE.to_string().repeat(length)
}

/// Cuts a text: runs of letters or of punctuation with the space before them, and every other character alone. A
/// capital after a small letter begins a word, and a run of spaces, which is matched as a whole, leaves none to the word
/// after it.
pub(crate) fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for character in text.chars().map(|c| if c == ' ' { SPACE } else { c }) {
        let before = words.last().and_then(|word| word.chars().next_back());
        let in_run = words.last().is_some_and(|word| word.len() > SPACE.len_utf8() && word.ends_with(SPACE));
        let goes_on = before.is_some_and(|before| {
            let joins = |kind: fn(char) -> bool| kind(character) && (kind(before) || before == SPACE && !in_run);
            let camel = before.is_lowercase() && character.is_uppercase();
            joins(char::is_alphabetic) && !camel || joins(is_mark) || character == SPACE && before == SPACE
        });
        match words.last_mut() {
            Some(word) if goes_on => word.push(character),
            _ => words.push(character.to_string()),
        }
    }
    words
}

fn is_mark(character: char) -> bool {
    character.is_ascii_punctuation()
}

/// The pair that occurs most often; of equals the first in the alphabet, so that the result does not depend on
/// the order of counting. A pair that occurs once is not worth a piece.
fn most_frequent_pair(words: &[(Vec<String>, u64)]) -> Option<(String, String)> {
    let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for (pieces, count) in words {
        for pair in pieces.windows(2) {
            *counts.entry((&pair[0], &pair[1])).or_default() += count;
        }
    }
    let mut best: Option<((&str, &str), u64)> = None;
    for (pair, count) in counts {
        if count > 1 && best.is_none_or(|(_, most)| count > most) {
            best = Some((pair, count));
        }
    }
    best.map(|((left, right), _)| (left.to_owned(), right.to_owned()))
}

/// Joins every `left` that is followed by `right`, from the left.
fn join(pieces: &mut Vec<String>, left: &str, right: &str, joined: &str) {
    let mut place = 0;
    while place + 1 < pieces.len() {
        if pieces[place] == left && pieces[place + 1] == right {
            joined.clone_into(&mut pieces[place]);
            pieces.remove(place + 1);
        }
        place += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary_text;

    #[test]
    fn words_take_the_space_before_them_and_digits_stand_alone() {
        let cut = words("Mia has 12 eggs, \"said.\" he.");
        let expected = ["Mia", "▁has", "▁", "1", "2", "▁eggs", ",", "▁\"", "said", ".\"", "▁he", "."];
        assert_eq!(cut, expected);
    }

    #[test]
    fn code_is_cut_at_capitals_and_after_indentation() {
        let cut = words("    sumPrices(a_b):");
        assert_eq!(cut, ["▁▁▁▁", "sum", "Prices", "(", "a", "_", "b", "):"]);
    }

    #[test]
    fn the_most_frequent_pair_is_joined_first() {
        let vocabulary = learn(&CONTROL, ["aab aab aab ab"], 1_000);
        let learned = &vocabulary.merges[LONGEST_RUN - 1..];
        assert_eq!(learned[0], ("a".to_owned(), "b".to_owned()));
        assert_eq!(learned[1], ("a".to_owned(), "ab".to_owned()));
        assert_eq!(learned[2], ("▁".to_owned(), "aab".to_owned()));
    }

    #[test]
    fn every_merge_joins_two_pieces_into_a_piece() {
        let texts = vocabulary_text(1, 2_000);
        let vocabulary = learn(&CONTROL, &texts, 700);
        assert_eq!(vocabulary.pieces.len(), 700);
        let known: BTreeSet<&str> = vocabulary.pieces.iter().map(String::as_str).collect();
        assert_eq!(known.len(), 700, "a piece occurs twice");
        for (left, right) in &vocabulary.merges {
            assert!(known.contains(left.as_str()) && known.contains(right.as_str()));
            assert!(known.contains(format!("{left}{right}").as_str()));
        }
        assert_eq!(vocabulary, learn(&CONTROL, &texts, 700));
    }

    #[test]
    fn no_learned_piece_crosses_a_border() {
        let texts = vocabulary_text(1, 2_000);
        for (left, right) in &learn(&CONTROL, &texts, 700).merges[LONGEST_RUN - 1..] {
            let piece = format!("{left}{right}");
            let word = piece.strip_prefix(SPACE).unwrap_or(&piece);
            let (letters, marks) = (word.chars().all(char::is_alphabetic), word.chars().all(is_mark));
            assert!(letters || marks, "{piece}");
        }
    }
}
