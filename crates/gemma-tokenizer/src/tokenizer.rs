//! [`Tokenizer`]: text to tokens and back.
//!
//! Encoding goes in two steps: literal pieces and (where allowed) control tokens are cut out of the text, longest at
//! the leftmost place; what lies between them is merged by the [`engine`](crate::engine). Text comes in parts, each
//! trusted or not; a control token is taken only where all of it is trusted. A program's own text is trusted when it
//! asks for that, a chat template always is, a message in a chat never is.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use crate::chat::{ChatOptions, ChatTemplate, RenderedChat};
use crate::control::{ControlTokens, Family};
use crate::engine::{Engine, SPACE, with_spaces_replaced};
use crate::literals::{Found, Literals};
use crate::names::{END_OF_TURN, START_OF_IMAGE, START_OF_TURN};
use crate::turn::Turn;
use crate::vocabulary::{Kind, Vocabulary};
use crate::{Error, Result, TokenId, sentencepiece, tokenizer_json};

/// How to encode a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Put `<bos>` in front. It is there exactly once, also when `specials` is set and the text brings its own.
    pub bos: bool,
    /// Texts such as `<end_of_turn>` become control tokens. Only for text that the program wrote itself.
    pub specials: bool,
}

impl Default for EncodeOptions {
    /// `<bos>` in front, and no control tokens from the text.
    fn default() -> Self {
        Self { bos: true, specials: false }
    }
}

/// How to decode tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Show structural control tokens (`<bos>`, `<end_of_turn>`, ...) by name instead of leaving them out.
    pub specials: bool,
}

/// The tab as `tokenizer.json` spells its byte, and as `tokenizer.model` does.
const TAB: &str = "\t";
const TAB_BYTE: &str = "<0x09>";

/// A piece as a SentencePiece model lists it.
#[derive(Clone, Debug, PartialEq)]
pub struct SentencePiece {
    /// How it is spelled: a space is `▁`, a byte `<0x0A>`.
    pub text: String,
    /// Of two pairs of neighbours, the one whose piece has the higher score is merged first.
    pub score: f32,
    /// 1 text, 2 unknown, 3 control, 4 literal, 6 byte.
    pub kind: u8,
}

/// A vocabulary with its rules: text to tokens and back.
///
/// Reading one takes about a second for Gemma's vocabulary; keep it and share it (it is `Send + Sync`).
pub struct Tokenizer {
    family: Family,
    vocabulary: Vocabulary,
    control: ControlTokens,
    literals: Literals,
    engine: Engine,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// A file that is not JSON of that shape, contradicts itself, lacks `<bos>` or `<eos>`, or describes a tokenizer
    /// that is not built like Gemma's.
    pub fn from_json(bytes: &[u8], family: Family) -> Result<Self> {
        let (vocabulary, engine) = tokenizer_json::read(bytes, family)?;
        Self::new(family, vocabulary, engine)
    }

    /// Reads a `tokenizer.model` (SentencePiece).
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json).
    pub fn from_sentencepiece(bytes: &[u8], family: Family) -> Result<Self> {
        let (vocabulary, engine) = sentencepiece::read(bytes, family)?;
        Self::new(family, vocabulary, engine)
    }

    fn new(family: Family, vocabulary: Vocabulary, engine: Engine) -> Result<Self> {
        let control = ControlTokens::find(&vocabulary)?;
        let mut literals = Literals::new();
        for (id, piece, kind) in vocabulary.iter() {
            match kind {
                Kind::Literal => literals.insert(piece, Found { id, control: false }),
                Kind::Control { .. } => literals.insert(piece, Found { id, control: true }),
                Kind::Absent | Kind::Text | Kind::Byte(_) => {}
            }
            // `tokenizer.json` spells runs of spaces with `▁`, which typed spaces do not match; the released edition
            // that lists them leaves the cutting to its merges. An edition that does not is not relied on.
            // Nor is a file of scores whose literals are looked for as they were typed.
            let typed = vocabulary.literals_by_name() || engine.has_typed_literals();
            if kind == Kind::Literal && typed && piece.chars().all(|c| c == SPACE) {
                literals.insert(&piece.replace(SPACE, " "), Found { id, control: false });
            }
        }
        Ok(Self { family, vocabulary, control, literals, engine })
    }

    /// The tokens of a text that anybody may have written: `<bos>` in front, exactly once, and no other control token
    /// whatever the text says.
    pub fn encode(&self, text: &str) -> Vec<TokenId> {
        self.encode_with(text, EncodeOptions::default())
    }

    /// The tokens of a text, with a say about control tokens.
    pub fn encode_with(&self, text: &str, options: EncodeOptions) -> Vec<TokenId> {
        let ids = self.encode_parts([(text, options.specials)]);
        if options.bos { self.with_bos(ids) } else { ids }
    }

    /// The tokens of a conversation: renders it with the template and encodes the result.
    ///
    /// # Errors
    /// What the template refuses or fails at; [`Error::MissingPiece`] when the built-in template is used with a
    /// vocabulary that has no turn tokens, or none for images where the conversation has some.
    pub fn chat(&self, template: &ChatTemplate, turns: &[Turn], add_generation_prompt: bool) -> Result<Vec<TokenId>> {
        self.chat_with(template, turns, &ChatOptions { add_generation_prompt, ..ChatOptions::default() })
    }

    /// [`chat`](Self::chat) with tools and other options.
    ///
    /// # Errors
    /// As [`chat`](Self::chat).
    pub fn chat_with(&self, template: &ChatTemplate, turns: &[Turn], options: &ChatOptions) -> Result<Vec<TokenId>> {
        if template.is_builtin() {
            let images = turns.iter().any(|turn| turn.images() > 0);
            for name in [START_OF_TURN, END_OF_TURN].into_iter().chain(images.then_some(START_OF_IMAGE)) {
                self.token(name).ok_or_else(|| Error::MissingPiece { piece: name.to_owned() })?;
            }
        }
        Ok(self.encode_chat(&template.render_with(turns, options)?))
    }

    /// The tokens of a rendered conversation: control tokens come from the template, never from a message, and
    /// `<bos>` stands in front exactly once.
    pub fn encode_chat(&self, chat: &RenderedChat) -> Vec<TokenId> {
        self.with_bos(self.encode_parts(chat.parts()))
    }

    /// Encodes the concatenation of the parts; control tokens only where every byte is trusted.
    fn encode_parts<'p>(&self, parts: impl IntoIterator<Item = (&'p str, bool)>) -> Vec<TokenId> {
        let mut text = String::new();
        let mut untrusted = Vec::new();
        for (part, trusted) in parts {
            let start = text.len();
            if self.engine.spaces_come_first() {
                text.push_str(&with_spaces_replaced(part));
            } else {
                text.push_str(part);
            }
            if !trusted {
                untrusted.push(start..text.len());
            }
        }
        let mut ids = Vec::new();
        self.encode_plain(&text, &untrusted, &mut ids);
        ids
    }

    /// Cuts literal pieces and control tokens out and merges the rest. `untrusted` is in order.
    fn encode_plain(&self, text: &str, untrusted: &[Range<usize>], ids: &mut Vec<TokenId>) {
        let trusted = |range: Range<usize>| {
            let first_after = untrusted.partition_point(|part| part.end <= range.start);
            untrusted.get(first_after).is_none_or(|part| part.start >= range.end)
        };
        let mut from = 0;
        while let Some((range, id)) = self.literals.next(text, from, trusted) {
            self.engine.encode(&self.vocabulary, &text[from..range.start], ids);
            ids.push(id);
            from = range.end;
        }
        self.engine.encode(&self.vocabulary, &text[from..], ids);
    }

    fn with_bos(&self, mut ids: Vec<TokenId>) -> Vec<TokenId> {
        let own = ids.iter().take_while(|id| **id == self.control.bos).count();
        ids.splice(..own, [self.control.bos]);
        ids
    }

    /// The text of tokens, without structural control tokens (`<bos>`, `<end_of_turn>`, `<|fim_prefix|>`, ...).
    /// Numbers outside the vocabulary are left out; bytes that form no character become U+FFFD.
    pub fn decode(&self, ids: &[TokenId]) -> String {
        self.decode_with(ids, DecodeOptions::default())
    }

    /// The text of a piece as the vocabulary spells it (a space is `▁`, a byte `<0x0A>`).
    pub fn piece(&self, id: TokenId) -> Option<&str> {
        self.vocabulary.piece(id)
    }

    /// The number of a piece, spelled as the vocabulary does.
    pub fn token(&self, piece: &str) -> Option<TokenId> {
        self.vocabulary.id(piece)
    }

    /// One more than the largest token; a model may have more rows than that.
    pub fn vocab_len(&self) -> usize {
        self.vocabulary.len()
    }

    /// The fewest tokens that a text of so many bytes can become. It takes no time, where to encode 20 MB takes seconds and
    /// gigabytes.
    pub fn fewest_tokens(&self, bytes: usize) -> usize {
        bytes.div_ceil(self.vocabulary.longest().max(1))
    }

    /// Bytes that a tokenizer of so many tokens takes in memory, about: the program that reads one of 262 144 tokens takes 52 MiB
    /// more than with a small one (`/usr/bin/time -f %M gemma tokenize --model FILE text`).
    pub fn memory_bytes(tokens: usize) -> usize {
        200 * tokens
    }

    /// Is this a control token, which text cannot produce unless asked to?
    pub fn is_control(&self, id: TokenId) -> bool {
        matches!(self.vocabulary.kind(id), Kind::Control { .. })
    }

    /// The control tokens by role.
    pub fn control(&self) -> &ControlTokens {
        &self.control
    }

    /// The token in front of every text.
    pub fn bos(&self) -> TokenId {
        self.control.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> TokenId {
        self.control.eos
    }

    /// The token that ends a chat turn.
    pub fn end_of_turn(&self) -> Option<TokenId> {
        self.control.end_of_turn
    }

    /// The family whose table of control tokens is used.
    pub fn family(&self) -> Family {
        self.family
    }

    /// A `tokenizer.json` of this tokenizer, to save beside a model.
    ///
    /// # Errors
    /// None in practice; writing JSON to memory reports errors as a matter of form.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        tokenizer_json::write(&self.vocabulary, &self.engine, self.control.bos)
    }

    /// Every piece as SentencePiece lists it, by token: spelling, score and type. Pairs that are merged first make the
    /// pieces with the highest scores. A hole in the numbering becomes a control piece that nothing produces.
    ///
    /// # Errors
    /// None in practice; as [`to_json`](Self::to_json).
    pub fn to_sentencepiece(&self) -> Result<Vec<SentencePiece>> {
        let mut scores = HashMap::new();
        for (rank, (left, right)) in self.engine.merge_list(&self.vocabulary)?.into_iter().enumerate() {
            scores.entry(left + &right).or_insert(-(rank as f32));
        }
        let last = -(scores.len() as f32);
        Ok((0..self.vocabulary.len() as TokenId)
            .map(|id| {
                let kind = match self.vocabulary.kind(id) {
                    _ if self.control.unk == Some(id) => sentencepiece::kind::UNKNOWN,
                    Kind::Text => sentencepiece::kind::NORMAL,
                    Kind::Byte(_) => sentencepiece::kind::BYTE,
                    Kind::Literal => sentencepiece::kind::USER_DEFINED,
                    Kind::Control { .. } | Kind::Absent => sentencepiece::kind::CONTROL,
                };
                let text = match self.vocabulary.piece(id) {
                    // `tokenizer.json` spells one byte as the character it is
                    Some(TAB) if self.vocabulary.id(TAB_BYTE).is_none() => {
                        return SentencePiece {
                            text: TAB_BYTE.to_owned(),
                            score: 0.0,
                            kind: sentencepiece::kind::BYTE as u8,
                        };
                    }
                    // as they came
                    Some(piece) if kind == sentencepiece::kind::USER_DEFINED && self.engine.has_typed_literals() => {
                        piece.replace(SPACE, " ")
                    }
                    Some(piece) => piece.to_owned(),
                    None => format!("[PAD{id}]"),
                };
                // only what merging makes is ever compared
                let score = match kind {
                    sentencepiece::kind::NORMAL => scores.get(&text).copied().unwrap_or(last),
                    _ => 0.0,
                };
                SentencePiece { text, score, kind: kind as u8 }
            })
            .collect())
    }

    pub(crate) fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("family", &self.family)
            .field("vocab_len", &self.vocab_len())
            .field("control", &self.control)
            .finish_non_exhaustive()
    }
}
