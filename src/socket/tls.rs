//! TLS over TCP: certificate and key from files, read again when they may have been renewed.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Where certificate and key stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// promptd's certificate, with the chain behind it (PEM).
    pub certificate: PathBuf,
    /// The key of this certificate (PEM).
    pub key: PathBuf,
}

impl TlsFiles {
    /// TLS 1.2 and 1.3 with ring: every client of the last ten years.
    fn read(&self) -> Result<Arc<ServerConfig>, String> {
        let of = |key: &str, file: &PathBuf, error: &dyn std::fmt::Display| {
            format!("`socket.{key}` `{}`: {error}", file.display())
        };
        let (certificate, secret) = ("tcp_certificate_file", "tcp_key_file");
        let chain = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| of(certificate, &self.certificate, &error))?;
        if chain.is_empty() {
            return Err(of(certificate, &self.certificate, &"there is no certificate in it"));
        }
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| of(secret, &self.key, &error))?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| of(certificate, &self.certificate, &error))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| of(secret, &self.key, &error))?;
        Ok(Arc::new(config))
    }
}

/// What connections are encrypted with; clones mean the same.
#[derive(Clone)]
pub struct Tls {
    files: TlsFiles,
    current: Arc<RwLock<Arc<ServerConfig>>>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// The key of the configuration whose file cannot be used, and why.
    pub fn read(files: TlsFiles) -> Result<Self, String> {
        let current = Arc::new(RwLock::new(files.read()?));
        Ok(Tls { files, current })
    }

    /// Reads the files again: who connects from now on sees the new certificate.
    ///
    /// # Errors
    /// As [`Tls::read`]; the old certificate stays then.
    pub fn renew(&self) -> Result<(), String> {
        let new = self.files.read()?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(Arc::clone(&current))
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let files =
            TlsFiles { certificate: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
        assert!(files.read().unwrap_err().contains("`socket.tcp_certificate_file`"));
        std::fs::write(&files.certificate, "hello").unwrap();
        assert!(files.read().unwrap_err().contains("no certificate"));
    }
}
