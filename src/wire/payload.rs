//! The objects that promptd sends, as types: what is written is made of them, and so are the documents that tell about it.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

/// As JSON, with the fields in the order of the type.
pub(super) fn value(payload: &impl Serialize) -> Value {
    // Plain data with text keys always is JSON.
    serde_json::to_value(payload).unwrap_or_default()
}

/// A whole answer.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Answer<'a> {
    /// The version of this protocol.
    #[schemars(extend("const" = 1))]
    pub(super) v: u64,
    /// The request's own `id`, or promptd's number where a stream was asked for without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<&'a str>,
    #[schemars(extend("const" = "ok"))]
    pub(super) status: &'static str,
    /// The answer.
    pub(super) text: &'a str,
    /// The same as a value, where the answer was held to JSON and is whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) json: Option<Value>,
    /// What the model thought of each token, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<TokenLogprob>>")]
    pub(super) logprobs: Option<Value>,
    /// Why it ended: by itself, or at `max_tokens` or the end of the context.
    #[schemars(extend("enum" = ["stop", "length"]))]
    pub(super) finish: &'static str,
    /// The model's name.
    pub(super) model: &'a str,
    /// The conversation that it continues.
    #[serde(flatten)]
    pub(super) session: Option<Conversation<'a>>,
    /// The seed that gives the same answer again.
    pub(super) seed: u64,
    /// Which start of the service gave it, where it is not the one that accepted the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = 2))]
    pub(super) attempt: Option<u32>,
    pub(super) usage: Usage,
    pub(super) ms: Milliseconds,
    /// Tokens of the answer in a second.
    pub(super) tps: f64,
    /// The board's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) node: Option<&'a str>,
    /// Whether the answer was cut off (`finish` is `length`).
    pub(super) truncated: bool,
}

/// A conversation.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Conversation<'a> {
    /// Its name.
    pub(super) session: &'a str,
    /// How many earlier turns the model read.
    pub(super) session_turns: usize,
    /// How many were dropped because they did not fit.
    pub(super) session_dropped: usize,
}

/// Tokens.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Usage {
    /// Of the prompt, template included.
    pub(super) prompt: u32,
    /// How many of them were in the KV cache already.
    pub(super) cached: u32,
    /// Of the answer.
    pub(super) completion: u32,
    /// How many of those the model no longer saw at the end, where the context slid on over them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = 1))]
    pub(super) forgotten: Option<u32>,
}

/// Where the time went.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Milliseconds {
    /// Waiting for a turn.
    pub(super) queue: u64,
    /// Reading the prompt.
    pub(super) prefill: u64,
    /// Writing the answer.
    pub(super) decode: u64,
}

/// A token of the answer.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct TokenLogprob {
    #[serde(flatten)]
    chosen: Candidate,
    /// The most probable others.
    top_logprobs: Vec<Candidate>,
}

/// A token, and how probable it was.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Candidate {
    /// Its text.
    token: String,
    /// The natural logarithm of its probability.
    logprob: f64,
    /// Its bytes, where it has any.
    bytes: Option<Vec<u8>>,
}

/// Why there is no answer.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Error<'a> {
    /// The version of this protocol.
    #[schemars(extend("const" = 1))]
    pub(super) v: u64,
    /// The request's own `id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<&'a str>,
    #[schemars(extend("const" = "error"))]
    pub(super) status: &'static str,
    /// What programs go by.
    #[schemars(extend("enum" = crate::request::Code::ALL.map(crate::request::Code::as_str)))]
    pub(super) code: &'static str,
    /// What people read.
    pub(super) message: &'a str,
    /// The field that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) param: Option<&'a str>,
    #[serde(flatten)]
    pub(super) numbers: Numbers,
}

/// The numbers of a refusal.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Numbers {
    /// When to ask again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) retry_after_ms: Option<u64>,
    /// What is possible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) limit: Option<u64>,
    /// What it was instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) have: Option<u64>,
}

/// One of several messages of an answer, for a client that named `max_bytes`.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Numbered<'a> {
    /// The version of this protocol, where there is room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) v: Option<u64>,
    /// The request's own `id`, where there is room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<&'a str>,
    /// Which, from 1.
    pub(crate) part: usize,
    /// Of how many.
    pub(crate) parts: usize,
    /// The text, split between characters.
    pub(crate) text: &'a str,
}

/// A piece of an answer while it is written.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct StreamPiece<'a> {
    /// The request's id, where several streams share one way (the line socket).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<&'a str>,
    /// Which, from 0; one that is missing was lost.
    pub(super) seq: u64,
    /// The next text.
    pub(super) d: &'a str,
    /// What the model thought of its tokens, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<TokenLogprob>>")]
    pub(super) logprobs: Option<Value>,
}

/// The end of a stream.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct StreamEnd<'a> {
    /// The request's id, where several streams share one way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<&'a str>,
    /// Which, from 0.
    pub(super) seq: u64,
    #[schemars(extend("const" = true))]
    pub(super) end: bool,
    /// How many messages the stream had, with this one.
    pub(super) n: u64,
    /// The code, where the answer failed on the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<&'static str>,
}

/// Where a prompt is.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Progress<'a> {
    /// The request's id, where several share one way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<&'a str>,
    #[serde(flatten)]
    pub(super) stage: Stage,
}

/// How far it is.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(super) enum Stage {
    /// It waits for its turn.
    Queued {
        /// Its place; 1 is the next.
        #[serde(skip_serializing_if = "Option::is_none")]
        position: Option<u32>,
        /// When its turn is expected.
        #[serde(skip_serializing_if = "Option::is_none")]
        eta_ms: Option<u64>,
    },
    /// The model reads it.
    Prefill {
        /// Tokens read.
        done: u32,
        /// Tokens to read.
        total: u32,
    },
    /// The model writes.
    Decoding,
}

/// Stops prompts: exactly one of the two.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Cancel {
    /// The one with this id, or with promptd's number.
    id: Option<String>,
    /// All that came over MQTT.
    all: Option<bool>,
}

/// What an operator asks; an empty payload will do.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct OperationRequest {
    /// The asker's own name for it.
    id: Option<String>,
    /// What is logged from now on; only of `loglevel`.
    level: Option<String>,
}

/// What came of it.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Operated<'a> {
    /// The version of this protocol.
    #[schemars(extend("const" = 1))]
    pub(crate) v: u64,
    /// The request's own `id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<&'a str>,
    #[schemars(extend("const" = "ok"))]
    pub(crate) status: &'static str,
    /// What was asked.
    pub(crate) operation: &'static str,
    /// The state that came of it.
    pub(crate) state: &'static str,
    /// The whole status.
    #[schemars(with = "StatusPayload")]
    pub(crate) promptd: Value,
}

/// promptd itself, for whoever comes.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Info<'a> {
    /// promptd's version.
    pub(crate) version: &'a str,
    /// The version of this protocol.
    #[schemars(extend("const" = 1))]
    pub(crate) protocol: u64,
    /// The board's name.
    pub(crate) node: &'a str,
    /// Which MQTT promptd speaks with the broker.
    #[schemars(extend("enum" = ["5", "3.1.1"]))]
    pub(crate) mqtt: &'static str,
    /// The model's name, once it is known.
    pub(crate) model: Option<&'a str>,
    /// Which of the kept models is in use and which came last, where the configuration says `model.path = "current"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) model_update: Option<ModelVersions>,
    /// The profiles that `ask/<profile>` may name.
    pub(crate) profiles: Vec<&'a str>,
    pub(crate) limits: InfoLimits,
    pub(crate) endpoints: InfoEndpoints,
}

/// The topics of this board that clients publish to, and those that they subscribe to.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct InfoEndpoints {
    /// For prompts; with a profile's name as one more level, for that.
    pub(crate) ask: String,
    /// For prompts that any board may take, where boards share them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ask_any: Option<String>,
    /// For stopping prompts.
    pub(crate) cancel: String,
    /// For operators, with the operation as one more level, where that is allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) request: Option<String>,
    /// Where answers come without a Response Topic; with the request's id as one more level.
    pub(crate) answer: String,
    /// Where the pieces of answers come, with the request's id as one more level.
    pub(crate) stream: String,
    /// Where it is told what a prompt waits for, with the request's id as one more level.
    pub(crate) progress: String,
}

/// Which of the models that the board keeps is in use, and which of the same name came last. Home Assistant's names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ModelVersions {
    /// What the model is called.
    pub title: String,
    /// `name@revision` of the one in use.
    pub installed_version: String,
    /// `name@revision` of the one that came last.
    pub latest_version: String,
}

/// How much at most.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct InfoLimits {
    /// Bytes of a request.
    pub(crate) payload_bytes: usize,
    /// Messages of a conversation.
    pub(crate) messages: usize,
    /// Stop texts.
    pub(crate) stop: usize,
    /// Tokens of prompt and answer together.
    pub(crate) context: Option<u32>,
    /// Prompts that run at once.
    pub(crate) slots: Option<usize>,
    /// Prompts that wait.
    pub(crate) queue: usize,
}

/// How promptd is, every minute.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Health {
    pub(crate) process: HealthProcess,
    pub(crate) mqtt: HealthMqtt,
    pub(crate) model: HealthModel,
    pub(crate) board: HealthBoard,
    pub(crate) os: HealthOs,
}

/// The system.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct HealthOs {
    /// What it calls itself.
    pub(crate) name: Option<String>,
    /// The release of its kernel.
    pub(crate) kernel: Option<String>,
    /// What promptd was built for: `aarch64`, `x86_64`.
    pub(crate) architecture: &'static str,
    /// How many programs wanted to run, on the average of the last minute.
    pub(crate) load: Option<f64>,
    /// Memory that programs can still have.
    pub(crate) available_bytes: Option<u64>,
}

/// The two processes.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct HealthProcess {
    /// Since the service began.
    pub(crate) uptime_s: u64,
    /// Memory of the service.
    pub(crate) service_bytes: Option<u64>,
    /// Memory of the engine, the model's file pages included.
    pub(crate) engine_bytes: Option<u64>,
}

/// The connection to the broker.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct HealthMqtt {
    /// How many there were since the service began.
    pub(crate) connections: u64,
    /// How often the broker had forgotten promptd's session.
    pub(crate) sessions_lost: u64,
    /// Messages that the broker has not acknowledged.
    pub(crate) waiting: usize,
}

/// The model.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct HealthModel {
    /// As in the status.
    pub(crate) state: &'static str,
    /// Of all answers together, since the last health.
    pub(crate) tokens_per_second: f64,
}

/// The board.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct HealthBoard {
    /// Of the hottest zone, in degrees Celsius, where the kernel tells any.
    pub(crate) temperature: Option<f64>,
    /// What holds the board back at present, a sentence each.
    pub(crate) throttled: Vec<String>,
}

/// How it stands; fields are added without notice.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct StatusPayload {
    #[schemars(extend("enum" = ["loading", "ready", "unloaded", "degraded", "model_failed", "draining"]))]
    state: String,
    /// What is being done, while it is loading.
    stage: Option<String>,
    /// Why there is no model.
    code: Option<String>,
    /// The same in words.
    message: Option<String>,
    /// The model, once it is known.
    model: Option<StatusModel>,
    queue: StatusQueue,
    slots: StatusSlots,
    /// The engine's process, while there is one.
    engine_pid: Option<u32>,
    /// Why the newest configuration does not hold.
    configuration_error: Option<String>,
    /// Why the model is the one before: the current one did not come up.
    went_back: Option<String>,
    /// The model that is being loaded beside the one that answers, and takes over when it answers too.
    next_model: Option<String>,
    /// What outlasts the service, and how well.
    record: Option<Map<String, Value>>,
    /// How much this board can take of the prompts that it shares with others; over MQTT only (docs/fleet.md).
    fleet: Option<StatusFleet>,
    /// Since the service began.
    counters: Map<String, Value>,
}

/// The model.
#[derive(Debug, Serialize, JsonSchema)]
struct StatusModel {
    name: String,
    architecture: String,
    /// Tokens of prompt and answer together.
    context: u32,
    vocab_size: u32,
    /// Whether it has a chat template.
    chat: bool,
    /// Whether it writes text.
    text: bool,
    /// Numbers of the vectors that stand for texts; null where it gives none.
    embedding: Option<u32>,
    /// Where it runs.
    provider: String,
}

/// Who waits.
#[derive(Debug, Serialize, JsonSchema)]
struct StatusQueue {
    waiting: usize,
    limit: usize,
    max_wait_ms: u64,
    /// How long somebody new would wait.
    eta_ms: u64,
}

/// A board among others.
#[derive(Debug, Serialize, JsonSchema)]
struct StatusFleet {
    /// The name of the shared subscription.
    group: String,
    /// Slots that are free.
    idle: usize,
    /// Prompts that it takes before it is at its high-water mark.
    room: usize,
    /// Prompts that it takes before it refuses.
    places: usize,
    /// Prompts that wait here and may be handed on.
    waiting: usize,
    /// Other boards of the fleet that answer prompts.
    peers: usize,
    /// Prompts that were handed on since the service began.
    handed: u64,
    /// Whether it says so when what others handed to it is safe here.
    confirms: bool,
}

/// What runs.
#[derive(Debug, Serialize, JsonSchema)]
struct StatusSlots {
    running: usize,
    total: Option<usize>,
}
