//! Whose certificates are believed: those of the operating system, or of the files that the environment names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::Error;

/// The largest file of certificates, in bytes; the bundle of all public authorities has a quarter of a million.
const LARGEST_BUNDLE: u64 = 64 << 20;

/// What the client believes. `bundles` are PEM files, or folders of such files, which replace the system's store; where
/// there are neither, the certificates that are built in count.
///
/// # Errors
/// [`Error::Certificates`] when files or folders are named and hold no certificate.
pub(super) fn config(bundles: &[PathBuf]) -> Result<TlsConfig, Error> {
    let mut found = Vec::new();
    let mut cause = "there is no certificate in it".to_owned();
    for bundle in bundles {
        let (certificates, fault) = certificates(bundle);
        if let (true, Some(fault)) = (bundle == &bundles[0], fault) {
            cause = fault;
        }
        found.extend(certificates);
    }
    match bundles.first() {
        Some(first) if found.is_empty() => return Err(Error::Certificates { path: first.clone(), cause }),
        Some(_) => {}
        None => {
            let held = rustls_native_certs::load_native_certs().certs;
            found.extend(held.iter().map(|certificate| certificate.to_vec()));
        }
    }
    let roots = match found.is_empty() {
        true => RootCerts::WebPki,
        false => RootCerts::Specific(Arc::new(
            found.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect(),
        )),
    };
    Ok(TlsConfig::builder().root_certs(roots).build())
}

/// The certificates of a PEM file or of those in a folder, each once, and the first fault.
/// What is no ordinary file of a sensible size is not read: it may never end.
fn certificates(bundle: &Path) -> (Vec<Vec<u8>>, Option<String>) {
    let files: Vec<PathBuf> = match bundle.is_dir() {
        true => std::fs::read_dir(bundle).into_iter().flatten().flatten().map(|entry| entry.path()).collect(),
        false => vec![bundle.to_owned()],
    };
    let (mut found, mut fault) = (Vec::new(), None);
    for file in files {
        let wrong = match std::fs::metadata(&file) {
            Err(error) => Some(error.to_string()),
            Ok(about) if !about.is_file() => Some("it is no ordinary file".to_owned()),
            Ok(about) if about.len() > LARGEST_BUNDLE => {
                Some(format!("it has {} bytes, and {LARGEST_BUNDLE} is the limit", about.len()))
            }
            Ok(_) => {
                let held = rustls_native_certs::load_certs_from_paths(Some(&file), None);
                found.extend(held.certs.iter().map(|certificate| certificate.to_vec()));
                held.errors.first().map(ToString::to_string)
            }
        };
        fault = fault.or(wrong);
    }
    // a folder holds links to its files as well
    found.sort_unstable();
    found.dedup();
    (found, fault)
}
