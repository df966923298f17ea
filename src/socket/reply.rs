//! HTTP responses: JSON bodies, OpenAI's error shape, and the type of every body.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::{Map, Value, json};

use super::accept::Work;
use super::stream::Stream;
use crate::request::{Code, Refusal};
use crate::wire::refusal_numbers;

/// A response's body.
#[derive(Debug)]
pub(super) struct Reply {
    content: Content,
    /// Held until the body was handed over, so that the connection knows whether it is at work.
    _work: Option<Work>,
}

#[derive(Debug)]
enum Content {
    /// All at once; `None` when it was sent.
    Whole(Option<Bytes>),
    /// As the answer comes.
    Stream(Box<Stream>),
}

impl Reply {
    /// All at once.
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        Reply { content: Content::Whole(Some(bytes.into())), _work: None }
    }

    /// As the answer comes.
    pub(super) fn stream(stream: Stream) -> Self {
        Reply { content: Content::Stream(Box::new(stream)), _work: None }
    }

    /// The same, holding on to the work it is part of.
    pub(super) fn holding(self, work: Work) -> Self {
        Reply { _work: Some(work), ..self }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = match &mut self.get_mut().content {
            Content::Whole(bytes) => bytes.take(),
            Content::Stream(stream) => std::task::ready!(stream.poll_bytes(cx)),
        };
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Content::Stream(_) => SizeHint::default(),
        }
    }
}

/// A request that HTTP has a status for: a refusal, or something only HTTP knows.
#[derive(Debug)]
pub(super) struct Fault {
    status: u16,
    code: &'static str,
    refusal: Box<Refusal>,
    allow: Option<&'static str>,
    close: bool,
    /// Only the message, as Ollama's clients read it.
    plain: bool,
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Fault {
            status: refusal.code.http_status(),
            code: refusal.code.as_str(),
            refusal: Box::new(refusal),
            allow: None,
            close: false,
            plain: false,
        }
    }
}

impl Fault {
    /// The refusal in it.
    pub(super) fn refusal(&self) -> &Refusal {
        &self.refusal
    }

    /// There is nothing at this path.
    pub(super) fn no_path(path: &str) -> Self {
        let shown: String = path.chars().take(100).collect();
        Refusal::new(
            Code::NotFound,
            format!("there is nothing at {shown:?}; docs/protocol.md lists the paths"),
        )
        .into()
    }

    /// The path has other methods.
    pub(super) fn wrong_method(method: &hyper::Method, allow: &'static str) -> Self {
        let shown: String = method.as_str().chars().take(20).collect();
        let refusal =
            Refusal::bad_request(format!("the method {shown} is not possible here; {allow} is"));
        let (status, code, allow) = (405, "method_not_allowed", Some(allow));
        Fault { status, code, allow, ..Fault::from(refusal) }
    }

    /// The body did not arrive in time.
    pub(super) fn slow_body() -> Self {
        let refusal = Refusal::new(Code::Timeout, "the request's body did not arrive in time");
        Fault { status: 408, close: true, ..Fault::from(refusal) }
    }

    /// Ends the connection with the response: what the client still sends cannot be understood.
    pub(super) fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// In the words of Ollama's API.
    pub(super) fn in_ollamas_words(mut self) -> Self {
        self.plain = true;
        self
    }

    /// The response.
    pub(super) fn into_response(self) -> Response<Reply> {
        let error = if self.plain {
            Value::from(self.refusal.message.as_str())
        } else {
            error_object(&self.refusal, self.code)
        };
        let body = json!({ "error": error });
        let mut response = json_response(self.status, &body);
        let headers = response.headers_mut();
        if let Some(after) = self.refusal.retry_after {
            // Whole seconds, rounded up: who comes back too early only hears the same again.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// The object under `error`, in OpenAI's shape with promptd's numbers added.
pub(super) fn error_object(refusal: &Refusal, code: &str) -> Value {
    let kind = match refusal.code {
        Code::Unauthorized => "authentication_error",
        Code::Forbidden => "permission_error",
        Code::RateLimited => "rate_limit_error",
        code if code.http_status() < 500 => "invalid_request_error",
        Code::Unsupported => "invalid_request_error",
        _ => "server_error",
    };
    let mut object = Map::new();
    object.insert("message".into(), refusal.message.as_str().into());
    object.insert("type".into(), kind.into());
    object.insert("param".into(), refusal.param.as_deref().into());
    object.insert("code".into(), code.into());
    object.extend(refusal_numbers(refusal));
    Value::Object(object)
}

/// A response with a JSON body.
pub(super) fn json_response(status: u16, body: &Value) -> Response<Reply> {
    let mut bytes = body.to_string().into_bytes();
    // So that a shell's prompt stands on a line of its own.
    bytes.push(b'\n');
    response(status, "application/json", Reply::whole(bytes))
}

/// A response with a body of some type.
pub(super) fn response(status: u16, kind: &'static str, body: Reply) -> Response<Reply> {
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    // An answer belongs to its moment.
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
