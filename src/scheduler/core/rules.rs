//! Who is next, how a prompt ends, and what a refusal says. Who may enter: `places.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Action, CHECK_LIMIT, Core, Phase, Prompt, SUSPICIOUS_ENDS, UNKNOWN_LOAD};
use crate::defect::Defect;
use crate::engine::frames::{ModelInfo, ToEngine};
use crate::request::{Code, Event, Finish, PromptId, Refusal};
use crate::scheduler::rates::sensible;

impl Core {
    /// Fills the free slots.
    pub(super) fn dispatch(&mut self, now: Instant) {
        while self.engine.ready && self.has_slot() {
            let Some(id) = self.next_turn() else { return };
            self.places.changed = true;
            // The queue and the prompts are changed together.
            let Some(prompt) = self.prompts.get_mut(&id) else { continue };
            if let Phase::Waiting { since } = prompt.phase {
                prompt.waited += now.saturating_duration_since(since);
            }
            prompt.phase = Phase::Running { since: now, answering: None };
            self.running.push(id);
            let (request, mut resume) = (prompt.request.clone(), prompt.delivered.clone());
            if Defect::RepeatToken.is_here() {
                resume.pop();
            }
            if Defect::SkipToken.is_here() {
                resume.extend(resume.last().copied());
            }
            let event = Event::Started { deaths: prompt.deaths };
            let (seed, check) = (prompt.seed, Some(prompt.check));
            let (identity, profile) = (prompt.identity.clone(), prompt.profile.clone());
            let reuse = self.reuse(&identity, profile.as_deref());
            self.actions.push(Action::Deliver { id, event });
            let start = ToEngine::Start { id, check, request, seed, resume, reuse };
            self.actions.push(Action::Send(start));
        }
    }

    /// Takes the prompt out of the queue that may start now. Where another model is to come, only what this one has begun.
    fn next_turn(&mut self) -> Option<PromptId> {
        if self.engine.change.is_none() {
            let next = self.queue.next()?;
            return if self.may_start(next) { self.queue.pop() } else { None };
        }
        if !self.another_model_comes() {
            return None;
        }
        let mut waiting = self.queue.order().into_iter().map(|entry| entry.id);
        let begun = waiting.find(|id| self.is_begun(*id) && self.may_start(*id))?;
        self.queue.remove(begun);
        Some(begun)
    }

    /// Whether this prompt may start beside those that run. One that has seen its engine die (or two services
    /// end) runs alone: if the next engine dies as well, it was that prompt, and nobody else is blamed.
    fn may_start(&self, next: PromptId) -> bool {
        let is_alone = self.running.is_empty() && self.claim.is_none();
        !self.runs_alone() && (is_alone || !self.is_suspect(next))
    }

    fn is_suspect(&self, id: PromptId) -> bool {
        let seen = |p: &Prompt| p.deaths > 0 || p.ends >= SUSPICIOUS_ENDS;
        self.prompts.get(&id).is_some_and(seen)
    }

    /// Whether a prompt runs beside which none may start.
    pub(super) fn runs_alone(&self) -> bool {
        self.running.iter().any(|id| self.is_suspect(*id))
    }

    /// Ends a prompt without the engine's doing.
    pub(super) fn abandon(&mut self, id: PromptId, refusal: Refusal, now: Instant) {
        if self.running.contains(&id) {
            self.actions.push(Action::Send(ToEngine::Cancel { id }));
        }
        self.end(id, Event::Failed(refusal), now);
    }

    /// Takes a prompt out of everything and gives its asker the final event. Unknown numbers are ignored.
    pub(super) fn end(&mut self, id: PromptId, event: Event, now: Instant) {
        let Some(prompt) = self.prompts.remove(&id) else { return };
        self.queue.remove(id);
        self.places.changed = true;
        if !(Defect::KeepSlot.is_here() && matches!(event, Event::Finished(_))) {
            self.running.retain(|other| *other != id);
        }
        let wrote = u64::try_from(prompt.delivered.len()).unwrap_or(u64::MAX);
        // Of one that fails before it is done, what it wrote counts; it may not have been read.
        let tokens = match &event {
            Event::Finished(Finish { usage, .. }) => {
                u64::from(usage.prompt) + u64::from(usage.completion)
            }
            _ => wrote,
        };
        if matches!(event, Event::Finished(_))
            && let Some(talk) = prompt.talk
        {
            self.keep_talk(&prompt.identity, talk, now);
        }
        self.quotas.spend(&prompt.identity, &prompt.quota, tokens, now);
        match &event {
            Event::Finished(finish) => self.count(finish),
            Event::Failed(refusal) => {
                tracing::debug!(%id, priority = ?prompt.priority, code = refusal.code.as_str(), "failed");
                let counters = Arc::make_mut(&mut self.counters);
                counters.completion_tokens = counters.completion_tokens.saturating_add(wrote);
                *counters.refused.entry(refusal.code.as_str()).or_default() += 1;
            }
            Event::Queued { .. }
            | Event::Started { .. }
            | Event::Prefill { .. }
            | Event::Vector { .. }
            | Event::Delta { .. } => {}
        }
        self.actions.push(Action::Deliver { id, event });
    }

    fn count(&mut self, finish: &Finish) {
        let counters = Arc::make_mut(&mut self.counters);
        counters.finished += 1;
        counters.prompt_tokens += u64::from(finish.usage.prompt);
        counters.cached_tokens += u64::from(finish.usage.cached);
        counters.completion_tokens += u64::from(finish.usage.completion);
        counters.prefill = counters.prefill.saturating_add(finish.timings.prefill);
        counters.decode = counters.decode.saturating_add(finish.timings.decode);
    }

    pub(super) fn refuse(&mut self, check: u64, refusal: Refusal) {
        let counters = Arc::make_mut(&mut self.counters);
        *counters.refused.entry(refusal.code.as_str()).or_default() += 1;
        self.actions.push(Action::Refuse { check, refusal });
    }

    pub(super) fn refuse_checks(&mut self, refusal: &Refusal) {
        let claim = self.claim.take();
        self.withdraw(claim.as_ref());
        for check in std::mem::take(&mut self.checks).into_keys() {
            self.refuse(check, refusal.clone());
        }
    }

    pub(super) fn model_loading(&self, now: Instant) -> Refusal {
        let again = if self.engine.model.is_some() { " again" } else { "" };
        let message = format!(
            "the model is being loaded{again} ({}); ask again in a moment",
            self.engine.stage.as_str()
        );
        Refusal::new(Code::ModelLoading, message).with_retry_after(self.until_expected(now))
    }

    pub(super) fn check_took_too_long(&self) -> Refusal {
        let message = format!(
            "the engine did not come to check the prompt within {} s",
            CHECK_LIMIT.as_secs()
        );
        Refusal::new(Code::Busy, message).with_retry_after(self.rates.retry_after(self.slots()))
    }

    pub(super) fn until_expected(&self, now: Instant) -> Duration {
        let left = self.engine.expected.map(|expected| expected.saturating_duration_since(now));
        sensible(left.unwrap_or(UNKNOWN_LOAD))
    }

    pub(super) fn slots(&self) -> usize {
        self.engine.model.as_ref().map_or(1, |model| usize::from(model.slots.max(1)))
    }

    /// All accepted prompts, in the order of their acceptance.
    pub(super) fn ids(&self) -> Vec<PromptId> {
        let mut ids: Vec<PromptId> = self.prompts.keys().copied().collect();
        ids.sort_unstable();
        ids
    }
}

pub(super) fn load_time(model: &ModelInfo) -> Duration {
    Duration::from_millis(model.load_ms)
}

pub(super) fn draining() -> Refusal {
    Refusal::new(
        Code::Busy,
        "promptd is stopping and takes no more prompts; ask again when it is back",
    )
}

pub(super) fn timeout() -> Refusal {
    Refusal::new(Code::Timeout, "the deadline of the prompt passed before its answer was whole")
}
