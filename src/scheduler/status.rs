//! What the scheduler tells the world about itself: the engine's state, the queue, and counters that only grow.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::frames::{LoadStage, ModelInfo};
use crate::record::Health;
use crate::request::{Identity, Priority, PromptId, Refusal};

/// A snapshot of the scheduler. Made after everything that happens, each token included, so what is large in it is shared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// Whether prompts are taken, and if not, why.
    pub state: State,
    /// The loaded model; stays known while a dead engine is being replaced.
    pub model: Option<Arc<ModelInfo>>,
    /// Prompts that wait.
    pub waiting: usize,
    /// The most prompts that may wait.
    pub queue_limit: usize,
    /// The longest that a prompt may have to wait for its turn when it is taken.
    pub max_wait: Duration,
    /// Those who wait, in the order of their turns, as they were within the last second.
    pub places: Arc<[Place]>,
    /// How long somebody new would wait for a slot, at normal priority.
    pub next_begins: Duration,
    /// Prompts that run in the engine.
    pub running: usize,
    /// What is wrong with the configuration that was to be read again; the one before holds.
    pub configuration_error: Option<String>,
    /// Why the model is another than the configured one: that one did not come up.
    pub went_back: Option<String>,
    /// The model that is being loaded beside the one that answers.
    pub next_model: Option<String>,
    /// How things are with the record; `None`: nothing is recorded.
    pub record: Option<Health>,
    /// What the board says.
    pub board: BoardState,
    /// The engine's process id, while there is one.
    pub engine_pid: Option<u32>,
    /// Counters since the service began.
    pub counters: Arc<Counters>,
}

impl Status {
    /// The state in one word: `degraded` where prompts are taken and what is accepted does not outlast the service.
    pub fn state_name(&self) -> &'static str {
        let is_well = self.record.as_ref().is_none_or(|record| record.trouble.is_none());
        match self.state {
            State::Ready | State::Unloaded if !is_well => "degraded",
            _ => self.state.as_str(),
        }
    }

    /// Whether no prompt waits or runs.
    pub fn is_idle(&self) -> bool {
        self.waiting == 0 && self.running == 0
    }
}

/// What the board says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BoardState {
    /// What holds it back, a sentence each.
    pub throttled: Vec<String>,
    /// Why no new prompts are taken, where they are not.
    pub short_of_memory: Option<String>,
    /// The hottest zone in degrees Celsius, in steps of five.
    pub celsius: Option<i16>,
}

/// A prompt that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which prompt.
    pub id: PromptId,
    /// Who asked.
    pub identity: Identity,
    /// How urgent it is.
    pub priority: Priority,
    /// When it is expected to get its slot.
    pub begins_in: Duration,
}

/// Whether prompts are taken.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// The engine starts, for the first time or again after it died; prompts are refused with `model_loading`.
    Loading(LoadStage),
    /// Prompts are taken.
    Ready,
    /// No model is in memory; a prompt that comes is taken and loads it.
    Unloaded,
    /// The model cannot be loaded, for the reason given; it is tried again where another try could help.
    ModelFailed(Refusal),
    /// promptd is stopping: accepted prompts end, new ones are refused.
    Draining,
}

impl Default for State {
    fn default() -> Self {
        State::Loading(LoadStage::Runtime)
    }
}

impl State {
    /// The state as JSON and metrics write it.
    pub fn as_str(&self) -> &'static str {
        match self {
            State::Loading(_) => "loading",
            State::Ready => "ready",
            State::Unloaded => "unloaded",
            State::ModelFailed(_) => "model_failed",
            State::Draining => "draining",
        }
    }
}

/// Counters since the service began; none ever falls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Prompts accepted.
    pub accepted: u64,
    /// Prompts that ended well.
    pub finished: u64,
    /// Prompts refused or failed, by code.
    pub refused: BTreeMap<&'static str, u64>,
    /// Tokens of prompts read.
    pub prompt_tokens: u64,
    /// Tokens of prompts that were already in the KV cache.
    pub cached_tokens: u64,
    /// Tokens of answers.
    pub completion_tokens: u64,
    /// Time spent reading prompts.
    pub prefill: Duration,
    /// Time spent writing answers.
    pub decode: Duration,
    /// Engines that died and that others replace.
    pub engine_restarts: u64,
}
