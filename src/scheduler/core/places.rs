//! Who may enter, how long the queue is in time, and what those who wait are told about their turn.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Action, Core, FATAL_DEATHS, FATAL_ENDS, Pending, Phase, Place};
use crate::engine::frames::CheckedPrompt;
use crate::request::{
    Again, Code, Event, Identity, Priority, PromptId, Refusal, Request, Submission,
};
use crate::scheduler::core::rules::{draining, timeout};
use crate::scheduler::rates::{Forecast, Size, sensible};

/// How often those who wait are told of a new place, and the times in the status are made new: often enough to watch,
/// seldom enough to cost nothing.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// The most bytes of prompts that wait or are checked. The service stays within 64 MiB of its idle size under any load;
/// a request is in memory up to three times on its way to the engine.
pub(super) const QUEUE_BYTES: usize = 16 << 20;

/// What a prompt costs besides its texts: its entries in the scheduler's books, its ticket and its door's task.
const FIXED: usize = 2048;

/// How many bytes a waiting prompt keeps in memory.
pub(super) fn weight(request: &Request) -> usize {
    FIXED + request.bytes()
}

/// What was told last.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Those who wait, in order.
    pub(super) told: Arc<[Place]>,
    /// How long somebody new would wait.
    pub(super) next_begins: Duration,
    /// The order has changed since.
    pub(super) changed: bool,
    at: Option<Instant>,
}

impl Core {
    /// Whether a submission is worth checking.
    pub(super) fn may_enter(
        &mut self,
        submission: &Submission,
        weight: usize,
        now: Instant,
    ) -> Result<(), Refusal> {
        if self.draining {
            return Err(draining());
        }
        if let Some(refusal) = &self.engine.failed {
            return Err(refusal.clone().with_retry_after(self.until_expected(now)));
        }
        self.has_memory()?;
        if !self.is_serving() {
            self.worth_loading(submission, now)?;
        }
        self.has_room(&submission.identity, weight)?;
        self.not_too_long(&submission.identity, submission.priority, now)?;
        // Last, because it counts: what is refused for another reason costs its asker nothing.
        let Submission { identity, quota, .. } = submission;
        let prompts = self.prompts.values().filter(|prompt| prompt.identity == *identity).count();
        let checks = self.checks.values().filter(|p| p.submission.identity == *identity).count();
        self.quotas.enter(identity, quota, prompts + checks, now)
    }

    /// Whether a prompt that an earlier service accepted can still be answered. It has its place.
    pub(super) fn may_go_on(&self, again: Again) -> Result<(), Refusal> {
        if self.draining {
            return Err(draining());
        }
        let Again { deaths, ends } = again;
        if deaths >= FATAL_DEATHS || ends >= FATAL_ENDS {
            let message = format!(
                "{deaths} engines and {ends} services ended while they answered this prompt; it is not run again"
            );
            return Err(Refusal::new(Code::ModelFailed, message));
        }
        self.engine.failed.clone().map_or(Ok(()), Err)
    }

    /// Whether the answer of a checked prompt can come before its deadline, and its turn before the longest wait.
    pub(super) fn in_time(
        &self,
        pending: &Pending,
        checked: CheckedPrompt,
        now: Instant,
    ) -> Result<(), Refusal> {
        let Submission { identity, priority, again, .. } = &pending.submission;
        if again.is_some() {
            return Ok(());
        }
        let begins = self.not_too_long(identity, *priority, now)?;
        let Some(deadline) = pending.deadline else { return Ok(()) };
        let left = deadline.saturating_duration_since(now);
        if left.is_zero() {
            return Err(timeout());
        }
        let answers = begins.saturating_add(self.rates.reading_of(checked.prompt_tokens));
        if !self.rates.clearly_misses(answers, left) {
            return Ok(());
        }
        let (answers_ms, left_ms) = (answers.as_millis(), left.as_millis());
        let message = format!(
            "the answer would begin in about {answers_ms} ms, and its deadline is in {left_ms} ms; ask again later, or \
             allow more time"
        );
        Err(Refusal::new(Code::WouldMissDeadline, message)
            .with_limit(milliseconds(left), milliseconds(answers))
            .with_retry_after(sensible(answers.saturating_sub(left))))
    }

    /// Whether there is a place left for this identity. It may hold as many as it leaves free, so that a flood of one
    /// never takes the last place from another.
    fn has_room(&self, identity: &Identity, weight: usize) -> Result<(), Refusal> {
        let waiting = self
            .prompts
            .values()
            .filter(|prompt| matches!(prompt.phase, Phase::Waiting { .. }))
            .map(|prompt| (&prompt.identity, prompt.weight));
        let checks = self.checks.values().map(|p| (&p.submission.identity, p.weight));
        let (mut all, mut own, mut all_bytes, mut own_bytes) = (0_usize, 0_usize, 0_usize, 0_usize);
        for (who, weight) in waiting.chain(checks) {
            all += 1;
            all_bytes = all_bytes.saturating_add(weight);
            if who == identity {
                own += 1;
                own_bytes = own_bytes.saturating_add(weight);
            }
        }
        // A prompt that finds a free slot does not wait.
        let places = self.config.queue_limit + self.slots().saturating_sub(self.running.len());
        let (free, free_bytes) =
            (places.saturating_sub(all), QUEUE_BYTES.saturating_sub(all_bytes));
        let full = |message: String, limit: usize, have: usize| {
            let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
            Err(Refusal::new(Code::Busy, message)
                .with_limit(number(limit), number(have))
                .with_retry_after(self.rates.retry_after(self.slots())))
        };
        if free == 0 {
            let message =
                format!("the queue is full: {all} prompts wait, and no more than {places} may");
            return full(message, places, all);
        }
        if own > 0 && own >= free {
            let message = format!(
                "{own} prompts of yours wait, and only {free} places are left for everybody; ask again when some of them \
                 are answered"
            );
            return full(message, free, own);
        }
        if all > 0 && own_bytes.saturating_add(weight) > free_bytes {
            let message = format!(
                "the prompts that wait have {all_bytes} bytes, and no more than {QUEUE_BYTES} may; this one has {weight}"
            );
            return full(message, QUEUE_BYTES, all_bytes);
        }
        Ok(())
    }

    /// How long a prompt of this identity would wait for its slot, if that is not too long.
    fn not_too_long(
        &self,
        identity: &Identity,
        priority: Priority,
        now: Instant,
    ) -> Result<Duration, Refusal> {
        let begins = self.begins(identity, priority, now);
        if begins <= self.config.max_wait {
            return Ok(begins);
        }
        let (begins_ms, most_ms) = (begins.as_millis(), self.config.max_wait.as_millis());
        let message = format!(
            "a prompt would wait about {begins_ms} ms for its turn, and no longer than {most_ms} ms is worth waiting; ask \
             again later"
        );
        let after = begins.saturating_sub(self.config.max_wait);
        Err(Refusal::new(Code::Busy, message)
            .with_limit(milliseconds(self.config.max_wait), milliseconds(begins))
            .with_retry_after(sensible(after.max(self.rates.retry_after(self.slots())))))
    }

    /// When a prompt that this identity handed in now would get its slot.
    fn begins(&self, identity: &Identity, priority: Priority, now: Instant) -> Duration {
        let mut forecast = self.forecast(now);
        for entry in self.queue.ahead_of(identity, priority) {
            forecast.place(self.rates.service_of(entry.size));
        }
        forecast.place(Duration::ZERO)
    }

    fn forecast(&self, now: Instant) -> Forecast {
        let rest = |id: &PromptId| match self.prompts.get(id) {
            Some(prompt) => match prompt.phase {
                Phase::Running { since, .. } => {
                    self.rates.rest_of(prompt.size, now.saturating_duration_since(since))
                }
                Phase::Waiting { .. } => Duration::ZERO,
            },
            None => Duration::ZERO,
        };
        Forecast::new(self.slots(), self.running.iter().map(rest))
    }

    /// Tells one prompt its place, if it waits.
    pub(super) fn tell_place(&mut self, id: PromptId, now: Instant) {
        let waits = |prompt: &super::Prompt| matches!(prompt.phase, Phase::Waiting { .. });
        if !self.prompts.get(&id).is_some_and(waits) {
            return;
        }
        let mut forecast = self.forecast(now);
        for (entry, position) in self.queue.order().into_iter().zip(1..) {
            let eta = forecast.place(self.rates.service_of(entry.size));
            if entry.id == id {
                self.prompts.entry(id).and_modify(|prompt| prompt.told = Some(position));
                self.actions.push(Action::Deliver { id, event: Event::Queued { position, eta } });
            }
        }
    }

    /// Makes the places in the status new, and tells those whose place has changed.
    pub(super) fn tell_places(&mut self, now: Instant) {
        let Places { told, changed, at, .. } = &self.places;
        let lately = at.and_then(|at| at.checked_add(TELL_EVERY)).is_some_and(|next| next > now);
        if lately || (!changed && told.is_empty()) {
            return;
        }
        let mut forecast = self.forecast(now);
        let mut places = Vec::with_capacity(self.queue.len());
        for (entry, position) in self.queue.order().into_iter().zip(1_u32..) {
            let begins_in = forecast.place(self.rates.service_of(entry.size));
            let Some(prompt) = self.prompts.get_mut(&entry.id) else { continue };
            places.push(Place {
                id: entry.id,
                identity: prompt.identity.clone(),
                priority: prompt.priority,
                begins_in,
            });
            if prompt.told.replace(position) != Some(position) {
                let event = Event::Queued { position, eta: begins_in };
                self.actions.push(Action::Deliver { id: entry.id, event });
            }
        }
        let newcomer = Identity(String::new());
        self.places = Places {
            told: places.into(),
            next_begins: self.begins(&newcomer, Priority::Normal, now),
            changed: false,
            at: Some(now),
        };
    }

    /// When [`Core::tell_places`] has something to do.
    pub(super) fn next_places(&self) -> Option<Instant> {
        let Places { told, changed, at, .. } = &self.places;
        // Times run on while anybody waits.
        if !changed && told.is_empty() {
            return None;
        }
        // What changes before the first telling is told with the change.
        at.and_then(|at| at.checked_add(TELL_EVERY))
    }
}

/// A time as refusals give it.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl From<CheckedPrompt> for Size {
    fn from(checked: CheckedPrompt) -> Self {
        Size { prompt: checked.prompt_tokens, answer: checked.max_tokens }
    }
}
