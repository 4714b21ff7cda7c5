//! Fill in the middle: the text around a hole becomes a prompt.
//!
//! CodeGemma was trained on files that were cut in three and put together in another order (Bavarian et al.,
//! "Efficient Training of Language Models to Fill in the Middle", 2022), with a control token in front of each part:
//!
//! ```text
//! prefix, suffix, middle:  <bos> <|fim_prefix|> prefix <|fim_suffix|> suffix <|fim_middle|>
//! suffix, prefix, middle:  <bos> <|fim_prefix|> <|fim_suffix|> suffix <|fim_middle|> prefix
//! with other files:        <bos> path \n text <|file_separator|> path \n ... and one of the above
//! ```
//!
//! Nothing stands between a control token and a text: a space there would be a space of the program. The texts are
//! encoded one by one and the control tokens put between them as numbers, so a program that contains the text
//! `<|fim_suffix|>` keeps it as text.

use crate::{Error, Language};
use gemma_tokenizer::{EncodeOptions, FimTokens, TokenId, Tokenizer};

/// In which order the parts of a file stand in the prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Prefix, suffix, middle: the order in which CodeGemma is documented.
    #[default]
    Psm,
    /// Suffix, prefix, middle: half of its training. The prefix comes last, so that typing on costs only what was
    /// typed: everything before it was read for the last request.
    Spm,
}

/// Another file of the project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its path, as the project spells it.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// A hole to be filled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Infill {
    /// The text before the hole.
    pub prefix: String,
    /// The text after the hole.
    pub suffix: String,
    /// The path of the file, which is named in the prompt when there are other files, and tells the language.
    pub path: Option<String>,
    /// Other files, the most telling one last: it stands nearest to the hole.
    pub context: Vec<File>,
    /// The language; `None`: what the path's ending says.
    pub language: Option<Language>,
}

impl Infill {
    /// A hole between two texts.
    pub fn new(prefix: impl Into<String>, suffix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), suffix: suffix.into(), ..Self::default() }
    }

    /// The language, given or told by the path.
    pub fn language(&self) -> Language {
        self.language.unwrap_or_else(|| self.path.as_deref().map_or(Language::Other, Language::of_path))
    }
}

/// The infilling tokens of a tokenizer.
///
/// # Errors
/// [`Error::NoInfilling`] when it has none, as that of a plain Gemma.
pub fn fim_tokens(tokenizer: &Tokenizer) -> Result<FimTokens, Error> {
    tokenizer.control().fim.ok_or(Error::NoInfilling)
}

/// The tokens that end a middle, besides the model's own stop tokens: whatever begins another part or file.
pub fn stop_tokens(fim: FimTokens) -> [TokenId; 4] {
    [fim.prefix, fim.middle, fim.suffix, fim.file_separator]
}

/// A user's text in tokens, none of them a control token.
pub(crate) fn text_tokens(tokenizer: &Tokenizer, text: &str) -> Vec<TokenId> {
    tokenizer.encode_with(text, EncodeOptions { bos: false, specials: false })
}
