//! The fields of the three kinds of request: which belongs to which, which are known but not done, and what is said about
//! a name that nobody knows.

use serde_json::{Map, Value};

use super::fields::Fields;
use super::names::{nearest, shown};
use crate::request::{Code, Refusal};

/// The kinds of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Ask,
    Chat,
    Completion,
}

impl Kind {
    /// The kind in words, for messages.
    pub(super) fn words(self) -> &'static str {
        match self {
            Kind::Ask => "a request",
            Kind::Chat => "a chat request",
            Kind::Completion => "a completion request",
        }
    }
}

/// Refuses names that are not in the list, with the nearest one that is.
pub(super) fn refuse_unknown(fields: &Fields<'_>, known: &[&str]) -> Result<(), Refusal> {
    match fields.names().find(|name| !known.contains(name)) {
        None => Ok(()),
        Some(unknown) => Err(unknown_field(fields, unknown, known.iter().copied())),
    }
}

fn unknown_field<'a>(
    fields: &Fields<'_>,
    unknown: &str,
    known: impl Iterator<Item = &'a str>,
) -> Refusal {
    let hint =
        nearest(unknown, known).map_or(String::new(), |name| format!("; did you mean `{name}`?"));
    let path = fields.path(unknown);
    let shown = shown(&path);
    // A name of a kilobyte is no help in `param` either.
    let param: String = path.chars().take(128).collect();
    Refusal::bad_request(format!("there is no field {shown}{hint}")).with_param(param)
}

/// Refuses fields that are unknown, that belong to another kind of request, or that promptd knows and does not do.
pub(super) fn refuse_not_done(fields: &Fields<'_>, kind: Kind) -> Result<(), Refusal> {
    for name in fields.names() {
        let Some(field) = FIELDS.iter().find(|field| field.name == name) else {
            let known =
                FIELDS.iter().filter(|field| field.kinds.contains(&kind)).map(|field| field.name);
            return Err(unknown_field(fields, name, known));
        };
        if !field.kinds.contains(&kind) {
            let belongs = field.kinds.first().map_or("another request", |kind| kind.words());
            let message =
                format!("`{name}` is no field of {}; it belongs to {belongs}", kind.words());
            return Err(Refusal::bad_request(message).with_param(name));
        }
        if let Some(value) = fields.get(name)
            && !(field.accepts)(value)
        {
            let message = format!("`{name}` is not supported here with this value; leave it out");
            return Err(Refusal::new(Code::Unsupported, message).with_param(name));
        }
    }
    Ok(())
}

/// A field promptd knows.
struct Field {
    name: &'static str,
    kinds: &'static [Kind],
    /// Whether a value other than `null` is one that promptd does, or that changes nothing.
    accepts: fn(&Value) -> bool,
}

const ALL: &[Kind] = &[Kind::Ask, Kind::Chat, Kind::Completion];
const CHATS: &[Kind] = &[Kind::Chat, Kind::Ask];
const CHAT: &[Kind] = &[Kind::Chat];
const ASK: &[Kind] = &[Kind::Ask];
const TEXT: &[Kind] = &[Kind::Completion];

const fn done(name: &'static str, kinds: &'static [Kind]) -> Field {
    Field { name, kinds, accepts: |_| true }
}

const fn only(name: &'static str, kinds: &'static [Kind], accepts: fn(&Value) -> bool) -> Field {
    Field { name, kinds, accepts }
}

fn is_number(value: &Value, number: f64) -> bool {
    value.as_f64().is_some_and(|value| (value - number).abs() < f64::EPSILON)
}

fn is_one_of(value: &Value, names: &[&str]) -> bool {
    value.as_str().is_some_and(|name| names.contains(&name))
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
        || value.as_object().is_some_and(Map::is_empty)
        || value == ""
}

/// Every field of the three kinds of request. Those of OpenAI's API are taken from its published description.
static FIELDS: &[Field] = &[
    // What promptd does.
    done("model", ALL),
    done("stream", ALL),
    done("stream_options", ALL),
    done("max_tokens", ALL),
    done("max_completion_tokens", ALL),
    done("temperature", ALL),
    done("top_p", ALL),
    done("top_k", ALL),
    done("min_p", ALL),
    done("seed", ALL),
    done("stop", ALL),
    done("stop_token_ids", ALL),
    done("context_overflow", ALL),
    done("response_format", ALL),
    done("regex", ALL),
    done("choices", ALL),
    done("grammar", ALL),
    done("frequency_penalty", ALL),
    done("presence_penalty", ALL),
    done("repetition_penalty", ALL),
    done("logit_bias", ALL),
    done("logprobs", ALL),
    done("top_logprobs", ALL),
    done("echo", TEXT),
    done("priority", ALL),
    done("timeout_ms", ALL),
    done("profile", ALL),
    done("messages", CHATS),
    done("session", CHATS),
    done("tools", CHAT),
    done("tool_choice", CHAT),
    done("parallel_tool_calls", CHAT),
    done("prompt", &[Kind::Completion, Kind::Ask]),
    done("v", ASK),
    done("id", ASK),
    done("system", ASK),
    done("format", ASK),
    done("max_bytes", ASK),
    done("reply_to", ASK),
    // What changes nothing, whatever it says.
    done("user", ALL),
    done("metadata", ALL),
    done("safety_identifier", ALL),
    done("prompt_cache_key", ALL),
    done("prompt_cache_retention", ALL),
    done("prompt_cache_options", ALL),
    // What promptd knows and does not do; the values that ask for nothing pass.
    only("n", ALL, |value| is_number(value, 1.0)),
    only("best_of", TEXT, |value| is_number(value, 1.0)),
    only("suffix", TEXT, is_empty),
    only("functions", CHATS, is_empty),
    only("function_call", CHATS, |value| is_one_of(value, &["none", "auto"])),
    only("modalities", CHATS, |value| {
        value.as_array().is_some_and(|list| list.iter().all(|kind| kind == "text"))
    }),
    only("service_tier", ALL, |value| is_one_of(value, &["auto", "default"])),
    only("reasoning_effort", ALL, |value| is_one_of(value, &["none"])),
    only("verbosity", ALL, |value| is_one_of(value, &["medium"])),
    only("store", ALL, |value| value == false),
    only("audio", CHATS, |_| false),
    only("prediction", CHATS, |_| false),
    only("web_search_options", CHATS, |_| false),
    only("moderation", ALL, |_| false),
];

/// The names of the fields of a `chat` or a `completion` request.
#[cfg(test)]
pub(crate) fn of_kind(kind: &str) -> Vec<&'static str> {
    let kind = if kind == "chat" { Kind::Chat } else { Kind::Completion };
    FIELDS.iter().filter(|field| field.kinds.contains(&kind)).map(|field| field.name).collect()
}

/// The names of the fields that promptd's own request may have, whatever their values.
#[cfg(test)]
pub(super) fn done_in_ask() -> impl Iterator<Item = &'static str> {
    // What is only passed over accepts no object.
    let fields = FIELDS.iter().filter(|field| field.kinds.contains(&Kind::Ask));
    fields.filter(|field| (field.accepts)(&Value::from("?!"))).map(|field| field.name)
}

/// The names of all fields.
#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    FIELDS.iter().map(|field| field.name)
}
