//! A small HTTP client over the service's Unix socket: one request, one connection.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use super::exit;

/// The most a whole answer may have. The service's own limits keep answers far below.
const BODY_BYTES: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// Nobody listens.
    #[error("cannot reach promptd at {}; {}", .socket.display(), way_out(.source))]
    Unreachable {
        /// Where it was looked for.
        socket: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The service refused.
    #[error("{message} ({code})")]
    Refused {
        /// The stable code.
        code: String,
        /// The service's words.
        message: String,
    },
    /// The connection broke.
    #[error("the connection to promptd at {} broke off", .socket.display())]
    Broken {
        /// Where it was.
        socket: PathBuf,
        /// hyper's reason.
        #[source]
        source: Option<hyper::Error>,
    },
    /// It is no promptd that answers, or one of another time.
    #[error("what listens at {} does not answer like promptd: {what}", .socket.display())]
    Strange {
        /// Where it was.
        socket: PathBuf,
        /// What was strange.
        what: String,
    },
    /// The command line cannot be followed.
    #[error("{0}")]
    Usage(String),
    /// A file the command line names cannot be read.
    #[error("cannot read {}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Standard output is closed.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
}

/// What to do about a socket that cannot be reached.
fn way_out(source: &io::Error) -> &'static str {
    if source.kind() == io::ErrorKind::PermissionDenied {
        "it is open to its owner and group only, which `ls -l` shows"
    } else {
        "`systemctl status promptd` tells whether it runs, --socket names another socket"
    }
}

impl Trouble {
    /// The command's exit code.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Trouble::Unreachable { .. } => exit::UNREACHABLE,
            Trouble::Usage(_) | Trouble::File { .. } => exit::USAGE,
            Trouble::Refused { code, .. } => match code.as_str() {
                "busy" | "model_loading" | "rate_limited" | "would_miss_deadline" => exit::LATER,
                _ => exit::FAILURE,
            },
            Trouble::Broken { .. } | Trouble::Strange { .. } | Trouble::Output(_) => exit::FAILURE,
        }
    }

    /// A refusal from an object with `code` and `message`.
    pub(super) fn refused(error: &Value) -> Self {
        let text = |name: &str, other: &str| {
            error.get(name).and_then(Value::as_str).unwrap_or(other).to_owned()
        };
        Trouble::Refused {
            code: text("code", "unknown"),
            message: text("message", "promptd refused without a word"),
        }
    }
}

/// The service at a socket.
#[derive(Debug)]
pub(super) struct Client<'a> {
    /// Where it listens.
    pub(super) socket: &'a Path,
}

impl Client<'_> {
    /// Sends a request and waits for the head of the response.
    pub(super) async fn send(
        &self,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response<Incoming>, Trouble> {
        let method = if body.is_some() { "POST" } else { "GET" };
        self.request(method, path, body).await
    }

    /// The same with a method.
    pub(super) async fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response<Incoming>, Trouble> {
        let unreachable = |source| Trouble::Unreachable { socket: self.socket.to_owned(), source };
        let stream = UnixStream::connect(self.socket).await.map_err(unreachable)?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.broken(e))?;
        // Ends with the response's body, or with the runtime; its errors come out of the body too.
        drop(tokio::spawn(connection));
        let bytes = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let request = Request::builder().method(method).uri(path).header(HOST, "localhost");
        let request = request.header(CONTENT_TYPE, "application/json").body(Full::new(bytes));
        let request = request.map_err(|error| self.strange(error.to_string()))?;
        sender.send_request(request).await.map_err(|error| self.broken(error))
    }

    /// Sends a request and reads the JSON of the response, with its status.
    pub(super) async fn json(
        &self,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value), Trouble> {
        let response = self.send(path, body).await?;
        self.read_json(response).await
    }

    /// Reads the JSON of a response, with its status.
    pub(super) async fn read_json(
        &self,
        mut response: Response<Incoming>,
    ) -> Result<(u16, Value), Trouble> {
        let mut bytes = Vec::new();
        while let Some(frame) = response.body_mut().frame().await {
            let frame = frame.map_err(|error| self.broken(error))?;
            if let Some(data) = frame.data_ref() {
                bytes.extend_from_slice(data);
            }
            if bytes.len() > BODY_BYTES {
                return Err(self.strange("the answer does not end".to_owned()));
            }
        }
        let value = serde_json::from_slice(&bytes)
            .map_err(|error| self.strange(format!("no JSON, {error}")))?;
        Ok((response.status().as_u16(), value))
    }

    /// The service's process, as the kernel knows it.
    pub(super) fn pid(&self) -> Option<u32> {
        let stream = std::os::unix::net::UnixStream::connect(self.socket).ok()?;
        let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
        u32::try_from(peer.pid.as_raw_nonzero().get()).ok()
    }

    /// The trouble of a connection that broke.
    pub(super) fn broken(&self, source: hyper::Error) -> Trouble {
        Trouble::Broken { socket: self.socket.to_owned(), source: Some(source) }
    }

    /// The trouble of a stream that ended too early.
    pub(super) fn cut_off(&self) -> Trouble {
        Trouble::Broken { socket: self.socket.to_owned(), source: None }
    }

    /// The trouble of an answer that makes no sense.
    pub(super) fn strange(&self, what: String) -> Trouble {
        Trouble::Strange { socket: self.socket.to_owned(), what }
    }
}

/// Puts the `data` of server-sent events together from whatever pieces the bytes come in.
#[derive(Debug, Default)]
pub(super) struct Events {
    rest: Vec<u8>,
}

impl Events {
    /// Takes bytes; returns the data of the events that are now whole. Comments are left out. The service sends one
    /// `data` line an event.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        self.rest.extend_from_slice(bytes);
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            return Vec::new();
        };
        let tail = self.rest.split_off(end + 1);
        let lines = std::mem::replace(&mut self.rest, tail);
        let data = |line: &[u8]| {
            let data = line.strip_prefix(b"data:")?;
            Some(String::from_utf8_lossy(data.trim_ascii()).into_owned())
        };
        lines.split(|byte| *byte == b'\n').filter_map(data).collect()
    }

    /// Bytes of an event that is not whole yet.
    pub(super) fn unfinished(&self) -> usize {
        self.rest.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_cut_anywhere() {
        let stream = "data: {\"a\":\"é\"}\n\n: ping\n\ndata: [DONE]\n\n".as_bytes();
        for cut in 0..=stream.len() {
            let (head, tail) = stream.split_at(cut);
            let mut events = Events::default();
            let mut data = events.push(head);
            data.extend(events.push(tail));
            assert_eq!(data, ["{\"a\":\"é\"}", "[DONE]"], "{cut}");
            assert_eq!(events.unfinished(), 0);
        }
    }

    #[test]
    fn exit_codes() {
        for (code, expected) in
            [("busy", 75), ("model_loading", 75), ("bad_request", 1), ("model_failed", 1)]
        {
            let error = serde_json::json!({"code": code, "message": "m"});
            assert_eq!(Trouble::refused(&error).exit_code(), expected, "{code}");
        }
        assert_eq!(Trouble::refused(&Value::Null).exit_code(), 1);
    }
}
