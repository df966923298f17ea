//! All decisions about prompts, without I/O and without a clock: commands, engine events and the time come in, actions
//! come out. [`super::actor`] moves them. Commands stand here, what the engine does in `engine`, the rules in `rules`.

mod board;
mod cache;
mod claim;
#[cfg(test)]
mod claim_tests;
mod engine;
#[cfg(test)]
mod ledger_tests;
mod load;
#[cfg(test)]
mod load_tests;
mod places;
#[cfg(test)]
mod places_tests;
mod rules;
mod sessions;
#[cfg(test)]
mod sessions_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::hash::RandomState;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::claim::Claim;
use self::rules::{draining, timeout};
use self::sessions::Talk;
use super::queue::Queue;
use super::quotas::Quotas;
use super::rates::{Rates, Size};
use super::ticket::InSession;
use super::{BoardState, Config, Counters, Place, State, Status};
use crate::defect::Defect;
use crate::engine::frames::{CheckedPrompt, LoadRequest, LoadStage, ModelInfo, ToEngine};
use crate::record::Health;
use crate::request::{
    Code, Event, Identity, Priority, PromptId, Quota, Refusal, Request, Submission,
};
use crate::session::Sessions;
use crate::traffic::Gauges;

/// The engine's answer to a check is waited for this long. Checks take milliseconds and the slowest honest schema well
/// under a second, so a later answer means that the engine has more checks than it can do.
const CHECK_LIMIT: Duration = Duration::from_secs(30);

/// A prompt that ran in this many engines that died is not started again: it is probably what kills them.
const FATAL_DEATHS: u32 = 2;

/// Services end for many reasons that have nothing to do with a prompt, power above all, and every prompt that ran saw
/// it. From this many on, one that saw them all runs alone, so that no other is near when it happens again.
const SUSPICIOUS_ENDS: u32 = 2;

/// A prompt during which this many services ended is not started again: it takes more down than an engine. By then it
/// has run alone, and ended the service, so often that chance is unlikely; a board that fails it as often at a load
/// that any prompt makes is told by every prompt, not by one.
const FATAL_ENDS: u32 = 5;

/// After this many deaths in a row before the model was ready, the fault lies in the files and not in the moment.
const FATAL_LOADS: u32 = 3;

/// What is said of loading before one load was measured: a few gigabytes from an SD card take longer, a small model less.
const UNKNOWN_LOAD: Duration = Duration::from_secs(5);

/// What the actor does for the core.
#[derive(Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "there are a handful at a time, and most are the large ones"
)]
pub(super) enum Action {
    /// Give this to the engine that is there.
    Send(ToEngine),
    /// The check's submission is accepted: make its ticket.
    Accept {
        check: u64,
        id: PromptId,
        seed: u64,
        checked: CheckedPrompt,
        session: Option<InSession>,
    },
    /// The check's submission is refused.
    Refuse { check: u64, refusal: Refusal },
    /// Ask this of the engine's supervisor.
    Engine(Order),
    /// Give this event to the prompt's asker.
    Deliver { id: PromptId, event: Event },
}

/// What the supervisor is asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Start an engine, without a pause.
    Load,
    /// End the engine and start none.
    Unload,
    /// End the engine and start another, with another model where one is given.
    Replace(Option<Box<LoadRequest>>),
    /// Put the engine that was loaded beside it in its place.
    TakeOver,
}

/// The scheduler's mind.
pub(super) struct Core {
    config: Config,
    configuration_error: Option<String>,
    record: Option<Health>,
    board: BoardState,
    draw_seed: Box<dyn FnMut() -> u64 + Send>,
    engine: Engine,
    draining: bool,
    /// Submissions whose check is under way, by the check's number. Bounded together with the queue.
    checks: BTreeMap<u64, Pending>,
    /// Accepted prompts without a final event. Bounded by the queue's limit and the slots.
    prompts: HashMap<PromptId, Prompt>,
    queue: Queue,
    /// Started prompts, the earliest first.
    running: Vec<PromptId>,
    /// The slot that is kept for a prompt whose check is under way.
    claim: Option<Claim>,
    next_check: u64,
    next_id: u64,
    rates: Rates,
    quotas: Quotas,
    sessions: Sessions,
    /// Gives askers and profiles their names in the model's cache, which nobody outside can guess.
    keys: RandomState,
    counters: Arc<Counters>,
    /// The order of those who wait, as it was last told.
    places: places::Places,
    actions: Vec<Action>,
}

/// What is known of the engine.
#[derive(Debug)]
struct Engine {
    ready: bool,
    stage: LoadStage,
    pid: Option<u32>,
    /// The last model that was ready.
    model: Option<Arc<ModelInfo>>,
    /// Why the model cannot be loaded; stands until it is.
    failed: Option<Refusal>,
    /// When it should be ready, as far as the last load tells.
    expected: Option<Instant>,
    deaths_while_loading: u32,
    /// Whether a model shall be loaded.
    wanted: bool,
    /// Prompts that come while the model is loaded wait for it: it was unloaded because nobody needed it, or is being
    /// replaced while it worked.
    on_demand: bool,
    /// To be replaced as soon as no prompt runs.
    change: Option<Order>,
    /// Since when there has been nothing to do.
    idle: Option<Instant>,
    /// Why the fallback was loaded instead of the model.
    went_back: Option<String>,
    /// The model that is being loaded beside it.
    next: Option<String>,
    /// The model folder of the last one that died, which is that of all prompts it had begun.
    died_of: Option<PathBuf>,
}

/// A submission whose check is under way.
#[derive(Debug)]
struct Pending {
    submission: Submission,
    /// The conversation that it continues.
    talk: Option<Talk>,
    /// Bytes of it, for the queue's limit.
    weight: usize,
    /// When the engine was asked. `None`: the model is being loaded for it.
    asked: Option<Instant>,
    deadline: Option<Instant>,
}

/// An accepted prompt.
#[derive(Debug)]
struct Prompt {
    request: Request,
    /// The check that found it good.
    check: u64,
    /// The conversation that it continues, and the answer so far.
    talk: Option<Talk>,
    quota: Quota,
    weight: usize,
    size: Size,
    /// The place in the queue that its asker knows of.
    told: Option<u32>,
    identity: Identity,
    /// The profile that it names.
    profile: Option<String>,
    priority: Priority,
    seed: u64,
    deadline: Option<Instant>,
    phase: Phase,
    /// Tokens of the answer so far; what a next engine resumes from. Bounded by the answer's `max_tokens`.
    delivered: Vec<u32>,
    /// Engines that died while they ran it.
    deaths: u32,
    /// Services that ended while they ran it.
    ends: u32,
    /// Time in the queue before the present wait.
    waited: Duration,
    /// Time that engines which died had spent on it.
    spent: Spent,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Waiting { since: Instant },
    Running { since: Instant, answering: Option<Instant> },
}

#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    prefill: Duration,
    decode: Duration,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Core {
    /// A scheduler without an engine yet. `draw_seed` gives the seeds of prompts that bring none.
    pub(super) fn new(
        config: Config,
        (sessions, quotas): (Sessions, Quotas),
        draw_seed: Box<dyn FnMut() -> u64 + Send>,
    ) -> Self {
        let engine = Engine {
            ready: false,
            stage: LoadStage::Runtime,
            pid: None,
            model: None,
            failed: None,
            expected: None,
            deaths_while_loading: 0,
            wanted: true,
            on_demand: false,
            change: None,
            idle: None,
            went_back: None,
            next: None,
            died_of: None,
        };
        Core {
            config,
            configuration_error: None,
            record: None,
            board: BoardState::default(),
            draw_seed,
            engine,
            draining: false,
            checks: BTreeMap::new(),
            prompts: HashMap::new(),
            queue: Queue::default(),
            running: Vec::new(),
            claim: None,
            next_check: 0,
            next_id: 0,
            rates: Rates::default(),
            quotas,
            sessions,
            keys: RandomState::new(),
            counters: Arc::default(),
            places: places::Places::default(),
            actions: Vec::new(),
        }
    }

    /// A prompt is handed in. Returns the number that its `Accept` or `Refuse` will name.
    pub(super) fn submit(&mut self, mut submission: Submission, now: Instant) -> u64 {
        let check = self.next_check;
        self.next_check += 1;
        let talk = match self.talk(&mut submission, now) {
            Ok(talk) => talk,
            Err(refusal) => {
                self.refuse(check, refusal);
                return check;
            }
        };
        let weight = places::weight(&submission.request);
        let entry = match submission.again {
            None => self.may_enter(&submission, weight, now),
            Some(again) => self.may_go_on(again),
        };
        if let Err(refusal) = entry {
            self.refuse(check, refusal);
            return check;
        }
        let deadline = submission.timeout.and_then(|timeout| now.checked_add(timeout));
        self.checks.insert(check, Pending { submission, talk, weight, asked: None, deadline });
        if self.is_serving() {
            self.ask_check(check, now);
        } else {
            self.load_on_demand(now);
        }
        check
    }

    /// How things are with the record.
    pub(super) fn record(&mut self, health: Health) {
        self.record = Some(health);
    }

    /// Ends one prompt with `cancelled`. Unknown numbers are ignored.
    pub(super) fn cancel(&mut self, id: PromptId, now: Instant) {
        self.abandon(id, Refusal::new(Code::Cancelled, "the prompt was cancelled"), now);
        self.dispatch(now);
        self.tell_places(now);
        self.rest(now);
    }

    /// Ends every prompt with `cancelled`, and refuses those that are being checked.
    pub(super) fn cancel_all(&mut self, now: Instant) {
        for id in self.ids() {
            self.abandon(
                id,
                Refusal::new(Code::Cancelled, "the prompt was cancelled, with all others"),
                now,
            );
        }
        self.refuse_checks(&Refusal::new(
            Code::Cancelled,
            "the prompt was cancelled, with all others",
        ));
        self.dispatch(now);
        self.tell_places(now);
        self.rest(now);
    }

    /// Takes no more prompts from now on.
    pub(super) fn drain(&mut self) {
        self.draining = true;
        self.refuse_checks(&draining());
    }

    /// Ends what is over its deadline.
    pub(super) fn tick(&mut self, now: Instant) {
        let over = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        let late: Vec<u64> =
            self.checks.iter().filter(|(_, p)| over(p.expires())).map(|(n, _)| *n).collect();
        for check in late {
            if let Some(pending) = self.checks.remove(&check) {
                let claim = self.claim_of(check);
                self.withdraw(claim.as_ref());
                let refusal =
                    if over(pending.deadline) { timeout() } else { self.check_took_too_long() };
                self.refuse(check, refusal);
            }
        }
        let mut late: Vec<PromptId> =
            self.prompts.iter().filter(|(_, p)| over(p.deadline)).map(|(id, _)| *id).collect();
        late.sort_unstable();
        for id in late.into_iter().filter(|_| !Defect::IgnoreDeadline.is_here()) {
            self.abandon(id, timeout(), now);
        }
        self.dispatch(now);
        self.tell_places(now);
        self.rest(now);
    }

    /// When [`Core::tick`] has something to do next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let checks = self.checks.values().filter_map(Pending::expires);
        let prompts = self.prompts.values().filter_map(|prompt| prompt.deadline);
        checks.chain(prompts).chain(self.next_places()).chain(self.next_rest()).min()
    }

    /// What is to be done since the last time.
    pub(super) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Whether nothing waits, runs or is being checked.
    pub(super) fn is_idle(&self) -> bool {
        self.prompts.is_empty() && self.checks.is_empty()
    }

    /// What is at present, for the metrics.
    pub(super) fn gauges(&self) -> Gauges {
        let tokens = |id: &PromptId| {
            let prompt = self.prompts.get(id)?;
            let written = u64::try_from(prompt.delivered.len()).unwrap_or(u64::MAX);
            Some(u64::from(prompt.size.prompt).saturating_add(written))
        };
        let (read_per_second, written_per_second) = self.rates.per_second();
        Gauges {
            cache_tokens: self.running.iter().filter_map(tokens).sum(),
            read_per_second,
            written_per_second,
        }
    }

    /// The snapshot for the world.
    pub(super) fn status(&self) -> Status {
        let state = match &self.engine.failed {
            _ if self.draining => State::Draining,
            _ if !self.engine.wanted => State::Unloaded,
            Some(refusal) => State::ModelFailed(refusal.clone()),
            None if self.engine.ready => State::Ready,
            None => State::Loading(self.engine.stage),
        };
        Status {
            state,
            model: self.engine.model.clone(),
            waiting: self.queue.len(),
            queue_limit: self.config.queue_limit,
            max_wait: self.config.max_wait,
            places: Arc::clone(&self.places.told),
            next_begins: self.places.next_begins,
            running: self.running.len(),
            configuration_error: self.configuration_error.clone(),
            went_back: self.engine.went_back.clone(),
            next_model: self.engine.next.clone(),
            record: self.record.clone(),
            board: self.board.clone(),
            engine_pid: self.engine.pid,
            counters: Arc::clone(&self.counters),
        }
    }
}

impl Pending {
    fn expires(&self) -> Option<Instant> {
        let limit = self.asked.and_then(|asked| asked.checked_add(CHECK_LIMIT));
        [limit, self.deadline].into_iter().flatten().min()
    }
}
