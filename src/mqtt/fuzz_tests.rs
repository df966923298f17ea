//! Topics, properties and payloads as anybody can publish them, damaged at random: an answer never goes where promptd or
//! another board listens, and no message is larger than the asker can read.

use std::time::Instant;

use bytes::Bytes;

use super::message::Publication;
use super::reply::{self, Address, Allowed, Form, Wishes};
use super::topic::{Topics, is_under};
use crate::identity::Grant;
use crate::random::{Random, runs, told};
use crate::request::{Code, Finish, FinishReason, Identity, Timings, Usage};
use crate::wire::{Answer, AnswerFormat, Context, Limits, Profiles, Readings, parse_ask};

const TOPICS: &[&str] = &[
    "promptd/n/ask",
    "promptd/n/ask/lights",
    "promptd/n/cancel",
    "promptd/n/answer",
    "promptd/n/answer/x",
    "promptd/n/status",
    "promptd/other/ask",
    "promptd/any/ask/lights",
    "promptd",
    "esp32-7/llm",
    "esp32-7",
    "me/r",
    "$SYS/broker",
    "a/+/b",
];
const WORDS: &[&str] =
    &["promptd", "promptd/n", "/ask", "/answer/", "esp32-7", "\"id\":", "\"reply_to\":", "//"];
const PAYLOADS: &[&str] = &[
    r#"{"id":"esp32-7:42","prompt":"a","reply_to":"esp32-7/llm","max_bytes":64}"#,
    r#"{"id":"x","prompt":"a","reply_to":"promptd/n/ask","format":"text","max_bytes":99}"#,
    r#"{"id":"x","prompt":"a","profile":"nobody","max_bytes":64}"#,
    r#"{"messages":[{"role":"user","content":"a"}],"stream":true,"max_bytes":70,"stop":["x"]}"#,
    "Is the light on?",
];

fn damaged(random: &mut Random, text: &str, words: &[&str]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    random.damage(&mut bytes, words);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn some(random: &mut Random, of: &[&str]) -> Option<String> {
    let text = random.pick(of);
    (random.below(3) > 0).then(|| damaged(random, text, WORDS))
}

/// What is the same for whichever message comes: whom answers may reach.
fn check_topic(publication: &Publication, topics: &[Topics]) {
    let topic = publication.topic.as_str();
    assert!(!topic.is_empty() && topic.len() <= 1024, "{topic:?}");
    assert!(!topic.contains(['+', '#', '\0']) && !topic.starts_with('$'), "{topic:?}");
    for topics in topics {
        assert_eq!(topics.parse(topic), None, "an answer would be read as a request: {topic:?}");
    }
}

#[test]
fn fuzz_replies() {
    let topics = Topics::new("promptd", "n").unwrap();
    let everybody = [topics.clone(), Topics::new("promptd", "other").unwrap()];
    let profiles: Profiles = toml::from_str("[lights]\nchoices = [\"a\", \"b\"]\n").unwrap();
    let (limits, readings) = (Limits::default(), Readings::default());
    let began = Instant::now();
    let context = Context {
        profiles: &profiles,
        limits: &limits,
        readings: &readings,
        grant: Grant::all(Identity("fuzz".to_owned())),
        now: began,
        door: crate::request::Door::Mqtt,
    };
    let mut random = Random::of_target(0x9e37_79b9_7f4a_7c15);
    let (mut free, mut refused, mut parts) = (0_u64, 0_u64, 0_u64);
    let all = runs(1);
    for _ in 0..all {
        let allowed = Allowed {
            prefixes: vec!["esp32-7".to_owned()],
            restrict_response_topics: random.below(2) == 0,
        };
        let from = some(&mut random, TOPICS).unwrap_or_else(|| "promptd/n/ask".to_owned());
        let profile = match topics.parse(&from) {
            Some(super::topic::Inbound::Ask(profile)) => profile,
            _ => None,
        };
        let mut payload = random.pick(PAYLOADS).as_bytes().to_vec();
        random.damage(&mut payload, WORDS);
        let asked = parse_ask(&payload, profile, &context);
        let (id, reply_to, format, max_bytes) = match &asked {
            Ok(asked) => (&asked.id, &asked.reply_to, asked.format, asked.max_bytes),
            Err(error) => (&error.id, &error.reply_to, error.format, error.max_bytes),
        };
        let response_topic = some(&mut random, TOPICS);
        let correlation = (random.below(2) == 0).then(|| Bytes::from(payload.clone()));
        let wishes = Wishes {
            response_topic: response_topic.as_deref(),
            correlation: correlation.as_ref(),
            reply_to: reply_to.as_deref(),
            id: id.as_deref(),
        };
        let (to, refusal) = reply::address(&topics, &allowed, &wishes);
        assert_eq!(to.correlation, correlation);
        let restricted = response_topic.is_none() || allowed.restrict_response_topics;
        if restricted {
            let right = topics.is_own_answer(&to.topic) || is_under(&to.topic, "esp32-7");
            assert!(right, "{}", to.topic);
        }
        let form = Form { format, max_bytes, cbor: false };
        let messages = if let Some(refusal) =
            refusal.as_ref().or(asked.as_ref().err().map(|error| &*error.refusal))
        {
            refused += 1;
            assert!(refusal.code != Code::Internal, "{refusal}");
            vec![reply::refusal(&to, form, id.as_deref(), refusal)]
        } else {
            free += 1;
            let piece = random.pick(TOPICS);
            let text = damaged(&mut random, piece, PAYLOADS).repeat(random.below(5));
            let messages = answered(&to, form, id.as_deref(), &text);
            if messages.len() > 1 {
                parts += 1;
                assert_eq!(joined(&messages, format), text);
            }
            messages
        };
        for message in &messages {
            check_topic(message, &everybody);
            let most = max_bytes.unwrap_or(usize::MAX);
            let have = message.payload.len();
            assert!(have <= most, "{have} of {most}: {:?}", message.payload);
            std::str::from_utf8(&message.payload).unwrap();
        }
    }
    assert!(free > 0 && refused > 0, "{free} free, {refused} refused");
    told("replies", began, all, &format!("{free} answered, {parts} in parts, {refused} refused"));
}

fn answered(to: &Address, form: Form, id: Option<&str>, text: &str) -> Vec<Publication> {
    let finish = Finish {
        reason: FinishReason::Stop,
        usage: Usage::default(),
        timings: Timings::default(),
        seed: u64::MAX,
    };
    let answer = Answer {
        id,
        text,
        is_json: false,
        logprobs: None,
        finish: &finish,
        model: "demo",
        node: Some("n"),
        session: None,
        attempt: 1,
    };
    reply::answer(to, form, &answer)
}

/// The text that the parts of an answer make together.
fn joined(messages: &[Publication], format: AnswerFormat) -> String {
    let text = |message: &Publication| {
        let text = std::str::from_utf8(&message.payload).unwrap();
        match format {
            AnswerFormat::Text => text.split_once(' ').unwrap().1.to_owned(),
            AnswerFormat::Json => {
                let object: serde_json::Value = serde_json::from_str(text).unwrap();
                object["text"].as_str().unwrap().to_owned()
            }
        }
    };
    messages.iter().map(text).collect()
}
