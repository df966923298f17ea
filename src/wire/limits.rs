//! How large the parts of a request may be, each with the reason. No limit of the model is here: the engine knows those.

use std::time::Duration;

/// How large the parts of a request may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one request as it arrives. 1 MiB is some 250,000 tokens, more than any context on a board, and small
    /// enough that a full queue of the largest requests still fits into a board's memory. At most 16 MiB may be set:
    /// the frames between service and engine are sized for that.
    pub payload_bytes: usize,
    /// Messages in one conversation. A template renders each of them; 1024 is far beyond what a context holds.
    pub messages: usize,
    /// Tools of one request, as OpenAI has it. The engine bounds what their schemas have together.
    pub tools: usize,
    /// Stop strings. Each is searched for after every token. OpenAI allows 4; device protocols want a few more.
    pub stop_strings: usize,
    /// Bytes of one stop string: as much text is held back while it might be the beginning of one.
    pub stop_bytes: usize,
    /// Strings an answer may be chosen from. The grammar holds all of them.
    pub choices: usize,
    /// Bytes of one such string.
    pub choice_bytes: usize,
    /// Bytes of a regular expression: compiling one costs the engine time and memory.
    pub regex_bytes: usize,
    /// Bytes of a grammar; the engine compiles none that is larger.
    pub grammar_bytes: usize,
    /// Tokens with a bias of their own. Each is looked up at every token of the answer; lists of banned words have
    /// hundreds.
    pub logit_biases: usize,
    /// Characters of an id: it becomes part of a topic, and of log lines.
    pub id_chars: usize,
    /// Bytes of a reply topic. MQTT allows 65,535; nobody means that.
    pub topic_bytes: usize,
    /// The longest deadline: nobody waits a week for a lamp.
    pub timeout: Duration,
}

impl Limits {
    /// The most that `payload_bytes` may be set to: [`crate::engine::frames::MAX_FRAME_BYTES`] leaves room for this.
    pub const MAX_PAYLOAD_BYTES: usize = 16 << 20;
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            payload_bytes: 1 << 20,
            messages: 1024,
            tools: 128,
            stop_strings: 16,
            stop_bytes: 256,
            choices: 256,
            choice_bytes: 256,
            regex_bytes: 4096,
            grammar_bytes: 64 << 10,
            logit_biases: 1024,
            id_chars: 128,
            topic_bytes: 1024,
            timeout: Duration::from_hours(7 * 24),
        }
    }
}
