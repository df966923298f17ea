//! Reads `tools`, `tool_choice` and `parallel_tool_calls` of a chat, and the calls in its messages.

use std::collections::HashSet;

use serde_json::Value;

use super::fields::Fields;
use super::known::refuse_unknown;
use super::limits::Limits;
use super::names::shown;
use crate::request::{Code, Refusal, Tool, ToolCall, ToolChoice, Tools};

/// The tools of a request; `None` where there are none.
pub(super) fn read(fields: &Fields<'_>, limits: &Limits) -> Result<Option<Tools>, Refusal> {
    let list = fields.array("tools")?.unwrap_or_default();
    let parallel = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
    let choice = choice(fields)?;
    if list.is_empty() {
        return match choice {
            None | Some(ToolChoice::Auto | ToolChoice::None) => Ok(None),
            Some(_) => {
                let message = "`tool_choice` asks for a call, but there are no `tools`";
                Err(Refusal::bad_request(message).with_param("tool_choice"))
            }
        };
    }
    if list.len() > limits.tools {
        let message = format!("`tools` has {} tools; {} are possible", list.len(), limits.tools);
        return Err(Refusal::bad_request(message).with_param("tools"));
    }
    let mut names = HashSet::new();
    let mut tools = Vec::with_capacity(list.len());
    for (i, value) in list.iter().enumerate() {
        let tool = tool(&Fields::nested(value, format!("tools[{i}]"))?)?;
        if !names.insert(tool.name.clone()) {
            let path = format!("tools[{i}].function.name");
            let message = format!("`{path}` is {} for the second time", shown(&tool.name));
            return Err(Refusal::bad_request(message).with_param(path));
        }
        tools.push(tool);
    }
    let choice = choice.unwrap_or(ToolChoice::Auto);
    if let ToolChoice::Named(name) = &choice
        && !names.contains(name)
    {
        let message = format!("`tool_choice` names {}, which is not among `tools`", shown(name));
        return Err(Refusal::bad_request(message).with_param("tool_choice"));
    }
    Ok(Some(Tools { list: tools, choice, parallel }))
}

fn tool(fields: &Fields<'_>) -> Result<Tool, Refusal> {
    kind(fields)?;
    refuse_unknown(fields, &["type", "function"])?;
    let function = fields
        .object("function")?
        .ok_or_else(|| fields.missing("function", "what can be called"))?;
    refuse_unknown(&function, &["name", "description", "parameters", "strict"])?;
    function.boolean("strict")?;
    let name = function.string("name")?;
    let name = name.ok_or_else(|| function.missing("name", "the function's name"))?;
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.len() > 64 || !name.chars().all(good) {
        let expected = "1 to 64 letters, digits, `_`, `-` and `.`";
        return Err(function.wrong("name", expected, &Value::from(name)));
    }
    // A function without parameters has none.
    let parameters = match function.get("parameters") {
        None => "{\"type\":\"object\",\"properties\":{}}".to_owned(),
        Some(Value::Object(schema)) => Value::Object(schema.clone()).to_string(),
        Some(other) => return Err(function.wrong("parameters", "a JSON Schema", other)),
    };
    Ok(Tool {
        name: name.to_owned(),
        description: function.string("description")?.map(str::to_owned),
        parameters,
    })
}

/// Only functions are called.
fn kind(fields: &Fields<'_>) -> Result<(), Refusal> {
    match fields.string("type")? {
        Some("function") => Ok(()),
        Some(other) => {
            let path = fields.path("type");
            let message = format!(
                "`{path}`: tools of type {} are not supported; only `function` is",
                shown(other)
            );
            Err(Refusal::new(Code::Unsupported, message).with_param(path))
        }
        None => Err(fields.missing("type", "\"function\"")),
    }
}

fn choice(fields: &Fields<'_>) -> Result<Option<ToolChoice>, Refusal> {
    let expected =
        "\"auto\", \"none\", \"required\" or {\"type\":\"function\",\"function\":{\"name\":…}}";
    match fields.get("tool_choice") {
        None => Ok(None),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => Ok(Some(ToolChoice::Auto)),
            "none" => Ok(Some(ToolChoice::None)),
            "required" => Ok(Some(ToolChoice::Required)),
            other => Err(fields.wrong("tool_choice", expected, &Value::from(other))),
        },
        Some(value @ Value::Object(_)) => {
            let choice = Fields::nested(value, "tool_choice".to_owned())?;
            kind(&choice)?;
            refuse_unknown(&choice, &["type", "function"])?;
            let function = choice.object("function")?;
            let function = function.ok_or_else(|| choice.missing("function", "which function"))?;
            refuse_unknown(&function, &["name"])?;
            let name = function.string("name")?;
            let name = name.ok_or_else(|| function.missing("name", "the function's name"))?;
            Ok(Some(ToolChoice::Named(name.to_owned())))
        }
        Some(other) => Err(fields.wrong("tool_choice", expected, other)),
    }
}

/// The calls in an assistant's message.
pub(super) fn calls(message: &Fields<'_>) -> Result<Vec<ToolCall>, Refusal> {
    let list = message.array("tool_calls")?.unwrap_or_default();
    let at = message.path("tool_calls");
    let read = |(i, value): (usize, &Value)| {
        let fields = Fields::nested(value, format!("{at}[{i}]"))?;
        kind(&fields)?;
        refuse_unknown(&fields, &["id", "type", "function", "index"])?;
        let function = fields.object("function")?;
        let function = function.ok_or_else(|| fields.missing("function", "what was called"))?;
        refuse_unknown(&function, &["name", "arguments"])?;
        let text = |fields: &Fields<'_>, name: &str, what: &str| {
            let text = fields.string(name)?;
            text.map(str::to_owned).ok_or_else(|| fields.missing(name, what))
        };
        Ok(ToolCall {
            id: text(&fields, "id", "what the result names it by")?,
            name: text(&function, "name", "the function's name")?,
            arguments: text(&function, "arguments", "JSON, as a string")?,
        })
    };
    list.iter().enumerate().map(read).collect()
}
