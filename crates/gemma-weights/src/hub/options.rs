//! Where the hub and its cache are, and who asks: the settings of the Hugging Face tools.

use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How models are looked up and downloaded.
#[derive(Clone, PartialEq, Eq)]
pub struct HubOptions {
    /// The cache: the folder of `models--org--name`.
    pub cache: PathBuf,
    /// The hub's address, without a slash at the end.
    pub endpoint: String,
    /// The access token, sent to the endpoint only; gated and private models need one.
    pub token: Option<String>,
    /// Whether to make no request at all.
    pub offline: bool,
    /// How often a request that fails for a passing reason is made before giving up, at least once. A download that
    /// got further starts counting anew.
    pub attempts: u32,
    /// The pause before the second attempt; it doubles with each further one.
    pub pause: Duration,
    /// The longest wait for a connection, an answer, or the next piece of a file.
    pub timeout: Duration,
    /// The certificates that are believed in place of the system's: PEM files, and folders of such files, all together.
    pub certificates: Vec<PathBuf>,
}

impl HubOptions {
    /// The settings of the environment: `HF_HUB_CACHE`, or `HF_HOME` (whose `hub` it is), or the user's cache folder;
    /// `HF_TOKEN`, or the file that `hf auth login` writes; `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`; `HF_ENDPOINT`;
    /// `SSL_CERT_FILE`, `REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE` and `SSL_CERT_DIR` for the certificates: what any of them
    /// names is believed, since a company's own authority often stands in one of them and the system's in another.
    pub fn from_env() -> Self {
        Self::from_variables(&|name| std::env::var_os(name))
    }

    /// [`from_env`](Self::from_env) with the environment as a function, for tests.
    pub fn from_variables(variable: &dyn Fn(&str) -> Option<OsString>) -> Self {
        // an empty variable means the same as none
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).and_then(|value| value.into_string().ok());
        let home = set("HOME").or_else(|| set("USERPROFILE")).map(PathBuf::from).unwrap_or_default();
        let folder = |name: &str| set(name).map(|value| expand_home(Path::new(&value), &home));

        let hf_home = folder("HF_HOME")
            .unwrap_or_else(|| folder("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache")).join("huggingface"));
        let token_file = folder("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
        let cache =
            folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| hf_home.join("hub"));
        let token = text("HF_TOKEN")
            .or_else(|| text("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| first_bytes(&token_file, TOKEN_LIMIT))
            .map(|token| token.trim().to_owned())
            .filter(|token| !token.is_empty());
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let offline = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
            .into_iter()
            .any(|name| text(name).is_some_and(|value| is_true(&value)));
        let certificates = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_DIR"];
        Self {
            cache,
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token,
            offline,
            attempts: 5,
            pause: Duration::from_millis(500),
            timeout: Duration::from_secs(30),
            certificates: certificates.into_iter().filter_map(folder).collect(),
        }
    }
}

/// The longest token that is read from a file, in bytes.
const TOKEN_LIMIT: u64 = 4 << 10;

/// The text of a small file; `None` when there is none, or it is longer than `limit` bytes, or no file (a pipe would be
/// waited for, and a device never ends).
pub(super) fn first_bytes(path: &Path, limit: u64) -> Option<String> {
    let mut text = String::new();
    std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    std::fs::File::open(path).ok()?.take(limit + 1).read_to_string(&mut text).ok()?;
    (text.len() as u64 <= limit).then_some(text)
}

/// What `huggingface_hub` takes for a yes.
fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
}

/// `~/models` in the user's home folder.
fn expand_home(path: &Path, home: &Path) -> PathBuf {
    path.strip_prefix("~").map_or_else(|_| path.to_owned(), |rest| home.join(rest))
}

/// Everything but the token.
impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> HubOptions {
        HubOptions::from_variables(&|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn the_cache_is_where_the_hugging_face_tools_have_it() {
        for (variables, cache) in [
            (&[("HOME", "/h")][..], "/h/.cache/huggingface/hub"),
            (&[("USERPROFILE", "/u")], "/u/.cache/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "/hf")], "/hf/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "~/hf")], "/h/hf/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")], "/c"),
            (&[("HOME", "/h"), ("HF_HOME", ""), ("HF_HUB_CACHE", "")], "/h/.cache/huggingface/hub"),
        ] {
            assert_eq!(with(variables).cache, Path::new(cache), "{variables:?}");
        }
    }

    #[test]
    fn the_token_comes_from_the_variable_or_from_the_file() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().to_str().unwrap();
        assert_eq!(with(&[("HF_HOME", path)]).token, None);
        std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
        assert_eq!(with(&[("HF_HOME", path)]).token.as_deref(), Some("hf_file"));
        let options = with(&[("HF_HOME", path), ("HF_TOKEN", " hf_variable ")]);
        assert_eq!(options.token.as_deref(), Some("hf_variable"));
        assert!(!format!("{options:?}").contains("hf_variable"));
    }

    #[test]
    fn offline_and_endpoint_are_read() {
        for (value, offline) in [("1", true), ("TRUE", true), ("on", true), ("0", false), ("", false), ("no", false)] {
            assert_eq!(with(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value}");
        }
        assert!(with(&[("TRANSFORMERS_OFFLINE", "1")]).offline);
        assert_eq!(with(&[]).endpoint, "https://huggingface.co");
        assert_eq!(with(&[("HF_ENDPOINT", "http://mirror/")]).endpoint, "http://mirror");
    }

    #[test]
    fn certificates_are_named_as_other_programs_name_them() {
        assert!(with(&[]).certificates.is_empty());
        for name in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_DIR"] {
            assert_eq!(with(&[(name, "/c/ca.pem")]).certificates, [Path::new("/c/ca.pem")], "{name}");
        }
        let both = with(&[("REQUESTS_CA_BUNDLE", "/b"), ("SSL_CERT_FILE", "/a")]);
        assert_eq!(both.certificates, [Path::new("/a"), Path::new("/b")]);
    }

    #[test]
    fn a_token_file_without_an_end_is_no_token() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("long");
        std::fs::write(&file, "x".repeat(5000)).unwrap();
        assert_eq!(with(&[("HF_TOKEN_PATH", file.to_str().unwrap())]).token, None);
        #[cfg(unix)]
        assert_eq!(with(&[("HF_TOKEN_PATH", "/dev/zero")]).token, None);
    }
}
