//! Reads the bodies of Ollama's `/api/chat` and `/api/generate`: puts them into a chat's or a completion's words and reads
//! that. What has no counterpart here and only tunes Ollama itself passes; what would change the answer is refused by name.

use serde_json::{Map, Value, json};

use super::ask::{check_size, object, read};
use super::fields::Fields;
use super::known::{Kind, refuse_unknown};
use super::{AskError, Asked, Context};
use crate::request::{Code, Refusal};

/// Options and the names that they have here.
const OPTIONS: &[(&str, &str)] = &[
    ("temperature", "temperature"),
    ("top_k", "top_k"),
    ("top_p", "top_p"),
    ("min_p", "min_p"),
    ("seed", "seed"),
    ("stop", "stop"),
    ("repeat_penalty", "repetition_penalty"),
    ("presence_penalty", "presence_penalty"),
    ("frequency_penalty", "frequency_penalty"),
];

/// Options that tune Ollama's own engine, which is not here.
const TUNING: &[&str] = &[
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "num_keep",
    "use_mmap",
    "use_mlock",
    "numa",
    "low_vram",
    "f16_kv",
    "vocab_only",
    "repeat_last_n",
    "penalize_newline",
    "draft_num_predict",
];

/// Fields of both kinds of request.
const COMMON: &[&str] =
    &["model", "format", "options", "stream", "keep_alive", "think", "logprobs", "top_logprobs"];

/// Fields of `/api/generate` that are read as nothing only.
const NOTHING: &[&str] = &["suffix", "images", "template", "context"];

/// A request of an Ollama client.
#[derive(Clone, Debug)]
pub enum OllamaAsked {
    /// Something is asked.
    Prompt(Box<Asked>),
    /// Nothing is: clients have a model loaded that way. The model, as they named it.
    Load(Option<String>),
}

/// Reads the body of `/api/chat`.
///
/// # Errors
/// As [`super::parse_ask`].
pub fn parse_ollama_chat(body: &[u8], context: &Context<'_>) -> Result<OllamaAsked, AskError> {
    check_size(body, context)?;
    let map = object(body)?;
    let fields = Fields::root(&map);
    refuse_unknown(&fields, &[COMMON, &["messages", "tools"]].concat())?;
    // A mistake is told also where nothing is asked.
    let mut chat = common(&fields)?;
    super::tools::read(&fields, context.limits)?;
    let messages = fields.array("messages")?.unwrap_or_default();
    if messages.is_empty() {
        return Ok(OllamaAsked::Load(model(&fields)?));
    }
    let mut out = Vec::new();
    for (i, value) in messages.iter().enumerate() {
        out.push(message(&Fields::nested(value, format!("messages[{i}]"))?, i, &out)?);
    }
    chat.insert("messages".into(), out.into());
    chat.extend(fields.get("tools").map(|tools| ("tools".to_owned(), tools.clone())));
    finish(read(&chat, Kind::Chat, None, context))
}

/// Reads the body of `/api/generate`.
///
/// # Errors
/// As [`super::parse_ask`].
pub fn parse_ollama_generate(body: &[u8], context: &Context<'_>) -> Result<OllamaAsked, AskError> {
    check_size(body, context)?;
    let map = object(body)?;
    let fields = Fields::root(&map);
    refuse_unknown(&fields, &[COMMON, NOTHING, &["prompt", "system", "raw"]].concat())?;
    for &name in NOTHING {
        let empty = |value: &Value| value == "" || value.as_array().is_some_and(Vec::is_empty);
        if fields.get(name).is_some_and(|value| !empty(value)) {
            return Err(not_done(name).into());
        }
    }
    let mut request = common(&fields)?;
    let raw = fields.boolean("raw")?.unwrap_or(false);
    let system = fields.string("system")?.filter(|system| !system.is_empty());
    let Some(prompt) = fields.string("prompt")?.filter(|prompt| !prompt.is_empty()) else {
        return Ok(OllamaAsked::Load(model(&fields)?));
    };
    if raw {
        request.insert("prompt".into(), prompt.into());
        return finish(read(&request, Kind::Completion, None, context));
    }
    let system = system.map(|text| json!({"role": "system", "content": text}));
    let messages: Vec<Value> =
        system.into_iter().chain([json!({"role": "user", "content": prompt})]).collect();
    request.insert("messages".into(), messages.into());
    finish(read(&request, Kind::Chat, None, context))
}

fn finish(asked: Result<Asked, AskError>) -> Result<OllamaAsked, AskError> {
    asked.map(|asked| OllamaAsked::Prompt(Box::new(asked)))
}

/// The model's name without Ollama's default tag.
fn model(fields: &Fields<'_>) -> Result<Option<String>, Refusal> {
    let name = fields.string("model")?;
    Ok(name.map(|name| name.strip_suffix(":latest").unwrap_or(name).to_owned()))
}

fn not_done(name: &str) -> Refusal {
    let message = format!("`{name}` is not supported here with this value; leave it out");
    Refusal::new(Code::Unsupported, message).with_param(name)
}

/// What both kinds of request have.
fn common(fields: &Fields<'_>) -> Result<Map<String, Value>, Refusal> {
    let mut out = Map::new();
    out.extend(model(fields)?.map(|name| ("model".to_owned(), name.into())));
    out.insert("stream".into(), fields.boolean("stream")?.unwrap_or(true).into());
    match fields.get("think") {
        None | Some(Value::Bool(false)) => {}
        Some(_) => return Err(not_done("think")),
    }
    if fields.boolean("logprobs")?.unwrap_or(false) {
        return Err(not_done("logprobs"));
    }
    match fields.get("format") {
        None => {}
        Some(Value::String(format)) if format.is_empty() => {}
        Some(Value::String(format)) if format == "json" => {
            out.insert("response_format".into(), json!({"type": "json_object"}));
        }
        Some(schema @ Value::Object(_)) => {
            let format =
                json!({"type": "json_schema", "json_schema": {"name": "format", "schema": schema}});
            out.insert("response_format".into(), format);
        }
        Some(other) => return Err(fields.wrong("format", "\"json\" or a JSON Schema", other)),
    }
    let Some(options) = fields.object("options")? else { return Ok(out) };
    for name in options.names() {
        let Some(value) = options.get(name) else { continue };
        if let Some((_, ours)) = OPTIONS.iter().find(|(theirs, _)| *theirs == name) {
            // A negative seed asks for any.
            let any = name == "seed" && value.as_i64().is_some_and(i64::is_negative);
            let none = name == "stop" && value.as_array().is_some_and(Vec::is_empty);
            if !any && !none {
                out.insert((*ours).to_owned(), value.clone());
            }
        } else if name == "num_predict" {
            // -1 and -2 ask for as many as there is room for.
            if value.as_i64().is_none_or(|most| most > 0) {
                out.insert("max_tokens".into(), value.clone());
            }
        } else if !TUNING.contains(&name) {
            let known: Vec<&str> =
                OPTIONS.iter().map(|(name, _)| *name).chain(["num_predict"]).collect();
            if ["mirostat", "typical_p", "tfs_z"].contains(&name) {
                let neutral = value
                    .as_f64()
                    .is_some_and(|value| value <= 0.0 || (value - 1.0).abs() < f64::EPSILON);
                if neutral {
                    continue;
                }
                return Err(not_done(&options.path(name)));
            }
            let one: Map<String, Value> =
                std::iter::once((name.to_owned(), value.clone())).collect();
            refuse_unknown(&Fields::nested(&Value::Object(one), "options".to_owned())?, &known)?;
        }
    }
    Ok(out)
}

/// A message in a chat's words. Ollama's calls have no ids: a result belongs to the call of its name, or to the next one.
fn message(fields: &Fields<'_>, at: usize, before: &[Value]) -> Result<Value, Refusal> {
    refuse_unknown(
        fields,
        &[
            "role",
            "content",
            "images",
            "tool_calls",
            "tool_name",
            "thinking",
            "name",
            "tool_call_id",
        ],
    )?;
    if fields.array("images")?.is_some_and(|images| !images.is_empty()) {
        let path = fields.path("images");
        let message = format!("`{path}` is not supported: only text is read");
        return Err(Refusal::new(Code::Unsupported, message).with_param(path));
    }
    let mut out = Map::new();
    out.extend(fields.get("role").map(|role| ("role".to_owned(), role.clone())));
    out.insert("content".into(), fields.get("content").cloned().unwrap_or_else(|| "".into()));
    if let Some(calls) = fields.array("tool_calls")? {
        let call = |(i, value): (usize, &Value)| {
            let call = Fields::nested(value, format!("{}[{i}]", fields.path("tool_calls")))?;
            let function = call.object("function")?;
            let function = function.ok_or_else(|| call.missing("function", "what was called"))?;
            let arguments = match function.get("arguments") {
                Some(Value::String(text)) => text.clone(),
                Some(value) => value.to_string(),
                None => "{}".to_owned(),
            };
            let function = json!({"name": function.get("name"), "arguments": arguments});
            Ok(json!({"id": format!("call{at}x{i}"), "type": "function", "function": function}))
        };
        let calls: Result<Vec<Value>, Refusal> = calls.iter().enumerate().map(call).collect();
        out.insert("tool_calls".into(), calls?.into());
    }
    if fields.get("role").is_some_and(|role| role == "tool") {
        let name = fields.string("tool_name")?.or(fields.string("name")?);
        let answered: Vec<&Value> =
            before.iter().filter_map(|message| message.get("tool_call_id")).collect();
        let calls =
            before.iter().filter_map(|message| message.get("tool_calls")?.as_array()).flatten();
        let mut open = calls.filter(|call| !answered.contains(&&call["id"]));
        let mine = open.find(|call| name.is_none_or(|name| call["function"]["name"] == name));
        out.extend(mine.map(|call| ("tool_call_id".to_owned(), call["id"].clone())));
    }
    Ok(Value::Object(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common_of(body: &Value) -> Result<Value, Refusal> {
        common(&Fields::root(body.as_object().unwrap())).map(Value::Object)
    }

    #[test]
    fn options_have_our_names() {
        let body = json!({
            "model": "demo:latest", "stream": false, "think": false, "format": "json",
            "options": {"num_predict": 7, "num_ctx": 4096, "repeat_penalty": 1.1, "seed": -1, "stop": [], "top_k": 3, "mirostat": 0},
        });
        assert_eq!(
            common_of(&body).unwrap(),
            json!({"model": "demo", "stream": false, "response_format": {"type": "json_object"}, "max_tokens": 7,
                "repetition_penalty": 1.1, "top_k": 3})
        );
        assert_eq!(
            common_of(&json!({"options": {"num_predict": -1}})).unwrap(),
            json!({"stream": true})
        );
        for (body, code, param) in [
            (json!({"think": true}), "unsupported", "think"),
            (json!({"format": "xml"}), "bad_request", "format"),
            (json!({"options": {"temprature": 1}}), "bad_request", "options.temprature"),
            (json!({"options": {"mirostat": 2}}), "unsupported", "options.mirostat"),
        ] {
            let refusal = common_of(&body).unwrap_err();
            assert_eq!(
                (refusal.code.as_str(), refusal.param.as_deref()),
                (code, Some(param)),
                "{body}"
            );
        }
    }

    #[test]
    fn results_find_their_calls() {
        let call = |name: &str| json!({"function": {"name": name, "arguments": {"a": 1}}});
        let messages = [
            json!({"role": "assistant", "tool_calls": [call("f"), call("g")]}),
            json!({"role": "tool", "content": "2", "tool_name": "g"}),
            json!({"role": "tool", "content": "1"}),
        ];
        let mut out = Vec::new();
        for (i, value) in messages.iter().enumerate() {
            let read = message(&Fields::nested(value, format!("messages[{i}]")).unwrap(), i, &out);
            out.push(read.unwrap());
        }
        assert_eq!(
            out[0]["tool_calls"][0]["function"],
            json!({"name": "f", "arguments": "{\"a\":1}"})
        );
        assert_eq!(
            (&out[1]["tool_call_id"], &out[2]["tool_call_id"]),
            (&json!("call0x1"), &json!("call0x0"))
        );
    }
}
