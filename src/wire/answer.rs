//! Writes promptd's own answers: the final object, the error object, pieces of a stream and progress.

use serde_json::{Map, Value, json};

use super::PROTOCOL;
use super::logprobs::chat as chat_logprobs;
use crate::request::{Event, Finish, FinishReason, Refusal, TokenLogprob};
use crate::scheduler::InSession;

/// A whole answer.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// The asker's own id.
    pub id: Option<&'a str>,
    /// The text.
    pub text: &'a str,
    /// Whether the text is JSON by constraint ([`super::Asked::is_json`]); it then stands under `json` as a value too.
    pub is_json: bool,
    /// What the model thought of its tokens, where that was asked for.
    pub logprobs: Option<&'a [TokenLogprob]>,
    /// How it ended and what it cost.
    pub finish: &'a Finish,
    /// The model's name.
    pub model: &'a str,
    /// The board's name, where it has one.
    pub node: Option<&'a str>,
    /// The conversation that it continues.
    pub session: Option<&'a InSession>,
    /// Which service since the prompt was accepted gave it; 1 is the one that accepted it.
    pub attempt: u32,
}

impl Answer<'_> {
    /// The answer object. `json` is there if the text was constrained to JSON and is whole; `truncated` says that the
    /// text was cut off by `max_tokens` or the end of the context.
    pub fn to_object(&self) -> Value {
        let Finish { reason, usage, timings, seed } = self.finish;
        let mut object = head(self.id, "ok");
        object.insert("text".into(), self.text.into());
        if let Some(value) = Some(self.text)
            .filter(|_| self.is_json)
            .and_then(|text| serde_json::from_str(text).ok())
        {
            object.insert("json".into(), value);
        }
        object.extend(self.logprobs.map(|tokens| ("logprobs".to_owned(), chat_logprobs(tokens))));
        object.insert("finish".into(), reason.as_str().into());
        object.insert("model".into(), self.model.into());
        if let Some(session) = self.session {
            object.extend(session_fields(session));
        }
        object.insert("seed".into(), (*seed).into());
        if self.attempt > 1 {
            object.insert("attempt".into(), self.attempt.into());
        }
        object.insert(
            "usage".into(),
            json!({"prompt": usage.prompt, "cached": usage.cached, "completion": usage.completion}),
        );
        object.insert("ms".into(), milliseconds(self.finish));
        object.insert("tps".into(), rounded(timings.tokens_per_second(usage)).into());
        if let Some(node) = self.node {
            object.insert("node".into(), node.into());
        }
        object.insert("truncated".into(), (*reason == FinishReason::Length).into());
        Value::Object(object)
    }
}

/// Which conversation an answer continues, how many earlier turns the model read, and how many were dropped from it.
pub(crate) fn session_fields(session: &InSession) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("session".into(), session.name.as_str().into());
    object.insert("session_turns".into(), session.turns.into());
    object.insert("session_dropped".into(), session.dropped.into());
    object
}

/// The object that says why there is no answer.
pub fn error_object(id: Option<&str>, refusal: &Refusal) -> Value {
    let mut object = head(id, "error");
    object.insert("code".into(), refusal.code.as_str().into());
    object.insert("message".into(), refusal.message.as_str().into());
    if let Some(param) = &refusal.param {
        object.insert("param".into(), param.as_str().into());
    }
    object.extend(numbers(refusal));
    Value::Object(object)
}

/// The numbers of a refusal, under the names all doors use.
pub(crate) fn numbers(refusal: &Refusal) -> Map<String, Value> {
    let mut object = Map::new();
    if let Some(after) = refusal.retry_after {
        object.insert(
            "retry_after_ms".into(),
            u64::try_from(after.as_millis()).unwrap_or(u64::MAX).into(),
        );
    }
    if let Some(limit) = refusal.limit {
        object.insert("limit".into(), limit.into());
    }
    if let Some(have) = refusal.have {
        object.insert("have".into(), have.into());
    }
    object
}

/// A piece of a streamed answer, the `seq`-th from 0. The id stands in it where several streams share one way, and the
/// log probabilities of its tokens where there are any.
pub fn stream_piece(id: Option<&str>, seq: u64, text: &str, logprobs: &[TokenLogprob]) -> Value {
    let mut object = Map::new();
    object.extend(id.map(|id| ("id".to_owned(), Value::from(id))));
    object.insert("seq".into(), seq.into());
    object.insert("d".into(), text.into());
    if !logprobs.is_empty() {
        object.insert("logprobs".into(), chat_logprobs(logprobs));
    }
    Value::Object(object)
}

/// The end of a stream. `n` is how many messages the stream had, this one included, so that a client can see whether it
/// lost one; `error` holds the code if the answer failed on the way.
pub fn stream_end(id: Option<&str>, seq: u64, failed: Option<&Refusal>) -> Value {
    let mut object = Map::new();
    object.extend(id.map(|id| ("id".to_owned(), Value::from(id))));
    object.insert("seq".into(), seq.into());
    object.insert("end".into(), true.into());
    object.insert("n".into(), seq.saturating_add(1).into());
    object.extend(failed.map(|refusal| ("error".to_owned(), Value::from(refusal.code.as_str()))));
    Value::Object(object)
}

/// Where a prompt is: `None` says that it was accepted and waits. Only the first piece of text is news, so the caller
/// sends `decoding` once; final events are no progress.
pub fn progress_object(id: Option<&str>, event: Option<&Event>) -> Option<Value> {
    let mut object = Map::new();
    object.extend(id.map(|id| ("id".to_owned(), Value::from(id))));
    match event {
        None => {
            object.insert("state".into(), "queued".into());
        }
        Some(Event::Queued { position, eta }) => {
            let eta_ms = u64::try_from(eta.as_millis()).unwrap_or(u64::MAX);
            object.insert("state".into(), "queued".into());
            object.insert("position".into(), (*position).into());
            object.insert("eta_ms".into(), eta_ms.into());
        }
        Some(Event::Prefill { done, total }) => {
            object.insert("state".into(), "prefill".into());
            object.insert("done".into(), (*done).into());
            object.insert("total".into(), (*total).into());
        }
        Some(Event::Delta { .. }) => {
            object.insert("state".into(), "decoding".into());
        }
        Some(Event::Started | Event::Finished(_) | Event::Failed(_)) => return None,
    }
    Some(Value::Object(object))
}

/// Where the time went, in milliseconds.
pub(crate) fn milliseconds(finish: &Finish) -> Value {
    let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let timings = &finish.timings;
    json!({"queue": ms(timings.queue), "prefill": ms(timings.prefill), "decode": ms(timings.decode)})
}

/// Two digits behind the point: more would be noise.
pub(crate) fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

fn head(id: Option<&str>, status: &str) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("v".into(), PROTOCOL.into());
    object.extend(id.map(|id| ("id".to_owned(), Value::from(id))));
    object.insert("status".into(), status.into());
    object
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::request::{Code, Timings, Usage};

    fn finish(reason: FinishReason) -> Finish {
        let timings = Timings {
            queue: Duration::from_millis(3),
            prefill: Duration::from_millis(210),
            decode: Duration::from_millis(900),
        };
        Finish {
            reason,
            usage: Usage { prompt: 41, cached: 38, completion: 9 },
            timings,
            seed: u64::MAX,
        }
    }

    #[test]
    fn the_answer_object() {
        let finish = finish(FinishReason::Stop);
        let text = r#"{"light":"on"}"#;
        let answer = Answer {
            id: Some("esp32-7:42"),
            text,
            is_json: true,
            logprobs: None,
            finish: &finish,
            model: "m",
            node: Some("n"),
            session: None,
            attempt: 1,
        };
        assert_eq!(
            answer.to_object().to_string(),
            r#"{"v":1,"id":"esp32-7:42","status":"ok","text":"{\"light\":\"on\"}","json":{"light":"on"},"finish":"stop","model":"m","seed":18446744073709551615,"usage":{"prompt":41,"cached":38,"completion":9},"ms":{"queue":3,"prefill":210,"decode":900},"tps":8.89,"node":"n","truncated":false}"#
        );
    }

    #[test]
    fn a_cut_answer_has_no_json_value() {
        let finish = finish(FinishReason::Length);
        let answer = Answer {
            id: None,
            text: "{\"li",
            is_json: true,
            logprobs: None,
            finish: &finish,
            model: "m",
            node: None,
            session: None,
            attempt: 1,
        };
        let object = answer.to_object();
        assert_eq!((object.get("json"), object.get("id"), object.get("node")), (None, None, None));
        assert_eq!((&object["finish"], &object["truncated"]), (&json!("length"), &json!(true)));
        // Text that merely looks like JSON stays text.
        let plain = Answer { text: "1", is_json: false, ..answer };
        assert_eq!(plain.to_object().get("json"), None);
    }

    #[test]
    fn errors_streams_and_progress() {
        let refusal = Refusal::new(Code::Busy, "full")
            .with_retry_after(Duration::from_secs(4))
            .with_limit(8, 9);
        assert_eq!(
            error_object(Some("a"), &refusal).to_string(),
            r#"{"v":1,"id":"a","status":"error","code":"busy","message":"full","retry_after_ms":4000,"limit":8,"have":9}"#
        );
        assert_eq!(stream_piece(None, 0, "Hel", &[]).to_string(), r#"{"seq":0,"d":"Hel"}"#);
        assert_eq!(stream_end(None, 7, None).to_string(), r#"{"seq":7,"end":true,"n":8}"#);
        assert_eq!(
            stream_end(Some("a"), 1, Some(&refusal)).to_string(),
            r#"{"id":"a","seq":1,"end":true,"n":2,"error":"busy"}"#
        );
        assert_eq!(progress_object(None, None).unwrap().to_string(), r#"{"state":"queued"}"#);
        let prefill = Event::Prefill { done: 3, total: 9 };
        assert_eq!(
            progress_object(Some("a"), Some(&prefill)).unwrap().to_string(),
            r#"{"id":"a","state":"prefill","done":3,"total":9}"#
        );
        assert_eq!(progress_object(None, Some(&Event::Failed(refusal))), None);
    }
}
