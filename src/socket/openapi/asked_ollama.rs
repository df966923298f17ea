//! The bodies of requests in Ollama's API as types.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::asked::{False, Tool};

/// `POST /api/chat`
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct OllamaChat {
    model: Option<String>,
    #[schemars(length(max = 1024))]
    messages: Option<Vec<OllamaMessage>>,
    #[schemars(length(max = 128))]
    tools: Option<Vec<Tool>>,
    format: Option<OllamaFormat>,
    options: Option<Map<String, Value>>,
    /// True where it is absent.
    stream: Option<bool>,
    keep_alive: Option<Value>,
    think: Option<False>,
    logprobs: Option<False>,
    top_logprobs: Option<Value>,
}

/// `POST /api/generate`
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct OllamaGenerate {
    model: Option<String>,
    prompt: Option<String>,
    system: Option<String>,
    raw: Option<bool>,
    format: Option<OllamaFormat>,
    options: Option<Map<String, Value>>,
    /// True where it is absent.
    stream: Option<bool>,
    keep_alive: Option<Value>,
    think: Option<False>,
    logprobs: Option<False>,
    top_logprobs: Option<Value>,
    #[schemars(length(max = 0))]
    suffix: Option<String>,
    #[schemars(length(max = 0))]
    images: Option<Vec<Value>>,
    #[schemars(length(max = 0))]
    template: Option<String>,
    #[schemars(length(max = 0))]
    context: Option<Vec<Value>>,
}

/// `POST /api/show`
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct OllamaShow {
    model: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct OllamaMessage {
    role: ResponseOrTool,
    content: Option<String>,
    #[schemars(length(max = 0))]
    images: Option<Vec<Value>>,
    tool_calls: Option<Vec<OllamaCall>>,
    tool_name: Option<String>,
    thinking: Option<Value>,
    name: Option<String>,
    tool_call_id: Option<Value>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ResponseOrTool {
    System,
    User,
    Assistant,
    Tool,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct OllamaCall {
    function: OllamaFunction,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct OllamaFunction {
    name: String,
    arguments: Option<Map<String, Value>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum OllamaFormat {
    Word(OllamaFormatWord),
    Schema(Map<String, Value>),
}

#[derive(Debug, Deserialize, JsonSchema)]
enum OllamaFormatWord {
    #[serde(rename = "")]
    Nothing,
    #[serde(rename = "json")]
    Json,
}
