//! Reads the three kinds of request. Which field belongs to which kind, and which are known but not done, stands in
//! `known.rs`.

use serde_json::{Map, Value};

use super::fields::Fields;
use super::generation::{self, Generation};
use super::known::{Kind, refuse_not_done, refuse_unknown};
use super::names::{check_id, shown};
use super::profile::Profile;
use super::{AnswerFormat, AskError, Asked, Context, PROTOCOL, messages, tools};
use crate::request::{Code, Input, Message, Origin, Refusal, Request, Role, Submission};

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

pub(super) fn check_size(payload: &[u8], context: &Context<'_>) -> Result<(), Refusal> {
    let (limit, have) = (context.limits.payload_bytes, payload.len());
    if have <= limit {
        return Ok(());
    }
    let numbers =
        (u64::try_from(limit).unwrap_or(u64::MAX), u64::try_from(have).unwrap_or(u64::MAX));
    let message = format!("the request has {have} bytes; {limit} are possible");
    Err(Refusal::new(Code::PayloadTooLarge, message).with_limit(numbers.0, numbers.1))
}

pub(super) fn object(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
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
pub(super) fn read(
    map: &Map<String, Value>,
    kind: Kind,
    profile: Option<&str>,
    context: &Context<'_>,
) -> Result<Asked, AskError> {
    let fields = Fields::root(map);
    let id = if kind == Kind::Ask { id(&fields, context) } else { Ok(None) };
    let reply_to = if kind == Kind::Ask { reply_to(&fields, context) } else { Ok(None) };
    let way_back = (id.as_ref().ok().cloned().flatten(), reply_to.as_ref().ok().cloned().flatten());
    let (format, max_bytes) = (format(&fields), max_bytes(&fields));
    let form =
        (format.as_ref().copied().unwrap_or_default(), max_bytes.as_ref().ok().copied().flatten());
    let asked = || -> Result<Asked, Refusal> {
        refuse_not_done(&fields, kind)?;
        let (id, reply_to) = (id?, reply_to?);
        let mut asked = read_checked(&fields, kind, profile, context)?;
        asked.submission.origin.id.clone_from(&id);
        let asked = Asked { id, reply_to, format: format?, max_bytes: max_bytes?, ..asked };
        check_logprobs_fit(&asked)?;
        Ok(asked)
    };
    asked().map_err(|refusal| AskError {
        refusal: Box::new(refusal),
        id: way_back.0,
        reply_to: way_back.1,
        format: form.0,
        max_bytes: form.1,
    })
}

fn read_checked(
    fields: &Fields<'_>,
    kind: Kind,
    from_topic: Option<&str>,
    context: &Context<'_>,
) -> Result<Asked, Refusal> {
    context.grant.check_allowed()?;
    if let Some(version) = fields.get("v")
        && version.as_u64() != Some(PROTOCOL)
    {
        return Err(fields.wrong("v", &format!("{PROTOCOL}, the only version there is"), version));
    }
    let named = profile_name(fields, from_topic)?;
    let profile =
        named.map(|name| context.profiles.find(name).map(|profile| (name, profile))).transpose()?;
    if let Some((name, profile)) = profile {
        profile.check_client(name, &context.grant.identity)?;
        profile.check_fixed(name, fields.names().filter(|name| fields.get(name).is_some()))?;
    }
    let how = generation::read(fields, kind, profile, context.limits)?;
    let Generation { sampling, max_tokens, stop, stop_token_ids, context_overflow, .. } = how;
    let Generation { constraint, logprobs, priority, timeout, .. } = how;
    let input = match kind {
        Kind::Completion => completion(fields, profile)?,
        Kind::Chat | Kind::Ask => conversation(fields, kind, profile, context)?,
    };
    let tools = if kind == Kind::Chat { tools::read(fields, context.limits)? } else { None };
    let session = session(fields, context)?;
    if tools.is_some() && session.is_some() {
        let message = "a session keeps words, no calls of tools; resend the conversation in `messages` instead";
        return Err(Refusal::new(Code::Unsupported, message).with_param("session"));
    }
    let include_usage = match fields.object("stream_options")? {
        None => false,
        Some(options) => {
            refuse_unknown(&options, &["include_usage", "include_obfuscation"])?;
            options.boolean("include_obfuscation")?;
            options.boolean("include_usage")?.unwrap_or(false)
        }
    };
    let echo = echo(fields, &input, logprobs)?;
    // A profile's own priority is the operator's word; only what the request asks for needs the right.
    let from_profile = profile.is_some_and(|(_, profile)| profile.priority.is_some());
    let priority = if fields.get("priority").is_some() {
        context.grant.check_priority(priority)?;
        priority
    } else if from_profile {
        priority
    } else {
        priority.min(context.grant.priority)
    };
    let request = Request {
        input,
        sampling,
        max_tokens,
        stop,
        stop_token_ids,
        context_overflow,
        constraint,
        logprobs,
        tools,
    };
    Ok(Asked {
        submission: Submission {
            request,
            identity: context.grant.identity.clone(),
            priority,
            timeout,
            quota: context.grant.quota,
            session,
            profile: named.map(str::to_owned),
            recorded: None,
            again: None,
            origin: Origin { profile: named.map(str::to_owned), ..Origin::new(context.door) },
        },
        id: None,
        stream: fields.boolean("stream")?.unwrap_or(false),
        include_usage,
        profile: named.map(str::to_owned),
        format: AnswerFormat::default(),
        max_bytes: None,
        reply_to: None,
        echo,
        echo_model: fields.string("model")?.map(str::to_owned),
    })
}

fn id(fields: &Fields<'_>, context: &Context<'_>) -> Result<Option<String>, Refusal> {
    let Some(id) = fields.string("id")? else { return Ok(None) };
    check_id(id, context.limits.id_chars)?;
    Ok(Some(id.to_owned()))
}

fn session(fields: &Fields<'_>, context: &Context<'_>) -> Result<Option<String>, Refusal> {
    let Some(name) = fields.string("session")? else { return Ok(None) };
    let wrong = |mut refusal: Refusal| {
        refusal.message = refusal.message.replace("`id`", "`session`").replace("an id", "its name");
        refusal.with_param("session")
    };
    check_id(name, context.limits.id_chars).map_err(wrong)?;
    Ok(Some(name.to_owned()))
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

fn format(fields: &Fields<'_>) -> Result<AnswerFormat, Refusal> {
    match fields.string("format")? {
        None | Some("json") => Ok(AnswerFormat::Json),
        Some("text") => Ok(AnswerFormat::Text),
        Some(other) => Err(fields.wrong("format", "\"json\" or \"text\"", &Value::from(other))),
    }
}

fn max_bytes(fields: &Fields<'_>) -> Result<Option<usize>, Refusal> {
    // Smaller parts than this have no room for their own numbers; a larger packet MQTT does not have.
    let bytes = fields.integer("max_bytes", &(64..=268_435_455))?;
    Ok(bytes.and_then(|bytes| usize::try_from(bytes).ok()))
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
    let with_context = |system: Option<&str>| match profile {
        Some((_, profile)) => profile.system_with_context(system, context.readings, context.now),
        None => system.map(str::to_owned),
    };
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
            let system = with_context(system.or(default_system));
            Ok(Input::Ask { system, text: text.to_owned() })
        }
        (None, Some(list)) => {
            let mut messages = messages::read(list, context.limits)?;
            let own = messages.iter().position(|message| message.role == Role::System);
            if let (Some(_), Some((name, profile))) = (own, profile) {
                profile.check_fixed(name, std::iter::once("system"))?;
            }
            if own.is_some() && system.is_some() {
                let message = "the system message stands in `messages` already; leave `system` out";
                return Err(Refusal::bad_request(message).with_param("system"));
            }
            if let Some(message) = own.and_then(|own| messages.get_mut(own)) {
                let content = with_context(Some(&message.content));
                message.content = content.unwrap_or_default();
            } else if let Some(content) = with_context(system.or(default_system)) {
                messages.insert(0, Message::new(Role::System, content));
            }
            Ok(Input::Chat(messages))
        }
    }
}

/// The prompt, where a completion is to repeat it in front of its answer.
fn echo(
    fields: &Fields<'_>,
    input: &Input,
    logprobs: Option<u8>,
) -> Result<Option<String>, Refusal> {
    if !fields.boolean("echo")?.unwrap_or(false) {
        return Ok(None);
    }
    if logprobs.is_some() {
        let message = "`echo` with `logprobs` is not supported: the log probabilities of the prompt's own tokens are not computed; ask without one of the two";
        return Err(Refusal::new(Code::Unsupported, message).with_param("echo"));
    }
    Ok(match input {
        Input::Completion(text) => Some(text.clone()),
        Input::Chat(_) | Input::Ask { .. } | Input::Embed(_) => None,
    })
}

/// Log probabilities stand in answer objects: bare text and numbered parts have no place for them.
fn check_logprobs_fit(asked: &Asked) -> Result<(), Refusal> {
    if asked.submission.request.logprobs.is_none() {
        return Ok(());
    }
    let other = match asked {
        Asked { format: AnswerFormat::Text, .. } => "format",
        Asked { max_bytes: Some(_), .. } => "max_bytes",
        _ => return Ok(()),
    };
    let message = format!(
        "`logprobs` have no place in an answer with this `{other}`; leave one of the two out"
    );
    Err(Refusal::new(Code::Unsupported, message).with_param("logprobs"))
}

/// A completion's prompt.
fn completion(fields: &Fields<'_>, profile: Option<(&str, &Profile)>) -> Result<Input, Refusal> {
    let has_system =
        |profile: &Profile| profile.system.is_some() || !profile.context_topics.is_empty();
    if let Some((name, _)) = profile.filter(|(_, profile)| has_system(profile)) {
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
            [Value::Number(_) | Value::Array(_), ..] => {
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

#[cfg(test)]
#[path = "ask_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "policy_tests.rs"]
mod policy_tests;

#[cfg(test)]
#[path = "tools_tests.rs"]
mod tools_tests;
