//! TLS to the broker: certificates and keys from files, and rustls's errors in words that say what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, ClientConfig, Error as TlsError, RootCertStore,
};

use super::client::Trouble;

/// What TLS is done with. Read for every connection: certificates are renewed while promptd runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities whose word is taken for the broker's name (PEM). Absent: the system's.
    pub ca: Option<PathBuf>,
    /// promptd's own certificate, with the chain behind it (PEM), where the broker wants one.
    pub certificate: Option<PathBuf>,
    /// The key of this certificate (PEM).
    pub key: Option<PathBuf>,
    /// Protocols offered by ALPN, such as `mqtt`; some brokers share port 443 by it.
    pub alpn: Vec<String>,
    /// Whether TLS 1.2 will do. 1.3 is ten years old; old brokers have none.
    pub allow_tls12: bool,
}

impl TlsFiles {
    /// Reads the files.
    ///
    /// # Errors
    /// Which file is wrong, and in what.
    pub(super) fn client(&self) -> Result<Arc<ClientConfig>, Trouble> {
        let provider = Arc::new(ring::default_provider());
        let versions: &[_] = if self.allow_tls12 { &[&TLS13, &TLS12] } else { &[&TLS13] };
        let ours =
            |error: &dyn fmt::Display| Trouble::refused(format!("TLS cannot be set up: {error}"));
        let verifier = WebPkiServerVerifier::builder_with_provider(
            Arc::new(self.roots()?),
            Arc::clone(&provider),
        );
        let verifier = verifier.build().map_err(|error| ours(&error))?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(|error| ours(&error))?
            .with_webpki_verifier(verifier);
        let mut config = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                let chain = certificates(certificate, "mqtt.tls.certificate_file")?;
                let secret = PrivateKeyDer::from_pem_file(key)
                    .map_err(|error| wrong("mqtt.tls.key_file", key, &error))?;
                builder
                    .with_client_auth_cert(chain, secret)
                    .map_err(|error| wrong("mqtt.tls.key_file", key, &error))?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, Trouble> {
        let mut roots = RootCertStore::empty();
        if let Some(file) = &self.ca {
            for certificate in certificates(file, "mqtt.tls.ca_file")? {
                roots.add(certificate).map_err(|error| wrong("mqtt.tls.ca_file", file, &error))?;
            }
        } else {
            // What of the system's store cannot be read is of no use to anybody; an empty store is.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        if roots.is_empty() {
            return Err(Trouble::refused(
                "there is no authority to trust: install ca-certificates or set mqtt.tls.ca_file",
            ));
        }
        Ok(roots)
    }
}

fn certificates(file: &Path, key: &str) -> Result<Vec<CertificateDer<'static>>, Trouble> {
    let all = CertificateDer::pem_file_iter(file).map_err(|error| wrong(key, file, &error))?;
    let all: Vec<_> = all.collect::<Result<_, _>>().map_err(|error| wrong(key, file, &error))?;
    if all.is_empty() {
        return Err(wrong(key, file, &"there is no certificate in it"));
    }
    Ok(all)
}

fn wrong(key: &str, file: &Path, error: &dyn fmt::Display) -> Trouble {
    Trouble::refused(format!("{key} `{}`: {error}", file.display()))
}

/// Why bytes do not come or go, in words. TLS's complaints come as errors of the system.
pub(super) fn trouble(error: &io::Error) -> Trouble {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
    let Some(inner) = inner else { return Trouble::away(error.to_string()) };
    let reason = match inner {
        TlsError::InvalidCertificate(why) => match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired".to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet; is this board's clock right?".to_owned()
            }
            CertificateError::UnknownIssuer => {
                "its certificate is signed by nobody whom promptd trusts; set mqtt.tls.ca_file"
                    .to_owned()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is for another name than the one in mqtt.url".to_owned()
            }
            other => format!("its certificate is not accepted: {other}"),
        },
        TlsError::AlertReceived(AlertDescription::CertificateRequired) => {
            "it wants a certificate of promptd's; set mqtt.tls.certificate_file and key_file"
                .to_owned()
        }
        TlsError::AlertReceived(AlertDescription::CertificateExpired) => {
            "promptd's certificate (mqtt.tls.certificate_file) has expired".to_owned()
        }
        TlsError::AlertReceived(AlertDescription::UnknownCA | AlertDescription::BadCertificate) => {
            "it does not accept promptd's certificate (mqtt.tls.certificate_file)".to_owned()
        }
        TlsError::AlertReceived(AlertDescription::ProtocolVersion) => {
            "it speaks no TLS 1.3; update it, or set mqtt.tls.allow_tls12".to_owned()
        }
        TlsError::AlertReceived(AlertDescription::NoApplicationProtocol) => {
            "it offers none of the protocols in mqtt.tls.alpn".to_owned()
        }
        TlsError::InvalidMessage(_) => {
            "it does not speak TLS on this port; is it mqtt:// instead of mqtts://?".to_owned()
        }
        other => format!("TLS: {other}"),
    };
    Trouble::refused(reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::backoff::Kind;

    #[test]
    fn what_is_wrong_with_a_certificate_is_said() {
        let of = |error| trouble(&io::Error::new(io::ErrorKind::InvalidData, error));
        for (error, text) in [
            (CertificateError::Expired, "has expired"),
            (CertificateError::NotValidYet, "clock"),
            (CertificateError::UnknownIssuer, "mqtt.tls.ca_file"),
            (CertificateError::NotValidForName, "mqtt.url"),
        ] {
            let trouble = of(TlsError::InvalidCertificate(error));
            assert!(trouble.kind == Kind::Refused && trouble.reason.contains(text), "{trouble:?}");
        }
        let alert = of(TlsError::AlertReceived(AlertDescription::CertificateRequired));
        assert!(alert.reason.contains("certificate_file"));
        let reset = trouble(&io::Error::from(io::ErrorKind::ConnectionReset));
        assert_eq!(reset.kind, Kind::Away);
    }

    #[test]
    fn files_that_are_no_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.pem");
        let files = TlsFiles { ca: Some(ca.clone()), ..TlsFiles::default() };
        assert!(files.client().unwrap_err().reason.contains("ca.pem"));
        std::fs::write(&ca, "hello").unwrap();
        assert!(files.client().unwrap_err().reason.contains("no certificate"));
    }
}
