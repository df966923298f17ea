//! How many bytes a request keeps in memory besides its own fixed part.

use super::{Constraint, Input, Message, Request, Tools};

impl Request {
    /// The bytes of its texts and lists, tools and earlier calls included.
    pub fn bytes(&self) -> usize {
        let input = match &self.input {
            Input::Chat(messages) => messages.iter().map(Message::bytes).sum(),
            Input::Completion(text) => text.len(),
            Input::Ask { system, text } => text.len() + system.as_ref().map_or(0, String::len),
            Input::Embed(embed) => embed.bytes(),
        };
        let constraint = match &self.constraint {
            Constraint::None | Constraint::JsonObject => 0,
            Constraint::JsonSchema(text) | Constraint::Regex(text) | Constraint::Lark(text) => {
                text.len()
            }
            Constraint::Choices(choices) => all(choices),
        };
        let stop = all(&self.stop) + size_of_val(self.stop_token_ids.as_slice());
        let bias = size_of_val(self.sampling.logit_bias.as_slice());
        input + constraint + stop + bias + self.tools.as_ref().map_or(0, Tools::bytes)
    }
}

impl Message {
    fn bytes(&self) -> usize {
        let calls = self
            .calls
            .iter()
            .map(|call| size_of_val(call) + call.id.len() + call.name.len() + call.arguments.len());
        let id = self.call_id.as_ref().map_or(0, String::len);
        size_of_val(self) + self.content.len() + id + calls.sum::<usize>()
    }
}

impl Tools {
    fn bytes(&self) -> usize {
        let tools = self.list.iter().map(|tool| {
            let description = tool.description.as_ref().map_or(0, String::len);
            size_of_val(tool) + tool.name.len() + description + tool.parameters.len()
        });
        tools.sum()
    }
}

fn all(texts: &[String]) -> usize {
    texts.iter().map(|text| size_of_val(text) + text.len()).sum()
}
