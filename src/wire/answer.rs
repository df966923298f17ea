//! Writes promptd's own answers: the final object, the error object, pieces of a stream and progress.

use std::time::Duration;

use serde_json::{Map, Value};

use super::logprobs::chat as chat_logprobs;
use super::{PROTOCOL, payload};
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
        let json = Some(self.text)
            .filter(|_| self.is_json)
            .and_then(|text| serde_json::from_str(text).ok());
        payload::value(&payload::Answer {
            v: PROTOCOL,
            id: self.id,
            status: "ok",
            text: self.text,
            json,
            logprobs: self.logprobs.map(chat_logprobs),
            finish: reason.as_str(),
            model: self.model,
            session: self.session.map(|session| payload::Conversation {
                session: &session.name,
                session_turns: session.turns,
                session_dropped: session.dropped,
            }),
            seed: *seed,
            attempt: Some(self.attempt).filter(|attempt| *attempt > 1),
            usage: payload::Usage {
                prompt: usage.prompt,
                cached: usage.cached,
                completion: usage.completion,
                forgotten: Some(usage.forgotten).filter(|forgotten| *forgotten > 0),
            },
            ms: times(self.finish),
            tps: rounded(timings.tokens_per_second(usage)),
            node: self.node,
            truncated: *reason == FinishReason::Length,
        })
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
    payload::value(&payload::Error {
        v: PROTOCOL,
        id,
        status: "error",
        code: refusal.code.as_str(),
        message: &refusal.message,
        param: refusal.param.as_deref(),
        numbers: numbers_of(refusal),
    })
}

/// The numbers of a refusal, under the names all doors use.
pub(crate) fn numbers(refusal: &Refusal) -> Map<String, Value> {
    match payload::value(&numbers_of(refusal)) {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn numbers_of(refusal: &Refusal) -> payload::Numbers {
    let ms = |after: Duration| u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
    let (limit, have) = (refusal.limit, refusal.have);
    payload::Numbers { retry_after_ms: refusal.retry_after.map(ms), limit, have }
}

/// A piece of a streamed answer, the `seq`-th from 0. The id stands in it where several streams share one way, and the
/// log probabilities of its tokens where there are any.
pub fn stream_piece(id: Option<&str>, seq: u64, text: &str, logprobs: &[TokenLogprob]) -> Value {
    let logprobs = (!logprobs.is_empty()).then(|| chat_logprobs(logprobs));
    payload::value(&payload::StreamPiece { id, seq, d: text, logprobs })
}

/// The end of a stream. `n` is how many messages the stream had, this one included, so that a client can see whether it
/// lost one; `error` holds the code if the answer failed on the way.
pub fn stream_end(id: Option<&str>, seq: u64, failed: Option<&Refusal>) -> Value {
    let (n, error) = (seq.saturating_add(1), failed.map(|refusal| refusal.code.as_str()));
    payload::value(&payload::StreamEnd { id, seq, end: true, n, error })
}

/// Where a prompt is: `None` says that it was accepted and waits. Only the first piece of text is news, so the caller
/// sends `decoding` once; final events are no progress.
pub fn progress_object(id: Option<&str>, event: Option<&Event>) -> Option<Value> {
    let stage = match event {
        None => payload::Stage::Queued { position: None, eta_ms: None },
        Some(Event::Queued { position, eta }) => payload::Stage::Queued {
            position: Some(*position),
            eta_ms: Some(u64::try_from(eta.as_millis()).unwrap_or(u64::MAX)),
        },
        Some(Event::Prefill { done, total }) => {
            payload::Stage::Prefill { done: *done, total: *total }
        }
        Some(Event::Delta { .. }) => payload::Stage::Decoding,
        Some(
            Event::Started { .. } | Event::Vector { .. } | Event::Finished(_) | Event::Failed(_),
        ) => return None,
    };
    Some(payload::value(&payload::Progress { id, stage }))
}

/// Where the time went, in milliseconds.
pub(crate) fn milliseconds(finish: &Finish) -> Value {
    payload::value(&times(finish))
}

fn times(finish: &Finish) -> payload::Milliseconds {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let timings = &finish.timings;
    payload::Milliseconds {
        queue: ms(timings.queue),
        prefill: ms(timings.prefill),
        decode: ms(timings.decode),
    }
}

/// Two digits behind the point: more would be noise.
pub(crate) fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
            usage: Usage { prompt: 41, cached: 38, completion: 9, forgotten: 0 },
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
        // Numbers of sixteen digits are what the text says, not a neighbour of it.
        let long = Answer { text: "[941319783713421.5]", ..answer };
        assert_eq!(long.to_object()["json"].to_string(), "[941319783713421.5]");
        // Text that merely looks like JSON stays text.
        let plain = Answer { text: "1", is_json: false, ..long };
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
