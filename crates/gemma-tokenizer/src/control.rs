//! The family's table of control tokens.
//!
//! Control tokens are looked up **by name** in the vocabulary at hand, so the real 256 000-piece vocabulary and a
//! five-hundred-piece one are the same to the rest of the program. Only two things go by number, because some
//! released files leave the names out: CodeGemma's infilling tokens are `<unused60>` ... `<unused63>` in the plain
//! Gemma vocabulary, and PaliGemma's locations, segments and `<image>` follow its last piece.

use crate::names::{
    BOS, END_OF_IMAGE, END_OF_TURN, EOS, FIM, IMAGE, IMAGE_SOFT_TOKEN, PAD, START_OF_IMAGE, START_OF_TURN, TURNS, UNK,
    numbered,
};
use crate::vocabulary::Vocabulary;
use crate::{Error, Result, TokenId};

/// The families of models: whose control tokens and prompts a model knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// Gemma 1, 1.1, 2 and 3.
    Gemma,
    /// CodeGemma: four of the unused pieces are the fill-in-the-middle tokens.
    CodeGemma,
    /// PaliGemma and PaliGemma 2: adds 1024 locations, 128 segments and `<image>`.
    PaliGemma,
    /// RecurrentGemma; the same table as Gemma.
    RecurrentGemma,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 4] = [Self::Gemma, Self::CodeGemma, Self::PaliGemma, Self::RecurrentGemma];

    /// Lower-case name, as in `demo:codegemma`: `gemma`, `codegemma`, `paligemma`, `recurrentgemma`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gemma => "gemma",
            Self::CodeGemma => "codegemma",
            Self::PaliGemma => "paligemma",
            Self::RecurrentGemma => "recurrentgemma",
        }
    }

    /// Every `model_type` of the family's `config.json` files. CodeGemma's files say `gemma`.
    pub const fn model_types(self) -> &'static [&'static str] {
        match self {
            Self::Gemma => &["gemma", "gemma2", "gemma3", "gemma3_text", "vaultgemma"],
            Self::CodeGemma => &[],
            Self::PaliGemma => &["paligemma"],
            Self::RecurrentGemma => &["recurrent_gemma"],
        }
    }

    /// Whether the family goes by this name: its own, or a `model_type` of its files; case and `-` do not matter.
    pub fn is_called(self, name: &str) -> bool {
        let name = name.to_lowercase().replace('-', "");
        name == self.name() || self.model_types().contains(&name.as_str())
    }

    /// The family whose `config.json` files have this `model_type`.
    pub fn of_model_type(model_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.model_types().contains(&model_type))
    }

    /// The family whose name is the longest that a path or hub id contains.
    pub fn in_name(name: &str) -> Option<Self> {
        let name = name.to_lowercase();
        Self::ALL.into_iter().filter(|family| name.contains(family.name())).max_by_key(|family| family.name().len())
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Family {
    type Err = Error;

    /// Reads a name that [`Family::is_called`] accepts.
    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|family| family.is_called(name));
        found.ok_or_else(|| Error::UnknownFamily {
            name: name.to_owned(),
            known: Self::ALL.into_iter().map(Self::name).collect(),
        })
    }
}

/// PaliGemma's location tokens `<loc0000>` ... `<loc1023>`.
const LOCATIONS: usize = 1024;
/// PaliGemma's segment tokens `<seg000>` ... `<seg127>`.
const SEGMENTS: usize = 128;

/// Puts the family's control tokens into a vocabulary that was written without them.
///
/// # Errors
/// When a name that has to be added stands under a number already taken.
pub(crate) fn adapt(vocabulary: &mut Vocabulary, family: Family) -> Result<()> {
    match family {
        Family::Gemma | Family::RecurrentGemma => {}
        Family::CodeGemma => {
            for (id, name) in FIM {
                let unused = vocabulary.piece(id).is_some_and(|old| numbered(old, "<unused").is_some());
                if unused && vocabulary.id(name).is_none() {
                    vocabulary.rename(id, name);
                }
            }
        }
        Family::PaliGemma if vocabulary.id(&location(0)).is_none() && vocabulary.id(IMAGE).is_none() => {
            let names = (0..LOCATIONS).map(location).chain((0..SEGMENTS).map(segment)).chain([IMAGE.to_owned()]);
            let first = vocabulary.len() as u64;
            for (id, name) in (first..).zip(names) {
                vocabulary.insert(id, &name)?;
            }
        }
        Family::PaliGemma => {}
    }
    Ok(())
}

fn location(index: usize) -> String {
    format!("<loc{index:04}>")
}

fn segment(index: usize) -> String {
    format!("<seg{index:03}>")
}

/// The control tokens that the rest of the program speaks of, as this vocabulary numbers them.
///
/// What is missing from a vocabulary is `None`; [`Tokenizer::token`](crate::Tokenizer::token) finds any other by name
/// (`<loc0012>`, `<unused7>`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlTokens {
    /// `<bos>`: in front of every text, exactly once.
    pub bos: TokenId,
    /// `<eos>`: the end of a text.
    pub eos: TokenId,
    /// `<pad>`.
    pub pad: Option<TokenId>,
    /// `<unk>`.
    pub unk: Option<TokenId>,
    /// `<start_of_turn>` (Gemma 4: `<|turn>`).
    pub start_of_turn: Option<TokenId>,
    /// `<end_of_turn>`: the end of a chat turn (Gemma 4: `<turn|>`).
    pub end_of_turn: Option<TokenId>,
    /// The fill-in-the-middle tokens, when all four are there.
    pub fim: Option<FimTokens>,
    /// `<image>`: stands for one patch of an image (PaliGemma), or `<image_soft_token>`: for one row of its features
    /// (Gemma 3).
    pub image: Option<TokenId>,
    /// `<start_of_image>`: opens the features of an image (Gemma 3).
    pub start_of_image: Option<TokenId>,
    /// `<end_of_image>`: closes them.
    pub end_of_image: Option<TokenId>,
}

/// CodeGemma's fill-in-the-middle tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FimTokens {
    /// `<|fim_prefix|>`: the text before the hole follows.
    pub prefix: TokenId,
    /// `<|fim_middle|>`: the completion follows.
    pub middle: TokenId,
    /// `<|fim_suffix|>`: the text after the hole follows.
    pub suffix: TokenId,
    /// `<|file_separator|>`: another file follows.
    pub file_separator: TokenId,
}

impl ControlTokens {
    /// Looks the names up.
    ///
    /// # Errors
    /// [`Error::MissingPiece`] when there is no `<bos>` or no `<eos>`, without which nothing can be read or ended.
    pub(crate) fn find(vocabulary: &Vocabulary) -> Result<Self> {
        let id = |name: &str| vocabulary.id(name);
        let required = |name: &str| id(name).ok_or_else(|| Error::MissingPiece { piece: name.to_owned() });
        let [prefix, middle, suffix, file_separator] = FIM.map(|(_, name)| id(name));
        let fim = (|| {
            Some(FimTokens { prefix: prefix?, middle: middle?, suffix: suffix?, file_separator: file_separator? })
        })();
        Ok(Self {
            bos: required(BOS)?,
            eos: required(EOS)?,
            pad: id(PAD),
            unk: id(UNK),
            start_of_turn: id(START_OF_TURN).or_else(|| id(TURNS[0])),
            end_of_turn: id(END_OF_TURN).or_else(|| id(TURNS[1])),
            fim,
            image: id(IMAGE).or_else(|| id(IMAGE_SOFT_TOKEN)),
            start_of_image: id(START_OF_IMAGE),
            end_of_image: id(END_OF_IMAGE),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_found_by_their_names() {
        for family in Family::ALL {
            assert_eq!(family.name().parse::<Family>().ok(), Some(family));
            assert!(family.model_types().iter().all(|kind| Family::of_model_type(kind) == Some(family)));
        }
        assert_eq!("CodeGemma".parse::<Family>().ok(), Some(Family::CodeGemma));
        assert_eq!("recurrent_gemma".parse::<Family>().ok(), Some(Family::RecurrentGemma));
        assert_eq!(Family::in_name("google/codegemma-2b"), Some(Family::CodeGemma));
        assert_eq!(Family::in_name("google/gemma-2b"), Some(Family::Gemma));
        assert_eq!(Family::in_name("a/b"), None);
        let error = "llama".parse::<Family>().unwrap_err().to_string();
        assert!(error.contains("llama") && error.contains("codegemma"), "{error}");
    }
}
