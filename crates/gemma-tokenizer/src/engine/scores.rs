//! Merging by scores: SentencePiece's byte-pair rule.
//!
//! Among all neighbours whose concatenation is a piece, join the pair that gives the piece with the best score, the
//! leftmost first among equals, until none is left. A character without a piece becomes the pieces of its bytes.
//! (Kudo and Richardson 2018, section 3.1: a heap of candidate pairs, O(n log n) in the length of the text.)

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::ops::Range;

use super::words;
use crate::vocabulary::{Kind, Vocabulary};
use crate::{Error, Result, TokenId};

/// Rank of pieces that merging must not produce.
const UNREACHABLE: u32 = u32::MAX;

/// Scores of a vocabulary, ready to use.
#[derive(Debug)]
pub(crate) struct Scores {
    /// Per token: 0 for the best score, equal scores share a rank.
    ranks: Vec<u32>,
    /// Per byte: its piece.
    bytes: Vec<TokenId>,
    longest_piece: usize,
    words_are_separate: bool,
    /// Whether literal pieces are looked for in the text as it was typed, as `tokenizer.json` does.
    pub(crate) typed_literals: bool,
}

/// A stretch of text that has become one piece (or is still one character).
#[derive(Clone, Copy, Debug)]
struct Symbol {
    start: usize,
    /// Equal to `start` once the symbol has become part of its left neighbour.
    end: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Best candidate first: by rank, then by the place of the left symbol. `end` is where the merged text would end; a
/// candidate whose symbols have changed since is recognised by it.
type Candidate = Reverse<(u32, usize, usize)>;

/// Kept from word to word, to allocate once.
#[derive(Default)]
struct Buffers {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Candidate>,
}

impl Scores {
    /// Prepares the scores, one per token.
    ///
    /// # Errors
    /// [`Error::MissingPiece`] unless every byte has a piece.
    pub(crate) fn new(vocabulary: &Vocabulary, scores: &[f32]) -> Result<Self> {
        let byte = |(byte, piece): (usize, &Option<TokenId>)| {
            piece.ok_or_else(|| Error::MissingPiece { piece: format!("<0x{byte:02X}>") })
        };
        let bytes = vocabulary.byte_pieces().iter().enumerate().map(byte).collect::<Result<_>>()?;
        let score = |id: TokenId| scores.get(id as usize).copied().unwrap_or(0.0);
        let mut reachable: Vec<TokenId> = vocabulary
            .iter()
            .filter(|(_, _, kind)| matches!(kind, Kind::Text | Kind::Literal))
            .map(|(id, _, _)| id)
            .collect();
        reachable.sort_by(|a, b| score(*b).total_cmp(&score(*a)));
        let mut ranks = vec![UNREACHABLE; vocabulary.len()];
        for (rank, same_score) in (0..).zip(reachable.chunk_by(|a, b| score(*a) == score(*b))) {
            for id in same_score {
                ranks[*id as usize] = rank;
            }
        }
        let longest_piece = vocabulary.iter().map(|(_, piece, _)| piece.len()).max().unwrap_or(0);
        let words_are_separate = vocabulary.words_are_separate();
        Ok(Self { ranks, bytes, longest_piece, words_are_separate, typed_literals: false })
    }

    /// The same, with a say about where literal pieces are looked for.
    pub(crate) fn with_typed_literals(self, typed_literals: bool) -> Self {
        Self { typed_literals, ..self }
    }

    /// Appends the tokens of a text whose spaces are `▁`.
    pub(crate) fn encode(&self, vocabulary: &Vocabulary, text: &str, ids: &mut Vec<TokenId>) {
        let mut buffers = Buffers::default();
        if !self.words_are_separate {
            self.encode_word(vocabulary, text, &mut buffers, ids);
            return;
        }
        // Words repeat; where in `ids` the tokens of each one stand.
        let mut seen: HashMap<&str, Range<usize>> = HashMap::new();
        for word in words(text) {
            match seen.get(word) {
                Some(tokens) => ids.extend_from_within(tokens.clone()),
                None => {
                    let start = ids.len();
                    self.encode_word(vocabulary, word, &mut buffers, ids);
                    seen.insert(word, start..ids.len());
                }
            }
        }
    }

    fn encode_word(
        &self,
        vocabulary: &Vocabulary,
        word: &str,
        Buffers { symbols, heap }: &mut Buffers,
        ids: &mut Vec<TokenId>,
    ) {
        symbols.clear();
        symbols.extend(word.char_indices().enumerate().map(|(index, (start, char))| Symbol {
            start,
            end: start + char.len_utf8(),
            previous: index.checked_sub(1),
            next: Some(index + 1),
        }));
        if let Some(last) = symbols.last_mut() {
            last.next = None;
        }
        for left in 0..symbols.len() {
            self.propose(vocabulary, word, symbols, left, heap);
        }
        while let Some(Reverse((_, left, end))) = heap.pop() {
            let Some(right) = symbols[left].next else { continue };
            let alive = symbols[left].start < symbols[left].end;
            if !alive || symbols[right].end != end {
                continue;
            }
            let after = symbols[right].next;
            symbols[left].end = end;
            symbols[left].next = after;
            symbols[right].end = symbols[right].start;
            if let Some(after) = after {
                symbols[after].previous = Some(left);
            }
            self.propose(vocabulary, word, symbols, left, heap);
            if let Some(previous) = symbols[left].previous {
                self.propose(vocabulary, word, symbols, previous, heap);
            }
        }
        let mut at = Some(0);
        while let Some(symbol) = at.map(|index| symbols[index]) {
            let piece = &word[symbol.start..symbol.end];
            match self.reachable(vocabulary, piece) {
                Some(id) => ids.push(id),
                None => ids.extend(piece.bytes().map(|byte| self.bytes[byte as usize])),
            }
            at = symbol.next;
        }
    }

    /// Puts the pair that begins at `left` on the heap if it makes a piece.
    fn propose(
        &self,
        vocabulary: &Vocabulary,
        word: &str,
        symbols: &[Symbol],
        left: usize,
        heap: &mut BinaryHeap<Candidate>,
    ) {
        let Some(right) = symbols[left].next else { return };
        let (start, end) = (symbols[left].start, symbols[right].end);
        if end - start > self.longest_piece {
            return;
        }
        if let Some(id) = self.reachable(vocabulary, &word[start..end]) {
            heap.push(Reverse((self.ranks[id as usize], left, end)));
        }
    }

    fn reachable(&self, vocabulary: &Vocabulary, piece: &str) -> Option<TokenId> {
        vocabulary.id(piece).filter(|id| self.ranks[*id as usize] != UNREACHABLE)
    }

    /// The merge list that comes closest to these scores: for each piece all its splits into two pieces, by score of
    /// the piece, then the longest left part first, then the longest right part. For Gemma's `tokenizer.model` this is
    /// the list of the released `tokenizer.json`, pair for pair.
    pub(crate) fn merge_list(&self, vocabulary: &Vocabulary) -> Vec<(String, String)> {
        let mut merges = Vec::new();
        for (id, piece, _) in vocabulary.iter() {
            let rank = self.ranks[id as usize];
            if rank == UNREACHABLE {
                continue;
            }
            let chars = piece.chars().count();
            for (left_chars, (cut, _)) in piece.char_indices().enumerate().skip(1) {
                let (left, right) = piece.split_at(cut);
                if self.reachable(vocabulary, left).is_some() && self.reachable(vocabulary, right).is_some() {
                    merges.push((rank, Reverse(left_chars), Reverse(chars - left_chars), id, left, right));
                }
            }
        }
        merges.sort_unstable();
        merges.into_iter().map(|(.., left, right)| (left.to_owned(), right.to_owned())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::Listing;

    /// All bytes, then `pieces` with scores 0, -1, -2, ...
    fn scores(pieces: &[(&str, f32)]) -> (Vocabulary, Scores) {
        let mut vocabulary = Vocabulary::default();
        let mut values = vec![0.0; 256];
        for byte in 0..256 {
            vocabulary.insert(byte, &format!("<0x{byte:02X}>")).unwrap();
        }
        for (id, (piece, score)) in (256..).zip(pieces) {
            vocabulary.insert(id, piece).unwrap();
            values.push(*score);
        }
        vocabulary.classify(|_| Listing::Ordinary, false);
        let scores = Scores::new(&vocabulary, &values).unwrap();
        (vocabulary, scores)
    }

    fn pieces(pieces: &[(&str, f32)], text: &str) -> Vec<String> {
        let (vocabulary, scores) = scores(pieces);
        let mut ids = Vec::new();
        scores.encode(&vocabulary, text, &mut ids);
        ids.iter().map(|id| vocabulary.piece(*id).unwrap().to_owned()).collect()
    }

    #[test]
    fn the_best_score_is_merged_first() {
        let table = [("a", -9.0), ("b", -9.0), ("c", -9.0), ("ab", -2.0), ("bc", -1.0), ("abc", -3.0)];
        assert_eq!(pieces(&table, "abc"), ["abc"]);
        assert_eq!(pieces(&table[..5], "abc"), ["a", "bc"]);
        assert_eq!(pieces(&table[..4], "abc"), ["ab", "c"]);
    }

    #[test]
    fn equal_scores_are_merged_from_the_left() {
        assert_eq!(pieces(&[("a", -9.0), ("aa", -1.0)], "aaaaa"), ["aa", "aa", "a"]);
    }

    #[test]
    fn what_has_no_piece_becomes_bytes() {
        assert_eq!(pieces(&[("a", -1.0)], "aé"), ["a", "<0xC3>", "<0xA9>"]);
    }

    #[test]
    fn control_tokens_are_out_of_reach() {
        let table = [
            ("<", -9.0),
            ("bos", -1.0),
            ("b", -9.0),
            ("o", -9.0),
            ("s", -9.0),
            ("bo", -1.0),
            (">", -9.0),
            ("<bos", -1.0),
            ("<bos>", -1.0),
        ];
        assert_eq!(pieces(&table, "<bos>"), ["<bos", ">"]);
    }

    #[test]
    fn a_missing_byte_piece_is_an_error() {
        let mut vocabulary = Vocabulary::default();
        vocabulary.insert(0, "<0x00>").unwrap();
        vocabulary.classify(|_| Listing::Ordinary, false);
        let error = Scores::new(&vocabulary, &[0.0]).unwrap_err();
        assert!(matches!(error, Error::MissingPiece { piece } if piece == "<0x01>"));
    }
}
