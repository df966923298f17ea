//! One GET over HTTP or HTTPS, redirects followed: a hub sends whoever wants a file on to the servers that hold it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, HOST, LOCATION, RANGE, USER_AGENT};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::{HubError, tls};

/// Redirects of one request: a hub needs one or two.
const MAX_REDIRECTS: usize = 5;
/// A server that says nothing for this long is gone; mobile networks are silent for half of it.
pub(super) const SILENCE: Duration = Duration::from_secs(60);
/// The list of a repository's files.
const MAX_TEXT: usize = 16 << 20;

/// How requests are made.
#[derive(Clone)]
pub(super) struct Fetcher {
    hub: Uri,
    token: Option<String>,
    tls: Arc<ClientConfig>,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token is a secret.
        f.debug_struct("Fetcher").field("hub", &self.hub).finish_non_exhaustive()
    }
}

impl Fetcher {
    pub(super) fn new(
        hub: &str,
        token: Option<String>,
        authorities: Option<&Path>,
    ) -> Result<Self, HubError> {
        let wrong = || {
            HubError::Usage(format!(
                "`{hub}` is no address of a hub: it begins with https:// or http://"
            ))
        };
        let hub: Uri = hub.trim_end_matches('/').parse().map_err(|_| wrong())?;
        if hub.host().is_none() || !matches!(hub.scheme_str(), Some("http" | "https")) {
            return Err(wrong());
        }
        if token.is_some() && hub.scheme_str() != Some("https") && !is_loopback(&hub) {
            return Err(HubError::Usage(
                "a token would travel unencrypted; use an https:// address".to_owned(),
            ));
        }
        Ok(Fetcher { hub, token, tls: tls::client(authorities)? })
    }

    /// The address of something at the hub.
    pub(super) fn at(&self, path: &str) -> String {
        format!("{}{path}", self.hub.to_string().trim_end_matches('/'))
    }

    /// Asks for something, from this byte on where that is not the first.
    pub(super) async fn get(&self, url: &str, from: u64) -> Result<Response<Incoming>, HubError> {
        let mut url: Uri = parse(url)?;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.once(&url, from).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
            let to = to.ok_or_else(|| HubError::broken(&url, "redirects to nowhere"))?;
            let next = join(&url, to)?;
            if url.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(HubError::Refused {
                    url: url.to_string(),
                    reason: format!("redirects to {next}, which is not encrypted"),
                });
            }
            url = next;
        }
        Err(HubError::Refused {
            url: url.to_string(),
            reason: format!("redirects more than {MAX_REDIRECTS} times"),
        })
    }

    /// The whole of something small.
    pub(super) async fn text(&self, url: &str) -> Result<Vec<u8>, HubError> {
        let url_for_errors = parse(url)?;
        let mut response = self.get(url, 0).await?;
        refuse(&response, &url_for_errors)?;
        let mut text = Vec::new();
        while let Some(piece) = piece(&mut response, &url_for_errors).await? {
            text.extend_from_slice(&piece);
            if text.len() > MAX_TEXT {
                return Err(HubError::broken(&url_for_errors, "sends a list without end"));
            }
        }
        Ok(text)
    }

    async fn once(&self, url: &Uri, from: u64) -> Result<Response<Incoming>, HubError> {
        let (host, secure) = (url.host().unwrap_or_default(), url.scheme_str() == Some("https"));
        let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let away = |error: &dyn std::fmt::Display| HubError::broken(url, error);
        let connected = tokio::time::timeout(SILENCE, TcpStream::connect((bare, port))).await;
        let stream = connected.map_err(|error| away(&error))?.map_err(|error| away(&error))?;
        if !secure {
            return self.ask(stream, url, from).await;
        }
        let name = ServerName::try_from(bare.to_owned()).map_err(|error| away(&error))?;
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        let connected = tokio::time::timeout(SILENCE, connector.connect(name, stream)).await;
        let stream = connected.map_err(|error| away(&error))?.map_err(|error| away(&error))?;
        self.ask(stream, url, from).await
    }

    async fn ask(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        url: &Uri,
        from: u64,
    ) -> Result<Response<Incoming>, HubError> {
        let away = |error: &dyn std::fmt::Display| HubError::broken(url, error);
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| away(&error))?;
        // Ends with the response's body, or with the runtime; its errors come out of the body too.
        drop(tokio::spawn(connection));
        let host = url.authority().map(hyper::http::uri::Authority::as_str).unwrap_or_default();
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::get(path)
            .header(HOST, host)
            .header(USER_AGENT, concat!("promptd/", env!("CARGO_PKG_VERSION")));
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        // The token is for the hub; the servers that it sends us on to have their own words in the address.
        if let Some(token) = self.token.as_ref().filter(|_| same_place(url, &self.hub)) {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| away(&error))?;
        let answered = tokio::time::timeout(SILENCE, sender.send_request(request)).await;
        answered.map_err(|_| away(&"says nothing"))?.map_err(|error| away(&error))
    }
}

/// The next piece of a body.
pub(super) async fn piece(
    response: &mut Response<Incoming>,
    url: &Uri,
) -> Result<Option<Bytes>, HubError> {
    loop {
        let frame = tokio::time::timeout(SILENCE, response.body_mut().frame()).await;
        match frame.map_err(|_| HubError::broken(url, "says nothing any more"))? {
            None => return Ok(None),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            Some(Err(error)) => return Err(HubError::broken(url, error)),
        }
    }
}

/// An error where the server did not give what was asked for.
pub(super) fn refuse(response: &Response<Incoming>, url: &Uri) -> Result<(), HubError> {
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let says = header("x-error-message").or(header("x-error-code"));
    let says = says.map(|says| format!(" (\"{}\")", says.escape_debug())).unwrap_or_default();
    if status.as_u16() == 429 || status.is_server_error() {
        let wait = header("retry-after").and_then(|seconds| seconds.trim().parse().ok());
        let what = format!("answers {}{says}", status.as_u16());
        return Err(HubError::Busy {
            url: url.to_string(),
            what,
            wait: wait.map(Duration::from_secs),
        });
    }
    let way_out = match status.as_u16() {
        401 | 403 => {
            "; private and gated models need a token with the right to read them: --token-file"
        }
        404 => "; look at the name, the revision and the file",
        _ => "",
    };
    Err(HubError::Refused {
        url: url.to_string(),
        reason: format!("answers {}{says}{way_out}", status.as_u16()),
    })
}

pub(super) fn parse(url: &str) -> Result<Uri, HubError> {
    url.parse().map_err(|error| HubError::Usage(format!("`{url}` is no address: {error}")))
}

/// Where a redirect leads.
fn join(from: &Uri, to: &str) -> Result<Uri, HubError> {
    if to.starts_with("http://") || to.starts_with("https://") {
        return parse(to);
    }
    let scheme = from.scheme_str().unwrap_or("https");
    if let Some(rest) = to.strip_prefix("//") {
        return parse(&format!("{scheme}://{rest}"));
    }
    if !to.starts_with('/') {
        return Err(HubError::broken(from, format!("redirects to `{}`", to.escape_debug())));
    }
    let host = from.authority().map(hyper::http::uri::Authority::as_str).unwrap_or_default();
    parse(&format!("{scheme}://{host}{to}"))
}

fn same_place(one: &Uri, other: &Uri) -> bool {
    one.scheme_str() == other.scheme_str()
        && one.host() == other.host()
        && one.port_u16() == other.port_u16()
}

fn is_loopback(url: &Uri) -> bool {
    matches!(url.host(), Some("localhost" | "127.0.0.1" | "[::1]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_redirects_lead() {
        let from: Uri = "https://hub.example/a/b?c".parse().unwrap();
        for (to, expected) in [
            ("/x/y", "https://hub.example/x/y"),
            ("https://cdn.example/z?s=1", "https://cdn.example/z?s=1"),
            ("//cdn.example/z", "https://cdn.example/z"),
        ] {
            assert_eq!(join(&from, to).unwrap().to_string(), expected);
        }
        assert!(join(&from, "x").is_err());
    }

    #[test]
    fn a_token_does_not_travel_in_the_open() {
        let fetcher = |hub: &str| Fetcher::new(hub, Some("secret".into()), None).map(|_| ());
        assert!(matches!(fetcher("http://hub.example"), Err(HubError::Usage(_))));
        assert!(matches!(fetcher("ftp://hub.example"), Err(HubError::Usage(_))));
        let (hub, cdn): (Uri, Uri) =
            ("https://hub.example".parse().unwrap(), "https://cdn.example".parse().unwrap());
        assert!(same_place(&hub, &"https://hub.example/a".parse().unwrap()));
        assert!(!same_place(&hub, &cdn));
        assert!(!same_place(&hub, &"http://hub.example".parse().unwrap()));
        assert!(!same_place(&hub, &"https://hub.example:8443".parse().unwrap()));
    }
}
