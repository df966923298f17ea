//! All decisions about prompts, without I/O and without a clock: commands, engine events and the time come in, actions
//! come out. [`super::actor`] moves them.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::queue::Queue;
use super::rates::{Load, Rates, sensible};
use super::{Config, Counters, State, Status};
use crate::engine::client::EngineEvent;
use crate::engine::frames::{CheckedPrompt, FromEngine, LoadStage, ModelInfo, ToEngine};
use crate::request::{
    Code, Event, Finish, Identity, Priority, PromptId, Refusal, Request, Submission,
};

/// The engine's answer to a check is waited for this long. Checks take milliseconds and the slowest honest schema well
/// under a second, so a later answer means that the engine has more checks than it can do.
const CHECK_LIMIT: Duration = Duration::from_secs(30);

/// A prompt that ran in this many engines that died is not started again: it is probably what kills them.
const FATAL_DEATHS: u32 = 2;

/// After this many deaths in a row before the model was ready, the fault lies in the files and not in the moment.
const FATAL_LOADS: u32 = 3;

/// What is said of loading before one load was measured: a few gigabytes from an SD card take longer, a small model less.
const UNKNOWN_LOAD: Duration = Duration::from_secs(5);

/// What the actor does for the core.
#[derive(Debug, PartialEq)]
pub(super) enum Action {
    /// Give this to the engine that is there.
    Send(ToEngine),
    /// The check's submission is accepted: make its ticket.
    Accept { check: u64, id: PromptId, seed: u64, checked: CheckedPrompt },
    /// The check's submission is refused.
    Refuse { check: u64, refusal: Refusal },
    /// Give this event to the prompt's asker.
    Deliver { id: PromptId, event: Event },
}

/// The scheduler's mind.
pub(super) struct Core {
    config: Config,
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
    next_check: u64,
    next_id: u64,
    rates: Rates,
    counters: Counters,
    actions: Vec<Action>,
}

/// What is known of the engine.
#[derive(Debug)]
struct Engine {
    ready: bool,
    stage: LoadStage,
    pid: Option<u32>,
    /// The last model that was ready.
    model: Option<ModelInfo>,
    /// Why the model cannot be loaded; stands until it is.
    failed: Option<Refusal>,
    /// When it should be ready, as far as the last load tells.
    expected: Option<Instant>,
    started_before: bool,
    deaths_while_loading: u32,
}

/// A submission whose check is under way.
#[derive(Debug)]
struct Pending {
    submission: Submission,
    came: Instant,
    deadline: Option<Instant>,
}

/// An accepted prompt.
#[derive(Debug)]
struct Prompt {
    request: Request,
    identity: Identity,
    priority: Priority,
    seed: u64,
    deadline: Option<Instant>,
    phase: Phase,
    /// Tokens of the answer so far; what a next engine resumes from. Bounded by the answer's `max_tokens`.
    delivered: Vec<u32>,
    /// Engines that died while they ran it.
    deaths: u32,
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

// === commands ===

impl Core {
    /// A scheduler without an engine yet. `draw_seed` gives the seeds of prompts that bring none.
    pub(super) fn new(config: Config, draw_seed: Box<dyn FnMut() -> u64 + Send>) -> Self {
        let engine = Engine {
            ready: false,
            stage: LoadStage::Runtime,
            pid: None,
            model: None,
            failed: None,
            expected: None,
            started_before: false,
            deaths_while_loading: 0,
        };
        Core {
            config,
            draw_seed,
            engine,
            draining: false,
            checks: BTreeMap::new(),
            prompts: HashMap::new(),
            queue: Queue::default(),
            running: Vec::new(),
            next_check: 0,
            next_id: 0,
            rates: Rates::default(),
            counters: Counters::default(),
            actions: Vec::new(),
        }
    }

    /// A prompt is handed in. Returns the number that its `Accept` or `Refuse` will name.
    pub(super) fn submit(&mut self, submission: Submission, now: Instant) -> u64 {
        let check = self.next_check;
        self.next_check += 1;
        if let Err(refusal) = self.may_enter(now) {
            self.refuse(check, refusal);
            return check;
        }
        self.actions
            .push(Action::Send(ToEngine::Check { check, request: submission.request.clone() }));
        let deadline = submission.timeout.and_then(|timeout| now.checked_add(timeout));
        self.checks.insert(check, Pending { submission, came: now, deadline });
        check
    }

    /// Ends one prompt with `cancelled`. Unknown numbers are ignored.
    pub(super) fn cancel(&mut self, id: PromptId, now: Instant) {
        self.abandon(id, Refusal::new(Code::Cancelled, "the prompt was cancelled"));
        self.dispatch(now);
    }

    /// Ends every prompt with `cancelled`, and refuses those that are being checked.
    pub(super) fn cancel_all(&mut self, now: Instant) {
        for id in self.ids() {
            self.abandon(
                id,
                Refusal::new(Code::Cancelled, "the prompt was cancelled, with all others"),
            );
        }
        self.refuse_checks(&Refusal::new(
            Code::Cancelled,
            "the prompt was cancelled, with all others",
        ));
        self.dispatch(now);
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
                let refusal =
                    if over(pending.deadline) { timeout() } else { self.check_took_too_long() };
                self.refuse(check, refusal);
            }
        }
        let mut late: Vec<PromptId> =
            self.prompts.iter().filter(|(_, p)| over(p.deadline)).map(|(id, _)| *id).collect();
        late.sort_unstable();
        for id in late {
            self.abandon(id, timeout());
        }
        self.dispatch(now);
    }

    /// When [`Core::tick`] has something to do next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let checks = self.checks.values().filter_map(Pending::expires);
        checks.chain(self.prompts.values().filter_map(|prompt| prompt.deadline)).min()
    }

    /// What is to be done since the last time.
    pub(super) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Whether nothing waits, runs or is being checked.
    pub(super) fn is_idle(&self) -> bool {
        self.prompts.is_empty() && self.checks.is_empty()
    }

    /// The snapshot for the world.
    pub(super) fn status(&self) -> Status {
        let state = match &self.engine.failed {
            _ if self.draining => State::Draining,
            Some(refusal) => State::ModelFailed(refusal.clone()),
            None if self.engine.ready => State::Ready,
            None => State::Loading(self.engine.stage),
        };
        Status {
            state,
            model: self.engine.model.clone(),
            waiting: self.queue.len(),
            queue_limit: self.config.queue_limit,
            running: self.running.len(),
            engine_pid: self.engine.pid,
            counters: self.counters.clone(),
        }
    }
}

// === the engine ===

impl Core {
    /// Something happened to the engine.
    pub(super) fn engine(&mut self, event: EngineEvent, now: Instant) {
        match event {
            EngineEvent::Started { pid, .. } => self.engine_started(pid, now),
            EngineEvent::Frame(frame) => self.frame(frame, now),
            EngineEvent::Died { report, restart_in } => {
                tracing::warn!(running = self.running.len(), ?restart_in, "{report}");
                self.engine_died(&report.to_string(), restart_in, now);
            }
        }
        self.dispatch(now);
    }

    /// Nobody starts engines any more: no prompt can be answered.
    pub(super) fn engine_gone(&mut self, now: Instant) {
        let refusal = Refusal::new(
            Code::ModelFailed,
            "the engine is gone and nobody starts another; restart promptd",
        );
        self.engine_died("the engine was given up", None, now);
        self.model_failed(refusal);
    }

    fn engine_started(&mut self, pid: u32, now: Instant) {
        self.counters.engine_restarts += u64::from(self.engine.started_before);
        self.engine.started_before = true;
        self.engine.pid = Some(pid);
        self.engine.stage = LoadStage::Runtime;
        self.engine.expected =
            self.engine.model.as_ref().and_then(|model| now.checked_add(load_time(model)));
    }

    fn frame(&mut self, frame: FromEngine, now: Instant) {
        match frame {
            FromEngine::Loading(stage) => self.engine.stage = stage,
            FromEngine::Ready(model) => {
                self.engine.ready = true;
                self.engine.failed = None;
                self.engine.deaths_while_loading = 0;
                self.engine.model = Some(model);
            }
            FromEngine::LoadFailed(refusal) => {
                self.model_failed(Refusal { code: Code::ModelFailed, ..refusal });
            }
            FromEngine::Checked { check, result } => self.checked(check, result, now),
            FromEngine::Event { id, event } => self.event(id, event, now),
            FromEngine::Heartbeat => {}
        }
    }

    fn engine_died(&mut self, report: &str, restart_in: Option<Duration>, now: Instant) {
        let was_ready = std::mem::replace(&mut self.engine.ready, false);
        self.engine.pid = None;
        self.engine.stage = LoadStage::Runtime;
        let load = self.engine.model.as_ref().map_or(UNKNOWN_LOAD, load_time);
        self.engine.expected =
            restart_in.and_then(|wait| now.checked_add(wait.saturating_add(load)));
        for id in std::mem::take(&mut self.running).into_iter().rev() {
            self.survive(id, report, now);
        }
        let refusal = self.model_loading(now);
        self.refuse_checks(&refusal);
        if !was_ready {
            self.engine.deaths_while_loading = self.engine.deaths_while_loading.saturating_add(1);
            if self.engine.deaths_while_loading >= FATAL_LOADS && self.engine.failed.is_none() {
                self.model_failed(Refusal::new(Code::ModelFailed, report));
            }
        }
    }

    /// What becomes of a prompt whose engine died: back before the others, unless it has seen too many die.
    fn survive(&mut self, id: PromptId, report: &str, now: Instant) {
        let Some(prompt) = self.prompts.get_mut(&id) else { return };
        prompt.deaths += 1;
        if prompt.deaths >= FATAL_DEATHS {
            let message = format!(
                "the engine died {} times while it answered this prompt; the last time {report}",
                prompt.deaths
            );
            self.end(id, Event::Failed(Refusal::new(Code::ModelFailed, message)));
            return;
        }
        if let Phase::Running { since, answering } = prompt.phase {
            let answered = answering.unwrap_or(now);
            prompt.spent.prefill += answered.saturating_duration_since(since);
            prompt.spent.decode += now.saturating_duration_since(answered);
        }
        prompt.phase = Phase::Waiting { since: now };
        self.queue.push_front(id);
    }

    /// The model cannot be loaded: those who wait for it are told now, rather than left waiting for a mended file.
    fn model_failed(&mut self, refusal: Refusal) {
        for id in self.ids() {
            self.abandon(id, refusal.clone());
        }
        self.refuse_checks(&refusal);
        self.engine.failed = Some(refusal);
    }

    fn checked(&mut self, check: u64, result: Result<CheckedPrompt, Refusal>, now: Instant) {
        // Unknown where the deadline of the check has passed, or promptd drains.
        let Some(pending) = self.checks.remove(&check) else { return };
        let checked = match result
            .and_then(|checked| self.in_time(&pending, checked, now).map(|()| checked))
        {
            Ok(checked) => checked,
            Err(refusal) => return self.refuse(check, refusal),
        };
        let id = PromptId(self.next_id);
        self.next_id += 1;
        let Submission { request, identity, priority, .. } = pending.submission;
        let seed = request.sampling.seed.unwrap_or_else(|| (self.draw_seed)());
        self.queue.push(id, &identity, priority);
        self.prompts.insert(
            id,
            Prompt {
                request,
                identity,
                priority,
                seed,
                deadline: pending.deadline,
                phase: Phase::Waiting { since: now },
                delivered: Vec::new(),
                deaths: 0,
                waited: Duration::ZERO,
                spent: Spent::default(),
            },
        );
        self.counters.accepted += 1;
        self.actions.push(Action::Accept { check, id, seed, checked });
    }

    fn event(&mut self, id: PromptId, event: Event, now: Instant) {
        // Unknown where the prompt was cancelled while the event was on its way.
        let Some(prompt) = self.prompts.get_mut(&id) else { return };
        let Phase::Running { since, answering } = &mut prompt.phase else { return };
        match event {
            // A resumed prompt is read again, answer included; its asker has seen that once.
            Event::Prefill { .. } if !prompt.delivered.is_empty() => {}
            Event::Prefill { .. } => self.actions.push(Action::Deliver { id, event }),
            Event::Delta { text, tokens } => {
                answering.get_or_insert(now);
                prompt.delivered.extend(&tokens);
                self.actions.push(Action::Deliver { id, event: Event::Delta { text, tokens } });
            }
            Event::Finished(mut finish) => {
                finish.seed = prompt.seed;
                finish.timings.queue = prompt.waited;
                self.rates.learn(&finish);
                finish.timings.prefill += prompt.spent.prefill;
                finish.timings.decode += prompt.spent.decode;
                tracing::debug!(%id, identity = %prompt.identity.0, ran = ?now.saturating_duration_since(*since), "finished");
                self.end(id, Event::Finished(finish));
            }
            Event::Failed(_) => self.end(id, event),
        }
    }
}

// === rules ===

impl Core {
    /// Whether a submission is worth checking.
    fn may_enter(&self, now: Instant) -> Result<(), Refusal> {
        if self.draining {
            return Err(draining());
        }
        if let Some(refusal) = &self.engine.failed {
            return Err(refusal.clone().with_retry_after(self.until_expected(now)));
        }
        if !self.engine.ready {
            return Err(self.model_loading(now));
        }
        let had = self.queue.len() + self.checks.len();
        // A prompt that finds a free slot does not wait.
        if had >= self.config.queue_limit + self.slots().saturating_sub(self.running.len()) {
            let message = format!(
                "the queue is full: {had} prompts wait, and no more than {} may",
                self.config.queue_limit
            );
            let (limit, have) = (u64::try_from(self.config.queue_limit), u64::try_from(had));
            return Err(Refusal::new(Code::Busy, message)
                .with_limit(limit.unwrap_or(u64::MAX), have.unwrap_or(u64::MAX))
                .with_retry_after(self.rates.retry_after(self.slots())));
        }
        Ok(())
    }

    /// Whether the answer can come before its deadline.
    fn in_time(
        &self,
        pending: &Pending,
        checked: CheckedPrompt,
        now: Instant,
    ) -> Result<(), Refusal> {
        let Some(deadline) = pending.deadline else { return Ok(()) };
        let left = deadline.saturating_duration_since(now);
        if left.is_zero() {
            return Err(timeout());
        }
        let ahead = self.queue.ahead_of(&pending.submission.identity, pending.submission.priority);
        let load = Load { running: self.running.len(), ahead, slots: self.slots() };
        match self.rates.clearly_misses(load, checked.prompt_tokens, left) {
            None => Ok(()),
            Some(begins) => {
                let (begins_s, left_s) = (begins.as_secs_f64(), left.as_secs_f64());
                let message = format!(
                    "the answer would begin in about {begins_s:.1} s, and its deadline is in {left_s:.1} s; ask again \
                     later, or allow more time"
                );
                Err(Refusal::new(Code::WouldMissDeadline, message)
                    .with_retry_after(sensible(begins.saturating_sub(left))))
            }
        }
    }

    /// Fills the free slots.
    fn dispatch(&mut self, now: Instant) {
        while self.engine.ready && self.running.len() < self.slots() {
            let Some(id) = self.queue.pop() else { return };
            // The queue and the prompts are changed together.
            let Some(prompt) = self.prompts.get_mut(&id) else { continue };
            if let Phase::Waiting { since } = prompt.phase {
                prompt.waited += now.saturating_duration_since(since);
            }
            prompt.phase = Phase::Running { since: now, answering: None };
            self.running.push(id);
            let (request, resume) = (prompt.request.clone(), prompt.delivered.clone());
            self.actions.push(Action::Send(ToEngine::Start {
                id,
                request,
                seed: prompt.seed,
                resume,
            }));
        }
    }

    /// Ends a prompt without the engine's doing.
    fn abandon(&mut self, id: PromptId, refusal: Refusal) {
        if self.running.contains(&id) {
            self.actions.push(Action::Send(ToEngine::Cancel { id }));
        }
        self.end(id, Event::Failed(refusal));
    }

    /// Takes a prompt out of everything and gives its asker the final event. Unknown numbers are ignored.
    fn end(&mut self, id: PromptId, event: Event) {
        let Some(prompt) = self.prompts.remove(&id) else { return };
        self.queue.remove(id);
        self.running.retain(|other| *other != id);
        match &event {
            Event::Finished(finish) => self.count(finish),
            Event::Failed(refusal) => {
                tracing::debug!(%id, priority = ?prompt.priority, code = refusal.code.as_str(), "failed");
                let wrote = u64::try_from(prompt.delivered.len()).unwrap_or(u64::MAX);
                self.counters.completion_tokens =
                    self.counters.completion_tokens.saturating_add(wrote);
                *self.counters.refused.entry(refusal.code.as_str()).or_default() += 1;
            }
            Event::Prefill { .. } | Event::Delta { .. } => {}
        }
        self.actions.push(Action::Deliver { id, event });
    }

    fn count(&mut self, finish: &Finish) {
        let counters = &mut self.counters;
        counters.finished += 1;
        counters.prompt_tokens += u64::from(finish.usage.prompt);
        counters.cached_tokens += u64::from(finish.usage.cached);
        counters.completion_tokens += u64::from(finish.usage.completion);
        counters.prefill = counters.prefill.saturating_add(finish.timings.prefill);
        counters.decode = counters.decode.saturating_add(finish.timings.decode);
    }

    fn refuse(&mut self, check: u64, refusal: Refusal) {
        *self.counters.refused.entry(refusal.code.as_str()).or_default() += 1;
        self.actions.push(Action::Refuse { check, refusal });
    }

    fn refuse_checks(&mut self, refusal: &Refusal) {
        for check in std::mem::take(&mut self.checks).into_keys() {
            self.refuse(check, refusal.clone());
        }
    }

    fn model_loading(&self, now: Instant) -> Refusal {
        let again = if self.engine.model.is_some() { " again" } else { "" };
        let message = format!(
            "the model is being loaded{again} ({}); ask again in a moment",
            self.engine.stage.as_str()
        );
        Refusal::new(Code::ModelLoading, message).with_retry_after(self.until_expected(now))
    }

    fn check_took_too_long(&self) -> Refusal {
        let message = format!(
            "the engine did not come to check the prompt within {} s",
            CHECK_LIMIT.as_secs()
        );
        Refusal::new(Code::Busy, message).with_retry_after(self.rates.retry_after(self.slots()))
    }

    fn until_expected(&self, now: Instant) -> Duration {
        let left = self.engine.expected.map(|expected| expected.saturating_duration_since(now));
        sensible(left.unwrap_or(UNKNOWN_LOAD))
    }

    fn slots(&self) -> usize {
        self.engine.model.as_ref().map_or(1, |model| usize::from(model.slots.max(1)))
    }

    /// All accepted prompts, in the order of their acceptance.
    fn ids(&self) -> Vec<PromptId> {
        let mut ids: Vec<PromptId> = self.prompts.keys().copied().collect();
        ids.sort_unstable();
        ids
    }
}

impl Pending {
    fn expires(&self) -> Option<Instant> {
        let limit = self.came.checked_add(CHECK_LIMIT);
        self.deadline
            .map_or(limit, |deadline| Some(limit.map_or(deadline, |limit| limit.min(deadline))))
    }
}

fn load_time(model: &ModelInfo) -> Duration {
    Duration::from_millis(model.load_ms)
}

fn draining() -> Refusal {
    Refusal::new(
        Code::Busy,
        "promptd is stopping and takes no more prompts; ask again when it is back",
    )
}

fn timeout() -> Refusal {
    Refusal::new(Code::Timeout, "the deadline of the prompt passed before its answer was whole")
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "core_ledger_tests.rs"]
mod ledger_tests;
