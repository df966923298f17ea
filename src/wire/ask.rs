//! Reads the three kinds of request. Which field belongs to which kind, and which are known but not done, stands in one
//! table at the end of this file.

use serde_json::{Map, Value};

use super::fields::Fields;
use super::generation::{self, Generation};
use super::names::{check_id, nearest, shown};
use super::profile::Profile;
use super::{AnswerFormat, AskError, Asked, Context, PROTOCOL, messages};
use crate::request::{Code, Input, Message, Refusal, Request, Role, Submission};

/// Reads promptd's own request. A payload whose first visible character is `{` is JSON, and nothing else if it is
/// malformed; any other is the prompt itself, as UTF-8 text.
///
/// # Errors
/// `bad_request`, `unsupported`, `not_found` or `payload_too_large`, with the id where one could be read.
pub fn parse_ask(
    payload: &[u8],
    profile_from_topic: Option<&str>,
    context: &Context<'_>,
) -> Result<Asked, AskError> {
    check_size(payload, context)?;
    let body = payload.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(payload);
    if body.trim_ascii_start().first() == Some(&b'{') {
        return read(&object(body)?, Kind::Ask, profile_from_topic, context);
    }
    let text = std::str::from_utf8(body).map_err(|error| {
        let at = error.valid_up_to();
        Refusal::bad_request(format!(
            "the payload is neither JSON nor text: it is no UTF-8 at byte {at}"
        ))
    })?;
    // Shells and files end a line where nobody meant one.
    let text = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    if text.trim().is_empty() {
        return Err(Refusal::bad_request(
            "the payload is empty; it must be a prompt, or a JSON object",
        )
        .into());
    }
    let mut map = Map::new();
    map.insert("prompt".to_owned(), Value::from(text));
    read(&map, Kind::Ask, profile_from_topic, context)
}

/// Reads the body of `POST /v1/chat/completions`.
///
/// # Errors
/// As [`parse_ask`].
pub fn parse_chat(body: &[u8], context: &Context<'_>) -> Result<Asked, AskError> {
    check_size(body, context)?;
    read(&object(body)?, Kind::Chat, None, context)
}

/// Reads the body of `POST /v1/completions`.
///
/// # Errors
/// As [`parse_ask`].
pub fn parse_completion(body: &[u8], context: &Context<'_>) -> Result<Asked, AskError> {
    check_size(body, context)?;
    read(&object(body)?, Kind::Completion, None, context)
}

/// The kinds of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ask,
    Chat,
    Completion,
}

impl Kind {
    fn words(self) -> &'static str {
        match self {
            Kind::Ask => "a request",
            Kind::Chat => "a chat request",
            Kind::Completion => "a completion request",
        }
    }
}

fn check_size(payload: &[u8], context: &Context<'_>) -> Result<(), Refusal> {
    let (limit, have) = (context.limits.payload_bytes, payload.len());
    if have <= limit {
        return Ok(());
    }
    let numbers =
        (u64::try_from(limit).unwrap_or(u64::MAX), u64::try_from(have).unwrap_or(u64::MAX));
    let message = format!("the request has {have} bytes; {limit} are possible");
    Err(Refusal::new(Code::PayloadTooLarge, message).with_limit(numbers.0, numbers.1))
}

fn object(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => {
            let is = super::fields::describe(&other);
            Err(Refusal::bad_request(format!("the request must be a JSON object, but is {is}")))
        }
        Err(error) => Err(Refusal::bad_request(format!("the request is no valid JSON: {error}"))),
    }
}

/// Reads a request of one kind; what could be read of the way back goes with a refusal.
fn read(
    map: &Map<String, Value>,
    kind: Kind,
    profile: Option<&str>,
    context: &Context<'_>,
) -> Result<Asked, AskError> {
    let fields = Fields::root(map);
    let id = if kind == Kind::Ask { id(&fields, context) } else { Ok(None) };
    let reply_to = if kind == Kind::Ask { reply_to(&fields, context) } else { Ok(None) };
    let way_back = (id.as_ref().ok().cloned().flatten(), reply_to.as_ref().ok().cloned().flatten());
    let asked = || -> Result<Asked, Refusal> {
        refuse_not_done(&fields, kind)?;
        let (id, reply_to) = (id?, reply_to?);
        let asked = read_checked(&fields, kind, profile, context)?;
        Ok(Asked { id, reply_to, ..asked })
    };
    asked().map_err(|refusal| AskError {
        refusal: Box::new(refusal),
        id: way_back.0,
        reply_to: way_back.1,
    })
}

fn read_checked(
    fields: &Fields<'_>,
    kind: Kind,
    from_topic: Option<&str>,
    context: &Context<'_>,
) -> Result<Asked, Refusal> {
    if let Some(version) = fields.get("v")
        && version.as_u64() != Some(PROTOCOL)
    {
        return Err(fields.wrong("v", &format!("{PROTOCOL}, the only version there is"), version));
    }
    let named = profile_name(fields, from_topic)?;
    let profile =
        named.map(|name| context.profiles.find(name).map(|profile| (name, profile))).transpose()?;
    let Generation { sampling, max_tokens, stop, constraint, priority, timeout } =
        generation::read(fields, profile, context.limits)?;
    let input = match kind {
        Kind::Completion => completion(fields, profile)?,
        Kind::Chat | Kind::Ask => conversation(fields, kind, profile, context)?,
    };
    let include_usage = match fields.object("stream_options")? {
        None => false,
        Some(options) => {
            refuse_unknown(&options, &["include_usage", "include_obfuscation"])?;
            options.boolean("include_obfuscation")?;
            options.boolean("include_usage")?.unwrap_or(false)
        }
    };
    // Smaller parts than this have no room for their own numbers; a larger packet MQTT does not have.
    let max_bytes = fields.integer("max_bytes", &(64..=268_435_455))?;
    let format = match fields.string("format")? {
        None | Some("json") => AnswerFormat::Json,
        Some("text") => AnswerFormat::Text,
        Some(other) => {
            return Err(fields.wrong("format", "\"json\" or \"text\"", &Value::from(other)));
        }
    };
    let request = Request { input, sampling, max_tokens, stop, constraint };
    Ok(Asked {
        submission: Submission { request, identity: context.identity.clone(), priority, timeout },
        id: None,
        stream: fields.boolean("stream")?.unwrap_or(false),
        include_usage,
        profile: named.map(str::to_owned),
        format,
        max_bytes: max_bytes.and_then(|bytes| usize::try_from(bytes).ok()),
        reply_to: None,
        echo_model: fields.string("model")?.map(str::to_owned),
    })
}

fn id(fields: &Fields<'_>, context: &Context<'_>) -> Result<Option<String>, Refusal> {
    let Some(id) = fields.string("id")? else { return Ok(None) };
    check_id(id, context.limits.id_chars)?;
    Ok(Some(id.to_owned()))
}

fn reply_to(fields: &Fields<'_>, context: &Context<'_>) -> Result<Option<String>, Refusal> {
    let Some(topic) = fields.string("reply_to")? else { return Ok(None) };
    let most = context.limits.topic_bytes;
    if topic.is_empty()
        || topic.len() > most
        || topic.starts_with('$')
        || topic.contains(['+', '#', '\0'])
    {
        let message = format!(
            "`reply_to` must be a topic of 1 to {most} bytes without `+`, `#` and NUL, and not below `$`, but is {}",
            shown(topic)
        );
        return Err(Refusal::bad_request(message).with_param("reply_to"));
    }
    Ok(Some(topic.to_owned()))
}

fn profile_name<'a>(
    fields: &Fields<'a>,
    from_topic: Option<&'a str>,
) -> Result<Option<&'a str>, Refusal> {
    match (fields.string("profile")?, from_topic) {
        (Some(written), Some(topic)) if written != topic => {
            let message =
                format!("`profile` is {}, but the topic names {}", shown(written), shown(topic));
            Err(Refusal::bad_request(message).with_param("profile"))
        }
        (written, topic) => Ok(written.or(topic)),
    }
}

/// A chat's messages, or an ask's prompt or messages, behind the system message that holds.
fn conversation(
    fields: &Fields<'_>,
    kind: Kind,
    profile: Option<(&str, &Profile)>,
    context: &Context<'_>,
) -> Result<Input, Refusal> {
    let system = fields.string("system")?;
    let default_system = profile.and_then(|(_, profile)| profile.system.as_deref());
    let prompt = if kind == Kind::Ask { fields.string("prompt")? } else { None };
    match (prompt, fields.array("messages")?) {
        (None, None) if kind == Kind::Ask => {
            Err(fields.missing("prompt", "there must be `prompt` or `messages`"))
        }
        (None, None) => {
            Err(fields.missing("messages", "the conversation, as an array of messages"))
        }
        (Some(_), Some(_)) => {
            let message = "there can be `prompt` or `messages`, not both";
            Err(Refusal::bad_request(message).with_param("prompt"))
        }
        (Some(""), None) => Err(Refusal::bad_request("`prompt` is empty").with_param("prompt")),
        (Some(text), None) => {
            let system = system.or(default_system).map(str::to_owned);
            Ok(Input::Ask { system, text: text.to_owned() })
        }
        (None, Some(list)) => {
            let mut messages = messages::read(list, context.limits)?;
            let has_system = messages.iter().any(|message| message.role == Role::System);
            if has_system && system.is_some() {
                let message = "the system message stands in `messages` already; leave `system` out";
                return Err(Refusal::bad_request(message).with_param("system"));
            }
            if let Some(system) = system.or(default_system).filter(|_| !has_system) {
                messages.insert(0, Message { role: Role::System, content: system.to_owned() });
            }
            Ok(Input::Chat(messages))
        }
    }
}

/// A completion's prompt.
fn completion(fields: &Fields<'_>, profile: Option<(&str, &Profile)>) -> Result<Input, Refusal> {
    if let Some((name, _)) = profile.filter(|(_, profile)| profile.system.is_some()) {
        let message = format!(
            "the profile {} has a system message, which a completion has no place for; ask /v1/chat/completions",
            shown(name)
        );
        return Err(Refusal::bad_request(message).with_param("profile"));
    }
    let unsupported =
        |message: &str| Err(Refusal::new(Code::Unsupported, message).with_param("prompt"));
    match fields.get("prompt") {
        None => Err(fields.missing("prompt", "the text to continue")),
        Some(Value::String(text)) => Ok(Input::Completion(text.clone())),
        Some(Value::Array(list)) => match list.as_slice() {
            [Value::String(text)] => Ok(Input::Completion(text.clone())),
            [Value::Number(_), ..] | [Value::Array(_), ..] => {
                unsupported("`prompt` as token ids is not supported; send the text")
            }
            [Value::String(_), ..] => unsupported(
                "several prompts in one request are not supported; send one request each",
            ),
            _ => Err(fields.wrong("prompt", "a string", &Value::Array(list.clone()))),
        },
        Some(other) => Err(fields.wrong("prompt", "a string", other)),
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
fn refuse_not_done(fields: &Fields<'_>, kind: Kind) -> Result<(), Refusal> {
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
    done("response_format", ALL),
    done("regex", ALL),
    done("choices", ALL),
    done("priority", ALL),
    done("timeout_ms", ALL),
    done("profile", ALL),
    done("messages", CHATS),
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
    done("parallel_tool_calls", ALL),
    // What promptd knows and does not do; the values that ask for nothing pass.
    only("n", ALL, |value| is_number(value, 1.0)),
    only("best_of", TEXT, |value| is_number(value, 1.0)),
    only("frequency_penalty", ALL, |value| is_number(value, 0.0)),
    only("presence_penalty", ALL, |value| is_number(value, 0.0)),
    only("repetition_penalty", ALL, |value| is_number(value, 1.0)),
    only("logit_bias", ALL, is_empty),
    only("logprobs", ALL, |value| value == false),
    only("top_logprobs", ALL, |value| is_number(value, 0.0)),
    only("echo", TEXT, |value| value == false),
    only("suffix", TEXT, is_empty),
    only("tools", CHATS, is_empty),
    only("functions", CHATS, is_empty),
    only("tool_choice", CHATS, |value| is_one_of(value, &["none", "auto"])),
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
    only("session", ASK, |_| false),
];

#[cfg(test)]
#[path = "ask_tests.rs"]
mod tests;
