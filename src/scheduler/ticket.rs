//! The asker's half of an accepted prompt and the mailbox between it and the scheduler. Dropping the ticket cancels
//! the prompt.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::defect::Defect;
use crate::engine::frames::CheckedPrompt;
use crate::request::{Code, Event, PromptId, Refusal, TokenLogprob};

/// An accepted prompt. Dropping it before its final event cancels the prompt, whether it waits or runs.
#[derive(Debug)]
pub struct Ticket {
    id: PromptId,
    seed: u64,
    checked: CheckedPrompt,
    session: Option<InSession>,
    named: Option<NamedTicket>,
    mailbox: Arc<Mailbox>,
    returns: Arc<Returns>,
}

/// What a ticket of a named prompt says besides.
#[derive(Clone, Copy, Debug)]
struct NamedTicket {
    number: u64,
    attempt: u32,
    repeated: bool,
}

/// The conversation that a prompt continues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InSession {
    /// The asker's name for it.
    pub name: String,
    /// Earlier turns that the model reads; 0 where the conversation is new.
    pub turns: usize,
    /// Turns that were dropped, the oldest first, because the conversation had become too long.
    pub dropped: usize,
}

impl Ticket {
    /// The conversation that the prompt continues, if it does.
    pub fn session(&self) -> Option<&InSession> {
        self.session.as_ref()
    }

    /// The same ticket, for a prompt that continues a conversation.
    pub(super) fn in_session(mut self, session: Option<InSession>) -> Self {
        self.session = session;
        self
    }

    /// The same ticket, for a prompt that has a name.
    pub(super) fn named(mut self, number: u64, attempt: u32, repeated: bool) -> Self {
        self.named = Some(NamedTicket { number, attempt, repeated });
        self
    }

    /// A number that means this prompt after the next start as well; only those that were handed in under a name have one.
    pub fn lasting_number(&self) -> Option<u64> {
        self.named.map(|named| named.number)
    }

    /// Which service since the prompt was accepted answers it; 1 is the one that accepted it.
    pub fn attempt(&self) -> u32 {
        self.named.map_or(1, |named| named.attempt)
    }

    /// Whether the answer was given before, and is given again.
    pub fn is_repeated(&self) -> bool {
        self.named.is_some_and(|named| named.repeated)
    }

    /// The number promptd gave to the prompt.
    pub fn id(&self) -> PromptId {
        self.id
    }

    /// The seed its answer is sampled with.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Tokens of the prompt and room for the answer.
    pub fn checked(&self) -> CheckedPrompt {
        self.checked
    }

    /// The next event. `None` only after the final one. Pieces of the answer that came while nobody asked are one
    /// piece. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            {
                let mut mail = self.mailbox.lock();
                if let Some(event) = mail.take() {
                    return Some(event);
                }
                if mail.closed {
                    return None;
                }
            }
            self.mailbox.wake.notified().await;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.mailbox.lock().closed && !Defect::RunForNobody.is_here() {
            self.returns.push(self.id);
        }
    }
}

/// Makes the two halves of an accepted prompt.
pub(super) fn accept(
    id: PromptId,
    seed: u64,
    checked: CheckedPrompt,
    returns: &Arc<Returns>,
) -> (Outlet, Ticket) {
    let mailbox = Arc::new(Mailbox::default());
    let outlet = Outlet { mailbox: Arc::clone(&mailbox) };
    (
        outlet,
        Ticket {
            id,
            seed,
            checked,
            session: None,
            named: None,
            mailbox,
            returns: Arc::clone(returns),
        },
    )
}

/// The scheduler's half. Whatever becomes of the scheduler, the asker gets a final event: dropping the outlet without
/// one sends it.
#[derive(Debug)]
pub(super) struct Outlet {
    mailbox: Arc<Mailbox>,
}

impl Outlet {
    /// Hands an event to the asker. Never waits. After a final event nothing more is taken.
    pub(super) fn deliver(&self, event: Event) {
        self.mailbox.lock().put(event);
        self.mailbox.wake.notify_one();
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        // Ignored where the final event has come, as it nearly always has.
        self.deliver(Event::Failed(Refusal::new(
            Code::Internal,
            "promptd stopped before the answer was whole; ask again",
        )));
    }
}

/// What has happened and was not yet read. A slow reader can neither hold up the scheduler nor make it remember more
/// than one answer: progress replaces progress, text is added to text (and the answer's length is bounded by its
/// `max_tokens`), there are as many vectors as texts, and there is one end.
#[derive(Debug, Default)]
struct Mailbox {
    mail: Mutex<Mail>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Mail {
    started: Option<u32>,
    queued: Option<(u32, std::time::Duration)>,
    prefill: Option<(u32, u32)>,
    delta: Option<(String, Vec<u32>, Vec<TokenLogprob>)>,
    /// By the number of their text; a second engine gives them again.
    vectors: BTreeMap<u32, Vec<f32>>,
    last: Option<Event>,
    /// The final event was put in, though it may not be read yet.
    closed: bool,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Mail> {
        // A panic elsewhere cannot leave half an event behind: each method changes the mail in one step.
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mail {
    fn put(&mut self, event: Event) {
        if self.closed {
            return;
        }
        match event {
            Event::Queued { position, eta } => self.queued = Some((position, eta)),
            Event::Started { deaths } => self.started = Some(deaths),
            Event::Prefill { done, total } => self.prefill = Some((done, total)),
            Event::Delta { text, tokens, logprobs } => match &mut self.delta {
                Some((before, earlier, first)) => {
                    before.push_str(&text);
                    earlier.extend(tokens);
                    first.extend(logprobs);
                }
                None => self.delta = Some((text, tokens, logprobs)),
            },
            Event::Vector { index, values } => drop(self.vectors.insert(index, values)),
            Event::Finished(_) | Event::Failed(_) => {
                self.last = Some(event);
                self.closed = true;
            }
        }
    }

    fn take(&mut self) -> Option<Event> {
        if let Some((position, eta)) = self.queued.take() {
            return Some(Event::Queued { position, eta });
        }
        if let Some(deaths) = self.started.take() {
            return Some(Event::Started { deaths });
        }
        if let Some((done, total)) = self.prefill.take() {
            return Some(Event::Prefill { done, total });
        }
        if let Some((text, tokens, logprobs)) = self.delta.take() {
            return Some(Event::Delta { text, tokens, logprobs });
        }
        if let Some((index, values)) = self.vectors.pop_first() {
            return Some(Event::Vector { index, values });
        }
        self.last.take()
    }
}

/// Tickets that were dropped before their end. Not a channel: a drop cannot wait for room in one. Bounded all the same,
/// because each accepted prompt has one ticket, and a ticket is dropped once.
#[derive(Debug, Default)]
pub(super) struct Returns {
    ids: Mutex<Vec<PromptId>>,
    wake: Notify,
}

impl Returns {
    fn push(&self, id: PromptId) {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        self.wake.notify_one();
    }

    /// Whether a ticket was dropped that nobody has taken note of yet.
    pub(super) fn any(&self) -> bool {
        !self.ids.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Waits until at least one ticket was dropped, and takes all that were. Dropping the future loses none: they stay
    /// in the list, and the wake-up is the scheduler's own.
    pub(super) async fn taken(&self) -> Vec<PromptId> {
        loop {
            let ids = std::mem::take(&mut *self.ids.lock().unwrap_or_else(PoisonError::into_inner));
            if !ids.is_empty() {
                return ids;
            }
            self.wake.notified().await;
        }
    }
}
