//! What the core makes of an engine's start, words and death.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::rules::load_time;
use super::{Core, FATAL_DEATHS, FATAL_LOADS, Order, Phase, Prompt, Spent, UNKNOWN_LOAD};
use crate::defect::Defect;
use crate::engine::client::EngineEvent;
use crate::engine::frames::{CheckedPrompt, FromEngine, LoadStage};
use crate::request::{Code, Event, PromptId, Refusal, Submission};
use crate::scheduler::core::Action;
use crate::scheduler::core::sessions::Talk;
use crate::scheduler::queue::Entry;
use crate::scheduler::rates::Size;

impl Core {
    /// Something happened to the engine.
    pub(in crate::scheduler) fn engine(&mut self, event: EngineEvent, now: Instant) {
        match event {
            EngineEvent::Started { pid, .. } => self.engine_started(pid, now),
            EngineEvent::Frame(frame) => self.frame(frame, now),
            EngineEvent::Ended => self.engine_ended(now),
            EngineEvent::Died { report, restart_in } => {
                let restart_in_ms =
                    restart_in.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
                // An engine that said why it cannot load the model ends as it should.
                if self.engine.failed.is_none() {
                    tracing::warn!(running = self.running.len(), restart_in_ms, "{report}");
                } else {
                    tracing::debug!(restart_in_ms, "{report}");
                }
                // One that was ended for another model, or for want of prompts, is no death and nothing to worry about.
                let restarts = &mut Arc::make_mut(&mut self.counters).engine_restarts;
                *restarts += u64::from(restart_in.is_some());
                self.engine.died_of = Some(report.model.clone());
                self.engine_died(&report.to_string(), restart_in, now);
            }
        }
        self.dispatch(now);
        self.tell_places(now);
        self.rest(now);
    }

    /// Nobody starts engines any more: no prompt can be answered.
    pub(in crate::scheduler) fn engine_gone(&mut self, now: Instant) {
        let refusal = Refusal::new(
            Code::ModelFailed,
            "the engine is gone and nobody starts another; restart promptd",
        );
        self.config.fallback = None;
        self.engine.change.take_if(|order| *order != Order::TakeOver);
        self.engine_died("the engine was given up", None, now);
        self.model_failed(refusal, now);
    }

    fn engine_started(&mut self, pid: u32, now: Instant) {
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
                self.engine.model = Some(Arc::new(model));
                self.engine.on_demand = false;
                if !self.config.pinned.is_empty() {
                    self.pin();
                }
                self.ask_checks(now);
            }
            FromEngine::LoadFailed(refusal) => {
                self.model_failed(Refusal { code: Code::ModelFailed, ..refusal }, now);
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
        let load = self.engine.model.as_deref().map_or(UNKNOWN_LOAD, load_time);
        self.engine.expected =
            restart_in.and_then(|wait| now.checked_add(wait.saturating_add(load)));
        for id in std::mem::take(&mut self.running).into_iter().rev() {
            self.survive(id, report, now);
        }
        let refusal = self.model_loading(now);
        self.refuse_asked(&refusal);
        if !was_ready {
            self.engine.deaths_while_loading = self.engine.deaths_while_loading.saturating_add(1);
            if self.engine.deaths_while_loading >= FATAL_LOADS && self.engine.failed.is_none() {
                self.model_failed(Refusal::new(Code::ModelFailed, report), now);
            }
        }
    }

    /// What becomes of a prompt whose engine died: back before the others, unless it has seen too many die.
    fn survive(&mut self, id: PromptId, report: &str, now: Instant) {
        let Some(prompt) = self.prompts.get_mut(&id) else { return };
        if Defect::ForgetRunning.is_here() {
            return;
        }
        if Defect::RedrawSeed.is_here() {
            prompt.seed = prompt.seed.wrapping_add(1);
        }
        prompt.deaths += 1;
        if prompt.deaths >= FATAL_DEATHS && !Defect::NeverBlame.is_here() {
            let message = format!(
                "the engine died {} times while it answered this prompt; the last time {report}",
                prompt.deaths
            );
            self.end(id, Event::Failed(Refusal::new(Code::ModelFailed, message)), now);
            return;
        }
        if let Phase::Running { since, answering } = prompt.phase {
            let answered = answering.unwrap_or(now);
            prompt.spent.prefill += answered.saturating_duration_since(since);
            prompt.spent.decode += now.saturating_duration_since(answered);
        }
        prompt.phase = Phase::Waiting { since: now };
        self.queue.push_front(Entry { id, size: prompt.size });
        self.places.changed = true;
    }

    /// The model cannot be loaded: those who wait for it are told now, rather than left waiting for a mended file.
    fn model_failed(&mut self, refusal: Refusal, now: Instant) {
        if self.engine.change.is_some() {
            // Another model comes. What this one has begun nobody can end; the others wait for that one.
            let begun: Vec<PromptId> =
                self.ids().into_iter().filter(|id| self.is_begun(*id)).collect();
            for id in begun {
                self.abandon(id, refusal.clone(), now);
            }
            return self.change_when_idle(now);
        }
        if self.fall_back(&refusal, now) {
            return;
        }
        for id in self.ids() {
            self.abandon(id, refusal.clone(), now);
        }
        self.refuse_checks(&refusal);
        self.engine.failed = Some(refusal);
    }

    fn checked(&mut self, check: u64, result: Result<CheckedPrompt, Refusal>, now: Instant) {
        // Unknown where the deadline of the check has passed, or promptd drains.
        let Some(mut pending) = self.checks.remove(&check) else { return };
        let claim = self.claim_of(check);
        let Some(result) = self.shorten(&mut pending, result) else {
            // The engine counts again.
            self.checks.insert(check, pending);
            return self.ask_check(check, now);
        };
        let checked = match result
            .and_then(|checked| self.in_time(&pending, checked, now).map(|()| checked))
        {
            Ok(checked) => checked,
            Err(refusal) => {
                self.withdraw(claim.as_ref());
                return self.refuse(check, refusal);
            }
        };
        let session = pending.talk.as_ref().map(Talk::in_session);
        let Submission { request, identity, profile, priority, quota, again, .. } =
            pending.submission;
        let size = Size::from(checked);
        let is_started = claim.is_some();
        let (id, seed) = if let Some(claim) = claim {
            (claim.id, claim.seed)
        } else {
            let seed = request.sampling.seed.unwrap_or_else(|| (self.draw_seed)());
            (self.next_id(), seed)
        };
        let phase = if is_started {
            self.queue.had_turn(&identity, priority);
            self.running.push(id);
            Phase::Running { since: now, answering: None }
        } else {
            self.queue.push(Entry { id, size }, &identity, priority);
            Phase::Waiting { since: now }
        };
        self.places.changed = true;
        self.prompts.insert(
            id,
            Prompt {
                request,
                check,
                talk: pending.talk,
                quota,
                weight: pending.weight,
                size,
                told: None,
                identity,
                profile,
                priority,
                seed,
                deadline: pending.deadline,
                phase,
                delivered: Vec::new(),
                deaths: again.map_or(0, |again| again.deaths),
                ends: again.map_or(0, |again| again.ends),
                waited: Duration::ZERO,
                spent: Spent::default(),
            },
        );
        Arc::make_mut(&mut self.counters).accepted += 1;
        self.actions.push(Action::Accept { check, id, seed, checked, session });
        if is_started {
            let event = Event::Started { deaths: 0 };
            self.actions.push(Action::Deliver { id, event });
        }
        self.dispatch(now);
        self.tell_place(id, now);
    }

    fn event(&mut self, id: PromptId, event: Event, now: Instant) {
        // Unknown where the prompt was cancelled while the event was on its way.
        let Some(prompt) = self.prompts.get_mut(&id) else { return };
        let Phase::Running { since, answering } = &mut prompt.phase else { return };
        match event {
            // A resumed prompt is read again, answer included; its asker has seen that once.
            // Places are the scheduler's to tell.
            Event::Queued { .. } | Event::Started { .. } => {}
            Event::Prefill { .. } if !prompt.delivered.is_empty() => {}
            Event::Prefill { .. } | Event::Vector { .. } => {
                self.actions.push(Action::Deliver { id, event });
            }
            Event::Delta { ref text, ref tokens, .. } => {
                answering.get_or_insert(now);
                prompt.delivered.extend(tokens);
                if let Some(talk) = &mut prompt.talk {
                    talk.answer.push_str(text);
                }
                if Defect::LosePiece.is_here() && prompt.delivered.len() == 9 {
                    return;
                }
                self.actions.push(Action::Deliver { id, event });
            }
            Event::Finished(mut finish) => {
                finish.seed = prompt.seed;
                finish.timings.queue = prompt.waited;
                self.rates.learn(&finish);
                finish.timings.prefill += prompt.spent.prefill;
                finish.timings.decode += prompt.spent.decode;
                tracing::debug!(%id, identity = %prompt.identity.0, ran = ?now.saturating_duration_since(*since), "finished");
                self.end(id, Event::Finished(finish), now);
            }
            Event::Failed(_) => self.end(id, event, now),
        }
    }
}
