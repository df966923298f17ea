//! A scheduler whose every decision a test makes, so that the doors can be tested without an engine and without waiting.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::named::Named;
use super::ticket::{self, Outlet, Returns, Ticket};
use super::{Command, Scheduler, Status};
use crate::engine::frames::CheckedPrompt;
use crate::request::{CallStyle, Event, PromptId, Refusal, Submission};

/// A handle as the doors get it, and the script behind it.
pub fn scripted(status: Status) -> (Scheduler, Script) {
    // Room for more commands than any test leaves unread.
    let (commands, read) = mpsc::channel(64);
    let (tell, status) = watch::channel(status);
    let traffic = crate::traffic::Traffic::default();
    (
        Scheduler { commands, status, named: Arc::new(Named::new(None)), traffic },
        Script { commands: read, status: tell, next: 1 },
    )
}

/// What stands behind a scripted handle.
#[derive(Debug)]
pub struct Script {
    commands: mpsc::Receiver<Command>,
    status: watch::Sender<Status>,
    next: u64,
}

/// What a door asked.
#[derive(Debug)]
pub enum Call {
    /// A prompt was handed in.
    Submit(Box<Submission>, Verdict),
    /// A prompt was cancelled by its number.
    Cancel(PromptId),
    /// Every prompt was cancelled.
    CancelAll,
    /// No further prompts are wanted.
    Drain,
    /// A conversation is to be forgotten.
    EndSession(crate::request::Identity, String, oneshot::Sender<bool>),
    /// The model is wanted in memory; it is taken to be there when the sender is used.
    Load(oneshot::Sender<()>),
    /// The model is wanted out of memory.
    Unload(oneshot::Sender<Result<(), Refusal>>),
    /// The board was looked at.
    Sense(Box<crate::board::Reading>),
    /// The operator wrote something that cannot be read.
    ConfigurationIsWrong(String),
    /// A sign of life is wanted; the answer is how late the engine is.
    Pulse(oneshot::Sender<Option<std::time::Duration>>),
    /// A model is being loaded beside the other, or no longer.
    LoadsBeside(Option<String>),
    /// The operator changed something.
    Configure(super::Config),
}

impl Script {
    /// What is asked next; `None` when every handle is gone.
    pub async fn next(&mut self) -> Option<Call> {
        Some(match self.commands.recv().await? {
            Command::Submit { submission, reply } => {
                let id = PromptId(self.next);
                self.next += 1;
                Call::Submit(submission, Verdict { id, reply })
            }
            Command::Cancel { id } => Call::Cancel(id),
            Command::CancelAll => Call::CancelAll,
            Command::Drain => Call::Drain,
            Command::EndSession { client, name, reply } => Call::EndSession(client, name, reply),
            Command::Load { reply } => Call::Load(reply),
            Command::Unload { reply } => Call::Unload(reply),
            Command::Sense(reading) => Call::Sense(reading),
            Command::ConfigurationIsWrong { message } => Call::ConfigurationIsWrong(message),
            Command::Configure { config, .. } | Command::TakeOver { config, .. } => {
                Call::Configure(config)
            }
            Command::LoadsBeside { next, .. } => Call::LoadsBeside(next),
            Command::Pulse { reply } => Call::Pulse(reply),
        })
    }

    /// Changes the status that everybody sees.
    pub fn set_status(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(change);
    }
}

/// A prompt that waits to be accepted or refused.
#[derive(Debug)]
pub struct Verdict {
    id: PromptId,
    reply: oneshot::Sender<Result<Ticket, Refusal>>,
}

impl Verdict {
    /// The number the prompt has or would have.
    pub fn id(&self) -> PromptId {
        self.id
    }

    /// Accepts it; its events are sent with what is returned.
    pub fn accept(self, seed: u64) -> Events {
        self.accept_with(seed, None)
    }

    /// The same for an answer that may call tools.
    pub fn accept_with(self, seed: u64, calls: Option<CallStyle>) -> Events {
        let checked = CheckedPrompt { prompt_tokens: 1, max_tokens: 1, calls };
        let returns = Arc::new(Returns::default());
        let (outlet, ticket) = ticket::accept(self.id, seed, checked, &returns);
        // A reply nobody waits for drops the ticket.
        let _ = self.reply.send(Ok(ticket));
        Events { outlet, returns }
    }

    /// Refuses it.
    pub fn refuse(self, refusal: Refusal) {
        let _ = self.reply.send(Err(refusal));
    }

    /// Waits until the asker is gone.
    pub async fn abandoned(&mut self) {
        self.reply.closed().await;
    }
}

/// The scheduler's half of an accepted prompt. Dropping it without a final event loses the prompt.
#[derive(Debug)]
pub struct Events {
    outlet: Outlet,
    returns: Arc<Returns>,
}

impl Events {
    /// Tells the asker what happened. Whether the asker is still there is `closed`'s business.
    pub fn send(&self, event: Event) {
        self.outlet.deliver(event);
    }

    /// Waits until the asker has dropped the ticket before the end.
    pub async fn closed(&self) {
        self.returns.taken().await;
    }

    /// Whether the asker has dropped the ticket before the end.
    pub fn is_closed(&self) -> bool {
        self.returns.any()
    }
}
