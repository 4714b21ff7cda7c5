//! A file per architecture, and the models that are built in.

pub(crate) mod gemma;
pub(crate) mod gemma3;
pub(crate) mod paligemma;
pub(crate) mod recurrentgemma;

use std::path::Path;

use gemma_tokenizer::Family;
use gemma_weights::Checkpoint;

use crate::Error;

/// The families that have a built-in model; `demo` alone means the first.
pub fn demo_families() -> &'static [Family] {
    &[Family::Gemma, Family::CodeGemma, Family::RecurrentGemma, Family::PaliGemma]
}

/// The files of a family's built-in model, opened like a folder; `None` for a family without one.
///
/// # Errors
/// Never, for the files that are built in.
pub fn demo_checkpoint(family: Family) -> Result<Option<Checkpoint>, Error> {
    let checkpoint = match family {
        Family::Gemma => ::gemma::demo_checkpoint()?,
        Family::CodeGemma => codegemma::demo_checkpoint()?,
        Family::RecurrentGemma => ::recurrentgemma::demo_checkpoint()?,
        Family::PaliGemma => ::paligemma::demo_checkpoint()?,
        _ => return Ok(None),
    };
    Ok(Some(checkpoint))
}

/// The family whose built-in model a name stands for, `demo` or `demo:FAMILY`; `None` for all other names, and where
/// there is a folder of this name.
///
/// # Errors
/// [`Error::NoDemo`] for `demo:` with another word behind it.
pub fn demo_called(name: &str) -> Result<Option<Family>, Error> {
    let family = match name.strip_prefix("demo") {
        Some("") => demo_families()[0].name(),
        Some(rest) if rest.starts_with(':') => &rest[1..],
        _ => return Ok(None),
    };
    if Path::new(name).is_dir() {
        return Ok(None);
    }
    let found = demo_families().iter().copied().find(|known| is_demo_of(*known, family));
    found.map(Some).ok_or_else(|| Error::NoDemo {
        name: name.to_owned(),
        known: demo_families().iter().map(|family| format!("demo:{}", family.name())).collect(),
    })
}

/// Whether a word names the built-in model of a family: that of Gemma is a Gemma 2.
fn is_demo_of(known: Family, word: &str) -> bool {
    known.is_called(word) && !word.to_lowercase().starts_with("gemma3")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_model_has_a_name_and_a_tokenizer() {
        for family in demo_families() {
            assert_eq!(demo_called(&format!("demo:{}", family.name())).unwrap(), Some(*family));
            let checkpoint = demo_checkpoint(*family).unwrap().unwrap();
            assert!(checkpoint.file("tokenizer.json").unwrap().is_some(), "{}", family.name());
        }
        assert_eq!(demo_called("demo").unwrap(), Some(Family::Gemma));
        for other in ["./demo", "demos", "google/gemma-2b", "demo/x"] {
            assert_eq!(demo_called(other).unwrap(), None, "{other}");
        }
        assert_eq!(demo_called("demo:Gemma2").unwrap(), Some(Family::Gemma));
        assert!(demo_called("demo:gemma3").unwrap_err().to_string().contains("no built-in model demo:gemma3"));
        let error = demo_called("demo:llama").unwrap_err().to_string();
        assert!(error.contains("demo:llama") && error.contains("demo:recurrentgemma"), "{error}");
    }
}
