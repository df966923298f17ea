//! When the model is in memory: loaded on demand, unloaded when nobody needs it, replaced when another is configured.

use std::time::Instant;

use super::rules::draining;
use super::{Action, Config, Core, Order, Phase};
use crate::engine::frames::{LoadRequest, LoadStage, ToEngine};
use crate::request::{Code, PromptId, Refusal, Submission};
use crate::scheduler::queue::Entry;
use crate::scheduler::rates::{clearly_over, sensible};

impl Core {
    /// Whether the engine takes work.
    pub(super) fn is_serving(&self) -> bool {
        self.engine.ready && self.engine.change.is_none()
    }

    /// Loads the model where none is loaded, and tries again where it could not be.
    pub(in crate::scheduler) fn load(&mut self, now: Instant) {
        let retry = self.engine.failed.take().is_some();
        if self.draining || (self.engine.wanted && !retry) {
            return;
        }
        self.engine.deaths_while_loading = 0;
        self.begin_load(now);
    }

    /// Takes the model out of memory.
    pub(in crate::scheduler) fn unload(&mut self, now: Instant) -> Result<(), Refusal> {
        if self.draining {
            return Err(draining());
        }
        let work = self.prompts.len() + self.checks.len();
        if work > 0 {
            let message = format!(
                "{work} prompts are in work; the model can be unloaded when they are answered or cancelled"
            );
            return Err(Refusal::new(Code::Busy, message)
                .with_retry_after(self.rates.retry_after(self.slots())));
        }
        self.end_load(now);
        Ok(())
    }

    /// Takes over what the operator has changed, and another model where there is one.
    pub(in crate::scheduler) fn configure(
        &mut self,
        config: Config,
        load: Option<Box<LoadRequest>>,
        retry: bool,
        now: Instant,
    ) {
        self.set(config);
        if load.is_some() && retry {
            self.engine.went_back = None;
        }
        let retry = retry && self.engine.failed.is_some();
        if load.is_some() || retry {
            self.replace(load, now);
        }
        self.tick(now);
    }

    fn set(&mut self, config: Config) {
        let pins = self.config.pinned != config.pinned;
        self.config = config;
        if pins && self.engine.ready {
            self.pin();
        }
        self.configuration_error = None;
        self.places.changed = true;
    }

    /// A model is being loaded beside this one; or no longer, and why it came to nothing.
    pub(in crate::scheduler) fn loads_beside(
        &mut self,
        next: Option<String>,
        failed: Option<String>,
    ) {
        self.engine.next = next;
        self.engine.went_back = failed;
    }

    /// An engine beside this one has a model that answers: it takes over as soon as nothing runs.
    pub(in crate::scheduler) fn take_over(&mut self, config: Config, now: Instant) {
        self.set(config);
        self.engine.next = None;
        self.engine.went_back = None;
        self.change(Order::TakeOver, now);
        self.tick(now);
    }

    /// Has the engine replaced as soon as nothing runs.
    fn replace(&mut self, load: Option<Box<LoadRequest>>, now: Instant) {
        self.engine.next = None;
        self.change(Order::Replace(load), now);
    }

    fn change(&mut self, order: Order, now: Instant) {
        self.engine.failed = None;
        self.engine.deaths_while_loading = 0;
        self.engine.change = Some(order);
        self.engine.wanted = true;
        // Who is being answered is answered by the model that began; who comes meanwhile waits for the next.
        self.engine.on_demand = true;
        self.engine.idle = None;
        self.change_when_idle(now);
    }

    /// Loads the fallback, where there is one that was not tried yet; those who wait go on waiting. Says whether there was.
    pub(super) fn fall_back(&mut self, why: &Refusal, now: Instant) -> bool {
        let Some(fallback) = self.config.fallback.take() else { return false };
        tracing::error!(fallback = %fallback.model.display(), "the model did not come up, another is loaded instead: {}", why.message);
        self.engine.went_back = Some(why.message.clone());
        self.replace(Some(fallback), now);
        true
    }

    /// The configuration was read again and is wrong.
    pub(in crate::scheduler) fn configuration_is_wrong(&mut self, message: String) {
        self.configuration_error = Some(message);
    }

    /// Whether the model that comes is another than the one that died over prompts.
    pub(super) fn another_model_comes(&self) -> bool {
        match &self.engine.change {
            Some(Order::TakeOver) => true,
            Some(Order::Replace(Some(load))) => self.engine.died_of.as_ref() != Some(&load.model),
            _ => false,
        }
    }

    /// Whether this prompt's answer was begun, and belongs to the model that began it: another model has other tokens.
    pub(super) fn is_begun(&self, id: PromptId) -> bool {
        self.prompts.get(&id).is_some_and(|prompt| !prompt.delivered.is_empty())
    }

    /// Replaces the engine if that is to be done and nothing runs. What an engine had begun when it died, the next engine of the
    /// same model ends first.
    pub(super) fn change_when_idle(&mut self, now: Instant) {
        if self.engine.change.is_none() || !self.running.is_empty() {
            return;
        }
        if self.another_model_comes() && self.prompts.keys().any(|id| self.is_begun(*id)) {
            return;
        }
        let Some(order) = self.engine.change.take() else { return };
        self.engine.ready = false;
        self.engine.stage = LoadStage::Runtime;
        self.engine.expected = now.checked_add(self.known_load());
        // What the old engine was asked, the next one is asked again.
        self.claim = None;
        self.checks.values_mut().for_each(|pending| pending.asked = None);
        self.actions.push(Action::Engine(order));
    }

    /// The engine was ended because that was wanted.
    pub(super) fn engine_ended(&mut self, now: Instant) {
        self.engine.ready = false;
        self.engine.pid = None;
        self.engine.stage = LoadStage::Runtime;
        tracing::debug!(again = self.engine.wanted, "the engine was ended");
        // Nothing runs when an engine is ended, unless it was given work in the same moment. That is nobody's fault.
        for id in std::mem::take(&mut self.running).into_iter().rev() {
            if let Some(prompt) = self.prompts.get_mut(&id) {
                prompt.phase = Phase::Waiting { since: now };
                self.queue.push_front(Entry { id, size: prompt.size });
            }
        }
        self.claim = None;
        self.checks.values_mut().for_each(|pending| pending.asked = None);
        if self.engine.wanted {
            self.engine.on_demand = true;
            self.engine.expected = now.checked_add(self.known_load());
        }
    }

    /// Whether a prompt may wait for the model that is not there.
    pub(super) fn worth_loading(
        &self,
        submission: &Submission,
        now: Instant,
    ) -> Result<(), Refusal> {
        let waits = !self.engine.wanted || self.engine.on_demand || self.engine.ready;
        if !waits {
            return Err(self.model_loading(now));
        }
        // Where no load was measured yet, everybody gets a chance.
        let (Some(timeout), Some(_)) = (submission.timeout, &self.engine.model) else {
            return Ok(());
        };
        let load = if self.engine.wanted { self.until_expected(now) } else { self.known_load() };
        if !clearly_over(load, timeout) {
            return Ok(());
        }
        let message = format!(
            "the model has to be loaded first, which takes about {} ms; the deadline is in {} ms",
            load.as_millis(),
            timeout.as_millis()
        );
        Err(Refusal::new(Code::WouldMissDeadline, message).with_retry_after(sensible(load)))
    }

    /// Somebody needs the model.
    pub(super) fn load_on_demand(&mut self, now: Instant) {
        if !self.engine.wanted {
            self.begin_load(now);
        }
    }

    fn begin_load(&mut self, now: Instant) {
        self.engine.wanted = true;
        self.engine.on_demand = true;
        self.engine.stage = LoadStage::Runtime;
        self.engine.expected = now.checked_add(self.known_load());
        self.actions.push(Action::Engine(Order::Load));
    }

    fn end_load(&mut self, now: Instant) {
        self.engine.wanted = false;
        self.engine.ready = false;
        self.engine.failed = None;
        self.engine.change = None;
        self.engine.idle = None;
        self.engine.deaths_while_loading = 0;
        tracing::info!("the model is unloaded; the next prompt loads it again");
        self.actions.push(Action::Engine(Order::Unload));
        self.tell_places(now);
    }

    /// Asks the engine to check a submission.
    pub(super) fn ask_check(&mut self, check: u64, now: Instant) {
        let Some(pending) = self.checks.get_mut(&check) else { return };
        pending.asked = Some(now);
        let request = pending.submission.request.clone();
        self.actions.push(Action::Send(ToEngine::Check { check, request }));
        self.claim(check);
    }

    /// Asks for the checks that waited for the model.
    pub(super) fn ask_checks(&mut self, now: Instant) {
        let waiting: Vec<u64> =
            self.checks.iter().filter(|(_, p)| p.asked.is_none()).map(|(n, _)| *n).collect();
        for check in waiting {
            self.ask_check(check, now);
        }
    }

    /// Refuses the submissions that the engine was asked about, which is dead.
    pub(super) fn refuse_asked(&mut self, refusal: &Refusal) {
        self.claim = None;
        let asked: Vec<u64> =
            self.checks.iter().filter(|(_, p)| p.asked.is_some()).map(|(n, _)| *n).collect();
        for check in asked {
            match self.checks.get_mut(&check) {
                // What was accepted once waits for the next engine.
                Some(pending) if pending.submission.again.is_some() => pending.asked = None,
                _ => {
                    self.checks.remove(&check);
                    self.refuse(check, refusal.clone());
                }
            }
        }
    }

    /// Notes whether there is anything to do, and unloads the model when there was nothing for long enough.
    pub(super) fn rest(&mut self, now: Instant) {
        self.change_when_idle(now);
        if !self.is_idle() || !self.engine.ready || self.draining {
            self.engine.idle = None;
            return;
        }
        let since = *self.engine.idle.get_or_insert(now);
        let over = |keep| since.checked_add(keep).is_some_and(|end| end <= now);
        if self.config.keep_loaded.is_some_and(over) {
            self.end_load(now);
        }
    }

    /// When [`Core::rest`] has something to do.
    pub(super) fn next_rest(&self) -> Option<Instant> {
        self.engine.idle?.checked_add(self.config.keep_loaded?)
    }

    fn known_load(&self) -> std::time::Duration {
        self.engine.model.as_deref().map_or(super::UNKNOWN_LOAD, super::rules::load_time)
    }
}
