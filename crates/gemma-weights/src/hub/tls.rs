//! Whose certificates are believed: those of the operating system, or of the files that the environment names.

use std::path::PathBuf;
use std::sync::Arc;

use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::Error;

/// What the client believes. `bundles` are PEM files, or folders of such files, which replace the system's store; where
/// there are neither, the certificates that are built in count.
///
/// # Errors
/// [`Error::Certificates`] when files or folders are named and hold no certificate.
pub(super) fn config(bundles: &[PathBuf]) -> Result<TlsConfig, Error> {
    let mut found = Vec::new();
    let mut cause = "there is no certificate in it".to_owned();
    for bundle in bundles {
        let held = match bundle.is_dir() {
            true => rustls_native_certs::load_certs_from_paths(None, Some(bundle)),
            false => rustls_native_certs::load_certs_from_paths(Some(bundle), None),
        };
        if let (true, Some(error)) = (bundle == &bundles[0], held.errors.first()) {
            cause = error.to_string();
        }
        found.extend(held.certs);
    }
    match bundles.first() {
        Some(first) if found.is_empty() => return Err(Error::Certificates { path: first.clone(), cause }),
        Some(_) => {}
        None => found = rustls_native_certs::load_native_certs().certs,
    }
    let roots = match found.is_empty() {
        true => RootCerts::WebPki,
        false => RootCerts::Specific(Arc::new(
            found.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect(),
        )),
    };
    Ok(TlsConfig::builder().root_certs(roots).build())
}
