//! The seam: what the service and the engine say to each other, and how a message is put into bytes. No I/O here.
//!
//! A frame is a little-endian `u32` length followed by that many bytes of postcard (<https://postcard.jamesmunns.com>).
//! Both ends are the same binary; the version number guards against an upgrade that replaced the file on disk while
//! the service was running and is about to start the new file as its engine.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::request::{CallStyle, Event, Pinned, PromptId, Refusal, Request, Reuse};

pub use crate::inference::{Execution, Placement, Provider};

/// Raised whenever a type in this file, or one it contains, changes.
pub const VERSION: u32 = 8;

/// The largest frame either side accepts. The largest honest one is a request: its payload is bounded by the doors
/// (1 MiB by default, 16 MiB at most), and everything else in it is small.
pub const MAX_FRAME_BYTES: usize = 20 << 20;

/// From the service to the engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToEngine {
    /// The first frame: what to load. Nothing else is sent before [`FromEngine::Ready`].
    Load(LoadRequest),
    /// Check this prompt completely (template, tokens, context, schema) without running it. Answered by
    /// [`FromEngine::Checked`] with the same number, in any order.
    Check {
        /// The service's number for this check.
        check: u64,
        /// What to check.
        request: Request,
    },
    /// Run this prompt in a free slot. The service never has more prompts started than [`ModelInfo::slots`].
    Start {
        /// The prompt's number, named by all its events.
        id: PromptId,
        /// The check that found this very request good, if one did: what it has prepared need not be prepared again.
        check: Option<u64>,
        /// What to run.
        request: Request,
        /// The seed fixed at acceptance.
        seed: u64,
        /// Tokens of the answer that were already delivered before the last engine died: they are taken as chosen,
        /// no event repeats them, and the answer goes on behind them.
        resume: Vec<u32>,
        /// Which rows of the KV cache it may start behind.
        reuse: Reuse,
    },
    /// Keep the beginnings of these profiles' prompts in the KV cache, and of no others. Done when there is time.
    Pin(Vec<Pinned>),
    /// Stop this prompt at the next token or chunk. No further event of it comes; the slot is free at once for the
    /// service's count. Unknown numbers are ignored: the answer may just have ended.
    Cancel {
        /// Which prompt.
        id: PromptId,
    },
}

/// What the engine loads and how it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadRequest {
    /// [`VERSION`] of the service.
    pub version: u32,
    /// The model folder.
    pub model: std::path::PathBuf,
    /// libonnxruntime as the operator or the search path named it.
    pub library: std::path::PathBuf,
    /// How the model's steps are executed.
    pub execution: Execution,
    /// Whose signature the model's manifest must have; empty: nobody's.
    pub trusted: Vec<String>,
    /// Where checksums are remembered and prepared copies lie.
    pub store: Option<std::path::PathBuf>,
    /// Prompts that run at once.
    pub slots: u16,
    /// Tokens of context each slot has room for; 0 takes the model's own limit.
    pub context: u32,
    /// Another engine answers prompts meanwhile. This one is loaded only where there is room for all of its model, pages of
    /// files included, and this many bytes stay free besides.
    pub beside: Option<u64>,
}

/// From the engine to the service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromEngine {
    /// Loading reached this stage. Sent before the stage begins, so that a death can be told by where it happened.
    Loading(LoadStage),
    /// The model answers from now on.
    Ready(ModelInfo),
    /// Loading failed for a reason that another try will not mend. The engine ends after it. Where memory was too short, the
    /// refusal has the bytes that there are for a limit, and no other refusal of a load has one.
    LoadFailed(Refusal),
    /// The answer to [`ToEngine::Check`].
    Checked {
        /// The service's number for this check.
        check: u64,
        /// Tokens the prompt has as the model sees it, or why it cannot be answered.
        result: Result<CheckedPrompt, Refusal>,
    },
    /// Something happened to a started prompt. `Finished` and `Failed` free its slot.
    Event {
        /// Which prompt.
        id: PromptId,
        /// What happened.
        event: Event,
    },
    /// One step of the model is done: the engine is alive and not wedged. Sent at most every 100 ms while prompts run.
    Heartbeat,
}

/// What a check found out about a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedPrompt {
    /// Tokens the prompt has as the model sees it, template included.
    pub prompt_tokens: u32,
    /// The most tokens its answer can have: `max_tokens`, or what the context leaves.
    pub max_tokens: u32,
    /// How calls of tools stand in the answer's text, where the request brings tools.
    pub calls: Option<CallStyle>,
}

/// The stages of loading, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoadStage {
    /// libonnxruntime is being opened.
    Runtime,
    /// The model folder is being checked.
    Folder,
    /// ONNX Runtime reads the graph and the weights.
    Weights,
    /// The first step of the model, on a token that nobody asked for.
    Warmup,
}

impl LoadStage {
    /// The stage in words, for status messages.
    pub fn as_str(self) -> &'static str {
        match self {
            LoadStage::Runtime => "opening libonnxruntime",
            LoadStage::Folder => "checking the model folder",
            LoadStage::Weights => "loading the weights",
            LoadStage::Warmup => "running the first step",
        }
    }
}

/// What the service knows of a loaded model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// The folder's name.
    pub name: String,
    /// The architecture its configuration states (`llama`, …).
    pub architecture: String,
    /// Tokens of context each slot has.
    pub context: u32,
    /// Prompts that run at once.
    pub slots: u16,
    /// Tokens the model knows.
    pub vocab_size: u32,
    /// Whether it has a chat template.
    pub chat: bool,
    /// Whether it writes text.
    pub text: bool,
    /// Numbers of the vectors that stand for texts, where it gives such.
    pub embedding: Option<u32>,
    /// Threads of one step.
    pub threads: u16,
    /// ONNX Runtime's own version.
    pub runtime_version: String,
    /// Where the graph runs.
    pub placement: Box<Placement>,
    /// How long loading took, in milliseconds.
    pub load_ms: u64,
}

/// Why bytes are no frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length in front is more than any honest frame has.
    #[error("a frame of {0} bytes is over the limit of {MAX_FRAME_BYTES}")]
    TooLarge(usize),
    /// The bytes are no message of this version.
    #[error("the frame cannot be decoded")]
    Decode(#[source] postcard::Error),
}

/// Puts a message into bytes, length in front.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let body = postcard::to_stdvec(message).map_err(FrameError::Decode)?;
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_FRAME_BYTES);
    let length = length.ok_or(FrameError::TooLarge(body.len()))?;
    let mut bytes = Vec::with_capacity(4 + body.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Reads the length in front of a frame.
pub fn body_length(prefix: [u8; 4]) -> Result<usize, FrameError> {
    let length = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
    if length > MAX_FRAME_BYTES { Err(FrameError::TooLarge(length)) } else { Ok(length) }
}

/// Reads a message from the bytes behind the length.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    postcard::from_bytes(body).map_err(FrameError::Decode)
}
