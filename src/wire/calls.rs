//! Finds the calls of tools in an answer's text as it comes: words, names and arguments in order, and never half a mark.
//!
//! The engine held the text to its grammar, so what stands between the parts is known; anything else is read as words.

use crate::request::{CallStyle, Code, Refusal, ToolCall};

/// Letters and digits of a call's id: the templates of Mistral's models want nine.
const ID_CHARS: usize = 9;

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Words.
    Text(String),
    /// A call begins.
    Call {
        /// Its number, from 0.
        index: usize,
        /// Its id, drawn here.
        id: String,
        /// The tool's name.
        name: String,
    },
    /// More of the last call's arguments.
    Arguments(String),
}

/// Reads one answer.
#[derive(Debug)]
pub struct CallReader {
    style: Option<CallStyle>,
    place: Place,
    /// What is not understood yet.
    held: String,
    calls: usize,
    /// White space that stands in front of the mark, if one comes, and is no part of the words then.
    spaces: String,
    said: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Place {
    Words,
    /// In front of a call's name, or behind the last call.
    Between,
    Arguments(Depth),
}

/// How deep in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Depth {
    brackets: usize,
    string: bool,
    escape: bool,
}

impl CallReader {
    /// A reader for answers of this style; without one all is words.
    pub fn new(style: Option<CallStyle>) -> Self {
        CallReader {
            style,
            place: Place::Words,
            held: String::new(),
            calls: 0,
            spaces: String::new(),
            said: false,
        }
    }

    /// Whether a call has begun.
    pub fn has_calls(&self) -> bool {
        self.calls > 0
    }

    /// The parts that this text completes.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        let mut parts = Vec::new();
        let Some(style) = self.style else {
            if !text.is_empty() {
                parts.push(Part::Text(text.to_owned()));
            }
            return parts;
        };
        self.held.push_str(text);
        while self.step(style, &mut parts) {}
        parts
    }

    /// What is left at the end.
    ///
    /// # Errors
    /// `bad_request`, where the answer ends in the middle of a call: a stop text can cut it off.
    pub fn finish(&mut self) -> Result<Option<Part>, Refusal> {
        let cut = match self.place {
            Place::Words => {
                let rest = std::mem::take(&mut self.spaces) + &std::mem::take(&mut self.held);
                return Ok((!rest.is_empty()).then_some(Part::Text(rest)));
            }
            Place::Arguments(_) => true,
            Place::Between => self.calls == 0 || self.held.contains("\"name\""),
        };
        if cut {
            let message = "the answer was cut off in the middle of a call of a tool; leave `stop` out, or raise `max_tokens`";
            return Err(Refusal::new(Code::BadRequest, message).with_param("stop"));
        }
        Ok(None)
    }

    /// Reads one part; whether there may be another one.
    fn step(&mut self, style: CallStyle, parts: &mut Vec<Part>) -> bool {
        match &mut self.place {
            Place::Words => self.words(style, parts),
            Place::Between => self.name(style, parts),
            Place::Arguments(depth) => {
                let end = self
                    .held
                    .char_indices()
                    .find_map(|(at, c)| depth.pass(c).then_some(at + c.len_utf8()));
                let arguments: String = self.held.drain(..end.unwrap_or(self.held.len())).collect();
                if !arguments.is_empty() {
                    parts.push(Part::Arguments(arguments));
                }
                if end.is_some() {
                    self.place = Place::Between;
                }
                end.is_some()
            }
        }
    }

    fn words(&mut self, style: CallStyle, parts: &mut Vec<Part>) -> bool {
        let mark = style.mark();
        // Llama's calls are the whole answer.
        if style == CallStyle::Llama && (self.said || !self.held.is_empty()) {
            let whole = self.held.starts_with(mark);
            if !self.said && !whole && mark.starts_with(&self.held) {
                return false;
            }
            if !self.said && whole {
                self.place = Place::Between;
                return true;
            }
        } else if let Some((words, rest)) = self.held.split_once(mark) {
            let words = (std::mem::take(&mut self.spaces) + words).trim_end().to_owned();
            if !words.is_empty() {
                parts.push(Part::Text(words));
            }
            self.held = rest.to_owned();
            self.place = Place::Between;
            return true;
        }
        let undecided = self.held.char_indices().map(|(at, _)| at).find(|at| {
            style != CallStyle::Llama && mark.starts_with(self.held.get(*at..).unwrap_or_default())
        });
        let rest = self.held.split_off(undecided.unwrap_or(self.held.len()));
        let words = std::mem::take(&mut self.spaces) + &std::mem::replace(&mut self.held, rest);
        let core = if style == CallStyle::Llama { words.len() } else { words.trim_end().len() };
        let (core, spaces) = words.split_at_checked(core).unwrap_or((&words, ""));
        if !core.is_empty() {
            self.said = true;
            parts.push(Part::Text(core.to_owned()));
        }
        spaces.clone_into(&mut self.spaces);
        false
    }

    fn name(&mut self, style: CallStyle, parts: &mut Vec<Part>) -> bool {
        let opening = format!("\", \"{}\": ", style.arguments());
        let found = self.held.split_once("{\"name\": \"").and_then(|(_, rest)| {
            rest.split_once(&opening).map(|(name, rest)| (name.to_owned(), rest.to_owned()))
        });
        let Some((name, rest)) = found else { return false };
        parts.push(Part::Call { index: self.calls, id: draw_id(), name });
        self.calls += 1;
        self.held = rest;
        self.place = Place::Arguments(Depth::default());
        true
    }
}

impl Depth {
    /// Passes a character; whether the value ends with it.
    fn pass(&mut self, c: char) -> bool {
        if self.string {
            match c {
                _ if self.escape => self.escape = false,
                '\\' => self.escape = true,
                '"' => self.string = false,
                _ => {}
            }
            return false;
        }
        match c {
            '"' => self.string = true,
            '{' | '[' => self.brackets += 1,
            '}' | ']' => {
                self.brackets = self.brackets.saturating_sub(1);
                return self.brackets == 0;
            }
            _ => {}
        }
        false
    }
}

/// An answer's words and calls, from its whole text.
///
/// # Errors
/// As [`CallReader::finish`].
pub fn split_calls(
    style: Option<CallStyle>,
    text: &str,
) -> Result<(String, Vec<ToolCall>), Refusal> {
    let mut reader = CallReader::new(style);
    let mut parts = reader.push(text);
    parts.extend(reader.finish()?);
    let (mut words, mut calls) = (String::new(), Vec::<ToolCall>::new());
    for part in parts {
        match part {
            Part::Text(text) => words.push_str(&text),
            Part::Call { id, name, .. } => {
                calls.push(ToolCall { id, name, arguments: String::new() });
            }
            Part::Arguments(text) => {
                if let Some(call) = calls.last_mut() {
                    call.arguments.push_str(&text);
                }
            }
        }
    }
    Ok((words, calls))
}

/// Ids only have to differ within a conversation.
fn draw_id() -> String {
    const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    let mut bytes = [0; ID_CHARS];
    // Without randomness all calls have the same id, which still names the last one.
    let _ = getrandom::fill(&mut bytes);
    let letter = |byte: &u8| ALPHABET.get(usize::from(*byte) % ALPHABET.len()).copied();
    bytes.iter().filter_map(letter).map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERMES: &str = "Let me see.\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": \"}\\\"<tool_call>{\", \"y\": [{}]}}\n</tool_call>\n<tool_call>\n{\"name\": \"b\", \"arguments\": {}}\n</tool_call>";

    #[test]
    fn styles() {
        use CallStyle::{Hermes, Llama, Mistral};
        let x = "{\"x\": \"}\\\"<tool_call>{\", \"y\": [{}]}";
        for (style, text, words, expected) in [
            (Some(Hermes), HERMES, "Let me see.", &[("a", x), ("b", "{}")][..]),
            (Some(Hermes), "1 < 2 <tool \n", "1 < 2 <tool \n", &[]),
            (None, HERMES, HERMES, &[]),
            (
                Some(Llama),
                "{\"name\": \"a\", \"parameters\": {\"n\": 1}}",
                "",
                &[("a", "{\"n\": 1}")],
            ),
            (Some(Llama), "{\"nam \n", "{\"nam \n", &[]),
            (Some(Llama), "See {\"name\": \"a\"", "See {\"name\": \"a\"", &[]),
            (
                Some(Mistral),
                "[TOOL_CALLS] [{\"name\": \"a\", \"arguments\": {}}, {\"name\": \"b\", \"arguments\": {\"n\": []}}]",
                "",
                &[("a", "{}"), ("b", "{\"n\": []}")],
            ),
            (Some(Mistral), "[TOOL", "[TOOL", &[]),
        ] {
            let (said, calls) = split_calls(style, text).unwrap();
            let calls: Vec<_> =
                calls.iter().map(|call| (call.name.as_str(), call.arguments.as_str())).collect();
            assert_eq!((said.as_str(), calls.as_slice()), (words, expected), "{style:?} {text}");
        }
    }

    #[test]
    fn cutting_changes_nothing() {
        let whole = split_calls(Some(CallStyle::Hermes), HERMES).unwrap();
        for width in 1..9 {
            let mut reader = CallReader::new(Some(CallStyle::Hermes));
            let characters: Vec<char> = HERMES.chars().collect();
            let (mut words, mut arguments, mut names) = (String::new(), String::new(), Vec::new());
            for piece in characters.chunks(width) {
                for part in reader.push(&piece.iter().collect::<String>()) {
                    match part {
                        Part::Text(text) => words.push_str(&text),
                        Part::Call { name, index, id } => {
                            assert_eq!((index, id.len()), (names.len(), ID_CHARS));
                            names.push(name);
                        }
                        Part::Arguments(text) => arguments.push_str(&text),
                    }
                }
            }
            assert_eq!(reader.finish().unwrap(), None);
            assert_eq!((words.as_str(), names), ("Let me see.", vec!["a".into(), "b".into()]));
            assert_eq!(arguments, format!("{}{}", whole.1[0].arguments, whole.1[1].arguments));
        }
    }

    #[test]
    fn half_a_call_is_none() {
        for end in [15, 30, 50, 70] {
            let text = HERMES.get(12..12 + end).unwrap();
            assert!(split_calls(Some(CallStyle::Hermes), text).is_err(), "{text}");
        }
    }
}
