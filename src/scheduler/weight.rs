//! How many bytes a waiting prompt keeps in memory.

use crate::request::{Constraint, Input, Request};

/// What a prompt costs besides its texts: its entries in the scheduler's books, its ticket and its door's task.
const FIXED: usize = 2048;

/// The bytes of a request's texts, and a fixed part.
pub(super) fn weight(request: &Request) -> usize {
    let input = match &request.input {
        Input::Chat(messages) => {
            messages.iter().map(|message| message.content.len() + size_of_val(message)).sum()
        }
        Input::Completion(text) => text.len(),
        Input::Ask { system, text } => text.len() + system.as_ref().map_or(0, String::len),
        Input::Embed(embed) => embed.bytes(),
    };
    let constraint = match &request.constraint {
        Constraint::None | Constraint::JsonObject => 0,
        Constraint::JsonSchema(text) | Constraint::Regex(text) | Constraint::Lark(text) => {
            text.len()
        }
        Constraint::Choices(choices) => choices.iter().map(String::len).sum(),
    };
    let stop: usize = request.stop.iter().map(String::len).sum();
    FIXED + input + constraint + stop
}
