//! The pieces of a vocabulary, their numbers, and what kind of piece each one is.

use std::hash::BuildHasher;
use std::ops::Range;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::names::{is_control_name, is_hidden_name, is_literal_name};
use crate::{Error, Result, TokenId};

/// Larger numbers are refused: a file of a few bytes must not be able to ask for gigabytes of table.
/// Four times the largest vocabulary of the wider Gemma family.
pub(crate) const MAX_ID: TokenId = (1 << 20) - 1;

/// What a piece is to the encoder and the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A hole in the numbering.
    Absent,
    /// Found by merging.
    Text,
    /// `<0xHH>`: one byte of a character that has no piece.
    Byte(u8),
    /// Matched literally before any merging.
    Literal,
    /// Never produced from untrusted text. `hidden`: decoding leaves it out.
    Control {
        /// Left out of decoded text.
        hidden: bool,
    },
}

/// How a file lists a piece, apart from its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listing {
    /// An ordinary entry of the vocabulary.
    Ordinary,
    /// An added or user-defined token.
    Added,
    /// An added token marked special, or a control piece.
    Special,
}

/// All pieces of a tokenizer: one text, the place of each piece in it, and a table of their numbers by text. (A quarter of
/// a million texts of their own would take most of the time in which a program starts.)
#[derive(Debug, Default)]
pub(crate) struct Vocabulary {
    texts: String,
    /// By number; `None` is a hole in the numbering.
    places: Vec<Option<Range<usize>>>,
    kinds: Vec<Kind>,
    ids: HashTable<TokenId>,
    hasher: DefaultHashBuilder,
    literals_by_name: bool,
    /// Bytes of the longest piece.
    longest: usize,
}

impl Vocabulary {
    /// An empty one with room for `pieces`.
    pub(crate) fn with_capacity(pieces: usize) -> Self {
        Self {
            places: Vec::with_capacity(pieces),
            kinds: Vec::with_capacity(pieces),
            ids: HashTable::with_capacity(pieces),
            ..Self::default()
        }
    }

    /// Adds a piece; adding it again under the same number changes nothing.
    ///
    /// # Errors
    /// When the piece or the number is taken, or the number is beyond [`MAX_ID`].
    pub(crate) fn insert(&mut self, id: u64, piece: &str) -> Result<TokenId> {
        let Some(small) = TokenId::try_from(id).ok().filter(|id| *id <= MAX_ID) else {
            return Err(Error::IdTooLarge { piece: piece.to_owned(), id, limit: MAX_ID });
        };
        if let Some(first) = self.id(piece) {
            if first == small {
                return Ok(small);
            }
            return Err(Error::PieceTwice { piece: piece.to_owned(), first, second: small });
        }
        let slot = small as usize;
        if slot >= self.places.len() {
            self.places.resize(slot + 1, None);
            self.kinds.resize(slot + 1, Kind::Absent);
        }
        if let Some(first) = self.piece(small) {
            return Err(Error::IdTwice { id: small, first: first.to_owned(), second: piece.to_owned() });
        }
        self.kinds[slot] = Kind::Text;
        self.name(small, piece);
        Ok(small)
    }

    /// Gives a piece another name.
    pub(crate) fn rename(&mut self, id: TokenId, name: &str) {
        let hash = |text| self.hasher.hash_one(text);
        let old = self.piece(id).map(|old| (id, hash(old)));
        let other = self.id(name).map(|other| (other, hash(name)));
        for (id, hash) in old.into_iter().chain(other) {
            if let Ok(entry) = self.ids.find_entry(hash, |found| *found == id) {
                entry.remove();
            }
        }
        self.name(id, name);
    }

    /// Notes the text of a number that has none in the table.
    fn name(&mut self, id: TokenId, text: &str) {
        let start = self.texts.len();
        self.texts.push_str(text);
        self.longest = self.longest.max(text.len());
        self.places[id as usize] = Some(start..self.texts.len());
        let Self { texts, places, hasher, ids, .. } = self;
        let hash_of = |id: &TokenId| hasher.hash_one(places[*id as usize].clone().map_or("", |place| &texts[place]));
        ids.insert_unique(hash_of(&id), id, hash_of);
    }

    /// Decides what kind each piece is. `listing` says how the file lists it; with `literals_by_name` the pieces that
    /// Gemma matches literally are recognised by name, for files that list them as ordinary ones.
    pub(crate) fn classify(&mut self, listing: impl Fn(TokenId) -> Listing, literals_by_name: bool) {
        self.literals_by_name = literals_by_name;
        for ((id, place), kind) in (0..).zip(&self.places).zip(&mut self.kinds) {
            if let Some(place) = place {
                *kind = kind_of(&self.texts[place.clone()], listing(id), literals_by_name);
            }
        }
    }

    /// Were literal pieces recognised by name, because the file does not list them?
    pub(crate) fn literals_by_name(&self) -> bool {
        self.literals_by_name
    }

    /// Bytes of the longest piece, now or ever.
    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    /// The text of a piece.
    pub(crate) fn piece(&self, id: TokenId) -> Option<&str> {
        self.places.get(id as usize)?.clone().map(|place| &self.texts[place])
    }

    /// The number of a piece.
    pub(crate) fn id(&self, piece: &str) -> Option<TokenId> {
        self.ids.find(self.hasher.hash_one(piece), |id| self.piece(*id) == Some(piece)).copied()
    }

    /// The kind of a piece.
    pub(crate) fn kind(&self, id: TokenId) -> Kind {
        self.kinds.get(id as usize).copied().unwrap_or(Kind::Absent)
    }

    /// One more than the largest number.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// All pieces in the order of their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (TokenId, &str, Kind)> {
        let places = (0..).zip(&self.places).zip(&self.kinds);
        places.filter_map(|((id, place), kind)| Some((id, &self.texts[place.clone()?], *kind)))
    }

    /// The number of the piece for each byte, where there is one.
    pub(crate) fn byte_pieces(&self) -> [Option<TokenId>; 256] {
        let mut bytes = [None; 256];
        for (id, _, kind) in self.iter() {
            if let Kind::Byte(byte) = kind {
                bytes[byte as usize] = Some(id);
            }
        }
        bytes
    }

    /// Can the text be cut in front of each `▁` that follows another character without changing the result? It can
    /// when no piece that merging could produce reaches across such a place. True for Gemma, where a `▁` only ever
    /// begins a piece; it lets a long text be merged word by word.
    pub(crate) fn words_are_separate(&self) -> bool {
        self.iter().filter(|(_, _, kind)| matches!(kind, Kind::Text | Kind::Literal)).all(|(_, piece, _)| {
            let after_leading_run = piece.trim_start_matches('▁');
            !after_leading_run.contains('▁')
        })
    }
}

fn kind_of(piece: &str, listing: Listing, literals_by_name: bool) -> Kind {
    let added = listing != Listing::Ordinary;
    if let Some(byte) = byte_piece(piece) {
        Kind::Byte(byte)
    } else if added && piece.chars().all(char::is_whitespace) {
        // Whatever its listing: white space is not for forging.
        Kind::Literal
    } else if is_control_name(piece) || listing == Listing::Special {
        Kind::Control { hidden: listing == Listing::Special || is_hidden_name(piece) }
    } else if is_literal_name(piece) && (added || literals_by_name) {
        Kind::Literal
    } else if added && is_bracketed(piece) {
        // Not in the table, but made like a control token by whoever fine-tuned the model: not for a user to forge.
        Kind::Control { hidden: false }
    } else if added {
        Kind::Literal
    } else {
        Kind::Text
    }
}

/// The byte that `<0xHH>` stands for.
fn byte_piece(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let upper_hex = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    if upper_hex { u8::from_str_radix(digits, 16).ok() } else { None }
}

fn is_bracketed(piece: &str) -> bool {
    (piece.starts_with('<') && piece.ends_with('>')) || (piece.starts_with('[') && piece.ends_with(']'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_follow_the_table_and_the_file() {
        use Listing::{Added, Ordinary, Special};
        let control = |hidden| Kind::Control { hidden };
        assert_eq!(kind_of("<bos>", Ordinary, false), control(true));
        assert_eq!(kind_of("<unused3>", Added, false), control(false));
        assert_eq!(kind_of("<loc0001>", Added, false), control(false));
        assert_eq!(kind_of("<my_token>", Added, false), control(false));
        assert_eq!(kind_of("<my_token>", Special, false), control(true));
        assert_eq!(kind_of("<my_token>", Ordinary, false), Kind::Text);
        assert_eq!(kind_of("<b>", Added, false), Kind::Literal);
        assert_eq!(kind_of("<b>", Ordinary, false), Kind::Text);
        assert_eq!(kind_of("<b>", Ordinary, true), Kind::Literal);
        assert_eq!(kind_of("penicillin", Added, false), Kind::Literal);
        assert_eq!(kind_of("<0x0A>", Ordinary, false), Kind::Byte(10));
        assert_eq!(kind_of("<0x0a>", Ordinary, false), Kind::Text);
    }

    #[test]
    fn a_taken_name_or_number_is_an_error() {
        let mut vocabulary = Vocabulary::default();
        vocabulary.insert(3, "a").unwrap();
        vocabulary.insert(3, "a").unwrap();
        assert!(matches!(vocabulary.insert(4, "a"), Err(Error::PieceTwice { first: 3, second: 4, .. })));
        assert!(matches!(vocabulary.insert(3, "b"), Err(Error::IdTwice { id: 3, .. })));
        assert!(matches!(vocabulary.insert(1 << 20, "b"), Err(Error::IdTooLarge { .. })));
        assert!(matches!(vocabulary.insert(u64::MAX, "b"), Err(Error::IdTooLarge { .. })));
        assert_eq!((vocabulary.len(), vocabulary.piece(0), vocabulary.kind(0)), (4, None, Kind::Absent));
    }

    #[test]
    fn a_renamed_piece_is_found_by_its_new_name_alone() {
        let mut vocabulary = Vocabulary::with_capacity(4);
        for (id, piece) in ["a", "b", "c"].into_iter().enumerate() {
            vocabulary.insert(id as u64, piece).unwrap();
        }
        vocabulary.rename(1, "new");
        let found = ["a", "b", "new", "c"].map(|piece| vocabulary.id(piece));
        assert_eq!((found, vocabulary.piece(1)), ([Some(0), None, Some(1), Some(2)], Some("new")));
        // the name of another: the last one to take it has it
        vocabulary.rename(0, "c");
        assert_eq!((vocabulary.id("a"), vocabulary.id("c")), (None, Some(0)));
    }

    #[test]
    fn a_piece_across_a_word_start_forbids_cutting() {
        let mut vocabulary = Vocabulary::default();
        vocabulary.insert(0, "▁▁the").unwrap();
        assert!(vocabulary.words_are_separate());
        vocabulary.insert(1, "of▁the").unwrap();
        assert!(!vocabulary.words_are_separate());
    }
}
