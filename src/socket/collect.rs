//! Waits for a whole answer.

use crate::request::{Code, Event, Finish, Refusal, TokenLogprob, ToolCall};
use crate::scheduler::Ticket;
use crate::wire::split_calls;

/// A whole answer.
#[derive(Debug)]
pub(super) struct Whole {
    /// Its words.
    pub(super) text: String,
    /// The tools it calls.
    pub(super) calls: Vec<ToolCall>,
    /// The log probabilities of its tokens, where they were asked for.
    pub(super) tokens: Vec<TokenLogprob>,
    /// How it ended.
    pub(super) finish: Finish,
}

/// The whole answer. Dropping the future cancels the prompt.
pub(super) async fn whole(mut ticket: Ticket) -> Result<Whole, Refusal> {
    let (mut text, mut tokens) = (String::new(), Vec::new());
    loop {
        match ticket.next().await {
            Some(
                Event::Queued { .. }
                | Event::Started { .. }
                | Event::Prefill { .. }
                | Event::Vector { .. },
            ) => {}
            Some(Event::Delta { text: piece, logprobs, .. }) => {
                text.push_str(&piece);
                tokens.extend(logprobs);
            }
            Some(Event::Finished(finish)) => {
                let (text, calls) = split_calls(ticket.checked().calls, &text)?;
                return Ok(Whole { text, calls, tokens, finish });
            }
            Some(Event::Failed(refusal)) => return Err(refusal),
            None => return Err(lost()),
        }
    }
}

/// What is said of a prompt whose events ended without a final one: only a scheduler that is gone leaves that behind.
pub(super) fn lost() -> Refusal {
    Refusal::new(
        Code::Internal,
        "promptd stopped before the answer was whole; ask again when it is back",
    )
}
