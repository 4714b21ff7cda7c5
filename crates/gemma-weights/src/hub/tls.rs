//! Whose certificates are believed: those of the operating system, or of the file that the environment names.

use std::path::Path;
use std::sync::Arc;

use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::Error;

/// What the client believes. `bundle` is a PEM file, or a folder of such files, which replaces the system's store;
/// without either, the certificates that are built in count.
///
/// # Errors
/// [`Error::Certificates`] when the file or folder holds no certificate.
pub(super) fn config(bundle: Option<&Path>) -> Result<TlsConfig, Error> {
    let found = match bundle {
        Some(folder) if folder.is_dir() => rustls_native_certs::load_certs_from_paths(None, Some(folder)),
        Some(file) => rustls_native_certs::load_certs_from_paths(Some(file), None),
        None => rustls_native_certs::load_native_certs(),
    };
    if let (Some(path), true) = (bundle, found.certs.is_empty()) {
        let cause = found.errors.first().map_or("there is no certificate in it".to_owned(), ToString::to_string);
        return Err(Error::Certificates { path: path.to_owned(), cause });
    }
    let roots = match found.certs.is_empty() {
        true => RootCerts::WebPki,
        false => RootCerts::Specific(Arc::new(
            found.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect(),
        )),
    };
    Ok(TlsConfig::builder().root_certs(roots).build())
}
