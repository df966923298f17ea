//! Reads the messages of a conversation: roles, and content as a string or as parts of text.

use serde_json::Value;

use super::fields::Fields;
use super::known::refuse_unknown;
use super::limits::Limits;
use super::names::shown;
use crate::request::{Code, Message, Refusal, Role};

/// The fields a message may have. Those that are read no further come back from clients that resend an answer of ours
/// as part of the conversation.
const KNOWN: &[&str] = &[
    "role",
    "content",
    "name",
    "refusal",
    "annotations",
    "audio",
    "tool_calls",
    "tool_call_id",
    "function_call",
];

/// Reads `messages`.
pub(super) fn read(list: &[Value], limits: &Limits) -> Result<Vec<Message>, Refusal> {
    if list.is_empty() || list.len() > limits.messages {
        let message = format!(
            "`messages` has {} messages; 1 to {} are possible",
            list.len(),
            limits.messages
        );
        return Err(Refusal::bad_request(message).with_param("messages"));
    }
    list.iter().enumerate().map(|(i, value)| read_one(value, format!("messages[{i}]"))).collect()
}

fn read_one(value: &Value, path: String) -> Result<Message, Refusal> {
    let fields = Fields::nested(value, path)?;
    refuse_unknown(&fields, KNOWN)?;
    let role = role(&fields)?;
    for name in ["function_call", "audio"] {
        if let Some(value) = fields.get(name)
            && value.as_array().is_none_or(|list| !list.is_empty())
        {
            let path = fields.path(name);
            let message = format!(
                "`{path}` is not supported; calls stand in `tool_calls`, and promptd hears no sound"
            );
            return Err(Refusal::new(Code::Unsupported, message).with_param(path));
        }
    }
    fields.string("name")?;
    let call_id = fields.string("tool_call_id")?.map(str::to_owned);
    let calls = super::tools::calls(&fields)?;
    if role != Role::Assistant && !calls.is_empty() {
        let path = fields.path("tool_calls");
        let message = format!("`{path}` belongs to messages of the role `assistant`");
        return Err(Refusal::bad_request(message).with_param(path));
    }
    let content = match fields.get("content") {
        // Who calls a tool need not say anything.
        None if !calls.is_empty() => String::new(),
        None => {
            return Err(fields.missing("content", "what is said, as a string or as parts of text"));
        }
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => text_of(parts, &fields.path("content"))?,
        Some(other) => {
            return Err(fields.wrong("content", "a string or an array of text parts", other));
        }
    };
    Ok(Message { calls, call_id, ..Message::new(role, content) })
}

fn role(fields: &Fields<'_>) -> Result<Role, Refusal> {
    let expected = "\"system\", \"user\", \"assistant\" or \"tool\"";
    match fields.string("role")? {
        None => Err(fields.missing("role", expected)),
        // `developer` is the newer name of the same role.
        Some("system" | "developer") => Ok(Role::System),
        Some("user") => Ok(Role::User),
        Some("assistant") => Ok(Role::Assistant),
        Some("tool" | "function") => Ok(Role::Tool),
        Some(other) => Err(fields.wrong("role", expected, &Value::from(other))),
    }
}

/// The text of all parts, a line break between two of them.
fn text_of(parts: &[Value], path: &str) -> Result<String, Refusal> {
    if parts.is_empty() {
        return Err(Refusal::bad_request(format!("`{path}` has no parts")).with_param(path));
    }
    let mut texts = Vec::with_capacity(parts.len());
    for (i, part) in parts.iter().enumerate() {
        let part = Fields::nested(part, format!("{path}[{i}]"))?;
        match part.string("type")? {
            Some("text") => {}
            Some(kind @ ("image_url" | "input_audio" | "file" | "video_url" | "refusal")) => {
                let path = part.path("type");
                let message = format!(
                    "`{path}`: parts of type `{kind}` are not supported; only text is read"
                );
                return Err(Refusal::new(Code::Unsupported, message).with_param(path));
            }
            Some(other) => {
                let message =
                    format!("`{}` must be \"text\", but is {}", part.path("type"), shown(other));
                return Err(Refusal::bad_request(message).with_param(part.path("type")));
            }
            None => return Err(part.missing("type", "\"text\"")),
        }
        refuse_unknown(&part, &["type", "text", "cache_control", "prompt_cache_breakpoint"])?;
        texts.push(part.string("text")?.ok_or_else(|| part.missing("text", "the part's text"))?);
    }
    Ok(texts.join("\n"))
}
