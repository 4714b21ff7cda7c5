//! Flags whose value is a word of a list: shells complete it.

use std::{error::Error, ffi::OsStr, marker::PhantomData, str::FromStr};

use clap::{
    Arg, Command,
    builder::{PossibleValue, TypedValueParser},
};
use gemma_weights::Format;

/// Reads a word of a list; what is wrong with another one is said by the type itself.
#[derive(Clone)]
pub(crate) struct OneOf<T> {
    words: Vec<&'static str>,
    kind: PhantomData<fn() -> T>,
}

impl<T> OneOf<T> {
    /// The words that shells offer.
    pub(crate) fn of(words: impl IntoIterator<Item = &'static str>) -> Self {
        Self { words: words.into_iter().collect(), kind: PhantomData }
    }
}

impl<T> TypedValueParser for OneOf<T>
where
    T: FromStr + Clone + Send + Sync + 'static,
    T::Err: Into<Box<dyn Error + Send + Sync>>,
{
    type Value = T;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<T, clap::Error> {
        (|text: &str| text.parse::<T>()).parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.words.iter().map(PossibleValue::new)))
    }
}

/// A format that files are written in.
#[derive(Clone)]
pub(crate) struct WrittenFormat(OneOf<Format>);

/// Reads a format that files are written in; a mixture of llama.cpp's is answered with the nearest.
pub(crate) fn written_format() -> WrittenFormat {
    WrittenFormat(OneOf::of(Format::ALL.map(Format::name)))
}

impl TypedValueParser for WrittenFormat {
    type Value = Format;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<Format, clap::Error> {
        let read = |text: &str| {
            text.parse::<Format>().map_err(|error| match nearest(text) {
                Some(format) => format!("{error}; the nearest is {format}"),
                None => error.to_string(),
            })
        };
        read.parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        self.0.possible_values()
    }
}

/// The format that is written and most like one that llama.cpp knows and that is not, such as Q4_K_M or IQ4_XS.
fn nearest(word: &str) -> Option<Format> {
    let word = word.to_lowercase();
    let is_mixture = |stem: &str| word.strip_prefix(stem).is_some_and(|rest| ["_s", "_m", "_l", "_xl"].contains(&rest));
    if let Some(format) = [Format::Q4K, Format::Q5K, Format::Q6K].into_iter().find(|known| is_mixture(known.name())) {
        return Some(format);
    }
    let bits = word.trim_start_matches("ud-").trim_start_matches(['i', 't']).strip_prefix('q')?.chars().next()?;
    Some(match bits {
        '1'..='4' => Format::Q4K,
        '5' => Format::Q5K,
        '6' => Format::Q6K,
        '8' => Format::Q8_0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_llama_cpp_have_a_nearest_format() {
        for (word, format) in [
            ("Q4_K_M", Some(Format::Q4K)),
            ("q5_k_s", Some(Format::Q5K)),
            ("IQ4_XS", Some(Format::Q4K)),
            ("Q2_K", Some(Format::Q4K)),
            ("UD-Q4_K_XL", Some(Format::Q4K)),
            ("Q8_K", Some(Format::Q8_0)),
            ("int8", None),
            ("é", None),
        ] {
            assert_eq!(nearest(word), format, "{word}");
        }
    }
}
