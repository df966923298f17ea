//! The words everybody uses: what a prompt is, what may be asked of it, what comes back. Plain data, no I/O, no clock.
//!
//! The types here are serializable only so that they can cross the seam between the service and the engine
//! ([`crate::engine::frames`]); what MQTT and HTTP clients write is described in [`crate::wire`].

mod embed;
mod event;
mod logprob;
mod origin;
mod refusal;
mod size;
mod tools;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use embed::{Embed, EmbedText};
pub use event::{Event, Finish, FinishReason, Timings, Usage};
pub use logprob::{Candidate, TokenLogprob};
pub use origin::{Door, Origin};
pub use refusal::{Code, Refusal};
pub use tools::{CallStyle, Tool, ToolCall, ToolChoice, Tools};

/// The number promptd gives to a prompt when it takes it. Never reused while the service runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PromptId(pub u64);

impl std::fmt::Display for PromptId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p{}", self.0)
    }
}

/// A prompt with everything that decides its answer. Checked at the rim: a value that exists is within its range.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// What is asked.
    pub input: Input,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// The most tokens the answer may have. `None`: as many as the context has room for.
    pub max_tokens: Option<u32>,
    /// The answer ends before the first of these strings, which is not part of it.
    pub stop: Vec<String>,
    /// The answer ends with the first of these tokens, as with the model's own end; it is no part of the text.
    pub stop_token_ids: Vec<u32>,
    /// What becomes of an answer for which the context has no room.
    pub context_overflow: ContextOverflow,
    /// What form the answer must have.
    pub constraint: Constraint,
    /// The log probability of each token of the answer is wanted, and those of this many alternatives. `None`: nothing
    /// of that.
    pub logprobs: Option<u8>,
    /// Functions that the answer may call instead of saying something.
    pub tools: Option<Tools>,
}

/// What becomes of an answer that comes to the end of the context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContextOverflow {
    /// It ends there.
    #[default]
    Stop,
    /// The model goes on without the older half of the answer, which it no longer sees; [`Usage::forgotten`] counts.
    Slide,
}

/// The text of a prompt, in the forms clients send it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Input {
    /// A conversation, put into the model's form by its chat template.
    Chat(Vec<Message>),
    /// Continue this text: no template, only the beginning-of-sequence token where the tokenizer adds one.
    Completion(String),
    /// A bare question. A chat model gets it as one user message, behind `system` where there is one; a model
    /// without a chat template continues it.
    Ask {
        /// The system message in front.
        system: Option<String>,
        /// The question.
        text: String,
    },
    /// Nothing is asked: vectors are wanted that stand for texts.
    Embed(Embed),
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
    /// The tools that the model called, where it did.
    pub calls: Vec<ToolCall>,
    /// The call whose result this is.
    pub call_id: Option<String>,
}

impl Message {
    /// A message that says something.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Message { role, content: content.into(), calls: Vec::new(), call_id: None }
    }
}

/// Who speaks in a conversation; the four roles of OpenAI's chat API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Instructions and context.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
    /// The result of a tool.
    Tool,
}

impl Role {
    /// The role as chat templates and JSON write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// How the next token is chosen from the logits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 takes the most probable token every time (greedy); otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep only this many of the most probable tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of tokens whose probabilities sum to at least this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as probable as the most probable one; 0 keeps all.
    pub min_p: f32,
    /// Makes tokens that stand in the prompt or the answer less probable (above 1) or more (below): a logit above 0 is
    /// divided by it, another multiplied; 1 changes nothing. Above 0.
    pub repetition_penalty: f32,
    /// Taken off the logit of each token that the answer holds already; 0 changes nothing.
    pub presence_penalty: f32,
    /// Taken off the logit of a token once for each time that the answer holds it; 0 changes nothing.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens, behind the penalties. No token stands in it twice.
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed gives the same tokens. `None`: the scheduler draws one when it accepts the prompt and reports it.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    /// Greedy: a device that asks the same thing twice expects the same answer.
    fn default() -> Self {
        Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

/// What form the answer must have. Enforced token by token, so that no other answer can be produced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Constraint {
    /// Any text.
    None,
    /// Any JSON object.
    JsonObject,
    /// JSON valid against this JSON Schema, given as its source text (the order of keys in it is kept).
    JsonSchema(String),
    /// Text that this regular expression matches whole.
    Regex(String),
    /// One of these strings, exactly.
    Choices(Vec<String>),
    /// Text of the language that this grammar describes, in llguidance's variant of Lark.
    Lark(String),
}

/// A name for somebody or something in the engine, which is told no other: what one key's prompts left in the KV cache is
/// never used for another's, so that neither the count of cached tokens nor the time tells what others asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CacheKey(pub u64);

/// Which rows of the KV cache a prompt may start behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reuse {
    /// Those that prompts of this key left.
    pub own: CacheKey,
    /// Those that are pinned for the profile that the prompt names.
    pub profile: Option<CacheKey>,
}

/// The system message of a profile, whose beginning is kept in the KV cache for all its prompts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// The profile.
    pub key: CacheKey,
    /// Its system message.
    pub system: String,
    /// Whether each prompt has more lines behind it (values of topics).
    pub goes_on: bool,
}

/// Who asks, as far as the door knows: prompts of one identity share a place in the queue's fairness.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity(pub String);

/// How urgent a prompt is against others that wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Priority {
    /// Only when nothing else waits.
    Low,
    /// The usual.
    #[default]
    Normal,
    /// Before the others.
    High,
}

/// How much somebody may ask. `None` is no limit of its own; the queue has its own for everybody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Prompts in any minute.
    pub per_minute: Option<u32>,
    /// Prompts at a time, waiting or running.
    pub concurrent: Option<u32>,
    /// Tokens in 24 hours, of prompts and answers together.
    pub tokens_per_day: Option<u64>,
}

/// A prompt on its way into the queue: the request and what the queue must know of it.
#[derive(Clone, Debug)]
pub struct Submission {
    /// What is asked.
    pub request: Request,
    /// Who asks.
    pub identity: Identity,
    /// How urgent it is.
    pub priority: Priority,
    /// The answer is worthless after this long. `None`: whenever it comes.
    pub timeout: Option<Duration>,
    /// How much the one who asks may ask.
    pub quota: Quota,
    /// The conversation that the prompt continues, by the asker's name for it.
    pub session: Option<String>,
    /// The profile that the prompt names.
    pub profile: Option<String>,
    /// The number under which it outlasts the service. `None`: it does not.
    pub recorded: Option<u64>,
    /// It was accepted before, by a service that is gone. `None`: it is new.
    pub again: Option<Again>,
    /// Where it came from, for counters and the log.
    pub origin: Origin,
}

/// What is known of a prompt that an earlier service had accepted. It is not refused for want of room: that was decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Again {
    /// Engines that died while they ran it.
    pub deaths: u32,
    /// Services that ended, and not as they should, while they ran it.
    pub ends: u32,
}
