//! Prompts that have a name: one that is asked again under its name is joined while it is in work and answered again for a
//! while, so that nobody who asks twice has it generated twice. Knows no door; what a name is made of is theirs to say.

mod kept;
mod row;
mod run;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use self::kept::Kept;
pub(super) use self::run::restore;
use super::ticket::{self, Outlet, Returns, Ticket};
use super::{Scheduler, stopping};
use crate::engine::frames::CheckedPrompt;
use crate::record::{Record, unix_ms};
use crate::request::{Code, Event, Identity, PromptId, Refusal, Submission, TokenLogprob};
use crate::scheduler::InSession;

/// What makes two requests of one identity the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    text: String,
    body: [u8; 32],
    promised: bool,
}

impl Name {
    /// A name that means one request and no other: another body under it is refused. The prompt is run to its end even if
    /// its asker goes, because whoever invents such a name means to come back.
    pub fn of_one(name: &str, body: &[&[u8]]) -> Self {
        Name { text: name.to_owned(), body: digest(body), promised: true }
    }

    /// A name that others may have as well: only the same body under it is the same request. The prompt ends with the last
    /// of its askers.
    pub fn shared(name: &str, body: &[&[u8]]) -> Self {
        Name { text: name.to_owned(), body: digest(body), promised: false }
    }

    /// What it is known by.
    fn key(&self, identity: &Identity) -> Key {
        let (who, name) = (identity.0.as_bytes(), self.text.as_bytes());
        if self.promised {
            digest(&[b"one", who, name])
        } else {
            digest(&[b"shared", who, name, &self.body])
        }
    }
}

fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

type Key = [u8; 32];

/// The named prompts in work and the answers of late.
#[derive(Debug)]
pub(super) struct Named {
    inner: Mutex<Inner>,
    record: Option<Record>,
    /// Numbers where there is no record to give them.
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    /// Bounded by the scheduler: each is a submission of it.
    open: HashMap<Key, Open>,
    kept: Kept,
    /// Somebody takes care that answers are forgotten.
    is_tidied: bool,
}

/// A prompt in work.
#[derive(Debug)]
struct Open {
    body: [u8; 32],
    /// Goes on when nobody waits for it any more.
    promised: bool,
    /// Those who wait for it to be accepted. Bounded by the doors' connections.
    waiting: Vec<oneshot::Sender<Result<Ticket, Refusal>>>,
    /// One of those who wait may have gone.
    gone: Arc<Notify>,
    /// What has been heard of it, once it is accepted.
    heard: Option<Heard>,
}

/// An accepted prompt and those who listen.
#[derive(Debug)]
struct Heard {
    facts: Facts,
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<TokenLogprob>,
    outlets: Vec<Outlet>,
    listening: usize,
    returns: Arc<Returns>,
}

/// What every ticket of a named prompt says.
#[derive(Clone, Debug)]
struct Facts {
    id: PromptId,
    number: u64,
    attempt: u32,
    seed: u64,
    checked: CheckedPrompt,
    session: Option<InSession>,
}

impl Facts {
    fn ticket(&self, returns: &Arc<Returns>, repeated: bool) -> (Outlet, Ticket) {
        let (outlet, ticket) = ticket::accept(self.id, self.seed, self.checked, returns);
        let ticket = ticket.in_session(self.session.clone());
        (outlet, ticket.named(self.number, self.attempt, repeated))
    }
}

impl Heard {
    /// One more listens: it hears what was said so far as one piece, and then the rest.
    fn join(&mut self) -> Ticket {
        let (outlet, ticket) = self.facts.ticket(&self.returns, false);
        if !self.tokens.is_empty() {
            outlet.deliver(Event::Delta {
                text: self.text.clone(),
                tokens: self.tokens.clone(),
                logprobs: self.logprobs.clone(),
            });
        }
        self.outlets.push(outlet);
        self.listening += 1;
        ticket
    }

    fn hear(&mut self, event: &Event) {
        if let Event::Delta { text, tokens, logprobs } = event {
            self.text.push_str(text);
            self.tokens.extend(tokens);
            self.logprobs.extend_from_slice(logprobs);
        }
        self.outlets.iter().for_each(|outlet| outlet.deliver(event.clone()));
    }
}

/// Waits for a ticket; dropping it says that nobody waits any more. The fields are dropped in this order.
struct Waiting {
    ticket: oneshot::Receiver<Result<Ticket, Refusal>>,
    _gone: Gone,
}

struct Gone(Arc<Notify>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// What is found under a name.
enum Found {
    Ticket(Ticket),
    Waiting(Waiting),
}

impl Named {
    pub(super) fn new(record: Option<Record>) -> Self {
        // Larger than any number of this or an earlier service.
        let next = AtomicU64::new(unix_ms().saturating_mul(1000).max(1));
        Named { inner: Mutex::default(), record, next }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves no half change behind: each method makes its own in one step.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn number(&self) -> u64 {
        match &self.record {
            Some(record) => record.number(),
            None => self.next.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Joins what is in work under this key, or answers again what was answered; else enters it as new, which is said, and
    /// its task has to be started.
    ///
    /// # Errors
    /// `idempotency_key_reused`: it was another request.
    fn find_or_enter(&self, key: Key, name: &Name) -> Result<(Found, bool), Refusal> {
        let mut inner = self.lock();
        let forgotten = inner.kept.forget(Instant::now());
        self.drop_rows(&forgotten);
        if let Some(open) = inner.open.get_mut(&key) {
            same(&open.body, name)?;
            return Ok((open.join(), false));
        }
        if let Some(answer) = inner.kept.find(&key) {
            same(&answer.body, name)?;
            return Ok((Found::Ticket(answer.ticket()), false));
        }
        let mut open = Open::new(name.body, name.promised);
        let found = open.join();
        inner.open.insert(key, open);
        Ok((found, true))
    }

    fn drop_rows(&self, numbers: &[u64]) {
        if let Some(record) = &self.record {
            for number in numbers {
                record.remove(*number);
            }
        }
    }
}

impl Open {
    fn new(body: [u8; 32], promised: bool) -> Self {
        Open { body, promised, waiting: Vec::new(), gone: Arc::default(), heard: None }
    }

    fn join(&mut self) -> Found {
        if let Some(heard) = &mut self.heard {
            return Found::Ticket(heard.join());
        }
        let (send, ticket) = oneshot::channel();
        self.waiting.push(send);
        Found::Waiting(Waiting { ticket, _gone: Gone(Arc::clone(&self.gone)) })
    }

    /// Whether nobody waits for its answer, and nobody was promised it.
    fn is_orphan(&mut self) -> bool {
        self.waiting.retain(|waiting| !waiting.is_closed());
        let listening = self.heard.as_ref().map_or(0, |heard| heard.listening);
        !self.promised && self.waiting.is_empty() && listening == 0
    }
}

/// Whether a request under a known name is the one that has it.
fn same(body: &[u8; 32], name: &Name) -> Result<(), Refusal> {
    if *body == name.body {
        return Ok(());
    }
    let message = "another request came under this idempotency key before; give each request a key of its own, and repeat \
                   one with the same body";
    Err(Refusal::new(Code::IdempotencyKeyReused, message).with_param("Idempotency-Key"))
}

impl Scheduler {
    /// As [`Scheduler::submit`], for a prompt that its asker may ask again: the same name within five minutes joins the one
    /// in work, or gets its answer again. One that was refused or failed is new when it comes again.
    ///
    /// # Errors
    /// As [`Scheduler::submit`], and `idempotency_key_reused` where the name belongs to another request.
    pub async fn submit_named(
        &self,
        submission: Submission,
        name: &Name,
    ) -> Result<Ticket, Refusal> {
        let key = name.key(&submission.identity);
        let (found, is_new) = self.named.find_or_enter(key, name)?;
        if is_new {
            run::begin(self, key, name, submission);
        }
        match found {
            Found::Ticket(ticket) => Ok(ticket),
            Found::Waiting(mut waiting) => (&mut waiting.ticket).await.map_err(|_| stopping())?,
        }
    }
}
