//! The bodies of requests as types: what `/openapi.json` says of them. The readers in `wire` are the law; a test holds the
//! names of the fields against theirs.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

/// What every request for an answer may say.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Common {
    /// The served model's name, `default` or `promptd`.
    model: Option<String>,
    /// Whether the answer comes piece by piece, as server-sent events.
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    /// The most tokens of the answer.
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    max_tokens: Option<u32>,
    /// The same under its newer name.
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    max_completion_tokens: Option<u32>,
    #[schemars(range(min = 0, max = 2))]
    temperature: Option<f64>,
    #[schemars(range(min = 0, max = 1))]
    top_p: Option<f64>,
    #[schemars(range(min = 0, max = 4_294_967_295_u32))]
    top_k: Option<u32>,
    #[schemars(range(min = 0, max = 1))]
    min_p: Option<f64>,
    /// The same seed gives the same answer.
    #[schemars(range(min = -9_223_372_036_854_775_808_i64, max = 18_446_744_073_709_551_615_u64))]
    seed: Option<i128>,
    stop: Option<Stop>,
    /// The answer ends with the first of these tokens.
    #[schemars(length(max = 16))]
    stop_token_ids: Option<Vec<u32>>,
    /// Whether an answer ends with the context, or goes on while the model forgets the older half of it.
    context_overflow: Option<ContextOverflow>,
    response_format: Option<ResponseFormat>,
    /// The answer matches this regular expression.
    #[schemars(length(min = 1, max = 4096))]
    regex: Option<String>,
    /// The answer is one of these.
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 256)))]
    choices: Option<Vec<String>>,
    /// The answer follows this Lark grammar.
    #[schemars(length(min = 1, max = 65_536))]
    grammar: Option<String>,
    #[schemars(range(min = -2, max = 2))]
    frequency_penalty: Option<f64>,
    #[schemars(range(min = -2, max = 2))]
    presence_penalty: Option<f64>,
    #[schemars(range(min = 0.1, max = 10))]
    repetition_penalty: Option<f64>,
    logit_bias: Option<LogitBias>,
    priority: Option<Priority>,
    /// Milliseconds after which the answer is worthless.
    #[schemars(range(min = 1, max = 604_800_000))]
    timeout_ms: Option<u64>,
    /// A profile of the configuration.
    profile: Option<String>,
    /// Only one answer is given.
    #[schemars(range(min = 1, max = 1))]
    n: Option<u8>,
    /// Only `auto` and `default`.
    service_tier: Option<ServiceTier>,
    /// Nothing is kept.
    store: Option<False>,
    reasoning_effort: Option<OnlyNone>,
    verbosity: Option<OnlyMedium>,
    /// Changes nothing.
    user: Option<Value>,
    /// Changes nothing.
    metadata: Option<Value>,
    /// Changes nothing.
    safety_identifier: Option<Value>,
    /// Changes nothing.
    prompt_cache_key: Option<Value>,
    /// Changes nothing.
    prompt_cache_retention: Option<Value>,
    /// Changes nothing.
    prompt_cache_options: Option<Value>,
}

/// `POST /v1/chat/completions`
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(extend("additionalProperties" = false))]
pub(super) struct ChatRequest {
    #[schemars(length(min = 1, max = 1024))]
    messages: Vec<Message>,
    /// Continues the conversation of this name, which promptd keeps.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[!-~&&[^+#/]]+$"))]
    session: Option<String>,
    #[schemars(length(max = 128))]
    tools: Option<Vec<Tool>>,
    tool_choice: Option<ToolChoice>,
    parallel_tool_calls: Option<bool>,
    logprobs: Option<bool>,
    #[schemars(range(min = 0, max = 20))]
    top_logprobs: Option<u8>,
    /// The older form of `tools`, which is not done.
    #[schemars(length(max = 0))]
    functions: Option<Vec<Value>>,
    function_call: Option<NoneOrAuto>,
    /// Only text.
    modalities: Option<Vec<OnlyText>>,
    #[serde(flatten)]
    common: Common,
}

/// `POST /v1/completions`
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(extend("additionalProperties" = false))]
pub(super) struct CompletionRequest {
    prompt: CompletionPrompt,
    /// The answer begins with the prompt.
    echo: Option<bool>,
    /// How many of the most probable tokens are told.
    logprobs: Option<CompletionLogprobs>,
    #[schemars(range(min = 0, max = 0))]
    top_logprobs: Option<u8>,
    #[schemars(range(min = 1, max = 1))]
    best_of: Option<u8>,
    #[schemars(length(max = 0))]
    suffix: Option<String>,
    #[serde(flatten)]
    common: Common,
}

/// `POST /v1/embeddings`
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct EmbeddingsRequest {
    input: EmbeddingInput,
    /// The served model's name, `default` or `promptd`.
    model: Option<String>,
    /// Whether a vector is an array of numbers, or the bytes of its numbers (single precision, the lowest byte first).
    encoding_format: Option<EncodingFormat>,
    /// Only as many as the model's vectors have.
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    dimensions: Option<u32>,
    priority: Option<Priority>,
    /// Milliseconds after which the answer is worthless.
    #[schemars(range(min = 1, max = 604_800_000))]
    timeout_ms: Option<u64>,
    /// Changes nothing.
    user: Option<Value>,
}

/// A text or several, or the tokens of one or of several. All together at most 300,000 tokens.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum EmbeddingInput {
    Text(#[schemars(length(min = 1))] String),
    Texts(#[schemars(length(min = 1, max = 2048), inner(length(min = 1)))] Vec<String>),
    Tokens(#[schemars(length(min = 1, max = 2048))] Vec<u32>),
    SeveralTokens(
        #[schemars(length(min = 1, max = 2048), inner(length(min = 1, max = 2048)))] Vec<Vec<u32>>,
    ),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    Float,
    Base64,
}

/// `POST /admin/loglevel`
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct LogLevel {
    /// `error`, `warn`, `info`, `debug`, `trace`, or tracing's directives.
    #[schemars(length(min = 1, max = 1024))]
    level: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct StreamOptions {
    /// Whether a last chunk holds the usage.
    include_usage: Option<bool>,
    include_obfuscation: Option<bool>,
}

/// The answer ends before the first of these.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Stop {
    One(#[schemars(length(min = 1, max = 256))] String),
    Several(#[schemars(length(max = 16), inner(length(min = 1, max = 256)))] Vec<String>),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(deny_unknown_fields)]
enum ResponseFormat {
    Text,
    JsonObject,
    JsonSchema { json_schema: NamedSchema },
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct NamedSchema {
    name: Option<String>,
    description: Option<String>,
    /// Every schema is kept strictly, whatever this says.
    strict: Option<bool>,
    schema: AnySchema,
}

/// A JSON Schema; docs/schemas.md says which keywords are enforced and which refused.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum AnySchema {
    Object(Map<String, Value>),
    Always(bool),
}

/// What is added to the logits of tokens; the names are token ids.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(extend("propertyNames" = {"pattern": "^(0|[1-9][0-9]{0,8})$"}, "maxProperties" = 1024))]
struct LogitBias(#[schemars(inner(range(min = -100, max = 100)))] BTreeMap<String, Option<f64>>);

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ContextOverflow {
    Stop,
    Slide,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Priority {
    Low,
    Normal,
    High,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum ServiceTier {
    Auto,
    Default,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnlyNone {
    None,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum NoneOrAuto {
    None,
    Auto,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnlyMedium {
    Medium,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum OnlyText {
    Text,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnlyFunction {
    Function,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(transparent, extend("const" = false))]
pub(super) struct False(bool);

/// A message of a conversation.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "role", rename_all = "lowercase")]
#[schemars(deny_unknown_fields)]
enum Message {
    System {
        content: Content,
        name: Option<String>,
    },
    Developer {
        content: Content,
        name: Option<String>,
    },
    User {
        content: Content,
        name: Option<String>,
    },
    /// An answer of the model's. Where it calls tools it need not say anything.
    Assistant {
        content: Option<Content>,
        name: Option<String>,
        refusal: Option<Value>,
        annotations: Option<Value>,
        tool_calls: Option<Vec<Call>>,
    },
    /// What a tool has answered.
    Tool {
        content: Content,
        tool_call_id: Option<String>,
        name: Option<String>,
    },
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(#[schemars(length(min = 1))] Vec<TextPart>),
}

#[derive(Debug, Deserialize, JsonSchema)]
struct TextPart {
    r#type: OnlyText,
    text: String,
}

/// A call of a tool.
#[derive(Debug, Deserialize, JsonSchema)]
struct Call {
    id: String,
    r#type: OnlyFunction,
    function: CalledFunction,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct CalledFunction {
    name: String,
    /// JSON, as a string.
    arguments: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Tool {
    r#type: OnlyFunction,
    function: Function,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Function {
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9_.-]+$"))]
    name: String,
    description: Option<String>,
    /// The JSON Schema of its arguments.
    parameters: Option<Map<String, Value>>,
    strict: Option<bool>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum ToolChoice {
    Word(ToolWord),
    Named(NamedTool),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum ToolWord {
    Auto,
    None,
    Required,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct NamedTool {
    r#type: OnlyFunction,
    function: FunctionName,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct FunctionName {
    name: String,
}

/// The text to continue.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum CompletionPrompt {
    Text(String),
    One(#[schemars(length(min = 1, max = 1))] Vec<String>),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum CompletionLogprobs {
    Number(#[schemars(range(min = 0, max = 5))] u8),
    No(False),
}
