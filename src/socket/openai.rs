//! OpenAI's answer objects: whole completions, chunks of streamed ones, and models. Only shapes, no bytes and no HTTP.

use serde_json::{Map, Value, json};

use crate::request::{Finish, TokenLogprob};
use crate::scheduler::InSession;
use crate::wire::{chat_logprobs, completion_logprobs, milliseconds, rounded, session_fields};

/// Which of the two APIs is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Api {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completion,
}

impl Api {
    /// What the ids of its answers begin with.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Api::Chat => "chatcmpl",
            Api::Completion => "cmpl",
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
}

impl Head {
    /// The whole answer.
    pub(super) fn whole(&self, text: &str, tokens: &[TokenLogprob], finish: &Finish) -> Value {
        let reason = finish.reason.as_str();
        let logprobs = self.logprobs.then(|| self.logprobs(tokens));
        let (object, choice) = match self.api {
            Api::Chat => {
                let message = json!({"role": "assistant", "content": text, "refusal": null});
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

    /// The first chunk of a stream, which says who speaks; only a chat has one.
    pub(super) fn first_chunk(&self) -> Option<Map<String, Value>> {
        let delta = json!({"role": "assistant", "content": "", "refusal": null});
        (self.api == Api::Chat).then(|| self.chunk(&delta, "", &[], None))
    }

    /// A piece of text, and the tokens it came of where they are asked for.
    pub(super) fn text_chunk(&self, text: &str, tokens: &[TokenLogprob]) -> Map<String, Value> {
        self.chunk(&json!({"content": text}), text, tokens, None)
    }

    /// The chunk that says how the answer ended.
    pub(super) fn last_chunk(&self, finish: &Finish) -> Map<String, Value> {
        self.chunk(&json!({}), "", &[], Some(finish.reason.as_str()))
    }

    /// The chunk without text that holds the usage, for those who asked for it.
    pub(super) fn usage_chunk(&self, finish: &Finish) -> Map<String, Value> {
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
            Api::Chat => {
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
            Api::Chat => json!({"content": chat_logprobs(tokens), "refusal": null}),
            Api::Completion => completion_logprobs(tokens),
        }
    }

    fn chunk_name(&self) -> &'static str {
        match self.api {
            Api::Chat => "chat.completion.chunk",
            Api::Completion => "text_completion",
        }
    }

    /// What promptd says beyond OpenAI's fields.
    fn extension(&self, finish: &Finish) -> Value {
        let tps = rounded(finish.timings.tokens_per_second(&finish.usage));
        let mut object = json!({
            "seed": finish.seed, "ms": milliseconds(finish), "tps": tps, "cached": finish.usage.cached,
        });
        if let (Some(object), Some(session)) = (object.as_object_mut(), &self.session) {
            object.extend(session_fields(session));
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
