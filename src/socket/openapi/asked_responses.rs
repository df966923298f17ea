//! The body of `POST /v1/responses` as types.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::asked::{
    AnySchema, False, OnlyFunction, OnlyMedium, OnlyNone, Priority, ServiceTier, ToolWord,
};

/// `POST /v1/responses`
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(extend("additionalProperties" = false))]
pub(super) struct ResponseRequest {
    input: ResponseInput,
    /// The system message.
    instructions: Option<String>,
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    max_output_tokens: Option<u32>,
    #[schemars(length(max = 128))]
    tools: Option<Vec<FlatTool>>,
    tool_choice: Option<FlatToolChoice>,
    parallel_tool_calls: Option<bool>,
    text: Option<ResponseText>,
    stream: Option<bool>,
    stream_options: Option<ResponseStreamOptions>,
    model: Option<String>,
    #[schemars(range(min = 0, max = 2))]
    temperature: Option<f64>,
    #[schemars(range(min = 0, max = 1))]
    top_p: Option<f64>,
    #[schemars(range(min = -9_223_372_036_854_775_808_i64, max = 18_446_744_073_709_551_615_u64))]
    seed: Option<i128>,
    priority: Option<Priority>,
    #[schemars(range(min = 1, max = 604_800_000))]
    timeout_ms: Option<u64>,
    profile: Option<String>,
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[!-~&&[^+#/]]+$"))]
    session: Option<String>,
    #[schemars(length(min = 1, max = 4096))]
    regex: Option<String>,
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 256)))]
    choices: Option<Vec<String>>,
    #[schemars(length(min = 1, max = 65_536))]
    grammar: Option<String>,
    service_tier: Option<ServiceTier>,
    store: Option<False>,
    background: Option<False>,
    truncation: Option<OnlyDisabled>,
    #[schemars(length(max = 0))]
    include: Option<Vec<Value>>,
    #[schemars(range(min = 0, max = 0))]
    top_logprobs: Option<u8>,
    reasoning: Option<BTreeMap<String, Option<OnlyNone>>>,
    /// Changes nothing.
    user: Option<Value>,
    /// Changes nothing.
    metadata: Option<Value>,
    /// Changes nothing.
    safety_identifier: Option<Value>,
    /// Changes nothing.
    prompt_cache_key: Option<Value>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ResponseStreamOptions {
    include_obfuscation: Option<bool>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum OnlyDisabled {
    Disabled,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct FlatTool {
    r#type: OnlyFunction,
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9_.-]+$"))]
    name: String,
    description: Option<String>,
    parameters: Option<Map<String, Value>>,
    strict: Option<bool>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum FlatToolChoice {
    Word(ToolWord),
    Named(FlatNamedTool),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct FlatNamedTool {
    r#type: OnlyFunction,
    name: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum ResponseInput {
    Text(String),
    Items(#[schemars(length(min = 1, max = 1024))] Vec<ResponseItem>),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum ResponseItem {
    Message(ResponseMessage),
    Call(ResponseCall),
    Output(ResponseOutput),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ResponseMessage {
    r#type: Option<OnlyMessage>,
    role: ResponseRole,
    content: ResponseContent,
    id: Option<Value>,
    status: Option<Value>,
    phase: Option<Value>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum OnlyMessage {
    Message,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ResponseRole {
    System,
    Developer,
    User,
    Assistant,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum ResponseContent {
    Text(String),
    Parts(#[schemars(length(min = 1))] Vec<ResponsePart>),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ResponsePart {
    r#type: ResponsePartKind,
    text: String,
    annotations: Option<Value>,
    logprobs: Option<Value>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum ResponsePartKind {
    InputText,
    OutputText,
    Text,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ResponseCall {
    r#type: OnlyFunctionCall,
    id: Option<Value>,
    call_id: String,
    name: String,
    arguments: String,
    status: Option<Value>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum OnlyFunctionCall {
    FunctionCall,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ResponseOutput {
    r#type: OnlyFunctionCallOutput,
    id: Option<Value>,
    call_id: String,
    output: ResponseContent,
    status: Option<Value>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum OnlyFunctionCallOutput {
    FunctionCallOutput,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ResponseText {
    format: Option<ResponseTextFormat>,
    verbosity: Option<OnlyMedium>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(deny_unknown_fields)]
enum ResponseTextFormat {
    Text,
    JsonObject,
    JsonSchema {
        name: Option<String>,
        description: Option<String>,
        strict: Option<bool>,
        schema: AnySchema,
    },
}
