//! Accepts prompts, lets them wait, gives them to the engine and sees that each ends in exactly one final event.
//! Knows no topic, no HTTP and no tensor.

mod actor;
mod core;
mod named;
mod queue;
#[cfg(test)]
mod queue_properties;
mod quotas;
mod rates;
#[doc(hidden)]
pub mod scripted;
mod status;
mod ticket;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::board::Reading;
use crate::engine::client::EnginePort;
use crate::record::{KeptSessions, Record};
use crate::request::{Code, Identity, PromptId, Refusal, Submission};
use crate::session::{self, InMemory, Sessions};
use crate::traffic::Traffic;

pub use named::Name;
pub use status::{BoardState, Counters, Place, State, Status};
pub use ticket::{InSession, Ticket};

// What the status holds; the rooms above need not know the engine for it.
pub use crate::engine::frames::{CheckedPrompt, LoadRequest, LoadStage, ModelInfo};
pub use crate::engine::trial::Successor;

/// The most prompts that wait, where nothing else is set. The queue is bounded by time; this bounds its memory where
/// answers are very quick.
pub const DEFAULT_QUEUE_LIMIT: usize = 256;

/// The longest wait for a turn, where nothing else is set: who would wait longer is better told to come back.
pub const DEFAULT_MAX_WAIT: Duration = Duration::from_secs(120);

/// Commands on their way to the task. It never waits for anybody, so a few are enough; whoever finds no room waits for
/// microseconds.
const COMMANDS: usize = 32;

/// What the operator decides about the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The most prompts that may wait. With 0 a prompt is taken only if it can start at once. One identity alone gets half
    /// of the places, two get a third each, and so on: whoever comes next still finds one.
    pub queue_limit: usize,
    /// A prompt that would wait longer than this for its turn is refused.
    pub max_wait: Duration,
    /// The model is unloaded when nothing was asked for this long. `None`: never.
    pub keep_loaded: Option<Duration>,
    /// Conversations that are kept.
    pub sessions: session::Limits,
    /// System messages whose tokens stay in the model's cache.
    pub pinned: Vec<PinnedProfile>,
    /// When memory is too short for new prompts.
    pub memory: MemoryLimits,
    /// What is loaded instead where the model does not come up.
    pub fallback: Option<Box<LoadRequest>>,
}

/// A profile whose system message is kept in the model's cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedProfile {
    /// Its name.
    pub profile: String,
    /// Its system message.
    pub system: String,
    /// Whether each prompt has more lines behind the message.
    pub goes_on: bool,
}

/// When memory is too short for new prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimits {
    /// The share of time, in percent, that all programs may have waited for memory. `None`: that is not looked at.
    pub pressure_percent: Option<u8>,
    /// The least bytes that programs can still have. 0: that is not looked at.
    pub floor: u64,
}

impl Default for MemoryLimits {
    /// A board on which all programs stand still for two fifths of the time, or that has 32 MiB left, is about to kill one.
    fn default() -> Self {
        MemoryLimits { pressure_percent: Some(40), floor: 32 << 20 }
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            queue_limit: DEFAULT_QUEUE_LIMIT,
            max_wait: DEFAULT_MAX_WAIT,
            keep_loaded: None,
            sessions: session::Limits::default(),
            pinned: Vec::new(),
            memory: MemoryLimits::default(),
            fallback: None,
        }
    }
}

/// A handle on the scheduler; clones are cheap and mean the same scheduler.
#[derive(Clone, Debug)]
pub struct Scheduler {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
    named: Arc<named::Named>,
    traffic: Traffic,
}

/// What the handle asks of the scheduler's task.
#[derive(Debug)]
pub(crate) enum Command {
    Submit { submission: Box<Submission>, reply: oneshot::Sender<Result<Ticket, Refusal>> },
    Cancel { id: PromptId },
    CancelAll,
    Drain,
    EndSession { client: Identity, name: String, reply: oneshot::Sender<bool> },
    Load { reply: oneshot::Sender<()> },
    Unload { reply: oneshot::Sender<Result<(), Refusal>> },
    ConfigurationIsWrong { message: String },
    Sense(Box<Reading>),
    Configure { config: Config, load: Option<Box<LoadRequest>>, retry: bool },
    LoadsBeside { next: Option<String>, failed: Option<String> },
    TakeOver { config: Config, successor: Box<Successor> },
    Pulse { reply: oneshot::Sender<Option<Duration>> },
}

/// What a sign of life says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulse {
    /// The scheduler works, and the engine computes, has nothing to do, or is being replaced within its time.
    Alive,
    /// The engine, or whoever looks after it, is late by so much.
    EngineOverdue(Duration),
    /// There is no scheduler any more.
    Gone,
}

impl Scheduler {
    /// Starts the scheduler's task on the current runtime. The task ends, and the engine behind the port with it, when
    /// all handles are dropped and the accepted prompts have ended. Aborting it fails their tickets with `internal`.
    pub fn start(config: Config, port: EnginePort) -> (Scheduler, JoinHandle<()>) {
        Self::with_record(config, port, None)
    }

    /// The same, with conversations and named prompts that last in this record. What an earlier start has left of them is
    /// taken up.
    pub fn with_record(
        config: Config,
        port: EnginePort,
        record: Option<&Record>,
    ) -> (Scheduler, JoinHandle<()>) {
        let store: Box<dyn session::Store> = match record {
            Some(record) => Box::new(KeptSessions::new(record.clone())),
            None => Box::new(InMemory),
        };
        let sessions = Sessions::new(store, std::time::Instant::now());
        let quotas = quotas::Quotas::kept(record.cloned());
        let core = core::Core::new(config, (sessions, quotas), Box::new(draw_seed));
        let health = record.map(Record::health);
        let (commands, incoming) = mpsc::channel(COMMANDS);
        let (status, watched) = watch::channel(core.status());
        let traffic = Traffic::default();
        let ends = actor::Ends { commands: incoming, port, status };
        let task = tokio::spawn(actor::Actor::new(core, ends, health, traffic.clone()).run());
        let named = Arc::new(named::Named::new(record.cloned()));
        let scheduler = Scheduler { commands, status: watched, named, traffic };
        named::restore(&scheduler);
        (scheduler, task)
    }

    /// Hands a prompt in. It is checked completely (template, tokens, context, schema) before it is accepted; what is
    /// accepted ends in exactly one [`crate::request::Event::Finished`] or `Failed`.
    ///
    /// # Errors
    /// `model_loading`, `model_failed`, `busy` (with the time after which to ask again), `context_length_exceeded` (with both
    /// numbers), `bad_request`, `would_miss_deadline`, or `busy` while draining.
    pub async fn submit(&self, submission: Submission) -> Result<Ticket, Refusal> {
        let (reply, answer) = oneshot::channel();
        let submission = Box::new(submission);
        self.commands.send(Command::Submit { submission, reply }).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }

    /// Cancels one prompt; its ticket gets `Failed` with `cancelled`. Unknown numbers are ignored.
    pub async fn cancel(&self, id: PromptId) {
        // A scheduler that is gone has nothing left to cancel.
        let _ = self.commands.send(Command::Cancel { id }).await;
    }

    /// Cancels every prompt, waiting or running.
    pub async fn cancel_all(&self) {
        let _ = self.commands.send(Command::CancelAll).await;
    }

    /// Refuses new prompts from now on and lets the accepted ones end. `Status::is_idle` tells when they have.
    pub async fn drain(&self) {
        let _ = self.commands.send(Command::Drain).await;
    }

    /// Forgets a client's conversation. Says whether there was one.
    pub async fn end_session(&self, client: Identity, name: String) -> bool {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::EndSession { client, name, reply }).await;
        answer.await.unwrap_or(false)
    }

    /// Loads the model, if it is not in memory; tries again at once if it could not be loaded. Returns when it is loaded.
    ///
    /// # Errors
    /// `model_failed` with the reason, or `busy` while draining.
    pub async fn load(&self) -> Result<(), Refusal> {
        let (reply, begun) = oneshot::channel();
        let _ = self.commands.send(Command::Load { reply }).await;
        begun.await.map_err(|_| stopping())?;
        let mut status = self.status.clone();
        let decided = |status: &Status| !matches!(status.state, State::Loading(_));
        let status = status.wait_for(decided).await.map_err(|_| stopping())?;
        match &status.state {
            State::ModelFailed(refusal) => Err(refusal.clone()),
            State::Draining => Err(stopping()),
            State::Ready | State::Unloaded | State::Loading(_) => Ok(()),
        }
    }

    /// Takes the model out of memory. Returns when the engine and its memory are gone. The next prompt loads it again.
    ///
    /// # Errors
    /// `busy` while prompts are in work.
    pub async fn unload(&self) -> Result<(), Refusal> {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Unload { reply }).await;
        answer.await.map_err(|_| stopping())??;
        let mut status = self.status.clone();
        let gone = |status: &Status| status.engine_pid.is_none() || status.state != State::Unloaded;
        status.wait_for(gone).await.map(|_| ()).map_err(|_| stopping())
    }

    /// Changes what the operator decides. With `load` another model replaces the one in memory, as soon as no prompt runs;
    /// those that wait wait on. With `retry` a model that could not be loaded is tried again at once.
    pub async fn configure(&self, config: Config, load: Option<LoadRequest>, retry: bool) {
        let load = load.map(Box::new);
        let _ = self.commands.send(Command::Configure { config, load, retry }).await;
    }

    /// Lets the status say which model is being loaded beside the one that answers, or why that came to nothing.
    pub async fn loads_beside(&self, next: Option<String>, failed: Option<String>) {
        let _ = self.commands.send(Command::LoadsBeside { next, failed }).await;
    }

    /// Puts an engine in the place of the one that is there, as soon as that one has ended what it runs. What waits goes on with
    /// the new one, what comes meanwhile waits for it, and the old one ends.
    pub async fn take_over(&self, config: Config, successor: Successor) {
        let successor = Box::new(successor);
        let _ = self.commands.send(Command::TakeOver { config, successor }).await;
    }

    /// Goes through the scheduler's task and back: an answer shows that it works.
    pub async fn pulse(&self) -> Pulse {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Pulse { reply }).await;
        match answer.await {
            Ok(None) => Pulse::Alive,
            Ok(Some(late)) => Pulse::EngineOverdue(late),
            Err(_) => Pulse::Gone,
        }
    }

    /// Tells what the board says.
    pub async fn sense(&self, reading: Reading) {
        let _ = self.commands.send(Command::Sense(Box::new(reading))).await;
    }

    /// Lets the status say that the configuration could not be read again, until it can.
    pub async fn configuration_is_wrong(&self, message: String) {
        let _ = self.commands.send(Command::ConfigurationIsWrong { message }).await;
    }

    /// What is counted and logged of requests. Those that are handed in are; a door adds what it refuses by itself.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// The state of the engine, the queue and the counters; changes as they change.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }
}

fn stopping() -> Refusal {
    Refusal::new(Code::Internal, "promptd is stopping; ask again when it is back")
}

/// A seed for a prompt that brings none. It goes out in the answer so that the answer can be had again, therefore it
/// has no more bits than every JSON reader keeps exactly (2^53).
fn draw_seed() -> u64 {
    // Without the system's randomness (which Linux always has) the standard library's own must do: no secret is drawn here.
    let random = getrandom::u64().unwrap_or_else(|_| {
        use std::hash::{BuildHasher, RandomState};
        RandomState::new().hash_one(0_u8)
    });
    random >> 11
}
