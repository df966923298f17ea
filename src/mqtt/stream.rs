//! Opens the way to a broker: TCP, and TLS over it where the address wants it.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::client::Trouble;
use super::tls::{self, TlsFiles};
use super::url::BrokerUrl;

/// Bytes in both directions.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Opens it. Takes as long as it takes: the caller has the clock.
pub(super) async fn open(broker: &BrokerUrl, files: &TlsFiles) -> Result<Box<dyn Stream>, Trouble> {
    let host = broker.host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, broker.port))
        .await
        .map_err(|error| Trouble::away(error.to_string()))?;
    // Answers are small and wanted at once. Where it cannot be had, they come a little later.
    let _ = stream.set_nodelay(true);
    if !broker.tls {
        return Ok(Box::new(stream));
    }
    let config = files.client()?;
    let name = ServerName::try_from(host.to_owned()).map_err(|_| {
        Trouble::refused("the host in mqtt.url is no name that a certificate can have")
    })?;
    let stream = TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(|error| tls::trouble(&error))?;
    Ok(Box::new(stream))
}
