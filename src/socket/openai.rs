//! OpenAI's answers to chats and completions: whole objects, streams of chunks, and models.

use serde_json::{Map, Value, json};

use super::collect::Whole;
use super::reply::error_object;
use super::voice::Voice;
use crate::request::{Finish, FinishReason, Refusal, TokenLogprob, ToolCall};
use crate::scheduler::InSession;
use crate::wire::{
    Part, chat_logprobs, completion_logprobs, milliseconds, rounded, session_fields,
};

/// Which of the APIs is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Api {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completion,
    /// `/v1/responses`
    Responses,
    /// Ollama's `/api/chat`
    OllamaChat,
    /// Ollama's `/api/generate`
    OllamaGenerate,
}

impl Api {
    /// Where it is spoken.
    pub(super) fn path(self) -> &'static str {
        match self {
            Api::Chat => "/v1/chat/completions",
            Api::Completion => "/v1/completions",
            Api::Responses => "/v1/responses",
            Api::OllamaChat => "/api/chat",
            Api::OllamaGenerate => "/api/generate",
        }
    }

    /// What the ids of its answers begin with.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Api::Chat => "chatcmpl",
            Api::Completion => "cmpl",
            Api::Responses => "resp",
            Api::OllamaChat | Api::OllamaGenerate => "ollama",
        }
    }
}

/// What every object of one answer says.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) api: Api,
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    /// Whether the log probabilities of the answer's tokens were asked for.
    pub(super) logprobs: bool,
    /// The conversation that it continues.
    pub(super) session: Option<InSession>,
    /// Which service since it was accepted gives it.
    pub(super) attempt: u32,
}

impl Head {
    /// The whole answer.
    pub(super) fn whole(&self, answer: &Whole) -> Value {
        let Whole { text, calls, tokens, finish } = answer;
        let reason = reason(finish, !calls.is_empty());
        let logprobs = self.logprobs.then(|| self.logprobs(tokens));
        let (object, choice) = match self.api {
            Api::Chat | Api::Responses | Api::OllamaChat | Api::OllamaGenerate => {
                let mut message = json!({"role": "assistant", "content": text, "refusal": null});
                if !calls.is_empty() {
                    // Who calls a tool says nothing, where there are no words beside the calls.
                    let said = Some(text.as_str()).filter(|text| !text.is_empty());
                    message["content"] = said.into();
                    message["tool_calls"] = calls.iter().map(call).collect();
                }
                let choice = json!({"index": 0, "message": message, "logprobs": logprobs, "finish_reason": reason});
                ("chat.completion", choice)
            }
            Api::Completion => {
                let choice = json!({"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason});
                ("text_completion", choice)
            }
        };
        let mut whole = self.object(object, json!([choice]));
        whole.insert("usage".into(), usage(finish));
        whole.insert("promptd".into(), self.extension(finish));
        Value::Object(whole)
    }

    fn usage_chunk(&self, finish: &Finish) -> Map<String, Value> {
        let mut chunk = self.object(self.chunk_name(), json!([]));
        chunk.insert("usage".into(), usage(finish));
        chunk.insert("promptd".into(), self.extension(finish));
        chunk
    }

    fn chunk(
        &self,
        delta: &Value,
        text: &str,
        tokens: &[TokenLogprob],
        reason: Option<&str>,
    ) -> Map<String, Value> {
        let logprobs = (!tokens.is_empty()).then(|| self.logprobs(tokens));
        let choice = match self.api {
            Api::Chat | Api::Responses | Api::OllamaChat | Api::OllamaGenerate => {
                json!({"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason})
            }
            Api::Completion => {
                json!({"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason})
            }
        };
        self.object(self.chunk_name(), json!([choice]))
    }

    fn logprobs(&self, tokens: &[TokenLogprob]) -> Value {
        match self.api {
            Api::Chat | Api::Responses | Api::OllamaChat | Api::OllamaGenerate => {
                json!({"content": chat_logprobs(tokens), "refusal": null})
            }
            Api::Completion => completion_logprobs(tokens),
        }
    }

    fn chunk_name(&self) -> &'static str {
        match self.api {
            Api::Chat | Api::Responses | Api::OllamaChat | Api::OllamaGenerate => {
                "chat.completion.chunk"
            }
            Api::Completion => "text_completion",
        }
    }

    /// What promptd says beyond OpenAI's fields.
    pub(super) fn extension(&self, finish: &Finish) -> Value {
        let tps = rounded(finish.timings.tokens_per_second(&finish.usage));
        let mut object = json!({
            "seed": finish.seed, "ms": milliseconds(finish), "tps": tps, "cached": finish.usage.cached,
        });
        if let (Some(object), Some(session)) = (object.as_object_mut(), &self.session) {
            object.extend(session_fields(session));
        }
        if finish.usage.forgotten > 0 {
            object["forgotten"] = finish.usage.forgotten.into();
        }
        if self.attempt > 1 {
            object["attempt"] = self.attempt.into();
        }
        object
    }

    fn object(&self, object: &str, choices: Value) -> Map<String, Value> {
        let mut map = Map::new();
        map.insert("id".into(), self.id.as_str().into());
        map.insert("object".into(), object.into());
        map.insert("created".into(), self.created.into());
        map.insert("model".into(), self.model.as_str().into());
        map.insert("choices".into(), choices);
        map
    }
}

/// A streamed answer, as server-sent events.
#[derive(Debug)]
pub(super) struct Chunks {
    head: Head,
    /// Whether a last chunk holds the usage.
    include_usage: bool,
    /// The calls that have begun.
    calls: usize,
}

impl Chunks {
    /// The stream of an answer with this head.
    pub(super) fn new(head: Head, include_usage: bool) -> Self {
        Chunks { head, include_usage, calls: 0 }
    }

    fn chunk(&self, mut chunk: Map<String, Value>, out: &mut Vec<u8>) {
        if self.include_usage {
            chunk.insert("usage".into(), Value::Null);
        }
        event(&Value::Object(chunk), out);
    }

    fn text(&self, text: &str, tokens: &[TokenLogprob], out: &mut Vec<u8>) {
        self.chunk(self.head.chunk(&json!({"content": text}), text, tokens, None), out);
    }
}

impl Voice for Chunks {
    /// A chat's stream begins with who speaks.
    fn begin(&mut self, echo: Option<&str>, out: &mut Vec<u8>) {
        if self.head.api == Api::Chat {
            let delta = json!({"role": "assistant", "content": "", "refusal": null});
            self.chunk(self.head.chunk(&delta, "", &[], None), out);
        }
        if let Some(echo) = echo {
            self.text(echo, &[], out);
        }
    }

    fn parts(&mut self, parts: &[Part], mut tokens: &[TokenLogprob], out: &mut Vec<u8>) {
        for part in parts {
            let call = match part {
                Part::Text(text) => {
                    self.text(text, std::mem::take(&mut tokens), out);
                    continue;
                }
                Part::Call { index, id, name } => {
                    self.calls = index + 1;
                    let function = json!({"name": name, "arguments": ""});
                    json!({"index": index, "id": id, "type": "function", "function": function})
                }
                Part::Arguments(text) => {
                    let index = self.calls.saturating_sub(1);
                    json!({"index": index, "function": {"arguments": text}})
                }
            };
            let delta = json!({"tool_calls": [call]});
            self.chunk(self.head.chunk(&delta, "", std::mem::take(&mut tokens), None), out);
        }
        if !tokens.is_empty() {
            self.text("", tokens, out);
        }
    }

    fn finish(&mut self, finish: &Finish, out: &mut Vec<u8>) {
        let reason = reason(finish, self.calls > 0);
        self.chunk(self.head.chunk(&json!({}), "", &[], Some(reason)), out);
        if self.include_usage {
            event(&Value::Object(self.head.usage_chunk(finish)), out);
        }
        out.extend_from_slice(DONE);
    }

    /// OpenAI's own clients raise it.
    fn fail(&mut self, refusal: &Refusal, out: &mut Vec<u8>) {
        event(&json!({"error": error_object(refusal, refusal.code.as_str())}), out);
        out.extend_from_slice(DONE);
    }
}

/// The end of a stream.
const DONE: &[u8] = b"data: [DONE]\n\n";

/// JSON holds no line break, so an event is one `data` line.
fn event(value: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("data: {value}\n\n").as_bytes());
}

/// Why the answer ended, in OpenAI's words.
fn reason(finish: &Finish, called: bool) -> &'static str {
    match finish.reason {
        FinishReason::Stop if called => "tool_calls",
        reason => reason.as_str(),
    }
}

/// A call of a tool.
fn call(call: &ToolCall) -> Value {
    let function = json!({"name": call.name, "arguments": call.arguments});
    json!({"id": call.id, "type": "function", "function": function})
}

/// A model as `/v1/models` lists it.
pub(super) fn model(name: &str, created: u64, context: u32) -> Value {
    json!({"id": name, "object": "model", "created": created, "owned_by": "promptd", "context_length": context})
}

fn usage(finish: &Finish) -> Value {
    let usage = &finish.usage;
    json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": u64::from(usage.prompt) + u64::from(usage.completion),
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    })
}
