//! TLS to a hub: the system's authorities, or those of a file.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::HubError;

/// What connections are made with. `authorities`: a PEM file of those to trust instead of the system's.
pub(super) fn client(authorities: Option<&Path>) -> Result<Arc<ClientConfig>, HubError> {
    let mut roots = RootCertStore::empty();
    if let Some(file) = authorities {
        let wrong = |error: &dyn std::fmt::Display| {
            HubError::Tls(format!("the authorities in {}: {error}", file.display()))
        };
        let all = CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error))?;
        for certificate in all {
            let certificate = certificate.map_err(|error| wrong(&error))?;
            roots.add(certificate).map_err(|error| wrong(&error))?;
        }
    } else {
        // What of the system's store cannot be read is of no use to anybody; an empty store is.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    if roots.is_empty() {
        let message = "there is no authority to trust: install ca-certificates, or name a file with --ca-file";
        return Err(HubError::Tls(message.to_owned()));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| HubError::Tls(error.to_string()))?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}
