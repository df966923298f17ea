//! The asker's half of an accepted prompt: its events in order. Dropping the ticket cancels the prompt.

use std::task::{Context, Poll};

use tokio::sync::mpsc;

use crate::engine::frames::CheckedPrompt;
use crate::request::{Event, PromptId};

/// An accepted prompt. Dropping it before its final event cancels the prompt: the scheduler notices the closed channel.
#[derive(Debug)]
pub struct Ticket {
    pub(crate) id: PromptId,
    pub(crate) seed: u64,
    pub(crate) checked: CheckedPrompt,
    pub(crate) events: mpsc::Receiver<Event>,
}

impl Ticket {
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

    /// The next event. `None` only after the final one.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The same for those who poll: streams write an answer as it comes.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.poll_recv(cx)
    }
}
