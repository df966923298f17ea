//! What happens to a prompt after it was accepted, in the order in which its asker sees it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Refusal, TokenLogprob};

/// One step in the life of an accepted prompt. `Finished` and `Failed` are last; exactly one of them comes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// It waits for its turn. Comes again when its place changes.
    Queued {
        /// Its place among those who wait; 1 is the next.
        position: u32,
        /// When it is expected to get its turn, from now.
        eta: Duration,
    },
    /// An engine was given it. Comes again when another has to begin with it.
    Started {
        /// Engines that died while they ran it, before this one.
        deaths: u32,
    },
    /// The model reads the prompt: `done` of `total` tokens are in its KV cache.
    Prefill {
        /// Tokens read so far.
        done: u32,
        /// Tokens to read.
        total: u32,
    },
    /// The next piece of the answer: whole characters only, and never part of a stop string.
    /// `text` may be empty while a character or a possible stop string is incomplete.
    Delta {
        /// The text that is now certain.
        text: String,
        /// The tokens that were generated for it, in order.
        tokens: Vec<u32>,
        /// What the model thought of each of `tokens`, where [`super::Request::logprobs`] asks for it; else empty.
        logprobs: Vec<TokenLogprob>,
    },
    /// The vector of one text of an [`super::Embed`]. Comes again where another engine had to begin again.
    Vector {
        /// Which text, from 0.
        index: u32,
        /// The vector, of length 1.
        values: Vec<f32>,
    },
    /// The answer is whole.
    Finished(Finish),
    /// There will be no answer (or no more of it).
    Failed(Refusal),
}

impl Event {
    /// Whether nothing comes after it.
    pub fn is_final(&self) -> bool {
        matches!(self, Event::Finished(_) | Event::Failed(_))
    }
}

/// How an answer ended and what it cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finish {
    /// Why it ended.
    pub reason: FinishReason,
    /// Tokens read and written.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
    /// The seed the answer was sampled with.
    pub seed: u64,
}

/// Why an answer ended, in OpenAI's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishReason {
    /// The model said that it is done, or a stop string came.
    Stop,
    /// `max_tokens` or the end of the context was reached.
    Length,
}

impl FinishReason {
    /// The reason as JSON writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }
    }
}

/// Tokens of one prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt as the model sees it, template included.
    pub prompt: u32,
    /// How many of them were already in the KV cache.
    pub cached: u32,
    /// Tokens of the answer, a final end-of-sequence token included.
    pub completion: u32,
    /// How many tokens of the answer the model no longer saw at its end, because the context slid on over them.
    pub forgotten: u32,
}

/// Where the time of one prompt went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// From acceptance until the engine began.
    pub queue: Duration,
    /// Reading the prompt, until the first token of the answer is known.
    pub prefill: Duration,
    /// From the first token of the answer to the last.
    pub decode: Duration,
}

impl Timings {
    /// Tokens of the answer per second of decode time; 0 where there were too few to say.
    pub fn tokens_per_second(&self, usage: &Usage) -> f64 {
        let seconds = self.decode.as_secs_f64();
        // The first token comes out of prefill, so n tokens take n - 1 decode steps.
        if usage.completion < 2 || seconds <= 0.0 {
            0.0
        } else {
            f64::from(usage.completion - 1) / seconds
        }
    }
}
