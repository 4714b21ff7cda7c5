//! The name of a model on the hub.

use std::fmt::{self, Display};
use std::str::FromStr;

use percent_encoding::percent_decode_str;

use crate::Error;
use crate::files::is_plain_name;

/// A well-formed hub id: organisation, name, revision, and of a repository with several GGUF files the one that is meant.
/// Its parts are safe to use as folder names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HubId {
    org: String,
    name: String,
    revision: Option<String>,
    choice: Option<String>,
}

/// The revision of an id that names none: the main branch.
const MAIN: &str = "main";
/// The longest organisation, name or revision, in bytes.
const LENGTH_LIMIT: usize = 96;
/// The longest name of a file, in bytes.
const FILE_LENGTH_LIMIT: usize = 255;
/// The addresses under which the hub's pages are known.
const HOSTS: [&str; 3] = ["huggingface.co", "www.huggingface.co", "hf.co"];

impl HubId {
    /// Reads `org/name`, `org/name@revision` (a branch, a tag, a commit or `refs/pr/N`), `org/name:Q4_K_M` or
    /// `org/name:FILE.gguf` for one file of a GGUF repository, `org/name/FILE.gguf`, or the address of a page of the hub,
    /// as it is copied from a browser.
    ///
    /// ```
    /// # use gemma_weights::HubId;
    /// let id = HubId::parse("google/gemma-2b@float16")?;
    /// assert_eq!((id.repository().as_str(), id.revision()), ("google/gemma-2b", "float16"));
    /// assert_eq!(HubId::parse("org/gemma-GGUF:Q4_K_M")?.choice(), Some("Q4_K_M"));
    /// assert_eq!(HubId::parse("https://huggingface.co/google/gemma-2b/tree/main")?.repository(), "google/gemma-2b");
    /// assert!(HubId::parse("../../etc").is_err());
    /// # Ok::<(), gemma_weights::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::HubId`], with the rule that the text breaks.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::parse_at(text, "")
    }

    /// [`parse`](Self::parse), where the addresses of the hub at `endpoint` are known as well.
    pub(super) fn parse_at(text: &str, endpoint: &str) -> Result<Self, Error> {
        Self::parts(text, endpoint).map_err(|why| Error::HubId { id: text.to_owned(), why })
    }

    fn parts(text: &str, endpoint: &str) -> Result<Self, &'static str> {
        if let Some(page) = page(text, endpoint)? {
            return Self::of_page(page);
        }
        // revision and choice may stand in either order
        let (repository, rest) = text.split_at(text.find(['@', ':']).unwrap_or(text.len()));
        let (mut revision, mut choice) = (None, None);
        let mut rest = rest;
        while let Some(mark) = rest.chars().next() {
            let part = &rest[1..];
            let other = if mark == '@' { ':' } else { '@' };
            let (part, next) = part.split_at(part.find(other).unwrap_or(part.len()));
            let place = if mark == '@' { &mut revision } else { &mut choice };
            if place.replace(part).is_some() {
                return Err("it names two revisions or two files");
            }
            rest = next;
        }
        let (org, name) = repository.split_once('/').ok_or("there is no slash in it")?;
        let (name, file) = match name.split_once('/') {
            Some((name, file)) if is_gguf_name(file) => (name, Some(file)),
            Some(_) => return Err("there is more than one slash in it"),
            None => (name, None),
        };
        Self::checked(org, name, revision, choice.or(file))
    }

    /// `org/name`, `org/name/tree/REVISION`, `org/name/blob/REVISION/FILE`, `org/name?show_file_info=FILE`, and the like.
    fn of_page(page: &str) -> Result<Self, &'static str> {
        let page = page.split('#').next().unwrap_or_default();
        let (path, query) = page.split_once('?').unwrap_or((page, ""));
        let parts: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(decoded).collect();
        let [org, name, rest @ ..] = parts.as_slice() else {
            return Err("it is the address of no model");
        };
        if ["datasets", "spaces", "collections", "papers", "docs"].contains(&org.as_str()) {
            return Err("it is the address of no model");
        }
        // hf.co/org/name:Q4_K_M, as other programs write it
        let (name, choice) = name.split_once(':').map_or((name.as_str(), None), |(name, choice)| (name, Some(choice)));
        let (revision, file) = match rest {
            [kind, revision, file @ ..] if ["tree", "blob", "resolve", "raw", "commit"].contains(&kind.as_str()) => {
                (Some(revision.as_str()), file.join("/"))
            }
            _ => (None, String::new()),
        };
        let shown = query.split('&').find_map(|field| field.strip_prefix("show_file_info=")).map(decoded);
        let file = [Some(file), shown].into_iter().flatten().find(|file| is_gguf_name(file));
        let revision = revision.filter(|revision| *revision != MAIN);
        Self::checked(org, name, revision, choice.or(file.as_deref()))
    }

    fn checked(org: &str, name: &str, revision: Option<&str>, choice: Option<&str>) -> Result<Self, &'static str> {
        check_word(org)?;
        check_word(name)?;
        if let Some(revision) = revision {
            revision.split('/').try_for_each(check_word)?;
            if revision.len() > LENGTH_LIMIT {
                return Err("the revision is too long");
            }
        }
        if let Some(choice) = choice {
            if choice.is_empty() || choice.len() > FILE_LENGTH_LIMIT {
                return Err("what stands after the colon is no quantization and no file");
            }
            let is_plain = |part: &str| is_plain_name(part) && part != "..";
            if !choice.split('/').all(is_plain) {
                return Err("the file is not one of a repository");
            }
        }
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Ok(Self { org: org.to_owned(), name: name.to_owned(), revision: owned(revision), choice: owned(choice) })
    }

    /// `org/name`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.org, self.name)
    }

    /// The revision; `main` where the id names none.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }

    /// Which file of a GGUF repository is meant: a quantization such as `Q4_K_M`, or a file's name.
    pub fn choice(&self) -> Option<&str> {
        self.choice.as_deref()
    }

    /// The model's folder in the cache: `models--org--name`.
    pub(crate) fn folder(&self) -> String {
        format!("models--{}--{}", self.org, self.name)
    }
}

/// The path of a page of the hub, with its query; `None` for a text that is no address.
///
/// # Errors
/// For the address of another place than the known hosts and `endpoint`.
fn page<'t>(text: &'t str, endpoint: &str) -> Result<Option<&'t str>, &'static str> {
    if let Some(path) = text.strip_prefix("hf://") {
        return Ok(Some(path.strip_prefix("models/").unwrap_or(path)));
    }
    let (has_scheme, address) = match text.split_once("://") {
        Some(("https" | "http", rest)) => (true, rest),
        Some(_) => return Err("it is an address of another kind"),
        None => (false, text),
    };
    let without_scheme = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    for known in HOSTS.into_iter().chain([without_scheme].into_iter().filter(|hub| !hub.is_empty())) {
        if let Some((host, path)) = address.split_at_checked(known.len())
            && host.eq_ignore_ascii_case(known)
            && (path.is_empty() || path.starts_with(['/', '?', '#']))
        {
            return Ok(Some(path));
        }
    }
    if has_scheme { Err("it is the address of another hub, which HF_ENDPOINT names") } else { Ok(None) }
}

/// A part of an address without its percent signs.
fn decoded(part: &str) -> String {
    percent_decode_str(part).decode_utf8_lossy().into_owned()
}

/// Whether a file's name ends in `.gguf`, in either case.
pub(super) fn is_gguf_name(name: &str) -> bool {
    crate::gguf::without_ending(name).is_some()
}

/// Whether a text is meant as the address of a page, and not as a path.
pub(super) fn is_address(text: &str) -> bool {
    text.contains("://") || page(text, "").is_ok_and(|page| page.is_some())
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
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))?;
        self.choice.as_ref().map_or(Ok(()), |choice| write!(f, ":{choice}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_and_printed_back() {
        for text in [
            "google/gemma-2-2b-it",
            "a/b@main",
            "a_1/b.c@refs/pr/12",
            "o/n@0123456789abcdef",
            "o/n-GGUF:Q4_K_M",
            "o/n@v1:n-Q8_0.gguf",
        ] {
            assert_eq!(HubId::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(HubId::parse("a/b").unwrap().revision(), "main");
        assert_eq!(HubId::parse("a/b").unwrap().folder(), "models--a--b");
    }

    #[test]
    fn one_file_of_a_repository_can_be_meant() {
        for text in ["o/n@v1:q8_0", "o/n:q8_0@v1"] {
            let id = HubId::parse(text).unwrap();
            assert_eq!((id.revision(), id.choice()), ("v1", Some("q8_0")), "{text}");
        }
        assert_eq!(HubId::parse("o/n/Q8_0/n-Q8_0.gguf").unwrap().to_string(), "o/n:Q8_0/n-Q8_0.gguf");
        for text in ["o/n:", "o/n:../x.gguf", "o/n:a:b", "o/n@a@b", "o/n/../../x.gguf", "o/n:a\\b.gguf"] {
            assert!(HubId::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_are_read_as_ids() {
        for (address, id) in [
            ("https://huggingface.co/google/gemma-2b", "google/gemma-2b"),
            ("https://huggingface.co/google/gemma-2b/", "google/gemma-2b"),
            ("http://www.HuggingFace.co/google/gemma-2b?x=1#readme", "google/gemma-2b"),
            ("huggingface.co/google/gemma-2b/tree/main", "google/gemma-2b"),
            ("https://huggingface.co/google/gemma-2b/tree/float16", "google/gemma-2b@float16"),
            ("https://huggingface.co/o/n/blob/main/n-Q8_0.gguf", "o/n:n-Q8_0.gguf"),
            ("https://huggingface.co/o/n/resolve/v2/a/n.gguf?download=true", "o/n@v2:a/n.gguf"),
            ("https://huggingface.co/o/n/discussions/1", "o/n"),
            ("hf.co/o/n:Q4_K_M", "o/n:Q4_K_M"),
            ("hf://o/n", "o/n"),
            ("https://huggingface.co/o/n?show_file_info=n-Q8_0.gguf", "o/n:n-Q8_0.gguf"),
            ("https://huggingface.co/o/n?x=1&show_file_info=a%2Fn-Q8_0.GGUF#top", "o/n:a/n-Q8_0.GGUF"),
            ("https://huggingface.co/o/n?show_file_info=model.safetensors", "o/n"),
            ("https://huggingface.co/o/n/tree/refs%2Fpr%2F1", "o/n@refs/pr/1"),
        ] {
            assert_eq!(HubId::parse(address).unwrap().to_string(), id, "{address}");
            assert!(is_address(address), "{address}");
        }
        for wrong in
            ["https://huggingface.co/", "https://huggingface.co/datasets/o/n", "https://other.co/o/n", "ftp://x/o/n"]
        {
            assert!(HubId::parse(wrong).is_err(), "{wrong}");
        }
        for endpoint in ["https://mirror.example/hub", "mirror.example/hub"] {
            let id = HubId::parse_at("https://Mirror.example/hub/o/n/tree/v2", endpoint).unwrap();
            assert_eq!(id.to_string(), "o/n@v2");
            assert!(HubId::parse_at("https://mirror.example/hubs/o/n", endpoint).is_err());
            assert!(HubId::parse_at("https://huggingface.co/o/n", endpoint).is_ok());
        }
        for outside in ["https://huggingface.co/o/n/tree/..%2F..%2Fx", "https://huggingface.co/o%2Fp/n"] {
            assert!(HubId::parse(outside).is_err(), "{outside}");
        }
        assert!(!is_address("models/gemma") && !is_address("a/b/c"));
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
