//! Where an answer goes and what its messages look like. Pure.

use bytes::Bytes;
use serde_json::Value;

use super::message::Publication;
use super::topic::{Topics, is_under};
use crate::request::{Code, Refusal};
use crate::wire::payload::Numbered;
use crate::wire::{Answer, AnswerFormat, PROTOCOL, error_object};

/// The most messages one answer is split into. Each takes a place in the outbox, which has few hundred.
const MAX_PARTS: usize = 128;
/// The widest number of a part, for reckoning how much room the text has.
const WIDEST: usize = MAX_PARTS;

/// What the operator allows askers to choose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Allowed {
    /// `reply_to` has to be one of these topics or beneath one; `<node>/answer` is always allowed.
    pub(crate) prefixes: Vec<String>,
    /// Whether Response Topics have to be as well.
    pub(crate) restrict_response_topics: bool,
}

/// What a request says about the way back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wishes<'a> {
    /// MQTT 5's Response Topic.
    pub(crate) response_topic: Option<&'a str>,
    /// MQTT 5's Correlation Data.
    pub(crate) correlation: Option<&'a Bytes>,
    /// The `reply_to` in the JSON.
    pub(crate) reply_to: Option<&'a str>,
    /// The `id` in the JSON.
    pub(crate) id: Option<&'a str>,
}

/// Where the answer goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// The topic.
    pub(crate) topic: String,
    /// What the asker wants to find there.
    pub(crate) correlation: Option<Bytes>,
}

/// Chooses the address: Response Topic, `reply_to`, `answer/<id>`, `answer`.
///
/// The address is usable in any case. Where the asker's own choice is not, it is the node's `answer`, and the refusal
/// says why.
pub(crate) fn address(
    topics: &Topics,
    allowed: &Allowed,
    wishes: &Wishes<'_>,
) -> (Address, Option<Refusal>) {
    let own =
        || Address { topic: topics.answer(wishes.id), correlation: wishes.correlation.cloned() };
    let (name, topic, restricted) = match (wishes.response_topic, wishes.reply_to) {
        (Some(topic), _) => ("the Response Topic", topic, allowed.restrict_response_topics),
        (None, Some(topic)) => ("reply_to", topic, true),
        (None, None) => return (own(), None),
    };
    let refuse = |code, why: &str| {
        // The topic itself is left out: it may be long or hold anything.
        let refusal = Refusal::new(
            code,
            format!("{name} {why}; this answer went to promptd's own answer topic instead"),
        );
        (own(), Some(refusal.with_param(if name == "reply_to" { name } else { "response_topic" })))
    };
    if let Err(why) = topics.check_reply(topic) {
        return refuse(Code::BadRequest, why);
    }
    let free = topics.is_own_answer(topic)
        || allowed.prefixes.iter().any(|prefix| is_under(topic, prefix));
    if restricted && !free {
        return refuse(
            Code::Forbidden,
            "lies under none of the topics that `mqtt.reply_prefixes` allows",
        );
    }
    (Address { topic: topic.to_owned(), correlation: wishes.correlation.cloned() }, None)
}

/// What form an answer's messages have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Form {
    /// The whole object or only the text.
    pub(crate) format: AnswerFormat,
    /// The most bytes of one message's payload.
    pub(crate) max_bytes: Option<usize>,
    /// Whether objects are written in CBOR, as the request was.
    pub(crate) cbor: bool,
}

/// The messages of an answer: one, or numbered parts where one would be larger than the asker can read.
pub(crate) fn answer(to: &Address, form: Form, answer: &Answer<'_>) -> Vec<Publication> {
    let whole = match form.format {
        AnswerFormat::Json => answer.to_object().to_string(),
        AnswerFormat::Text => answer.text.to_owned(),
    };
    let payloads = match form.max_bytes {
        Some(most) if whole.len() > most => {
            let Some(parts) = parts(form.format, answer, most) else {
                let message = format!(
                    "the answer needs more than {MAX_PARTS} parts of {most} bytes; raise `max_bytes`"
                );
                let refusal = Refusal::new(Code::PayloadTooLarge, message).with_param("max_bytes");
                return vec![self::refusal(to, form, answer.id, &refusal)];
            };
            parts
        }
        _ => vec![whole],
    };
    let count = payloads.len();
    let publication = |(at, payload): (usize, String)| {
        let mut properties =
            vec![("status", "ok".to_owned()), ("finish", answer.finish.reason.as_str().to_owned())];
        if count > 1 {
            properties.extend([("part", (at + 1).to_string()), ("parts", count.to_string())]);
        }
        message(to, form, payload, properties)
    };
    payloads.into_iter().enumerate().map(publication).collect()
}

/// The message that says why there is no answer. In text form it is `!code`, with the milliseconds after which to ask
/// again where they are known.
pub(crate) fn refusal(
    to: &Address,
    form: Form,
    id: Option<&str>,
    refusal: &Refusal,
) -> Publication {
    let payload = match form.format {
        AnswerFormat::Text => match refusal.retry_after {
            Some(after) => format!("!{} {}", refusal.code.as_str(), after.as_millis()),
            None => format!("!{}", refusal.code.as_str()),
        },
        AnswerFormat::Json => {
            fitting(error_object(id, refusal), form.max_bytes.unwrap_or(usize::MAX))
        }
    };
    let mut properties =
        vec![("status", "error".to_owned()), ("error", refusal.code.as_str().to_owned())];
    if form.format == AnswerFormat::Text {
        properties.push(("message", refusal.message.clone()));
    }
    message(to, form, payload, properties)
}

fn message(
    to: &Address,
    form: Form,
    payload: String,
    properties: Vec<(&'static str, String)>,
) -> Publication {
    let publication = Publication {
        topic: to.topic.clone(),
        payload: payload.into(),
        retain: false,
        correlation: to.correlation.clone(),
        response_topic: None,
        content_type: Some(match form.format {
            AnswerFormat::Json => "application/json",
            AnswerFormat::Text => "text/plain",
        }),
        properties,
    };
    if form.cbor { publication.in_cbor() } else { publication }
}

/// An error object within `most` bytes: the sentence goes first, then what the asker knows anyway.
fn fitting(mut object: Value, most: usize) -> String {
    for name in ["", "message", "param", "id", "v"] {
        if let Some(map) = object.as_object_mut() {
            map.shift_remove(name);
        }
        let text = object.to_string();
        if text.len() <= most {
            return text;
        }
    }
    object.to_string()
}

/// The payloads of an answer in parts of at most `most` bytes; `None` where that takes too many.
fn parts(format: AnswerFormat, answer: &Answer<'_>, most: usize) -> Option<Vec<String>> {
    // The id goes with each part, unless it would leave no room for the text.
    let id = answer.id.filter(|id| part(format, Some(id), (WIDEST, WIDEST), "").len() <= most / 2);
    let room = most.checked_sub(part(format, id, (WIDEST, WIDEST), "").len())?;
    let mut texts = Vec::new();
    let (mut text, mut bytes) = (String::new(), 0);
    for c in answer.text.chars() {
        let width = match format {
            AnswerFormat::Text => c.len_utf8(),
            AnswerFormat::Json => escaped_len(c),
        };
        if bytes + width > room {
            texts.push(std::mem::take(&mut text));
            bytes = 0;
            if texts.len() >= MAX_PARTS || width > room {
                return None;
            }
        }
        text.push(c);
        bytes += width;
    }
    texts.push(text);
    let count = texts.len();
    Some(
        texts
            .iter()
            .enumerate()
            .map(|(at, text)| part(format, id, (at + 1, count), text))
            .collect(),
    )
}

fn part(
    format: AnswerFormat,
    id: Option<&str>,
    (number, count): (usize, usize),
    text: &str,
) -> String {
    if format == AnswerFormat::Text {
        return format!("{number}/{count} {text}");
    }
    let part = Numbered { v: id.map(|_| PROTOCOL), id, part: number, parts: count, text };
    serde_json::to_string(&part).unwrap_or_default()
}

/// The bytes a character has in a JSON string as `serde_json` writes it.
fn escaped_len(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        c if u32::from(c) < 0x20 => 6,
        c => c.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::request::{Finish, FinishReason, Timings, Usage};

    fn topics() -> Topics {
        Topics::new("promptd", "n").unwrap()
    }

    fn to() -> Address {
        Address { topic: "me/r".into(), correlation: Some(Bytes::from_static(b"\0\xff")) }
    }

    fn finish() -> Finish {
        Finish {
            reason: FinishReason::Stop,
            usage: Usage::default(),
            timings: Timings::default(),
            seed: 1,
        }
    }

    fn texts(messages: &[Publication]) -> Vec<String> {
        messages.iter().map(|m| String::from_utf8(m.payload.to_vec()).unwrap()).collect()
    }

    #[test]
    fn where_answers_go() {
        let allowed = Allowed { prefixes: vec!["esp32-7".into()], restrict_response_topics: false };
        let table = [
            ((Some("me/r"), Some("esp32-7/llm"), Some("x")), "me/r", None),
            ((None, Some("esp32-7/llm"), Some("x")), "esp32-7/llm", None),
            ((None, Some("promptd/n/answer/mine/7"), Some("x")), "promptd/n/answer/mine/7", None),
            ((None, None, Some("x")), "promptd/n/answer/x", None),
            ((None, None, None), "promptd/n/answer", None),
            ((None, Some("esp32-77/llm"), Some("x")), "promptd/n/answer/x", Some(Code::Forbidden)),
            ((None, Some("promptd/n/ask"), None), "promptd/n/answer", Some(Code::BadRequest)),
            (
                (Some("promptd/n/ask"), Some("esp32-7/llm"), None),
                "promptd/n/answer",
                Some(Code::BadRequest),
            ),
            ((Some("a/#"), None, Some("x")), "promptd/n/answer/x", Some(Code::BadRequest)),
            ((Some(""), None, None), "promptd/n/answer", Some(Code::BadRequest)),
            ((Some("$SYS/broker"), None, None), "promptd/n/answer", Some(Code::BadRequest)),
        ];
        for ((response_topic, reply_to, id), topic, code) in table {
            let wishes = Wishes { response_topic, reply_to, id, correlation: None };
            let (got, refusal) = address(&topics(), &allowed, &wishes);
            assert_eq!(
                (got.topic.as_str(), refusal.map(|r| r.code)),
                (topic, code),
                "{response_topic:?} {reply_to:?}"
            );
        }
    }

    #[test]
    fn response_topics_can_be_restricted() {
        let allowed = Allowed { prefixes: vec!["me".into()], restrict_response_topics: true };
        for (topic, want) in
            [("me/r", None), ("other", Some(Code::Forbidden)), ("promptd/n/answer/z", None)]
        {
            let wishes = Wishes { response_topic: Some(topic), ..Wishes::default() };
            assert_eq!(address(&topics(), &allowed, &wishes).1.map(|r| r.code), want, "{topic}");
        }
    }

    #[test]
    fn one_message_with_the_correlation_data() {
        let finish = finish();
        let whole = Answer {
            id: Some("i"),
            text: "hi",
            is_json: false,
            logprobs: None,
            finish: &finish,
            model: "m",
            node: Some("n"),
            session: None,
            attempt: 1,
        };
        let json = answer(&to(), Form::default(), &whole);
        assert_eq!(
            (json.len(), &json[0].topic, &json[0].correlation),
            (1, &to().topic, &to().correlation)
        );
        assert_eq!(json[0].content_type, Some("application/json"));
        assert!(!json[0].retain);
        let text = answer(
            &to(),
            Form { format: AnswerFormat::Text, max_bytes: Some(64), cbor: false },
            &whole,
        );
        assert_eq!(
            (texts(&text), text[0].content_type),
            (vec!["hi".to_owned()], Some("text/plain"))
        );
        assert_eq!(text[0].properties[0], ("status", "ok".to_owned()));
    }

    #[test]
    fn parts_fit_and_together_are_the_text() {
        let finish = finish();
        let text = "Straße \"42\"\n\u{1}🙂 ".repeat(20);
        let long_id = "x".repeat(128);
        for id in [None, Some("esp32-7:42"), Some(long_id.as_str())] {
            for most in [64, 65, 100, 200, 1000] {
                let whole = Answer {
                    id,
                    text: &text,
                    is_json: false,
                    logprobs: None,
                    finish: &finish,
                    model: "m",
                    node: Some("n"),
                    session: None,
                    attempt: 1,
                };
                let form = Form { max_bytes: Some(most), ..Form::default() };
                let payloads = texts(&answer(&to(), form, &whole));
                assert!(payloads.iter().all(|payload| payload.len() <= most), "{most}");
                let objects: Vec<Value> =
                    payloads.iter().map(|p| serde_json::from_str(p).unwrap()).collect();
                let joined: String =
                    objects.iter().map(|object| object["text"].as_str().unwrap()).collect();
                assert_eq!(joined, text, "{most}");
                if objects.len() > 1 {
                    for (at, object) in objects.iter().enumerate() {
                        assert_eq!(
                            (&object["part"], &object["parts"]),
                            (&(at + 1).into(), &objects.len().into())
                        );
                    }
                }
                let plain =
                    texts(&answer(&to(), Form { format: AnswerFormat::Text, ..form }, &whole));
                assert!(plain.iter().all(|payload| payload.len() <= most), "{most}");
                if plain.len() > 1 {
                    let joined: String =
                        plain.iter().map(|part| part.split_once(' ').unwrap().1).collect();
                    assert_eq!(joined, text, "{most}");
                }
            }
        }
    }

    #[test]
    fn too_many_parts_are_refused() {
        let finish = finish();
        let text = "x".repeat(64 * MAX_PARTS);
        let whole = Answer {
            id: Some("i"),
            text: &text,
            is_json: false,
            logprobs: None,
            finish: &finish,
            model: "m",
            node: None,
            session: None,
            attempt: 1,
        };
        let form = Form { max_bytes: Some(64), ..Form::default() };
        let messages = texts(&answer(&to(), form, &whole));
        assert_eq!(messages.len(), 1);
        assert!(
            messages[0].contains("payload_too_large") && messages[0].len() <= 64,
            "{messages:?}"
        );
    }

    #[test]
    fn refusals() {
        let busy =
            Refusal::new(Code::Busy, "the queue is full").with_retry_after(Duration::from_secs(4));
        let form = |format, max_bytes| Form { format, max_bytes, cbor: false };
        let text = |form| texts(&[refusal(&to(), form, Some("i"), &busy)]).remove(0);
        assert_eq!(text(form(AnswerFormat::Text, None)), "!busy 4000");
        assert!(text(form(AnswerFormat::Json, None)).contains("the queue is full"));
        assert_eq!(
            text(form(AnswerFormat::Json, Some(80))),
            r#"{"v":1,"id":"i","status":"error","code":"busy","retry_after_ms":4000}"#
        );
        assert_eq!(
            text(form(AnswerFormat::Json, Some(64))),
            r#"{"v":1,"status":"error","code":"busy","retry_after_ms":4000}"#
        );
        let message = refusal(&to(), Form::default(), None, &Refusal::bad_request("no"));
        assert_eq!(
            message.properties,
            [("status", "error".to_owned()), ("error", "bad_request".to_owned())]
        );
    }
}
