//! The bodies of answers as types: what `/openapi.json` says of them. A test holds real answers against it, with no field
//! more and none less.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

/// A field that is always there, and may be null.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
enum OrNull<T> {
    Value(T),
    Null,
}

/// Why there is no answer.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct ErrorBody {
    error: ErrorObject,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct ErrorObject {
    message: String,
    r#type: ErrorType,
    /// The field that is wrong.
    param: OrNull<String>,
    /// A stable code; docs/protocol.md lists them.
    code: String,
    /// Milliseconds after which to ask again.
    retry_after_ms: Option<u64>,
    limit: Option<u64>,
    have: Option<u64>,
}

#[derive(Debug, Serialize, JsonSchema)]
enum ErrorType {
    #[serde(rename = "invalid_request_error")]
    InvalidRequest,
    #[serde(rename = "authentication_error")]
    Authentication,
    #[serde(rename = "permission_error")]
    Permission,
    #[serde(rename = "rate_limit_error")]
    RateLimit,
    #[serde(rename = "server_error")]
    Server,
}

/// `GET /health/live`
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Live {
    state: String,
}

/// `GET /version`
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct VersionBody {
    name: String,
    version: String,
    /// The version of promptd's own JSON.
    protocol: u64,
}

/// The state, the model, the queue and the counters. Fields are added without notice.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct StatusBody {
    state: StateName,
    queue: Queue,
    slots: Slots,
    /// Since the start; `refused` counts by code.
    counters: BTreeMap<String, Value>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum StateName {
    Loading,
    Ready,
    Unloaded,
    Degraded,
    ModelFailed,
    Draining,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Queue {
    waiting: u64,
    limit: u64,
    max_wait_ms: u64,
    /// The wait of somebody new, in whole seconds.
    eta_ms: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Slots {
    running: u64,
    total: OrNull<u64>,
}

/// `GET /v1/queue`
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct QueueBody {
    object: String,
    state: StateName,
    queue: Queue,
    slots: Slots,
    /// Who waits, in order.
    prompts: Vec<Waiting>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Waiting {
    position: u64,
    eta_ms: u64,
    priority: String,
    mine: bool,
    /// Only of one's own prompts.
    client: Option<String>,
    /// Only of one's own prompts.
    id: Option<String>,
}

/// `GET /v1/models`
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct ModelList {
    object: String,
    data: Vec<Model>,
}

/// `GET /v1/models/{id}`
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Model {
    id: String,
    object: String,
    created: u64,
    owned_by: String,
    context_length: u64,
}

/// A chat's whole answer.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct ChatCompletion {
    id: String,
    object: String,
    created: u64,
    model: String,
    choices: Vec<ChatChoice>,
    usage: Usage,
    promptd: Extension,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ChatChoice {
    index: u64,
    message: ChatMessage,
    logprobs: OrNull<ChatLogprobs>,
    finish_reason: FinishReason,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ChatMessage {
    role: String,
    content: OrNull<String>,
    refusal: OrNull<String>,
    tool_calls: Option<Vec<Call>>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Call {
    id: String,
    r#type: String,
    function: CalledFunction,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct CalledFunction {
    name: String,
    /// JSON, as a string, valid against the tool's schema.
    arguments: String,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ChatLogprobs {
    content: Vec<TokenLogprob>,
    refusal: OrNull<Vec<TokenLogprob>>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct TokenLogprob {
    token: String,
    logprob: f64,
    bytes: OrNull<Vec<u8>>,
    top_logprobs: Vec<TopLogprob>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct TopLogprob {
    token: String,
    logprob: f64,
    bytes: OrNull<Vec<u8>>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum FinishReason {
    Stop,
    Length,
    ToolCalls,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: CachedTokens,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct CachedTokens {
    cached_tokens: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct InputTokens {
    cached_tokens: u64,
    /// Always 0.
    cache_write_tokens: u64,
}

/// What promptd says beyond OpenAI's fields.
#[derive(Debug, Serialize, JsonSchema)]
struct Extension {
    /// What brings the same answer again.
    seed: u64,
    ms: Milliseconds,
    /// Tokens of the answer per second.
    tps: f64,
    cached: u64,
    /// Tokens of the answer that the model no longer saw at its end, where the context slid on over them.
    #[serde(skip_serializing_if = "Option::is_none")]
    forgotten: Option<u64>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Milliseconds {
    queue: u64,
    prefill: u64,
    decode: u64,
}

/// Vectors, in the order of their texts.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct EmbeddingList {
    object: String,
    data: Vec<VectorOf>,
    model: String,
    usage: EmbeddingUsage,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct VectorOf {
    object: String,
    index: u64,
    embedding: EmbeddingVector,
}

/// A vector of length 1.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
enum EmbeddingVector {
    Numbers(Vec<f32>),
    Base64(String),
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct EmbeddingUsage {
    prompt_tokens: u64,
    total_tokens: u64,
}

/// A completion's whole answer.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Completion {
    id: String,
    object: String,
    created: u64,
    model: String,
    choices: Vec<CompletionChoice>,
    usage: Usage,
    promptd: Extension,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct CompletionChoice {
    index: u64,
    text: String,
    logprobs: OrNull<CompletionLogprobs>,
    finish_reason: FinishReason,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f64>,
    top_logprobs: OrNull<Vec<BTreeMap<String, f64>>>,
    text_offset: Vec<u64>,
}

/// A response's whole answer.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Response {
    id: String,
    object: String,
    created_at: u64,
    status: ResponseStatus,
    model: String,
    output: Vec<Value>,
    error: OrNull<ErrorObject>,
    incomplete_details: OrNull<Value>,
    previous_response_id: OrNull<String>,
    store: bool,
    usage: OrNull<ResponseUsage>,
    promptd: Extension,
    instructions: OrNull<String>,
    max_output_tokens: OrNull<u64>,
    metadata: Value,
    parallel_tool_calls: bool,
    temperature: f64,
    top_p: f64,
    text: Value,
    tool_choice: Value,
    tools: Vec<Value>,
    truncation: String,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum ResponseStatus {
    Completed,
    Incomplete,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ResponseUsage {
    input_tokens: u64,
    input_tokens_details: InputTokens,
    output_tokens: u64,
    output_tokens_details: ReasoningTokens,
    total_tokens: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ReasoningTokens {
    reasoning_tokens: u64,
}

/// `DELETE /v1/requests/{id}`
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct CancelBody {
    id: String,
    object: String,
    cancelled: bool,
}

/// `DELETE /v1/sessions/{name}`
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct SessionBody {
    id: String,
    object: String,
    deleted: bool,
}

/// `POST /admin/…`
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Operated {
    object: String,
    operation: String,
    level: Option<String>,
    status: StatusBody,
}

/// What Ollama's API says of a mistake.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct OllamaError {
    error: String,
}

/// `GET /api/version`
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct OllamaVersion {
    version: String,
    promptd: String,
}

/// `GET /api/tags`, `GET /api/ps`
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct OllamaModels {
    models: Vec<OllamaModel>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct OllamaModel {
    name: String,
    model: String,
    details: Value,
}

/// `POST /api/show`
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct OllamaShown {
    modified_at: String,
    details: Value,
    model_info: Value,
    capabilities: Vec<String>,
}

/// The whole answer, or the last line of a stream.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct OllamaAnswer {
    model: String,
    created_at: String,
    done: bool,
    done_reason: String,
}
