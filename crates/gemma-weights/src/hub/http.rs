//! Talking to the hub: requests, redirects, and what its refusals mean.

use std::collections::BTreeSet;
use std::io::Read;
use std::time::{Duration, Instant, SystemTime};

use serde::Deserialize;
use ureq::http::{HeaderMap, Method, Request, Response, Uri};
use ureq::{Agent, Body};

use super::cache::is_commit;
use super::retry::{Attempt, LONGEST_PAUSE, retry_after};
use super::{HubId, HubOptions, tls};
use crate::Error;
use crate::files::is_plain_name;

/// Redirects that are followed for one request.
const REDIRECTS: usize = 8;
/// The longest list of a repository's files that is read, in bytes.
const LISTING_LIMIT: u64 = 16 << 20;
/// The most files of a repository that are looked at.
const MOST_FILES: usize = 200_000;

/// What a repository holds at a revision.
pub(super) struct Listing {
    pub commit: String,
    /// File names, those in folders with the folder, each once.
    pub files: Vec<String>,
}

/// What the hub says about a file before it is fetched.
pub(super) struct Announced {
    /// A name for its content: the sha256 of a large file, the git hash of a small one.
    pub etag: String,
    /// Its size in bytes.
    pub size: u64,
}

/// The hub, asked about one model.
pub(super) struct Client<'a> {
    agent: Agent,
    id: &'a HubId,
    options: &'a HubOptions,
}

impl<'a> Client<'a> {
    /// # Errors
    /// [`Error::Certificates`] when the file that the environment names holds none.
    pub(super) fn new(id: &'a HubId, options: &'a HubOptions) -> Result<Self, Error> {
        let timeout = Some(options.timeout);
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // redirects are followed here, where it is known who may see the token
            .max_redirects(0)
            .tls_config(tls::config(&options.certificates)?)
            .user_agent(concat!("gemma-weights/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(timeout)
            .timeout_connect(timeout)
            .timeout_recv_response(timeout)
            .timeout_per_read(timeout);
        if is_local(&options.endpoint) {
            config = config.proxy(None);
        }
        Ok(Self { agent: config.build().into(), id, options })
    }

    /// The commit of the revision and the files it has.
    pub(super) fn listing(&self) -> Result<Listing, Error> {
        #[derive(Deserialize)]
        struct Answer {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let revision = self.id.revision().replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision}", self.options.endpoint, self.id.repository());
        let answer: Answer = serde_json::from_slice(&self.small(&url, LISTING_LIMIT)?)
            .map_err(|cause| misunderstood(&url, cause.to_string()))?;
        if !is_commit(&answer.sha) {
            return Err(misunderstood(&url, format!("{} is no commit", answer.sha)));
        }
        let names = answer.siblings.into_iter().map(|file| file.rfilename).take(MOST_FILES);
        let files: BTreeSet<String> = names.filter(|name| name.split('/').all(is_plain_name)).collect();
        Ok(Listing { commit: answer.sha, files: files.into_iter().collect() })
    }

    /// The answer to a question, of at most `limit` bytes.
    pub(super) fn small(&self, url: &str, limit: u64) -> Result<Vec<u8>, Error> {
        self.retry(|| {
            let reply = self.send(&Method::GET, url, None)?;
            if reply.status() != 200 {
                return Err(self.refusal(url, &reply));
            }
            let (mut body, mut source, mut piece) = (Vec::new(), reader(reply), [0; 1 << 14]);
            let begin = Instant::now();
            loop {
                let read = source.read(&mut piece).map_err(|cause| self.broken(url, cause.to_string()))?;
                body.extend(&piece[..read]);
                if read == 0 {
                    return Ok(body);
                }
                if body.len() as u64 > limit {
                    return Err(misunderstood(url, format!("it is longer than {limit} bytes")).into());
                }
                // each piece may come in time, and the answer never
                if begin.elapsed() > self.options.timeout.saturating_mul(2) {
                    return Err(self.broken(url, "the answer takes too long".to_owned()));
                }
            }
        })
    }

    /// Where a file of a commit is fetched.
    pub(super) fn file_url(&self, commit: &str, file: &str) -> String {
        let escaped: String =
            file.bytes().map(|byte| if byte == b'/' { "/".to_owned() } else { escape(byte) }).collect();
        format!("{}/{}/resolve/{commit}/{escaped}", self.options.endpoint, self.id.repository())
    }

    /// Size and hash of a file.
    pub(super) fn announced(&self, url: &str) -> Result<Announced, Error> {
        self.retry(|| {
            let reply = self.send(&Method::HEAD, url, None)?;
            let says = |name| header(reply.headers(), name);
            let (etag, size) = match reply.status().as_u16() {
                // for a large file the hub answers with a redirect to its store, and says what lies there
                300..400 => (says("x-linked-etag"), says("x-linked-size")),
                200 => (
                    says("x-linked-etag").or_else(|| says("etag")),
                    says("x-linked-size").or_else(|| says("content-length")),
                ),
                _ => return Err(self.refusal(url, &reply)),
            };
            let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
            match (etag, size.and_then(|size| size.parse().ok())) {
                // it becomes a file name
                (Some(etag), Some(size)) if is_plain_name(etag) && !etag.starts_with('.') => {
                    Ok(Announced { etag: etag.to_ascii_lowercase(), size })
                }
                _ => Err(misunderstood(url, "it does not say the file's size and hash".to_owned()).into()),
            }
        })
    }

    /// Starts to fetch a file from byte `from`. The answer's status is 200 (the whole file), 206 (from there on) or
    /// 416 (there is nothing there).
    pub(super) fn get(&self, url: &str, from: u64) -> Result<Response<Body>, Attempt> {
        let reply = self.send(&Method::GET, url, (from > 0).then_some(from))?;
        if matches!(reply.status().as_u16(), 200 | 206 | 416) { Ok(reply) } else { Err(self.refusal(url, &reply)) }
    }

    /// Calls `attempt` until it succeeds, fails for good, or has failed too often. Without any
    /// network, two attempts are enough.
    fn retry<T>(&self, mut attempt: impl FnMut() -> Result<T, Attempt>) -> Result<T, Error> {
        let mut failures = 0;
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(Attempt::Stop(error)) => return Err(error),
                Err(Attempt::Again { error, pause }) => {
                    failures += 1;
                    let most = if matches!(error, Error::HubConnection { .. }) { 2 } else { u32::MAX };
                    if failures >= self.options.attempts.min(most) {
                        return Err(error);
                    }
                    self.pause(failures, pause);
                }
            }
        }
    }

    /// Waits after the given number of failures in a row: as long as the hub asks, or longer each time.
    pub(super) fn pause(&self, failures: u32, asked: Option<Duration>) {
        let doubled = self.options.pause.saturating_mul(1 << failures.saturating_sub(1).min(10));
        std::thread::sleep(asked.unwrap_or(doubled.min(LONGEST_PAUSE)));
    }

    /// The longest wait for anything.
    pub(super) fn patience(&self) -> Duration {
        self.options.timeout
    }

    /// How often a request is made before giving up.
    pub(super) fn attempts(&self) -> u32 {
        self.options.attempts
    }

    /// A connection that failed or broke off.
    pub(super) fn broken(&self, url: &str, cause: String) -> Attempt {
        if cause.contains("peer certificate") {
            return Attempt::Stop(Error::HubCertificate { url: url.to_owned(), cause });
        }
        Attempt::Again { error: Error::HubConnection { url: url.to_owned(), cause }, pause: None }
    }

    /// One request and the redirects it meets. The redirect of a question (HEAD) that says what lies at its end is the
    /// answer: it leads to a store that knows less.
    fn send(&self, method: &Method, url: &str, from: Option<u64>) -> Result<Response<Body>, Attempt> {
        let hub = self.options.endpoint.parse().ok().and_then(|endpoint| origin(&endpoint));
        let address = |text: &str| -> Result<Uri, Error> {
            text.parse().map_err(|_| misunderstood(url, format!("{text} is no address")))
        };
        if self.options.token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(Error::HubToken.into());
        }
        let mut place = address(url)?;
        for _ in 0..=REDIRECTS {
            let mut request = Request::builder().method(method).uri(&place).header("accept-encoding", "identity");
            if let Some(token) = &self.options.token
                && may_see_token(hub.as_ref(), &place)
            {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if let Some(from) = from {
                request = request.header("range", format!("bytes={from}-"));
            }
            let request =
                request.body(()).map_err(|cause| misunderstood(url, format!("the request cannot be made: {cause}")))?;
            let reply = self.agent.run(request).map_err(|cause| self.broken(url, cause.to_string()))?;
            let says_all = ["x-linked-etag", "x-linked-size"].iter().all(|name| reply.headers().contains_key(*name));
            if !reply.status().is_redirection() || (method == Method::HEAD && says_all) {
                return Ok(reply);
            }
            let next = header(reply.headers(), "location").and_then(|location| redirected(&place, location));
            let next = next.ok_or_else(|| misunderstood(url, "it redirects to nowhere, or away from https".to_owned()));
            place = address(&next?)?;
        }
        Err(misunderstood(url, "it redirects in circles".to_owned()).into())
    }

    /// What an HTTP error means. The hub names the reason in a header; 401 is also its answer for a model that it does
    /// not want to admit to.
    fn refusal(&self, url: &str, reply: &Response<Body>) -> Attempt {
        let id = self.id.repository();
        let status = reply.status().as_u16();
        let no_such_model = || Error::NoSuchModel { id: id.clone(), endpoint: self.options.endpoint.clone() };
        let reason = header(reply.headers(), "x-error-code").unwrap_or_default();
        let error = match (status, reason) {
            (_, "RevisionNotFound") => {
                Error::NoSuchRevision { id: id.clone(), revision: self.id.revision().to_owned() }
            }
            (401 | 404, "RepoNotFound") => no_such_model(),
            (401 | 403, _) => Error::Gated { id: id.clone(), status, with_token: self.options.token.is_some() },
            (404, "") => no_such_model(),
            _ => Error::HubStatus { url: url.to_owned(), status },
        };
        if matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504) {
            let pause = header(reply.headers(), "retry-after").and_then(|text| retry_after(text, SystemTime::now()));
            match pause.filter(|pause| *pause > LONGEST_PAUSE) {
                Some(long) => Error::HubBusy { url: url.to_owned(), status, seconds: long.as_secs() }.into(),
                None => Attempt::Again { error, pause },
            }
        } else {
            Attempt::Stop(error)
        }
    }
}

/// The body of an answer, whatever its length.
pub(super) fn reader(reply: Response<Body>) -> impl Read {
    reply.into_body().into_with_config().limit(u64::MAX).reader()
}

/// A header's text.
pub(super) fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

pub(super) fn misunderstood(url: &str, why: String) -> Error {
    Error::HubAnswer { url: url.to_owned(), why }
}

/// Scheme, host and port: who may see the token.
fn origin(uri: &Uri) -> Option<(String, String, u16)> {
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some((scheme, uri.host()?.to_ascii_lowercase(), port))
}

/// Whether a token for the hub may go to an address: the hub's own, also where it moves on to https.
fn may_see_token(hub: Option<&(String, String, u16)>, place: &Uri) -> bool {
    match (hub, origin(place)) {
        (Some((scheme, host, port)), Some(to)) => {
            let upgrade = scheme == "http" && *port == 80 && to == ("https".to_owned(), host.clone(), 443);
            to == (scheme.clone(), host.clone(), *port) || upgrade
        }
        _ => false,
    }
}

/// Whether an address is on this machine, where no proxy leads.
fn is_local(endpoint: &str) -> bool {
    let uri: Option<Uri> = endpoint.parse().ok();
    uri.is_some_and(|uri| matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]")))
}

/// The address that a redirect from `base` leads to; `None` if it is none, or gives up encryption.
fn redirected(base: &Uri, location: &str) -> Option<String> {
    let scheme = base.scheme_str()?;
    if location.starts_with("https://") || (location.starts_with("http://") && scheme == "http") {
        return Some(location.to_owned());
    }
    if location.contains("://") && !location.starts_with('/') {
        return None;
    }
    if location.starts_with("//") {
        return Some(format!("{scheme}:{location}"));
    }
    let folder = if location.starts_with('/') { "" } else { base.path().rsplit_once('/')?.0 };
    let slash = if location.starts_with('/') { "" } else { "/" };
    Some(format!("{scheme}://{}{folder}{slash}{location}", base.authority()?))
}

/// A byte of a file name as it stands in an address.
fn escape(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
        char::from(byte).to_string()
    } else {
        format!("%{byte:02X}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved_against_the_address_they_come_from() {
        let base: Uri = "https://hub.co/org/name/resolve/main/a?x=1".parse().unwrap();
        for (location, expected) in [
            ("https://cdn.co/b", Some("https://cdn.co/b")),
            ("/api/b", Some("https://hub.co/api/b")),
            ("b", Some("https://hub.co/org/name/resolve/main/b")),
            ("//cdn.co/b", Some("https://cdn.co/b")),
            ("http://cdn.co/b", None),
            ("file:///etc/passwd", None),
        ] {
            assert_eq!(redirected(&base, location).as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn only_scheme_host_and_port_make_an_origin() {
        let origin_of = |text: &str| origin(&text.parse().unwrap());
        assert_eq!(origin_of("https://hub.co/a"), origin_of("https://HUB.co:443/b?c"));
        for other in ["http://hub.co/a", "https://hub.co:8443/a", "https://hub.co.evil.co/a", "https://sub.hub.co/a"] {
            assert_ne!(origin_of("https://hub.co/a"), origin_of(other), "{other}");
        }
        let may = |hub: &str, place: &str| may_see_token(origin_of(hub).as_ref(), &place.parse().unwrap());
        assert!(may("http://hub.co", "https://hub.co/a") && may("https://hub.co", "https://hub.co:443/a"));
        assert!(!may("https://hub.co", "http://hub.co/a") && !may("http://hub.co", "https://hub.co:8443/a"));
    }
}
