//! A prompt that finds a free slot is given to the engine together with its check, so that nobody has to be woken for it twice:
//! the engine starts it when it has told that it can be answered. Accepted it is only then.

use super::{Action, Core, Pending};
use crate::engine::frames::ToEngine;
use crate::request::PromptId;

/// The slot that is kept for a prompt whose check is under way.
#[derive(Debug)]
pub(super) struct Claim {
    check: u64,
    /// Its number, if it is accepted.
    pub(super) id: PromptId,
    /// Its seed, if it is accepted.
    pub(super) seed: u64,
}

impl Core {
    /// Orders the start of a prompt whose check was just ordered, if nothing can come before it. One at a time: who comes next
    /// may have to wait, and in an order that is for the queue to say.
    pub(super) fn claim(&mut self, check: u64) {
        let Some(pending) = self.checks.get(&check) else { return };
        // One that runs again may have to run alone; a conversation may have to be shortened.
        let is_plain = pending.submission.again.is_none() && pending.talk.is_none();
        let is_first = self.checks.len() == 1 && self.queue.len() == 0;
        let is_free = self.is_serving() && self.has_slot() && !self.runs_alone();
        if !(is_plain && is_first && is_free) {
            return;
        }
        let Pending { submission, .. } = pending;
        let request = submission.request.clone();
        let reuse = self.reuse(&submission.identity, submission.profile.as_deref());
        let seed = request.sampling.seed.unwrap_or_else(|| (self.draw_seed)());
        let id = self.next_id();
        self.claim = Some(Claim { check, id, seed });
        let (check, resume) = (Some(check), Vec::new());
        let start = ToEngine::Start { id, check, request, seed, resume, reuse };
        self.actions.push(Action::Send(start));
    }

    /// The slot that is kept for this check.
    pub(super) fn claim_of(&mut self, check: u64) -> Option<Claim> {
        self.claim.take_if(|claim| claim.check == check)
    }

    /// Takes the order back: the prompt is not accepted.
    pub(super) fn withdraw(&mut self, claim: Option<&Claim>) {
        if let Some(Claim { id, .. }) = claim {
            let id = *id;
            self.actions.push(Action::Send(ToEngine::Cancel { id }));
        }
    }

    pub(super) fn next_id(&mut self) -> PromptId {
        let id = PromptId(self.next_id);
        self.next_id += 1;
        id
    }

    /// Whether there is a free slot.
    pub(super) fn has_slot(&self) -> bool {
        self.running.len() + usize::from(self.claim.is_some()) < self.slots()
    }
}
