//! Fields that are one text, several, or tokens.

use std::fmt;

use gemma_tokenizer::{EncodeOptions, TokenId};
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};

use super::backend::Backend;
use super::error::Refusal;

/// The tokens of a prompt.
///
/// # Errors
/// As [`check_len`].
pub(crate) fn encode(backend: &dyn Backend, text: &str, options: EncodeOptions) -> Result<Vec<TokenId>, Refusal> {
    check_len(backend, text.len())?;
    Ok(backend.tokenizer().encode_with(text, options))
}

/// Refuses a text of so many bytes that no context holds it, before time and memory are spent on its tokens.
///
/// # Errors
/// 400, as where the tokens were counted.
pub(crate) fn check_len(backend: &dyn Backend, bytes: usize) -> Result<(), Refusal> {
    let fewest = backend.tokenizer().fewest_tokens(bytes);
    match backend.card().context_length {
        Some(limit) if fewest > limit => Err(Refusal::context(fewest, limit)),
        _ => Ok(()),
    }
}

/// A string or a list of strings.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Texts(pub(crate) Vec<String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of strings")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Texts, E> {
                Ok(Texts(vec![text.to_owned()]))
            }

            fn visit_unit<E: de::Error>(self) -> Result<Texts, E> {
                Ok(Texts::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Texts, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = seq.next_element::<String>()? {
                    texts.push(text);
                }
                Ok(Texts(texts))
            }
        }
        deserializer.deserialize_any(Form)
    }
}

/// One prompt: text or tokens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TextOrTokens {
    Text(String),
    Tokens(Vec<TokenId>),
}

/// The `prompt` of completions and the `input` of embeddings: a string, strings, token ids, or lists of token ids.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Prompts(pub(crate) Vec<TextOrTokens>);

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Element {
            Token(TokenId),
            Text(String),
            Tokens(Vec<TokenId>),
            /// llama.cpp's mixed prompts are not supported; the variant exists for the message.
            Other(de::IgnoredAny),
        }
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Prompts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, an array of strings, an array of token ids, or an array of arrays of token ids")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Prompts, E> {
                Ok(Prompts(vec![TextOrTokens::Text(text.to_owned())]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompts, A::Error> {
                let mut prompts = Vec::new();
                let mut tokens = Vec::new();
                while let Some(element) = seq.next_element::<Element>()? {
                    match element {
                        Element::Token(token) => tokens.push(token),
                        Element::Text(text) => prompts.push(TextOrTokens::Text(text)),
                        Element::Tokens(tokens) => prompts.push(TextOrTokens::Tokens(tokens)),
                        Element::Other(_) => {
                            return Err(de::Error::invalid_type(de::Unexpected::Other("another value"), &self));
                        }
                    }
                }
                match (prompts.is_empty(), tokens.is_empty()) {
                    (true, false) => Ok(Prompts(vec![TextOrTokens::Tokens(tokens)])),
                    (false, true) => Ok(Prompts(prompts)),
                    (true, true) => Err(de::Error::invalid_length(0, &self)),
                    (false, false) => Err(de::Error::invalid_type(de::Unexpected::Other("a mixed array"), &self)),
                }
            }
        }
        deserializer.deserialize_any(Form)
    }
}
