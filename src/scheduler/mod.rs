//! Accepts prompts, lets them wait, gives them to the engine and sees that each ends in exactly one final event.
//! Knows no topic, no HTTP and no tensor.

mod status;
mod ticket;

use tokio::sync::{mpsc, oneshot, watch};

use crate::request::{Code, PromptId, Refusal, Submission};

pub use status::{Counters, State, Status};
pub use ticket::Ticket;

/// A handle on the scheduler; clones are cheap and mean the same scheduler.
#[derive(Clone, Debug)]
pub struct Scheduler {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
}

/// What the handle asks of the scheduler's task.
#[derive(Debug)]
pub(crate) enum Command {
    Submit { submission: Submission, reply: oneshot::Sender<Result<Ticket, Refusal>> },
    Cancel { id: PromptId },
    CancelAll,
    Drain,
}

impl Scheduler {
    /// Hands a prompt in. It is checked completely (template, tokens, context, schema) before it is accepted; what is
    /// accepted ends in exactly one [`crate::request::Event::Finished`] or `Failed`.
    ///
    /// # Errors
    /// `model_loading`, `model_failed`, `busy` (with the time after which to ask again), `context_length_exceeded` (with both
    /// numbers), `bad_request`, `would_miss_deadline`, or `busy` while draining.
    pub async fn submit(&self, submission: Submission) -> Result<Ticket, Refusal> {
        let (reply, answer) = oneshot::channel();
        let gone =
            || Refusal::new(Code::Internal, "promptd is stopping; ask again when it is back");
        self.commands.send(Command::Submit { submission, reply }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Cancels one prompt; its ticket gets `Failed` with `cancelled`. Unknown numbers are ignored.
    pub async fn cancel(&self, id: PromptId) {
        // A scheduler that is gone has nothing left to cancel.
        let _ = self.commands.send(Command::Cancel { id }).await;
    }

    /// Cancels every prompt, waiting or running.
    pub async fn cancel_all(&self) {
        let _ = self.commands.send(Command::CancelAll).await;
    }

    /// Refuses new prompts from now on and lets the accepted ones end. `Status::is_idle` tells when they have.
    pub async fn drain(&self) {
        let _ = self.commands.send(Command::Drain).await;
    }

    /// The state of the engine, the queue and the counters; changes as they change.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }
}
