//! Tools: functions of the asker's that an answer may call, and the calls.

use serde::{Deserialize, Serialize};

/// The tools of a request and how they may be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tools {
    /// The tools; their names differ.
    pub list: Vec<Tool>,
    /// Whether the answer calls one.
    pub choice: ToolChoice,
    /// Whether it may call several.
    pub parallel: bool,
}

impl Tools {
    /// The tools that the answer may call.
    pub fn callable(&self) -> impl Iterator<Item = &Tool> {
        self.list.iter().filter(|tool| match &self.choice {
            ToolChoice::None => false,
            ToolChoice::Auto | ToolChoice::Required => true,
            ToolChoice::Named(name) => tool.name == *name,
        })
    }
}

/// A function of the asker's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// Its name: 1 to 64 letters, digits, `_`, `-` and `.`.
    pub name: String,
    /// What it does, for the model.
    pub description: Option<String>,
    /// The JSON Schema of its arguments as its source text: an object.
    pub parameters: String,
}

/// Whether an answer calls a tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToolChoice {
    /// The model decides.
    Auto,
    /// It calls none; the model is told of them all the same.
    None,
    /// It calls at least one.
    Required,
    /// It calls the one of this name.
    Named(String),
}

/// A call of a tool, in an answer or in a conversation that is resent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// What the result names it by.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// Its arguments as JSON text.
    pub arguments: String,
}

/// How calls stand in the text of an answer, as the model was trained to write them. The text between them is the same
/// whatever the model: see [`crate::wire::CallReader`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallStyle {
    /// `<tool_call>\n{"name": "f", "arguments": {…}}\n</tool_call>`, once for each call: Hermes, Qwen.
    Hermes,
    /// `{"name": "f", "parameters": {…}}` as the whole answer: Llama 3.
    Llama,
    /// `[TOOL_CALLS][{"name": "f", "arguments": {…}}, …]`: Mistral.
    Mistral,
}

impl CallStyle {
    /// What stands in front of the calls, and in no other text of an answer.
    pub fn mark(self) -> &'static str {
        match self {
            CallStyle::Hermes => "<tool_call>",
            CallStyle::Llama => "{\"name\": \"",
            CallStyle::Mistral => "[TOOL_CALLS]",
        }
    }

    /// What the arguments are called.
    pub fn arguments(self) -> &'static str {
        match self {
            CallStyle::Hermes | CallStyle::Mistral => "arguments",
            CallStyle::Llama => "parameters",
        }
    }
}
