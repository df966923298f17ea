//! Why a prompt gets no answer: a stable code for programs, a sentence for people, and the numbers that belong to it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A prompt that was refused or failed. The message names the thing, what was wrong and the way out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refusal {
    /// What kind of trouble it is.
    pub code: Code,
    /// One or two sentences for a person. Never holds a secret.
    pub message: String,
    /// The field of the request that was wrong, where one was.
    pub param: Option<String>,
    /// When it is worth asking again.
    pub retry_after: Option<Duration>,
    /// The limit that was passed, where there is one.
    pub limit: Option<u64>,
    /// What was had against that limit.
    pub have: Option<u64>,
}

impl Refusal {
    /// A refusal with a code and a message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Refusal {
            code,
            message: message.into(),
            param: None,
            retry_after: None,
            limit: None,
            have: None,
        }
    }

    /// A malformed request.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Refusal::new(Code::BadRequest, message)
    }

    /// Names the field that was wrong.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Says when it is worth asking again.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Gives the limit and what was had against it.
    #[must_use]
    pub fn with_limit(mut self, limit: u64, have: u64) -> Self {
        self.limit = Some(limit);
        self.have = Some(have);
        self
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.message)
    }
}

impl std::error::Error for Refusal {}

/// The stable codes of docs/protocol.md. Clients match on them; none is ever renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Code {
    /// The request is malformed: not JSON, a wrong type, a value out of range.
    BadRequest,
    /// Nobody knows who asks.
    Unauthorized,
    /// The one who asks may not.
    Forbidden,
    /// No such model, profile, request or path.
    NotFound,
    /// The payload is larger than promptd reads.
    PayloadTooLarge,
    /// The prompt has more tokens than the context has room for.
    ContextLengthExceeded,
    /// This client asks too often.
    RateLimited,
    /// The queue is full.
    Busy,
    /// The deadline cannot be met.
    WouldMissDeadline,
    /// The deadline passed.
    Timeout,
    /// The client cancelled it.
    Cancelled,
    /// The model is still being loaded.
    ModelLoading,
    /// The model cannot be loaded, or the engine died of this prompt twice.
    ModelFailed,
    /// Another request came under the same idempotency key.
    IdempotencyKeyReused,
    /// A field or value promptd knows and does not do.
    Unsupported,
    /// A fault of promptd's own.
    Internal,
}

impl Code {
    /// All of them.
    pub const ALL: [Code; 16] = [
        Code::BadRequest,
        Code::Unauthorized,
        Code::Forbidden,
        Code::NotFound,
        Code::PayloadTooLarge,
        Code::ContextLengthExceeded,
        Code::RateLimited,
        Code::Busy,
        Code::WouldMissDeadline,
        Code::Timeout,
        Code::Cancelled,
        Code::ModelLoading,
        Code::ModelFailed,
        Code::IdempotencyKeyReused,
        Code::Unsupported,
        Code::Internal,
    ];

    /// The code as it stands in JSON.
    pub fn as_str(self) -> &'static str {
        self.names().0
    }

    /// The HTTP status that goes with it.
    pub fn http_status(self) -> u16 {
        self.names().1
    }

    fn names(self) -> (&'static str, u16) {
        match self {
            Code::BadRequest => ("bad_request", 400),
            Code::Unauthorized => ("unauthorized", 401),
            Code::Forbidden => ("forbidden", 403),
            Code::NotFound => ("not_found", 404),
            Code::PayloadTooLarge => ("payload_too_large", 413),
            Code::ContextLengthExceeded => ("context_length_exceeded", 400),
            Code::RateLimited => ("rate_limited", 429),
            Code::Busy => ("busy", 503),
            Code::WouldMissDeadline => ("would_miss_deadline", 503),
            Code::Timeout => ("timeout", 504),
            Code::Cancelled => ("cancelled", 499),
            Code::ModelLoading => ("model_loading", 503),
            Code::ModelFailed => ("model_failed", 503),
            // The status of draft-ietf-httpapi-idempotency-key-header.
            Code::IdempotencyKeyReused => ("idempotency_key_reused", 422),
            Code::Unsupported => ("unsupported", 501),
            Code::Internal => ("internal", 500),
        }
    }
}
