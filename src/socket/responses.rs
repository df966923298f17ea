//! OpenAI's answers to `/v1/responses`: whole objects and streams of events. Only what is asked there; nothing is kept.

use serde_json::{Map, Value, json};

use super::collect::Whole;
use super::openai::Head;
use super::reply::error_object;
use super::voice::Voice;
use crate::request::{Finish, FinishReason, Refusal, TokenLogprob, ToolCall};
use crate::wire::Part;

/// What every object of one response says.
#[derive(Clone, Debug)]
pub(super) struct Response {
    pub(super) head: Head,
    /// What is repeated of the request.
    pub(super) echo: Map<String, Value>,
}

impl Response {
    /// The whole answer.
    pub(super) fn whole(&self, answer: &Whole) -> Value {
        let mut output = Vec::new();
        if !answer.text.is_empty() || answer.calls.is_empty() {
            output.push(self.message(0, &answer.text, "completed"));
        }
        for call in &answer.calls {
            output.push(self.call(output.len(), call, "completed"));
        }
        Value::Object(self.ended(output, &answer.finish))
    }

    fn ended(&self, output: Vec<Value>, finish: &Finish) -> Map<String, Value> {
        let cut = finish.reason == FinishReason::Length;
        let mut object = self.object(if cut { "incomplete" } else { "completed" }, output);
        if cut {
            object.insert("incomplete_details".into(), json!({"reason": "max_output_tokens"}));
        }
        let usage = &finish.usage;
        object.insert(
            "usage".into(),
            json!({
                "input_tokens": usage.prompt,
                // Nobody is charged for what the cache keeps: OpenAI's types only want the number to be there.
                "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
                "output_tokens": usage.completion,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": u64::from(usage.prompt) + u64::from(usage.completion),
            }),
        );
        object.insert("promptd".into(), self.head.extension(finish));
        object
    }

    fn object(&self, status: &str, output: Vec<Value>) -> Map<String, Value> {
        let head = &self.head;
        let mut object = Map::new();
        object.insert("id".into(), head.id.as_str().into());
        object.insert("object".into(), "response".into());
        object.insert("created_at".into(), head.created.into());
        object.insert("status".into(), status.into());
        object.insert("model".into(), head.model.as_str().into());
        object.insert("output".into(), output.into());
        object.insert("error".into(), Value::Null);
        object.insert("incomplete_details".into(), Value::Null);
        object.insert("previous_response_id".into(), Value::Null);
        object.insert("store".into(), false.into());
        object.insert("usage".into(), Value::Null);
        object.extend(self.echo.clone());
        object
    }

    /// An item's id: the response's own, and its place.
    fn item_id(&self, kind: &str, at: usize) -> String {
        format!("{kind}-{}-{at}", self.head.id)
    }

    fn message(&self, at: usize, text: &str, status: &str) -> Value {
        let content = if status == "completed" { vec![part(text)] } else { Vec::new() };
        json!({"type": "message", "id": self.item_id("msg", at), "status": status, "role": "assistant", "content": content})
    }

    fn call(&self, at: usize, call: &ToolCall, status: &str) -> Value {
        json!({"type": "function_call", "id": self.item_id("fc", at), "call_id": call.id, "name": call.name,
            "arguments": call.arguments, "status": status})
    }
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

/// A streamed response.
#[derive(Debug)]
pub(super) struct Events {
    response: Response,
    sequence: u64,
    /// Items that are whole.
    output: Vec<Value>,
    /// The item that is being written.
    open: Option<Open>,
}

#[derive(Debug)]
enum Open {
    Message(String),
    Call(ToolCall),
}

impl Events {
    /// The stream of this response.
    pub(super) fn new(response: Response) -> Self {
        Events { response, sequence: 0, output: Vec::new(), open: None }
    }

    /// An event is its type, and a `data` line; JSON holds no line break.
    fn event(&mut self, kind: &str, mut data: Value, out: &mut Vec<u8>) {
        if let Some(object) = data.as_object_mut() {
            object.insert("type".into(), kind.into());
            object.insert("sequence_number".into(), self.sequence.into());
        }
        self.sequence += 1;
        out.extend_from_slice(format!("event: {kind}\ndata: {data}\n\n").as_bytes());
    }

    fn begin_message(&mut self, out: &mut Vec<u8>) {
        let at = self.output.len();
        let item = self.response.message(at, "", "in_progress");
        let id = item["id"].clone();
        self.event("response.output_item.added", json!({"output_index": at, "item": item}), out);
        let data = json!({"item_id": id, "output_index": at, "content_index": 0, "part": part("")});
        self.event("response.content_part.added", data, out);
        self.open = Some(Open::Message(String::new()));
    }

    /// Ends the item that is being written.
    fn close(&mut self, out: &mut Vec<u8>) {
        let at = self.output.len();
        let item = match self.open.take() {
            None => return,
            Some(Open::Message(text)) => {
                let item = self.response.message(at, &text, "completed");
                let place = json!({"item_id": item["id"], "output_index": at, "content_index": 0});
                let with = |name: &str, value: Value| {
                    let mut data = place.clone();
                    data[name] = value;
                    data
                };
                let mut done = with("text", text.as_str().into());
                done["logprobs"] = json!([]);
                self.event("response.output_text.done", done, out);
                self.event("response.content_part.done", with("part", part(&text)), out);
                item
            }
            Some(Open::Call(call)) => {
                let item = self.response.call(at, &call, "completed");
                let data = json!({"item_id": item["id"], "output_index": at, "name": call.name, "arguments": call.arguments});
                self.event("response.function_call_arguments.done", data, out);
                item
            }
        };
        self.event("response.output_item.done", json!({"output_index": at, "item": item}), out);
        self.output.push(item);
    }

    fn text(&mut self, text: &str, out: &mut Vec<u8>) {
        if !matches!(self.open, Some(Open::Message(_))) {
            self.close(out);
            self.begin_message(out);
        }
        if let Some(Open::Message(whole)) = &mut self.open {
            whole.push_str(text);
        }
        let at = self.output.len();
        let id = self.response.item_id("msg", at);
        let data = json!({"item_id": id, "output_index": at, "content_index": 0, "delta": text, "logprobs": []});
        self.event("response.output_text.delta", data, out);
    }
}

impl Voice for Events {
    fn begin(&mut self, _echo: Option<&str>, out: &mut Vec<u8>) {
        let object = Value::Object(self.response.object("in_progress", Vec::new()));
        self.event("response.created", json!({"response": object}), out);
        self.event("response.in_progress", json!({"response": object}), out);
    }

    fn parts(&mut self, parts: &[Part], _tokens: &[TokenLogprob], out: &mut Vec<u8>) {
        for part in parts {
            match part {
                Part::Text(text) => self.text(text, out),
                Part::Call { id, name, .. } => {
                    self.close(out);
                    let call =
                        ToolCall { id: id.clone(), name: name.clone(), arguments: String::new() };
                    let at = self.output.len();
                    let item = self.response.call(at, &call, "in_progress");
                    self.event(
                        "response.output_item.added",
                        json!({"output_index": at, "item": item}),
                        out,
                    );
                    self.open = Some(Open::Call(call));
                }
                Part::Arguments(text) => {
                    if let Some(Open::Call(call)) = &mut self.open {
                        call.arguments.push_str(text);
                    }
                    let at = self.output.len();
                    let id = self.response.item_id("fc", at);
                    let data = json!({"item_id": id, "output_index": at, "delta": text});
                    self.event("response.function_call_arguments.delta", data, out);
                }
            }
        }
    }

    fn finish(&mut self, finish: &Finish, out: &mut Vec<u8>) {
        if self.open.is_none() && self.output.is_empty() {
            self.begin_message(out);
        }
        self.close(out);
        let object = self.response.ended(std::mem::take(&mut self.output), finish);
        let cut = finish.reason == FinishReason::Length;
        let kind = if cut { "response.incomplete" } else { "response.completed" };
        self.event(kind, json!({"response": object}), out);
    }

    fn fail(&mut self, refusal: &Refusal, out: &mut Vec<u8>) {
        let mut object = self.response.object("failed", std::mem::take(&mut self.output));
        let error = error_object(refusal, refusal.code.as_str());
        object.insert("error".into(), error);
        self.event("response.failed", json!({"response": object}), out);
    }
}
