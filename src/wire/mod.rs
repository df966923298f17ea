//! The JSON that both doors speak, and profiles. No HTTP, no MQTT and no I/O here.
//!
//! Three kinds of request are read by one reader: promptd's own ([`parse_ask`], plain text or JSON, over MQTT and the
//! line socket), OpenAI's chat ([`parse_chat`]) and OpenAI's completion ([`parse_completion`]). What is read is checked
//! here once: types, ranges, and that no field is unknown, so that a typing error is never ignored silently. A `null`
//! counts as absent, and where a key stands twice in one object the last one counts, as JSON readers commonly do.
//!
//! docs/protocol.md tells clients what they can rely on.

mod answer;
mod ask;
mod asyncapi;
mod calls;
mod cbor;
mod describe;
mod embeddings;
mod fields;
#[cfg(test)]
mod fuzz_tests;
mod generation;
mod known;
mod limits;
mod logprobs;
mod messages;
mod names;
mod ollama;
pub(crate) mod payload;
mod policy;
mod profile;
mod readings;
mod responses;
mod status;
mod tools;

use std::time::Instant;

use crate::identity::Grant;
use crate::request::{Code, Constraint, Door, Refusal, Submission};

pub use answer::{Answer, error_object, progress_object, stream_end, stream_piece};
pub(crate) use answer::{milliseconds, numbers as refusal_numbers, rounded, session_fields};
pub use ask::{parse_ask, parse_chat, parse_completion};
pub use asyncapi::asyncapi;
pub use calls::{CallReader, Part, split_calls};
pub use cbor::{cbor_to_json, json_to_cbor};
pub use describe::payload_schemas;
pub use embeddings::{EmbeddingsAsked, parse_embeddings};
#[cfg(test)]
pub(crate) use known::of_kind as field_names;
pub use limits::Limits;
pub(crate) use logprobs::{chat as chat_logprobs, completion as completion_logprobs};
pub use names::check_id;
pub use ollama::{OllamaAsked, parse_ollama_chat, parse_ollama_generate};
pub use payload::ModelVersions;
pub use policy::{Policies, Policy};
pub use profile::{Profile, Profiles};
pub use readings::{ContextTopic, ReadingAge, Readings, context_object};
pub use responses::parse_response;
pub use status::{Broker, Denied, broker_object, status_object};

/// The version of promptd's own JSON, in requests and answers.
pub const PROTOCOL: u64 = 1;

/// What a request is read against.
#[derive(Clone, Debug)]
pub struct Context<'a> {
    /// The profiles the operator wrote.
    pub profiles: &'a Profiles,
    /// The newest values of the topics that profiles name.
    pub readings: &'a Readings,
    /// How large things may be.
    pub limits: &'a Limits,
    /// Who asks, and what they may.
    pub grant: Grant,
    /// When the request came.
    pub now: Instant,
    /// The door it came by.
    pub door: Door,
}

/// A request as it was read: the part for the scheduler, and the part for the door.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What goes to the scheduler.
    pub submission: Submission,
    /// The asker's own id, echoed in the answer.
    pub id: Option<String>,
    /// Whether the answer is wanted piece by piece.
    pub stream: bool,
    /// Whether a streamed OpenAI answer ends with a chunk that holds the usage.
    pub include_usage: bool,
    /// The profile that was used.
    pub profile: Option<String>,
    /// The form of the answer's payload.
    pub format: AnswerFormat,
    /// The most bytes one message of the answer may have.
    pub max_bytes: Option<usize>,
    /// The MQTT topic the asker wants the answer on.
    pub reply_to: Option<String>,
    /// The prompt, where a completion is to repeat it in front of its answer.
    pub echo: Option<String>,
    /// The model as the asker named it.
    pub echo_model: Option<String>,
}

impl Asked {
    /// Whether the answer is JSON by constraint, so that it can stand in the answer as a value too.
    pub fn is_json(&self) -> bool {
        matches!(
            self.submission.request.constraint,
            Constraint::JsonObject | Constraint::JsonSchema(_)
        )
    }

    /// Whether the model that is served is the one that was asked for. `default` and `promptd` mean whichever it is,
    /// and so does a request that names none. While no model is known yet every name passes: the scheduler answers
    /// `model_loading` then.
    ///
    /// # Errors
    /// `not_found`, naming both.
    pub fn check_model(&self, served: Option<&str>) -> Result<(), Refusal> {
        check_model(self.echo_model.as_deref(), served)
    }
}

/// Whether the model that is served is the one that was named; see [`Asked::check_model`].
///
/// # Errors
/// `not_found`, naming both.
pub fn check_model(asked: Option<&str>, served: Option<&str>) -> Result<(), Refusal> {
    let (Some(asked), Some(served)) = (asked, served) else { return Ok(()) };
    if asked == served || asked == "default" || asked == "promptd" {
        return Ok(());
    }
    let asked = names::shown(asked);
    let message = format!(
        "there is no model {asked} here; this promptd serves `{served}`, also called `default`"
    );
    Err(Refusal::new(Code::NotFound, message).with_param("model"))
}

/// The form of an answer's payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnswerFormat {
    /// The answer object.
    #[default]
    Json,
    /// Only the text.
    Text,
}

/// A request that could not be read, with what could be read of it, so that the refusal finds its way back in a form that
/// the asker can read.
#[derive(Clone, Debug, PartialEq)]
pub struct AskError {
    /// What was wrong.
    pub refusal: Box<Refusal>,
    /// The asker's own id.
    pub id: Option<String>,
    /// The MQTT topic the asker wants the answer on.
    pub reply_to: Option<String>,
    /// Whether the asker reads JSON or only text.
    pub format: AnswerFormat,
    /// The most bytes one message may have.
    pub max_bytes: Option<usize>,
}

impl std::fmt::Display for AskError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the request cannot be read")
    }
}

impl std::error::Error for AskError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.refusal)
    }
}

impl From<Refusal> for AskError {
    fn from(refusal: Refusal) -> Self {
        AskError {
            refusal: Box::new(refusal),
            id: None,
            reply_to: None,
            format: AnswerFormat::default(),
            max_bytes: None,
        }
    }
}
