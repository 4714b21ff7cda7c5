//! The name of a model on the hub.

use std::fmt::{self, Display};
use std::str::FromStr;

use crate::Error;

/// A well-formed hub id: organisation, name and revision. Its parts are safe to use as folder names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HubId {
    org: String,
    name: String,
    revision: Option<String>,
}

/// The revision of an id that names none: the main branch.
const MAIN: &str = "main";
/// The longest organisation, name or revision, in bytes.
const LENGTH_LIMIT: usize = 96;

impl HubId {
    /// Reads `org/name` or `org/name@revision`; a revision is a branch, a tag, a commit or `refs/pr/N`.
    ///
    /// ```
    /// # use gemma_weights::HubId;
    /// let id = HubId::parse("google/gemma-2b@float16")?;
    /// assert_eq!((id.repository().as_str(), id.revision()), ("google/gemma-2b", "float16"));
    /// assert!(HubId::parse("../../etc").is_err());
    /// # Ok::<(), gemma_weights::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::HubId`], with the rule that the text breaks.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::parts(text).map_err(|why| Error::HubId { id: text.to_owned(), why })
    }

    fn parts(text: &str) -> Result<Self, &'static str> {
        let (repository, revision) = match text.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (text, None),
        };
        let (org, name) = repository.split_once('/').ok_or("there is no slash in it")?;
        if name.contains('/') {
            return Err("there is more than one slash in it");
        }
        check_word(org)?;
        check_word(name)?;
        if let Some(revision) = revision {
            revision.split('/').try_for_each(check_word)?;
            if revision.len() > LENGTH_LIMIT {
                return Err("the revision is too long");
            }
        }
        Ok(Self { org: org.to_owned(), name: name.to_owned(), revision: revision.map(str::to_owned) })
    }

    /// `org/name`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.org, self.name)
    }

    /// The revision; `main` where the id names none.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }

    /// The model's folder in the cache: `models--org--name`.
    pub(crate) fn folder(&self) -> String {
        format!("models--{}--{}", self.org, self.name)
    }
}

/// The hub's rules for a name, which also keep it a plain folder name everywhere.
fn check_word(word: &str) -> Result<(), &'static str> {
    if word.is_empty() {
        return Err("a part of it is empty");
    }
    if word.len() > LENGTH_LIMIT {
        return Err("a part of it is too long");
    }
    if !word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err("only letters, digits, - _ and . are allowed");
    }
    if word.starts_with(['.', '-']) || word.ends_with(['.', '-']) || word.contains("..") || word.contains("--") {
        return Err("dots and dashes must stand alone and inside");
    }
    Ok(())
}

impl FromStr for HubId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.org, self.name)?;
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_and_printed_back() {
        for text in ["google/gemma-2-2b-it", "a/b@main", "a_1/b.c@refs/pr/12", "o/n@0123456789abcdef"] {
            assert_eq!(HubId::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(HubId::parse("a/b").unwrap().revision(), "main");
        assert_eq!(HubId::parse("a/b").unwrap().folder(), "models--a--b");
    }

    #[test]
    fn anything_that_could_leave_the_cache_is_refused() {
        for text in [
            "",
            "a",
            "a/",
            "/b",
            "a/b/c",
            "../b",
            "a/..",
            "a/b@..",
            "a/b@../../x",
            "a/b@/etc",
            "a/b@",
            "a\\b/c",
            "a/b@x\\y",
            "a/b c",
            "a/b\n",
            "a--b/c",
            "-a/b",
            "a/b-",
            "a/.b",
            "a/b@refs//pr",
            "ä/b",
            "a/b?x=1",
            "a/b%2f",
        ] {
            let error = HubId::parse(text).unwrap_err();
            assert!(matches!(error, Error::HubId { .. }), "{text:?}");
            assert!(!error.to_string().contains('\n'), "{text:?}");
        }
        assert!(HubId::parse(&format!("a/{}", "b".repeat(97))).is_err());
    }
}
