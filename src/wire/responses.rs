//! Reads the body of `POST /v1/responses`, OpenAI's newer API: puts it into a chat's words and reads that.

use serde_json::{Map, Value, json};

use super::ask::{check_size, object, read};
use super::fields::Fields;
use super::known::{Kind, refuse_unknown};
use super::names::shown;
use super::{AskError, Asked, Context};
use crate::request::{Code, Refusal};

/// Fields that a chat has under the same name.
const SAME: &[&str] = &[
    "model",
    "stream",
    "temperature",
    "top_p",
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
    "service_tier",
    "seed",
    "priority",
    "timeout_ms",
    "profile",
    "session",
    "regex",
    "choices",
    "grammar",
];

/// Fields that are read here.
const OWN: &[&str] = &[
    "input",
    "instructions",
    "max_output_tokens",
    "tools",
    "tool_choice",
    "text",
    "stream_options",
];

/// Fields that promptd knows and does not do; these values ask for nothing.
fn asks_for_nothing(name: &str, value: &Value) -> Option<bool> {
    Some(match name {
        "store" | "background" => *value == false,
        "truncation" => value == "disabled",
        "include" => value.as_array().is_some_and(Vec::is_empty),
        "top_logprobs" => *value == 0,
        "reasoning" => value.as_object().is_some_and(|reasoning| {
            reasoning.values().all(|value| value.is_null() || value == "none")
        }),
        "previous_response_id"
        | "conversation"
        | "prompt"
        | "max_tool_calls"
        | "context_management" => false,
        _ => return None,
    })
}

/// Reads the request. The second value is what the answer repeats of it.
///
/// # Errors
/// As [`super::parse_ask`].
pub fn parse_response(
    body: &[u8],
    context: &Context<'_>,
) -> Result<(Asked, Map<String, Value>), AskError> {
    check_size(body, context)?;
    let map = object(body)?;
    let chat = as_chat(&map)?;
    let asked = read(&chat, Kind::Chat, None, context).map_err(|mut error| {
        // What the asker wrote has other names.
        for (chat, own) in [
            ("messages", "input"),
            ("max_tokens", "max_output_tokens"),
            ("response_format", "text.format"),
        ] {
            if let Some(param) = &error.refusal.param
                && let Some(rest) = param.strip_prefix(chat)
            {
                error.refusal.param = Some(format!("{own}{rest}"));
            }
            error.refusal.message =
                error.refusal.message.replace(&format!("`{chat}"), &format!("`{own}"));
        }
        error
    })?;
    Ok((asked, echo(&map)))
}

/// What a response says about the request that it answers.
fn echo(map: &Map<String, Value>) -> Map<String, Value> {
    let given = |name: &str, other: Value| {
        let value = map.get(name).filter(|value| !value.is_null()).cloned();
        (name.to_owned(), value.unwrap_or(other))
    };
    [
        given("instructions", Value::Null),
        given("max_output_tokens", Value::Null),
        given("metadata", json!({})),
        given("parallel_tool_calls", true.into()),
        given("temperature", 0.into()),
        given("top_p", 1.into()),
        given("text", json!({"format": {"type": "text"}})),
        given("tool_choice", "auto".into()),
        given("tools", json!([])),
        given("truncation", "disabled".into()),
    ]
    .into_iter()
    .collect()
}

fn as_chat(map: &Map<String, Value>) -> Result<Map<String, Value>, Refusal> {
    let fields = Fields::root(map);
    let mut chat = Map::new();
    for name in fields.names() {
        let Some(value) = fields.get(name) else { continue };
        if SAME.contains(&name) {
            chat.insert(name.to_owned(), value.clone());
        } else if !OWN.contains(&name) {
            match asks_for_nothing(name, value) {
                Some(true) => {}
                Some(false) => {
                    let hint = if name == "previous_response_id" {
                        "; promptd keeps no responses: send the conversation in `input`, or name a `session`"
                    } else {
                        "; leave it out"
                    };
                    let message = format!("`{name}` is not supported here with this value{hint}");
                    return Err(Refusal::new(Code::Unsupported, message).with_param(name));
                }
                None => {
                    let known: Vec<&str> = SAME.iter().chain(OWN).copied().collect();
                    refuse_unknown(&fields, &known)?;
                }
            }
        }
    }
    let mut messages = Vec::new();
    if let Some(text) = fields.string("instructions")? {
        messages.push(json!({"role": "system", "content": text}));
    }
    input(&fields, &mut messages)?;
    chat.insert("messages".into(), messages.into());
    if let Some(most) = fields.get("max_output_tokens") {
        chat.insert("max_tokens".into(), most.clone());
    }
    if let Some(options) = fields.object("stream_options")? {
        refuse_unknown(&options, &["include_obfuscation"])?;
    }
    if let Some(tools) = fields.array("tools")? {
        let tools: Result<Vec<Value>, Refusal> = tools
            .iter()
            .enumerate()
            .map(|(i, tool)| function(tool, format!("tools[{i}]")))
            .collect();
        chat.insert("tools".into(), tools?.into());
    }
    match fields.get("tool_choice") {
        Some(choice @ Value::Object(_)) => {
            let choice = Fields::nested(choice, "tool_choice".to_owned())?;
            refuse_unknown(&choice, &["type", "name"])?;
            let function = json!({"name": choice.get("name")});
            let kind = choice.get("type");
            chat.insert("tool_choice".into(), json!({"type": kind, "function": function}));
        }
        Some(choice) => drop(chat.insert("tool_choice".into(), choice.clone())),
        None => {}
    }
    if let Some(text) = fields.object("text")? {
        refuse_unknown(&text, &["format", "verbosity"])?;
        if let Some(level) = text.get("verbosity") {
            chat.insert("verbosity".into(), level.clone());
        }
        if let Some(format) = text.object("format")? {
            chat.insert("response_format".into(), form(&format)?);
        }
    }
    Ok(chat)
}

/// `text.format` has the parts of a schema beside its type; a chat has them one level deeper.
fn form(format: &Fields<'_>) -> Result<Value, Refusal> {
    refuse_unknown(format, &["type", "name", "schema", "strict", "description"])?;
    if format.string("type")? != Some("json_schema") {
        return Ok(json!({"type": format.get("type")}));
    }
    let mut schema = Map::new();
    for name in ["name", "schema", "strict", "description"] {
        schema.extend(format.get(name).map(|value| (name.to_owned(), value.clone())));
    }
    Ok(json!({"type": "json_schema", "json_schema": schema}))
}

/// A tool with its parts beside its type; a chat has them one level deeper.
fn function(tool: &Value, path: String) -> Result<Value, Refusal> {
    let fields = Fields::nested(tool, path)?;
    let kind = fields.get("type");
    if kind.is_some_and(|kind| kind != "function") {
        return Ok(json!({"type": kind}));
    }
    refuse_unknown(&fields, &["type", "name", "description", "parameters", "strict"])?;
    let mut function = Map::new();
    for name in ["name", "description", "parameters", "strict"] {
        function.extend(fields.get(name).map(|value| (name.to_owned(), value.clone())));
    }
    Ok(json!({"type": kind, "function": function}))
}

/// The conversation: a text, or items.
fn input(fields: &Fields<'_>, messages: &mut Vec<Value>) -> Result<(), Refusal> {
    match fields.get("input") {
        None => Err(fields.missing("input", "what is asked, as a string or as items")),
        Some(Value::String(text)) => {
            messages.push(json!({"role": "user", "content": text}));
            Ok(())
        }
        Some(Value::Array(items)) => {
            for (i, item) in items.iter().enumerate() {
                self::item(&Fields::nested(item, format!("input[{i}]"))?, messages)?;
            }
            Ok(())
        }
        Some(other) => Err(fields.wrong("input", "a string or an array of items", other)),
    }
}

fn item(item: &Fields<'_>, messages: &mut Vec<Value>) -> Result<(), Refusal> {
    match item.string("type")? {
        None | Some("message") => {
            refuse_unknown(item, &["type", "role", "content", "id", "status", "phase"])?;
            let role = item.get("role");
            messages.push(json!({"role": role, "content": content(item, "content")?}));
        }
        Some("function_call") => {
            refuse_unknown(item, &["type", "id", "call_id", "name", "arguments", "status"])?;
            let function = json!({"name": item.get("name"), "arguments": item.get("arguments")});
            let call = json!({"id": item.get("call_id"), "type": "function", "function": function});
            // Calls of one turn stand in one message.
            let last = messages.last_mut().and_then(|message| message.get_mut("tool_calls"));
            match last.and_then(Value::as_array_mut) {
                Some(calls) => calls.push(call),
                None => messages
                    .push(json!({"role": "assistant", "content": null, "tool_calls": [call]})),
            }
        }
        Some("function_call_output") => {
            refuse_unknown(item, &["type", "id", "call_id", "output", "status"])?;
            let id = item.get("call_id");
            messages.push(
                json!({"role": "tool", "tool_call_id": id, "content": content(item, "output")?}),
            );
        }
        Some(other) => {
            let path = item.path("type");
            let message = format!("`{path}`: items of type {} are not supported", shown(other));
            return Err(Refusal::new(Code::Unsupported, message).with_param(path));
        }
    }
    Ok(())
}

/// A text, or its parts under the names that a chat has for them.
fn content(item: &Fields<'_>, name: &str) -> Result<Value, Refusal> {
    let Some(Value::Array(parts)) = item.get(name) else {
        return Ok(item.get(name).cloned().unwrap_or_default());
    };
    let part = |(i, part): (usize, &Value)| {
        let fields = Fields::nested(part, format!("{}[{i}]", item.path(name)))?;
        refuse_unknown(
            &fields,
            &["type", "text", "annotations", "logprobs", "prompt_cache_breakpoint"],
        )?;
        let kind = match fields.string("type")? {
            Some("input_text" | "output_text" | "text") => "text",
            Some("input_image") => "image_url",
            Some("input_file") => "file",
            other => other.unwrap_or_default(),
        };
        Ok(json!({"type": kind, "text": fields.get("text")}))
    };
    let parts: Result<Vec<Value>, Refusal> = parts.iter().enumerate().map(part).collect();
    parts.map(Value::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(body: &Value) -> Result<Value, Refusal> {
        as_chat(body.as_object().unwrap()).map(Value::Object)
    }

    #[test]
    fn a_conversation_in_a_chats_words() {
        let call = |id: &str| json!({"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"});
        let body = json!({
            "model": "m", "instructions": "Be short.", "max_output_tokens": 5, "stream": true, "store": false,
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "On!"}]},
                {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
                    "content": [{"type": "output_text", "text": "Yes.", "annotations": []}]},
                call("a"), call("b"),
                {"type": "function_call_output", "call_id": "a", "output": "1"},
            ],
            "tools": [{"type": "function", "name": "f", "parameters": {}, "strict": true}],
            "tool_choice": {"type": "function", "name": "f"},
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {"a": 1}}},
        });
        let function = |id: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}});
        assert_eq!(
            chat(&body).unwrap(),
            json!({
                "model": "m", "stream": true, "max_tokens": 5,
                "messages": [
                    {"role": "system", "content": "Be short."},
                    {"role": "user", "content": [{"type": "text", "text": "On!"}]},
                    {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
                    {"role": "assistant", "content": null, "tool_calls": [function("a"), function("b")]},
                    {"role": "tool", "tool_call_id": "a", "content": "1"},
                ],
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {}, "strict": true}}],
                "tool_choice": {"type": "function", "function": {"name": "f"}},
                "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"a": 1}}},
            })
        );
    }

    #[test]
    fn what_is_not_done_is_named() {
        for (body, code, param) in [
            (json!({}), "bad_request", "input"),
            (json!({"input": 1}), "bad_request", "input"),
            (json!({"input": "x", "inputs": 1}), "bad_request", "inputs"),
            (json!({"input": "x", "store": true}), "unsupported", "store"),
            (
                json!({"input": "x", "previous_response_id": "r"}),
                "unsupported",
                "previous_response_id",
            ),
            (json!({"input": "x", "reasoning": {"effort": "high"}}), "unsupported", "reasoning"),
            (json!({"input": [{"type": "item_reference"}]}), "unsupported", "input[0].type"),
            (
                json!({"input": [{"role": "user", "contents": 1}]}),
                "bad_request",
                "input[0].contents",
            ),
            (json!({"input": "x", "text": {"form": 1}}), "bad_request", "text.form"),
        ] {
            let refusal = chat(&body).unwrap_err();
            assert_eq!(
                (refusal.code.as_str(), refusal.param.as_deref()),
                (code, Some(param)),
                "{body}"
            );
        }
    }
}
