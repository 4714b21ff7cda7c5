//! Merging by an ordered list of pairs: the BPE model of the `tokenizers` crate.
//!
//! The crate's model is given the vocabulary *without* control tokens, and the merges that do not lead to one. Text
//! can therefore not become a control token here, whatever a file's merge list says.

use std::collections::HashSet;

use serde::Deserialize;
use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab};

use super::words;
use crate::names::is_control_name;
use crate::vocabulary::{Kind, Vocabulary};
use crate::{Error, Result, TokenId};

const FILE: &str = "tokenizer.json";

/// A merge list, ready to use.
#[derive(Debug)]
pub(crate) struct Merges {
    bpe: Box<BPE>,
    words_are_separate: bool,
}

impl Merges {
    /// Builds the model from the merges, best first.
    ///
    /// # Errors
    /// [`Error::Merge`] or [`Error::Json`] for a merge that does not make a piece of two pieces;
    /// [`Error::MissingPiece`] when some character could not be written at all.
    pub(crate) fn new(vocabulary: &Vocabulary, mut merges: Vec<(String, String)>) -> Result<Self> {
        // with `<unk>` in its place, texts would be lost without a word
        if let Some(byte) = missing_byte(vocabulary) {
            return Err(Error::MissingPiece { piece: format!("<0x{byte:02X}>") });
        }

        let control: HashSet<&str> = vocabulary
            .iter()
            .filter(|(_, _, kind)| matches!(kind, Kind::Control { .. }))
            .map(|(_, piece, _)| piece)
            .collect();
        let pieces: Vocab = vocabulary
            .iter()
            .filter(|(_, piece, _)| !control.contains(piece))
            .map(|(id, piece, _)| (piece.to_owned(), id))
            .collect();
        // By name as well as by kind: the vocabulary may have renamed a control token that a merge still spells out.
        let is_control = |piece: &str| control.contains(piece) || is_control_name(piece);
        let mut joined = String::new();
        merges.retain(|(left, right)| {
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            !(is_control(left) || is_control(right) || is_control(&joined))
        });
        // The library reports a merge of unknown parts, but panics on one that is longer than every piece.
        let longest = pieces.keys().map(String::len).max().unwrap_or(0);
        if let Some((left, right)) = merges.iter().find(|(left, right)| left.len() + right.len() > longest) {
            return Err(Error::Merge { left: left.clone(), right: right.clone() });
        }

        let builder = BPE::builder().vocab_and_merges(pieces, merges).byte_fallback(true);
        let bpe = builder.build().map_err(|error| Error::Json { file: FILE, reason: error.to_string() })?;
        Ok(Self { bpe: Box::new(bpe), words_are_separate: vocabulary.words_are_separate() })
    }

    /// Appends the tokens of a text whose spaces are `▁`.
    pub(crate) fn encode(&self, text: &str, ids: &mut Vec<TokenId>) {
        if self.words_are_separate {
            words(text).for_each(|word| self.encode_word(word, ids));
        } else {
            self.encode_word(text, ids);
        }
    }

    fn encode_word(&self, word: &str, ids: &mut Vec<TokenId>) {
        let tokens =
            self.bpe.tokenize(word).expect("tokenizing fails only for a byte without a piece, which was checked");
        ids.extend(tokens.iter().map(|token| token.id));
    }

    /// The merges, best first. The library shows them only in the JSON that it writes.
    ///
    /// # Errors
    /// None in practice; writing JSON to memory reports errors as a matter of form.
    pub(crate) fn merge_list(&self) -> Result<Vec<(String, String)>> {
        #[derive(Deserialize)]
        struct Written {
            merges: Vec<(String, String)>,
        }
        serde_json::to_vec(self.bpe.as_ref())
            .and_then(|json| serde_json::from_slice(&json))
            .map(|written: Written| written.merges)
            .map_err(|error| Error::Json { file: FILE, reason: error.to_string() })
    }
}

/// A byte that could not be written when a character contains it. Gemma's files spell the tab as itself and have no
/// `<0x09>`; any ASCII character may do so.
fn missing_byte(vocabulary: &Vocabulary) -> Option<u8> {
    let pieces = vocabulary.byte_pieces();
    let is_text = |byte: u8| {
        let mut buffer = [0; 4];
        let id = vocabulary.id(char::from(byte).encode_utf8(&mut buffer));
        byte.is_ascii() && id.is_some_and(|id| matches!(vocabulary.kind(id), Kind::Text | Kind::Literal))
    };
    (0..=u8::MAX).find(|byte| pieces[usize::from(*byte)].is_none() && !is_text(*byte))
}
