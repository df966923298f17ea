//! Waits for a whole answer.

use crate::request::{Code, Event, Finish, Refusal, TokenLogprob};
use crate::scheduler::Ticket;

/// The answer's whole text, the log probabilities of its tokens where they were asked for, and how it ended. Dropping the future cancels the prompt.
pub(super) async fn whole(
    mut ticket: Ticket,
) -> Result<(String, Vec<TokenLogprob>, Finish), Refusal> {
    let (mut text, mut tokens) = (String::new(), Vec::new());
    loop {
        match ticket.next().await {
            Some(Event::Queued { .. } | Event::Started | Event::Prefill { .. }) => {}
            Some(Event::Delta { text: piece, logprobs, .. }) => {
                text.push_str(&piece);
                tokens.extend(logprobs);
            }
            Some(Event::Finished(finish)) => return Ok((text, tokens, finish)),
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
