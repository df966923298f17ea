//! Ollama's answers: a line of JSON for each piece, and what its clients ask about models. promptd serves one model; what
//! manages models (pull, push, create, delete) is not here.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::collect::Whole;
use super::unix_seconds;
use super::voice::Voice;
use crate::request::{Finish, Refusal, TokenLogprob, ToolCall};
use crate::scheduler::ModelInfo;
use crate::wire::Part;

/// The release of Ollama whose API this is a part of: clients ask for it before they use what came later.
pub(super) const API_VERSION: &str = "0.12.0";

/// Which of the two APIs is spoken, and what every line says.
#[derive(Clone, Debug)]
pub(super) struct Lines {
    /// A chat's lines hold a message, those of `/api/generate` only text.
    pub(super) chat: bool,
    /// The model, as the client named it.
    pub(super) model: String,
    /// The call that is being written; Ollama tells of whole calls only.
    pub(super) open: Option<ToolCall>,
}

impl Lines {
    fn line(&self, text: &str, calls: &[ToolCall]) -> Map<String, Value> {
        let mut line = Map::new();
        line.insert("model".into(), self.model.as_str().into());
        line.insert("created_at".into(), timestamp(unix_seconds()).into());
        if self.chat {
            let mut message = json!({"role": "assistant", "content": text});
            if !calls.is_empty() {
                message["tool_calls"] = calls.iter().map(call).collect();
            }
            line.insert("message".into(), message);
        } else {
            line.insert("response".into(), text.into());
        }
        line.insert("done".into(), false.into());
        line
    }

    fn last(&self, text: &str, calls: &[ToolCall], finish: &Finish) -> Value {
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let (usage, timings) = (&finish.usage, &finish.timings);
        let mut line = self.line(text, calls);
        line.insert("done".into(), true.into());
        line.insert("done_reason".into(), finish.reason.as_str().into());
        let total = timings.queue + timings.prefill + timings.decode;
        for (name, value) in [
            ("total_duration", nanoseconds(total)),
            ("load_duration", nanoseconds(timings.queue)),
            ("prompt_eval_count", usage.prompt.into()),
            ("prompt_eval_duration", nanoseconds(timings.prefill)),
            ("eval_count", usage.completion.into()),
            ("eval_duration", nanoseconds(timings.decode)),
        ] {
            line.insert(name.into(), value.into());
        }
        Value::Object(line)
    }

    /// The whole answer.
    pub(super) fn whole(&self, answer: &Whole) -> Value {
        self.last(&answer.text, &answer.calls, &answer.finish)
    }

    /// The answer to a request that only has the model loaded.
    pub(super) fn loaded(&self) -> Value {
        let mut line = self.line("", &[]);
        line.insert("done".into(), true.into());
        line.insert("done_reason".into(), "load".into());
        Value::Object(line)
    }

    /// Tells of the call that is whole.
    fn close(&mut self, out: &mut Vec<u8>) {
        if let Some(call) = self.open.take() {
            write(&Value::Object(self.line("", &[call])), out);
        }
    }
}

impl Voice for Lines {
    fn begin(&mut self, _echo: Option<&str>, _out: &mut Vec<u8>) {}

    fn parts(&mut self, parts: &[Part], _tokens: &[TokenLogprob], out: &mut Vec<u8>) {
        for part in parts {
            match part {
                Part::Text(text) => write(&Value::Object(self.line(text, &[])), out),
                Part::Call { id, name, .. } => {
                    self.close(out);
                    let (id, name) = (id.clone(), name.clone());
                    self.open = Some(ToolCall { id, name, arguments: String::new() });
                }
                Part::Arguments(text) => {
                    if let Some(call) = &mut self.open {
                        call.arguments.push_str(text);
                    }
                }
            }
        }
    }

    fn finish(&mut self, finish: &Finish, out: &mut Vec<u8>) {
        self.close(out);
        write(&self.last("", &[], finish), out);
    }

    fn fail(&mut self, refusal: &Refusal, out: &mut Vec<u8>) {
        write(&json!({"error": refusal.message}), out);
    }

    /// Lines have no comments; a piece without text says as much.
    fn alive(&mut self, _why: &str, out: &mut Vec<u8>) {
        write(&Value::Object(self.line("", &[])), out);
    }
}

fn write(line: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("{line}\n").as_bytes());
}

fn call(call: &ToolCall) -> Value {
    let arguments: Value = serde_json::from_str(&call.arguments).unwrap_or_default();
    json!({"id": call.id, "function": {"name": call.name, "arguments": arguments}})
}

/// `GET /api/tags`
pub(super) fn tags(model: Option<&ModelInfo>, since: u64) -> Value {
    let one = |model: &ModelInfo| json!({"name": model.name, "model": model.name, "modified_at": timestamp(since), "details": details(model)});
    json!({"models": model.map(one).into_iter().collect::<Vec<_>>()})
}

/// `GET /api/ps`
pub(super) fn running(model: Option<&ModelInfo>) -> Value {
    let one = |model: &ModelInfo| json!({"name": model.name, "model": model.name, "details": details(model), "context_length": model.context});
    json!({"models": model.map(one).into_iter().collect::<Vec<_>>()})
}

/// `POST /api/show`
pub(super) fn show(model: &ModelInfo, since: u64) -> Value {
    let architecture = &model.architecture;
    let mut info = Map::new();
    info.insert("general.architecture".into(), architecture.as_str().into());
    info.insert("general.basename".into(), model.name.as_str().into());
    info.insert(format!("{architecture}.context_length"), model.context.into());
    info.insert(format!("{architecture}.vocab_size"), model.vocab_size.into());
    let capabilities: &[&str] = match (model.text, model.chat) {
        (false, _) => &[],
        (true, true) => &["completion", "tools"],
        (true, false) => &["completion"],
    };
    json!({"modified_at": timestamp(since), "details": details(model), "model_info": info, "capabilities": capabilities})
}

fn details(model: &ModelInfo) -> Value {
    let family = model.architecture.as_str();
    json!({"parent_model": "", "format": "onnx", "family": family, "families": [family], "parameter_size": "", "quantization_level": ""})
}

/// Seconds since 1970 as RFC 3339 writes them, in UTC.
fn timestamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March, so that a leap day is the last of its year.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) =
        (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = year + era * 400 + u64::from(month < 3);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
        ] {
            assert_eq!(timestamp(seconds), text);
        }
    }
}
