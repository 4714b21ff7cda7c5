//! Byte-pair merging of the text between literal pieces.
//!
//! Two rules exist for which pair to merge next, and each file format is defined by its own: `tokenizer.json` lists
//! the pairs in order ([`merges`], done by the `tokenizers` crate), `tokenizer.model` gives every piece a score and
//! merges whatever pair makes the best piece ([`scores`], ours). The rest of the crate sees neither.

pub(crate) mod merges;
pub(crate) mod scores;

use std::borrow::Cow;

use crate::vocabulary::Vocabulary;
use crate::{Result, TokenId};

/// What a space is in the vocabulary (U+2581).
pub(crate) const SPACE: char = '▁';

/// A merging rule, ready to use.
#[derive(Debug)]
pub(crate) enum Engine {
    /// An ordered list of pairs.
    Merges(merges::Merges),
    /// A score per piece.
    Scores(scores::Scores),
}

impl Engine {
    /// Does this format look for literal pieces in the text after its spaces became `▁` (SentencePiece), or in the
    /// text as it was typed (`tokenizer.json`)? The difference shows only beside a `▁` that somebody typed.
    pub(crate) fn spaces_come_first(&self) -> bool {
        matches!(self, Engine::Scores(scores) if !scores.typed_literals)
    }

    /// Is this a file of scores whose literal pieces are spelled, and looked for, as they are typed?
    pub(crate) fn has_typed_literals(&self) -> bool {
        matches!(self, Engine::Scores(scores) if scores.typed_literals)
    }

    /// Appends the tokens of a text in which nothing is to be matched literally.
    pub(crate) fn encode(&self, vocabulary: &Vocabulary, text: &str, ids: &mut Vec<TokenId>) {
        if text.is_empty() {
            return;
        }
        let text = with_spaces_replaced(text);
        match self {
            Engine::Merges(merges) => merges.encode(&text, ids),
            Engine::Scores(scores) => scores.encode(vocabulary, &text, ids),
        }
    }

    /// The merges as pairs of pieces, best first, as `tokenizer.json` lists them.
    ///
    /// # Errors
    /// None in practice; see [`merges::Merges::merge_list`].
    pub(crate) fn merge_list(&self, vocabulary: &Vocabulary) -> Result<Vec<(String, String)>> {
        match self {
            Engine::Merges(merges) => merges.merge_list(),
            Engine::Scores(scores) => Ok(scores.merge_list(vocabulary)),
        }
    }
}

/// The text with every space as `▁`.
pub(crate) fn with_spaces_replaced(text: &str) -> Cow<'_, str> {
    if text.contains(' ') { Cow::Owned(text.replace(' ', "▁")) } else { Cow::Borrowed(text) }
}

/// Cuts a text in front of each `▁` that follows another character. See [`Vocabulary::words_are_separate`].
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let spaces = rest.len() - rest.trim_start_matches(SPACE).len();
        let end = rest[spaces..].find(SPACE).map_or(rest.len(), |found| spaces + found);
        let (word, after) = rest.split_at(end);
        rest = after;
        Some(word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_begin_at_spaces_and_lose_nothing() {
        let cut = |text| words(text).collect::<Vec<_>>();
        assert_eq!(cut("▁▁one▁two▁▁▁three▁"), ["▁▁one", "▁two", "▁▁▁three", "▁"]);
        assert_eq!(cut("▁▁▁"), ["▁▁▁"]);
        assert_eq!(cut("é"), ["é"]);
        assert!(cut("").is_empty());
    }
}
